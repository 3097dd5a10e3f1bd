use super::token_compress;
use crate::layout::cuda_tests::random_segments;
use crate::layout::{Bounds, Layout, LayoutBuffer, ScoredRow, Segments};
use crate::test_checks::{Checked, UNIT, close, fresh, in_words, untouched};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Buffer, Error, Role, Stream};

/// Compresses the rows of a batch and compares with f64.
fn compress(stream: &Stream, segments: Segments, ratio: usize, hidden: usize) -> Checked {
    let layout = Layout::new(segments);
    let capacity = layout.num_tokens().max(layout.segments.segments.len()) + 9;
    let mut before = LayoutBuffer::new(stream, capacity)?;
    let mut after = LayoutBuffer::new(stream, capacity)?;
    before.load(layout, Bounds { tokens: capacity, seqs: capacity })?;
    before.lay_out(stream)?;
    after.compress(stream, &before, ratio)?;
    let x = values(1, before.host().num_tokens() * hidden);
    let n = after.host().num_tokens() * hidden;
    let mut out = fresh(stream, Role::Full, n + hidden)?;
    let device_x = Buffer::upload(stream, &x)?;
    token_compress(stream, &mut out, &device_x, &before, &after, ratio, hidden)?;

    let out = out.read(n + hidden)?;
    let (mut expected, mut bounds) = (Vec::new(), Vec::new());
    let mut group = |rows: &[f32]| {
        let len = rows.len() / hidden;
        for i in 0..hidden {
            let column = || rows.iter().skip(i).step_by(hidden).map(|x| f64::from(*x));
            expected.push(column().sum::<f64>() / len as f64);
            let mean = column().map(f64::abs).sum::<f64>() / len as f64;
            bounds.push(if len == 1 { 0.0 } else { (len + 1) as f64 * UNIT * mean });
        }
    };
    let mut rows = &x[..];
    for segment in &before.host().segments.segments {
        for (part, merged) in
            [(segment.parts.query, 1), (segment.parts.passage, ratio), (segment.parts.prompt, 1)]
        {
            let (these, rest) = rows.split_at(part * hidden);
            rows = rest;
            these.chunks(merged.min(part.max(1)) * hidden).for_each(&mut group);
        }
    }
    let what = format!("{} segments by {ratio}, {hidden} wide", before.host().segments.segments.len());
    close(&what, &out[..n], &expected, |i| bounds[i])?;
    untouched(&what, &out[n..])
}

fn small(stream: &Stream) -> Checked {
    for (seed, n, ratio, hidden) in
        [(1, 1, 2, 8), (2, 2, 3, 72), (3, 9, 2, 1000), (4, 40, 4, 64), (5, 33, 1, 8), (6, 20, 1000, 128)]
    {
        compress(stream, random_segments(seed, n, 60, ScoredRow::Last), ratio, hidden)?;
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
fn wide_rows_many_segments_and_any_ratio() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    compress(&stream, random_segments(1, 12, 100, ScoredRow::Last), 2, 3584).unwrap();
    compress(&stream, random_segments(2, 1500, 12, ScoredRow::Last), 2, 8).unwrap();
    compress(&stream, random_segments(3, 12, 100, ScoredRow::Last), usize::MAX, 64).unwrap();
    let empty = compress(&stream, random_segments(1, 0, 1, ScoredRow::Last), 2, 64);
    empty.unwrap();
}

#[test]
fn layouts_of_the_host_are_refused() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    let cpu = Stream::cpu(Some(1)).unwrap();
    let layouts = [LayoutBuffer::new(&cpu, 8).unwrap(), LayoutBuffer::new(&stream, 8).unwrap()];
    let (mut out, x) = (fresh(&stream, Role::Full, 8).unwrap(), fresh(&stream, Role::Full, 8).unwrap());
    let refused = token_compress(&stream, &mut out, &x, &layouts[0], &layouts[1], 2, 8);
    assert!(matches!(refused, Err(Error::Device(_))));
}
