//! From a message, and the metadata around it, to the calls that all dialects have in common, and back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use outcrop::queue::Times;
use outcrop::{Embedding, Ranking, Score};
use serde_json::{Map, Value};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Extensions, Request, Response, Status};

use super::super::Server;
use super::super::call::{self, Extras, Scored};
use super::super::dialects::rerank::failed_header;
use super::super::dialects::tei::{none_scored, pair};
use super::super::fields::Fields;
use super::super::models::Model;
use super::super::problem::{Kind, Problem};
use super::tei::{
    DecodeRequest, DecodeResponse, EmbedRequest, EmbedResponse, EncodeRequest, EncodeResponse, Metadata,
    PredictPairRequest, PredictResponse, Prediction, Rank, RerankRequest, RerankResponse,
    RerankStreamRequest, SimpleToken, TruncationDirection,
};
use super::{Arrived, failed};

/// The metadata entry that holds what the messages have no fields for.
const OPTIONS: &str = "outcrop-options";

/// What a call says besides its messages.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) server: Arc<Server>,
    started: Instant,
    model: Option<String>,
    extras: Extras,
}

/// A message, and the metadata before it.
pub(super) type Answer<T> = Result<(T, HeaderMap), Problem>;

/// The answer to a call with one message.
pub(super) fn respond<T>(answer: Answer<T>) -> Result<Response<T>, Status> {
    let (message, headers) = answer.map_err(failed)?;
    Ok(Response::from_parts(MetadataMap::from_headers(headers), message, Extensions::default()))
}

/// A text of a stream that has been scored, or why it has not.
pub(super) struct StreamScore {
    score: Result<Score, outcrop::Error>,
    times: Times,
    characters: usize,
}

impl Call {
    /// A call that is taken.
    pub(super) fn of<T>(server: &Arc<Server>, request: &Request<T>) -> Result<Self, Problem> {
        server.models()?;
        let started = request.extensions().get::<Arrived>().map_or_else(Instant::now, |arrived| arrived.0);
        let metadata = request.metadata();
        let mut fields = match metadata.get(OPTIONS) {
            None => Fields::from(Map::new()),
            Some(options) => {
                let fields = serde_json::from_slice::<Map<String, Value>>(options.as_bytes());
                Fields::from(
                    fields.map_err(|error| Problem::field(OPTIONS, format!("no JSON object: {error}")))?,
                )
            }
        };
        if let Some(name) = ["truncate", "normalize", "raw_scores"].into_iter().find(|name| fields.has(name))
        {
            return Err(Problem::field(OPTIONS, format!("{name} is a field of the message: set it there")));
        }
        let model = fields.optional("model")?;
        let extras = Extras::take(&mut fields)?.one_score()?;
        if let Some(name) = fields.left().first() {
            return Err(Problem::field(OPTIONS, format!("there is no option {name}")));
        }
        // One that cannot be read is none, as the protocol has it.
        let timeout = metadata.get("grpc-timeout").and_then(timeout);
        let extras = extras.until(timeout.and_then(|timeout| started.checked_add(timeout)));
        Ok(Self { server: Arc::clone(server), started, model, extras })
    }

    /// The call of another message of its stream.
    pub(super) fn begun_now(&self) -> Self {
        Self { started: Instant::now(), ..self.clone() }
    }

    pub(super) fn model(&self) -> Result<&Model, Problem> {
        self.server.loaded()?.find(self.model.as_deref())
    }

    pub(super) async fn embed(self, request: EmbedRequest) -> Answer<EmbedResponse> {
        cut_on_the_right(request.truncation_direction)?;
        if request.prompt_name.is_some() {
            let message = format!("no prompts have names here; put query_instruction into {OPTIONS}");
            return Err(Problem::field("prompt_name", message));
        }
        let characters = request.inputs.chars().count();
        let extras = self.extras.clone().or_truncate(request.truncate).or_normalize(request.normalize);
        let (embeddings, times) =
            call::embed(&self.server, self.model()?, self.started, vec![request.inputs], &extras).await?;
        let tokens = embeddings.iter().map(|embedding| embedding.tokens).sum();
        let (metadata, headers) = self.metadata(&times, characters, tokens)?;
        let embeddings = embeddings.into_iter().flat_map(|Embedding { vector, .. }| vector).collect();
        Ok((EmbedResponse { embeddings, metadata }, headers))
    }

    pub(super) async fn predict(self, request: PredictPairRequest) -> Answer<PredictResponse> {
        cut_on_the_right(request.truncation_direction)?;
        let (query, passage) = pair(request.inputs)?;
        let characters = query.chars().count() + passage.chars().count();
        let extras =
            self.extras.clone().or_truncate(request.truncate).or_raw_scores(Some(request.raw_scores));
        let Scored { scores, times, tokens, .. } =
            call::score(&self.server, self.model()?, self.started, vec![(query, passage)], &extras).await?;
        let prediction =
            |score: Score| Prediction { score: f32_of(score.score), label: "LABEL_0".to_owned() };
        let predictions = call::all(scores)?.into_iter().map(prediction).collect();
        let (metadata, headers) = self.metadata(&times, characters, tokens)?;
        Ok((PredictResponse { predictions, metadata }, headers))
    }

