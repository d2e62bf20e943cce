//! `x = keep (x + step velocity) + fresh noise`, as `shaders/src/advance.wgsl`.

use crate::sampler::schedule::Step;

/// Advances some values of an image.
///
/// # Panics
/// If the slices differ in length, or if a step that mixes in noise has none.
pub(super) fn advance(step: &Step, x: &mut [f32], velocity: &[f32], noise: Option<&[f32]>) {
    assert!(x.len() == velocity.len(), "values of the velocity");
    assert!(noise.is_some() || step.fresh == 0.0, "a step that mixes in noise has none");
    for (x, v) in x.iter_mut().zip(velocity) {
        *x = step.keep * (*x + step.step * v);
    }
    if let Some(noise) = noise {
        assert!(x.len() == noise.len(), "values of the noise");
        x.iter_mut().zip(noise).for_each(|(x, noise)| *x += step.fresh * noise);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Step = Step { t: 0.5, step: 0.5, keep: 0.25, fresh: 0.75 };

    #[test]
    fn a_step_follows_the_velocity_and_mixes_in_noise() {
        let mut x = [1.0, -2.0];
        advance(&STEP, &mut x, &[2.0, 4.0], Some(&[4.0, 8.0]));
        assert_eq!(x, [0.25 * 2.0 + 3.0, 6.0]);
    }

    #[test]
    #[should_panic(expected = "a step that mixes in noise has none")]
    fn missing_noise_is_not_left_out() {
        advance(&STEP, &mut [1.0], &[2.0], None);
    }

    #[test]
    #[should_panic(expected = "values of the velocity")]
    fn a_velocity_of_another_length_is_not_cut_off() {
        advance(&STEP, &mut [1.0, 2.0], &[2.0], Some(&[1.0, 1.0]));
    }
}
