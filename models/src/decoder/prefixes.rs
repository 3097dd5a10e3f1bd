//! Keys and values of prefixes that outlive a batch.

use outcrop_kernels::copy_block::{Block, copy_block};
use outcrop_kernels::layout::LayoutBuffer;
use outcrop_kernels::{Buffer, Role, Size, Stream};

use crate::Error;

/// A group of sequences that does not fit one batch goes on in the next, and there the keys and values of its prefix are those
/// that this one computed: of at most one group from each batch to the next.
#[derive(Default)]
pub(super) struct Prefixes {
    shape: PrefixShape,
    /// `[layers, rows, 2 KV]` twice; none before a prefix was kept for the first time.
    buffers: Option<[Buffer; 2]>,
}

/// How much room there is, and which way round it is used.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct PrefixShape {
    layers: usize,
    rows: usize,
    /// Elements of a row.
    kv_len: usize,
    /// Which buffer holds what an earlier batch kept; the other takes what a later one will want.
    carried: usize,
}

/// Where a layer's keys and values stand in `Tensors::wide`.
#[derive(Clone, Copy)]
pub(super) struct KvColumns {
    /// Elements of a row.
    pub(super) stride: usize,
    /// First column of the keys; the values follow them.
    pub(super) column: usize,
    /// Columns of keys and values together.
    pub(super) len: usize,
}

/// Room is made for whole multiples of this many rows, so that prefixes of much the same length are recorded once.
const ROWS_STEP: usize = 64;

impl Prefixes {
    /// How much room there is, and which way round it is used.
    pub(super) fn shape(&self) -> PrefixShape {
        self.shape
    }

    /// Makes room to keep `rows` rows of `kv_len` elements from each of `layers` layers. What is carried stays.
    pub(super) fn reserve(
        &mut self,
        stream: &Stream,
        layers: usize,
        rows: usize,
        kv_len: usize,
    ) -> Result<(), Error> {
        if rows == 0 || (self.shape.rows >= rows && self.shape.layers >= layers) {
            return Ok(());
        }
        let shape = PrefixShape {
            layers: layers.max(self.shape.layers),
            rows: rows.next_multiple_of(ROWS_STEP).max(self.shape.rows),
            kv_len,
            carried: 0,
        };
        let len = (Role::Operand, shape.layers * shape.rows * kv_len);
        let [mut carried, kept] = Buffer::allocate(stream, [len, len])?;
        if let Some(buffers) = &self.buffers {
            let old = self.shape;
            let block = |shape: PrefixShape, layer| Block {
                stride: kv_len,
                row: Size::from(layer * shape.rows),
                column: 0,
            };
            for layer in 0..old.layers {
                let (to, from) = (block(shape, layer), block(old, layer));
                copy_block(stream, &mut carried, to, &buffers[old.carried], from, old.rows.into(), kv_len)?;
            }
        }
        self.shape = shape;
        self.buffers = Some([carried, kept]);
        Ok(())
    }

    /// Puts the keys and values of the carried prefix behind the batch's own rows in `wide`, and keeps those that the next batch
    /// wants.
    pub(super) fn exchange(
        &mut self,
        stream: &Stream,
        wide: &mut Buffer,
        columns: KvColumns,
        layout: &LayoutBuffer,
        layer: usize,
    ) -> Result<(), Error> {
        let Some([first, second]) = &mut self.buffers else { return Ok(()) };
        let (carried, kept) = if self.shape.carried == 0 { (first, second) } else { (second, first) };
        let KvColumns { stride, column, len } = columns;
        let of_layer = Block { stride: len, row: (layer * self.shape.rows).into(), column: 0 };
        let behind = Block { stride, row: layout.tokens(), column };
        copy_block(stream, wide, behind, carried, of_layer, layout.carried_rows(), len)?;
        let among = Block { stride, row: layout.kept_start(), column };
        copy_block(stream, kept, of_layer, wide, among, layout.kept_rows(), len)?;
        Ok(())
    }

    /// Hands what a batch has kept to the next one, once all layers are run.
    pub(super) fn hand_over(&mut self) {
        self.shape.carried = 1 - self.shape.carried;
    }
}
