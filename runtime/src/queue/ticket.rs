//! A caller's claim to an answer, and the answer as it comes together.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::{Failure, Shared};
use crate::engine::{Encoded, Output, Terms};
use crate::{EmbedOptions, Embedding, Engine, Error, Score, ScoreOptions};

/// An answer that is being computed: wait for it, or await it. Dropped before, its work is dropped as well as far as it has not begun.
#[must_use = "dropping it drops its work"]
pub struct Ticket<T> {
    pub(super) shared: Arc<Shared>,
    pub(super) request: Arc<Request>,
    pub(super) finish: Finish<T>,
}

/// Makes of the outputs of a request what its caller is given.
pub(super) type Finish<T> = fn(&Engine, &Request, Vec<Result<Output, Error>>) -> Vec<Result<T, Error>>;

/// What has come of a request.
#[derive(Debug)]
pub struct Answer<T> {
    /// One per pair, passage or text, in the order given. An error is that one's alone.
    pub results: Vec<Result<T, Error>>,
    /// Where the time went.
    pub times: Times,
}

/// The time of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// From submission to the last result.
    pub total: Duration,
    /// Tokenisation, per text on average.
    pub tokenize: Duration,
    /// Waiting to be run, per text on average.
    pub queue: Duration,
    /// The run that it was in, per text on average.
    pub run: Duration,
}

/// What a caller wants.
pub(super) enum Work {
    Rerank {
        query: String,
        passages: Vec<String>,
        options: ScoreOptions,
    },
    Score {
        pairs: Vec<(String, String)>,
        options: ScoreOptions,
    },
    Embed {
        texts: Vec<String>,
        options: EmbedOptions,
    },
    /// Vectors of the query and of the passages, one behind the other.
    Cosine {
        query: String,
        passages: Vec<String>,
        options: [EmbedOptions; 2],
    },
}

/// A request, and its answer so far.
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) work: Work,
    pub(super) terms: Terms,
    pub(super) arrived: Instant,
    pub(super) deadline: Option<Instant>,
    progress: Mutex<Progress>,
}

struct Progress {
    outputs: Vec<Option<Result<Output, Error>>>,
    /// Texts without an output.
    left: usize,
    /// Sums over texts.
    times: Times,
    ended: Option<Result<(), Failure>>,
    waker: Option<Waker>,
}

impl Work {
    /// Texts to tokenise, a pair being one.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Rerank { passages, .. } => passages.len(),
            Self::Score { pairs, .. } => pairs.len(),
            Self::Embed { texts, .. } => texts.len(),
            Self::Cosine { passages, .. } => 1 + passages.len(),
        }
    }

    /// Bytes of a text, and the most tokens that it may have, as far as the caller says so.
    pub(super) fn bytes(&self, i: usize) -> (usize, Option<usize>) {
        match self {
            Self::Rerank { query, passages, options } => {
                (query.len() + passages[i].len(), options.max_length)
            }
            Self::Score { pairs, options } => (pairs[i].0.len() + pairs[i].1.len(), options.max_length),
            Self::Embed { texts, options } => (texts[i].len(), options.max_length),
            Self::Cosine { query, passages, options } => {
                (if i == 0 { query.len() } else { passages[i - 1].len() }, options[0].max_length)
            }
        }
    }

    /// The sequences of some of the texts. The outer error refuses them all.
    pub(super) fn encode(
        &self,
        engine: &Engine,
        texts: std::ops::Range<usize>,
    ) -> Result<Vec<Result<Encoded, Error>>, Error> {
        match self {
            Self::Rerank { query, passages, options } => engine.encode_pairs(
                passages[texts].iter().map(|passage| (query.as_str(), passage.as_str())),
                options,
            ),
            Self::Score { pairs, options } => engine.encode_pairs(
                pairs[texts].iter().map(|(query, passage)| (query.as_str(), passage.as_str())),
                options,
            ),
            Self::Embed { texts: all, options } => {
                engine.encode_texts(all[texts].iter().map(String::as_str), options)
            }
            Self::Cosine { query, passages, options: [for_query, for_passages] } => {
                let mut encoded = Vec::with_capacity(texts.len());
                if texts.start == 0 {
                    encoded = engine.encode_texts(std::iter::once(query.as_str()), for_query)?;
                }
                let passages = &passages[texts.start.saturating_sub(1)..texts.end - 1];
                encoded.extend(engine.encode_texts(passages.iter().map(String::as_str), for_passages)?);
                Ok(encoded)
            }
        }
    }
}

