//! The encoder of a network: the part of its graph that computes the features.

use crate::model::graph::{Graph, Node};

/// The nodes up to the last feature.
pub(crate) fn encoder_nodes(graph: &Graph) -> &[Node] {
    let last = graph.nodes.iter().rposition(|node| graph.features.contains(&node.output));
    &graph.nodes[..last.map_or(0, |last| last + 1)]
}

/// The part of a network that computes the features: its nodes, and the first parameters up to the last that one of them reads.
/// The output is the last feature.
///
/// # Panics
/// If the network has no features.
pub(crate) fn encoder(graph: &Graph) -> Graph {
    let nodes = encoder_nodes(graph).to_vec();
    let read = nodes.iter().flat_map(|node| node.op.parameters());
    let parameters = read.map(|param| param.index() + 1).max().unwrap_or(0);
    Graph {
        output: nodes.last().unwrap_or_else(|| panic!("a network with features")).output,
        parameters: graph.parameters[..parameters].to_vec(),
        nodes,
        pooled: None,
        ..graph.clone()
    }
}
