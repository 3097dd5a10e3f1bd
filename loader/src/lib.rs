//! Checkpoint files as typed, borrowed host views.
//!
//! A model directory in the Hugging Face layout goes in; out come a checked [`Config`], weights as slices of the
//! mapped files ([`Checkpoint`], [`Tensor`]), a [`Tokenizer`], and what sentence-transformers wrote about pooling
//! ([`SentenceTransformers`]). With the feature `hub`, `hub::resolve` turns a hub id into such a directory.
//!
//! This crate owns every file format and every message about a bad file. It does no arithmetic on weights, knows no
//! device and decides nothing about a model beyond what its files say.

mod checkpoint;
mod config;
mod error;
#[cfg(feature = "hub")]
pub mod hub;
mod json;
mod mmap;
mod sentence_transformers;
mod tokenizer;

pub use checkpoint::{Checkpoint, Dtype, Tensor, TensorData, TensorInfo};
pub use config::{Architecture, Config, EncoderConfig};
pub use error::Error;
pub use sentence_transformers::{Pooling, SentenceTransformers};
pub use tokenizer::{Tokenizer, TokenizerKind};
