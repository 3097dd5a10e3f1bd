//! A copy per row.

use crate::CpuStream;
use crate::shared_mut::SharedMut;

const ROWS_PER_TASK: usize = 64;

pub(super) fn gather_rows(stream: &CpuStream, out: &mut [f32], x: &[f32], rows: &[u32], row_len: usize) {
    let out = SharedMut::new(out);
    stream.for_each_rows(rows.len(), ROWS_PER_TASK, |first, num_rows| {
        // SAFETY: tasks own disjoint runs of rows.
        let out = unsafe { out.slice(first * row_len, num_rows * row_len) };
        for (out, row) in out.chunks_exact_mut(row_len).zip(&rows[first..first + num_rows]) {
            out.copy_from_slice(&x[*row as usize * row_len..][..row_len]);
        }
    });
}
