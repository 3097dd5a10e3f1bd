//! Inputs and comparisons shared by the kernels' tests.

use crate::Buffer;

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

/// A buffer of [`values`].
pub(crate) fn buffer(seed: u64, n: usize) -> Buffer {
    Buffer::from_slice(&values(seed, n))
}

/// Asserts `|got - expected| <= bound`, element by element; shows the worst.
pub(crate) fn assert_close(what: &str, got: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let excess = |i: usize| (f64::from(got[i]) - expected[i]).abs() - bound(i);
    for i in 0..got.len() {
        // Written so that a NaN fails.
        assert!(
            excess(i) <= 0.0,
            "{what}: element {i} is {}, expected {} within {:e}",
            got[i],
            expected[i],
            bound(i)
        );
    }
}

/// Asserts equal bits.
pub(crate) fn assert_same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}: length");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{what}: element {i} is {a} and {b}");
    }
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
