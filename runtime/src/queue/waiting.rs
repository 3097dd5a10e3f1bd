//! What waits, and in which order it is taken: no clock, no threads, no engine.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::engine::{Encoded, Mode};

/// Texts that a thread tokenises at a time: few enough that a request of many is shared out among threads, and that a small one that comes
/// after it is not held up.
const CHUNK_TEXTS: usize = 16;

/// Requests that have texts to tokenise or sequences to run.
///
/// Both are taken from the request that is due first. `H` is what the caller knows a request by.
pub(super) struct Waiting<H> {
    /// Whether a cutoff's score depends on its place among those of a run.
    heads_by_place: bool,
    requests: HashMap<u64, Entry<H>>,
    /// Those with texts that nobody has begun to tokenise.
    to_tokenize: BTreeSet<(Instant, u64)>,
    /// Those with sequences to run.
    to_run: BTreeSet<(Instant, u64)>,
    deadlines: BTreeSet<(Instant, u64)>,
    next_id: u64,
}

/// A request as the queue sees it.
pub(super) struct Entry<H> {
    pub(super) handle: H,
    /// What it wants computed; sequences run together if their modes are equal.
    pub(super) mode: Mode,
    /// Ascending; of an encoder none.
    pub(super) cutoffs: Vec<usize>,
    /// Layers that its sequences run through.
    pub(super) depth: usize,
    pub(super) arrived: Instant,
    /// Where it stands in the order.
    pub(super) due: Instant,
    pub(super) deadline: Option<Instant>,
    /// Estimated tokens of each text, until it is tokenised.
    pub(super) estimates: Vec<usize>,
    /// Texts that somebody has begun to tokenise.
    begun: usize,
    sequences: VecDeque<Waiter>,
    /// Tokens of `sequences`, and of texts that are not tokenised by estimate.
    tokens: usize,
}

/// A sequence that waits.
pub(super) struct Waiter {
    /// The number of its text in its request.
    pub(super) index: usize,
    pub(super) encoded: Encoded,
    pub(super) since: Instant,
    /// What its tokenisation took.
    pub(super) tokenize: Duration,
}

/// Sequences to be run together.
pub(super) struct Batch<H> {
    pub(super) mode: Mode,
    /// Of all members.
    pub(super) cutoffs: Vec<usize>,
    pub(super) members: Vec<Member<H>>,
    pub(super) tokens: usize,
}

/// A sequence of a batch.
pub(super) struct Member<H> {
    pub(super) request: H,
    pub(super) waiter: Waiter,
}

impl<H> Entry<H> {
    pub(super) fn new(
        handle: H,
        (mode, cutoffs, depth): (Mode, Vec<usize>, usize),
        (arrived, due, deadline): (Instant, Instant, Option<Instant>),
        estimates: Vec<usize>,
    ) -> Self {
        let tokens = estimates.iter().sum();
        let (begun, sequences) = Default::default();
        Self { handle, mode, cutoffs, depth, arrived, due, deadline, estimates, begun, sequences, tokens }
    }
}

impl<H: Clone> Waiting<H> {
    pub(super) fn new(heads_by_place: bool) -> Self {
        let (requests, to_tokenize, to_run, deadlines) = Default::default();
        Self { heads_by_place, requests, to_tokenize, to_run, deadlines, next_id: 0 }
    }

    /// Takes a request in, under the id that is returned.
    pub(super) fn admit(&mut self, entry: impl FnOnce(u64) -> Entry<H>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let entry = entry(id);
        if !entry.estimates.is_empty() {
            self.to_tokenize.insert((entry.due, id));
        }
        self.deadlines.extend(entry.deadline.map(|deadline| (deadline, id)));
        self.requests.insert(id, entry);
        id
    }

    /// The next texts to tokenise.
    pub(super) fn take_texts(&mut self) -> Option<(H, u64, Range<usize>)> {
        let first = *self.to_tokenize.first()?;
        let entry = self.requests.get_mut(&first.1)?;
        let texts = entry.begun..(entry.begun + CHUNK_TEXTS).min(entry.estimates.len());
        entry.begun = texts.end;
        if texts.end == entry.estimates.len() {
            self.to_tokenize.remove(&first);
        }
        Some((entry.handle.clone(), first.1, texts))
    }

