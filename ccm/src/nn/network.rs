//! Runs a [`Graph`] on Burn tensors, with or without gradients.
//!
//! In mixed precision ([`Network::in_half`]), activations and their gradients have 16 bits, and each node converts its weights
//! when it reads them. Norms, softmax, activation functions and the sinusoids of times compute in single precision. Inputs,
//! outputs and parameters are in single precision.

mod functions;
mod nodes;
mod segments;

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};

use super::conditions::Conditions;
use super::encoder::encoder;
use crate::model::TensorSpec;
use crate::model::graph::{Graph, Value, last_reads};
use crate::weights::HostTensor;
use segments::Tape;

/// A network with its parameters on a device.
#[derive(Debug, Clone)]
pub struct Network {
    program: Arc<Program>,
    /// The first parameters of the graph, flat: weights that are shared with other networks and never change.
    base: Vec<Tensor<1>>,
    /// The others, flat, in the order of [`Graph::parameters`].
    parameters: Vec<Tensor<1>>,
    dropout: bool,
    /// The type of the values that pass from node to node.
    activations: DType,
    /// Forward passes, if the backward pass goes segment by segment.
    tape: Option<Tape>,
}

/// A fused graph, and for each node the values that it is the last to read.
#[derive(Debug)]
struct Program {
    graph: Graph,
    last_reads: Vec<Vec<Value>>,
}

/// The value of a graph node for a batch.
#[derive(Debug, Clone)]
enum Output {
    /// `[B, C, H, W]`.
    Map(Tensor<4>),
    /// `[B, C]`.
    Vector(Tensor<2>),
}

/// The inputs of a network.
#[derive(Debug, Clone)]
struct Inputs {
    /// `[B, C, H, W]`.
    x: Tensor<4>,
    /// The network's own time `tau`, `[B]`.
    time: Tensor<1>,
    /// What the images show.
    condition: Conditions,
}

/// The state of a forward pass between two nodes.
#[derive(Debug)]
struct Pass {
    inputs: Inputs,
    /// By [`Value::index`]. A value is dropped when its last reader takes it.
    values: Vec<Option<Output>>,
    /// Dropout masks by the value that they belong to. A mask that is missing is drawn.
    masks: BTreeMap<Value, Tensor<4>>,
}

impl Pass {
    fn new(inputs: Inputs, values: usize) -> Self {
        Self { inputs, values: vec![None; values], masks: BTreeMap::new() }
    }

    /// A value that has been computed and not been dropped.
    #[expect(clippy::expect_used, reason = "callers know what has been computed")]
    fn take(&mut self, value: Value) -> Output {
        self.values[value.index()].take().expect("a value that has been computed")
    }
}

impl Network {
    /// A network with the values of its parameters. On a device that records gradients, the parameters require gradients.
    ///
    /// # Panics
    /// If a tensor is missing, or its shape differs from the parameter's; the message then has its name.
    pub(crate) fn new(graph: &Graph, tensors: &[HostTensor], device: &Device) -> Self {
        Self::with_base(Vec::new(), graph, tensors, device)
    }

    /// A network whose first parameters are those of another one, without a copy. `graph` has these parameters first;
    /// `tensors` are the others.
    ///
    /// # Panics
    /// As [`Network::new`].
    pub(crate) fn beside(&self, graph: &Graph, tensors: &[HostTensor], device: &Device) -> Self {
        let base = self.parameters();
        let base = if device.is_autodiff() { recording(base) } else { base };
        Self::with_base(base, graph, tensors, device)
    }

    /// A network with the values of its parameters; the first ones are on the device.
    fn with_base(base: Vec<Tensor<1>>, graph: &Graph, tensors: &[HostTensor], device: &Device) -> Self {
        let own = &graph.parameters[base.len()..];
        assert_eq!(own.len(), tensors.len(), "tensors of the network");
        let parameter = |(parameter, tensor): (&crate::model::graph::Parameter, &HostTensor)| {
            assert_eq!(tensor.shape, parameter.shape, "shape of tensor `{}`", parameter.name);
            let count = tensor.values.len();
            let value = Tensor::<1>::from_data(TensorData::new(tensor.values.clone(), [count]), device);
            if device.is_autodiff() { value.require_grad() } else { value }
        };
        let parameters = own.iter().zip(tensors).map(parameter).collect();
        let graph = graph.fused();
        let last_reads = last_reads(&graph.nodes);
        Self {
            program: Arc::new(Program { graph, last_reads }),
            base,
            parameters,
            dropout: device.is_autodiff(),
            activations: DType::F32,
            tape: None,
        }
    }

