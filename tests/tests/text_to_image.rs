//! Text-to-image pipelines: tokens, texts, latents and images agree with the reference values of diffusers and transformers,
//! on both executors, in the training network and through the program.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use ccm::import::text_to_image::{self, Folder};
use ccm::model::json::Json;
use ccm::model::prediction::Spacing;
use ccm::model::{AutoencoderSpec, ModelCard, NetworkSpec, Prediction, Role, Text, TimeGrid};
use ccm::nn::conditions::Conditions;
use ccm::nn::denoiser::{Denoiser, random_model};
use ccm::nn::host::{labels_tensor, to_host};
use ccm::pipeline::{Part, Pipeline, PipelineKind, Tokenizer, Weights};
use ccm::sampler::evaluator::Evaluator;
use ccm::sampler::guidance::Guidance;
use ccm::sampler::schedule::{Request, Solver};
use ccm::sampler::{Backend, Sampler};
use ccm::weights::{CompactTensor, HostTensor, Model, Precision, TensorFile};
use ccm_tests::program::{distill, fail, succeed};
use ccm_tests::{fixtures, references, relative_error, uniform};
use pollster::block_on;
use tempfile::tempdir;

const TOLERANCE: f64 = 1e-4;

type Tensors = BTreeMap<String, HostTensor>;

/// The fixtures that are text-to-image pipelines.
fn folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(fixtures().join("pipelines")).expect("fixtures").flatten();
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| text_to_image::is_text_to_image(path)).collect();
    folders.sort();
    assert!(folders.len() >= 3, "{folders:?}");
    folders
}

fn tensors(path: &Path) -> Tensors {
    TensorFile::from_bytes(&fs::read(path).expect("reference values")).expect("reference values").tensors
}

fn parsed(path: &Path) -> Json {
    Json::parse(&fs::read_to_string(path).unwrap()).unwrap()
}

fn texts(json: &Json, key: &str) -> Vec<String> {
    json.get(key).unwrap().list().unwrap().iter().map(|text| text.text().unwrap().to_owned()).collect()
}

fn check(what: &str, found: &[f32], expected: &HostTensor) {
    let error = relative_error(found, &expected.values);
    println!("{what}: {error:.1e}");
    assert!(error < TOLERANCE, "{what}: relative error {error:e}");
}

/// The CPU, and a GPU or a software adapter if there is one.
fn backends() -> Vec<Backend> {
    let gpu = Backend::Gpu { api: None, software: true };
    let relu = ccm::model::graph::build(|g| g.conv("a", g.image([4, 4, 4]), 4, 1));
    let zeros = relu
        .parameters
        .iter()
        .map(|of| HostTensor::new(of.shape.clone(), vec![0.0; of.shape.iter().product()]));
    let zeros = zeros.map(CompactTensor::from).collect();
    match block_on(Evaluator::new(relu, zeros, Precision::F32, gpu)) {
        Ok(_) => vec![Backend::Cpu, gpu],
        Err(error) => {
            println!("not compared with a GPU: {error}");
            vec![Backend::Cpu]
        }
    }
}

/// One text for each row of the reference values.
fn rows(io: &Tensors, tokens: &str, pooled: &str, spec: &NetworkSpec) -> Vec<Arc<Text>> {
    let shape = spec.text().unwrap();
    let part = |name: &str, row: usize, len: usize| match io.get(name) {
        Some(tensor) => tensor.values[row * len..][..len].to_vec(),
        None => vec![0.0; len],
    };
    let text = |row| Text {
        tokens: part(tokens, row, shape.tokens * shape.channels),
        pooled: part(pooled, row, shape.pooled),
        sizes: part("time_ids", row, if shape.sizes { 6 } else { 0 }),
    };
    (0..io["noise"].shape[0]).map(|row| Arc::new(text(row))).collect()
}

fn tensor<const D: usize>(of: &HostTensor) -> Tensor<D> {
    Tensor::from_data(TensorData::new(of.values.clone(), of.shape.clone()), &Device::flex())
}

/// The conditions of the reference values, for the training network.
fn conditions(io: &Tensors) -> Conditions {
    Conditions {
        text: io.get("text").map(|text| tensor::<3>(text).swap_dims(1, 2).unsqueeze_dim(2)),
        pooled: io.get("pooled").map(tensor),
        sizes: io.get("time_ids").map(tensor),
        guidance: io.get("guidance").map(|scales| tensor::<1>(scales).unsqueeze_dim(1)),
        label: io.get("label").map(|label| {
            let labels: Vec<u32> = label.values.iter().map(|label| *label as u32).collect();
            labels_tensor(&labels, &Device::flex())
        }),
    }
}

