//! Invalid input gives a one-line error that names the file, tensor or flag, and exit status 1.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use ccm::metrics::Gaussian;
use ccm::metrics::statistics::Statistics;
use ccm::weights::{HostTensor, TensorFile};
use ccm_tests::program::{TINY, distill, fail, picture_folder, succeed, write_idx};
use ccm_tests::{configurations, fixtures, lively_model, small_spec};
use tempfile::{TempDir, tempdir};

fn run(folder: &TempDir, arguments: &[&str]) -> Command {
    let mut command = distill();
    command
        .args(["run", "--device", "cpu", "--out"])
        .arg(folder.path().join("run"))
        .args(TINY)
        .args(arguments);
    command
}

/// The preset, whose weaker teacher must have fewer images than the teacher of [`TINY`].
const TINY_MNIST: [&str; 4] = ["--preset", "mnist", "--set", "teacher.weaker_kimg=0.016"];

fn mnist(folder: &TempDir, data: &Path) -> Command {
    let mut command = run(folder, &TINY_MNIST);
    command.arg("--data").arg(data);
    command
}

fn cut(path: &Path, keep: usize) {
    let bytes = fs::read(path).unwrap();
    assert!(keep < bytes.len());
    fs::write(path, &bytes[..keep]).unwrap();
}

#[test]
fn missing_or_empty_data_is_an_error() {
    let folder = tempdir().unwrap();
    fail(&mut mnist(&folder, &folder.path().join("nowhere")), &["nowhere"]);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    fail(&mut mnist(&folder, &empty), &["empty", "image"]);
    fail(&mut run(&folder, &TINY_MNIST), &["--data"]);
    assert!(!folder.path().join("run").exists(), "no files remain");
}

#[test]
fn truncated_archives() {
    let folder = tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    picture_folder(&pictures, 48);

    let tar = |path: &Path| {
        let file = fs::File::create(path).unwrap();
        let mut status = Command::new("tar");
        status.args(["-C"]).arg(&pictures).args(["-cz", "."]).stdout(file);
        assert!(status.status().unwrap().success());
    };
    let tgz = folder.path().join("pictures.tgz");
    tar(&tgz);
    succeed(run(&tempdir().unwrap(), &["--preset", "cifar10"]).arg("--data").arg(&tgz));
    cut(&tgz, fs::read(&tgz).unwrap().len() / 2);
    fail(run(&folder, &["--preset", "cifar10"]).arg("--data").arg(&tgz), &["pictures.tgz", "truncated"]);

    let zip = folder.path().join("pictures.zip");
    // The directory of a zip file is at its end; without it, the file is truncated.
    fs::File::create(&zip).unwrap().write_all(b"PK\x03\x04 and then nothing").unwrap();
    fail(run(&folder, &["--preset", "cifar10"]).arg("--data").arg(&zip), &["pictures.zip"]);

    let idx = folder.path().join("idx");
    fs::create_dir(&idx).unwrap();
    write_idx(&idx, 32);
    let images = idx.join("train-images-idx3-ubyte");
    assert!(Command::new("gzip").arg(&images).status().unwrap().success());
    let gz = idx.join("train-images-idx3-ubyte.gz");
    cut(&gz, fs::read(&gz).unwrap().len() / 2);
    fail(&mut mnist(&folder, &idx), &["train-images-idx3-ubyte.gz", "truncated"]);
}

#[test]
fn idx_files_with_wrong_sizes_or_labels_are_errors() {
    let folder = tempdir().unwrap();
    let idx = write_idx(folder.path(), 32);
    let images = idx.join("train-images-idx3-ubyte");
    let mut bytes = fs::read(&images).unwrap();
    bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
    fs::write(&images, &bytes).unwrap();
    fail(&mut mnist(&folder, &idx), &["train-images-idx3-ubyte"]);

    let idx = write_idx(folder.path(), 32);
    let labels = idx.join("train-labels-idx1-ubyte");
    let mut bytes = fs::read(&labels).unwrap();
    bytes[8 + 5] = 11;
    fs::write(&labels, &bytes).unwrap();
    fail(&mut mnist(&folder, &idx), &["train-labels-idx1-ubyte", "11"]);
}

