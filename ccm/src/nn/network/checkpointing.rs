//! Gradient checkpointing (Chen et al., arXiv 1604.06174): less memory for about a third more time.
//!
//! The forward pass keeps only the values that one segment of the graph passes to another. The backward pass computes the
//! other values of a segment again when it needs them. Dropout masks are kept, so the gradients are those of the plain
//! backward pass.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Gradients, Tensor};

use super::{Inputs, Network, Output, Pass, single, without_gradients};
use crate::model::graph::{Segment, Value};

/// The forward passes of a network whose backward pass is due.
#[derive(Debug, Clone)]
pub(super) struct Tape {
    segments: Arc<[Segment]>,
    records: Arc<Mutex<Vec<Record>>>,
}

/// A forward pass.
#[derive(Debug)]
struct Record {
    /// Its inputs, the values that segments pass to each other, and the dropout masks.
    pass: Pass,
    /// The network's output, from which the loss is computed.
    output: Tensor<4>,
}

impl Tape {
    /// An empty tape for the same graph.
    pub(super) fn fresh(&self) -> Self {
        Self { segments: Arc::clone(&self.segments), records: Arc::default() }
    }
}

impl Network {
    /// The same network with gradient checkpointing: [`Network::forward`] records no graph, and [`Network::gradients`]
    /// recomputes each segment. No gradient flows to the input.
    pub(crate) fn checkpointed(self) -> Self {
        let tape = Tape { segments: self.program.graph.segments().into(), records: Arc::default() };
        Self { tape: Some(tape), ..self }
    }

    /// The output `[B, C, H, W]` as a leaf of a new autodiff graph.
    pub(super) fn forward_checkpointed(&self, inputs: Inputs, tape: &Tape) -> Tensor<4> {
        let graph = &self.program.graph;
        let base = without_gradients(&self.base);
        let plain = Self { base, parameters: self.parameters(), ..self.clone() };
        let inputs = Inputs { x: inputs.x.inner(), time: inputs.time.inner(), ..inputs };
        let mut pass = Pass::new(inputs, graph.shapes.len());
        let mut passed = pass.values.clone();
        for (index, node) in graph.nodes.iter().enumerate() {
            let value = plain.run(index, &mut pass);
            if tape.segments.iter().any(|segment| segment.inputs.contains(&node.output)) {
                passed[node.output.index()] = Some(value.clone());
            }
        }
        let output = single(pass.take(graph.output).into_map()).autodiff().require_grad();
        let record = Record { pass: Pass { values: passed, ..pass }, output: output.clone() };
        tape.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        output
    }

    /// Gradients with respect to the parameters, given those with respect to the outputs of the recorded passes. `None`
    /// for a parameter that no output depends on.
    pub(super) fn recomputed_gradients(
        &self,
        tape: &Tape,
        gradients: &mut Gradients,
    ) -> Vec<Option<Tensor<1>>> {
        let mut sums = vec![None; self.parameters.len()];
        let records = std::mem::take(&mut *tape.records.lock().unwrap_or_else(PoisonError::into_inner));
        for Record { mut pass, output } in records {
            let Some(gradient) = output.grad_remove(gradients) else { continue };
            let mut due = BTreeMap::from([(self.program.graph.output, Output::Map(gradient))]);
            for segment in tape.segments.iter().rev() {
                self.backward(segment, &mut pass, &mut due, &mut sums);
            }
        }
        sums
    }

