//! vLLM's `/score`: queries against documents, one against many or pair by pair; answered in the order of the request.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::response::{IntoResponse, Response};

use super::super::call::{self, Extras, Scored, all};
use super::super::fields::{Fields, OneOrMany};
use super::super::problem::Problem;
use super::Call;
use crate::api::vllm::{ScoreData, ScoreResponse, ScoreUsage};
use crate::score::Layers;

pub(super) async fn score(call: &Call, fields: &mut Fields) -> Result<Response, Problem> {
    let model = call.model(fields)?;
    let queries: OneOrMany<String> = fields.one_of(&["queries", "text_1", "data_1"])?;
    let documents: OneOrMany<String> = fields.one_of(&["documents", "items", "text_2", "data_2"])?;
    let raw_scores = fields.optional::<bool>("use_activation")?.map(|activation| !activation);
    // -1 is vLLM's word for the model's own limit.
    let truncate: Option<i64> = fields.optional("truncate_prompt_tokens")?;
    let max_length = truncate.and_then(|tokens| usize::try_from(tokens).ok());
    if let Some(side) = fields.optional::<String>("truncation_side")?.filter(|side| side != "right") {
        return Err(Problem::field("truncation_side", format!("{side:?}; texts are cut on the right only")));
    }
    fields.accept(&[
        "priority",
        "user",
        "request_id",
        "cache_salt",
        "mm_processor_kwargs",
        "encoding_format",
    ]);
    let extras = Extras::take(fields)?.or_raw_scores(raw_scores).or_max_length(max_length);
    let pairs = pairs(queries, documents.into_vec())?;
    let characters = pairs.iter().map(|(a, b)| a.chars().count() + b.chars().count()).sum();
    let Scored { scores, times, tokens, .. } =
        call::score(&call.server, model, call.started, pairs, &extras).await?;
    let data = |(index, score): (usize, outcrop::Score)| ScoreData {
        index,
        object: "score",
        score: score.score,
        truncated: score.truncated,
        layers: Layers::each(&score.layer_scores, score.tokens_after),
    };
    let body = ScoreResponse {
        id: format!("score-{}", call.id),
        object: "list",
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: &model.name,
        data: all(scores)?.into_iter().enumerate().map(data).collect(),
        usage: ScoreUsage {
            prompt_tokens: tokens,
            total_tokens: tokens,
            completion_tokens: 0,
            prompt_tokens_details: None,
        },
    };
    Ok((call::headers(model, &times, call.started, characters, tokens), Json(body)).into_response())
}

/// One query with each document, or as many queries as documents, each with its own.
fn pairs(queries: OneOrMany<String>, documents: Vec<String>) -> Result<Vec<(String, String)>, Problem> {
    let queries = queries.into_vec();
    match queries.len() {
        1 => Ok(documents.into_iter().map(|document| (queries[0].clone(), document)).collect()),
        count if count == documents.len() => Ok(queries.into_iter().zip(documents).collect()),
        count => Err(Problem::field(
            "queries",
            format!(
                "{count} queries and {} documents; give one query, or as many as documents",
                documents.len()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn one_query_with_many_or_each_with_its_own() {
        let one = pairs(OneOrMany::One("q".to_owned()), texts(&["a", "b"])).unwrap();
        assert_eq!(one, [("q".to_owned(), "a".to_owned()), ("q".to_owned(), "b".to_owned())]);
        let two = pairs(OneOrMany::Many(texts(&["q", "r"])), texts(&["a", "b"])).unwrap();
        assert_eq!(two, [("q".to_owned(), "a".to_owned()), ("r".to_owned(), "b".to_owned())]);
        let problem = pairs(OneOrMany::Many(texts(&["q", "r"])), texts(&["a", "b", "c"])).unwrap_err();
        assert!(problem.message.contains("2 queries and 3 documents"), "{problem:?}");
    }
}