#[test]
fn unknown_settings_and_values_out_of_range_are_errors() {
    let folder = tempdir().unwrap();
    let cases: [(&[&str], &[&str]); 12] = [
        (&["--preset", "mnits"], &["--preset", "mnits", "mnist"]),
        (&["--set", "distill.treshold=60"], &["--set", "distill.treshold", "distill.threshold"]),
        (&["--set", "distill.threshold=400"], &["distill.threshold", "400"]),
        (&["--set", "distill.step_size=0"], &["distill.step_size", "0"]),
        (&["--set", "distill.step_size=1.5"], &["distill.step_size", "1.5"]),
        (&["--set", "distill.mode=cm"], &["distill.mode", "`cd`", "cm"]),
        (&["--set", "teacher.kimg=many"], &["teacher.kimg", "many"]),
        (&["--set", "teacher.steps=100"], &["--set", "teacher.steps", "teacher.kimg", "batch / 1000"]),
        (&["--set", "network.channel_mult=[]"], &["channel_mult"]),
        (&["--set", "network.attention_resolutions=[5]"], &["attention_resolutions", "5"]),
        (&["--set", "data.count=64", "--set", "teacher.batch=65"], &["teacher.batch", "64", "65"]),
        (&["--set", "threshold"], &["--set", "threshold", "key=value"]),
    ];
    for (arguments, parts) in cases {
        fail(&mut run(&folder, arguments), parts);
    }
    assert!(!folder.path().join("run").exists(), "no files remain");
}

#[test]
fn resuming_without_a_run_or_with_another_configuration_is_an_error() {
    let folder = tempdir().unwrap();
    fail(&mut run(&folder, &["--resume"]), &["--resume", "config.toml"]);
    succeed(&mut run(&folder, &["--set", "data.count=64"]));
    let changed =
        ["--preset", "shapes", "--resume", "--set", "data.count=64", "--set", "distill.threshold=55"];
    fail(&mut run(&folder, &changed), &["--resume", "distill.threshold: 60", "55"]);
    fail(&mut run(&folder, &["--set", "data.count=64"]), &["--resume", "run"]);
    // These errors are reported before any image is read; the images do not exist either.
    fail(&mut mnist(&folder, &folder.path().join("nowhere")), &["a run is there already"]);
    fail(mnist(&folder, &folder.path().join("nowhere")).arg("--resume"), &["configuration differs"]);
    let teacher = ["--set", "teacher.model=nobody.safetensors", "--preset", "mnist", "--data", "nowhere"];
    let mut command = distill();
    command.args(["run", "--device", "cpu", "--out"]).arg(folder.path().join("new")).args(teacher);
    fail(&mut command, &["nobody.safetensors"]);
}

