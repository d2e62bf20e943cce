//! The instructions that the kernels are compiled for: natively all that pulp knows, chosen when the program runs;
//! in wasm those that the module was compiled with, because a module cannot choose, and would only be larger.

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
pub(super) use pulp::Arch;

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(super) struct Arch(pulp::wasm::Simd128);

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
impl Arch {
    pub(super) fn new() -> Self {
        // SAFETY: the module is compiled for simd128, and would not have started without.
        Self(unsafe { pulp::wasm::Simd128::new_unchecked() })
    }

    #[inline(always)]
    pub(super) fn dispatch<Op: pulp::WithSimd>(self, op: Op) -> Op::Output {
        pulp::Simd::vectorize(self.0, op)
    }
}
