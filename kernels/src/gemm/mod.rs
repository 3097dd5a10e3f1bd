//! Matrix product with a fused epilogue: `d = epilogue(a · bᵀ)`.
//!
//! `d[m, n] = epilogue(sum_k a[m, k] * b[n, k])`, all row-major ("NT": weights as checkpoints store them, `[out, in]`).
//!
//! | operand    | shape         | dtype                                                   | layout                       |
//! |------------|---------------|---------------------------------------------------------|------------------------------|
//! | `d`        | `[m, n]`      | f32; CUDA: operand type, f32 with [`Epilogue::AddScaled`] | row-major, overwritten       |
//! | `a`        | `[m, k]`      | f32; CUDA: operand type                                 | row-major                    |
//! | `b`        | `[n, k]`      | f32, f16, bf16 as stored; CUDA: operand type            | [`Matrix`]                   |
//! | `bias`     | of all parts  | f32                                                     | inside [`Epilogue`]          |
//!
//! With a gated matrix, `b` holds a gate and an up projection of `n` rows each, interleaved while packing, and
//! `d = activation(a · gateᵀ) * (a · upᵀ)` (GeGLU and SwiGLU: Shazeer 2020); neither product is stored.
//!
//! On CUDA an RMSNorm of `a` can be deferred (FlashNorm: Graef et al. 2024). Then its weight is in the columns of `b`, `a` holds the rows
//! that it would divide, and the epilogue divides a row's sums by the row's root mean square: [`DeferredNorm`]. Such rows and the sums of
//! their squares are what [`Epilogue::AddScaled`] leaves behind on request, [`DeferredRows`]: squares of the f32 values, a sum for every
//! 32 columns, so that no tile decides how a row is summed.
//!
//! `m == 0` is a no-op. `d` may not alias an input (the borrow checker holds that).
//!
//! Limits: on CUDA `k` and `n` are multiples of 8, and heads that are rotated have a power of two of elements.
//!
//! An element of `d` depends on its row of `a` and its row of `b` alone: not on `m`, the tile it fell in, or the
//! number of threads.
//! Rounding on the CPU: products and sums in f32 with fused multiply-adds. k is cut into equal chunks of at most
//! 512; each chunk is summed in ascending order from zero and the chunk sums are added in ascending order.
//! On CUDA: exact products of 16-bit factors, summed in f32 by tensor cores in ascending order, 16 of them at a
//! time; the hardware may cut off where f32 would round. Hopper GPUs run a kernel of their own, whose tiles agree among
//! themselves to the bit as those of the other do. The epilogue is computed in f32, and what it gives is
//! rounded once to the type of `d`.
//! Error bound: `|d - exact| <= (k + 2) * u * sum_k |a * b|` before the epilogue, with u = 2^-24 on the CPU and 2^-23
//! on CUDA; tests use it. The activations add `4e-7 * max(1, |x|)`. A sum of squares is off by `16 * 2^-24` of itself, the factor of a
//! deferred norm, with the root of the special-function unit, by `2^-20`.
//!
//! Cost: `2 m n k` flops.
//! Errors: [`Error::Length`], [`Error::Parameter`], [`Error::Device`].
//! On the CPU the inner product of tiles is the `gemm` crate's; tiling, packing, threading and epilogues are ours.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
mod hopper;
#[cfg(test)]
pub(crate) mod hopper_tests;
mod matrix;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;
pub use self::matrix::{Matrix, Part};

use std::ops::Range;

use self::cpu::HostEpilogue;
use crate::error::{check_indices, check_length};
use crate::rope::{RopeHeads, RopeTable, rope_cpu};
use crate::{Buffer, Cost, Error, Indices, Size, Stream};

