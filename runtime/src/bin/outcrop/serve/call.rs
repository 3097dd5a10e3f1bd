//! From a request's fields to scores: what all dialects have in common.

use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use outcrop::queue::{Answer, Failure, Ticket, Times};
use outcrop::{Compression, EmbedOptions, Embedding, Score, ScoreOptions};

use super::Server;
use super::fields::{Fields, OneOrMany};
use super::metrics::{self, Task};
use super::models::Model;
use super::problem::{Kind, Problem};

/// The fields that every dialect takes besides its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extras {
    cutoff_layers: Option<Vec<usize>>,
    compress_ratio: Option<usize>,
    compress_layers: Option<Vec<usize>>,
    prompt: Option<String>,
    query_instruction: Option<String>,
    passage_instruction: Option<String>,
    max_length: Option<usize>,
    query_max_length: Option<usize>,
    normalize: Option<bool>,
    raw_scores: Option<bool>,
    truncate: Option<bool>,
    deadline_ms: Option<u64>,
    /// When a caller gives up, if its protocol says so.
    until: Option<Instant>,
}

/// Pairs that have been scored.
pub(crate) struct Scored {
    /// In the order of the request.
    pub(crate) scores: Vec<Result<Score, outcrop::Error>>,
    pub(crate) times: Times,
    pub(crate) tokens: usize,
    pub(crate) warnings: Vec<String>,
}

impl Extras {
    /// Takes the fields out of a request.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, Problem> {
        let mut layers = |name| fields.optional::<OneOrMany<usize>>(name);
        let (cutoff_layers, compress_layers) = (layers("cutoff_layers")?, layers("compress_layers")?);
        Ok(Self {
            cutoff_layers: cutoff_layers.map(OneOrMany::into_vec),
            compress_layers: compress_layers.map(OneOrMany::into_vec),
            compress_ratio: fields.optional("compress_ratio")?,
            prompt: fields.optional("prompt")?,
            query_instruction: fields.optional("query_instruction")?,
            passage_instruction: fields.optional("passage_instruction")?,
            max_length: fields.optional("max_length")?,
            query_max_length: fields.optional("query_max_length")?,
            normalize: fields.optional("normalize")?,
            raw_scores: fields.optional("raw_scores")?,
            truncate: fields.optional("truncate")?,
            deadline_ms: fields.optional("deadline_ms")?,
            until: None,
        })
    }

    /// A dialect's own name for the longest input.
    pub(crate) fn or_max_length(mut self, max_length: Option<usize>) -> Self {
        self.max_length = self.max_length.or(max_length);
        self
    }

    /// A dialect's own switch for scores as the model gives them.
    pub(crate) fn or_raw_scores(mut self, raw_scores: Option<bool>) -> Self {
        self.raw_scores = self.raw_scores.or(raw_scores);
        self
    }

    /// A dialect's own switch for cutting texts that are too long.
    pub(crate) fn or_truncate(mut self, truncate: bool) -> Self {
        self.truncate = self.truncate.or(Some(truncate));
        self
    }

    /// A dialect's own switch for vectors of length one.
    pub(crate) fn or_normalize(mut self, normalize: bool) -> Self {
        self.normalize = self.normalize.or(Some(normalize));
        self
    }

    /// A deadline besides what the fields say.
    pub(crate) fn until(mut self, until: Option<Instant>) -> Self {
        self.until = until;
        self
    }

    /// For a dialect whose answers have room for one score of a text.
    pub(crate) fn one_score(self) -> Result<Self, Problem> {
        match &self.cutoff_layers {
            Some(layers) if layers.len() > 1 => {
                let message = format!("{} layers; an answer has room for one score", layers.len());
                Err(Problem::field("cutoff_layers", message))
            }
            _ => Ok(self),
        }
    }

    fn score_options(&self, server: &Server, model: &Model) -> Result<ScoreOptions, Problem> {
        let normalize = match (self.normalize, self.raw_scores) {
            (Some(normalize), Some(raw)) if normalize == raw => {
                return Err(Problem::field("raw_scores", format!("{raw} contradicts normalize {normalize}")));
            }
            (Some(normalize), _) => normalize,
            (None, raw) => !raw.unwrap_or(false),
        };
        let engine = model.engine();
        let compression = match (self.compress_ratio, &self.compress_layers) {
            (None, None) => None,
            (None, Some(_)) => return Err(Problem::field("compress_layers", "needs compress_ratio")),
            (Some(ratio), layers) => {
                Some(Compression::new(ratio, layers.as_deref().unwrap_or(Compression::DEFAULT_LAYERS))?)
            }
        };
        Ok(ScoreOptions {
            max_length: self.max_length,
            query_max_length: self.query_max_length,
            normalize,
            query_instruction: self.query_instruction.clone(),
            passage_instruction: self.passage_instruction.clone(),
            cutoff_layers: self.cutoff_layers.as_deref().map(|layers| engine.cutoffs(layers)).transpose()?,
            compression,
            prompt: self.prompt.clone(),
            truncate: self.truncate.unwrap_or(server.args.auto_truncate),
            ..ScoreOptions::default()
        })
    }

    /// The options of an embedding; refused if a field has no meaning for it.
    pub(crate) fn embed_options(&self, server: &Server) -> Result<EmbedOptions, Problem> {
        let without_meaning = [
            ("cutoff_layers", self.cutoff_layers.is_some()),
            ("compress_ratio", self.compress_ratio.is_some()),
            ("compress_layers", self.compress_layers.is_some()),
            ("prompt", self.prompt.is_some()),
            ("passage_instruction", self.passage_instruction.is_some()),
            ("query_max_length", self.query_max_length.is_some()),
            ("raw_scores", self.raw_scores.is_some()),
        ];
        if let Some((name, _)) = without_meaning.into_iter().find(|(_, is_given)| *is_given) {
            return Err(Problem::field(name, "has no meaning for embeddings"));
        }
        Ok(EmbedOptions {
            max_length: self.max_length,
            normalize: Some(self.normalize.unwrap_or(true)),
            instruction: self.query_instruction.clone(),
            truncate: self.truncate.unwrap_or(server.args.auto_truncate),
            ..EmbedOptions::default()
        })
    }

    fn deadline(&self, server: &Server, started: Instant) -> Option<Instant> {
        let ms = self.deadline_ms.or(server.args.deadline_ms);
        // One too far off to be told is none.
        let own = ms.and_then(|ms| started.checked_add(Duration::from_millis(ms)));
        own.into_iter().chain(self.until).min()
    }
}

