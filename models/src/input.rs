//! From the token ids of texts to the sequence a model reads: truncation and special tokens.
//!
//! Ids arrive without special tokens; a literal special token in a text is already its special id, as in the reference.

/// A sequence ready for a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids, special ones included.
    pub input_ids: Vec<u32>,
    /// Whether any text lost tokens to a limit.
    pub truncated: bool,
}

/// A pair as a model reads it, and where its parts end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairSequence {
    /// The whole.
    pub sequence: Sequence,
    /// Tokens of the query and what stands around it, up to the passage: what all passages of a query share.
    pub query_tokens: usize,
    /// Tokens behind the passage: the last separator, and the prompt where there is one.
    pub prompt_tokens: usize,
}

impl PairSequence {
    /// Everything before the passage.
    pub fn prefix(&self) -> &[u32] {
        &self.sequence.input_ids[..self.query_tokens]
    }

    /// The passage and everything behind it.
    pub fn rest(&self) -> &[u32] {
        &self.sequence.input_ids[self.query_tokens..]
    }
}

/// Length limits of a pair, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairLimits {
    /// Limit of the whole sequence, special tokens included, and of the passage before it is joined.
    pub max_length: usize,
    /// Limit of the query.
    pub query_max_length: usize,
}

impl PairLimits {
    /// The reference's rule: the query may take three quarters of `max_length` unless told otherwise (SPEC 1.5).
    pub fn new(max_length: usize, query_max_length: Option<usize>) -> Self {
        Self { max_length, query_max_length: query_max_length.unwrap_or(max_length * 3 / 4) }
    }
}

/// The ids a single text is wrapped in: `<s>` and `</s>`, or `[CLS]` and `[SEP]`.
#[derive(Clone, Copy, Debug)]
pub struct SpecialIds<'a> {
    /// Before the text.
    pub before: &'a [u32],
    /// After the text.
    pub after: &'a [u32],
}

/// Joins a query and a passage as the cross-encoders read them: `<s> query </s> </s> passage </s>` (SPEC 3.1).
///
/// Only the passage gives way: when the sequence is too long, the excess is cut from the passage's end, unless the passage
/// is no longer than the excess; then nothing is cut and the sequence stays too long, as in the reference.
pub fn encode_pair(
    query: &[u32],
    passage: &[u32],
    special: SpecialIds<'_>,
    limits: PairLimits,
) -> PairSequence {
    let query_kept = &query[..query.len().min(limits.query_max_length)];
    let mut passage_kept = &passage[..passage.len().min(limits.max_length)];
    let num_special = special.before.len() + 3 * special.after.len();
    let excess = (query_kept.len() + passage_kept.len() + num_special).saturating_sub(limits.max_length);
    if excess < passage_kept.len() {
        passage_kept = &passage_kept[..passage_kept.len() - excess];
    }
    let input_ids =
        [special.before, query_kept, special.after, special.after, passage_kept, special.after].concat();
    let truncated = query_kept.len() < query.len() || passage_kept.len() < passage.len();
    PairSequence {
        sequence: Sequence { input_ids, truncated },
        query_tokens: special.before.len() + query_kept.len() + 2 * special.after.len(),
        prompt_tokens: special.after.len(),
    }
}

/// A single text as the embedders read it: `<s> text </s>`, cut to `max_length` tokens in all (SPEC 8).
pub fn encode_text(text: &[u32], special: SpecialIds<'_>, max_length: usize) -> Sequence {
    let room = max_length.saturating_sub(special.before.len() + special.after.len());
    let kept = &text[..text.len().min(room)];
    Sequence { input_ids: [special.before, kept, special.after].concat(), truncated: kept.len() < text.len() }
}

/// What stands around query and passage in the sequences of the decoder families.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Before the query; Gemma leaves it out where it is the padding id.
    pub bos: Option<u32>,
    /// Between query and passage, and between passage and prompt: the ids of a line break.
    pub separator: &'a [u32],
    /// The question asked of the model, at the end.
    pub prompt: &'a [u32],
}

