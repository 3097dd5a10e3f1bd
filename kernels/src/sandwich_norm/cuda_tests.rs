use super::sandwich_norm;
use crate::rms_norm::RmsNorm;
use crate::test_checks::{
    self, Checked, DECODER_NORMS, RMS_NORM_BOUND, UNIT, close, every_norm, fresh, in_words, operand,
    rounding, same_bits_anywhere, untouched, wide,
};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Buffer, Role, Size, Stream};

const EPS: (f32, f32) = (1e-6, 1e-5);

/// Rows `rows` of matrices of this width, the results compared with f64; of each row `x`, then `out`.
fn norm(stream: &Stream, rows: std::ops::Range<usize>, hidden: usize, num_rows: Size) -> Checked<Vec<f32>> {
    let (rows, n) = (rows.start * hidden..rows.end * hidden, rows.len() * hidden);
    let part = |seed| values(seed, rows.end)[rows.clone()].to_vec();
    let weights = [5, 6].map(|seed| values(seed, hidden).iter().map(|w| 1.0 + w).collect::<Vec<f32>>());
    let [post, pre] = [Buffer::upload(stream, &weights[0])?, Buffer::upload(stream, &weights[1])?];
    let (old_x, (device_y, y)) = (part(1), operand(stream, &part(2))?);
    let mut x = fresh(stream, Role::Full, n + hidden)?;
    x.write(&old_x)?;
    let mut out = fresh(stream, Role::Operand, n + hidden)?;
    let [post, pre] = [RmsNorm { weight: &post, eps: EPS.0 }, RmsNorm { weight: &pre, eps: EPS.1 }];
    sandwich_norm(stream, &mut x, &mut out, &device_y, post, pre, num_rows)?;

    let (x, out) = (x.read(n + hidden)?, out.read(n + hidden)?);
    for i in 0..n / hidden {
        let row = i * hidden..(i + 1) * hidden;
        let (added, _) = test_checks::rms_norm(&wide(&y[row.clone()]), &weights[0], EPS.0);
        let sum: Vec<f64> = wide(&old_x[row.clone()]).iter().zip(&added).map(|(x, y)| x + y).collect();
        let x_bound = |i: usize| RMS_NORM_BOUND * added[i].abs() + UNIT * sum[i].abs();
        let what = format!("row {i} of {} x {hidden}", n / hidden);
        close(&format!("x, {what}"), &x[row.clone()], &sum, x_bound)?;

        let (expected, rms) = test_checks::rms_norm(&sum, &weights[1], EPS.1);
        let largest = (0..hidden).map(x_bound).fold(0.0, f64::max);
        close(&format!("out, {what}"), &out[row], &expected, |i| {
            let of_x = f64::from(weights[1][i]).abs() / rms * (x_bound(i) + sum[i].abs() / rms * largest);
            RMS_NORM_BOUND * expected[i].abs() + of_x + rounding(stream, expected[i])
        })?;
    }
    untouched("x", &x[n..])?;
    untouched("out", &out[n..])?;
    Ok(x.chunks(hidden)
        .zip(out.chunks(hidden))
        .take(n / hidden)
        .flat_map(|(x, out)| [x, out].concat())
        .collect())
}

fn small(stream: &Stream) -> Checked {
    for (rows, hidden) in DECODER_NORMS {
        norm(stream, 0..rows, hidden, rows.into())?;
    }
    Ok(())
}

pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    in_words(small(stream))
}

#[test]
fn small_shapes_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules(operand_type, |stream| check(stream).unwrap());
    }
}

#[test]
fn every_instance() {
    every_norm(|stream, rows, hidden| norm(stream, 0..rows, hidden, rows.into()).map(drop));
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    for stream in OPERAND_TYPES.into_iter().filter_map(device) {
        same_bits_anywhere(&stream, 20, |rows, size| norm(&stream, rows, 3584, size)).unwrap();
    }
}
