//! What a training step of distillation needs of a device's memory, by part, computed from the networks' graphs.
//!
//! The figures count the tensors that Burn holds at once; its allocator and its kernels add to them.

mod activations;
mod distances;

use std::fmt;

use activations::{Activations, Backward};
use distances::of_distance;

use crate::config::{Config, DistillConfig, EncoderWeights, FixedPrecision, HalfPrecision, RunConfig};
use crate::method::discriminator::Heads;
use crate::model::graph::{Conv, Graph, Node, Op};
use crate::model::json::Json;
use crate::model::{NetworkSpec, SpecError, TensorSpec};
use crate::nn::denoiser::lora_tensors;
use crate::nn::encoder::encoder;

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

/// Number of values in the tensors.
fn count(tensors: &[TensorSpec]) -> u64 {
    tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
}

/// Number of trained values of a discriminator on the features of a network.
pub(super) fn discriminator_values(network: &NetworkSpec, encoder_weights: EncoderWeights) -> u64 {
    let of_encoder = match encoder_weights {
        EncoderWeights::Frozen => 0,
        EncoderWeights::Trained => {
            let parameters = encoder(&network.graph()).parameters;
            parameters.iter().map(|of| of.shape.iter().product::<usize>() as u64).sum()
        }
    };
    count(&Heads::tensors(network)) + of_encoder
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

    /// Bytes of a process on a CPU, without its images: its allocator keeps freed memory for the next step. Measured (see
    /// `docs/several-devices.md`).
    pub fn of_process(&self) -> u64 {
        const PROGRAM: u64 = 200_000_000;
        PROGRAM + self.total() * 23 / 20
    }

    /// The memory of a distillation step with at most `images` images in a backward pass. Without `run.threads`, one thread
    /// computes it.
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
        // In eight bits, a scale for 256 values.
        let moments = if run.eight_bit_optimizer { 2 } else { 2 * SINGLE };
        // Every thread has a part of the batch at a time, a gradient of it, and the sum of those of its earlier parts.
        let threads = run.threads.unwrap_or(1);
        let images = config.batch.min(threads * images.min(config.batch.div_ceil(threads))) as u64;
        let gradients = threads as u64 * if images < config.batch as u64 { 2 } else { 1 };
        // The backward pass of a layer reads the weight that its forward pass has converted, in every thread.
        let is_stored = matches!(
            (config.lora(), config.fixed_precision, run.mixed_precision),
            (None, _, None)
                | (Some(_), None | Some(FixedPrecision::F32), None)
                | (Some(_), Some(FixedPrecision::F16), Some(HalfPrecision::F16))
        );
        let converted = match (is_stored, checkpointing) {
            (true, _) => 0,
            (false, true) => threads as u64 * between * largest_weights(&student),
            (false, false) => threads as u64 * between * weights,
        };
        // Classifier-free guidance evaluates both conditions in one batch, autoguidance one network after the other.
        let guided = if config.guidance.is_some() { 2 } else { 1 };
        let adversarial = config.adversarial_weight > 0.0;
        let lpips =
            config.distance.trunk().map_or(0, |trunk| trunk.tensors().iter().map(|of| count(of)).sum());
        let discriminator_encoder = config.discriminator_encoder.unwrap_or_default();
        let discriminator =
            if adversarial { discriminator_values(network, discriminator_encoder) } else { 0 };
        // The teacher and the discriminator are done before the student's backward pass begins.
        let student = Activations { graph: &student, value: between };
        let Backward { kept, peak } = match checkpointing {
            true => student.recomputed(),
            false => student.backward(&student.graph.nodes),
        };
        let teacher = Activations { graph: &graph, value: between };
        let encoder = Activations { graph: &graph, value: SINGLE };
        let of_adversary = if adversarial { encoder.of_discriminator(discriminator_encoder) } else { 0 };
        let [_, height, width] = network.image();
        // The distance and the discriminator take turns.
        let losses = of_adversary.max(of_distance(config.distance, &encoder, [height, width]));
        let activations = peak.max(kept + losses).max(kept + guided * teacher.forward());
        let parts = [
            ("the teacher's weights, which are also those beside low-rank products", fixed * weights),
            (
                "the weaker teacher's weights",
                if config.autoguidance.is_some() { SINGLE * weights } else { 0 },
            ),
            ("trained values, two averages and gradients", (3 + gradients) * SINGLE * trained),
            ("the optimiser's two moments", moments * trained),
            ("the discriminator's weights, moments and gradient", 4 * SINGLE * discriminator),
            ("the weights of LPIPS", SINGLE * lpips),
            ("weights converted for the backward pass", converted),
            ("images of the batch, with noise and targets", images * IMAGES * encoder.size(graph.input())),
            (
                "activations at the peak, with those of the teacher, the distance or the discriminator, or with gradients",
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
