//! The weight operand, re-laid once when a model is opened.

use std::ops::Range;

use half::{bf16, f16};

use crate::{Buffer, ElementType, Elements, Error, Stream};

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
/// some of them. A *gated* matrix interleaves two of equal shape, panel by panel: half of a panel's columns are rows of the
/// gate, the other half the same rows of up, so that one task has both factors of an output at hand.
///
/// Panels keep the stored type unless told otherwise: 16-bit weights take half the memory of f32. They are widened chunk by
/// chunk while they are multiplied.
pub struct Matrix {
    k: usize,
    is_gated: bool,
    /// First output feature of each part, then their number.
    part_rows: Vec<usize>,
    /// First panel of each part, then the number of panels.
    part_panels: Vec<usize>,
    panels: Vec<Panel>,
}

/// One panel: output features `first_row .. first_row + num_rows`, as `[k, width]`. Gated panels are twice as wide as they
/// have outputs: gate columns, then up columns.
pub(super) struct Panel {
    pub(super) first_row: usize,
    pub(super) num_rows: usize,
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
    ///
    /// Panels hold `element_type`, rounded to nearest; `None` keeps each part's stored type.
    pub fn pack(
        stream: &Stream,
        parts: &[Part<'_>],
        k: usize,
        element_type: Option<ElementType>,
    ) -> Result<Self, Error> {
        let mut matrix =
            Self { k, is_gated: false, part_rows: vec![0], part_panels: vec![0], panels: Vec::new() };
        for part in parts {
            check_part("b", part, k)?;
            matrix.push_part(stream, &[part.weights], part.rows, element_type);
        }
        Ok(matrix)
    }

    /// Packs the gate and up projections `[rows, k]` of a gated MLP into one matrix of `rows` outputs, for
    /// [`Epilogue::Gated`](super::Epilogue::Gated). Types as in [`Matrix::pack`].
    pub fn pack_gated(
        stream: &Stream,
        gate: Elements<'_>,
        up: Elements<'_>,
        rows: usize,
        k: usize,
        element_type: Option<ElementType>,
    ) -> Result<Self, Error> {
        check_part("gate", &Part { weights: gate, rows }, k)?;
        check_part("up", &Part { weights: up, rows }, k)?;
        let mut matrix =
            Self { k, is_gated: true, part_rows: vec![0], part_panels: vec![0], panels: Vec::new() };
        // Two projections of different stored types meet in the wider one.
        let same_type = (gate.element_type() == up.element_type()).then_some(gate.element_type());
        let element_type = element_type.or(same_type).unwrap_or(ElementType::F32);
        matrix.push_part(stream, &[gate, up], rows, Some(element_type));
        Ok(matrix)
    }

    /// Appends panels whose columns come in equal shares from the rows of each source.
    fn push_part(
        &mut self,
        stream: &Stream,
        sources: &[Elements<'_>],
        rows: usize,
        element_type: Option<ElementType>,
    ) {
        let k = self.k;
        let element_type = element_type.unwrap_or_else(|| sources[0].element_type());
        // Equal widths in whole tiles of the microkernel (64 columns with AVX-512), so that no panel is left narrow.
        let rows_max = PANEL_WIDTH_MAX / sources.len();
        let step = rows.div_ceil(rows.div_ceil(rows_max)).next_multiple_of(64 / sources.len());
        let first_row = self.num_outputs();
        self.panels.extend(stream.map(rows.div_ceil(step), |i| {
            let start = i * step;
            let num_rows = step.min(rows - start);
            let mut panel = Panel {
                first_row: first_row + start,
                num_rows,
                width: num_rows * sources.len(),
                data: PanelData::zeros(element_type, num_rows * sources.len() * k),
            };
            for (j, source) in sources.iter().enumerate() {
                let rows = source.slice(start * k, num_rows * k);
                panel.data.fill_columns(rows, panel.width, j * num_rows, num_rows, k);
            }
            panel
        }));
        self.part_rows.push(first_row + rows);
        self.part_panels.push(self.panels.len());
    }

    /// Output features of all parts; of a gated matrix, after the gate.
    pub fn num_outputs(&self) -> usize {
        self.part_rows[self.num_parts()]
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Whether gate and up are interleaved.
    pub fn is_gated(&self) -> bool {
        self.is_gated
    }

    /// Matrices fused into this one; gate and up count as one.
    pub fn num_parts(&self) -> usize {
        self.part_rows.len() - 1
    }

    /// Output features of the parts `parts` together.
    pub fn outputs_of(&self, parts: Range<usize>) -> usize {
        self.part_rows[parts.end] - self.part_rows[parts.start]
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.panels.iter().map(|panel| panel.width * self.k * panel.data.element_type().bytes()).sum()
    }

    pub(super) fn first_row_of(&self, part: usize) -> usize {
        self.part_rows[part]
    }

    pub(super) fn panels_of(&self, parts: Range<usize>) -> &[Panel] {
        &self.panels[self.part_panels[parts.start]..self.part_panels[parts.end]]
    }
}

fn check_part(operand: &'static str, part: &Part<'_>, k: usize) -> Result<(), Error> {
    if part.rows == 0 || k == 0 || part.weights.len() != part.rows * k {
        return Err(Error::Length {
            kernel: "gemm",
            operand,
            expected: part.rows.max(1) * k.max(1),
            found: part.weights.len(),
        });
    }
    Ok(())
}

impl PanelData {
    fn zeros(element_type: ElementType, len: usize) -> Self {
        match element_type {
            ElementType::F32 => Self::F32(Buffer::zeros(len)),
            ElementType::F16 => Self::F16(vec![f16::ZERO; len]),
            ElementType::BF16 => Self::BF16(vec![bf16::ZERO; len]),
        }
    }

    /// Transposes `rows`, `[num_rows, k]`, into columns `column ..` of the panel, `[k, width]`.
    fn fill_columns(&mut self, rows: Elements<'_>, width: usize, column: usize, num_rows: usize, k: usize) {
        match (self, rows) {
            (Self::F32(out), Elements::F32(rows)) => {
                transpose(&mut out.as_mut_slice()[column..], rows, width, num_rows, k, |x| x);
            }
            (Self::F16(out), Elements::F16(rows)) => {
                transpose(&mut out[column..], rows, width, num_rows, k, |x| x);
            }
            (Self::BF16(out), Elements::BF16(rows)) => {
                transpose(&mut out[column..], rows, width, num_rows, k, |x| x);
            }
            (panel, rows) => {
                let widened = rows.to_vec();
                match panel {
                    Self::F32(out) => {
                        transpose(&mut out.as_mut_slice()[column..], &widened, width, num_rows, k, |x| x);
                    }
                    Self::F16(out) => {
                        transpose(&mut out[column..], &widened, width, num_rows, k, f16::from_f32)
                    }
                    Self::BF16(out) => {
                        transpose(&mut out[column..], &widened, width, num_rows, k, bf16::from_f32);
                    }
                }
            }
        }
    }

    fn element_type(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::F16(_) => ElementType::F16,
            Self::BF16(_) => ElementType::BF16,
        }
    }
}

/// `out[j * width + i] = convert(source[i * k + j])`, in blocks of 16 × 16 so that both sides stay within cache lines.
fn transpose<T: Copy, U>(
    out: &mut [U],
    source: &[T],
    width: usize,
    num_rows: usize,
    k: usize,
    convert: impl Fn(T) -> U,
) {
    for row_block in (0..num_rows).step_by(16) {
        for k_block in (0..k).step_by(16) {
            for j in k_block..(k_block + 16).min(k) {
                for i in row_block..(row_block + 16).min(num_rows) {
                    out[j * width + i] = convert(source[i * k + j]);
                }
            }
        }
    }
}
