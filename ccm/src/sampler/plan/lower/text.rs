//! Compiles the operations that only networks for texts have.

use super::layout::Order;
use super::{Lowered, Lowering};
use crate::model::graph::{self, Node, Param, PositionEmbedding};
use crate::sampler::plan::{Copy, LayerNorm, Op, Vector};

impl Lowering<'_> {
    /// `shape` is the shape of the node's output.
    pub(super) fn text_node(&mut self, node: &Node, shape: [usize; 3]) -> Lowered {
        match node.op {
            graph::Op::TokenEmbedding(table) => {
                self.embedding = Some(self.take(table));
                self.input_map(shape)
            }
            graph::Op::Text => {
                let map = self.new_map(shape);
                self.text = Some(map);
                Lowered::Map(map, Order::Plain)
            }
            graph::Op::PositionEmbedding(embedding) => self.position_embedding(&embedding, shape),
            graph::Op::LayerNorm(norm) => self.layer_norm(&norm, shape),
            graph::Op::Activate(..) | graph::Op::Multiply(..) | graph::Op::MultiplyVector(..) => {
                self.pointwise(node)
            }
            graph::Op::Chunk { x, index, .. } => self.chunk(x, index, shape),
            graph::Op::Join(a, b) => {
                let (a, b) = (self.map(a), self.map(b));
                let y = self.new_map(shape);
                self.ops.push(Op::Copy(Copy { x: a, from: 0, y, to: 0, count: a.pixels() }));
                self.ops.push(Op::Copy(Copy { x: b, from: 0, y, to: a.pixels(), count: b.pixels() }));
                Lowered::Map(y, Order::Plain)
            }
            graph::Op::Part { x, first } => {
                let x = self.map(x);
                let y = self.new_map(shape);
                self.ops.push(Op::Copy(Copy { x, from: first, y, to: 0, count: y.pixels() }));
                Lowered::Map(y, Order::Plain)
            }
            // The convolution before it has put its channels in this order.
            graph::Op::PatchChannels { x, side } => match self.lowered(x) {
                Lowered::Map(map, order) if order == (Order::Patches { side }) => {
                    Lowered::Map(map, Order::Plain)
                }
                _ => panic!("the sampler reorders the channels of patches in a convolution"),
            },
            _ => panic!("the sampler has no kernel for an operation on maps"),
        }
    }

    fn position_embedding(
        &mut self,
        embedding: &PositionEmbedding,
        [channels, height, width]: [usize; 3],
    ) -> Lowered {
        let table = self.take(embedding.table).into_f32();
        let mut values = Vec::with_capacity(channels * height * width);
        for y in 0..height {
            let row = (embedding.top + y) * embedding.side + embedding.left;
            values.extend_from_slice(&table[row * channels..(row + width) * channels]);
        }
        match self.vector(&values) {
            Vector::Fixed(place) => Lowered::Fixed(place),
            Vector::Conditioned(_) => panic!("a position embedding does not depend on the image"),
        }
    }

    fn layer_norm(&mut self, op: &graph::LayerNorm, shape: [usize; 3]) -> Lowered {
        let channels = shape[0];
        let mut values = |param: Option<Param>, otherwise: f32| match param {
            Some(param) => self.take(param).into_f32().repeat(op.heads),
            None => vec![otherwise; channels],
        };
        let (gain, offset) = (values(op.gain, 1.0), values(op.offset, 0.0));
        let [gain, offset] = self.modulated(&gain, &offset, op.modulation);
        let x = self.map(op.x);
        let y = self.new_map(shape);
        let (heads, centred, epsilon) = (op.heads, op.centred, op.epsilon);
        self.ops.push(Op::LayerNorm(LayerNorm { x, gain, offset, heads, centred, epsilon, y }));
        Lowered::Map(y, Order::Plain)
    }
}
