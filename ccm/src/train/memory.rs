//! What a training step of distillation needs of a device's memory, by part, computed from the networks' graphs.
//!
//! The figures are those of tensors in single precision that Burn keeps at once; its allocator and its kernels add to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::config::{Config, DistillConfig, FixedPrecision, RunConfig};
use crate::method::discriminator::Heads;
use crate::model::graph::{Attention, Conv, Graph, Node, Op, Segment, Value, last_reads};
use crate::model::json::Json;
use crate::model::{NetworkSpec, SpecError, TensorSpec};
use crate::nn::denoiser::lora_tensors;

/// Bytes of a value in single precision.
const SINGLE: u64 = 4;
/// Images that a step of distillation holds for each image of the batch: the image, noise, `x_t`, the student's estimate, the
/// target, their gradients, and noise for the discriminator.
const IMAGES: u64 = 10;

/// The published network that a preset is for, if the preset needs a pipeline, for the configuration's image size.
pub fn reference_network(preset: &str, config: &Config) -> Option<NetworkSpec> {
    /// Pixels a side of a value of Stable Diffusion's latents.
    const REDUCTION: usize = 8;
    let network = published_network(preset)?;
    Some(match config.data.image_size {
        Some(size) => network.with_size(size.map(|size| size / REDUCTION)),
        None => network,
    })
}

/// The published network that a preset is for, if the preset needs a pipeline.
pub fn published_network(preset: &str) -> Option<NetworkSpec> {
    let config = match preset {
        "sd15" => include_str!("../../presets/networks/sd15.json"),
        "sd3" => include_str!("../../presets/networks/sd3.json"),
        "sdxl" => include_str!("../../presets/networks/sdxl.json"),
        _ => return None,
    };
    NetworkSpec::from_config(&Json::parse(config).ok()?).ok()
}

/// Bytes of one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What they hold.
    pub name: &'static str,
    /// Their number.
    pub bytes: u64,
}

/// The parts of a training step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Parts that are in memory at the same time, at the step's peak.
    pub parts: Vec<Part>,
}

impl Memory {
    /// Bytes of all parts.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// The memory of a distillation step with `images` images in a backward pass.
    ///
    /// # Errors
    /// If a target of the low-rank products names no layer.
    pub fn of_distillation(
        network: &NetworkSpec,
        config: &DistillConfig,
        images: usize,
        run: &RunConfig,
    ) -> Result<Self, SpecError> {
        let checkpointing = run.gradient_checkpointing;
        let count = |tensors: &[TensorSpec]| -> u64 {
            tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
        };
        let (graph, weights) = (network.graph(), count(&network.tensors()));
        let (student, trained) = match config.lora() {
            Some(lora) => (graph.with_lora(&lora)?, count(&lora_tensors(network, &lora)?)),
            None => (graph.clone(), weights),
        };
        let (student, graph) = (student.fused(), graph.fused());
        let fixed = match config.fixed_precision.unwrap_or_default() {
            FixedPrecision::F32 => SINGLE,
            FixedPrecision::F16 => SINGLE / 2,
        };
        let between = if run.mixed_precision.is_some() { SINGLE / 2 } else { SINGLE };
        // The backward pass of a layer reads the weight that its forward pass has converted.
        let stored = if config.lora().is_some() { fixed } else { SINGLE };
        let converted = match (stored == between, checkpointing) {
            (true, _) => 0,
            (false, true) => between * largest_weights(&student),
            (false, false) => between * weights,
        };
        // In eight bits, a scale for 256 values.
        let moments = if run.eight_bit_optimizer { 2 } else { 2 * SINGLE };
        let images = images as u64;
        let guided = if config.guidance.is_some() { 2 } else { 1 };
        let adversarial = config.adversarial_weight > 0.0;
        let heads = if adversarial { count(&Heads::tensors(network)) } else { 0 };
        // The teacher and the discriminator are done before the student's backward pass begins.
        let [waiting, backward] = match checkpointing {
            true => {
                let of_segment = |segment: Segment| backward(&student, &student.nodes[segment.nodes])[1];
                let largest = student.segments().into_iter().map(of_segment).max().unwrap_or(0);
                let passed = checkpoints(&student);
                [passed, passed + largest]
            }
            false => backward(&student, &student.nodes),
        };
        let of_teacher = waiting * between + guided * live(&graph) * between;
        let of_discriminator = match adversarial {
            true => waiting * between + (backward_of_encoder(&graph) + features(&graph)) * SINGLE,
            false => 0,
        };
        let activations = of_teacher.max(of_discriminator).max(backward * between);
        let parts = [
            ("the teacher's weights, which are also those beside low-rank products", fixed * weights),
            ("trained values, two averages and a gradient", 4 * SINGLE * trained),
            ("the optimiser's two moments", moments * trained),
            ("the discriminator with its averages, moments and gradient", 4 * SINGLE * heads),
            ("weights in another precision, as long as a backward pass needs them", converted),
            (
                "images of the batch, with noise and targets",
                SINGLE * images * IMAGES * size(&graph, graph.input()),
            ),
            (
                "activations at the peak: the student's, with the teacher's, the discriminator's or its own gradients",
                images * activations,
            ),
        ];
        let parts = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
        Ok(Self { parts: parts.map(|(name, bytes)| Part { name, bytes }).collect() })
    }
}