#[test]
fn damaged_models() {
    let folder = tempdir().unwrap();
    let (name, _) = configurations().remove(0);
    let (checkpoint, spec) = (fixtures().join(format!("{name}.pt")), description(&folder, &name));
    let model = folder.path().join("model.safetensors");
    succeed(distill().arg("import").arg(&checkpoint).arg("--spec").arg(&spec).arg("--out").arg(&model));
    let sample = |model: &Path| {
        let mut command = distill();
        command.arg("sample").arg(model).arg("--out").arg(folder.path().join("x.png"));
        command
    };

    let damaged = folder.path().join("damaged.safetensors");
    let whole = fs::read(&model).unwrap();
    for keep in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&damaged, &whole[..keep]).unwrap();
        fail(&mut sample(&damaged), &["damaged.safetensors"]);
    }
    let mut claims = whole.clone();
    claims[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    fs::write(&damaged, claims).unwrap();
    fail(&mut sample(&damaged), &["damaged.safetensors", "claims"]);
    // The description of another network: one tensor is missing or unknown, and the error names it.
    let field = br#"\"num_res_blocks\":"#;
    let place = whole.windows(field.len()).position(|bytes| bytes == field).unwrap() + field.len();
    let mut other = whole.clone();
    other[place] = if other[place] == b'3' { b'2' } else { b'3' };
    fs::write(&damaged, other).unwrap();
    fail(&mut sample(&damaged), &["damaged.safetensors", "tensor `"]);
    fail(&mut sample(&folder.path().join("none.safetensors")), &["none.safetensors"]);

    fail(sample(&model).args(["--label", "1000000"]), &["--label"]);
    fail(sample(&model).args(["--lable", "1"]), &["--lable"]);
    fail(distill().args(["run", "--device", "abacus"]), &["--device", "abacus"]);
    fail(sample(&model).args(["--steps", "0"]), &["--steps"]);
    fail(distill().arg("sample").arg(&model).args(["--out", "x.jpg"]), &["--out", "x.jpg"]);
}

fn description(folder: &TempDir, name: &str) -> std::path::PathBuf {
    let text = fs::read_to_string(fixtures().join("configs.json")).unwrap();
    let configs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let path = folder.path().join("spec.json");
    fs::write(&path, configs[name].to_string()).unwrap();
    path
}

#[test]
fn checkpoints_of_another_network_are_errors() {
    let folder = tempdir().unwrap();
    let (name, _) = configurations().remove(0);
    let (whole, spec) = (fixtures().join(format!("{name}.pt")), description(&folder, &name));
    let out = folder.path().join("model.safetensors");
    let import = |checkpoint: &Path, spec: &Path| {
        let mut command = distill();
        command.arg("import").arg(checkpoint).arg("--spec").arg(spec).arg("--out").arg(&out);
        command
    };
    fail(import(&whole, &spec).args(["--key", "emma_model"]), &["emma_model", "ema_model"]);
    fail(&mut import(&folder.path().join("none.pt"), &spec), &["none.pt"]);
    let damaged = folder.path().join("damaged.pt");
    let bytes = fs::read(&whole).unwrap();
    for keep in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&damaged, &bytes[..keep]).unwrap();
        fail(&mut import(&damaged, &spec), &["damaged.pt"]);
    }

    // The description of a network with one more block per level. One block fewer is not possible here.
    let text = fs::read_to_string(&spec).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let other = folder.path().join("other.json");
    value["num_res_blocks"] = (value["num_res_blocks"].as_u64().unwrap() + 1).into();
    fs::write(&other, value.to_string()).unwrap();
    fail(&mut import(&whole, &other), &["tensor `"]);
    fs::write(&other, text.replace("num_channels", "num_chanels")).unwrap();
    fail(&mut import(&whole, &other), &["num_chanels"]);
    fs::write(&other, "{").unwrap();
    fail(&mut import(&whole, &other), &["other.json", "JSON"]);
    assert!(!out.exists(), "no files remain");
}

