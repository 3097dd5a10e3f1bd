//! Weights as they are stored in a checkpoint.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::CpuStream;

/// A borrowed run of weights in one of the stored types.
///
/// The CPU kernels compute in f32; [`Elements::read`] is the one place where a stored value becomes an f32, which is exact
/// for all three types.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
}

/// One of the types weights are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
}

impl<'a> Elements<'a> {
    /// The stored type.
    pub fn element_type(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::F16(_) => ElementType::F16,
            Self::BF16(_) => ElementType::BF16,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::BF16(x) => x.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one stored element.
    pub fn element_bytes(&self) -> usize {
        self.element_type().bytes()
    }

    /// The elements as they are stored.
    pub(crate) fn as_bytes(&self) -> &'a [u8] {
        match self {
            Self::F32(x) => bytemuck::cast_slice(x),
            Self::F16(x) => bytemuck::cast_slice(x),
            Self::BF16(x) => bytemuck::cast_slice(x),
        }
    }

    /// Elements `start .. start + len`. Panics when they are not all there, like slicing.
    pub fn slice(&self, start: usize, len: usize) -> Elements<'a> {
        match self {
            Self::F32(x) => Self::F32(&x[start..start + len]),
            Self::F16(x) => Self::F16(&x[start..start + len]),
            Self::BF16(x) => Self::BF16(&x[start..start + len]),
        }
    }

    /// Writes all elements to `out` as f32. `out` must have the same length.
    #[inline(always)]
    pub fn read(&self, out: &mut [f32]) {
        match self {
            Self::F32(x) => out.copy_from_slice(x),
            Self::F16(x) => out.iter_mut().zip(*x).for_each(|(o, x)| *o = f16_to_f32(*x)),
            Self::BF16(x) => out.iter_mut().zip(*x).for_each(|(o, x)| *o = bf16_to_f32(*x)),
        }
    }

    /// Whether no element is a NaN or an infinity.
    pub fn all_finite(&self) -> bool {
        match self {
            Self::F32(x) => x.iter().all(|x| x.is_finite()),
            Self::F16(x) => x.iter().all(|x| x.is_finite()),
            Self::BF16(x) => x.iter().all(|x| x.is_finite()),
        }
    }

    /// Whether every finite element stays finite when it is rounded to `element_type`.
    pub fn fits(&self, element_type: ElementType) -> bool {
        // The smallest magnitude that rounds to infinity.
        let limit = match element_type {
            _ if element_type == self.element_type() => return true,
            ElementType::F32 => return true,
            ElementType::F16 => 65_520.0,
            ElementType::BF16 => f32::from_bits(0x7f7f_8000),
        };
        let fits = |x: f32| x.abs() < limit || !x.is_finite();
        match self {
            Self::F32(x) => x.iter().all(|x| fits(*x)),
            Self::F16(x) => x.iter().all(|x| fits(f16_to_f32(*x))),
            Self::BF16(x) => x.iter().all(|x| fits(bf16_to_f32(*x))),
        }
    }

    /// The rows of a matrix with as many columns as there are `factors`, in f32, each element times its column's factor.
    pub fn scaled_columns(&self, stream: &CpuStream, factors: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        let scale_row = |(row, out): (usize, &mut [f32])| {
            self.slice(row * factors.len(), out.len()).read(out);
            out.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        };
        stream.run(|| out.par_chunks_mut(factors.len().max(1)).enumerate().for_each(scale_row));
        out
    }

    /// All elements as a new f32 vector; for small operands such as biases and norm weights.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.read(&mut out);
        out
    }
}

impl ElementType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// Branch-free, so that the compiler vectorises a loop over it: shift the exponent and mantissa into place, then let one
/// exact multiplication rebias the exponent, which also normalises subnormals. Infinities and NaNs need their exponent set.
#[inline(always)]
fn f16_to_f32(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let rebias = f32::from_bits((254 - 15) << 23);
    let value = (f32::from_bits(magnitude) * rebias).to_bits();
    let infinite = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value | infinite | (bits & 0x8000) << 16)
}

#[inline(always)]
fn bf16_to_f32(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_what_stays_finite() {
        for x in [1.0, 65_504.0, 65_519.99, 65_520.0, 1e30, 3.389e38, f32::MAX, f32::NAN, f32::INFINITY] {
            for x in [x, -x] {
                let stored = [0.5, x];
                let elements = Elements::F32(&stored);
                assert_eq!(
                    elements.fits(ElementType::F16),
                    !x.is_finite() || f16::from_f32(x).is_finite(),
                    "{x}"
                );
                assert_eq!(
                    elements.fits(ElementType::BF16),
                    !x.is_finite() || bf16::from_f32(x).is_finite(),
                    "{x}"
                );
                assert!(elements.fits(ElementType::F32));
            }
        }
        assert!(!Elements::BF16(&[bf16::from_f32(1e6)]).fits(ElementType::F16));
        assert!(Elements::F16(&[f16::MAX]).fits(ElementType::BF16));
    }

    #[test]
    fn every_f16_and_bf16_reads_as_the_half_crate_says() {
        for bits in 0..=u16::MAX {
            let (a, b) = (f16_to_f32(f16::from_bits(bits)), f16::from_bits(bits).to_f32());
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "f16 {bits:#06x}: {a} and {b}");
            let (a, b) = (bf16_to_f32(bf16::from_bits(bits)), bf16::from_bits(bits).to_f32());
            assert!(
                a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
                "bf16 {bits:#06x}: {a} and {b}"
            );
        }
    }
    #[test]
    fn columns_are_scaled_in_f32_with_any_threads() {
        let (weights, factors) = (crate::testing::values(1, 7 * 24), crate::testing::values(2, 24));
        let expected: Vec<f32> = weights.iter().enumerate().map(|(i, x)| x * factors[i % 24]).collect();
        for threads in [1, 3] {
            let stream = CpuStream::new(Some(threads)).unwrap();
            assert_eq!(Elements::F32(&weights).scaled_columns(&stream, &factors), expected);
            let half: Vec<bf16> = weights.iter().map(|x| bf16::from_f32(*x)).collect();
            let of_half = Elements::BF16(&half).scaled_columns(&stream, &factors);
            assert!(
                of_half.iter().zip(&half).enumerate().all(|(i, (x, h))| *x == h.to_f32() * factors[i % 24])
            );
        }
    }
}
