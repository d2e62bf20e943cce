//! KDC and teacher steps against t on held-out images (PAPER.md §7, claim 1).

use super::batches::Batches;
use crate::data::DataError;
use crate::method::curriculum::{Curriculum, Mode, Scope, Start};
use crate::method::flow::{jump, path};
use crate::method::guidance::Teacher;
use crate::nn::denoiser::Denoiser;
use crate::nn::host::per_image;
use crate::report::{Curves, KdcBin};

/// Number of bins of t.
const BINS: usize = 10;

/// The networks of a KDC measurement. None records gradients.
pub struct Networks<'a> {
    /// The teacher.
    pub teacher: &'a Teacher,
    /// The target network.
    pub target: &'a Denoiser,
    /// The student with its current weights, not their average.
    pub student: &'a Denoiser,
}

/// Measures the curriculum and, for comparison, the fixed step on `count` images with times spread evenly over t.
///
/// # Errors
/// Images that cannot be read.
pub fn curves(
    networks: &Networks,
    batches: &Batches,
    curriculum: &Curriculum,
    count: usize,
) -> Result<Curves, DataError> {
    // The curves show the KDC of single images under a curriculum, whatever mode the run was trained with.
    let mode = if curriculum.mode == Mode::Fixed { Mode::Cd } else { curriculum.mode };
    let curriculum = &Curriculum { mode, scope: Scope::Image, ..*curriculum };
    // Every KDC is above this threshold, so the teacher takes exactly one step.
    let fixed = Curriculum { threshold: f64::NEG_INFINITY, ..*curriculum };
    Ok(Curves {
        threshold: curriculum.threshold,
        curriculum: curve(networks, batches, curriculum, count)?,
        fixed: curve(networks, batches, &fixed, count)?,
    })
}

fn curve(
    networks: &Networks,
    batches: &Batches,
    curriculum: &Curriculum,
    count: usize,
) -> Result<Vec<KdcBin>, DataError> {
    let mut bins: Vec<KdcBin> = (0..BINS)
        .map(|bin| KdcBin { t: (bin as f64 + 0.5) / BINS as f64, kdc: 0.0, teacher_steps: 0.0, images: 0 })
        .collect();
    for step in 0..count.div_ceil(batches.size) {
        let batch = batches.batch(step as u64)?;
        // Stratified: one random time in each of `len` equal intervals.
        let places = batch.uniform.iter().enumerate().map(|(i, u)| (i as f32 + u) / batch.len() as f32);
        let first = networks.teacher.denoiser.path().first_time() as f32;
        let t: Vec<f32> =
            places.map(|place| first + (1.0 - first) * place * (1.0 - curriculum.step_size)).collect();
        let time = per_image(&t, &batch.x0.device());
        let x_t = path(&batch.x0, &batch.x1, &time);
        let v = networks.student.velocity(x_t.clone(), &t, batch.condition.clone());
        let start = Start {
            estimate: jump(x_t.clone(), &time, v),
            x_t,
            t: t.clone(),
            condition: batch.condition,
            direction: (curriculum.mode == Mode::Ct).then(|| batch.x1 - batch.x0),
        };
        let goal = curriculum.goal(start, networks.teacher, networks.target);
        for ((t, kdc), steps) in t.into_iter().zip(goal.kdc).zip(goal.steps) {
            let bin = &mut bins[((t * BINS as f32) as usize).min(BINS - 1)];
            bin.kdc += kdc;
            bin.teacher_steps += steps as f64;
            bin.images += 1;
        }
    }
    bins.retain(|bin| bin.images > 0);
    for bin in &mut bins {
        bin.kdc /= bin.images as f64;
        bin.teacher_steps /= bin.images as f64;
    }
    Ok(bins)
}
