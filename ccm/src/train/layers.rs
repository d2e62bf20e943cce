//! What networks are put together from, and their parameters as a flat list.
//!
//! The fields of every struct stand in the order of PyTorch's state dict, and parameters are always listed in the order
//! of the fields.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

use super::ops::conv;
use crate::weights::HostTensor;

/// `x W^T + b`.
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

/// Takes the tensors of a model in order, and numbers the parameters, so that an optimiser's state can be
/// matched with them again after a restart.
///
/// On a device that records gradients the parameters ask for them.
pub(crate) struct Loader<'a> {
    tensors: std::slice::Iter<'a, HostTensor>,
    next: u64,
    device: &'a Device,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(tensors: &'a [HostTensor], device: &'a Device) -> Self {
        Self { tensors: tensors.iter(), next: 0, device }
    }

    pub(crate) fn param<const D: usize>(&mut self) -> Param<Tensor<D>> {
        let HostTensor { shape, values } = self.tensors.next().cloned().unwrap_or_default();
        let value = Tensor::from_data(TensorData::new(values, shape), self.device);
        let value = if self.device.is_autodiff() { value.require_grad() } else { value };
        self.next += 1;
        Param::initialized(ParamId::from(self.next), value)
    }

    pub(crate) fn linear(&mut self) -> Linear {
        Linear { weight: self.param(), bias: self.param() }
    }

    pub(crate) fn convolution(&mut self) -> Convolution {
        Convolution { weight: self.param(), bias: self.param() }
    }
}

/// The parameters of a network, flat, without gradients.
pub(crate) fn parameters<M: Module>(network: &M) -> Vec<Tensor<1>> {
    struct Flatten(Vec<Tensor<1>>);
    impl ModuleVisitor for Flatten {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().inner();
            let count = value.shape().num_elements();
            self.0.push(value.reshape([count]));
        }
    }
    let mut flatten = Flatten(Vec::new());
    network.visit(&mut flatten);
    flatten.0
}

/// Replaces every parameter by `f(parameter, value)`, the values in the order of [`parameters`].
pub(crate) fn zip_map<M: Module>(
    network: M,
    values: Vec<Tensor<1>>,
    f: impl FnMut(Tensor<1>, Tensor<1>) -> Tensor<1>,
) -> M {
    struct Zip<F> {
        values: std::vec::IntoIter<Tensor<1>>,
        f: F,
    }
    impl<F: FnMut(Tensor<1>, Tensor<1>) -> Tensor<1>> ModuleMapper for Zip<F> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(value) = self.values.next() else { return param };
            let (id, parameter, mapper) = param.consume();
            let tracked = parameter.is_require_grad();
            let parameter = parameter.inner();
            let shape = parameter.shape();
            let count = shape.num_elements();
            let changed = (self.f)(parameter.reshape([count]), value).reshape(shape);
            let changed = if tracked { changed.autodiff().require_grad() } else { changed };
            Param::from_mapped_value(id, changed, mapper)
        }
    }
    network.map(&mut Zip { values: values.into_iter(), f })
}
