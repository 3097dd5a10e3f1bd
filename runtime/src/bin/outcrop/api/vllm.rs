//! vLLM's score and rerank requests and responses, and the lines of its run-batch files.
//!
//! Source: `vllm/entrypoints/pooling/scoring/protocol.py` and `vllm/entrypoints/openai/run_batch.py`. Requests take more here: the
//! options of this program, by their names on the command line.

use std::fmt;
use std::ops::Not;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::score::Layers;

/// The body of a request to `/score` or `/rerank`: the union of their fields, any other is refused by its name.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) model: Option<String>,
    /// Of `/score`: one query for all documents, or one for each.
    #[serde(alias = "text_1", alias = "data_1")]
    pub(crate) queries: Option<Texts>,
    #[serde(alias = "text_2", alias = "data_2", alias = "items")]
    pub(crate) documents: Option<Texts>,
    /// Of `/rerank`.
    pub(crate) query: Option<String>,
    /// Of `/rerank`: the number of results, 0 for all.
    pub(crate) top_n: Option<usize>,

    #[serde(alias = "truncate_prompt_tokens")]
    pub(crate) max_length: Option<i64>,
    /// The side that is cut off: "right" is the only one that we cut.
    pub(crate) truncation_side: Option<String>,
    /// Whether scores are mapped into 0..1; yes if not given.
    #[serde(alias = "use_activation")]
    pub(crate) normalize: Option<bool>,

    pub(crate) query_max_length: Option<usize>,
    pub(crate) query_instruction: Option<String>,
    pub(crate) passage_instruction: Option<String>,
    pub(crate) prompt: Option<String>,
    pub(crate) cutoff_layers: Option<Vec<usize>>,
    pub(crate) compress_ratio: Option<usize>,
    pub(crate) compress_layers: Option<Vec<usize>>,

    // What steers a server and changes no score.
    pub(crate) user: Option<IgnoredAny>,
    pub(crate) priority: Option<IgnoredAny>,
    pub(crate) request_id: Option<IgnoredAny>,
    pub(crate) cache_salt: Option<IgnoredAny>,
}

/// A text, or a list of texts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Texts(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Texts, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// The answer to `/score`, in the order of the documents.
#[derive(Debug, Serialize)]
pub(crate) struct ScoreResponse<'a> {
    pub(crate) id: String,
    /// Always "list".
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) data: Vec<ScoreData>,
    pub(crate) usage: ScoreUsage,
}

/// The score of one document.
#[derive(Debug, Serialize)]
pub(crate) struct ScoreData {
    pub(crate) index: usize,
    /// Always "score".
    pub(crate) object: &'static str,
    pub(crate) score: f64,
    /// Whether the pair was too long, and scored without its end.
    #[serde(skip_serializing_if = "Not::not")]
    pub(crate) truncated: bool,
    #[serde(flatten)]
    pub(crate) layers: Layers,
}

/// Tokens of all pairs of a score request.
#[derive(Debug, Serialize)]
pub(crate) struct ScoreUsage {
    pub(crate) prompt_tokens: usize,
    pub(crate) total_tokens: usize,
    /// Always 0.
    pub(crate) completion_tokens: usize,
    /// Always null.
    pub(crate) prompt_tokens_details: Option<()>,
}

/// The answer to `/rerank`, best first.
#[derive(Debug, Serialize)]
pub(crate) struct RerankResponse<'a> {
    pub(crate) id: String,
    pub(crate) model: &'a str,
    pub(crate) usage: RerankUsage,
    pub(crate) results: Vec<RerankResult<'a>>,
}

/// Tokens of all pairs of a rerank request.
#[derive(Debug, Serialize)]
pub(crate) struct RerankUsage {
    pub(crate) prompt_tokens: usize,
    pub(crate) total_tokens: usize,
}

/// A document in its place.
#[derive(Debug, Serialize)]
pub(crate) struct RerankResult<'a> {
    pub(crate) index: usize,
    pub(crate) document: RerankDocument<'a>,
    pub(crate) relevance_score: f64,
    /// Whether the pair was too long, and scored without its end.
    #[serde(skip_serializing_if = "Not::not")]
    pub(crate) truncated: bool,
    #[serde(flatten)]
    pub(crate) layers: Layers,
}

/// A document as it was given.
#[derive(Debug, Serialize)]
pub(crate) struct RerankDocument<'a> {
    pub(crate) text: &'a str,
    /// Always null.
    pub(crate) multi_modal: Option<()>,
}

/// The answer to a request that was refused or failed.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorResponse<'a> {
    pub(crate) error: ErrorInfo<'a>,
}

/// What was wrong.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorInfo<'a> {
    pub(crate) message: &'a str,
    pub(crate) r#type: &'static str,
    /// The field that is to blame.
    pub(crate) param: Option<&'a str>,
    /// The HTTP status.
    pub(crate) code: u16,
}

/// A line of run-batch's output.
#[derive(Debug, Serialize)]
pub(crate) struct BatchLine<'a, T> {
    pub(crate) id: String,
    pub(crate) custom_id: &'a str,
    pub(crate) response: BatchResponse<T>,
    pub(crate) error: Option<ErrorResponse<'a>>,
}

/// What a server would have answered to a line of run-batch's input.
#[derive(Debug, Serialize)]
pub(crate) struct BatchResponse<T> {
    pub(crate) status_code: u16,
    pub(crate) request_id: String,
    /// Null if the request failed.
    pub(crate) body: Option<T>,
}
