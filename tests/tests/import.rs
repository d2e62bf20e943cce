//! Checkpoints of typical training scripts are imported, whatever surrounds the network's tensors.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ccm::import::{Checkpoint, Selection};
use ccm::model::{NetworkSpec, Role, TensorSpec};
use ccm::weights::{HostTensor, Model, TensorFile};
use ccm_tests::program::{distill, fail, succeed};
use ccm_tests::{configurations, fixtures, lively_model, model, relative_error, small_spec, tensors};
use tempfile::{TempDir, tempdir};

fn case(file: &str) -> PathBuf {
    fixtures().join("../cases").join(file)
}

/// The first network of the fixtures, on which the cases are based, and its description as a file.
fn description(folder: &TempDir) -> (String, NetworkSpec, PathBuf) {
    let (name, spec) = configurations().remove(0);
    let text = fs::read_to_string(fixtures().join("configs.json")).unwrap();
    let configs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let path = folder.path().join("spec.json");
    fs::write(&path, configs[&name].to_string()).unwrap();
    (name, spec, path)
}

fn import(checkpoint: &Path, spec: &Path, out: &Path) -> Command {
    let mut command = distill();
    command.arg("import").arg(checkpoint).arg("--spec").arg(spec).arg("--out").arg(out);
    command
}

/// Tensors of a network small enough to be written many times: names and shapes as in a U-Net, other values.
fn small() -> (Vec<TensorSpec>, BTreeMap<String, HostTensor>) {
    let spec = small_spec();
    let names = NetworkSpec::from(&spec).tensors();
    let tensors = lively_model(&spec).tensors;
    let named = names.iter().map(|tensor| tensor.name.clone()).zip(tensors).collect();
    (names, named)
}

fn prefixed<'a>(
    prefix: &'a str,
    tensors: &'a BTreeMap<String, HostTensor>,
) -> impl Iterator<Item = (String, HostTensor)> + 'a {
    tensors.iter().map(move |(name, tensor)| (format!("{prefix}{name}"), tensor.clone()))
}

fn select(
    tensors: impl IntoIterator<Item = (String, HostTensor)>,
    expected: &[TensorSpec],
    key: Option<&str>,
) -> Result<Selection, String> {
    let folder = tempdir().unwrap();
    // The file name has no extension: the format is detected from the bytes.
    let path = folder.path().join("checkpoint.bin");
    let file = TensorFile { tensors: tensors.into_iter().collect(), ..TensorFile::default() };
    fs::write(&path, file.to_bytes()).unwrap();
    let checkpoint = Checkpoint::open(&path).map_err(|error| error.to_string())?;
    checkpoint.select(expected, key).map_err(|error| error.to_string())
}

#[test]
fn imported_cases_give_the_velocity_of_the_original_network() {
    // Half precision has 11 significant bits, bfloat16 has 8.
    for (file, tolerance) in [("compiled.pt", 2e-3), ("lightning.ckpt", 2e-3), ("bf16.safetensors", 2e-2)] {
        let folder = tempdir().unwrap();
        let (name, spec, description) = description(&folder);
        let out = folder.path().join("model.safetensors");
        succeed(&mut import(&case(file), &description, &out));
        let found = Model::from_bytes(&fs::read(&out).unwrap()).unwrap();
        assert_eq!((found.card.role, &found.spec), (Role::Teacher, &spec), "{file}");
        let expected = model(&format!("{name}.pt"), &spec, None);
        for ((found, expected), tensor) in found.tensors.iter().zip(&expected.tensors).zip(spec.tensors()) {
            let error = relative_error(&found.values, &expected.values);
            assert!(error < tolerance, "{file}: {}: relative error {error:.1e}", tensor.name);
        }

        let images = folder.path().join("images.safetensors");
        let noise = fixtures().join(format!("{name}_io.safetensors"));
        let mut sample = distill();
        sample.arg("sample").arg(&out).arg("--noise").arg(&noise).args(["--steps", "1", "--device", "cpu"]);
        succeed(sample.arg("--out").arg(&images));
        let found = TensorFile::from_bytes(&fs::read(&images).unwrap()).unwrap().tensors;
        let expected = &tensors(&format!("{name}_io.safetensors"))["one_step"];
        let error = relative_error(&found["images"].values, &expected.values);
        println!("{file}: one step, relative error {error:.1e}");
        assert!(error < tolerance, "{file}: {error:.1e}");
    }
}

