//! The memory of a forward pass.

use outcrop_kernels::layout::{Bounds, LayoutBuffer};
use outcrop_kernels::{Buffer, Graphs, IndexBuffer, Role, Stream};
use outcrop_loader::EncoderConfig;

use super::{Batch, Pooling};
use crate::Error;

/// Every activation of an encoder's forward pass, allocated before the first layer and reused by all of them.
///
/// `T` tokens, hidden size `H`, intermediate size `I`: `T * (3 H + max(3 H, I))` elements, and the results.
pub struct Activations {
    capacity: usize,
    pub(super) graphs: Graphs<Run>,
    pub(super) tensors: Tensors,
}

/// What decides the launches of a run.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Run {
    pub(super) bounds: Bounds,
    /// The vectors asked for and whether they are scaled to length 1; `None` for scores.
    pub(super) embeddings: Option<(Pooling, bool)>,
}

pub(super) struct Tensors {
    pub(super) input_ids: IndexBuffer,
    pub(super) position_ids: IndexBuffer,
    pub(super) layout: LayoutBuffer,
    /// The residual stream, `[T, H]`.
    pub(super) hidden: Buffer,
    /// Query, key and value of a layer, `[T, 3 H]`; then the MLP's intermediate, `[T, I]`.
    pub(super) wide: Buffer,
    /// Output of attention, `[T, H]`.
    pub(super) context: Buffer,
    /// Output of the projections back to the hidden size, `[T, H]`.
    pub(super) projected: Buffer,
    /// `[S]` of a reranker, `[S, H]` of an embedder.
    pub(super) results: Buffer,
}

impl Activations {
    /// Memory for batches of up to `num_tokens` tokens.
    pub fn new(
        stream: &Stream,
        config: &EncoderConfig,
        num_tokens: usize,
        record_graphs: bool,
    ) -> Result<Self, Error> {
        let hidden = (Role::Operand, num_tokens * config.hidden_size);
        let wide = (Role::Operand, num_tokens * (3 * config.hidden_size).max(config.intermediate_size));
        let results = (Role::Full, num_tokens * config.hidden_size);
        let [hidden, wide, context, projected, results] =
            Buffer::allocate(stream, [hidden, wide, hidden, hidden, results])?;
        let tensors = Tensors {
            input_ids: IndexBuffer::new(stream, num_tokens)?,
            position_ids: IndexBuffer::new(stream, num_tokens)?,
            layout: LayoutBuffer::new(stream, num_tokens)?,
            hidden,
            wide,
            context,
            projected,
            results,
        };
        Ok(Self { capacity: num_tokens, graphs: Graphs::new(record_graphs), tensors })
    }

    /// Tokens a batch may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes in the batch that the next run is about.
    pub(super) fn load(&mut self, batch: &Batch) -> Result<Bounds, Error> {
        let bounds = Bounds::of(&batch.layout, self.capacity);
        self.tensors.input_ids.write(&batch.input_ids)?;
        self.tensors.position_ids.write(&batch.position_ids)?;
        self.tensors.layout.load(batch.layout.clone(), bounds)?;
        Ok(bounds)
    }
}
