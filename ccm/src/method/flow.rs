//! The straight path, the jump, and the solvers (PAPER.md §1).
//!
//! Times are one a row, `[B]`, in [0, 1]: 0 is noise, 1 is data.

use burn::tensor::{Int, Tensor, TensorData};

use crate::nn::unet::UNet;

/// One number a row, `[B]`, as `[B, 1, 1, 1]`.
fn per_image(t: &Tensor<1>) -> Tensor<4> {
    let [batch] = t.dims();
    t.clone().reshape([batch, 1, 1, 1])
}

/// `x_t = t x1 + (1 - t) x0`.
pub fn path(x0: &Tensor<4>, x1: &Tensor<4>, t: &Tensor<1>) -> Tensor<4> {
    x0.clone() + (x1.clone() - x0.clone()) * per_image(t)
}

/// `f(x, t) = x + (1 - t) v`: one Euler step from `t` straight to data.
pub fn jump(x: Tensor<4>, t: &Tensor<1>, v: Tensor<4>) -> Tensor<4> {
    x + v * per_image(&(-t.clone() + 1.0))
}

/// `x + dt v`, one `dt` a row.
pub fn euler_step(x: Tensor<4>, dt: &Tensor<1>, v: Tensor<4>) -> Tensor<4> {
    x + v * per_image(dt)
}

/// Solves `dx/dt = v(x, t)` from noise to data in `steps` equal Euler steps.
pub fn euler(unet: &UNet, x0: Tensor<4>, label: Option<&Tensor<1, Int>>, steps: usize) -> Tensor<4> {
    let dt = 1.0 / steps as f32;
    (0..steps).fold(x0, |x, step| {
        let t = constant(&x, step as f32 * dt);
        let v = unet.forward(x.clone(), t, label.cloned());
        x + v * dt
    })
}

/// Samples a consistency model in `steps` jumps: jump to data, mix with fresh noise down to the next time, jump
/// again (Song et al., arXiv 2303.01469, algorithm 1, on the straight path). One step is the jump alone.
///
/// `noise` gives the noise of each further step.
pub fn multistep(
    unet: &UNet,
    x0: Tensor<4>,
    label: Option<&Tensor<1, Int>>,
    steps: usize,
    mut noise: impl FnMut(usize) -> Tensor<4>,
) -> Tensor<4> {
    let mut x = x0;
    for step in 0..steps {
        let t = constant(&x, step as f32 / steps as f32);
        if step > 0 {
            x = path(&noise(step), &x, &t);
        }
        let v = unet.forward(x.clone(), t.clone(), label.cloned());
        x = jump(x, &t, v);
    }
    x
}

fn constant(x: &Tensor<4>, t: f32) -> Tensor<1> {
    let [batch, ..] = x.dims();
    Tensor::from_data(TensorData::new(vec![t; batch], [batch]), &x.device())
}