#[test]
fn tokens_are_those_of_transformers() {
    let clip = fixtures().join("pipelines/clip");
    let tokenizer = Tokenizer::clip(
        &fs::read_to_string(clip.join("tokenizer/vocab.json")).unwrap(),
        &fs::read_to_string(clip.join("tokenizer/merges.txt")).unwrap(),
        &parsed(&clip.join("tokenizer/tokenizer_config.json")),
        77,
    );
    let mut cases = vec![(tokenizer.unwrap(), clip, "texts", "input_ids".to_owned())];
    for folder in folders() {
        let tokenizers = text_to_image::open(&folder).unwrap().tokenizers;
        for (tokenizer, suffix) in tokenizers.into_iter().zip(["", "_2", "_3"]) {
            cases.push((tokenizer, folder.clone(), "prompts", format!("input_ids{suffix}")));
        }
    }
    for (tokenizer, folder, key, ids) in cases {
        let expected = &tensors(&folder.join("reference.safetensors"))[&ids];
        let texts = texts(&parsed(&folder.join("reference.json")), key);
        assert_eq!(texts.len(), expected.shape[0]);
        for (text, expected) in texts.iter().zip(expected.values.chunks_exact(expected.shape[1])) {
            let found: Vec<f32> = tokenizer.encode(text).unwrap().iter().map(|id| *id as f32).collect();
            assert_eq!(found, expected, "{}, {ids}: {text:?}", folder.display());
        }
    }
}

#[test]
fn texts_latents_and_images_are_those_of_diffusers() {
    for (folder, backend) in folders().iter().flat_map(|f| backends().into_iter().map(move |b| (f, b))) {
        let name = format!("{} on {backend:?}", folder.file_name().unwrap().display());
        let io = tensors(&folder.join("reference.safetensors"));
        let Folder { spec, tokenizers, weights, .. } = text_to_image::open(folder).unwrap();
        let network = spec.network.clone();
        let pipeline = Pipeline::new(spec, tokenizers, weights, backend);

        let reference = parsed(&folder.join("reference.json"));
        let prompts = texts(&reference, "prompts");
        let all: Vec<&str> = prompts.iter().map(String::as_str).chain([""]).collect();
        let mut texts = block_on(pipeline.texts(&all)).unwrap();
        let empty = texts.pop().unwrap();
        let join = |part: fn(&Text) -> &Vec<f32>| {
            texts.iter().flat_map(|text| part(text).clone()).collect::<Vec<_>>()
        };
        check(&format!("{name}: text"), &join(|text| &text.tokens), &io["text"]);
        if let Some(pooled) = io.get("pooled") {
            check(&format!("{name}: pooled"), &join(|text| &text.pooled), pooled);
        }
        if let Some(time_ids) = io.get("time_ids") {
            assert_eq!(join(|text| &text.sizes), time_ids.values);
        }
        if let Some(of_empty) = io.get("empty") {
            check(
                &format!("{name}: empty text"),
                &empty.tokens,
                &HostTensor {
                    shape: of_empty.shape[1..].to_vec(),
                    values: of_empty.values[..empty.tokens.len()].to_vec(),
                },
            );
        }

        let sampler = block_on(pipeline.denoiser()).unwrap();
        let times = match sampler.times() {
            TimeGrid::Steps(_) => TimeGrid::Steps(Spacing::Trailing),
            own => own,
        };
        let mut sampler = sampler.with_solver(Solver::Euler, times);
        let request = Request { noise: io["noise"].values.clone(), texts, ..Request::default() };
        let one = block_on(sampler.sample(&request, 1)).unwrap();
        check(&format!("{name}: one step"), &one, &io["steps_1"]);
        check(&format!("{name}: image"), &block_on(pipeline.decode(&one)).unwrap(), &io["image_1"]);
        let weight = reference.get("guidance").unwrap().number().unwrap() as f32;
        let negative = match pipeline.spec.zeros_for_empty {
            true => Arc::new(pipeline.spec.zero_text()),
            false => empty,
        };
        let negative = vec![negative; prompts.len()];
        let guided = Request { guidance: Some(Guidance { weight, negative }), ..request.clone() };
        let four = block_on(sampler.sample(&guided, 4)).unwrap();
        check(&format!("{name}: four guided steps"), &four, &io["steps_4_guided"]);
        check(
            &format!("{name}: guided image"),
            &block_on(pipeline.decode(&four)).unwrap(),
            &io["image_4_guided"],
        );

        // A scale of 1 is no guidance, and Heun's method takes guidance too.
        let negative = rows(&io, "empty", "pooled_empty", &network);
        let without = Request {
            guidance: Some(Guidance { weight: 1.0, negative: negative.clone() }),
            ..request.clone()
        };
        assert_eq!(block_on(sampler.sample(&without, 1)).unwrap(), one);
        let mut heun = sampler.with_solver(Solver::Heun, times);
        let guided = Request { guidance: Some(Guidance { weight: 2.0, negative }), ..request };
        assert!(block_on(heun.sample(&guided, 3)).unwrap().iter().all(|value| value.is_finite()));
        let mut dpm = heun.with_solver(Solver::Dpm, times);
        let error = block_on(dpm.sample(&guided, 4)).unwrap_err().to_string();
        assert!(error.contains("guidance") && error.contains("DPM"), "{error}");
    }
}

