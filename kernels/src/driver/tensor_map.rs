//! Tensor maps: how the copy engine of Hopper sees a matrix.

use crate::ElementType;

/// Columns that a swizzled box has: its rows are the 128 bytes over which chunks of 16 are permuted.
pub(crate) const SWIZZLED_COLUMNS: u32 = 64;

/// A row-major matrix in device memory, and the boxes in which it is copied to shared memory and back.
///
/// Outside the matrix a box reads zeros and stores nothing. Rows are a multiple of 16 bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorMap {
    /// Of the first element, a multiple of 16.
    pub(crate) address: u64,
    pub(crate) rows: usize,
    /// Of a matrix, or of one head.
    pub(crate) columns: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// Heads that stand side by side in a row: a dimension between columns and rows.
    pub(crate) heads: Option<Heads>,
    pub(crate) element_type: ElementType,
    /// At most 256.
    pub(crate) box_rows: u32,
    /// At most 256; [`SWIZZLED_COLUMNS`] when swizzled.
    pub(crate) box_columns: u32,
    /// Whether boxes in shared memory are swizzled over 128 bytes, as wgmma reads them.
    pub(crate) is_swizzled: bool,
}

/// Heads of a row of `columns` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) count: usize,
    /// At most 256.
    pub(crate) box_heads: u32,
}

/// A [`TensorMap`] as an argument of a kernel: `CUtensorMap`, opaque, or what kernels/emulator/hopper.h has in its place.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct EncodedMap(pub(super) [u64; 16]);

impl TensorMap {
    /// Bytes from one row to the next.
    pub(super) fn row_bytes(&self) -> u64 {
        (self.stride * self.element_type.bytes()) as u64
    }

    /// Bytes from one head to the next.
    pub(super) fn head_bytes(&self) -> u64 {
        (self.columns * self.element_type.bytes()) as u64
    }

    /// `TensorMap` of kernels/emulator/hopper.h.
    pub(super) fn for_emulator(&self) -> EncodedMap {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let element_bytes = if self.element_type == ElementType::F32 { 4 } else { 2 };
        let heads = self.heads.unwrap_or(Heads { count: 0, box_heads: 0 });
        let mut words = [0; 16];
        words[..9].copy_from_slice(&[
            self.address,
            self.columns as u64,
            self.rows as u64,
            self.row_bytes(),
            pair(self.box_columns, self.box_rows),
            pair(element_bytes, if self.is_swizzled { 128 } else { 0 }),
            heads.count as u64,
            self.head_bytes(),
            pair(heads.box_heads, 0),
        ]);
        EncodedMap(words)
    }
}
