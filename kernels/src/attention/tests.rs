use std::ops::Range;

use super::{AttentionParams, Mask, Rows, Span, attention};
use crate::layout::{Layout, ScoredRow, Segments};
use crate::testing::{assert_close, assert_same_bits, buffer, of, zeros};
use crate::{Buffer, Error, Stream};

/// A fused q | k | v matrix and its three views.
fn views(qkv: &Buffer, p: AttentionParams) -> [Rows<'_>; 3] {
    let (q, kv) = (p.num_heads * p.head_dim, p.num_kv_heads * p.head_dim);
    [0, q, q + kv].map(|column| Rows { buffer: qkv, stride: q + 2 * kv, column })
}

fn qkv(seed: u64, num_tokens: usize, p: AttentionParams) -> Buffer {
    buffer(seed, num_tokens * (p.num_heads + 2 * p.num_kv_heads) * p.head_dim)
}

fn whole_spans(lengths: &[usize]) -> (Vec<Span>, usize) {
    let layout = Layout::new(Segments::of_sequences(lengths.iter().copied(), ScoredRow::First));
    let num_tokens = layout.num_tokens();
    (layout.spans, num_tokens)
}

fn reference(q: Rows<'_>, k: Rows<'_>, v: Rows<'_>, spans: &[Span], p: AttentionParams) -> Vec<f64> {
    let hidden = p.num_heads * p.head_dim;
    let at = |r: Rows<'_>, row: usize, col: usize| {
        f64::from(r.buffer.host().unwrap()[row * r.stride + r.column + col])
    };
    let mut out = vec![0.0; spans.last().map_or(0, |span| span.queries.end) * hidden];
    for span in spans {
        let keys: Vec<usize> = span.prefix.clone().chain(span.keys.clone()).collect();
        for (n, i) in span.queries.clone().enumerate() {
            let position = keys.len().wrapping_sub(span.queries.len()).wrapping_add(n);
            let is_seen = |key: usize| match p.mask {
                Mask::Full => true,
                Mask::Causal => key <= position,
                Mask::Window(window) => key <= position && position - key < window,
            };
            for head in 0..p.num_heads {
                let (first, kv_first) = (head * p.head_dim, head * p.num_kv_heads / p.num_heads * p.head_dim);
                let score = |j: usize| -> f64 {
                    let products = (0..p.head_dim).map(|c| at(q, i, first + c) * at(k, j, kv_first + c));
                    let score = products.sum::<f64>() * f64::from(p.softmax_scale);
                    p.softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
                };
                let seen: Vec<(usize, f64)> =
                    (0..keys.len()).filter(|k| is_seen(*k)).map(|k| (keys[k], score(keys[k]))).collect();
                let max = seen.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = seen.iter().map(|s| (s.1 - max).exp()).sum();
                for c in 0..p.head_dim {
                    let weighted = seen.iter().map(|s| (s.1 - max).exp() * at(v, s.0, kv_first + c));
                    out[i * hidden + first + c] = weighted.sum::<f64>() / sum;
                }
            }
        }
    }
    out
}

fn params(num_heads: usize, head_dim: usize) -> AttentionParams {
    AttentionParams {
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        softmax_scale: (head_dim as f32).powf(-0.5),
        mask: Mask::Full,
        softcap: None,
    }
}

/// The contract's bound for inputs in [-1, 1).
fn bound(p: AttentionParams) -> f64 {
    2e-6 + 2f64.powi(-22) * p.head_dim as f64 * f64::from(p.softmax_scale)
        + 6e-7 * p.softcap.map_or(0.0, f64::from)
}

#[track_caller]
fn check(what: &str, qkv: &Buffer, spans: &[Span], p: AttentionParams) {
    let stream = Stream::cpu(Some(2)).unwrap();
    let [q, k, v] = views(qkv, p);
    let expected = reference(q, k, v, spans, p);
    let mut out = of(&vec![f32::NAN; expected.len()]);
    attention(&stream, &mut out, q, k, v, spans.into(), p).unwrap();
    for span in spans {
        let hidden = p.num_heads * p.head_dim;
        let elements = span.queries.start * hidden..span.queries.end * hidden;
        assert_close(what, &out.host().unwrap()[elements.clone()], &expected[elements], |_| bound(p));
    }
}

#[test]
fn matches_f64_for_every_head_dim_and_ragged_lengths() {
    // One token, block edges of queries (64) and keys (256), several key blocks, an empty sequence.
    let (spans, num_tokens) = whole_spans(&[1, 2, 17, 64, 65, 0, 256, 257, 600]);
    for head_dim in [16, 24, 32, 64, 80, 128, 256] {
        let p = params(2, head_dim);
        check(&format!("head_dim {head_dim}"), &qkv(head_dim as u64, num_tokens, p), &spans, p);
    }
}

