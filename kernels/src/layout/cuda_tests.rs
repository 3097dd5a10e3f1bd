use super::cuda::TILE_WORDS;
use super::{
    Before, Bounds, Layout, LayoutBuffer, ScoredRow, Segment, Segments, TILE_ROWS, tiles, tiles_bound,
};
use crate::attention::Span;
use crate::params::narrow;
use crate::test_checks::{Checked, equal, in_words};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::token_compress::Compress;
use crate::{Graphs, Stream};

/// A batch of `n` segments drawn at random: prefixes, sequences behind them and alone, carried prefixes,
/// empty segments, one in ten of up to `long` rows.
pub(crate) fn random_segments(seed: u64, n: usize, long: usize, scored_row: ScoredRow) -> Segments {
    let random = values(seed, 8 * n);
    // A number in [1, 2) has 23 random bits of mantissa.
    let bits = |i: usize| ((1.5 + random[i] / 2.0).to_bits() & 0x7f_ffff) as usize;
    let below = |i: usize, bound: usize| (bits(i) * bound) >> 23;
    let mut prefixes = Vec::new();
    let mut segments = Vec::new();
    for i in 0..n {
        let at = 8 * i;
        if below(at, 8) == 0 {
            prefixes.push(i);
            let parts = Compress { query: below(at + 1, 20), passage: 0, prompt: 0 };
            segments.push(Segment { parts, before: Before::Nothing, is_scored: false });
            continue;
        }
        let before = match below(at + 2, 4) {
            0 => Before::Nothing,
            1 => Before::Carried,
            _ if prefixes.is_empty() => Before::Nothing,
            _ => Before::Segment(prefixes[below(at + 3, prefixes.len())]),
        };
        let passage = below(at + 4, if below(at + 5, 10) == 0 { long } else { 12 });
        let is_scored = below(at + 6, 5) > 0;
        // A scored segment has a row; another may have none.
        let parts = Compress { query: below(at + 7, 4), passage, prompt: usize::from(is_scored) };
        segments.push(Segment { parts, before, is_scored });
    }
    let kept_segment = prefixes.last().copied();
    Segments { segments, carried_rows: 9, kept_segment, scored_row }
}

/// What the device has worked out, against the layout on the host; beyond it nothing is written.
fn compare(stream: &Stream, what: &str, buffer: &LayoutBuffer, is_fresh: bool) -> Checked {
    let (Stream::Cuda(cuda), Some(on_device)) = (stream, &buffer.device) else {
        return Err("a CPU stream".into());
    };
    let (layout, capacity) = (buffer.host(), buffer.capacity);
    let words = |address: u64, len: usize| -> Checked<Vec<u32>> {
        let mut bytes = vec![0u8; 4 * len];
        cuda.device().download(address, &mut bytes)?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    };
    let compare = |list: &str, address: u64, expected: &[u32], room: usize| {
        let found = words(address, room)?;
        equal(&format!("{what}, {list}"), &found[..expected.len()], expected)?;
        // Memory of the emulator begins as NaNs, and a layout of one batch only ever grows into it.
        let beyond = &found[expected.len()..];
        match beyond.iter().position(|word| *word != u32::MAX) {
            Some(i) if is_fresh && stream.properties().is_some_and(|p| p.name == "emulator") => {
                Err(format!("{what}, {list}: entry {} beyond the end is written", expected.len() + i).into())
            }
            _ => Checked::Ok(()),
        }
    };

    let segments = &layout.segments;
    let num_tiles = layout.spans.iter().map(|span| span.queries.len().div_ceil(TILE_ROWS)).sum::<usize>();
    let kept = segments.kept_segment.map_or(u32::MAX, narrow);
    compare(
        "header",
        on_device.header,
        &[narrow(segments.segments.len()), narrow(segments.carried_rows), kept],
        3,
    )?;
    let kept_rows = &layout.kept_rows;
    let counts = [
        layout.num_tokens(),
        layout.num_seqs(),
        num_tiles,
        kept_rows.start,
        kept_rows.len(),
        segments.carried_rows,
    ];
    compare("counts", on_device.counts, &counts.map(narrow), 6)?;
    let cu_seqlens: Vec<u32> = layout.cu_seqlens.iter().map(|start| narrow(*start)).collect();
    compare("cu_seqlens", on_device.cu_seqlens, &cu_seqlens, capacity + 1)?;
    compare("position_ids", on_device.position_ids, &layout.position_ids, capacity)?;
    compare("spans", on_device.spans, &span_words(&layout.spans), 6 * capacity)?;
    let is_causal = layout.segments.scored_row == ScoredRow::Last;
    let tile_words = TILE_WORDS * (tiles_bound(capacity) + 1);
    compare("tiles", on_device.tiles, &tiles(&layout.spans, is_causal), tile_words)?;
    compare("scored_rows", on_device.scored_rows, &layout.scored_rows, capacity)?;
    compare("scored_position_ids", on_device.scored_position_ids, &layout.scored_position_ids, capacity)?;
    compare("scored_spans", on_device.scored_spans, &span_words(&layout.scored_spans), 6 * capacity)
}

