use super::pool;
use crate::attention::Span;
use crate::layout::{Layout, ScoredRow, Segments};
use crate::testing::{assert_close, assert_same_bits, buffer, zeros};
use crate::{Error, Stream};

#[test]
fn one_row_is_copied_and_the_mean_of_several_matches_f64() {
    let stream = Stream::cpu(Some(2)).unwrap();
    let layout = Layout::new(Segments::of_sequences([1, 2, 500, 33], ScoredRow::First));
    for hidden in [1, 17, 384] {
        let x = buffer(1, layout.num_tokens() * hidden);
        let values = x.host().unwrap();
        let mut out = zeros(4 * hidden);
        let first_rows = layout.cu_seqlens[..4].iter().map(|row| Span::whole(*row..row + 1));
        let first_rows: Vec<Span> = first_rows.collect();
        pool(&stream, &mut out, &x, (&first_rows[..]).into(), hidden).unwrap();
        for (out, start) in out.host().unwrap().chunks_exact(hidden).zip(&layout.cu_seqlens) {
            assert_same_bits("first row", out, &values[start * hidden..(start + 1) * hidden]);
        }
        pool(&stream, &mut out, &x, (&layout.spans[..]).into(), hidden).unwrap();
        for (out, span) in out.host().unwrap().chunks_exact(hidden).zip(&layout.spans) {
            let column = |i: usize| span.queries.clone().map(move |row| f64::from(values[row * hidden + i]));
            let n = span.queries.len() as f64;
            let expected: Vec<f64> = (0..hidden).map(|i| column(i).sum::<f64>() / n).collect();
            assert_close("mean", out, &expected, |i| {
                (n + 1.0) * 2f64.powi(-24) * column(i).map(f64::abs).sum::<f64>() / n
            });
        }
    }
}

#[test]
fn a_span_without_rows_is_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let run = |rows: usize, out: usize, spans: &[Span]| {
        pool(&stream, &mut zeros(4 * out), &zeros(4 * rows), spans.into(), 4)
    };
    assert!(matches!(
        run(3, 3, &[Span::whole(0..2), Span::whole(2..2), Span::whole(2..3)]),
        Err(Error::Parameter { parameter: "spans", found: 1, .. })
    ));
    let spans = [Span::whole(0..2), Span::whole(2..4)];
    assert!(matches!(run(3, 3, &spans), Err(Error::Length { operand: "x", expected: 16, found: 12, .. })));
    assert!(matches!(run(4, 1, &spans), Err(Error::Length { operand: "out", expected: 8, found: 4, .. })));
    assert!(run(4, 2, &spans).is_ok());
}
