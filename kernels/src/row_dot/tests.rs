use super::row_dot;
use crate::testing::{assert_close, buffer, values};
use crate::{Buffer, Error, Stream};

#[test]
fn matches_f64() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (rows, hidden) in [(1, 1), (3, 15), (130, 768), (2, 3584)] {
        let (x, weight) = (buffer(1, rows * hidden), values(2, hidden));
        let mut out = vec![0.0; rows];
        row_dot(&stream, &mut out, &x, &weight, 0.25).unwrap();
        let products = |row: usize| {
            (0..hidden)
                .map(move |i| (row, i))
                .map(|(r, i)| f64::from(x.as_slice()[r * hidden + i]) * f64::from(weight[i]))
        };
        let expected: Vec<f64> = (0..rows).map(|row| products(row).sum::<f64>() + 0.25).collect();
        assert_close(&format!("{rows}x{hidden}"), &out, &expected, |row| {
            let magnitude: f64 = products(row).map(f64::abs).sum();
            2f64.powi(-24) * ((hidden as f64 / 16.0 + 6.0) * magnitude + expected[row].abs())
        });
    }
}

#[test]
fn a_short_input_is_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let result = row_dot(&stream, &mut [0.0; 3], &Buffer::zeros(8), &[1.0; 3], 0.0);
    assert!(matches!(result, Err(Error::Length { operand: "x", expected: 9, found: 8, .. })));
}
