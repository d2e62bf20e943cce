//! The program end to end: every preset, stop and resume, import and sampling.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ccm::method::lpips::Trunk;
use ccm::model::Prediction;
use ccm::nn::kernels::Operands;
use ccm::train::batches::StageKind;
use ccm::train::checkpoint;
use ccm::weights::{Model, TensorFile};
use ccm_tests::program::{
    TINY, assert_same_models, distill, fail, kill_after, picture_folder, start, succeed, write_idx,
};
use ccm_tests::{configurations, fixtures, lpips_weights, relative_error, tensors};
use ccm_web::build::root;
use tempfile::tempdir;

fn assert_run_is_complete(folder: &Path) {
    for file in ["config.toml", "metrics.jsonl", "kdc.json", "report.html"] {
        assert!(folder.join(file).metadata().unwrap().len() > 0, "{file}");
    }
    for (file, role) in [("teacher.safetensors", "teacher"), ("student.safetensors", "student")] {
        let model = Model::from_bytes(&fs::read(folder.join(file)).unwrap()).unwrap();
        assert_eq!(model.card.role.name(), role);
        assert!(model.tensors.iter().flat_map(|tensor| &tensor.values).all(|value| value.is_finite()));
    }
    let report = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(report.matches("data:image/png;base64,").count() >= 2, "pictures of student and teacher");
    assert!(report.contains("<svg"), "charts");
    for line in fs::read_to_string(folder.join("metrics.jsonl")).unwrap().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["loss"].as_f64().unwrap() >= 0.0 && line["images_per_second"].as_f64().unwrap() > 0.0);
    }
    let pictures = fs::read_dir(folder.join("samples")).unwrap().count();
    assert!(pictures >= 2, "{pictures} grids of samples");
}

fn run_preset(preset: &str, data: Option<&Path>, more: &[&str]) {
    let folder = tempdir().unwrap();
    let out = folder.path().join("run");
    let mut command = distill();
    command.args(["run", "--device", "cpu", "--preset", preset, "--out"]).arg(&out);
    if let Some(data) = data {
        command.arg("--data").arg(data);
    }
    succeed(command.args(TINY).args(more));
    assert_run_is_complete(&out);
}

#[test]
fn shapes_from_teacher_to_report() {
    run_preset("shapes", None, &["--set", "data.count=64"]);
}

#[test]
fn shapes_with_perceptual_distances() {
    let folder = tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let [features, heads] = lpips_weights(Trunk::AlexNet);
    for (name, tensors) in [("alexnet.safetensors", features), ("heads.safetensors", heads)] {
        fs::write(file(name), TensorFile { tensors, ..TensorFile::default() }.to_bytes()).unwrap();
    }
    let set = |key: &str, name: &str| format!("{key}={}", file(name).display());
    let (trunk, heads) = (set("lpips_trunk", "alexnet.safetensors"), set("lpips_heads", "heads.safetensors"));
    let distance =
        ["--set", "data.count=64", "--set", "distance=lpips-alexnet", "--set", &trunk, "--set", &heads];
    run_preset("shapes", None, &distance);
    run_preset("shapes", None, &["--set", "data.count=64", "--set", "distance=teacher-features"]);
    let mut run = distill();
    run.args(["run", "--device", "cpu", "--preset", "shapes", "--out"]).arg(file("run")).args(&distance[..4]);
    let swapped = [set("lpips_trunk", "heads.safetensors"), heads];
    fail(
        run.args(["--set", &swapped[0], "--set", &swapped[1]]).args(TINY),
        &["heads.safetensors", "features.0.weight"],
    );
}

#[test]
fn mnist_from_idx_files() {
    let data = tempdir().unwrap();
    write_idx(data.path(), 64);
    let settings = ["network.height=8", "network.width=8", "weaker_kimg=0.016"];
    run_preset("mnist", Some(data.path()), &settings.map(|setting| ["--set", setting]).concat());
}

