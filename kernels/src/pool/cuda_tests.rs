use super::pool;
use crate::layout::{Bounds, Layout, LayoutBuffer, ScoredRow, Segments};
use crate::test_checks::{Checked, UNIT, close, fresh, in_words, operand, untouched};
use crate::test_devices::{OPERAND_TYPES, device, under_schedules};
use crate::testing::values;
use crate::{Role, Stream};

/// Pools sequences of these lengths, whole and by their gathered first rows, and compares with f64.
fn pool_both(stream: &Stream, lengths: &[usize], hidden: usize) -> Checked {
    let layout = Layout::new(Segments::of_sequences(lengths.iter().copied(), ScoredRow::First));
    let (tokens, n) = (layout.num_tokens(), lengths.len() * hidden);
    let mut device_layout = LayoutBuffer::new(stream, tokens + 9)?;
    device_layout.load(layout, Bounds { tokens: tokens + 9, seqs: lengths.len() + 1 })?;
    device_layout.lay_out(stream)?;
    let (device_x, x) = operand(stream, &values(1, tokens * hidden))?;

    let mut out = fresh(stream, Role::Full, n + hidden)?;
    pool(stream, &mut out, &device_x, device_layout.spans(), hidden)?;
    let out = out.read(n + hidden)?;
    let mut start = 0;
    for (span, len) in lengths.iter().enumerate() {
        let rows = &x[start * hidden..(start + len) * hidden];
        start += len;
        let column = |i: usize| rows.iter().skip(i).step_by(hidden).map(|x| f64::from(*x));
        let expected: Vec<f64> = (0..hidden).map(|i| column(i).sum::<f64>() / *len as f64).collect();
        let bound = |i: usize| {
            // One row is copied.
            if *len == 1 {
                0.0
            } else {
                (len + 1) as f64 * UNIT * column(i).map(f64::abs).sum::<f64>() / *len as f64
            }
        };
        close(&format!("span {span}, {len} x {hidden}"), &out[span * hidden..][..hidden], &expected, bound)?;
    }
    untouched("whole", &out[n..])?;

    let mut out = fresh(stream, Role::Full, n + hidden)?;
    pool(stream, &mut out, &device_x, device_layout.scored_spans(), hidden)?;
    let out = out.read(n + hidden)?;
    let firsts: Vec<f64> = x[..n].iter().map(|x| f64::from(*x)).collect();
    close("first rows", &out[..n], &firsts, |_| 0.0)?;
    untouched("first rows", &out[n..])
}

fn small(stream: &Stream) -> Checked {
    for hidden in [8, 72, 128, 1000] {
        pool_both(stream, &[1, 3, 17, 2], hidden)?;
    }
    // More spans than blocks.
    pool_both(stream, &[2; 100], 8)
}

pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    in_words(small(stream))
}

#[test]
fn small_shapes_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules(operand_type, |stream| check(stream).unwrap());
    }
}

#[test]
fn long_sequences() {
    for stream in OPERAND_TYPES.into_iter().filter_map(device) {
        pool_both(&stream, &[512, 1, 100, 33, 257], 768).unwrap();
    }
}
