//! One task per segment.

use super::Compress;
use crate::CpuStream;
use crate::layout::Layout;
use crate::math::vectorize;
use crate::shared_mut::SharedMut;

pub(super) fn token_compress(
    stream: &CpuStream,
    out: &mut [f32],
    x: &[f32],
    before: &Layout,
    after: &Layout,
    ratio: usize,
    hidden_size: usize,
) {
    let out = SharedMut::new(out);
    stream.for_each(before.spans.len(), |i| {
        let (rows, out_rows) = (&before.spans[i].queries, &after.spans[i].queries);
        let x = &x[rows.start * hidden_size..rows.end * hidden_size];
        // SAFETY: each task owns its segment's rows.
        let out = unsafe { out.slice(out_rows.start * hidden_size, out_rows.len() * hidden_size) };
        compress(out, x, before.segments.segments[i].parts, ratio, hidden_size);
    });
}

/// One sequence.
fn compress(out: &mut [f32], x: &[f32], seq: Compress, ratio: usize, hidden_size: usize) {
    let (query, x) = x.split_at(seq.query * hidden_size);
    let (passage, prompt) = x.split_at(seq.passage * hidden_size);
    let (query_out, out) = out.split_at_mut(query.len());
    let (passage_out, prompt_out) = out.split_at_mut(seq.compressed(ratio).passage * hidden_size);
    query_out.copy_from_slice(query);
    prompt_out.copy_from_slice(prompt);
    // A group has no more rows than the passage, whatever the ratio, so its size in elements is that of memory.
    let group_len = ratio.min(seq.passage).max(1) * hidden_size;
    vectorize!({
        for (out, group) in passage_out.chunks_exact_mut(hidden_size).zip(passage.chunks(group_len)) {
            mean(out, group);
        }
    });
}

/// The mean of the rows of one group; a group of one is copied.
#[inline(always)]
fn mean(out: &mut [f32], group: &[f32]) {
    let (first, rest) = group.split_at(out.len());
    out.copy_from_slice(first);
    if rest.is_empty() {
        return;
    }
    for row in rest.chunks_exact(out.len()) {
        out.iter_mut().zip(row).for_each(|(o, x)| *o += x);
    }
    let inverse = 1.0 / (group.len() / out.len()) as f32;
    out.iter_mut().for_each(|o| *o *= inverse);
}
