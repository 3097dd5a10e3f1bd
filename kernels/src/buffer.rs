//! Device memory for activations.

use bytemuck::Zeroable;

/// One cache line. Buffers are made of these so that every row of a multiple of 16 floats starts on a line.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

// SAFETY: `Line` is `repr(C)`, holds only `f32` (Pod), and its size equals its alignment, so it has no padding.
unsafe impl bytemuck::Pod for Line {}

/// A fixed-size run of f32 activations, zeroed when made and allocated once.
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// A zeroed buffer of `len` elements.
    pub fn zeros(len: usize) -> Self {
        // Fresh zeroed pages from the system: memory that a batch never reaches is never resident.
        Self { lines: bytemuck::zeroed_vec(len.div_ceil(16)), len }
    }

    /// A buffer with the given contents.
    pub fn from_slice(values: &[f32]) -> Self {
        let mut buffer = Self::zeros(values.len());
        buffer.as_mut_slice().copy_from_slice(values);
        buffer
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements.
    pub fn as_slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The elements, writable.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
