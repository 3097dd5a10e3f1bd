//! Keys and values of prefixes that outlive a batch.

use outcrop_kernels::copy_block::{Block, copy_block};
use outcrop_kernels::{Buffer, Stream};

use super::batch::Batch;
use crate::Error;

/// A group of sequences that does not fit one batch goes on in the next, and there the keys and values of its prefix are those
/// that this one computed: of at most one group from each batch to the next.
pub(super) struct Prefixes {
    /// What an earlier batch kept, `[layers, carried rows, 2 KV]`.
    carried: Buffer,
    /// What a later batch will want, `[layers, kept rows, 2 KV]`.
    kept: Buffer,
}

/// Where a layer's keys and values stand in `Activations::wide`.
#[derive(Clone, Copy)]
pub(super) struct KvColumns {
    /// Elements of a row.
    pub(super) stride: usize,
    /// First column of the keys; the values follow them.
    pub(super) column: usize,
    /// Columns of keys and values together.
    pub(super) len: usize,
}

impl Prefixes {
    pub(super) fn new() -> Self {
        Self { carried: Buffer::zeros(0), kept: Buffer::zeros(0) }
    }

    /// Makes room for what `batch` will keep of `layers` layers; `kv_len` elements a row.
    pub(super) fn reserve(&mut self, batch: &Batch, layers: usize, kv_len: usize) {
        let len = layers * batch.layout.kept_rows.len() * kv_len;
        if self.kept.len() < len {
            self.kept = Buffer::zeros(len);
        }
    }

    /// Puts the keys and values of the carried prefix behind the batch's own rows in `wide`, and keeps those that the next batch
    /// wants.
    pub(super) fn exchange(
        &mut self,
        stream: &Stream,
        wide: &mut Buffer,
        columns: KvColumns,
        batch: &Batch,
        layer: usize,
    ) -> Result<(), Error> {
        let KvColumns { stride, column, len } = columns;
        let in_wide = |row| Block { stride, row, column };
        let of_layer = |rows| Block { stride: len, row: layer * rows, column: 0 };
        let (carried, kept) = (batch.carried_rows, batch.layout.kept_rows.clone());
        copy_block(
            stream,
            wide,
            in_wide(batch.num_tokens()),
            &self.carried,
            of_layer(carried),
            carried,
            len,
        )?;
        copy_block(stream, &mut self.kept, of_layer(kept.len()), wide, in_wide(kept.start), kept.len(), len)?;
        Ok(())
    }

    /// Hands what `batch` has kept to the next one, once all layers are run.
    pub(super) fn hand_over(&mut self, batch: &Batch) {
        if !batch.layout.kept_rows.is_empty() {
            std::mem::swap(&mut self.carried, &mut self.kept);
        }
    }
}
