use super::{LowRank, add_low_rank};
use crate::testing::{assert_close, assert_same_bits, values};
use crate::{CpuStream, Error};

#[test]
fn matches_f64_at_every_shape_and_with_any_threads() {
    for (out_features, in_features, rank) in [(1, 1, 1), (3, 65, 2), (40, 64, 4), (33, 200, 64), (5, 7, 0)] {
        let shape = LowRank { out_features, in_features, rank, scale: -1.7 };
        let (w, b, a) = (
            values(1, out_features * in_features),
            values(2, out_features * rank),
            values(3, rank * in_features),
        );
        let product = |f: fn(f64) -> f64| -> Vec<f64> {
            let element = |i: usize| {
                let (row, col) = (i / in_features, i % in_features);
                let term = |r: usize| f64::from(b[row * rank + r]) * f64::from(a[r * in_features + col]);
                (0..rank).map(|r| f(term(r))).sum()
            };
            (0..w.len()).map(element).collect()
        };
        let (exact, magnitude) = (product(|x| x), product(f64::abs));
        let expected: Vec<f64> =
            w.iter().zip(exact).map(|(w, x)| f64::from(*w) + f64::from(shape.scale) * x).collect();
        let run = |threads| {
            let mut w = w.clone();
            add_low_rank(&CpuStream::new(Some(threads)).unwrap(), &mut w, &b, &a, shape).unwrap();
            w
        };
        let got = run(2);
        assert_close(&format!("{out_features}x{in_features}, r {rank}"), &got, &expected, |i| {
            2f64.powi(-24) * ((rank as f64 + 2.0) * 1.7 * magnitude[i] + expected[i].abs())
        });
        assert_same_bits("threads", &run(5), &got);
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let stream = CpuStream::new(Some(1)).unwrap();
    let shape = LowRank { out_features: 2, in_features: 3, rank: 1, scale: 1.0 };
    for (w, b, a, name) in [(5, 2, 3, "w"), (6, 1, 3, "b"), (6, 2, 2, "a")] {
        match add_low_rank(&stream, &mut vec![0.0; w], &vec![0.0; b], &vec![0.0; a], shape) {
            Err(Error::Length { operand, .. }) => assert_eq!(operand, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}