#[test]
fn autoencoders_are_those_of_diffusers() {
    let with_autoencoder = ["taesd"].map(|name| fixtures().join("pipelines").join(name));
    for folder in folders().into_iter().chain(with_autoencoder) {
        let io = tensors(&folder.join("reference.safetensors"));
        let spec = AutoencoderSpec::from_config(&parsed(&folder.join("vae/config.json"))).unwrap();
        let weights = tensors(&folder.join("vae/diffusion_pytorch_model.safetensors"));
        let name = folder.file_name().unwrap().display();
        let size = |tensor: &HostTensor| [tensor.shape[2], tensor.shape[3]];
        for backend in backends() {
            let run = |graph: ccm::model::graph::Graph, x: &HostTensor| {
                let tensors = graph.parameters.iter().map(|of| weights[&of.name].clone().into()).collect();
                let mut evaluator =
                    block_on(Evaluator::new(graph, tensors, Precision::F32, backend)).unwrap();
                block_on(evaluator.images(&x.values)).unwrap()
            };
            if let (Some(z), Some(image)) = (io.get("z"), io.get("image")) {
                check(&format!("{name}: decoded"), &run(spec.decoder(size(z)), z), image);
            }
            if let (Some(pixels), Some(latents)) = (io.get("pixels"), io.get("latents")) {
                check(&format!("{name}: encoded"), &run(spec.encoder(size(pixels)), pixels), latents);
            }
        }
    }
}

#[test]
fn the_velocity_of_the_training_network_is_that_of_diffusers() {
    for folder in folders() {
        let io = tensors(&folder.join("reference.safetensors"));
        let Folder { spec, weights, .. } = text_to_image::open(&folder).unwrap();
        let tensors = weights.read(Part::Denoiser, &spec.network.graph(), Precision::F32).unwrap();
        let model = Model {
            spec: spec.network,
            prediction: spec.prediction,
            card: ModelCard::default(),
            precision: Precision::F32,
            tensors: tensors
                .into_iter()
                .map(|tensor| HostTensor::new(tensor.shape.clone(), tensor.into_f32()))
                .collect(),
        };
        let denoiser = Denoiser::new(&model, &Device::flex());
        let x = io.get("straight_x").unwrap_or(&io["x"]);
        let found = denoiser.velocity(tensor(x), &io["straight_t"].values, conditions(&io));
        check(&format!("{}: velocity", folder.display()), &to_host(found), &io["velocity"]);
    }
}

/// The weights of a network of `references/denoisers`, as in `denoisers.py`.
fn formula(spec: &NetworkSpec, seed: usize) -> Model {
    let prediction = Prediction::NoiseMinusData { shift: 1.0 };
    let mut model = random_model(spec.clone(), &prediction, 0);
    let mut names: Vec<(String, usize)> = spec.tensors().into_iter().map(|of| of.name).zip(0..).collect();
    // A table of positions is not a parameter in diffusers.
    names.retain(|(name, _)| name != "pos_embed.pos_embed");
    names.sort();
    for (number, (name, place)) in names.into_iter().enumerate() {
        let tensor = &mut model.tensors[place];
        let fan_in = tensor.shape[1..].iter().product::<usize>() as f64;
        let value = |u: f64| match tensor.shape.len() {
            _ if name == "class_embedding.weight" => 0.75 * u,
            2.. => u * (3.0 / fan_in).sqrt(),
            _ if name.ends_with(".weight") => 1.0 + u / 6.0,
            _ => u / 6.0,
        };
        let count = tensor.values.len();
        tensor.values = uniform(1000 * seed + number, count).map(|u| value(2.0 * u - 1.0) as f32).collect();
    }
    model
}

