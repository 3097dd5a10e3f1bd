use super::{Block, copy_block};
use crate::test_checks::{Checked, fresh, in_words, same_bits, size_on_device};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Buffer, Error, Role, Stream};

/// Copies a block of either type from within a matrix to within another, its place known to the host or to
/// the device alone; exact.
fn copy(stream: &Stream, role: Role, rows: usize, columns: usize, is_on_device: bool) -> Checked {
    let (out_stride, x_stride) = (columns + 24, columns + 40);
    let (out_len, x_len) = ((rows + 3) * out_stride, (rows + 5) * x_stride);
    let [mut x] = Buffer::allocate(stream, [(role, x_len)])?;
    x.write(&values(1, x_len))?;
    let mut out = fresh(stream, role, out_len)?;
    let memory = [
        size_on_device(stream, rows, rows + 50)?,
        size_on_device(stream, 2, 60)?,
        size_on_device(stream, 4, 70)?,
    ];
    let [num_rows, out_row, x_row] = match is_on_device {
        true => [memory[0].1, memory[1].1, memory[2].1],
        false => [rows.into(), 2.into(), 4.into()],
    };
    let to = Block { stride: out_stride, row: out_row, column: 8 };
    let from = Block { stride: x_stride, row: x_row, column: 16 };
    copy_block(stream, &mut out, to, &x, from, num_rows, columns)?;

    let (x, out) = (x.read(x_len)?, out.read(out_len)?);
    let mut expected = vec![f32::NAN; out_len];
    for i in 0..rows {
        let (to, from) = ((2 + i) * out_stride + 8, (4 + i) * x_stride + 16);
        expected[to..to + columns].copy_from_slice(&x[from..from + columns]);
    }
    // A NaN that was rounded to 16 bits may have other bits: what is a NaN is compared as one.
    let one_nan = |x: &f32| if x.is_nan() { f32::NAN } else { *x };
    let out: Vec<f32> = out.iter().map(one_nan).collect();
    same_bits(&format!("{rows} x {columns}, {role:?}"), &out, &expected)
}

fn small(stream: &Stream) -> Checked {
    for role in [Role::Operand, Role::Full] {
        for (rows, columns) in [(0, 8), (1, 8), (100, 72), (130, 1000), (5, 2304)] {
            copy(stream, role, rows, columns, false)?;
        }
        copy(stream, role, 9, 128, true)?;
    }
    Ok(())
}

pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    in_words(small(stream))
}

#[test]
fn blocks_of_both_types_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules(operand_type, |stream| check(stream).unwrap());
    }
}

#[test]
fn blocks_that_do_not_begin_at_multiples_of_8_are_refused() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    let (mut out, x) = (fresh(&stream, Role::Full, 64).unwrap(), fresh(&stream, Role::Full, 64).unwrap());
    let block = |column| Block { stride: 32, row: 0.into(), column };
    let refused = copy_block(&stream, &mut out, block(8), &x, block(4), 1.into(), 8);
    assert!(matches!(refused, Err(Error::Parameter { parameter: "from.column", found: 4, .. })));
}

#[test]
fn more_than_a_kernel_can_count_is_refused() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    let (mut out, x) = (fresh(&stream, Role::Full, 64).unwrap(), fresh(&stream, Role::Full, 64).unwrap());
    let block = || Block { stride: 64, row: 0.into(), column: 0 };
    let (_memory, rows) = size_on_device(&stream, 1, 1 << 28).unwrap();
    let refused = copy_block(&stream, &mut out, block(), &x, block(), rows, 64);
    assert!(matches!(refused, Err(Error::Parameter { parameter: "num_rows", found: 0x1_0000_0000, .. })));
}
