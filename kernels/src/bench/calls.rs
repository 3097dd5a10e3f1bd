//! Kernels with their shapes, and the work of each.

use crate::attention::{self, AttentionParams};
use crate::layout::{Layout, ScoredRow, Segment, Segments};
use crate::token_compress::Compress;
use crate::{
    Cost, add_layer_norm, copy_block, embed, embed_layer_norm, gather_rows, gemm, l2_normalize, layout, pool,
    rms_norm, row_dot, sandwich_norm, token_compress,
};

/// A kernel with its shape.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "shapes, in the words of the kernels' contracts")]
pub enum Call {
    /// `m` rows, `n` outputs.
    Gemm {
        m: usize,
        n: usize,
        k: usize,
        fused: Fused,
    },
    /// Of every row of the sequences.
    Attention {
        sequences: Sequences,
        params: AttentionParams,
    },
    /// Of the scored row of every sequence alone, as in the last layer.
    AttentionRow {
        sequences: Sequences,
        params: AttentionParams,
    },
    AddLayerNorm {
        rows: usize,
        width: usize,
    },
    RmsNorm {
        rows: usize,
        width: usize,
    },
    SandwichNorm {
        rows: usize,
        width: usize,
    },
    EmbedLayerNorm {
        rows: usize,
        width: usize,
    },
    Embed {
        rows: usize,
        width: usize,
    },
    /// One row of every `of` rows; `is_full` of the residual stream of a decoder, f32.
    GatherRows {
        rows: usize,
        of: usize,
        width: usize,
        is_full: bool,
    },
    RowDot {
        rows: usize,
        width: usize,
    },
    /// The mean of each sequence.
    Pool {
        sequences: Sequences,
        width: usize,
    },
    L2Normalize {
        rows: usize,
        width: usize,
    },
    /// By a ratio of 2; three quarters of a sequence are passage.
    TokenCompress {
        sequences: Sequences,
        width: usize,
    },
    Layout {
        sequences: Sequences,
    },
    /// Columns of a wider matrix to rows of their own.
    CopyBlock {
        rows: usize,
        width: usize,
        stride: usize,
    },
}

/// `number` sequences of `len` tokens each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Sequences {
    pub number: usize,
    pub len: usize,
    /// Whether their lengths are spread evenly from a quarter of `len` to seven quarters.
    pub is_ragged: bool,
}

/// The epilogue of a product, without its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the epilogues of gemm")]
pub enum Fused {
    None,
    Bias,
    BiasGeluErf,
    BiasTanh,
    AddScaled,
    GatedGeluTanh,
    GatedGeluErf,
    GatedSilu,
    /// The first `columns` are heads of `head_dim` and are rotated.
    Rope {
        head_dim: usize,
        columns: usize,
    },
    /// With the rows and sums of squares for a deferred norm, and those that take them; on GPUs alone.
    AddScaledDeferred,
    GatedGeluTanhDeferred,
    GatedSiluDeferred,
    RopeDeferred {
        head_dim: usize,
        columns: usize,
    },
}

impl Sequences {
    /// Tokens of all.
    pub fn tokens(self) -> usize {
        self.number * self.len
    }

    /// Tokens of each.
    pub fn lengths(self) -> Vec<usize> {
        let Self { number, len, is_ragged } = self;
        // As much shorter as its counterpart at the other end is longer, so that their sum does not change.
        let spread = |i: usize| 3 * len * (2 * i + 1).abs_diff(number) / (4 * number);
        let ragged = |i| if 2 * i + 1 < number { len - spread(i) } else { len + spread(i) };
        (0..number).map(|i| if is_ragged { ragged(i) } else { len }).collect()
    }

    /// As a batch.
    pub(super) fn segments(self, scored_row: ScoredRow) -> Segments {
        Segments::of_sequences(self.lengths(), scored_row)
    }

    /// As a batch whose passages, three quarters of each sequence, can be compressed.
    pub(super) fn with_passages(self) -> Segments {
        let (query, prompt) = (self.len / 8, self.len / 8);
        let parts = Compress { query, passage: self.len - query - prompt, prompt };
        let mut batch = self.segments(ScoredRow::Last);
        batch.segments = batch.segments.into_iter().map(|segment| Segment { parts, ..segment }).collect();
        batch
    }
}