    /// The network's output.
    ///
    /// # Shapes
    /// - `x`, result: `[B, C, H, W]`
    /// - `time`: `[B]`
    /// - `condition`: what the network reads; labels in `0..num_classes`
    pub(crate) fn forward(&self, x: Tensor<4>, time: Tensor<1>, condition: Conditions) -> Tensor<4> {
        let inputs = Inputs { x, time, condition };
        match &self.tape {
            Some(tape) => self.forward_in_segments(inputs, tape),
            None => {
                let mut pass = Pass::new(inputs, self.program.graph.shapes.len());
                for index in 0..self.program.graph.nodes.len() {
                    self.run(index, &mut pass);
                }
                single(pass.take(self.program.graph.output).into_map())
            }
        }
    }

    /// The output of a network that reads only an image, such as a decoder. Shapes are those of [`Network::forward`].
    pub(crate) fn map(&self, x: Tensor<4>) -> Tensor<4> {
        let time = Tensor::zeros([x.dims()[0]], &x.device());
        self.forward(x, time, Conditions::default())
    }

    /// The maps of [`Graph::features`]. The inputs are those of [`Network::forward`].
    pub(crate) fn features(&self, x: Tensor<4>, time: Tensor<1>, condition: Conditions) -> Vec<Tensor<4>> {
        let Graph { nodes, shapes, features, .. } = &self.program.graph;
        let mut pass = Pass::new(Inputs { x, time, condition }, shapes.len());
        let mut found = Vec::with_capacity(features.len());
        for (index, node) in nodes.iter().enumerate() {
            let value = self.run(index, &mut pass);
            if features.contains(&node.output) {
                found.push(single(value.clone().into_map()));
            }
            if found.len() == features.len() {
                break;
            }
        }
        found
    }

    /// The network's own parameters, flat, without gradients, in the order of [`Graph::parameters`].
    pub(crate) fn parameters(&self) -> Vec<Tensor<1>> {
        without_gradients(&self.parameters)
    }

    /// Names and shapes of the network's own parameters.
    pub(crate) fn tensors(&self) -> Vec<TensorSpec> {
        let own = &self.program.graph.parameters[self.base.len()..];
        own.iter().map(|own| TensorSpec { name: own.name.clone(), shape: own.shape.clone() }).collect()
    }

    /// The same network with new parameters, in the order of [`Network::parameters`]. They require gradients if the old
    /// ones did.
    ///
    /// # Panics
    /// If the number of parameters differs.
    pub(crate) fn with_parameters(&self, parameters: Vec<Tensor<1>>) -> Self {
        assert_eq!(parameters.len(), self.parameters.len(), "parameters of the network");
        let like = |(new, old): (Tensor<1>, &Tensor<1>)| match old.device().is_autodiff() {
            true if old.is_require_grad() => new.autodiff().require_grad(),
            true => new.autodiff(),
            false => new,
        };
        let parameters = parameters.into_iter().zip(&self.parameters).map(like).collect();
        let tape = self.tape.as_ref().map(Tape::fresh);
        Self { parameters, tape, ..self.clone() }
    }

    /// The same network, whose parameters `fixed` get no gradients: one entry for each parameter, in their order.
    pub(crate) fn with_fixed(&self, fixed: &[bool]) -> Self {
        let fix = |(parameter, &fixed): (&Tensor<1>, _)| match fixed {
            true => parameter.clone().inner().autodiff(),
            false => parameter.clone(),
        };
        let parameters = self.parameters.iter().zip(fixed).map(fix).collect();
        Self { parameters, ..self.clone() }
    }

    /// Which parameters get no gradients although the device records them.
    pub(crate) fn fixed(&self) -> Vec<bool> {
        let is_fixed =
            |parameter: &Tensor<1>| parameter.device().is_autodiff() && !parameter.is_require_grad();
        self.parameters.iter().map(is_fixed).collect()
    }

    /// The same network without gradients, and therefore without dropout.
    pub(crate) fn without_gradients(&self) -> Self {
        let base = without_gradients(&self.base);
        Self { base, parameters: self.parameters(), dropout: false, tape: None, ..self.clone() }
    }

