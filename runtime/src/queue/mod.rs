//! Many callers, one engine: a bounded queue that batches across requests, shortest first, and drops what nobody waits for.
//!
//! ```no_run
//! use std::sync::Arc;
//! use outcrop::queue::{Queue, QueueOptions};
//! use outcrop::{Engine, EngineOptions, ScoreOptions};
//!
//! let engine = Arc::new(Engine::open("models/bge-reranker-v2-m3", &EngineOptions::default())?);
//! let queue = Queue::new(engine, QueueOptions::default())?;
//! let passages = vec!["Paris is the capital of France.".to_owned()];
//! let ticket = queue.rerank("what is a panda?".to_owned(), passages, ScoreOptions::default(), None)?;
//! let answer = ticket.wait()?; // or .await
//! println!("{:?} in {:?}", answer.results[0], answer.times.total);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Order.** A request is due at its arrival plus the time that its own work takes, but at most [`QueueOptions::fairness`] later. Texts are
//! tokenised and sequences run in the order of dues: small requests overtake large ones, and none is overtaken for ever. What is
//! left of a batch's room goes to whoever fits in.
//!
//! **Batches.** A run takes sequences from as many requests as its token budget holds. Requests with the same compression share a run to the
//! deepest of their cutoffs where that is quicker than runs of their own, and where it gives the same scores
//! ([`Engine::heads_by_place`]). A score does not depend on any of it, to the bit.
//!
//! **Bounds.** A request is refused while as many requests or tokens wait as are allowed, with the time after which it may be worth trying again.
//! A single request may be of any size: it is run in parts.

mod ticket;
mod waiting;

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use self::ticket::{Answer, Ticket, Times};
use self::ticket::{Finish, Request, Work};
use self::waiting::{Batch, Entry, Member, Waiter, Waiting};
use crate::engine::{Encoded, Output, Terms};
use crate::{EmbedOptions, Embedding, Engine, Error, Score, ScoreOptions};

/// Bounds and habits of a queue.
#[derive(Clone)]
pub struct QueueOptions {
    /// Most requests that are not answered yet.
    pub max_requests: usize,
    /// Requests are refused while this many tokens wait.
    pub max_tokens: usize,
    /// Most tokens of a run; `None` takes the engine's.
    pub batch_tokens: Option<NonZeroUsize>,
    /// Threads that tokenise; `None` takes as many as there are cores, eight at most.
    pub tokenize_threads: Option<NonZeroUsize>,
    /// By how much a request can at most be overtaken: those that come later than this after it are behind it, however small.
    pub fairness: Duration,
    /// Called after every run, on the thread that ran it.
    pub on_run: Option<OnRun>,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            max_requests: 512,
            max_tokens: 1 << 20,
            batch_tokens: None,
            tokenize_threads: None,
            fairness: Duration::from_secs(1),
            on_run: None,
        }
    }
}

/// What is told of every run.
pub type OnRun = Arc<dyn Fn(&Run) + Send + Sync>;

/// A run, after it.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Pairs or texts.
    pub sequences: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Tokens times layers that were not computed, and why.
    pub saved: Saved,
    /// How long it took.
    pub elapsed: Duration,
}

/// Tokens times layers of a run: all that a plain run of each sequence by itself would compute, and what was spared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// What a run of all layers without any of the following computes.
    pub plain: u64,
    /// Spared by stopping at a cutoff.
    pub cutoff: u64,
    /// Spared by compression, of the layers run.
    pub compression: u64,
    /// Spared by computing a query once for its passages, of the layers run.
    pub prefix_sharing: u64,
}

/// How a queue is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatus {
    /// Requests without an answer.
    pub requests: usize,
    /// Tokens that wait, estimated where they are not counted yet.
    pub waiting_tokens: usize,
    /// Age of the oldest request that waits for something.
    pub oldest: Duration,
    /// Devices that are running something.
    pub running: usize,
    /// Time that devices have been running so far, summed over devices.
    pub busy: Duration,
    /// Whether requests are taken.
    pub is_open: bool,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The queue is full.
    #[error("the queue is full: {requests} requests with {tokens} tokens wait; try again in {:.1} s", retry_after.as_secs_f64())]
    Full {
        /// Requests without an answer.
        requests: usize,
        /// Tokens that wait.
        tokens: usize,
        /// When there may be room.
        retry_after: Duration,
    },
    /// The queue has been closed.
    #[error("the queue takes no more requests: it is shutting down")]
    Closed,
    /// The options, or the model, do not allow it.
    #[error(transparent)]
    Invalid(#[from] Error),
}

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Its deadline passed before it was done.
    #[error("the deadline has passed before the work was done")]
    Late,
    /// The queue was dropped.
    #[error("the queue was shut down before the work was done")]
    Closed,
    /// The engine failed.
    #[error(transparent)]
    Engine(Arc<Error>),
    /// The engine panicked: a defect.
    #[error("the engine panicked: {0}")]
    Panicked(String),
}

