//! One task per run of rows; each head is two contiguous halves.

use super::RopeHeads;
use crate::CpuStream;
use crate::math::vectorize;
use crate::shared_mut::SharedMut;

/// A few hundred kilobytes per task: enough to hide the hand-over, little enough to share out.
const ELEMENTS_PER_TASK: usize = 64 * 1024;

pub(super) fn rope(
    stream: &CpuStream,
    x: &mut [f32],
    heads: RopeHeads,
    position_ids: &[u32],
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
) {
    let RopeHeads { stride, column, num_heads } = heads;
    let half = head_dim / 2;
    let width = num_heads * head_dim;
    let x = SharedMut::new(x);
    stream.for_each_rows(position_ids.len(), ELEMENTS_PER_TASK / width, |first, rows| {
        // SAFETY: tasks own disjoint runs of rows.
        let x = unsafe { x.slice(first * stride, rows * stride) };
        let position_ids = &position_ids[first..first + rows];
        vectorize!({
            for (row, position) in x.chunks_exact_mut(stride).zip(position_ids) {
                let angles = *position as usize * half..(*position as usize + 1) * half;
                let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
                for head in row[column..column + width].chunks_exact_mut(head_dim) {
                    rotate(head, cos, sin);
                }
            }
        });
    });
}

#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (x, y) = (*low, *high);
        *low = x.mul_add(*c, -(y * s));
        *high = y.mul_add(*c, x * s);
    }
}
