//! A pipeline of pixels without weights: its text encoder and its denoiser are trained together from nothing, and become an
//! ordinary pipeline.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::{Device, Tensor, TensorData};
use ccm::disk;
use ccm::import::text_to_image;
use ccm::model::Text;
use ccm::nn::conditions::Conditions;
use ccm::nn::denoiser::Denoiser;
use ccm::nn::host::to_host;
use ccm::noise::Noise;
use ccm::pipeline::Pipeline;
use ccm::sampler::Backend;
use ccm::sampler::image::grid;
use ccm::train::batches::StageKind;
use ccm::weights::{HostTensor, TensorFile};
use ccm_tests::fixtures;
use ccm_tests::program::{assert_same_models, distill, fail, kill_after, resume, succeed};
use serde_json::{Value, json};
use tempfile::tempdir;

/// Side of the pictures in pixels.
const SIDE: usize = 16;
/// The captions, and the colours of the left and right halves of their pictures.
const PICTURES: [(&str, [[f32; 3]; 2]); 6] = [
    ("red and green", [RED, GREEN]),
    ("green and red", [GREEN, RED]),
    ("red and blue", [RED, BLUE]),
    ("blue and red", [BLUE, RED]),
    ("green and blue", [GREEN, BLUE]),
    ("blue and green", [BLUE, GREEN]),
];
const RED: [f32; 3] = [0.8, -0.8, -0.6];
const GREEN: [f32; 3] = [-0.8, 0.6, -0.6];
const BLUE: [f32; 3] = [-0.6, -0.6, 0.9];

/// The picture of a caption, `[3, SIDE, SIDE]`.
fn picture([left, right]: [[f32; 3]; 2]) -> Vec<f32> {
    let value = |channel: usize, place: usize| {
        if place % SIDE < SIDE / 2 { left[channel] } else { right[channel] }
    };
    (0..3).flat_map(|channel| (0..SIDE * SIDE).map(move |place| value(channel, place))).collect()
}

/// Writes the pictures for both splits, and a pipeline without weights.
fn prepare(folder: &Path) -> [PathBuf; 2] {
    let [pictures, pipeline] = ["pictures", "pipeline"].map(|name| folder.join(name));
    for split in ["train", "test"] {
        let folder = pictures.join(split);
        fs::create_dir_all(&folder).unwrap();
        let mut lines = String::new();
        for (number, (caption, colours)) in PICTURES.into_iter().enumerate() {
            let name = format!("{number}.png");
            let png = grid(&picture(colours), [3, SIDE, SIDE], 1).to_png().unwrap();
            fs::write(folder.join(&name), png).unwrap();
            lines += &format!("{}\n", json!({ "file_name": name, "text": caption }));
        }
        fs::write(folder.join("metadata.jsonl"), lines).unwrap();
    }
    let tokenizer = fixtures().join("pipelines/sd1/tokenizer");
    let read = |file: &str| fs::read_to_string(tokenizer.join(file)).unwrap();
    let write = |file: &str, text: String| {
        let path = pipeline.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for file in ["vocab.json", "merges.txt"] {
        write(&format!("tokenizer/{file}"), read(file));
    }
    let mut config: Value = serde_json::from_str(&read("tokenizer_config.json")).unwrap();
    config["model_max_length"] = json!(12);
    write("tokenizer/tokenizer_config.json", config.to_string());
    let parts = json!({
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    });
    write("model_index.json", parts.to_string());
    let scheduler = json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5 });
    write("scheduler/scheduler_config.json", scheduler.to_string());
    let encoder = json!({
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": 1214, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 12,
    });
    write("text_encoder/config.json", encoder.to_string());
    let unet = json!({
        "_class_name": "UNet2DConditionModel", "sample_size": SIDE, "patch_size": 2, "in_channels": 3, "out_channels": 3,
        "block_out_channels": [32, 32], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "attention_head_dim": 2,
        "cross_attention_dim": 32, "norm_num_groups": 8,
    });
    write("unet/config.json", unet.to_string());
    [pictures, pipeline]
}

