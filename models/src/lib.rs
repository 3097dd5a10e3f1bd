//! What the networks are: weights by name, the layer as straight-line code, pair encoding, heads.
//!
//! [`Encoder`] is the XLM-RoBERTa and BERT family. Its forward pass is a list of kernel calls that reads like the paper; which
//! device runs them is the [`Stream`]'s affair. [`input`] turns token ids of texts into what a model
//! reads; [`Batch`] packs several of those without padding.
//!
//! What this crate does not do: it decides no batch, no order and no memory budget (that is the runtime), and opens no file
//! (that is the loader).

mod activations;
mod batch;
mod encoder;
mod error;
pub mod input;
mod weights;

pub use activations::Activations;
pub use batch::{Batch, check_sequence};
pub use encoder::Encoder;
pub use error::Error;
pub use outcrop_kernels::Stream;
pub use outcrop_kernels::pool::Pooling;
