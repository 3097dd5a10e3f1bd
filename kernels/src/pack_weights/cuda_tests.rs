use half::{bf16, f16};

use super::{Placement, pack_weights, upload};
use crate::buffer::DeviceBuffer;
use crate::test_checks::{Checked, in_words, same_bits, untouched};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Buffer, CudaStream, ElementType, Elements, Error, Stream};

fn cuda(stream: &Stream) -> Checked<&CudaStream> {
    match stream {
        Stream::Cuda(cuda) => Ok(cuda),
        Stream::Cpu(_) => Err("a CPU stream".into()),
    }
}

/// NaNs, as the device's memory begins in the emulator; on a GPU they are written.
fn fresh(stream: &CudaStream, len: usize) -> Checked<DeviceBuffer> {
    let buffer = DeviceBuffer::allocate(stream, stream.operand_type(), len)?;
    stream.device().upload(buffer.address(), &vec![0xff; 2 * len])?;
    Ok(buffer)
}

/// Packs a matrix and compares the bits of every row of the result.
fn pack(
    stream: &Stream,
    stored: Elements<'_>,
    k: usize,
    first_row: usize,
    placement: Placement,
    place: impl Fn(usize) -> usize,
) -> Checked {
    let cuda = cuda(stream)?;
    let num_rows = stored.len() / k;
    let out_rows = first_row + (0..num_rows).map(&place).max().map_or(0, |last| last + 1) + 8;
    let out = fresh(cuda, out_rows * k)?;
    pack_weights(cuda, &out, stored, k, first_row, placement)?;

    let out = Buffer::Device(out).read(out_rows * k)?;
    let round: fn(f32) -> f32 = match cuda.operand_type() {
        ElementType::F16 => |x| f16::from_f32(x).to_f32(),
        _ => |x| bf16::from_f32(x).to_f32(),
    };
    let mut is_written = vec![false; out_rows];
    let weights = stored.to_vec();
    for (row, weights) in weights.chunks(k).enumerate() {
        let at = first_row + place(row);
        is_written[at] = true;
        let expected: Vec<f32> = weights.iter().map(|x| round(*x)).collect();
        same_bits(&format!("row {row} of {num_rows} x {k}, {placement:?}"), &out[at * k..][..k], &expected)?;
    }
    for (row, _) in is_written.iter().enumerate().filter(|(_, is_written)| !**is_written) {
        untouched(&format!("row {row} of the result"), &out[row * k..][..k])?;
    }
    Ok(())
}

/// Every placement of a matrix with `rows` rows.
fn every_placement(stream: &Stream, stored: Elements<'_>, k: usize, head_dim: usize) -> Checked {
    pack(stream, stored, k, 3, Placement::Plain, |row| row)?;
    pack(stream, stored, k, 5, Placement::Rotary { head_dim }, |row| {
        let (head, i, half) = (row / head_dim * head_dim, row % head_dim, head_dim / 2);
        head + if i < half { 2 * i } else { 2 * (i - half) + 1 }
    })?;
    pack(stream, stored, k, 16, Placement::Gate, |row| row / 8 * 16 + row % 8)?;
    pack(stream, stored, k, 16, Placement::Up, |row| row / 8 * 16 + row % 8 + 8)
}

/// Values at which rounding shows: ties, the edges of f16, subnormal numbers, infinity.
fn edges(n: usize) -> Vec<f32> {
    let edges = [
        0.0,
        -0.0,
        1.0 + 1.0 / 2048.0,
        1.0 + 3.0 / 2048.0,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        65_504.0,
        65_519.9,
        65_520.0,
        -1e30,
        3e-8,
        6.1e-5,
        1e-40,
        f32::INFINITY,
    ];
    let random = values(1, n);
    (0..n).map(|i| if i % 3 == 0 { edges[i / 3 % edges.len()] } else { random[i] * 0.05 }).collect()
}

fn small(stream: &Stream) -> Checked {
    for (rows, k, head_dim) in [(16, 8, 16), (80, 72, 40), (32, 1000, 32)] {
        let full = edges(rows * k);
        let half: Vec<f16> = full.iter().map(|x| f16::from_f32(*x)).collect();
        let brain: Vec<bf16> = full.iter().map(|x| bf16::from_f32(*x)).collect();
        for stored in [Elements::F32(&full), Elements::F16(&half), Elements::BF16(&brain)] {
            every_placement(stream, stored, k, head_dim)?;
        }
    }
    Ok(())
}

pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    in_words(small(stream))
}

#[test]
fn every_type_and_placement_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules(operand_type, |stream| check(stream).unwrap());
    }
}

/// More than one piece goes to the device, and groups of rows are not cut.
#[test]
fn large_matrices_go_in_pieces() {
    for stream in OPERAND_TYPES.into_iter().filter_map(device) {
        let (rows, k) = (1120, 1024);
        every_placement(&stream, Elements::F32(&values(1, rows * k)), k, 80).unwrap();
    }
}

#[test]
fn a_table_is_uploaded_whole() {
    for stream in OPERAND_TYPES.into_iter().filter_map(device) {
        let stored: Vec<bf16> = values(1, 50 * 72).iter().map(|x| bf16::from_f32(*x)).collect();
        let table = upload(cuda(&stream).unwrap(), Elements::BF16(&stored), 72).unwrap();
        let read = Buffer::Device(table).read(50 * 72).unwrap();
        let close_enough = |(a, b): (&f32, &bf16)| (a - b.to_f32()).abs() <= b.to_f32().abs() / 2048.0 + 3e-8;
        assert!(read.iter().zip(&stored).all(close_enough));
    }
}

#[test]
fn cut_groups_and_narrow_rows_are_refused() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    let cuda = cuda(&stream).unwrap();
    let (out, stored) = (fresh(cuda, 1000).unwrap(), vec![1.0; 12 * 8]);
    for placement in [Placement::Rotary { head_dim: 8 }, Placement::Gate, Placement::Rotary { head_dim: 3 }] {
        let cut = pack_weights(cuda, &out, Elements::F32(&stored), 8, 0, placement);
        assert!(matches!(cut, Err(Error::Parameter { parameter: "num_rows", found: 12, .. })));
    }
    let narrow = pack_weights(cuda, &out, Elements::F32(&stored), 12, 0, Placement::Plain);
    assert!(matches!(narrow, Err(Error::Parameter { parameter: "k", found: 12, .. })));
    let short = pack_weights(cuda, &out, Elements::F32(&stored), 8, 120, Placement::Plain);
    assert!(matches!(short, Err(Error::Length { operand: "out", expected: 1056, found: 1000, .. })));
}
