//! What the inner loops of the convolutions multiply: numbers in single precision, or pairs of numbers in bfloat16. Sums are in
//! single precision.
//!
//! A [`Word`] is one step of such a sum: a number, or two numbers that follow each other along the sum. AVX512-BF16 multiplies
//! and adds a vector of pairs in the time of a vector of single numbers, so pairs take half the time.

use pulp::{Arch, Simd, WithSimd};

/// Operands of the CPU's convolutions and of their gradients. Results and sums are in single precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Operands {
    /// Single precision.
    #[default]
    F32,
    /// Rounded to bfloat16. Needs a processor with AVX512-BF16 ([`Operands::available`]).
    Bf16,
}

impl Operands {
    /// Whether this processor multiplies them.
    pub fn available(self) -> bool {
        match self {
            Self::F32 => true,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => {
                // The compiler takes the other two for granted where it may use the first.
                std::is_x86_feature_detected!("avx512bf16")
                    && std::is_x86_feature_detected!("avx512bw")
                    && std::is_x86_feature_detected!("avx512f")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Bf16 => false,
        }
    }
}

/// One step of a sum of products: a value, or a pair of values.
pub(super) trait Word: Copy + Default + Send + Sync {
    /// Number of values.
    const VALUES: usize;

    /// The word of the first `VALUES` of these numbers.
    fn of(values: [f32; 2]) -> Self;

    /// Words of every `VALUES` rows of `values`, `[rows, len]`, rounded up with zeros; room for [`SLACK`] words follows.
    fn of_rows<'a>(values: &'a [f32], rows: usize, len: usize, pairs: &'a mut Vec<Pair>) -> &'a [Self];

    /// A row of words for every row of `values`, `[rows, len]`: its values and those of the `VALUES - 1` rows after it.
    fn of_each_row<'a>(values: &'a [f32], len: usize, pairs: &'a mut Vec<Pair>) -> &'a [Self];

    /// Whether there are registers for the larger tiles.
    fn wide() -> bool;

    /// Runs a computation with the widest instructions of the processor.
    ///
    /// # Panics
    /// If the processor cannot multiply these words ([`Operands::available`]).
    fn dispatch(computation: impl Computation<Self>);
}

/// Number of words after the last row, so that vectors can be read beyond it.
pub(super) const SLACK: usize = 4 * LANES;

/// Width of the widest vector of any instruction set, in words.
pub(super) const LANES: usize = 16;

/// A computation with products.
pub(super) trait Computation<W> {
    /// Must be inlined.
    fn run<P: Product<Word = W>>(self, product: P);
}

impl Word for f32 {
    const VALUES: usize = 1;

    fn of([value, _]: [f32; 2]) -> Self {
        value
    }

    fn of_rows<'a>(values: &'a [f32], _: usize, _: usize, _: &'a mut Vec<Pair>) -> &'a [Self] {
        values
    }

    fn of_each_row<'a>(values: &'a [f32], _: usize, _: &'a mut Vec<Pair>) -> &'a [Self] {
        values
    }

    fn wide() -> bool {
        struct Registers;
        impl WithSimd for Registers {
            type Output = bool;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> bool {
                Single::<S>::WIDE
            }
        }
        Arch::new().dispatch(Registers)
    }

    fn dispatch(computation: impl Computation<Self>) {
        struct InSimd<C>(C);
        impl<C: Computation<f32>> WithSimd for InSimd<C> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                self.0.run(Single(simd));
            }
        }
        Arch::new().dispatch(InSimd(computation));
    }
}

/// Two numbers in bfloat16; the first one has the low bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub(super) struct Pair(u32);

impl Word for Pair {
    const VALUES: usize = 2;

    #[inline(always)]
    fn of([first, second]: [f32; 2]) -> Self {
        Self(bf16_bits(first) | bf16_bits(second) << 16)
    }

    fn of_rows<'a>(values: &'a [f32], rows: usize, len: usize, pairs: &'a mut Vec<Pair>) -> &'a [Self] {
        // What the buffer had before is overwritten, or read into lanes whose sums are dropped.
        pairs.resize(rows.div_ceil(2) * len + SLACK, Self::default());
        for (rows, words) in values[..rows * len].chunks(2 * len).zip(pairs.chunks_exact_mut(len)) {
            let (first, second) = rows.split_at(len);
            pair(first, second, words);
        }
        pairs
    }

    fn of_each_row<'a>(values: &'a [f32], len: usize, pairs: &'a mut Vec<Pair>) -> &'a [Self] {
        pairs.resize(values.len(), Self::default());
        pair(values, &values[len..], pairs);
        pairs
    }

    fn wide() -> bool {
        true
    }

    fn dispatch(computation: impl Computation<Self>) {
        assert!(Operands::Bf16.available(), "this processor has no AVX512-BF16");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions.
        unsafe {
            avx512_bf16::run(computation);
        }
        #[cfg(not(target_arch = "x86_64"))]
        drop(computation);
    }
}