/// Requests of many callers for one engine. `Send` and `Sync`.
///
/// [`Queue::close`] takes no more requests and lets those that wait be answered; dropping the queue does the same and waits for them.
pub struct Queue {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What callers and threads share.
struct Shared {
    engine: Arc<Engine>,
    options: QueueOptions,
    tokenize_threads: usize,
    state: Mutex<State>,
    /// Something to tokenise, or the end.
    texts: Condvar,
    /// Something to run, a run that has ended, or the end.
    sequences: Condvar,
}

struct State {
    waiting: Waiting<Arc<Request>>,
    rate: Rate,
    /// For each device: runs on it.
    running: Vec<usize>,
    /// For each device: since when it has been running something, and how long it had been so before.
    busy: Vec<(Instant, Duration)>,
    is_open: bool,
}

/// Tokens times layers per second, of late.
#[derive(Clone, Copy, Default)]
struct Rate {
    layer_tokens: f64,
    seconds: f64,
}

impl Rate {
    /// What lies this many runs back counts by 1 / e.
    const MEMORY: f64 = 32.0;

    fn note(&mut self, layer_tokens: usize, elapsed: Duration) {
        let keep = 1.0 - 1.0 / Self::MEMORY;
        self.layer_tokens = self.layer_tokens * keep + layer_tokens as f64;
        self.seconds = self.seconds * keep + elapsed.as_secs_f64();
    }

    /// How long work takes; nothing before anything is known.
    fn time(&self, layer_tokens: usize) -> Duration {
        if self.layer_tokens == 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(layer_tokens as f64 * self.seconds / self.layer_tokens)
            .unwrap_or(Duration::MAX)
    }
}

/// Runs on a device at a time: with a second a GPU does not wait for the host. The CPU's threads gain nothing by it.
const RUNS_PER_GPU: usize = 2;

/// Bytes of text that are taken for a token until it is tokenised.
const TOKEN_BYTES: usize = 4;
/// Tokens that a text is taken to have at most, unless its request allows more.
const TOKENS_MAX: usize = 512;

/// Tokens for which a layer takes as long as for fewer: as many as its products have operations to spare for each byte of weights.
const FEW_TOKENS_CPU: usize = 16;
const FEW_TOKENS_GPU: usize = 256;

impl Queue {
    /// A queue in front of `engine`, with threads of its own to tokenise and to run.
    pub fn new(engine: Arc<Engine>, options: QueueOptions) -> Result<Self, Error> {
        let replicas = engine.num_replicas();
        let is_gpu = engine.is_on_gpu();
        let now = Instant::now();
        let state = State {
            waiting: Waiting::new(engine.heads_by_place()),
            rate: Rate::default(),
            running: vec![0; replicas],
            busy: vec![(now, Duration::ZERO); replicas],
            is_open: true,
        };
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(8);
        let tokenize_threads = options.tokenize_threads.map_or(cores, NonZeroUsize::get);
        let (state, texts, sequences) = (Mutex::new(state), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { engine, options, tokenize_threads, state, texts, sequences });
        let mut queue = Self { shared, threads: Vec::new() };
        for i in 0..tokenize_threads {
            queue.spawn(format!("tokenize-{i}"), Shared::tokenize)?;
        }
        for replica in 0..replicas {
            for _ in 0..if is_gpu { RUNS_PER_GPU } else { 1 } {
                queue.spawn(format!("run-{replica}"), move |shared| shared.run(replica))?;
            }
        }
        Ok(queue)
    }

    fn spawn(&mut self, name: String, work: impl FnOnce(&Shared) + Send + 'static) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(name).spawn(move || work(&shared));
        self.threads.push(thread.map_err(Error::Thread)?);
        Ok(())
    }

    /// Threads that tokenise.
    pub fn tokenize_threads(&self) -> usize {
        self.shared.tokenize_threads
    }

    /// The engine behind the queue.
    pub fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// Scores pairs; the answer has a score for each, in order. `deadline`: work that has not begun by then is dropped.
    pub fn score(
        &self,
        pairs: Vec<(String, String)>,
        options: ScoreOptions,
        deadline: Option<Instant>,
    ) -> Result<Ticket<Score>, Refused> {
        let terms = self.engine().score_terms(&options)?;
        self.submit(Work::Score { pairs, options }, terms, deadline, ticket::scores)
    }

