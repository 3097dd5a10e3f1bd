//! Why a call, or one item of a call, failed.

/// What the engine can answer instead of a score.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file, tensor or configuration field.
    #[error(transparent)]
    Loader(#[from] outcrop_loader::Error),
    /// The model could not be made or run, or a sequence does not fit it.
    #[error(transparent)]
    Model(#[from] outcrop_models::Error),
    /// Scores were asked of a model that has no scoring head.
    #[error(
        "{architecture} is an embedding model without a scoring head: use embed, or rerank, which ranks by cosine"
    )]
    NotAReranker {
        /// The model's architecture.
        architecture: &'static str,
    },
    /// Vectors were asked of a reranker.
    #[error("{architecture} is a reranker and has no embeddings: use score or rerank")]
    NotAnEmbedder {
        /// The model's architecture.
        architecture: &'static str,
    },
    /// A result is not a number.
    #[error(
        "the result is not finite ({}); a checkpoint stored in f16 may have overflowed: prefer its bf16 or f32 weights",
        match tensor {
            Some(name) => format!("tensor {name} holds NaN or infinite values"),
            None => "all weights are finite, so the activations overflowed".to_owned(),
        }
    )]
    NonFinite {
        /// The first tensor with a NaN or an infinity, if there is one.
        tensor: Option<String>,
    },
    /// An instruction format is not one that `str.format` of the reference accepts.
    #[error(
        "instruction format {format:?}: {problem}; it takes two values, the instruction and the text, as {{}} {{}} or {{0}} {{1}}, and \
         {{{{ or }}}} for a brace"
    )]
    InstructionFormat {
        /// The format as given.
        format: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl From<outcrop_kernels::Error> for Error {
    fn from(error: outcrop_kernels::Error) -> Self {
        Self::Model(error.into())
    }
}