/// Joins a query and a passage as the decoders read them: BOS, query, separator, passage, separator, prompt (SPEC 4.1).
///
/// `max_length` bounds BOS, query, separator and passage, less what separator and prompt take once; both then follow once
/// more. As in [`encode_pair`] only the passage gives way, and not at all when its part, with the separator before it, is no
/// longer than what must go. Query and passage arrive with their own prefixes, each tokenised on its own.
pub fn encode_prompted_pair(
    query: &[u32],
    passage: &[u32],
    prompt: Prompt<'_>,
    limits: PairLimits,
) -> PairSequence {
    let Prompt { bos, separator, prompt } = prompt;
    let query_kept = &query[..query.len().min(limits.query_max_length)];
    let mut passage_kept = &passage[..passage.len().min(limits.max_length)];
    let bos = Vec::from_iter(bos);
    let limit = limits.max_length + separator.len() + prompt.len();
    let joined = bos.len() + query_kept.len() + separator.len() + passage_kept.len();
    let excess = joined.saturating_sub(limit);
    // What is cut is separator and passage together, from the end. Where the query takes more than its share the cut can use up
    // the passage and reach a separator of several ids.
    let mut first_separator = separator;
    if excess < separator.len() + passage_kept.len() {
        let from_separator = excess.saturating_sub(passage_kept.len());
        passage_kept = &passage_kept[..passage_kept.len().saturating_sub(excess)];
        first_separator = &separator[..separator.len() - from_separator];
    }
    let input_ids = [&bos, query_kept, first_separator, passage_kept, separator, prompt].concat();
    let truncated = query_kept.len() < query.len() || passage_kept.len() < passage.len();
    PairSequence {
        query_tokens: bos.len() + query_kept.len() + first_separator.len(),
        prompt_tokens: separator.len() + prompt.len(),
        sequence: Sequence { input_ids, truncated },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: SpecialIds<'static> = SpecialIds { before: &[0], after: &[2] };

    fn pair(query: usize, passage: usize, limits: PairLimits) -> (usize, usize, bool) {
        let (query, passage) = (vec![10; query], vec![20; passage]);
        let pair = encode_pair(&query, &passage, SPECIAL, limits);
        assert!(pair.prefix().ends_with(&[2, 2]) && pair.rest().ends_with(&[2]));
        let sequence = pair.sequence;
        let count = |id| sequence.input_ids.iter().filter(|x| **x == id).count();
        assert_eq!(sequence.input_ids.len(), count(10) + count(20) + 4);
        (count(10), count(20), sequence.truncated)
    }

    #[test]
    fn layout_of_a_pair() {
        let pair = encode_pair(&[5, 6], &[7], SPECIAL, PairLimits::new(512, None));
        assert_eq!(pair.sequence, Sequence { input_ids: vec![0, 5, 6, 2, 2, 7, 2], truncated: false });
        assert_eq!((pair.query_tokens, pair.prompt_tokens), (5, 1));
        let empty = encode_pair(&[], &[], SPECIAL, PairLimits::new(512, None));
        assert_eq!(empty.sequence.input_ids, [0, 2, 2, 2]);
    }

    #[test]
    fn only_the_passage_gives_way() {
        let limits = PairLimits::new(64, None);
        assert_eq!(limits.query_max_length, 48);
        assert_eq!(pair(10, 50, limits), (10, 50, false));
        assert_eq!(pair(10, 51, limits), (10, 50, true));
        assert_eq!(pair(100, 100, limits), (48, 12, true));
        // The passage is itself limited before it is joined.
        assert_eq!(pair(0, 100, limits), (0, 60, true));
    }

    #[test]
    fn a_passage_no_longer_than_the_excess_is_left_whole() {
        // 48 + 12 + 4 = 64; a query limit above leaves no room, so nothing is cut.
        let limits = PairLimits::new(64, Some(60));
        assert_eq!(pair(60, 3, limits), (60, 3, false));
        assert_eq!(pair(60, 4, limits), (60, 4, false));
        assert_eq!(pair(59, 4, limits), (59, 1, true));
        assert_eq!(pair(10, 5, PairLimits::new(8, None)), (6, 5, true));
    }

    fn prompted(query: usize, passage: usize, limits: PairLimits) -> (usize, usize, usize, bool) {
        let prompt = Prompt { bos: Some(1), separator: &[3, 4], prompt: &[5, 6, 7] };
        let pair = encode_prompted_pair(&vec![10; query], &vec![20; passage], prompt, limits);
        let count = |id| pair.sequence.input_ids.iter().filter(|x| **x == id).count();
        assert_eq!(pair.prefix().len(), 1 + count(10) + count(3) + count(4) - 2);
        assert_eq!(pair.rest().len(), count(20) + 5);
        assert_eq!(pair.prompt_tokens, 5);
        (count(10), count(20), count(4) - 1, pair.sequence.truncated)
    }

    #[test]
    fn layout_of_a_prompted_pair() {
        let prompt = Prompt { bos: Some(1), separator: &[3], prompt: &[5, 6] };
        let pair = encode_prompted_pair(&[10, 11], &[20], prompt, PairLimits::new(512, None));
        assert_eq!(pair.sequence.input_ids, [1, 10, 11, 3, 20, 3, 5, 6]);
        assert_eq!((pair.query_tokens, pair.prompt_tokens, pair.sequence.truncated), (4, 3, false));
        let bare = Prompt { bos: None, separator: &[3], prompt: &[] };
        let pair = encode_prompted_pair(&[], &[], bare, PairLimits::new(512, None));
        assert_eq!(pair.sequence.input_ids, [3, 3]);
    }

    #[test]
    fn the_limit_of_a_prompted_pair_leaves_room_for_separator_and_prompt() {
        // 1 + query + passage may reach max_length + 3.
        let limits = PairLimits::new(20, None);
        assert_eq!(prompted(10, 12, limits), (10, 12, 1, false));
        assert_eq!(prompted(10, 13, limits), (10, 12, 1, true));
        // The passage alone is cut to max_length first, the query to three quarters of it.
        assert_eq!(prompted(0, 30, limits), (0, 20, 1, true));
        assert_eq!(prompted(100, 100, limits), (15, 7, 1, true));
    }

    #[test]
    fn a_prompted_passage_no_longer_than_the_excess_is_left_whole() {
        // 1 + 25 + 2 + 5 against 20 + 2 + 3: an excess of 8 leaves 7 tokens of separator and passage whole.
        assert_eq!(prompted(25, 5, PairLimits::new(20, Some(25))), (25, 5, 1, false));
        // 1 + 22 + 2 + 5: an excess of 5 takes the passage, one of 6 an id of the separator too, one of 7 nothing.
        assert_eq!(prompted(22, 5, PairLimits::new(20, Some(25))), (22, 0, 1, true));
        assert_eq!(prompted(23, 5, PairLimits::new(20, Some(25))), (23, 0, 0, true));
        assert_eq!(prompted(24, 5, PairLimits::new(20, Some(25))), (24, 5, 1, false));
    }

    #[test]
    fn a_text_keeps_its_special_tokens() {
        let text = encode_text(&[5, 6, 7, 8], SPECIAL, 5);
        assert_eq!(text, Sequence { input_ids: vec![0, 5, 6, 7, 2], truncated: true });
        assert_eq!(encode_text(&[5], SPECIAL, 3), Sequence { input_ids: vec![0, 5, 2], truncated: false });
        assert_eq!(encode_text(&[5], SPECIAL, 0).input_ids, [0, 2]);
    }
}
