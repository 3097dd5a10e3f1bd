//! Outcrop: an inference runtime for rerankers.
//!
//! An [`Engine`] holds one model and scores (query, passage) pairs, ranks passages for a query, or embeds texts. It is `Send`
//! and `Sync`: share one between threads.
//!
//! ```no_run
//! use outcrop::{Engine, EngineOptions, ScoreOptions};
//!
//! let engine = Engine::open("models/bge-reranker-v2-m3", &EngineOptions::default())?;
//! let passages = ["The giant panda is a bear species endemic to China.", "Paris is the capital of France."];
//! let ranking = engine.rerank("what is a panda?", &passages, &ScoreOptions::default())?;
//! for ranked in &ranking.results {
//!     println!("{:8.4}  {}", ranked.score, passages[ranked.index]);
//! }
//! # Ok::<(), outcrop::Error>(())
//! ```
//!
//! Scores are those of the reference implementation (FlagEmbedding), and a score does not depend on the batch: the same pair
//! gives the same bits alone, among others, in any order, and with any number of threads.
//!
//! What this crate does not do: it computes nothing itself (that is `outcrop-kernels`), and it knows no protocol; only the
//! binary reads arguments and JSON.

mod device;
mod engine;
mod error;
mod options;
mod packing;
pub mod queue;
mod schedule;

pub use outcrop_loader as loader;
pub use outcrop_loader::{AllowedCutoffs, Gelu};
pub use outcrop_models::decoder::{HeadRule, WeightInfo, WeightPart, manifest};
pub use outcrop_models::encoder::Pooling;
pub use outcrop_models::input::{PairSequence, Sequence};

pub use outcrop_models::kernels::{
    Cost, ElementType, EmulatorOptions, Error as KernelError, LoadedKernel, Stream, bench, doctor, profile,
};

pub use device::{Device, DeviceChoice, Gpus, ParseDeviceError};
pub use engine::{Embedding, Engine, LayerScore, Ranked, Ranking, Score, Timings};
pub use error::Error;
pub use options::{Dtype, EmbedOptions, EngineOptions, ScoreOptions};
pub use schedule::{Compression, Cutoffs, Warning};
