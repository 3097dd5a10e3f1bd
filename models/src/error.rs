//! Why a model could not be made or run.

use std::path::PathBuf;

use outcrop_kernels::ElementType;

/// An error of the loader or of a kernel, or a sequence that does not fit the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, tensor or configuration field.
    #[error(transparent)]
    Loader(#[from] outcrop_loader::Error),
    /// A kernel refused its operands.
    #[error(transparent)]
    Kernel(#[from] outcrop_kernels::Error),
    /// The tokenizer gave an id that the word embedding table has no row for: the two files are not of one model.
    #[error(
        "token id {id} has no row in the word embeddings, which have {vocab_size}; tokenizer.json is not this model's"
    )]
    UnknownToken {
        /// The id.
        id: u32,
        /// Rows of the table.
        vocab_size: usize,
    },
    /// A sequence is longer than the model's table of positions, or than the limit of the decoder families.
    #[error(
        "{tokens} tokens do not fit the model's {max_tokens} positions; lower max_length to {max_tokens} or shorten the text"
    )]
    TooLong {
        /// Tokens of the sequence, special ones included.
        tokens: usize,
        /// Tokens the model can place.
        max_tokens: usize,
    },
    /// An adapter changes the word embeddings by low-rank matrices.
    #[error("the adapter in {} changes the word embeddings by low-rank matrices, which is not supported", dir.display())]
    LowRankEmbedding {
        /// The adapter.
        dir: PathBuf,
    },
    /// A norm was to be folded into a matrix that is stored in 16 bits.
    #[error(
        "tensor {tensor} is stored in 16 bits; fold_norms would round it once more and move scores: it is for weights stored in f32, \
         leave it out for these"
    )]
    FoldedSixteenBits {
        /// The tensor.
        tensor: String,
    },
    /// A weight is too large for the type asked for.
    #[error("tensor {tensor} holds values beyond the range of {element_type:?}; use bf16 or f32")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// The type asked for.
        element_type: ElementType,
    },
}
