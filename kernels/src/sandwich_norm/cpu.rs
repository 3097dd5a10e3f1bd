//! One task per run of rows; a row of `out` holds the normalised `y` until it is added.

use crate::CpuStream;
use crate::math::vectorize;
use crate::rms_norm::rms_norm_row;
use crate::shared_mut::SharedMut;

/// A few hundred kilobytes per task: enough to hide the hand-over, little enough to share out.
const ELEMENTS_PER_TASK: usize = 64 * 1024;

pub(super) fn sandwich_norm(
    stream: &CpuStream,
    x: &mut [f32],
    out: &mut [f32],
    y: &[f32],
    (post, post_eps): (&[f32], f32),
    (pre, pre_eps): (&[f32], f32),
    num_rows: usize,
) {
    let hidden_size = pre.len();
    let (x, out) = (SharedMut::new(x), SharedMut::new(out));
    stream.for_each_rows(num_rows, ELEMENTS_PER_TASK / hidden_size, |first, rows| {
        let (start, len) = (first * hidden_size, rows * hidden_size);
        // SAFETY: tasks own disjoint runs of rows.
        let x = unsafe { x.slice(start, len) };
        // SAFETY: as for `x`.
        let out = unsafe { out.slice(start, len) };
        let rows = x
            .chunks_exact_mut(hidden_size)
            .zip(out.chunks_exact_mut(hidden_size))
            .zip(y[start..start + len].chunks_exact(hidden_size));
        vectorize!({
            for ((x, out), y) in rows {
                rms_norm_row(out, y, post, post_eps);
                x.iter_mut().zip(out.iter()).for_each(|(x, normalized)| *x += normalized);
                rms_norm_row(out, x, pre, pre_eps);
            }
        });
    });
}
