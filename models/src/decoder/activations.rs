//! The memory of a forward pass.

use outcrop_kernels::gemm::{DeferredNorm, DeferredRows, squares_of};
use outcrop_kernels::layout::{Bounds, Layout, LayoutBuffer};
use outcrop_kernels::rms_norm::rms_norm;
use outcrop_kernels::{Buffer, Graphs, IndexBuffer, Role, Size, Stream};
use outcrop_loader::DecoderConfig;

use super::Batch;
use super::prefixes::{PrefixShape, Prefixes};
use crate::Error;
use crate::weights::RootMeanSquare;

/// Every activation of a decoder's forward pass, allocated before the first layer and reused by all of them.
///
/// `T` tokens, `S` sequences, `H` hidden size, `Q` width of all query heads, `KV` of all key heads, `I` intermediate size, `C` rows of
/// a carried prefix. On the CPU memory that a batch does not reach is never resident: `query` and `spare` cost nothing unless used.
pub struct Activations {
    capacity: usize,
    pub(super) graphs: Graphs<Run>,
    pub(super) tensors: Tensors,
}

/// What decides the launches of a run.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Run {
    pub(super) bounds: Bounds,
    pub(super) steps: Vec<Step>,
    /// Positions of the rotary table: a longer one is another one.
    pub(super) num_positions: usize,
    pub(super) prefixes: PrefixShape,
}

/// One step of a [`Pass`](super::Pass).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Scores the states by the head of the `nth` cutoff.
    Score(usize),
    /// Merges every so many passage rows.
    Compress(usize),
    /// Runs the next layer.
    Layer,
    /// Runs the last layer of the stack, for the scored rows alone.
    LastLayer,
}

pub(super) struct Tensors {
    pub(super) input_ids: IndexBuffer,
    /// Where the rows are, before and after a compression in turns.
    pub(super) layouts: [LayoutBuffer; 2],
    /// The residual stream, `[T, H]`.
    pub(super) hidden: Buffer,
    pub(super) normed: Normed,
    /// Query, key and value of a layer, `[T + C, Q + 2 KV]`; then the MLP's intermediate, `[T, I]`.
    pub(super) wide: Buffer,
    /// Queries of the scored rows alone, `[S, Q]`.
    pub(super) query: Buffer,
    /// Output of attention, `[T, Q]`.
    pub(super) context: Buffer,
    /// Output of attention or MLP before it is added, `[T, H]`.
    pub(super) projected: Buffer,
    /// Where rows go that replace those of `hidden`, `[T, H]`.
    pub(super) spare: Buffer,
    /// Of every cutoff: a score per sequence.
    pub(super) scores: Buffer,
    /// Keys and values of the prefix that the batches of a long group share.
    pub(super) prefixes: Prefixes,
}

/// The residual stream under the norm of what reads it next.
pub(super) struct Normed {
    /// `[T, H]`; before they are divided, where that is left to the products that read them.
    pub(super) rows: Buffer,
    /// Sums of squares of such rows, `[T, H / 32]`.
    squares: Buffer,
    /// The epsilon of such a norm; `None` where the rows have been divided.
    deferred_eps: Option<f32>,
}

impl Normed {
    /// `rms(hidden)`
    pub(super) fn compute(
        &mut self,
        stream: &Stream,
        hidden: &Buffer,
        norm: &RootMeanSquare,
        rows: Size,
    ) -> Result<(), Error> {
        self.deferred_eps = None;
        Ok(rms_norm(stream, &mut self.rows, hidden, norm.get(), rows)?)
    }

    /// The same left to the products that read the rows, if the norm is folded into their weights: the product that makes `hidden` is to
    /// write what they need.
    pub(super) fn defer(&mut self, norm: &RootMeanSquare) -> Option<DeferredRows<'_>> {
        self.deferred_eps = norm.folded_eps();
        self.deferred_eps.map(|_| DeferredRows { rows: &mut self.rows, squares: &mut self.squares })
    }

    /// What is left to the products that read the rows.
    pub(super) fn deferred(&self) -> Option<DeferredNorm<'_>> {
        self.deferred_eps.map(|eps| DeferredNorm { squares: &self.squares, eps })
    }
}

impl Activations {
    /// Memory for batches of up to `num_tokens` tokens.
    pub fn new(
        stream: &Stream,
        config: &DecoderConfig,
        num_tokens: usize,
        record_graphs: bool,
    ) -> Result<Self, Error> {
        let widths = Widths::of(config);
        // A carried prefix belongs to a sequence that fits a batch of its own, so it has no more rows than the capacity.
        let wide = (2 * num_tokens * widths.qkv()).max(num_tokens * config.intermediate_size);
        let (residual, operand) =
            ((Role::Full, num_tokens * config.hidden_size), (Role::Operand, num_tokens * config.hidden_size));
        let queries = (Role::Operand, num_tokens * widths.q);
        let scores = (Role::Full, num_tokens * (config.num_hidden_layers + 1));
        let squares = (Role::Full, num_tokens * squares_of(config.hidden_size));
        let [hidden, rows, squares, wide, query, context, projected, spare, scores] = Buffer::allocate(
            stream,
            [residual, operand, squares, (Role::Operand, wide), queries, queries, operand, residual, scores],
        )?;
        let tensors = Tensors {
            input_ids: IndexBuffer::new(stream, num_tokens)?,
            layouts: [LayoutBuffer::new(stream, num_tokens)?, LayoutBuffer::new(stream, num_tokens)?],
            hidden,
            normed: Normed { rows, squares, deferred_eps: None },
            wide,
            query,
            context,
            projected,
            spare,
            scores,
            prefixes: Prefixes::default(),
        };
        Ok(Self { capacity: num_tokens, graphs: Graphs::new(record_graphs), tensors })
    }

    /// Tokens a batch may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes in the batch that the next pass is about, to be run through `layers` layers.
    pub(super) fn load(
        &mut self,
        stream: &Stream,
        config: &DecoderConfig,
        batch: &Batch,
        layers: usize,
    ) -> Result<Bounds, Error> {
        let layout = Layout::new(batch.segments.clone());
        let bounds = Bounds::of(&layout, self.capacity);
        let kv_len = 2 * Widths::of(config).kv;
        self.tensors.prefixes.reserve(stream, layers, layout.kept_rows.len(), kv_len)?;
        self.tensors.input_ids.write(&batch.input_ids)?;
        self.tensors.layouts[0].load(layout, bounds)?;
        Ok(bounds)
    }
}

/// Columns of the attention operands.
#[derive(Clone, Copy)]
pub(super) struct Widths {
    pub(super) q: usize,
    pub(super) kv: usize,
}

impl Widths {
    pub(super) fn of(config: &DecoderConfig) -> Self {
        Self {
            q: config.num_attention_heads * config.head_dim,
            kv: config.num_key_value_heads * config.head_dim,
        }
    }

    /// Columns of the fused projection.
    pub(super) fn qkv(self) -> usize {
        self.q + 2 * self.kv
    }
}