/// What is to be scored.
enum Pairs {
    OfQuery(String, Vec<String>),
    Each(Vec<(String, String)>),
}

impl Pairs {
    fn len(&self) -> usize {
        match self {
            Self::OfQuery(_, passages) => passages.len(),
            Self::Each(pairs) => pairs.len(),
        }
    }

    fn iter(&self) -> Box<dyn Iterator<Item = (&str, &str)> + '_> {
        match self {
            Self::OfQuery(query, passages) => {
                Box::new(passages.iter().map(|passage| (query.as_str(), passage.as_str())))
            }
            Self::Each(pairs) => {
                Box::new(pairs.iter().map(|(query, passage)| (query.as_str(), passage.as_str())))
            }
        }
    }

    /// Keeps the pairs at some places.
    fn retain(&mut self, is_kept: impl Fn(usize) -> bool) {
        let mut places = 0..;
        let mut next = || places.next().is_some_and(&is_kept);
        match self {
            Self::OfQuery(_, passages) => passages.retain(|_| next()),
            Self::Each(pairs) => pairs.retain(|_| next()),
        }
    }
}

/// Scores passages against one query.
pub(crate) async fn rerank(
    server: &Server,
    model: &Model,
    started: Instant,
    (query, passages): (String, Vec<String>),
    extras: &Extras,
) -> Result<Scored, Problem> {
    check_count(server, "texts", passages.len())?;
    scored(server, model, started, Pairs::OfQuery(query, passages), extras).await
}

/// Scores pairs.
pub(crate) async fn score(
    server: &Server,
    model: &Model,
    started: Instant,
    pairs: Vec<(String, String)>,
    extras: &Extras,
) -> Result<Scored, Problem> {
    check_count(server, "pairs", pairs.len())?;
    scored(server, model, started, Pairs::Each(pairs), extras).await
}

/// Embeds texts. One that fails fails the request: clients take vectors by their place.
pub(crate) async fn embed(
    server: &Server,
    model: &Model,
    started: Instant,
    texts: Vec<String>,
    extras: &Extras,
) -> Result<(Vec<Embedding>, Times), Problem> {
    check_count(server, "texts", texts.len())?;
    metrics::arrived(Task::Embed, texts.len());
    let options = extras.embed_options(server)?;
    let deadline = extras.deadline(server, started);
    let Answer { results, times } =
        within(server, model.queue.embed(texts, options, deadline)?, deadline).await?;
    let embeddings = all(results)?;
    let tokens = embeddings.iter().map(|embedding| embedding.tokens);
    let truncated = embeddings.iter().filter(|embedding| embedding.truncated).count();
    metrics::answered(Task::Embed, embeddings.len(), &times, tokens, truncated);
    server.traces.iter().for_each(|traces| traces.stages(&times, embeddings.len()));
    Ok((embeddings, times))
}

