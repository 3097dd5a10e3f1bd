use std::ops::Range;

use half::{bf16, f16};

use super::{Activation, DeferredNorm, DeferredRows, Epilogue, Matrix, Part, gemm};
use crate::rope::RopeTable;
use crate::testing::{assert_close, assert_same_bits, buffer, erf, of, rotate_exactly, values, zeros};
use crate::{Buffer, ElementType, Elements, Error, Stream};

/// A part without heads to rotate.
fn plain(weights: Elements<'_>, rows: usize) -> Part<'_> {
    Part { weights, rows, rotary_head_dim: None }
}

/// Parts of `b`, rows of `k`, one after the other.
fn parts_of<const N: usize>(b: &[f32], k: usize, rows: [usize; N]) -> [Part<'_>; N] {
    let mut start = 0;
    rows.map(|rows| {
        let weights = Elements::F32(&b[start * k..(start + rows) * k]);
        start += rows;
        plain(weights, rows)
    })
}

/// Columns `columns` of a matrix with rows of `stride`.
fn columns<T: Copy>(x: &[T], stride: usize, columns: Range<usize>) -> Vec<T> {
    x.chunks_exact(stride).flat_map(|row| row[columns.clone()].to_vec()).collect()
}

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
        let matrix = Matrix::pack(&stream, &[plain(Elements::F32(&b), n)], k, None).unwrap();
        let mut d = buffer(3, m * n);
        gemm(&stream, &mut d, &a, &matrix, 0..1, m.into(), Epilogue::None).unwrap();
        let (expected, magnitude) = reference(a.host().unwrap(), &b, m, n, k);
        assert_close(&format!("{m}x{n}x{k}"), d.host().unwrap(), &expected, |i| bound(k, magnitude[i]));
    }
}

#[test]
fn bias_epilogues_match_f64_for_any_parts() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let (m, rows, k) = (37, [400, 16, 421], 96);
    let n: usize = rows.iter().sum();
    let (a, b, bias) = (buffer(1, m * k), values(2, n * k), buffer(4, n));
    let matrix = Matrix::pack(&stream, &parts_of(&b, k, rows), k, None).unwrap();
    let (product, magnitude) = reference(a.host().unwrap(), &b, m, n, k);
    let gelu = |x: f64| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2));
    type OfBias = fn(&Buffer) -> Epilogue<'_>;
    let cases: [(_, OfBias, &dyn Fn(f64) -> f64); 3] = [
        ("bias", |bias| Epilogue::Bias(bias), &|x| x),
        ("gelu", |bias| Epilogue::BiasGeluErf(bias), &gelu),
        ("tanh", |bias| Epilogue::BiasTanh(bias), &f64::tanh),
    ];
    for (name, epilogue, function) in cases {
        let exact = |i: usize| function(product[i] + f64::from(bias.host().unwrap()[i % n]));
        let expected: Vec<f64> = (0..m * n).map(exact).collect();
        // All three have a slope below 1.13; the bias and the function add a few roundings of the result.
        let bounds =
            (0..m * n).map(|i| 1.13 * bound(k, magnitude[i]) + 4e-7 * (1.0 + product[i].abs() + 2.0));
        let bounds: Vec<f64> = bounds.collect();
        for (parts, part_columns) in [(0..3, 0..n), (0..1, 0..400), (1..3, 400..n), (2..3, 416..n)] {
            let mut d = zeros(m * part_columns.len());
            gemm(&stream, &mut d, &a, &matrix, parts.clone(), m.into(), epilogue(&bias)).unwrap();
            let expected = columns(&expected, n, part_columns.clone());
            let bounds = columns(&bounds, n, part_columns);
            assert_close(&format!("{name}, parts {parts:?}"), d.host().unwrap(), &expected, |i| bounds[i]);
        }
    }
}

