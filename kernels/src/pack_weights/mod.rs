//! Weights on their way into device memory: converted to the operand type, rows put where the kernels want them.
//!
//! `out[place(r), i] = convert(rows[r, i])`, where `place` is one of
//!
//! | placement                | `place(r)`                                                                                  |
//! |--------------------------|---------------------------------------------------------------------------------------------|
//! | [`Placement::Plain`]     | `first_row + r`                                                                             |
//! | [`Placement::Rotary`]    | `first_row + `, inside each head of `D` rows: `2 i` for `i < D / 2`, else `2 (i - D / 2) + 1` |
//! | [`Placement::Gate`]      | `first_row + r / 8 * 16 + r % 8`                                                            |
//! | [`Placement::Up`]        | the same, 8 further                                                                         |
//!
//! Rotary placement makes neighbours of the two elements that a rotation mixes; a product of queries and keys placed alike does not
//! change. Gate and up placement put both factors of an output into one thread of a matrix product's epilogue.
//!
//! | operand | shape             | dtype         | layout                                        |
//! |---------|-------------------|---------------|-----------------------------------------------|
//! | `out`   | `[.., k]`         | operand type  | row-major, in device memory                   |
//! | `rows`  | `[num_rows, k]`   | as stored     | row-major, in the mapped file                 |
//!
//! For CUDA only: on the CPU a [`Matrix`](crate::gemm::Matrix) is packed in another way. Rounding: to nearest, ties to even;
//! bits of the same type stay. Cost: every weight once over the bus. Errors: [`Error::Length`]; [`Error::Parameter`] unless
//! `k` is a multiple of 8 and the rows are whole heads, or groups of eight.
//! Source: KERNELS 2.2.

mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;

pub(crate) use self::cuda::{instances, pack_weights};

use crate::buffer::DeviceBuffer;
use crate::stream::CudaStream;
use crate::{Cost, Elements, Error};

/// Where the rows of a part go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In their order.
    Plain,
    /// Pairs of a rotation side by side, in heads of this many rows.
    Rotary {
        /// Rows of a head.
        head_dim: usize,
    },
    /// Groups of eight, with room for as many of the other factor behind each.
    Gate,
    /// Into that room.
    Up,
}

/// A table in device memory with the rows of `elements`, of `row_len` each, in their order.
pub(crate) fn upload(
    stream: &CudaStream,
    elements: Elements<'_>,
    row_len: usize,
) -> Result<DeviceBuffer, Error> {
    let out = DeviceBuffer::allocate(stream, stream.operand_type(), elements.len())?;
    pack_weights(stream, &out, elements, row_len, 0, Placement::Plain)?;
    Ok(out)
}

/// Work of packing `elements` weights of `stored_bytes` into operands of 16 bits.
pub fn cost(elements: usize, stored_bytes: usize) -> Cost {
    Cost::new(0, elements * (stored_bytes + 2))
}
