//! Why a call, or one item of a call, failed.

use outcrop_loader::AllowedCutoffs;

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
    /// An option was given to a model that has nothing of the kind.
    #[error("{architecture} has no option {option}")]
    NoSuchOption {
        /// The option.
        option: &'static str,
        /// The model's architecture.
        architecture: &'static str,
    },
    /// Norms were to be folded where that does not work out.
    #[error("fold_norms: {reason}")]
    CannotFoldNorms {
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// An empty list of cutoffs.
    #[error("no cutoff layers; give at least one of {allowed}")]
    NoCutoffs {
        /// What the model allows.
        allowed: AllowedCutoffs,
    },
    /// A cutoff behind which the model has no head.
    #[error("cutoff layer {layer} does not exist in this model; allowed are {allowed}")]
    CutoffNotAllowed {
        /// The cutoff.
        layer: usize,
        /// What the model allows.
        allowed: AllowedCutoffs,
    },
    /// A list of layers with a repeat, or out of order.
    #[error("{option}: {next} after {layer}; layers must ascend without repeats")]
    NotAscending {
        /// The list.
        option: &'static str,
        /// A layer.
        layer: usize,
        /// The one behind it.
        next: usize,
    },
    /// A compression that would leave nothing.
    #[error("compress_ratio 0; a ratio is 1 (none) or more")]
    CompressRatio,
    /// A compression of the embeddings.
    #[error("compress_layers: layer 0 is never compressed; the first that can be is 1")]
    CompressLayerZero,
    /// A prompt that leaves no room for query and passage.
    #[error("the prompt has {tokens} tokens, more than the {limit} that a prompt may have")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The most it may have.
        limit: usize,
    },
    /// A text that the model's input needs cannot be written with its tokenizer.
    #[error(
        "the tokenizer gives no token for {text:?}, which this model's input needs; tokenizer.json is not this model's"
    )]
    NoTokens {
        /// The text.
        text: &'static str,
    },
    /// A text that would have to be cut, and was not to be.
    #[error(
        "the text has more than the {max_length} tokens allowed, and was not to be cut; raise max_length, shorten it or allow truncate"
    )]
    Truncated {
        /// The limit.
        max_length: usize,
    },
    /// A query that has no vector: no passage can be ranked by it.
    #[error("the query could not be embedded: {reason}")]
    Query {
        /// Why.
        reason: String,
    },
    /// A thread could not be started.
    #[error("a thread could not be started")]
    Thread(#[source] std::io::Error),
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

impl Error {
    /// Whether a GPU has stopped: what needs it fails until the process is started again.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Model(outcrop_models::Error::Kernel(error)) if error.is_lost())
    }

    /// The option to blame, if it is one: of [`ScoreOptions`](crate::ScoreOptions) or its parts.
    pub fn option(&self) -> Option<&'static str> {
        match self {
            Self::NoSuchOption { option, .. } | Self::NotAscending { option, .. } => Some(option),
            Self::NoCutoffs { .. } | Self::CutoffNotAllowed { .. } => Some("cutoff_layers"),
            Self::CompressRatio => Some("compress_ratio"),
            Self::CompressLayerZero => Some("compress_layers"),
            Self::PromptTooLong { .. } => Some("prompt"),
            _ => None,
        }
    }

    /// Whether a text is to blame, which the tokenizer or the model cannot take.
    pub fn is_of_text(&self) -> bool {
        use outcrop_models::Error as Model;
        match self {
            Self::Truncated { .. } | Self::Query { .. } => true,
            Self::Loader(error) | Self::Model(Model::Loader(error)) => {
                matches!(error, outcrop_loader::Error::Encode { .. })
            }
            Self::Model(error) => matches!(error, Model::TooLong { .. } | Model::UnknownToken { .. }),
            _ => false,
        }
    }

    /// Whether a GPU had too little memory; with less work at a time the call may succeed.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Model(outcrop_models::Error::Kernel(error)) if error.is_out_of_memory())
    }
}

impl From<outcrop_kernels::Error> for Error {
    fn from(error: outcrop_kernels::Error) -> Self {
        Self::Model(error.into())
    }
}
