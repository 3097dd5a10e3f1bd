//! Multi-head attention over packed sequences: bidirectional or causal, with a sliding window, a soft-cap, grouped query heads,
//! and prefixes that sequences may share.
//!
//! For every [`Span`] and query head: `out = softmax(mask(cap(q · kᵀ * softmax_scale))) · v`, where `cap(s)` is
//! `softcap * tanh(s / softcap)` if there is a soft-cap, and the mask is applied after it.
//!
//! | operand | shape                                   | dtype | layout                                              |
//! |---------|-----------------------------------------|-------|-----------------------------------------------------|
//! | `out`   | `[query rows, num_heads * head_dim]`    | f32   | row-major, overwritten where a span has queries     |
//! | `q`     | `[query rows, num_heads * head_dim]`    | f32   | [`Rows`]: columns of a wider matrix                 |
//! | `k` `v` | `[key rows, num_kv_heads * head_dim]`   | f32   | [`Rows`]; CUDA: both of the same stride             |
//!
//! On CUDA all of them are of the operand type, and columns and strides multiples of 8.
//!
//! A span's keys are the rows `prefix`, then the rows `keys`; their positions count from 0 over both. Its queries are at the
//! last positions, one after the other, so the last query sees the last key (with [`Mask::Full`] positions do not matter). Query
//! head `h` reads key/value head `h / (num_heads / num_kv_heads)`.
//!
//! Limits: `16 <= head_dim <= 256`, a multiple of 8; `softmax_scale` and `softcap` above 0 and finite; spans in ascending order of their
//! queries, without overlap.
//! Memory: one score tile of 64 × 256 per thread; never a whole row of scores.
//!
//! Rounding on the CPU: f32 throughout. Keys are taken in blocks of 256 counted from the start of the prefix and again from the start of
//! `keys`, queries in blocks of 64 counted from the span's first, with a running maximum and sum per query (Milakov and
//! Gimelshein 2018, algorithm 3; Dao et al. 2022). An output row depends on its query, on its keys and values in order, and on
//! where the prefix ends: whether the prefix rows stand before the others, elsewhere, or are shared makes no difference to a bit.
//! Error bound: relative to the largest |v| of the span, `2e-6 + 2^-22 * (head_dim * max|q| * max|k| * softmax_scale)`;
//! the second term is the rounding of a score, which moves its weight by the same relative amount. A soft-cap adds
//! `2 * 3e-7 * softcap`, the error of its tanh. Tests use it.
//!
//! Rounding on CUDA: scores, maxima, sums and `out` are summed in f32; weights are rounded to the operand type for their product with
//! `v`, and `out` is once more. Keys are taken in blocks of 64: on Hopper counted as on the CPU, from the start of the prefix and again
//! from the start of `keys`, elsewhere from the span's first key, prefix or not. So an output row depends on its query, on its keys and
//! values in order, and on Hopper on where the prefix ends. Spans of one query that are not cut into tiles go through the same kernel on
//! Hopper; elsewhere they have a kernel of their own, with the same sums in the same order: their bits are those of a tile's row.
//! Error bound with `u` the operand type's unit roundoff (f16 `2^-11`, bf16 `2^-8`), for `n` keys seen:
//! `max|v| * (u + 2 d + (n / 8 + 64) * 2^-23) + u * |out|`, and in f16, whose smallest weights are subnormal, `n * max|v| * 2^-25`
//! and `2^-25` more. `d` is the error of a logit: `(head_dim / 16 + 17) * 2^-23 * softmax_scale * max_key sum |q * k|`, since a matrix
//! instruction sums 16 products at a time, and `6e-7 * softcap`.
//!
//! Cost: `4 * head_dim * num_heads` flops for each pair of a query and a key that it sees.
//! Source: Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 (grouped heads); Beltagy et al. 2020 (window); SPEC 3.3, 5, 6, 7.1.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
mod hopper;
#[cfg(test)]
pub(crate) mod hopper_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use std::ops::Range;

use crate::error::{check_length, check_positive};
use crate::{Buffer, Cost, Error, Spans, Stream};

/// Columns `column .. column + num_heads * head_dim` of a row-major matrix with rows of `stride` elements.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The matrix.
    pub buffer: &'a Buffer,
    /// Elements of one of its rows.
    pub stride: usize,
    /// First column taken.
    pub column: usize,
}

/// Some queries and all keys they may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of `q` and `out`.
    pub queries: Range<usize>,
    /// Rows of `k` and `v` that come first; often empty, and perhaps other spans' as well.
    pub prefix: Range<usize>,
    /// Rows of `k` and `v` that follow.
    pub keys: Range<usize>,
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of its span.
    Full,
    /// Those up to its own position.
    Causal,
    /// Those up to its own position and fewer than this many before it.
    Window(usize),
}

