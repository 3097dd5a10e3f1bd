use super::{RopeHeads, RopeTable, inv_freq, rope};
use crate::testing::{assert_close, assert_same_bits, values};
use crate::{Buffer, Error, Stream};

const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Cosine and sine of the exact angle, and how far the table's may be from them.
fn exact(theta: f64, head_dim: usize, position: usize, i: usize) -> (f64, f64, f64) {
    let angle = position as f64 * theta.powf(-((2 * i) as f64) / head_dim as f64);
    (angle.cos(), angle.sin(), angle * UNIT * (3.0 + theta.ln()) + UNIT)
}

#[test]
fn the_table_matches_f64() {
    for (theta, head_dim, num_positions) in
        [(10_000.0, 256, 8192), (10_000.0, 64, 2049), (500.0, 16, 300), (1e6, 96, 5000), (10_000.0, 2, 3)]
    {
        let table = RopeTable::new(theta, head_dim, num_positions).unwrap();
        assert_eq!((table.num_positions(), table.head_dim()), (num_positions, head_dim));
        for position in 0..num_positions {
            let (cos, sin) = table.row(u32::try_from(position).unwrap());
            let what = format!("theta {theta}, position {position} of head_dim {head_dim}");
            let exact: Vec<_> = (0..head_dim / 2).map(|i| exact(theta, head_dim, position, i)).collect();
            let (exact_cos, exact_sin): (Vec<f64>, Vec<f64>) = exact.iter().map(|e| (e.0, e.1)).unzip();
            assert_close(&what, cos, &exact_cos, |i| exact[i].2);
            assert_close(&what, sin, &exact_sin, |i| exact[i].2);
        }
    }
}

/// Frequencies of the reference (torch 2.6.0, `1.0 / theta ** (arange(0, dim, 2).float() / dim)`) at which rounding once
/// instead of at every step gives a neighbouring number.
#[test]
fn frequencies_have_the_bits_of_the_reference() {
    for (theta, head_dim, i, bits) in [
        (10_000.0, 64, 5, 0x3e72_d423),
        (10_000.0, 64, 9, 0x3d99_940d),
        (10_000.0, 256, 3, 0x3f4e_4bad),
        (10_000.0, 256, 11, 0x3ee8_045f),
        (500.0, 16, 1, 0x3eeb_7333),
        (10_000.0, 80, 2, 0x3f21_866b),
    ] {
        assert_eq!(
            inv_freq(theta, head_dim)[i].to_bits(),
            bits,
            "theta {theta}, frequency {i} of {head_dim}"
        );
    }
}

#[test]
fn matches_f64() {
    let stream = Stream::cpu(Some(2)).unwrap();
    for (rows, stride, column, num_heads, head_dim) in [
        (1, 2, 0, 1, 2),
        (7, 16 * 3 + 5, 3, 3, 16),
        (33, 64 * 6, 64 * 4, 2, 64),
        (150, 2560, 2048, 1, 256),
        (5, 90, 9, 9, 6),
    ] {
        let table = RopeTable::new(10_000.0, head_dim, 40).unwrap();
        let position_ids: Vec<u32> = (0..rows).map(|row| u32::try_from(row * 7 % 40).unwrap()).collect();
        let before = values(1, rows * stride);
        let mut x = Buffer::from_slice(&before);
        rope(&stream, &mut x, RopeHeads { stride, column, num_heads }, &position_ids, &table).unwrap();

        let mut expected: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
        let mut bound = vec![0.0; before.len()];
        for (row, position) in position_ids.iter().enumerate() {
            for head in 0..num_heads {
                for i in 0..head_dim / 2 {
                    let (cos, sin, off) = exact(10_000.0, head_dim, *position as usize, i);
                    let low = row * stride + column + head * head_dim + i;
                    let high = low + head_dim / 2;
                    let (a, b) = (expected[low], expected[high]);
                    (expected[low], expected[high]) = (a * cos - b * sin, b * cos + a * sin);
                    let inherited = (a.abs() + b.abs()) * off;
                    bound[low] = inherited + UNIT * ((b * sin).abs() + expected[low].abs() + inherited);
                    bound[high] = inherited + UNIT * ((a * sin).abs() + expected[high].abs() + inherited);
                }
            }
        }
        // Columns of other heads have bound 0: they must not move.
        let what = format!("{num_heads} heads of {head_dim} at {column} of {stride}");
        assert_close(&what, x.as_slice(), &expected, |i| bound[i]);
    }
}

#[test]
fn position_zero_changes_nothing() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let table = RopeTable::new(10_000.0, 64, 1).unwrap();
    let before = values(1, 3 * 128);
    let mut x = Buffer::from_slice(&before);
    rope(&stream, &mut x, RopeHeads { stride: 128, column: 0, num_heads: 2 }, &[0; 3], &table).unwrap();
    assert_same_bits("position 0", x.as_slice(), &before);
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    let (rows, stride, heads) = (500, 500, RopeHeads { stride: 500, column: 12, num_heads: 5 });
    let table = RopeTable::new(10_000.0, 96, 200).unwrap();
    let x = values(1, rows * stride);
    let position_ids: Vec<u32> = (0..rows).map(|row| u32::try_from(row % 200).unwrap()).collect();
    let run = |threads, rows: std::ops::Range<usize>| {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let mut x = Buffer::from_slice(&x[rows.start * stride..rows.end * stride]);
        rope(&stream, &mut x, heads, &position_ids[rows], &table).unwrap();
        x
    };
    let whole = run(1, 0..rows);
    assert_same_bits("threads", run(3, 0..rows).as_slice(), whole.as_slice());
    let expected = &whole.as_slice()[323 * stride..324 * stride];
    assert_same_bits("alone", run(2, 323..324).as_slice(), expected);
}

#[test]
fn a_longer_table_has_the_same_bits() {
    let (short, long) =
        (RopeTable::new(10_000.0, 64, 50).unwrap(), RopeTable::new(10_000.0, 64, 99).unwrap());
    assert_same_bits("cos", &short.cos, &long.cos[..short.cos.len()]);
    assert_same_bits("sin", &short.sin, &long.sin[..short.sin.len()]);
}

#[test]
fn bad_arguments_are_refused() {
    for head_dim in [0, 63] {
        let result = RopeTable::new(10_000.0, head_dim, 8);
        assert!(
            matches!(result, Err(Error::Parameter { parameter: "head_dim", found, .. }) if found == head_dim)
        );
    }
    let stream = Stream::cpu(Some(1)).unwrap();
    let table = RopeTable::new(10_000.0, 4, 8).unwrap();
    let heads = RopeHeads { stride: 12, column: 4, num_heads: 2 };
    let run = |heads, len, position_ids: &[u32]| {
        rope(&stream, &mut Buffer::zeros(len), heads, position_ids, &table)
    };
    assert!(matches!(
        run(heads, 24, &[7, 8]),
        Err(Error::IndexOutOfRange { table: "position", index: 8, position: 1, rows: 8, .. })
    ));
    assert!(matches!(
        run(heads, 23, &[6, 7]),
        Err(Error::Length { operand: "x", expected: 24, found: 23, .. })
    ));
    assert!(matches!(
        run(RopeHeads { num_heads: 3, ..heads }, 24, &[6, 7]),
        Err(Error::Parameter { parameter: "stride", found: 12, .. })
    ));
    assert!(run(heads, 24, &[6, 7]).is_ok());
    assert!(run(heads, 0, &[]).is_ok());
    assert!(run(RopeHeads { stride: 0, column: 0, num_heads: 0 }, 0, &[1, 2]).is_ok());
}
