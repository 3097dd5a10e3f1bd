use super::{RmsNorm, rms_norm};
use crate::test_checks::{
    self, Checked, DECODER_NORMS, RMS_NORM_BOUND, close, every_norm, fresh, in_words, rounding,
    same_bits_anywhere, untouched, wide,
};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Buffer, Error, Role, Size, Stream};

const EPS: f32 = 1e-6;

/// Rows `rows` of a matrix of this width, the result compared with f64.
fn norm(stream: &Stream, rows: std::ops::Range<usize>, hidden: usize, num_rows: Size) -> Checked<Vec<f32>> {
    let (rows, n) = (rows.start * hidden..rows.end * hidden, rows.len() * hidden);
    let x: Vec<f32> = values(1, rows.end)[rows].iter().map(|x| 30.0 * x).collect();
    let weight: Vec<f32> = values(2, hidden).iter().map(|w| 1.0 + w).collect();
    let device_weight = Buffer::upload(stream, &weight)?;
    let mut out = fresh(stream, Role::Operand, n + hidden)?;
    let (device_x, norm) = (Buffer::upload(stream, &x)?, RmsNorm { weight: &device_weight, eps: EPS });
    rms_norm(stream, &mut out, &device_x, norm, num_rows)?;

    let mut out = out.read(n + hidden)?;
    let expected: Vec<f64> =
        wide(&x).chunks(hidden).flat_map(|x| test_checks::rms_norm(x, &weight, EPS).0).collect();
    let what = format!("{} x {hidden}", n / hidden);
    close(&what, &out[..n], &expected, |i| {
        RMS_NORM_BOUND * expected[i].abs() + rounding(stream, expected[i])
    })?;
    untouched(&what, &out[n..])?;
    out.truncate(n);
    Ok(out)
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
        for hidden in [384, 2304, 3584] {
            same_bits_anywhere(&stream, 40, |rows, size| norm(&stream, rows, hidden, size)).unwrap();
        }
    }
}

#[test]
fn wrong_operands_are_refused() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    let weight = Buffer::upload(&stream, &[1.0; 16]).unwrap();
    let norm = RmsNorm { weight: &weight, eps: EPS };
    let [mut operand, mut full] = Buffer::allocate(&stream, [(Role::Operand, 16), (Role::Full, 16)]).unwrap();
    let x = fresh(&stream, Role::Full, 16).unwrap();
    let swapped = rms_norm(&stream, &mut full, &x, norm, 1.into());
    assert!(matches!(swapped, Err(Error::Parameter { parameter: "out", found: 4, .. })));
    let elsewhere = rms_norm(&stream, &mut operand, &crate::testing::zeros(16), norm, 1.into());
    assert!(matches!(elsewhere, Err(Error::Device(_))));
    for width in [12, 8200] {
        let weight = Buffer::upload(&stream, &vec![1.0; width]).unwrap();
        let (mut out, x) = (fresh(&stream, Role::Operand, width), fresh(&stream, Role::Full, width));
        let norm = RmsNorm { weight: &weight, eps: EPS };
        let refused = rms_norm(&stream, out.as_mut().unwrap(), x.as_ref().unwrap(), norm, 1.into());
        assert!(matches!(refused, Err(Error::Parameter { parameter: "hidden_size", .. })), "{width}");
    }
}