    /// Scores passages against a query, in the order given; an embedding model by the cosine of the vectors. [`Ranking`](crate::Ranking) can be
    /// made of the results.
    pub fn rerank(
        &self,
        query: String,
        passages: Vec<String>,
        options: ScoreOptions,
        deadline: Option<Instant>,
    ) -> Result<Ticket<Score>, Refused> {
        let engine = self.engine();
        if engine.is_reranker() {
            let terms = engine.score_terms(&options)?;
            return self.submit(Work::Rerank { query, passages, options }, terms, deadline, ticket::scores);
        }
        let options = engine.cosine_options(&options)?;
        let terms = engine.embed_terms(&options[0])?;
        self.submit(Work::Cosine { query, passages, options }, terms, deadline, ticket::cosines)
    }

    /// Embeds texts.
    pub fn embed(
        &self,
        texts: Vec<String>,
        options: EmbedOptions,
        deadline: Option<Instant>,
    ) -> Result<Ticket<Embedding>, Refused> {
        let terms = self.engine().embed_terms(&options)?;
        self.submit(Work::Embed { texts, options }, terms, deadline, ticket::embeddings)
    }

    fn submit<T>(
        &self,
        work: Work,
        terms: Terms,
        deadline: Option<Instant>,
        finish: Finish<T>,
    ) -> Result<Ticket<T>, Refused> {
        let shared = &self.shared;
        let estimate = |i: usize| {
            let (bytes, max_length) = work.bytes(i);
            (bytes / TOKEN_BYTES + 1).min(max_length.unwrap_or(TOKENS_MAX))
        };
        let estimates: Vec<usize> = (0..work.len()).map(estimate).collect();
        let depth = shared.engine.depth(&terms.cutoffs);
        let layer_tokens = estimates.iter().sum::<usize>() * depth;
        let mut state = shared.state();
        let (requests, tokens) = (state.waiting.len(), state.waiting.tokens());
        if !state.is_open {
            return Err(Refused::Closed);
        }
        if requests >= shared.options.max_requests || tokens >= shared.options.max_tokens {
            let replicas = u32::try_from(state.running.len()).unwrap_or(1);
            let retry_after = state.rate.time(state.waiting.layer_tokens()) / replicas;
            return Err(Refused::Full { requests, tokens, retry_after });
        }
        let arrived = Instant::now();
        let due = arrived + state.rate.time(layer_tokens).min(shared.options.fairness);
        let mut request = None;
        let is_empty = estimates.is_empty();
        state.waiting.admit(|id| {
            let (mode, cutoffs) = (terms.mode.clone(), terms.cutoffs.clone());
            let made = request.insert(Arc::new(Request::new(id, work, terms, arrived, deadline)));
            Entry::new(Arc::clone(made), (mode, cutoffs, depth), (arrived, due, deadline), estimates)
        });
        let Some(request) = request else { return Err(Refused::Closed) };
        if is_empty {
            state.waiting.remove(request.id);
        }
        drop(state);
        shared.texts.notify_all();
        Ok(Ticket { shared: Arc::clone(shared), request, finish })
    }

    /// How the queue is doing.
    pub fn status(&self) -> QueueStatus {
        let state = self.shared.state();
        let now = Instant::now();
        let busy = state.busy.iter().zip(&state.running).map(|((since, before), running)| {
            *before + if *running > 0 { now - *since } else { Duration::ZERO }
        });
        QueueStatus {
            requests: state.waiting.len(),
            waiting_tokens: state.waiting.tokens(),
            oldest: state.waiting.oldest().map_or(Duration::ZERO, |arrived| now - arrived),
            running: state.running.iter().filter(|running| **running > 0).count(),
            busy: busy.sum(),
            is_open: state.is_open,
        }
    }

