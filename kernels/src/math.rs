//! Elementary functions that vectorise.
//!
//! All are branch-free and made of additions, fused multiply-adds and bit operations, so that a loop over them becomes vector
//! code. [`vectorize!`](vectorize) compiles such a loop for the widest instruction set of the machine at hand. Coefficients come from
//! `scripts/fit_math.py`; each function's error bound is tested against f64 in this file.

use pulp::{Arch, NullaryFnOnce};

/// Runs an expression compiled once per instruction set, in the variant this machine supports (x86: SSE2, AVX2 + FMA, AVX-512).
///
/// A macro, because only code that is inlined into the variant is compiled for it: the closure must carry the attribute, and
/// without it every `mul_add` is a call to the C library. Functions it calls must be `#[inline(always)]` too.
macro_rules! vectorize {
    ($work:expr) => {
        $crate::math::dispatch(
            #[inline(always)]
            || $work,
        )
    };
}
pub(crate) use vectorize;

/// What [`vectorize`] expands to.
#[inline(always)]
pub(crate) fn dispatch<F: FnOnce() -> R, R>(work: F) -> R {
    struct Work<F>(F);
    impl<F: FnOnce() -> R, R> NullaryFnOnce for Work<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Work(work))
}

// Fitted, not mathematical, constants: the nearness of a leading coefficient to ln 2 or 2/sqrt(pi) is what a fit gives.
#[allow(clippy::approx_constant)]
const EXP2: [f32; 6] = [0.6931472, 0.24022648, 0.05550329, 0.009618374, 0.0013399848, 0.00015370705];
#[allow(clippy::approx_constant)]
const ERF: [f32; 7] =
    [1.1283792, -0.3761263, 0.11283612, -0.02685481, 0.0051900535, -0.0008024354, 7.89821e-05];
const LOG2_ERFC: [f32; 8] = [
    0.00021480442,
    -1.6293683,
    -0.9140825,
    -0.15582472,
    0.03598753,
    -0.0059217275,
    0.0006069561,
    -2.870924e-05,
];

/// Horner's scheme with fused multiply-adds.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[i]);
    }
    sum
}

/// 2^x. Relative error below 2e-7 for results that are normal numbers; below 2^-126 it returns at most 2^-126, never less
/// than 0; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // `clamp` keeps a NaN, so that a broken weight shows in the score.
    let clamped = x.clamp(-126.0, 127.0);
    let shifted = clamped + ROUND;
    let fraction = clamped - (shifted - ROUND);
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let mantissa = polynomial(&EXP2, fraction).mul_add(fraction, 1.0);
    mantissa * power
}

/// GELU with the exact error function: `x / 2 * (1 + erf(x / sqrt 2))` (Hendrycks and Gimpel 2016, eq. 1).
///
/// Absolute error below 3e-7 * max(1, |x|). The tail of the negative side is computed from erfc, so nothing cancels.
#[inline(always)]
pub(crate) fn gelu_erf(x: f32) -> f32 {
    let t = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let near = (-t).mul_add(polynomial(&ERF, t * t), 1.0);
    let far = exp2(polynomial(&LOG2_ERFC, t));
    let erfc = if t < 1.0 { near } else { far };
    let tail = 0.5 * x.abs() * erfc;
    // x >= 0: x - tail; x < 0: -tail.
    (if x > 0.0 { x } else { 0.0 * x }) - tail
}

/// SiLU: `x / (1 + exp(-x))` (Hendrycks and Gimpel 2016, section 2; Elfwing et al. 2017).
///
/// Absolute error below 4e-7 * max(1, |x|).
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp2(-std::f32::consts::LOG2_E * x))
}

/// GELU by its tanh approximation: `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))` (Hendrycks and Gimpel 2016, section 2).
///
/// Computed as `x / (1 + exp(-2 u))`, where u is the argument of the tanh: the same function, without its cancellation.
/// Absolute error below 4e-7 * max(1, |x|).
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    // 2 * sqrt(2 / pi) * log2(e), and that times 0.044715.
    const LINEAR: f32 = 2.302_208_2;
    const CUBIC: f32 = 0.102_943_24;
    let u = x * (x * x).mul_add(CUBIC, LINEAR);
    x / (1.0 + exp2(-u))
}

/// Hyperbolic tangent; absolute error below 3e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let t = exp2(-2.0 * std::f32::consts::LOG2_E * x.abs());
    ((1.0 - t) / (1.0 + t)).copysign(x)
}

