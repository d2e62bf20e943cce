//! The part of a network that depends only on time and condition. Its output is one row of numbers for each image.
//!
//! A row is the concatenation of the biases, gains and offsets that the kernels read. A conditioned bias includes the
//! bias of its convolution; a conditioned gain and offset include those of their norm.

use super::plan::BLOCK;
use crate::model::Condition;
#[cfg(feature = "text")]
use crate::model::graph::GUIDANCE_FACTOR;
use crate::model::graph::{Activation, Node, Op, Param, TimestepEmbedding, Value};
use crate::weights::CompactTensor;

/// `W x + b`. `weight` is `[outputs, inputs]`, `bias` is `[outputs]`.
#[inline(never)]
fn linear(weight: &CompactTensor, bias: Option<&CompactTensor>, x: &[f32]) -> Vec<f32> {
    assert!(weight.shape[1] == x.len(), "shape of a linear layer's weight");
    let outputs = weight.shape[0];
    let mut y = bias.map_or_else(|| vec![0.0; outputs], |bias| bias.row(0, outputs).to_vec());
    for (index, y) in y.iter_mut().enumerate() {
        *y += dot(&weight.row(index, x.len()), x);
    }
    y
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Computed vectors, indexed by [`Value::index`].
struct Values(Vec<Vec<f32>>);

impl Values {
    fn get(&self, value: Value) -> &[f32] {
        &self.0[value.index()]
    }
}

/// The source of a part of a row.
#[derive(Debug, Clone)]
enum Projection {
    /// `bias + vector`, for a convolution.
    Shift { vector: Value, bias: Vec<f32> },
    /// `(1 + scale) gain`, then `(1 + scale) offset + shift`, for a norm.
    ScaleAndShift { modulation: [Value; 2], gain: Vec<f32>, offset: Vec<f32> },
    /// The vector, for a product.
    #[cfg(feature = "text")]
    Plain(Value),
}

/// The operations of a graph whose outputs are vectors, and the projections of those vectors that the kernels read.
#[derive(Debug, Clone, Default)]
pub struct Conditioner {
    nodes: Vec<Node>,
    /// Indexed by [`Param::index`]; `None` for parameters that no vector needs.
    parameters: Vec<Option<CompactTensor>>,
    projections: Vec<Projection>,
    row_len: usize,
}

impl Conditioner {
    /// Adds an operation. Its parameters must be added first.
    pub(super) fn push(&mut self, node: Node) {
        self.nodes.push(node);
    }

    /// Adds a parameter.
    pub(super) fn parameter(&mut self, param: Param, tensor: CompactTensor) {
        self.parameters.resize_with(self.parameters.len().max(param.index() + 1), || None);
        self.parameters[param.index()] = Some(tensor);
    }

    /// Adds `bias + vector` to the row. Returns its position.
    pub(super) fn shift(&mut self, vector: Value, bias: &[f32]) -> usize {
        self.projections.push(Projection::Shift { vector, bias: bias.to_vec() });
        self.reserve(bias.len())
    }

    /// Adds the gain and offset of a norm, modulated by scale and shift, to the row. Returns their positions.
    pub(super) fn scale_and_shift(
        &mut self,
        modulation: [Value; 2],
        gain: &[f32],
        offset: &[f32],
    ) -> [usize; 2] {
        let (gain, offset) = (gain.to_vec(), offset.to_vec());
        let places = [self.reserve(gain.len()), self.reserve(offset.len())];
        self.projections.push(Projection::ScaleAndShift { modulation, gain, offset });
        places
    }

    /// Adds a vector of `channels` values to the row. Returns its position.
    #[cfg(feature = "text")]
    pub(super) fn plain(&mut self, vector: Value, channels: usize) -> usize {
        self.projections.push(Projection::Plain(vector));
        self.reserve(channels)
    }

    fn reserve(&mut self, len: usize) -> usize {
        let place = self.row_len;
        self.row_len += len.next_multiple_of(BLOCK);
        place
    }

    /// Number of values in a row.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// The row of an image at the network's own time. A model ignores what it does not read of the condition.
    ///
    /// # Panics
    /// If the model has classes and the label is missing or out of range, or if it reads a text and there is none.
    pub fn row(&self, time: f32, condition: &Condition) -> Vec<f32> {
        let count = self.nodes.iter().map(|node| node.output.index() + 1).fold(0, usize::max);
        let mut values = Values(vec![Vec::new(); count]);
        for Node { op, output } in &self.nodes {
            values.0[output.index()] = self.apply(op, &values, time, condition);
        }
        let mut row = Vec::with_capacity(self.row_len);
        let mut push = |len: usize, value: &dyn Fn(usize) -> f32| {
            row.extend((0..len).map(value));
            row.resize(row.len().next_multiple_of(BLOCK), 0.0);
        };
        for projection in &self.projections {
            match projection {
                #[cfg(feature = "text")]
                Projection::Plain(vector) => {
                    let vector = values.get(*vector);
                    push(vector.len(), &|i| vector[i]);
                }
                Projection::Shift { vector, bias } => {
                    let vector = values.get(*vector);
                    assert!(vector.len() == bias.len(), "outputs of a shift");
                    push(bias.len(), &|i| vector[i] + bias[i]);
                }
                Projection::ScaleAndShift { modulation: [scale, shift], gain, offset } => {
                    let (scale, shift) = (values.get(*scale), values.get(*shift));
                    let len = gain.len();
                    assert!(scale.len() == len && shift.len() == len, "outputs of a scale and a shift");
                    push(len, &|i| (1.0 + scale[i]) * gain[i]);
                    push(len, &|i| (1.0 + scale[i]) * offset[i] + shift[i]);
                }
            }
        }
        row
    }

    #[expect(
        clippy::expect_used,
        reason = "`Sampler` checks the labels of a request, and a plan adds parameters"
    )]
    #[inline(never)]
    fn apply(&self, op: &Op, values: &Values, time: f32, condition: &Condition) -> Vec<f32> {
        let parameter = |param: Param| {
            let tensor = self.parameters.get(param.index()).and_then(Option::as_ref);
            tensor.expect("a parameter that was added with its operation")
        };
        #[cfg(feature = "text")]
        let text = || condition.text.as_ref().expect("a model that reads a text needs one");
        match *op {
            Op::Time => vec![time],
            #[cfg(feature = "text")]
            Op::Pooled => text().pooled.clone(),
            #[cfg(feature = "text")]
            Op::Sizes => text().sizes.clone(),
            #[cfg(feature = "text")]
            Op::Guidance => {
                let scale = condition.guidance.expect("a model with guidance needs its scale");
                vec![GUIDANCE_FACTOR * (scale - 1.0)]
            }
            Op::Sinusoids(x, embedding) => {
                let mut embedded = Vec::new();
                for &number in values.get(x) {
                    embedded.extend(sinusoids(&embedding, number));
                }
                embedded
            }
            Op::LabelEmbedding(table) => {
                let table = parameter(table);
                let label = condition.label.expect("a model with classes needs a label");
                let (label, width) = (label as usize, table.shape[1]);
                assert!(label < table.shape[0], "a label below the number of classes");
                table.row(label, width).to_vec()
            }
            Op::Linear(x, affine) => {
                linear(parameter(affine.weight), affine.bias.map(parameter), values.get(x))
            }
            #[cfg(feature = "text")]
            Op::Concat(a, b) => [values.get(a), values.get(b)].concat(),
            Op::Activate(x, Activation::Silu) => {
                values.get(x).iter().map(|x| x / (1.0 + libm::expf(-x))).collect()
            }
            Op::Add(a, b) => values.get(a).iter().zip(values.get(b)).map(|(a, b)| a + b).collect(),
            Op::Chunk { x, parts, index } => {
                let x = values.get(x);
                let part = x.len() / parts;
                x[index * part..(index + 1) * part].to_vec()
            }
            _ => panic!("an operation that does not make a vector"),
        }
    }
}

