//! One task per (span, head), walking over its queries in blocks of 64 and for each over the keys in blocks of 256.
//!
//! The score tile is kept transposed, `[keys, queries]`: then softmax runs along queries, 16 at a time, without a single
//! horizontal reduction, and both products read their operands as they lie. Queries are transposed (and scaled) once per
//! task; the last block of a span is filled up with zero queries to a multiple of 16.
//!
//! Keys beyond the last query of a block, and blocks of keys before the first one's window, are not computed. Where a block
//! is seen in part, what a query may not see is set to minus infinity before the softmax and to zero after it: then the second
//! product adds exact zeros.

use std::cell::RefCell;
use std::ops::Range;

use super::{AttentionParams, Mask, Span};
use crate::math::{exp2, tanh, vectorize};
use crate::shared_mut::SharedMut;
use crate::{CpuStream, HostBuffer};

const BLOCK_Q: usize = 64;
const BLOCK_K: usize = 256;
const HEAD_DIM_MAX: usize = 256;
/// Where running maxima start: below any score, and finite, so that a query that sees nothing of a block has no NaN.
const LOWEST: f32 = -1e30;

/// A task's memory, made once per thread.
struct Scratch {
    /// Queries, `[head_dim, BLOCK_Q]`, times `softmax_scale * log2(e)`.
    q: HostBuffer,
    /// Scores, then their exponentials, `[BLOCK_K, BLOCK_Q]`.
    scores: HostBuffer,
    /// Unnormalised output, `[BLOCK_Q, head_dim]`.
    acc: HostBuffer,
    /// Per query: the largest score so far, and the factor that brings older sums to it.
    max: [f32; BLOCK_Q],
    rescale: [f32; BLOCK_Q],
    /// Per query: sum of the exponentials.
    sum: [f32; BLOCK_Q],
    /// Whether no keys have been added yet.
    is_empty: bool,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        q: HostBuffer::zeros(HEAD_DIM_MAX * BLOCK_Q),
        scores: HostBuffer::zeros(BLOCK_K * BLOCK_Q),
        acc: HostBuffer::zeros(BLOCK_Q * HEAD_DIM_MAX),
        max: [0.0; BLOCK_Q],
        rescale: [0.0; BLOCK_Q],
        sum: [0.0; BLOCK_Q],
        is_empty: true,
    });
}

/// [`Rows`](super::Rows) on the host.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) elements: &'a [f32],
    pub(super) stride: usize,
    pub(super) column: usize,
}

pub(super) fn attention(
    stream: &CpuStream,
    out: &mut [f32],
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    spans: &[Span],
    params: AttentionParams,
) {
    let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = params;
    let hidden_size = num_heads * head_dim;
    let out = SharedMut::new(out);
    // One task walks all query blocks of its head, so the head's keys and values stay in cache.
    stream.for_each(spans.len() * num_heads, |task| {
        let (span, head) = (&spans[task / num_heads], task % num_heads);
        let column = head * head_dim;
        let kv_column = head / (num_heads / num_kv_heads) * head_dim;
        SCRATCH.with_borrow_mut(|scratch| {
            for first in span.queries.clone().step_by(BLOCK_Q) {
                let num_queries = BLOCK_Q.min(span.queries.end - first);
                let position = span.first_position() + first - span.queries.start;
                let block = Block { num_queries, position, head_dim };
                scratch.start(Operand::new(q, first, column), block, params.softmax_scale);
                for (rows, first_key) in [(&span.prefix, 0), (&span.keys, span.prefix.len())] {
                    let (k, v) =
                        (Operand::new(k, rows.start, kv_column), Operand::new(v, rows.start, kv_column));
                    for start in (0..rows.len()).step_by(BLOCK_K) {
                        let end = rows.len().min(start + BLOCK_K);
                        let keys = block.seen(first_key + start..first_key + end, params.mask);
                        scratch.add_keys(k.from(start), v.from(start), keys, block, params);
                    }
                }
                let out = (0..block.num_queries).map(|i| {
                    // SAFETY: spans do not overlap, this task owns columns `column ..` of the span's query rows, and the
                    // iterator yields each row once.
                    unsafe { out.slice((first + i) * hidden_size + column, head_dim) }
                });
                scratch.finish(out, block);
            }
        });
    });
}

/// One head's columns of an operand, from one of its rows on.
#[derive(Clone, Copy)]
struct Operand<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> Operand<'a> {
    fn new(rows: Rows<'a>, row: usize, column: usize) -> Self {
        // An empty run of rows may start at the very end.
        let start = (row * rows.stride + rows.column + column).min(rows.elements.len());
        Self { data: &rows.elements[start..], stride: rows.stride }
    }

    /// The operand from row `row` on.
    fn from(self, row: usize) -> Self {
        Self { data: &self.data[row * self.stride..], ..self }
    }

    /// The elements; asserts that `num_rows` rows of `head_dim` are there.
    fn rows(self, num_rows: usize, head_dim: usize) -> &'a [f32] {
        assert!(self.data.len() >= (num_rows - 1) * self.stride + head_dim, "attention operand too short");
        self.data
    }
}

