//! What the networks are: weights by name, the layer as straight-line code, pair encoding, heads.
//!
//! [`encoder`] is the XLM-RoBERTa and BERT family, [`decoder`] the three causal families. A forward pass is a list of kernel calls
//! that reads like the paper; which device runs them is the [`Stream`]'s affair. [`input`] turns token ids of texts into what a
//! model reads; the families' batches pack several of those without padding.
//!
//! What this crate does not do: it decides no batch, no cutoff, no order and no memory budget (that is the runtime), and opens no
//! file (that is the loader).

pub mod decoder;
pub mod encoder;
mod error;
pub mod input;
mod weights;

pub use encoder::Pooling;
pub use error::Error;
pub use outcrop_kernels as kernels;
pub use outcrop_kernels::{CpuStream, ElementType, Reading, Stream};
