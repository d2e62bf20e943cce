//! Rounds a model to a storage precision and measures how much its images change.

use super::schedule::Request;
use super::{Backend, Sampler, SamplerError};
use crate::model::{ModelCard, Rounding};
use crate::weights::{Model, Precision};

/// Number of images to compare.
const IMAGES: usize = 16;

/// Rounds a model to `precision`. Its card records how much its images change ([`Rounding`]).
///
/// # Errors
/// If the model is already rounded, or the backend is not available.
pub async fn round(model: Model, precision: Precision, backend: Backend) -> Result<Model, SamplerError> {
    if model.precision != Precision::F32 {
        let found = model.precision;
        return Err(SamplerError::Request(format!(
            "expected a model in f32, found one rounded to {found} already"
        )));
    }
    let card = ModelCard { rounding: None, ..model.card.clone() };
    if precision == Precision::F32 {
        return Ok(Model { card, ..model });
    }
    let mut rounded = model.clone().rounded(precision)?;
    let (before, steps) = pictures(model, backend).await?;
    let (after, _) = pictures(rounded.clone(), backend).await?;
    // Scaled from [-1, 1] to 0..=255, the range of the displayed images.
    let difference = |(a, b): (&f32, &f32)| 127.5 * f64::from(a.clamp(-1.0, 1.0) - b.clamp(-1.0, 1.0)).abs();
    let differences = || before.iter().zip(&after).map(difference);
    let mean_square = differences().map(|d| d * d).sum::<f64>() / before.len() as f64;
    let largest = differences().fold(0.0, f64::max);
    let rounding = Rounding { images: IMAGES, steps, rms: mean_square.sqrt(), largest };
    rounded.card = ModelCard { rounding: Some(rounding), ..card };
    Ok(rounded)
}

/// Samples images of the first seeds, cycling through the classes. Also returns the number of evaluations per image.
async fn pictures(model: Model, backend: Backend) -> Result<(Vec<f32>, usize), SamplerError> {
    let classes = model.spec.num_classes().unwrap_or(1);
    let labels: Vec<u32> = (0..IMAGES).map(|i| (i % classes) as u32).collect();
    let request = Request::from_seeds(&model.spec, 0, &labels, IMAGES);
    let mut sampler = Sampler::new(model, backend).await?;
    let steps = sampler.solver().usual_steps().min(8);
    Ok((sampler.sample(&request, steps).await?, steps))
}
