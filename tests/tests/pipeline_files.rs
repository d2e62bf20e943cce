//! Text-to-image pipelines as people have them: folders with faults, single files, LoRAs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::Path;

use ccm::import::text_to_image;
use ccm::pipeline::{Part, Weights};
use ccm::weights::{HostTensor, Precision, TensorFile};
use ccm_tests::pipelines::{Tensors, check, copy, single_file, tensors};
use ccm_tests::program::{distill, fail, succeed};
use ccm_tests::{fixtures, relative_error, uniform};
use tempfile::tempdir;
#[test]
fn single_files_hold_the_same_weights_as_folders() {
    let temporary = tempdir().unwrap();
    for name in ["sd1", "sdxl", "sd3"] {
        let folder = fixtures().join("pipelines").join(name);
        let file = temporary.path().join(format!("{name}.safetensors"));
        single_file(&folder, &file);
        let from_folder = text_to_image::open(&folder).unwrap();
        let from_file = text_to_image::open_file(&file, &folder).unwrap();
        let spec = &from_folder.spec;
        let mut parts: Vec<(Part, ccm::model::graph::Graph)> = vec![
            (Part::Denoiser, spec.network.graph()),
            (Part::Encoder, spec.encoder().unwrap()),
            (Part::Decoder, spec.decoder().unwrap()),
        ];
        let encoders = 0..spec.text_encoders.len();
        parts.extend(encoders.map(|index| (Part::TextEncoder(index), spec.text_encoder(index))));
        for (part, graph) in parts {
            let expected = from_folder.weights.read(part, &graph, Precision::F32).unwrap();
            assert_eq!(
                from_file.weights.read(part, &graph, Precision::F32).unwrap(),
                expected,
                "{name}: {part:?}"
            );
        }
    }
    // Configuration and tokenizers come from a folder without weights.
    let config = temporary.path().join("config");
    copy(&fixtures().join("pipelines/sd1"), &config);
    for part in ["unet", "vae"] {
        fs::remove_file(config.join(part).join("diffusion_pytorch_model.safetensors")).unwrap();
    }
    let file = temporary.path().join("sd1.safetensors");
    let out = temporary.path().join("a.png");
    let sample = |config: &Path| {
        let mut command = distill();
        command.arg("sample").arg(&file).arg("--config").arg(config);
        command.args(["--prompt", "a", "--steps", "1", "--device", "cpu"]).arg("--out").arg(&out);
        command
    };
    succeed(&mut sample(&config));
    fail(
        &mut sample(&fixtures().join("pipelines/sdxl")),
        &["sd1.safetensors", "conditioner.embedders.0", "missing"],
    );
    fail(&mut sample(temporary.path()), &["model_index.json"]);
}