#[test]
fn networks_with_other_options_are_those_of_diffusers() {
    for (name, seed) in [("sd35", 11), ("sd2", 13), ("guided", 17)] {
        let folder = references().join("denoisers").join(name);
        let io = tensors(&folder.join("reference.safetensors"));
        let mut spec = NetworkSpec::from_config(&parsed(&folder.join("config.json"))).unwrap();
        match &mut spec {
            NetworkSpec::UNet2DCondition(spec) => spec.tokens = io["text"].shape[1],
            NetworkSpec::Mmdit(spec) => spec.tokens = io["text"].shape[1],
            _ => unreachable!("a network that reads a text"),
        }
        let config = Json::parse(&spec.to_json().unwrap().to_string()).unwrap();
        assert_eq!(NetworkSpec::from_config(&config).unwrap(), spec, "{name}: its own configuration");
        let model = formula(&spec, seed);
        let bytes = model.to_bytes();
        assert_eq!(Model::from_bytes(&bytes).unwrap(), model, "{name}: its own file");

        // This prediction is the negative velocity, at the time `1000 (1 - t)`.
        let denoiser = Denoiser::new(&model, &Device::flex());
        let t: Vec<f32> = io["timestep"].values.iter().map(|time| 1.0 - time / 1000.0).collect();
        let found = denoiser.velocity(tensor(&io["x"]), &t, conditions(&io));
        check(&format!("{name}: output"), &to_host(-found), &io["output"]);

        // One step from noise: `x + v`.
        let x = &io["x"];
        let expected = tensor(x) + denoiser.velocity(tensor(x), &vec![0.0; x.shape[0]], conditions(&io));
        let expected = HostTensor { shape: x.shape.clone(), values: to_host(expected) };
        for backend in backends() {
            let mut sampler = block_on(Sampler::new(model.clone(), backend)).unwrap();
            let io: Tensors = io.clone().into_iter().chain([("noise".into(), x.clone())]).collect();
            for row in 0..x.shape[0] {
                let guidance = io
                    .get("guidance")
                    .map(|scales| Guidance { weight: scales.values[row], negative: Vec::new() });
                let label = io.get("label").map(|label| label.values[row] as u32);
                let len = spec.image_len();
                let request = Request {
                    noise: x.values[row * len..][..len].to_vec(),
                    labels: label.into_iter().collect(),
                    texts: vec![rows(&io, "text", "pooled", &spec)[row].clone()],
                    guidance,
                    ..Request::default()
                };
                let found = block_on(sampler.sample(&request, 1)).unwrap();
                let expected = HostTensor {
                    shape: x.shape[1..].to_vec(),
                    values: expected.values[row * len..][..len].to_vec(),
                };
                check(&format!("{name} on {backend:?}"), &found, &expected);
            }
        }
    }
}

#[test]
fn the_program_samples_from_a_folder() {
    let temporary = tempdir().unwrap();
    for folder in folders() {
        let io = tensors(&folder.join("reference.safetensors"));
        let reference = parsed(&folder.join("reference.json"));
        let (noise, out) =
            (temporary.path().join("noise.safetensors"), temporary.path().join("x.safetensors"));
        let x = BTreeMap::from([("x".to_owned(), io["noise"].clone())]);
        fs::write(&noise, TensorFile { tensors: x, description: String::new() }.to_bytes()).unwrap();
        let mut command = distill();
        command.arg("sample").arg(&folder);
        for prompt in texts(&reference, "prompts") {
            command.arg("--prompt").arg(prompt);
        }
        let guidance = reference.get("guidance").unwrap().number().unwrap().to_string();
        command.arg("--noise").arg(&noise).args(["--steps", "4", "--guidance", &guidance, "--device", "cpu"]);
        let line = succeed(command.arg("--out").arg(&out));
        assert!(line.contains("2 images, 8 evaluations each"), "{line}");
        let images = &tensors(&out)["images"];
        assert_eq!(images.shape, io["image_4_guided"].shape);
        check(&format!("{}: the program's images", folder.display()), &images.values, &io["image_4_guided"]);
    }
}

