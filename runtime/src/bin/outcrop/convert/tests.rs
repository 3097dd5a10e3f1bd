//! Rounding, bit for bit, and what is copied.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use outcrop::loader::{Dtype, TensorData};
use proptest::prelude::*;

use super::files::Files;
use super::{check_apart, round};
use crate::error::Error;

/// One element, converted.
fn f32_to(x: f32, dtype: Dtype) -> Result<u16, f32> {
    let mut out = [0; 2];
    round::fill(&mut out, TensorData::F32(&[x]), 0, dtype)?;
    Ok(u16::from_le_bytes(out))
}

/// The nearest value of a type, of two equally near ones the one with the even last bit; computed from the definition.
fn nearest(x: f32, values: impl Fn(u16) -> f64) -> u16 {
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let distance = |bits: u16| (values(bits) - f64::from(x.abs())).abs();
    // Non-negative values grow with their bits.
    let (mut low, mut high) = (0_u16, 0x7fff);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if values(middle) <= f64::from(x.abs()) { low = middle } else { high = middle }
    }
    let up = distance(high) < distance(low) || distance(high) == distance(low) && high % 2 == 0;
    sign | if up { high } else { low }
}

/// The value of f16's bits, its infinity as the number that would come next.
fn f16_value(bits: u16) -> f64 {
    if bits >= 0x7c00 { 65536.0 * f64::from(bits - 0x7c00 + 1) } else { f16::from_bits(bits).to_f64() }
}

/// The same of bf16.
fn bf16_value(bits: u16) -> f64 {
    let first_infinite = 2_f64.powi(128);
    if bits >= 0x7f80 {
        first_infinite * f64::from(bits - 0x7f80 + 1)
    } else {
        bf16::from_bits(bits).to_f64()
    }
}

proptest! {
    #[test]
    fn rounding_is_to_nearest_even(bits: u32) {
        let x = f32::from_bits(bits);
        prop_assume!(x.is_finite());
        let expected = nearest(x, f16_value);
        let infinite = expected & 0x7fff >= 0x7c00;
        prop_assert_eq!(f32_to(x, Dtype::F16), if infinite { Err(x) } else { Ok(expected) });
        let expected = nearest(x, bf16_value);
        let infinite = expected & 0x7fff >= 0x7f80;
        prop_assert_eq!(f32_to(x, Dtype::BF16), if infinite { Err(x) } else { Ok(expected) });
    }

    /// Every 16-bit value goes to f32 and back without a change.
    #[test]
    fn widening_loses_nothing(bits: u16) {
        for (data, back) in [
            (TensorData::F16(&[f16::from_bits(bits)]), Dtype::F16),
            (TensorData::BF16(&[bf16::from_bits(bits)]), Dtype::BF16),
        ] {
            let mut out = [0; 4];
            round::fill(&mut out, data, 0, Dtype::F32).unwrap();
            let wide = f32::from_le_bytes(out);
            prop_assume!(!wide.is_nan());
            prop_assert_eq!(f32_to(wide, back), Ok(bits));
        }
    }
}

#[test]
fn ties_limits_and_what_is_not_finite() {
    assert_eq!(f32_to(1.0 + 2_f32.powi(-11), Dtype::F16), Ok(0x3c00));
    assert_eq!(f32_to(1.0 + 3.0 * 2_f32.powi(-11), Dtype::F16), Ok(0x3c02));
    assert_eq!(f32_to(65519.996, Dtype::F16), Ok(0x7bff));
    assert_eq!(f32_to(65520.0, Dtype::F16), Err(65520.0));
    assert_eq!(f32_to(-1e9, Dtype::F16), Err(-1e9));
    assert_eq!(f32_to(f32::MAX, Dtype::BF16), Err(f32::MAX));
    assert_eq!(f32_to(-f32::INFINITY, Dtype::F16), Ok(0xfc00));
    assert!(f16::from_bits(f32_to(f32::NAN, Dtype::F16).unwrap()).is_nan());
    // The same type keeps every bit, a signalling NaN's too.
    for bits in [0x7f80_0001_u32, 0xffff_ffff] {
        let mut out = [0; 4];
        round::fill(&mut out, TensorData::F32(&[f32::from_bits(bits)]), 0, Dtype::F32).unwrap();
        assert_eq!(out, bits.to_le_bytes());
    }
}

