use super::{Compress, token_compress};
use crate::testing::{assert_close, assert_same_bits, buffer, values};
use crate::{Buffer, Error, Stream};

const fn seq(query: usize, passage: usize, prompt: usize) -> Compress {
    Compress { query, passage, prompt }
}

/// Ragged on purpose: short last groups, one group only, no passage, nothing but a passage, no rows at all.
const BATCH: [Compress; 7] =
    [seq(3, 10, 2), seq(1, 0, 4), seq(5, 1, 1), seq(0, 8, 0), seq(0, 0, 0), seq(2, 37, 6), seq(4, 3, 0)];

fn run(threads: usize, x: &[f32], sequences: &[Compress], ratio: usize, hidden: usize) -> Buffer {
    let stream = Stream::cpu(Some(threads)).unwrap();
    let rows: usize = sequences.iter().map(|seq| seq.compressed(ratio).len()).sum();
    let mut out = Buffer::zeros(rows * hidden);
    token_compress(&stream, &mut out, &Buffer::from_slice(x), sequences, ratio, hidden).unwrap();
    out
}

fn num_rows(sequences: &[Compress]) -> usize {
    sequences.iter().map(Compress::len).sum()
}

#[test]
fn matches_f64_in_the_packed_layout() {
    for hidden in [1, 17, 64, 300] {
        let x = values(1, num_rows(&BATCH) * hidden);
        for ratio in [1, 2, 3, 4, 8, 100, usize::MAX] {
            // Rows of x that each row of the result is the mean of.
            let mut groups: Vec<Vec<usize>> = Vec::new();
            let mut start = 0;
            for seq in BATCH {
                let rows: Vec<usize> = (start..start + seq.len()).collect();
                let (query, rest) = rows.split_at(seq.query);
                let (passage, prompt) = rest.split_at(seq.passage);
                groups.extend(query.iter().map(|row| vec![*row]));
                groups.extend(passage.chunks(ratio).map(<[usize]>::to_vec));
                groups.extend(prompt.iter().map(|row| vec![*row]));
                start += seq.len();
            }
            let out = run(2, &x, &BATCH, ratio, hidden);
            assert_eq!(out.len(), groups.len() * hidden);
            for (out, rows) in out.as_slice().chunks_exact(hidden).zip(&groups) {
                if let [row] = rows[..] {
                    assert_same_bits("a single row", out, &x[row * hidden..(row + 1) * hidden]);
                }
                let n = rows.len() as f64;
                let column = |i: usize| rows.iter().map(move |row| (*row, i));
                let value = |(row, i): (usize, usize)| f64::from(x[row * hidden + i]);
                let expected: Vec<f64> = (0..hidden).map(|i| column(i).map(value).sum::<f64>() / n).collect();
                assert_close(&format!("mean of rows {rows:?}"), out, &expected, |i| {
                    (n + 1.0) * 2f64.powi(-24) * column(i).map(|at| value(at).abs()).sum::<f64>() / n
                });
            }
        }
    }
}

#[test]
fn a_short_last_group_is_divided_by_its_real_count() {
    let x = [9.0, 1.0, 3.0, 5.0, 7.0, 24.0, 9.5];
    let out = run(1, &x, &[seq(1, 5, 1)], 2, 1);
    assert_same_bits("ratio 2", out.as_slice(), &[9.0, 2.0, 6.0, 24.0, 9.5]);
    let out = run(1, &x, &[seq(1, 5, 1)], 6, 1);
    assert_same_bits("ratio beyond the passage", out.as_slice(), &[9.0, 8.0, 9.5]);
}

#[test]
fn copies_keep_every_bit() {
    // -0.0 and a NaN's payload survive a copy only.
    let special = [-0.0, f32::from_bits(0x7fc1_2345), f32::MIN_POSITIVE / 4.0, f32::INFINITY];
    let x: Vec<f32> = (0..6).flat_map(|_| special).collect();
    assert_same_bits("ratio 1", run(1, &x, &[seq(2, 3, 1)], 1, 4).as_slice(), &x);
    // Query, prompt and the group of one at the passage's end.
    let out = run(1, &x, &[seq(2, 3, 1)], 2, 4);
    assert_same_bits("query", &out.as_slice()[..8], &x[..8]);
    assert_same_bits("last group and prompt", &out.as_slice()[12..], &x[16..]);
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_on_any_threads() {
    let hidden = 99;
    let x = values(1, num_rows(&BATCH) * hidden);
    for ratio in [1, 2, 3, 8] {
        let whole = run(1, &x, &BATCH, ratio, hidden);
        assert_same_bits("threads", run(3, &x, &BATCH, ratio, hidden).as_slice(), whole.as_slice());
        let (mut start, mut out_start) = (0, 0);
        for seq in BATCH {
            let (len, out_len) = (seq.len() * hidden, seq.compressed(ratio).len() * hidden);
            let alone = run(1, &x[start..start + len], &[seq], ratio, hidden);
            let expected = &whole.as_slice()[out_start..out_start + out_len];
            assert_same_bits("alone", alone.as_slice(), expected);
            (start, out_start) = (start + len, out_start + out_len);
        }
    }
}

#[test]
fn lengths_compose() {
    for passage in 0..200 {
        for ratio in 1..9usize {
            let twice = seq(3, passage, 2).compressed(ratio).compressed(ratio);
            assert_eq!(twice, seq(3, passage.div_ceil(ratio).div_ceil(ratio), 2));
            assert_eq!(twice, seq(3, passage, 2).compressed(ratio * ratio));
        }
    }
    assert_eq!(seq(3, 5, 2).compressed(0), seq(3, 5, 2));
    assert!(seq(0, 0, 0).is_empty() && !seq(0, 1, 0).is_empty());
}

#[test]
fn a_second_call_takes_the_first_one_s_layout() {
    // Full groups only, so that the mean of means is the mean: sums of small integers are exact.
    let sequences = [seq(2, 8, 1), seq(1, 4, 3)];
    let x: Vec<f32> = (0..num_rows(&sequences) * 5).map(|i| (i * 7 % 32) as f32).collect();
    let once = run(1, &x, &sequences, 2, 5);
    let halved = sequences.map(|seq| seq.compressed(2));
    let twice = run(1, once.as_slice(), &halved, 2, 5);
    assert_same_bits("2 and 2 or 4", twice.as_slice(), run(1, &x, &sequences, 4, 5).as_slice());
}

#[test]
fn bad_arguments_are_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let sequences = [seq(1, 4, 1)];
    let run =
        |out, x, ratio| token_compress(&stream, &mut Buffer::zeros(out), &buffer(1, x), &sequences, ratio, 2);
    assert!(matches!(run(8, 12, 0), Err(Error::Parameter { parameter: "ratio", found: 0, .. })));
    assert!(matches!(run(7, 12, 2), Err(Error::Length { operand: "out", expected: 8, found: 7, .. })));
    assert!(matches!(run(8, 11, 2), Err(Error::Length { operand: "x", expected: 12, found: 11, .. })));
    assert!(run(8, 12, 2).is_ok());
    let empty = token_compress(&stream, &mut Buffer::zeros(0), &Buffer::zeros(0), &[], 2, 2);
    assert!(empty.is_ok());
    let no_columns = token_compress(&stream, &mut Buffer::zeros(0), &Buffer::zeros(0), &sequences, 2, 0);
    assert!(no_columns.is_ok());
}