#[test]
fn prefixes_in_any_order_and_combination_are_removed() {
    const WRAPPERS: [&str; 6] = ["module.", "_orig_mod.", "model.", "net.", "ema.", "model.diffusion_model."];
    let (expected, tensors) = small();
    let mut prefixes = vec![String::new()];
    for _ in 0..3 {
        let longer = |prefix: &String| WRAPPERS.map(|wrapper| format!("{wrapper}{prefix}"));
        prefixes.extend(prefixes.clone().iter().flat_map(longer));
        prefixes.sort();
        prefixes.dedup();
    }
    assert!(prefixes.len() > 200, "{} prefixes", prefixes.len());
    for prefix in prefixes {
        // As a training script saves it: with the state of an optimiser, and a counter among the weights.
        let others = [
            ("optimizer.state.0.exp_avg".to_owned(), HostTensor::new([7], vec![0.0; 7])),
            (format!("{prefix}n_averaged"), HostTensor::new([], vec![3.0])),
        ];
        let found = select(prefixed(&prefix, &tensors).chain(others), &expected, None).unwrap();
        assert_eq!((found.prefix.as_str(), found.others.len()), (prefix.as_str(), 0));
        assert_eq!(found.tensors, tensors, "{prefix}");
    }
}

#[test]
fn averaged_weights_are_preferred_and_a_key_selects_others() {
    let (expected, tensors) = small();
    let other: BTreeMap<_, _> = tensors
        .iter()
        .map(|(name, tensor)| {
            (name.clone(), HostTensor::new(tensor.shape.clone(), vec![0.5; tensor.values.len()]))
        })
        .collect();
    for (plain, averaged) in [
        ("net_model.", "ema_model."),
        ("model.", "ema."),
        ("state_dict.model.", "state_dict.ema_model.module."),
        ("state_dict.", "state_dict_ema."),
        ("", "averaged_model."),
        ("zebra.module.", "SWA.module."),
    ] {
        let both = || prefixed(plain, &other).chain(prefixed(averaged, &tensors));
        let found = select(both(), &expected, None).unwrap();
        assert_eq!((found.prefix.as_str(), &found.others[..]), (averaged, &[plain.to_owned()][..]));
        assert_eq!(found.tensors, tensors, "{averaged}");
        if let Some((key, _)) = plain.rsplit_once('.') {
            assert_eq!(select(both(), &expected, Some(key)).unwrap().tensors, other, "--key {key}");
        }
    }
    let slower = prefixed("ema_0.999.", &other).chain(prefixed("ema_0.9999.", &tensors));
    assert_eq!(select(slower, &expected, None).unwrap().prefix, "ema_0.9999.");
}

#[test]
fn missing_tensors_and_keys_are_named_with_the_existing_ones() {
    let (expected, tensors) = small();
    let refused = |tensors: BTreeMap<String, HostTensor>, key, parts: &[&str]| {
        let message = select(tensors, &expected, key).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "`{part}` expected in: {message}");
        }
        assert_eq!(message.lines().count(), 1, "{message}");
    };
    let whole: BTreeMap<_, _> = prefixed("ema.module.", &tensors).collect();

    let mut incomplete = whole.clone();
    incomplete.remove("ema.module.out.2.bias").unwrap();
    let count = format!("`ema` ({} tensors)", expected.len() - 1);
    refused(incomplete, None, &["checkpoint.bin", "tensor `ema.module.out.2.bias` is missing", &count]);

    let stranger = [("encoder.weight".to_owned(), HostTensor::new([2], vec![0.0; 2]))];
    refused(stranger.into(), None, &["`time_embed.0.weight`", "`encoder` (1 tensor)"]);
    refused(whole.clone(), Some("emma"), &["no state dict `emma`", "`ema`"]);

    let mut misshapen = whole.clone();
    misshapen.insert("ema.module.out.2.bias".into(), HostTensor::new([5], vec![0.0; 5]));
    refused(misshapen, None, &["tensor `ema.module.out.2.bias`", "found [5]"]);

    let mut larger = whole.clone();
    larger.insert("ema.module.input_blocks.99.0.op.weight".into(), HostTensor::new([2], vec![0.0; 2]));
    refused(larger, None, &["`ema.module.input_blocks.99.0.op.weight` is not part of the network"]);

    // Tensors of other modules are ignored and counted.
    let mut beside = whole;
    beside.insert("ema.module.loss.lpips.weight".into(), HostTensor::new([2], vec![0.0; 2]));
    assert_eq!(select(beside, &expected, None).unwrap().left_out, 1);
}

