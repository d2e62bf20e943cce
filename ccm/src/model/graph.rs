//! A network as a list of operations on named parameters.
//!
//! Each family of networks builds its graph with a [`Builder`] (see [`super::networks`]). Two interpreters run the
//! graph: `nn` on Burn tensors, with gradients, and `sampler` as a plan for its kernels. Neither has code for a
//! particular family.
//!
//! A value is a feature map `[B, C, H, W]` or a vector `[B, C]`; [`Shape`] omits the batch. A sequence of tokens is a map
//! of height 1. Every value is the output of one [`Node`]. Nodes are listed in execution order.

mod builder;
#[cfg(feature = "text")]
pub mod lora;
mod op;

use std::ops::Range;

pub use builder::{Builder, build};
pub use op::{
    Activation, Affine, Attention, AttentionBias, Conv, GUIDANCE_FACTOR, GroupNorm, LayerNorm, Op, Padding,
    PositionEmbedding, QkvOrder, RelativeBias, TimestepEmbedding,
};

/// The output of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value(usize);

impl Value {
    /// Its index in [`Graph::shapes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// A parameter: an index into [`Graph::parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Param(usize);

impl Param {
    /// Its index in [`Graph::parameters`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// The shape of a value, without the batch dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A feature map, `[channels, height, width]`.
    Map([usize; 3]),
    /// A vector, `[channels]`.
    Vector(usize),
}

impl Shape {
    /// Number of channels.
    pub fn channels(self) -> usize {
        match self {
            Self::Map([channels, ..]) | Self::Vector(channels) => channels,
        }
    }

    /// Number of positions (pixels or tokens) of a map; 1 for a vector.
    pub fn positions(self) -> usize {
        self.size().iter().product()
    }

    /// The same with another number of channels.
    fn with_channels(self, channels: usize) -> Self {
        match self {
            Self::Map([_, height, width]) => Self::Map([channels, height, width]),
            Self::Vector(_) => Self::Vector(channels),
        }
    }

    /// Height and width of a map; 1 and 1 for a vector.
    fn size(self) -> [usize; 2] {
        match self {
            Self::Map([_, height, width]) => [height, width],
            Self::Vector(_) => [1, 1],
        }
    }
}

/// Initialisation of a parameter before training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Uniform in `±1 / sqrt(fan_in)`, as in PyTorch's layers.
    Uniform {
        /// Number of inputs of each output.
        fan_in: usize,
    },
    /// Standard normal.
    Normal,
    /// Zero.
    Zeros,
    /// One.
    Ones,
    /// Sines and cosines of positions in the middle of a square grid: diffusers' `get_2d_sincos_pos_embed`. The shape is
    /// `[1, side * side, channels]`.
    Sincos {
        /// Side of the part of the grid whose positions are whole numbers.
        base_size: usize,
    },
}

/// A named parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The name in the original library's state dict, such as `input_blocks.1.0.in_layers.2.weight`.
    pub name: String,
    /// Dimensions in PyTorch's order.
    pub shape: Vec<usize>,
    /// Distribution of its initial values.
    pub init: Init,
}

/// Name and shape of one tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name.
    pub name: String,
    /// Dimensions in PyTorch's order.
    pub shape: Vec<usize>,
}

/// An operation and its output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// Its output.
    pub output: Value,
}

/// A network.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// The operations, in order.
    pub nodes: Vec<Node>,
    /// The shape of every value.
    pub shapes: Vec<Shape>,
    /// The parameters, in the order of the original library's state dict.
    pub parameters: Vec<Parameter>,
    /// The network's output.
    pub output: Value,
    /// A second output of text encoders: a map, one of whose positions is the embedding of the text as a whole.
    pub pooled: Option<Value>,
    /// Feature maps of the input: the last map of each size in the encoder, then the output of the middle block.
    pub features: Vec<Value>,
}

impl Graph {
    /// The shape of a value.
    pub fn shape(&self, value: Value) -> Shape {
        self.shapes[value.0]
    }

    /// The network's input: the image, or the embedded tokens of a network without an image.
    ///
    /// # Panics
    /// If it reads neither.
    pub fn input(&self) -> Value {
        let node = self.nodes.iter().find(|node| matches!(node.op, Op::Image));
        #[cfg(feature = "text")]
        let node = node.or_else(|| self.nodes.iter().find(|node| matches!(node.op, Op::TokenEmbedding(_))));
        node.unwrap_or_else(|| panic!("a network reads an image or tokens")).output
    }

    /// A parameter.
    pub fn parameter(&self, param: Param) -> &Parameter {
        &self.parameters[param.0]
    }

