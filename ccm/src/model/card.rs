//! The model card: origin and training of a model.

use serde::Serialize;

use super::json::Json;
use super::networks::SpecError;
use super::options::Options;

/// What a model was trained as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A velocity field: many solver steps from noise to data.
    #[default]
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

/// Origin and training of a model, stored in the metadata of its file.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
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
    /// Optimiser steps taken, including skipped ones.
    pub steps: u64,
    /// Images used in training, repeats included.
    pub images: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Decay of the weight average (EMA) that this file holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Effect of rounding the weights; absent in single precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounding: Option<Rounding>,
    /// Version of this program.
    pub version: String,
}

impl ModelCard {
    /// Parses the card of a model file. Absent entries are empty; unknown entries are ignored.
    ///
    /// # Errors
    /// If an entry has another type (by name).
    pub fn from_json(card: &Json) -> Result<Self, SpecError> {
        let options = Options::new(card);
        let text = |key| options.text(key).unwrap_or_default().to_owned();
        let whole = |key| options.whole(key).unwrap_or_default();
        let role = match options.text("role") {
            // Imported models of version 0.1 have the last two.
            None | Some("teacher" | "imported" | "") => Role::Teacher,
            Some("student") => Role::Student,
            Some(_) => {
                options.refuse("role", "`teacher` or `student`");
                Role::Teacher
            }
        };
        let classes = options.texts("classes").unwrap_or_default();
        let card = Self {
            role,
            source: text("source"),
            data: text("data"),
            classes: classes.into_iter().map(str::to_owned).collect(),
            steps: whole("steps"),
            images: whole("images"),
            seed: whole("seed"),
            ema: options.number("ema"),
            rounding: options.get("rounding").map(Rounding::from_json).transpose()?,
            version: text("version"),
        };
        options.finish_some()?;
        Ok(card)
    }
}

impl Rounding {
    fn from_json(rounding: &Json) -> Result<Self, SpecError> {
        let options = Options::new(rounding);
        let rounding = Self {
            images: options.needed("images", options.count("images")),
            steps: options.needed("steps", options.count("steps")),
            rms: options.needed("rms", options.number("rms")),
            largest: options.needed("largest", options.number("largest")),
        };
        options.finish_some()?;
        Ok(rounding)
    }
}

/// Difference between the images of a rounded model and those of the original, with the same seeds, in steps of an
/// 8-bit channel (1/255 of its range).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rounding {
    /// Number of images compared.
    pub images: usize,
    /// Evaluations of the network per image.
    pub steps: usize,
    /// Root-mean-square difference of a channel.
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
        let role = |text: &str| ModelCard::from_json(&Json::parse(text).unwrap()).map(|card| card.role);
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
        assert!(error.contains("judge") && error.contains("`student`"), "{error}");
        let card = ModelCard { role: Role::Student, ..ModelCard::default() };
        assert!(serde_json::to_string(&card).unwrap().contains(r#""role":"student""#));
    }
}
