//! The dialects: which fields each takes, and the shape of its answers and errors.

mod openai;
pub(crate) mod rerank;
pub(crate) mod tei;
mod vllm;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Server;
use super::fields::Fields;
use super::metrics;
use super::models::Model;
use super::problem::Problem;

/// A request that is being answered.
pub(crate) struct Call {
    pub(crate) server: Arc<Server>,
    pub(crate) id: String,
    pub(crate) started: Instant,
}

impl Call {
    /// The model that the field `model` names.
    fn model(&self, fields: &mut Fields) -> Result<&Model, Problem> {
        let name: Option<String> = fields.optional("model")?;
        self.server.models()?.find(name.as_deref())
    }
}

/// What can be asked with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// TEI's if it has `texts`, vLLM's and infinity's if it has `documents`.
    Rerank,
    TeiPredict,
    TeiEmbed,
    TeiTokenize,
    TeiDecode,
    /// Jina's and Cohere's first, which share a path.
    RerankV1,
    /// Cohere's second.
    RerankV2,
    VllmScore,
    OpenAiEmbeddings,
}

impl Endpoint {
    /// Every path with a body.
    pub(crate) const PATHS: [(&'static str, Endpoint); 12] = [
        ("/rerank", Endpoint::Rerank),
        ("/predict", Endpoint::TeiPredict),
        ("/embed", Endpoint::TeiEmbed),
        ("/tokenize", Endpoint::TeiTokenize),
        ("/decode", Endpoint::TeiDecode),
        ("/v1/rerank", Endpoint::RerankV1),
        ("/v2/rerank", Endpoint::RerankV2),
        ("/score", Endpoint::VllmScore),
        ("/v1/score", Endpoint::VllmScore),
        ("/v1/embeddings", Endpoint::OpenAiEmbeddings),
        ("/embeddings", Endpoint::OpenAiEmbeddings),
        ("/v1/predict", Endpoint::TeiPredict),
    ];

    /// Answers; an error in the shape that the dialect's clients expect.
    pub(crate) async fn answer(self, call: Call, body: Result<Fields, Problem>) -> Response {
        let answered = match body {
            Ok(mut fields) => {
                let answered = self.handle(&call, &mut fields).await;
                answered.map(|mut response| {
                    response.headers_mut().extend(not_understood(&fields));
                    response
                })
            }
            Err(problem) => Err(problem),
        };
        answered.unwrap_or_else(|problem| self.error(&problem, &call.id))
    }

    async fn handle(self, call: &Call, fields: &mut Fields) -> Result<Response, Problem> {
        match self {
            Endpoint::Rerank if fields.has("documents") => rerank::v1(call, fields).await,
            Endpoint::Rerank => tei::rerank(call, fields).await,
            Endpoint::TeiPredict => tei::predict(call, fields).await,
            Endpoint::TeiEmbed => tei::embed(call, fields).await,
            Endpoint::TeiTokenize => tei::tokenize(call, fields),
            Endpoint::TeiDecode => tei::decode(call, fields),
            Endpoint::RerankV1 => rerank::v1(call, fields).await,
            Endpoint::RerankV2 => rerank::v2(call, fields).await,
            Endpoint::VllmScore => vllm::score(call, fields).await,
            Endpoint::OpenAiEmbeddings => openai::embeddings(call, fields).await,
        }
    }

    /// The answer to a request that has a problem.
    pub(crate) fn error(self, problem: &Problem, id: &str) -> Response {
        metrics::failed(problem.kind);
        let body = match self {
            Endpoint::Rerank
            | Endpoint::TeiPredict
            | Endpoint::TeiEmbed
            | Endpoint::TeiTokenize
            | Endpoint::TeiDecode => tei::error(problem),
            Endpoint::RerankV1 | Endpoint::RerankV2 => rerank::error(problem, id),
            Endpoint::VllmScore | Endpoint::OpenAiEmbeddings => openai::error(problem),
        };
        respond(problem, body)
    }
}

/// The response to a problem outside any dialect.
pub(crate) fn plain_error(problem: &Problem) -> Response {
    respond(problem, tei::error(problem))
}

fn respond(problem: &Problem, body: Value) -> Response {
    let mut response = (problem.kind.status(), Json(body)).into_response();
    if let Some(after) = problem.retry_after {
        // Whole seconds, and no invitation to come back at once.
        let seconds = (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A header that names the fields of a request that nothing was done with: a misspelt option shows.
fn not_understood(fields: &Fields) -> HeaderMap {
    let left: Vec<String> = fields.left().into_iter().take(20).collect();
    let value = HeaderValue::from_str(&json!(left).to_string()).ok().filter(|_| !left.is_empty());
    value
        .into_iter()
        .map(|value| (header::HeaderName::from_static("x-outcrop-ignored-fields"), value))
        .collect()
}

/// What a score has besides in all dialects, where there is something to say: the scores of several layers, what was cut and what is left.
fn details(score: &outcrop::Score, result: &mut serde_json::Map<String, Value>) {
    if !score.layer_scores.is_empty() {
        let layers = score.layer_scores.iter().map(|layer| (layer.layer.to_string(), json!(layer.score)));
        result.insert("scores".to_owned(), Value::Object(layers.collect()));
    }
    if score.truncated {
        result.insert("truncated".to_owned(), Value::Bool(true));
    }
    if let Some(tokens_after) = score.tokens_after {
        result.insert("tokens_after".to_owned(), json!(tokens_after));
    }
}