impl Request {
    pub(super) fn new(
        id: u64,
        work: Work,
        terms: Terms,
        arrived: Instant,
        deadline: Option<Instant>,
    ) -> Self {
        let left = work.len();
        let progress = Progress {
            outputs: (0..left).map(|_| None).collect(),
            left,
            times: Times::default(),
            ended: (left == 0).then_some(Ok(())),
            waker: None,
        };
        Self { id, work, terms, arrived, deadline, progress: Mutex::new(progress) }
    }

    /// Notes the output of a text; whether it was the last.
    pub(super) fn deliver(&self, index: usize, output: Result<Output, Error>, times: Times) -> bool {
        let mut progress = self.progress();
        progress.outputs[index] = Some(output);
        progress.times.tokenize += times.tokenize;
        progress.times.queue += times.queue;
        progress.times.run += times.run;
        progress.left -= 1;
        if progress.left == 0 {
            progress.times.total = self.arrived.elapsed();
            progress.end(Ok(()));
        }
        progress.left == 0
    }

    /// Ends the request without an answer, unless it has one.
    pub(super) fn fail(&self, failure: Failure) {
        self.progress().end(Err(failure));
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Every change under the lock is whole.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn end(&mut self, result: Result<(), Failure>) {
        if self.ended.is_none() {
            self.ended = Some(result);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

impl<T> Ticket<T> {
    /// Blocks until the answer is there, or the deadline has passed.
    pub fn wait(mut self) -> Result<Answer<T>, Failure> {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            if let Poll::Ready(answer) = Pin::new(&mut self).poll(&mut Context::from_waker(&waker)) {
                return answer;
            }
            match self.request.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Err(Failure::Late),
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
    }
}

impl<T> Future for Ticket<T> {
    type Output = Result<Answer<T>, Failure>;

    /// A deadline that passes while the work is running shows only when the run has ended: a caller that must not wait for that sets a timer
    /// of its own.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut progress = self.request.progress();
        match progress.ended.take() {
            None => {
                progress.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            Some(Err(failure)) => return Poll::Ready(Err(failure)),
            Some(Ok(())) => {}
        }
        let outputs = std::mem::take(&mut progress.outputs);
        let texts = u32::try_from(outputs.len().max(1)).unwrap_or(u32::MAX);
        let Times { total, tokenize, queue, run } = progress.times;
        drop(progress);
        let times = Times { total, tokenize: tokenize / texts, queue: queue / texts, run: run / texts };
        // Every text has an output when the request has ended.
        let results =
            (self.finish)(&self.shared.engine, &self.request, outputs.into_iter().flatten().collect());
        Poll::Ready(Ok(Answer { results, times }))
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        self.shared.forget(self.request.id);
    }
}

pub(super) fn scores(
    engine: &Engine,
    request: &Request,
    outputs: Vec<Result<Output, Error>>,
) -> Vec<Result<Score, Error>> {
    outputs.into_iter().map(|output| engine.score_of(output?, &request.terms)).collect()
}

pub(super) fn embeddings(
    engine: &Engine,
    _: &Request,
    outputs: Vec<Result<Output, Error>>,
) -> Vec<Result<Embedding, Error>> {
    outputs.into_iter().map(|output| engine.embedding_of(output?)).collect()
}

/// The first output is the query's: without it no passage has a score.
pub(super) fn cosines(
    engine: &Engine,
    request: &Request,
    outputs: Vec<Result<Output, Error>>,
) -> Vec<Result<Score, Error>> {
    let mut embeddings = embeddings(engine, request, outputs).into_iter();
    match embeddings.next() {
        Some(Ok(query)) => embeddings.map(|passage| Ok(passage?.cosine(&query))).collect(),
        Some(Err(error)) => {
            let message = error.to_string();
            embeddings.map(|_| Err(Error::Query { reason: message.clone() })).collect()
        }
        None => Vec::new(),
    }
}
