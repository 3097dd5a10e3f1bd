//! text-embeddings-inference: `/rerank`, `/predict`, `/embed`, `/tokenize`, `/decode`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use outcrop::Ranking;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::call::{self, Extras, Scored, all};
use super::super::fields::{Fields, OneOrMany};
use super::super::problem::{Kind, Problem};
use super::{Call, details};

pub(super) fn error(problem: &Problem) -> Value {
    let mut body = json!({"error": problem.message, "error_type": problem.kind.tei_name()});
    if let Some(field) = &problem.field {
        body["field"] = json!(field);
    }
    body
}

pub(super) async fn rerank(call: &Call, fields: &mut Fields) -> Result<Response, Problem> {
    let model = call.model(fields)?;
    let query: String = fields.required("query")?;
    let texts: Vec<String> = fields.required("texts")?;
    let return_text = fields.optional("return_text")?.unwrap_or(false);
    refuse_left(fields)?;
    let extras = Extras::take(fields)?;
    let kept = if return_text { texts.clone() } else { Vec::new() };
    let characters = query.chars().count() + texts.iter().map(|text| text.chars().count()).sum::<usize>();
    let Scored { scores, times, tokens, .. } =
        call::rerank(&call.server, model, call.started, (query, texts), &extras).await?;
    let ranking = Ranking::from(scores);
    if ranking.results.is_empty() {
        return Err(none_scored(ranking));
    }
    let result = |ranked: outcrop::Ranked| {
        let mut result = Map::new();
        result.insert("index".to_owned(), json!(ranked.index));
        if let Some(text) = kept.get(ranked.index) {
            result.insert("text".to_owned(), json!(text));
        }
        result.insert("score".to_owned(), json!(ranked.score));
        details(&ranked.into(), &mut result);
        Value::Object(result)
    };
    let mut headers = call::headers(model, &times, call.started, characters, tokens);
    headers.extend(super::rerank::failed_header(&ranking.failed));
    Ok((headers, Json(Value::Array(ranking.results.into_iter().map(result).collect()))).into_response())
}

/// The problem of a request none of whose texts could be scored: the first one's.
pub(crate) fn none_scored(ranking: Ranking) -> Problem {
    let first = ranking.failed.into_iter().next();
    first.map_or_else(
        || Problem::new(Kind::Backend, "no text could be scored"),
        |(i, error)| {
            let problem = Problem::from(error);
            Problem { message: format!("text {i}: {}", problem.message), ..problem }
        },
    )
}

/// Texts are cut at their ends, as in the reference.
fn refuse_left(fields: &mut Fields) -> Result<(), Problem> {
    let direction: Option<String> = fields.optional("truncation_direction")?;
    match direction.as_deref() {
        None | Some("right" | "Right") => Ok(()),
        Some(other) => {
            Err(Problem::field("truncation_direction", format!("{other:?}; texts are cut on the right only")))
        }
    }
}

/// One text, one pair, or several of either.
#[derive(Deserialize)]
#[serde(untagged)]
enum PredictInputs {
    One(String),
    Pair(Vec<String>),
    Batch(Vec<Vec<String>>),
}

pub(super) async fn predict(call: &Call, fields: &mut Fields) -> Result<Response, Problem> {
    let model = call.model(fields)?;
    let inputs: PredictInputs = fields.required("inputs")?;
    refuse_left(fields)?;
    let extras = Extras::take(fields)?;
    let is_batch = matches!(inputs, PredictInputs::Batch(_));
    let inputs = match inputs {
        PredictInputs::One(text) => vec![vec![text]],
        PredictInputs::Pair(texts) => vec![texts],
        PredictInputs::Batch(batch) => batch,
    };
    let pairs: Vec<(String, String)> = inputs.into_iter().map(pair).collect::<Result<_, _>>()?;
    let characters = pairs.iter().map(|(a, b)| a.chars().count() + b.chars().count()).sum();
    let Scored { scores, times, tokens, .. } =
        call::score(&call.server, model, call.started, pairs, &extras).await?;
    let result = |score: outcrop::Score| {
        let mut result = Map::from_iter([
            ("score".to_owned(), json!(score.score)),
            ("label".to_owned(), json!("LABEL_0")),
        ]);
        details(&score, &mut result);
        json!([result])
    };
    let mut results: Vec<Value> = all(scores)?.into_iter().map(result).collect();
    let body = if is_batch { Value::Array(results) } else { results.swap_remove(0) };
    Ok((call::headers(model, &times, call.started, characters, tokens), Json(body)).into_response())
}

