//! The weight operand, re-laid once when a model is opened.

use std::ops::Range;

use half::{bf16, f16};

use crate::buffer::DeviceBuffer;
use crate::error::DeviceError;
use crate::pack_weights::{Placement, pack_weights};
use crate::stream::CudaStream;
use crate::{CpuStream, ElementType, Elements, Error, HostBuffer, Stream};

/// Widest panel. 384 output features × 512 of k in f32 are 768 KiB, which leaves room for activations in a 2 MiB L2.
pub(super) const PANEL_WIDTH_MAX: usize = 384;

/// One weight matrix `[rows, k]` of a fused [`Matrix`], row-major as stored.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// `rows * k` weights.
    pub weights: Elements<'a>,
    /// Output features.
    pub rows: usize,
    /// For queries and keys that are rotated: elements of a head.
    pub rotary_head_dim: Option<usize>,
}

/// A weight matrix `[n, k]`, in the layout that its stream multiplies by.
///
/// A matrix may be fused from several *parts* (query, key and value, say); a call can ask for some of them. A *gated* matrix
/// interleaves two of equal shape, so that both factors of an output are at hand together.
///
/// On the CPU it is held as panels: up to 384 of its rows each, transposed to `[k, width]`, so that the output features of one
/// step of k are contiguous and the product needs no re-ordering at run time. No panel spans two parts. Half of a gated panel's
/// columns are rows of the gate, the other half the same rows of up. Panels keep the stored type unless told otherwise: 16-bit
/// weights take half the memory of f32. They are widened chunk by chunk while they are multiplied.
///
/// On CUDA it is held row-major in the stream's operand type, rows placed as [`pack_weights`](crate::pack_weights) says.
pub struct Matrix {
    k: usize,
    is_gated: bool,
    /// First output feature of each part, then their number.
    part_rows: Vec<usize>,
    rotary_head_dims: Vec<Option<usize>>,
    weights: Weights,
}

