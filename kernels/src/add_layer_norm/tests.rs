use super::{LayerNorm, add_layer_norm};
use crate::testing::{assert_close, assert_same_bits, buffer, of, values, zeros};
use crate::{Error, Stream};

fn reference(x: &[f32], y: &[f32], norm: LayerNorm<'_>) -> Vec<f64> {
    let (weight, bias) = (norm.weight.host().unwrap(), norm.bias.host().unwrap());
    let hidden = weight.len();
    let rows = x.chunks_exact(hidden).zip(y.chunks_exact(hidden));
    rows.flat_map(|(x, y)| {
        let z: Vec<f64> = x.iter().zip(y).map(|(x, y)| f64::from(*x) + f64::from(*y)).collect();
        let mean = z.iter().sum::<f64>() / hidden as f64;
        let variance = z.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / hidden as f64;
        let scale = (variance + f64::from(norm.eps)).sqrt();
        (0..hidden)
            .map(|i| (z[i] - mean) / scale * f64::from(weight[i]) + f64::from(bias[i]))
            .collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn matches_f64() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (rows, hidden, eps, offset) in [
        (1, 1, 1e-5, 0.0),
        (3, 17, 1e-12, 0.0),
        (5, 64, 0.05, 0.0),
        (200, 768, 1e-5, 0.0),
        (7, 1024, 1e-5, 30.0),
    ] {
        let x: Vec<f32> = values(1, rows * hidden).iter().map(|x| x + offset).collect();
        let (y, weight, bias) = (buffer(2, rows * hidden), buffer(3, hidden), buffer(4, hidden));
        let norm = LayerNorm { weight: &weight, bias: &bias, eps };
        let expected = reference(&x, y.host().unwrap(), norm);
        let mut out = of(&x);
        add_layer_norm(&stream, &mut out, &y, norm, rows.into()).unwrap();
        // sigma of x + y, two uniform values in [-1, 1), is 0.8; a row of one element has none and gives its
        // bias.
        let bound = 1e-6 * ((hidden as f64).sqrt() + f64::from(offset + 2.0) / 0.5);
        assert_close(&format!("{rows}x{hidden}"), out.host().unwrap(), &expected, |_| bound + 2e-7);
    }
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    let (rows, hidden) = (500, 384);
    let (x, y, weight, bias) =
        (values(1, rows * hidden), values(2, rows * hidden), buffer(3, hidden), buffer(4, hidden));
    let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
    let run = |threads, rows: std::ops::Range<usize>| {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let range = rows.start * hidden..rows.end * hidden;
        let mut out = of(&x[range.clone()]);
        add_layer_norm(&stream, &mut out, &of(&y[range]), norm, rows.len().into()).unwrap();
        out
    };
    let whole = run(1, 0..rows);
    assert_same_bits("threads", run(3, 0..rows).host().unwrap(), whole.host().unwrap());
    assert_same_bits(
        "alone",
        run(2, 123..124).host().unwrap(),
        &whole.host().unwrap()[123 * hidden..124 * hidden],
    );
}

#[test]
fn wrong_lengths_are_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let (weight, bias, short) = (zeros(4), zeros(4), zeros(3));
    let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
    let (mut x, y) = (zeros(8), zeros(7));
    assert!(matches!(
        add_layer_norm(&stream, &mut x, &y, norm, 2.into()),
        Err(Error::Length { operand: "y", expected: 8, found: 7, .. })
    ));
    assert!(add_layer_norm(&stream, &mut x, &y, norm, 0.into()).is_ok());
    let short = LayerNorm { bias: &short, ..norm };
    assert!(matches!(
        add_layer_norm(&stream, &mut x, &y, short, 1.into()),
        Err(Error::Length { operand: "bias", .. })
    ));
}
