//! What is written is read back, and what cannot be written leaves nothing behind.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{Checkpoint, TensorData};

const CONFIG_JSON: &str = r#"{"architectures": ["BertModel"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 16}"#;

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, shape: shape.to_owned() }
}

fn model_dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), CONFIG_JSON).unwrap();
    dir
}

/// A byte that depends on the tensor and the position. As part of a float it is never a NaN.
fn byte(tensor_idx: usize, position: usize) -> u8 {
    u8::try_from((position / 251 + position + 7 * tensor_idx) % 120).unwrap()
}

/// Writes tensors whose bytes are those of [`byte`].
fn write_bytes(dir: &Path, tensors: &[TensorSpec], max_shard_bytes: u64) -> Result<Written, Error> {
    write(dir, tensors, max_shard_bytes, |tensor_idx, start, piece| {
        for (i, out) in piece.iter_mut().enumerate() {
            *out = byte(tensor_idx, start + i);
        }
        Ok(())
    })
}

/// The bytes of a tensor of the checkpoint in `dir`.
fn stored_bytes(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    match checkpoint.tensor(name).unwrap().data {
        TensorData::F32(data) => bytemuck::cast_slice(data).to_vec(),
        TensorData::F16(data) => bytemuck::cast_slice(data).to_vec(),
        TensorData::BF16(data) => bytemuck::cast_slice(data).to_vec(),
    }
}

fn assert_stored(dir: &Path, tensors: &[TensorSpec]) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    assert_eq!(checkpoint.tensors().count(), tensors.len());
    for (tensor_idx, tensor) in tensors.iter().enumerate() {
        assert_eq!(checkpoint.tensor(&tensor.name).unwrap().shape, tensor.shape);
        let bytes = stored_bytes(&checkpoint, &tensor.name);
        assert_eq!(bytes.len(), tensor.bytes());
        assert!(bytes.iter().enumerate().all(|(i, b)| *b == byte(tensor_idx, i)), "{}", tensor.name);
    }
}

/// The names of the files in `dir`, sorted, without the configuration.
fn file_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| name != "config.json");
    names.sort();
    names
}

#[test]
fn small_models_are_one_file() {
    let dir = model_dir();
    let tensors = [
        spec("z", Dtype::BF16, &[3, 5]),
        spec("a", Dtype::F32, &[2, 2]),
        spec("none", Dtype::F16, &[4, 0]),
        spec("scalar", Dtype::F16, &[]),
    ];
    let written = write_bytes(dir.path(), &tensors, 48).unwrap();
    assert_eq!(written.files, [dir.path().join(WEIGHTS)]);
    assert_eq!(file_names(dir.path()), [WEIGHTS]);
    assert_stored(dir.path(), &tensors);

    let file = fs::read(&written.files[0]).unwrap();
    assert_eq!(file.len() as u64, written.bytes);
    let header_bytes = usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap();
    assert!(header_bytes.is_multiple_of(8));
    assert_eq!(
        std::str::from_utf8(&file[8..8 + header_bytes]).unwrap().trim_end(),
        r#"{"__metadata__":{"format":"pt"},"z":{"dtype":"BF16","shape":[3,5],"data_offsets":[0,30]},"#
            .to_owned()
            + r#""a":{"dtype":"F32","shape":[2,2],"data_offsets":[30,46]},"#
            + r#""none":{"dtype":"F16","shape":[4,0],"data_offsets":[46,46]},"#
            + r#""scalar":{"dtype":"F16","shape":[],"data_offsets":[46,48]}}"#
    );
}

#[test]
fn large_models_are_sharded() {
    let dir = model_dir();
    // 40 bytes fit exactly; 60 of one tensor do not and have a shard of their own.
    let tensors = [
        spec("a", Dtype::F32, &[5]),
        spec("b", Dtype::F32, &[5]),
        spec("c", Dtype::F16, &[30]),
        spec("d", Dtype::F16, &[1]),
    ];
    let written = write_bytes(dir.path(), &tensors, 40).unwrap();
    let names = [1, 2, 3].map(|shard| format!("model-0000{shard}-of-00003.safetensors"));
    let all = [&names[..], &[INDEX.to_owned()]].concat();
    assert_eq!(file_names(dir.path()), all);
    assert_eq!(written.files, all.iter().map(|name| dir.path().join(name)).collect::<Vec<_>>());
    let lengths = written.files.iter().map(|file| fs::metadata(file).unwrap().len());
    assert_eq!(lengths.sum::<u64>(), written.bytes);
    assert_stored(dir.path(), &tensors);

    let index: Value = serde_json::from_slice(&fs::read(dir.path().join(INDEX)).unwrap()).unwrap();
    let weight_map = json!({"a": names[0], "b": names[0], "c": names[1], "d": names[2]});
    assert_eq!(index, json!({"metadata": {"total_size": 102}, "weight_map": weight_map}));
}