/// Shape, scale and mask of an attention call.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Columns per head.
    pub head_dim: usize,
    /// Factor on `q · kᵀ`, usually `head_dim^-0.5`.
    pub softmax_scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Bound of the scaled scores.
    pub softcap: Option<f32>,
}

/// Computes `out` as the module says.
#[allow(clippy::too_many_arguments)]
pub fn attention(
    stream: &Stream,
    out: &mut Buffer,
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    spans: Spans<'_>,
    params: AttentionParams,
) -> Result<(), Error> {
    let AttentionParams { num_heads, num_kv_heads, head_dim, mask, .. } = params;
    if !(16..=256).contains(&head_dim) || head_dim % 8 != 0 {
        return invalid("head_dim", "a multiple of 8 from 16 to 256", head_dim);
    }
    if num_kv_heads == 0 || num_heads % num_kv_heads != 0 {
        return invalid("num_kv_heads", "a divisor of num_heads", num_kv_heads);
    }
    if mask == Mask::Window(0) {
        return invalid("mask", "a window of at least 1", 0);
    }
    check_positive("attention", "softmax_scale", params.softmax_scale)?;
    params.softcap.map_or(Ok(()), |softcap| check_positive("attention", "softcap", softcap))?;
    let (mut num_queries, mut num_keys) = (0, 0);
    for (i, span) in spans.host().iter().enumerate() {
        if span.queries.start < num_queries || span.queries.end < span.queries.start {
            return invalid("spans", "ascending queries without overlap; not so in this span", i);
        }
        let keys = span.prefix.len() + span.keys.len();
        let least = if mask == Mask::Full { 1 } else { span.queries.len() };
        if !span.queries.is_empty() && keys < least {
            return invalid("spans", "a key for every query; not so in this span", i);
        }
        num_queries = span.queries.end;
        num_keys = num_keys.max(span.prefix.end).max(span.keys.end);
    }
    let (hidden_size, kv_size) = (num_heads * head_dim, num_kv_heads * head_dim);
    check_length("attention", "out", out.len(), num_queries * hidden_size)?;
    for (operand, rows, num_rows, width) in
        [("q", q, num_queries, hidden_size), ("k", k, num_keys, kv_size), ("v", v, num_keys, kv_size)]
    {
        check_length("attention", operand, rows.stride, rows.column + width)?;
        check_length("attention", operand, rows.buffer.len(), num_rows * rows.stride)?;
    }
    let _timed = stream.timed("attention", || {
        let form = match mask {
            Mask::Full => "full",
            Mask::Causal => "causal",
            Mask::Window(_) => "window",
        };
        (form.to_owned(), cost(spans.host(), params, out.element_bytes()))
    });
    match stream {
        Stream::Cpu(cpu) => {
            let [q, k, v] = [q.host()?, k.host()?, v.host()?];
            cpu::attention(cpu, out.host_mut()?, q, k, v, spans.host(), params);
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::attention(cuda, out, [q, k, v], spans, params),
    }
}

impl<'a> Rows<'a> {
    fn host(&self) -> Result<cpu::Rows<'a>, Error> {
        Ok(cpu::Rows { elements: self.buffer.host()?, stride: self.stride, column: self.column })
    }
}

fn invalid(parameter: &'static str, expected: &'static str, found: usize) -> Result<(), Error> {
    Err(Error::Parameter { kernel: "attention", parameter, expected, found })
}

impl Span {
    /// A span whose keys are its own rows alone.
    pub fn whole(rows: Range<usize>) -> Self {
        Self { queries: rows.clone(), prefix: 0..0, keys: rows }
    }

    /// Keys of the span.
    pub fn num_keys(&self) -> usize {
        self.prefix.len() + self.keys.len()
    }

    /// Position of the first query.
    fn first_position(&self) -> usize {
        self.num_keys().saturating_sub(self.queries.len())
    }
}

impl Mask {
    /// Keys that the query at `position` of `num_keys` positions sees.
    fn visible(self, position: usize, num_keys: usize) -> Range<usize> {
        match self {
            Self::Full => 0..num_keys,
            Self::Causal => 0..position + 1,
            Self::Window(window) => (position + 1).saturating_sub(window)..position + 1,
        }
    }
}

/// Work of one call on elements of `operand_bytes`.
pub fn cost(spans: &[Span], params: AttentionParams, operand_bytes: usize) -> Cost {
    let (mut scores, mut queries, mut keys) = (0, 0, 0);
    for span in spans {
        let positions = span.first_position()..span.first_position() + span.queries.len();
        scores += positions.map(|p| params.mask.visible(p, span.num_keys()).len()).sum::<usize>();
        queries += span.queries.len();
        // A shared prefix is read once for all, but counted for each: it is small.
        keys += span.num_keys();
    }
    let rows = 2 * queries * params.num_heads + 2 * keys * params.num_kv_heads;
    Cost::new(4 * params.head_dim * params.num_heads * scores, operand_bytes * params.head_dim * rows)
}