/// A reranker scores pairs, and nothing else.
pub(crate) fn pair(texts: Vec<String>) -> Result<(String, String), Problem> {
    let count = texts.len();
    <[String; 2]>::try_from(texts).map(|[query, passage]| (query, passage)).map_err(|_| {
        Problem::field("inputs", format!("{count} texts; a reranker scores pairs: [query, passage]"))
    })
}

/// A text or its ids, one or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum EmbedInputs {
    Texts(OneOrMany<String>),
    Ids(#[expect(dead_code, reason = "refused")] OneOrMany<OneOrMany<u32>>),
}

impl EmbedInputs {
    pub(super) fn texts(self, name: &str) -> Result<Vec<String>, Problem> {
        match self {
            Self::Texts(texts) => Ok(texts.into_vec()),
            Self::Ids(_) => Err(Problem::field(name, "token ids; this server takes texts")),
        }
    }
}

pub(super) async fn embed(call: &Call, fields: &mut Fields) -> Result<Response, Problem> {
    let model = call.model(fields)?;
    let texts = fields.required::<EmbedInputs>("inputs")?.texts("inputs")?;
    refuse_left(fields)?;
    no_dimensions(fields, model.engine().hidden_size())?;
    if fields.optional::<String>("prompt_name")?.is_some() {
        return Err(Problem::field(
            "prompt_name",
            "no prompts have names here; put the instruction into query_instruction",
        ));
    }
    let extras = Extras::take(fields)?;
    let characters = texts.iter().map(|text| text.chars().count()).sum();
    let (embeddings, times) = call::embed(&call.server, model, call.started, texts, &extras).await?;
    let tokens = embeddings.iter().map(|embedding| embedding.tokens).sum();
    let vectors: Vec<Vec<f32>> = embeddings.into_iter().map(|embedding| embedding.vector).collect();
    Ok((call::headers(model, &times, call.started, characters, tokens), Json(vectors)).into_response())
}

/// Vectors are not cut short: none of the models was trained for it.
pub(super) fn no_dimensions(fields: &mut Fields, hidden_size: usize) -> Result<(), Problem> {
    match fields.optional::<usize>("dimensions")? {
        Some(dimensions) if dimensions != hidden_size => Err(Problem::field(
            "dimensions",
            format!("{dimensions}; vectors of this model have {hidden_size}"),
        )),
        _ => Ok(()),
    }
}

pub(super) fn tokenize(call: &Call, fields: &mut Fields) -> Result<Response, Problem> {
    let model = call.model(fields)?;
    let texts = fields.required::<OneOrMany<String>>("inputs")?.into_vec();
    let special = fields.optional("add_special_tokens")?.unwrap_or(true);
    fields.accept(&["prompt_name"]);
    let tokenizer = model.engine().tokenizer();
    let tokens = |text: &String| {
        let tokens = tokenizer.tokens(text, special).map_err(outcrop::Error::from)?;
        let token = |token: outcrop::loader::Token| {
            let (start, stop) =
                token.bytes.map_or((None, None), |bytes| (Some(bytes.start), Some(bytes.end)));
            json!({"id": token.id, "text": token.text, "special": token.is_special, "start": start, "stop": stop})
        };
        Ok(Value::Array(tokens.into_iter().map(token).collect()))
    };
    let tokens: Vec<Value> = texts.iter().map(tokens).collect::<Result<_, Problem>>()?;
    Ok(Json(tokens).into_response())
}

pub(super) fn decode(call: &Call, fields: &mut Fields) -> Result<Response, Problem> {
    let model = call.model(fields)?;
    let ids: Vec<OneOrMany<u32>> = fields.required("ids")?;
    let skip_special = fields.optional("skip_special_tokens")?.unwrap_or(true);
    // A flat list is one text.
    let lists = if ids.iter().all(|ids| matches!(ids, OneOrMany::One(_))) {
        vec![ids.into_iter().flat_map(OneOrMany::into_vec).collect()]
    } else {
        ids.into_iter().map(OneOrMany::into_vec).collect::<Vec<_>>()
    };
    let tokenizer = model.engine().tokenizer();
    let decode =
        |ids: &Vec<u32>| tokenizer.decode(ids, skip_special).map_err(|e| outcrop::Error::from(e).into());
    let texts: Vec<String> = lists.iter().map(decode).collect::<Result<_, Problem>>()?;
    Ok(Json(texts).into_response())
}