#[test]
fn tensors_larger_than_the_buffer_come_in_pieces() {
    let dir = model_dir();
    let tensors = [spec("w", Dtype::F32, &[BUFFER_BYTES / 4 + 3]), spec("v", Dtype::F16, &[1])];
    let mut pieces = Vec::new();
    let written: Result<Written, Error> =
        write(dir.path(), &tensors, u64::MAX, |tensor_idx, start, piece| {
            assert!(
                bytemuck::try_cast_slice::<u8, u64>(&piece[..piece.len() / 8 * 8]).is_ok(),
                "not aligned"
            );
            pieces.push((tensor_idx, start, piece.len()));
            Ok(())
        });
    written.unwrap();
    assert_eq!(pieces, [(0, 0, BUFFER_BYTES), (0, BUFFER_BYTES, 12), (1, 0, 2)]);
    write_bytes(dir.path(), &tensors, u64::MAX).unwrap();
    assert_stored(dir.path(), &tensors);
}

#[test]
fn a_model_without_tensors_is_a_file_with_a_header() {
    let dir = model_dir();
    let written = write_bytes(dir.path(), &[], 0).unwrap();
    assert_eq!(written.files, [dir.path().join(WEIGHTS)]);
    assert_stored(dir.path(), &[]);
}

#[test]
fn names_and_sizes_that_cannot_be_stored_are_refused() {
    let dir = model_dir();
    for tensors in [
        vec![spec("w", Dtype::F32, &[1]), spec("w", Dtype::F16, &[1])],
        vec![spec("__metadata__", Dtype::F32, &[1])],
    ] {
        let message = write_bytes(dir.path(), &tensors, 100).unwrap_err().to_string();
        assert!(message.contains(&tensors[0].name) && message.contains("occurs twice"), "{message}");
    }
    let half = usize::MAX / 8 / 2 + 1;
    for tensors in [
        vec![spec("w", Dtype::F32, &[usize::MAX, 2])],
        vec![spec("w", Dtype::F4, &[3])],
        (0..16).map(|i| spec(&format!("w{i}"), Dtype::U8, &[half])).collect(),
    ] {
        let message = write_bytes(dir.path(), &tensors, 100).unwrap_err().to_string();
        assert!(message.contains("tensor w") && message.contains("no whole number of bytes"), "{message}");
    }
    assert_eq!(spec("w", Dtype::F32, &[usize::MAX, 2]).bytes(), usize::MAX);
    assert_eq!(file_names(dir.path()), [""; 0]);
}

#[test]
fn what_was_there_stays_until_all_is_written() {
    #[derive(Debug, thiserror::Error)]
    enum FillError {
        #[error("no more")]
        NoMore,
        #[error(transparent)]
        Loader(#[from] Error),
    }
    let tensors = [spec("a", Dtype::F32, &[5]), spec("b", Dtype::F32, &[5])];
    let fails_at = |dir: &Path, last: usize, max_shard_bytes| {
        write(dir, &tensors, max_shard_bytes, |tensor_idx, _, piece| {
            piece.fill(9);
            if tensor_idx == last { Err(FillError::NoMore) } else { Ok(()) }
        })
    };
    for max_shard_bytes in [20, 40] {
        let dir = model_dir();
        for last in [0, 1] {
            let error = fails_at(dir.path(), last, max_shard_bytes).unwrap_err();
            assert!(matches!(error, FillError::NoMore));
            assert_eq!(file_names(dir.path()), [""; 0]);
        }
        // A second attempt over a first success changes nothing either.
        write_bytes(dir.path(), &tensors, max_shard_bytes).unwrap();
        let names = file_names(dir.path());
        fails_at(dir.path(), 1, max_shard_bytes).unwrap_err();
        assert_eq!(file_names(dir.path()), names);
        assert_stored(dir.path(), &tensors);
    }
    let error = fails_at(Path::new("no such directory"), 0, 40).unwrap_err();
    let FillError::Loader(Error::Write { path, .. }) = error else { panic!("{error}") };
    assert_eq!(path, Path::new("no such directory").join("model.safetensors.part"));
}

#[test]
fn shards_are_not_written_where_a_single_file_would_be_read() {
    let dir = model_dir();
    let tensors = [spec("a", Dtype::F32, &[5]), spec("b", Dtype::F32, &[5])];
    write_bytes(dir.path(), &tensors, 40).unwrap();
    let message = write_bytes(dir.path(), &tensors, 20).unwrap_err().to_string();
    assert!(message.contains(WEIGHTS) && message.contains("read instead of the shards"), "{message}");
    assert_eq!(file_names(dir.path()), [WEIGHTS]);
}

proptest! {
    #[test]
    fn tensors_come_back_whatever_the_shards(
        shapes in prop::collection::vec(prop::collection::vec(0..5_usize, 0..3), 1..8),
        max_shard_bytes in 0..200_u64,
    ) {
        let dir = model_dir();
        let dtypes = [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().cycle();
        let tensors: Vec<TensorSpec> = shapes
            .iter()
            .zip(dtypes)
            .enumerate()
            .map(|(i, (shape, dtype))| spec(&format!("t{i}"), dtype, shape))
            .collect();
        let written = write_bytes(dir.path(), &tensors, max_shard_bytes).unwrap();
        assert_stored(dir.path(), &tensors);
        prop_assert_eq!(file_names(dir.path()).len(), written.files.len());
    }
}
