use super::sandwich_norm;
use crate::rms_norm::{RmsNorm, rms_norm};
use crate::testing::{assert_close, assert_same_bits, buffer, of, values, zeros};
use crate::{Buffer, Error, Stream};

/// The root that divides a row.
fn rms(x: &[f64], eps: f32) -> f64 {
    (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(eps)).sqrt()
}

#[test]
fn matches_f64() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (rows, hidden, eps) in
        [(1, 1, 1e-6), (3, 17, 1e-6), (5, 64, 0.05), (130, 2048, 1e-6), (21, 3584, 1e-6)]
    {
        let (x, y) = (values(1, rows * hidden), values(2, rows * hidden));
        // Factors as Gemma has them, 1 + the stored weight.
        let factors = |seed| values(seed, hidden).iter().map(|w| 1.0 + w).collect::<Vec<f32>>();
        let (post, pre) = (factors(3), factors(4));
        let (mut got_x, mut got_out) = (of(&x), zeros(rows * hidden));
        let (post_buffer, pre_buffer, y_buffer) = (of(&post), of(&pre), of(&y));
        let norms = (RmsNorm { weight: &post_buffer, eps }, RmsNorm { weight: &pre_buffer, eps });
        sandwich_norm(&stream, &mut got_x, &mut got_out, &y_buffer, norms.0, norms.1, rows.into()).unwrap();

        let (unit, k) = (2f64.powi(-24), hidden as f64 / 32.0 + 8.0);
        for row in 0..rows {
            let range = row * hidden..(row + 1) * hidden;
            let y: Vec<f64> = y[range.clone()].iter().map(|y| f64::from(*y)).collect();
            let y_rms = rms(&y, eps);
            let normalized: Vec<f64> = (0..hidden).map(|i| y[i] / y_rms * f64::from(post[i])).collect();
            let sum: Vec<f64> =
                x[range.clone()].iter().zip(&normalized).map(|(x, n)| f64::from(*x) + n).collect();
            let sum_rms = rms(&sum, eps);
            let out: Vec<f64> = (0..hidden).map(|i| sum[i] / sum_rms * f64::from(pre[i])).collect();

            let error = |i: usize| unit * (k * normalized[i].abs() + sum[i].abs());
            let largest = (0..hidden).map(error).fold(0.0, f64::max);
            let what = format!("row {row} of {rows}x{hidden}");
            assert_close(&what, &got_x.host().unwrap()[range.clone()], &sum, error);
            assert_close(&what, &got_out.host().unwrap()[range], &out, |i| {
                let inherited = error(i) + sum[i].abs() / sum_rms * largest;
                k * unit * out[i].abs() + f64::from(pre[i].abs()) / sum_rms * inherited
            });
        }
    }
}

#[test]
fn one_pass_has_the_bits_of_three() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let (rows, hidden) = (33, 300);
    let (post, pre) = (buffer(3, hidden), buffer(4, hidden));
    let (post, pre) = (RmsNorm { weight: &post, eps: 1e-6 }, RmsNorm { weight: &pre, eps: 0.05 });
    let (x, y) = (values(1, rows * hidden), of(&values(2, rows * hidden)));
    let (mut one_x, mut one_out) = (of(&x), zeros(x.len()));
    sandwich_norm(&stream, &mut one_x, &mut one_out, &y, post, pre, rows.into()).unwrap();

    let (mut three_x, mut three_out) = (of(&x), zeros(x.len()));
    rms_norm(&stream, &mut three_out, &y, post, rows.into()).unwrap();
    three_x.host_mut().unwrap().iter_mut().zip(three_out.host().unwrap()).for_each(|(x, n)| *x += n);
    rms_norm(&stream, &mut three_out, &three_x, pre, rows.into()).unwrap();
    assert_same_bits("x", one_x.host().unwrap(), three_x.host().unwrap());
    assert_same_bits("out", one_out.host().unwrap(), three_out.host().unwrap());
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    let (rows, hidden) = (500, 399);
    let (x, y) = (values(1, rows * hidden), values(2, rows * hidden));
    let (post, pre) = (buffer(3, hidden), buffer(4, hidden));
    let (post, pre) = (RmsNorm { weight: &post, eps: 1e-6 }, RmsNorm { weight: &pre, eps: 1e-6 });
    let run = |threads, rows: std::ops::Range<usize>| {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let range = rows.start * hidden..rows.end * hidden;
        let (mut x, y) = (of(&x[range.clone()]), of(&y[range]));
        let mut out = zeros(y.len());
        sandwich_norm(&stream, &mut x, &mut out, &y, post, pre, rows.len().into()).unwrap();
        (x, out)
    };
    let (whole_x, whole_out) = run(1, 0..rows);
    let (x, out) = run(3, 0..rows);
    assert_same_bits("x, threads", x.host().unwrap(), whole_x.host().unwrap());
    assert_same_bits("out, threads", out.host().unwrap(), whole_out.host().unwrap());
    let (x, out) = run(2, 123..124);
    assert_same_bits("x, alone", x.host().unwrap(), &whole_x.host().unwrap()[123 * hidden..124 * hidden]);
    assert_same_bits(
        "out, alone",
        out.host().unwrap(),
        &whole_out.host().unwrap()[123 * hidden..124 * hidden],
    );
}

#[test]
fn wrong_lengths_are_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let (three, four) = (zeros(3), zeros(4));
    let pre = RmsNorm { weight: &four, eps: 1e-6 };
    let run = |x, out, y, post: &Buffer| {
        let (mut x, mut out, y) = (zeros(x), zeros(out), zeros(y));
        let post = RmsNorm { weight: post, eps: 1e-6 };
        sandwich_norm(&stream, &mut x, &mut out, &y, post, pre, 2.into())
    };
    assert!(matches!(run(7, 8, 8, &four), Err(Error::Length { operand: "x", expected: 8, found: 7, .. })));
    assert!(matches!(run(8, 7, 8, &four), Err(Error::Length { operand: "out", expected: 8, found: 7, .. })));
    assert!(matches!(run(8, 8, 7, &four), Err(Error::Length { operand: "y", expected: 8, found: 7, .. })));
    assert!(matches!(
        run(8, 8, 8, &three),
        Err(Error::Length { operand: "post.weight", expected: 4, found: 3, .. })
    ));
    assert!(run(8, 8, 8, &four).is_ok());
}
