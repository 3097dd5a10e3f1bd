//! The memory of a forward pass.

use outcrop_kernels::Buffer;
use outcrop_loader::DecoderConfig;

/// Every activation of a decoder's forward pass, allocated before the first layer and reused by all of them.
///
/// `T` tokens, `H` hidden size, `Q` width of all query heads, `KV` of all key heads, `I` intermediate size, `C` rows of a
/// carried prefix. Memory that a batch does not reach is never resident: `query` and `spare` cost nothing unless used.
pub struct Activations {
    capacity: usize,
    /// The residual stream, `[T, H]`.
    pub(super) hidden: Buffer,
    /// The residual stream under the norm of what reads it next, `[T, H]`.
    pub(super) normed: Buffer,
    /// Query, key and value of a layer, `[T + C, Q + 2 KV]`; then the MLP's intermediate, `[T, I]`.
    pub(super) wide: Buffer,
    /// Queries of the scored rows alone, `[S, Q]`.
    pub(super) query: Buffer,
    /// Output of attention, `[T, Q]`.
    pub(super) context: Buffer,
    /// Output of attention or MLP, `[T, H]`.
    pub(super) projected: Buffer,
    /// Where rows go that replace those of `hidden`, `[T, H]`.
    pub(super) spare: Buffer,
    /// Keys and values of a prefix that an earlier batch computed.
    pub(super) carried: PrefixKv,
    /// Keys and values that a later batch will want.
    pub(super) kept: PrefixKv,
}

/// Keys and values of one prefix in every layer run: `[layers, C, 2 KV]`.
pub(super) struct PrefixKv {
    pub(super) kv: Buffer,
}

impl Activations {
    /// Memory for batches of up to `num_tokens` tokens.
    pub fn new(config: &DecoderConfig, num_tokens: usize) -> Self {
        let widths = Widths::of(config);
        let hidden = || Buffer::zeros(num_tokens * config.hidden_size);
        // A carried prefix belongs to a sequence that fits a batch of its own, so it has no more rows than the capacity.
        let wide = (2 * num_tokens * widths.qkv()).max(num_tokens * config.intermediate_size);
        Self {
            capacity: num_tokens,
            hidden: hidden(),
            normed: hidden(),
            wide: Buffer::zeros(wide),
            query: Buffer::zeros(num_tokens * widths.q),
            context: Buffer::zeros(num_tokens * widths.q),
            projected: hidden(),
            spare: hidden(),
            carried: PrefixKv { kv: Buffer::zeros(0) },
            kept: PrefixKv { kv: Buffer::zeros(0) },
        }
    }

    /// Tokens a batch may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl PrefixKv {
    /// Makes room for `layers` layers of `rows` rows.
    pub(super) fn reserve(&mut self, layers: usize, rows: usize, row_len: usize) {
        if self.kv.len() < layers * rows * row_len {
            self.kv = Buffer::zeros(layers * rows * row_len);
        }
    }

    /// The rows of one layer, each of `row_len` elements.
    pub(super) fn layer(&mut self, layer: usize, rows: usize, row_len: usize) -> &mut [f32] {
        let size = rows * row_len;
        &mut self.kv.as_mut_slice()[layer * size..(layer + 1) * size]
    }
}

/// Columns of the attention operands.
#[derive(Clone, Copy)]
pub(super) struct Widths {
    pub(super) q: usize,
    pub(super) kv: usize,
}

impl Widths {
    pub(super) fn of(config: &DecoderConfig) -> Self {
        Self {
            q: config.num_attention_heads * config.head_dim,
            kv: config.num_key_value_heads * config.head_dim,
        }
    }

    /// Columns of the fused projection.
    pub(super) fn qkv(self) -> usize {
        self.q + 2 * self.kv
    }
}
