//! Bidirectional multi-head attention over packed sequences.
//!
//! For every sequence and head: `out = softmax(q · kᵀ * softmax_scale) · v`, each query row over all key rows of its own
//! sequence.
//!
//! | operand | shape                                  | dtype | layout                                              |
//! |---------|----------------------------------------|-------|-----------------------------------------------------|
//! | `out`   | `[query rows, num_heads * head_dim]`   | f32   | row-major, overwritten                              |
//! | `q`     | `[query rows, num_heads * head_dim]`   | f32   | [`Rows`]: columns of a wider matrix                 |
//! | `k` `v` | `[key rows, num_heads * head_dim]`     | f32   | [`Rows`]                                            |
//!
//! Query and key rows are laid out by two [`Segments`] with the same number of sequences: `queries` and `keys`. They are the
//! same object except where only some rows of a sequence are asked for. A sequence may have no query rows; one with query
//! rows must have keys.
//!
//! Limits: `16 <= head_dim <= 256`, a multiple of 8.
//! Memory: one score tile of 64 × 256 per thread; never a whole row of scores.
//! Rounding: f32 throughout. Keys are taken in blocks of 256 counted from the sequence's own start, with a running maximum
//! and sum per query (Milakov and Gimelshein 2018, algorithm 3; Dao et al. 2022). An output row depends on its query row and
//! its sequence's keys and values alone.
//! Error bound: relative to the largest |v| of the sequence, `2e-6 + 2^-22 * (head_dim * max|q| * max|k| * softmax_scale)`;
//! the second term is the rounding of a score, which moves its weight by the same relative amount. Tests use it.
//!
//! Cost: `4 * head_dim * num_heads * sum_i queries_i * keys_i` flops.
//! Source: Vaswani et al. 2017, eq. 1; SPEC of the encoder families, section 3.3.

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Segments, Stream};

/// Columns `column .. column + num_heads * head_dim` of a row-major matrix with rows of `stride` elements.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The matrix.
    pub buffer: &'a Buffer,
    /// Elements of one of its rows.
    pub stride: usize,
    /// First column taken.
    pub column: usize,
}

/// Shape and scale of an attention call.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams {
    /// Heads.
    pub num_heads: usize,
    /// Columns per head.
    pub head_dim: usize,
    /// Factor on `q · kᵀ`, usually `head_dim^-0.5`.
    pub softmax_scale: f32,
}

/// Computes `out` as the module says.
#[allow(clippy::too_many_arguments)]
pub fn attention(
    stream: &Stream,
    out: &mut Buffer,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    queries: &Segments,
    keys: &Segments,
    params: AttentionParams,
) -> Result<(), Error> {
    let invalid = |parameter, expected, found| {
        Err(Error::Parameter { kernel: "attention", parameter, expected, found })
    };
    let AttentionParams { num_heads, head_dim, .. } = params;
    if !(16..=256).contains(&head_dim) || head_dim % 8 != 0 {
        return invalid("head_dim", "a multiple of 8 from 16 to 256", head_dim);
    }
    if queries.num_seqs() != keys.num_seqs() {
        return invalid("keys.num_seqs", "as many sequences as `queries` has", keys.num_seqs());
    }
    if let Some(seq) = queries.lengths().zip(keys.lengths()).position(|(q, k)| q > 0 && k == 0) {
        return invalid("keys", "keys for every sequence with queries; none in this sequence", seq);
    }
    let hidden_size = num_heads * head_dim;
    check_length("attention", "out", out.len(), queries.num_tokens() * hidden_size)?;
    for (operand, rows, num_rows) in
        [("q", q, queries.num_tokens()), ("k", k, keys.num_tokens()), ("v", v, keys.num_tokens())]
    {
        check_length("attention", operand, rows.stride, rows.column + hidden_size)?;
        check_length("attention", operand, rows.buffer.len(), num_rows * rows.stride)?;
    }
    cpu::attention(stream, out.as_mut_slice(), q, k, v, queries, keys, params);
    Ok(())
}

/// Work of one call.
pub fn cost(queries: &Segments, keys: &Segments, params: AttentionParams) -> Cost {
    let hidden_size = params.num_heads * params.head_dim;
    let scores: usize = queries.lengths().zip(keys.lengths()).map(|(q, k)| q * k).sum();
    Cost::new(4 * hidden_size * scores, 4 * hidden_size * (2 * queries.num_tokens() + 2 * keys.num_tokens()))
}