#[test]
fn files_of_other_formats_are_named() {
    let folder = tempdir().unwrap();
    let (_, _, description) = description(&folder);
    let (file, out) = (folder.path().join("weights.pt"), folder.path().join("out.safetensors"));
    for (bytes, expected) in [
        (&b""[..], "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "GGUF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"no weights at all", "neither"),
    ] {
        fs::write(&file, bytes).unwrap();
        fail(&mut import(&file, &description, &out), &["weights.pt", expected]);
    }
    let own = folder.path().join("own.safetensors");
    fs::write(&own, lively_model(small_spec()).to_bytes()).unwrap();
    fail(&mut import(&own, &description, &out), &["own.safetensors", "needs no import"]);
    assert!(!out.exists(), "no files remain");
}

#[test]
fn the_role_determines_how_an_imported_model_is_sampled() {
    let folder = tempdir().unwrap();
    let (_, _, description) = description(&folder);
    let out = folder.path().join("model.safetensors");
    let images = folder.path().join("images.safetensors");
    let sample = |role: &[&str]| {
        let said = succeed(import(&case("compiled.pt"), &description, &out).args(role));
        let mut sample = distill();
        sample.arg("sample").arg(&out).args(["--device", "cpu", "--seed", "7", "--count", "2", "--out"]);
        said + &succeed(sample.arg(&images))
    };
    for (role, is, evaluations) in [
        (&[][..], "a teacher of", "50 evaluations"),
        (&["--role", "teacher"], "a teacher of", "50 evaluations"),
        (&["--role", "student"], "a student of", "1 evaluation"),
    ] {
        let said = sample(role);
        assert!(said.contains(is) && said.contains(evaluations), "{said}");
    }
    let wrong = &mut import(&case("compiled.pt"), &description, &out);
    fail(wrong.args(["--role", "judge"]), &["--role", "teacher or student", "judge"]);
}

#[test]
fn the_choice_among_several_state_dicts_is_printed() {
    let folder = tempdir().unwrap();
    let (name, _, description) = description(&folder);
    let (checkpoint, out) = (fixtures().join(format!("{name}.pt")), folder.path().join("model.safetensors"));
    let said = succeed(&mut import(&checkpoint, &description, &out));
    assert!(said.contains("takes `ema_model`") && said.contains("`net_model`"), "{said}");
    let said = succeed(import(&checkpoint, &description, &out).args(["--key", "net_model"]));
    assert!(!said.contains("ema_model"), "{said}");
}

#[test]
fn samples_in_a_file_have_their_labels_and_seeds() {
    let folder = tempdir().unwrap();
    let mut spec = small_spec();
    spec.num_classes = Some(3);
    let (model, out) = (folder.path().join("model.safetensors"), folder.path().join("images.safetensors"));
    fs::write(&model, lively_model(&spec).to_bytes()).unwrap();
    let seed = u64::MAX - 1;
    let mut sample = distill();
    sample.arg("sample").arg(&model).args(["--steps", "1", "--device", "cpu", "--count", "4"]);
    succeed(sample.args(["--seed", &seed.to_string(), "--out"]).arg(&out));
    let bytes = fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (label, seeds) = (file.tensor("label").unwrap(), file.tensor("seed").unwrap());
    assert_eq!(
        (label.dtype(), label.data()),
        (safetensors::Dtype::I64, &[0i64, 1, 2, 0].map(i64::to_le_bytes).concat()[..])
    );
    let expected = [seed, u64::MAX, 0, 1].map(u64::to_le_bytes).concat();
    assert_eq!((seeds.dtype(), seeds.data()), (safetensors::Dtype::U64, &expected[..]));

    // With noise from a file there are no seeds.
    let noise = folder.path().join("noise.safetensors");
    let x = HostTensor::new(
        [1, spec.in_channels, spec.height, spec.width],
        vec![0.5; NetworkSpec::from(&spec).image_len()],
    );
    let tensors = [("x".to_owned(), x), ("label".to_owned(), HostTensor::new([1], vec![2.0]))];
    fs::write(&noise, TensorFile { tensors: tensors.into(), ..TensorFile::default() }.to_bytes()).unwrap();
    let mut sample = distill();
    sample.arg("sample").arg(&model).args(["--steps", "1", "--device", "cpu", "--noise"]).arg(&noise);
    succeed(sample.arg("--out").arg(&out));
    let bytes = fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("label").unwrap().data(), 2i64.to_le_bytes());
    assert!(file.tensor("seed").is_err());
}