fn span_words(spans: &[Span]) -> Vec<u32> {
    let words = |range: &std::ops::Range<usize>| [narrow(range.start), narrow(range.len())];
    spans.iter().flat_map(|span| [&span.queries, &span.prefix, &span.keys].map(words).concat()).collect()
}

/// Lays out a batch, then compresses it twice, back and forth between two buffers.
fn lay_out_and_compress(stream: &Stream, segments: Segments, ratios: [usize; 2]) -> Checked {
    let layout = Layout::new(segments);
    let capacity = layout.num_tokens().max(layout.segments.segments.len()) + 70;
    let what = format!("{} segments", layout.segments.segments.len());
    let mut first = LayoutBuffer::new(stream, capacity)?;
    let mut second = LayoutBuffer::new(stream, capacity)?;
    first.load(layout, Bounds { tokens: capacity, seqs: capacity })?;
    first.lay_out(stream)?;
    compare(stream, &what, &first, true)?;
    second.compress(stream, &first, ratios[0])?;
    compare(stream, &format!("{what}, compressed"), &second, true)?;
    first.compress(stream, &second, ratios[1])?;
    compare(stream, &format!("{what}, compressed twice"), &first, false)
}

fn small(stream: &Stream) -> Checked {
    for (seed, n) in [0, 1, 2, 31, 33, 200, 1025, 2500].into_iter().enumerate() {
        let scored_row = if n % 2 == 0 { ScoredRow::Last } else { ScoredRow::First };
        let ratios = [[2, 3], [1, 4], [1000, 1]][seed % 3];
        lay_out_and_compress(stream, random_segments(seed as u64 + 1, n, 300, scored_row), ratios)?;
    }
    Ok(())
}

pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    in_words(small(stream))
}

#[test]
fn random_batches_under_every_schedule() {
    under_schedules(OPERAND_TYPES[0], |stream| check(stream).unwrap());
}

#[test]
fn many_segments_and_long_ones() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    lay_out_and_compress(&stream, random_segments(1, 65_536, 30, ScoredRow::Last), [2, 2]).unwrap();
    let long = Segments::of_sequences([8192, 1, 40_000, 511], ScoredRow::First);
    lay_out_and_compress(&stream, long, [8, usize::MAX]).unwrap();
}

/// Launches recorded for one batch serve another within the same bounds.
#[test]
fn a_recording_lays_out_other_batches() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    let (bounds, mut graphs) = (Bounds { tokens: 4096, seqs: 512 }, Graphs::new(true));
    let mut buffers = [LayoutBuffer::new(&stream, 4096).unwrap(), LayoutBuffer::new(&stream, 4096).unwrap()];
    for (seed, n) in [(1, 5), (2, 200), (3, 40), (4, 0)] {
        let segments = random_segments(seed, n, 100, ScoredRow::Last);
        let [first, second] = &mut buffers;
        first.load(Layout::new(segments.clone()), bounds).unwrap();
        let launches = || {
            first.lay_out(&stream)?;
            second.compress(&stream, first, 2)
        };
        graphs.run::<crate::Error>(&stream, (), launches).unwrap();
        // A replay does not run the host's code: it is told here.
        second.layout = Layout::new(segments.compressed(2));
        compare(&stream, &format!("replay of {n}, as loaded"), first, false).unwrap();
        compare(&stream, &format!("replay of {n}, compressed"), second, false).unwrap();
    }
}
