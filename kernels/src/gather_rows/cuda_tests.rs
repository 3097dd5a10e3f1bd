use super::gather_rows;
use crate::test_checks::{Checked, fresh, in_words, indices, same_bits, size_on_device, untouched};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Buffer, Error, Role, Size, Stream};

const ROWS: usize = 19;

/// Gathers `n` rows of either type; exact.
fn gather(stream: &Stream, role: Role, n: usize, row_len: usize, num_rows: Size) -> Checked {
    let [mut x] = Buffer::allocate(stream, [(role, ROWS * row_len)])?;
    x.write(&values(1, ROWS * row_len))?;
    let rows: Vec<u32> = (0..n).map(|i| u32::try_from((i * 7 + ROWS - 1) % ROWS).unwrap()).collect();
    let device_rows = indices(stream, &rows)?;
    let mut out = fresh(stream, role, (n + 1) * row_len)?;
    gather_rows(stream, &mut out, &x, device_rows.view(num_rows), row_len)?;

    let (x, out) = (x.read(ROWS * row_len)?, out.read((n + 1) * row_len)?);
    let expected: Vec<f32> =
        rows.iter().flat_map(|row| x[*row as usize * row_len..][..row_len].to_vec()).collect();
    let what = format!("{n} x {row_len}, {role:?}");
    same_bits(&what, &out[..n * row_len], &expected)?;
    untouched(&what, &out[n * row_len..])
}

fn small(stream: &Stream) -> Checked {
    for role in [Role::Full, Role::Operand] {
        for (n, row_len) in [(0, 8), (1, 8), (100, 72), (130, 1000), (5, 2304)] {
            gather(stream, role, n, row_len, n.into())?;
        }
        let (_memory, size) = size_on_device(stream, 5, 90)?;
        gather(stream, role, 5, 64, size)?;
    }
    Ok(())
}

pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    in_words(small(stream))
}

#[test]
fn rows_of_both_types_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules(operand_type, |stream| check(stream).unwrap());
    }
}

#[test]
fn rows_of_another_type_or_width_are_refused() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    let [mut operand, full] = Buffer::allocate(&stream, [(Role::Operand, 24), (Role::Full, 24)]).unwrap();
    let rows = indices(&stream, &[0]).unwrap();
    let other_type = gather_rows(&stream, &mut operand, &full, rows.view(1.into()), 8);
    assert!(matches!(other_type, Err(Error::Parameter { parameter: "out", found: 2, .. })));
    let mut out = fresh(&stream, Role::Full, 24).unwrap();
    let width = gather_rows(&stream, &mut out, &full, rows.view(1.into()), 12);
    assert!(matches!(width, Err(Error::Parameter { parameter: "row_len", found: 12, .. })));
}
