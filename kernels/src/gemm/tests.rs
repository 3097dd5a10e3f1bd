use half::{bf16, f16};

use super::{Activation, Epilogue, Matrix, Part, gemm};
use crate::testing::{assert_close, assert_same_bits, buffer, erf, values};
use crate::{Buffer, ElementType, Elements, Error, Stream};

/// Exact product in f64 and, per element, the sum of |a * b| that the rounding bound scales with.
fn reference(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> (Vec<f64>, Vec<f64>) {
    let mut d = vec![0.0; m * n];
    let mut magnitude = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                let product = f64::from(a[i * k + l]) * f64::from(b[j * k + l]);
                d[i * n + j] += product;
                magnitude[i * n + j] += product.abs();
            }
        }
    }
    (d, magnitude)
}

fn bound(k: usize, magnitude: f64) -> f64 {
    (k as f64 + 2.0) * 2f64.powi(-24) * magnitude
}

/// m, n, k: tile edges, one row, sizes that divide nothing, several panels and k chunks.
const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (1, 7, 3),
    (2, 16, 16),
    (3, 5, 513),
    (17, 33, 65),
    (64, 384, 64),
    (70, 400, 700),
    (1, 768, 768),
    (130, 48, 1030),
];

#[test]
fn product_matches_f64_at_every_shape() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for &(m, n, k) in SHAPES {
        let (a, b) = (buffer(1, m * k), values(2, n * k));
        let matrix = Matrix::pack(&stream, &[Part { weights: Elements::F32(&b), rows: n }], k, None).unwrap();
        let mut d = buffer(3, m * n);
        gemm(&stream, &mut d, &a, &matrix, 0..1, m, Epilogue::None).unwrap();
        let (expected, magnitude) = reference(a.as_slice(), &b, m, n, k);
        assert_close(&format!("{m}x{n}x{k}"), d.as_slice(), &expected, |i| bound(k, magnitude[i]));
    }
}

#[test]
fn epilogues_match_f64() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let (m, n, k) = (37, 421, 96);
    let (a, b, bias, residual) = (buffer(1, m * k), values(2, n * k), values(4, n), buffer(5, m * n));
    let matrix = Matrix::pack(&stream, &[Part { weights: Elements::F32(&b), rows: n }], k, None).unwrap();
    let (product, magnitude) = reference(a.as_slice(), &b, m, n, k);
    let gelu = |x: f64| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2));
    type Case<'a> = (&'static str, Epilogue<'a>, Box<dyn Fn(usize, f64) -> f64 + 'a>);
    let with_bias = |i: usize, x: f64| x + f64::from(bias[i % n]);
    let cases: Vec<Case<'_>> = vec![
        ("bias", Epilogue::Bias(&bias), Box::new(with_bias)),
        ("gelu", Epilogue::BiasGeluErf(&bias), Box::new(move |i, x| gelu(with_bias(i, x)))),
        ("tanh", Epilogue::BiasTanh(&bias), Box::new(move |i, x| with_bias(i, x).tanh())),
        (
            "residual",
            Epilogue::BiasResidual(&bias, &residual),
            Box::new(|i, x| with_bias(i, x) + f64::from(residual.as_slice()[i])),
        ),
    ];
    for (name, epilogue, exact) in cases {
        let mut d = Buffer::zeros(m * n);
        gemm(&stream, &mut d, &a, &matrix, 0..1, m, epilogue).unwrap();
        let expected: Vec<f64> = product.iter().enumerate().map(|(i, x)| exact(i, *x)).collect();
        // All four have a slope below 1.13; the bias, residual and function add a few roundings of the result.
        assert_close(name, d.as_slice(), &expected, |i| {
            1.13 * bound(k, magnitude[i]) + 4e-7 * (1.0 + product[i].abs() + 2.0)
        });
    }
}

#[test]
fn stored_types_give_the_product_of_their_exact_values() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let (m, n, k) = (19, 401, 600);
    let (a, b) = (buffer(1, m * k), values(2, n * k));
    let half: Vec<f16> = b.iter().map(|x| f16::from_f32(*x)).collect();
    let brain: Vec<bf16> = b.iter().map(|x| bf16::from_f32(*x)).collect();
    let run = |weights: Elements<'_>| {
        let matrix = Matrix::pack(&stream, &[Part { weights, rows: n }], k, None).unwrap();
        assert_eq!(matrix.bytes(), n * k * weights.element_bytes());
        let mut d = Buffer::zeros(m * n);
        gemm(&stream, &mut d, &a, &matrix, 0..1, m, Epilogue::None).unwrap();
        d
    };
    for stored in [Elements::F16(&half), Elements::BF16(&brain)] {
        let widened = stored.to_vec();
        assert_same_bits("16-bit panels", run(stored).as_slice(), run(Elements::F32(&widened)).as_slice());
    }
}

