//! OpenAI's `/v1/embeddings`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::call::{self, Extras};
use super::super::fields::Fields;
use super::super::problem::Problem;
use super::Call;
use super::tei::{EmbedInputs, no_dimensions};

pub(super) fn error(problem: &Problem) -> Value {
    let error = json!({
        "message": problem.message,
        "type": problem.kind.openai_name(),
        "param": problem.field,
        "code": problem.kind.status().as_u16(),
    });
    json!({"error": error})
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Item>,
    model: &'a str,
    usage: Value,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

/// A vector; floats are written as short as they can be read back.
#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

pub(super) async fn embeddings(call: &Call, fields: &mut Fields) -> Result<Response, Problem> {
    let model = call.model(fields)?;
    let texts = fields.required::<EmbedInputs>("input")?.texts("input")?;
    let format: Option<String> = fields.optional("encoding_format")?;
    let as_base64 = match format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Problem::field("encoding_format", format!("{other:?}; it is float or base64")));
        }
    };
    no_dimensions(fields, model.engine().hidden_size())?;
    fields.accept(&["user"]);
    let extras = Extras::take(fields)?;
    let characters = texts.iter().map(|text| text.chars().count()).sum();
    let (embeddings, times) = call::embed(&call.server, model, call.started, texts, &extras).await?;
    let tokens: usize = embeddings.iter().map(|embedding| embedding.tokens).sum();
    let vector = |vector: Vec<f32>| match as_base64 {
        // Little-endian floats, as the Python client reads them.
        true => Vector::Base64(
            BASE64_STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()),
        ),
        false => Vector::Floats(vector),
    };
    let vectors = embeddings.into_iter().enumerate();
    let data = vectors.map(|(index, embedding)| Item {
        object: "embedding",
        index,
        embedding: vector(embedding.vector),
    });
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let body = List { object: "list", data: data.collect(), model: &model.name, usage };
    Ok((call::headers(model, &times, call.started, characters, tokens), Json(body)).into_response())
}
