//! Text-to-image pipelines in one file of this project.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::Path;

use ccm::import::text_to_image;
use ccm::model::{ModelCard, Role};
use ccm::nn::denoiser::random_model;
use ccm::pipeline::{Part, Weights};
use ccm::weights::{HostTensor, Precision, TensorFile};
use ccm_tests::pipelines::{Tensors, folders, pack, single_file, tensors};
use ccm_tests::program::{distill, fail, succeed};
use ccm_tests::{fixtures, uniform};
use tempfile::tempdir;
#[test]
fn one_file_gives_the_pictures_of_its_folder() {
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    let one = path("one.safetensors");
    for folder in folders() {
        let sample = |model: &Path, precision: &[&str], out: &str| {
            let mut command = distill();
            command
                .arg("sample")
                .arg(model)
                .args(precision)
                .args(["--prompt", "a horse", "--prompt", "two!"]);
            command.args(["--negative", "red", "--steps", "2", "--device", "cpu"]);
            succeed(command.arg("--out").arg(path(out)));
            fs::read(path(out)).unwrap()
        };
        let mut sizes = Vec::new();
        for precision in ["f32", "f16", "q8", "q4"] {
            let line = succeed(&mut pack(&folder, precision, &one));
            assert!(line.contains(precision) && line.contains("parameters"), "{line}");
            assert!(!path("one.safetensors.partial").exists());
            let expected = sample(&folder, &["--precision", precision], "a.safetensors");
            let found = sample(&one, &[], "b.safetensors");
            assert!(found == expected, "{} in {precision}: other pictures", folder.display());
            sizes.push(fs::metadata(&one).unwrap().len());
            let lines = succeed(distill().arg("inspect").arg(&one));
            for part in ["denoiser", "decoder", "text_encoder", precision, "encoder         none"] {
                assert!(lines.contains(part), "`{part}` expected in: {lines}");
            }
            // Another library reads the file: every tensor is where the header says.
            let bytes = fs::read(&one).unwrap();
            let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert!(read.tensors().iter().any(|(name, _)| name.starts_with("decoder.")));
        }
        assert!(sizes.is_sorted_by(|larger, smaller| larger > smaller), "{sizes:?}");
        // Packed again from a file, with another precision.
        succeed(&mut pack(&folder, "f32", &one));
        let again = path("again.safetensors");
        let mut export = distill();
        export.arg("export").arg(&one).args(["--precision", "q8"]).arg("--out").arg(&again);
        succeed(&mut export);
        succeed(&mut pack(&folder, "q8", &one));
        assert!(fs::read(&again).unwrap() == fs::read(&one).unwrap(), "{}: another file", folder.display());
    }
}

#[test]
fn one_file_has_the_changes_of_loras_and_the_encoder_of_a_teacher() {
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    let folder = fixtures().join("pipelines/sd1");
    let file = path("sd1.safetensors");
    single_file(&folder, &file);
    let layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k";
    let values = |count: usize| uniform(3, count).map(|u| u as f32).collect();
    let lora = Tensors::from([
        (format!("{layer}.lora_A.weight"), HostTensor::new([2, 32], values(64))),
        (format!("{layer}.lora_B.weight"), HostTensor::new([64, 2], values(128))),
    ]);
    fs::write(path("l.safetensors"), TensorFile { tensors: lora, description: String::new() }.to_bytes())
        .unwrap();
    let lora = format!("{}:0.5", path("l.safetensors").display());
    let one = path("one.safetensors");
    let mut command = pack(&file, "f16", &one);
    succeed(command.arg("--config").arg(&folder).args(["--lora", &lora, "--role", "teacher"]));
    let sample = |model: &Path, more: &[&str], out: &str| {
        let mut command = distill();
        command
            .arg("sample")
            .arg(model)
            .args(more)
            .args(["--prompt", "a horse", "--steps", "2", "--device", "cpu"]);
        succeed(command.arg("--out").arg(path(out)));
        tensors(&path(out)).remove("images").unwrap().values
    };
    let of_folder = sample(&folder, &["--lora", &lora, "--precision", "f16"], "a.safetensors");
    assert_eq!(sample(&one, &[], "b.safetensors"), of_folder);
    assert_ne!(sample(&folder, &["--precision", "f16"], "b.safetensors"), of_folder);
    let lines = succeed(distill().arg("inspect").arg(&one));
    assert!(!lines.contains("none") && lines.contains("\"role\": \"teacher\""), "{lines}");
    let opened = text_to_image::open_packed(&one).unwrap();
    let encoder = opened.spec.encoder().unwrap();
    assert!(opened.weights.read(Part::Encoder, &encoder, Precision::F32).is_ok());

    // T5 may be left out, of a folder or of a file.
    let folder = fixtures().join("pipelines/sd3");
    let (all, again) = (path("all.safetensors"), path("again.safetensors"));
    succeed(&mut pack(&folder, "f32", &all));
    succeed(pack(&folder, "f32", &one).arg("--without-t5"));
    succeed(pack(&all, "f32", &again).arg("--without-t5"));
    assert!(fs::read(&one).unwrap() == fs::read(&again).unwrap());
    let lines = succeed(distill().arg("inspect").arg(&one));
    assert!(lines.contains("text_encoder_2") && !lines.contains("text_encoder_3"), "{lines}");
    assert_ne!(sample(&one, &[], "a.safetensors"), sample(&all, &[], "b.safetensors"));
    fail(pack(&one, "f32", &again).arg("--without-t5"), &["--without-t5", "one.safetensors", "no T5"]);
}

