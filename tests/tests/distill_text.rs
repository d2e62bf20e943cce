//! Distillation of text-to-image pipelines: a tiny one is trained on a few captioned pictures, then distilled, as low-rank
//! products and with all weights. The one step of the student is then nearer to the teacher's twenty than the teacher's own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ccm::method::lpips::Trunk;
use ccm::noise::Noise;
use ccm::sampler::image::grid;
use ccm::train::batches::StageKind;
use ccm::weights::{HostTensor, TensorFile};
use ccm_tests::program::{assert_same_models, distill, fail, kill_after, resume, succeed};
use ccm_tests::{fixtures, lpips_weights};
use tempfile::tempdir;

/// Side of the pictures in pixels.
const SIDE: usize = 32;

/// Pictures of figures in one colour, with their captions in `.txt` files. No picture shows a red square.
fn write_pictures(folder: &Path) {
    let colours = [("red", [0.9, -0.7, -0.7]), ("green", [-0.7, 0.8, -0.5]), ("blue", [-0.6, -0.4, 0.9])];
    type Figure = fn(f32, f32) -> bool;
    let figures: [(&str, Figure); 3] = [
        ("circle", |x, y| x * x + y * y < 1.0),
        ("square", |x, y| x.abs().max(y.abs()) < 0.9),
        ("cross", |x, y| x.abs().min(y.abs()) < 0.35 && x.abs().max(y.abs()) < 1.0),
    ];
    let mut number = 0;
    for (colour, rgb) in colours {
        for (figure, is_inside) in figures {
            if (colour, figure) == ("red", "square") {
                continue;
            }
            for _ in 0..6 {
                let mut noise = Noise::new(3, number);
                let [x, y, size] = [noise.uniform(), noise.uniform(), noise.uniform()].map(|u| u as f32);
                let (x, y, size) = (12.0 + 8.0 * x, 12.0 + 8.0 * y, 7.0 + 4.0 * size);
                let pixel = |place: usize, channel: usize| {
                    let [row, column] = [place / SIDE, place % SIDE].map(|at| at as f32);
                    if is_inside((column - x) / size, (row - y) / size) { rgb[channel] } else { 0.95 }
                };
                let planes: Vec<f32> = (0..3)
                    .flat_map(|channel| (0..SIDE * SIDE).map(move |place| (channel, place)))
                    .map(|(channel, place)| pixel(place, channel))
                    .collect();
                let name = folder.join(format!("{number:03}"));
                fs::write(name.with_extension("png"), grid(&planes, [3, SIDE, SIDE], 1).to_png().unwrap())
                    .unwrap();
                fs::write(name.with_extension("txt"), format!("a {colour} {figure}\n")).unwrap();
                number += 1;
            }
        }
    }
}

fn pipeline(name: &str) -> PathBuf {
    fixtures().join("pipelines").join(name)
}

/// A run of a tiny pipeline: its denoiser is trained from its random weights, then distilled.
fn run(preset: &str, data: &Path, out: &Path, more: &[&str]) -> Command {
    let settings = [
        "data.image_size=none",
        "teacher.training=from-weights",
        "teacher.kimg=0.96",
        "teacher.batch=16",
        "teacher.micro_batch=8",
        "teacher.learning_rate=2e-3",
        "teacher.warmup_kimg=0.08",
        "teacher.ema_halflife_kimg=0.06",
        "distill.kimg=0.8",
        "distill.batch=16",
        "distill.micro_batch=8",
        "distill.learning_rate=2e-3",
        "distill.warmup_kimg=0.08",
        "distill.cooldown=0.5",
        "distill.step_size=0.1",
        "distill.guidance=[2, 3]",
        "distill.target_halflife_kimg=0.02",
        "distill.sample_halflife_kimg=0.06",
        "distill.lora_rank=8",
        "distill.lora_alpha=8",
        "distill.fixed_precision=f32",
        "run.gradient_checkpointing=false",
        "run.sample_every_kimg=1",
        "run.checkpoint_every_kimg=0.08",
        "run.log_every_kimg=0.08",
        "run.report_steps=4",
        "run.report_images=8",
    ];
    let mut command = distill();
    command.args(["run", "--device", "cpu", "--preset", preset, "--teacher"]).arg(pipeline(preset));
    command.arg("--data").arg(data).arg("--out").arg(out);
    command.args(settings.iter().chain(more).flat_map(|setting| ["--set", setting]));
    command
}

