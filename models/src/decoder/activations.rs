//! The memory of a forward pass.

use outcrop_kernels::Buffer;
use outcrop_loader::DecoderConfig;

use super::prefixes::Prefixes;

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
    /// Keys and values of the prefix that the batches of a long group share.
    pub(super) prefixes: Prefixes,
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
            prefixes: Prefixes::new(),
        }
    }

    /// Tokens a batch may have.
    pub fn capacity(&self) -> usize {
        self.capacity
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
