//! Lines for vLLM's run-batch: what they ask for, and their answers.
//!
//! The ids of an answer are made of the line's `custom_id`, and `created` is 0: vLLM's are random and the time of day, and two runs over
//! one file would differ.

use outcrop::{Compression, Engine, Score, ScoreOptions};
use serde::Serialize;

use super::Layers;
use crate::api::vllm::{
    BatchLine, BatchResponse, ErrorInfo, ErrorResponse, Request as Body, RerankDocument, RerankResponse,
    RerankResult, RerankUsage, ScoreData, ScoreResponse, ScoreUsage,
};
use crate::report;

/// A line that has been read.
#[derive(Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) custom_id: String,
    pub(crate) work: Result<Work, Refusal>,
}

/// What a request asks for.
#[derive(Debug, PartialEq)]
pub(crate) struct Work {
    endpoint: Endpoint,
    /// The name by which the request calls the model.
    pub(crate) model: Option<String>,
    /// One for all documents, or one for each.
    queries: Vec<String>,
    documents: Vec<String>,
    pub(crate) overrides: Overrides,
}

#[derive(Debug, PartialEq)]
enum Endpoint {
    Score,
    Rerank { top_n: usize },
}

/// What a request says in place of the command line's options.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Overrides {
    normalize: bool,
    max_length: Option<usize>,
    query_max_length: Option<usize>,
    query_instruction: Option<String>,
    passage_instruction: Option<String>,
    prompt: Option<String>,
    cutoff_layers: Option<Vec<usize>>,
    compress_ratio: Option<usize>,
    compress_layers: Option<Vec<usize>>,
}

/// Why a request has no scores.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    /// The HTTP status.
    code: u16,
    /// The field that is to blame.
    param: Option<String>,
    message: String,
}

impl Refusal {
    fn of(param: &str, message: impl Into<String>) -> Refusal {
        Refusal { code: 400, param: Some(param.to_owned()), message: message.into() }
    }
}

impl Request {
    /// Reads the fields of a line; `body` is JSON.
    pub(crate) fn read(custom_id: String, method: Option<&str>, url: &str, body: &str) -> Request {
        Request { custom_id, work: Work::read(method, url, body) }
    }
}

impl Work {
    fn read(method: Option<&str>, url: &str, body: &str) -> Result<Work, Refusal> {
        if let Some(method) = method.filter(|method| *method != "POST") {
            return Err(Refusal::of("method", format!("method {method:?}; the one there is is \"POST\"")));
        }
        let is_score = match url {
            "/score" | "/v1/score" => true,
            "/rerank" | "/v1/rerank" | "/v2/rerank" => false,
            _ => {
                let known = "/score, /v1/score, /rerank, /v1/rerank and /v2/rerank";
                return Err(Refusal::of("url", format!("url {url:?} is not supported; {known} are")));
            }
        };
        // A list would be taken for the fields in their order.
        if !body.starts_with('{') {
            return Err(Refusal::of("body", "body must be an object"));
        }
        let mut json = serde_json::Deserializer::from_str(body);
        let body: Body = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let param = error.path().to_string();
            let error = error.into_inner().to_string();
            let reason = error.split(" at line ").next().unwrap_or(&error);
            Refusal::of(&param, format!("{param}: {reason}"))
        })?;
        let misplaced = match is_score {
            true => [("query", body.query.is_some()), ("top_n", body.top_n.is_some())],
            false => [("queries", body.queries.is_some()), ("", false)],
        };
        if let Some((field, _)) = misplaced.into_iter().find(|(_, given)| *given) {
            return Err(Refusal::of(field, format!("{field} is no field of {url}")));
        }
        let missing = |field| move || Refusal::of(field, format!("{field} is missing"));
        let queries = match is_score {
            true => body.queries.as_ref().map(|queries| queries.0.clone()).ok_or_else(missing("queries"))?,
            false => vec![body.query.clone().ok_or_else(missing("query"))?],
        };
        let overrides = Overrides::read(&body)?;
        let documents = body.documents.ok_or_else(missing("documents"))?.0;
        if documents.is_empty() {
            return Err(Refusal::of("documents", "documents is an empty list"));
        }
        if queries.len() != 1 && queries.len() != documents.len() {
            let (queries, documents) = (queries.len(), documents.len());
            let message =
                format!("{queries} queries and {documents} documents; give one query, or one for each");
            return Err(Refusal::of("queries", message));
        }
        let endpoint =
            if is_score { Endpoint::Score } else { Endpoint::Rerank { top_n: body.top_n.unwrap_or(0) } };
        Ok(Work { endpoint, model: body.model, queries, documents, overrides })
    }

    /// Query and document of every score that is needed.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let query = |i: usize| if self.queries.len() == 1 { &self.queries[0] } else { &self.queries[i] };
        self.documents.iter().enumerate().map(move |(i, document)| (query(i).as_str(), document.as_str()))
    }
}