#[test]
fn packing_into_another_type_rounds_each_weight_once() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let (m, n, k) = (5, 401, 70);
    let (a, b) = (buffer(1, m * k), values(2, n * k));
    let half: Vec<f16> = b.iter().map(|x| f16::from_f32(*x)).collect();
    let brain: Vec<bf16> = b.iter().map(|x| bf16::from_f32(*x)).collect();
    let run = |weights, element_type| {
        let matrix = Matrix::pack(&stream, &[Part { weights, rows: n }], k, element_type).unwrap();
        let mut d = Buffer::zeros(m * n);
        gemm(&stream, &mut d, &a, &matrix, 0..1, m, Epilogue::None).unwrap();
        (d, matrix.bytes())
    };
    for (element_type, rounded) in
        [(ElementType::F16, Elements::F16(&half)), (ElementType::BF16, Elements::BF16(&brain))]
    {
        let (expected, bytes) = run(rounded, None);
        let (converted, converted_bytes) = run(Elements::F32(&b), Some(element_type));
        assert_same_bits("converted", converted.as_slice(), expected.as_slice());
        assert_eq!((bytes, converted_bytes), (2 * n * k, 2 * n * k));
        // Widening is exact.
        let (wide, bytes) = run(rounded, Some(ElementType::F32));
        assert_same_bits("widened", wide.as_slice(), expected.as_slice());
        assert_eq!(bytes, 4 * n * k);
    }
}

type Exact = fn(f64) -> f64;

fn activations() -> [(Activation, Exact); 3] {
    let erf_gelu = |x: f64| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2));
    let tanh_gelu =
        |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
    [
        (Activation::GeluErf, erf_gelu),
        (Activation::GeluTanh, tanh_gelu),
        (Activation::Silu, |x| x / (1.0 + (-x).exp())),
    ]
}

#[test]
fn gated_products_match_f64_at_every_shape() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for &(m, n, k) in SHAPES.iter().chain(&[(600, 200, 40)]) {
        let (a, gate, up) = (buffer(1, m * k), values(2, n * k), values(3, n * k));
        let matrix =
            Matrix::pack_gated(&stream, Elements::F32(&gate), Elements::F32(&up), n, k, None).unwrap();
        assert_eq!((matrix.num_outputs(), matrix.bytes()), (n, 8 * n * k));
        let (g, g_magnitude) = reference(a.as_slice(), &gate, m, n, k);
        let (u, u_magnitude) = reference(a.as_slice(), &up, m, n, k);
        for (activation, exact) in activations() {
            let mut d = buffer(3, m * n);
            gemm(&stream, &mut d, &a, &matrix, 0..1, m, Epilogue::Gated(activation)).unwrap();
            let expected: Vec<f64> = g.iter().zip(&u).map(|(g, u)| exact(*g) * u).collect();
            // Slopes of the activations stay below 1.13.
            assert_close(&format!("{activation:?} {m}x{n}x{k}"), d.as_slice(), &expected, |i| {
                let gate_error = 1.13 * bound(k, g_magnitude[i]) + 4e-7 * g[i].abs().max(1.0);
                let up_error = bound(k, u_magnitude[i]);
                gate_error * (u[i].abs() + up_error)
                    + up_error * g[i].abs()
                    + 2f64.powi(-24) * expected[i].abs()
            });
        }
    }
}

#[test]
fn a_gated_row_has_the_same_bits_in_any_batch_type_and_with_any_threads() {
    let (m_max, n, k) = (1300, 300, 600);
    let (a, gate, up) = (values(1, m_max * k), values(2, n * k), values(3, n * k));
    let gate: Vec<bf16> = gate.into_iter().map(bf16::from_f32).collect();
    let up: Vec<bf16> = up.into_iter().map(bf16::from_f32).collect();
    let mut reference: Option<Vec<f32>> = None;
    for (threads, element_type) in [(1, None), (3, Some(ElementType::F32)), (2, Some(ElementType::BF16))] {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let (gate, up) = (Elements::BF16(&gate), Elements::BF16(&up));
        let matrix = Matrix::pack_gated(&stream, gate, up, n, k, element_type).unwrap();
        for m in [1300, 1, 2, 33, 64, 511, 512, 513] {
            let mut d = Buffer::zeros(m * n);
            let a = Buffer::from_slice(&a[..m * k]);
            gemm(&stream, &mut d, &a, &matrix, 0..1, m, Epilogue::Gated(Activation::Silu)).unwrap();
            let whole = reference.get_or_insert_with(|| d.as_slice().to_vec());
            assert_same_bits(&format!("m={m}, {threads} threads"), d.as_slice(), &whole[..m * n]);
        }
    }
}

