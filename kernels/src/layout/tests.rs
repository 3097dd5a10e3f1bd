use std::ops::Range;

use super::{Before, Bounds, Layout, LayoutBuffer, ScoredRow, Segment, Segments};
use crate::attention::Span;
use crate::token_compress::Compress;
use crate::{Error, Stream};

fn segment(query: usize, passage: usize, prompt: usize, before: Before) -> Segment {
    Segment { parts: Compress { query, passage, prompt }, before, is_scored: true }
}

/// Rows that several sequences begin with.
fn prefix(rows: usize) -> Segment {
    Segment { is_scored: false, ..segment(rows, 0, 0, Before::Nothing) }
}

fn layout(segments: &[Segment]) -> Layout {
    Layout::new(segments_of(segments))
}

fn segments_of(segments: &[Segment]) -> Segments {
    let segments = segments.to_vec();
    Segments { segments, carried_rows: 0, kept_segment: None, scored_row: ScoredRow::Last }
}

fn span(queries: Range<usize>, prefix: Range<usize>) -> Span {
    Span { keys: queries.clone(), queries, prefix }
}

#[test]
fn a_prefix_stands_once_before_its_sequences() {
    let layout = layout(&[
        prefix(3),
        segment(0, 4, 2, Before::Segment(0)),
        segment(0, 0, 2, Before::Segment(0)),
        prefix(2),
        segment(0, 1, 1, Before::Segment(3)),
    ]);
    assert_eq!(layout.cu_seqlens, [0, 3, 9, 11, 13, 15]);
    assert_eq!(layout.position_ids, [0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 4, 0, 1, 2, 3]);
    let expected =
        [span(0..3, 0..0), span(3..9, 0..3), span(9..11, 0..3), span(11..13, 0..0), span(13..15, 11..13)];
    assert_eq!(layout.spans, expected);
    assert_eq!(layout.scored_rows, [8, 10, 14]);
    assert_eq!(layout.scored_position_ids, [8, 4, 3]);
    let scored = |nth, prefix, keys| Span { queries: nth..nth + 1, prefix, keys };
    let expected = [scored(0, 0..3, 3..9), scored(1, 0..3, 9..11), scored(2, 11..13, 13..15)];
    assert_eq!(layout.scored_spans, expected);
    assert_eq!(layout.kept_rows, 0..0);
    assert_eq!((layout.num_seqs(), layout.num_tokens()), (3, 15));
    assert_eq!((layout.segments.num_seqs(), layout.segments.num_tokens()), (3, 15));
    assert_eq!(layout.segments.seqlens().collect::<Vec<_>>(), [9, 5, 4]);
}

#[test]
fn a_carried_prefix_stands_behind_the_rows_and_a_kept_one_among_them() {
    let segments = Segments {
        carried_rows: 3,
        kept_segment: Some(1),
        ..segments_of(&[segment(0, 4, 2, Before::Carried), prefix(2), segment(0, 1, 1, Before::Segment(1))])
    };
    let layout = Layout::new(segments.clone());
    assert_eq!(layout.position_ids, [3, 4, 5, 6, 7, 8, 0, 1, 2, 3]);
    assert_eq!(layout.spans, [span(0..6, 10..13), span(6..8, 0..0), span(8..10, 6..8)]);
    assert_eq!(layout.scored_spans[0], Span { queries: 0..1, prefix: 10..13, keys: 0..6 });
    assert_eq!(layout.kept_rows, 6..8);
    assert_eq!(segments.seqlens().collect::<Vec<_>>(), [9, 4]);

    // Four rows of passage become two, and all that stands behind them moves up.
    let compressed = segments.compressed(2);
    assert_eq!(compressed.segments[0].parts, Compress { query: 0, passage: 2, prompt: 2 });
    assert_eq!((compressed.carried_rows, compressed.kept_segment), (3, Some(1)));
    let layout = Layout::new(compressed);
    assert_eq!(layout.cu_seqlens, [0, 4, 6, 8]);
    assert_eq!(layout.position_ids, [3, 4, 5, 6, 0, 1, 2, 3]);
    assert_eq!(layout.kept_rows, 4..6);
    assert_eq!(layout.spans, [span(0..4, 8..11), span(4..6, 0..0), span(6..8, 4..6)]);
    assert_eq!(layout.scored_rows, [3, 7]);
    assert_eq!(layout.scored_position_ids, [6, 3]);
    assert_eq!(layout.segments.seqlens().collect::<Vec<_>>(), [7, 4]);
}

