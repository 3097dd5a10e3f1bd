//! Rotary position embedding, in place, half-split: element `i` of a head is paired with element `i + head_dim / 2`.
//!
//! With `c` and `s` the cosine and sine of `position * theta^(-2i / head_dim)`:
//! `(x[i], x[i + head_dim / 2]) = (x[i] * c - x[i + head_dim / 2] * s, x[i + head_dim / 2] * c + x[i] * s)`
//!
//! | operand        | shape                             | dtype | layout                                                    |
//! |----------------|-----------------------------------|-------|-----------------------------------------------------------|
//! | `x`            | `[num_rows, stride]`              | f32   | row-major, columns of the heads read and replaced         |
//! | `position_ids` | `[num_rows]`                      | u32   |                                                           |
//! | `table`        | `[num_positions, head_dim / 2]`   | f32   | cosines and sines, [`RopeTable`]                          |
//!
//! Part of the matrix product that makes queries and keys, as its epilogue: [`Epilogue::Rope`](crate::gemm::Epilogue::Rope). On CUDA
//! the two elements of a pair are neighbours there, see [`pack_weights`](crate::pack_weights); on the CPU they are as above.
//!
//! Rounding: f32, one product and one fused multiply-add per element. Error bound against the table's values:
//! `2^-24 * (|a| + |out|)`, where `a` is the product rounded on its own. Of the table itself: `|position * inv_freq| * 2^-24 *
//! (3 + ln theta) + 2^-24`, for the rounding of the exponent, the power, its inverse and the angle. Tests use both.
//! Cost: `8 * num_rows * num_heads * head_dim` bytes, memory-bound.
//! Errors: [`Error::Parameter`].
//! Source: Su et al. 2021, eq. 34; the half-split pairing and the table's rounding are those of the reference, SPEC 5.

mod cpu;
#[cfg(test)]
mod tests;

use crate::{Buffer, Cost, CpuStream, Error, Stream};

/// Neighbouring heads in a row-major matrix with rows of `stride` elements.
#[derive(Clone, Copy)]
pub(crate) struct RopeHeads {
    /// Elements of one row.
    pub(crate) stride: usize,
    /// First column of the first head.
    pub(crate) column: usize,
    /// Heads to rotate.
    pub(crate) num_heads: usize,
}

/// Cosines and sines of every angle up to a largest position, made once per model and stream.
pub struct RopeTable {
    /// `[num_positions, head_dim / 2]`
    cos: Buffer,
    /// `[num_positions, head_dim / 2]`
    sin: Buffer,
    head_dim: usize,
    num_positions: usize,
}

impl RopeTable {
    /// A table for heads of `head_dim` elements and positions `0 .. num_positions`. `theta` must be positive.
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the type of the table")]
    pub fn new(stream: &Stream, theta: f64, head_dim: usize, num_positions: usize) -> Result<Self, Error> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            let expected = "an even number, 2 or more";
            return Err(Error::Parameter {
                kernel: "rope",
                parameter: "head_dim",
                expected,
                found: head_dim,
            });
        }
        let inv_freq = inv_freq(theta, head_dim);
        let angles = (0..num_positions)
            .flat_map(|position| inv_freq.iter().map(move |inv_freq| f64::from(position as f32 * inv_freq)));
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        let [cos, sin] = [Buffer::upload(stream, &cos)?, Buffer::upload(stream, &sin)?];
        Ok(Self { cos, sin, head_dim, num_positions })
    }

    /// Positions `0 .. num_positions()` can be asked for.
    pub fn num_positions(&self) -> usize {
        self.num_positions
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Cosines, `[num_positions, head_dim / 2]`.
    pub(crate) fn cos(&self) -> &Buffer {
        &self.cos
    }

    /// Sines, likewise.
    pub(crate) fn sin(&self) -> &Buffer {
        &self.sin
    }
}

/// `theta^(-2i / head_dim)` for every pair `i`.
///
/// Rounded to f32 wherever the reference rounds: exponent, power and inverse each. A single rounding at the end gives a
/// neighbouring number for a third of the pairs, and the position multiplies the difference: 5e-4 in a cosine at 8192.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 where the reference does")]
fn inv_freq(theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / theta.powf(f64::from(exponent)) as f32
        })
        .collect()
}

/// Rotates the heads of row `t` of `x` by position `position_ids[t]`, for every row, on the CPU. The caller has checked lengths and
/// positions.
pub(crate) fn rope_cpu(
    stream: &CpuStream,
    x: &mut [f32],
    heads: RopeHeads,
    position_ids: &[u32],
    table: &RopeTable,
) -> Result<(), Error> {
    if heads.num_heads > 0 && table.head_dim > 0 {
        cpu::rope(stream, x, heads, position_ids, table.head_dim, table.cos.host()?, table.sin.host()?);
    }
    Ok(())
}

/// Work of one call.
pub fn cost(num_rows: usize, num_heads: usize, head_dim: usize) -> Cost {
    let elements = num_rows * num_heads * head_dim;
    Cost::new(3 * elements, 8 * elements + 4 * num_rows * head_dim)
}
