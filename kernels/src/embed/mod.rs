//! Embedding gather with a factor: `out[t] = table[input_ids[t]] * scale`.
//!
//! | operand       | shape                         | dtype                         | layout                 |
//! |---------------|-------------------------------|-------------------------------|------------------------|
//! | `out`         | `[num_tokens, hidden_size]`   | f32                           | row-major, overwritten |
//! | `table`       | `[vocab_size, hidden_size]`   | f32, f16, bf16 as stored | row-major              |
//! | `input_ids`   | `[num_tokens]`                | u32                           |                        |
//! | `scale`       | scalar                        | f32                           |                        |
//!
//! `scale` is `sqrt(hidden_size)` for Gemma and `scale_emb` for MiniCPM. On the CPU the table may be a view of a mapped
//! file: only the rows asked for are read. On CUDA it is in its memory, and `hidden_size` is a multiple of 8.
//!
//! Rounding: the stored value is widened exactly, then one product in f32, so an element is the exact product rounded once.
//! Cost: one row read, one written per token; memory-bound.
//! Errors: [`Error::Length`]; [`Error::IndexOutOfRange`] names the id and where it stands; on CUDA [`Error::Parameter`].
//! Source: Vaswani et al. 2017, section 3.4, for the factor; SPEC 5 to 7.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use crate::error::{check_indices, check_length};
use crate::{Buffer, Cost, Error, Indices, Stream, Table};

/// Computes one row of `out`, of `hidden_size` elements, per token.
pub fn embed(
    stream: &Stream,
    out: &mut Buffer,
    table: Table<'_>,
    input_ids: Indices<'_>,
    hidden_size: usize,
    scale: f32,
) -> Result<(), Error> {
    check_length("embed", "out", out.len(), input_ids.len().get() * hidden_size)?;
    if hidden_size == 0 {
        return Ok(());
    }
    let rows = table.len() / hidden_size;
    check_indices("embed", "table", input_ids.host(), rows)?;
    let _timed = stream
        .timed("embed", || (String::new(), cost(input_ids.len().get(), hidden_size, table.element_bytes())));
    match stream {
        Stream::Cpu(cpu) => {
            cpu::embed(cpu, out.host_mut()?, table.mapped()?, input_ids.host(), hidden_size, scale);
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::embed(cuda, out, table, input_ids, hidden_size, scale),
    }
}

/// Work of one call.
pub fn cost(num_tokens: usize, hidden_size: usize, element_bytes: usize) -> Cost {
    Cost::new(num_tokens * hidden_size, num_tokens * hidden_size * (element_bytes + 4) + 4 * num_tokens)
}
