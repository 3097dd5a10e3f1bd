use super::row_dot;
use crate::testing::{assert_close, assert_same_bits, buffer, of, values, zeros};
use crate::{Error, Stream};

#[test]
fn matches_f64_with_and_without_softcap() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let unit = 2f64.powi(-24);
    for (rows, hidden) in [(1, 1), (3, 15), (130, 768), (2, 3584)] {
        let (x, weight) = (buffer(1, rows * hidden), buffer(2, hidden));
        let products = |row: usize| {
            (0..hidden).map(move |i| (row, i)).map(|(r, i)| {
                f64::from(x.host().unwrap()[r * hidden + i]) * f64::from(weight.host().unwrap()[i])
            })
        };
        let z: Vec<f64> = (0..rows).map(|row| products(row).sum::<f64>() + 0.25).collect();
        let bound = |row: usize| {
            let magnitude: f64 = products(row).map(f64::abs).sum();
            unit * ((hidden as f64 / 16.0 + 6.0) * magnitude + z[row].abs())
        };
        let mut out = zeros(rows);
        row_dot(&stream, &mut out, 0, &x, &weight, 0.25, None, rows.into()).unwrap();
        assert_close(&format!("{rows}x{hidden}"), out.host().unwrap(), &z, bound);

        for cap in [0.5, 30.0] {
            row_dot(&stream, &mut out, 0, &x, &weight, 0.25, Some(cap), rows.into()).unwrap();
            let cap = f64::from(cap);
            let expected: Vec<f64> = z.iter().map(|z| cap * (z / cap).tanh()).collect();
            let what = format!("{rows}x{hidden} capped at {cap}");
            assert_close(&what, out.host().unwrap(), &expected, |row| bound(row) + 6.0 * unit * z[row].abs());
        }
    }
}

#[test]
fn a_softcap_bounds_and_keeps_nan() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let x = of(&[1e30, -1e30, 0.0, f32::INFINITY, f32::NAN]);
    let mut out = zeros(5);
    row_dot(&stream, &mut out, 0, &x, &of(&[2.0]), 0.0, Some(30.0), 5.into()).unwrap();
    let out = out.host().unwrap();
    assert_eq!(out[..4], [30.0, -30.0, 0.0, 30.0]);
    assert!(out[4].is_nan());
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    let (rows, hidden) = (200, 399);
    let (x, weight) = (values(1, rows * hidden), buffer(2, hidden));
    let run = |threads, rows: std::ops::Range<usize>| {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let mut out = zeros(rows.len());
        let x = of(&x[rows.start * hidden..rows.end * hidden]);
        row_dot(&stream, &mut out, 0, &x, &weight, 0.25, Some(30.0), rows.len().into()).unwrap();
        out.host().unwrap().to_vec()
    };
    let whole = run(1, 0..rows);
    assert_same_bits("threads", &run(3, 0..rows), &whole);
    assert_same_bits("alone", &run(2, 123..124), &whole[123..124]);
}

#[test]
fn only_the_rows_asked_for_are_written() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let (x, weight) = (of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), of(&[10.0, 1.0]));
    let mut out = of(&[7.0; 5]);
    row_dot(&stream, &mut out, 2, &x, &weight, 0.5, None, 2.into()).unwrap();
    assert_same_bits("offset 2", out.host().unwrap(), &[7.0, 7.0, 12.5, 34.5, 7.0]);
}

#[test]
fn a_short_operand_is_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let run =
        |out, offset, x| row_dot(&stream, &mut zeros(out), offset, &zeros(x), &zeros(3), 0.0, None, 3.into());
    assert!(matches!(run(3, 0, 8), Err(Error::Length { operand: "x", expected: 9, found: 8, .. })));
    assert!(matches!(run(4, 2, 9), Err(Error::Length { operand: "out", expected: 5, found: 4, .. })));
    assert!(run(5, 2, 9).is_ok());
}
