//! `y = activation(x) * factor + term`, value by value. GPU version: `shaders/src/pointwise.wgsl`.

use super::arch::Arch;
use super::shared::{Member, Shared};
use crate::model::graph::Activation;
use crate::sampler::plan::Pointwise;
use crate::simd::{erf, exp, tanh};

/// The factor of each value.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    /// 1.
    None,
    /// A map.
    Map(&'a [f32]),
    /// One number per channel.
    Vector(&'a [f32]),
}

/// Computes this member's share of the operation for one image: a range of positions. An empty `term` is zero.
pub(super) fn pointwise(op: &Pointwise, x: &[f32], factor: Factor, term: &[f32], y: Shared, member: &Member) {
    let channels = op.y.channels;
    let of_map = match op.factor {
        Some(crate::sampler::plan::Factor::Map(of_map)) => Some(of_map),
        _ => None,
    };
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for position in member.share(op.y.pixels()) {
                let x = &x[position * op.x.map.channels + op.x.first..][..channels];
                // SAFETY: only this member writes this position.
                let y = unsafe { y.write(position * channels, channels) };
                match op.activation {
                    None => y.copy_from_slice(x),
                    Some(activation) => activate(activation, x, y),
                }
                match (factor, of_map) {
                    (Factor::Map(factor), Some(of)) => {
                        let factor = &factor[position * of.map.channels + of.first..][..channels];
                        y.iter_mut().zip(factor).for_each(|(y, factor)| *y *= factor);
                    }
                    (Factor::Vector(factor), _) => {
                        y.iter_mut().zip(factor).for_each(|(y, factor)| *y *= factor);
                    }
                    _ => {}
                }
                if !term.is_empty() {
                    let term = &term[position * channels..][..channels];
                    y.iter_mut().zip(term).for_each(|(y, term)| *y += term);
                }
            }
        },
    );
}

/// Writes a function of every value of `x` to `y`.
#[inline(always)]
fn activate(activation: Activation, x: &[f32], y: &mut [f32]) {
    #[inline(always)]
    fn map(x: &[f32], y: &mut [f32], of: impl Fn(f32) -> f32) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = of(*x));
    }
    match activation {
        Activation::Silu => map(x, y, |x| x / (1.0 + exp(-x))),
        Activation::Gelu => map(x, y, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))),
        Activation::GeluTanh => {
            /// The square root of 2 / pi.
            const FACTOR: f32 = 0.797_884_6;
            map(x, y, |x| 0.5 * x * (1.0 + tanh(FACTOR * (x + 0.044_715 * x * x * x))));
        }
        Activation::QuickGelu => map(x, y, |x| x / (1.0 + exp(-1.702 * x))),
        Activation::Relu => map(x, y, |x| x.max(0.0)),
        Activation::Tanh => map(x, y, tanh),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_agree_with_their_definitions() {
        type Definition = fn(f64) -> f64;
        let cases: [(Activation, Definition); 6] = [
            (Activation::Silu, |x| x / (1.0 + (-x).exp())),
            (Activation::Gelu, |x| 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt()))),
            (Activation::GeluTanh, |x| {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }),
            (Activation::QuickGelu, |x| x / (1.0 + (-1.702 * x).exp())),
            (Activation::Relu, |x| x.max(0.0)),
            (Activation::Tanh, f64::tanh),
        ];
        let x: Vec<f32> = (-600..600).map(|i| i as f32 / 20.0).collect();
        let mut y = vec![0.0; x.len()];
        for (activation, definition) in cases {
            activate(activation, &x, &mut y);
            for (x, y) in x.iter().zip(&y) {
                let expected = definition(f64::from(*x));
                let error = (f64::from(*y) - expected).abs();
                assert!(error < 1e-6 * expected.abs().max(1.0), "{activation:?}({x}) = {y}, not {expected}");
            }
        }
    }
}
