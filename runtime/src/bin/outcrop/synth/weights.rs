//! Seeded random numbers, written to weight files tensor by tensor.
//!
//! Every element is a function of the seed, the tensor's name and the element's index, so the same seed gives
//! the same files on any machine with any number of threads. Only integer arithmetic and single multiplications
//! and additions are used: no function of a maths library, whose last bit differs between systems.

use std::path::Path;

use half::{bf16, f16};
use outcrop::loader::writer::{self, TensorSpec, Written};
use rayon::prelude::*;

use crate::dtype::Dtype;
use crate::error::Error;

/// One tensor to be written: its name, its shape, and the normal distribution its elements are drawn from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Random {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) mean: f32,
    pub(crate) std: f32,
}

impl Random {
    /// Number of elements.
    pub(crate) fn elems(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What one thread fills at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Writes `tensors` into `dir`, as one file or as several of at most `max_shard_bytes`.
///
/// # Errors
///
/// A file cannot be written.
pub(crate) fn write(
    dir: &Path,
    tensors: &[Random],
    dtype: Dtype,
    seed: u64,
    max_shard_bytes: u64,
) -> Result<Written, Error> {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|Random { name, shape, .. }| TensorSpec {
            name: name.clone(),
            dtype: dtype.stored(),
            shape: shape.clone(),
        })
        .collect();
    writer::write(dir, &specs, max_shard_bytes, |index, first_byte, block| {
        let stream = Stream::new(seed, &tensors[index]);
        block.par_chunks_mut(PIECE_BYTES).enumerate().for_each(|(piece_idx, piece)| {
            let first = (first_byte + piece_idx * PIECE_BYTES) / dtype.bytes();
            fill(piece, first as u64, &stream, dtype);
        });
        Ok(())
    })
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
    fn new(seed: u64, tensor: &Random) -> Stream {
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