enum Weights {
    Panels {
        /// First panel of each part, then the number of panels.
        part_panels: Vec<usize>,
        panels: Vec<Panel>,
    },
    Device(DeviceBuffer),
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
    F32(HostBuffer),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Matrix {
    /// Packs `parts`, all with rows of `k` weights, for the stream. Fused parts keep their order.
    ///
    /// CPU panels hold `element_type`, rounded to nearest; `None` keeps each part's stored type. On CUDA it is the stream's.
    pub fn pack(
        stream: &Stream,
        parts: &[Part<'_>],
        k: usize,
        element_type: Option<ElementType>,
    ) -> Result<Self, Error> {
        for part in parts {
            check_part("b", part.weights, part.rows, k)?;
        }
        check_rotary(parts)?;
        let part_rows = offsets(parts.iter().map(|part| part.rows));
        let weights = match stream {
            Stream::Cpu(cpu) => {
                let mut panels = Vec::new();
                let mut part_panels = vec![0];
                for (part, first_row) in parts.iter().zip(&part_rows) {
                    panels.extend(pack_panels(cpu, &[part.weights], *first_row, part.rows, k, element_type));
                    part_panels.push(panels.len());
                }
                Weights::Panels { part_panels, panels }
            }
            Stream::Cuda(cuda) => {
                let out = device_rows(cuda, part_rows[parts.len()], k)?;
                for (part, first_row) in parts.iter().zip(&part_rows) {
                    let placement = match part.rotary_head_dim {
                        Some(head_dim) => Placement::Rotary { head_dim },
                        None => Placement::Plain,
                    };
                    pack_weights(cuda, &out, part.weights, k, *first_row, placement)?;
                }
                Weights::Device(out)
            }
        };
        let rotary_head_dims = parts.iter().map(|part| part.rotary_head_dim).collect();
        Ok(Self { k, is_gated: false, part_rows, rotary_head_dims, weights })
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
        check_part("gate", gate, rows, k)?;
        check_part("up", up, rows, k)?;
        let weights = match stream {
            Stream::Cpu(cpu) => {
                // Two projections of different stored types meet in the wider one.
                let same_type = (gate.element_type() == up.element_type()).then_some(gate.element_type());
                let element_type = element_type.or(same_type).unwrap_or(ElementType::F32);
                let panels = pack_panels(cpu, &[gate, up], 0, rows, k, Some(element_type));
                Weights::Panels { part_panels: vec![0, panels.len()], panels }
            }
            Stream::Cuda(cuda) => {
                let out = device_rows(cuda, 2 * rows, k)?;
                pack_weights(cuda, &out, gate, k, 0, Placement::Gate)?;
                pack_weights(cuda, &out, up, k, 0, Placement::Up)?;
                Weights::Device(out)
            }
        };
        Ok(Self { k, is_gated: true, part_rows: vec![0, rows], rotary_head_dims: vec![None], weights })
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
        match &self.weights {
            Weights::Panels { panels, .. } => {
                panels.iter().map(|panel| panel.width * self.k * panel.data.element_type().bytes()).sum()
            }
            Weights::Device(rows) => rows.len() * rows.element_type().bytes(),
        }
    }

    pub(super) fn first_row_of(&self, part: usize) -> usize {
        self.part_rows[part]
    }

    /// Of the parts `parts`: the leading columns that are rotated, and the heads they make. The parts that are come first and agree
    /// on the size of a head.
    pub(super) fn rotary_columns_of(&self, parts: Range<usize>) -> (usize, Option<usize>) {
        let head_dims = &self.rotary_head_dims[parts.clone()];
        let rotary = head_dims.iter().take_while(|head_dim| head_dim.is_some()).count();
        (self.outputs_of(parts.start..parts.start + rotary), head_dims.first().copied().flatten())
    }

    /// The panels of the parts `parts`, on the CPU.
    pub(super) fn panels_of(&self, parts: Range<usize>) -> Result<&[Panel], Error> {
        match &self.weights {
            Weights::Panels { part_panels, panels } => {
                Ok(&panels[part_panels[parts.start]..part_panels[parts.end]])
            }
            Weights::Device(_) => Err(DeviceError::OtherDevice { operand: "b" }.into()),
        }
    }

    /// The rows of all parts, on CUDA.
    pub(crate) fn device_rows(&self) -> Option<&DeviceBuffer> {
        match &self.weights {
            Weights::Device(rows) => Some(rows),
            Weights::Panels { .. } => None,
        }
    }
}

/// Where each of some runs of rows begins, then their number.
fn offsets(rows: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut offsets = vec![0];
    let mut end = 0;
    for rows in rows {
        end += rows;
        offsets.push(end);
    }
    offsets
}

/// Device memory for `rows` rows of `k`.
fn device_rows(stream: &CudaStream, rows: usize, k: usize) -> Result<DeviceBuffer, Error> {
    DeviceBuffer::allocate(stream, stream.operand_type(), rows * k)
}

/// Panels of outputs `first_row ..`, whose columns come in equal shares from the rows of each source.
fn pack_panels(
    stream: &CpuStream,
    sources: &[Elements<'_>],
    first_row: usize,
    rows: usize,
    k: usize,
    element_type: Option<ElementType>,
) -> Vec<Panel> {
    let element_type = element_type.unwrap_or_else(|| sources[0].element_type());
    // Equal widths in whole tiles of the microkernel (64 columns with AVX-512), so that no panel is left narrow.
    let rows_max = PANEL_WIDTH_MAX / sources.len();
    let step = rows.div_ceil(rows.div_ceil(rows_max)).next_multiple_of(64 / sources.len());
    stream.map(rows.div_ceil(step), |i| {
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
    })
}

/// Rotary parts come first, in heads of one size.
fn check_rotary(parts: &[Part<'_>]) -> Result<(), Error> {
    let head_dim = parts.first().and_then(|part| part.rotary_head_dim);
    let num_rotary = parts.iter().take_while(|part| part.rotary_head_dim.is_some()).count();
    let is_wrong = |(i, part): (usize, &Part<'_>)| match part.rotary_head_dim {
        Some(dim) => i >= num_rotary || Some(dim) != head_dim || dim == 0 || !part.rows.is_multiple_of(dim),
        None => false,
    };
    match parts.iter().enumerate().position(is_wrong) {
        None => Ok(()),
        Some(found) => Err(Error::Parameter {
            kernel: "gemm",
            parameter: "rotary_head_dim",
            expected: "rotary parts before others, of whole heads of one size; not so this part",
            found,
        }),
    }
}

fn check_part(operand: &'static str, weights: Elements<'_>, rows: usize, k: usize) -> Result<(), Error> {
    if rows == 0 || k == 0 || weights.len() != rows * k {
        return Err(Error::Length {
            kernel: "gemm",
            operand,
            expected: rows.max(1) * k.max(1),
            found: weights.len(),
        });
    }
    Ok(())
}

impl PanelData {
    fn zeros(element_type: ElementType, len: usize) -> Self {
        match element_type {
            ElementType::F32 => Self::F32(HostBuffer::zeros(len)),
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
