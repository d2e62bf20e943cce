//! Layers of small networks that have no graph, and a network's parameters as a flat list.
//!
//! [`Loader`] takes parameters from a model by name. The fields of every struct are in the order of PyTorch's state dict,
//! so that the n-th parameter that Burn visits is the n-th tensor of the model; [`parameters`] checks this.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use super::ops::conv;
use crate::model::TensorSpec;
use crate::weights::HostTensor;

/// `x W^T + b`, with `W` `[out, in]`.
#[derive(Module, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Param<Tensor<2>>,
    pub(crate) bias: Param<Tensor<1>>,
}

/// A convolution, 3x3 with padding 1 or 1x1.
#[derive(Module, Debug)]
pub(crate) struct Convolution {
    pub(crate) weight: Param<Tensor<4>>,
    pub(crate) bias: Param<Tensor<1>>,
}

impl Linear {
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.weight.val().transpose()) + self.bias.val().unsqueeze()
    }
}

impl Convolution {
    /// `[B, C, H, W] -> [B, D, H / stride, W / stride]`; `shift`, `[B, D]`, is added to every pixel.
    pub(crate) fn forward(&self, x: Tensor<4>, shift: Option<Tensor<2>>, stride: usize) -> Tensor<4> {
        let bias = self.bias.val().unsqueeze();
        let bias = shift.map_or(bias.clone(), |shift| shift + bias);
        conv(x, self.weight.val(), bias, stride)
    }
}

/// Takes the tensors of a model by name. Parameters are numbered in the model's order, so that the optimiser's state can be
/// matched with them after a restart.
///
/// On a device that records gradients, the parameters require gradients.
pub(crate) struct Loader<'a> {
    specs: &'a [TensorSpec],
    tensors: &'a [HostTensor],
    taken: Vec<bool>,
    device: &'a Device,
}

impl<'a> Loader<'a> {
    /// A loader of `tensors`. `specs` gives their names and shapes.
    ///
    /// # Panics
    /// If a tensor is missing or its shape differs from its spec.
    pub(crate) fn new(specs: &'a [TensorSpec], tensors: &'a [HostTensor], device: &'a Device) -> Self {
        assert_eq!(specs.len(), tensors.len(), "tensors of the network");
        for (spec, tensor) in specs.iter().zip(tensors) {
            assert_eq!(tensor.shape, spec.shape, "shape of tensor `{}`", spec.name);
        }
        Self { specs, tensors, taken: vec![false; specs.len()], device }
    }

    /// The parameter `name`.
    ///
    /// # Panics
    /// If no tensor has this name, its rank is not `D`, or it was taken before.
    pub(crate) fn param<const D: usize>(&mut self, name: &str) -> Param<Tensor<D>> {
        let place = self.specs.iter().position(|spec| spec.name == name);
        let place = place.unwrap_or_else(|| panic!("the network has no tensor `{name}`"));
        assert!(!std::mem::replace(&mut self.taken[place], true), "tensor `{name}` is taken twice");
        let HostTensor { shape, values } = self.tensors[place].clone();
        let value = Tensor::from_data(TensorData::new(values, shape), self.device);
        let value = if self.device.is_autodiff() { value.require_grad() } else { value };
        Param::initialized(id(place), value)
    }

    pub(crate) fn linear(&mut self, name: &str) -> Linear {
        Linear { weight: self.param(&format!("{name}.weight")), bias: self.param(&format!("{name}.bias")) }
    }

    pub(crate) fn convolution(&mut self, name: &str) -> Convolution {
        Convolution {
            weight: self.param(&format!("{name}.weight")),
            bias: self.param(&format!("{name}.bias")),
        }
    }

    /// Checks that every tensor was taken.
    ///
    /// # Panics
    /// If a tensor was not taken.
    pub(crate) fn finish(self) {
        if let Some(place) = self.taken.iter().position(|taken| !taken) {
            panic!("tensor `{}` is not part of the network", self.specs[place].name);
        }
    }
}

/// Burn's id of the parameter at index `place`, counted from 0.
fn id(place: usize) -> ParamId {
    ParamId::from(place as u64 + 1)
}

/// The parameters of a network, flat, without gradients, in the order of the model.
///
/// # Panics
/// If the fields of a layer are not in the order of its tensors.
pub(crate) fn parameters<M: Module>(network: &M) -> Vec<Tensor<1>> {
    struct Flatten(Vec<Tensor<1>>);
    impl ModuleVisitor for Flatten {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            assert_eq!(param.id, id(self.0.len()), "parameters in the order of the model");
            let value = param.val().inner();
            let count = value.shape().num_elements();
            self.0.push(value.reshape([count]));
        }
    }
    let mut flatten = Flatten(Vec::new());
    network.visit(&mut flatten);
    flatten.0
}