/// Every result; the first error if there is one, with its place.
pub(crate) fn all<T>(results: Vec<Result<T, outcrop::Error>>) -> Result<Vec<T>, Problem> {
    let place = |(i, result): (usize, Result<T, outcrop::Error>)| {
        result.map_err(|error| {
            let mut problem = Problem::from(error);
            problem.message = format!("text {i}: {}", problem.message);
            problem
        })
    };
    results.into_iter().enumerate().map(place).collect()
}

fn check_count(server: &Server, what: &str, count: usize) -> Result<(), Problem> {
    let limit = server.args.max_client_batch_size.get();
    if count == 0 {
        return Err(Problem::new(Kind::Empty, format!("no {what}: give at least one")));
    }
    if count > limit {
        let message = format!(
            "{count} {what}; a request may have {limit} (--max-client-batch-size): send several requests"
        );
        return Err(Problem::new(Kind::TooManyTexts, message));
    }
    Ok(())
}

fn warnings(model: &Model, options: &ScoreOptions) -> Result<Vec<String>, Problem> {
    if !model.engine().is_reranker() {
        return Ok(Vec::new());
    }
    Ok(model.engine().check(options)?.iter().map(ToString::to_string).collect())
}

async fn scored(
    server: &Server,
    model: &Model,
    started: Instant,
    pairs: Pairs,
    extras: &Extras,
) -> Result<Scored, Problem> {
    metrics::arrived(Task::Predict, pairs.len());
    let options = extras.score_options(server, model)?;
    let mut warnings = warnings(model, &options)?;
    let deadline = extras.deadline(server, started);
    let Answer { results: scores, times } = answer(server, model, pairs, options, deadline).await?;
    let lengths = || scores.iter().flatten().map(|score| score.tokens);
    let truncated = scores.iter().flatten().filter(|score| score.truncated).count();
    metrics::answered(Task::Predict, scores.len(), &times, lengths(), truncated);
    server.traces.iter().for_each(|traces| traces.stages(&times, scores.len()));
    if truncated > 0 {
        warnings.push(format!(
            "{truncated} of {} texts were too long and scored without their ends",
            scores.len()
        ));
    }
    Ok(Scored { tokens: lengths().sum(), scores, times, warnings })
}

/// Scores that are remembered, and the queue's for all others.
async fn answer(
    server: &Server,
    model: &Model,
    mut pairs: Pairs,
    options: ScoreOptions,
    deadline: Option<Instant>,
) -> Result<Answer<Score>, Problem> {
    let submit = |pairs, options| match pairs {
        Pairs::OfQuery(query, passages) => model.queue.rerank(query, passages, options, deadline),
        Pairs::Each(pairs) => model.queue.score(pairs, options, deadline),
    };
    let Some(cache) = &model.cache else {
        return within(server, submit(pairs, options)?, deadline).await;
    };
    let looked = cache.look(&options, pairs.iter());
    metrics::remembered(&model.name, looked.hits());
    pairs.retain(|i| looked.is_missing(i));
    let Answer { results, times } = match pairs.len() {
        0 => Answer { results: Vec::new(), times: Times::default() },
        _ => within(server, submit(pairs, options)?, deadline).await?,
    };
    Ok(Answer { results: looked.complete(cache, results), times })
}

/// Waits for an answer until the deadline; the ticket is dropped then, and its work with it.
async fn within<T>(
    server: &Server,
    ticket: Ticket<T>,
    deadline: Option<Instant>,
) -> Result<Answer<T>, Problem> {
    let answer = match deadline {
        None => ticket.await,
        Some(deadline) => {
            tokio::time::timeout_at(deadline.into(), ticket).await.unwrap_or(Err(Failure::Late))
        }
    };
    if let Err(Failure::Engine(error)) = &answer
        && error.is_lost()
    {
        server.lost();
    }
    Ok(answer?)
}

/// TEI's headers about a request's time, in milliseconds, and its size.
pub(crate) fn headers(
    model: &Model,
    times: &Times,
    started: Instant,
    characters: usize,
    tokens: usize,
) -> HeaderMap {
    let ms = |time: Duration| time.as_millis().to_string();
    let total = ms(started.elapsed());
    let compute = if model.engine().is_on_gpu() { "gpu+optimized" } else { "cpu" };
    let values = [
        ("x-compute-type", compute.to_owned()),
        ("x-compute-time", total.clone()),
        ("x-compute-characters", characters.to_string()),
        ("x-compute-tokens", tokens.to_string()),
        ("x-total-time", total),
        ("x-tokenization-time", ms(times.tokenize)),
        ("x-queue-time", ms(times.queue)),
        ("x-inference-time", ms(times.run)),
    ];
    let header = |(name, value): (&'static str, String)| {
        Some((HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?))
    };
    values.into_iter().filter_map(header).collect()
}