#[test]
fn one_file_has_a_denoiser_in_the_place_of_the_pipelines_own() {
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    let folder = fixtures().join("pipelines/sd1");
    let opened = text_to_image::open(&folder).unwrap();
    // A student that reads the guidance scale, which the pipeline's own denoiser does not.
    let network = opened.spec.network.with_guidance(32).unwrap();
    let mut student = random_model(network.clone(), &opened.spec.prediction, 7);
    student.card = ModelCard { role: Role::Student, ..ModelCard::default() };
    fs::write(path("student.safetensors"), student.to_bytes()).unwrap();
    let (student, one) = (path("student.safetensors"), path("one.safetensors"));
    succeed(pack(&folder, "f32", &one).arg("--denoiser").arg(&student));
    let found = text_to_image::open_packed(&one).unwrap();
    assert_eq!(
        (found.spec.network, found.card.role),
        (opened.spec.network.with_guidance(32).unwrap(), Role::Student)
    );
    let sample = |model: &Path, more: &[&Path], out: &str| {
        let mut command = distill();
        command.arg("sample").arg(model).args(more);
        command.args(["--prompt", "a horse", "--guidance", "3", "--device", "cpu"]);
        let line = succeed(command.arg("--out").arg(path(out)));
        (fs::read(path(out)).unwrap(), line.contains("1 evaluation each"))
    };
    let (expected, _) = sample(&folder, &[Path::new("--denoiser"), &student], "a.safetensors");
    let (found, is_one) = sample(&one, &[], "b.safetensors");
    assert!(found == expected && is_one);
    assert!(sample(&folder, &[Path::new("--steps"), Path::new("1")], "c.safetensors").0 != expected);
}

/// A safetensors file with a changed header.
fn with_header(
    bytes: &[u8],
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes(), &header[..], &bytes[8 + length..]].concat()
}

#[test]
fn faults_of_one_file_are_named() {
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    let folder = fixtures().join("pipelines/sdxl");
    let one = path("one.safetensors");
    succeed(&mut pack(&folder, "q4", &one));
    let bytes = fs::read(&one).unwrap();
    let faulty = path("faulty.safetensors");
    let sample = |bytes: &[u8]| {
        fs::write(&faulty, bytes).unwrap();
        let mut command = distill();
        command
            .arg("sample")
            .arg(&faulty)
            .args(["--prompt", "a", "--steps", "1", "--device", "cpu", "--out"]);
        command.arg(path("never.png"));
        command
    };
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for length in [0, 4, 100, header, header + 8, bytes.len() / 2, bytes.len() - 1] {
        fail(&mut sample(&bytes[..length]), &["faulty.safetensors"]);
    }
    // The name of a tensor, what becomes of its entry, and what the error says.
    const WEIGHT: &str = "denoiser.mid_block.resnets.0.conv1.weight";
    let cases: [(&str, &str, &str, &[&str]); 5] = [
        (WEIGHT, "rename", "", &[WEIGHT, "missing"]),
        (
            "text_encoder_2.text_projection.weight_scale",
            "rename",
            "",
            &["text_projection.weight_scale", "missing"],
        ),
        ("tokenizer_2/merges.txt", "rename", "", &["merges.txt"]),
        ("tokenizer/vocab.json", "rename", "", &["tokenizer.json"]),
        (WEIGHT, "dtype", "I8", &["denoiser.mid_block.resnets.0.conv1.weight", "expected shape"]),
    ];
    for (name, change, value, parts) in cases {
        let changed = with_header(&bytes, |header| {
            if change == "rename" {
                let entry = header.remove(name).unwrap();
                header.insert("other".into(), entry);
            } else {
                header[name][change] = value.into();
            }
        });
        println!("{name}: {change} {value}");
        fail(&mut sample(&changed), &[parts, &["faulty.safetensors"]].concat());
    }
    let described = |from: &str, into: &str| {
        with_header(&bytes, |header| {
            let text = header["__metadata__"]["ccm"].as_str().unwrap();
            assert!(text.contains(from), "{from} in {text}");
            header["__metadata__"]["ccm"] = text.replace(from, into).into();
        })
    };
    for (from, into, parts) in [
        ("\"latent_channels\":4", "\"latent_channels\":8", ["latent_channels", "expected 4"]),
        ("\"precision\":\"q4\"", "\"precision\":\"q3\"", ["precision", "q3"]),
        ("\"hidden_size\":32", "\"hidden_size\":33", ["hidden_size", "33"]),
        ("\"tokenizers\":[", "\"tokenizers\":[{},", ["tokenizers", "expected 2, found 3"]),
        ("\"prediction\":", "\"other\":", ["prediction", "expected"]),
    ] {
        println!("{from}: {into}");
        fail(&mut sample(&described(from, into)), &[&parts[..], &["faulty.safetensors"]].concat());
    }
    fail(pack(&folder, "q4", &path("none/one.safetensors")).arg("--preset").arg("mnist"), &["--preset"]);
    fail(&mut pack(&folder, "q4", &path("none/one.safetensors")), &["none", "expected a folder"]);
    fail(&mut pack(&folder, "q3", &one), &["--precision", "q3"]);
    fail(
        &mut pack(&fixtures().join("pipelines/ddpm"), "q8", &one),
        &["--precision", "not a pipeline with text"],
    );
    let mut export = distill();
    export.arg("export").arg(&one).args(["--layout", "diffusers"]).arg("--out").arg(path("folder"));
    fail(&mut export, &["--layout", "one.safetensors", "pipeline with text"]);
    let mut export = distill();
    export.arg("export").arg(&one).args(["--precision", "f16"]).arg("--out").arg(&faulty);
    assert!(succeed(&mut export).contains(": q4,"), "weights stay in a smaller precision");
    assert!(fs::read(&one).unwrap() == bytes, "a file that is there stays as it is");
    assert!(!path("never.png").exists());
}
