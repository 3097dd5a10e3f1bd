//! Seeded random numbers, written to a safetensors file tensor by tensor.
//!
//! Every element is a function of the seed, the tensor's name and the element's index, so the same seed gives
//! the same file on any machine with any number of threads. Only integer arithmetic and single multiplications
//! and additions are used: no function of a maths library, whose last bit differs between systems.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use clap::ValueEnum;
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

/// The type in which weights are stored.
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

    fn safetensors_name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        }
    }
}

/// One tensor to be written: its name, its shape, and the normal distribution its elements are drawn from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorSpec {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) mean: f32,
    pub(crate) std: f32,
}

impl TensorSpec {
    /// Number of elements.
    pub(crate) fn elems(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What is held in memory of a tensor at a time. A multiple of every element size and of `PIECE_BYTES`.
const BUFFER_BYTES: usize = 16 << 20;
/// What one thread fills at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Writes `tensors` to `path` as one safetensors file and returns its size in bytes.
///
/// The file appears under its name when it is complete: until then it is called `<name>.part`.
pub(crate) fn write(path: &Path, tensors: &[TensorSpec], dtype: Dtype, seed: u64) -> io::Result<u64> {
    let part = path.with_extension("safetensors.part");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&part)?);
    let header = header(tensors, dtype)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut written = 8 + header.len() as u64;
    let mut buffer = vec![0u8; BUFFER_BYTES];
    for tensor in tensors {
        let stream = Stream::new(seed, tensor);
        let total = tensor.elems() * dtype.bytes();
        for start in (0..total).step_by(BUFFER_BYTES) {
            let block = &mut buffer[..BUFFER_BYTES.min(total - start)];
            block.par_chunks_mut(PIECE_BYTES).enumerate().for_each(|(piece_idx, piece)| {
                let first = (start + piece_idx * PIECE_BYTES) / dtype.bytes();
                fill(piece, first as u64, &stream, dtype);
            });
            file.write_all(block)?;
        }
        written += total as u64;
    }
    file.flush()?;
    drop(file);
    std::fs::rename(&part, path)?;
    Ok(written)
}

/// The JSON header, padded with spaces so that the first tensor starts at a multiple of 8 bytes.
fn header(tensors: &[TensorSpec], dtype: Dtype) -> io::Result<Vec<u8>> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut begin = 0;
    for tensor in tensors {
        let end = begin + tensor.elems() * dtype.bytes();
        entries.insert(
            tensor.name.clone(),
            json!({ "dtype": dtype.safetensors_name(), "shape": tensor.shape, "data_offsets": [begin, end] }),
        );
        begin = end;
    }
    let mut header = serde_json::to_vec(&Value::Object(entries))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// Fills `out` with the elements of `stream` from index `first` on.
fn fill(out: &mut [u8], first: u64, stream: &Stream, dtype: Dtype) {
    let indices = first..;
    match dtype {
        Dtype::F32 => {
            for (bytes, i) in out.as_chunks_mut::<4>().0.iter_mut().zip(indices) {
                *bytes = stream.value(i).to_le_bytes();
            }
        }
        Dtype::F16 => {
            for (bytes, i) in out.as_chunks_mut::<2>().0.iter_mut().zip(indices) {
                *bytes = f16::from_f32(stream.value(i)).to_le_bytes();
            }
        }
        Dtype::Bf16 => {
            for (bytes, i) in out.as_chunks_mut::<2>().0.iter_mut().zip(indices) {
                *bytes = bf16::from_f32(stream.value(i)).to_le_bytes();
            }
        }
    }
}

/// The random sequence of one tensor.
struct Stream {
    state: u64,
    mean: f32,
    /// The tensor's standard deviation over that of a sum of four 16-bit uniforms.
    scale: f32,
}

/// Increment and mixing constants of SplitMix64 (Steele, Lea, Flood 2014).
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// Mean of the sum of four uniforms over 0..=65535.
const SUM_MEAN: i32 = 131_070;
/// Its standard deviation, `sqrt(4 (65536^2 - 1) / 12)`.
const SUM_STD: f32 = 37_837.227;

impl Stream {
    fn new(seed: u64, tensor: &TensorSpec) -> Stream {
        // FNV-1a of the name: a tensor's numbers do not depend on which other tensors the file holds.
        let name = tensor.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Stream { state: mix(mix(seed) ^ name), mean: tensor.mean, scale: tensor.std / SUM_STD }
    }

    /// Element `i`: a sum of four uniforms, close to normal out to three standard deviations and bounded by 3.5.
    fn value(&self, i: u64) -> f32 {
        let bits = mix(self.state.wrapping_add(i.wrapping_mul(GAMMA)));
        let bytes = bits.to_le_bytes();
        let uniforms = bytes.as_chunks::<2>().0.iter().map(|pair| i32::from(u16::from_le_bytes(*pair)));
        self.mean + (uniforms.sum::<i32>() - SUM_MEAN) as f32 * self.scale
    }
}

/// The output function of SplitMix64.
pub(crate) fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(GAMMA);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
