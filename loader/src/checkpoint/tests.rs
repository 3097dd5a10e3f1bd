//! Weight files good and bad, and what is said about the bad ones.

use std::fs;

use half::{bf16, f16};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::weights::header;
use crate::{Dtype, TensorData};

const CONFIG_JSON: &str = r#"{"architectures": ["BertModel"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 16}"#;

/// A safetensors file: the header's length, the header, the data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A model directory with a valid configuration and the given files.
fn model_dir(files: &[(&str, &[u8])]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(CONFIG), CONFIG_JSON).unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// The checkpoint whose only weight file is `bytes`.
fn open(bytes: &[u8]) -> Result<Checkpoint, Error> {
    // The mapping outlives the directory's name: the file is gone when the last reference to it is.
    Checkpoint::open(model_dir(&[(WEIGHTS, bytes)]).path())
}

/// What is said about a file with this header and data.
fn damaged(header: &str, data: &[u8]) -> String {
    open(&file(header, data)).unwrap_err().to_string()
}

fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

fn assert_send_sync<T: Send + Sync>() {}

#[test]
fn checkpoint_can_be_shared_between_threads() {
    assert_send_sync::<Checkpoint>();
    assert_send_sync::<Tensor<'_>>();
    assert_send_sync::<Error>();
}

#[test]
fn tensors_are_views_of_the_stored_values() {
    let header = r#"{"__metadata__": {"format": "pt"},
        "b.f16": {"dtype": "F16", "shape": [2, 1], "data_offsets": [8, 12]},
        "a.f32": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "c.bf16": {"dtype": "BF16", "shape": [1], "data_offsets": [12, 14]},
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [22, 26]},
        "position_ids": {"dtype": "I64", "shape": [1, 1], "data_offsets": [14, 22]}}"#;
    let data = [
        &1.5_f32.to_le_bytes()[..],
        &(-2.0_f32).to_le_bytes(),
        &f16::from_f32(0.5).to_le_bytes(),
        &f16::from_f32(-4.0).to_le_bytes(),
        &bf16::from_f32(3.0).to_le_bytes(),
        &7_i64.to_le_bytes(),
        &9.0_f32.to_le_bytes(),
    ]
    .concat();
    // Header lengths of every remainder, so that every type is met at aligned and at unaligned addresses.
    for padding in 0..8 {
        let checkpoint = open(&file(&format!("{header}{}", " ".repeat(padding)), &data)).unwrap();
        let names = checkpoint.tensors().map(|tensor| tensor.name).collect::<Vec<_>>();
        assert_eq!(names, ["a.f32", "b.f16", "c.bf16", "position_ids", "scalar"]);

        let f32s = checkpoint.tensor("a.f32").unwrap();
        assert_eq!((f32s.name, f32s.shape, f32s.data.len()), ("a.f32", &[2][..], 2));
        assert!(matches!(f32s.data, TensorData::F32([1.5, -2.0])));
        let f16s = checkpoint.tensor("b.f16").unwrap().expect_shape(&[2, 1]).unwrap();
        assert!(
            matches!(f16s.data, TensorData::F16(values) if values == [f16::from_f32(0.5), f16::from_f32(-4.0)])
        );
        let bf16s = checkpoint.tensor("c.bf16").unwrap();
        assert!(matches!(bf16s.data, TensorData::BF16(values) if values == [bf16::from_f32(3.0)]));
        assert!(matches!(checkpoint.tensor("scalar").unwrap().data, TensorData::F32([9.0])));

        assert!(checkpoint.contains("position_ids"));
        let message = checkpoint.tensor("position_ids").unwrap_err().to_string();
        assert_contains(&message, &[WEIGHTS, "position_ids", "I64", "F32, F16 and BF16"]);
    }
}

#[test]
fn an_unaligned_tensor_is_copied_once() {
    let header = r#"{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#;
    let padding = " ".repeat((5 - header.len() % 4) % 4);
    let checkpoint = open(&file(&format!("{header}{padding}"), &1.0_f32.to_le_bytes())).unwrap();
    let address = |tensor: Tensor<'_>| match tensor.data {
        TensorData::F32(data) => data.as_ptr() as usize,
        _ => 0,
    };
    let mapped = checkpoint.weights.files[0].bytes().as_ptr_range();
    let first = address(checkpoint.tensor("w").unwrap());
    assert!(!(mapped.start as usize..mapped.end as usize).contains(&first));
    assert_eq!(first, address(checkpoint.tensor("w").unwrap()));
}

