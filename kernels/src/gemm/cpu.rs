//! Tiles of `d`: one panel of `b` by a block of rows of `a`, each computed by one task.

use std::cell::RefCell;
use std::ops::Range;

use super::Activation;
use super::matrix::{Matrix, PANEL_WIDTH_MAX, Panel, PanelData};
use crate::math::{gelu_erf, gelu_tanh, silu, vectorize};
use crate::shared_mut::SharedMut;
use crate::{CpuStream, Elements, Error, HostBuffer};

/// Rows of `a` in a tile: enough that re-ordering a panel for the microkernel, once per tile, is below 4 % of the work.
const BLOCK_M_MAX: usize = 1024;
/// The same where products are kept apart from `d`: 512 × 384 of them are 768 KiB.
const APART_BLOCK_M_MAX: usize = 512;
/// A tile of fewer rows than this leaves the inner product short of work; more tasks would not pay.
const BLOCK_M_MIN: usize = 32;
/// Longest run of k summed before it is added to `d`. The `gemm` crate would choose a blocking of its own above this, and
/// choose it by the size of the tile; at or below, it sums k in one run, so results do not depend on the tile.
const BLOCK_K_MAX: usize = 512;

/// [`Epilogue`](super::Epilogue) on the host; biases are those of the parts asked for.
#[derive(Clone, Copy)]
pub(super) enum HostEpilogue<'a> {
    None,
    Bias(&'a [f32]),
    BiasGeluErf(&'a [f32]),
    BiasTanh(&'a [f32]),
    AddScaled(f32),
    Gated(Activation),
}

pub(super) fn gemm(
    stream: &CpuStream,
    d: &mut [f32],
    a: &[f32],
    b: &Matrix,
    parts: Range<usize>,
    m: usize,
    epilogue: HostEpilogue<'_>,
) -> Result<(), Error> {
    let n = b.outputs_of(parts.clone());
    let first_row = b.first_row_of(parts.start);
    let panels = b.panels_of(parts)?;
    // Products that are not stored as they are wait in memory of their own.
    let is_apart = matches!(epilogue, HostEpilogue::Gated(_) | HostEpilogue::AddScaled(_));
    let block_m_max = if is_apart { APART_BLOCK_M_MAX } else { BLOCK_M_MAX };
    let block_m = block_m(m, block_m_max, panels.len(), stream.num_threads());
    let d = SharedMut::new(&mut d[..m * n]);
    stream.for_each(m.div_ceil(block_m) * panels.len(), |i| {
        let panel = &panels[i % panels.len()];
        let row = i / panels.len() * block_m;
        let num_rows = block_m.min(m - row);
        let a = &a[row * b.k()..(row + num_rows) * b.k()];
        let tile = Tile {
            d,
            row,
            num_rows,
            col: panel.first_row - first_row,
            num_cols: panel.num_rows,
            row_stride: n,
        };
        if is_apart {
            PRODUCT.with_borrow_mut(|product| {
                let product = &mut product.as_mut_slice()[..num_rows * panel.width];
                Tile::of(product, num_rows, panel.width).multiply(a, panel, b.k());
                match epilogue {
                    // SAFETY: tiles are disjoint, and this task owns this one.
                    HostEpilogue::Gated(activation) => unsafe { tile.gate(product, activation) },
                    // SAFETY: as above.
                    HostEpilogue::AddScaled(scale) => unsafe { tile.add_scaled(product, scale) },
                    _ => {}
                }
            });
        } else {
            tile.multiply(a, panel, b.k());
            // SAFETY: tiles are disjoint, and this task owns this one.
            vectorize!(unsafe { tile.apply(epilogue) });
        }
    });
    Ok(())
}

/// Rows per tile: blocks of equal size, enough of them that every thread has a share and the shares are even.
fn block_m(m: usize, block_m_max: usize, num_panels: usize, num_threads: usize) -> usize {
    let mut num_blocks = m.div_ceil(block_m_max).max(1);
    while num_blocks * num_panels < 4 * num_threads
        && !(num_blocks * num_panels).is_multiple_of(num_threads)
        && m.div_ceil(num_blocks + 1) >= BLOCK_M_MIN
    {
        num_blocks += 1;
    }
    m.div_ceil(num_blocks).max(1)
}

/// A tile of a matrix: rows `row ..`, columns `col ..`.
#[derive(Clone, Copy)]
struct Tile<'a> {
    d: SharedMut<'a>,
    row: usize,
    num_rows: usize,
    col: usize,
    num_cols: usize,
    row_stride: usize,
}

thread_local! {
    /// A chunk of a 16-bit panel, widened to f32.
    static WIDENED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Products of a tile that are kept apart from `d`, `[rows, panel width]`.
    static PRODUCT: RefCell<HostBuffer> = RefCell::new(HostBuffer::zeros(APART_BLOCK_M_MAX * PANEL_WIDTH_MAX));
}

impl<'a> Tile<'a> {
    /// The whole of a matrix of its own.
    fn of(matrix: &'a mut [f32], num_rows: usize, num_cols: usize) -> Self {
        Self { d: SharedMut::new(matrix), row: 0, num_rows, col: 0, num_cols, row_stride: num_cols }
    }

    /// `tile = a · panel`, chunk of k by chunk of k.
    fn multiply(&self, a: &[f32], panel: &Panel, k: usize) {
        let block_k = k.div_ceil(k.div_ceil(BLOCK_K_MAX));
        for start in (0..k).step_by(block_k) {
            let len = block_k.min(k - start);
            let (offset, size) = (start * panel.width, len * panel.width);
            let chunk = match &panel.data {
                PanelData::F32(data) => Elements::F32(&data.as_slice()[offset..offset + size]),
                PanelData::F16(data) => Elements::F16(&data[offset..offset + size]),
                PanelData::BF16(data) => Elements::BF16(&data[offset..offset + size]),
            };
            if let Elements::F32(chunk) = chunk {
                self.multiply_chunk(&a[start..], chunk, k, len, start > 0);
            } else {
                WIDENED.with_borrow_mut(|widened| {
                    widened.resize(widened.len().max(size), 0.0);
                    vectorize!(chunk.read(&mut widened[..size]));
                    self.multiply_chunk(&a[start..], &widened[..size], k, len, start > 0);
                });
            }
        }
    }

    /// `tile (+)= a[rows, k chunk] · chunk`, where `a` begins at the chunk's first column and has rows of `a_stride`.
    fn multiply_chunk(&self, a: &[f32], chunk: &[f32], a_stride: usize, k: usize, accumulate: bool) {
        // The crate takes another path for a single row, which sums in another order: multiply the row twice.
        if self.num_rows == 1 {
            let mut twice = [0.0; 2 * PANEL_WIDTH_MAX];
            let out = &mut twice[..2 * self.num_cols];
            if accumulate {
                // SAFETY: this task owns the tile.
                out[..self.num_cols].copy_from_slice(unsafe { self.row_mut(0) });
            }
            // SAFETY: `out` is two rows of `num_cols`; a row stride of 0 reads the one row of `a` twice.
            unsafe { product(out.as_mut_ptr(), self.num_cols, a, 0, chunk, 2, self.num_cols, k, accumulate) };
            // SAFETY: this task owns the tile.
            unsafe { self.row_mut(0) }.copy_from_slice(&out[..self.num_cols]);
        } else {
            let d = self.d.pointer_at(self.row * self.row_stride + self.col);
            // SAFETY: rows `row .. row + num_rows` and columns `col .. col + num_cols` lie within `d`, which the contract
            // checked, and belong to this task alone.
            unsafe {
                product(d, self.row_stride, a, a_stride, chunk, self.num_rows, self.num_cols, k, accumulate);
            }
        }
    }

    /// # Safety
    /// The calling task owns the tile.
    #[inline(always)]
    unsafe fn apply(&self, epilogue: HostEpilogue<'_>) {
        let cols = self.col..self.col + self.num_cols;
        for row in 0..self.num_rows {
            // SAFETY: passed on to the caller.
            let d = unsafe { self.row_mut(row) };
            match epilogue {
                // The last two have methods of their own.
                HostEpilogue::None | HostEpilogue::Gated(_) | HostEpilogue::AddScaled(_) => {}
                HostEpilogue::Bias(bias) => d.iter_mut().zip(&bias[cols.clone()]).for_each(|(d, b)| *d += b),
                HostEpilogue::BiasGeluErf(bias) => {
                    d.iter_mut().zip(&bias[cols.clone()]).for_each(|(d, b)| *d = gelu_erf(*d + b));
                }
                HostEpilogue::BiasTanh(bias) => {
                    d.iter_mut().zip(&bias[cols.clone()]).for_each(|(d, b)| *d = (*d + b).tanh());
                }
            }
        }
    }

    /// `tile += scale * product`
    ///
    /// # Safety
    /// The calling task owns the tile.
    unsafe fn add_scaled(&self, product: &[f32], scale: f32) {
        for (row, product) in product.chunks_exact(self.num_cols).enumerate() {
            // SAFETY: passed on to the caller.
            let d = unsafe { self.row_mut(row) };
            vectorize!(d.iter_mut().zip(product).for_each(|(d, x)| *d = scale.mul_add(*x, *d)));
        }
    }

    /// `tile = activation(gate) * up` from rows of gate products, then up products.
    ///
    /// # Safety
    /// The calling task owns the tile.
    unsafe fn gate(&self, gate_up: &[f32], activation: Activation) {
        for (row, gate_up) in gate_up.chunks_exact(2 * self.num_cols).enumerate() {
            let (gate, up) = gate_up.split_at(self.num_cols);
            // SAFETY: passed on to the caller.
            let d = unsafe { self.row_mut(row) };
            let inputs = gate.iter().zip(up);
            match activation {
                Activation::GeluTanh => {
                    vectorize!(d.iter_mut().zip(inputs).for_each(|(d, (g, u))| *d = gelu_tanh(*g) * u));
                }
                Activation::GeluErf => {
                    vectorize!(d.iter_mut().zip(inputs).for_each(|(d, (g, u))| *d = gelu_erf(*g) * u));
                }
                Activation::Silu => {
                    vectorize!(d.iter_mut().zip(inputs).for_each(|(d, (g, u))| *d = silu(*g) * u));
                }
            }
        }
    }

    /// # Safety
    /// The calling task owns the tile, and holds no other reference to this row of it.
    #[inline(always)]
    unsafe fn row_mut(&self, row: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.d.slice((self.row + row) * self.row_stride + self.col, self.num_cols) }
    }
}

