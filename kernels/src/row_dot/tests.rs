use super::row_dot;
use crate::testing::{assert_close, assert_same_bits, buffer, values};
use crate::{Buffer, Error, Stream};

#[test]
fn matches_f64_with_and_without_softcap() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let unit = 2f64.powi(-24);
    for (rows, hidden) in [(1, 1), (3, 15), (130, 768), (2, 3584)] {
        let (x, weight) = (buffer(1, rows * hidden), values(2, hidden));
        let products = |row: usize| {
            (0..hidden)
                .map(move |i| (row, i))
                .map(|(r, i)| f64::from(x.as_slice()[r * hidden + i]) * f64::from(weight[i]))
        };
        let z: Vec<f64> = (0..rows).map(|row| products(row).sum::<f64>() + 0.25).collect();
        let bound = |row: usize| {
            let magnitude: f64 = products(row).map(f64::abs).sum();
            unit * ((hidden as f64 / 16.0 + 6.0) * magnitude + z[row].abs())
        };
        let mut out = vec![0.0; rows];
        row_dot(&stream, &mut out, &x, &weight, 0.25, None).unwrap();
        assert_close(&format!("{rows}x{hidden}"), &out, &z, bound);

        for cap in [0.5, 30.0] {
            row_dot(&stream, &mut out, &x, &weight, 0.25, Some(cap)).unwrap();
            let cap = f64::from(cap);
            let expected: Vec<f64> = z.iter().map(|z| cap * (z / cap).tanh()).collect();
            let what = format!("{rows}x{hidden} capped at {cap}");
            assert_close(&what, &out, &expected, |row| bound(row) + 6.0 * unit * z[row].abs());
        }
    }
}

#[test]
fn a_softcap_bounds_and_keeps_nan() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let x = Buffer::from_slice(&[1e30, -1e30, 0.0, f32::INFINITY, f32::NAN]);
    let mut out = [0.0; 5];
    row_dot(&stream, &mut out, &x, &[2.0], 0.0, Some(30.0)).unwrap();
    assert_eq!(out[..4], [30.0, -30.0, 0.0, 30.0]);
    assert!(out[4].is_nan());
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    let (rows, hidden) = (200, 399);
    let (x, weight) = (values(1, rows * hidden), values(2, hidden));
    let run = |threads, rows: std::ops::Range<usize>| {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let mut out = vec![0.0; rows.len()];
        let x = Buffer::from_slice(&x[rows.start * hidden..rows.end * hidden]);
        row_dot(&stream, &mut out, &x, &weight, 0.25, Some(30.0)).unwrap();
        out
    };
    let whole = run(1, 0..rows);
    assert_same_bits("threads", &run(3, 0..rows), &whole);
    assert_same_bits("alone", &run(2, 123..124), &whole[123..124]);
}

#[test]
fn a_short_input_is_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let result = row_dot(&stream, &mut [0.0; 3], &Buffer::zeros(8), &[1.0; 3], 0.0, None);
    assert!(matches!(result, Err(Error::Length { operand: "x", expected: 9, found: 8, .. })));
}
