//! The network, the solvers, the curriculum and the coupling agree with PyTorch and torchcfm.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::collections::BTreeMap;
use std::convert::Infallible;

use burn::tensor::{Device, Int, Tensor, TensorData, s};
use ccm::method::coupling::Coupling;
use ccm::method::curriculum::{Curriculum, Mode, Scope, Start, StepSolver};
use ccm::method::kdc::PEAK;
use ccm::method::lpips::{Lpips, LpipsWeights, Trunk};
use ccm::nn::conditions::Conditions;
use ccm::nn::denoiser::Denoiser;
use ccm::nn::host::to_host;
use ccm::sampler::schedule::{Request, Solver};
use ccm::train::samples::sample;
use ccm::weights::{HostTensor, Model, TensorFile};
use ccm_tests::{configurations, lpips_weights, model, references, relative_error, tensors, uniform};

const TOLERANCE: f64 = 1e-4;

fn images(tensor: &HostTensor, device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(tensor.values.clone(), tensor.shape.clone()), device)
}

fn labels(io: &BTreeMap<String, HostTensor>, device: &Device) -> Option<Tensor<1, Int>> {
    let label: Vec<i32> = io.get("label")?.values.iter().map(|value| *value as i32).collect();
    Some(Tensor::from_data(label.as_slice(), device))
}

fn assert_close(what: &str, found: Tensor<4>, expected: &HostTensor) {
    let error = relative_error(&to_host(found), &expected.values);
    println!("{what}: relative error {error:.1e}");
    assert!(error < TOLERANCE, "{what}: relative error {error:.2e}");
}

#[test]
fn velocities_and_samples_agree_with_pytorch() {
    let device = Device::flex();
    for (name, spec) in configurations() {
        let unet = Denoiser::new(&model(&format!("{name}.pt"), &spec, None), &device);
        let io = tensors(&format!("{name}_io.safetensors"));
        let (x, label) = (images(&io["x"], &device), labels(&io, &device));
        let v = unet.velocity(x.clone(), &io["t"].values, label);
        assert_close(&format!("{name}, v"), v, &io["velocity"]);
        let labels = io.get("label").map_or(Vec::new(), |it| it.values.iter().map(|l| *l as u32).collect());
        let request = Request { noise: io["x"].values.clone(), labels, ..Request::default() };
        for (solver, steps, tensor) in [(Solver::Jumps, 1, "one_step"), (Solver::Euler, 4, "euler_4")] {
            let steps = solver.steps(unet.path(), solver.grid(unet.path()), steps).unwrap();
            let found = sample(&unet.clone().into(), &request, &steps, 64, &device);
            let found = Tensor::from_data(TensorData::new(found, x.dims()), &device);
            assert_close(&format!("{name}, {tensor}"), found, &io[tensor]);
        }
    }
}

#[test]
fn lpips_and_its_gradient_agree_with_the_package() {
    let reference = references().join("lpips.safetensors");
    let expected = TensorFile::from_bytes(&std::fs::read(reference).unwrap()).unwrap().tensors;
    let device = Device::flex();
    let random = |number: usize, shape: [usize; 4]| {
        let values: Vec<f32> =
            uniform(number, shape.iter().product()).map(|u| 2.0 * u as f32 - 1.0).collect();
        Tensor::<4>::from_data(TensorData::new(values, shape), &device)
    };
    // Small images: among millions of features, one would be so close to a kink that rounding decides its slope.
    for (name, trunk) in [("alex", Trunk::AlexNet), ("vgg", Trunk::Vgg16)] {
        let [features, heads] = lpips_weights(trunk);
        let lpips = Lpips::new(&LpipsWeights::new(trunk, features, heads).unwrap(), &device);
        let check = |what: &str, found: Vec<f32>| {
            let error = relative_error(&found, &expected[&format!("{name}.{what}")].values);
            println!("{name}, {what}: relative error {error:.1e}");
            assert!(error < TOLERANCE, "{name}, {what}: relative error {error:.2e}");
        };
        let small = |number| random(number, [2, 3, 12, 9]);
        check("upsampled", to_host(lpips.distances(small(1002), small(1003))));
        let a = random(1000, [1, 3, 38, 44]).autodiff().require_grad();
        let distances = lpips.distances_at(a.clone(), random(1001, [1, 3, 38, 44]));
        check("distances", to_host(distances.clone().inner()));
        let gradient = a.grad(&distances.mean().backward()).unwrap();
        let shown = gradient.slice_dim(2, s![..;3]).slice_dim(3, s![..;3]);
        check("gradient", to_host(shown));
    }
}

#[test]
fn the_averaged_weights_of_a_checkpoint_are_preferred() {
    let (name, spec) = configurations().remove(0);
    let file = format!("{name}.pt");
    let read = |key| model(&file, &spec, key);
    assert_eq!(read(None).tensors, read(Some("ema_model")).tensors);
    assert_ne!(read(None).tensors, read(Some("net_model")).tensors);
}