#[test]
fn a_scaled_product_onto_what_was_there_matches_f64() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (i, &(m, n, k)) in SHAPES.iter().chain(&[(600, 200, 40)]).enumerate() {
        let scale = [1.0, 0.221_359_44, -3.5][i % 3];
        let (a, b, before) = (buffer(1, m * k), values(2, n * k), values(3, m * n));
        let matrix = Matrix::pack(&stream, &[plain(Elements::F32(&b), n)], k, None).unwrap();
        let mut d = of(&before);
        gemm(&stream, &mut d, &a, &matrix, 0..1, m.into(), Epilogue::AddScaled(scale, None)).unwrap();
        let (product, magnitude) = reference(a.host().unwrap(), &b, m, n, k);
        let scale = f64::from(scale);
        let expected: Vec<f64> = before.iter().zip(product).map(|(d, x)| f64::from(*d) + scale * x).collect();
        assert_close(&format!("{m}x{n}x{k}"), d.host().unwrap(), &expected, |i| {
            let inherited = scale.abs() * bound(k, magnitude[i]);
            inherited + 2f64.powi(-24) * (expected[i].abs() + inherited)
        });
    }
}

#[test]
fn adding_is_one_fused_step_on_the_bits_of_the_product_in_any_batch_and_with_any_threads() {
    let (m_max, n, k, scale) = (1300, 300, 600, 0.221_359_44);
    let (a, b, before) = (values(1, m_max * k), values(2, n * k), values(3, m_max * n));
    let b: Vec<bf16> = b.into_iter().map(bf16::from_f32).collect();
    let mut expected: Option<Vec<f32>> = None;
    for (threads, element_type) in [(1, None), (3, Some(ElementType::F32))] {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let matrix = Matrix::pack(&stream, &[plain(Elements::BF16(&b), n)], k, element_type).unwrap();
        let expected = expected.get_or_insert_with(|| {
            let mut product = zeros(m_max * n);
            gemm(&stream, &mut product, &of(&a), &matrix, 0..1, m_max.into(), Epilogue::None).unwrap();
            before.iter().zip(product.host().unwrap()).map(|(d, x)| x.mul_add(scale, *d)).collect()
        });
        for m in [1300, 1, 2, 33, 64, 511, 512, 513] {
            let (mut d, a) = (of(&before), of(&a[..m * k]));
            gemm(&stream, &mut d, &a, &matrix, 0..1, m.into(), Epilogue::AddScaled(scale, None)).unwrap();
            let (written, rest) = d.host().unwrap().split_at(m * n);
            assert_same_bits(&format!("m={m}, {threads} threads"), written, &expected[..m * n]);
            assert_same_bits("rows beyond m", rest, &before[m * n..]);
        }
    }
}

/// Queries, keys and values as one matrix, the first two with heads to rotate.
fn qkv(b: &[f32], k: usize, heads: [usize; 3], head_dim: usize) -> [Part<'_>; 3] {
    let [query, key, value] = parts_of(b, k, heads.map(|heads| heads * head_dim));
    let rotary = |part| Part { rotary_head_dim: Some(head_dim), ..part };
    [rotary(query), rotary(key), value]
}

#[test]
fn rotated_heads_match_f64_and_other_parts_are_plain_products() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (m, heads, head_dim, k) in [(1, [1, 1, 1], 2, 3), (37, [4, 2, 2], 64, 96), (150, [3, 1, 1], 16, 520)]
    {
        let [query, key, value] = heads.map(|heads| heads * head_dim);
        let n = query + key + value;
        let (a, b) = (buffer(1, m * k), values(2, n * k));
        let matrix = Matrix::pack(&stream, &qkv(&b, k, heads, head_dim), k, None).unwrap();
        let table = RopeTable::new(&stream, 10_000.0, head_dim, 40).unwrap();
        let position_ids: Vec<u32> = (0..m).map(|row| u32::try_from((row * 7 + 39) % 40).unwrap()).collect();

        let (mut expected, magnitude) = reference(a.host().unwrap(), &b, m, n, k);
        let mut bounds: Vec<f64> = magnitude.iter().map(|magnitude| bound(k, *magnitude)).collect();
        for (row, position) in position_ids.iter().enumerate() {
            let heads = (0..heads[0] + heads[1]).map(|head| row * n + head * head_dim);
            rotate_exactly(&mut expected, &mut bounds, heads, head_dim, 10_000.0, *position);
        }
        for (parts, part_columns) in [
            (0..3, 0..n),
            (1..3, query..n),
            (0..2, 0..query + key),
            (0..1, 0..query),
            (1..2, query..query + key),
        ] {
            let mut d = buffer(3, m * part_columns.len());
            let epilogue = Epilogue::Rope(&table, (&position_ids[..]).into(), None);
            gemm(&stream, &mut d, &a, &matrix, parts.clone(), m.into(), epilogue).unwrap();
            let expected = columns(&expected, n, part_columns.clone());
            let bounds = columns(&bounds, n, part_columns);
            let what = format!("parts {parts:?} of {heads:?} heads of {head_dim}");
            assert_close(&what, d.host().unwrap(), &expected, |i| bounds[i]);
        }
    }
}

