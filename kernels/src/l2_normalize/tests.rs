use super::l2_normalize;
use crate::testing::{assert_close, of, values, zeros};
use crate::{Error, Stream};

#[test]
fn matches_f64_and_leaves_a_zero_row() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (rows, hidden) in [(1, 1), (3, 17), (130, 384)] {
        let mut x = values(1, rows * hidden);
        x[..hidden].fill(0.0);
        let expected: Vec<f64> = x
            .chunks_exact(hidden)
            .flat_map(|row| {
                let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
                row.iter().map(move |x| f64::from(*x) / norm)
            })
            .collect();
        let mut out = of(&x);
        l2_normalize(&stream, &mut out, rows.into(), hidden).unwrap();
        assert_close(&format!("{rows}x{hidden}"), out.host().unwrap(), &expected, |i| {
            (hidden as f64 / 16.0 + 8.0) * 2f64.powi(-24) * expected[i].abs()
        });
    }
}

#[test]
fn nan_is_not_hidden() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let mut x = of(&[1.0, f32::NAN]);
    l2_normalize(&stream, &mut x, 1.into(), 2).unwrap();
    assert!(x.host().unwrap().iter().all(|x| x.is_nan()));
}

#[test]
fn a_short_operand_is_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let result = l2_normalize(&stream, &mut zeros(5), 2.into(), 3);
    assert!(matches!(result, Err(Error::Length { operand: "x", expected: 6, found: 5, .. })));
}
