//! Compiles attention. Projections of one map to queries, keys and values become one convolution.

use super::layout::{Order, packed, placed};
use super::{Lowered, Lowering};
#[cfg(feature = "text")]
use crate::model::graph::AttentionBias;
use crate::model::graph::{self, Value};
#[cfg(feature = "text")]
use crate::sampler::plan::{self, Vector};
use crate::sampler::plan::{Attention, BLOCK, Channels, Op};

impl Lowering<'_> {
    /// Attention over a packed map. `shape` is the shape of its output.
    pub(super) fn packed_attention(
        &mut self,
        qkv: Value,
        heads: usize,
        shape: [usize; 3],
        heads_first: bool,
    ) -> Lowered {
        let head_channels = shape[0] / heads;
        let order = Order::Heads { parts: 3, heads, head_channels, heads_first };
        let map = match self.lowered(qkv) {
            Lowered::Map(map, found) if found == order => map,
            _ => panic!("the sampler reads queries, keys and values from one convolution"),
        };
        let width = map.channels / 3;
        let [q, k, v] = [0, 1, 2].map(|part| Channels { map, first: part * width });
        let scale = 1.0 / (head_channels as f32).sqrt();
        let y = self.new_map([width, shape[1], shape[2]]);
        self.emit_attention(Attention { q, k, v, heads, head_channels, scale, bias: None, y })
    }

    /// Attention over queries, keys and values of their own. `shape` is the shape of its output.
    pub(super) fn attention(&mut self, op: &graph::Attention, shape: [usize; 3]) -> Lowered {
        let (heads, head_channels) = (op.heads, shape[0] / op.heads);
        let qkv = self.projections(op.qkv, heads, head_channels);
        let (q, k, v) = (qkv[0], qkv[1], qkv[2]);
        let width = heads * head_channels.next_multiple_of(BLOCK);
        let y = self.new_map([width, shape[1], shape[2]]);
        #[cfg(feature = "text")]
        let bias = self.attention_bias(op, q.map.pixels(), k.map.pixels());
        #[cfg(not(feature = "text"))]
        let bias = None;
        self.emit_attention(Attention { q, k, v, heads, head_channels, scale: op.scale, bias, y })
    }

    /// Queries, keys and values with their channels in the order of heads. Consecutive ones that are convolutions of the
    /// same map become one convolution.
    fn projections(&mut self, qkv: [Value; 3], heads: usize, head_channels: usize) -> Vec<Channels> {
        let mut found = Vec::new();
        while found.len() < qkv.len() {
            let first = found.len();
            let mut convs: Vec<graph::Conv> = Vec::new();
            for &value in &qkv[first..] {
                match self.lowered(value) {
                    Lowered::Deferred(conv) if convs.iter().all(|before| before.x == conv.x) => {
                        convs.push(conv)
                    }
                    _ => break,
                }
            }
            #[cfg(feature = "text")]
            if convs.is_empty() {
                found.push(self.in_heads(qkv[first], heads, head_channels).into());
                continue;
            }
            let (x, columns) = self.input(convs[0].x);
            let (mut biases, mut weights) = (Vec::new(), Vec::new());
            for conv in &convs {
                biases.extend(self.bias(conv));
                weights.push(self.take(conv.affine.weight));
            }
            let rows = Order::Heads { parts: convs.len(), heads, head_channels, heads_first: false };
            let bias = self.vector(&placed(&biases, rows));
            let weight = packed(weights, 1, rows, columns);
            let width = weight.out_channels / convs.len();
            let map = self.emit(x, weight, [1, 0], false, bias, None);
            found.extend((0..convs.len()).map(|part| Channels { map, first: part * width }));
        }
        found
    }

    /// A value with its channels in the order of heads.
    #[cfg(feature = "text")]
    fn in_heads(&mut self, value: Value, heads: usize, head_channels: usize) -> plan::Map {
        let map = self.map(value);
        assert!(
            head_channels.is_multiple_of(BLOCK) || heads == 1,
            "heads of maps that are not convolutions are whole blocks"
        );
        map
    }

    /// Tabulates a bias by head and distance.
    #[cfg(feature = "text")]
    fn attention_bias(
        &mut self,
        op: &graph::Attention,
        queries: usize,
        keys: usize,
    ) -> Option<plan::AttentionBias> {
        let key = (op.bias, [queries, keys]);
        if let Some((_, found)) = self.biases.iter().find(|(found, _)| *found == key) {
            return Some(*found);
        }
        let distances = (0..queries + keys - 1).map(|place| place as isize + 1 - queries as isize);
        let (values, pitch) = match op.bias {
            AttentionBias::None => return None,
            AttentionBias::Causal => {
                let score = |distance| if distance > 0 { plan::NO_SCORE } else { 0.0 };
                (distances.map(score).collect::<Vec<f32>>(), 0)
            }
            AttentionBias::Relative(bias) => {
                let table = self.take(bias.table).into_f32();
                let of_head = |head: usize| {
                    let table = &table;
                    distances.clone().map(move |distance| table[bias.bucket(distance) * op.heads + head])
                };
                ((0..op.heads).flat_map(of_head).collect(), queries + keys - 1)
            }
        };
        let Vector::Fixed(start) = self.vector(&values) else {
            panic!("a bias does not depend on the image")
        };
        let bias = plan::AttentionBias { start, pitch };
        self.biases.push((key, bias));
        Some(bias)
    }

    #[inline(never)]
    fn emit_attention(&mut self, op: Attention) -> Lowered {
        let Attention { heads, head_channels, y, .. } = op;
        self.ops.push(Op::Attention(op));
        let order = match head_channels.is_multiple_of(BLOCK) {
            true => Order::Plain,
            false => Order::Heads { parts: 1, heads, head_channels, heads_first: false },
        };
        Lowered::Map(y, order)
    }
}
