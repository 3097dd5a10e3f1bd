//! Every numeric operation of Outcrop, one folder a kernel.
//!
//! A kernel's `mod.rs` holds its contract: formula, shapes, rounding, cost, source. Lengths are checked there, once, before any
//! device runs; `cpu.rs` computes, and so does the `.cu` file, which `cuda.rs` launches; `tests.rs` and `cuda_tests.rs` compare with
//! the same formula in f64. Argument order is always `stream, outputs, inputs, parameters`.
//!
//! Words used throughout: *packed* means that the sequences of a batch are concatenated without padding, described by a
//! [`Layout`](layout::Layout); all matrices are row-major; `d[m, n] = a[m, k] · b[n, k]ᵀ` is the only matrix product. The *operand
//! type* of a CUDA stream is f16 or bf16; on the CPU everything is computed in f32.
//!
//! What this crate does not do: it opens no file, knows no model, and decides no order of operations.

mod buffer;
mod catalog;
mod compile;
mod cost;
mod device;
mod driver;
mod elements;
mod error;
mod hardware_tests;
mod hardware_tests_hopper;
mod indices;
#[cfg(test)]
mod launched;
mod math;
#[cfg(test)]
mod mutants;
mod nvrtc;
mod operands;
mod params;
mod row;
mod shared_mut;
mod staging;
mod stream;
mod table;
#[cfg(test)]
mod test_checks;
#[cfg(test)]
mod test_devices;
#[cfg(test)]
mod testing;

pub mod add_layer_norm;
pub mod add_low_rank;
pub mod attention;
pub mod bench;
pub mod copy_block;
pub mod doctor;
pub mod embed;
pub mod embed_layer_norm;
pub mod gather_rows;
pub mod gemm;
pub mod l2_normalize;
pub mod layout;
pub mod pack_weights;
pub mod pool;
pub mod profile;
pub mod rms_norm;
pub mod rope;
pub mod row_dot;
pub mod sandwich_norm;
pub mod token_compress;

pub use buffer::{Buffer, HostBuffer, Reading, Role};
pub use catalog::{CompiledInstance, EmulatorUnit, compile_all, emulator_units};
pub use cost::Cost;
pub use device::LoadedKernel;
pub use driver::{Counters, EmulatorOptions, Properties, Resources, devices};
pub use elements::{ElementType, Elements};
pub use error::{DeviceError, Error};
pub use indices::{IndexBuffer, Indices, Spans};
pub use nvrtc::{Nvrtc, NvrtcSearch};
pub use params::Size;
pub use stream::{CpuStream, CudaStream, Graphs, Stream};
pub use table::{ResidentTable, Table};
