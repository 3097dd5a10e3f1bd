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
pub fn encode_pair(query: &[u32], passage: &[u32], special: SpecialIds<'_>, limits: PairLimits) -> Sequence {
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
    Sequence { input_ids, truncated }
}

/// A single text as the embedders read it: `<s> text </s>`, cut to `max_length` tokens in all (SPEC 8).
pub fn encode_text(text: &[u32], special: SpecialIds<'_>, max_length: usize) -> Sequence {
    let room = max_length.saturating_sub(special.before.len() + special.after.len());
    let kept = &text[..text.len().min(room)];
    Sequence { input_ids: [special.before, kept, special.after].concat(), truncated: kept.len() < text.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: SpecialIds<'static> = SpecialIds { before: &[0], after: &[2] };

    fn pair(query: usize, passage: usize, limits: PairLimits) -> (usize, usize, bool) {
        let (query, passage) = (vec![10; query], vec![20; passage]);
        let sequence = encode_pair(&query, &passage, SPECIAL, limits);
        let count = |id| sequence.input_ids.iter().filter(|x| **x == id).count();
        assert_eq!(sequence.input_ids.len(), count(10) + count(20) + 4);
        (count(10), count(20), sequence.truncated)
    }

    #[test]
    fn layout_of_a_pair() {
        let sequence = encode_pair(&[5, 6], &[7], SPECIAL, PairLimits::new(512, None));
        assert_eq!(sequence, Sequence { input_ids: vec![0, 5, 6, 2, 2, 7, 2], truncated: false });
        let empty = encode_pair(&[], &[], SPECIAL, PairLimits::new(512, None));
        assert_eq!(empty.input_ids, [0, 2, 2, 2]);
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

    #[test]
    fn a_text_keeps_its_special_tokens() {
        let text = encode_text(&[5, 6, 7, 8], SPECIAL, 5);
        assert_eq!(text, Sequence { input_ids: vec![0, 5, 6, 7, 2], truncated: true });
        assert_eq!(encode_text(&[5], SPECIAL, 3), Sequence { input_ids: vec![0, 5, 2], truncated: false });
        assert_eq!(encode_text(&[5], SPECIAL, 0).input_ids, [0, 2]);
    }
}
