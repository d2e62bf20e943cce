//! The instruction sets that the kernels are compiled for. Natively: all that pulp supports, chosen at run time. In wasm:
//! that of the module, because a module cannot choose at run time and would only become larger.

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
pub(super) use pulp::Arch;

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(super) struct Arch(pulp::wasm::Simd128);

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
impl Arch {
    pub(super) fn new() -> Self {
        // SAFETY: the module is compiled for simd128, and does not start on an engine without it.
        Self(unsafe { pulp::wasm::Simd128::new_unchecked() })
    }

    #[inline(always)]
    pub(super) fn dispatch<Op: pulp::WithSimd>(self, op: Op) -> Op::Output {
        pulp::Simd::vectorize(self.0, op)
    }
}
