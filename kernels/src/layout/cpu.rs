//! One walk over the segments.

use super::{Before, Layout, ScoredRow, Segments};
use crate::attention::Span;
use crate::params::narrow;

pub(super) fn layout(segments: Segments) -> Layout {
    let num_tokens = segments.num_tokens();
    let mut cu_seqlens = vec![0];
    let mut position_ids = Vec::with_capacity(num_tokens);
    let mut spans: Vec<Span> = Vec::with_capacity(segments.segments.len());
    let (mut scored_rows, mut scored_position_ids, mut scored_spans) = (Vec::new(), Vec::new(), Vec::new());
    let mut start = 0;
    for segment in &segments.segments {
        let rows = start..start + segment.parts.len();
        start = rows.end;
        cu_seqlens.push(start);
        let prefix = match segment.before {
            Before::Nothing => 0..0,
            Before::Segment(i) => cu_seqlens[i]..cu_seqlens[i + 1],
            Before::Carried => num_tokens..num_tokens + segments.carried_rows,
        };
        position_ids.extend((prefix.len()..prefix.len() + rows.len()).map(narrow));
        if segment.is_scored {
            let row = match segments.scored_row {
                ScoredRow::First => rows.start,
                ScoredRow::Last => rows.end.saturating_sub(1),
            };
            let nth = scored_rows.len();
            scored_rows.push(narrow(row));
            scored_position_ids.push(narrow(prefix.len() + row.saturating_sub(rows.start)));
            scored_spans.push(Span { queries: nth..nth + 1, prefix: prefix.clone(), keys: rows.clone() });
        }
        spans.push(Span { queries: rows.clone(), prefix, keys: rows });
    }
    let kept_rows = segments.kept_segment.map_or(0..0, |i| cu_seqlens[i]..cu_seqlens[i + 1]);
    Layout {
        segments,
        cu_seqlens,
        position_ids,
        spans,
        scored_rows,
        scored_position_ids,
        scored_spans,
        kept_rows,
    }
}