/// Blocks begin anywhere in a tensor, are cut into pieces, and the first overflow of several is the one reported.
#[test]
fn blocks_begin_where_they_are_told() {
    let mut data: Vec<f32> = (0_u16..40_000).map(|i| f32::from(i) / 4.0).collect();
    data.extend_from_within(..);
    data.extend_from_within(..);
    for (dtype, bytes) in [(Dtype::F32, 4), (Dtype::BF16, 2), (Dtype::F16, 2)] {
        let mut out = vec![0; bytes * 150_000];
        round::fill(&mut out, TensorData::F32(&data), bytes * 8, dtype).unwrap();
        let mut one = vec![0; bytes];
        for i in [0, 1, 65_535, 65_536, 131_072, 149_999] {
            round::fill(&mut one, TensorData::F32(&data[i + 8..=i + 8]), 0, dtype).unwrap();
            assert_eq!(out[bytes * i..bytes * (i + 1)], one, "{dtype:?} {i}");
        }
    }
    data[140_000] = 2e5;
    data[140_001] = 3e5;
    let mut out = vec![0; 2 * data.len()];
    assert_eq!(round::fill(&mut out, TensorData::F32(&data), 0, Dtype::F16), Err(2e5));
}

#[test]
fn small_files_are_copied_and_weights_are_not() {
    let (model, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |name: &str, text: &str| {
        let path = model.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let copied = [
        "1_Pooling/config.json",
        "LICENSE",
        "README.md",
        "modules.json",
        "tokenizer.json",
        "tokenizer.model",
    ];
    for name in copied {
        write(name, if name == "modules.json" { r#"[{"path": ""}, {"path": "1_Pooling"}]"# } else { name });
    }
    let left = ["adapter", "onnx", "pytorch_model.bin"];
    for name in ["adapter/adapter_config.json", "onnx/config.json", "pytorch_model.bin"] {
        write(name, "left");
    }
    for name in [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    ] {
        write(name, "replaced");
    }
    let files = Files::of(model.path()).unwrap();
    files.copy(out.path()).unwrap();
    assert_eq!(
        files.notes(),
        [format!("copied: {}", copied.join(", ")), format!("not copied: {}", left.join(", "))]
    );
    for name in copied {
        assert_eq!(fs::read(out.path().join(name)).unwrap(), fs::read(model.path().join(name)).unwrap());
    }
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 6);
}

/// A link in the output directory is replaced: what it points to is not the conversion's to write.
#[test]
fn links_are_not_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    fs::create_dir(&model).unwrap();
    fs::create_dir(&out).unwrap();
    fs::write(model.join("tokenizer.json"), "the model's").unwrap();
    fs::write(dir.path().join("other.json"), "another's").unwrap();
    for name in ["tokenizer.json", "tokenizer.json.part"] {
        std::os::unix::fs::symlink(dir.path().join("other.json"), out.join(name)).unwrap();
    }
    Files::of(&model).unwrap().copy(&out).unwrap();
    assert_eq!(fs::read_to_string(out.join("tokenizer.json")).unwrap(), "the model's");
    assert!(!out.join("tokenizer.json").is_symlink());
    assert_eq!(fs::read_to_string(dir.path().join("other.json")).unwrap(), "another's");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn the_output_is_apart_from_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    let refused = |out: &Path| matches!(check_apart(&model, out), Err(Error::OutInModel { .. }));
    assert!(refused(&model));
    assert!(refused(&model.join("new/deep")));
    assert!(refused(&dir.path().join("model/../model/.")));
    std::os::unix::fs::symlink(&model, dir.path().join("link")).unwrap();
    assert!(refused(&dir.path().join("link/new")));
    assert!(!refused(&dir.path().join("model-bf16")));
    assert!(!refused(dir.path()));
    assert!(!refused(Path::new("new")));
}
