//! Low-rank update of a weight matrix: `w += scale * b · a`.
//!
//! | operand | shape        | dtype | layout                      |
//! |---------|--------------|-------|-----------------------------|
//! | `w`     | `[out, in]`  | f32   | row-major, read and updated |
//! | `a`     | `[r, in]`    | f32   | row-major                   |
//! | `b`     | `[out, r]`   | f32   | row-major                   |
//!
//! For merging an adapter while a model is loaded: on the host, whatever device the model goes to.
//! Rounding: f32; the products of a row are summed over r in ascending order with fused multiply-adds, then scaled and added
//! with one more: the order of the reference, which forms `b · a` first.
//! Error bound: `(r + 2) * 2^-24 * |scale| * sum_r |b * a| + 2^-24 |w|`; tests use it.
//! Cost: `2 r * out * in` flops. Errors: [`Error::Length`].
//! Source: Hu et al. 2021, eq. 3.

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::{Cost, CpuStream, Error};

/// Shape and factor of an update.
#[derive(Clone, Copy, Debug)]
pub struct LowRank {
    /// Rows of `w`.
    pub out_features: usize,
    /// Columns of `w`.
    pub in_features: usize,
    /// Rows of `a`.
    pub rank: usize,
    /// Factor of the product.
    pub scale: f32,
}

/// `w += scale * b · a`
pub fn add_low_rank(
    stream: &CpuStream,
    w: &mut [f32],
    b: &[f32],
    a: &[f32],
    shape: LowRank,
) -> Result<(), Error> {
    let LowRank { out_features, in_features, rank, .. } = shape;
    check_length("add_low_rank", "w", w.len(), out_features * in_features)?;
    check_length("add_low_rank", "b", b.len(), out_features * rank)?;
    check_length("add_low_rank", "a", a.len(), rank * in_features)?;
    if in_features > 0 {
        cpu::add_low_rank(stream, w, b, a, shape);
    }
    Ok(())
}

/// Work of one call.
pub fn cost(shape: LowRank) -> Cost {
    let LowRank { out_features, in_features, rank, .. } = shape;
    Cost::new(
        2 * rank * out_features * in_features,
        4 * (2 * out_features * in_features + rank * (out_features + in_features)),
    )
}
