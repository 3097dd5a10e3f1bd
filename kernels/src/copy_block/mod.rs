//! Copies a block of a matrix into a place of another: `out[i, j] = x[i, j]` for the rows and columns of both blocks.
//!
//! | operand | shape                    | dtype                      | layout                                         |
//! |---------|--------------------------|----------------------------|------------------------------------------------|
//! | `out`   | `[num_rows, num_cols]`   | that of `x`                | a [`Block`] of a row-major matrix, overwritten |
//! | `x`     | `[num_rows, num_cols]`   | f32; CUDA: or operand type | a [`Block`] of a row-major matrix              |
//!
//! Used to keep the keys and values of a shared prefix for the batches behind it, and to put them where those expect them.
//! Exact. Cost: `8 * num_rows * num_cols` bytes. Errors: [`Error::Length`]; on CUDA [`Error::Parameter`] unless strides,
//! columns and `num_cols` are multiples of 8 and both types are one.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Size, Stream};

/// Where a block begins, in a row-major matrix with rows of `stride` elements.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Elements of a row of the matrix.
    pub stride: usize,
    /// First row of the block.
    pub row: Size,
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
    num_rows: Size,
    num_cols: usize,
) -> Result<(), Error> {
    let rows = num_rows.get();
    for (operand, block, len) in [("out", to, out.len()), ("x", from, x.len())] {
        check_length("copy_block", operand, block.stride, block.column + num_cols)?;
        check_length(
            "copy_block",
            operand,
            len,
            if rows == 0 { 0 } else { (block.row.get() + rows) * block.stride },
        )?;
    }
    let _timed = stream.timed("copy_block", || (String::new(), cost(rows, num_cols, x.element_bytes())));
    match stream {
        Stream::Cpu(cpu) => {
            cpu::copy_block(cpu, out.host_mut()?, to, x.host()?, from, rows, num_cols);
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::copy_block(cuda, out, to, x, from, num_rows, num_cols),
    }
}

/// Work of one call on elements of `element_bytes`.
pub fn cost(num_rows: usize, num_cols: usize, element_bytes: usize) -> Cost {
    Cost::new(0, 2 * element_bytes * num_rows * num_cols)
}
