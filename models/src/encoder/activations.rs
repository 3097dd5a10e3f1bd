//! The memory of a forward pass.

use outcrop_kernels::Buffer;
use outcrop_loader::EncoderConfig;

/// Every activation of an encoder's forward pass, allocated before the first layer and reused by all of them.
///
/// `T` tokens, hidden size `H`, intermediate size `I`: `T * (3 H + max(3 H, I))` floats.
pub struct Activations {
    capacity: usize,
    /// The residual stream, `[T, H]`.
    pub(crate) hidden: Buffer,
    /// Query, key and value of a layer, `[T, 3 H]`; then the MLP's intermediate, `[T, I]`.
    pub(crate) wide: Buffer,
    /// Output of attention, `[T, H]`.
    pub(crate) context: Buffer,
    /// Output of the projections back to the hidden size, `[T, H]`.
    pub(crate) projected: Buffer,
}

impl Activations {
    /// Memory for batches of up to `num_tokens` tokens.
    pub fn new(config: &EncoderConfig, num_tokens: usize) -> Self {
        let hidden = || Buffer::zeros(num_tokens * config.hidden_size);
        Self {
            capacity: num_tokens,
            hidden: hidden(),
            wide: Buffer::zeros(num_tokens * (3 * config.hidden_size).max(config.intermediate_size)),
            context: hidden(),
            projected: hidden(),
        }
    }

    /// Tokens a batch may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that [`Activations::new`] allocates.
    pub fn bytes(config: &EncoderConfig, num_tokens: usize) -> usize {
        4 * num_tokens * (3 * config.hidden_size + (3 * config.hidden_size).max(config.intermediate_size))
    }
}
