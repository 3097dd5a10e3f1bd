//! An adapter of any bytes, its configuration up to the first zero byte and its weights after it: opening it and
//! checking it against a model gives changes or errors.
//!
//! `cargo +nightly fuzz run adapter fuzz/corpus/adapter fuzz/seeds/adapter`, in `loader/`.

#![no_main]

use std::fs;
use std::hint::black_box;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use outcrop_loader::writer::{self, TensorSpec};
use outcrop_loader::{Adapter, Change, Checkpoint, Dtype, Error, Tensor, TensorData};
use tempfile::TempDir;

const CONFIG: &str = r#"{"architectures": ["BertModel"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 16}"#;

static DIR: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().expect("a directory for the adapter"));

/// A model with the matrix and the vector that the seed changes.
static MODEL: LazyLock<(TempDir, Checkpoint)> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a directory for the model");
    fs::write(dir.path().join("config.json"), CONFIG).expect("room for the configuration");
    let spec = |name: &str, shape: &[usize]| TensorSpec {
        name: name.to_owned(),
        dtype: Dtype::F32,
        shape: shape.to_owned(),
    };
    let tensors = [spec("q_proj.weight", &[2, 3]), spec("norm.weight", &[3])];
    writer::write::<Error>(dir.path(), &tensors, u64::MAX, |_, _, piece| {
        piece.fill(0);
        Ok(())
    })
    .expect("room for the weights");
    let checkpoint = Checkpoint::open(dir.path()).expect("what was written can be read");
    (dir, checkpoint)
});

/// Reads every byte, so that a view beyond the file is noticed.
fn read(tensor: Tensor<'_>) {
    black_box(match tensor.data {
        TensorData::F32(data) => data.iter().map(|x| u64::from(x.to_bits())).sum::<u64>(),
        TensorData::F16(data) => data.iter().map(|x| u64::from(x.to_bits())).sum(),
        TensorData::BF16(data) => data.iter().map(|x| u64::from(x.to_bits())).sum(),
    });
}

fuzz_target!(|bytes: &[u8]| {
    let config_bytes = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (config, weights) = bytes.split_at(config_bytes);
    fs::write(DIR.path().join("adapter_config.json"), config).expect("room for the configuration");
    let weights = weights.get(1..).unwrap_or_default();
    fs::write(DIR.path().join("adapter_model.safetensors"), weights).expect("room for the weights");

    let Ok(adapter) = Adapter::open(DIR.path()) else { return };
    let fits = adapter.check(&MODEL.1).is_ok();
    for name in ["q_proj.weight", "norm.weight", "model.norm.weight"] {
        match adapter.change(name) {
            Ok(Some(Change::LowRank { a, b, scale })) => {
                assert_eq!(a.shape[0], b.shape[1]);
                assert!(scale.is_finite());
                read(a);
                read(b);
            }
            Ok(Some(Change::Replacement(tensor))) => read(tensor),
            Ok(None) => {}
            Err(error) => assert!(!fits && matches!(error, Error::UnsupportedDtype { .. }), "{error}"),
        }
    }
});