    /// Takes no more requests; those that wait are answered.
    pub fn close(&self) {
        self.shared.state().is_open = false;
        self.shared.wake_all();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.close();
        for thread in self.threads.drain(..) {
            // A panic of a thread has been reported by then.
            let _ = thread.join();
        }
        // Nothing is left unless threads have panicked.
        let left: Vec<_> = self.shared.state().waiting.handles().collect();
        left.iter().for_each(|request| request.fail(Failure::Closed));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what is left of a request.
    fn forget(&self, id: u64) {
        let mut state = self.state();
        let gone = state.waiting.remove(id);
        let is_over = !state.is_open && state.waiting.len() == 0;
        drop(state);
        // What is dropped may be large.
        drop(gone);
        if is_over {
            self.wake_all();
        }
    }

    /// Something has changed that all threads should know.
    fn wake_all(&self) {
        self.texts.notify_all();
        self.sequences.notify_all();
    }

    fn fail(&self, request: &Request, failure: &Failure) {
        request.fail(failure.clone());
        self.forget(request.id);
    }

    fn deliver(&self, request: &Request, index: usize, output: Result<Output, Error>, times: Times) {
        if request.deliver(index, output, times) {
            self.forget(request.id);
        }
    }

    /// Tokenises until the queue is closed and empty.
    fn tokenize(&self) {
        let mut state = self.state();
        loop {
            state.drop_late();
            let Some((request, id, texts)) = state.waiting.take_texts() else {
                if state.is_over() {
                    return self.wake_all();
                }
                state = self.texts.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let start = Instant::now();
            let encode = || request.work.encode(&self.engine, texts.clone());
            match guarded(encode) {
                Ok(encoded) => {
                    let since = Instant::now();
                    let tokenize = (since - start) / u32::try_from(encoded.len().max(1)).unwrap_or(1);
                    let mut sequences = Vec::with_capacity(encoded.len());
                    for (index, encoded) in texts.clone().zip(encoded) {
                        let times = Times { tokenize, ..Times::default() };
                        match encoded {
                            Ok(encoded) => sequences.push(Waiter { index, encoded, since, tokenize }),
                            Err(error) => self.deliver(&request, index, Err(error), times),
                        }
                    }
                    self.state().waiting.tokenized(id, texts, sequences);
                    self.sequences.notify_all();
                }
                Err(failure) => self.fail(&request, &failure),
            }
            state = self.state();
        }
    }

    /// Runs batches on a device until the queue is closed and empty.
    fn run(&self, replica: usize) {
        let is_gpu = self.engine.is_on_gpu();
        let few_tokens = if is_gpu { FEW_TOKENS_GPU } else { FEW_TOKENS_CPU };
        let mut state = self.state();
        loop {
            state.drop_late();
            let batch_tokens =
                self.options.batch_tokens.map_or(self.engine.batch_tokens(), NonZeroUsize::get);
            // Behind a run that is under way only a full batch is worth it: what comes meanwhile joins the next.
            let may_run = state.running[replica] == 0 || state.waiting.fills(batch_tokens);
            let batch = if may_run { state.waiting.take_batch(batch_tokens, few_tokens) } else { None };
            let Some(batch) = batch else {
                if state.is_over() {
                    return self.wake_all();
                }
                state = self.sequences.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let start = Instant::now();
            state.begins_to_run(replica, start);
            drop(state);
            let Batch { mode, cutoffs, members, tokens } = batch;
            let (encoded, owners): (Vec<_>, Vec<_>) =
                members.into_iter().map(|member| member.parted(start)).unzip();
            let result = guarded(|| self.engine.run_encoded(replica, &mode, &cutoffs, &encoded));
            let elapsed = start.elapsed();
            self.state().has_run(replica, tokens * self.engine.depth(&cutoffs), elapsed);
            self.sequences.notify_all();
            match result {
                Ok(outputs) => {
                    for ((request, index, times), output) in owners.into_iter().zip(outputs) {
                        let output = output.map(|output| output.at(&cutoffs, &request.terms.cutoffs));
                        self.deliver(&request, index, output, Times { run: elapsed, ..times });
                    }
                }
                Err(failure) => owners.iter().for_each(|(request, ..)| self.fail(request, &failure)),
            }
            if let Some(on_run) = &self.options.on_run {
                let saved = self.engine.saved(&mode, &cutoffs, &encoded);
                on_run(&Run { sequences: encoded.len(), tokens, saved, elapsed });
            }
            state = self.state();
        }
    }
}

impl Member<Arc<Request>> {
    /// The sequence, and apart from it whose it is: the request, the number of its text, and its times until it was run.
    fn parted(self, start: Instant) -> (Encoded, (Arc<Request>, usize, Times)) {
        let Waiter { index, encoded, since, tokenize } = self.waiter;
        (encoded, (self.request, index, Times { tokenize, queue: start - since, ..Times::default() }))
    }
}

impl State {
    fn is_over(&self) -> bool {
        !self.is_open && self.waiting.len() == 0
    }

    fn begins_to_run(&mut self, replica: usize, now: Instant) {
        if self.running[replica] == 0 {
            self.busy[replica].0 = now;
        }
        self.running[replica] += 1;
    }

    fn has_run(&mut self, replica: usize, layer_tokens: usize, elapsed: Duration) {
        self.running[replica] -= 1;
        if self.running[replica] == 0 {
            let (since, before) = self.busy[replica];
            self.busy[replica].1 = before + since.elapsed();
        }
        self.rate.note(layer_tokens, elapsed);
    }

    fn drop_late(&mut self) {
        while let Some(request) = self.waiting.expired(Instant::now()) {
            request.fail(Failure::Late);
        }
    }
}

/// A panic must not end the thread that serves everybody.
fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| Failure::Engine(Arc::new(error))),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(Failure::Panicked(message.unwrap_or("without a message").to_owned()))
        }
    }
}
