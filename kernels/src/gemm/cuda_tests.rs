//! gemm.cu behind its launch code, against f64.

use std::ops::Range;

use half::{bf16, f16};

use super::{
    Activation, DeferredNorm, DeferredRows, Epilogue, Matrix, Part, SQUARES_COLUMNS, gemm, instances,
    squares_of,
};
use crate::params::narrow;
use crate::rope::RopeTable;
use crate::test_checks::{indices, size_on_device};
use crate::test_devices::{OPERAND_TYPES, device, is_hopper, under_schedules};
use crate::testing::{erf, values};
use crate::{Buffer, ElementType, Elements, Error, Role, Size, Stream};

/// An [`Epilogue`] without its operands, and whether it has those of a deferred norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    None,
    Bias,
    BiasGeluErf,
    BiasTanh,
    AddScaled(bool),
    Gated(Activation, bool),
    Rope(bool),
}

pub(super) const KINDS: [Kind; 13] = [
    Kind::None,
    Kind::Bias,
    Kind::BiasGeluErf,
    Kind::BiasTanh,
    Kind::AddScaled(false),
    Kind::AddScaled(true),
    Kind::Gated(Activation::GeluTanh, false),
    Kind::Gated(Activation::GeluTanh, true),
    Kind::Gated(Activation::GeluErf, false),
    Kind::Gated(Activation::Silu, false),
    Kind::Gated(Activation::Silu, true),
    Kind::Rope(false),
    Kind::Rope(true),
];

/// m, n, k.
pub(super) type Shape = (usize, usize, usize);

/// Less than a tile and several, sizes that divide nothing, k of less than a stage and of more than all.
pub(super) const SMALL: [Shape; 4] = [(1, 8, 8), (65, 72, 40), (17, 136, 200), (64, 64, 320)];
/// Several tiles for each block, more rows than a band of tiles, the longest k.
const LARGE: [Shape; 5] = [(130, 264, 104), (200, 520, 72), (129, 136, 32), (2100, 136, 24), (3, 16, 16384)];

/// Rows that a launch is laid out for to take the large tile on any device.
const LARGE_BOUND: usize = 1 << 20;
/// Of [`Kind::AddScaled`]: MiniCPM's, for 40 layers.
const SCALE: f32 = 0.221_359_44;
const NUM_POSITIONS: usize = 50;
/// Of a deferred norm: enough to be seen beside the mean of squares.
const EPS: f32 = 0.05;
/// Rows of another part of the matrix, before those that the product takes.
const OTHER_ROWS: usize = 8;

/// A product with its operands, on a stream, and what is to come out of it.
pub(super) struct Problem {
    kind: Kind,
    k: usize,
    /// Columns of `d`.
    n: usize,
    a: Vec<f32>,
    b: Matrix,
    bias: Buffer,
    residual: Vec<f32>,
    /// Of the rows of `a`, for a deferred norm: other rows' are other multiples, so that none is taken for another's.
    squares: Vec<f32>,
    rope: RopeTable,
    position_ids: Vec<u32>,
    expected: Vec<f64>,
    bound: Vec<f64>,
}

fn operand_type(stream: &Stream) -> ElementType {
    match stream {
        Stream::Cuda(cuda) => cuda.operand_type(),
        Stream::Cpu(_) => ElementType::F32,
    }
}

fn rounded(stream: &Stream, values: &[f32]) -> Vec<f32> {
    let round = |x: &f32| match operand_type(stream) {
        ElementType::F32 => *x,
        ElementType::F16 => f16::from_f32(*x).to_f32(),
        ElementType::BF16 => bf16::from_f32(*x).to_f32(),
    };
    values.iter().map(round).collect()
}

/// Half a unit in the last place of the stored type: relative, and absolute below its normal numbers.
fn half_ulp(element_type: ElementType) -> (f64, f64) {
    match element_type {
        ElementType::F32 => (2f64.powi(-24), 2f64.powi(-150)),
        ElementType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        ElementType::BF16 => (2f64.powi(-8), 2f64.powi(-134)),
    }
}