    /// Number of reads of each value. The outputs and the features count as reads.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.shapes.len()];
        let mut read = |value: Value| uses[value.0] += 1;
        for node in &self.nodes {
            node.op.inputs().into_iter().for_each(&mut read);
        }
        read(self.output);
        self.pooled.into_iter().for_each(&mut read);
        self.features.iter().copied().for_each(&mut read);
        uses
    }

    /// Fuses operations: SiLU and a modulation into the norm before them, and the addition of a vector into the
    /// convolution before it. A value that has another reader is not fused away.
    pub fn fused(&self) -> Self {
        let uses = self.uses();
        let mut nodes: Vec<Node> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let before =
                |x: Value| nodes.iter().rposition(|before| before.output == x).filter(|_| uses[x.0] == 1);
            let joined = match node.op {
                Op::Activate(x, Activation::Silu) => before(x).and_then(|place| match nodes[place].op {
                    Op::GroupNorm(norm) if !norm.silu => {
                        Some((place, Op::GroupNorm(GroupNorm { silu: true, ..norm })))
                    }
                    _ => None,
                }),
                Op::Modulate { x, scale, shift } => before(x).and_then(|place| match nodes[place].op {
                    Op::GroupNorm(norm) if !norm.silu && norm.modulation.is_none() => {
                        let modulation = Some([scale, shift]);
                        Some((place, Op::GroupNorm(GroupNorm { modulation, ..norm })))
                    }
                    #[cfg(feature = "text")]
                    Op::LayerNorm(norm) if norm.modulation.is_none() => {
                        let modulation = Some([scale, shift]);
                        Some((place, Op::LayerNorm(LayerNorm { modulation, ..norm })))
                    }
                    _ => None,
                }),
                Op::AddVector(x, vector) => before(x).and_then(|place| match nodes[place].op {
                    Op::Conv(conv) if conv.shift.is_none() => {
                        Some((place, Op::Conv(Conv { shift: Some(vector), ..conv })))
                    }
                    _ => None,
                }),
                _ => None,
            };
            // The fused operation runs at the later position, where all its inputs exist.
            match joined {
                Some((place, op)) => {
                    nodes.remove(place);
                    nodes.push(Node { op, output: node.output });
                }
                None => nodes.push(*node),
            }
        }
        Self { nodes, ..self.clone() }
    }

    /// The network cut after every residual connection, the sum of two maps. Between these cuts stand a residual block or an
    /// attention block.
    pub fn segments(&self) -> Vec<Segment> {
        // A scaled map is a low-rank product beside a layer.
        let is_scaled = |value: Value| {
            let of = self.nodes.iter().find(|node| node.output == value);
            of.is_some_and(|node| matches!(node.op, Op::Scale { .. }))
        };
        let residual = |node: &Node| matches!(node.op, Op::Add(a, b) if matches!(self.shape(a), Shape::Map(_)) && !is_scaled(b));
        let mut segments = Vec::new();
        let mut start = 0;
        for (index, node) in self.nodes.iter().enumerate() {
            if residual(node) || index + 1 == self.nodes.len() {
                let nodes = start..index + 1;
                let inside = &self.nodes[nodes.clone()];
                let mut inputs: Vec<Value> = inside.iter().flat_map(|node| node.op.inputs()).collect();
                inputs.sort_unstable();
                inputs.dedup();
                inputs.retain(|input| inside.iter().all(|node| node.output != *input));
                segments.push(Segment { nodes, inputs });
                start = index + 1;
            }
        }
        segments
    }
}

/// Consecutive nodes that gradient checkpointing recomputes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Indices into [`Graph::nodes`].
    pub nodes: Range<usize>,
    /// Values that earlier segments compute and this one reads, without repetition.
    pub inputs: Vec<Value>,
}

/// For each node, the values that no later node reads.
pub fn last_reads(nodes: &[Node]) -> Vec<Vec<Value>> {
    let mut seen = Vec::new();
    let mut reads: Vec<Vec<Value>> = nodes
        .iter()
        .rev()
        .map(|node| {
            let mut last = node.op.inputs();
            last.sort_unstable();
            last.dedup();
            last.retain(|value| !seen.contains(value));
            seen.extend_from_slice(&last);
            last
        })
        .collect();
    reads.reverse();
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_modulations_and_shifts_join_the_operation_before_them() {
        let graph = build(|g| {
            let embed = g.label_embedding("label", 3, 8);
            let x = g.conv("a", g.image([4, 6, 6]), 8, 3);
            let x = g.group_norm("b", g.add(x, embed), 4, 1e-5);
            g.silu(g.modulate(x, [embed, embed]))
        });
        let fused = graph.fused();
        assert_eq!((graph.nodes.len(), fused.nodes.len()), (7, 4));
        assert!(matches!(fused.nodes[2].op, Op::Conv(Conv { shift: Some(_), .. })));
        let Op::GroupNorm(norm) = fused.nodes[3].op else { panic!("{:?}", fused.nodes[3]) };
        assert!(norm.silu && norm.modulation.is_some());
        assert_eq!(fused.nodes[3].output, graph.output);
    }

    #[test]
    fn a_value_that_is_read_twice_is_kept() {
        let graph = build(|g| {
            let x = g.group_norm("a", g.image([4, 6, 6]), 4, 1e-5);
            g.add(x, g.silu(x))
        });
        assert_eq!(graph.fused(), graph);
    }

    #[test]
    fn every_value_is_read_for_the_last_time_once() {
        let graph = build(|g| {
            let x = g.conv("a", g.image([4, 6, 6]), 4, 3);
            let y = g.conv("b", x, 4, 3);
            g.add(g.add(x, y), g.add(y, y))
        });
        let mut last: Vec<Value> = last_reads(&graph.nodes).concat();
        last.sort_unstable();
        // All values except the output.
        assert_eq!(
            last,
            graph.nodes[..graph.nodes.len() - 1].iter().map(|node| node.output).collect::<Vec<_>>()
        );
    }
}