impl Fused {
    /// Names of all on the command line and in records; the rotation's shape is not in it.
    pub const NAMES: [&'static str; 13] = [
        "none",
        "bias",
        "bias-gelu-erf",
        "bias-tanh",
        "add-scaled",
        "gated-gelu-tanh",
        "gated-gelu-erf",
        "gated-silu",
        "rope",
        "add-scaled-deferred",
        "gated-gelu-tanh-deferred",
        "gated-silu-deferred",
        "rope-deferred",
    ];

    /// The epilogue of this name; a rotation is of all `n` columns in heads of 64.
    pub fn named(name: &str, n: usize) -> Option<Self> {
        let all = [
            Self::None,
            Self::Bias,
            Self::BiasGeluErf,
            Self::BiasTanh,
            Self::AddScaled,
            Self::GatedGeluTanh,
            Self::GatedGeluErf,
            Self::GatedSilu,
            Self::Rope { head_dim: 64, columns: n },
            Self::AddScaledDeferred,
            Self::GatedGeluTanhDeferred,
            Self::GatedSiluDeferred,
            Self::RopeDeferred { head_dim: 64, columns: n },
        ];
        all.into_iter().find(|fused| fused.name() == name)
    }

    /// One of [`Fused::NAMES`].
    pub fn name(self) -> &'static str {
        Self::NAMES[match self {
            Self::None => 0,
            Self::Bias => 1,
            Self::BiasGeluErf => 2,
            Self::BiasTanh => 3,
            Self::AddScaled => 4,
            Self::GatedGeluTanh => 5,
            Self::GatedGeluErf => 6,
            Self::GatedSilu => 7,
            Self::Rope { .. } => 8,
            Self::AddScaledDeferred => 9,
            Self::GatedGeluTanhDeferred => 10,
            Self::GatedSiluDeferred => 11,
            Self::RopeDeferred { .. } => 12,
        }]
    }

    /// Whether two rows of weights make an output.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::GatedGeluTanh | Self::GatedGeluErf | Self::GatedSilu)
            || matches!(self, Self::GatedGeluTanhDeferred | Self::GatedSiluDeferred)
    }

    /// Whether it adds to a residual stream.
    pub(super) fn is_residual(self) -> bool {
        matches!(self, Self::AddScaled | Self::AddScaledDeferred)
    }

    /// Whether a norm is deferred to this product.
    pub(super) fn takes_deferred(self) -> bool {
        matches!(self, Self::GatedGeluTanhDeferred | Self::GatedSiluDeferred | Self::RopeDeferred { .. })
    }

    /// Whether there is such an epilogue on the CPU.
    fn is_on_cpu(self) -> bool {
        self != Self::AddScaledDeferred && !self.takes_deferred()
    }
}

impl Call {
    /// Whether the CPU has it.
    pub fn is_on_cpu(self) -> bool {
        !matches!(self, Self::Gemm { fused, .. } if !fused.is_on_cpu())
    }