#[test]
fn parts_are_the_rows_of_the_fused_product() {
    let stream = Stream::cpu(Some(3)).unwrap();
    let (m, k, rows) = (21, 50, [400, 16, 30]);
    let n: usize = rows.iter().sum();
    let (a, b) = (buffer(1, m * k), values(2, n * k));
    let mut start = 0;
    let parts = rows.map(|rows| {
        let weights = Elements::F32(&b[start * k..(start + rows) * k]);
        start += rows;
        Part { weights, rows }
    });
    let matrix = Matrix::pack(&stream, &parts, k, None).unwrap();
    let mut whole = Buffer::zeros(m * n);
    gemm(&stream, &mut whole, &a, &matrix, 0..3, m, Epilogue::None).unwrap();
    for (range, first, width) in [(0..1, 0, 400), (1..3, 400, 46), (2..3, 416, 30)] {
        let mut d = Buffer::zeros(m * width);
        gemm(&stream, &mut d, &a, &matrix, range, m, Epilogue::None).unwrap();
        for row in 0..m {
            let expected = &whole.as_slice()[row * n + first..row * n + first + width];
            assert_same_bits("part", &d.as_slice()[row * width..(row + 1) * width], expected);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_with_any_threads() {
    for (n, k) in [(48, 64), (384, 768), (1024, 1024), (96, 3072), (768, 4096)] {
        let m_max = 601;
        let (a, b) = (values(1, m_max * k), values(2, n * k));
        let mut reference: Option<Vec<f32>> = None;
        for threads in [1, 2, 5] {
            let stream = Stream::cpu(Some(threads)).unwrap();
            let matrix =
                Matrix::pack(&stream, &[Part { weights: Elements::F32(&b), rows: n }], k, None).unwrap();
            for m in [601, 1, 2, 3, 8, 33, 64, 65, 128, 512, 513] {
                let mut d = Buffer::zeros(m * n);
                gemm(&stream, &mut d, &Buffer::from_slice(&a[..m * k]), &matrix, 0..1, m, Epilogue::None)
                    .unwrap();
                let whole = reference.get_or_insert_with(|| d.as_slice().to_vec());
                assert_same_bits(&format!("m={m} n={n} k={k}"), d.as_slice(), &whole[..m * n]);
            }
        }
    }
}

#[test]
fn wrong_lengths_are_refused_by_name() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let b = values(2, 12);
    assert!(matches!(
        Matrix::pack(&stream, &[Part { weights: Elements::F32(&b), rows: 5 }], 3, None),
        Err(Error::Length { operand: "b", expected: 15, found: 12, .. })
    ));
    let matrix = Matrix::pack(&stream, &[Part { weights: Elements::F32(&b), rows: 4 }], 3, None).unwrap();
    let (a, mut d) = (Buffer::zeros(6), Buffer::zeros(8));
    assert!(gemm(&stream, &mut d, &a, &matrix, 0..1, 2, Epilogue::None).is_ok());
    assert!(gemm(&stream, &mut d, &a, &matrix, 0..1, 0, Epilogue::None).is_ok());
    for (m, parts, epilogue, operand) in [
        (3, 0..1, Epilogue::None, "d"),
        (2, 0..1, Epilogue::Bias(&[0.0; 3]), "bias"),
        (2, 0..1, Epilogue::BiasResidual(&[0.0; 4], &Buffer::zeros(7)), "residual"),
    ] {
        match gemm(&stream, &mut d, &a, &matrix, parts, m, epilogue) {
            Err(Error::Length { operand: found, .. }) => assert_eq!(found, operand),
            other => panic!("expected a length error for {operand}, got {other:?}"),
        }
    }
    let gated = Matrix::pack_gated(&stream, Elements::F32(&b), Elements::F32(&b), 4, 3, None).unwrap();
    for (matrix, epilogue) in [(&gated, Epilogue::None), (&matrix, Epilogue::Gated(Activation::Silu))] {
        assert!(matches!(
            gemm(&stream, &mut d, &a, matrix, 0..1, 2, epilogue),
            Err(Error::Parameter { parameter: "b.is_gated", .. })
        ));
    }
    assert!(matches!(
        Matrix::pack_gated(&stream, Elements::F32(&b), Elements::F32(&b[1..]), 4, 3, None),
        Err(Error::Length { operand: "up", expected: 12, found: 11, .. })
    ));
    let mut d = Buffer::zeros(12);
    assert!(matches!(
        gemm(&stream, &mut d, &a, &matrix, 0..1, 3, Epilogue::None),
        Err(Error::Length { operand: "a", .. })
    ));
    assert!(matches!(
        gemm(&stream, &mut d, &a, &matrix, 0..2, 2, Epilogue::None),
        Err(Error::Parameter { parameter: "parts.end", .. })
    ));
}
