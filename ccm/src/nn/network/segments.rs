//! Backward passes segment by segment.
//!
//! Each segment of the graph has an autodiff graph of its own, which ends at the values that other segments pass to it. The
//! segments' backward passes run one after another, from the output to the input, and each of them yields the gradients of its
//! parameters when it ends. There are two uses:
//!
//! - Gradient checkpointing (Chen et al., arXiv 1604.06174): less memory for about a third more time. The forward pass keeps
//!   only the values that one segment passes to another. The backward pass computes the other values of a segment again when it
//!   needs them. Dropout masks are kept, so the gradients are those of the plain backward pass.
//! - Gradients that are exchanged with other ranks while the others are still being computed. The forward pass keeps all
//!   values; the time is that of the plain backward pass.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Gradients, Tensor};

use super::{Inputs, Network, Output, Pass, single};
use crate::model::graph::{Graph, Segment, Value};

/// The forward passes of a network whose backward pass is due.
#[derive(Debug, Clone)]
pub(super) struct Tape {
    segments: Arc<[Segment]>,
    /// For each segment, the parameters that it is the first to read: their gradients are complete after its backward pass.
    first_reads: Arc<[Vec<usize>]>,
    /// Whether the values inside a segment are dropped and computed again.
    recomputes: bool,
    records: Arc<Mutex<Vec<Record>>>,
}

/// A forward pass.
#[derive(Debug)]
struct Record {
    /// Its inputs, the values that segments pass to each other, without gradients, and the dropout masks.
    pass: Pass,
    /// The segments' autodiff graphs, if they are kept.
    sections: Vec<Section>,
    /// The network's output, from which the loss is computed.
    output: Tensor<4>,
}

/// The autodiff graph of a segment.
#[derive(Debug)]
struct Section {
    /// Where it begins: the values that the segment reads.
    inputs: Vec<(Value, Output)>,
    /// Where it ends: the values that other segments read.
    outputs: Vec<(Value, Output)>,
}

impl Tape {
    fn new(graph: &Graph, recomputes: bool) -> Self {
        let segments = graph.segments();
        let mut first_reads = vec![Vec::new(); segments.len()];
        for parameter in 0..graph.parameters.len() {
            let reads = |segment: &Segment| {
                let nodes = &graph.nodes[segment.nodes.clone()];
                nodes.iter().any(|node| node.op.parameters().iter().any(|read| read.index() == parameter))
            };
            first_reads[segments.iter().position(reads).unwrap_or(0)].push(parameter);
        }
        let (segments, first_reads) = (segments.into(), first_reads.into());
        Self { segments, first_reads, recomputes, records: Arc::default() }
    }

    /// An empty tape for the same graph.
    pub(super) fn fresh(&self) -> Self {
        Self { records: Arc::default(), ..self.clone() }
    }
}

impl Network {
    /// The same network with gradient checkpointing: [`Network::forward`] records no graph, and [`Network::gradients`]
    /// recomputes each segment. No gradient flows to the input.
    pub(crate) fn checkpointed(self) -> Self {
        let tape = Tape::new(&self.program.graph, true);
        Self { tape: Some(tape), ..self }
    }

    /// The same network, whose [`Network::gradients_in_turn`] come segment by segment. No gradient flows to the input.
    pub(crate) fn in_segments(self) -> Self {
        let tape = Tape::new(&self.program.graph, false);
        Self { tape: Some(self.tape.unwrap_or(tape)), ..self }
    }

