//! Metrics agree with reference implementations and are fast enough; `eval` and `claims` end to end.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use burn::tensor::Device;
use ccm::import::Checkpoint;
use ccm::metrics::frechet::frechet_distance;
use ccm::metrics::kernel::{kernel_distance, squared_mmd};
use ccm::metrics::manifold::manifold;
use ccm::metrics::statistics::Statistics;
use ccm::metrics::{Gaussian, Moments, Rows};
use ccm::model::TensorSpec;
use ccm::noise::Noise;
use ccm::train::claims::Terms;
use ccm::weights::HostTensor;
use ccm_tests::program::{TINY, distill, fail, picture_folder, succeed};
use ccm_tests::{agrees_with_pytorch_fid, fixtures, lively_model, references, small_spec, write_inception};
use safetensors::SafeTensors;
use tempfile::tempdir;

/// Reads the reference, which has double precision; this project's reader has single precision.
fn double(file: &SafeTensors, name: &str) -> (Vec<usize>, Vec<f64>) {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::F64);
    let values = tensor.data().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
    (tensor.shape().to_vec(), values.collect())
}

fn rows(file: &SafeTensors, name: &str) -> Rows {
    let (shape, values) = double(file, name);
    Rows::new(shape[1], values).unwrap()
}

#[test]
fn distances_agree_with_the_reference() {
    let bytes = fs::read(fixtures().join("metrics.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (a, b) = (rows(&file, "features_a"), rows(&file, "features_b"));
    let gaussian = |rows: &Rows| {
        let mut moments = Moments::new(rows.width());
        // In small batches, as in an evaluation.
        for start in (0..rows.len()).step_by(64) {
            let part: Vec<usize> = (start..rows.len().min(start + 64)).collect();
            moments.add(&rows.select(&part)).unwrap();
        }
        moments.gaussian().unwrap()
    };
    let fid = frechet_distance(&gaussian(&a), &gaussian(&b)).unwrap();
    for (what, found) in [("fid", fid), ("kid_unbiased", squared_mmd(&a, &b).unwrap())] {
        let expected = double(&file, what).1[0];
        let error = (found / expected - 1.0).abs();
        println!("{what}: {found}, relative error {error:.1e}");
        assert!(error < 1e-6, "{what}: expected {expected}, found {found}");
    }
}

#[test]
fn the_network_of_the_fid_agrees_with_pytorch() {
    agrees_with_pytorch_fid(&Device::flex());
}

#[test]
fn a_checkpoint_of_batch_norms_is_read_in_both_formats_of_pytorch() {
    for file in ["checkpoint.pth", "checkpoint-legacy.pth"] {
        let tensor = |name: &str| TensorSpec { name: name.into(), shape: vec![2] };
        let checkpoint = Checkpoint::open(&references().join(file)).unwrap();
        let found = checkpoint.select(&[tensor("bn.running_mean"), tensor("bn.weight")], None).unwrap();
        let expected = BTreeMap::from([
            ("bn.running_mean".to_owned(), HostTensor::new([2], vec![2.0, 3.0])),
            ("bn.weight".to_owned(), HostTensor::new([2], vec![0.5, -1.25])),
        ]);
        assert_eq!(found.tensors, expected, "{file}");
    }
}

/// PyTorch's `expand` makes such a view of one value.
#[test]
fn a_checkpoint_that_would_take_far_more_memory_than_its_file_is_refused() {
    let bytes = fs::read(references().join("checkpoint-legacy.pth")).unwrap();
    // As pickled: the shape (2,), memoized under number 8, and the stride (1,).
    let view = bytes.windows(8).position(|bytes| bytes == b"K\x02\x85q\x08K\x01\x85").unwrap();
    let repeated = b"J\x00\x00\x00\x10\x85q\x08K\x00\x85";
    let folder = tempdir().unwrap();
    let path = folder.path().join("repeated.pth");
    fs::write(&path, [&bytes[..view], repeated, &bytes[view + 8..]].concat()).unwrap();
    let weight = TensorSpec { name: "bn.weight".into(), shape: vec![1 << 28] };
    let message = Checkpoint::open(&path).unwrap().select_part(&[weight]).unwrap_err().to_string();
    assert!(
        message.contains("repeated.pth: tensor `bn.weight`: shape [268435456] takes 1073741824 bytes"),
        "{message}"
    );
}

#[test]
fn statistics_written_by_numpy_are_read() {
    let gaussian = Gaussian {
        mean: vec![0.5, -1.25, 2.0],
        covariance: vec![1.0, 0.25, 0.0, 0.25, 3.0, -0.5, 0.0, -0.5, 2.0],
    };
    for file in ["statistics.npz", "statistics-compressed.npz"] {
        let found = Statistics::from_bytes(&fs::read(references().join(file)).unwrap()).unwrap();
        assert_eq!(found, Statistics { gaussian: gaussian.clone(), features: None }, "{file}");
    }
}

#[test]
fn the_frechet_distance_of_ten_thousand_images_of_2048_features_takes_seconds() {
    const WIDTH: usize = 2048;
    let noise: Vec<f64> = Noise::new(1, 0).normals(100 * WIDTH).into_iter().map(f64::from).collect();
    let begin = Instant::now();
    let mut moments = Moments::new(WIDTH);
    for batch in 0..100 {
        // Different values in each image, in as many directions as there are features.
        let values =
            noise.iter().enumerate().map(|(i, value)| value * f64::from((i * 31 + batch * 17) as u32 % 97));
        moments.add(&Rows::new(WIDTH, values.collect()).unwrap()).unwrap();
    }
    let gaussian = moments.gaussian().unwrap();
    let distance = frechet_distance(&gaussian, &gaussian).unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    println!("10 000 images of {WIDTH} features: {seconds:.1} s");
    let begin = Instant::now();
    // A feature that is always zero makes the covariance singular.
    let mut singular = gaussian.clone();
    for i in 0..WIDTH {
        (singular.covariance[i], singular.covariance[i * WIDTH]) = (0.0, 0.0);
    }
    let [there, back] =
        [(&singular, &gaussian), (&gaussian, &singular)].map(|(a, b)| frechet_distance(a, b).unwrap());
    println!("with a constant feature: {:.1} s, in both directions", begin.elapsed().as_secs_f64());
    let scale: f64 = (0..WIDTH).map(|i| gaussian.covariance[i * (WIDTH + 1)]).sum();
    assert!(distance.abs() < 1e-5 * scale, "{distance} of {scale}");
    // Ten seconds on an idle machine; tests run in parallel.
    assert!(seconds < 40.0, "{seconds} s");
    assert!((there - back).abs() < 1e-9 * scale && there > 1e-6 * scale, "{there}, {back} of {scale}");
    assert!(begin.elapsed().as_secs_f64() < 80.0, "{:?}", begin.elapsed());
}

#[test]
fn pairwise_metrics_of_ten_thousand_images_of_2048_features_take_seconds() {
    const WIDTH: usize = 2048;
    let rows = |seed| {
        let values = Noise::new(seed, 0).normals(10_000 * WIDTH).into_iter().map(f64::from);
        Rows::new(WIDTH, values.collect()).unwrap()
    };
    let (a, b) = (rows(1), rows(2));
    let begin = Instant::now();
    let kernel = kernel_distance(&a, &b, 100, 1000, 0).unwrap();
    println!("kernel distance: {:.1} s, {kernel:?}", begin.elapsed().as_secs_f64());
    // Both sets have the same distribution, and the kernel distance is unbiased.
    assert!(kernel.mean.abs() < 3.0 * kernel.deviation / 10.0, "{kernel:?}");
    let begin = Instant::now();
    let manifold = manifold(&a, &b).unwrap();
    println!("neighbours: {:.1} s, {manifold:?}", begin.elapsed().as_secs_f64());
    // With independent neighbours, the expected density is 1 and the expected coverage 1 - 2^-5 (Naeem et al., section
    // 3). In this many dimensions, a few images are the neighbours of most others.
    assert!((manifold.density - 1.0).abs() < 0.2, "{manifold:?}");
    assert!((manifold.coverage - 0.97).abs() < 0.02, "{manifold:?}");
}

#[test]
fn eval_computes_the_fid_with_weights_from_a_file() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("model.safetensors"), lively_model(small_spec()).to_bytes()).unwrap();
    write_inception(&path("inception.safetensors"));
    picture_folder(&path("pictures"), 24);
    let eval = || {
        let mut eval = distill();
        eval.arg("eval").arg(path("model.safetensors")).args(["--count", "10", "--device", "cpu"]);
        eval.arg("--features").arg(path("inception.safetensors"));
        eval.arg("--out").arg(path("figures.json"));
        eval
    };
    let figures =
        || serde_json::from_slice::<serde_json::Value>(&fs::read(path("figures.json")).unwrap()).unwrap();
    let said =
        succeed(eval().arg("--data").arg(path("pictures")).arg("--save-reference").arg(path("fid.npz")));
    assert!(said.contains("FID ") && said.contains("features: Inception-v3 of the FID"), "{said}");
    let of_images = figures();
    assert!(of_images["frechet"].as_f64().unwrap() > 0.0, "{of_images}");
    // As published by other programs: without the name of the features.
    let mut statistics = Statistics::from_bytes(&fs::read(path("fid.npz")).unwrap()).unwrap();
    assert_eq!(statistics.gaussian.mean.len(), 2048);
    statistics.features = None;
    fs::write(path("fid.npz"), statistics.to_bytes().unwrap()).unwrap();
    succeed(eval().arg("--reference").arg(path("fid.npz")));
    assert_eq!(figures()["frechet"], of_images["frechet"]);
}

