//! Copies a block of a matrix into a place of another: `out[i, j] = x[i, j]` for the rows and columns of both blocks.
//!
//! | operand | shape                    | dtype | layout                                              |
//! |---------|--------------------------|-------|-----------------------------------------------------|
//! | `out`   | `[num_rows, num_cols]`   | f32   | a [`Block`] of a row-major matrix, overwritten      |
//! | `x`     | `[num_rows, num_cols]`   | f32   | a [`Block`] of a row-major matrix                   |
//!
//! Used to keep the keys and values of a shared prefix for the batches behind it, and to put them where those expect them.
//! Exact. Cost: `8 * num_rows * num_cols` bytes. Errors: [`Error::Length`].

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Stream};

/// Where a block begins, in a row-major matrix with rows of `stride` elements.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Elements of a row of the matrix.
    pub stride: usize,
    /// First row of the block.
    pub row: usize,
    /// First column of the block.
    pub column: usize,
}

/// Copies `num_rows` by `num_cols` elements from `x` at `from` to `out` at `to`.
pub fn copy_block(
    stream: &Stream,
    out: &mut Buffer,
    to: Block,
    x: &Buffer,
    from: Block,
    num_rows: usize,
    num_cols: usize,
) -> Result<(), Error> {
    if num_rows == 0 || num_cols == 0 {
        return Ok(());
    }
    for (operand, block, len) in [("out", to, out.len()), ("x", from, x.len())] {
        check_length("copy_block", operand, block.stride, block.column + num_cols)?;
        check_length("copy_block", operand, len, (block.row + num_rows) * block.stride)?;
    }
    cpu::copy_block(stream, out.as_mut_slice(), to, x.as_slice(), from, num_rows, num_cols);
    Ok(())
}

/// Work of one call.
pub fn cost(num_rows: usize, num_cols: usize) -> Cost {
    Cost::new(0, 8 * num_rows * num_cols)
}
