//! `/v1/rerank` and `/v2/rerank`: what Cohere, Jina, vLLM and infinity ask for, in one request; what they answer, in one answer.

use std::collections::HashMap;

use axum::Json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use outcrop::{Ranked, Ranking};
use serde_json::{Map, Value, json};

use super::super::call::{self, Extras, Scored};
use super::super::fields::Fields;
use super::super::problem::Problem;
use super::{Call, details, openai, tei};

/// Errors of all that share the path: Cohere reads `message`, Jina `detail`, vLLM and infinity `error`.
pub(super) fn error(problem: &Problem, id: &str) -> Value {
    let mut body = openai::error(problem);
    body["id"] = json!(id);
    body["message"] = json!(problem.message);
    body["detail"] = json!(format!("[RID: {id}] {}", problem.message));
    body
}

pub(super) async fn v1(call: &Call, fields: &mut Fields) -> Result<Response, Problem> {
    answer(call, fields, "1").await
}

pub(super) async fn v2(call: &Call, fields: &mut Fields) -> Result<Response, Problem> {
    answer(call, fields, "2").await
}

async fn answer(call: &Call, fields: &mut Fields, version: &str) -> Result<Response, Problem> {
    let model = call.model(fields)?;
    let query: String = text_of(fields.required("query")?, &[]).map_err(|e| Problem::field("query", e))?;
    let documents: Vec<Value> = fields.one_of(&["documents", "texts", "passages"])?;
    let rank_fields: Vec<String> = fields.optional("rank_fields")?.unwrap_or_default();
    // 0 is vLLM's word for all.
    let top_n = fields.optional::<usize>("top_n")?.filter(|top_n| *top_n > 0).unwrap_or(usize::MAX);
    let return_documents = fields.optional("return_documents")?.unwrap_or(false);
    let max_tokens: Option<usize> = fields.optional("max_tokens_per_doc")?;
    let raw_scores = fields.optional::<bool>("use_activation")?.map(|activation| !activation);
    let max_chunks: Option<usize> = fields.optional("max_chunks_per_doc")?;
    fields.accept(&["priority", "user", "request_id"]);
    let extras = Extras::take(fields)?.or_raw_scores(raw_scores);
    let mut warnings = Vec::new();
    if let Some(tokens) = max_tokens {
        warnings.push(format!(
            "max_tokens_per_doc {tokens} has no effect: passages are cut to max_length with their query"
        ));
    }
    if max_chunks.is_some() {
        warnings.push("max_chunks_per_doc has no effect: passages are not cut into chunks".to_owned());
    }
    let texts = documents
        .iter()
        .enumerate()
        .map(|(i, document)| {
            let text = text_of(document.clone(), &rank_fields);
            text.map_err(|error| Problem::field(&format!("documents[{i}]"), error))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let characters = query.chars().count() + texts.iter().map(|text| text.chars().count()).sum::<usize>();
    let num_texts = texts.len();
    let scored = call::rerank(&call.server, model, call.started, (query, texts), &extras).await?;
    let Scored { scores, times, tokens, warnings: noticed } = scored;
    warnings.extend(noticed);
    let ranking = Ranking::from(scores);
    if ranking.results.is_empty() {
        return Err(tei::none_scored(ranking));
    }
    let mut headers = call::headers(model, &times, call.started, characters, tokens);
    headers.extend(failed_header(&ranking.failed));
    let failed = ranking
        .failed
        .iter()
        .map(|(index, error)| json!({"index": index, "error": crate::report::chain(error)}));
    let failed: Vec<Value> = failed.collect();
    let result = |ranked: Ranked| {
        let mut result = Map::new();
        result.insert("index".to_owned(), json!(ranked.index));
        result.insert("relevance_score".to_owned(), json!(ranked.score));
        if return_documents {
            let document = match &documents[ranked.index] {
                Value::String(text) => json!({"text": text}),
                document => document.clone(),
            };
            result.insert("document".to_owned(), document);
        }
        details(&ranked.into(), &mut result);
        Value::Object(result)
    };
    let mut body = json!({
        "id": call.id,
        "object": "list",
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": ranking.results.into_iter().take(top_n).map(result).collect::<Vec<_>>(),
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"search_units": num_texts.div_ceil(100)},
            "tokens": {"input_tokens": tokens, "output_tokens": 0},
        },
    });
    if !warnings.is_empty() {
        body["meta"]["warnings"] = json!(warnings);
    }
    if !failed.is_empty() {
        body["failed"] = Value::Array(failed);
    }
    Ok((headers, Json(body)).into_response())
}

/// A document's text: itself, its field `text`, or the fields to rank by, one per line.
fn text_of(document: Value, rank_fields: &[String]) -> Result<String, String> {
    let mut fields = match document {
        Value::String(text) => return Ok(text),
        Value::Object(fields) => fields,
        _ => return Err("neither a text nor an object with a text".to_owned()),
    };
    let mut take = |name: &str| match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("{name}: no text")),
        None => Err(format!("no field {name}")),
    };
    if rank_fields.is_empty() {
        return take("text");
    }
    Ok(rank_fields.iter().map(|name| take(name)).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// A header with the places of texts that could not be scored, for answers that have no room to say so.
pub(crate) fn failed_header(failed: &[(usize, outcrop::Error)]) -> HashMap<HeaderName, HeaderValue> {
    let places: Vec<usize> = failed.iter().map(|(place, _)| *place).collect();
    let value = HeaderValue::from_str(&json!(places).to_string()).ok().filter(|_| !places.is_empty());
    value.into_iter().map(|value| (HeaderName::from_static("x-outcrop-failed"), value)).collect()
}
