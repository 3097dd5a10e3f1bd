//! One task per run of rows.

use crate::CpuStream;
use crate::math::{dot, vectorize};
use crate::shared_mut::SharedMut;

const ROWS_PER_TASK: usize = 64;
const EPS: f32 = 1e-12;

pub(super) fn l2_normalize(stream: &CpuStream, x: &mut [f32], num_rows: usize, hidden_size: usize) {
    let x = SharedMut::new(x);
    stream.for_each_rows(num_rows, ROWS_PER_TASK, |first, rows| {
        // SAFETY: tasks own disjoint runs of rows.
        let x = unsafe { x.slice(first * hidden_size, rows * hidden_size) };
        vectorize!({
            for row in x.chunks_exact_mut(hidden_size) {
                let norm = dot(row, row).sqrt();
                // A NaN norm stays NaN: `max` would hide it.
                let inverse = 1.0 / if norm < EPS { EPS } else { norm };
                row.iter_mut().for_each(|x| *x *= inverse);
            }
        });
    });
}
