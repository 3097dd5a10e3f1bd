use super::{AttentionParams, Rows, attention};
use crate::testing::{assert_close, assert_same_bits, buffer};
use crate::{Buffer, Error, Segments, Stream};

/// A fused q | k | v matrix `[tokens, 3 * hidden]` and its three views.
fn views(qkv: &Buffer, hidden: usize) -> [Rows<'_>; 3] {
    [0, 1, 2].map(|i| Rows { buffer: qkv, stride: 3 * hidden, column: i * hidden })
}

fn reference(
    q: Rows<'_>,
    k: Rows<'_>,
    v: Rows<'_>,
    queries: &Segments,
    keys: &Segments,
    p: AttentionParams,
) -> Vec<f64> {
    let hidden = p.num_heads * p.head_dim;
    let at =
        |r: Rows<'_>, row: usize, col: usize| f64::from(r.buffer.as_slice()[row * r.stride + r.column + col]);
    let mut out = vec![0.0; queries.num_tokens() * hidden];
    for seq in 0..queries.num_seqs() {
        for head in 0..p.num_heads {
            for i in queries.range(seq) {
                let score = |j: usize| -> f64 {
                    let columns = head * p.head_dim..(head + 1) * p.head_dim;
                    columns.map(|c| at(q, i, c) * at(k, j, c)).sum::<f64>() * f64::from(p.softmax_scale)
                };
                let scores: Vec<f64> = keys.range(seq).map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for c in head * p.head_dim..(head + 1) * p.head_dim {
                    out[i * hidden + c] =
                        keys.range(seq).zip(&weights).map(|(j, w)| w * at(v, j, c)).sum::<f64>() / sum;
                }
            }
        }
    }
    out
}

fn params(num_heads: usize, head_dim: usize) -> AttentionParams {
    AttentionParams { num_heads, head_dim, softmax_scale: (head_dim as f32).powf(-0.5) }
}

/// The contract's bound for inputs in [-1, 1).
fn bound(p: AttentionParams) -> f64 {
    2e-6 + 2f64.powi(-22) * p.head_dim as f64 * f64::from(p.softmax_scale)
}