/// What happens to an element of `a · bᵀ` before it is stored, while its tile is still at hand. Biases are those of all parts of
/// the matrix.
pub enum Epilogue<'a> {
    /// Store as is.
    None,
    /// `x + bias[n]`
    Bias(&'a Buffer),
    /// `gelu(x + bias[n])` with the exact (erf) GELU.
    BiasGeluErf(&'a Buffer),
    /// `tanh(x + bias[n])`
    BiasTanh(&'a Buffer),
    /// `d[m, n] + scale * x`: onto the residual stream, which is read and replaced; and its rows for products behind a deferred norm.
    AddScaled(f32, Option<DeferredRows<'a>>),
    /// `activation(gate) * up`, for a gated matrix only.
    Gated(Activation, Option<DeferredNorm<'a>>),
    /// The heads of rotary parts rotated by the position of their row, see [`rope`](crate::rope); other parts as they are.
    Rope(&'a RopeTable, Indices<'a>, Option<DeferredNorm<'a>>),
}

/// What is left to do of an RMSNorm whose weight is in the columns of `b`: sums are divided by `sqrt(mean square + eps)` of their row of `a`.
#[derive(Clone, Copy)]
pub struct DeferredNorm<'a> {
    /// Sums of squares of the rows, as in [`DeferredRows`].
    pub squares: &'a Buffer,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Where rows of the residual stream go for the products behind a deferred norm.
pub struct DeferredRows<'a> {
    /// The rows, `[m, n]`, rounded to the operand type.
    pub rows: &'a mut Buffer,
    /// Sums of their squares, f32, `[m, squares_of(n)]`.
    pub squares: &'a mut Buffer,
}

/// Columns to a sum of squares: as many as one warp of either kernel holds at least.
const SQUARES_COLUMNS: usize = 32;

/// Sums of squares of a row of `width` elements.
pub fn squares_of(width: usize) -> usize {
    width.div_ceil(SQUARES_COLUMNS)
}

/// The function of a gated MLP's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU with the exact error function.
    GeluErf,
    /// `x / (1 + exp(-x))`
    Silu,
}

/// `d = epilogue(a · bᵀ)` over the rows of `b` that the parts `parts` hold (see [`Matrix`]); `n` is their number of outputs.
pub fn gemm(
    stream: &Stream,
    d: &mut Buffer,
    a: &Buffer,
    b: &Matrix,
    parts: Range<usize>,
    m: Size,
    epilogue: Epilogue<'_>,
) -> Result<(), Error> {
    check(d, a, b, parts.clone(), m.get(), &epilogue)?;
    let _timed = stream.timed("gemm", || {
        let (n, k) = (b.outputs_of(parts.clone()), b.k());
        (format!("{n} x {k}"), call_cost(d, a, b, parts.clone(), m.get(), &epilogue))
    });
    match stream {
        Stream::Cpu(cpu) => {
            let rows = m.get();
            let columns = b.first_row_of(parts.start)..b.first_row_of(parts.end);
            let host = match epilogue {
                Epilogue::AddScaled(_, Some(_))
                | Epilogue::Gated(_, Some(_))
                | Epilogue::Rope(_, _, Some(_)) => {
                    let (parameter, expected) =
                        ("squares", "no deferred norm on the CPU, where it would save nothing");
                    return Err(Error::Parameter { kernel: "gemm", parameter, expected, found: 1 });
                }
                Epilogue::None | Epilogue::Rope(..) => HostEpilogue::None,
                Epilogue::Bias(bias) => HostEpilogue::Bias(&bias.host()?[columns]),
                Epilogue::BiasGeluErf(bias) => HostEpilogue::BiasGeluErf(&bias.host()?[columns]),
                Epilogue::BiasTanh(bias) => HostEpilogue::BiasTanh(&bias.host()?[columns]),
                Epilogue::AddScaled(scale, None) => HostEpilogue::AddScaled(scale),
                Epilogue::Gated(activation, None) => HostEpilogue::Gated(activation),
            };
            cpu::gemm(cpu, d.host_mut()?, a.host()?, b, parts.clone(), rows, host)?;
            if let Epilogue::Rope(table, position_ids, _) = epilogue {
                let stride = b.outputs_of(parts.clone());
                let num_heads = b.rotary_columns_of(parts).0 / table.head_dim();
                let heads = RopeHeads { stride, column: 0, num_heads };
                rope_cpu(cpu, d.host_mut()?, heads, &position_ids.host()[..rows], table)?;
            }
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::gemm(cuda, d, a, b, parts, m, epilogue),
    }
}

fn check(
    d: &Buffer,
    a: &Buffer,
    b: &Matrix,
    parts: Range<usize>,
    m: usize,
    epilogue: &Epilogue<'_>,
) -> Result<(), Error> {
    let refused =
        |parameter, expected, found| Err(Error::Parameter { kernel: "gemm", parameter, expected, found });
    if parts.start >= parts.end || parts.end > b.num_parts() {
        return refused("parts.end", "a non-empty range within the matrix's parts", parts.end);
    }
    if b.is_gated() != matches!(epilogue, Epilogue::Gated(..)) {
        let expected = "a gated matrix with the gated epilogue, and no other";
        return refused("b.is_gated", expected, usize::from(b.is_gated()));
    }
    check_length("gemm", "d", d.len(), m * b.outputs_of(parts.clone()))?;
    check_length("gemm", "a", a.len(), m * b.k())?;
    if let Epilogue::Gated(_, Some(norm)) | Epilogue::Rope(_, _, Some(norm)) = epilogue {
        check_length("gemm", "squares", norm.squares.len(), m * squares_of(b.k()))?;
    }
    match epilogue {
        Epilogue::None | Epilogue::Gated(..) | Epilogue::AddScaled(_, None) => Ok(()),
        Epilogue::AddScaled(_, Some(deferred)) => {
            let n = b.outputs_of(parts);
            check_length("gemm", "rows", deferred.rows.len(), m * n)?;
            check_length("gemm", "squares", deferred.squares.len(), m * squares_of(n))
        }
        Epilogue::Bias(bias) | Epilogue::BiasGeluErf(bias) | Epilogue::BiasTanh(bias) => {
            check_length("gemm", "bias", bias.len(), b.num_outputs())
        }
        Epilogue::Rope(table, position_ids, _) => {
            let head_dim = b.rotary_columns_of(parts).1;
            if head_dim != Some(table.head_dim()) {
                let expected = "the head size of the matrix's first part, which must be rotary";
                return refused("table.head_dim", expected, table.head_dim());
            }
            check_length("gemm", "position_ids", position_ids.len().get(), m)?;
            check_indices("gemm", "position", position_ids.host(), table.num_positions())
        }
    }
}

/// Work of a call, by the types that its operands are held in.
fn call_cost(
    d: &Buffer,
    a: &Buffer,
    b: &Matrix,
    parts: Range<usize>,
    m: usize,
    epilogue: &Epilogue<'_>,
) -> Cost {
    let n = b.outputs_of(parts);
    let rows = if b.is_gated() { 2 * n } else { n };
    let outputs = m * n * d.element_bytes();
    let moved = match epilogue {
        Epilogue::AddScaled(_, None) => 2 * outputs,
        Epilogue::AddScaled(_, Some(deferred)) => {
            2 * outputs + deferred_bytes(m, n, deferred.rows.element_bytes())
        }
        Epilogue::Gated(_, Some(_)) | Epilogue::Rope(_, _, Some(_)) => outputs + 4 * m * squares_of(b.k()),
        _ => outputs,
    };
    // Weights are of one type, in panels that may be wider than the matrix.
    let weight_bytes = b.bytes() * n / b.num_outputs();
    cost(m, rows, b.k(), [a.element_bytes(), 0], moved) + Cost::new(0, weight_bytes)
}

/// Bytes of [`DeferredRows`].
pub(crate) fn deferred_bytes(m: usize, n: usize, operand_bytes: usize) -> usize {
    m * n * operand_bytes + 4 * m * squares_of(n)
}

/// Work of one call with `n` rows of weights, of which a gated matrix has two to an output: elements of `a` and of `b` with so many
/// bytes each, and of `d` as many bytes as are moved; a residual is read and written.
pub fn cost(m: usize, n: usize, k: usize, [a_bytes, b_bytes]: [usize; 2], d_bytes: usize) -> Cost {
    Cost::new(2 * m * n * k, m * k * a_bytes + n * k * b_bytes + d_bytes)
}