    /// The same network as a fixed function: its input gets gradients, its parameters get none, and dropout is off.
    pub(crate) fn frozen(&self) -> Self {
        let [base, parameters] = [&self.base, &self.parameters].map(|of| recording(without_gradients(of)));
        Self { base, parameters, dropout: false, tape: None, ..self.clone() }
    }

    /// The part that computes the features, with parameters of its own in single precision, which require gradients.
    /// Dropout is off.
    ///
    /// # Panics
    /// If the network has no features.
    pub(crate) fn encoder(&self) -> Self {
        let graph = encoder(&self.program.graph);
        let last_reads = last_reads(&graph.nodes);
        let own = |values: Tensor<1>| single(values).autodiff().require_grad();
        let own_count = graph.parameters.len() - self.base.len();
        Self {
            parameters: self.parameters().into_iter().take(own_count).map(own).collect(),
            program: Arc::new(Program { graph, last_reads }),
            base: recording(without_gradients(&self.base)),
            dropout: false,
            activations: DType::F32,
            tape: None,
        }
    }

    /// The same network in mixed precision, with activations of this type.
    pub(crate) fn in_half(self, half: DType) -> Self {
        Self { activations: half, ..self }
    }

    /// The same network with its parameters in half precision. It must not be trained.
    pub(crate) fn halved(self) -> Self {
        let parameters = self.parameters.into_iter().map(|values| values.cast(DType::F16)).collect();
        Self { parameters, ..self }
    }

    /// Gradients of a loss with respect to the parameters, in their order; zero for a parameter without influence on it.
    pub(crate) fn gradients(&self, loss: &Tensor<1>) -> Vec<Tensor<1>> {
        let mut gradients = self.parameters();
        self.gradients_in_turn(loss, |place, gradient| gradients[place] = gradient);
        gradients
    }

    /// Takes the gradients of the parameters, in their order, out of those of a loss; zero for a parameter without influence on
    /// it. The network must not be [`Network::in_segments`] or [`Network::checkpointed`].
    pub(crate) fn take_gradients(&self, gradients: &mut Gradients) -> Vec<Tensor<1>> {
        let take = |parameter: &Tensor<1>| {
            parameter.grad_remove(gradients).unwrap_or_else(|| parameter.clone().inner().zeros_like())
        };
        self.parameters.iter().map(take).collect()
    }

    /// Calls `each` with the place of every parameter and its gradient, which is that of [`Network::gradients`]. After
    /// [`Network::in_segments`] or [`Network::checkpointed`], a gradient comes as soon as it is complete, from the output to the
    /// input; the order is the same for every loss.
    pub(crate) fn gradients_in_turn(&self, loss: &Tensor<1>, mut each: impl FnMut(usize, Tensor<1>)) {
        let mut gradients = loss.backward();
        let mut or_zero = |place: usize, gradient: Option<Tensor<1>>| {
            each(place, gradient.unwrap_or_else(|| self.parameters[place].clone().inner().zeros_like()));
        };
        match &self.tape {
            Some(tape) => self.backward_in_segments(tape, &mut gradients, &mut or_zero),
            None => {
                for (place, parameter) in self.parameters.iter().enumerate() {
                    or_zero(place, parameter.grad_remove(&mut gradients));
                }
            }
        }
    }
}

/// Parameters that record no gradients.
fn without_gradients(parameters: &[Tensor<1>]) -> Vec<Tensor<1>> {
    let plain = |parameter: &Tensor<1>| match parameter.device().is_autodiff() {
        true => parameter.clone().inner(),
        false => parameter.clone(),
    };
    parameters.iter().map(plain).collect()
}

/// Constants of a network that records gradients.
fn recording(parameters: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
    parameters.into_iter().map(Tensor::autodiff).collect()
}

/// A tensor in single precision.
fn single<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.cast(DType::F32)
}

impl Output {
    fn cast(self, dtype: DType) -> Self {
        match self {
            Self::Map(map) => Self::Map(map.cast(dtype)),
            Self::Vector(vector) => Self::Vector(vector.cast(dtype)),
        }
    }

    /// # Panics
    /// If it is a vector.
    fn into_map(self) -> Tensor<4> {
        match self {
            Self::Map(map) => map,
            Self::Vector(_) => panic!("expected a map, found a vector"),
        }
    }

    /// # Panics
    /// If it is a map.
    fn into_vector(self) -> Tensor<2> {
        match self {
            Self::Vector(vector) => vector,
            Self::Map(_) => panic!("expected a vector, found a map"),
        }
    }
}
