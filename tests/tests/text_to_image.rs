//! Text-to-image pipelines: tokens, texts, latents and images agree with the reference values of diffusers and transformers,
//! on both executors, in the training network and through the program.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use ccm::import::text_to_image::{self, Folder};
use ccm::model::json::Json;
use ccm::model::prediction::Spacing;
use ccm::model::{AutoencoderSpec, ModelCard, NetworkSpec, Prediction, Text, TimeGrid};
use ccm::nn::conditions::Conditions;
use ccm::nn::denoiser::{Denoiser, random_model};
use ccm::nn::host::{labels_tensor, to_host};
use ccm::pipeline::{Part, Pipeline, PipelineKind, Tokenizer, Weights};
use ccm::sampler::evaluator::Evaluator;
use ccm::sampler::guidance::Guidance;
use ccm::sampler::schedule::{Request, Solver};
use ccm::sampler::{Backend, Sampler};
use ccm::weights::{CompactTensor, HostTensor, Model, Precision, TensorFile};
use ccm_tests::pipelines::{Tensors, check, folders, parsed, tensors, texts};
use ccm_tests::program::{distill, succeed};
use ccm_tests::{fixtures, references, relative_error, uniform};
use pollster::block_on;
use tempfile::tempdir;
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
        for (half, tolerance) in [(DType::F16, 5e-3), (DType::BF16, 4e-2)] {
            let denoiser = denoiser.clone().in_half(half);
            let found = to_host(denoiser.velocity(tensor(x), &io["straight_t"].values, conditions(&io)));
            let error = relative_error(&found, &io["velocity"].values);
            println!("{}: velocity in {half:?}: {error:.1e}", folder.display());
            assert!(error < tolerance, "{} in {half:?}: relative error {error:e}", folder.display());
        }
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
