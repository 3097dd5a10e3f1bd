//! One task per run of rows.

use crate::CpuStream;
use crate::math::{dot, vectorize};
use crate::shared_mut::SharedMut;

/// A few hundred kilobytes per task: enough to hide the hand-over, little enough to share out.
const ELEMENTS_PER_TASK: usize = 64 * 1024;

pub(super) fn rms_norm(
    stream: &CpuStream,
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    eps: f32,
    num_rows: usize,
) {
    let hidden_size = weight.len();
    let out = SharedMut::new(out);
    stream.for_each_rows(num_rows, ELEMENTS_PER_TASK / hidden_size, |first, rows| {
        // SAFETY: tasks own disjoint runs of rows.
        let out = unsafe { out.slice(first * hidden_size, rows * hidden_size) };
        let x = &x[first * hidden_size..(first + rows) * hidden_size];
        vectorize!({
            for (out, x) in out.chunks_exact_mut(hidden_size).zip(x.chunks_exact(hidden_size)) {
                rms_norm_row(out, x, weight, eps);
            }
        });
    });
}

/// One row. Shared with the kernels that add to the residual stream before they normalise it, so that a row has the same bits
/// from each of them.
#[inline(always)]
pub(crate) fn rms_norm_row(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let mean_square = dot(x, x) / x.len() as f32;
    let inverse = 1.0 / (mean_square + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * w;
    }
}
