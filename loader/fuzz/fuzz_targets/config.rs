//! A `config.json` of any bytes: what is accepted is a shape that can be computed with.
//!
//! `cargo +nightly fuzz run config fuzz/corpus/config fuzz/seeds/config`, in `loader/`.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use outcrop_loader::Config;

fuzz_target!(|bytes: &[u8]| {
    match Config::parse(Path::new("config.json"), bytes) {
        Ok(Config::Encoder(config)) => {
            assert_eq!(config.head_dim() * config.num_attention_heads, config.hidden_size);
            assert!(config.max_tokens() >= 1 && config.num_hidden_layers >= 1);
            assert!((config.pad_token_id as usize) < config.vocab_size);
        }
        Ok(Config::Decoder(config)) => {
            assert_eq!(config.num_attention_heads % config.num_key_value_heads, 0);
            assert!(config.head_dim >= 16 && config.rms_norm_eps > 0.0 && config.rope_theta > 0.0);
            for id in [config.bos_token_id, config.pad_token_id].into_iter().flatten() {
                assert!((id as usize) < config.vocab_size);
            }
            if let Some(cutoffs) = config.allowed_cutoffs() {
                assert!(cutoffs.contains(cutoffs.start) && cutoffs.contains(cutoffs.last));
                assert!(cutoffs.start >= 1 && cutoffs.last <= config.num_hidden_layers);
            }
        }
        Err(error) => assert!(error.to_string().contains("config.json")),
    }
});
