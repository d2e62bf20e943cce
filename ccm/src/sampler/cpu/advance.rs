//! The solver's update. GPU version: `shaders/src/advance.wgsl`.

use crate::sampler::schedule::{Combination, Update};

/// Updates a range of an image and of the solver's memory.
///
/// # Panics
/// If the slices differ in length, or if a step adds noise and there is none.
pub(super) fn advance(
    update: &Update,
    image: &mut [f32],
    memory: &mut [f32],
    output: &[f32],
    noise: Option<&[f32]>,
) {
    assert!(
        image.len() == output.len() && image.len() == memory.len(),
        "values of the output and the memory"
    );
    assert!(noise.is_some() || update.fresh == 0.0, "a step that adds fresh noise has none");
    // An unused value may be NaN or infinite, so it is not multiplied by 0.
    let term = |factor: f32, value: f32| if factor == 0.0 { 0.0 } else { factor * value };
    let combine = |of: Combination, image: f32, output: f32, memory: f32| {
        term(of.x, image) + term(of.v, output) + term(of.memory, memory)
    };
    for ((image, memory), output) in image.iter_mut().zip(memory).zip(output) {
        let (old, kept) = (*image, *memory);
        *image = combine(update.x, old, *output, kept);
        *memory = combine(update.memory, old, *output, kept);
    }
    if let Some(noise) = noise {
        assert!(image.len() == noise.len(), "values of the noise");
        image.iter_mut().zip(noise).for_each(|(image, noise)| *image += update.fresh * noise);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPDATE: Update = Update {
        x: Combination { x: 0.25, v: 0.5, memory: 2.0 },
        memory: Combination { x: 1.0, v: 0.0, memory: -1.0 },
        fresh: 0.75,
        c_in: 1.0,
    };

    #[test]
    fn image_and_memory_are_combinations_of_what_was_before() {
        let (mut image, mut memory) = ([1.0, -2.0], [3.0, 0.5]);
        advance(&UPDATE, &mut image, &mut memory, &[2.0, 4.0], Some(&[4.0, 8.0]));
        assert_eq!(image, [0.25 + 1.0 + 6.0 + 3.0, -0.5 + 2.0 + 1.0 + 6.0]);
        assert_eq!(memory, [1.0 - 3.0, -2.0 - 0.5]);
    }

    #[test]
    fn what_is_not_used_may_be_anything() {
        let start = Update { x: Combination::default(), memory: Combination::default(), ..UPDATE };
        let (mut image, mut memory) = ([f32::NAN], [f32::INFINITY]);
        advance(&start, &mut image, &mut memory, &[f32::NAN], Some(&[4.0]));
        assert_eq!((image, memory), ([3.0], [0.0]));
    }

    #[test]
    #[should_panic(expected = "a step that adds fresh noise has none")]
    fn missing_noise_is_not_left_out() {
        advance(&UPDATE, &mut [1.0], &mut [1.0], &[2.0], None);
    }

    #[test]
    #[should_panic(expected = "values of the output")]
    fn an_output_of_another_length_is_not_cut_off() {
        advance(&UPDATE, &mut [1.0, 2.0], &mut [1.0, 2.0], &[2.0], Some(&[1.0, 1.0]));
    }
}