impl Overrides {
    fn read(body: &Body) -> Result<Overrides, Refusal> {
        if let Some(side) = body.truncation_side.as_deref().filter(|side| *side != "right") {
            let message =
                format!("truncation_side {side:?}; only the end of a document is cut off, \"right\"");
            return Err(Refusal::of("truncation_side", message));
        }
        let max_length = match body.max_length.map(usize::try_from) {
            None => None,
            Some(Ok(tokens)) => Some(tokens),
            Some(Err(_)) => {
                let message = "truncate_prompt_tokens must be a number of tokens, not negative";
                return Err(Refusal::of("truncate_prompt_tokens", message));
            }
        };
        if body.compress_layers.is_some() && body.compress_ratio.is_none() {
            return Err(Refusal::of("compress_layers", "compress_layers needs compress_ratio"));
        }
        Ok(Overrides {
            // As vLLM does.
            normalize: body.normalize.unwrap_or(true),
            max_length,
            query_max_length: body.query_max_length,
            query_instruction: body.query_instruction.clone(),
            passage_instruction: body.passage_instruction.clone(),
            prompt: body.prompt.clone(),
            cutoff_layers: body.cutoff_layers.clone(),
            compress_ratio: body.compress_ratio,
            compress_layers: body.compress_layers.clone(),
        })
    }

    /// The options of a call: those of the command line, and these in their place.
    pub(crate) fn options(&self, engine: &Engine, line: &ScoreOptions) -> Result<ScoreOptions, Refusal> {
        let refused = |param: &str| {
            let param = param.to_owned();
            move |error: outcrop::Error| Refusal::of(&param, report::chain(&error))
        };
        let mut options = ScoreOptions { normalize: self.normalize, ..line.clone() };
        options.max_length = self.max_length.or(options.max_length);
        options.query_max_length = self.query_max_length.or(options.query_max_length);
        options.query_instruction = self.query_instruction.clone().or(options.query_instruction);
        options.passage_instruction = self.passage_instruction.clone().or(options.passage_instruction);
        options.prompt = self.prompt.clone().or(options.prompt);
        if let Some(layers) = &self.cutoff_layers {
            options.cutoff_layers = Some(engine.cutoffs(layers).map_err(refused("cutoff_layers"))?);
        }
        if let Some(ratio) = self.compress_ratio {
            let layers = self.compress_layers.as_deref().unwrap_or(Compression::DEFAULT_LAYERS);
            options.compression = Some(Compression::new(ratio, layers).map_err(refused("compress_ratio"))?);
        }
        // What the model has no use for, and weights that are not there.
        let checked = engine.check(&options).and_then(|_| engine.prepare(&options));
        match checked {
            Ok(()) => Ok(options),
            Err(error) => Err(Refusal { code: 400, param: None, message: report::chain(&error) }),
        }
    }
}

/// The body of an answer.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Response<'a> {
    Score(ScoreResponse<'a>),
    Rerank(RerankResponse<'a>),
}

/// The answer to a request from the scores of its pairs; `model` is the model's name if the request has none.
pub(crate) fn respond<'a>(
    custom_id: &str,
    work: &'a Work,
    scores: Vec<Result<Score, outcrop::Error>>,
    model: &'a str,
) -> Result<Response<'a>, Refusal> {
    let model = work.model.as_deref().unwrap_or(model);
    let mut answered = Vec::with_capacity(scores.len());
    for (index, score) in scores.into_iter().enumerate() {
        match score {
            Ok(score) => answered.push((index, score)),
            Err(error) => {
                let code = if matches!(error, outcrop::Error::NonFinite { .. }) { 500 } else { 400 };
                let (param, reason) = (format!("documents[{index}]"), report::chain(&error));
                let message = format!("{param}: {reason}");
                return Err(Refusal { code, param: Some(param), message });
            }
        }
    }
    let tokens = answered.iter().map(|(_, score)| score.tokens).sum();
    let layers = |score: &Score| Layers::new(&score.layer_scores, score.tokens_after);
    Ok(match work.endpoint {
        Endpoint::Score => Response::Score(ScoreResponse {
            id: format!("score-{custom_id}"),
            object: "list",
            created: 0,
            model,
            data: answered
                .iter()
                .map(|(index, score)| ScoreData {
                    index: *index,
                    object: "score",
                    score: score.score,
                    truncated: score.truncated,
                    layers: layers(score),
                })
                .collect(),
            usage: ScoreUsage {
                prompt_tokens: tokens,
                total_tokens: tokens,
                completion_tokens: 0,
                prompt_tokens_details: None,
            },
        }),
        Endpoint::Rerank { top_n } => {
            // Equal scores keep the order in which they were given.
            answered.sort_by(|(_, a), (_, b)| b.score.total_cmp(&a.score));
            let shown = if top_n == 0 { answered.len() } else { top_n.min(answered.len()) };
            let results = answered[..shown].iter().map(|(index, score)| RerankResult {
                index: *index,
                document: RerankDocument { text: &work.documents[*index], multi_modal: None },
                relevance_score: score.score,
                truncated: score.truncated,
                layers: layers(score),
            });
            Response::Rerank(RerankResponse {
                id: format!("rerank-{custom_id}"),
                model,
                usage: RerankUsage { prompt_tokens: tokens, total_tokens: tokens },
                results: results.collect(),
            })
        }
    })
}

/// The line that answers a request.
pub(crate) fn line<'a>(
    custom_id: &'a str,
    result: Result<&'a Response<'a>, &'a Refusal>,
) -> BatchLine<'a, &'a Response<'a>> {
    let (status_code, body, error) = match result {
        Ok(body) => (200, Some(body), None),
        Err(Refusal { code, param, message }) => {
            let r#type = if *code == 400 { "BadRequestError" } else { "InternalServerError" };
            let error = ErrorInfo { message, r#type, param: param.as_deref(), code: *code };
            (*code, None, Some(ErrorResponse { error }))
        }
    };
    let response = BatchResponse { status_code, request_id: format!("request-{custom_id}"), body };
    BatchLine { id: format!("batch-{custom_id}"), custom_id, response, error }
}