impl fmt::Display for Memory {
    /// One line for each part, and the sum.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        for Part { name, bytes } in &self.parts {
            writeln!(f, "{:>8.3} GB  {name}", gigabytes(*bytes))?;
        }
        write!(f, "{:>8.3} GB  together", gigabytes(self.total()))
    }
}

/// Values of the weights of the segment that has most of them.
fn largest_weights(graph: &Graph) -> u64 {
    let weight = |node: &Node| match node.op {
        Op::Conv(Conv { affine, .. }) | Op::Linear(_, affine) => {
            graph.parameter(affine.weight).shape.iter().product::<usize>() as u64
        }
        _ => 0,
    };
    let of_segment = |nodes: &[Node]| nodes.iter().map(weight).sum::<u64>();
    graph.segments().into_iter().map(|segment| of_segment(&graph.nodes[segment.nodes])).max().unwrap_or(0)
}

/// Number of values of a node's output, for one image.
fn size(graph: &Graph, value: Value) -> u64 {
    let shape = graph.shape(value);
    (shape.channels() * shape.positions()) as u64
}

/// Values that a node computes besides its output and that its backward pass reads: the scores of attention before and after
/// the softmax, and the centred, the divided and the scaled values of a layer norm.
fn inner(graph: &Graph, node: &Node) -> u64 {
    let scores = |heads: usize, queries: Value, keys: Value| {
        let positions = |of: Value| graph.shape(of).positions() as u64;
        2 * heads as u64 * positions(queries) * positions(keys)
    };
    match node.op {
        Op::QkvAttention { qkv, heads, .. } => scores(heads, qkv, qkv) + size(graph, node.output),
        Op::Attention(Attention { qkv: [q, k, _], heads, .. }) => scores(heads, q, k) + size(graph, q),
        Op::LayerNorm(_) => 3 * size(graph, node.output),
        Op::Dropout(..) => size(graph, node.output),
        _ => 0,
    }
}

/// The inputs of a node that its backward pass reads.
fn kept_inputs(op: &Op) -> Vec<Value> {
    match op {
        Op::Add(..)
        | Op::AddVector(..)
        | Op::Concat(..)
        | Op::Join(..)
        | Op::Chunk { .. }
        | Op::Part { .. }
        | Op::PatchChannels { .. }
        | Op::Upsample(_)
        | Op::AveragePool(_)
        | Op::Scale { .. }
        | Op::Dropout(..)
        | Op::LayerNorm(_) => Vec::new(),
        op => {
            let mut inputs = op.inputs();
            inputs.sort_unstable();
            inputs.dedup();
            inputs
        }
    }
}

