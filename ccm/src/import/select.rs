//! Finds a network among the tensors of a file.
//!
//! In a checkpoint, the names of the network's tensors have a prefix: the keys of nested dictionaries (`state_dict`,
//! `ema`), and the additions of wrappers (`module.` of data-parallel training, `_orig_mod.` of `torch.compile`,
//! `model.diffusion_model.`). There is no list of known prefixes: any text before the names of all of the network's
//! tensors is accepted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Checkpoint, ImportError};
use crate::model::TensorSpec;
use crate::weights::{CompactTensor, HostTensor, Precision, WeightsError};

/// Words that mark a key as averaged weights.
const AVERAGED: [&str; 6] = ["ema", "averaged", "average", "avg", "swa", "shadow"];

/// Maximum number of keys in an error message.
const LISTED: usize = 12;

/// A network's tensors, found in a file.
#[derive(Debug)]
pub struct Selection {
    /// The prefix of the tensors' names in the file.
    pub prefix: String,
    /// Other prefixes under which the file holds the whole network.
    pub others: Vec<String>,
    /// Number of tensors under the prefix that belong to other modules and were not read.
    pub left_out: usize,
    /// The tensors by the network's names.
    pub tensors: BTreeMap<String, HostTensor>,
}

/// Where a network's tensors are in a file; see [`Selection`].
struct Location {
    prefix: String,
    others: Vec<String>,
    left_out: usize,
}

impl Selection {
    /// The prefix, as text for display.
    pub fn prefix_shown(&self) -> String {
        shown(&self.prefix)
    }
}

fn shown(prefix: &str) -> String {
    match prefix.trim_end_matches('.') {
        "" => "the top level".into(),
        prefix => format!("`{prefix}`"),
    }
}

impl Checkpoint {
    /// Finds and reads the network with the tensors `expected`, under any prefix, or under one that begins with `key`.
    ///
    /// If several prefixes have the whole network, averaged weights are preferred (keys such as `ema`, `ema_model` or
    /// `averaged_model`). Among several averages, or without one, the last prefix in alphabetical order is taken, so
    /// that `ema_0.9999` precedes `ema_0.999`.
    ///
    /// A tensor under the prefix whose name begins with a word of the network's own, such as `input_blocks`, must be
    /// part of the network. Other tensors, such as those of a loss, are not read but counted. Tensors with a single
    /// value, such as counters, are ignored.
    ///
    /// # Errors
    /// If no prefix has the whole network, a tensor has another shape, the network has more tensors than expected, or
    /// a tensor cannot be read. Each error names the file and the tensor or the keys in the file.
    pub fn select(self, expected: &[TensorSpec], key: Option<&str>) -> Result<Selection, ImportError> {
        self.find(expected, key, true)
    }

    /// As [`Checkpoint::select`], for a part of a network. The other tensors are not read.
    ///
    /// # Errors
    /// As [`Checkpoint::select`], except that additional tensors are allowed.
    pub fn select_part(self, expected: &[TensorSpec]) -> Result<Selection, ImportError> {
        self.find(expected, None, false)
    }

    fn find(
        mut self,
        expected: &[TensorSpec],
        key: Option<&str>,
        all: bool,
    ) -> Result<Selection, ImportError> {
        let Location { prefix, others, left_out } = self.locate(expected, key, all)?;
        let names: Vec<String> = expected.iter().map(|tensor| format!("{prefix}{}", tensor.name)).collect();
        let tensors = self.read(&names)?;
        let tensors = expected.iter().map(|tensor| tensor.name.clone()).zip(tensors).collect();
        Ok(Selection { prefix, others, left_out, tensors })
    }

    /// Finds the network as [`Checkpoint::select`] or, without `all`, as [`Checkpoint::select_part`], and reads its tensors in
    /// the precision in which they are stored, or rounded if `precision` is smaller. Gives them to `take` in the order of
    /// `expected`.
    ///
    /// # Errors
    /// As [`Checkpoint::select`] or [`Checkpoint::select_part`]; also the first error of `take`.
    pub(super) fn each_compact(
        self,
        expected: &[TensorSpec],
        all: bool,
        precision: Precision,
        take: &mut dyn FnMut(CompactTensor) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let Location { prefix, .. } = self.locate(expected, None, all)?;
        expected.iter().try_for_each(|tensor| {
            take(self.compact(&format!("{prefix}{}", tensor.name))?.rounded(precision))
        })
    }

