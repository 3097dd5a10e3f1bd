//! Comparisons for tests of the CUDA side. They return what is wrong instead of panicking, so that a test of
//! planted mutants can ask whether a kernel's check notices one.

use std::error::Error as StdError;

use crate::{Buffer, ElementType, Error, IndexBuffer, Role, Size, Stream};

pub(crate) type Checked<T = ()> = Result<T, Box<dyn StdError>>;

/// 2^-24: how far rounding moves an f32 of size 1 at most.
pub(crate) const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// How far rounding to the stream's operand type moves `x` at most.
pub(crate) fn rounding(stream: &Stream, x: f64) -> f64 {
    match stream {
        Stream::Cuda(cuda) if cuda.operand_type() == ElementType::F16 => {
            // Relative for normal numbers, absolute below them.
            (x.abs() / f64::from(1 << 11)).max(1.0 / f64::from(1 << 25))
        }
        Stream::Cuda(_) => x.abs() / f64::from(1 << 8),
        Stream::Cpu(_) => x.abs() * UNIT,
    }
}

/// A buffer of `len` NaNs: what a kernel leaves alone stays one.
pub(crate) fn fresh(stream: &Stream, role: Role, len: usize) -> Result<Buffer, Error> {
    let [mut buffer] = Buffer::allocate(stream, [(role, len)])?;
    buffer.write(&vec![f32::NAN; len])?;
    Ok(buffer)
}

/// A buffer of the operand type with `values`, and these as they were rounded.
pub(crate) fn operand(stream: &Stream, values: &[f32]) -> Result<(Buffer, Vec<f32>), Error> {
    let [mut buffer] = Buffer::allocate(stream, [(Role::Operand, values.len())])?;
    buffer.write(values)?;
    let rounded = buffer.read(values.len())?;
    Ok((buffer, rounded))
}

/// A size that kernels read from device memory, where it stays as long as the buffer.
pub(crate) fn size_on_device(
    stream: &Stream,
    value: usize,
    bound: usize,
) -> Result<(IndexBuffer, Size), Error> {
    let buffer = indices(stream, &[u32::try_from(value).unwrap_or(u32::MAX)])?;
    let size = Size::in_device_memory(value, bound, buffer.view(value.into()).address());
    Ok((buffer, size))
}

/// A list on the device.
pub(crate) fn indices(stream: &Stream, list: &[u32]) -> Result<IndexBuffer, Error> {
    let mut buffer = IndexBuffer::new(stream, list.len().max(1))?;
    buffer.write(list)?;
    Ok(buffer)
}

/// `|got - expected| <= bound`, element by element.
pub(crate) fn close(what: &str, got: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) -> Checked {
    if got.len() != expected.len() {
        return Err(format!("{what}: {} elements, expected {}", got.len(), expected.len()).into());
    }
    // Written so that a NaN is found.
    let is_close = |i: &usize| (f64::from(got[*i]) - expected[*i]).abs() <= bound(*i);
    match (0..got.len()).find(|i| !is_close(i)) {
        None => Ok(()),
        Some(i) => {
            let (got, expected, bound) = (got[i], expected[i], bound(i));
            Err(format!("{what}: element {i} is {got}, expected {expected} within {bound:e}").into())
        }
    }
}

/// Equal bits.
pub(crate) fn same_bits(what: &str, a: &[f32], b: &[f32]) -> Checked {
    if a.len() != b.len() {
        return Err(format!("{what}: {} elements and {}", a.len(), b.len()).into());
    }
    match a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits()) {
        None => Ok(()),
        Some(i) => Err(format!("{what}: element {i} is {} and {}", a[i], b[i]).into()),
    }
}

/// Equal lists of whatever.
pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: &[T], expected: &[T]) -> Checked {
    let differ = got.iter().zip(expected).position(|(got, expected)| got != expected);
    match differ {
        Some(i) => Err(format!("{what}: entry {i} is {:?}, expected {:?}", got[i], expected[i]).into()),
        None if got.len() == expected.len() => Ok(()),
        None => Err(format!("{what}: {} entries, expected {}", got.len(), expected.len()).into()),
    }
}

/// NaN still, see [`fresh`].
pub(crate) fn untouched(what: &str, got: &[f32]) -> Checked {
    match got.iter().position(|x| !x.is_nan()) {
        None => Ok(()),
        Some(i) => Err(format!("{what}: {} at {i} where nothing should be written", got[i]).into()),
    }
}

/// What a check found, for callers that only want the words.
pub(crate) fn in_words(checked: Checked) -> Result<(), String> {
    checked.map_err(|error| error.to_string())
}

/// LayerNorm of one row in f64, and how far the kernels may be off before they round to the operand type, see
/// [`add_layer_norm`](crate::add_layer_norm); `largest` is of the sums that make up the row's elements.
pub(crate) fn layer_norm(z: &[f64], largest: f64, weight: &[f32], bias: &[f32], eps: f32) -> Vec<(f64, f64)> {
    let n = z.len() as f64;
    let mean = z.iter().sum::<f64>() / n;
    let variance = z.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / n;
    let sigma = (variance + f64::from(eps)).sqrt();
    let of_element = |((z, weight), bias): ((&f64, &f32), &f32)| {
        let (zn, weight) = ((z - mean) / sigma, f64::from(*weight));
        let out = zn * weight + f64::from(*bias);
        let relative = 26.0 * largest / sigma * (1.0 + zn.abs()) + 18.0 * zn.abs();
        (out, UNIT * (weight.abs() * relative + out.abs()))
    };
    z.iter().zip(weight).zip(bias).map(of_element).collect()
}

/// RMSNorm of one row in f64, and the root that divides it.
pub(crate) fn rms_norm(x: &[f64], weight: &[f32], eps: f32) -> (Vec<f64>, f64) {
    let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let rms = (mean_square + f64::from(eps)).sqrt();
    (x.iter().zip(weight).map(|(x, weight)| x / rms * f64::from(*weight)).collect(), rms)
}

/// How far the kernels may be off [`rms_norm`] before they round to the operand type, relative.
pub(crate) const RMS_NORM_BOUND: f64 = 18.0 * UNIT;

/// In f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}
