//! One vector per sequence: its first row, or the mean of its rows.
//!
//! | operand | shape                         | dtype | layout                 |
//! |---------|-------------------------------|-------|------------------------|
//! | `out`   | `[num_seqs, hidden_size]`     | f32   | row-major, overwritten |
//! | `x`     | `[num_tokens, hidden_size]`   | f32   | row-major, packed      |
//!
//! Every sequence must have a row. Rounding: the mean adds rows in ascending order in f32, then multiplies by `1 / n`.
//! Error bound of a mean of n rows: `(n + 1) * 2^-24 * mean |x|`; tests use it. The first row is exact.
//! Cost: one read of the rows used. Errors: [`Error::Length`], [`Error::Parameter`].
//! Source: Reimers and Gurevych 2019, section 3 (CLS and MEAN strategies).

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Segments, Stream};

/// How the rows of a sequence become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first row.
    Cls,
    /// The mean of all rows, special tokens included.
    Mean,
}

/// Pools each sequence of `segments`.
pub fn pool(
    stream: &Stream,
    out: &mut Buffer,
    x: &Buffer,
    segments: &Segments,
    hidden_size: usize,
    pooling: Pooling,
) -> Result<(), Error> {
    check_length("pool", "out", out.len(), segments.num_seqs() * hidden_size)?;
    check_length("pool", "x", x.len(), segments.num_tokens() * hidden_size)?;
    if let Some(seq) = segments.lengths().position(|length| length == 0) {
        let expected = "a row in every sequence; none in this sequence";
        return Err(Error::Parameter { kernel: "pool", parameter: "segments", expected, found: seq });
    }
    if hidden_size > 0 {
        cpu::pool(stream, out.as_mut_slice(), x.as_slice(), segments, hidden_size, pooling);
    }
    Ok(())
}

/// Work of one call.
pub fn cost(segments: &Segments, hidden_size: usize, pooling: Pooling) -> Cost {
    let rows = match pooling {
        Pooling::Cls => segments.num_seqs(),
        Pooling::Mean => segments.num_tokens(),
    };
    Cost::new(rows * hidden_size, 4 * hidden_size * (rows + segments.num_seqs()))
}
