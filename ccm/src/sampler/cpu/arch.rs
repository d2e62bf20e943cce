//! The instruction sets that the kernels are compiled for. Native builds choose at run time among all that pulp
//! supports. Wasm builds use the module's own, because a module cannot choose at run time.

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
pub(super) use pulp::Arch;

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(super) struct Arch(pulp::wasm::Simd128);

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
impl Arch {
    pub(super) fn new() -> Self {
        // SAFETY: the module is compiled for simd128; an engine without simd128 cannot load it.
        Self(unsafe { pulp::wasm::Simd128::new_unchecked() })
    }

    #[inline(always)]
    pub(super) fn dispatch<Op: pulp::WithSimd>(self, op: Op) -> Op::Output {
        pulp::Simd::vectorize(self.0, op)
    }
}
