//! A packed batch of pairs: prefixes that sequences may share, and the rest of each sequence.

use outcrop_kernels::attention::{self, AttentionParams, Mask, Span};
use outcrop_kernels::gemm;
use outcrop_kernels::token_compress::Compress;
use outcrop_loader::DecoderConfig;

use super::activations::Widths;
use crate::input::PairSequence;

/// Pairs that begin with the same tokens: BOS, query, separator.
pub struct Group<'a> {
    /// The pairs, in the order of their scores; at least one.
    pub pairs: Vec<&'a PairSequence>,
    /// Whether the keys and values of the prefix were kept by the batch before: its tokens are not in this one.
    pub is_carried: bool,
    /// Whether the next batch goes on with this group and wants them.
    pub is_kept: bool,
}

/// The tokens of a packed batch, where each sequence lies, and which prefix stands before it.
///
/// A causal decoder's states depend on what stands before a token alone, so a prefix is computed once for all the sequences
/// behind it (DESIGN 3). A sequence alone is laid out in the same way, prefix and rest: nothing that is computed depends on how
/// many share, not even in its last bit.
pub struct Batch {
    pub(super) input_ids: Vec<u32>,
    segments: Vec<Segment>,
    /// Rows of the carried prefix; they stand behind the batch's own where keys are.
    pub(super) carried_rows: usize,
    /// The segment to keep for the next batch.
    kept_segment: Option<usize>,
    pub(super) layout: Layout,
}

/// A prefix, or the rest of a sequence.
struct Segment {
    parts: Compress,
    before: Before,
    is_scored: bool,
}

/// What stands before a segment.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    Segment(usize),
    Carried,
}

/// Where everything lies; changes when passages are compressed.
#[derive(Default)]
pub(super) struct Layout {
    pub(super) num_tokens: usize,
    pub(super) position_ids: Vec<u32>,
    pub(super) spans: Vec<Span>,
    /// Last row of each sequence: the one that is scored.
    pub(super) last_rows: Vec<usize>,
    pub(super) last_position_ids: Vec<u32>,
    /// The scored rows alone, gathered, each with all of its keys.
    pub(super) last_spans: Vec<Span>,
    /// What `token_compress` takes.
    pub(super) parts: Vec<Compress>,
    /// Rows of the kept prefix.
    pub(super) kept_rows: std::ops::Range<usize>,
}

impl Batch {
    /// Packs the groups in the order given. Only the first may be carried, and only the last kept.
    pub fn new(groups: &[Group<'_>]) -> Self {
        let mut batch = Self {
            input_ids: Vec::new(),
            segments: Vec::new(),
            carried_rows: 0,
            kept_segment: None,
            layout: Layout::default(),
        };
        for group in groups {
            batch.push_group(group);
        }
        batch.lay_out();
        batch
    }

    fn push_group(&mut self, group: &Group<'_>) {
        let prefix = group.pairs.first().map_or(&[][..], |pair| pair.prefix());
        let before = if prefix.is_empty() {
            Before::Nothing
        } else if group.is_carried {
            self.carried_rows = prefix.len();
            Before::Carried
        } else {
            let parts = Compress { query: prefix.len(), passage: 0, prompt: 0 };
            self.input_ids.extend_from_slice(prefix);
            self.segments.push(Segment { parts, before: Before::Nothing, is_scored: false });
            if group.is_kept {
                self.kept_segment = Some(self.segments.len() - 1);
            }
            Before::Segment(self.segments.len() - 1)
        };
        for pair in &group.pairs {
            let rest = pair.rest();
            self.input_ids.extend_from_slice(rest);
            let parts =
                Compress { query: 0, passage: rest.len() - pair.prompt_tokens, prompt: pair.prompt_tokens };
            self.segments.push(Segment { parts, before, is_scored: true });
        }
    }

    /// Sequences in the batch.
    pub fn num_seqs(&self) -> usize {
        self.layout.last_rows.len()
    }

    /// Rows computed.
    pub fn num_tokens(&self) -> usize {
        self.layout.num_tokens
    }

    /// The length of each sequence as it stands, prefix included.
    pub fn tokens(&self) -> impl Iterator<Item = usize> + '_ {
        self.layout.last_spans.iter().map(Span::num_keys)
    }

    /// Floating-point operations of the matrix products of one layer, the batch being as it stands; of the last layer run, where
    /// queries, output projection and MLP take the scored rows alone. A fused multiply-add counts two.
    pub fn layer_flops(&self, config: &DecoderConfig, is_last: bool) -> u64 {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let widths = Widths::of(config);
        let tokens = self.num_tokens();
        let (rows, spans) = match is_last {
            true => (self.num_seqs(), &self.layout.last_spans),
            false => (tokens, &self.layout.spans),
        };
        // The shape alone counts; a window beyond the longest sequence is none.
        let params = AttentionParams {
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            softmax_scale: 1.0,
            mask: Mask::Causal,
            softcap: None,
        };
        let product = |m: usize, n: usize, k: usize| gemm::cost(m, n, k, 0).flops;
        product(tokens, 2 * widths.kv, hidden)
            + product(rows, widths.q, hidden)
            + attention::cost(spans, params).flops
            + product(rows, hidden, widths.q)
            + product(rows, 2 * intermediate, hidden)
            + product(rows, hidden, intermediate)
    }

