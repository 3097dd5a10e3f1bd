//! Every numeric operation of Outcrop, one folder a kernel.
//!
//! A kernel's `mod.rs` holds its contract: formula, shapes, rounding, cost, source. Lengths are checked there, once, before
//! any device runs; `cpu.rs` computes; `tests.rs` compares with the same formula in f64. Argument order is always
//! `stream, outputs, inputs, parameters`.
//!
//! Words used throughout: *packed* means that the sequences of a batch are concatenated without padding, described by
//! [`Segments`]; all matrices are row-major; `d[m, n] = a[m, k] · b[n, k]ᵀ` is the only matrix product.
//!
//! What this crate does not do: it opens no file, knows no model, and decides no order of operations.

mod buffer;
mod cost;
mod elements;
mod error;
mod math;
mod segments;
mod shared_mut;
mod stream;
#[cfg(test)]
mod testing;

pub mod add_layer_norm;
pub mod add_low_rank;
pub mod add_rms_norm;
pub mod attention;
pub mod copy_block;
pub mod embed;
pub mod embed_layer_norm;
pub mod gather_rows;
pub mod gemm;
pub mod l2_normalize;
pub mod pool;
pub mod rms_norm;
pub mod rope;
pub mod row_dot;
pub mod sandwich_norm;
pub mod token_compress;

pub use buffer::Buffer;
pub use cost::Cost;
pub use elements::{ElementType, Elements};
pub use error::Error;
pub use segments::Segments;
pub use stream::Stream;