#[test]
fn loras_of_both_namings_are_added_to_the_weights() {
    let temporary = tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    let folder = fixtures().join("pipelines/sdxl");
    // A linear layer and a convolution of the denoiser, and a layer of each text encoder.
    let changed: [(&str, &str, &str, &str); 4] = [
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "unet", "lora_unet"),
        ("unet", "up_blocks.0.resnets.0.conv1", "unet", "lora_unet"),
        ("text_encoder", "text_model.encoder.layers.1.mlp.fc1", "text_encoder", "lora_te1"),
        ("text_encoder_2", "text_model.encoder.layers.2.self_attn.v_proj", "text_encoder_2", "lora_te2"),
    ];
    const RANK: usize = 3;
    let (weight, alpha) = (0.5, 6.0);
    let (mut diffusers, mut kohya) = (Tensors::new(), Tensors::new());
    let merged = path("merged");
    copy(&folder, &merged);
    for (number, (part, name, dotted, flat)) in changed.into_iter().enumerate() {
        let stem = if part.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
        let file = merged.join(part).join(format!("{stem}.safetensors"));
        let mut weights = tensors(&file);
        let stored =
            weights.keys().find(|stored| stored.ends_with(&format!("{name}.weight"))).unwrap().clone();
        let base = weights.get_mut(&stored).unwrap();
        let (outputs, inputs) = (base.shape[0], base.shape[1..].iter().product::<usize>());
        let values = |place: usize, count: usize| -> Vec<f32> {
            uniform(2 * number + place, count).map(|u| (2.0 * u - 1.0) as f32 / 3.0).collect()
        };
        let (down, up) = (values(0, RANK * inputs), values(1, outputs * RANK));
        for row in 0..outputs {
            for column in 0..inputs {
                let change: f32 = (0..RANK).map(|r| up[row * RANK + r] * down[r * inputs + column]).sum();
                base.values[row * inputs + column] += weight * change;
            }
        }
        let down_shape = [&[RANK], &base.shape[1..]].concat();
        let up_shape = [&[outputs, RANK][..], &vec![1; base.shape.len() - 2]].concat();
        let (down, up) = (HostTensor::new(down_shape, down), HostTensor::new(up_shape, up));
        let flat = format!("{flat}_{}", name.replace('.', "_"));
        diffusers.insert(format!("{dotted}.{name}.lora_A.weight"), down.clone());
        diffusers.insert(format!("{dotted}.{name}.lora_B.weight"), up.clone());
        kohya.insert(format!("{flat}.lora_down.weight"), down);
        kohya.insert(format!("{flat}.lora_up.weight"), up);
        kohya.insert(format!("{flat}.alpha"), HostTensor::new([], vec![alpha]));
        fs::write(&file, TensorFile { tensors: weights, description: String::new() }.to_bytes()).unwrap();
    }
    let write = |name: &str, tensors: Tensors| {
        fs::write(path(name), TensorFile { tensors, description: String::new() }.to_bytes()).unwrap();
    };
    let sample = |folder: &Path, lora: &str| {
        let mut command = distill();
        command.arg("sample").arg(folder).args(["--prompt", "a horse", "--steps", "2", "--device", "cpu"]);
        if !lora.is_empty() {
            command.arg("--lora").arg(format!("{}/{lora}", temporary.path().display()));
        }
        command.arg("--out").arg(path("x.safetensors"));
        command
    };
    let images = |command: &mut std::process::Command| {
        succeed(command);
        tensors(&path("x.safetensors")).remove("images").unwrap()
    };
    let expected = images(&mut sample(&merged, ""));
    assert!(
        relative_error(&images(&mut sample(&folder, "")).values, &expected.values) > 0.01,
        "it changes something"
    );
    write("diffusers.safetensors", diffusers.clone());
    check("diffusers' names", &images(&mut sample(&folder, "diffusers.safetensors:0.5")).values, &expected);
    // The last layer of the first text encoder, which Stable Diffusion XL does not compute.
    let last = "lora_te1_text_model_encoder_layers_2_mlp_fc1";
    kohya.insert(format!("{last}.lora_down.weight"), HostTensor::new([RANK, 8], vec![1.0; RANK * 8]));
    kohya.insert(format!("{last}.lora_up.weight"), HostTensor::new([8, RANK], vec![1.0; RANK * 8]));
    write("kohya.safetensors", kohya);
    // Alpha is twice the rank.
    check("kohya's names", &images(&mut sample(&folder, "kohya.safetensors:0.25")).values, &expected);

    let first = diffusers.keys().next().unwrap().clone();
    let faults: [(&str, fn(&mut Tensors, &str), &[&str]); 4] = [
        (
            "kind",
            |file, first| drop(file.insert(format!("{first}.dora"), HostTensor::new([1], vec![1.0]))),
            &["dora", "expected a LoRA's"],
        ),
        (
            "name",
            |file, _| drop(file.insert("unet.none.lora_A.weight".into(), HostTensor::new([1], vec![1.0]))),
            &["unet.none", "no weight"],
        ),
        ("half", |file, first| drop(file.remove(first)), &["both A and B"]),
        (
            "shape",
            |file, first| file.get_mut(first).unwrap().shape.reverse(),
            &["LoRA's A", "expected shape"],
        ),
    ];
    for (name, change, parts) in faults {
        let mut file = diffusers.clone();
        change(&mut file, &first);
        write("fault.safetensors", file);
        println!("{name}");
        fail(&mut sample(&folder, "fault.safetensors"), parts);
    }
    fail(&mut sample(&folder, "none.safetensors"), &["none.safetensors"]);
}

