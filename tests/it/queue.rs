//! The queue in front of an engine: many callers get the bits that each would get alone, in an order that is fair, within bounds.

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outcrop::queue::{Failure, Queue, QueueOptions, Refused, Run};
use outcrop::{Compression, EmbedOptions, Engine, EngineOptions, Ranking, Score, ScoreOptions};

use crate::fixtures::{on_cpu, pair_cases, path, text_cases};

fn open(model: &str) -> Arc<Engine> {
    let options = EngineOptions { threads: Some(2), batch_tokens: Some(300), ..on_cpu() };
    Arc::new(Engine::open(path(model), &options).unwrap())
}

fn pairs(model: &str) -> Vec<(String, String)> {
    let cases = pair_cases(&path(model));
    cases.into_iter().next().unwrap().pairs
}

/// A queue whose only run thread stops behind every run until it is let go on.
struct Gated {
    /// Dropped first: the queue waits for its threads.
    go_on: SyncSender<()>,
    queue: Queue,
    runs: Receiver<Run>,
}

impl Gated {
    fn new(engine: Arc<Engine>, options: QueueOptions) -> Self {
        let (told, runs) = sync_channel(1000);
        let (go_on, gate) = sync_channel(1000);
        let gate = Mutex::new(gate);
        let on_run = move |run: &Run| {
            // Each fails when the test has gone.
            let _ = told.send(*run);
            let _ = gate.lock().unwrap().recv();
        };
        let queue = Queue::new(engine, QueueOptions { on_run: Some(Arc::new(on_run)), ..options }).unwrap();
        Self { queue, runs, go_on }
    }

    /// Has the run thread stopped, behind a run of one pair.
    fn hold(&self, pair: &(String, String)) {
        self.queue.score(vec![pair.clone()], ScoreOptions::default(), None).unwrap().wait().unwrap();
        self.runs.recv().unwrap();
    }

    /// Lets one run happen and returns it.
    fn next(&self) -> Run {
        self.go_on.send(()).unwrap();
        self.runs.recv().unwrap()
    }

