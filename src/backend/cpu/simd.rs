//! Vector lanes of the host processor, chosen once at run time, and the few transcendental functions the models need.
//! A kernel body is written once, generic over [`Simd`], and [`dispatch!`] compiles it for AVX-512, for AVX2 and for
//! the target's baseline (NEON on 64-bit Arm).

use half::bf16;

/// One register of f32 lanes. Every method is `inline(always)`, so that it takes on the features of the caller.
pub trait Simd: Copy {
    /// A register.
    type Lanes: Copy;
    /// Lanes in one.
    const N: usize;
    /// All lanes equal to `value`.
    fn splat(value: f32) -> Self::Lanes;
    /// The first `N` values of a slice that holds at least as many.
    fn load(values: &[f32]) -> Self::Lanes;
    /// As `load`, widened from bf16.
    fn load_bf16(values: &[bf16]) -> Self::Lanes;
    /// As `load`, converted from whole numbers.
    fn load_i8(values: &[i8]) -> Self::Lanes;
    /// Writes the first `N` values of a slice that holds at least as many.
    fn store(values: &mut [f32], lanes: Self::Lanes);
    /// `a * b + c`, rounded once where the hardware can.
    fn mul_add(a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    /// `a + b`.
    fn add(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// Sum of all lanes.
    fn sum(lanes: Self::Lanes) -> f32;
    /// Scalar `a * b + c` in the same arithmetic as [`Simd::mul_add`].
    fn mul_add1(a: f32, b: f32, c: f32) -> f32;
    /// 4 N values to those at every fourth place.
    #[inline(always)]
    fn load_fourths(values: &[f32]) -> [Self::Lanes; 4] {
        std::array::from_fn(|n| {
            let fourth: [f32; MAX_LANES] = std::array::from_fn(|i| if i < Self::N { values[4 * i + n] } else { 0.0 });
            Self::load(&fourth)
        })
    }
    /// The inverse of [`Simd::load_fourths`].
    #[inline(always)]
    fn store_fourths(values: &mut [f32], lanes: [Self::Lanes; 4]) {
        let mut fourths = [[0.0; MAX_LANES]; 4];
        for (fourth, lanes) in fourths.iter_mut().zip(lanes) {
            Self::store(fourth, lanes);
        }
        for (i, value) in values[..4 * Self::N].iter_mut().enumerate() {
            *value = fourths[i % 4][i / 4];
        }
    }
    /// Transposes the first `N` registers, seen as the rows of a square.
    #[inline(always)]
    fn transpose(square: &mut [Self::Lanes; MAX_LANES]) {
        let mut values = [[0.0f32; MAX_LANES]; MAX_LANES];
        for (row, lanes) in values.iter_mut().zip(square.iter()).take(Self::N) {
            Self::store(row, *lanes);
        }
        for (n, lanes) in square.iter_mut().enumerate().take(Self::N) {
            let column: [f32; MAX_LANES] = std::array::from_fn(|row| values[row][n]);
            *lanes = Self::load(&column);
        }
    }
}

/// Prefetch distance in bytes of a stream of weights, keys or values. The processor's own prefetcher ends where a page
/// does, and one core's demands alone do not fill the memory's queue.
const AHEAD: usize = 4096;

/// Asks for the cache line of an address that will be read soon, or never: it may lie outside of what is allocated.
#[inline(always)]
pub fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint without effect on the program, which every x86-64 processor has and which any address may be given.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// [`prefetch`] of what lies [`AHEAD`] bytes after a slice's first element.
#[inline(always)]
pub fn prefetch_ahead<T>(values: &[T]) {
    prefetch(values.as_ptr().cast::<u8>().wrapping_add(AHEAD));
}

/// Lanes of the widest register.
pub const MAX_LANES: usize = 16;

/// The target's baseline, vectorised by the compiler.
#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    type Lanes = [f32; 8];
    const N: usize = 8;
    #[inline(always)]
    fn splat(value: f32) -> [f32; 8] {
        [value; 8]
    }
    #[inline(always)]
    fn load(values: &[f32]) -> [f32; 8] {
        std::array::from_fn(|i| values[i])
    }
    #[inline(always)]
    fn load_bf16(values: &[bf16]) -> [f32; 8] {
        std::array::from_fn(|i| f32::from_bits((values[i].to_bits() as u32) << 16))
    }
    #[inline(always)]
    fn load_i8(values: &[i8]) -> [f32; 8] {
        std::array::from_fn(|i| f32::from(values[i]))
    }
    #[inline(always)]
    fn store(values: &mut [f32], lanes: [f32; 8]) {
        values[..8].copy_from_slice(&lanes);
    }
    #[inline(always)]
    fn mul_add(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| Self::mul_add1(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sum(lanes: [f32; 8]) -> f32 {
        lanes.iter().sum()
    }
    #[inline(always)]
    fn mul_add1(a: f32, b: f32, c: f32) -> f32 {
        // Only 64-bit Arm has a fused multiply-add in its baseline; elsewhere it would be a library call.
        if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86_lanes {
    ($name:ident, $doc:literal, $register:ty, $n:literal, $splat:ident, $load:ident, $store:ident, $fma:ident, $add:ident,
     $widen:expr, $convert:expr, $sum:expr $(, $own:item)*) => {
        #[doc = $doc]
        #[derive(Clone, Copy)]
        pub struct $name;

        // SAFETY (of every block): the type is only named by `dispatch!` after the processor's features were checked,
        // and each pointer comes from a slice whose length the assertion has compared with the lanes.
        impl Simd for $name {
            type Lanes = $register;
            const N: usize = $n;
            #[inline(always)]
            fn splat(value: f32) -> $register {
                unsafe { $splat(value) }
            }
            #[inline(always)]
            fn load(values: &[f32]) -> $register {
                assert!(values.len() >= $n);
                unsafe { $load(values.as_ptr()) }
            }
            #[inline(always)]
            fn load_bf16(values: &[bf16]) -> $register {
                assert!(values.len() >= $n);
                unsafe { $widen(values.as_ptr()) }
            }
            #[inline(always)]
            fn load_i8(values: &[i8]) -> $register {
                assert!(values.len() >= $n);
                unsafe { $convert(values.as_ptr()) }
            }
            #[inline(always)]
            fn store(values: &mut [f32], lanes: $register) {
                assert!(values.len() >= $n);
                unsafe { $store(values.as_mut_ptr(), lanes) }
            }
            #[inline(always)]
            fn mul_add(a: $register, b: $register, c: $register) -> $register {
                unsafe { $fma(a, b, c) }
            }
            #[inline(always)]
            fn add(a: $register, b: $register) -> $register {
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            fn sum(lanes: $register) -> f32 {
                unsafe { $sum(lanes) }
            }
            #[inline(always)]
            fn mul_add1(a: f32, b: f32, c: f32) -> f32 {
                a.mul_add(b, c)
            }
            $($own)*
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Simd, bf16};
    use std::arch::x86_64::*;

    x86_lanes!(
        Avx512,
        "16 lanes of AVX-512.",
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        |p: *const bf16| {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
        },
        |p: *const i8| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))),
        |v| _mm512_reduce_add_ps(v),
        #[inline(always)]
        fn transpose(square: &mut [__m512; 16]) {
            unsafe { transpose_16x16(square) }
        },
        #[inline(always)]
        fn load_fourths(values: &[f32]) -> [__m512; 4] {
            let [a, b, c, d] = std::array::from_fn(|n| Avx512::load(&values[16 * n..]));
            unsafe {
                let ([even, odd], [even2, odd2]) = (halves(a, b), halves(c, d));
                let ([first, third], [second, fourth]) = (halves(even, even2), halves(odd, odd2));
                [first, second, third, fourth]
            }
        },
        #[inline(always)]
        fn store_fourths(values: &mut [f32], [a, b, c, d]: [__m512; 4]) {
            unsafe {
                let ([even, even2], [odd, odd2]) = (alternate(a, c), alternate(b, d));
                let ([first, second], [third, fourth]) = (alternate(even, odd), alternate(even2, odd2));
                for (values, lanes) in values.chunks_exact_mut(16).zip([first, second, third, fourth]) {
                    Avx512::store(values, lanes);
                }
            }
        }
    );

    /// The values at even and at odd places of two registers.
    ///
    /// # Safety
    /// The processor has to have AVX-512 F.
    #[inline(always)]
    unsafe fn halves(a: __m512, b: __m512) -> [__m512; 2] {
        // SAFETY: the caller's promise; no memory is touched.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            [_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)]
        }
    }

    /// The inverse of [`halves`].
    ///
    /// # Safety
    /// The processor has to have AVX-512 F.
    #[inline(always)]
    unsafe fn alternate(even: __m512, odd: __m512) -> [__m512; 2] {
        // SAFETY: the caller's promise; no memory is touched.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [_mm512_permutex2var_ps(even, low, odd), _mm512_permutex2var_ps(even, high, odd)]
        }
    }

    /// Pairs of rows, then fours, then the quarters of each register: 64 shuffles.
    ///
    /// # Safety
    /// The processor has to have AVX-512 F.
    #[inline(always)]
    unsafe fn transpose_16x16(square: &mut [__m512; 16]) {
        // SAFETY: the caller's promise; no memory is touched.
        unsafe {
            for rows in square.chunks_exact_mut(4) {
                let (low, high) = (_mm512_unpacklo_ps(rows[0], rows[1]), _mm512_unpackhi_ps(rows[0], rows[1]));
                let (low2, high2) = (_mm512_unpacklo_ps(rows[2], rows[3]), _mm512_unpackhi_ps(rows[2], rows[3]));
                let pair = |a, b| (_mm512_castps_pd(a), _mm512_castps_pd(b));
                let ((low, low2), (high, high2)) = (pair(low, low2), pair(high, high2));
                rows[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2));
                rows[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2));
                rows[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2));
                rows[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2));
            }
            // Register 4i + j now holds rows 4i to 4i + 3 of columns j, 4 + j, 8 + j and 12 + j, a quarter each.
            for j in 0..4 {
                let (a, b, c, d) = (square[j], square[4 + j], square[8 + j], square[12 + j]);
                let (even, even2) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                let (odd, odd2) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                square[j] = _mm512_shuffle_f32x4::<0x88>(even, even2);
                square[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, odd2);
                square[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even, even2);
                square[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd, odd2);
            }
        }
    }
    x86_lanes!(
        Avx2,
        "8 lanes of AVX2 with FMA.",
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        |p: *const bf16| {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
        },
        |p: *const i8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))),
        |v| {
            let mut lanes = [0f32; 8];
            _mm256_storeu_ps(lanes.as_mut_ptr(), v);
            lanes.iter().sum::<f32>()
        }
    );
}
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// Widest lanes of this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// Instructions that the target guarantees.
    Portable,
}