/// Pictures from noise and of a prompt that no training saw, `[N, C, H, W]`, not clamped.
fn sample(preset: &str, folder: &Path, more: &[&str]) -> Vec<f32> {
    /// No training picture has both.
    const PROMPT: &str = "a red square";
    let reference = pipeline(preset).join("reference.safetensors");
    let reference = TensorFile::from_bytes(&fs::read(reference).unwrap()).unwrap();
    let mut shape = reference.tensors["noise"].shape.clone();
    shape[0] = 8;
    let (noise, out) = (folder.join("noise.safetensors"), folder.join("images.safetensors"));
    let values = Noise::new(99, 0).normals(shape.iter().product());
    let tensors = [("x".to_owned(), HostTensor::new(shape, values))].into();
    fs::write(&noise, TensorFile { tensors, description: String::new() }.to_bytes()).unwrap();
    let mut command = distill();
    command.arg("sample").arg(pipeline(preset)).arg("--noise").arg(noise).arg("--out").arg(&out);
    command.args(["--device", "cpu", "--solver", "euler"]).args(more);
    succeed(command.args(["--prompt", PROMPT]));
    TensorFile::from_bytes(&fs::read(out).unwrap()).unwrap().take("images").unwrap().values
}

fn mean_squared_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / a.len() as f32
}

/// The error of the student's one step, relative to that of the teacher's one step. Both are measured from the teacher's
/// twenty steps with guidance. `student` are the arguments that choose the student.
fn relative_error_of_student(preset: &str, run: &Path, folder: &Path, student: &[&str]) -> f32 {
    let teacher = run.join("teacher.safetensors");
    let of_teacher = ["--denoiser", teacher.to_str().unwrap(), "--guidance", "2.5"];
    let steps = |steps| sample(preset, folder, &[&of_teacher[..], &["--steps", steps]].concat());
    let (expected, one) = (steps("20"), steps("1"));
    let found = sample(preset, folder, &[student, &["--steps", "1"]].concat());
    let errors = [&one, &found].map(|found| mean_squared_error(found, &expected));
    println!("{preset}: the teacher's one step {:.4}, the student's {:.4}", errors[0], errors[1]);
    errors[1] / errors[0]
}

#[test]
fn low_rank_products_of_stable_diffusion_xl_learn_one_step_and_resume_to_the_same_bytes() {
    let folder = tempdir().unwrap();
    let [pictures, whole, stopped] = ["pictures", "whole", "stopped"].map(|name| folder.path().join(name));
    fs::create_dir(&pictures).unwrap();
    write_pictures(&pictures);
    // As the preset has it: fixed weights in half precision, activations computed again.
    let settings = ["distill.fixed_precision=f16", "run.gradient_checkpointing=true"];
    let said = succeed(&mut run("sdxl", &pictures, &whole, &settings));
    assert!(said.contains("8 captions"), "{said}");
    let (teacher, student) = (whole.join("teacher.safetensors"), whole.join("student.safetensors"));
    let (teacher, student) = (teacher.to_str().unwrap(), student.to_str().unwrap());
    let files = ["--denoiser", teacher, "--lora", student];
    let error = relative_error_of_student("sdxl", &whole, folder.path(), &files);
    assert!(error < 0.7, "{error}");
    // diffusers' names.
    let lora = TensorFile::from_bytes(&fs::read(student).unwrap()).unwrap();
    let is_of_diffusers = |name: &String| name.starts_with("unet.") && name.contains(".lora_");
    assert!(lora.tensors.keys().all(is_of_diffusers), "{:?}", lora.tensors.keys());

    // Killed in both stages.
    let data = whole.join("encoded.safetensors");
    let mut again = run("sdxl", &pictures, &stopped, &settings);
    kill_after(&mut again, &stopped, StageKind::Teacher, 10);
    kill_after(&mut resume(&stopped), &stopped, StageKind::Distill, 10);
    succeed(&mut resume(&stopped));
    assert_same_models(&whole, &stopped);
    // A student of another rank, and a folder with the images of another run.
    fs::copy(student, stopped.join("student.safetensors")).unwrap();
    let other = ["distill.lora_rank=4", "distill.lora_alpha=4"];
    fail(run("sdxl", &pictures, &stopped, &other).arg("--resume"), &["distill.lora_rank", "8", "4"]);
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::copy(&data, elsewhere.join("encoded.safetensors")).unwrap();
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    write_pictures(&other);
    fail(&mut run("sdxl", &other, &elsewhere, &[]), &["encoded.safetensors", "pictures", "other"]);
}

