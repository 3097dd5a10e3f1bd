//! One task per sequence.

use super::Pooling;
use crate::math::vectorize;
use crate::shared_mut::SharedMut;
use crate::{Segments, Stream};

pub(super) fn pool(
    stream: &Stream,
    out: &mut [f32],
    x: &[f32],
    segments: &Segments,
    hidden_size: usize,
    pooling: Pooling,
) {
    let out = SharedMut::new(out);
    stream.for_each(segments.num_seqs(), |seq| {
        // SAFETY: each task owns its sequence's row.
        let out = unsafe { out.slice(seq * hidden_size, hidden_size) };
        let rows = segments.range(seq);
        out.copy_from_slice(&x[rows.start * hidden_size..][..hidden_size]);
        if pooling == Pooling::Mean {
            vectorize!({
                for row in x[(rows.start + 1) * hidden_size..rows.end * hidden_size].chunks_exact(hidden_size)
                {
                    out.iter_mut().zip(row).for_each(|(o, x)| *o += x);
                }
                let inverse = 1.0 / rows.len() as f32;
                out.iter_mut().for_each(|o| *o *= inverse);
            });
        }
    });
}