#[test]
fn tensors_of_wrong_shape_or_name_are_named() {
    let folder = tempdir().unwrap();
    let (name, _) = configurations().remove(0);
    let checkpoint = fixtures().join(format!("{name}.pt"));
    let spec = description(&folder, &name);
    let model = folder.path().join("model.safetensors");
    let import = |checkpoint: &Path, spec: &Path, out: &Path| {
        let mut command = distill();
        command.arg("import").arg(checkpoint).arg("--spec").arg(spec).arg("--out").arg(out);
        command
    };
    succeed(&mut import(&checkpoint, &spec, &model));

    // A checkpoint with the description of a network that has other channels, or no classes.
    let mut value: serde_json::Value = serde_json::from_str(&fs::read_to_string(&spec).unwrap()).unwrap();
    let channels = value["num_channels"].as_u64().unwrap();
    value["num_channels"] = (2 * channels).into();
    let other = folder.path().join("other.json");
    fs::write(&other, value.to_string()).unwrap();
    let out = folder.path().join("out.safetensors");
    let found = format!("found [{}, {channels}]", 4 * channels);
    fail(&mut import(&checkpoint, &other, &out), &[&format!("{name}.pt"), "time_embed.0.weight`", &found]);
    let configurations = configurations();
    if let Some((conditional, _)) = configurations.iter().find(|(_, spec)| spec.num_classes().is_some()) {
        let text = fs::read_to_string(description(&folder, conditional)).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["class_cond"] = false.into();
        fs::write(&other, value.to_string()).unwrap();
        let checkpoint = fixtures().join(format!("{conditional}.pt"));
        fail(&mut import(&checkpoint, &other, &out), &["label_emb.weight`", "not part of the network"]);
    }
    assert!(!out.exists(), "no files remain");

    // A modified model file.
    let changed = folder.path().join("changed.safetensors");
    let change = |from: &Path, to: &Path, change: &dyn Fn(&mut TensorFile)| {
        let mut file = TensorFile::from_bytes(&fs::read(from).unwrap()).unwrap();
        change(&mut file);
        fs::write(to, file.to_bytes()).unwrap();
    };
    let inspect = || {
        let mut command = distill();
        command.arg("inspect").arg(&changed);
        command
    };
    let extra = |file: &mut TensorFile| {
        file.tensors.insert("middle_block.9.weight".into(), HostTensor::new([2], vec![0.0; 2]));
    };
    change(&model, &changed, &extra);
    fail(&mut inspect(), &["changed.safetensors", "`middle_block.9.weight`", "not part of the network"]);
    change(&model, &changed, &|file| {
        let bias = file.tensors.get_mut("out.2.bias").unwrap();
        *bias = HostTensor::new([bias.values.len() + 1], vec![0.0; bias.values.len() + 1]);
    });
    fail(&mut inspect(), &["changed.safetensors", "`out.2.bias`", "expected shape", "found"]);

    // Both checkpoints of a run whose student is not written yet.
    succeed(&mut run(&folder, &["--set", "data.count=64"]));
    let checkpoints = folder.path().join("run/checkpoints");
    for found in ccm::train::checkpoint::list(&checkpoints) {
        change(&found.path, &found.path, &extra);
    }
    fs::remove_file(folder.path().join("run/student.safetensors")).unwrap();
    let resume = ["--set", "data.count=64", "--resume"];
    let newest = "distill-000000004.safetensors";
    fail(&mut run(&folder, &resume), &[newest, "`middle_block.9.weight`", "no older checkpoint"]);
}

#[test]
fn invalid_noise_files_are_errors() {
    let folder = tempdir().unwrap();
    let configurations = configurations();
    let Some((name, _)) = configurations.iter().find(|(_, spec)| spec.num_classes().is_some()) else {
        return;
    };
    let model = folder.path().join("model.safetensors");
    let mut import = distill();
    import
        .arg("import")
        .arg(fixtures().join(format!("{name}.pt")))
        .arg("--spec")
        .arg(description(&folder, name));
    succeed(import.arg("--out").arg(&model));
    let noise = folder.path().join("noise.safetensors");
    let write = |shape: [usize; 4], label: Option<f32>| {
        let mut file = TensorFile::default();
        file.tensors.insert("x".into(), HostTensor::new(shape, vec![0.0; shape.iter().product()]));
        if let Some(label) = label {
            file.tensors.insert("label".into(), HostTensor::new([shape[0]], vec![label; shape[0]]));
        }
        fs::write(&noise, file.to_bytes()).unwrap();
    };
    let spec = &configurations.iter().find(|(found, _)| found == name).unwrap().1;
    let [channels, height, width] = spec.image();
    let right = [2, channels, height, width];
    let sample = || {
        let mut command = distill();
        command
            .arg("sample")
            .arg(&model)
            .arg("--noise")
            .arg(&noise)
            .arg("--out")
            .arg(folder.path().join("x.png"));
        command
    };
    write([2, 1, 3, 5], Some(0.0));
    fail(&mut sample(), &["noise.safetensors", "`x`", "[2, 1, 3, 5]"]);
    write(right, None);
    fail(&mut sample(), &["noise.safetensors", "`label`"]);
    write(right, Some(1e6));
    fail(&mut sample(), &["noise.safetensors", "`label`", "1000000"]);
    write(right, Some(1.0));
    succeed(&mut sample());
}

