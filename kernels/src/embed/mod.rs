//! Embedding gather with a factor: `out[t] = table[input_ids[t]] * scale`.
//!
//! | operand       | shape                         | dtype                    | layout                 |
//! |---------------|-------------------------------|--------------------------|------------------------|
//! | `out`         | `[num_tokens, hidden_size]`   | f32                      | row-major, overwritten |
//! | `table`       | `[vocab_size, hidden_size]`   | f32, f16, bf16 as stored | row-major              |
//! | `input_ids`   | `[num_tokens]`                | u32                      |                        |
//! | `scale`       | scalar                        | f32                      |                        |
//!
//! `scale` is `sqrt(hidden_size)` for Gemma and `scale_emb` for MiniCPM. The table may be a view of a mapped file: only the
//! rows asked for are read.
//!
//! Rounding: the stored value is widened exactly, then one product in f32, so an element is the exact product rounded once.
//! Cost: one row read, one written per token; memory-bound.
//! Errors: [`Error::Length`]; [`Error::IndexOutOfRange`] names the id and where it stands.
//! Source: Vaswani et al. 2017, section 3.4, for the factor; SPEC 5 to 7.

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::{Buffer, Cost, Elements, Error, Stream};

/// Computes one row of `out`, of `hidden_size` elements, per token.
pub fn embed(
    stream: &Stream,
    out: &mut Buffer,
    table: Elements<'_>,
    input_ids: &[u32],
    hidden_size: usize,
    scale: f32,
) -> Result<(), Error> {
    check_length("embed", "out", out.len(), input_ids.len() * hidden_size)?;
    if hidden_size == 0 {
        return Ok(());
    }
    let rows = table.len() / hidden_size;
    if let Some(position) = input_ids.iter().position(|id| *id as usize >= rows) {
        return Err(Error::IndexOutOfRange {
            kernel: "embed",
            table: "table",
            index: input_ids[position],
            position,
            rows,
        });
    }
    cpu::embed(stream, out.as_mut_slice(), table, input_ids, hidden_size, scale);
    Ok(())
}

/// Work of one call.
pub fn cost(num_tokens: usize, hidden_size: usize, element_bytes: usize) -> Cost {
    Cost::new(num_tokens * hidden_size, num_tokens * hidden_size * (element_bytes + 4) + 4 * num_tokens)
}
