use super::{Pooling, pool};
use crate::testing::{assert_close, assert_same_bits, buffer};
use crate::{Buffer, Error, Segments, Stream};

#[test]
fn cls_is_the_first_row_and_mean_matches_f64() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let lengths = [1, 2, 500, 33];
    let segments = Segments::from_lengths(lengths);
    for hidden in [1, 17, 384] {
        let x = buffer(1, segments.num_tokens() * hidden);
        let mut out = Buffer::zeros(4 * hidden);
        pool(&stream, &mut out, &x, &segments, hidden, Pooling::Cls).unwrap();
        for (seq, out) in out.as_slice().chunks_exact(hidden).enumerate() {
            let start = segments.range(seq).start * hidden;
            assert_same_bits("cls", out, &x.as_slice()[start..start + hidden]);
        }
        pool(&stream, &mut out, &x, &segments, hidden, Pooling::Mean).unwrap();
        for (seq, out) in out.as_slice().chunks_exact(hidden).enumerate() {
            let column = |i: usize| {
                segments
                    .range(seq)
                    .map(move |row| (row, i))
                    .map(|(r, i)| f64::from(x.as_slice()[r * hidden + i]))
            };
            let n = lengths[seq] as f64;
            let expected: Vec<f64> = (0..hidden).map(|i| column(i).sum::<f64>() / n).collect();
            assert_close("mean", out, &expected, |i| {
                (n + 1.0) * 2f64.powi(-24) * column(i).map(f64::abs).sum::<f64>() / n
            });
        }
    }
}

#[test]
fn a_sequence_without_rows_is_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let segments = Segments::from_lengths([2, 0, 1]);
    let (x, mut out) = (Buffer::zeros(12), Buffer::zeros(12));
    assert!(matches!(
        pool(&stream, &mut out, &x, &segments, 4, Pooling::Mean),
        Err(Error::Parameter { parameter: "segments", found: 1, .. })
    ));
    let segments = Segments::from_lengths([2, 2]);
    assert!(matches!(
        pool(&stream, &mut out, &x, &segments, 4, Pooling::Cls),
        Err(Error::Length { operand: "x", expected: 16, found: 12, .. })
    ));
}
