//! One task per span.

use crate::CpuStream;
use crate::attention::Span;
use crate::math::vectorize;
use crate::shared_mut::SharedMut;

pub(super) fn pool(stream: &CpuStream, out: &mut [f32], x: &[f32], spans: &[Span], hidden_size: usize) {
    let out = SharedMut::new(out);
    stream.for_each(spans.len(), |i| {
        // SAFETY: each task owns its span's row.
        let out = unsafe { out.slice(i * hidden_size, hidden_size) };
        let rows = &spans[i].queries;
        let (first, rest) = x[rows.start * hidden_size..rows.end * hidden_size].split_at(hidden_size);
        out.copy_from_slice(first);
        if rest.is_empty() {
            return;
        }
        vectorize!({
            for row in rest.chunks_exact(hidden_size) {
                out.iter_mut().zip(row).for_each(|(o, x)| *o += x);
            }
            let inverse = 1.0 / rows.len() as f32;
            out.iter_mut().for_each(|o| *o *= inverse);
        });
    });
}
