//! Networks that are evaluated once, without a time and a condition: text encoders, and the halves of an autoencoder.

use super::plan::{Map, Plan};
use super::schedule::places;
use super::{Backend, Executor, Info, SamplerError};
use crate::model::graph::{Graph, Shape};
use crate::weights::{CompactTensor, Precision};

/// A compiled network.
pub struct Evaluator {
    plan: Plan,
    executor: Executor,
    precision: Precision,
    backend: Backend,
    /// The shapes of the input and the output.
    shapes: [Shape; 2],
}

/// What a text encoder makes of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The embedding of each token, `[tokens, channels]`.
    pub tokens: Vec<f32>,
    /// A second embedding of each token, `[tokens, channels]`, one of which is that of the whole text; empty for a text
    /// encoder without one.
    pub pooled: Vec<f32>,
}

impl Evaluator {
    /// Compiles a network with its weights, in the order of [`Graph::parameters`], for one device.
    ///
    /// # Errors
    /// If the backend is not available or the network is too large for it.
    ///
    /// # Panics
    /// If the weights do not fit the graph.
    pub async fn new(
        graph: Graph,
        tensors: Vec<CompactTensor>,
        precision: Precision,
        backend: Backend,
    ) -> Result<Self, SamplerError> {
        let shapes = [graph.shapes[graph.input().index()], graph.shape(graph.output)];
        let mut plan = Plan::new(graph, tensors);
        let executor = Executor::new(&mut plan, precision, backend).await?;
        Ok(Self { plan, executor, precision, backend, shapes })
    }

    /// Properties of the device; no number of parameters.
    pub fn info(&self) -> Info {
        self.executor.info(0)
    }

    /// The compiled network.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Maps images `[N, C, H, W]` to images, one after another.
    ///
    /// # Errors
    /// If the number of values is not that of whole images, or the device is lost.
    pub async fn images(&mut self, planes: &[f32]) -> Result<Vec<f32>, SamplerError> {
        let [input, output] = self.shapes.map(|shape| match shape {
            Shape::Map(shape) => shape,
            Shape::Vector(channels) => [channels, 1, 1],
        });
        let len = input.iter().product::<usize>();
        if planes.is_empty() || !planes.len().is_multiple_of(len) {
            let text = format!("image: expected a multiple of {len} values, found {}", planes.len());
            return Err(SamplerError::Request(text));
        }
        let places_of = |shape, map: Map| places(shape, 1, &map);
        let (read, write) = (places_of(input, self.plan.x), places_of(output, self.plan.output));
        let mut images = Vec::with_capacity(planes.len() / len * write.len());
        for planes in planes.chunks_exact(len) {
            let mut x = vec![0.0; self.plan.x.len()];
            read.iter().zip(planes).for_each(|(&place, &value)| x[place] = value);
            let [found, _] = self.evaluate(&x).await?;
            images.extend(write.iter().map(|&place| found[place]));
        }
        Ok(images)
    }

    /// Encodes a text: the ids of its tokens.
    ///
    /// # Errors
    /// If the number of tokens is not the network's, an id is outside its vocabulary, or the device is lost.
    pub async fn text(&mut self, tokens: &[u32]) -> Result<Encoded, SamplerError> {
        let fail = |text: String| Err(SamplerError::Request(text));
        let Some(embedding) = &self.plan.embedding else {
            return fail("text: expected a text encoder".into());
        };
        let expected = self.plan.x.pixels();
        if tokens.len() != expected {
            return fail(format!("text: expected {expected} tokens, found {}", tokens.len()));
        }
        let channels = embedding.shape[1];
        let mut x = Vec::with_capacity(self.plan.x.len());
        for &token in tokens {
            if token as usize >= embedding.shape[0] {
                let most = embedding.shape[0] - 1;
                return fail(format!("text: expected tokens 0 to {most}, found {token}"));
            }
            x.extend_from_slice(&embedding.row(token as usize, channels));
        }
        let [tokens, pooled] = self.evaluate(&x).await?;
        Ok(Encoded { tokens, pooled })
    }

    /// Evaluates the network for one input in the layout of [`Plan::x`]. Returns its output and the second one.
    async fn evaluate(&mut self, x: &[f32]) -> Result<[Vec<f32>; 2], SamplerError> {
        if let Executor::Gpu(executor) = &self.executor
            && executor.is_lost()
        {
            self.executor = Executor::new(&mut self.plan, self.precision, self.backend).await?;
        }
        match &mut self.executor {
            Executor::Cpu(executor) => Ok(executor.evaluate(&self.plan, x)),
            Executor::Gpu(executor) => executor.evaluate(&self.plan, x).await,
        }
    }
}