/// The best level of this processor. The answer of the standard library's detection is cached by it.
#[inline]
pub fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// `dispatch! { pub fn name(a: A, ...) = body; }` makes `name`, which calls `body::<S>` with the widest [`Simd`] the
/// processor has, compiled with its features. `body` has to be `inline(always)`.
macro_rules! dispatch {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) = $body:ident;) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::backend::cpu::simd::{Avx2, Avx512, Level, level};
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($argument: $type),*) {
                    $body::<Avx512>($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($argument: $type),*) {
                    $body::<Avx2>($($argument),*)
                }
                match level() {
                    // SAFETY: `level` has found every feature that the function is compiled with.
                    Level::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2($($argument),*) },
                    Level::Portable => {}
                }
            }
            $body::<$crate::backend::cpu::simd::Portable>($($argument),*)
        }
    };
}
pub(crate) use dispatch;

/// e^x with a relative error below 2^-22 for x in -87..88; smaller x give 0, larger ones the value at 88; NaN stays.
///
/// Range reduction by ln 2 in two parts, then a degree-6 Taylor-Horner polynomial on +-ln(2)/2.
#[inline(always)]
pub fn exp<S: Simd>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = if x > 88.0 { 88.0 } else { x };
    let shifted = S::mul_add1(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = S::mul_add1(n, -0.693_359_4, clamped);
    let r = S::mul_add1(n, 2.121_944_4e-4, r);
    let mut p = 1.0 / 720.0;
    p = S::mul_add1(p, r, 1.0 / 120.0);
    p = S::mul_add1(p, r, 1.0 / 24.0);
    p = S::mul_add1(p, r, 1.0 / 6.0);
    p = S::mul_add1(p, r, 0.5);
    p = S::mul_add1(p, r, 1.0);
    p = S::mul_add1(p, r, 1.0);
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * scale }
}

