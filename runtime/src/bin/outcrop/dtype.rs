//! The types in which weights are stored.

use clap::ValueEnum;
use outcrop::loader;

/// A floating-point type of a weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// 32-bit floating point.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// The name in `torch_dtype` of config.json.
    pub(crate) fn torch_name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        }
    }

    /// The type as the loader knows it.
    pub(crate) fn stored(self) -> loader::Dtype {
        match self {
            Dtype::F32 => loader::Dtype::F32,
            Dtype::F16 => loader::Dtype::F16,
            Dtype::Bf16 => loader::Dtype::BF16,
        }
    }
}
