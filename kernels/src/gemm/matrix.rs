//! The weight operand, re-laid once when a model is opened.

use std::ops::Range;

use half::{bf16, f16};

use crate::{Buffer, Elements, Error, Stream};

/// Widest panel. 384 output features × 512 of k in f32 are 768 KiB, which leaves room for activations in a 2 MiB L2.
pub(super) const PANEL_WIDTH_MAX: usize = 384;

/// One weight matrix `[rows, k]` of a fused [`Matrix`], row-major as stored.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// `rows * k` weights.
    pub weights: Elements<'a>,
    /// Output features.
    pub rows: usize,
}

/// A weight matrix `[n, k]`, held as panels: up to 384 of its rows each, transposed to `[k, width]`, so that the output
/// features of one step of k are contiguous and the product needs no re-ordering at run time.
///
/// A matrix may be fused from several *parts* (query, key and value, say); no panel spans two parts, so a call can ask for
/// some of them. Panels keep the stored type: an f16 checkpoint takes half the memory of an f32 one. 16-bit panels are
/// widened chunk by chunk while they are multiplied.
pub struct Matrix {
    k: usize,
    /// First row of each part, then `n`.
    part_rows: Vec<usize>,
    /// First panel of each part, then the number of panels.
    part_panels: Vec<usize>,
    panels: Vec<Panel>,
}

/// One panel: rows `first_row .. first_row + width` of the matrix, as `[k, width]`.
pub(super) struct Panel {
    pub(super) first_row: usize,
    pub(super) width: usize,
    pub(super) data: PanelData,
}

pub(super) enum PanelData {
    F32(Buffer),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Matrix {
    /// Packs `parts`, all with rows of `k` weights, on the stream's threads. Fused parts keep their order.
    pub fn pack(stream: &Stream, parts: &[Part<'_>], k: usize) -> Result<Self, Error> {
        let mut matrix = Self { k, part_rows: vec![0], part_panels: vec![0], panels: Vec::new() };
        for part in parts {
            if part.rows == 0 || k == 0 || part.weights.len() != part.rows * k {
                return Err(Error::Length {
                    kernel: "gemm",
                    operand: "b",
                    expected: part.rows.max(1) * k.max(1),
                    found: part.weights.len(),
                });
            }
            // Equal widths in whole tiles of the microkernel (64 outputs with AVX-512), so that no panel is left narrow.
            let num_panels = part.rows.div_ceil(PANEL_WIDTH_MAX);
            let width = part.rows.div_ceil(num_panels).next_multiple_of(64);
            let first_row = matrix.n();
            matrix.panels.extend(stream.map(part.rows.div_ceil(width), |i| {
                let start = i * width;
                let rows = width.min(part.rows - start);
                Panel {
                    first_row: first_row + start,
                    width: rows,
                    data: PanelData::pack(part.weights.slice(start * k, rows * k), rows, k),
                }
            }));
            matrix.part_rows.push(first_row + part.rows);
            matrix.part_panels.push(matrix.panels.len());
        }
        Ok(matrix)
    }

    /// Output features of all parts.
    pub fn n(&self) -> usize {
        self.part_rows[self.num_parts()]
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Matrices fused into this one.
    pub fn num_parts(&self) -> usize {
        self.part_rows.len() - 1
    }

    /// Output features of the parts `parts` together.
    pub fn rows_of(&self, parts: Range<usize>) -> usize {
        self.part_rows[parts.end] - self.part_rows[parts.start]
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.panels.iter().map(|panel| panel.width * self.k * panel.data.element_bytes()).sum()
    }

    pub(super) fn first_row_of(&self, part: usize) -> usize {
        self.part_rows[part]
    }

    pub(super) fn panels_of(&self, parts: Range<usize>) -> &[Panel] {
        &self.panels[self.part_panels[parts.start]..self.part_panels[parts.end]]
    }
}

impl PanelData {
    fn pack(weights: Elements<'_>, rows: usize, k: usize) -> Self {
        match weights {
            Elements::F32(weights) => {
                let mut out = Buffer::zeros(weights.len());
                transpose(out.as_mut_slice(), weights, rows, k);
                Self::F32(out)
            }
            Elements::F16(weights) => {
                let mut out = vec![f16::ZERO; weights.len()];
                transpose(&mut out, weights, rows, k);
                Self::F16(out)
            }
            Elements::BF16(weights) => {
                let mut out = vec![bf16::ZERO; weights.len()];
                transpose(&mut out, weights, rows, k);
                Self::BF16(out)
            }
        }
    }

    fn element_bytes(&self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::F16(_) | Self::BF16(_) => 2,
        }
    }
}

/// `out[j, i] = source[i, j]` for a `[rows, k]` source, in blocks of 16 × 16 so that both sides stay within cache lines.
fn transpose<T: Copy>(out: &mut [T], source: &[T], rows: usize, k: usize) {
    for row_block in (0..rows).step_by(16) {
        for k_block in (0..k).step_by(16) {
            for j in k_block..(k_block + 16).min(k) {
                for i in row_block..(row_block + 16).min(rows) {
                    out[j * rows + i] = source[i * k + j];
                }
            }
        }
    }
}