    /// The kernel's folder.
    pub fn kernel(self) -> &'static str {
        match self {
            Self::Gemm { .. } => "gemm",
            Self::Attention { .. } | Self::AttentionRow { .. } => "attention",
            Self::AddLayerNorm { .. } => "add_layer_norm",
            Self::RmsNorm { .. } => "rms_norm",
            Self::SandwichNorm { .. } => "sandwich_norm",
            Self::EmbedLayerNorm { .. } => "embed_layer_norm",
            Self::Embed { .. } => "embed",
            Self::GatherRows { .. } => "gather_rows",
            Self::RowDot { .. } => "row_dot",
            Self::Pool { .. } => "pool",
            Self::L2Normalize { .. } => "l2_normalize",
            Self::TokenCompress { .. } => "token_compress",
            Self::Layout { .. } => "layout",
            Self::CopyBlock { .. } => "copy_block",
        }
    }

    /// The numbers of the shape, by name, for records.
    pub fn shape(self) -> Vec<(&'static str, usize)> {
        let of_sequences =
            |sequences: Sequences| vec![("sequences", sequences.number), ("len", sequences.len)];
        let of_attention = |sequences, params: AttentionParams| {
            let heads = [
                ("num_heads", params.num_heads),
                ("num_kv_heads", params.num_kv_heads),
                ("head_dim", params.head_dim),
            ];
            [of_sequences(sequences), heads.to_vec()].concat()
        };
        match self {
            Self::Gemm { m, n, k, .. } => vec![("m", m), ("n", n), ("k", k)],
            Self::Attention { sequences, params } | Self::AttentionRow { sequences, params } => {
                of_attention(sequences, params)
            }
            Self::AddLayerNorm { rows, width }
            | Self::RmsNorm { rows, width }
            | Self::SandwichNorm { rows, width }
            | Self::EmbedLayerNorm { rows, width }
            | Self::Embed { rows, width }
            | Self::RowDot { rows, width }
            | Self::L2Normalize { rows, width } => vec![("rows", rows), ("width", width)],
            Self::GatherRows { rows, of, width, .. } => vec![("rows", rows), ("of", of), ("width", width)],
            Self::Pool { sequences, width } | Self::TokenCompress { sequences, width } => {
                [of_sequences(sequences), vec![("width", width)]].concat()
            }
            Self::Layout { sequences } => of_sequences(sequences),
            Self::CopyBlock { rows, width, stride } => {
                vec![("rows", rows), ("width", width), ("stride", stride)]
            }
        }
    }

    /// Its work, with `operand` bytes to an element of an operand and `weight` bytes to one of a matrix.
    pub fn cost(self, operand: usize, weight: usize) -> Cost {
        match self {
            Self::Gemm { m, n, k, fused } => {
                let rows = if fused.is_gated() { 2 * n } else { n };
                // A residual is f32, read and written.
                let outputs = m * n * if fused.is_residual() { 8 } else { operand };
                let deferred = match fused {
                    Fused::AddScaledDeferred => gemm::deferred_bytes(m, n, operand),
                    _ if fused.takes_deferred() => 4 * m * gemm::squares_of(k),
                    _ => 0,
                };
                gemm::cost(m, rows, k, [operand, weight], outputs + deferred)
            }
            Self::Attention { sequences, params } => {
                let layout = Layout::new(sequences.segments(ScoredRow::First));
                attention::cost(&layout.spans, params, operand)
            }
            Self::AttentionRow { sequences, params } => {
                let layout = Layout::new(sequences.segments(ScoredRow::Last));
                attention::cost(&layout.scored_spans, params, operand)
            }
            Self::AddLayerNorm { rows, width } => add_layer_norm::cost(rows, width, operand),
            Self::RmsNorm { rows, width } => rms_norm::cost(rows, width, operand),
            Self::SandwichNorm { rows, width } => sandwich_norm::cost(rows, width, operand),
            Self::EmbedLayerNorm { rows, width } => embed_layer_norm::cost(rows, width, operand, operand),
            Self::Embed { rows, width } => embed::cost(rows, width, operand),
            Self::GatherRows { rows, width, is_full, .. } => {
                gather_rows::cost(rows, width, if is_full { 4 } else { operand })
            }
            Self::RowDot { rows, width } => row_dot::cost(rows, width, operand),
            Self::Pool { sequences, width } => {
                pool::cost(sequences.tokens(), sequences.number, width, operand)
            }
            Self::L2Normalize { rows, width } => l2_normalize::cost(rows, width),
            Self::TokenCompress { sequences, width } => {
                let before = sequences.with_passages();
                let (rows, left) = (before.num_tokens(), before.compressed(2).num_tokens());
                let merged = before.segments.iter().map(|segment| segment.parts.passage).sum();
                token_compress::cost(rows, merged, left, width)
            }
            Self::Layout { sequences } => layout::cost(sequences.tokens(), sequences.number),
            Self::CopyBlock { rows, width, .. } => copy_block::cost(rows, width, operand),
        }
    }
}