    /// The output `[B, C, H, W]` as a leaf of a new autodiff graph.
    pub(super) fn forward_in_segments(&self, inputs: Inputs, tape: &Tape) -> Tensor<4> {
        let graph = &self.program.graph;
        let plain = self.without_gradients();
        // Without gradients there is no dropout.
        let plain = Self { dropout: self.dropout, ..plain };
        let network = if tape.recomputes { &plain } else { self };
        let inputs = Inputs { x: inputs.x.inner(), time: inputs.time.inner(), ..inputs };
        let mut pass = Pass::new(inputs, graph.shapes.len());
        let mut sections = Vec::new();
        for segment in &*tape.segments {
            let section = network.run_segment(segment, &mut pass);
            for (value, output) in &section.outputs {
                pass.values[value.index()] = Some(output.clone().detached());
            }
            if !tape.recomputes {
                sections.push(section);
            }
        }
        let output = single(pass.take(graph.output).into_map()).autodiff().require_grad();
        let record = Record { pass, sections, output: output.clone() };
        tape.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        output
    }

    /// Calls `each` with every parameter and its gradient, given those with respect to the outputs of the recorded passes;
    /// `None` for a parameter that no output depends on. A gradient comes as soon as it is complete.
    pub(super) fn backward_in_segments(
        &self,
        tape: &Tape,
        gradients: &mut Gradients,
        each: &mut dyn FnMut(usize, Option<Tensor<1>>),
    ) {
        let mut sums = vec![None; self.parameters.len()];
        let records = std::mem::take(&mut *tape.records.lock().unwrap_or_else(PoisonError::into_inner));
        let mut due: Vec<_> = records
            .into_iter()
            .filter_map(|record| Some((record.output.grad_remove(gradients)?, record.pass, record.sections)))
            .collect();
        let last = due.pop();
        for (gradient, pass, sections) in due {
            self.backward_of_pass(tape, gradient, pass, sections, &mut sums, &mut |_, _| {});
        }
        let base = self.base.len();
        let mut complete = |segment: usize, sums: &mut [Option<Tensor<1>>]| {
            for place in tape.first_reads[segment].iter().filter_map(|parameter| parameter.checked_sub(base))
            {
                each(place, sums[place].take());
            }
        };
        match last {
            Some((gradient, pass, sections)) => {
                self.backward_of_pass(tape, gradient, pass, sections, &mut sums, &mut complete);
            }
            None => (0..tape.segments.len()).for_each(|segment| complete(segment, &mut sums)),
        }
    }

    /// The backward pass of one forward pass: adds the gradients of the parameters to `sums`, and calls `done` with every
    /// segment, the last one first.
    fn backward_of_pass(
        &self,
        tape: &Tape,
        gradient: Tensor<4>,
        mut pass: Pass,
        mut sections: Vec<Section>,
        sums: &mut [Option<Tensor<1>>],
        done: &mut dyn FnMut(usize, &mut [Option<Tensor<1>>]),
    ) {
        let mut due = BTreeMap::from([(self.program.graph.output, Output::Map(gradient))]);
        for (index, segment) in tape.segments.iter().enumerate().rev() {
            let section = sections.pop().unwrap_or_else(|| self.run_segment(segment, &mut pass));
            self.backward(section, &mut due, sums);
            done(index, sums);
        }
    }

    /// Runs a segment on the values that `recorded` has of other segments, with its dropout masks.
    fn run_segment(&self, segment: &Segment, recorded: &mut Pass) -> Section {
        let mut pass = Pass::new(recorded.inputs.clone(), recorded.values.len());
        std::mem::swap(&mut pass.masks, &mut recorded.masks);
        let records = self.parameters.first().is_some_and(|parameter| parameter.device().is_autodiff());
        let mut inputs = Vec::with_capacity(segment.inputs.len());
        for &input in &segment.inputs {
            let value = recorded.values[input.index()].clone();
            let value = value.map(|value| if records { value.into_leaf() } else { value });
            pass.values[input.index()] = value.clone();
            inputs.extend(value.map(|value| (input, value)));
        }
        for index in segment.nodes.clone() {
            self.run(index, &mut pass);
        }
        std::mem::swap(&mut pass.masks, &mut recorded.masks);
        // The values that are left have readers outside.
        let nodes = &self.program.graph.nodes[segment.nodes.clone()];
        let left = |value: Value| Some((value, pass.values[value.index()].take()?));
        Section { inputs, outputs: nodes.iter().map(|node| node.output).filter_map(left).collect() }
    }