    /// Runs a segment again and its backward pass. Takes the gradients of the segment's outputs from `due`; adds those of
    /// its inputs to `due` and those of its parameters to `sums`.
    fn backward(
        &self,
        segment: &Segment,
        recorded: &mut Pass,
        due: &mut BTreeMap<Value, Output>,
        sums: &mut [Option<Tensor<1>>],
    ) {
        let mut pass = Pass::new(recorded.inputs.clone(), recorded.values.len());
        std::mem::swap(&mut pass.masks, &mut recorded.masks);
        let mut leaves = Vec::with_capacity(segment.inputs.len());
        for &input in &segment.inputs {
            let leaf = recorded.values[input.index()].clone().map(Output::into_leaf);
            pass.values[input.index()] = leaf.clone();
            leaves.extend(leaf.map(|leaf| (input, leaf)));
        }
        let mut loss: Option<Tensor<1>> = None;
        for index in segment.nodes.clone() {
            self.run(index, &mut pass);
        }
        for node in &self.program.graph.nodes[segment.nodes.clone()] {
            let Some(gradient) = due.remove(&node.output) else { continue };
            // Its gradient with respect to the output is `gradient`.
            let term = pass.take(node.output).dot(gradient);
            loss = Some(match loss {
                Some(loss) => loss + term,
                None => term,
            });
        }
        std::mem::swap(&mut pass.masks, &mut recorded.masks);
        // A segment of fixed weights, before everything that is trained, has no gradients.
        let Some(loss) = loss.filter(Tensor::is_tracked) else { return };
        let mut gradients = loss.backward();
        for (input, leaf) in leaves {
            if let Some(gradient) = leaf.take_gradient(&mut gradients) {
                let sum = match due.remove(&input) {
                    Some(sum) => sum.plus(gradient),
                    None => gradient,
                };
                due.insert(input, sum);
            }
        }
        for (parameter, sum) in self.parameters.iter().zip(sums) {
            if let Some(gradient) = parameter.grad_remove(&mut gradients) {
                *sum = Some(match sum.take() {
                    Some(sum) => sum + gradient,
                    None => gradient,
                });
            }
        }
    }
}

impl Output {
    fn into_leaf(self) -> Self {
        match self {
            Self::Map(x) => Self::Map(x.autodiff().require_grad()),
            Self::Vector(x) => Self::Vector(x.autodiff().require_grad()),
        }
    }

    fn take_gradient(&self, gradients: &mut Gradients) -> Option<Self> {
        match self {
            Self::Map(x) => x.grad_remove(gradients).map(Self::Map),
            Self::Vector(x) => x.grad_remove(gradients).map(Self::Vector),
        }
    }

    /// The sum of the products of all elements, in single precision.
    fn dot(self, other: Self) -> Tensor<1> {
        match (self, other) {
            (Self::Map(a), Self::Map(b)) => (single(a) * single(b).autodiff()).sum(),
            (a, b) => (single(a.into_vector()) * single(b.into_vector()).autodiff()).sum(),
        }
    }

    fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Map(a), Self::Map(b)) => Self::Map(a + b),
            (a, b) => Self::Vector(a.into_vector() + b.into_vector()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::config::Config;
    use crate::model::NetworkSpec;
    use crate::model::Prediction;
    use crate::model::graph::lora::LoraSpec;
    use crate::model::graph::{Op, build};
    use crate::nn::denoiser::{Denoiser, random_lora, random_model};
    use crate::nn::host::{labels_tensor, to_host};
    use crate::noise::Noise;

    fn spec() -> NetworkSpec {
        let mut spec = Config::preset("shapes").unwrap().network;
        (spec.height, spec.width, spec.num_classes) = (8, 8, Some(3));
        (spec.channel_mult, spec.attention_resolutions) = (vec![1.0, 2.0], vec![4]);
        // Two channels a group: with one, the norm would undo every bias.
        spec.model_channels = 64;
        spec.dropout = 0.3;
        spec.into()
    }

    fn images(stream: u64) -> Tensor<4> {
        let values = Noise::new(1, stream).normals(2 * spec().image_len());
        Tensor::from_data(TensorData::new(values, [2, 3, 8, 8]), &Device::flex())
    }

    /// Gradients of a loss of two evaluations.
    fn gradients(denoiser: &Denoiser) -> Vec<Vec<f32>> {
        Device::flex().seed(5);
        gradients_without_seed(denoiser)
    }

    /// As [`gradients`]. Dropout's generator is shared by all tests, so only one of them may seed it.
    fn gradients_without_seed(denoiser: &Denoiser) -> Vec<Vec<f32>> {
        let device = Device::flex();
        let label = || Some(labels_tensor(&[0, 2], &device));
        let a = denoiser.velocity(images(0).autodiff(), &[0.2, 0.7], label());
        let b = denoiser.velocity(images(1).autodiff(), &[0.9, 0.4], label());
        let loss = (a - b * images(2).autodiff()).powi_scalar(2).mean();
        denoiser.gradients(&loss).into_iter().map(to_host).collect()
    }

    #[test]
    fn gradients_are_those_of_the_plain_backward_pass() {
        // Not all zeros at the end, as a network before training.
        let mut model = random_model(spec(), &Prediction::Velocity, 3);
        for (i, tensor) in model.tensors.iter_mut().enumerate() {
            let noise = Noise::new(8, i as u64).normals(tensor.values.len());
            tensor.values.iter_mut().zip(noise).for_each(|(value, noise)| *value += 0.02 * noise);
        }
        let denoiser = Denoiser::new(&model, &Device::flex().autodiff());
        let plain = gradients(&denoiser);
        let recomputed = gradients(&denoiser.checkpointed());
        let norm = |values: &[f32]| values.iter().map(|x| x * x).sum::<f32>().sqrt();
        // Rounding errors are those of the largest gradients, through which all others are computed.
        let least = 1e-2 * norm(&plain.concat());
        for ((plain, recomputed), parameter) in plain.iter().zip(&recomputed).zip(spec().graph().parameters) {
            let difference: Vec<f32> = plain.iter().zip(recomputed).map(|(a, b)| a - b).collect();
            let (size, error) = (norm(plain).max(least), norm(&difference));
            assert!(error < 1e-5 * size, "{}: {error} of {size}", parameter.name);
        }
    }

    #[test]
    fn fixed_weights_need_no_gradients() {
        let NetworkSpec::Adm(mut spec) = spec() else { panic!("ADM's U-Net") };
        spec.dropout = 0.0;
        let mut model = random_model(spec, &Prediction::Velocity, 3);
        for (i, tensor) in model.tensors.iter_mut().enumerate() {
            let noise = Noise::new(8, i as u64).normals(tensor.values.len());
            tensor.values.iter_mut().zip(noise).for_each(|(value, noise)| *value += 0.02 * noise);
        }
        // Late in the network: the first segments hold nothing that is trained.
        let lora = LoraSpec { rank: 2, alpha: 2.0, targets: vec!["middle_block.1.qkv".into()] };
        let mut tensors = random_lora(&model.spec, &lora, 4).unwrap();
        let mut noise = Noise::new(9, 0);
        tensors.iter_mut().for_each(|tensor| tensor.values = noise.normals(tensor.values.len()));
        let base = Denoiser::new(&model, &Device::flex());
        let denoiser = base.with_lora(&lora, &tensors, &Device::flex().autodiff()).unwrap();
        let plain = gradients_without_seed(&denoiser);
        let recomputed = gradients_without_seed(&denoiser.checkpointed());
        let largest = plain.concat().into_iter().fold(0f32, |most, gradient| most.max(gradient.abs()));
        assert!(plain.len() == 2 && largest > 0.0);
        for (plain, recomputed) in plain.concat().into_iter().zip(recomputed.concat()) {
            assert!((plain - recomputed).abs() < 1e-4 * largest, "{plain} {recomputed} of {largest}");
        }
    }

    #[test]
    fn a_segment_reads_what_earlier_ones_compute() {
        let graph = build(|g| {
            let x = g.conv("a", g.image([4, 6, 6]), 4, 3);
            let y = g.add(x, g.silu(x));
            g.conv("b", g.concat(x, y), 4, 3)
        });
        let outputs = |op: fn(&Op) -> bool| -> Vec<Value> {
            graph.nodes.iter().filter(|node| op(&node.op)).map(|node| node.output).collect()
        };
        let [first, second] = &graph.segments()[..] else { panic!("{:?}", graph.segments()) };
        assert_eq!((first.nodes.clone(), first.inputs.len()), (0..4, 0));
        let x = outputs(|op| matches!(op, Op::Conv(_)))[0];
        let y = outputs(|op| matches!(op, Op::Add(..)))[0];
        assert_eq!((second.nodes.clone(), second.inputs.clone()), (4..6, vec![x, y]));
    }
}
