//! Where a model comes from.

use serde::{Deserialize, Serialize};

/// What a model was trained as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A velocity field: many solver steps from noise to data.
    #[default]
    // Files of version 0.1 of imported models.
    #[serde(alias = "imported", alias = "")]
    Teacher,
    /// A consistency model: one jump from noise to data, or a few with fresh noise between them.
    Student,
}

impl Role {
    /// The role's name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a model comes from, kept in the metadata of its file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelCard {
    /// What the model was trained as, which decides how it is sampled.
    pub role: Role,
    /// The preset it was trained with, or the checkpoint it was imported from.
    pub source: String,
    /// The data it was trained on.
    pub data: String,
    /// Names of the classes, in the order of the labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Images seen in training.
    pub images: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Decay of the average of the weights that this file holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// What rounding the weights has changed; in files that are not in single precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounding: Option<Rounding>,
    /// Version of this program.
    pub version: String,
}

/// How far the pictures of a rounded model are from those of the model it was made from, seed by seed, in steps
/// of an 8-bit channel (1/255 of its range).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rounding {
    /// Pictures compared.
    pub images: usize,
    /// Evaluations of the network for each.
    pub steps: usize,
    /// Root of the mean squared difference of a channel.
    pub rms: f64,
    /// Largest difference of a channel.
    pub largest: f64,
}

impl std::fmt::Display for Rounding {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { images, steps, rms, largest } = self;
        let evaluations =
            if *steps == 1 { "one evaluation".to_owned() } else { format!("{steps} evaluations") };
        write!(
            f,
            "{rms:.2}/255 from f32 (root mean square; at most {largest:.1}/255) over {images} images of {evaluations}"
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn roles_of_all_versions_are_read_and_others_are_refused() {
        let role = |text: &str| serde_json::from_str::<ModelCard>(text).map(|card| card.role);
        for (text, expected) in [
            (r#"{"role": "teacher"}"#, Role::Teacher),
            (r#"{"role": "student"}"#, Role::Student),
            (r#"{"role": "imported"}"#, Role::Teacher),
            (r#"{"role": ""}"#, Role::Teacher),
            ("{}", Role::Teacher),
        ] {
            assert_eq!(role(text).unwrap(), expected, "{text}");
        }
        let error = role(r#"{"role": "judge"}"#).unwrap_err().to_string();
        assert!(error.contains("`judge`") && error.contains("`student`"), "{error}");
        let card = ModelCard { role: Role::Student, ..ModelCard::default() };
        assert!(serde_json::to_string(&card).unwrap().contains(r#""role":"student""#));
    }
}
