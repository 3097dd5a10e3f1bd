//! Checkpoint files as typed, borrowed host views.
//!
//! A model directory in the Hugging Face layout goes in; out come a checked [`Config`], weights as slices of the
//! mapped files ([`Checkpoint`], [`Tensor`]), a [`Tokenizer`], and what sentence-transformers wrote about pooling
//! ([`SentenceTransformers`]). The directory of a LoRA adapter gives the changes that it makes to such weights
//! ([`Adapter`]). [`writer`] writes weights in the same layout. With the feature `hub`, `hub::resolve` turns a hub id
//! into a model directory.
//!
//! This crate owns every file format and every message about a bad file. It does no arithmetic on weights, knows no
//! device and decides nothing about a model beyond what its files say.

mod adapter;
mod checkpoint;
mod config;
mod error;
#[cfg(feature = "hub")]
pub mod hub;
mod json;
mod mmap;
mod sentence_transformers;
mod tokenizer;
mod weights;
pub mod writer;

pub use adapter::{Adapter, Change};
pub use checkpoint::Checkpoint;
pub use config::{
    AllowedCutoffs, Architecture, Config, DecoderConfig, DecoderFamily, EncoderConfig, Gelu, Gemma2Config,
    GemmaConfig, MiniCpmConfig,
};
pub use error::Error;
pub use sentence_transformers::{Pooling, SentenceTransformers};
pub use tokenizer::{Token, Tokenizer, TokenizerKind};
pub use weights::{Dtype, Tensor, TensorData, TensorInfo};