#[test]
fn a_diverging_run_keeps_its_last_finite_checkpoint() {
    let folder = tempdir().unwrap();
    let diverging = [
        "--set",
        "data.count=64",
        "--set",
        "teacher.learning_rate=1e30",
        "--set",
        "teacher.warmup_kimg=0",
        "--set",
        "run.checkpoint_every_kimg=0.008",
    ];
    fail(&mut run(&folder, &diverging), &["teacher", "diverged", "step 2", "teacher-000000001.safetensors"]);
    assert!(folder.path().join("run/checkpoints/teacher-000000001.safetensors").exists());

    // The loss of the first step is finite but its update is not, so no checkpoint of this step is kept.
    let other = tempdir().unwrap();
    let mut overflowing = diverging;
    overflowing[3] = "teacher.learning_rate=1e39";
    fail(&mut run(&other, &overflowing), &["teacher", "diverged", "step 1", "`model.", "no checkpoint yet"]);
    assert_eq!(fs::read_dir(other.path().join("run/checkpoints")).unwrap().count(), 0);
}

#[test]
fn an_unwritable_folder_is_an_error() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "no folder").unwrap();
    let mut command = distill();
    command.args(["run", "--device", "cpu", "--out"]).arg(file.join("run")).args(TINY);
    fail(command.args(TINY_MNIST).args(["--data", "nowhere"]), &["file/run"]);
    // More space than any disk has.
    let huge = [
        "--set",
        "data.count=64",
        "--set",
        "network.num_classes=100000",
        "--set",
        "network.model_channels=4096",
    ];
    let mut command = run(&folder, &[]);
    command.args(huge).args([
        "--set",
        "network.channel_mult=[64, 64]",
        "--set",
        "network.num_head_channels=4096",
    ]);
    fail(&mut command, &["disk", "MB"]);
}

