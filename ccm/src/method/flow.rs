//! The straight path, the jump and the Euler step (PAPER.md §1).
//!
//! Images, noise and velocities are `[B, C, H, W]`. Times are `[B]`, in [0, 1]: 0 is noise, 1 is data.

use burn::tensor::Tensor;

/// Reshapes `[B]` to `[B, 1, 1, 1]`.
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

/// `x + dt v`; `dt`: `[B]`.
pub fn euler_step(x: Tensor<4>, dt: &Tensor<1>, v: Tensor<4>) -> Tensor<4> {
    x + v * per_image(dt)
}
