use super::add_rms_norm;
use crate::rms_norm::{RmsNorm, rms_norm};
use crate::testing::{assert_close, assert_same_bits, values};
use crate::{Buffer, Error, Stream};

#[test]
fn matches_f64() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (rows, hidden, eps, y_scale) in [
        (1, 1, 1e-6, 1.0),
        (3, 17, 1e-5, 0.221_359_44),
        (5, 64, 0.05, 1.0),
        (70, 2304, 1e-5, 0.221_359_44),
        (130, 2048, 1e-6, 1.0),
    ] {
        let (x, y, weight) = (values(1, rows * hidden), values(2, rows * hidden), values(3, hidden));
        let sum: Vec<f64> =
            x.iter().zip(&y).map(|(x, y)| f64::from(*x) + f64::from(y_scale) * f64::from(*y)).collect();
        let normalized: Vec<f64> = sum
            .chunks_exact(hidden)
            .flat_map(|x| {
                let mean_square = x.iter().map(|x| x * x).sum::<f64>() / hidden as f64;
                let rms = (mean_square + f64::from(eps)).sqrt();
                x.iter().zip(&weight).map(move |(x, w)| x / rms * f64::from(*w))
            })
            .collect();
        let (mut x, mut out) = (Buffer::from_slice(&x), Buffer::zeros(rows * hidden));
        let norm = RmsNorm { weight: &weight, eps };
        add_rms_norm(&stream, &mut x, &mut out, &Buffer::from_slice(&y), y_scale, norm, rows).unwrap();
        let unit = 2f64.powi(-24);
        let relative = (hidden as f64 / 32.0 + 10.0) * unit;
        let what = format!("{rows}x{hidden}");
        assert_close(&what, x.as_slice(), &sum, |i| unit * sum[i].abs());
        assert_close(&what, out.as_slice(), &normalized, |i| relative * normalized[i].abs());
    }
}

#[test]
fn the_norm_has_the_bits_of_rms_norm() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let (rows, hidden) = (33, 300);
    let (y, weight) = (Buffer::from_slice(&values(2, rows * hidden)), values(3, hidden));
    let norm = RmsNorm { weight: &weight, eps: 1e-6 };
    let mut x = Buffer::from_slice(&values(1, rows * hidden));
    let (mut out, mut alone) = (Buffer::zeros(rows * hidden), Buffer::zeros(rows * hidden));
    add_rms_norm(&stream, &mut x, &mut out, &y, 0.5, norm, rows).unwrap();
    rms_norm(&stream, &mut alone, &x, norm, rows).unwrap();
    assert_same_bits("two passes", out.as_slice(), alone.as_slice());
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    let (rows, hidden) = (500, 399);
    let (x, y, weight) = (values(1, rows * hidden), values(2, rows * hidden), values(3, hidden));
    let norm = RmsNorm { weight: &weight, eps: 1e-6 };
    let run = |threads, rows: std::ops::Range<usize>| {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let range = rows.start * hidden..rows.end * hidden;
        let (mut x, y) = (Buffer::from_slice(&x[range.clone()]), Buffer::from_slice(&y[range]));
        let mut out = Buffer::zeros(y.len());
        add_rms_norm(&stream, &mut x, &mut out, &y, 0.3, norm, rows.len()).unwrap();
        (x, out)
    };
    let (whole_x, whole_out) = run(1, 0..rows);
    let (x, out) = run(3, 0..rows);
    assert_same_bits("x, threads", x.as_slice(), whole_x.as_slice());
    assert_same_bits("out, threads", out.as_slice(), whole_out.as_slice());
    let (x, out) = run(2, 123..124);
    assert_same_bits("x, alone", x.as_slice(), &whole_x.as_slice()[123 * hidden..124 * hidden]);
    assert_same_bits("out, alone", out.as_slice(), &whole_out.as_slice()[123 * hidden..124 * hidden]);
}

#[test]
fn wrong_lengths_are_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let norm = RmsNorm { weight: &[1.0; 4], eps: 1e-6 };
    let run = |x, out, y, num_rows| {
        let (mut x, mut out, y) = (Buffer::zeros(x), Buffer::zeros(out), Buffer::zeros(y));
        add_rms_norm(&stream, &mut x, &mut out, &y, 1.0, norm, num_rows)
    };
    assert!(matches!(run(7, 8, 8, 2), Err(Error::Length { operand: "x", expected: 8, found: 7, .. })));
    assert!(matches!(run(8, 7, 8, 2), Err(Error::Length { operand: "out", expected: 8, found: 7, .. })));
    assert!(matches!(run(8, 8, 7, 2), Err(Error::Length { operand: "y", expected: 8, found: 7, .. })));
    assert!(run(8, 8, 8, 2).is_ok());
    assert!(run(0, 0, 0, 0).is_ok());
}