#[test]
fn rotations_that_do_not_fit_are_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let (m, k, head_dim) = (2, 3, 4);
    let (a, b) = (buffer(1, m * k), values(2, 12 * k));
    let heads = Matrix::pack(&stream, &qkv(&b, k, [1, 1, 1], head_dim), k, None).unwrap();
    let headless = Matrix::pack(&stream, &[plain(Elements::F32(&b), 12)], k, None).unwrap();
    let run = |matrix, parts, table_head_dim, position_ids: &[u32]| {
        let table = RopeTable::new(&stream, 10_000.0, table_head_dim, 8).unwrap();
        let epilogue = Epilogue::Rope(&table, position_ids.into(), None);
        gemm(&stream, &mut zeros(m * 12), &a, matrix, parts, m.into(), epilogue)
    };
    assert!(run(&heads, 0..3, 4, &[0, 7]).is_ok());
    // A table for other heads, values first, nothing to rotate at all.
    for (matrix, parts, table_head_dim) in
        [(&heads, 0..3, 2), (&heads, 0..3, 8), (&heads, 2..3, 4), (&headless, 0..1, 4)]
    {
        assert!(matches!(
            run(matrix, parts, table_head_dim, &[0, 7]),
            Err(Error::Parameter { parameter: "table.head_dim", found, .. }) if found == table_head_dim
        ));
    }
    assert!(matches!(
        run(&heads, 0..3, 4, &[7, 8]),
        Err(Error::IndexOutOfRange { table: "position", index: 8, position: 1, rows: 8, .. })
    ));
    assert!(matches!(
        run(&heads, 0..3, 4, &[7]),
        Err(Error::Length { operand: "position_ids", expected: 2, found: 1, .. })
    ));
}

