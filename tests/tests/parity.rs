//! The network gives the numbers that PyTorch gives.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Int, Tensor, TensorData};
use ccm::train::unet::{UNet, to_host};
use ccm_tests::{configurations, model, relative_error, tensors};

#[test]
fn velocity_is_that_of_pytorch() {
    let device = Device::flex();
    for (name, spec) in configurations() {
        let unet = UNet::new(&model(&format!("{name}.pt"), &spec, None), &device);
        let io = tensors(&format!("{name}_io.safetensors"));
        let x = Tensor::<4>::from_data(TensorData::new(io["x"].values.clone(), io["x"].shape.clone()), &device);
        let t = Tensor::<1>::from_data(io["t"].values.as_slice(), &device);
        let label = io.get("label").map(|label| {
            let label: Vec<i32> = label.values.iter().map(|v| *v as i32).collect();
            Tensor::<1, Int>::from_data(label.as_slice(), &device)
        });
        let v = unet.forward(x, t, label);
        let error = relative_error(&to_host(v), &io["velocity"].values);
        println!("{name}: {error:.2e}");
        assert!(error < 1e-4, "{name}: relative error {error:.2e}");
    }
}
