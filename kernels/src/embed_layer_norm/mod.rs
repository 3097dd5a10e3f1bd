//! Embedding gather followed by LayerNorm: `out = LayerNorm(word[id] + token_type[0] + position[position_id])`.
//!
//! | operand          | shape                         | dtype                         | layout                 |
//! |------------------|-------------------------------|-------------------------------|------------------------|
//! | `out`            | `[num_tokens, hidden_size]`   | f32; CUDA: operand type       | row-major, overwritten |
//! | `word`           | `[vocab_size, hidden_size]`   | as stored; CUDA: operand type | row-major              |
//! | `position`       | `[positions, hidden_size]`    | as stored; CUDA: operand type | row-major              |
//! | `token_type`     | `[hidden_size]`               | f32                           | row 0 of the table     |
//! | `input_ids`      | `[num_tokens]`                | u32                           |                        |
//! | `position_ids`   | `[num_tokens]`                | u32                           |                        |
//! | `weight` `bias`  | `[hidden_size]`               | f32                           | inside [`LayerNorm`]   |
//!
//! On the CPU the tables may be views of a mapped file: only the rows asked for are read. On CUDA they are in its memory.
//! Rounding: word + token type + position in that order, then as [`add_layer_norm`](crate::add_layer_norm).
//! Cost: a row read and one written per token, memory-bound; rows of positions are few and stay in a cache.
//! Errors: [`Error::Length`]; [`Error::IndexOutOfRange`] names table, index and position; on CUDA [`Error::Parameter`] for
//! a width or type that `add_layer_norm` refuses too. Error bound there: as its own, where the largest `|z|` counts the
//! sum of two beside that of all three.
//! Source: Devlin et al. 2018, section 3; the sum's order is that of the reference implementation.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use crate::add_layer_norm::LayerNorm;
use crate::error::{check_indices, check_length};
use crate::{Buffer, Cost, Error, Indices, Stream, Table};

/// The three tables summed for a token.
#[derive(Clone, Copy)]
pub struct EmbeddingTables<'a> {
    /// `[vocab_size, hidden_size]`
    pub word: Table<'a>,
    /// `[positions, hidden_size]`
    pub position: Table<'a>,
    /// Row 0 of the token type table.
    pub token_type: &'a Buffer,
}

/// Computes one row of `out` per token; `hidden_size` is the norm's length.
pub fn embed_layer_norm(
    stream: &Stream,
    out: &mut Buffer,
    tables: EmbeddingTables<'_>,
    input_ids: Indices<'_>,
    position_ids: Indices<'_>,
    norm: LayerNorm<'_>,
) -> Result<(), Error> {
    const KERNEL: &str = "embed_layer_norm";
    let hidden_size = norm.weight.len();
    check_length(KERNEL, "bias", norm.bias.len(), hidden_size)?;
    check_length(KERNEL, "token_type", tables.token_type.len(), hidden_size)?;
    check_length(KERNEL, "position_ids", position_ids.len().get(), input_ids.len().get())?;
    check_length(KERNEL, "out", out.len(), input_ids.len().get() * hidden_size)?;
    if hidden_size == 0 {
        return Ok(());
    }
    for (name, table, ids) in [("word", tables.word, input_ids), ("position", tables.position, position_ids)]
    {
        check_indices(KERNEL, name, ids.host(), table.len() / hidden_size)?;
    }
    let _timed = stream.timed(KERNEL, || {
        let (table, operand) = (tables.word.element_bytes(), out.element_bytes());
        (String::new(), cost(input_ids.len().get(), hidden_size, table, operand))
    });
    match stream {
        Stream::Cpu(cpu) => {
            let tables = cpu::Tables {
                word: tables.word.mapped()?,
                position: tables.position.mapped()?,
                token_type: tables.token_type.host()?,
            };
            let norm = cpu::Norm { weight: norm.weight.host()?, bias: norm.bias.host()?, eps: norm.eps };
            cpu::embed_layer_norm(cpu, out.host_mut()?, tables, input_ids.host(), position_ids.host(), norm);
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::embed_layer_norm(cuda, out, tables, input_ids, position_ids, norm),
    }
}

/// Work of one call on tables of `element_bytes`, that writes elements of `operand_bytes`.
pub fn cost(num_tokens: usize, hidden_size: usize, element_bytes: usize, operand_bytes: usize) -> Cost {
    let bytes = num_tokens * hidden_size * (element_bytes + operand_bytes) + 12 * hidden_size;
    Cost::new(10 * num_tokens * hidden_size, bytes + 8 * num_tokens)
}
