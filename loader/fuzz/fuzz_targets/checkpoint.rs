//! A weight file of any bytes: opening it and asking for every tensor it lists gives tensors or errors.
//!
//! `cargo +nightly fuzz run checkpoint fuzz/corpus/checkpoint fuzz/seeds/checkpoint`, in `loader/`.

#![no_main]

use std::fs;
use std::hint::black_box;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use outcrop_loader::{Checkpoint, Error, TensorData};
use tempfile::TempDir;

const CONFIG: &str = r#"{"architectures": ["BertModel"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 16}"#;

static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a directory for the weight file");
    fs::write(dir.path().join("config.json"), CONFIG).expect("room for the configuration");
    dir
});

fuzz_target!(|bytes: &[u8]| {
    fs::write(DIR.path().join("model.safetensors"), bytes).expect("room for the weight file");
    let Ok(checkpoint) = Checkpoint::open(DIR.path()) else { return };
    for info in checkpoint.tensors() {
        assert!(info.bytes <= bytes.len());
        match checkpoint.tensor(info.name) {
            // Reads every byte, so that a view beyond the file is noticed.
            Ok(tensor) => {
                black_box(match tensor.data {
                    TensorData::F32(data) => data.iter().map(|x| u64::from(x.to_bits())).sum::<u64>(),
                    TensorData::F16(data) => data.iter().map(|x| u64::from(x.to_bits())).sum(),
                    TensorData::BF16(data) => data.iter().map(|x| u64::from(x.to_bits())).sum(),
                });
            }
            Err(error) => assert!(matches!(error, Error::UnsupportedDtype { .. }), "{error}"),
        }
    }
});
