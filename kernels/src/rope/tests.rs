use super::{RopeHeads, RopeTable, inv_freq, rope_cpu};
use crate::testing::{assert_close, assert_same_bits, rotary_angle, rotate_exactly, values};
use crate::{CpuStream, Error, Stream};

fn table(theta: f64, head_dim: usize, num_positions: usize) -> RopeTable {
    RopeTable::new(&Stream::cpu(Some(1)).unwrap(), theta, head_dim, num_positions).unwrap()
}

#[test]
fn the_table_matches_f64() {
    for (theta, head_dim, num_positions) in
        [(10_000.0, 256, 8192), (10_000.0, 64, 2049), (500.0, 16, 300), (1e6, 96, 5000), (10_000.0, 2, 3)]
    {
        let table = table(theta, head_dim, num_positions);
        let (cos, sin) = (table.cos().host().unwrap(), table.sin().host().unwrap());
        assert_eq!((cos.len(), sin.len()), (num_positions * head_dim / 2, num_positions * head_dim / 2));
        assert_eq!((table.num_positions(), table.head_dim()), (num_positions, head_dim));
        for position in 0..num_positions {
            let row = position * head_dim / 2..(position + 1) * head_dim / 2;
            let what = format!("theta {theta}, position {position} of head_dim {head_dim}");
            let exact: Vec<_> =
                (0..head_dim / 2).map(|i| rotary_angle(theta, head_dim, position, i)).collect();
            let (exact_cos, exact_sin): (Vec<f64>, Vec<f64>) = exact.iter().map(|e| (e.0, e.1)).unzip();
            assert_close(&what, &cos[row.clone()], &exact_cos, |i| exact[i].2);
            assert_close(&what, &sin[row], &exact_sin, |i| exact[i].2);
        }
    }
}

/// Frequencies of the reference (torch 2.6.0, `1.0 / theta ** (arange(0, dim, 2).float() / dim)`) at which
/// rounding once instead of at every step gives a neighbouring number.
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
    let stream = CpuStream::new(Some(2)).unwrap();
    for (rows, stride, column, num_heads, head_dim) in [
        (1, 2, 0, 1, 2),
        (7, 16 * 3 + 5, 3, 3, 16),
        (33, 64 * 6, 64 * 4, 2, 64),
        (150, 2560, 2048, 1, 256),
        (5, 90, 9, 9, 6),
    ] {
        let table = table(10_000.0, head_dim, 40);
        let position_ids: Vec<u32> = (0..rows).map(|row| u32::try_from(row * 7 % 40).unwrap()).collect();
        let before = values(1, rows * stride);
        let mut x = before.clone();
        let heads = RopeHeads { stride, column, num_heads };
        rope_cpu(&stream, &mut x, heads, &position_ids, &table).unwrap();

        let mut expected: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
        let mut bound = vec![0.0; before.len()];
        for (row, position) in position_ids.iter().enumerate() {
            let heads = (0..num_heads).map(|head| row * stride + column + head * head_dim);
            rotate_exactly(&mut expected, &mut bound, heads, head_dim, 10_000.0, *position);
        }
        // Columns of other heads have bound 0: they must not move.
        let what = format!("{num_heads} heads of {head_dim} at {column} of {stride}");
        assert_close(&what, &x, &expected, |i| bound[i]);
    }
}

#[test]
fn position_zero_changes_nothing() {
    let stream = CpuStream::new(Some(1)).unwrap();
    let before = values(1, 3 * 128);
    let mut x = before.clone();
    let heads = RopeHeads { stride: 128, column: 0, num_heads: 2 };
    rope_cpu(&stream, &mut x, heads, &[0; 3], &table(10_000.0, 64, 1)).unwrap();
    assert_same_bits("position 0", &x, &before);
}

#[test]
fn a_row_has_the_same_bits_anywhere() {
    let (rows, stride, heads) = (500, 500, RopeHeads { stride: 500, column: 12, num_heads: 5 });
    let table = table(10_000.0, 96, 200);
    let x = values(1, rows * stride);
    let position_ids: Vec<u32> = (0..rows).map(|row| u32::try_from(row % 200).unwrap()).collect();
    let run = |threads, rows: std::ops::Range<usize>| {
        let stream = CpuStream::new(Some(threads)).unwrap();
        let mut x = x[rows.start * stride..rows.end * stride].to_vec();
        rope_cpu(&stream, &mut x, heads, &position_ids[rows], &table).unwrap();
        x
    };
    let whole = run(1, 0..rows);
    assert_same_bits("threads", &run(3, 0..rows), &whole);
    assert_same_bits("alone", &run(2, 323..324), &whole[323 * stride..324 * stride]);
}

#[test]
fn a_longer_table_has_the_same_bits() {
    let (short, long) = (table(10_000.0, 64, 50), table(10_000.0, 64, 99));
    for (what, short, long) in [("cos", short.cos(), long.cos()), ("sin", short.sin(), long.sin())] {
        assert_same_bits(what, short.host().unwrap(), &long.host().unwrap()[..short.len()]);
    }
}

#[test]
fn no_rows_and_no_heads_are_no_work() {
    let (stream, table) = (CpuStream::new(Some(1)).unwrap(), table(10_000.0, 4, 8));
    let heads = RopeHeads { stride: 12, column: 4, num_heads: 2 };
    assert!(rope_cpu(&stream, &mut [], heads, &[], &table).is_ok());
    let mut x = values(1, 24);
    rope_cpu(&stream, &mut x, RopeHeads { num_heads: 0, ..heads }, &[6, 7], &table).unwrap();
    assert_same_bits("no heads", &x, &values(1, 24));
}

#[test]
fn a_head_that_has_no_halves_is_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    for head_dim in [0, 63] {
        let result = RopeTable::new(&stream, 10_000.0, head_dim, 8);
        assert!(
            matches!(result, Err(Error::Parameter { parameter: "head_dim", found, .. }) if found == head_dim)
        );
    }
}