/// Writes the weights of a pipeline into a single file, as `references/single_file.py` describes its layout.
fn single_file(folder: &Path, path: &Path) {
    let layouts = fs::read_to_string(references().join("single_file.json")).unwrap();
    let layouts: serde_json::Value = serde_json::from_str(&layouts).unwrap();
    let name = folder.file_name().unwrap().to_str().unwrap();
    let mut parts: BTreeMap<String, Tensors> = BTreeMap::new();
    let mut file = Tensors::new();
    for (name, entry) in layouts[name].as_object().unwrap() {
        let part = entry[0].as_str().unwrap();
        let weights = parts.entry(part.to_owned()).or_insert_with(|| {
            let stem = if part.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
            tensors(&folder.join(part).join(format!("{stem}.safetensors")))
        });
        let names: Vec<&str> = match &entry[1] {
            serde_json::Value::Array(names) => names.iter().map(|name| name.as_str().unwrap()).collect(),
            name => vec![name.as_str().unwrap()],
        };
        let mut whole = weights[names[0]].clone();
        for name in &names[1..] {
            whole.shape[0] += weights[*name].shape[0];
            whole.values.extend(&weights[*name].values);
        }
        match entry[2].as_str().unwrap_or("whole") {
            "whole" | "rows" => {}
            "dims" => whole.shape.extend([1, 1]),
            "swapped" => {
                let half = whole.values.len() / 2;
                whole.values.rotate_left(half);
            }
            "transposed" => {
                let [rows, columns] = [whole.shape[0], whole.shape[1]];
                let at = |place: usize| whole.values[place % rows * columns + place / rows];
                whole = HostTensor::new([columns, rows], (0..rows * columns).map(at).collect());
            }
            other => panic!("{other}"),
        }
        file.insert(name.clone(), whole);
    }
    fs::write(path, TensorFile { tensors: file, description: String::new() }.to_bytes()).unwrap();
}

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

/// `distill import` of a pipeline into one file.
fn pack(from: &Path, precision: &str, out: &Path) -> std::process::Command {
    let mut command = distill();
    command.arg("import").arg(from).args(["--precision", precision]).arg("--out").arg(out);
    command
}

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

#[test]
fn rounded_weights_change_pictures_little() {
    let temporary = tempdir().unwrap();
    let out = temporary.path().join("x.safetensors");
    for folder in folders() {
        let images = |precision: &str| {
            let mut command = distill();
            command
                .arg("sample")
                .arg(&folder)
                .args(["--prompt", "a horse", "--steps", "2", "--device", "cpu"]);
            succeed(command.args(["--precision", precision]).arg("--out").arg(&out));
            tensors(&out).remove("images").unwrap().values
        };
        let expected = images("f32");
        for (precision, most) in [("f16", 0.005), ("q8", 0.15), ("q4", 0.7)] {
            let error = relative_error(&images(precision), &expected);
            println!("{}: {precision} {error:.1e} from f32", folder.display());
            assert!(error > 0.0 && error < most, "{}: {precision}: {error:e}", folder.display());
        }
    }
}

#[test]
fn pictures_may_have_other_sizes() {
    let temporary = tempdir().unwrap();
    let out = temporary.path().join("a.png");
    let folder = fixtures().join("pipelines/sd3");
    let mut command = distill();
    command.arg("sample").arg(&folder).args(["--prompt", "a horse", "--steps", "1", "--size", "16x24"]);
    succeed(command.args(["--count", "2", "--columns", "1", "--device", "cpu"]).arg("--out").arg(&out));
    let image = image_size(&fs::read(&out).unwrap());
    assert_eq!(image, [24, 2 * 16 + 1], "two pictures, one below the other");
}

/// Width and height in the header of a PNG file.
fn image_size(png: &[u8]) -> [u32; 2] {
    [16, 20].map(|place| u32::from_be_bytes(png[place..place + 4].try_into().unwrap()))
}

#[test]
fn families_are_recognised() {
    let kinds: Vec<PipelineKind> =
        folders().iter().map(|folder| text_to_image::open(folder).unwrap().spec.kind).collect();
    for kind in
        [PipelineKind::StableDiffusion, PipelineKind::StableDiffusionXl, PipelineKind::StableDiffusion3]
    {
        assert!(kinds.contains(&kind), "{kind:?} in {kinds:?}");
    }
}

/// Copies a pipeline and changes the text of one of its files.
fn changed(folder: &Path, to: &Path, file: &str, from: &str, into: &str) {
    copy(folder, to);
    let text = fs::read_to_string(to.join(file)).unwrap();
    assert!(text.contains(from), "{file}: {from}");
    fs::write(to.join(file), text.replace(from, into)).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        match entry.path() {
            folder if folder.is_dir() => copy(&folder, &to.join(entry.file_name())),
            file => fs::write(to.join(entry.file_name()), fs::read(file).unwrap()).unwrap(),
        }
    }
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
