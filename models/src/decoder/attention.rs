//! Self-attention of a decoder layer, shared by the families: `o_proj(attention(rope(q), rope(k), v))`.

use outcrop_kernels::attention::{AttentionParams, Rows, attention};
use outcrop_kernels::gemm::{Epilogue, Matrix, gemm};
use outcrop_loader::DecoderConfig;

use super::activations::{Tensors, Widths};
use super::pass::{Output, Pass, ScoredRows};
use super::prefixes::KvColumns;
use crate::Error;
use crate::weights::{Reader, RootMeanSquare};

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
        norm: &RootMeanSquare,
        params: AttentionParams,
    ) -> Result<Self, Error> {
        let widths = Widths::of(config);
        let name = |module: &str| format!("{layer}.self_attn.{module}");
        let qkv = [(name("q_proj"), widths.q), (name("k_proj"), widths.kv), (name("v_proj"), widths.kv)];
        Ok(Self {
            qkv_proj: reader.rotary_qkv(&qkv, config.hidden_size, norm, config.head_dim)?,
            o_proj: reader.matrix(&[(name("o_proj"), config.hidden_size)], widths.q)?,
            widths,
            params,
        })
    }

    /// Reads `normed`: for all rows, or in the last layer for the scored rows alone.
    pub(super) fn forward(&self, pass: &mut Pass<'_>, output: Output<'_>) -> Result<(), Error> {
        match pass.scored_rows {
            ScoredRows::AmongAll => self.all_rows(pass)?,
            ScoredRows::Alone => self.scored_rows(pass)?,
        }
        let rows = pass.num_rows();
        let Tensors { hidden, normed, context, projected, .. } = &mut *pass.tensors;
        output.write(pass.stream, (projected, hidden, normed), context, &self.o_proj, rows)
    }

    fn all_rows(&self, pass: &mut Pass<'_>) -> Result<(), Error> {
        let Pass { stream, stack, tensors, layer, .. } = pass;
        let Tensors { layouts, normed, wide, context, prefixes, .. } = &mut **tensors;
        let layout = &layouts[pass.layout];
        let Widths { q, kv } = self.widths;
        let stride = self.widths.qkv();
        let rope = Epilogue::Rope(&stack.rope, layout.position_ids(), normed.deferred());
        gemm(stream, wide, &normed.rows, &self.qkv_proj, 0..3, layout.tokens(), rope)?;
        prefixes.exchange(stream, wide, KvColumns { stride, column: q, len: 2 * kv }, layout, *layer)?;
        let [q, k, v] = [0, q, q + kv].map(|column| Rows { buffer: wide, stride, column });
        Ok(attention(stream, context, q, k, v, layout.spans(), self.params)?)
    }

    /// Keys and values of every row, but queries of the scored rows only. Exact: nobody reads the others any more.
    fn scored_rows(&self, pass: &mut Pass<'_>) -> Result<(), Error> {
        let Pass { stream, stack, tensors, layer, layout, .. } = &mut *pass;
        let Tensors { layouts, normed, wide, prefixes, .. } = &mut **tensors;
        let layout = &layouts[*layout];
        let Widths { q, kv } = self.widths;
        let stride = 2 * kv;
        let rope = Epilogue::Rope(&stack.rope, layout.position_ids(), normed.deferred());
        gemm(stream, wide, &normed.rows, &self.qkv_proj, 1..3, layout.tokens(), rope)?;
        prefixes.exchange(stream, wide, KvColumns { stride, column: 0, len: 2 * kv }, layout, *layer)?;

        pass.drop_unscored_rows()?;
        let Pass { stream, stack, tensors, .. } = pass;
        let Tensors { layouts, normed, wide, query, context, .. } = &mut **tensors;
        let layout = &layouts[pass.layout];
        let rope = Epilogue::Rope(&stack.rope, layout.scored_position_ids(), normed.deferred());
        gemm(stream, query, &normed.rows, &self.qkv_proj, 0..1, layout.seqs(), rope)?;
        let query = Rows { buffer: query, stride: q, column: 0 };
        let [k, v] = [0, kv].map(|column| Rows { buffer: wide, stride, column });
        Ok(attention(stream, context, query, k, v, layout.scored_spans(), self.params)?)
    }
}
