//! Runs of rows per task; within a row, stretches of columns whose sum stays in registers while r runs.

use super::LowRank;
use crate::CpuStream;
use crate::math::vectorize;
use crate::shared_mut::SharedMut;

const ROWS_PER_TASK: usize = 16;
/// Columns summed at a time.
const STRETCH: usize = 64;

pub(super) fn add_low_rank(stream: &CpuStream, w: &mut [f32], b: &[f32], a: &[f32], shape: LowRank) {
    let LowRank { out_features, in_features, rank, scale } = shape;
    let w = SharedMut::new(w);
    stream.for_each_rows(out_features, ROWS_PER_TASK, |first, num_rows| {
        // SAFETY: tasks own disjoint runs of rows.
        let w = unsafe { w.slice(first * in_features, num_rows * in_features) };
        vectorize!({
            for (i, w) in w.chunks_exact_mut(in_features).enumerate() {
                let b = &b[(first + i) * rank..(first + i + 1) * rank];
                for (j, w) in w.chunks_mut(STRETCH).enumerate() {
                    let mut sum = [0.0f32; STRETCH];
                    for (r, b) in b.iter().enumerate() {
                        let a = &a[r * in_features + j * STRETCH..][..w.len()];
                        sum.iter_mut().zip(a).for_each(|(sum, a)| *sum = b.mul_add(*a, *sum));
                    }
                    w.iter_mut().zip(sum).for_each(|(w, sum)| *w = scale.mul_add(sum, *w));
                }
            }
        });
    });
}