/// The network with new parameters, in the order of [`parameters`]. They require gradients if the old ones did.
///
/// # Panics
/// If the number of parameters differs.
pub(crate) fn with_parameters<M: Module>(network: M, parameters: Vec<Tensor<1>>) -> M {
    struct Replace(std::vec::IntoIter<Tensor<1>>);
    impl ModuleMapper for Replace {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let value = self.0.next().unwrap_or_else(|| panic!("a value for every parameter"));
            let (id, parameter, mapper) = param.consume();
            let tracked = parameter.is_require_grad();
            let value = value.reshape(parameter.shape());
            let value = if tracked { value.autodiff().require_grad() } else { value };
            Param::from_mapped_value(id, value, mapper)
        }
    }
    let mut replace = Replace(parameters.into_iter());
    let network = network.map(&mut replace);
    assert_eq!(replace.0.len(), 0, "values without a parameter");
    network
}

/// Gradients of a network's parameters, flat, in the order of [`parameters`]; zero for a parameter without influence on
/// the loss.
pub(crate) fn gradients<M: Module>(network: &M, loss: &Tensor<1>) -> Vec<Tensor<1>> {
    take_gradients(network, loss.backward())
}

/// The gradients of a network's parameters among those of a loss, as [`gradients`].
pub(crate) fn take_gradients<M: Module>(network: &M, of_loss: Gradients) -> Vec<Tensor<1>> {
    struct Collect {
        gradients: GradientsParams,
        flat: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().inner();
            let count = value.shape().num_elements();
            let gradient = self.gradients.remove::<D>(param.id).unwrap_or_else(|| value.zeros_like());
            self.flat.push(gradient.reshape([count]));
        }
    }
    let gradients = GradientsParams::from_grads(of_loss, network);
    let mut collect = Collect { gradients, flat: Vec::new() };
    network.visit(&mut collect);
    collect.flat
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn specs() -> Vec<TensorSpec> {
        let spec = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.to_vec() };
        vec![spec("a.weight", &[2, 3]), spec("a.bias", &[2]), spec("b.weight", &[2, 3]), spec("b.bias", &[2])]
    }

    fn tensors() -> Vec<HostTensor> {
        let filled = |(i, spec): (usize, &TensorSpec)| {
            HostTensor::new(spec.shape.clone(), vec![i as f32; spec.shape.iter().product()])
        };
        specs().iter().enumerate().map(filled).collect()
    }

    #[derive(Module, Debug)]
    struct Two {
        first: Linear,
        second: Linear,
    }

    #[test]
    fn parameters_are_found_by_name_whatever_the_order() {
        let (specs, tensors, device) = (specs(), tensors(), Device::flex());
        let mut load = Loader::new(&specs, &tensors, &device);
        let (b, a) = (load.linear("b"), load.linear("a"));
        load.finish();
        assert_eq!(b.weight.val().into_data().try_to_vec::<f32>().unwrap(), [2.0; 6]);
        assert_eq!(parameters(&Two { first: a, second: b }).len(), 4);
    }

    #[test]
    #[should_panic(expected = "parameters in the order of the model")]
    fn fields_in_another_order_than_the_tensors_are_found_out() {
        let (specs, tensors, device) = (specs(), tensors(), Device::flex());
        let mut load = Loader::new(&specs, &tensors, &device);
        let (b, a) = (load.linear("b"), load.linear("a"));
        parameters(&Two { first: b, second: a });
    }

    #[test]
    #[should_panic(expected = "shape of tensor `b.bias`")]
    fn a_misshapen_tensor_is_named() {
        let (specs, mut tensors, device) = (specs(), tensors(), Device::flex());
        tensors[3] = HostTensor::new([3], vec![0.0; 3]);
        Loader::new(&specs, &tensors, &device);
    }

    #[test]
    #[should_panic(expected = "tensor `b.weight` is not part of the network")]
    fn a_tensor_that_is_not_taken_is_named() {
        let (specs, tensors, device) = (specs(), tensors(), Device::flex());
        let mut load = Loader::new(&specs, &tensors, &device);
        load.linear("a");
        load.finish();
    }

    #[test]
    #[should_panic(expected = "the network has no tensor `c.weight`")]
    fn a_tensor_that_is_not_there_is_named() {
        let (specs, tensors, device) = (specs(), tensors(), Device::flex());
        Loader::new(&specs, &tensors, &device).linear("c");
    }

    #[test]
    #[should_panic(expected = "a value for every parameter")]
    fn a_parameter_without_a_value_is_found_out() {
        let (specs, tensors, device) = (specs(), tensors(), Device::flex());
        let mut load = Loader::new(&specs, &tensors, &device);
        let network = load.linear("a");
        let values = parameters(&network)[..1].to_vec();
        with_parameters(network, values);
    }
}