#[test]
fn an_imported_model_is_restored_from_its_file() {
    for (name, spec) in configurations() {
        let model = model(&format!("{name}.pt"), &spec, None);
        let read = Model::from_bytes(&model.to_bytes()).expect("a file just written");
        assert_eq!(read, model);
        assert_eq!(Denoiser::new(&model, &Device::flex()).to_model(model.card.clone()), model);
    }
}

#[test]
fn the_curriculum_agrees_with_the_reference_for_each_image() {
    let device = Device::flex();
    let (_, spec) = configurations().remove(0);
    let unet = |file: &str| Denoiser::new(&model(file, &spec, None), &device);
    let [teacher, target, student] = ["kdc_teacher.pt", "kdc_target.pt", "kdc_student.pt"].map(unet);
    let io = tensors("kdc_target.safetensors");
    let image = spec.image_len();
    let row = |name: &str, i: usize| io[name].values[i * image..(i + 1) * image].to_vec();
    let mut thresholds = io["threshold"].values.clone();
    thresholds.dedup();
    for threshold in thresholds {
        let rows: Vec<usize> =
            (0..io["t"].values.len()).filter(|&i| io["threshold"].values[i] == threshold).collect();
        let [channels, height, width] = spec.image();
        let shape = [rows.len(), channels, height, width];
        let gather = |name: &str| rows.iter().flat_map(|&i| row(name, i)).collect::<Vec<f32>>();
        let t: Vec<f32> = rows.iter().map(|&i| io["t"].values[i]).collect();
        let x_t = Tensor::<4>::from_data(TensorData::new(gather("x_t"), shape), &device);
        let times = Tensor::<1>::from_data(t.as_slice(), &device);
        let estimate = ccm::method::flow::jump(x_t.clone(), &times, student.velocity(x_t.clone(), &t, None));
        assert!(relative_error(&to_host(estimate.clone()), &gather("estimate")) < TOLERANCE);

        let curriculum = Curriculum {
            mode: Mode::Cd,
            scope: Scope::Image,
            threshold: f64::from(threshold),
            peak: PEAK,
            step_size: 0.03,
            step_shift: 1.0,
            solver: StepSolver::Euler,
            pad_to: None,
        };
        let goal = curriculum.goal(
            Start { estimate, x_t, t, condition: Conditions::default(), direction: None },
            &teacher.clone().into(),
            &target,
        );
        let found = to_host(goal.target);
        for (place, &i) in rows.iter().enumerate() {
            let at = |name: &str| f64::from(io[name].values[i]);
            let what = format!("row {i}, T = {threshold}, t = {}", at("t"));
            assert_eq!(goal.steps[place] as f64, at("steps"), "{what}: steps");
            assert!((f64::from(goal.u[place]) - at("u")).abs() < 1e-5, "{what}: u = {}", goal.u[place]);
            // At u = 1 the target is the image itself.
            let asked = 2 * goal.steps[place] - usize::from(goal.u[place] >= 1.0);
            assert_eq!(goal.evaluations[place], asked, "{what}: evaluations");
            assert!(
                (goal.kdc[place] - at("kdc")).abs() < 1e-2,
                "{what}: KDC {} not {}",
                goal.kdc[place],
                at("kdc")
            );
            let error = relative_error(&found[place * image..(place + 1) * image], &row("target", i));
            assert!(error < TOLERANCE, "{what}: target off by {error:.2e}");
        }
    }
}

#[test]
fn the_optimal_transport_assignment_is_exact() {
    let io = tensors("metrics.safetensors");
    let (x0, x1) = (&io["ot_x0"], &io["ot_x1"]);
    let len = x0.shape[1];
    let read = |rows: &[usize]| {
        let of = |x: &[f32]| rows.iter().flat_map(|&row| &x[row * len..(row + 1) * len]).copied().collect();
        Ok::<_, Infallible>([of(&x0.values), of(&x1.values)])
    };
    let Ok(pairs) = Coupling::OptimalTransport.pair(x0.shape[0], &[], read);
    let squared = |noise: usize, image: usize| -> f64 {
        let a = &x0.values[noise * len..(noise + 1) * len];
        let b = &x1.values[image * len..(image + 1) * len];
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    let total: f64 = pairs.iter().enumerate().map(|(image, &noise)| squared(noise, image)).sum();
    let expected = f64::from(io["ot_cost"].values[0]);
    // The reference may be the sum or the mean over the batch.
    let scale = if total > 2.0 * expected { pairs.len() as f64 } else { 1.0 };
    assert!((total / scale / expected - 1.0).abs() < 1e-5, "cost {total}, not {expected}");
    for (noise, image) in io["ot_assignment"].values.iter().enumerate() {
        assert_eq!(pairs[*image as usize], noise, "noise of image {image}");
    }
}