fn exact(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// Elements of a head, and how many of `n` columns are in heads to be rotated.
fn rotary_columns(n: usize) -> (usize, usize) {
    let head_dim = if n < 128 { 8 } else { 32 };
    (head_dim, (n / 2 / head_dim).max(1) * head_dim)
}

impl Problem {
    pub(super) fn new(stream: &Stream, kind: Kind, (m, n, k): Shape) -> Result<Self, Error> {
        // Sums of about unit size, where activations bend.
        let weight = |seed, rows| -> Vec<f32> {
            values(seed, rows * k).iter().map(|x| x * 4.0 / (k as f32).sqrt()).collect()
        };
        let (a, first, second) = (values(1, m * k), weight(2, n), weight(3, n));
        let (head_dim, rotary) = rotary_columns(n);
        let part = |weights, rotary_head_dim| Part {
            weights: Elements::F32(weights),
            rows: weights.len() / k,
            rotary_head_dim,
        };
        let b = match kind {
            Kind::Gated(..) => {
                Matrix::pack_gated(stream, Elements::F32(&first), Elements::F32(&second), n, k, None)?
            }
            Kind::Rope(_) => {
                let (heads, rest) = first.split_at(rotary * k);
                let parts = [part(heads, Some(head_dim)), part(rest, None)];
                Matrix::pack(stream, if rest.is_empty() { &parts[..1] } else { &parts }, k, None)?
            }
            _ => {
                let other = &second[..OTHER_ROWS * k];
                Matrix::pack(stream, &[part(other, None), part(&first, None)], k, None)?
            }
        };
        let bias = Buffer::upload(stream, &values(4, OTHER_ROWS + n))?;
        let rope = RopeTable::new(stream, 10_000.0, head_dim, NUM_POSITIONS)?;
        let position_ids = (0..narrow(m)).map(|i| i * 7 % narrow(NUM_POSITIONS)).collect();
        let (expected, bound) = (Vec::new(), Vec::new());
        let residual = values(5, m * n);
        let row_squares = |(row, a): (usize, &[f32])| {
            let factor = (1 + row % 3) as f32;
            let sums = a.chunks(SQUARES_COLUMNS).map(|a| factor * a.iter().map(|x| x * x).sum::<f32>());
            sums.collect::<Vec<_>>()
        };
        let squares = a.chunks(k).enumerate().flat_map(row_squares).collect();
        let mut problem =
            Self { kind, k, n, a, b, bias, residual, squares, rope, position_ids, expected, bound };
        problem.expect(stream, &rounded(stream, &first), &rounded(stream, &second))?;
        Ok(problem)
    }

    /// Rows of `a`.
    fn m(&self) -> usize {
        self.a.len() / self.k
    }

    /// Columns of what a run gives: those of `d`, and behind them where a norm is deferred the copy's and its sums of squares.
    pub(super) fn width(&self) -> usize {
        match self.kind {
            Kind::AddScaled(true) => 2 * self.n + squares_of(self.n),
            _ => self.n,
        }
    }

    /// Computes what is to come out, and how far off it may be.
    fn expect(&mut self, stream: &Stream, first: &[f32], second: &[f32]) -> Result<(), Error> {
        let (n, k) = (self.n, self.k);
        let a = rounded(stream, &self.a);
        let is_divided = matches!(self.kind, Kind::Gated(_, true) | Kind::Rope(true));
        let squares = &self.squares;
        // What a deferred norm multiplies the sums of a row by.
        let factor = |row: usize| match is_divided {
            true => {
                let squares = squares[row * squares_of(k)..][..squares_of(k)].iter().map(|x| f64::from(*x));
                (squares.sum::<f64>() / k as f64 + f64::from(EPS)).sqrt().recip()
            }
            false => 1.0,
        };
        // A sum, and how far the kernel's may be off.
        let sum = |weights: &[f32], row: usize, column: usize| {
            let pairs = a[row * k..][..k].iter().zip(&weights[column * k..][..k]);
            let (sum, magnitude) = pairs.fold((0.0, 0.0), |(sum, magnitude), (a, b)| {
                let product = f64::from(*a) * f64::from(*b);
                (sum + product, magnitude + product.abs())
            });
            let (sum, error) =
                (factor(row) * sum, factor(row) * (k as f64 + 2.0) * 2f64.powi(-23) * magnitude);
            (sum, if is_divided { error + 2f64.powi(-20) * sum.abs() } else { error })
        };
        let bias = self.bias.read(OTHER_ROWS + n)?;
        let (head_dim, rotary) = rotary_columns(n);
        let angles = NUM_POSITIONS * head_dim / 2;
        let (cos, sin) = (self.rope.cos().read(angles)?, self.rope.sin().read(angles)?);
        let f32_ulp = 2f64.powi(-24);
        let activated = |activation, (x, error): (f64, f64)| {
            (exact(activation, x), 1.13 * error + 4e-7 * x.abs().max(1.0))
        };
        for (row, position) in self.position_ids.iter().enumerate() {
            for column in 0..n {
                let biased = || {
                    let (x, error) = sum(first, row, column);
                    let x = x + f64::from(bias[OTHER_ROWS + column]);
                    (x, error + f32_ulp * x.abs())
                };
                let (value, error) = match self.kind {
                    Kind::None => sum(first, row, column),
                    Kind::Bias => biased(),
                    Kind::BiasGeluErf => activated(Activation::GeluErf, biased()),
                    Kind::BiasTanh => {
                        let (x, error) = biased();
                        (x.tanh(), error + 4e-7)
                    }
                    Kind::AddScaled(_) => {
                        let (x, error) = sum(first, row, column);
                        let x = f64::from(self.residual[row * n + column]) + f64::from(SCALE) * x;
                        (x, f64::from(SCALE) * error)
                    }
                    Kind::Gated(activation, _) => {
                        let (gate, gate_error) = activated(activation, sum(first, row, column));
                        let (up, up_error) = sum(second, row, column);
                        let error = gate_error * (up.abs() + up_error) + gate.abs() * up_error;
                        (gate * up, error + f32_ulp * (gate * up).abs())
                    }
                    Kind::Rope(_) if column < rotary => {
                        // The two elements of a pair have become neighbours.
                        let (head, pair) = (column / head_dim * head_dim, column % head_dim / 2);
                        let (low, low_error) = sum(first, row, head + pair);
                        let (high, high_error) = sum(first, row, head + head_dim / 2 + pair);
                        let angle = *position as usize * head_dim / 2 + pair;
                        let (c, s) = (f64::from(cos[angle]), f64::from(sin[angle]));
                        let (product, x) = match column % 2 {
                            0 => (high * s, low * c - high * s),
                            _ => (low * s, high * c + low * s),
                        };
                        (x, low_error + high_error + f32_ulp * (product.abs() + x.abs()))
                    }
                    Kind::Rope(_) => sum(first, row, column),
                };
                let stored = match self.kind {
                    Kind::AddScaled(_) => ElementType::F32,
                    _ => operand_type(stream),
                };
                let (relative, absolute) = half_ulp(stored);
                self.expected.push(value);
                self.bound.push(error + relative * (value.abs() + error) + absolute);
            }
        }
        if self.kind == Kind::AddScaled(true) {
            self.expect_deferred(half_ulp(operand_type(stream)));
        }
        Ok(())
    }

    /// Behind every row of `d` its copy and its sums of squares.
    fn expect_deferred(&mut self, (relative, absolute): (f64, f64)) {
        let (values, errors) = (std::mem::take(&mut self.expected), std::mem::take(&mut self.bound));
        for (row, errors) in values.chunks(self.n).zip(errors.chunks(self.n)) {
            self.expected.extend([row, row].concat());
            self.bound.extend(errors);
            let of_copy = |(x, error): (&f64, &f64)| error + relative * (x.abs() + error) + absolute;
            self.bound.extend(row.iter().zip(errors).map(of_copy));
            for (row, errors) in row.chunks(SQUARES_COLUMNS).zip(errors.chunks(SQUARES_COLUMNS)) {
                let sum: f64 = row.iter().map(|x| x * x).sum();
                let error: f64 = row.iter().zip(errors).map(|(x, e)| (2.0 * x.abs() + e) * e).sum();
                self.expected.push(sum);
                self.bound.push(error + 16.0 * 2f64.powi(-24) * (sum + error));
            }
        }
    }

    /// `d` for some rows of `a` alone, and for as many behind them as nothing may be written to; rows of [`Problem::width`].
    pub(super) fn run(
        &self,
        stream: &Stream,
        rows: Range<usize>,
        m: Size,
        guard_rows: usize,
    ) -> Result<Vec<f32>, Error> {
        let (n, k) = (self.n, self.k);
        let is_residual = matches!(self.kind, Kind::AddScaled(_));
        let d_role = if is_residual { Role::Full } else { Role::Operand };
        let num_rows = rows.len() + guard_rows;
        // Each in memory of its own, where a sanitizer sees its end.
        let [mut a] = Buffer::allocate(stream, [(Role::Operand, rows.len() * k)])?;
        let [mut d] = Buffer::allocate(stream, [(d_role, num_rows * n)])?;
        let [mut copy] = Buffer::allocate(stream, [(Role::Operand, num_rows * n)])?;
        let [mut sums] = Buffer::allocate(stream, [(Role::Full, num_rows * squares_of(n))])?;
        let squares =
            Buffer::upload(stream, &self.squares[rows.start * squares_of(k)..rows.end * squares_of(k)])?;
        a.write(&self.a[rows.start * k..rows.end * k])?;
        for out in [&mut d, &mut copy, &mut sums] {
            out.write(&vec![f32::NAN; out.len()])?;
        }
        if is_residual {
            d.write(&self.residual[rows.start * n..rows.end * n])?;
        }
        let position_ids = indices(stream, &self.position_ids[rows])?;
        let norm = |is_deferred: bool| is_deferred.then_some(DeferredNorm { squares: &squares, eps: EPS });
        let epilogue = match self.kind {
            Kind::None => Epilogue::None,
            Kind::Bias => Epilogue::Bias(&self.bias),
            Kind::BiasGeluErf => Epilogue::BiasGeluErf(&self.bias),
            Kind::BiasTanh => Epilogue::BiasTanh(&self.bias),
            Kind::AddScaled(false) => Epilogue::AddScaled(SCALE, None),
            Kind::AddScaled(true) => {
                Epilogue::AddScaled(SCALE, Some(DeferredRows { rows: &mut copy, squares: &mut sums }))
            }
            Kind::Gated(activation, is_deferred) => Epilogue::Gated(activation, norm(is_deferred)),
            Kind::Rope(is_deferred) => Epilogue::Rope(&self.rope, position_ids.view(m), norm(is_deferred)),
        };
        let parts = match self.kind {
            Kind::Gated(..) | Kind::Rope(_) => 0..self.b.num_parts(),
            _ => 1..2,
        };
        gemm(stream, &mut d, &a, &self.b, parts, m, epilogue)?;
        if self.kind != Kind::AddScaled(true) {
            return d.read(d.len());
        }
        let (d, copy, sums) = (d.read(d.len())?, copy.read(copy.len())?, sums.read(sums.len())?);
        let row =
            |i| [&d[i * n..][..n], &copy[i * n..][..n], &sums[i * squares_of(n)..][..squares_of(n)]].concat();
        Ok((0..num_rows).flat_map(row).collect())
    }

    /// What is wrong with `d`, if anything.
    pub(super) fn compare(&self, d: &[f32]) -> Result<(), String> {
        let at = |i: usize| {
            let (row, column) = (i / self.width(), i % self.width());
            format!("{:?}, row {row} of {}, column {column}", self.kind, self.m())
        };
        for (i, (expected, bound)) in self.expected.iter().zip(&self.bound).enumerate() {
            let error = (f64::from(d[i]) - expected).abs();
            if error.is_nan() || error > *bound {
                return Err(format!("{}: {}, expected {expected} within {bound:e}", at(i), d[i]));
            }
        }
        match (self.expected.len()..d.len()).find(|i| !d[*i].is_nan()) {
            Some(i) => Err(format!("{}: {} written behind the last row", at(i), d[i])),
            None => Ok(()),
        }
    }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Runs a product with m given by value, and read from memory under a bound that takes the large tile: right,
/// and the same.
pub(super) fn check_product(stream: &Stream, kind: Kind, shape: Shape) -> Result<(), String> {
    let text = |error: Error| format!("{kind:?} {shape:?}: {error}");
    let problem = Problem::new(stream, kind, shape).map_err(text)?;
    let (rows, elements) = (shape.0, shape.0 * problem.width());
    // What is written behind the last row shows in the rows there; without them a sanitizer sees any access.
    let by_value = problem.run(stream, 0..rows, rows.into(), 3).map_err(text)?;
    problem.compare(&by_value)?;
    let (_memory, m) = size_on_device(stream, rows, rows.max(LARGE_BOUND)).map_err(text)?;
    let from_memory = problem.run(stream, 0..rows, m, 0).map_err(text)?;
    problem.compare(&from_memory)?;
    if bits(&by_value[..elements]) != bits(&from_memory) {
        return Err(format!("{kind:?} {shape:?}: the bits depend on the tile, or on where m is read"));
    }
    Ok(())
}

/// A few products of every kind: the first mistake or fault.
pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    for kind in KINDS {
        check_product(stream, kind, SMALL[0])?;
        check_product(stream, kind, (70, 136, 104))?;
    }
    check_product(stream, Kind::None, (2100, 136, 8))
}

#[test]
fn every_instance_matches_f64_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules(operand_type, |stream| {
            for kind in KINDS {
                for shape in SMALL {
                    check_product(stream, kind, shape).unwrap();
                }
            }
            if is_hopper(stream) {
                // What has been run instead is the affair of hopper_tests.rs.
                return;
            }
            let loaded = stream.loaded_kernels();
            let prefix = format!("gemm<{}, ", crate::device::cpp_name(operand_type));
            for instance in instances().iter().filter(|instance| instance.name.starts_with(&prefix)) {
                assert!(
                    loaded.iter().any(|kernel| kernel.name == instance.name),
                    "{} was not run",
                    instance.name
                );
            }
        });
    }
}

