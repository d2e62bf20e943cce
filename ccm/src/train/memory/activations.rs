//! Bytes of the activations of a graph for one image, at the peak of a forward or a backward pass.

use std::collections::{BTreeMap, BTreeSet};

use super::SINGLE;
use crate::config::EncoderWeights;
use crate::method::discriminator::WIDTH;
use crate::model::graph::{Activation, Attention, Graph, Node, Op, Value, last_reads};
use crate::nn::encoder::encoder_nodes;

/// Sizes of the activations of a fused graph.
pub(super) struct Activations<'a> {
    pub(super) graph: &'a Graph,
    /// Bytes of a value that passes from node to node.
    pub(super) value: u64,
}

/// Bytes of a backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backward {
    /// What the forward pass keeps for it.
    pub(super) kept: u64,
    /// The peak, including gradients.
    pub(super) peak: u64,
}

impl Activations<'_> {
    /// Bytes of a node's output.
    pub(super) fn size(&self, value: Value) -> u64 {
        let shape = self.graph.shape(value);
        self.value * (shape.channels() * shape.positions()) as u64
    }

    fn sizes<'b>(&self, values: impl IntoIterator<Item = &'b Value>) -> u64 {
        values.into_iter().map(|value| self.size(*value)).sum()
    }

    /// Scores of a node, for one image: a number for each head, query and key. 0 if it is not attention.
    fn scores(&self, node: &Node) -> u64 {
        let positions = |of: Value| self.graph.shape(of).positions();
        let scores = match node.op {
            Op::QkvAttention { qkv, heads, .. } => heads * positions(qkv) * positions(qkv),
            Op::Attention(Attention { qkv: [q, k, _], heads, .. }) => heads * positions(q) * positions(k),
            _ => 0,
        };
        scores as u64
    }

    /// Bytes that a node computes besides its output and that its backward pass reads: for attention, the shifted scores and their
    /// exponentials in single precision, the weights and the scaled queries; for a layer norm, the centred, the divided and the
    /// scaled values in single precision; for an activation function, its inner functions, and its input where that is converted.
    fn inner(&self, node: &Node) -> u64 {
        let output = self.size(node.output);
        match node.op {
            Op::QkvAttention { .. } | Op::Attention(_) => {
                (2 * SINGLE + self.value) * self.scores(node) + output
            }
            Op::LayerNorm(_) => 3 * SINGLE * output / self.value,
            Op::Dropout(..) => output,
            Op::Activate(_, activation) => {
                let maps = match activation {
                    Activation::GeluTanh => 2,
                    Activation::QuickGelu => 1,
                    Activation::Silu | Activation::Gelu | Activation::Relu | Activation::Tanh => 0,
                };
                SINGLE * output / self.value * (maps + u64::from(self.value != SINGLE))
            }
            _ => 0,
        }
    }

    /// Bytes that the backward pass of a node needs besides what the forward pass has kept and the gradients of values: for
    /// attention, the gradient of the weights.
    fn in_backward(&self, node: &Node) -> u64 {
        match self.scores(node) {
            0 => self.inner(node),
            scores => SINGLE * scores + self.size(node.output),
        }
    }

    /// Bytes that a node needs besides its inputs and its output if no backward pass follows: for attention, two of the three
    /// numbers for each score at a time.
    fn in_forward(&self, node: &Node) -> u64 {
        match self.scores(node) {
            0 => self.inner(node),
            scores => 2 * SINGLE * scores + self.size(node.output),
        }
    }

    /// The backward pass of consecutive nodes.
    pub(super) fn backward(&self, nodes: &[Node]) -> Backward {
        let mut readers: BTreeMap<Value, usize> = BTreeMap::new();
        for value in nodes.iter().flat_map(|node| self.kept_inputs(&node.op)) {
            *readers.entry(value).or_default() += 1;
        }
        let kept = self.sizes(readers.keys()) + nodes.iter().map(|node| self.inner(node)).sum::<u64>();
        let mut gradients: BTreeSet<Value> = nodes.last().map(|node| node.output).into_iter().collect();
        let mut now = kept + self.sizes(&gradients);
        let mut peak = now;
        for node in nodes.iter().rev().filter(|node| !node.op.inputs().is_empty()) {
            let inputs = node.op.inputs();
            peak = peak.max(now + self.sizes(&inputs) + self.in_backward(node));
            if gradients.remove(&node.output) {
                now -= self.size(node.output);
            }
            for value in inputs {
                if gradients.insert(value) {
                    now += self.size(value);
                }
            }
            now -= self.inner(node);
            for value in self.kept_inputs(&node.op) {
                let left = readers.entry(value).or_default();
                *left -= 1;
                if *left == 0 {
                    now -= self.size(value);
                }
            }
        }
        Backward { kept, peak }
    }

    /// The backward pass with gradient checkpointing: what segments pass to each other is kept, and the values of one segment are
    /// there at a time.
    pub(super) fn recomputed(&self) -> Backward {
        let segments = self.graph.segments();
        let passed: BTreeSet<Value> =
            segments.iter().flat_map(|segment| segment.inputs.iter().copied()).collect();
        let kept = self.sizes(&passed);
        let of_segment = |nodes| self.backward(&self.graph.nodes[nodes]).peak;
        let largest = segments.into_iter().map(|segment| of_segment(segment.nodes)).max();
        Backward { kept, peak: kept + largest.unwrap_or(0) }
    }

    /// The peak of the distance of teacher features: the encoder's activations for the student's image, its features, those of the
    /// target and their differences.
    pub(super) fn of_features(&self) -> u64 {
        let Backward { kept, peak } = self.backward(encoder_nodes(self.graph));
        let features = self.sizes(&self.graph.features);
        (peak + 3 * features).max(kept + features + self.forward())
    }

    /// The discriminator's part, beside the features of a real and a generated image: the student's gradient, by way of a head
    /// and the encoder, then the gradients of the heads, for both images. For a trained encoder, they go on into it.
    pub(super) fn of_discriminator(&self, encoder: EncoderWeights) -> u64 {
        let features = &self.graph.features;
        let Backward { kept, peak } = self.backward(encoder_nodes(self.graph));
        let positions: usize = features.iter().map(|value| self.graph.shape(*value).positions()).sum();
        // The maps before and after the norm, and the weighted one or a gradient.
        let heads = 3 * self.value * (WIDTH * positions) as u64;
        let of_heads = match encoder {
            EncoderWeights::Frozen => 2 * heads,
            EncoderWeights::Trained => kept + peak.max(kept + 2 * heads),
        };
        2 * self.sizes(features) + peak.max(kept + heads).max(of_heads)
    }

    /// Most at one time in a forward pass without gradients: values that are still to be read, and what a node computes.
    pub(super) fn forward(&self) -> u64 {
        let (mut now, mut peak) = (0, 0);
        for (node, dropped) in self.graph.nodes.iter().zip(last_reads(&self.graph.nodes)) {
            now += self.size(node.output);
            peak = peak.max(now + self.in_forward(node));
            now -= self.sizes(&dropped);
        }
        peak
    }

    /// The inputs of a node that its backward pass reads, without repetition.
    fn kept_inputs(&self, op: &Op) -> BTreeSet<Value> {
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
            | Op::LayerNorm(_) => BTreeSet::new(),
            Op::Activate(..) if self.value != SINGLE => BTreeSet::new(),
            op => op.inputs().into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::graph::build;

    #[test]
    fn values_are_counted_until_their_last_reader() {
        // 4 x 36 values each. Forward, the sum has both of its terms and itself. Backward, the inputs of the convolutions are
        // kept; most is needed when the sum's gradient goes to both terms, beside the image, `x` and itself.
        let graph = build(|g| {
            let x = g.conv("a", g.image([4, 6, 6]), 4, 3);
            let y = g.conv("b", x, 4, 3);
            g.conv("c", g.add(x, y), 4, 3)
        });
        let map = SINGLE * 4 * 36;
        let of = Activations { graph: &graph, value: SINGLE };
        assert_eq!(of.forward(), 3 * map);
        assert_eq!(of.backward(&graph.nodes), Backward { kept: 3 * map, peak: 5 * map });
        assert_eq!(of.recomputed().kept, map);
        let attention = build(|g| {
            let x = g.image([4, 6, 6]);
            g.attention([x, x, x], 2)
        });
        let kept = |value| Activations { graph: &attention, value }.backward(&attention.nodes).kept;
        assert_eq!(kept(SINGLE), map + map + 3 * SINGLE * 2 * 36 * 36);
        assert_eq!(kept(2), (map + map) / 2 + (2 * SINGLE + 2) * 2 * 36 * 36);
    }
}
