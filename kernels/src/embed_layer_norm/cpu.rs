//! One task per run of tokens; a row is summed in the output's own memory.

use crate::math::{layer_norm_row, vectorize};
use crate::shared_mut::SharedMut;
use crate::{CpuStream, Elements};

const TOKENS_PER_TASK: usize = 64;
/// Elements of a 16-bit position row widened at a time.
const CHUNK: usize = 256;

/// [`EmbeddingTables`](super::EmbeddingTables) on the host.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) word: Elements<'a>,
    pub(super) position: Elements<'a>,
    pub(super) token_type: &'a [f32],
}

/// [`LayerNorm`](crate::add_layer_norm::LayerNorm) on the host.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
}

pub(super) fn embed_layer_norm(
    stream: &CpuStream,
    out: &mut [f32],
    tables: Tables<'_>,
    input_ids: &[u32],
    position_ids: &[u32],
    norm: Norm<'_>,
) {
    let hidden_size = norm.weight.len();
    let out = SharedMut::new(out);
    stream.for_each_rows(input_ids.len(), TOKENS_PER_TASK, |first, tokens| {
        // SAFETY: tasks own disjoint runs of rows.
        let out = unsafe { out.slice(first * hidden_size, tokens * hidden_size) };
        let ids = input_ids[first..first + tokens].iter().zip(&position_ids[first..first + tokens]);
        vectorize!({
            for (row, (id, position_id)) in out.chunks_exact_mut(hidden_size).zip(ids) {
                let word = tables.word.slice(*id as usize * hidden_size, hidden_size);
                let position = tables.position.slice(*position_id as usize * hidden_size, hidden_size);
                word.read(row);
                row.iter_mut().zip(tables.token_type).for_each(|(x, t)| *x += t);
                for (i, row) in row.chunks_mut(CHUNK).enumerate() {
                    let mut widened = [0.0; CHUNK];
                    let widened = &mut widened[..row.len()];
                    position.slice(i * CHUNK, row.len()).read(widened);
                    row.iter_mut().zip(widened).for_each(|(x, p)| *x += *p);
                }
                layer_norm_row(row, norm.weight, norm.bias, norm.eps);
            }
        });
    });
}
