//! Inputs and comparisons shared by the kernels' tests.

use crate::test_checks::{close, same_bits};
use crate::{Buffer, HostBuffer};

/// Reproducible values in [-1, 1), different at every position and for every seed.
pub(crate) fn values(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64)
        .map(|i| {
            // splitmix64 (Steele et al. 2014).
            let mut z =
                seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A buffer on the host with these values.
pub(crate) fn of(values: &[f32]) -> Buffer {
    let mut buffer = HostBuffer::zeros(values.len());
    buffer.as_mut_slice().copy_from_slice(values);
    Buffer::Host(buffer)
}

/// A buffer of zeros on the host.
pub(crate) fn zeros(len: usize) -> Buffer {
    Buffer::Host(HostBuffer::zeros(len))
}

/// A buffer of [`values`] on the host.
pub(crate) fn buffer(seed: u64, n: usize) -> Buffer {
    of(&values(seed, n))
}

/// 2^-24: how far rounding moves an f32 of size 1 at most.
pub(crate) const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Cosine and sine of the exact angle of a rotary pair `i`, and how far those of a table may be from them.
pub(crate) fn rotary_angle(theta: f64, head_dim: usize, position: usize, i: usize) -> (f64, f64, f64) {
    let angle = position as f64 * theta.powf(-((2 * i) as f64) / head_dim as f64);
    (angle.cos(), angle.sin(), angle * UNIT * (3.0 + theta.ln()) + UNIT)
}

/// Rotates, in f64, the heads that begin at the indices `heads` of `x`. `bound` holds how far an element may
/// be off in f32: on entry before the rotation, on return after it.
pub(crate) fn rotate_exactly(
    x: &mut [f64],
    bound: &mut [f64],
    heads: impl Iterator<Item = usize>,
    head_dim: usize,
    theta: f64,
    position: u32,
) {
    for head in heads {
        for i in 0..head_dim / 2 {
            let (cos, sin, off) = rotary_angle(theta, head_dim, position as usize, i);
            let (low, high) = (head + i, head + head_dim / 2 + i);
            let ((a, b), (a_off, b_off)) = ((x[low], x[high]), (bound[low], bound[high]));
            (x[low], x[high]) = (a * cos - b * sin, b * cos + a * sin);
            let of_table = (a.abs() + a_off + b.abs() + b_off) * off;
            let low_off = of_table + a_off * cos.abs() + b_off * sin.abs();
            let high_off = of_table + b_off * cos.abs() + a_off * sin.abs();
            bound[low] = low_off + UNIT * ((b * sin).abs() + x[low].abs() + low_off);
            bound[high] = high_off + UNIT * ((a * sin).abs() + x[high].abs() + high_off);
        }
    }
}

/// Asserts `|got - expected| <= bound`, element by element.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) {
    close(what, got, expected, bound).unwrap_or_else(|error| panic!("{error}"));
}

/// Asserts equal bits.
#[track_caller]
pub(crate) fn assert_same_bits(what: &str, a: &[f32], b: &[f32]) {
    same_bits(what, a, b).unwrap_or_else(|error| panic!("{error}"));
}

/// erf in f64 from its series and its continued fraction; checked against published values in `math`.
pub(crate) fn erf(x: f64) -> f64 {
    let t = x.abs();
    let value = if t < 2.5 {
        // Maclaurin series with all-positive terms: 2/sqrt(pi) * exp(-t^2) * sum 2^n t^(2n+1) / (2n+1)!!
        let (mut term, mut sum, mut n) = (t, t, 0.0);
        while term > 1e-18 * sum {
            n += 1.0;
            term *= 2.0 * t * t / (2.0 * n + 1.0);
            sum += term;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-t * t).exp() * sum
    } else {
        let mut fraction = 0.0;
        for n in (1..=80).rev() {
            fraction = f64::from(n) / 2.0 / (t + fraction);
        }
        1.0 - (-t * t).exp() / ((t + fraction) * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}