/// Pairs of the values of two rows. The second one may be shorter; zeros follow it.
fn pair(first: &[f32], second: &[f32], pairs: &mut [Pair]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let (both, alone) = first.split_at(second.len());
            for (pair, (&first, &second)) in pairs.iter_mut().zip(both.iter().zip(second)) {
                *pair = Pair::of([first, second]);
            }
            for (pair, &first) in pairs[both.len()..].iter_mut().zip(alone) {
                *pair = Pair::of([first, 0.0]);
            }
        },
    );
}

/// The nearest number in bfloat16; of two, the even one.
#[inline(always)]
fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if value.is_nan() { 0x7fc0 } else { rounded }
}

/// Instructions that multiply vectors of words and add the products.
pub(super) trait Product: Copy {
    type Word: Word;
    /// Words of consecutive positions, or one word broadcast.
    type Words: Copy;
    type Sums: Copy;
    /// Number of words of a vector.
    const LANES: usize;
    /// Whether there are registers for the larger tiles.
    const WIDE: bool;

    fn zero(self) -> Self::Sums;
    fn splat(self, word: Self::Word) -> Self::Words;
    /// # Safety
    /// `words` points to `LANES` words.
    unsafe fn load(self, words: *const Self::Word) -> Self::Words;
    /// `a * b + sums`; the values of a pair are multiplied each and added.
    fn add_product(self, a: Self::Words, b: Self::Words, sums: Self::Sums) -> Self::Sums;
    /// # Safety
    /// `values` points to `LANES` numbers.
    unsafe fn store(self, sums: Self::Sums, values: *mut f32);
    /// Adds the sums to numbers.
    ///
    /// # Safety
    /// As [`Product::store`].
    unsafe fn add_to(self, sums: Self::Sums, values: *mut f32);
}

/// Products of values in single precision, in any instruction set.
#[derive(Clone, Copy)]
pub(super) struct Single<S>(pub(super) S);

impl<S: Simd> Product for Single<S> {
    type Word = f32;
    type Words = S::f32s;
    type Sums = S::f32s;
    const LANES: usize = S::F32_LANES;
    const WIDE: bool = S::REGISTER_COUNT >= 32;

    #[inline(always)]
    fn zero(self) -> S::f32s {
        self.0.splat_f32s(0.0)
    }

    #[inline(always)]
    fn splat(self, word: f32) -> S::f32s {
        self.0.splat_f32s(word)
    }

    #[inline(always)]
    unsafe fn load(self, words: *const f32) -> S::f32s {
        // SAFETY: as the caller says.
        unsafe { words.cast::<S::f32s>().read_unaligned() }
    }

    #[inline(always)]
    fn add_product(self, a: S::f32s, b: S::f32s, sums: S::f32s) -> S::f32s {
        self.0.mul_add_e_f32s(a, b, sums)
    }

    #[inline(always)]
    unsafe fn store(self, sums: S::f32s, values: *mut f32) {
        // SAFETY: as the caller says.
        unsafe { values.cast::<S::f32s>().write_unaligned(sums) }
    }

    #[inline(always)]
    unsafe fn add_to(self, sums: S::f32s, values: *mut f32) {
        // SAFETY: as the caller says.
        unsafe { self.store(self.0.add_f32s(self.load(values), sums), values) }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512_bf16 {
    use std::arch::x86_64::{
        __m512, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_epi32, _mm512_loadu_ps,
        _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Computation, Pair, Product};

    /// Exists only where the processor has AVX512-BF16.
    #[derive(Clone, Copy)]
    struct Avx512Bf16(());

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn run(computation: impl Computation<Pair>) {
        computation.run(Avx512Bf16(()));
    }

    // SAFETY of all blocks: the processor has the instructions, and pointers are valid as the caller says.
    #[expect(clippy::undocumented_unsafe_blocks, reason = "documented above, for all of them")]
    impl Product for Avx512Bf16 {
        type Word = Pair;
        type Words = __m512i;
        type Sums = __m512;
        const LANES: usize = 16;
        const WIDE: bool = true;

        #[inline(always)]
        fn zero(self) -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        fn splat(self, word: Pair) -> __m512i {
            unsafe { _mm512_set1_epi32(word.0.cast_signed()) }
        }

        #[inline(always)]
        unsafe fn load(self, words: *const Pair) -> __m512i {
            unsafe { _mm512_loadu_epi32(words.cast()) }
        }

        #[inline(always)]
        fn add_product(self, a: __m512i, b: __m512i, sums: __m512) -> __m512 {
            unsafe { _mm512_dpbf16_ps(sums, std::mem::transmute(a), std::mem::transmute(b)) }
        }

        #[inline(always)]
        unsafe fn store(self, sums: __m512, values: *mut f32) {
            unsafe { _mm512_storeu_ps(values, sums) }
        }

        #[inline(always)]
        unsafe fn add_to(self, sums: __m512, values: *mut f32) {
            unsafe { _mm512_storeu_ps(values, _mm512_add_ps(_mm512_loadu_ps(values), sums)) }
        }
    }
}