#[test]
fn masks_caps_and_grouped_heads_match_f64() {
    let (spans, num_tokens) = whole_spans(&[1, 63, 64, 65, 0, 257, 520]);
    for (mask, name) in [
        (Mask::Causal, "causal"),
        (Mask::Window(1), "window 1"),
        (Mask::Window(24), "window 24"),
        (Mask::Window(256), "window 256"),
        (Mask::Window(10_000), "window beyond every sequence"),
    ] {
        for (num_heads, num_kv_heads, head_dim) in [(4, 4, 16), (4, 2, 32), (3, 1, 64), (2, 1, 256)] {
            for softcap in [None, Some(0.4), Some(50.0)] {
                let p = AttentionParams { num_kv_heads, mask, softcap, ..params(num_heads, head_dim) };
                let what = format!("{name}, {num_heads}/{num_kv_heads} heads of {head_dim}, cap {softcap:?}");
                check(&what, &qkv(7, num_tokens, p), &spans, p);
            }
        }
    }
}

/// Two sequences as prefix and rest, in one stretch, and the same with the prefix shared and elsewhere.
#[test]
fn a_prefix_may_stand_anywhere_and_be_shared() {
    for mask in [Mask::Causal, Mask::Window(70)] {
        let p = AttentionParams { num_kv_heads: 1, mask, ..params(2, 32) };
        for prefix_len in [1, 40, 64, 300] {
            let rests = [200, 1, 77];
            // Rows: the rests one after the other, then the prefix once.
            let total: usize = rests.iter().sum();
            let shared = qkv(3, total + prefix_len, p);
            let prefix = total..total + prefix_len;
            let mut start = 0;
            let mut shared_spans: Vec<Span> = Vec::new();
            for rest in rests {
                let rows = start..start + rest;
                shared_spans.push(Span { queries: rows.clone(), prefix: prefix.clone(), keys: rows });
                start += rest;
            }
            shared_spans.push(Span::whole(prefix.clone()));
            check(&format!("{mask:?}, prefix of {prefix_len}"), &shared, &shared_spans, p);

            let (stream, width) = (Stream::cpu(Some(2)).unwrap(), 4 * 32);
            let run = |qkv: &Buffer, spans: &[Span]| {
                let [q, k, v] = views(qkv, p);
                let mut out = zeros(qkv.len() / width * 64);
                attention(&stream, &mut out, q, k, v, spans.into(), p).unwrap();
                out
            };
            let expected = run(&shared, &shared_spans);
            let at = |out: &Buffer, rows: Range<usize>| {
                out.host().unwrap()[rows.start * 64..rows.end * 64].to_vec()
            };
            for span in &shared_spans[..3] {
                let rows = |r: &Range<usize>| shared.host().unwrap()[r.start * width..r.end * width].to_vec();
                let own = of(&[rows(&prefix), rows(&span.keys)].concat());
                let end = prefix_len + span.keys.len();
                let own_spans = [
                    Span::whole(0..prefix_len),
                    Span { queries: prefix_len..end, prefix: 0..prefix_len, keys: prefix_len..end },
                ];
                let out = run(&own, &own_spans);
                assert_same_bits("rest", &at(&out, prefix_len..end), &at(&expected, span.queries.clone()));
                assert_same_bits("prefix", &at(&out, 0..prefix_len), &at(&expected, prefix.clone()));
            }
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let p = AttentionParams { softmax_scale: 60.0, ..params(1, 64) };
    check("large scores", &qkv(3, 300, p), &[Span::whole(0..300)], p);
    let p = AttentionParams { mask: Mask::Causal, ..p };
    check("large scores, causal", &qkv(3, 300, p), &[Span::whole(0..300)], p);
}

/// In an encoder the first row of a sequence, in a decoder the last.
#[test]
fn one_query_row_alone_has_the_bits_it_has_among_all() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let lengths = [5, 130, 300, 257];
    let (all, num_tokens) = whole_spans(&lengths);
    for mask in [Mask::Full, Mask::Causal, Mask::Window(60)] {
        let p = AttentionParams { mask, ..params(3, 32) };
        let hidden = 96;
        let data = qkv(1, num_tokens, p);
        let [q, k, v] = views(&data, p);
        let mut whole = zeros(num_tokens * hidden);
        attention(&stream, &mut whole, q, k, v, (&all[..]).into(), p).unwrap();

        let picked: Vec<usize> = all
            .iter()
            .map(|s| if mask == Mask::Full { s.queries.start } else { s.queries.end - 1 })
            .collect();
        let rows: Vec<f32> =
            picked.iter().flat_map(|row| data.host().unwrap()[row * q.stride..][..hidden].to_vec()).collect();
        let rows = of(&rows);
        let q = Rows { buffer: &rows, stride: hidden, column: 0 };
        let one: Vec<Span> = all
            .iter()
            .enumerate()
            .map(|(i, s)| Span { queries: i..i + 1, prefix: 0..0, keys: s.keys.clone() })
            .collect();
        let mut out = zeros(picked.len() * hidden);
        attention(&stream, &mut out, q, k, v, (&one[..]).into(), p).unwrap();
        for (i, row) in picked.into_iter().enumerate() {
            let expected = &whole.host().unwrap()[row * hidden..(row + 1) * hidden];
            assert_same_bits("one row", &out.host().unwrap()[i * hidden..(i + 1) * hidden], expected);
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_in_any_batch_and_with_any_threads() {
    for mask in [Mask::Full, Mask::Causal, Mask::Window(100)] {
        let p = AttentionParams { mask, num_kv_heads: 1, ..params(2, 64) };
        let (hidden, width) = (128, 256);
        let (batch, num_tokens) = whole_spans(&[33, 1, 520, 64, 7]);
        let data = qkv(5, num_tokens, p);
        let run = |threads, data: &Buffer, spans: &[Span]| {
            let stream = Stream::cpu(Some(threads)).unwrap();
            let [q, k, v] = views(data, p);
            let mut out = zeros(data.len() / width * hidden);
            attention(&stream, &mut out, q, k, v, spans.into(), p).unwrap();
            out
        };
        let whole = run(1, &data, &batch);
        assert_same_bits("threads", run(5, &data, &batch).host().unwrap(), whole.host().unwrap());
        for span in &batch {
            let rows = span.keys.clone();
            let alone = of(&data.host().unwrap()[rows.start * width..rows.end * width]);
            let out = run(2, &alone, &[Span::whole(0..rows.len())]);
            let expected = &whole.host().unwrap()[rows.start * hidden..rows.end * hidden];
            assert_same_bits("alone", out.host().unwrap(), expected);
        }
    }
}

#[test]
fn the_cost_counts_what_is_seen() {
    let cost = |spans: &[Span], mask| {
        super::cost(spans, AttentionParams { mask, num_kv_heads: 1, ..params(2, 16) }, 4).flops / (4 * 16 * 2)
    };
    let span = Span { queries: 10..13, prefix: 20..24, keys: 10..13 };
    assert_eq!(cost(&[Span::whole(0..4)], Mask::Full), 16);
    assert_eq!(cost(&[Span::whole(0..4)], Mask::Causal), 10);
    assert_eq!(cost(std::slice::from_ref(&span), Mask::Causal), 5 + 6 + 7);
    assert_eq!(cost(&[span], Mask::Window(6)), 5 + 6 + 6);
}

#[test]
fn what_the_contract_excludes_is_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let data = zeros(4 * 3 * 64);
    let [q, k, v] = views(&data, params(1, 64));
    let run =
        |out: &mut Buffer, v: Rows<'_>, spans: &[Span], p| attention(&stream, out, q, k, v, spans.into(), p);
    let mut out = zeros(4 * 64);
    let whole = [Span::whole(0..4)];
    let refused = |result: Result<(), Error>, name: &str| match result {
        Err(Error::Parameter { parameter, .. }) => assert_eq!(parameter, name),
        Err(Error::Length { operand, .. }) => assert_eq!(operand, name),
        Err(Error::NotPositive { parameter, .. }) => assert_eq!(parameter, name),
        other => panic!("{name}: {other:?}"),
    };
    for head_dim in [8, 20, 264] {
        refused(run(&mut out, v, &whole, params(1, head_dim)), "head_dim");
    }
    let p = params(1, 64);
    refused(run(&mut out, v, &whole, AttentionParams { num_kv_heads: 0, ..p }), "num_kv_heads");
    refused(run(&mut out, v, &whole, AttentionParams { num_heads: 3, num_kv_heads: 2, ..p }), "num_kv_heads");
    refused(run(&mut out, v, &whole, AttentionParams { mask: Mask::Window(0), ..p }), "mask");
    for wrong in [0.0, -1.0, f32::INFINITY, f32::NAN] {
        let scaled = AttentionParams { softmax_scale: wrong, ..p };
        refused(run(&mut out, v, &whole, scaled), "softmax_scale");
        refused(run(&mut out, v, &whole, AttentionParams { softcap: Some(wrong), ..p }), "softcap");
    }
    refused(run(&mut out, v, &[Span::whole(0..3), Span::whole(2..4)], p), "spans");
    let span = |keys| Span { queries: 0..4, prefix: 0..0, keys };
    refused(run(&mut out, v, &[span(2..2)], p), "spans");
    assert!(run(&mut out, v, &[span(0..3)], p).is_ok());
    refused(run(&mut out, v, &[span(0..3)], AttentionParams { mask: Mask::Causal, ..p }), "spans");
    refused(run(&mut out, v, &[span(1..5)], p), "k");
    refused(run(&mut zeros(5 * 64), v, &[Span::whole(0..5)], p), "q");
    refused(run(&mut zeros(255), v, &whole, p), "out");
    refused(run(&mut out, Rows { column: 129, ..v }, &whole, p), "v");
}