/// `d[rows, cols] (+)= a[rows, k] · panel[k, cols]` on the calling thread.
///
/// # Safety
/// `d` points to `rows` rows of `cols` elements, `d_stride` apart, that nothing else refers to.
#[allow(clippy::too_many_arguments)]
unsafe fn product(
    d: *mut f32,
    d_stride: usize,
    a: &[f32],
    a_stride: usize,
    panel: &[f32],
    rows: usize,
    cols: usize,
    k: usize,
    accumulate: bool,
) {
    assert!(a.len() >= (rows - 1) * a_stride + k && panel.len() >= k * cols, "tile beyond its operands");
    // The crate's microkernel runs along its own m, which must be contiguous: give it the transposed product,
    // dᵀ[cols, rows] = panelᵀ[cols, k] · aᵀ[k, rows].
    // SAFETY: the left operand is `panel` (k columns of `cols`), the right one `a` (rows columns of k, `a_stride` apart), both
    // in bounds by the assertion; the result is in bounds and exclusive by the caller's promise. Strides fit an isize
    // because they are within slices.
    unsafe {
        gemm::gemm(
            cols,
            rows,
            k,
            d,
            d_stride.cast_signed(),
            1,
            accumulate,
            panel.as_ptr(),
            cols.cast_signed(),
            1,
            a.as_ptr(),
            a_stride.cast_signed(),
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_give_every_thread_an_even_share() {
        assert_eq!(block_m(512, BLOCK_M_MAX, 2, 2), 512);
        assert_eq!(block_m(1200, BLOCK_M_MAX, 2, 2), 600);
        assert_eq!(block_m(512, BLOCK_M_MAX, 1, 2), 256);
        assert_eq!(block_m(300, BLOCK_M_MAX, 3, 2), 150);
        assert_eq!(block_m(1, BLOCK_M_MAX, 1, 64), 1);
        assert_eq!(block_m(0, BLOCK_M_MAX, 1, 2), 1);
        // Too few rows to split further.
        assert_eq!(block_m(40, BLOCK_M_MAX, 1, 2), 40);
    }
}
