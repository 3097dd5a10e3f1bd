//! One task per run of rows.

use crate::CpuStream;
use crate::math::{layer_norm_row, vectorize};
use crate::shared_mut::SharedMut;

/// A few hundred kilobytes per task: enough to hide the hand-over, little enough to share out.
const ELEMENTS_PER_TASK: usize = 64 * 1024;

pub(super) fn add_layer_norm(
    stream: &CpuStream,
    x: &mut [f32],
    y: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    num_rows: usize,
) {
    let hidden_size = weight.len();
    let x = SharedMut::new(x);
    stream.for_each_rows(num_rows, ELEMENTS_PER_TASK / hidden_size, |first, rows| {
        // SAFETY: tasks own disjoint runs of rows.
        let x = unsafe { x.slice(first * hidden_size, rows * hidden_size) };
        let y = &y[first * hidden_size..(first + rows) * hidden_size];
        vectorize!({
            for (x, y) in x.chunks_exact_mut(hidden_size).zip(y.chunks_exact(hidden_size)) {
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
                layer_norm_row(x, weight, bias, eps);
            }
        });
    });
}