    /// Takes in the sequences of `texts`; those that could not be made are not among them. Nothing if the request has gone meanwhile.
    pub(super) fn tokenized(&mut self, id: u64, texts: Range<usize>, sequences: Vec<Waiter>) {
        let Some(entry) = self.requests.get_mut(&id) else { return };
        entry.tokens -= entry.estimates[texts].iter().sum::<usize>();
        entry.tokens += sequences.iter().map(|waiter| waiter.encoded.tokens()).sum::<usize>();
        if !sequences.is_empty() {
            self.to_run.insert((entry.due, id));
        }
        entry.sequences.extend(sequences);
    }

    /// Forgets a request: it has been answered, or nobody waits for it.
    pub(super) fn remove(&mut self, id: u64) -> Option<H> {
        let entry = self.requests.remove(&id)?;
        self.to_tokenize.remove(&(entry.due, id));
        self.to_run.remove(&(entry.due, id));
        if let Some(deadline) = entry.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(entry.handle)
    }

    /// Removes a request whose deadline has passed.
    pub(super) fn expired(&mut self, now: Instant) -> Option<H> {
        let (_, id) = *self.deadlines.first().filter(|(deadline, _)| *deadline <= now)?;
        self.remove(id)
    }

    /// Requests that have not been answered.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn handles(&self) -> impl Iterator<Item = H> {
        self.requests.values().map(|entry| entry.handle.clone())
    }

    /// Tokens that wait, by estimate where they are not counted yet.
    pub(super) fn tokens(&self) -> usize {
        self.requests.values().map(|entry| entry.tokens).sum()
    }

    /// The same, each as often as the layers it has to run through.
    pub(super) fn layer_tokens(&self) -> usize {
        self.requests.values().map(|entry| entry.tokens * entry.depth).sum()
    }

    /// When the request came that has been there longest and waits for something.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.requests.values().filter(|entry| entry.tokens > 0).map(|entry| entry.arrived).min()
    }

    /// Whether sequences for a whole batch can be run.
    pub(super) fn fills(&self, batch_tokens: usize) -> bool {
        let mut tokens = 0;
        let of = |waiter: &Waiter| waiter.encoded.tokens();
        self.to_run.iter().flat_map(|(_, id)| &self.requests[id].sequences).any(|waiter| {
            tokens += of(waiter);
            tokens >= batch_tokens
        })
    }

    /// The next sequences to run: those of the request that is due first, and of others what shares their work, up to `batch_tokens`.
    ///
    /// Others of the same mode join if their cutoffs lie no deeper, and if that costs less than a run of their own: a layer takes as long for
    /// `few_tokens` tokens as for fewer, because its weights have to be read. Where heads go by place, their cutoffs must be the first of the run's.
    pub(super) fn take_batch(&mut self, batch_tokens: usize, few_tokens: usize) -> Option<Batch<H>> {
        let first = &self.requests[&self.to_run.first()?.1];
        let (mode, cutoffs, depth) = (first.mode.clone(), first.cutoffs.clone(), first.depth);
        let mut batch = Batch { mode, cutoffs: Vec::new(), members: Vec::new(), tokens: 0 };
        for (due, id) in self.to_run.iter().copied().collect::<Vec<_>>() {
            let Some(entry) = self.requests.get_mut(&id) else { continue };
            let ready: usize = entry.sequences.iter().map(|waiter| waiter.encoded.tokens()).sum();
            let room = batch_tokens.saturating_sub(batch.tokens);
            let joins = batch.members.is_empty()
                || entry.mode == batch.mode
                    && (!self.heads_by_place || cutoffs.starts_with(&entry.cutoffs))
                    && is_shared((depth, batch.tokens), (entry.depth, ready.min(room)), few_tokens);
            if !joins {
                continue;
            }
            let before = batch.members.len();
            while let Some(next) = entry.sequences.front()
                && (batch.members.is_empty() || batch.tokens + next.encoded.tokens() <= batch_tokens)
                && let Some(waiter) = entry.sequences.pop_front()
            {
                batch.tokens += waiter.encoded.tokens();
                entry.tokens -= waiter.encoded.tokens();
                batch.members.push(Member { request: entry.handle.clone(), waiter });
            }
            if batch.members.len() > before {
                batch.cutoffs.extend(&entry.cutoffs);
            }
            if entry.sequences.is_empty() {
                self.to_run.remove(&(due, id));
            }
            if batch.tokens >= batch_tokens {
                break;
            }
        }
        batch.cutoffs.sort_unstable();
        batch.cutoffs.dedup();
        Some(batch)
    }
}