/// A block of queries.
#[derive(Clone, Copy)]
struct Block {
    num_queries: usize,
    /// Position of the first query; the others follow.
    position: usize,
    head_dim: usize,
}

/// What a block of queries sees of a block of keys.
#[derive(Clone, Copy)]
struct Keys {
    /// Position of the first key.
    position: usize,
    /// Keys from there on that some query sees.
    num_keys: usize,
    /// Whether some query does not see some of them.
    is_masked: bool,
}

impl Block {
    /// Columns of the score tile: the queries, filled up to whole vectors.
    fn width(self) -> usize {
        self.num_queries.next_multiple_of(16)
    }

    /// Cuts off the keys at `positions` that lie beyond the last query; none are left if all lie before the first one's window.
    fn seen(self, positions: Range<usize>, mask: Mask) -> Keys {
        let (first, last) = (self.position, self.position + self.num_queries - 1);
        let end = match mask {
            Mask::Full => positions.end,
            Mask::Window(window) if positions.end + window <= first + 1 => positions.start,
            Mask::Causal | Mask::Window(_) => positions.end.min(last + 1),
        };
        let is_masked = match mask {
            Mask::Full => false,
            Mask::Causal => end > first + 1,
            Mask::Window(window) => end > first + 1 || positions.start + window <= last,
        };
        Keys { position: positions.start, num_keys: end.saturating_sub(positions.start), is_masked }
    }
}

impl Scratch {
    /// Loads, scales and transposes a block of queries, and forgets the previous block.
    fn start(&mut self, q: Operand<'_>, block: Block, softmax_scale: f32) {
        let (width, head_dim) = (block.width(), block.head_dim);
        // Scores come out in units of log2, so that the softmax needs exp2 only.
        let scale = softmax_scale * std::f32::consts::LOG2_E;
        let transposed = &mut self.q.as_mut_slice()[..head_dim * width];
        let zeros = [0.0; HEAD_DIM_MAX];
        for first in (0..width).step_by(16) {
            let rows: [&[f32]; 16] = std::array::from_fn(|l| {
                let row = first + l;
                if row < block.num_queries {
                    &q.data[row * q.stride..][..head_dim]
                } else {
                    &zeros[..head_dim]
                }
            });
            for (j, out) in transposed.chunks_exact_mut(width).enumerate() {
                let out = &mut out[first..first + 16];
                out.iter_mut().zip(&rows).for_each(|(out, row)| *out = row[j] * scale);
            }
        }
        self.max[..width].fill(LOWEST);
        self.sum[..width].fill(0.0);
        self.is_empty = true;
    }

    /// Adds the keys and values of one block, whose first rows `k` and `v` begin with, to the running softmax and output.
    fn add_keys(
        &mut self,
        k: Operand<'_>,
        v: Operand<'_>,
        keys: Keys,
        block: Block,
        params: AttentionParams,
    ) {
        let (width, head_dim, num_keys) = (block.width(), block.head_dim, keys.num_keys);
        if num_keys == 0 {
            return;
        }
        let (k_rows, v_rows) = (k.rows(num_keys, head_dim), v.rows(num_keys, head_dim));
        // scores[keys, queries]: the crate's m runs along queries.
        // SAFETY: `scores` holds BLOCK_K * BLOCK_Q >= num_keys * width elements and `q` head_dim * width; `rows` asserted
        // that the keys are in bounds.
        unsafe {
            product(
                Strided { data: self.scores.as_mut_slice().as_mut_ptr(), row_stride: 1, col_stride: width },
                Strided { data: self.q.as_slice().as_ptr().cast_mut(), row_stride: 1, col_stride: width },
                Strided { data: k_rows.as_ptr().cast_mut(), row_stride: 1, col_stride: k.stride },
                (width, num_keys, head_dim),
                false,
            );
        }
        if let Some(softcap) = params.softcap {
            vectorize!(self.cap(softcap, num_keys, width));
        }
        if keys.is_masked {
            self.fill_unseen(keys, block, params.mask, f32::NEG_INFINITY);
        }
        vectorize!(self.softmax(num_keys, width));
        if keys.is_masked {
            self.fill_unseen(keys, block, params.mask, 0.0);
        }
        if !self.is_empty {
            vectorize!(self.rescale_output(block));
        }
        // acc[queries, head_dim] += scoresᵀ · v: the crate's m runs along head_dim.
        // SAFETY: `acc` holds BLOCK_Q * HEAD_DIM_MAX >= num_queries * head_dim elements; values are in bounds by `rows`.
        unsafe {
            product(
                Strided { data: self.acc.as_mut_slice().as_mut_ptr(), row_stride: 1, col_stride: head_dim },
                Strided { data: v_rows.as_ptr().cast_mut(), row_stride: 1, col_stride: v.stride },
                Strided {
                    data: self.scores.as_slice().as_ptr().cast_mut(),
                    row_stride: width,
                    col_stride: 1,
                },
                (head_dim, width, num_keys),
                !self.is_empty,
            );
        }
        self.is_empty = false;
    }