#[test]
fn cifar10_from_a_folder_of_pictures_with_dropout_and_gradient_accumulation() {
    let data = tempdir().unwrap();
    picture_folder(data.path(), 40);
    run_preset(
        "cifar10",
        Some(data.path()),
        &["--set", "teacher.micro_batch=2", "--set", "distill.micro_batch=2"],
    );
}

#[test]
fn imagenet64_with_scale_shift_and_resampling_blocks() {
    let data = tempdir().unwrap();
    picture_folder(data.path(), 40);
    run_preset(
        "imagenet64",
        Some(data.path()),
        &["--set", "teacher.micro_batch=4", "--set", "distill.micro_batch=4"],
    );
}

#[test]
fn consistency_training_fixed_steps_and_the_published_scope() {
    for more in
        [["--set", "distill.mode=ct"], ["--set", "distill.mode=fixed"], ["--set", "distill.scope=batch"]]
    {
        run_preset("shapes", None, &[&["--set", "data.count=64"][..], &more].concat());
    }
}

/// A run long enough to be stopped: 30 steps of 8 images in each stage.
fn slow(out: &Path, more: &[&str]) -> Command {
    let mut command = distill();
    command.args(["run", "--device", "cpu", "--preset", "shapes", "--out"]).arg(out).args(TINY).args([
        "--set",
        "data.count=64",
        "--set",
        "teacher.kimg=0.24",
        "--set",
        "distill.kimg=0.24",
        "--set",
        "run.checkpoint_every_kimg=0.032",
    ]);
    command.args(more);
    command
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let folder = tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    succeed(&mut slow(&whole, &[]));
    kill_after(&mut slow(&stopped, &[]), &stopped, StageKind::Teacher, 8);
    kill_after(&mut slow(&stopped, &["--resume"]), &stopped, StageKind::Distill, 8);
    // Ctrl-C.
    let child = start(&mut slow(&stopped, &["--resume"]), &stopped, StageKind::Distill, 16);
    let interrupt = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &interrupt]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("--resume"), "{output:?}");

    // Damage the newest checkpoint.
    let checkpoints = checkpoint::list(&stopped.join("checkpoints"));
    let newest = &checkpoints.last().unwrap().path;
    let bytes = fs::read(newest).unwrap();
    fs::write(newest, &bytes[..bytes.len() - 1]).unwrap();
    let said = succeed(&mut slow(&stopped, &["--resume"]));
    for found in &checkpoints {
        let name = found.path.file_name().unwrap().to_str().unwrap();
        assert!(said.contains(name), "{name} expected in: {said}");
    }
    assert_same_models(&whole, &stopped);
    assert_eq!(checkpoint::list(&stopped.join("checkpoints")).len(), 2, "the last two checkpoints are kept");
    let steps = |run: &Path| -> Vec<(String, u64)> {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| (line["stage"].to_string(), line["step"].as_u64().unwrap())).collect()
    };
    assert_eq!(steps(&whole), steps(&stopped));
    assert_run_is_complete(&stopped);

    // A finished run has nothing to do.
    succeed(&mut slow(&stopped, &["--resume"]));
    // `--resume` needs no other options.
    succeed(distill().args(["run", "--device", "cpu", "--resume", "--out"]).arg(&stopped));
    let kdc = succeed(distill().args(["kdc", "--device", "cpu"]).arg(&stopped));
    assert!(kdc.contains("curriculum") && kdc.contains("fixed step"), "{kdc}");
}