#[test]
fn encoding_beforehand_gives_the_same_tensors() {
    let folder = tempdir().unwrap();
    let [pictures, encoded] = ["pictures", "encoded.safetensors"].map(|name| folder.path().join(name));
    fs::create_dir(&pictures).unwrap();
    write_pictures(&pictures);
    let encode = |data: &Path| {
        let mut command = distill();
        command.arg("encode").arg(pipeline("sdxl")).arg("--data").arg(data).arg("--out").arg(&encoded);
        succeed(command.args(["--device", "cpu"]));
        TensorFile::from_bytes(&fs::read(&encoded).unwrap()).unwrap().tensors
    };
    let of_texts = encode(&pictures);
    // The same captions in one file.
    let mut lines = String::new();
    for entry in fs::read_dir(&pictures).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|ending| ending == "txt") {
            let name = path.with_extension("png").file_name().unwrap().to_str().unwrap().to_owned();
            let caption = fs::read_to_string(&path).unwrap();
            lines += &format!("{}\n", serde_json::json!({ "file_name": name, "text": caption.trim() }));
            fs::remove_file(path).unwrap();
        }
    }
    fs::write(pictures.join("metadata.jsonl"), lines).unwrap();
    assert!(encode(&pictures) == of_texts);
    let [latents, captions] = ["train.latents", "train.caption"].map(|name| of_texts[name].shape[0]);
    assert_eq!((latents, captions), (46, 46));
}

#[test]
fn losses_and_gradients_in_half_precision_are_those_of_single_precision() {
    let folder = tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    write_pictures(&pictures);
    let all = ["distill.lora_rank=none", "distill.lora_alpha=none", "distill.lora_targets=none"];
    let low_rank = ["distill.fixed_precision=f16", "run.gradient_checkpointing=true"];
    let of_sd3: (_, &[&str], _, _) = ("sd3", &all, "run.mixed_precision=bf16", 0.05);
    for (preset, settings, half, tolerance) in
        [("sdxl", &low_rank[..], "run.mixed_precision=f16", 0.01), of_sd3]
    {
        let one_step = ["teacher.training=none", "distill.kimg=0.016", "distill.warmup_kimg=0.016"];
        let figures = |name: &str, more: &[&str]| {
            let out = folder.path().join(format!("{preset}-{name}"));
            succeed(&mut run(preset, &pictures, &out, &[settings, &one_step, more].concat()));
            let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
            let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
            ["loss", "gradient_norm"].map(|key| line[key].as_f64().unwrap())
        };
        let (expected, found) = (figures("single", &[]), figures("half", &[half]));
        println!("{preset}: {expected:?} in single precision, {found:?} with {half}");
        for (expected, found) in expected.into_iter().zip(found) {
            assert!(found != expected && (found / expected - 1.0).abs() < tolerance, "{preset}");
        }
    }
}

#[test]
fn a_student_of_stable_diffusion_xl_reads_the_guidance_scale() {
    let folder = tempdir().unwrap();
    let [pictures, out] = ["pictures", "run"].map(|name| folder.path().join(name));
    fs::create_dir(&pictures).unwrap();
    write_pictures(&pictures);
    let settings = [
        "distill.lora_rank=none",
        "distill.lora_alpha=none",
        "distill.lora_targets=none",
        "distill.guidance_channels=8",
        "distill.guidance=[1, 4]",
        "distill.adversarial_weight=0.1",
        "distill.fixed_precision=f16",
        "run.gradient_checkpointing=true",
    ];
    succeed(&mut run("sdxl", &pictures, &out, &settings));
    let student = out.join("student.safetensors");
    let student = ["--denoiser", student.to_str().unwrap()];
    let guided = |scale| [&student[..], &["--guidance", scale]].concat();
    let error = relative_error_of_student("sdxl", &out, folder.path(), &guided("2.5"));
    assert!(error < 0.7, "{error}");
    // The embedding of the scale, zero at first, is trained: the scale changes the picture, if only little after so few steps.
    let step = |scale| sample("sdxl", folder.path(), &[&guided(scale)[..], &["--steps", "1"]].concat());
    let mut silent = distill();
    silent.arg("sample").arg(pipeline("sdxl")).args(student).args(["--prompt", "a", "--out", "none.png"]);
    fail(&mut silent, &["--guidance"]);
    assert!(mean_squared_error(&step("1"), &step("4")) > 1e-10);
}