    /// Bounds the scores, which are in units of log2.
    #[inline(always)]
    fn cap(&mut self, softcap: f32, num_keys: usize, width: usize) {
        let cap = softcap * std::f32::consts::LOG2_E;
        let inverse = 1.0 / cap;
        let scores = &mut self.scores.as_mut_slice()[..num_keys * width];
        scores.iter_mut().for_each(|x| *x = cap * tanh(*x * inverse));
    }

    /// Sets the scores of keys that a query does not see.
    fn fill_unseen(&mut self, keys: Keys, block: Block, mask: Mask, value: f32) {
        let width = block.width();
        let scores = self.scores.as_mut_slice()[..keys.num_keys * width].chunks_exact_mut(width);
        for (key, scores) in (keys.position..).zip(scores) {
            // Queries see it from its own position on, and before they are a window beyond it.
            scores[..key.saturating_sub(block.position).min(width)].fill(value);
            if let Mask::Window(window) = mask {
                scores[(key + window).saturating_sub(block.position).min(width)..].fill(value);
            }
        }
    }

    /// Replaces the scores by their exponentials against the new running maximum, and brings the sums to it.
    #[inline(always)]
    fn softmax(&mut self, num_keys: usize, width: usize) {
        let (scores, _) = self.scores.as_mut_slice()[..num_keys * width].as_chunks_mut::<16>();
        let stride = width / 16;
        // Vector by vector of 16 queries, down the keys: maxima and sums stay in registers.
        for i in 0..stride {
            let queries = i * 16..i * 16 + 16;
            let mut old = [0.0; 16];
            old.copy_from_slice(&self.max[queries.clone()]);
            let mut max = old;
            for vector in scores[i..].iter().step_by(stride) {
                for (max, x) in max.iter_mut().zip(vector) {
                    *max = if *x > *max { *x } else { *max };
                }
            }
            let mut sum = [0.0; 16];
            for vector in scores[i..].iter_mut().step_by(stride) {
                for ((x, max), sum) in vector.iter_mut().zip(&max).zip(&mut sum) {
                    *x = exp2(*x - max);
                    *sum += *x;
                }
            }
            let rescale: [f32; 16] = std::array::from_fn(|l| exp2(old[l] - max[l]));
            for (total, (sum, rescale)) in self.sum[queries.clone()].iter_mut().zip(sum.iter().zip(&rescale))
            {
                *total = total.mul_add(*rescale, *sum);
            }
            self.rescale[queries.clone()].copy_from_slice(&rescale);
            self.max[queries].copy_from_slice(&max);
        }
    }

    #[inline(always)]
    fn rescale_output(&mut self, block: Block) {
        let acc = &mut self.acc.as_mut_slice()[..block.width() * block.head_dim];
        for (row, rescale) in acc.chunks_exact_mut(block.head_dim).zip(&self.rescale) {
            row.iter_mut().for_each(|x| *x *= rescale);
        }
    }

    /// Divides by the sums and writes the rows out.
    fn finish<'o>(&self, out: impl Iterator<Item = &'o mut [f32]>, block: Block) {
        let rows = self.acc.as_slice().chunks_exact(block.head_dim);
        vectorize!({
            for ((out, row), sum) in out.zip(rows).zip(&self.sum) {
                let inverse = 1.0 / sum;
                out.iter_mut().zip(row).for_each(|(o, x)| *o = x * inverse);
            }
        });
    }
}

/// A matrix by its first element and the distances between neighbours in a column (`row_stride`) and in a row.
struct Strided {
    data: *mut f32,
    row_stride: usize,
    col_stride: usize,
}

/// `d[m, n] (+)= sum_k a[m, k] * b[k, n]` on the calling thread, m contiguous in `d` and `a`.
///
/// # Safety
/// All elements that the shape `(m, n, k)` and the strides name are in bounds, and those of `d` are exclusive.
unsafe fn product(d: Strided, a: Strided, b: Strided, (m, n, k): (usize, usize, usize), accumulate: bool) {
    // SAFETY: passed on to the caller. Strides fit an isize because they are within slices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            d.data,
            d.col_stride.cast_signed(),
            d.row_stride.cast_signed(),
            accumulate,
            a.data,
            a.col_stride.cast_signed(),
            a.row_stride.cast_signed(),
            b.data,
            b.col_stride.cast_signed(),
            b.row_stride.cast_signed(),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