/// Values that the backward pass of nodes needs: before it begins, and at its peak, with gradients.
fn backward(graph: &Graph, nodes: &[Node]) -> [u64; 2] {
    let mut readers: BTreeMap<Value, usize> = BTreeMap::new();
    for value in nodes.iter().flat_map(|node| kept_inputs(&node.op)) {
        *readers.entry(value).or_default() += 1;
    }
    let inner_values: u64 = nodes.iter().map(|node| inner(graph, node)).sum();
    let kept = inner_values + readers.keys().map(|value| size(graph, *value)).sum::<u64>();
    let mut gradients: BTreeSet<Value> = nodes.last().map(|node| node.output).into_iter().collect();
    let mut now = kept + gradients.iter().map(|value| size(graph, *value)).sum::<u64>();
    let mut most = now;
    for node in nodes.iter().rev().filter(|node| !node.op.inputs().is_empty()) {
        let of_inputs: Vec<Value> = node.op.inputs();
        most = most
            .max(now + of_inputs.iter().map(|value| size(graph, *value)).sum::<u64>() + inner(graph, node));
        if gradients.remove(&node.output) {
            now -= size(graph, node.output);
        }
        for value in of_inputs {
            if gradients.insert(value) {
                now += size(graph, value);
            }
        }
        now -= inner(graph, node);
        for value in kept_inputs(&node.op) {
            let left = readers.entry(value).or_default();
            *left -= 1;
            if *left == 0 {
                now -= size(graph, value);
            }
        }
    }
    [kept, most]
}

/// Values of a backward pass through the encoder.
fn backward_of_encoder(graph: &Graph) -> u64 {
    let is_feature = |node: &Node| graph.features.contains(&node.output);
    let end = graph.nodes.iter().rposition(is_feature).map_or(0, |last| last + 1);
    backward(graph, &graph.nodes[..end])[1]
}

/// Values of the features of two images: a real and a generated one.
fn features(graph: &Graph) -> u64 {
    2 * graph.features.iter().map(|value| size(graph, *value)).sum::<u64>()
}

/// Values that gradient checkpointing keeps: those that segments pass to each other.
fn checkpoints(graph: &Graph) -> u64 {
    let mut passed: Vec<Value> = graph.segments().into_iter().flat_map(|segment| segment.inputs).collect();
    passed.sort_unstable();
    passed.dedup();
    passed.into_iter().map(|value| size(graph, value)).sum()
}

/// Most values at one time in a forward pass without gradients: those that are still to be read, and what a node computes.
fn live(graph: &Graph) -> u64 {
    let (mut now, mut most) = (0, 0);
    for (node, dropped) in graph.nodes.iter().zip(last_reads(&graph.nodes)) {
        now += size(graph, node.output);
        most = most.max(now + inner(graph, node));
        now -= dropped.into_iter().map(|value| size(graph, value)).sum::<u64>();
    }
    most
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::graph::build;

    #[test]
    fn values_are_counted_until_their_last_reader() {
        // 4 x 36 values each. Forward, the sum has both of its terms and itself. Backward, the inputs of the convolutions are kept;
        // most is needed when the sum's gradient goes to both terms, beside the image, `x` and itself.
        let graph = build(|g| {
            let x = g.conv("a", g.image([4, 6, 6]), 4, 3);
            let y = g.conv("b", x, 4, 3);
            g.conv("c", g.add(x, y), 4, 3)
        });
        let map = 4 * 36;
        assert_eq!((live(&graph), backward(&graph, &graph.nodes)), (3 * map, [3 * map, 5 * map]));
        assert_eq!(checkpoints(&graph), map);
        let attention = build(|g| {
            let x = g.image([4, 6, 6]);
            g.attention([x, x, x], 2)
        });
        assert_eq!(backward(&attention, &attention.nodes)[0], map + map + 2 * 2 * 36 * 36);
    }

    #[test]
    fn stable_diffusion_xl_fits_a_card_of_24_gigabytes() {
        let config = Config::preset("sdxl").unwrap();
        let network = reference_network("sdxl", &config).unwrap();
        assert_eq!((network.parameters(), network.image()), (2_567_463_684, [4, 128, 128]));
        let memory = Memory::of_distillation(&network, &config.distill, 1, &config.run).unwrap();
        println!("{memory}");
        assert!(memory.total() < 24_000_000_000, "{memory}");
        // Half precision: two bytes a weight.
        assert_eq!(memory.parts[0].bytes, 2 * 2_567_463_684);
    }
}