/// A file with one F32 tensor `w` of that many elements, aligned as writers of the format align it.
fn large_file(elements: u32) -> Vec<u8> {
    let bytes = 4 * elements;
    let header =
        format!(r#"{{"w": {{"dtype": "F32", "shape": [{elements}], "data_offsets": [0, {bytes}]}}}}"#);
    let padding = " ".repeat(header.len().next_multiple_of(8) - header.len());
    file(&format!("{header}{padding}"), &(0..elements).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
}

/// The sum of the bit patterns of an F32 tensor.
fn sum_of_bits(tensor: &Tensor<'_>) -> u64 {
    match tensor.data {
        TensorData::F32(data) => data.iter().map(|x| u64::from(x.to_bits())).sum(),
        _ => 0,
    }
}

#[test]
fn released_tensors_can_be_read_again() {
    let elements = 1 << 18;
    let checkpoint = open(&large_file(elements)).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    let expected = u64::from(elements) * u64::from(elements - 1) / 2;
    assert_eq!(sum_of_bits(&tensor), expected);
    tensor.release();
    assert_eq!(sum_of_bits(&tensor), expected);
}

#[cfg(target_os = "linux")]
#[test]
fn only_tensors_that_are_read_are_resident_and_only_until_released() {
    let file_kb = 32 << 10;
    let checkpoint = open(&large_file(file_kb * 1024 / 4)).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    let address = format!("{:x}-", checkpoint.weights.files[0].bytes().as_ptr() as usize);
    // Resident kilobytes of this one mapping, so that tests on other threads do not matter.
    let resident_kb = || -> u32 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut mapping = smaps.lines().skip_while(|line| !line.starts_with(&address));
        let rss = mapping.find(|line| line.starts_with("Rss:")).unwrap();
        rss.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // A fault may map 2 MB around the page that was touched, so a few of those are allowed.
    let opened = resident_kb();
    assert!(opened <= file_kb / 4, "opening made {opened} of {file_kb} kB resident");
    assert!(sum_of_bits(&tensor) > 0);
    assert!(resident_kb() >= file_kb);
    tensor.release();
    let released = resident_kb();
    assert!(released <= file_kb / 4, "{released} of {file_kb} kB are resident after the release");
}

#[test]
fn shape_mismatch_names_file_tensor_and_both_shapes() {
    let header = r#"{"w": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}"#;
    let checkpoint = open(&file(header, &[0; 8])).unwrap();
    let message = checkpoint.tensor("w").unwrap().expect_shape(&[2, 1]).unwrap_err().to_string();
    assert_contains(&message, &[WEIGHTS, "tensor w", "[2, 1]", "[1, 2]"]);
}

#[test]
fn missing_tensor_names_the_nearest() {
    let header = r#"{"roberta.embeddings.word_embeddings.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "classifier.dense.bias": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
    let checkpoint = open(&file(header, &[0; 8])).unwrap();
    let message = checkpoint.tensor("embeddings.word_embeddings.weight").unwrap_err().to_string();
    assert_contains(
        &message,
        &["no tensor embeddings.word_embeddings.weight", "; the nearest name is roberta.emb"],
    );
    assert!(matches!(checkpoint.tensor("something else"), Err(Error::MissingTensor { nearest: None, .. })));
    let empty = open(&file("{}", &[])).unwrap();
    assert!(matches!(empty.tensor("w"), Err(Error::MissingTensor { nearest: None, .. })));
}

#[test]
fn every_kind_of_missing_file_has_its_own_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    assert!(matches!(Checkpoint::open(path.join("none")), Err(Error::NoDirectory { .. })));
    assert!(matches!(Checkpoint::open(path), Err(Error::NoConfig { .. })));
    fs::write(path.join(CONFIG), "{").unwrap();
    assert!(matches!(Checkpoint::open(path.join(CONFIG)), Err(Error::NotADirectory { .. })));
    assert!(matches!(Checkpoint::open(path), Err(Error::Json { .. })));
    fs::write(path.join(CONFIG), CONFIG_JSON).unwrap();
    assert!(matches!(Checkpoint::open(path), Err(Error::NoWeights { .. })));

    fs::write(path.join(PICKLED_WEIGHTS), "pickle").unwrap();
    let message = Checkpoint::open(path).unwrap_err().to_string();
    assert_contains(&message, &[PICKLED_WEIGHTS, "python3 -c", "save_file", path.to_str().unwrap()]);

    fs::write(path.join(WEIGHTS), "").unwrap();
    assert!(matches!(Checkpoint::open(path), Err(Error::EmptyFile { .. })));
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2271071852\n";
    fs::write(path.join(WEIGHTS), pointer).unwrap();
    assert_contains(&Checkpoint::open(path).unwrap_err().to_string(), &[WEIGHTS, "git lfs pull"]);
}

#[test]
fn hostile_headers_are_refused() {
    let entry = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"w": {{"dtype": "F32", "shape": {shape}, "data_offsets": [{start}, {end}]}}}}"#)
    };
    // Truncated: the header promises eight bytes, the file has seven; and one byte too many.
    assert_contains(&damaged(&entry("[2]", 0, 8), &[0; 7]), &[WEIGHTS, "truncated"]);
    assert_contains(&damaged(&entry("[2]", 0, 8), &[0; 9]), &[WEIGHTS, "truncated or damaged"]);
    // Shapes whose size overflows, or contradicts the offsets.
    assert_contains(
        &damaged(&entry("[9223372036854775807, 4]", 0, 8), &[0; 8]),
        &["tensor w", "does not fit"],
    );
    assert_contains(&damaged(&entry("[3]", 0, 8), &[0; 8]), &["tensor w", "[3]", "8 bytes"]);
    // Offsets: backwards, with a gap, and so large that adding the header's length overflows.
    assert_contains(&damaged(&entry("[2]", 8, 0), &[0; 8]), &["tensor w", "8..0"]);
    assert_contains(&damaged(&entry("[1]", 4, 8), &[0; 8]), &["tensor w", "expected to start at 0"]);
    let huge =
        r#"{"w": {"dtype": "U8", "shape": [2305843009213693951], "data_offsets": [0, 2305843009213693951]}}"#;
    assert_contains(&damaged(huge, &[0; 8]), &["2305843009213", "found"]);
    let overlap = r#"{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}"#;
    assert_contains(&damaged(overlap, &[0; 6]), &["tensor b", "neither overlap"]);
    // Four bits of a type that has four bits are no whole byte.
    let half_byte = r#"{"w": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}"#;
    assert_contains(&damaged(half_byte, &[0; 1]), &["tensor w", "F4"]);

    for header in ["", "[]", "null", "{", "\u{feff}{}", r#"{"w": {}}"#, r#"{"w": {"dtype": "F99"}}"#] {
        assert!(matches!(open(&file(header, &[])), Err(Error::HeaderJson { .. })), "{header}");
    }
    assert!(matches!(open(&file(&"[".repeat(100_000), &[])), Err(Error::HeaderJson { .. })));
    assert!(matches!(open(&[3, 0, 0, 0, 0, 0, 0, 0, b'"', 0xff, b'"']), Err(Error::HeaderJson { .. })));
}

