//! Token compression: the passage rows of every sequence become means of groups, its other rows stay.
//!
//! A sequence's rows are query, passage, prompt. With `g` counting groups of `ratio` rows from the passage's start:
//! `passage'[g] = mean of passage[g * ratio .. min((g + 1) * ratio, passage)]`, the last group over the rows it has.
//!
//! | operand     | shape                               | dtype | layout                 |
//! |-------------|-------------------------------------|-------|------------------------|
//! | `out`       | `[sum compressed, hidden_size]`     | f32   | row-major, overwritten |
//! | `x`         | `[sum len, hidden_size]`            | f32   | row-major, packed      |
//! | layouts     | before and after                    |       | [`LayoutBuffer`]       |
//!
//! Packed and ragged on both sides: sequence after sequence without padding, each shorter by the rows it lost.
//! A segment's rows may be a whole sequence or only a part of one: a shared prefix is all query.
//!
//! Rounding: query and prompt rows, and groups of one row, are copies bit for bit. A mean adds rows in ascending order in f32,
//! then multiplies by `1 / n`. A row depends on its own group alone.
//! Error bound of a mean of n rows: `(n + 1) * 2^-24 * mean |x|`; tests use it.
//! Cost: every row read once, every row of the result written once; memory-bound.
//! Errors: [`Error::Length`]; [`Error::Parameter`] for a ratio of 0, on CUDA also unless `hidden_size` is a multiple of 8.
//! A ratio of 1 copies.
//! Source: SPEC 7.3.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use crate::error::check_length;
use crate::layout::LayoutBuffer;
use crate::{Buffer, Cost, Error, Stream};

/// Rows of one sequence, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compress {
    /// Leading rows that stay: first special token, query, first separator.
    pub query: usize,
    /// Rows that are merged.
    pub passage: usize,
    /// Trailing rows that stay: second separator and prompt.
    pub prompt: usize,
}

impl Compress {
    /// Rows of the sequence.
    pub fn len(&self) -> usize {
        self.query + self.passage + self.prompt
    }

    /// Whether the sequence has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sequence after compression. A ratio of 0, which [`token_compress`] refuses, counts as 1.
    pub fn compressed(&self, ratio: usize) -> Self {
        Self { passage: self.passage.div_ceil(ratio.max(1)), ..*self }
    }
}

/// Compresses every segment of `x`, laid out as `before` says, into `out`, laid out as `after`: what
/// [`LayoutBuffer::compress`] makes of `before` with this ratio.
pub fn token_compress(
    stream: &Stream,
    out: &mut Buffer,
    x: &Buffer,
    before: &LayoutBuffer,
    after: &LayoutBuffer,
    ratio: usize,
    hidden_size: usize,
) -> Result<(), Error> {
    if ratio == 0 {
        let expected = "1 or more rows in a group";
        return Err(Error::Parameter {
            kernel: "token_compress",
            parameter: "ratio",
            expected,
            found: ratio,
        });
    }
    check_length("token_compress", "out", out.len(), after.tokens().get() * hidden_size)?;
    check_length("token_compress", "x", x.len(), before.tokens().get() * hidden_size)?;
    if hidden_size == 0 {
        return Ok(());
    }
    let _timed = stream.timed("token_compress", || {
        let (rows, left) = (before.tokens().get(), after.tokens().get());
        let passages = before.host().segments.segments.iter().map(|segment| segment.parts.passage);
        (String::new(), cost(rows, passages.sum(), left, hidden_size))
    });
    match stream {
        Stream::Cpu(cpu) => {
            let (before, after) = (before.host(), after.host());
            cpu::token_compress(cpu, out.host_mut()?, x.host()?, before, after, ratio, hidden_size);
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::token_compress(cuda, out, x, before, after, ratio, hidden_size),
    }
}

/// Work of one call on `before` rows, of which `merged` are passage, that leaves `after`.
pub fn cost(before: usize, merged: usize, after: usize, hidden_size: usize) -> Cost {
    Cost::new(merged * hidden_size, 4 * hidden_size * (before + after))
}
