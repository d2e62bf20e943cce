//! Low-rank adaptation (LoRA, arXiv 2106.09685) as a change of the graph: beside a layer with the weight `W` stands the
//! product `B A` of two small matrices, `y = W x + b + alpha / rank B (A x)`. The network's own parameters stay as they are
//! and keep their places, so any number of networks can share them.

use serde::{Deserialize, Serialize};

use super::{Affine, Conv, Graph, Init, Node, Op, Padding, Param, Parameter, Value};
use crate::model::SpecError;

/// Name of `A`, after the name of the layer.
pub const DOWN: &str = ".lora_A.weight";
/// Name of `B`, after the name of the layer.
pub const UP: &str = ".lora_B.weight";

/// The layers that are adapted, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSpec {
    /// Number of rows of `A`, at least 1.
    pub rank: usize,
    /// `alpha`: the product is multiplied by `alpha / rank`.
    pub alpha: f32,
    /// Names of layers, or the ends of their names after a dot, such as `to_q` or `ff.net.2`, as in PEFT.
    pub targets: Vec<String>,
}

impl LoraSpec {
    /// The factor of `B A`.
    pub fn factor(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    fn contains(&self, layer: &str) -> bool {
        let is_end = |target: &String| {
            layer.strip_suffix(target.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.targets.iter().any(is_end)
    }
}

impl Graph {
    /// The network with the products beside its layers. The parameters of the products come after all others: `A`, drawn at
    /// random, and `B`, zero, so that the result is the same network at first. Do this before [`Graph::fused`].
    ///
    /// # Errors
    /// If the rank is 0, or a target names no layer.
    pub fn with_lora(&self, spec: &LoraSpec) -> Result<Self, SpecError> {
        let refused = |field: &str, reason: String| SpecError { field: field.into(), reason };
        if spec.rank == 0 || !spec.alpha.is_finite() {
            let reason =
                format!("expected a rank above 0 and a number, found {} and {}", spec.rank, spec.alpha);
            return Err(refused("lora_rank, lora_alpha", reason));
        }
        let mut graph = Self { nodes: Vec::with_capacity(self.nodes.len()), ..self.clone() };
        let mut adapted = Vec::new();
        for node in &self.nodes {
            let layer =
                weight(&node.op).and_then(|weight| self.parameter(weight).name.strip_suffix(".weight"));
            match layer.filter(|layer| spec.contains(layer)) {
                Some(layer) => {
                    adapted.push(layer);
                    graph.push_adapted(node, layer, spec);
                }
                None => graph.nodes.push(*node),
            }
        }
        let names_nothing = |target: &&String| {
            let only = LoraSpec { targets: vec![(*target).clone()], ..spec.clone() };
            !adapted.iter().any(|layer| only.contains(layer))
        };
        match spec.targets.iter().find(names_nothing) {
            Some(target) => {
                Err(refused("lora_targets", format!("no layer of the network has the name {target}")))
            }
            None if adapted.is_empty() => {
                Err(refused("lora_targets", "expected at least one, found none".into()))
            }
            None => Ok(graph),
        }
    }

    /// Adds a layer and the product beside it. The sum has the value that the layer had, so its readers read the sum.
    fn push_adapted(&mut self, node: &Node, layer: &str, spec: &LoraSpec) {
        let shape = self.shape(node.output);
        let (x, kernel) = match node.op {
            Op::Conv(conv) => (conv.x, conv.kernel),
            Op::Linear(x, _) => (x, 1),
            other => panic!("expected a layer with a weight, found {other:?}"),
        };
        let inputs = self.shape(x).channels();
        let outputs = shape.channels();
        let is_matrix = weight(&node.op).is_some_and(|weight| self.parameter(weight).shape.len() == 2);
        let dimensions = |rows, columns, side| match is_matrix {
            true => vec![rows, columns],
            false => vec![rows, columns, side, side],
        };
        let fan_in = inputs * kernel * kernel;
        let down = self.add(layer, DOWN, dimensions(spec.rank, inputs, kernel), Init::Uniform { fan_in });
        let up = self.add(layer, UP, dimensions(outputs, spec.rank, 1), Init::Zeros);
        let op_down = match node.op {
            Op::Conv(conv) => Op::Conv(Conv { affine: down, ..conv }),
            _ => Op::Linear(x, down),
        };
        let own = self.value(shape);
        let small = self.value(shape.with_channels(spec.rank));
        let product = self.value(shape);
        let scaled = self.value(shape);
        let op_up = match node.op {
            Op::Conv(_) => Op::Conv(Conv {
                x: small,
                affine: up,
                kernel: 1,
                stride: 1,
                padding: Padding::Around,
                shift: None,
            }),
            _ => Op::Linear(small, up),
        };
        self.nodes.extend([
            Node { op: node.op, output: own },
            Node { op: op_down, output: small },
            Node { op: op_up, output: product },
            Node { op: Op::Scale { x: product, factor: spec.factor(), offset: 0.0 }, output: scaled },
            Node { op: Op::Add(own, scaled), output: node.output },
        ]);
    }

    fn add(&mut self, layer: &str, ending: &str, shape: Vec<usize>, init: Init) -> Affine {
        let weight = Param(self.parameters.len());
        self.parameters.push(Parameter { name: format!("{layer}{ending}"), shape, init });
        Affine { weight, bias: None }
    }

    fn value(&mut self, shape: super::Shape) -> Value {
        self.shapes.push(shape);
        Value(self.shapes.len() - 1)
    }
}

/// The weight of a layer that can be adapted.
fn weight(op: &Op) -> Option<Param> {
    match op {
        Op::Conv(Conv { affine, .. }) | Op::Linear(_, affine) => Some(affine.weight),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::build;
    use super::*;

    fn graph() -> Graph {
        build(|g| {
            let x = g.conv("in.to_q", g.image([4, 6, 6]), 8, 3);
            g.conv("out", g.silu(x), 5, 1)
        })
    }

    fn spec(targets: &[&str]) -> LoraSpec {
        LoraSpec { rank: 2, alpha: 6.0, targets: targets.iter().map(|&target| target.to_owned()).collect() }
    }

    #[test]
    fn products_stand_beside_the_layers_and_parameters_keep_their_places() {
        let (graph, adapted) = (graph(), graph().with_lora(&spec(&["to_q", "out"])).unwrap());
        let (own, added) = adapted.parameters.split_at(graph.parameters.len());
        assert_eq!(own, graph.parameters);
        let added: Vec<_> = added.iter().map(|added| (added.name.as_str(), added.shape.clone())).collect();
        assert_eq!(
            added,
            [
                ("in.to_q.lora_A.weight", vec![2, 4, 3, 3]),
                ("in.to_q.lora_B.weight", vec![8, 2, 1, 1]),
                ("out.lora_A.weight", vec![2, 8, 1, 1]),
                ("out.lora_B.weight", vec![5, 2, 1, 1]),
            ]
        );
        assert_eq!((adapted.output, adapted.nodes.len()), (graph.output, graph.nodes.len() + 8));
        let factors = adapted.nodes.iter().filter(|node| matches!(node.op, Op::Scale { factor: 3.0, .. }));
        assert_eq!(factors.count(), 2);
    }

    #[test]
    fn a_target_without_a_layer_is_named() {
        // `q` is not the end of a name after a dot.
        for (targets, expected) in [(&["to_q", "q"][..], "name q"), (&[], "at least one")] {
            let error = graph().with_lora(&spec(targets)).unwrap_err();
            assert!(error.reason.contains(expected), "{error}");
        }
        assert!(graph().with_lora(&LoraSpec { rank: 0, ..spec(&["out"]) }).is_err());
    }
}