#[test]
fn invalid_evaluations_are_errors() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = path("model.safetensors");
    fs::write(&model, lively_model(small_spec()).to_bytes()).unwrap();
    let eval = |more: &[&str]| {
        let mut command = distill();
        command.arg("eval").arg(&model).args(["--device", "cpu"]).args(more);
        command
    };
    fail(&mut eval(&[]), &["--data"]);
    fail(&mut eval(&["--data", "shapes", "--count", "9"]), &["--count", "expected 10 to 1000000, found 9"]);
    fail(&mut eval(&["--data", "shapes", "--steps", "0"]), &["--steps"]);
    // Reported before anything is trained or generated.
    for flag in ["--out", "--save-reference"] {
        let nowhere = path("nowhere/file");
        let arguments = ["--data", "shapes", flag, nowhere.to_str().unwrap()];
        fail(&mut eval(&arguments), &[flag, "nowhere: expected a folder, found none"]);
    }
    fail(
        eval(&["--data", "shapes", "--out"]).arg(folder.path()),
        &["--out", "expected a file, found a folder"],
    );
    let features = path("features.safetensors");
    let with =
        |features: &Path| ["--data", "shapes", "--features", features.to_str().unwrap()].map(str::to_owned);
    let with_features = |features: &Path| {
        let arguments = with(features);
        eval(&arguments.each_ref().map(String::as_str))
    };
    fail(&mut with_features(&features), &["--features", "features.safetensors", "No such file"]);
    fs::write(&features, b"<html>").unwrap();
    fail(&mut with_features(&features), &["--features", "features.safetensors", "found a web page"]);
    fail(&mut with_features(&model), &["--features", "model.safetensors", "not a classifier"]);
    let bare = TensorFile { tensors: Default::default(), ..TensorFile::default() };
    fs::write(&features, bare.to_bytes()).unwrap();
    fail(&mut with_features(&features), &["--features", "no tensor is called `Conv2d_1a_3x3.conv.weight`"]);

    let train = |shape: &str| {
        let mut command = distill();
        command.args([
            "features", "--data", "shapes", "--epochs", "1", "--device", "cpu", "--shape", shape, "--out",
        ]);
        command.arg(path("trained.safetensors"));
        command
    };
    fail(&mut train("28"), &["--shape", "expected three numbers"]);
    fail(&mut train("2x8x8"), &["2"]);
    succeed(&mut train("3x12x12"));
    let other_size = with_features(&path("trained.safetensors")).output().unwrap();
    let said = String::from_utf8_lossy(&other_size.stderr).into_owned();
    assert!(said.contains("expected images of 3x8x8, the shape of the model, found 3x12x12"), "{said}");

    succeed(&mut train("3x8x8"));
    let reference = path("reference.npz");
    fs::write(&reference, b"PK").unwrap();
    let arguments =
        ["--features", path("trained.safetensors").to_str().unwrap(), "--reference"].map(str::to_owned);
    let mut command = eval(&arguments.each_ref().map(String::as_str));
    fail(command.arg(&reference), &["--reference", "reference.npz", ".npz"]);
    let gaussian = Gaussian { mean: vec![0.0; 3], covariance: vec![0.0; 9] };
    let statistics = |features: Option<&str>| {
        Statistics { gaussian: gaussian.clone(), features: features.map(str::to_owned) }.to_bytes().unwrap()
    };
    let wide = Gaussian { mean: vec![0.0; 128], covariance: vec![0.0; 128 * 128] };
    let nameless = Statistics { gaussian: wide, features: None }.to_bytes().unwrap();
    fs::write(&reference, statistics(None)).unwrap();
    let mut command = eval(&arguments.each_ref().map(String::as_str));
    fail(command.arg(&reference), &["--reference", "expected 128 features, found 3"]);
    fs::write(&reference, nameless).unwrap();
    let mut command = eval(&arguments.each_ref().map(String::as_str));
    fail(command.arg(&reference), &["--reference", "found a file that does not name its features"]);
    let mut command = eval(&arguments.each_ref().map(String::as_str));
    fail(command.arg(&reference).args(["--data", "shapes"]), &["--data: shapes", "not used with both"]);
    fs::write(&reference, statistics(Some("eyes of a cat"))).unwrap();
    let mut command = eval(&arguments.each_ref().map(String::as_str));
    fail(command.arg(&reference), &["--reference", "found those of the eyes of a cat"]);
    let mut broken = lively_model(small_spec());
    broken.tensors[0].values[0] = f32::NAN;
    let (broken, whole) = (broken.to_bytes(), fs::read(&model).unwrap());
    fs::write(&model, broken).unwrap();
    fail(
        &mut with_features(&path("trained.safetensors")),
        &["model.safetensors: images: expected finite numbers"],
    );
    fs::write(&model, whole).unwrap();
    let few = path("few");
    picture_folder(&few, 9);
    let mut command = eval(&[&*arguments[0], &arguments[1]]);
    fail(
        command.arg("--data").arg(&few),
        &["--data", "few", "expected at least 10 training images, found 8"],
    );
    // A folder of images without class folders.
    picture_folder(&path("many"), 64);
    let flat = fs::read_dir(path("many")).unwrap().next().unwrap().unwrap().path();
    fail(eval(&[]).arg("--data").arg(&flat), &[": expected at least two classes, found", "--features"]);
}