#[test]
fn larger_products_match_f64() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device(operand_type) else { return };
        check(&stream).unwrap();
        for shape in LARGE {
            for kind in
                [Kind::None, Kind::AddScaled(true), Kind::Gated(Activation::Silu, true), Kind::Rope(true)]
            {
                check_product(&stream, kind, shape).unwrap();
            }
        }
    }
}

#[test]
fn a_row_alone_has_the_bits_it_has_in_a_batch() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device(operand_type) else { return };
        for kind in KINDS {
            let problem = Problem::new(&stream, kind, (150, 136, 232)).unwrap();
            let (batch, width) = (problem.run(&stream, 0..150, 150.into(), 0).unwrap(), problem.width());
            for row in [0, 77, 149] {
                let alone = problem.run(&stream, row..row + 1, 1.into(), 0).unwrap();
                assert_eq!(bits(&alone), bits(&batch[row * width..][..width]), "{kind:?}, row {row}");
            }
        }
    }
}

#[test]
fn without_rows_nothing_is_written() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device(operand_type) else { return };
        for kind in KINDS {
            let problem = Problem::new(&stream, kind, (0, 72, 40)).unwrap();
            let (_memory, m) = size_on_device(&stream, 0, LARGE_BOUND).unwrap();
            for m in [0.into(), m] {
                problem.compare(&problem.run(&stream, 0..0, m, 2).unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn parts_give_the_columns_they_have_in_the_whole() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device(operand_type) else { return };
        let (m, k, rows, head_dim) = (20, 40, [64, 32, 24], 16);
        let weights = rows.map(|rows| values(rows as u64, rows * k));
        let part = |i: usize, rotary_head_dim| Part {
            weights: Elements::F32(&weights[i]),
            rows: rows[i],
            rotary_head_dim,
        };
        let parts = [part(0, Some(head_dim)), part(1, Some(head_dim)), part(2, None)];
        let matrix = Matrix::pack(&stream, &parts, k, None).unwrap();
        let table = RopeTable::new(&stream, 10_000.0, head_dim, NUM_POSITIONS).unwrap();
        let position_ids = indices(&stream, &(0..20).collect::<Vec<_>>()).unwrap();
        let [mut a, mut d] =
            Buffer::allocate(&stream, [(Role::Operand, m * k), (Role::Operand, m * 120)]).unwrap();
        a.write(&values(1, m * k)).unwrap();
        let mut product = |parts: Range<usize>| {
            let epilogue = Epilogue::Rope(&table, position_ids.view(m.into()), None);
            gemm(&stream, &mut d, &a, &matrix, parts.clone(), m.into(), epilogue).unwrap();
            d.read(m * matrix.outputs_of(parts)).unwrap()
        };
        let whole = product(0..3);
        for (parts, first, n) in [(0..1, 0, 64), (1..3, 64, 56)] {
            let some = product(parts);
            for row in 0..m {
                assert_eq!(bits(&some[row * n..][..n]), bits(&whole[row * 120 + first..][..n]), "row {row}");
            }
        }
    }
}

/// The parameter for which a product of one row with `n` outputs is refused.
fn refused(stream: &Stream, d: Role, n: usize, epilogue: Epilogue<'_>) -> &'static str {
    let (k, weights) = (8, values(1, n * 8));
    let rotary_head_dim = matches!(epilogue, Epilogue::Rope(..)).then_some(n);
    let part = Part { weights: Elements::F32(&weights), rows: n, rotary_head_dim };
    let matrix = Matrix::pack(stream, &[part], k, None).unwrap();
    let [mut d, a] = Buffer::allocate(stream, [(d, n), (Role::Operand, k)]).unwrap();
    match gemm(stream, &mut d, &a, &matrix, 0..1, 1.into(), epilogue) {
        Err(Error::Parameter { kernel: "gemm", parameter, .. }) => parameter,
        Err(error) => panic!("{error}"),
        Ok(()) => panic!("not refused"),
    }
}

#[test]
fn what_the_kernel_is_not_written_for_is_refused() {
    let Some(stream) = device(ElementType::BF16) else { return };
    let operand = Role::Operand;
    assert_eq!(refused(&stream, operand, 12, Epilogue::None), "n");
    assert_eq!(refused(&stream, operand, 8, Epilogue::AddScaled(1.0, None)), "d");
    assert_eq!(refused(&stream, Role::Full, 8, Epilogue::None), "d");
    let [bias] = Buffer::allocate(&stream, [(operand, 8)]).unwrap();
    assert_eq!(refused(&stream, operand, 8, Epilogue::Bias(&bias)), "bias");
    let table = RopeTable::new(&stream, 10_000.0, 24, 1).unwrap();
    let position_ids = indices(&stream, &[0]).unwrap();
    assert_eq!(
        refused(&stream, operand, 24, Epilogue::Rope(&table, position_ids.view(1.into()), None)),
        "table.head_dim"
    );
}

/// Another stream, and were it on the same GPU, has memory of its own.
#[test]
fn a_matrix_of_another_device_is_refused() {
    let (Some(stream), Some(other)) = (device(ElementType::BF16), device(ElementType::BF16)) else { return };
    let cpu = Stream::cpu(Some(1)).unwrap();
    let weights = values(1, 64);
    let part = Part { weights: Elements::F32(&weights), rows: 8, rotary_head_dim: None };
    let [mut d, a] = Buffer::allocate(&stream, [(Role::Operand, 8), (Role::Operand, 8)]).unwrap();
    let mut product = |of: &Stream| {
        let matrix = Matrix::pack(of, &[part], 8, None).unwrap();
        gemm(&stream, &mut d, &a, &matrix, 0..1, 1.into(), Epilogue::None)
    };
    product(&stream).unwrap();
    for of in [&other, &cpu] {
        let error = product(of).unwrap_err().to_string();
        assert_eq!(error, "operand `b` is on another device than the stream");
    }
}

#[test]
fn no_bank_conflicts_in_reading_operands() {
    for operand_type in OPERAND_TYPES {
        crate::test_devices::without_bank_conflicts(operand_type, |stream| check(stream).unwrap());
    }
}
