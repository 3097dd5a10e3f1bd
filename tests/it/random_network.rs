//! Networks of any shape with random weights, and a fixture's tokenizer.

use std::path::Path;

use half::{bf16, f16};
use outcrop::loader::writer::{TensorSpec, write};
use outcrop::loader::{Config, Dtype as StoredType};
use outcrop::manifest;
use serde_json::Value;

use crate::fixtures::path;

/// What decides every byte of it.
pub(crate) struct RandomNetwork<'a> {
    /// Of a decoder.
    pub(crate) config: &'a Value,
    pub(crate) stored_type: StoredType,
    pub(crate) seed: u64,
}

impl RandomNetwork<'_> {
    /// Writes the network to `dir`, with the tokenizer of `tests/fixtures/tokenizers`.
    pub(crate) fn write(&self, dir: &Path, tokenizer: &str, max_shard_bytes: u64) {
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        let tokenizer = path("tokenizers").join(tokenizer).join("tokenizer.json");
        std::fs::copy(tokenizer, dir.join("tokenizer.json")).unwrap();
        let bytes = self.config.to_string().into_bytes();
        let Config::Decoder(config) = Config::parse(&dir.join("config.json"), &bytes).unwrap() else {
            panic!("not a decoder");
        };
        let tensors: Vec<TensorSpec> = manifest(&config)
            .into_iter()
            .map(|weight| TensorSpec { name: weight.name, dtype: self.stored_type, shape: weight.shape })
            .collect();
        write::<outcrop::loader::Error>(dir, &tensors, max_shard_bytes, |tensor, start, out| {
            let columns = *tensors[tensor].shape.last().unwrap();
            let scale = if tensors[tensor].shape.len() == 1 { 0.2 } else { 1.5 / (columns as f32).sqrt() };
            self.fill(tensor as u64, start, out, scale);
            Ok(())
        })
        .unwrap();
    }

    /// Uniform values in `-scale .. scale`, different for every seed, tensor and place.
    fn fill(&self, tensor: u64, start: usize, out: &mut [u8], scale: f32) {
        let element_bytes = if self.stored_type == StoredType::F32 { 4 } else { 2 };
        for (i, bytes) in out.chunks_exact_mut(element_bytes).enumerate() {
            let mut z = (start / element_bytes + i) as u64 ^ (tensor << 40) ^ self.seed;
            for multiplier in [0xbf58_476d_1ce4_e5b9_u64, 0x94d0_49bb_1331_11eb] {
                z = (z ^ (z >> 29)).wrapping_mul(multiplier);
            }
            let x = ((z >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale;
            match self.stored_type {
                StoredType::F16 => bytes.copy_from_slice(&f16::from_f32(x).to_le_bytes()),
                StoredType::BF16 => bytes.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
                _ => bytes.copy_from_slice(&x.to_le_bytes()),
            }
        }
    }
}