fn sinusoids(embedding: &TimestepEmbedding, number: f32) -> Vec<f32> {
    let angles: Vec<f64> =
        embedding.log_frequencies().iter().map(|f| f64::from(number * libm::expf(*f))).collect();
    let cos = angles.iter().map(|&angle| libm::cos(angle) as f32);
    let sin = angles.iter().map(|&angle| libm::sin(angle) as f32);
    if embedding.cosines_first { cos.chain(sin).collect() } else { sin.chain(cos).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::graph::build;
    use crate::weights::HostTensor;

    const TIME: TimestepEmbedding = TimestepEmbedding { channels: 8, cosines_first: true, freq_shift: 0.0 };

    /// One shift by a projection of an embedding of 4 values, with two classes.
    fn conditioner() -> Conditioner {
        let graph = build(|g| {
            let embed = g.linear("first", g.timestep_embedding(TIME), 4);
            let embed = g.linear("second", g.silu(embed), 4);
            let embed = g.add(embed, g.label_embedding("label", 2, 4));
            g.linear("third", g.silu(embed), 3)
        });
        let mut conditioner = Conditioner::default();
        for parameter in &graph.parameters {
            let count = parameter.shape.iter().product();
            let values = match parameter.name.as_str() {
                "label.weight" => vec![1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0],
                name if name.ends_with("bias") => vec![0.25; count],
                _ => vec![0.5; count],
            };
            conditioner.parameters.push(Some(HostTensor::new(parameter.shape.clone(), values).into()));
        }
        graph.nodes.iter().for_each(|node| conditioner.push(*node));
        conditioner.shift(graph.output, &[0.0; 3]);
        conditioner
    }

    fn labelled(label: Option<u32>) -> Condition {
        Condition { label, ..Condition::default() }
    }

    #[test]
    fn the_label_is_added_to_the_embedding_of_the_time() {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let angle = |i: usize| 0.75 * 10_000f64.powf(-(i as f64) / 4.0);
        let embedding: f64 = (0..4).map(|i| angle(i).cos() + angle(i).sin()).sum();
        let hidden = silu(0.5 * embedding + 0.25);
        let embedding = 0.5 * 4.0 * hidden + 0.25;
        for (label, row) in [[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0]].iter().enumerate() {
            let expected = 0.25 + row.iter().map(|value| 0.5 * silu(embedding + value)).sum::<f64>();
            let found = conditioner().row(0.75, &labelled(Some(label as u32)));
            assert_eq!(found.len(), 4, "padded to a block");
            assert!((f64::from(found[0]) - expected).abs() < 1e-5, "{found:?}, not {expected}");
        }
    }

    #[test]
    #[should_panic(expected = "a label below the number of classes")]
    fn a_label_outside_the_table_is_not_an_empty_row() {
        conditioner().row(0.75, &labelled(Some(2)));
    }

    #[test]
    #[should_panic(expected = "needs a label")]
    fn a_missing_label_is_not_an_empty_row() {
        conditioner().row(0.75, &Condition::default());
    }

    #[test]
    #[should_panic(expected = "outputs of a shift")]
    fn a_bias_of_another_length_is_not_cut_off() {
        let mut conditioner = conditioner();
        let vector = conditioner.nodes[0].output;
        conditioner.shift(vector, &[0.0; 2]);
        conditioner.row(0.75, &labelled(Some(0)));
    }
}
