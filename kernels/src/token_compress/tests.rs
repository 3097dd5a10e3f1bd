use super::{Compress, token_compress};
use crate::layout::{Before, Bounds, Layout, LayoutBuffer, ScoredRow, Segment, Segments};
use crate::testing::{assert_close, assert_same_bits, buffer, of, values, zeros};
use crate::{Buffer, Error, Stream};

const fn seq(query: usize, passage: usize, prompt: usize) -> Compress {
    Compress { query, passage, prompt }
}

/// Ragged on purpose: short last groups, one group only, no passage, nothing but a passage, no rows at all.
const BATCH: [Compress; 7] =
    [seq(3, 10, 2), seq(1, 0, 4), seq(5, 1, 1), seq(0, 8, 0), seq(0, 0, 0), seq(2, 37, 6), seq(4, 3, 0)];

/// Layouts before and after.
fn layouts(stream: &Stream, sequences: &[Compress], ratio: usize) -> [LayoutBuffer; 2] {
    let segment = |parts: &Compress| Segment { parts: *parts, before: Before::Nothing, is_scored: false };
    let segments = sequences.iter().map(segment).collect();
    let scored_row = ScoredRow::Last;
    let layout = Layout::new(Segments { segments, carried_rows: 0, kept_segment: None, scored_row });
    let bounds = Bounds { tokens: layout.num_tokens(), seqs: 0 };
    let capacity = layout.num_tokens() + sequences.len();
    let [mut before, mut after] = [(); 2].map(|()| LayoutBuffer::new(stream, capacity).unwrap());
    before.load(layout, bounds).unwrap();
    after.compress(stream, &before, ratio).unwrap();
    [before, after]
}

fn run(threads: usize, x: &[f32], sequences: &[Compress], ratio: usize, hidden: usize) -> Buffer {
    let stream = Stream::cpu(Some(threads)).unwrap();
    let [before, after] = layouts(&stream, sequences, ratio);
    let mut out = zeros(after.tokens().get() * hidden);
    token_compress(&stream, &mut out, &of(x), &before, &after, ratio, hidden).unwrap();
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
            for (out, rows) in out.host().unwrap().chunks_exact(hidden).zip(&groups) {
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
    assert_same_bits("ratio 2", out.host().unwrap(), &[9.0, 2.0, 6.0, 24.0, 9.5]);
    let out = run(1, &x, &[seq(1, 5, 1)], 6, 1);
    assert_same_bits("ratio beyond the passage", out.host().unwrap(), &[9.0, 8.0, 9.5]);
}

#[test]
fn copies_keep_every_bit() {
    // -0.0 and a NaN's payload survive a copy only.
    let special = [-0.0, f32::from_bits(0x7fc1_2345), f32::MIN_POSITIVE / 4.0, f32::INFINITY];
    let x: Vec<f32> = (0..6).flat_map(|_| special).collect();
    assert_same_bits("ratio 1", run(1, &x, &[seq(2, 3, 1)], 1, 4).host().unwrap(), &x);
    // Query, prompt and the group of one at the passage's end.
    let out = run(1, &x, &[seq(2, 3, 1)], 2, 4);
    assert_same_bits("query", &out.host().unwrap()[..8], &x[..8]);
    assert_same_bits("last group and prompt", &out.host().unwrap()[12..], &x[16..]);
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_on_any_threads() {
    let hidden = 99;
    let x = values(1, num_rows(&BATCH) * hidden);
    for ratio in [1, 2, 3, 8] {
        let whole = run(1, &x, &BATCH, ratio, hidden);
        assert_same_bits("threads", run(3, &x, &BATCH, ratio, hidden).host().unwrap(), whole.host().unwrap());
        let (mut start, mut out_start) = (0, 0);
        for seq in BATCH {
            let (len, out_len) = (seq.len() * hidden, seq.compressed(ratio).len() * hidden);
            let alone = run(1, &x[start..start + len], &[seq], ratio, hidden);
            let expected = &whole.host().unwrap()[out_start..out_start + out_len];
            assert_same_bits("alone", alone.host().unwrap(), expected);
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
    let twice = run(1, once.host().unwrap(), &halved, 2, 5);
    assert_same_bits("2 and 2 or 4", twice.host().unwrap(), run(1, &x, &sequences, 4, 5).host().unwrap());
}

#[test]
fn bad_arguments_are_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let sequences = [seq(1, 4, 1)];
    let run = |out, x, ratio| {
        let [before, after] = layouts(&stream, &sequences, ratio);
        token_compress(&stream, &mut zeros(out), &buffer(1, x), &before, &after, ratio, 2)
    };
    assert!(matches!(run(8, 12, 0), Err(Error::Parameter { parameter: "ratio", found: 0, .. })));
    assert!(matches!(run(7, 12, 2), Err(Error::Length { operand: "out", expected: 8, found: 7, .. })));
    assert!(matches!(run(8, 11, 2), Err(Error::Length { operand: "x", expected: 12, found: 11, .. })));
    assert!(run(8, 12, 2).is_ok());
    // No rows, and no columns.
    for (sequences, hidden) in [(&[][..], 2), (&sequences, 0)] {
        let [before, after] = layouts(&stream, sequences, 2);
        assert!(token_compress(&stream, &mut zeros(0), &zeros(0), &before, &after, 2, hidden).is_ok());
    }
}