/// Copies a pipeline and changes the text of one of its files.
fn changed(folder: &Path, to: &Path, file: &str, from: &str, into: &str) {
    copy(folder, to);
    let text = fs::read_to_string(to.join(file)).unwrap();
    assert!(text.contains(from), "{file}: {from}");
    fs::write(to.join(file), text.replace(from, into)).unwrap();
}

#[test]
fn faults_of_a_folder_are_named() {
    let temporary = tempdir().unwrap();
    let pipelines = fixtures().join("pipelines");
    let sample = |folder: &Path| {
        let mut command = distill();
        command.arg("sample").arg(folder).args(["--prompt", "a", "--steps", "1", "--device", "cpu", "--out"]);
        command.arg(temporary.path().join("never.png"));
        command
    };
    let cases: [(&str, &str, &str, &str, &[&str]); 7] = [
        (
            "sd1",
            "unet/config.json",
            "\"cross_attention_dim\": 32",
            "\"cross_attention_dim\": 36",
            &["cross_attention_dim", "36", "32"],
        ),
        (
            "sd1",
            "unet/config.json",
            "\"dual_cross_attention\": false",
            "\"dual_cross_attention\": true",
            &["unet/config.json", "dual_cross_attention"],
        ),
        (
            "sd1",
            "unet/config.json",
            "\"block_out_channels\": [\n    32,",
            "\"block_out_channels\": [\n    96,",
            &["unet", "time_embedding.linear_1.weight", "[384, 96]", "[128, 32]"],
        ),
        ("sdxl", "tokenizer_2/tokenizer_config.json", "\"!\"", "\"<pad>\"", &["tokenizer_2", "<pad>"]),
        (
            "sdxl",
            "vae/config.json",
            "\"latent_channels\": 4",
            "\"latent_channels\": 8",
            &["latent_channels", "4", "8"],
        ),
        (
            "sd3",
            "transformer/config.json",
            "\"pooled_projection_dim\": 80",
            "\"pooled_projection_dim\": 84",
            &["projection_dim", "84", "80"],
        ),
        (
            "sd3",
            "text_encoder_3/config.json",
            "\"gelu_new\"",
            "\"mish\"",
            &["text_encoder_3", "dense_act_fn", "mish"],
        ),
    ];
    for (place, (name, file, from, into, parts)) in cases.into_iter().enumerate() {
        let folder = temporary.path().join(place.to_string());
        changed(&pipelines.join(name), &folder, file, from, into);
        fail(&mut sample(&folder), parts);
    }
    let folder = temporary.path().join("without");
    copy(&pipelines.join("sd1"), &folder);
    fs::remove_file(folder.join("tokenizer/merges.txt")).unwrap();
    fail(&mut sample(&folder), &["tokenizer", "merges.txt"]);
    fs::remove_file(folder.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    fs::write(folder.join("tokenizer/merges.txt"), "#version: 0.2\n").unwrap();
    fail(&mut sample(&folder), &["vae", "expected diffusion_pytorch_model.safetensors"]);

    let sd1 = pipelines.join("sd1");
    fail(sample(&sd1).args(["--size", "20x33"]), &["--size", "multiples of 2 pixels", "33"]);
    fail(sample(&sd1).args(["--label", "3"]), &["--label", "no classes"]);
    fail(sample(&sd1).args(["--guidance", "nan"]), &["--guidance"]);
    let mut without = distill();
    without.arg("sample").arg(&sd1).args(["--out", "never.png"]);
    fail(&mut without, &["--prompt", "needs one"]);
    assert!(!temporary.path().join("never.png").exists());
}