    /// Waits until so many tokens wait, which are counted and no estimates any more.
    fn await_tokens(&self, tokens: usize) {
        let start = Instant::now();
        while self.queue.status().waiting_tokens != tokens {
            assert!(start.elapsed() < Duration::from_secs(60), "{:?} for {tokens}", self.queue.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn tokens(engine: &Engine, pairs: &[(String, String)]) -> usize {
    let options = ScoreOptions::default();
    let of = |(query, passage): &(String, String)| engine.pair_sequence(query, passage, &options).unwrap();
    pairs.iter().map(|pair| of(pair).sequence.input_ids.len()).sum()
}

fn same(found: &[Result<Score, outcrop::Error>], expected: &[Result<Score, outcrop::Error>]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(found, expected);
                assert_eq!(found.score.to_bits(), expected.score.to_bits());
            }
            (Err(found), Err(expected)) => assert_eq!(found.to_string(), expected.to_string()),
            _ => panic!("{found:?} for {expected:?}"),
        }
    }
}

/// Callers on eight threads with every kind of request at once: each gets what the engine gives it alone, to the bit.
#[test]
fn many_callers_get_the_bits_of_a_call_of_their_own() {
    for model in ["xlmr_base", "gemma", "minicpm_layerwise", "gemma2_lightweight"] {
        let engine = open(model);
        let pairs = pairs(model);
        let mut options =
            vec![ScoreOptions::default(), ScoreOptions { normalize: true, ..Default::default() }];
        if let Some(allowed) = engine.allowed_cutoffs() {
            for layers in [&[allowed.start][..], &[allowed.start, allowed.last]] {
                let cutoff_layers = Some(engine.cutoffs(layers).unwrap());
                options.push(ScoreOptions { cutoff_layers, ..Default::default() });
            }
        }
        if model == "gemma2_lightweight" {
            for (ratio, layers) in [(2, &[1, 3][..]), (4, &[2]), (1, &[1])] {
                let compression = Some(Compression::new(ratio, layers).unwrap());
                options.push(ScoreOptions { compression: compression.clone(), ..Default::default() });
                let cutoff_layers = Some(engine.cutoffs(&[engine.allowed_cutoffs().unwrap().start]).unwrap());
                options.push(ScoreOptions { compression, cutoff_layers, ..Default::default() });
            }
        }
        let expected: Vec<_> = options.iter().map(|options| engine.score(&pairs, options).unwrap()).collect();
        let queue = Queue::new(engine, QueueOptions::default()).unwrap();
        let (queue, options, pairs, expected) = (&queue, &options, &pairs, &expected);
        std::thread::scope(|scope| {
            for caller in 0..8 {
                scope.spawn(move || {
                    let mut tickets = Vec::new();
                    for i in 0..2 * options.len() {
                        let nth = (i * 5 + caller) % options.len();
                        let from = (i + caller) % pairs.len();
                        let some = pairs[from..].to_vec();
                        tickets.push((nth, from, queue.score(some, options[nth].clone(), None).unwrap()));
                    }
                    for (nth, from, ticket) in tickets {
                        same(&ticket.wait().unwrap().results, &expected[nth][from..]);
                    }
                });
            }
        });
        let status = queue.status();
        assert_eq!((status.requests, status.waiting_tokens, status.running), (0, 0, 0));
        assert!(status.busy > Duration::ZERO && status.is_open);
    }
}

#[test]
fn rankings_and_vectors_too() {
    let engine = open("xlmr_base");
    let pairs = pairs("xlmr_base");
    let passages: Vec<String> = pairs.iter().map(|(_, passage)| passage.clone()).collect();
    let queue = Queue::new(Arc::clone(&engine), QueueOptions::default()).unwrap();
    let ticket = queue.rerank(pairs[0].0.clone(), passages.clone(), ScoreOptions::default(), None).unwrap();
    let found: Ranking = ticket.wait().unwrap().results.into();
    let expected = engine.rerank(&pairs[0].0, &passages, &ScoreOptions::default()).unwrap();
    assert_eq!(found.results, expected.results);

    let engine = open("embed_minilm");
    let texts = text_cases(&path("embed_minilm")).swap_remove(0).texts;
    let queue = Queue::new(Arc::clone(&engine), QueueOptions::default()).unwrap();
    let options = [EmbedOptions::default(), EmbedOptions { normalize: Some(false), ..Default::default() }];
    let tickets = options.clone().map(|options| queue.embed(texts.clone(), options, None).unwrap());
    let ranking = queue.rerank(texts[0].clone(), texts.clone(), ScoreOptions::default(), None).unwrap();
    for (options, ticket) in options.iter().zip(tickets) {
        let found: Vec<_> = ticket.wait().unwrap().results.into_iter().map(Result::unwrap).collect();
        let expected = engine.embed(&texts, options).unwrap();
        assert_eq!(found, expected.into_iter().map(Result::unwrap).collect::<Vec<_>>());
    }
    let found: Ranking = ranking.wait().unwrap().results.into();
    let expected = engine.rerank(&texts[0], &texts, &ScoreOptions::default()).unwrap();
    assert_eq!(found.results, expected.results);
}

/// A small request that comes while a large one runs is answered before it.
#[test]
fn small_requests_overtake_large_ones() {
    let engine = open("xlmr_base");
    let pairs = pairs("xlmr_base");
    let gated = Gated::new(
        Arc::clone(&engine),
        QueueOptions { fairness: Duration::from_secs(3600), ..Default::default() },
    );
    gated.hold(&pairs[0]);
    let large: Vec<_> = std::iter::repeat_n(&pairs, 20).flatten().cloned().collect();
    let all = tokens(&engine, &large);
    let large = gated.queue.score(large, ScoreOptions::default(), None).unwrap();
    gated.await_tokens(all);
    let first = gated.next();
    assert!((1..=300).contains(&first.tokens) || first.sequences == 1, "{first:?}");
    let small = gated.queue.score(pairs[..1].to_vec(), ScoreOptions::default(), None).unwrap();
    gated.await_tokens(all - first.tokens + tokens(&engine, &pairs[..1]));
    gated.next();
    small.wait().unwrap();
    let mut large = pin!(large);
    assert!(large.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    while gated.queue.status().requests > 0 {
        gated.next();
    }
    let Poll::Ready(answer) = large.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("not ready")
    };
    let answer = answer.unwrap();
    assert!(answer.results.iter().all(Result::is_ok));
    assert!(
        answer.times.queue > Duration::ZERO && answer.times.total >= answer.times.queue,
        "{:?}",
        answer.times
    );
}

/// Without patience the order is that of arrival.
#[test]
fn nobody_is_overtaken_beyond_the_bound() {
    let pairs = pairs("xlmr_base");
    let gated =
        Gated::new(open("xlmr_base"), QueueOptions { fairness: Duration::ZERO, ..Default::default() });
    gated.hold(&pairs[0]);
    // All of one length: what does not fit a batch of the large one's does not fit for the small one's either.
    let large = gated.queue.score(vec![pairs[0].clone(); 60], ScoreOptions::default(), None).unwrap();
    let small = gated.queue.score(pairs[..1].to_vec(), ScoreOptions::default(), None).unwrap();
    gated.await_tokens(tokens(gated.queue.engine(), &pairs[..1]) * 61);
    let (mut large, mut small) = (pin!(large), pin!(small));
    let context = &mut Context::from_waker(Waker::noop());
    while small.as_mut().poll(context).is_pending() {
        gated.next();
    }
    assert!(large.as_mut().poll(context).is_ready());
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let pairs = pairs("xlmr_base");
    let options = QueueOptions { max_requests: 3, max_tokens: 100, ..Default::default() };
    let gated = Gated::new(open("xlmr_base"), options);
    gated.hold(&pairs[0]);
    // Larger than the bound alone, and taken all the same.
    let large: Vec<_> = std::iter::repeat_n(&pairs, 20).flatten().cloned().collect();
    let large = gated.queue.score(large, ScoreOptions::default(), None).unwrap();
    match gated.queue.score(pairs[..1].to_vec(), ScoreOptions::default(), None) {
        Err(Refused::Full { requests: 1, tokens, retry_after }) => {
            assert!(tokens > 100);
            assert!(
                retry_after > Duration::ZERO && retry_after < Duration::from_secs(3600),
                "{retry_after:?}"
            );
        }
        _ => panic!("taken"),
    }
    // Dropped, it makes room at once.
    drop(large);
    assert_eq!(gated.queue.status().requests, 0);
    assert_eq!(gated.queue.status().waiting_tokens, 0);
    let few = |_| gated.queue.score(pairs[..1].to_vec(), ScoreOptions::default(), None);
    let tickets: Vec<_> = (0..3).map(few).map(Result::unwrap).collect();
    assert!(matches!(few(3), Err(Refused::Full { requests: 3, .. })));
    gated.next();
    tickets.into_iter().for_each(|ticket| assert_eq!(ticket.wait().unwrap().results.len(), 1));
}

#[test]
fn late_work_is_not_run() {
    let pairs = pairs("xlmr_base");
    let gated = Gated::new(open("xlmr_base"), QueueOptions::default());
    gated.hold(&pairs[0]);
    let soon = Instant::now() + Duration::from_millis(50);
    let late = gated.queue.score(pairs.clone(), ScoreOptions::default(), Some(soon)).unwrap();
    assert!(matches!(late.wait(), Err(Failure::Late)));
    assert!(Instant::now() >= soon);
    assert_eq!(gated.queue.status().requests, 0);
    // One that nobody looks at while it becomes late is dropped when the queue comes to it.
    let unwatched = gated.queue.score(pairs.clone(), ScoreOptions::default(), Some(Instant::now())).unwrap();
    let patient = gated.queue.score(pairs[..1].to_vec(), ScoreOptions::default(), None).unwrap();
    assert_eq!(gated.next().sequences, 1);
    patient.wait().unwrap();
    assert!(matches!(unwatched.wait(), Err(Failure::Late)));
}

#[test]
fn a_closed_queue_answers_what_it_has_taken() {
    let pairs = pairs("xlmr_base");
    let gated = Gated::new(open("xlmr_base"), QueueOptions::default());
    gated.hold(&pairs[0]);
    let taken = gated.queue.score(pairs.clone(), ScoreOptions::default(), None).unwrap();
    gated.queue.close();
    assert!(matches!(gated.queue.score(pairs.clone(), ScoreOptions::default(), None), Err(Refused::Closed)));
    assert!(!gated.queue.status().is_open);
    let Gated { queue, go_on, .. } = gated;
    drop(go_on);
    drop(queue);
    assert_eq!(taken.wait().unwrap().results.len(), pairs.len());
}

/// All that is left when it closes may be late.
#[test]
fn a_closed_queue_ends_without_its_late_work() {
    let pairs = pairs("xlmr_base");
    let gated = Gated::new(open("xlmr_base"), QueueOptions::default());
    gated.hold(&pairs[0]);
    let late = gated.queue.score(pairs.clone(), ScoreOptions::default(), Some(Instant::now())).unwrap();
    drop(gated);
    assert!(matches!(late.wait(), Err(Failure::Late)));
}

#[test]
fn what_the_model_does_not_have_is_refused_at_once() {
    let pairs = pairs("xlmr_base");
    let queue = Queue::new(open("xlmr_base"), QueueOptions::default()).unwrap();
    let prompt = ScoreOptions { prompt: Some("?".to_owned()), ..Default::default() };
    match queue.score(pairs.clone(), prompt, None) {
        Err(Refused::Invalid(error)) => assert!(error.to_string().contains("prompt"), "{error}"),
        _ => panic!("taken"),
    }
    let error = queue.embed(vec![String::new()], EmbedOptions::default(), None).err().unwrap();
    assert!(error.to_string().contains("reranker"), "{error}");
    // Nothing to do is done.
    assert!(
        queue.score(Vec::new(), ScoreOptions::default(), None).unwrap().wait().unwrap().results.is_empty()
    );
    assert_eq!(queue.status().requests, 0);
}

/// A pair that the model cannot hold fails alone.
#[test]
fn one_bad_pair_does_not_fail_its_neighbours() {
    let engine = open("xlmr_base");
    let long = ("a query".to_owned(), "word ".repeat(2000));
    let pairs = vec![pairs("xlmr_base")[0].clone(), long, pairs("xlmr_base")[1].clone()];
    let options = ScoreOptions { max_length: Some(100_000), ..Default::default() };
    let queue = Queue::new(Arc::clone(&engine), QueueOptions::default()).unwrap();
    let found = queue.score(pairs.clone(), options.clone(), None).unwrap().wait().unwrap().results;
    assert!(found[0].is_ok() && found[1].is_err() && found[2].is_ok());
    same(&found, &engine.score(&pairs, &options).unwrap());
}

/// What a run spares, in tokens times layers.
#[test]
fn runs_say_what_was_saved() {
    let engine = open("gemma2_lightweight");
    let pairs = pairs("gemma2_lightweight");
    let cutoffs = engine.allowed_cutoffs().unwrap();
    let num_layers = cutoffs.last as u64;
    let cutoff_layers = Some(engine.cutoffs(&[cutoffs.start]).unwrap());
    let compression = Some(Compression::new(2, &[1]).unwrap());
    let options = ScoreOptions { cutoff_layers, compression, ..Default::default() };
    let sequence = engine.pair_sequence(&pairs[0].0, &pairs[0].1, &options).unwrap();
    let tokens = sequence.sequence.input_ids.len() as u64;
    let passage = tokens - (sequence.query_tokens + sequence.prompt_tokens) as u64;
    let gated =
        Gated::new(engine, QueueOptions { batch_tokens: 100_000.try_into().ok(), ..Default::default() });
    let ticket = gated.queue.score(vec![pairs[0].clone(); 3], options, None).unwrap();
    ticket.wait().unwrap();
    let saved = gated.runs.recv().unwrap().saved;
    let depth = cutoffs.start as u64;
    assert_eq!(saved.plain, 3 * tokens * num_layers);
    assert_eq!(saved.cutoff, 3 * tokens * (num_layers - depth));
    assert_eq!(saved.compression, 3 * (passage / 2) * (depth - 1));
    assert_eq!(saved.prefix_sharing, 2 * sequence.query_tokens as u64 * depth);
}