/// tanh(x), absolute error below 2e-7.
#[inline(always)]
pub fn tanh<S: Simd>(x: f32) -> f32 {
    let clamped = x.clamp(-10.0, 10.0);
    1.0 - 2.0 / (exp::<S>(2.0 * clamped) + 1.0)
}

/// erf(x), absolute error below 4e-7: an odd rational function of degree 11 over 10, fitted to minimise the relative
/// error on 0..3.92, beyond which erf rounds to one.
#[inline(always)]
pub fn erf<S: Simd>(x: f32) -> f32 {
    let x = x.clamp(-3.92, 3.92);
    let t = x * x;
    let mut p = 2.050_127e-6;
    p = S::mul_add1(p, t, 2.848_779_6e-4);
    p = S::mul_add1(p, t, 3.765_401_3e-3);
    p = S::mul_add1(p, t, 5.274_806e-2);
    p = S::mul_add1(p, t, 1.904_014_3e-1);
    p = S::mul_add1(p, t, std::f32::consts::FRAC_2_SQRT_PI);
    let mut q = 3.809_188e-5;
    q = S::mul_add1(q, t, 1.162_483_4e-3);
    q = S::mul_add1(q, t, 1.496_878_5e-2);
    q = S::mul_add1(q, t, 1.141_070_3e-1);
    q = S::mul_add1(q, t, 5.020_716e-1);
    q = S::mul_add1(q, t, 1.0);
    x * p / q
}