#[test]
fn stored_types_give_the_product_of_their_exact_values() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let (m, n, k) = (19, 401, 600);
    let (a, b) = (buffer(1, m * k), values(2, n * k));
    let half: Vec<f16> = b.iter().map(|x| f16::from_f32(*x)).collect();
    let brain: Vec<bf16> = b.iter().map(|x| bf16::from_f32(*x)).collect();
    let run = |weights: Elements<'_>| {
        let matrix = Matrix::pack(&stream, &[plain(weights, n)], k, None).unwrap();
        assert_eq!(matrix.bytes(), n * k * weights.element_bytes());
        let mut d = zeros(m * n);
        gemm(&stream, &mut d, &a, &matrix, 0..1, m.into(), Epilogue::None).unwrap();
        d
    };
    for stored in [Elements::F16(&half), Elements::BF16(&brain)] {
        let widened = stored.to_vec();
        assert_same_bits(
            "16-bit panels",
            run(stored).host().unwrap(),
            run(Elements::F32(&widened)).host().unwrap(),
        );
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
        let matrix = Matrix::pack(&stream, &[plain(weights, n)], k, element_type).unwrap();
        let mut d = zeros(m * n);
        gemm(&stream, &mut d, &a, &matrix, 0..1, m.into(), Epilogue::None).unwrap();
        (d, matrix.bytes())
    };
    for (element_type, rounded) in
        [(ElementType::F16, Elements::F16(&half)), (ElementType::BF16, Elements::BF16(&brain))]
    {
        let (expected, bytes) = run(rounded, None);
        let (converted, converted_bytes) = run(Elements::F32(&b), Some(element_type));
        assert_same_bits("converted", converted.host().unwrap(), expected.host().unwrap());
        assert_eq!((bytes, converted_bytes), (2 * n * k, 2 * n * k));
        // Widening is exact.
        let (wide, bytes) = run(rounded, Some(ElementType::F32));
        assert_same_bits("widened", wide.host().unwrap(), expected.host().unwrap());
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
        let (g, g_magnitude) = reference(a.host().unwrap(), &gate, m, n, k);
        let (u, u_magnitude) = reference(a.host().unwrap(), &up, m, n, k);
        for (activation, exact) in activations() {
            let mut d = buffer(3, m * n);
            gemm(&stream, &mut d, &a, &matrix, 0..1, m.into(), Epilogue::Gated(activation, None)).unwrap();
            let expected: Vec<f64> = g.iter().zip(&u).map(|(g, u)| exact(*g) * u).collect();
            // Slopes of the activations stay below 1.13.
            assert_close(&format!("{activation:?} {m}x{n}x{k}"), d.host().unwrap(), &expected, |i| {
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
            let mut d = zeros(m * n);
            let a = of(&a[..m * k]);
            gemm(&stream, &mut d, &a, &matrix, 0..1, m.into(), Epilogue::Gated(Activation::Silu, None))
                .unwrap();
            let whole = reference.get_or_insert_with(|| d.host().unwrap().to_vec());
            assert_same_bits(&format!("m={m}, {threads} threads"), d.host().unwrap(), &whole[..m * n]);
        }
    }
}

#[test]
fn parts_are_the_rows_of_the_fused_product() {
    let stream = Stream::cpu(Some(3)).unwrap();
    let (m, k, rows) = (21, 50, [400, 16, 30]);
    let n: usize = rows.iter().sum();
    let (a, b) = (buffer(1, m * k), values(2, n * k));
    let matrix = Matrix::pack(&stream, &parts_of(&b, k, rows), k, None).unwrap();
    let mut whole = zeros(m * n);
    gemm(&stream, &mut whole, &a, &matrix, 0..3, m.into(), Epilogue::None).unwrap();
    for (range, first, width) in [(0..1, 0, 400), (1..3, 400, 46), (2..3, 416, 30)] {
        let mut d = zeros(m * width);
        gemm(&stream, &mut d, &a, &matrix, range, m.into(), Epilogue::None).unwrap();
        let expected = columns(whole.host().unwrap(), n, first..first + width);
        assert_same_bits("part", d.host().unwrap(), &expected);
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
            let matrix = Matrix::pack(&stream, &[plain(Elements::F32(&b), n)], k, None).unwrap();
            for m in [601, 1, 2, 3, 8, 33, 64, 65, 128, 512, 513] {
                let mut d = zeros(m * n);
                gemm(&stream, &mut d, &of(&a[..m * k]), &matrix, 0..1, m.into(), Epilogue::None).unwrap();
                let whole = reference.get_or_insert_with(|| d.host().unwrap().to_vec());
                assert_same_bits(&format!("m={m} n={n} k={k}"), d.host().unwrap(), &whole[..m * n]);
            }
        }
    }
}