    /// Finds the network's tensors and checks their shapes.
    fn locate(&self, expected: &[TensorSpec], key: Option<&str>, all: bool) -> Result<Location, ImportError> {
        let under_key =
            |prefix: &str| key.is_none_or(|key| prefix == key || prefix.starts_with(&format!("{key}.")));
        if let Some(key) =
            key.filter(|key| !self.tensors.keys().any(|name| name.starts_with(&format!("{key}."))))
        {
            return Err(ImportError::Key { path: self.path.clone(), key: key.into(), found: self.keys() });
        }
        let mut counts = self.prefixes(expected);
        counts.retain(|prefix, _| under_key(prefix));
        let complete = |count: &usize| *count == expected.len();
        let mut whole: Vec<String> =
            counts.iter().filter(|(_, count)| complete(count)).map(|(prefix, _)| prefix.clone()).collect();
        whole.sort_by_cached_key(|prefix| Reverse((is_averaged(prefix), prefix.clone())));
        if whole.is_empty() {
            return Err(self.incomplete(expected, &counts));
        }
        let prefix = whole.remove(0);
        let fault = |source| ImportError::Weights { path: self.path.clone(), source };
        for TensorSpec { name, shape } in expected {
            let found = self.tensors[&format!("{prefix}{name}")].shape();
            if found != shape {
                let (name, expected, found) = (format!("{prefix}{name}"), shape.clone(), found.to_vec());
                return Err(fault(WeightsError::Shape { name, expected, found }));
            }
        }
        let left_out = if all { self.others_behind(&prefix, expected).map_err(fault)? } else { 0 };
        Ok(Location { prefix, others: whole, left_out })
    }

    /// Every prefix of a tensor of the network, and the number of the network's tensors that have it.
    fn prefixes(&self, expected: &[TensorSpec]) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for found in self.tensors.keys() {
            for TensorSpec { name, .. } in expected {
                let prefix = found.strip_suffix(name.as_str());
                if let Some(prefix) = prefix.filter(|prefix| prefix.is_empty() || prefix.ends_with('.')) {
                    *counts.entry(prefix.to_owned()).or_insert(0) += 1;
                }
            }
        }
        counts
    }

    /// Counts the tensors under a prefix that do not belong to the network.
    fn others_behind(&self, prefix: &str, expected: &[TensorSpec]) -> Result<usize, WeightsError> {
        let names: BTreeSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
        // A network without classes has no `label_emb`. A file with one holds a different network.
        let own: BTreeSet<&str> = names.iter().map(|name| first_word(name)).chain(["label_emb"]).collect();
        let mut others = 0;
        for (found, tensor) in &self.tensors {
            let Some(name) = found.strip_prefix(prefix).filter(|name| !names.contains(name)) else {
                continue;
            };
            if tensor.shape().iter().product::<usize>() <= 1 {
                continue;
            }
            if own.contains(first_word(name)) {
                return Err(WeightsError::Unexpected(found.clone()));
            }
            others += 1;
        }
        // Without a prefix, the others are other entries of the dictionary, such as an optimiser's state.
        Ok(if prefix.is_empty() { 0 } else { others })
    }

    fn incomplete(&self, expected: &[TensorSpec], counts: &BTreeMap<String, usize>) -> ImportError {
        let best =
            counts.iter().max_by_key(|(prefix, count)| (**count, is_averaged(prefix), Reverse(*prefix)));
        let nearest = match best {
            None => format!("no tensor is called `{}` behind any prefix", expected[0].name),
            Some((prefix, count)) => {
                let missing = expected
                    .iter()
                    .find(|tensor| !self.tensors.contains_key(&format!("{prefix}{}", tensor.name)));
                let missing = missing.map_or("none", |tensor| tensor.name.as_str());
                format!("{} has {count} of them, and tensor `{prefix}{missing}` is missing", shown(prefix))
            }
        };
        let (path, found) = (self.path.clone(), self.keys());
        ImportError::Network { path, expected: expected.len(), nearest, found }
    }

    /// The top-level keys for an error message, with the number of tensors under each.
    fn keys(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for name in self.tensors.keys() {
            *counts.entry(first_word(name)).or_insert(0) += 1;
        }
        if counts.is_empty() {
            return "no tensors".into();
        }
        let more = counts.len().saturating_sub(LISTED);
        let listed = counts.into_iter().take(LISTED).map(|(key, count)| match count {
            1 => format!("`{key}` (1 tensor)"),
            _ => format!("`{key}` ({count} tensors)"),
        });
        let listed = listed.collect::<Vec<_>>().join(", ");
        if more > 0 { format!("{listed} and {more} more keys") } else { listed }
    }
}

fn first_word(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// Whether a key of the prefix names averaged weights.
fn is_averaged(prefix: &str) -> bool {
    let words = prefix.split(['.', '_']).map(str::to_ascii_lowercase);
    words.into_iter().any(|word| AVERAGED.contains(&word.as_str()))
}