    /// The backward pass of a segment. Takes the gradients of its outputs from `due`; adds those of its inputs to `due` and
    /// those of its parameters to `sums`.
    fn backward(&self, section: Section, due: &mut BTreeMap<Value, Output>, sums: &mut [Option<Tensor<1>>]) {
        let mut loss: Option<Tensor<1>> = None;
        for (value, output) in section.outputs {
            let Some(gradient) = due.remove(&value) else { continue };
            // Its gradient with respect to the output is `gradient`.
            let term = output.dot(gradient);
            loss = Some(match loss {
                Some(loss) => loss + term,
                None => term,
            });
        }
        // A segment of fixed weights, before everything that is trained, has no gradients.
        let Some(loss) = loss.filter(Tensor::is_tracked) else { return };
        let mut gradients = loss.backward();
        for (input, leaf) in section.inputs {
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

    /// The same value without its autodiff graph.
    fn detached(self) -> Self {
        match self {
            Self::Map(x) => Self::Map(without_graph(x)),
            Self::Vector(x) => Self::Vector(without_graph(x)),
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

fn without_graph<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.device().is_autodiff() { x.inner() } else { x }
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
        let recomputed = gradients(&denoiser.clone().checkpointed());
        // Nothing is computed twice, so that dropout's numbers are drawn in the same order.
        let kept = gradients(&denoiser.in_segments());
        let norm = |values: &[f32]| values.iter().map(|x| x * x).sum::<f32>().sqrt();
        // Rounding errors are those of the largest gradients, through which all others are computed.
        let least = 1e-2 * norm(&plain.concat());
        for found in [recomputed, kept] {
            for ((plain, found), parameter) in plain.iter().zip(&found).zip(spec().graph().parameters) {
                let difference: Vec<f32> = plain.iter().zip(found).map(|(a, b)| a - b).collect();
                let (size, error) = (norm(plain).max(least), norm(&difference));
                assert!(error < 1e-5 * size, "{}: {error} of {size}", parameter.name);
            }
        }
    }

    #[test]
    fn gradients_come_once_each_from_the_output_to_the_input() {
        let NetworkSpec::Adm(mut spec) = spec() else { panic!("ADM's U-Net") };
        spec.dropout = 0.0;
        let denoiser =
            Denoiser::new(&random_model(spec, &Prediction::Velocity, 3), &Device::flex().autodiff());
        let names: Vec<String> = denoiser.tensors().into_iter().map(|tensor| tensor.name).collect();
        for denoiser in [denoiser.clone().in_segments(), denoiser.checkpointed()] {
            for evaluations in [0, 1, 2] {
                let evaluate = |i| {
                    denoiser.velocity(
                        images(i).autodiff(),
                        &[0.2, 0.7],
                        Some(labels_tensor(&[0, 2], &Device::flex())),
                    )
                };
                let zero = images(2).autodiff().require_grad();
                let loss = (0..evaluations).map(evaluate).fold(zero, |sum, v| sum + v).mean();
                let mut order = Vec::new();
                denoiser.gradients_in_turn(&loss, |place, _| order.push(names[place].as_str()));
                let place = |name: &str| order.iter().position(|other| *other == name).unwrap();
                assert_eq!(order.len(), names.len());
                assert!(names.iter().all(|name| order.contains(&name.as_str())));
                if evaluations > 0 {
                    assert!(place("out.2.weight") < place("middle_block.1.qkv.weight"), "{order:?}");
                    assert!(place("middle_block.1.qkv.weight") < place("input_blocks.0.0.weight"));
                    assert!(place("middle_block.1.qkv.weight") < place("time_embed.0.weight"));
                }
            }
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
