//! Embedding gather followed by LayerNorm: `out = LayerNorm(word[id] + token_type[0] + position[position_id])`.
//!
//! | operand          | shape                         | dtype                    | layout                  |
//! |------------------|-------------------------------|--------------------------|-------------------------|
//! | `out`            | `[num_tokens, hidden_size]`   | f32                      | row-major, overwritten  |
//! | `word`           | `[vocab_size, hidden_size]`   | f32, f16, bf16 as stored | row-major               |
//! | `position`       | `[positions, hidden_size]`    | as stored                | row-major               |
//! | `token_type`     | `[hidden_size]`               | f32                      | row 0 of the table      |
//! | `input_ids`      | `[num_tokens]`                | u32                      |                         |
//! | `position_ids`   | `[num_tokens]`                | u32                      |                         |
//! | `weight` `bias`  | `[hidden_size]`               | f32                      | inside [`LayerNorm`]    |
//!
//! The tables may be views of a mapped file: only the rows asked for are read.
//! Rounding: word + token type + position in that order, then as [`add_layer_norm`](crate::add_layer_norm).
//! Cost: three rows read, one written per token; memory-bound.
//! Errors: [`Error::Length`]; [`Error::IndexOutOfRange`] names table, index and position.
//! Source: Devlin et al. 2018, section 3; the sum's order is that of the reference implementation.

mod cpu;
#[cfg(test)]
mod tests;

use crate::add_layer_norm::LayerNorm;
use crate::error::check_length;
use crate::{Buffer, Cost, Elements, Error, Stream};

/// The three tables summed for a token.
#[derive(Clone, Copy)]
pub struct EmbeddingTables<'a> {
    /// `[vocab_size, hidden_size]`
    pub word: Elements<'a>,
    /// `[positions, hidden_size]`
    pub position: Elements<'a>,
    /// Row 0 of the token type table.
    pub token_type: &'a [f32],
}

/// Computes one row of `out` per token; `hidden_size` is the norm's length.
pub fn embed_layer_norm(
    stream: &Stream,
    out: &mut Buffer,
    tables: EmbeddingTables<'_>,
    input_ids: &[u32],
    position_ids: &[u32],
    norm: LayerNorm<'_>,
) -> Result<(), Error> {
    const KERNEL: &str = "embed_layer_norm";
    let hidden_size = norm.weight.len();
    check_length(KERNEL, "bias", norm.bias.len(), hidden_size)?;
    check_length(KERNEL, "token_type", tables.token_type.len(), hidden_size)?;
    check_length(KERNEL, "position_ids", position_ids.len(), input_ids.len())?;
    check_length(KERNEL, "out", out.len(), input_ids.len() * hidden_size)?;
    if hidden_size == 0 {
        return Ok(());
    }
    for (table, elements, ids) in
        [("word", tables.word, input_ids), ("position", tables.position, position_ids)]
    {
        let rows = elements.len() / hidden_size;
        if let Some(position) = ids.iter().position(|id| *id as usize >= rows) {
            return Err(Error::IndexOutOfRange {
                kernel: KERNEL,
                table,
                index: ids[position],
                position,
                rows,
            });
        }
    }
    cpu::embed_layer_norm(stream, out.as_mut_slice(), tables, input_ids, position_ids, norm);
    Ok(())
}

/// Work of one call.
pub fn cost(num_tokens: usize, hidden_size: usize, element_bytes: usize) -> Cost {
    Cost::new(
        10 * num_tokens * hidden_size,
        num_tokens * hidden_size * (2 * element_bytes + 4) + 12 * hidden_size,
    )
}
