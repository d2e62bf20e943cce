//! Models of other libraries: the imported network's output and samples agree with the reference values of the library, from
//! the training network and both executors, and through the program.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use ccm::import::{Checkpoint, description, diffusers};
use ccm::method::flow::jump;
use ccm::model::{ModelCard, Role, TensorSpec};
use ccm::nn::denoiser::Denoiser;
use ccm::nn::host::{labels_tensor, per_image, to_host};
use ccm::sampler::schedule::{Request, Solver};
use ccm::sampler::{Backend, Sampler};
use ccm::train::samples::sample;
use ccm::weights::{HostTensor, Model, TensorFile};
use ccm_tests::program::{distill, fail, succeed};
use ccm_tests::{fixtures, references, relative_error, uniform};
use pollster::block_on;
use tempfile::{TempDir, tempdir};

const TOLERANCE: f64 = 1e-4;

/// Pipelines of pixels by name: those of the fixtures, and those of `references/pipelines`, to which their weights are added.
struct Pipelines {
    folders: BTreeMap<String, PathBuf>,
    /// Holds the folders that were completed.
    _temporary: TempDir,
}

fn pipelines() -> Pipelines {
    let temporary = tempdir().unwrap();
    let mut folders = BTreeMap::new();
    for entry in fs::read_dir(fixtures().join("pipelines")).expect("fixtures").flatten() {
        let class = fs::read_to_string(entry.path().join("unet/config.json")).unwrap_or_default();
        if class.contains("\"UNet2DModel\"") || entry.path().join("network.pt").exists() {
            folders.insert(entry.file_name().into_string().unwrap(), entry.path());
        }
    }
    assert!(folders.len() >= 2, "{folders:?}");
    for (seed, name) in [(1, "v"), (3, "classes"), (5, "sample"), (7, "consistency")] {
        let folder = temporary.path().join(name);
        copy(&references().join("pipelines").join(name), &folder);
        write_weights(
            &folder,
            weights(&folder, seed),
            |name| name.to_owned(),
            "diffusion_pytorch_model.safetensors",
        );
        folders.insert(format!("references/{name}"), folder);
    }
    Pipelines { folders, _temporary: temporary }
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

/// The weights of a network, as in `references/diffusers_models.py`.
fn weights(folder: &Path, seed: usize) -> BTreeMap<String, HostTensor> {
    let mut specs = diffusers::read_spec(&folder.join("unet/config.json")).expect("a network").tensors();
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    let tensors = specs.into_iter().enumerate().map(|(number, TensorSpec { name, shape })| {
        let fan_in = (shape[1..].iter().product::<usize>() as f64).max(1.0);
        let value = |u: f64| match (name.as_str(), shape.len()) {
            ("class_embedding.weight", _) => 0.75 * u,
            (_, 2..) => u * (3.0 / fan_in).sqrt(),
            (name, _) if name.ends_with(".weight") => 1.0 + u / 6.0,
            _ => u / 6.0,
        };
        let count = shape.iter().product();
        let values = uniform(1000 * seed + number, count).map(|u| value(2.0 * u - 1.0) as f32).collect();
        (name.clone(), HostTensor::new(shape.clone(), values))
    });
    tensors.collect()
}

fn write_weights(
    folder: &Path,
    weights: BTreeMap<String, HostTensor>,
    rename: impl Fn(&str) -> String,
    file: &str,
) {
    let tensors = weights.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
    let bytes = TensorFile { tensors, description: String::new() }.to_bytes();
    fs::write(folder.join("unet").join(file), bytes).unwrap();
}

fn reference(folder: &Path) -> BTreeMap<String, HostTensor> {
    let bytes = fs::read(folder.join("reference.safetensors")).expect("reference values");
    TensorFile::from_bytes(&bytes).expect("reference values").tensors
}

fn read(folder: &Path, role: Role) -> Model {
    if diffusers::is_pipeline(folder) {
        return diffusers::read(folder, Some(role)).expect("a pipeline").model;
    }
    let (checkpoint, text) = description::described_folder(folder).expect("a checkpoint with a description");
    let text = fs::read_to_string(text).unwrap();
    let description = description::description_from_json(&text, role).expect("a description");
    let found = Checkpoint::open(&checkpoint).unwrap().select(&description.spec.tensors(), None).unwrap();
    let card = ModelCard { role, ..ModelCard::default() };
    Model::new(description.spec, description.prediction, card, found.tensors).unwrap()
}

fn labels(io: &BTreeMap<String, HostTensor>) -> Vec<u32> {
    io.get("label").map_or(Vec::new(), |label| label.values.iter().map(|label| *label as u32).collect())
}

/// Tensors of samples with the evaluations that each takes, and the role that they are of.
fn samples(io: &BTreeMap<String, HostTensor>) -> Vec<(&'static str, usize, Role)> {
    let all = [
        ("steps_1", 1, Role::Teacher),
        ("steps_4", 4, Role::Teacher),
        ("one_step_boundary", 1, Role::Student),
        ("one_step", 1, Role::Student),
    ];
    all.into_iter().filter(|(tensor, ..)| io.contains_key(*tensor)).collect()
}

/// `[B, C, H, W]` row by row: some references have rows of very different lengths.
fn assert_close(what: &str, found: &[f32], expected: &HostTensor) {
    let row = expected.values.len() / expected.shape[0];
    for (i, (found, expected)) in found.chunks(row).zip(expected.values.chunks(row)).enumerate() {
        let error = relative_error(found, expected);
        println!("{what}, row {i}: relative error {error:.1e}");
        assert!(error < TOLERANCE, "{what}, row {i}: relative error {error:.2e}");
    }
}

#[test]
fn velocities_agree_with_the_library() {
    let device = Device::flex();
    let pipelines = pipelines();
    for (name, folder) in &pipelines.folders {
        let io = reference(folder);
        let (x, t) = (&io["straight_x"], &io["straight_t"].values);
        let x = Tensor::<4>::from_data(TensorData::new(x.values.clone(), x.shape.clone()), &device);
        let label: Option<Tensor<1, Int>> = io.get("label").map(|_| labels_tensor(&labels(&io), &device));
        let velocity = |role| {
            let denoiser = Denoiser::new(&read(folder, role), &device);
            denoiser.velocity(x.clone(), t, label.clone())
        };
        // The predicted image, of which a jump of the straight path is another form.
        let denoised = |role| to_host(jump(x.clone(), &per_image(t, &device), velocity(role)));
        let mut compared = 0;
        let mut compare = |tensor: &str, found: &dyn Fn() -> Vec<f32>| {
            if let Some(expected) = io.get(tensor) {
                assert_close(&format!("{name}, {tensor}"), &found(), expected);
                compared += 1;
            }
        };
        compare("velocity", &|| to_host(velocity(Role::Teacher)));
        compare("denoised", &|| denoised(Role::Teacher));
        compare("denoised_boundary", &|| denoised(Role::Student));
        assert!(compared > 0, "{name}: no reference of the velocity");
    }
}

#[test]
fn samples_agree_with_the_library() {
    let pipelines = pipelines();
    for (name, folder) in &pipelines.folders {
        let io = reference(folder);
        let request =
            Request { noise: io["noise"].values.clone(), labels: labels(&io), ..Request::default() };
        for (tensor, steps, role) in samples(&io) {
            let model = read(folder, role);
            let denoiser = Denoiser::new(&model, &Device::flex());
            let solver = Solver::of(&model.card);
            let path = denoiser.path();
            let at = solver.steps(path, solver.grid(path), steps).unwrap();
            let found = sample(&denoiser.clone().into(), &request, &at, 64, &Device::flex());
            assert_close(&format!("{name}, {tensor}, training's network"), &found, &io[tensor]);
            for backend in [Backend::Cpu, Backend::Gpu { api: None, software: true }] {
                let mut sampler = match block_on(Sampler::new(model.clone(), backend)) {
                    Ok(sampler) => sampler,
                    Err(error) => {
                        println!("SKIPPED on a GPU: {error}");
                        continue;
                    }
                };
                let found = block_on(sampler.sample(&request, steps)).unwrap();
                assert_close(&format!("{name}, {tensor}, {}", sampler.info().backend), &found, &io[tensor]);
            }
        }
    }
}

#[test]
fn dpm_solver_agrees_with_the_library() {
    let pipelines = pipelines();
    let with = pipelines
        .folders
        .iter()
        .filter_map(|(name, folder)| Some((name, folder, reference(folder).remove("dpm_8")?)));
    let mut compared = 0;
    for (name, folder, expected) in with {
        let io = reference(folder);
        let request =
            Request { noise: io["noise"].values.clone(), labels: labels(&io), ..Request::default() };
        for backend in [Backend::Cpu, Backend::Gpu { api: None, software: true }] {
            let sampler = match block_on(Sampler::new(read(folder, Role::Teacher), backend)) {
                Ok(sampler) => sampler,
                Err(error) => {
                    println!("SKIPPED on a GPU: {error}");
                    continue;
                }
            };
            let times = sampler.times();
            let mut sampler = sampler.with_solver(Solver::Dpm, times);
            let found = block_on(sampler.sample(&request, 8)).unwrap();
            assert_close(&format!("{name}, dpm_8, {}", sampler.info().backend), &found, &expected);
            compared += 1;
        }
    }
    assert!(compared >= 3);
}

#[test]
fn the_program_imports_and_samples_what_the_library_samples() {
    let pipelines = pipelines();
    for (name, folder) in &pipelines.folders {
        let io = reference(folder);
        let temporary = tempdir().unwrap();
        let (model, out, noise) = (
            temporary.path().join("m.safetensors"),
            temporary.path().join("x.safetensors"),
            temporary.path().join("n.safetensors"),
        );
        let mut tensors = BTreeMap::from([("x".to_owned(), io["noise"].clone())]);
        tensors.extend(io.get("label").map(|label| ("label".to_owned(), label.clone())));
        fs::write(&noise, TensorFile { tensors, description: String::new() }.to_bytes()).unwrap();
        for (tensor, steps, role) in samples(&io) {
            let mut import = distill();
            import.arg("import").arg(folder).arg("--out").arg(&model);
            if role == Role::Student && !name.contains("consistency") {
                import.args(["--role", "student"]);
            }
            succeed(&mut import);
            let mut sample = distill();
            sample.arg("sample").arg(&model).arg("--noise").arg(&noise).arg("--out").arg(&out);
            succeed(sample.args(["--steps", &steps.to_string(), "--device", "cpu"]));
            let found = TensorFile::from_bytes(&fs::read(&out).unwrap()).unwrap().take("images").unwrap();
            assert_eq!(found.shape, io[tensor].shape);
            assert_close(&format!("{name}, {tensor}, through the program"), &found.values, &io[tensor]);
        }
    }
}

#[test]
fn weights_are_read_from_every_kind_of_file() {
    let temporary = tempdir().unwrap();
    let folder = temporary.path().join("v");
    copy(&references().join("pipelines/v"), &folder);
    let weights = weights(&folder, 1);
    let read = || diffusers::read(&folder, None).map(|pipeline| pipeline.model.tensors);
    let file = |name: &str| folder.join("unet").join(name);
    let error = read().unwrap_err().to_string();
    assert!(error.contains("expected diffusion_pytorch_model.safetensors or .bin"), "{error}");

    let plain = "diffusion_pytorch_model.safetensors";
    write_weights(&folder, weights.clone(), |name| name.to_owned(), plain);
    let expected = read().unwrap();
    fs::remove_file(file(plain)).unwrap();

    // Attention's names in old files.
    let old = |name: &str| {
        name.replace(".to_q.", ".query.")
            .replace(".to_k.", ".key.")
            .replace(".to_v.", ".value.")
            .replace(".to_out.0.", ".proj_attn.")
    };
    write_weights(&folder, weights.clone(), old, plain);
    assert_eq!(read().unwrap(), expected);
    fs::remove_file(file(plain)).unwrap();

    // A variant in half precision, if there is nothing else.
    write_weights(
        &folder,
        weights.clone(),
        |name| name.to_owned(),
        "diffusion_pytorch_model.fp16.safetensors",
    );
    assert_eq!(read().unwrap(), expected);
    fs::remove_file(file("diffusion_pytorch_model.fp16.safetensors")).unwrap();

    // Shards with an index.
    let names = [
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "diffusion_pytorch_model-00002-of-00002.safetensors",
    ];
    let mut map = BTreeMap::new();
    for (shard, file) in names.into_iter().enumerate() {
        let part: BTreeMap<String, HostTensor> = weights
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 2 == shard)
            .map(|(_, (n, t))| (n.clone(), t.clone()))
            .collect();
        map.extend(part.keys().map(|name| (name.clone(), file)));
        write_weights(&folder, part, |name| name.to_owned(), file);
    }
    let index = |map: &BTreeMap<String, &str>| {
        let text = serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": map }).to_string();
        fs::write(file("diffusion_pytorch_model.safetensors.index.json"), text).unwrap();
    };
    index(&map);
    assert_eq!(read().unwrap(), expected);

    // A shard that is missing, and one outside of the folder.
    fs::remove_file(file(names[1])).unwrap();
    let error = read().unwrap_err().to_string();
    assert!(error.contains(names[1]), "{error}");
    map.values_mut().for_each(|file| *file = "../secret.safetensors");
    index(&map);
    let error = read().unwrap_err().to_string();
    assert!(error.contains("expected names of files"), "{error}");
}

