//! A copy per row.

use super::Block;
use crate::CpuStream;
use crate::shared_mut::SharedMut;

const ROWS_PER_TASK: usize = 64;

pub(super) fn copy_block(
    stream: &CpuStream,
    out: &mut [f32],
    to: Block,
    x: &[f32],
    from: Block,
    num_rows: usize,
    num_cols: usize,
) {
    let out = SharedMut::new(out);
    stream.for_each_rows(num_rows, ROWS_PER_TASK, |first, rows| {
        for i in first..first + rows {
            let source = &x[(from.row.get() + i) * from.stride + from.column..][..num_cols];
            // SAFETY: every row belongs to one task, and a row's columns do not reach the next row.
            unsafe { out.slice((to.row.get() + i) * to.stride + to.column, num_cols) }
                .copy_from_slice(source);
        }
    });
}
