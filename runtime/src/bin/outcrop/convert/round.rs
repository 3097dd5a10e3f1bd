//! Elements from one floating-point type to another, rounded to nearest, ties to even.

use half::{bf16, f16};
use outcrop::loader::{Dtype, TensorData};
use rayon::prelude::*;

/// What one thread converts at a time. A multiple of every element size.
const PIECE_BYTES: usize = 256 << 10;

/// Fills `out` with the elements of `data` as `dtype`, from the one that starts at byte `first_byte` of the result on.
/// Infinities and NaN stay what they are.
///
/// # Errors
///
/// The first finite element that would become infinite.
pub(crate) fn fill(out: &mut [u8], data: TensorData, first_byte: usize, dtype: Dtype) -> Result<(), f32> {
    let first_byte_of = |piece_idx: usize| first_byte + piece_idx * PIECE_BYTES;
    let overflows = out.par_chunks_mut(PIECE_BYTES).enumerate().map(|(piece_idx, piece)| {
        fill_piece(piece, data, first_byte_of(piece_idx), dtype).err().map(|value| (piece_idx, value))
    });
    match overflows.flatten().min_by_key(|(piece_idx, _)| *piece_idx) {
        Some((_, value)) => Err(value),
        None => Ok(()),
    }
}

fn fill_piece(out: &mut [u8], data: TensorData, first_byte: usize, dtype: Dtype) -> Result<(), f32> {
    let first = 8 * first_byte / dtype.bitsize();
    match (data, dtype) {
        (TensorData::F32(data), Dtype::F16) => convert(out, &data[first..], f16_bytes),
        (TensorData::F32(data), Dtype::BF16) => convert(out, &data[first..], bf16_bytes),
        (TensorData::F32(data), _) => convert(out, &data[first..], |x| Ok(x.to_le_bytes())),
        (TensorData::F16(data), Dtype::F32) => convert(out, &data[first..], |x| Ok(x.to_f32().to_le_bytes())),
        (TensorData::F16(data), Dtype::BF16) => convert(out, &data[first..], |x| bf16_bytes(x.to_f32())),
        (TensorData::F16(data), _) => convert(out, &data[first..], |x| Ok(x.to_le_bytes())),
        (TensorData::BF16(data), Dtype::F32) => {
            convert(out, &data[first..], |x| Ok(x.to_f32().to_le_bytes()))
        }
        (TensorData::BF16(data), Dtype::F16) => convert(out, &data[first..], |x| f16_bytes(x.to_f32())),
        (TensorData::BF16(data), _) => convert(out, &data[first..], |x| Ok(x.to_le_bytes())),
    }
}

/// Writes as many elements as `out` has room for.
fn convert<T: Copy, const N: usize>(
    out: &mut [u8],
    data: &[T],
    bytes: impl Fn(T) -> Result<[u8; N], f32>,
) -> Result<(), f32> {
    for (out, element) in out.as_chunks_mut::<N>().0.iter_mut().zip(data) {
        *out = bytes(*element)?;
    }
    Ok(())
}

fn f16_bytes(x: f32) -> Result<[u8; 2], f32> {
    let rounded = f16::from_f32(x);
    if rounded.is_infinite() && x.is_finite() { Err(x) } else { Ok(rounded.to_le_bytes()) }
}

fn bf16_bytes(x: f32) -> Result<[u8; 2], f32> {
    let rounded = bf16::from_f32(x);
    if rounded.is_infinite() && x.is_finite() { Err(x) } else { Ok(rounded.to_le_bytes()) }
}
