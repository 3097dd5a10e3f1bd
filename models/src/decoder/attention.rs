//! Self-attention of a decoder layer, shared by the families: `projected = o_proj(attention(rope(q), rope(k), v))`.

use outcrop_kernels::attention::{AttentionParams, Rows, attention};
use outcrop_kernels::gather_rows::gather_rows;
use outcrop_kernels::gemm::{Epilogue, Matrix, gemm};
use outcrop_kernels::rope::{RopeHeads, rope};
use outcrop_loader::DecoderConfig;

use super::activations::{Activations, Widths};
use super::pass::{Pass, ScoredRows};
use super::prefixes::KvColumns;
use crate::Error;
use crate::weights::Reader;

pub(super) struct SelfAttention {
    /// Query, key and value, fused: three parts of `[Q, H]`, `[KV, H]`, `[KV, H]`.
    qkv_proj: Matrix,
    /// `[H, Q]`
    o_proj: Matrix,
    widths: Widths,
    params: AttentionParams,
}

impl SelfAttention {
    pub(super) fn load(
        reader: &Reader<'_>,
        config: &DecoderConfig,
        layer: &str,
        params: AttentionParams,
    ) -> Result<Self, Error> {
        let widths = Widths::of(config);
        let name = |module: &str| format!("{layer}.self_attn.{module}");
        let qkv = [(name("q_proj"), widths.q), (name("k_proj"), widths.kv), (name("v_proj"), widths.kv)];
        Ok(Self {
            qkv_proj: reader.matrix(&qkv, config.hidden_size)?,
            o_proj: reader.matrix(&[(name("o_proj"), config.hidden_size)], widths.q)?,
            widths,
            params,
        })
    }

    /// Reads `normed`, leaves the output in `projected`: for all rows, or in the last layer for the scored rows alone.
    pub(super) fn forward(&self, pass: &mut Pass<'_>) -> Result<(), Error> {
        match pass.scored_rows {
            ScoredRows::AmongAll => self.all_rows(pass),
            ScoredRows::Alone => self.scored_rows(pass),
        }
    }

    fn all_rows(&self, pass: &mut Pass<'_>) -> Result<(), Error> {
        let Pass { stream, stack, act, batch, layer, .. } = pass;
        let Activations { normed, wide, context, projected, prefixes, .. } = &mut **act;
        let Widths { q, kv } = self.widths;
        let (tokens, stride, layout) = (batch.num_tokens(), self.widths.qkv(), &batch.layout);
        gemm(stream, wide, normed, &self.qkv_proj, 0..3, tokens, Epilogue::None)?;
        // Query and key heads are neighbours.
        let heads =
            RopeHeads { stride, column: 0, num_heads: self.params.num_heads + self.params.num_kv_heads };
        rope(stream, wide, heads, &layout.position_ids, &stack.rope)?;
        prefixes.exchange(stream, wide, KvColumns { stride, column: q, len: 2 * kv }, batch, *layer)?;
        let [q, k, v] = [0, q, q + kv].map(|column| Rows { buffer: wide, stride, column });
        attention(stream, context, q, k, v, &layout.spans, self.params)?;
        Ok(gemm(stream, projected, context, &self.o_proj, 0..1, tokens, Epilogue::None)?)
    }

    /// Keys and values of every row, but queries of the scored rows only. Exact: nobody reads the others any more.
    fn scored_rows(&self, pass: &mut Pass<'_>) -> Result<(), Error> {
        let Pass { stream, stack, act, batch, layer, .. } = pass;
        let Activations { normed, wide, query, context, projected, prefixes, .. } = &mut **act;
        let Widths { q, kv } = self.widths;
        let (tokens, seqs, layout) = (batch.num_tokens(), batch.num_seqs(), &batch.layout);
        let (hidden_size, stride) = (self.qkv_proj.k(), 2 * kv);
        gemm(stream, wide, normed, &self.qkv_proj, 1..3, tokens, Epilogue::None)?;
        let heads = RopeHeads { stride, column: 0, num_heads: self.params.num_kv_heads };
        rope(stream, wide, heads, &layout.position_ids, &stack.rope)?;
        prefixes.exchange(stream, wide, KvColumns { stride, column: 0, len: 2 * kv }, batch, *layer)?;
        gather_rows(stream, projected, normed, &layout.last_rows, hidden_size)?;
        gemm(stream, query, projected, &self.qkv_proj, 0..1, seqs, Epilogue::None)?;
        let heads = RopeHeads { stride: q, column: 0, num_heads: self.params.num_heads };
        rope(stream, query, heads, &layout.last_position_ids, &stack.rope)?;
        let query = Rows { buffer: query, stride: q, column: 0 };
        let [k, v] = [0, kv].map(|column| Rows { buffer: wide, stride, column });
        attention(stream, context, query, k, v, &layout.last_spans, self.params)?;
        Ok(gemm(stream, projected, context, &self.o_proj, 0..1, seqs, Epilogue::None)?)
    }
}