/// Whether sequences of `joining` tokens and layers run with others, of whose layers they need no more, in less time than alone.
fn is_shared((depth, tokens): (usize, usize), joining: (usize, usize), few_tokens: usize) -> bool {
    let time = |depth: usize, tokens: usize| depth * tokens.max(few_tokens);
    joining.0 <= depth && time(depth, tokens + joining.1) <= time(depth, tokens) + time(joining.0, joining.1)
}

#[cfg(test)]
mod tests {
    use outcrop_models::input::Sequence;

    use super::*;
    use crate::Compression;

    type Members = Vec<(&'static str, usize)>;

    struct Fixture {
        waiting: Waiting<&'static str>,
        start: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self { waiting: Waiting::new(false), start: Instant::now() }
        }

        /// A request that is due `due` milliseconds from the start, with tokenised sequences of these lengths.
        fn ready(&mut self, name: &'static str, due: u64, terms: (Mode, &[usize]), lengths: &[usize]) -> u64 {
            let (start, due) = (self.start, self.start + Duration::from_millis(due));
            let depth = terms.1.last().copied().unwrap_or(12);
            let entry = |_| {
                let (mode, cutoffs) = terms;
                Entry::new(name, (mode, cutoffs.to_vec(), depth), (start, due, None), vec![1; lengths.len()])
            };
            let id = self.waiting.admit(entry);
            let mut done = 0;
            while done < lengths.len() {
                let (_, found, texts) = self.waiting.take_texts().unwrap();
                assert_eq!(found, id);
                let sequences = texts.clone().map(|index| waiter(index, lengths[index], start)).collect();
                done = texts.end;
                self.waiting.tokenized(id, texts, sequences);
            }
            id
        }

        /// The members of the next batch, and its cutoffs.
        fn batch(&mut self, batch_tokens: usize) -> Option<(Members, Vec<usize>)> {
            let batch = self.waiting.take_batch(batch_tokens, 16)?;
            let tokens: usize = batch.members.iter().map(|m| m.waiter.encoded.tokens()).sum();
            assert_eq!(tokens, batch.tokens);
            Some((batch.members.iter().map(|m| (m.request, m.waiter.index)).collect(), batch.cutoffs))
        }
    }

    fn waiter(index: usize, tokens: usize, since: Instant) -> Waiter {
        let sequence = Sequence { input_ids: vec![0; tokens], truncated: false };
        Waiter { index, encoded: Encoded::Sequence(sequence), since, tokenize: Duration::ZERO }
    }

    fn score() -> (Mode, &'static [usize]) {
        (Mode::Score, &[])
    }

    #[test]
    fn batches_are_filled_in_the_order_of_dues() {
        let mut queue = Fixture::new();
        queue.ready("late", 9, score(), &[10, 10]);
        queue.ready("early", 3, score(), &[20, 20, 20]);
        assert_eq!(queue.waiting.tokens(), 80);
        assert!(queue.waiting.fills(80) && !queue.waiting.fills(81));
        // The third of `early` does not fit, and what is shorter fills the batch.
        assert_eq!(queue.batch(55).unwrap().0, [("early", 0), ("early", 1), ("late", 0)]);
        assert_eq!(queue.waiting.tokens(), 30);
        assert_eq!(queue.batch(55).unwrap().0, [("early", 2), ("late", 1)]);
        assert!(queue.batch(55).is_none());
        assert_eq!((queue.waiting.tokens(), queue.waiting.len()), (0, 2));
    }

    #[test]
    fn a_sequence_longer_than_a_batch_runs_alone() {
        let mut queue = Fixture::new();
        queue.ready("long", 0, score(), &[100, 5]);
        assert_eq!(queue.batch(50).unwrap().0, [("long", 0)]);
        assert_eq!(queue.batch(50).unwrap().0, [("long", 1)]);
    }

    #[test]
    fn modes_do_not_mix() {
        let mut queue = Fixture::new();
        let by_two = Mode::Layers(Some(Compression::new(2, &[8]).unwrap()));
        queue.ready("plain", 0, (Mode::Layers(None), &[28]), &[10]);
        queue.ready("compressed", 1, (by_two.clone(), &[28]), &[10]);
        queue.ready("plain too", 2, (Mode::Layers(None), &[28]), &[10]);
        queue.ready("compressed too", 3, (by_two, &[28]), &[10]);
        assert_eq!(queue.batch(100).unwrap().0, [("plain", 0), ("plain too", 0)]);
        assert_eq!(queue.batch(100).unwrap().0, [("compressed", 0), ("compressed too", 0)]);
    }

