//! A packed batch of pairs: prefixes that sequences may share, and the rest of each sequence.

use outcrop_kernels::attention::{self, AttentionParams, Mask};
use outcrop_kernels::gemm;
use outcrop_kernels::layout::{Before, Layout, ScoredRow, Segment, Segments};
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
#[derive(Clone)]
pub struct Batch {
    pub(super) input_ids: Vec<u32>,
    pub(super) segments: Segments,
}

impl Batch {
    /// Packs the groups in the order given. Only the first may be carried, and only the last kept.
    pub fn new(groups: &[Group<'_>]) -> Self {
        let mut batch = Self { input_ids: Vec::new(), segments: Segments::of_sequences([], ScoredRow::Last) };
        for group in groups {
            batch.push_group(group);
        }
        batch
    }

    fn push_group(&mut self, group: &Group<'_>) {
        let prefix = group.pairs.first().map_or(&[][..], |pair| pair.prefix());
        let before = if prefix.is_empty() {
            Before::Nothing
        } else if group.is_carried {
            self.segments.carried_rows = prefix.len();
            Before::Carried
        } else {
            let parts = Compress { query: prefix.len(), passage: 0, prompt: 0 };
            self.input_ids.extend_from_slice(prefix);
            let nth = self.segments.segments.len();
            self.segments.segments.push(Segment { parts, before: Before::Nothing, is_scored: false });
            if group.is_kept {
                self.segments.kept_segment = Some(nth);
            }
            Before::Segment(nth)
        };
        for pair in &group.pairs {
            let rest = pair.rest();
            self.input_ids.extend_from_slice(rest);
            let parts =
                Compress { query: 0, passage: rest.len() - pair.prompt_tokens, prompt: pair.prompt_tokens };
            self.segments.segments.push(Segment { parts, before, is_scored: true });
        }
    }

    /// Sequences in the batch.
    pub fn num_seqs(&self) -> usize {
        self.segments.num_seqs()
    }

    /// Rows computed.
    pub fn num_tokens(&self) -> usize {
        self.segments.num_tokens()
    }

    /// The length of each sequence as it stands, prefix included.
    pub fn tokens(&self) -> impl Iterator<Item = usize> + '_ {
        self.segments.seqlens()
    }

    /// Floating-point operations of the matrix products of one layer, the batch being as it stands; of the last layer run, where
    /// queries, output projection and MLP take the scored rows alone. A fused multiply-add counts two.
    pub fn layer_flops(&self, config: &DecoderConfig, is_last: bool) -> u64 {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let widths = Widths::of(config);
        let layout = Layout::new(self.segments.clone());
        let tokens = layout.num_tokens();
        let (rows, spans) = match is_last {
            true => (self.num_seqs(), &layout.scored_spans),
            false => (tokens, &layout.spans),
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
        let product = |m: usize, n: usize, k: usize| gemm::cost(m, n, k, [0, 0], 0).flops;
        product(tokens, 2 * widths.kv, hidden)
            + product(rows, widths.q, hidden)
            + attention::cost(spans, params, 0).flops
            + product(rows, hidden, widths.q)
            + product(rows, 2 * intermediate, hidden)
            + product(rows, hidden, intermediate)
    }

    /// Takes note that passages have been compressed by `ratio`: for counting, not for a batch that is run, which a
    /// [`Pass`](super::Pass) compresses.
    pub fn compress(&mut self, ratio: usize) {
        self.segments = self.segments.compressed(ratio);
    }
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
        let before: Vec<_> = batch.segments.segments.iter().map(|segment| segment.before).collect();
        let (nothing, behind) = (Before::Nothing, Before::Segment);
        assert_eq!(before, [nothing, behind(0), behind(0), nothing, behind(3)]);
        assert_eq!((batch.num_seqs(), batch.num_tokens()), (3, 15));
        assert_eq!(batch.tokens().collect::<Vec<_>>(), [9, 5, 4]);
    }

    #[test]
    fn a_carried_prefix_has_no_tokens_and_a_kept_one_is_named() {
        let (a, b) = (pair(3, 4, 2, 10), pair(2, 1, 1, 30));
        let carried = Group { is_carried: true, ..group(&[&a]) };
        let kept = Group { is_kept: true, ..group(&[&b]) };
        let mut batch = Batch::new(&[carried, kept]);
        assert_eq!(batch.input_ids, [10, 11, 12, 13, 14, 15, 0, 1, 30, 31]);
        assert_eq!(batch.segments.segments[0].before, Before::Carried);
        assert_eq!((batch.segments.carried_rows, batch.segments.kept_segment), (3, Some(1)));
        assert_eq!(batch.tokens().collect::<Vec<_>>(), [9, 4]);
        // Four rows of passage become two.
        batch.compress(2);
        assert_eq!(batch.tokens().collect::<Vec<_>>(), [7, 4]);
    }
}