fn run([pictures, pipeline]: &[PathBuf; 2], out: &Path, more: &[&str]) -> Command {
    let settings = [
        "teacher.kimg=2.4",
        "teacher.batch=6",
        "teacher.learning_rate=2e-3",
        "teacher.warmup_kimg=0.1",
        "teacher.ema_halflife_kimg=0.1",
        "distill.kimg=0.3",
        "distill.batch=6",
        "distill.warmup_kimg=0.03",
        "distill.learning_rate=5e-4",
        "distill.step_size=0.1",
        "distill.target_halflife_kimg=0.02",
        "distill.sample_halflife_kimg=0.1",
        "run.sample_every_kimg=10",
        "run.checkpoint_every_kimg=0.06",
        "run.log_every_kimg=0.3",
        "run.report_steps=4",
        "run.report_images=6",
    ];
    let mut command = distill();
    command.args(["run", "--device", "cpu", "--preset", "emoji", "--teacher"]).arg(pipeline);
    command.arg("--data").arg(pictures).arg("--out").arg(out);
    command.args(settings.iter().chain(more).flat_map(|setting| ["--set", setting]));
    command
}

/// The pictures that a pipeline draws of all captions in one step.
fn drawn(pipeline: &Path, folder: &Path, more: &[&str]) -> Vec<f32> {
    let out = folder.join("drawn.safetensors");
    let mut command = distill();
    command
        .arg("sample")
        .arg(pipeline)
        .args(["--steps", "1", "--device", "cpu", "--out"])
        .arg(&out)
        .args(more);
    succeed(command.args(PICTURES.iter().flat_map(|(caption, _)| ["--prompt", caption])));
    TensorFile::from_bytes(&fs::read(out).unwrap()).unwrap().take("images").unwrap().values
}

fn mean_squared_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / a.len() as f32
}

#[test]
fn a_text_encoder_and_a_denoiser_learn_words_from_nothing() {
    let temporary = tempdir().unwrap();
    let folder = temporary.path();
    let prepared = prepare(folder);
    let [_, pipeline] = &prepared;
    let [whole, stopped] = ["whole", "stopped"].map(|name| folder.join(name));
    succeed(&mut run(&prepared, &whole, &[]));

    // Every picture is nearest to that of its own words, in which the same words have another order.
    let student = whole.join("student.safetensors");
    let packed = folder.join("words.safetensors");
    let mut import = distill();
    import.arg("import").arg(pipeline).arg("--denoiser").arg(&student);
    succeed(import.args(["--precision", "f32", "--out"]).arg(&packed));
    let found = drawn(&packed, folder, &[]);
    let expected: Vec<Vec<f32>> = PICTURES.iter().map(|(_, colours)| picture(*colours)).collect();
    for (own, found) in found.chunks(3 * SIDE * SIDE).enumerate() {
        let errors: Vec<f32> = expected.iter().map(|expected| mean_squared_error(found, expected)).collect();
        let nearest = (0..errors.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b])).unwrap();
        assert_eq!(nearest, own, "{}: {errors:?}", PICTURES[own].0);
        assert!(errors[own] < 0.1, "{}: {errors:?}", PICTURES[own].0);
    }

    // The same without a file of its own, and rounded.
    let denoiser = ["--denoiser", student.to_str().unwrap(), "--guidance", "1"];
    assert_eq!(drawn(pipeline, folder, &denoiser), found);
    succeed(
        distill()
            .arg("import")
            .arg(&packed)
            .args(["--precision", "q8", "--out"])
            .arg(folder.join("q8.safetensors")),
    );
    let rounded = drawn(&folder.join("q8.safetensors"), folder, &[]);
    assert!(mean_squared_error(&rounded, &found) < 1e-3);
    // The model alone says how it is sampled.
    fail(distill().arg("sample").arg(&student).args(["--out", "x.png"]), &["--denoiser"]);

    // Killed in both stages.
    kill_after(&mut run(&prepared, &stopped, &[]), &stopped, StageKind::Teacher, 30);
    kill_after(&mut resume(&stopped), &stopped, StageKind::Distill, 10);
    succeed(&mut resume(&stopped));
    assert_same_models(&whole, &stopped);
}