#[test]
fn the_terms_of_the_published_claims_can_be_read() {
    let terms: Terms = serde_json::from_str(include_str!("../../docs/claims/terms.json")).unwrap();
    terms.config.validate().unwrap();
    let distill = &terms.config.distill;
    assert_eq!((distill.steps(), distill.stage().warmup_steps()), (3000, 50));
    assert_eq!((distill.target_decay(), distill.sample_decay()), (0.9, 0.98));
}

#[test]
fn a_model_is_measured_with_features_of_its_own_data() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut run = distill();
    run.args(["run", "--device", "cpu", "--preset", "shapes", "--set", "data.count=64", "--out"])
        .arg(path("run"));
    succeed(run.args(TINY));
    let features = path("features.safetensors");
    let mut train = distill();
    train.args([
        "features", "--data", "shapes", "--shape", "3x8x8", "--epochs", "1", "--device", "cpu", "--out",
    ]);
    succeed(train.arg(&features));
    let eval = || {
        let mut eval = distill();
        eval.arg("eval").arg(path("run/student.safetensors")).args(["--count", "60", "--device", "cpu"]);
        eval.arg("--features").arg(&features);
        eval
    };
    let (reference, report) = (path("reference.npz"), path("figures.json"));
    let said = succeed(
        eval()
            .args(["--data", "shapes", "--split", "held-out", "--save-reference"])
            .arg(&reference)
            .arg("--out")
            .arg(&report),
    );
    assert!(said.contains("features: classifier of shapes"), "{said}");
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!((&figures["images"], &figures["reference_images"]), (&60.into(), &1024.into()));
    // Two training steps do not suffice for recognizable shapes.
    let (frechet, accuracy) = (figures["frechet"].as_f64().unwrap(), figures["accuracy"].as_f64().unwrap());
    assert!(frechet > 0.0 && (0.0..0.6).contains(&accuracy), "{figures}");

    let statistics = Statistics::from_bytes(&fs::read(&reference).unwrap()).unwrap();
    assert_eq!(statistics.gaussian.mean.len(), 128);
    succeed(eval().arg("--reference").arg(&reference).arg("--out").arg(&report));
    let again: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(again["frechet"], figures["frechet"]);
    assert!(again["manifold"].is_null(), "neighbours need images, not only statistics");

    // Replaces the value of one flag.
    let claims = |changed: [&str; 2]| {
        let flags = [
            ["--thresholds", "60"],
            ["--step-sizes", "0.1,0.5"],
            ["--distances", "teacher-features"],
            ["--seeds", "2"],
            ["--evaluations", "40"],
            ["--count", "40"],
            ["--device", "cpu"],
        ];
        let mut claims = distill();
        claims.arg("claims").arg(path("run")).arg("--features").arg(&features);
        claims.arg("--out").arg(path("claims"));
        claims.args(flags.map(|flag| if flag[0] == changed[0] { changed } else { flag }).concat());
        claims
    };
    // A command that fails before the first student does not fix the terms of later ones.
    let config = fs::read_to_string(path("run/config.toml")).unwrap();
    fs::write(path("run/config.toml"), config.replacen("source = \"shapes\"", "source = \"nowhere\"", 1))
        .unwrap();
    fail(&mut claims(["--count", "41"]), &["nowhere"]);
    fs::write(path("run/config.toml"), config).unwrap();
    let same = ["", ""];
    let said = succeed(&mut claims(same));
    let rows = fs::read_to_string(path("claims/claims.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 8, "{rows}");
    for row in rows.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()) {
        let spent = row["evaluations"].as_u64().unwrap();
        assert!((40..200).contains(&spent) && row["frechet"].as_f64().unwrap() > 0.0, "{row}");
    }
    let table = fs::read_to_string(path("claims/claims.md")).unwrap();
    assert!(said.ends_with(&table), "{said}");
    for line in
        ["| fixed steps, s = 0.5 | pseudo-huber | 2 |", "| curriculum, T = 60 dB | teacher-features | 2 |"]
    {
        assert!(table.contains(line), "{table}");
    }
    succeed(&mut claims(same));
    assert_eq!(
        fs::read_to_string(path("claims/claims.jsonl")).unwrap(),
        rows,
        "existing rows are not computed again"
    );
    fail(
        &mut claims(["--count", "41"]),
        &["--out", "claims: holds rows of other terms: count: 40 before, 41 now"],
    );
    fail(&mut claims(["--thresholds", "101"]), &["--thresholds", "distill.threshold", "101"]);
    fail(&mut claims(["--step-sizes", "2"]), &["--step-sizes", "distill.step_size", "2"]);
    fail(&mut claims(["--distances", "lpips-vgg16"]), &["--distances", "lpips_trunk"]);
    let damaged = rows.replacen("\"seed\":1", "\"seed\":x", 1);
    fs::write(path("claims/claims.jsonl"), damaged).unwrap();
    fail(&mut claims(same), &["claims.jsonl: line 5"]);
    fs::remove_file(path("run/teacher.safetensors")).unwrap();
    fail(&mut claims(same), &["teacher.safetensors", "No such file"]);
    fail(distill().args(["kdc", "--device", "cpu"]).arg(folder.path()), &["no run there"]);
}
