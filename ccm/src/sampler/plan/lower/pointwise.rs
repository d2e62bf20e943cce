//! Compiles operations on single values: activations, products and sums. A chain of them becomes one operation of the
//! plan.

use super::layout::Order;
use super::{Lowered, Lowering};
use crate::model::graph::{self, Activation, Node, Shape, Value};
use crate::sampler::plan::{BLOCK, Channels, Factor, Op, Pointwise, Term, Vector};

/// `activation(x) * factor`, not computed yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lazy {
    x: Channels,
    /// `[channels, height, width]` of the result.
    shape: [usize; 3],
    activation: Option<Activation>,
    factor: Option<Factor>,
}

impl Lowering<'_> {
    /// A part of a map's channels. `shape` is the shape of the part.
    pub(super) fn chunk(&mut self, x: Value, index: usize, shape: [usize; 3]) -> Lowered {
        let map = self.map(x);
        let first = index * shape[0];
        Lowered::Lazy(Lazy { x: Channels { map, first }, shape, activation: None, factor: None })
    }

    /// An activation or a product. It is computed now, unless its only reader can compute it on the way.
    pub(super) fn pointwise(&mut self, node: &Node) -> Lowered {
        let Shape::Map(shape) = self.graph.shape(node.output) else { panic!("a map") };
        let lazy = match node.op {
            graph::Op::Activate(x, activation) => {
                let lazy = self.lazy(x);
                match (lazy.activation, lazy.factor) {
                    (None, None) => Lazy { activation: Some(activation), ..lazy },
                    _ => Lazy { activation: Some(activation), ..self.computed(x) },
                }
            }
            graph::Op::Multiply(a, b) => {
                // The factor is read as it is, so the operand with an activation is `x`.
                let (x, factor) = match self.lazy(a).activation {
                    Some(_) => (a, b),
                    None => (b, a),
                };
                let factor = match self.lazy(factor) {
                    Lazy { x, activation: None, factor: None, .. } => x,
                    _ => self.computed(factor).x,
                };
                self.times(x, Factor::Map(factor))
            }
            graph::Op::MultiplyVector(x, vector) => {
                let place = self.conditioner.plain(vector, shape[0]);
                self.times(x, Factor::Vector(Vector::Conditioned(place)))
            }
            _ => panic!("an operation on single values"),
        };
        let lazy = Lazy { shape, ..lazy };
        use graph::Op::{Activate, Add, Multiply, MultiplyVector};
        match self.readers[node.output.index()] {
            Some(Add(..) | Activate(..) | Multiply(..) | MultiplyVector(..)) => Lowered::Lazy(lazy),
            _ => self.emit_pointwise(lazy, None),
        }
    }

    fn times(&mut self, x: Value, factor: Factor) -> Lazy {
        let lazy = match self.lazy(x) {
            lazy @ Lazy { factor: None, .. } => lazy,
            _ => self.computed(x),
        };
        Lazy { factor: Some(factor), ..lazy }
    }

    /// A value as an operation that is not computed yet.
    fn lazy(&mut self, value: Value) -> Lazy {
        let Shape::Map(shape) = self.graph.shape(value) else { panic!("a map") };
        match self.lowered(value) {
            Lowered::Lazy(lazy) => {
                assert!(lazy.x.first.is_multiple_of(BLOCK), "parts of a map are whole blocks");
                Lazy { shape, ..lazy }
            }
            _ => self.computed(value),
        }
    }

    /// The map of a value.
    fn computed(&mut self, value: Value) -> Lazy {
        let Shape::Map(shape) = self.graph.shape(value) else { panic!("a map") };
        Lazy { x: self.map(value).into(), shape, activation: None, factor: None }
    }

    /// The sum of an operation that is not computed yet, or a position embedding, and another value. `None` if neither
    /// value is one.
    pub(super) fn add_pointwise(&mut self, a: Value, b: Value) -> Option<Lowered> {
        let is_lazy = |lowered| matches!(lowered, Lowered::Lazy(_));
        // `other` is added to the operation `of`.
        let (of, other) = match (self.lowered(a), self.lowered(b)) {
            (Lowered::Fixed(_), _) => (b, a),
            (_, Lowered::Fixed(_)) => (a, b),
            (first, _) if is_lazy(first) => (a, b),
            (_, second) if is_lazy(second) => (b, a),
            _ => return None,
        };
        let term = match self.lowered(other) {
            Lowered::Fixed(place) => Term::Fixed(place),
            _ => Term::Map(self.map(other)),
        };
        let lazy = self.lazy(of);
        Some(self.emit_pointwise(lazy, Some(term)))
    }

    /// Appends an operation on single values.
    pub(super) fn emit_pointwise(&mut self, lazy: Lazy, term: Option<Term>) -> Lowered {
        let Lazy { x, shape, activation, factor } = lazy;
        let y = self.new_map(shape);
        self.ops.push(Op::Pointwise(Pointwise { x, activation, factor, term, y }));
        Lowered::Map(y, Order::Plain)
    }
}
