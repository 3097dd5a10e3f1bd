//! A dot product per row.

use crate::CpuStream;
use crate::math::{dot, vectorize};
use crate::shared_mut::SharedMut;

const ROWS_PER_TASK: usize = 64;

pub(super) fn row_dot(
    stream: &CpuStream,
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: f32,
    softcap: Option<f32>,
) {
    let num_rows = out.len();
    let out = SharedMut::new(out);
    stream.for_each_rows(num_rows, ROWS_PER_TASK, |first, rows| {
        // SAFETY: tasks own disjoint runs of rows.
        let out = unsafe { out.slice(first, rows) };
        vectorize!({
            for (i, out) in out.iter_mut().enumerate() {
                let start = (first + i) * weight.len();
                *out = dot(&x[start..start + weight.len()], weight) + bias;
            }
        });
        if let Some(cap) = softcap {
            out.iter_mut().for_each(|out| *out = cap * (*out / cap).tanh());
        }
    });
}