    /// Takes note that passages have been compressed by `ratio`: positions are counted anew (SPEC 7.3). [`Pass::compress`] does it
    /// for a batch that is run.
    ///
    /// [`Pass::compress`]: super::Pass::compress
    pub fn compress(&mut self, ratio: usize) {
        for segment in &mut self.segments {
            segment.parts = segment.parts.compressed(ratio);
        }
        self.lay_out();
    }

    fn lay_out(&mut self) {
        let num_tokens = self.segments.iter().map(|segment| segment.parts.len()).sum();
        let mut layout = Layout { num_tokens, ..Layout::default() };
        let mut rows_of = Vec::with_capacity(self.segments.len());
        let mut start = 0;
        for segment in &self.segments {
            let rows = start..start + segment.parts.len();
            start = rows.end;
            let prefix = match segment.before {
                Before::Nothing => 0..0,
                Before::Segment(i) => std::ops::Range::clone(&rows_of[i]),
                Before::Carried => num_tokens..num_tokens + self.carried_rows,
            };
            let positions = (prefix.len()..prefix.len() + rows.len()).map(position_id);
            layout.position_ids.extend(positions);
            if segment.is_scored {
                let nth = layout.last_rows.len();
                layout.last_rows.push(rows.end - 1);
                layout.last_position_ids.push(position_id(prefix.len() + rows.len() - 1));
                let queries = nth..nth + 1;
                layout.last_spans.push(Span { queries, prefix: prefix.clone(), keys: rows.clone() });
            }
            layout.spans.push(Span { queries: rows.clone(), prefix, keys: rows.clone() });
            layout.parts.push(segment.parts);
            rows_of.push(rows);
        }
        layout.kept_rows = self.kept_segment.map_or(0..0, |i| rows_of[i].clone());
        self.layout = layout;
    }
}

/// Sequences are bounded far below what 32 bits hold.
fn position_id(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Sequence;

    /// A pair whose tokens are numbered from `first`.
    fn pair(query: u32, passage: u32, prompt: u32, first: u32) -> PairSequence {
        PairSequence {
            sequence: Sequence {
                input_ids: (0..query).chain(first..first + passage + prompt).collect(),
                truncated: false,
            },
            query_tokens: query as usize,
            prompt_tokens: prompt as usize,
        }
    }

    fn group<'a>(pairs: &[&'a PairSequence]) -> Group<'a> {
        Group { pairs: pairs.to_vec(), is_carried: false, is_kept: false }
    }

    #[test]
    fn a_prefix_stands_once_before_its_sequences() {
        let (a, b, c) = (pair(3, 4, 2, 10), pair(3, 0, 2, 20), pair(2, 1, 1, 30));
        let batch = Batch::new(&[group(&[&a, &b]), group(&[&c])]);
        assert_eq!(batch.input_ids, [0, 1, 2, 10, 11, 12, 13, 14, 15, 20, 21, 0, 1, 30, 31]);
        assert_eq!(batch.layout.position_ids, [0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 4, 0, 1, 2, 3]);
        let span = |queries: std::ops::Range<usize>, prefix| Span { keys: queries.clone(), queries, prefix };
        let expected =
            [span(0..3, 0..0), span(3..9, 0..3), span(9..11, 0..3), span(11..13, 0..0), span(13..15, 11..13)];
        assert_eq!(batch.layout.spans, expected);
        assert_eq!(batch.layout.last_rows, [8, 10, 14]);
        assert_eq!(batch.layout.last_position_ids, [8, 4, 3]);
        assert_eq!(batch.layout.last_spans[1], Span { queries: 1..2, prefix: 0..3, keys: 9..11 });
        assert_eq!((batch.num_seqs(), batch.num_tokens()), (3, 15));
        assert_eq!(batch.tokens().collect::<Vec<_>>(), [9, 5, 4]);
    }

    #[test]
    fn a_carried_prefix_stands_behind_the_rows_and_a_kept_one_among_them() {
        let (a, b) = (pair(3, 4, 2, 10), pair(2, 1, 1, 30));
        let carried = Group { is_carried: true, ..group(&[&a]) };
        let kept = Group { is_kept: true, ..group(&[&b]) };
        let mut batch = Batch::new(&[carried, kept]);
        assert_eq!(batch.input_ids, [10, 11, 12, 13, 14, 15, 0, 1, 30, 31]);
        assert_eq!(batch.layout.position_ids, [3, 4, 5, 6, 7, 8, 0, 1, 2, 3]);
        assert_eq!((batch.carried_rows, batch.layout.kept_rows.clone()), (3, 6..8));
        assert_eq!(batch.layout.spans[0].prefix, 10..13);
        assert_eq!(batch.tokens().collect::<Vec<_>>(), [9, 4]);
        // Four rows of passage become two, and all that stands behind them moves up.
        batch.compress(2);
        assert_eq!(batch.layout.position_ids, [3, 4, 5, 6, 0, 1, 2, 3]);
        assert_eq!(batch.layout.kept_rows, 4..6);
        assert_eq!(batch.layout.spans[0], Span { queries: 0..4, prefix: 8..11, keys: 0..4 });
        assert_eq!(batch.layout.last_rows, [3, 7]);
        assert_eq!(batch.tokens().collect::<Vec<_>>(), [7, 4]);
    }
}