    #[test]
    fn shallower_cutoffs_join_where_that_saves_reading_weights() {
        fn layers(cutoffs: &[usize]) -> (Mode, &[usize]) {
            (Mode::Layers(None), cutoffs)
        }
        let mut queue = Fixture::new();
        queue.ready("deep", 0, layers(&[8, 28]), &[10]);
        queue.ready("shallow, few", 1, layers(&[8]), &[6]);
        queue.ready("shallow, many", 2, layers(&[8]), &[100]);
        queue.ready("as deep", 3, layers(&[28]), &[100]);
        queue.ready("deeper", 4, layers(&[40]), &[1]);
        let (members, cutoffs) = queue.batch(1000).unwrap();
        assert_eq!(members, [("deep", 0), ("shallow, few", 0), ("as deep", 0)]);
        assert_eq!(cutoffs, [8, 28]);
        assert_eq!(queue.batch(1000).unwrap(), (vec![("shallow, many", 0)], vec![8]));
        assert_eq!(queue.batch(1000).unwrap(), (vec![("deeper", 0)], vec![40]));
    }

    #[test]
    fn cutoffs_keep_their_places_where_heads_go_by_them() {
        let layers = |cutoffs: &'static [usize]| (Mode::Layers(None), cutoffs);
        let mut queue = Fixture { waiting: Waiting::new(true), start: Instant::now() };
        queue.ready("first and last", 0, layers(&[8, 28]), &[5]);
        queue.ready("last", 1, layers(&[28]), &[5]);
        queue.ready("first", 2, layers(&[8]), &[5]);
        queue.ready("the same", 3, layers(&[8, 28]), &[5]);
        assert_eq!(
            queue.batch(100).unwrap(),
            (vec![("first and last", 0), ("first", 0), ("the same", 0)], vec![8, 28])
        );
        assert_eq!(queue.batch(100).unwrap(), (vec![("last", 0)], vec![28]));
    }

    #[test]
    fn texts_are_tokenised_in_the_order_of_dues_and_in_chunks() {
        let mut waiting = Waiting::new(false);
        let start = Instant::now();
        let times = |due| (start, start + Duration::from_millis(due), None);
        let terms = || (Mode::Score, Vec::new(), 12);
        let large = waiting.admit(|_| Entry::new("large", terms(), times(5), vec![7; 40]));
        assert_eq!(waiting.take_texts(), Some(("large", large, 0..16)));
        let small = waiting.admit(|_| Entry::new("small", terms(), times(1), vec![3; 2]));
        assert_eq!(waiting.take_texts(), Some(("small", small, 0..2)));
        assert_eq!(waiting.take_texts(), Some(("large", large, 16..32)));
        assert_eq!(waiting.take_texts(), Some(("large", large, 32..40)));
        assert_eq!(waiting.take_texts(), None);
        assert_eq!((waiting.tokens(), waiting.layer_tokens()), (286, 286 * 12));
        // One of the two could not be tokenised.
        waiting.tokenized(small, 0..2, vec![waiter(1, 9, start)]);
        assert_eq!(waiting.tokens(), 289);
        // What comes for a request that has gone is dropped.
        assert_eq!(waiting.remove(large), Some("large"));
        waiting.tokenized(large, 0..16, vec![waiter(0, 9, start)]);
        assert_eq!((waiting.tokens(), waiting.len()), (9, 1));
        assert!(waiting.remove(large).is_none());
    }

    #[test]
    fn what_is_late_is_not_run() {
        let mut queue = Fixture::new();
        let soon = queue.start + Duration::from_millis(10);
        let times = (queue.start, queue.start, Some(soon));
        let id = queue.waiting.admit(|_| Entry::new("late", (Mode::Score, Vec::new(), 12), times, vec![5]));
        queue.waiting.take_texts();
        queue.waiting.tokenized(id, 0..1, vec![waiter(0, 5, times.0)]);
        queue.ready("patient", 5, score(), &[5]);
        assert!(queue.waiting.expired(queue.start).is_none());
        assert_eq!(queue.waiting.expired(soon), Some("late"));
        assert_eq!(queue.waiting.expired(soon + Duration::from_secs(9)), None);
        assert_eq!(queue.batch(100).unwrap().0, [("patient", 0)]);
    }
}
