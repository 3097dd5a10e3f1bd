//! One task per (sequence, head, block of 64 queries), walking over the keys in blocks of 256.
//!
//! The score tile is kept transposed, `[keys, queries]`: then softmax runs along queries, 16 at a time, without a single
//! horizontal reduction, and both products read their operands as they lie. Queries are transposed (and scaled) once per
//! task; the last block of a sequence is filled up with zero queries to a multiple of 16.

use std::cell::RefCell;

use super::{AttentionParams, Rows};
use crate::math::{exp2, vectorize};
use crate::shared_mut::SharedMut;
use crate::{Buffer, Segments, Stream};

const BLOCK_Q: usize = 64;
const BLOCK_K: usize = 256;
const HEAD_DIM_MAX: usize = 256;

/// A task's memory, made once per thread.
struct Scratch {
    /// Queries, `[head_dim, BLOCK_Q]`, times `softmax_scale * log2(e)`.
    q: Buffer,
    /// Scores, then their exponentials, `[BLOCK_K, BLOCK_Q]`.
    scores: Buffer,
    /// Unnormalised output, `[BLOCK_Q, head_dim]`.
    acc: Buffer,
    /// Per query: the largest score so far, and the factor that brings older sums to it.
    max: [f32; BLOCK_Q],
    rescale: [f32; BLOCK_Q],
    /// Per query: sum of the exponentials.
    sum: [f32; BLOCK_Q],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        q: Buffer::zeros(HEAD_DIM_MAX * BLOCK_Q),
        scores: Buffer::zeros(BLOCK_K * BLOCK_Q),
        acc: Buffer::zeros(BLOCK_Q * HEAD_DIM_MAX),
        max: [0.0; BLOCK_Q],
        rescale: [0.0; BLOCK_Q],
        sum: [0.0; BLOCK_Q],
    });
}

#[allow(clippy::too_many_arguments)]
pub(super) fn attention(
    stream: &Stream,
    out: &mut [f32],
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    queries: &Segments,
    keys: &Segments,
    params: AttentionParams,
) {
    let AttentionParams { num_heads, head_dim, .. } = params;
    let hidden_size = num_heads * head_dim;
    let out = SharedMut::new(out);
    // One task walks all query blocks of its head, so the head's keys and values stay in cache.
    stream.for_each(queries.num_seqs() * num_heads, |task| {
        let (seq, head) = (task / num_heads, task % num_heads);
        let (query_rows, key_rows) = (queries.range(seq), keys.range(seq));
        let keys = Operand::new(k, key_rows.start, head * head_dim);
        let values = Operand::new(v, key_rows.start, head * head_dim);
        SCRATCH.with_borrow_mut(|scratch| {
            for row in query_rows.clone().step_by(BLOCK_Q) {
                let block = Block {
                    num_queries: BLOCK_Q.min(query_rows.end - row),
                    num_keys: key_rows.len(),
                    head_dim,
                };
                scratch.start(Operand::new(q, row, head * head_dim), block, params.softmax_scale);
                for first_key in (0..block.num_keys).step_by(BLOCK_K) {
                    scratch.add_keys(keys, values, first_key, block);
                }
                let out = (0..block.num_queries).map(|i| {
                    // SAFETY: this task owns columns `head * head_dim ..` of the sequence's query rows, and the iterator
                    // yields each row once.
                    unsafe { out.slice((row + i) * hidden_size + head * head_dim, head_dim) }
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
        Self {
            data: &rows.buffer.as_slice()[row * rows.stride + rows.column + column..],
            stride: rows.stride,
        }
    }

    /// The operand from row `row` on; asserts that `num_rows` rows of `head_dim` are there.
    fn rows(self, row: usize, num_rows: usize, head_dim: usize) -> &'a [f32] {
        let data = &self.data[row * self.stride..];
        assert!(data.len() >= (num_rows - 1) * self.stride + head_dim, "attention operand too short");
        data
    }
}

/// What one task iteration works on.
#[derive(Clone, Copy)]
struct Block {
    num_queries: usize,
    num_keys: usize,
    head_dim: usize,
}

impl Block {
    /// Columns of the score tile: the queries, filled up to whole vectors.
    fn width(self) -> usize {
        self.num_queries.next_multiple_of(16)
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
        self.max[..width].fill(f32::NEG_INFINITY);
        self.sum[..width].fill(0.0);
    }

    /// Adds one block of keys and values to the running softmax and output.
    fn add_keys(&mut self, k: Operand<'_>, v: Operand<'_>, first_key: usize, block: Block) {
        let (width, head_dim) = (block.width(), block.head_dim);
        let num_keys = BLOCK_K.min(block.num_keys - first_key);
        let k_rows = k.rows(first_key, num_keys, head_dim);
        let v_rows = v.rows(first_key, num_keys, head_dim);
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
        vectorize!(self.softmax(num_keys, width));
        let first = first_key == 0;
        if !first {
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
                !first,
            );
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