    pub(super) async fn rerank(self, request: RerankRequest) -> Answer<RerankResponse> {
        cut_on_the_right(request.truncation_direction)?;
        let RerankRequest { query, texts, truncate, raw_scores, return_text, .. } = request;
        let texts_kept = if return_text { texts.clone() } else { Vec::new() };
        let characters = query.chars().count() + texts.iter().map(|text| text.chars().count()).sum::<usize>();
        let extras = self.extras.clone().or_truncate(truncate).or_raw_scores(Some(raw_scores));
        let Scored { scores, times, .. } =
            call::rerank(&self.server, self.model()?, self.started, (query, texts), &extras).await?;
        self.ranked(scores, texts_kept, &times, characters)
    }

    /// Scores a text of a stream. A problem that is that text's alone is not the stream's.
    pub(super) async fn score(
        self,
        request: RerankStreamRequest,
        raw_scores: bool,
    ) -> Result<StreamScore, Problem> {
        cut_on_the_right(request.truncation_direction)?;
        let characters = request.query.chars().count() + request.text.chars().count();
        let extras = self.extras.clone().or_truncate(request.truncate).or_raw_scores(Some(raw_scores));
        let texts = (request.query, vec![request.text]);
        let mut scored = call::rerank(&self.server, self.model()?, self.started, texts, &extras).await?;
        Ok(StreamScore { score: scored.scores.swap_remove(0), times: scored.times, characters })
    }

    /// The ranking of the texts of a stream.
    pub(super) fn rank(&self, scores: Vec<StreamScore>, texts: Vec<String>) -> Answer<RerankResponse> {
        if scores.is_empty() {
            return Err(Problem::new(Kind::Empty, "no texts: send at least one message"));
        }
        let count = u32::try_from(scores.len()).unwrap_or(u32::MAX);
        let mean = |time: fn(&Times) -> Duration| {
            scores.iter().map(|one| time(&one.times)).sum::<Duration>() / count
        };
        let times = Times {
            total: self.started.elapsed(),
            tokenize: mean(|times| times.tokenize),
            queue: mean(|times| times.queue),
            run: mean(|times| times.run),
        };
        let characters = scores.iter().map(|one| one.characters).sum();
        self.ranked(scores.into_iter().map(|one| one.score).collect(), texts, &times, characters)
    }

    fn ranked(
        &self,
        scores: Vec<Result<Score, outcrop::Error>>,
        texts: Vec<String>,
        times: &Times,
        characters: usize,
    ) -> Answer<RerankResponse> {
        let tokens = scores.iter().flatten().map(|score| score.tokens).sum();
        let ranking = Ranking::from(scores);
        if ranking.results.is_empty() {
            return Err(none_scored(ranking));
        }
        let (metadata, mut headers) = self.metadata(times, characters, tokens)?;
        headers.extend(failed_header(&ranking.failed));
        let rank = |ranked: outcrop::Ranked| Rank {
            index: u32_of(ranked.index),
            text: texts.get(ranked.index).cloned(),
            score: f32_of(ranked.score),
        };
        Ok((RerankResponse { ranks: ranking.results.into_iter().map(rank).collect(), metadata }, headers))
    }

    pub(super) fn tokenize(&self, request: &EncodeRequest) -> Result<EncodeResponse, Problem> {
        let tokenizer = self.model()?.engine().tokenizer();
        let tokens = tokenizer.tokens(&request.inputs, request.add_special_tokens);
        let token = |token: outcrop::loader::Token| SimpleToken {
            id: token.id,
            text: token.text,
            special: token.is_special,
            start: token.bytes.as_ref().map(|bytes| u32_of(bytes.start)),
            stop: token.bytes.map(|bytes| u32_of(bytes.end)),
        };
        Ok(EncodeResponse { tokens: tokens.map_err(outcrop::Error::from)?.into_iter().map(token).collect() })
    }

    pub(super) fn decode(&self, request: &DecodeRequest) -> Result<DecodeResponse, Problem> {
        let tokenizer = self.model()?.engine().tokenizer();
        let text =
            tokenizer.decode(&request.ids, request.skip_special_tokens).map_err(outcrop::Error::from)?;
        Ok(DecodeResponse { text })
    }

    /// Where the time went, in the message and in TEI's headers.
    fn metadata(
        &self,
        times: &Times,
        characters: usize,
        tokens: usize,
    ) -> Result<(Option<Metadata>, HeaderMap), Problem> {
        let headers = call::headers(self.model()?, times, self.started, characters, tokens);
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let metadata = Metadata {
            compute_chars: u32_of(characters),
            compute_tokens: u32_of(tokens),
            total_time_ns: ns(self.started.elapsed()),
            tokenization_time_ns: ns(times.tokenize),
            queue_time_ns: ns(times.queue),
            inference_time_ns: ns(times.run),
        };
        Ok((Some(metadata), headers))
    }
}

/// Texts are cut at their ends, as in the reference.
fn cut_on_the_right(direction: i32) -> Result<(), Problem> {
    match TruncationDirection::try_from(direction) {
        Ok(TruncationDirection::Right) => Ok(()),
        _ => Err(Problem::field("truncation_direction", "texts are cut on the right only")),
    }
}

/// A time of gRPC: eight digits at most, and a letter.
fn timeout(value: &MetadataValue<tonic::metadata::Ascii>) -> Option<Duration> {
    let value = value.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

pub(super) fn u32_of(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "what the messages hold")]
fn f32_of(score: f64) -> f32 {
    score as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let read = |value: &'static str| timeout(&MetadataValue::from_static(value));
        for (value, expected) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("250m", Duration::from_millis(250)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(read(value), Some(expected), "{value}");
        }
        for value in ["", "S", "5", "5s", "123456789S", "-1S", "1.5S", "5 S"] {
            assert_eq!(read(value), None, "{value}");
        }
    }
}
