use super::row_dot;
use crate::test_checks::{Checked, UNIT, close, fresh, in_words, operand, same_bits_anywhere, untouched};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Buffer, Role, Size, Stream};

const BIAS: f32 = 0.25;
/// Where in `out` the results begin.
const OFFSET: usize = 3;

/// Rows `rows` of a matrix of this width, the result compared with f64.
fn dot(
    stream: &Stream,
    rows: std::ops::Range<usize>,
    hidden: usize,
    softcap: Option<f32>,
    num_rows: Size,
) -> Checked<Vec<f32>> {
    let n = rows.len();
    let x: Vec<f32> = values(1, rows.end * hidden)[rows.start * hidden..].iter().map(|x| 3.0 * x).collect();
    let ((device_x, x), weight) = (operand(stream, &x)?, values(2, hidden));
    let mut out = fresh(stream, Role::Full, OFFSET + n + 1)?;
    let device_weight = Buffer::upload(stream, &weight)?;
    row_dot(stream, &mut out, OFFSET, &device_x, &device_weight, BIAS, softcap, num_rows)?;

    let out = out.read(OFFSET + n + 1)?;
    let (mut expected, mut bounds) = (Vec::new(), Vec::new());
    for x in x.chunks(hidden) {
        let products = || x.iter().zip(&weight).map(|(x, w)| f64::from(*x) * f64::from(*w));
        let z = products().sum::<f64>() + f64::from(BIAS);
        let terms = hidden as f64 / 512.0 + 12.0;
        let bound = UNIT * (terms * products().map(f64::abs).sum::<f64>() + z.abs());
        let capped = softcap.map(|cap| f64::from(cap) * (z / f64::from(cap)).tanh());
        expected.push(capped.unwrap_or(z));
        bounds.push(bound + if softcap.is_some() { 6.0 * UNIT * z.abs() } else { 0.0 });
    }
    let what = format!("{n} x {hidden}, soft-cap {softcap:?}");
    close(&what, &out[OFFSET..OFFSET + n], &expected, |i| bounds[i])?;
    untouched(&what, &[&out[..OFFSET], &out[OFFSET + n..]].concat())?;
    Ok(out[OFFSET..OFFSET + n].to_vec())
}

fn small(stream: &Stream) -> Checked {
    for softcap in [None, Some(2.0)] {
        for (rows, hidden) in [(0, 8), (1, 8), (100, 72), (5, 1000), (2, 2304)] {
            dot(stream, 0..rows, hidden, softcap, rows.into())?;
        }
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
fn a_row_has_the_same_bits_anywhere() {
    for stream in OPERAND_TYPES.into_iter().filter_map(device) {
        for hidden in [768, 3584, 10_000] {
            let run = |rows, size| dot(&stream, rows, hidden, Some(30.0), size);
            same_bits_anywhere(&stream, 40, run).unwrap();
        }
    }
}