/// Sum of a slice in 16 interleaved partial sums, added at the end in a fixed tree: the order depends on the length alone.
#[inline(always)]
pub(crate) fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(*x);
    }
    sum_lanes(lanes)
}

/// `sum_i a[i] * b[i]`, ordered as in [`sum_by`].
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = a.mul_add(*b, *lane);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane = a.mul_add(*b, *lane);
    }
    sum_lanes(lanes)
}

#[inline(always)]
fn sum_lanes(mut lanes: [f32; 16]) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// Normalises one row in place to zero mean and unit variance, then scales and shifts: LayerNorm (Ba et al. 2016, eq. 4).
///
/// Mean first, then the mean of squared differences: one pass over squares would cancel for rows with a large mean.
#[inline(always)]
pub(crate) fn layer_norm_row(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let scale = 1.0 / row.len() as f32;
    let mean = sum_by(row, |x| x) * scale;
    let variance = sum_by(row, |x| (x - mean) * (x - mean)) * scale;
    let inverse = 1.0 / (variance + eps).sqrt();
    for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
        *x = ((*x - mean) * inverse).mul_add(*w, *b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::erf;

    #[test]
    fn erf_reference_matches_published_values() {
        // DLMF / Abramowitz and Stegun table 7.1.
        for (x, expected) in [(0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (3.0, 0.9999779095030014)]
        {
            assert!((erf(x) - expected).abs() < 1e-13, "erf({x})");
        }
    }

    #[test]
    fn exp2_is_within_its_bound() {
        for i in -1_259_000..=1_270_000 {
            let x = i as f32 * 1e-4;
            let (got, expected) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((got - expected).abs() <= 2e-7 * expected, "exp2({x}): {got}, expected {expected}");
        }
        assert!(exp2(-1e30) >= 0.0 && exp2(-1e30) <= f32::MIN_POSITIVE);
        assert!(exp2(f32::NEG_INFINITY) <= f32::MIN_POSITIVE);
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_is_within_its_bound() {
        for i in -200_000..=200_000 {
            let x = i as f32 * 1e-4;
            let wide = f64::from(x);
            let expected = 0.5 * wide * (1.0 + erf(wide / std::f64::consts::SQRT_2));
            let bound = 3e-7 * wide.abs().max(1.0);
            assert!((f64::from(gelu_erf(x)) - expected).abs() <= bound, "gelu({x})");
        }
        assert!(gelu_erf(f32::NAN).is_nan());
        assert_eq!(gelu_erf(50.0), 50.0);
        assert!(gelu_erf(-50.0).abs() < 1e-30);
    }

    #[test]
    fn gates_are_within_their_bounds() {
        for i in -200_000..=200_000 {
            let x = i as f32 * 1e-4;
            let wide = f64::from(x);
            let bound = 4e-7 * wide.abs().max(1.0);
            let silu_f64 = wide / (1.0 + (-wide).exp());
            assert!((f64::from(silu(x)) - silu_f64).abs() <= bound, "silu({x})");
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            let gelu_f64 = 0.5 * wide * (1.0 + u.tanh());
            assert!((f64::from(gelu_tanh(x)) - gelu_f64).abs() <= bound, "gelu_tanh({x})");
            assert!((f64::from(tanh(x)) - wide.tanh()).abs() <= 3e-7, "tanh({x})");
        }
        for f in [silu, gelu_tanh, tanh] {
            assert!(f(f32::NAN).is_nan());
            assert!(f(-1e4).abs() <= 1.0, "no overflow far on the negative side");
        }
        assert_eq!((silu(1e4), gelu_tanh(1e4), tanh(1e4), tanh(-1e4)), (1e4, 1e4, 1.0, -1.0));
    }

    #[test]
    fn vector_and_scalar_code_agree_bit_for_bit() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.02).collect();
        let mut vector = x.clone();
        vectorize!(vector.iter_mut().for_each(|x| *x = gelu_erf(*x)));
        for (x, v) in x.iter().zip(vector) {
            assert_eq!(gelu_erf(*x).to_bits(), v.to_bits());
        }
    }

    #[test]
    fn sums_reach_every_element() {
        for n in [0, 1, 15, 16, 17, 31, 33, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
            let ones = vec![1.0; n];
            let expected = (n * (n + 1) / 2) as f32;
            assert_eq!(sum_by(&x, |x| x), expected);
            assert_eq!(dot(&x, &ones), expected);
        }
    }
}