#[test]
fn whole_sequences_are_scored_by_their_first_or_last_row() {
    for (scored_row, rows, position_ids) in
        [(ScoredRow::First, [0, 3, 4], [0, 0, 0]), (ScoredRow::Last, [2, 3, 8], [2, 0, 4])]
    {
        let layout = Layout::new(Segments::of_sequences([3, 1, 5], scored_row));
        assert_eq!(layout.cu_seqlens, [0, 3, 4, 9]);
        assert_eq!(layout.position_ids, [0, 1, 2, 0, 0, 1, 2, 3, 4]);
        assert_eq!(layout.spans, [span(0..3, 0..0), span(3..4, 0..0), span(4..9, 0..0)]);
        assert_eq!(layout.scored_rows, rows);
        assert_eq!(layout.scored_position_ids, position_ids);
        let scored = |nth, keys| Span { queries: nth..nth + 1, prefix: 0..0, keys };
        assert_eq!(layout.scored_spans, [scored(0, 0..3), scored(1, 3..4), scored(2, 4..9)]);
    }
    // Behind a prefix positions go on.
    let segments = segments_of(&[prefix(3), segment(0, 4, 2, Before::Segment(0))]);
    let layout = Layout::new(Segments { scored_row: ScoredRow::First, ..segments });
    assert_eq!((layout.scored_rows, layout.scored_position_ids), (vec![3], vec![3]));
}

#[test]
fn a_segment_without_rows_takes_no_room() {
    let nothing = Layout::new(Segments::of_sequences([], ScoredRow::Last));
    assert_eq!(nothing.cu_seqlens, [0]);
    assert_eq!((nothing.num_tokens(), nothing.num_seqs(), nothing.spans.len()), (0, 0, 0));

    let layout = layout(&[
        segment(0, 2, 0, Before::Nothing),
        prefix(0),
        segment(0, 3, 1, Before::Segment(1)),
        prefix(0),
        segment(1, 0, 0, Before::Nothing),
    ]);
    assert_eq!(layout.cu_seqlens, [0, 2, 2, 6, 6, 7]);
    assert_eq!(layout.position_ids, [0, 1, 0, 1, 2, 3, 0]);
    let expected = [span(0..2, 0..0), span(2..2, 0..0), span(2..6, 2..2), span(6..6, 0..0), span(6..7, 0..0)];
    assert_eq!(layout.spans, expected);
    assert_eq!(layout.scored_rows, [1, 5, 6]);
    assert_eq!(layout.scored_position_ids, [1, 3, 0]);
}

#[test]
fn passages_alone_are_compressed() {
    let segments = segments_of(&[
        prefix(5),
        segment(0, 7, 2, Before::Segment(0)),
        segment(4, 0, 3, Before::Nothing),
        segment(1, 1, 1, Before::Nothing),
    ]);
    for (ratio, passages) in [(0, [0, 7, 0, 1]), (1, [0, 7, 0, 1]), (2, [0, 4, 0, 1]), (8, [0, 1, 0, 1])] {
        let compressed = segments.compressed(ratio);
        for ((before, after), passage) in segments.segments.iter().zip(&compressed.segments).zip(passages) {
            assert_eq!(after, &Segment { parts: Compress { passage, ..before.parts }, ..*before });
        }
        let lengths = [5, passages[1] + 2, 7, 3];
        assert_eq!(compressed.num_tokens(), lengths.iter().sum::<usize>());
        assert_eq!(Layout::new(compressed).cu_seqlens[2], lengths[0] + lengths[1]);
    }
}

