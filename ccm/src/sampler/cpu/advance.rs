//! `x = keep (x + step v) + fresh noise`, as `shaders/src/advance.wgsl`.

use crate::sampler::schedule::Step;

/// Advances some values of an image.
pub(super) fn advance(step: &Step, x: &mut [f32], velocity: &[f32], noise: Option<&[f32]>) {
    for (x, v) in x.iter_mut().zip(velocity) {
        *x = step.keep * (*x + step.step * v);
    }
    if let Some(noise) = noise {
        x.iter_mut().zip(noise).for_each(|(x, noise)| *x += step.fresh * noise);
    }
}