#[test]
fn wrong_lengths_are_refused_by_name() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let b = values(2, 12);
    assert!(matches!(
        Matrix::pack(&stream, &[plain(Elements::F32(&b), 5)], 3, None),
        Err(Error::Length { operand: "b", expected: 15, found: 12, .. })
    ));
    let matrix = Matrix::pack(&stream, &[plain(Elements::F32(&b), 4)], 3, None).unwrap();
    let (a, mut d, short) = (zeros(6), zeros(8), zeros(3));
    assert!(gemm(&stream, &mut d, &a, &matrix, 0..1, 2.into(), Epilogue::None).is_ok());
    assert!(gemm(&stream, &mut d, &a, &matrix, 0..1, 0.into(), Epilogue::None).is_ok());
    for (m, parts, epilogue, operand) in [
        (3, 0..1, Epilogue::None, "d"),
        (3, 0..1, Epilogue::AddScaled(1.0, None), "d"),
        (2, 0..1, Epilogue::Bias(&short), "bias"),
        (2, 0..1, Epilogue::BiasGeluErf(&short), "bias"),
        (2, 0..1, Epilogue::BiasTanh(&short), "bias"),
    ] {
        match gemm(&stream, &mut d, &a, &matrix, parts, m.into(), epilogue) {
            Err(Error::Length { operand: found, .. }) => assert_eq!(found, operand),
            other => panic!("expected a length error for {operand}, got {other:?}"),
        }
    }
    // A deferred norm's operands, and that it is deferred on the CPU at all.
    let (mut rows, mut squares) = (zeros(8), zeros(2));
    let parts = [Part { weights: Elements::F32(&b), rows: 4, rotary_head_dim: Some(4) }];
    let (rotary, table) =
        (Matrix::pack(&stream, &parts, 3, None).unwrap(), RopeTable::new(&stream, 1e4, 4, 1).unwrap());
    let mut operand = |which: &str, found: usize| {
        let (mut short, mut d) = (zeros(found), zeros(8));
        let (matrix, epilogue) = match which {
            "rows" => {
                let deferred = DeferredRows { rows: &mut short, squares: &mut squares };
                (&matrix, Epilogue::AddScaled(1.0, Some(deferred)))
            }
            "sums" => {
                let deferred = DeferredRows { rows: &mut rows, squares: &mut short };
                (&matrix, Epilogue::AddScaled(1.0, Some(deferred)))
            }
            _ => {
                let norm = DeferredNorm { squares: &short, eps: 1e-6 };
                (&rotary, Epilogue::Rope(&table, [0u32, 0][..].into(), Some(norm)))
            }
        };
        match gemm(&stream, &mut d, &a, matrix, 0..1, 2.into(), epilogue) {
            Err(Error::Length { operand, .. }) => operand,
            Err(Error::Parameter { parameter: "squares", .. }) => "the CPU",
            other => panic!("{which}: {other:?}"),
        }
    };
    assert_eq!([operand("rows", 7), operand("rows", 8)], ["rows", "the CPU"]);
    assert_eq!([operand("sums", 1), operand("sums", 2)], ["squares", "the CPU"]);
    assert_eq!([operand("norm", 1), operand("norm", 2)], ["squares", "the CPU"]);
    // A bias is of all parts, whichever are asked for.
    let fused = Matrix::pack(&stream, &parts_of(&b, 3, [1, 3]), 3, None).unwrap();
    assert!(matches!(
        gemm(&stream, &mut d, &a, &fused, 1..2, 2.into(), Epilogue::Bias(&short)),
        Err(Error::Length { operand: "bias", expected: 4, found: 3, .. })
    ));
    let gated = Matrix::pack_gated(&stream, Elements::F32(&b), Elements::F32(&b), 4, 3, None).unwrap();
    for (matrix, epilogue) in [(&gated, Epilogue::None), (&matrix, Epilogue::Gated(Activation::Silu, None))] {
        assert!(matches!(
            gemm(&stream, &mut d, &a, matrix, 0..1, 2.into(), epilogue),
            Err(Error::Parameter { parameter: "b.is_gated", .. })
        ));
    }
    assert!(matches!(
        Matrix::pack_gated(&stream, Elements::F32(&b), Elements::F32(&b[1..]), 4, 3, None),
        Err(Error::Length { operand: "up", expected: 12, found: 11, .. })
    ));
    let mut d = zeros(12);
    assert!(matches!(
        gemm(&stream, &mut d, &a, &matrix, 0..1, 3.into(), Epilogue::None),
        Err(Error::Length { operand: "a", .. })
    ));
    assert!(matches!(
        gemm(&stream, &mut d, &a, &matrix, 0..2, 2.into(), Epilogue::None),
        Err(Error::Parameter { parameter: "parts.end", .. })
    ));
}