#[test]
fn duplicate_names_are_refused() {
    let header = r#"{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#;
    let Err(Error::HeaderJson { source, .. }) = open(&file(header, &[0; 4])) else { panic!("accepted") };
    assert_contains(&source.to_string(), &["w occurs twice"]);
}

#[test]
fn header_lengths_beyond_the_file_or_the_limit_are_refused() {
    for length in [9_u64, 100_000_001, u64::MAX, u64::MAX - 7] {
        let bytes = [&length.to_le_bytes()[..], b"{}      "].concat();
        let Err(Error::HeaderLength { header_bytes, file_bytes: 16, .. }) = open(&bytes) else {
            panic!("accepted {length}")
        };
        assert_eq!(header_bytes, length);
    }
    assert!(matches!(open(&[0; 7]), Err(Error::NoHeader { file_bytes: 7, .. })));
}

const SHARD: &str = r#"{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#;

#[test]
fn shards_are_found_through_the_index() {
    let index = br#"{"metadata": {"total_size": 8}, "weight_map":
        {"w": "model-1.safetensors", "absent": "model-1.safetensors", "v": "model-2.safetensors"}}"#;
    let dir = model_dir(&[(INDEX, index), ("model-1.safetensors", &file(SHARD, &2.0_f32.to_le_bytes()))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(matches!(checkpoint.tensor("w").unwrap().data, TensorData::F32([2.0])));
    assert_eq!(checkpoint.tensors().count(), 1);
    assert!(matches!(checkpoint.tensor("absent"), Err(Error::MissingTensor { .. })));
    // A shard that is not there matters when one of its tensors is wanted, not before.
    assert!(checkpoint.contains("v"));
    assert_contains(&checkpoint.tensor("v").unwrap_err().to_string(), &["tensor v", "model-2.safetensors"]);

    fs::write(dir.path().join("model-2.safetensors"), file(SHARD, &[0; 3])).unwrap();
    assert_contains(
        &Checkpoint::open(dir.path()).unwrap_err().to_string(),
        &["model-2.safetensors", "truncated"],
    );
}

#[test]
fn shards_outside_the_directory_are_refused() {
    for name in ["../w.safetensors", "/etc/passwd", "a/../../w", "..", "a\\u0000b"] {
        let index = format!(r#"{{"weight_map": {{"w": "{name}"}}}}"#);
        let error = Checkpoint::open(model_dir(&[(INDEX, index.as_bytes())]).path()).unwrap_err();
        assert!(matches!(error, Error::UnsafePath { .. }), "{name}: {error}");
    }
    for index in ["[]", "{}", r#"{"weight_map": []}"#, r#"{"weight_map": {"w": 1}}"#] {
        let error = Checkpoint::open(model_dir(&[(INDEX, index.as_bytes())]).path()).unwrap_err();
        assert!(matches!(error, Error::Field { .. }), "{index}: {error}");
    }
}

#[test]
fn the_single_file_wins_over_the_index() {
    let dir = model_dir(&[(INDEX, b"not even JSON"), (WEIGHTS, &file(SHARD, &[0; 4]))]);
    assert!(Checkpoint::open(dir.path()).unwrap().contains("w"));
}

/// A valid file of a few tensors of random types and shapes, without padding.
fn valid_file() -> impl Strategy<Value = Vec<u8>> {
    let dtype =
        prop_oneof![Just(("F32", 4)), Just(("F16", 2)), Just(("BF16", 2)), Just(("I64", 8)), Just(("U8", 1))];
    let tensor = (dtype, prop::collection::vec(0_usize..4, 0..3));
    prop::collection::vec(tensor, 0..5).prop_map(|tensors| {
        let mut entries = Vec::new();
        let mut end = 0;
        for (i, ((dtype, bytes), shape)) in tensors.into_iter().enumerate() {
            let start = end;
            end += bytes * shape.iter().product::<usize>();
            entries.push(format!(
                r#""t{i}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
            ));
        }
        file(&format!("{{{}}}", entries.join(",")), &vec![0x3f; end])
    })
}

/// Whatever the bytes are, every tensor that is listed can be asked for, and lies in the file.
fn check_entries(bytes: &[u8]) {
    if let Ok(entries) = header::parse(Path::new(WEIGHTS), bytes) {
        for entry in entries {
            assert!(bytes.get(entry.range.clone()).is_some(), "{entry:?} in {} bytes", bytes.len());
        }
    }
}

proptest! {
    #[test]
    fn valid_files_open_and_lend_every_float_tensor(bytes in valid_file()) {
        let checkpoint = open(&bytes).unwrap();
        for info in checkpoint.tensors() {
            let elements = info.shape.iter().product::<usize>();
            match checkpoint.tensor(info.name) {
                Ok(tensor) => prop_assert_eq!(tensor.data.len(), elements),
                Err(Error::UnsupportedDtype { .. }) => prop_assert!(matches!(info.dtype, Dtype::I64 | Dtype::U8)),
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_entries(&bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in "\\PC{0,200}", data in prop::collection::vec(any::<u8>(), 0..20)) {
        check_entries(&file(&header, &data));
    }

    #[test]
    fn mutated_files_never_panic(
        bytes in valid_file(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = bytes;
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check_entries(&bytes);
        check_entries(&bytes[..cut.index(bytes.len() + 1)]);
    }

    #[test]
    fn a_shorter_file_is_always_an_error(bytes in valid_file(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(bytes.len());
        prop_assert!(header::parse(Path::new(WEIGHTS), &bytes[..cut]).is_err());
    }

    #[test]
    fn arbitrary_indexes_never_panic(index in "\\PC{0,100}", name in "\\PC{0,20}") {
        let named = serde_json::json!({ "weight_map": { "w": name } }).to_string();
        for index in [index, named] {
            let dir = model_dir(&[(INDEX, index.as_bytes())]);
            if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
                prop_assert!(checkpoint.tensor("w").is_err());
            }
        }
    }
}
