use super::{LayerNorm, add_layer_norm};
use crate::test_checks::{
    Checked, ENCODER_NORMS, close_to_layer_norm, every_norm, fresh, in_words, operand, same_bits_anywhere,
    untouched, wide,
};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Buffer, Role, Size, Stream};

const EPS: f32 = 1e-5;

/// Rows `rows` of matrices of this width with this mean, the result compared with f64.
fn norm(
    stream: &Stream,
    rows: std::ops::Range<usize>,
    hidden: usize,
    mean: f32,
    num_rows: Size,
) -> Checked<Vec<f32>> {
    let (rows, n) = (rows.start * hidden..rows.end * hidden, rows.len() * hidden);
    let part =
        |seed, mean| values(seed, rows.end)[rows.clone()].iter().map(|x| x + mean).collect::<Vec<f32>>();
    let (weight, bias) = (values(3, hidden), values(4, hidden));
    let (device_weight, device_bias) = (Buffer::upload(stream, &weight)?, Buffer::upload(stream, &bias)?);
    let ((_, old_x), (device_y, y)) = (operand(stream, &part(1, mean))?, operand(stream, &part(2, 0.0))?);
    let mut x = fresh(stream, Role::Operand, n + hidden)?;
    x.write(&old_x)?;
    let norm = LayerNorm { weight: &device_weight, bias: &device_bias, eps: EPS };
    add_layer_norm(stream, &mut x, &device_y, norm, num_rows)?;

    let mut x = x.read(n + hidden)?;
    let sum: Vec<f64> = wide(&old_x).iter().zip(wide(&y)).map(|(x, y)| x + y).collect();
    for (i, z) in sum.chunks(hidden).enumerate() {
        let largest = z.iter().fold(0.0f64, |largest, z| largest.max(z.abs()));
        let what = format!("row {i} of {} x {hidden}, mean {mean}", n / hidden);
        let got = &x[i * hidden..][..hidden];
        close_to_layer_norm(stream, &what, got, (z, largest), (&weight, &bias, EPS))?;
    }
    untouched("x", &x[n..])?;
    x.truncate(n);
    Ok(x)
}

fn small(stream: &Stream) -> Checked {
    for (rows, hidden) in ENCODER_NORMS {
        norm(stream, 0..rows, hidden, 0.0, rows.into())?;
    }
    // A mean far from zero, where squares would cancel.
    norm(stream, 0..3, 384, 30.0, 3.into()).map(drop)
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
    every_norm(|stream, rows, hidden| norm(stream, 0..rows, hidden, 1.0, rows.into()).map(drop));
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    for stream in OPERAND_TYPES.into_iter().filter_map(device) {
        for hidden in [768, 1032] {
            same_bits_anywhere(&stream, 30, |rows, size| norm(&stream, rows, hidden, 0.0, size)).unwrap();
        }
    }
}
