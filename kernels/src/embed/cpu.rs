//! One task per run of tokens.

use crate::math::vectorize;
use crate::shared_mut::SharedMut;
use crate::{CpuStream, Elements};

const TOKENS_PER_TASK: usize = 64;

pub(super) fn embed(
    stream: &CpuStream,
    out: &mut [f32],
    table: Elements<'_>,
    input_ids: &[u32],
    hidden_size: usize,
    scale: f32,
) {
    let out = SharedMut::new(out);
    stream.for_each_rows(input_ids.len(), TOKENS_PER_TASK, |first, tokens| {
        // SAFETY: tasks own disjoint runs of rows.
        let out = unsafe { out.slice(first * hidden_size, tokens * hidden_size) };
        let input_ids = &input_ids[first..first + tokens];
        vectorize!({
            for (row, id) in out.chunks_exact_mut(hidden_size).zip(input_ids) {
                table.slice(*id as usize * hidden_size, hidden_size).read(row);
                row.iter_mut().for_each(|x| *x *= scale);
            }
        });
    });
}