#[test]
fn matches_f64_for_every_head_dim_and_ragged_lengths() {
    let stream = Stream::cpu(Some(2)).unwrap();
    // One token, block edges of queries (64) and keys (256), several key blocks, an empty sequence.
    let segments = Segments::from_lengths([1, 2, 17, 64, 65, 0, 256, 257, 600]);
    for head_dim in [16, 24, 32, 64, 80, 128, 256] {
        let p = params(2, head_dim);
        let hidden = 2 * head_dim;
        let qkv = buffer(head_dim as u64, segments.num_tokens() * 3 * hidden);
        let [q, k, v] = views(&qkv, hidden);
        let mut out = buffer(9, segments.num_tokens() * hidden);
        attention(&stream, &mut out, q, k, v, &segments, &segments, p).unwrap();
        let expected = reference(q, k, v, &segments, &segments, p);
        assert_close(&format!("head_dim {head_dim}"), out.as_slice(), &expected, |_| bound(p));
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let segments = Segments::from_lengths([300]);
    let p = AttentionParams { num_heads: 1, head_dim: 64, softmax_scale: 60.0 };
    let qkv = buffer(3, 300 * 192);
    let [q, k, v] = views(&qkv, 64);
    let mut out = Buffer::zeros(300 * 64);
    attention(&stream, &mut out, q, k, v, &segments, &segments, p).unwrap();
    let expected = reference(q, k, v, &segments, &segments, p);
    assert_close("large scores", out.as_slice(), &expected, |_| bound(p));
}

#[test]
fn some_query_rows_alone_have_the_bits_they_have_among_all() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let lengths = [5, 130, 300];
    let (all, first) = (Segments::from_lengths(lengths), Segments::from_lengths([1, 1, 1]));
    let p = params(3, 32);
    let hidden = 96;
    let qkv = buffer(1, all.num_tokens() * 3 * hidden);
    let [q, k, v] = views(&qkv, hidden);
    let mut whole = Buffer::zeros(all.num_tokens() * hidden);
    attention(&stream, &mut whole, q, k, v, &all, &all, p).unwrap();
    let rows: Vec<f32> = all.cu_seqlens()[..3]
        .iter()
        .flat_map(|row| qkv.as_slice()[row * 3 * hidden..row * 3 * hidden + hidden].to_vec())
        .collect();
    let rows = Buffer::from_slice(&rows);
    let mut out = Buffer::zeros(3 * hidden);
    let q = Rows { buffer: &rows, stride: hidden, column: 0 };
    attention(&stream, &mut out, q, k, v, &first, &all, p).unwrap();
    for seq in 0..3 {
        let row = all.range(seq).start;
        let expected = &whole.as_slice()[row * hidden..(row + 1) * hidden];
        assert_same_bits("first row", &out.as_slice()[seq * hidden..(seq + 1) * hidden], expected);
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_in_any_batch_and_with_any_threads() {
    let p = params(2, 64);
    let hidden = 128;
    let lengths = [33, 1, 520, 64, 7];
    let batch = Segments::from_lengths(lengths);
    let qkv = buffer(5, batch.num_tokens() * 3 * hidden);
    let run = |threads, data: &Buffer, segments: &Segments| {
        let stream = Stream::cpu(Some(threads)).unwrap();
        let [q, k, v] = views(data, hidden);
        let mut out = Buffer::zeros(segments.num_tokens() * hidden);
        attention(&stream, &mut out, q, k, v, segments, segments, p).unwrap();
        out
    };
    let whole = run(1, &qkv, &batch);
    assert_same_bits("threads", run(5, &qkv, &batch).as_slice(), whole.as_slice());
    for (seq, length) in lengths.into_iter().enumerate() {
        let rows = batch.range(seq);
        let alone = Buffer::from_slice(&qkv.as_slice()[rows.start * 3 * hidden..rows.end * 3 * hidden]);
        let out = run(2, &alone, &Segments::from_lengths([length]));
        assert_same_bits("alone", out.as_slice(), &whole.as_slice()[rows.start * hidden..rows.end * hidden]);
    }
}

#[test]
fn what_the_contract_excludes_is_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let one = Segments::from_lengths([4]);
    let qkv = Buffer::zeros(4 * 3 * 64);
    let [q, k, v] = views(&qkv, 64);
    let mut out = Buffer::zeros(4 * 64);
    for head_dim in [8, 20, 264] {
        assert!(matches!(
            attention(&stream, &mut out, q, k, v, &one, &one, params(1, head_dim)),
            Err(Error::Parameter { parameter: "head_dim", .. })
        ));
    }
    let two = Segments::from_lengths([2, 2]);
    assert!(matches!(
        attention(&stream, &mut out, q, k, v, &one, &two, params(1, 64)),
        Err(Error::Parameter { parameter: "keys.num_seqs", .. })
    ));
    let none = Segments::from_lengths([0]);
    assert!(matches!(
        attention(&stream, &mut out, q, k, v, &one, &none, params(1, 64)),
        Err(Error::Parameter { parameter: "keys", .. })
    ));
    let long = Segments::from_lengths([5]);
    let mut wide = Buffer::zeros(5 * 64);
    assert!(matches!(
        attention(&stream, &mut wide, q, k, v, &long, &long, params(1, 64)),
        Err(Error::Length { operand: "q", .. })
    ));
    assert!(matches!(
        attention(&stream, &mut Buffer::zeros(255), q, k, v, &one, &one, params(1, 64)),
        Err(Error::Length { operand: "out", .. })
    ));
    let beyond = Rows { column: 129, ..v };
    assert!(matches!(
        attention(&stream, &mut out, q, k, beyond, &one, &one, params(1, 64)),
        Err(Error::Length { operand: "v", .. })
    ));
}
