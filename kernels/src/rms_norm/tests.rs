use super::{RmsNorm, rms_norm};
use crate::testing::{assert_close, assert_same_bits, buffer, of, values, zeros};
use crate::{Error, Stream};

/// The formula in f64, over `weight` as f64 factors.
fn reference(x: &[f32], weight: &[f64], eps: f32) -> Vec<f64> {
    let hidden = weight.len();
    x.chunks_exact(hidden)
        .flat_map(|x| {
            let mean_square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / hidden as f64;
            let rms = (mean_square + f64::from(eps)).sqrt();
            x.iter().zip(weight).map(move |(x, w)| f64::from(*x) / rms * w)
        })
        .collect()
}

const SHAPES: [(usize, usize, f32, f32); 6] = [
    (1, 1, 1e-6, 1.0),
    (3, 17, 1e-6, 1.0),
    (5, 64, 0.05, 1.0),
    (70, 2304, 1e-5, 100.0),
    (130, 2048, 1e-6, 1.0),
    (2, 3584, 1e-6, 1e-4),
];

#[test]
fn matches_f64_when_the_factor_is_stored() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (rows, hidden, eps, scale) in SHAPES {
        let x: Vec<f32> = values(1, rows * hidden).iter().map(|x| x * scale).collect();
        let weight = values(2, hidden);
        let wide: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
        let expected = reference(&x, &wide, eps);
        let mut out = zeros(rows * hidden);
        let norm = RmsNorm { weight: &of(&weight), eps };
        rms_norm(&stream, &mut out, &of(&x), norm, rows.into()).unwrap();
        let relative = (hidden as f64 / 32.0 + 8.0) * 2f64.powi(-24);
        assert_close(&format!("{rows}x{hidden}"), out.host().unwrap(), &expected, |i| {
            relative * expected[i].abs()
        });
    }
}

#[test]
fn matches_f64_when_the_factor_is_stored_less_one() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (rows, hidden, eps, scale) in SHAPES {
        let x: Vec<f32> = values(1, rows * hidden).iter().map(|x| x * scale).collect();
        let stored = values(2, hidden);
        // The reference in f64 adds after widening: the one rounding of 1 + w is part of the bound.
        let wide: Vec<f64> = stored.iter().map(|w| 1.0 + f64::from(*w)).collect();
        let expected = reference(&x, &wide, eps);
        let weight: Vec<f32> = stored.iter().map(|w| 1.0 + w).collect();
        let mut out = zeros(rows * hidden);
        let norm = RmsNorm { weight: &of(&weight), eps };
        rms_norm(&stream, &mut out, &of(&x), norm, rows.into()).unwrap();
        let relative = (hidden as f64 / 32.0 + 9.0) * 2f64.powi(-24);
        assert_close(&format!("{rows}x{hidden}"), out.host().unwrap(), &expected, |i| {
            relative * expected[i].abs()
        });
    }
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    let (rows, hidden) = (500, 399);
    let (x, weight) = (values(1, rows * hidden), buffer(2, hidden));
    let norm = RmsNorm { weight: &weight, eps: 1e-6 };
    let run = |threads, rows: std::ops::Range<usize>| {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let x = of(&x[rows.start * hidden..rows.end * hidden]);
        let mut out = zeros(x.len());
        rms_norm(&stream, &mut out, &x, norm, rows.len().into()).unwrap();
        out
    };
    let whole = run(1, 0..rows);
    assert_same_bits("threads", run(3, 0..rows).host().unwrap(), whole.host().unwrap());
    for row in [0, 123, 499] {
        let expected = &whole.host().unwrap()[row * hidden..(row + 1) * hidden];
        assert_same_bits("alone", run(2, row..row + 1).host().unwrap(), expected);
    }
}

#[test]
fn rows_beyond_num_rows_are_left_alone() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let norm = RmsNorm { weight: &of(&[1.0; 4]), eps: 1e-6 };
    let (mut out, x) = (of(&[7.0; 12]), buffer(1, 12));
    rms_norm(&stream, &mut out, &x, norm, 2.into()).unwrap();
    assert_same_bits("third row", &out.host().unwrap()[8..], &[7.0; 4]);
    assert!(out.host().unwrap()[..8].iter().all(|out| *out != 7.0));
}

#[test]
fn a_row_that_is_not_finite_shows() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let norm = RmsNorm { weight: &of(&[1.0; 2]), eps: 1e-6 };
    let mut out = zeros(2);
    rms_norm(&stream, &mut out, &of(&[1.0, f32::NAN]), norm, 1.into()).unwrap();
    assert!(out.host().unwrap().iter().all(|out| out.is_nan()));
}

#[test]
fn wrong_lengths_are_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let norm = RmsNorm { weight: &of(&[1.0; 4]), eps: 1e-6 };
    let (mut out, x) = (zeros(8), zeros(7));
    assert!(matches!(
        rms_norm(&stream, &mut out, &x, norm, 2.into()),
        Err(Error::Length { operand: "x", expected: 8, found: 7, .. })
    ));
    let (mut out, x) = (zeros(7), zeros(8));
    assert!(matches!(
        rms_norm(&stream, &mut out, &x, norm, 2.into()),
        Err(Error::Length { operand: "out", expected: 8, found: 7, .. })
    ));
    assert!(rms_norm(&stream, &mut out, &x, norm, 0.into()).is_ok());
    assert!(rms_norm(&stream, &mut out, &x, RmsNorm { weight: &zeros(0), eps: 1e-6 }, 2.into()).is_ok());
}