/// The network that is trained, with the text encoder in its graph, and the pipeline's separate parts give the same picture.
#[test]
fn the_trained_network_and_the_parts_of_the_pipeline_agree() {
    let temporary = tempdir().unwrap();
    let folder = temporary.path();
    let prepared = prepare(folder);
    let [_, pipeline] = &prepared;
    let out = folder.join("run");
    succeed(&mut run(
        &prepared,
        &out,
        &["teacher.kimg=0.06", "distill.kimg=0.012", "run.mixed_precision=f16"],
    ));
    let teacher = out.join("teacher.safetensors");

    let opened = text_to_image::open(pipeline).unwrap();
    let texts = Pipeline::new(opened.spec, opened.tokenizers, opened.weights, Backend::Cpu);
    let model = disk::read_model(&teacher).unwrap();
    let (device, shape) = (Device::flex(), model.spec.text().unwrap());
    let denoiser = Denoiser::new(&model, &device);
    let noise = Noise::new(5, 0).normals(PICTURES.len() * 3 * SIDE * SIDE);
    let ids = PICTURES.map(|(caption, _)| {
        let tokens = texts.tokens(caption).unwrap().remove(0).into_iter().map(|id| id as f32).collect();
        Text { tokens, ..Text::default() }.into()
    });
    let x = Tensor::from_data(TensorData::new(noise.clone(), [PICTURES.len(), 3, SIDE, SIDE]), &device);
    let velocity =
        denoiser.velocity(x.clone(), &[0.0; PICTURES.len()], Conditions::of_texts(&ids, shape, &device));
    let expected = to_host(x + velocity);

    let file = folder.join("noise.safetensors");
    let tensors = [("x".to_owned(), HostTensor::new([PICTURES.len(), 3, SIDE, SIDE], noise))].into();
    fs::write(&file, TensorFile { tensors, description: String::new() }.to_bytes()).unwrap();
    let (teacher, file) = (teacher.to_str().unwrap(), file.to_str().unwrap());
    let found = drawn(pipeline, folder, &["--denoiser", teacher, "--guidance", "1", "--noise", file]);
    let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn settings_that_a_text_encoder_does_not_suit_are_refused() {
    let temporary = tempdir().unwrap();
    let prepared = prepare(temporary.path());
    let out = temporary.path().join("run");
    for (setting, expected) in [
        ("teacher.training=none", "teacher.train_text_encoder"),
        ("distill.lora_rank=4", "distill.lora_rank"),
    ] {
        fail(&mut run(&prepared, &out, &[setting]), &[expected]);
    }
    // Only one CLIP can be trained.
    let sdxl = [prepared[0].clone(), fixtures().join("pipelines/sdxl")];
    fail(&mut run(&sdxl, &out, &["teacher.training=from-weights"]), &["teacher.train_text_encoder", "CLIP"]);
    // Weights are needed to train from them.
    fail(
        &mut run(&prepared, &out, &["teacher.training=from-weights"]),
        &["text_encoder", "model.safetensors"],
    );
    // A pipeline without an autoencoder makes pixels.
    let unet = prepared[1].join("unet/config.json");
    let config = fs::read_to_string(&unet).unwrap();
    fs::write(&unet, config.replace("channels\":3", "channels\":4")).unwrap();
    fail(&mut run(&prepared, &out, &[]), &["in_channels: expected 3 for pixels", "found 4"]);
}
