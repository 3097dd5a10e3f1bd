use super::l2_normalize;
use crate::test_checks::{Checked, UNIT, close, fresh, in_words, same_bits_anywhere, untouched};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Role, Size, Stream};

/// Rows `rows` of a matrix of this width, whose first row is zero, compared with f64.
fn normalize(
    stream: &Stream,
    rows: std::ops::Range<usize>,
    hidden: usize,
    num_rows: Size,
) -> Checked<Vec<f32>> {
    let n = rows.len() * hidden;
    let mut all: Vec<f32> = values(1, rows.end * hidden).iter().map(|x| 3.0 * x).collect();
    all[..hidden.min(rows.end * hidden)].fill(0.0);
    let old = &all[rows.start * hidden..];
    let mut x = fresh(stream, Role::Full, n + hidden)?;
    x.write(old)?;
    l2_normalize(stream, &mut x, num_rows, hidden)?;

    let mut x = x.read(n + hidden)?;
    let of_row = |row: &[f32]| {
        let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        row.iter().map(move |x| f64::from(*x) / norm).collect::<Vec<f64>>()
    };
    let expected: Vec<f64> = old.chunks(hidden).flat_map(of_row).collect();
    let terms = hidden as f64 / 1024.0 + 10.0;
    let what = format!("{} x {hidden}", n / hidden);
    close(&what, &x[..n], &expected, |i| terms * UNIT * expected[i].abs())?;
    untouched(&what, &x[n..])?;
    x.truncate(n);
    Ok(x)
}

fn small(stream: &Stream) -> Checked {
    for (rows, hidden) in [(0, 8), (1, 8), (100, 72), (5, 1000), (2, 2304)] {
        normalize(stream, 0..rows, hidden, rows.into())?;
    }
    Ok(())
}

pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    in_words(small(stream))
}

#[test]
fn small_shapes_under_every_schedule() {
    under_schedules(OPERAND_TYPES[0], |stream| check(stream).unwrap());
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    for hidden in [768, 3584, 10_000] {
        same_bits_anywhere(&stream, 40, |rows, size| normalize(&stream, rows, hidden, size)).unwrap();
    }
}
