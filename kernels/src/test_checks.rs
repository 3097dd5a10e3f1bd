//! Comparisons for tests of the CUDA side. They return what is wrong instead of panicking, so that a test of
//! planted mutants can ask whether a kernel's check notices one.

use std::error::Error as StdError;
use std::ops::Range;

use crate::test_devices::{OPERAND_TYPES, device};
use crate::{Buffer, ElementType, Error, IndexBuffer, Role, Size, Stream};

pub(crate) use crate::testing::UNIT;

pub(crate) type Checked<T = ()> = Result<T, Box<dyn StdError>>;

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

/// LayerNorm of one row `z` against f64, see [`add_layer_norm`](crate::add_layer_norm); `largest` is of the sums that
/// make up the row's elements.
pub(crate) fn close_to_layer_norm(
    stream: &Stream,
    what: &str,
    got: &[f32],
    (z, largest): (&[f64], f64),
    (weight, bias, eps): (&[f32], &[f32], f32),
) -> Checked {
    let n = z.len() as f64;
    let mean = z.iter().sum::<f64>() / n;
    let variance = z.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / n;
    let sigma = (variance + f64::from(eps)).sqrt();
    let normalised: Vec<f64> = z.iter().map(|z| (z - mean) / sigma).collect();
    let elements = normalised.iter().zip(weight).zip(bias);
    let expected: Vec<f64> = elements.map(|((zn, w), b)| zn * f64::from(*w) + f64::from(*b)).collect();
    close(what, got, &expected, |i| {
        let zn = normalised[i].abs();
        let relative = 26.0 * largest / sigma * (1.0 + zn) + 18.0 * zn;
        UNIT * (f64::from(weight[i]).abs() * relative + expected[i].abs()) + rounding(stream, expected[i])
    })
}

/// RMSNorm of one row in f64, and the root that divides it.
pub(crate) fn rms_norm(x: &[f64], weight: &[f32], eps: f32) -> (Vec<f64>, f64) {
    let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let rms = (mean_square + f64::from(eps)).sqrt();
    (x.iter().zip(weight).map(|(x, weight)| x / rms * f64::from(*weight)).collect(), rms)
}

/// How far the kernels may be off [`rms_norm`] before they round to the operand type, relative.
pub(crate) const RMS_NORM_BOUND: f64 = 18.0 * UNIT;

/// Shapes for the norms of row.cuh that encoders have: of every instance one with more rows than an emulated device takes at
/// a time, and not all of the same width as what a block holds.
pub(crate) const ENCODER_NORMS: [(usize, usize); 9] =
    [(1, 8), (7, 72), (99, 344), (74, 504), (50, 648), (50, 1024), (7, 2056), (7, 6144), (4, 6152)];
/// The same for those of decoders.
pub(crate) const DECODER_NORMS: [(usize, usize); 8] =
    [(1, 8), (7, 72), (26, 1800), (17, 2304), (11, 3080), (7, 2312), (7, 6144), (4, 6152)];

/// Calls `test` with no row, one and several of widths that the models have, and the limits of every instance.
pub(crate) fn every_norm(test: impl Fn(&Stream, usize, usize) -> Checked) {
    for stream in OPERAND_TYPES.into_iter().filter_map(device) {
        #[rustfmt::skip]
        let widths = [
            8, 64, 256, 264, 384, 392, 512, 520, 640, 648, 768, 896, 904, 1024, 1032, 1792, 1800, 2048, 2056, 2304, 2312, 3072, 3080,
            3584, 3592, 4096, 4104, 5120, 6144, 6152, 8192,
        ];
        for hidden in widths {
            for rows in [0, 1, 17] {
                test(&stream, rows, hidden).unwrap();
            }
        }
    }
}

/// That a row's bits depend on it alone: not on its neighbours, nor on where the number of rows is read.
///
/// `run` gives what comes of some of the rows of an input, one after the other.
pub(crate) fn same_bits_anywhere(
    stream: &Stream,
    rows: usize,
    run: impl Fn(Range<usize>, Size) -> Checked<Vec<f32>>,
) -> Checked {
    let whole = run(0..rows, rows.into())?;
    let (_memory, size) = size_on_device(stream, rows, 2 * rows + 20)?;
    same_bits("counted on the device", &run(0..rows, size)?, &whole)?;
    let width = whole.len() / rows;
    for row in [0, rows / 4, rows - 1] {
        let alone = run(row..row + 1, 1.into())?;
        same_bits(&format!("row {row} alone"), &alone, &whole[row * width..][..width])?;
    }
    Ok(())
}

/// In f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}