#[test]
fn a_killed_run_with_dropout_and_an_adversarial_loss_resumes_to_the_same_bytes() {
    let folder = tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    let settings = [
        "network.dropout=0.3",
        "run.eight_bit_optimizer=true",
        "run.mixed_precision=f16",
        "teacher.micro_batch=3",
        "adversarial_weight=1",
        "adversarial_from_kimg=0.048",
        "adversarial_warmup_kimg=0.072",
        "discriminator_encoder=trained",
        "discriminator_translation=2",
        "autoguidance=2",
        "autoguidance_until=0.5",
        "weaker_kimg=0.04",
        "step_shift=3",
        "finish.kimg=0.24",
        "finish.batch=8",
        "finish.micro_batch=3",
    ];
    let settings = settings.map(|setting| ["--set", setting]).concat();
    succeed(&mut slow(&whole, &settings));
    kill_after(&mut slow(&stopped, &settings), &stopped, StageKind::Teacher, 8);
    let resumed = [&settings[..], &["--resume"]].concat();
    kill_after(&mut slow(&stopped, &resumed), &stopped, StageKind::Distill, 8);
    kill_after(&mut slow(&stopped, &resumed), &stopped, StageKind::Finish, 8);
    succeed(&mut slow(&stopped, &resumed));
    assert_same_models(&whole, &stopped);
    assert_run_is_complete(&stopped);
    // The networks of the curriculum are still there.
    succeed(distill().args(["kdc", "--device", "cpu"]).arg(&stopped));

    // Beside a given teacher, the weaker one is trained as on the way to that teacher.
    let given = folder.path().join("given");
    let teacher = whole.join("teacher.safetensors");
    succeed(slow(&given, &settings).arg("--teacher").arg(&teacher));
    for file in ["weaker.safetensors", "student.safetensors"] {
        assert_eq!(fs::read(given.join(file)).unwrap(), fs::read(whole.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn a_weaker_teacher_of_other_images_is_refused_before_anything_is_trained() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("run");
    let file = root().join("web/models/mnist/teacher.safetensors");
    let weaker = format!("weaker_model={}", file.display());
    let mut run = slow(&out, &["--set", "autoguidance=2", "--set", &weaker]);
    fail(&mut run, &["distill.weaker_model: expected a network of images [3, ", "found [1, 28, 28]"]);
    assert!(!out.join("checkpoints").exists());
}

/// Where the processor has the instructions; elsewhere the setting is refused.
#[test]
fn convolutions_of_bf16_train_as_those_of_single_precision_do() {
    let folder = tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let mut rounded = slow(&file("bf16"), &["--set", "run.bf16_convolutions=true"]);
    if !Operands::Bf16.available() {
        fail(&mut rounded, &["run.bf16_convolutions", "AVX512-BF16"]);
        return;
    }
    succeed(&mut rounded);
    succeed(&mut slow(&file("f32"), &[]));
    let losses = |run: &str| -> Vec<f64> {
        let metrics = fs::read_to_string(file(run).join("metrics.jsonl")).unwrap();
        let of_teacher = metrics.lines().filter(|line| line.contains(r#""stage":"teacher""#));
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        of_teacher.map(|text| line(text)["loss"].as_f64().unwrap()).collect()
    };
    let (found, expected) = (losses("bf16"), losses("f32"));
    assert_eq!(found.len(), expected.len());
    assert_ne!(found, expected, "nothing was rounded");
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 0.01 * expected, "loss {found}, in single precision {expected}");
    }
}

#[test]
fn a_given_student_is_fine_tuned_but_for_its_fixed_weights() {
    let folder = tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    // Two channels a group: a group norm of single channels would cancel what is added to a channel, and its gradient.
    let wide = ["--set", "network.model_channels=64"];
    succeed(&mut slow(&file("run"), &wide));
    let model = |path: &str| file(path).to_str().unwrap().to_owned();
    let read = |path: &str| Model::from_bytes(&fs::read(file(path)).unwrap()).unwrap();
    let (teacher, student) = (model("run/teacher.safetensors"), model("run/student.safetensors"));
    let given = ["--teacher", &teacher, "--student", &student];
    fail(&mut slow(&file("none"), &given), &["finish.kimg", "distill.model"]);
    let no_teacher = ["--student", &student, "--set", "finish.kimg=1"];
    fail(&mut slow(&file("none"), &no_teacher), &["distill.model", "teacher.model"]);
    let teacher_twice = ["--teacher", &teacher, "--student", &teacher, "--set", "finish.kimg=1"];
    fail(&mut slow(&file("none"), &teacher_twice), &["distill.model", "a student", "a teacher"]);
    let of_other_path = Model { prediction: Prediction::StraightData, ..read("run/student.safetensors") };
    fs::write(file("other.safetensors"), of_other_path.to_bytes()).unwrap();
    let other = model("other.safetensors");
    let of_other_path = ["--teacher", &teacher, "--student", &other, "--set", "finish.kimg=1"];
    fail(
        &mut slow(&file("none"), &of_other_path),
        &["distill.model", "path and prediction of teacher.model"],
    );
    let settings = ["kimg=0.32", "batch=32", "fixed=convolutions", "sample_halflife_kimg=0.1"];
    let settings = settings.map(|setting| format!("finish.{setting}"));
    let settings = settings.each_ref().map(String::as_str);
    let settings = settings.map(|setting| ["--set", setting]).concat();
    succeed(&mut slow(&file("finished"), &[&given[..], &settings, &wide].concat()));

    let (before, after) = (read("run/student.safetensors"), read("finished/student.safetensors"));
    assert_eq!(after.card.images, before.card.images + 320);
    for ((before, after), spec) in before.tensors.iter().zip(&after.tensors).zip(before.spec.tensors()) {
        let fixed = spec.shape.len() == 4 && spec.shape[2] == 3;
        assert_eq!(before == after, fixed, "{}", spec.name);
    }
    assert!(!file("finished/kdc.json").exists() && file("finished/report.html").exists());
}

#[test]
fn an_imported_teacher_is_trained_further_or_from_nothing() {
    let folder = tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let given = file("ddpm.safetensors");
    succeed(distill().arg("import").arg(fixtures().join("pipelines/ddpm")).arg("--out").arg(&given));
    let read = |path: &Path| Model::from_bytes(&fs::read(path).unwrap()).unwrap();
    let model = read(&given);
    let classes = format!("data.class_conditional={}", model.spec.num_classes().is_some());
    let mut trained = Vec::new();
    for training in ["from-weights", "from-nothing"] {
        let out = file(training);
        let training = format!("teacher.training={training}");
        let settings = ["teacher.kimg=0.032", "distill.kimg=0.032", &classes, &training];
        let more = settings.map(|setting| ["--set", setting]).concat();
        succeed(slow(&out, &more).arg("--teacher").arg(&given));
        let found = read(&out.join("teacher.safetensors"));
        assert_eq!((&found.spec, &found.prediction), (&model.spec, &model.prediction));
        trained.push(found);
    }
    let distance = |found: &Model| -> f64 {
        let values =
            |model: &Model| model.tensors.iter().flat_map(|tensor| tensor.values.clone()).collect::<Vec<_>>();
        relative_error(&values(found), &values(&model))
    };
    // Four steps of at most 1e-3 a weight.
    let [further, anew] = [&trained[0], &trained[1]].map(distance);
    assert!(further > 0.0 && further < 0.1 && anew > 0.5, "{further} {anew}");
}

#[test]
fn a_resumed_run_keeps_its_number_of_threads() {
    let folder = tempdir().unwrap();
    let [whole, stopped, other] = ["whole", "stopped", "other"].map(|name| folder.path().join(name));
    // More threads than this machine has, so that the default would differ.
    let own = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = format!("run.threads={}", own + 1);
    let begin = ["--set", &threads];
    succeed(&mut slow(&whole, &begin));
    kill_after(&mut slow(&stopped, &begin), &stopped, StageKind::Teacher, 8);
    let said = succeed(&mut slow(&stopped, &["--resume"]));
    assert!(said.contains(&format!("--resume: {} threads", own + 1)), "{said}");
    assert_same_models(&whole, &stopped);

    succeed(&mut slow(&other, &[]));
    let config = fs::read_to_string(other.join("config.toml")).unwrap();
    assert!(config.contains(&format!("threads = {own}\n")), "{config}");
    let read = |run: &Path| fs::read(run.join("teacher.safetensors")).unwrap();
    assert!(read(&whole) != read(&other), "sums depend on the number of threads");
}

#[test]
fn without_out_resume_continues_the_newest_run_of_the_preset() {
    let folder = tempdir().unwrap();
    let run = |more: &[&str]| {
        let mut command = distill();
        command.current_dir(folder.path()).args(["run", "--device", "cpu"]).args(TINY).args(more);
        succeed(command.args(["--set", "data.count=64"]))
    };
    for name in ["shapes", "shapes-2"] {
        let said = run(&[]);
        assert!(said.contains(&format!("runs/{name}\n")), "{said}");
        assert!(said.contains("held-out: 1024 shapes"), "{said}");
    }
    // There is no run of this preset; runs of other presets do not count.
    fs::create_dir_all(folder.path().join("runs/shapes-9")).unwrap();
    fs::create_dir_all(folder.path().join("runs/mnist-12")).unwrap();
    fs::remove_file(folder.path().join("runs/shapes-2/report.html")).unwrap();
    let said = run(&["--resume", "--preset", "shapes"]);
    assert!(said.contains("--resume: runs/shapes-2"), "{said}");
    assert!(folder.path().join("runs/shapes-2/report.html").exists());
    // Numbers are not reused, so the highest is the newest.
    fs::remove_dir_all(folder.path().join("runs/shapes")).unwrap();
    assert!(run(&[]).contains("runs/shapes-10"));
}

#[test]
fn import_inspect_and_sample_agree_with_pytorch() {
    let folder = tempdir().unwrap();
    for (name, spec) in configurations() {
        let configs: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(fixtures().join("configs.json")).unwrap()).unwrap();
        let description = folder.path().join(format!("{name}.json"));
        fs::write(&description, configs[&name].to_string()).unwrap();
        let model = folder.path().join(format!("{name}.safetensors"));
        succeed(
            distill()
                .arg("import")
                .arg(fixtures().join(format!("{name}.pt")))
                .arg("--spec")
                .arg(&description)
                .arg("--out")
                .arg(&model),
        );
        let said = succeed(distill().args(["inspect", "--tensors"]).arg(&model));
        assert!(
            said.contains(&spec.parameters().to_string()) && said.contains("middle_block.1.qkv.weight"),
            "{said}"
        );

        let reference = fixtures().join(format!("{name}_io.safetensors"));
        let io = tensors(&format!("{name}_io.safetensors"));
        for (steps, expected) in [("1", "one_step"), ("4", "euler_4")] {
            let out = folder.path().join("images.safetensors");
            let mut command = distill();
            command.args(["sample", "--device", "cpu", "--steps", steps, "--noise"]).arg(&reference);
            succeed(command.arg("--out").arg(&out).arg(&model));
            let found = TensorFile::from_bytes(&fs::read(&out).unwrap()).unwrap();
            let error = relative_error(&found.tensors["images"].values, &io[expected].values);
            assert!(error < 1e-4, "{name}, {expected}: {error:.2e}");
        }

        let grid = folder.path().join("grid.png");
        succeed(
            distill()
                .args(["sample", "--device", "cpu", "--count", "5", "--steps", "1", "--out"])
                .arg(&grid)
                .arg(&model),
        );
        assert!(fs::read(&grid).unwrap().starts_with(b"\x89PNG"));
    }
}

/// As `distill inspect FILE | head`, whose reader leaves first.
#[cfg(unix)]
#[test]
fn a_closed_pipe_ends_the_program_without_a_message() {
    let mut inspect = distill();
    inspect.args(["inspect", "--tensors"]).arg(root().join("web/models/shapes/student.safetensors"));
    let mut child = inspect.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let said = child.wait_with_output().unwrap().stderr;
    assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn an_imported_teacher_can_be_distilled() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("first");
    let mut first = distill();
    first.args(["run", "--device", "cpu", "--out"]).arg(&out).args(TINY).args(["--set", "data.count=64"]);
    succeed(&mut first);
    let teacher = format!("teacher.model={}", out.join("teacher.safetensors").display());
    let second = folder.path().join("second");
    let mut again = distill();
    again.args(["run", "--device", "cpu", "--out"]).arg(&second).args(TINY);
    succeed(again.args(["--set", "data.count=64", "--set", &teacher]));
    let read = |run: &Path| fs::read(run.join("student.safetensors")).unwrap();
    assert!(read(&out) == read(&second), "the same teacher gives the same student");
}