#[test]
fn options_that_are_not_supported_are_named() {
    let temporary = tempdir().unwrap();
    let folder = temporary.path().join("v");
    copy(&references().join("pipelines/v"), &folder);
    write_weights(
        &folder,
        weights(&folder, 1),
        |name| name.to_owned(),
        "diffusion_pytorch_model.safetensors",
    );
    let out = temporary.path().join("model.safetensors");
    for (file, key, value, parts) in [
        ("unet/config.json", "time_embedding_type", "\"fourier\"", &["time_embedding_type", "fourier"][..]),
        ("unet/config.json", "act_fn", "\"gelu\"", &["act_fn", "gelu"]),
        ("unet/config.json", "center_input_sample", "true", &["center_input_sample"]),
        ("unet/config.json", "class_embed_type", "\"timestep\"", &["class_embed_type", "timestep"]),
        (
            "unet/config.json",
            "resnet_time_scale_shift",
            "\"spatial\"",
            &["resnet_time_scale_shift", "spatial"],
        ),
        (
            "unet/config.json",
            "down_block_types",
            "[\"SkipDownBlock2D\"]",
            &["down_block_types", "SkipDownBlock2D"],
        ),
        ("unet/config.json", "block_out_channels", "[32, 32]", &["down_block_types", "expected 2"]),
        ("unet/config.json", "norm_num_groups", "7", &["norm_num_groups", "expected a divisor", "7"]),
        ("unet/config.json", "norm_num_groups", "null", &["norm_num_groups"]),
        ("unet/config.json", "downsample_padding", "2", &["downsample_padding", "2"]),
        ("unet/config.json", "out_channels", "6", &["out_channels", "as many as in_channels", "6"]),
        ("unet/config.json", "attention_head_dim", "5", &["attention_head_dim", "5"]),
        ("unet/config.json", "sample_size", "15", &["sample_size", "15"]),
        ("unet/config.json", "layers_per_block", "0", &["layers_per_block", "0"]),
        ("unet/config.json", "a_new_option", "1", &["a_new_option", "not supported"]),
        ("unet/config.json", "_class_name", "\"UNet1DModel\"", &["expected a UNet2DModel", "UNet1DModel"]),
        ("scheduler/scheduler_config.json", "beta_schedule", "\"sigmoid\"", &["beta_schedule", "sigmoid"]),
        ("scheduler/scheduler_config.json", "prediction_type", "\"flow\"", &["prediction_type", "flow"]),
        ("scheduler/scheduler_config.json", "trained_betas", "[0.1, 0.2]", &["betas", "expected 1000", "2"]),
        ("scheduler/scheduler_config.json", "beta_end", "2.0", &["betas", "2"]),
        ("scheduler/scheduler_config.json", "num_train_timesteps", "1e18", &["steps"]),
        ("scheduler/scheduler_config.json", "timestep_spacing", "\"odd\"", &["timestep_spacing", "odd"]),
        (
            "scheduler/scheduler_config.json",
            "_class_name",
            "\"ScoreSdeVeScheduler\"",
            &["ScoreSdeVeScheduler"],
        ),
    ] {
        let path = folder.join(file);
        let text = fs::read_to_string(&path).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[key] = serde_json::from_str(value).unwrap();
        fs::write(&path, config.to_string()).unwrap();
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        fail(distill().arg("import").arg(&folder).arg("--out").arg(&out), &[&[name], parts].concat());
        assert!(!out.exists(), "{key}");
        fs::write(&path, text).unwrap();
    }
    // The networks of latent pipelines do not work on pixels.
    let index =
        r#"{ "unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"], "_class_name": "X" }"#;
    fs::write(folder.join("model_index.json"), index).unwrap();
    fail(distill().arg("import").arg(&folder).arg("--out").arg(&out), &["model_index.json", "vqvae"]);
    fs::remove_file(folder.join("model_index.json")).unwrap();
    fail(
        distill().arg("import").arg(&folder).args(["--preset", "mnist", "--out"]).arg(&out),
        &["--preset", "v"],
    );
    let empty = tempdir().unwrap();
    fail(
        distill().arg("import").arg(empty.path()).arg("--out").arg(&out),
        &["model_index.json", "found 0 and 0"],
    );
}