#[test]
fn a_buffer_shows_the_layout_it_was_given_and_its_compression() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let segments = Segments {
        carried_rows: 3,
        kept_segment: Some(1),
        ..segments_of(&[segment(0, 4, 2, Before::Carried), prefix(2), segment(0, 1, 1, Before::Segment(1))])
    };
    let mut buffer = LayoutBuffer::new(&stream, 16).unwrap();
    assert_eq!((buffer.tokens().get(), buffer.seqs().get()), (0, 0));
    let bounds = Bounds { tokens: 12, seqs: 4 };
    buffer.load(Layout::new(segments.clone()), bounds).unwrap();
    buffer.lay_out(&stream).unwrap();
    let mut compressed = LayoutBuffer::new(&stream, 16).unwrap();
    compressed.compress(&stream, &buffer, 2).unwrap();
    for (buffer, segments) in [(&buffer, segments.clone()), (&compressed, segments.compressed(2))] {
        let expected = Layout::new(segments);
        assert_eq!((buffer.host(), buffer.bounds()), (&expected, bounds));
        assert_eq!(buffer.tokens().get(), expected.num_tokens());
        assert_eq!(buffer.seqs().get(), 2);
        assert_eq!(buffer.kept_start().get(), expected.kept_rows.start);
        assert_eq!((buffer.kept_rows().get(), buffer.carried_rows().get()), (2, 3));
        assert_eq!(buffer.position_ids().host(), expected.position_ids);
        assert_eq!(buffer.position_ids().len().get(), expected.num_tokens());
        assert_eq!(buffer.scored_rows().host(), expected.scored_rows);
        assert_eq!(buffer.scored_position_ids().host(), expected.scored_position_ids);
        assert_eq!(buffer.scored_position_ids().len().get(), 2);
        assert_eq!(buffer.spans().host(), expected.spans);
        assert_eq!(buffer.scored_spans().host(), expected.scored_spans);
    }
}

#[test]
fn batches_beyond_the_capacity_or_their_bounds_are_refused() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let load = |capacity, lengths: &[usize], tokens, seqs| {
        let layout = Layout::new(Segments::of_sequences(lengths.iter().copied(), ScoredRow::First));
        LayoutBuffer::new(&stream, capacity).unwrap().load(layout, Bounds { tokens, seqs })
    };
    assert!(load(8, &[3, 5], 8, 2).is_ok());
    for (capacity, lengths, tokens, seqs, name) in [
        // More rows, larger bounds, more segments than there is room for.
        (7, &[3, 5][..], 7, 2, "capacity"),
        (8, &[3, 5], 9, 2, "capacity"),
        (2, &[1, 0, 0], 2, 3, "capacity"),
        (8, &[3, 5], 7, 2, "bounds.tokens"),
        (8, &[3, 5], 8, 1, "bounds.seqs"),
    ] {
        match load(capacity, lengths, tokens, seqs) {
            Err(Error::Length { operand, .. }) => assert_eq!(operand, name, "{lengths:?} in {capacity}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    // What was there stays.
    let mut buffer = LayoutBuffer::new(&stream, 4).unwrap();
    let [fits, does_not] =
        [[2, 1], [2, 3]].map(|lengths| Layout::new(Segments::of_sequences(lengths, ScoredRow::Last)));
    let bounds = Bounds { tokens: 4, seqs: 2 };
    buffer.load(fits.clone(), bounds).unwrap();
    assert!(buffer.load(does_not, bounds).is_err());
    assert_eq!((buffer.host(), buffer.bounds()), (&fits, bounds));
}

/// Segments without a row count too: a batch of no rows may have as many as there is room for.
#[test]
fn a_compression_needs_the_room_of_what_it_compresses() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let empty = Segment { is_scored: false, ..segment(0, 0, 0, Before::Nothing) };
    let mut buffer = LayoutBuffer::new(&stream, 16).unwrap();
    buffer.load(layout(&[empty; 16]), Bounds { tokens: 4, seqs: 0 }).unwrap();
    let refused = LayoutBuffer::new(&stream, 8).unwrap().compress(&stream, &buffer, 2);
    let Err(Error::Length { operand: "capacity", expected: 16, found: 8, .. }) = refused else {
        panic!("{refused:?}")
    };
    LayoutBuffer::new(&stream, 16).unwrap().compress(&stream, &buffer, 2).unwrap();
}