#[test]
fn all_weights_of_stable_diffusion_3_learn_one_step() {
    let folder = tempdir().unwrap();
    let [pictures, out] = ["pictures", "run"].map(|name| folder.path().join(name));
    fs::create_dir(&pictures).unwrap();
    write_pictures(&pictures);
    let all = ["distill.lora_rank=none", "distill.lora_alpha=none", "distill.lora_targets=none"];
    succeed(&mut run("sd3", &pictures, &out, &all));
    let student = out.join("student.safetensors");
    let error =
        relative_error_of_student("sd3", &out, folder.path(), &["--denoiser", student.to_str().unwrap()]);
    assert!(error < 0.7, "{error}");
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    let is_prompt = |colour| {
        ["circle", "square", "cross"].iter().any(|figure| report.contains(&format!("a {colour} {figure}")))
    };
    assert!(["red", "green", "blue"].into_iter().any(is_prompt), "the report names its prompts");

    // A file with all parts, for a page.
    let one = folder.path().join("one.safetensors");
    succeed(
        distill().arg("import").arg(pipeline("sd3")).arg("--denoiser").arg(&student).arg("--out").arg(&one),
    );
    let picture = folder.path().join("picture.png");
    let prompt = ["--prompt", "a green cross", "--device", "cpu"];
    succeed(distill().arg("sample").arg(&one).args(prompt).arg("--out").arg(&picture));
    assert!(picture.exists());
}

/// The weights of the perceptual network are arbitrary, so only the way there is tested: latents go through the decoder.
#[test]
fn lpips_compares_decoded_pictures() {
    let folder = tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    fs::create_dir(file("pictures")).unwrap();
    write_pictures(&file("pictures"));
    let [features, heads] = lpips_weights(Trunk::AlexNet);
    for (name, tensors) in [("alexnet.safetensors", features), ("heads.safetensors", heads)] {
        fs::write(file(name), TensorFile { tensors, ..TensorFile::default() }.to_bytes()).unwrap();
    }
    let set = |key: &str, name: &str| format!("{key}={}", file(name).display());
    let trunk = set("distill.lpips_trunk", "alexnet.safetensors");
    let heads = set("distill.lpips_heads", "heads.safetensors");
    let short = ["teacher.training=none", "distill.batch=4", "distill.micro_batch=4", "distill.kimg=0.008"];
    let losses = |name: &str, more: &[&str]| -> Vec<f64> {
        let out = file(name);
        succeed(&mut run("sdxl", &file("pictures"), &out, &[&short[..], more].concat()));
        let lines = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64();
        lines.lines().filter_map(loss).collect()
    };
    let plain = losses("plain", &["distill.distance=l2"]);
    let decoded = losses("decoded", &["distill.distance=lpips-alexnet", &trunk, &heads]);
    assert_eq!(plain.len(), decoded.len());
    let differs = plain.iter().zip(&decoded).all(|(plain, decoded)| *decoded > 0.0 && plain != decoded);
    assert!(differs && !plain.is_empty(), "{plain:?} {decoded:?}");
}

#[test]
fn what_does_not_suit_a_pipeline_is_named() {
    let folder = tempdir().unwrap();
    let [pictures, out] = ["pictures", "run"].map(|name| folder.path().join(name));
    fs::create_dir(&pictures).unwrap();
    write_pictures(&pictures);
    let refused = |preset: &str, more: &[&str], expected: &[&str]| {
        fail(&mut run(preset, &pictures, &out, more), expected);
    };
    refused("sdxl", &["distill.lora_targets=[\"to_z\"]"], &["lora_targets", "to_z"]);
    refused("sdxl", &["distill.guidance_channels=8"], &["guidance_channels"]);
    refused("sdxl", &["distill.guidance=[3, 2]"], &["distill.guidance"]);
    refused("sdxl", &["data.horizontal_flip=true"], &["data.horizontal_flip"]);
    refused("sdxl", &["data.image_size=[33, 32]"], &["data.image_size", "33"]);
    refused("sdxl", &["network.model_channels=64"], &["network.model_channels", "data.captions"]);
    refused("sdxl", &["distill.mode=ct"], &["distill.guidance", "ct"]);
    let of_sd3 = folder.path().join("sd3.safetensors");
    succeed(
        distill().arg("encode").arg(pipeline("sd3")).arg("--data").arg(&pictures).arg("--out").arg(&of_sd3),
    );
    fail(&mut run("sdxl", &of_sd3, &out, &[]), &["sd3.safetensors", "as the denoiser reads"]);
    fs::read_dir(&pictures).unwrap().flatten().map(|entry| entry.path()).for_each(|path| {
        if path.extension().is_some_and(|ending| ending == "txt") {
            fs::remove_file(path).unwrap();
        }
    });
    fail(&mut run("sdxl", &pictures, &out, &[]), &["pictures", "captions", "metadata.jsonl"]);
}