/// A scheduler's spacing may leave out the last step of its schedule, where a student begins.
#[test]
fn a_student_starts_at_the_first_time_whatever_the_spacing() {
    use ccm::model::prediction::{Schedule, Spacing};
    use ccm::model::{Path, Prediction};
    for spacing in [Spacing::Trailing, Spacing::Leading(1), Spacing::Linspace] {
        let path = Path::new(&Prediction::Noise(Schedule { spacing, ..Schedule::default() }));
        for count in [1, 3] {
            let steps = Solver::Jumps.steps(&path, Solver::Jumps.grid(&path), count).unwrap();
            assert_eq!((steps.len(), steps[0].t), (count, path.first_time() as f32), "{spacing:?}");
        }
        assert!(Solver::Euler.grid(&path) == path.grid());
    }
}

/// `dx/dt = v` has a solution in closed form if the data are normal: a solver's error falls with its order, which the last
/// step of DPM-Solver++(2M), of first order, lowers.
#[test]
fn solvers_have_their_order() {
    use ccm::model::prediction::Schedule;
    use ccm::model::{Path, Prediction, TimeGrid};
    // Data of variance s^2: the denoiser is linear, and x keeps its direction while its length follows the deviation
    // sqrt((t s)^2 + (1 - t)^2).
    let s = 0.5;
    let deviation = |t: f64| ((t * s).powi(2) + (1.0 - t).powi(2)).sqrt();
    let velocity = |x: f64, t: f64| x * (t * s * s - (1.0 - t)) / deviation(t).powi(2);
    let path = Path::new(&Prediction::Noise(Schedule::default()));
    let error = |solver: Solver, count: usize| {
        let steps = solver.steps(&path, TimeGrid::Uniform, count).unwrap();
        let first = f64::from(steps[0].t);
        let (mut x, mut memory) = (deviation(first), 0.0);
        for step in steps {
            let v = velocity(x, f64::from(step.t));
            let of = |c: ccm::sampler::schedule::Combination| {
                f64::from(c.x) * x + f64::from(c.v) * v + f64::from(c.memory) * memory
            };
            (x, memory) = (of(step.x), of(step.memory));
        }
        (x - s).abs()
    };
    for (solver, order, evaluations) in
        [(Solver::Euler, 1.0, 40), (Solver::Heun, 2.0, 79), (Solver::Dpm, 1.6, 40)]
    {
        let (coarse, fine) = (error(solver, evaluations), error(solver, 2 * evaluations));
        let found = (coarse / fine).log2();
        println!("{solver:?}: errors {coarse:.1e} and {fine:.1e}, order {found:.2}");
        assert!(found > order - 0.25, "{solver:?}: order {found}");
    }
    assert!(error(Solver::Dpm, 40) < 0.2 * error(Solver::Euler, 40));
}
