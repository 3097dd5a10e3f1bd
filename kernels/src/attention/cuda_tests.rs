//! The CUDA kernels against the formula in f64, and against one another to the bit.

use super::{AttentionParams, Mask, Rows, Span, attention};
use crate::indices::{IndexBuffer, Spans};
use crate::layout::TILE_ROWS;
use crate::params::narrow;
use crate::test_checks::indices;
use crate::test_devices::{OPERAND_TYPES, device, is_hopper, under_schedules};
use crate::testing::values;
use crate::{Buffer, ElementType, Error, Role, Size, Stream};

/// Spans and what is asked of them.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) params: AttentionParams,
    /// Rows of the prefix, of the other keys, and of the queries, which are the last of those keys.
    pub(super) lengths: Vec<[usize; 3]>,
    /// Whether the first span's prefix is that of all.
    pub(super) shares_prefix: bool,
}

/// A fused q | k | v matrix as the device has it, rows that belong to no span NaN.
pub(super) struct Inputs {
    pub(super) qkv: Buffer,
    pub(super) values: Vec<f32>,
    pub(super) spans: Vec<Span>,
    pub(super) num_rows: usize,
}

/// How a call learns its spans.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lists {
    /// Cut into tiles, their number by value.
    Tiled,
    /// Cut into tiles, their number in device memory and larger numbers possible.
    TiledOfAtMost(usize),
    /// One query each.
    Single,
}

pub(super) fn params(num_heads: usize, num_kv_heads: usize, head_dim: usize, mask: Mask) -> AttentionParams {
    let softmax_scale = (head_dim as f32).powf(-0.5);
    AttentionParams { num_heads, num_kv_heads, head_dim, softmax_scale, mask, softcap: None }
}

pub(super) fn case(name: &'static str, params: AttentionParams, lengths: &[[usize; 3]]) -> Case {
    Case { name, params, lengths: lengths.to_vec(), shares_prefix: true }
}

pub(super) fn capped(softcap: f32, params: AttentionParams) -> AttentionParams {
    AttentionParams { softcap: Some(softcap), ..params }
}

pub(super) fn stride(p: AttentionParams) -> usize {
    (p.num_heads + 2 * p.num_kv_heads) * p.head_dim
}

/// q, k, v as columns of one matrix.
fn views(qkv: &Buffer, p: AttentionParams) -> [Rows<'_>; 3] {
    let (q, kv) = (p.num_heads * p.head_dim, p.num_kv_heads * p.head_dim);
    [0, q, q + kv].map(|column| Rows { buffer: qkv, stride: stride(p), column })
}

impl Inputs {
    pub(super) fn new(stream: &Stream, case: &Case) -> Result<Self, Error> {
        let stride = stride(case.params);
        let (mut spans, mut num_rows, mut prefix) = (Vec::<Span>::new(), 1, 0..0);
        let mut is_used = vec![false];
        let mut take = |len: usize| {
            let rows = num_rows..num_rows + len;
            is_used.resize(rows.end, true);
            // A row between the runs that nobody may read.
            is_used.push(false);
            num_rows = rows.end + 1;
            rows
        };
        for [prefix_len, num_keys, num_queries] in case.lengths.iter().copied() {
            if spans.is_empty() || !case.shares_prefix {
                prefix = take(prefix_len);
            }
            let rows = take(num_keys.max(num_queries));
            let queries = rows.start + num_keys.saturating_sub(num_queries)..rows.end;
            let keys = rows.start..rows.start + num_keys;
            spans.push(Span { queries, prefix: prefix.start..prefix.start + prefix_len, keys });
        }
        // Wide enough for weights that differ by orders of magnitude.
        let mut wanted: Vec<f32> = values(7, num_rows * stride).iter().map(|x| 3.0 * x).collect();
        for (row, elements) in wanted.chunks_exact_mut(stride).enumerate() {
            if !is_used[row] {
                elements.fill(f32::NAN);
            }
        }
        let [mut qkv] = Buffer::allocate(stream, [(Role::Operand, wanted.len())])?;
        qkv.write(&wanted)?;
        let values = qkv.read(wanted.len())?;
        Ok(Self { qkv, values, spans, num_rows })
    }

    /// `out`, all of whose rows were NaN.
    pub(super) fn attend(
        &self,
        stream: &Stream,
        spans: &[Span],
        p: AttentionParams,
        lists: Lists,
    ) -> Result<Vec<f32>, Error> {
        attend(stream, &self.qkv, self.num_rows, spans, p, lists)
    }
}

pub(super) fn attend(
    stream: &Stream,
    qkv: &Buffer,
    num_rows: usize,
    spans: &[Span],
    p: AttentionParams,
    lists: Lists,
) -> Result<Vec<f32>, Error> {
    let hidden = p.num_heads * p.head_dim;
    let [mut out] = Buffer::allocate(stream, [(Role::Operand, num_rows * hidden)])?;
    out.write(&vec![f32::NAN; num_rows * hidden])?;

    let address = |list: &IndexBuffer| list.view(Size::from(0)).address();
    let words = |range: &std::ops::Range<usize>| [narrow(range.start), narrow(range.len())];
    let span_words: Vec<u32> =
        spans.iter().flat_map(|s| [words(&s.queries), words(&s.prefix), words(&s.keys)].concat()).collect();
    // The last span first, as nothing says in which order spans come.
    let (mut tiles, mut work): (Vec<[u32; 3]>, _) = (Vec::new(), 0);
    for (i, span) in spans.iter().enumerate().rev() {
        for block in 0..span.queries.len().div_ceil(TILE_ROWS) {
            tiles.push([narrow(i), narrow(block), work]);
            // A bad estimate of some, which is to change nothing but who does them.
            work += 1 + narrow(span.num_keys() % 5);
        }
    }
    let num_tiles = tiles.len();
    tiles.push([0, 0, work]);
    let (span_list, tile_list) = (indices(stream, &span_words)?, indices(stream, tiles.as_flattened())?);
    let counts = indices(stream, &[narrow(num_tiles)])?;
    let num_tiles = match lists {
        Lists::TiledOfAtMost(bound) => Size::in_device_memory(num_tiles, bound, address(&counts)),
        _ => Size::from(num_tiles),
    };
    let (num_spans, at) = (Size::from(spans.len()), address(&span_list));
    let spans = match lists {
        Lists::Single => Spans::single(spans, at, num_spans),
        _ => Spans::tiled(spans, at, num_spans, address(&tile_list), num_tiles),
    };
    let [q, k, v] = views(qkv, p);
    attention(stream, &mut out, q, k, v, spans, p)?;
    out.read(num_rows * hidden)
}

/// For each element of `out` its value and the contract's bound; none where nothing is to be written.
fn expected(inputs: &Inputs, p: AttentionParams, operand_type: ElementType) -> Vec<Option<(f64, f64)>> {
    let (hidden, kv) = (p.num_heads * p.head_dim, p.num_kv_heads * p.head_dim);
    let (unit, smallest) = match operand_type {
        ElementType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        _ => (2f64.powi(-8), 0.0),
    };
    let head = |row: usize, column: usize| &inputs.values[row * stride(p) + column..][..p.head_dim];
    let mut out = vec![None; inputs.num_rows * hidden];
    for span in &inputs.spans {
        let rows: Vec<usize> = span.prefix.clone().chain(span.keys.clone()).collect();
        for (n, query) in span.queries.clone().enumerate() {
            let position = (rows.len() + n).wrapping_sub(span.queries.len());
            let seen = &rows[p.mask.visible(position, rows.len())];
            for h in 0..p.num_heads {
                let kv_column = hidden + h * p.num_kv_heads / p.num_heads * p.head_dim;
                let (mut logits, mut largest_sum) = (Vec::new(), 0f64);
                for row in seen {
                    let products = head(query, h * p.head_dim).iter().zip(head(*row, kv_column));
                    let products = products.map(|(q, k)| f64::from(*q) * f64::from(*k));
                    let (sum, sum_abs) = products.fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()));
                    let logit = sum * f64::from(p.softmax_scale);
                    let cap = |cap: f32| f64::from(cap) * (logit / f64::from(cap)).tanh();
                    logits.push(p.softcap.map_or(logit, cap));
                    largest_sum = largest_sum.max(sum_abs * f64::from(p.softmax_scale));
                }
                let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
                let (sum, n) = (weights.iter().sum::<f64>(), seen.len() as f64);
                let logit_error = (p.head_dim as f64 / 16.0 + 17.0) * 2f64.powi(-23) * largest_sum
                    + 6e-7 * p.softcap.map_or(0.0, f64::from);
                for c in 0..p.head_dim {
                    let v = seen.iter().map(|row| f64::from(head(*row, kv_column + kv)[c]));
                    let v_max = v.clone().map(f64::abs).fold(0.0, f64::max);
                    let value = v.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / sum;
                    let bound = v_max * (unit + 2.0 * logit_error + (n / 8.0 + 64.0) * 2f64.powi(-23))
                        + unit * value.abs()
                        + smallest * (n * v_max + 1.0);
                    out[query * hidden + h * p.head_dim + c] = Some((value, bound));
                }
            }
        }
    }
    out
}

/// Compares with f64; also that nothing else is written.
pub(super) fn compare(stream: &Stream, operand_type: ElementType, case: &Case) -> Result<(), String> {
    let failed = |error: Error| format!("{}: {error}", case.name);
    let inputs = Inputs::new(stream, case).map_err(failed)?;
    let out = inputs.attend(stream, &inputs.spans, case.params, Lists::Tiled).map_err(failed)?;
    let expected = expected(&inputs, case.params, operand_type);
    for (i, (got, expected)) in out.iter().zip(expected).enumerate() {
        let is_right = match expected {
            Some((value, bound)) => (f64::from(*got) - value).abs() <= bound,
            None => got.is_nan(),
        };
        if !is_right {
            return Err(format!("{}: element {i} is {got}, expected {expected:?}", case.name));
        }
    }
    single_queries(stream, case, &inputs, &out).map_err(|error| format!("{}: {error}", case.name))
}

/// Some queries of every span as spans of their own: the other kernel, the same bits.
fn single_queries(stream: &Stream, case: &Case, inputs: &Inputs, out: &[f32]) -> Result<(), String> {
    let hidden = case.params.num_heads * case.params.head_dim;
    let mut singles: Vec<Span> = Vec::new();
    for span in &inputs.spans {
        let len = span.queries.len();
        let mut picked = vec![0, len / 2, len.saturating_sub(1)];
        picked.dedup();
        for n in picked.into_iter().filter(|n| *n < len) {
            let query = span.queries.start + n;
            // What comes after a causal query it does not see.
            let unseen = if case.params.mask == Mask::Full { 0 } else { len - 1 - n };
            let num_keys = span.num_keys() - unseen;
            let prefix_len = num_keys.min(span.prefix.len());
            singles.push(Span {
                queries: query..query + 1,
                prefix: span.prefix.start..span.prefix.start + prefix_len,
                keys: span.keys.start..span.keys.start + num_keys - prefix_len,
            });
        }
    }
    let rows = inputs
        .attend(stream, &singles, case.params, Lists::Single)
        .map_err(|error| format!("single queries: {error}"))?;
    for (row, elements) in rows.chunks_exact(hidden).enumerate() {
        let is_single = singles.iter().any(|span| span.queries.start == row);
        let wanted = if is_single { &out[row * hidden..(row + 1) * hidden] } else { &vec![f32::NAN; hidden] };
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        if !elements.iter().zip(wanted).all(same) {
            return Err(format!("row {row} as a single query has other bits"));
        }
    }
    Ok(())
}

/// Every mask and head width, prefixes, grouped heads, caps; more items than an emulated device takes at a time.
pub(super) fn small_cases() -> Vec<Case> {
    let causal = |num_heads, num_kv_heads, head_dim| params(num_heads, num_kv_heads, head_dim, Mask::Causal);
    let window = |window, num_heads, head_dim| params(num_heads, 1, head_dim, Mask::Window(window));
    vec![
        case(
            "full",
            params(3, 3, 64, Mask::Full),
            &[[0, 1, 1], [0, 2, 2], [0, 64, 64], [0, 65, 65], [0, 130, 130]],
        ),
        case("full, few queries and few keys", params(2, 1, 32, Mask::Full), &[[40, 70, 5], [40, 3, 70]]),
        case("causal", causal(4, 2, 64), &[[0, 17, 17], [0, 0, 0], [0, 64, 64], [0, 129, 129]]),
        case("window of 1", window(1, 2, 32), &[[0, 70, 70], [0, 1, 1]]),
        case("window of 40", window(40, 1, 64), &[[0, 150, 150], [0, 33, 33]]),
        case("window of 64, behind a prefix", window(64, 1, 32), &[[64, 80, 80], [64, 1, 1]]),
        case("wide window, cap", capped(30.0, window(100, 1, 128)), &[[0, 180, 180]]),
        case("prefix", causal(2, 1, 64), &[[40, 90, 90], [40, 1, 1], [40, 24, 20]]),
        case("prefix of blocks", causal(2, 2, 32), &[[128, 70, 70], [128, 64, 64]]),
        case("prefix, cap, widest heads", capped(50.0, causal(4, 2, 256)), &[[66, 70, 70], [66, 1, 1]]),
        case("heads of 16", params(3, 3, 16, Mask::Full), &[[0, 70, 70], [0, 3, 3]]),
        case("heads of 40", causal(4, 2, 40), &[[0, 66, 66]]),
        case("heads of 80", params(2, 2, 80, Mask::Full), &[[0, 66, 66]]),
        case("heads of 136", causal(2, 1, 136), &[[0, 66, 66]]),
        case("tight cap", capped(0.5, causal(2, 1, 64)), &[[0, 70, 70]]),
        case("20 query heads of one", causal(20, 1, 32), &[[0, 66, 66]]),
    ]
}

/// A representative set on `stream`; says what is wrong first.
pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    let Stream::Cuda(cuda) = stream else { return Ok(()) };
    small_cases().iter().try_for_each(|case| compare(stream, cuda.operand_type(), case))
}

#[test]
fn small_shapes_match_f64_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules(operand_type, |stream| check(stream).unwrap());
    }
}

#[test]
fn every_instance_matches_f64() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device(operand_type) else { return };
        for head_dim in [32, 64, 128, 256] {
            for softcap in [None, Some(20.0)] {
                let p = AttentionParams { softcap, ..params(2, 1, head_dim, Mask::Causal) };
                let p = AttentionParams { softmax_scale: 2.0 * p.softmax_scale, ..p };
                compare(&stream, operand_type, &case("instance", p, &[[0, 200, 200], [0, 90, 90]])).unwrap();
            }
        }
        let large = AttentionParams { softmax_scale: 10.0, ..params(1, 1, 64, Mask::Full) };
        compare(&stream, operand_type, &case("large scores", large, &[[0, 150, 150]])).unwrap();
        let long = params(2, 1, 64, Mask::Window(300));
        compare(&stream, operand_type, &case("many blocks", long, &[[50, 650, 650]])).unwrap();
    }
}

/// Launches are laid out for the largest batch; what a batch has of it is read from device memory.
#[test]
fn numbers_in_device_memory_and_by_value_give_the_same_bits() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device(operand_type) else { return };
        let p = params(2, 1, 64, Mask::Causal);
        let case = case("sizes", p, &[[0, 100, 100], [0, 65, 65], [0, 3, 3]]);
        let inputs = Inputs::new(&stream, &case).unwrap();
        let run = |spans: &[Span], lists| inputs.attend(&stream, spans, p, lists).unwrap();
        let by_value = run(&inputs.spans, Lists::Tiled);
        for bound in [5, 1000] {
            let from_memory = run(&inputs.spans, Lists::TiledOfAtMost(bound));
            assert_same("from memory", &from_memory, &by_value);
        }
        // Nothing to do, by either way.
        for lists in [Lists::Tiled, Lists::TiledOfAtMost(7), Lists::Single] {
            assert!(run(&[], lists).iter().all(|x| x.is_nan()));
        }
    }
}

/// Alone, with its prefix in front of it as keys of its own and other tiles than in the batch. (On Hopper keys of a prefix are in blocks
/// of their own: `hopper_tests` has what holds there.)
#[test]
fn a_span_has_the_same_bits_alone_and_in_any_batch() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device(operand_type) else { return };
        if is_hopper(&stream) {
            eprintln!("SKIPPED: the GPU is one of Hopper's");
            return;
        }
        for mask in [Mask::Causal, Mask::Window(70)] {
            let p = params(2, 1, 32, mask);
            let (hidden, stride) = (2 * 32, stride(p));
            let case = case("batch", p, &[[40, 100, 100], [40, 1, 1], [40, 70, 33], [40, 24, 24]]);
            let inputs = Inputs::new(&stream, &case).unwrap();
            let batch = inputs.attend(&stream, &inputs.spans, p, Lists::Tiled).unwrap();
            for span in &inputs.spans {
                let rows: Vec<usize> = span.prefix.clone().chain(span.keys.clone()).collect();
                let values: Vec<f32> =
                    rows.iter().flat_map(|row| inputs.values[row * stride..][..stride].to_vec()).collect();
                let [mut qkv] = Buffer::allocate(&stream, [(Role::Operand, values.len())]).unwrap();
                qkv.write(&values).unwrap();
                let whole = [Span::whole(0..rows.len())];
                let alone = attend(&stream, &qkv, rows.len(), &whole, p, Lists::Tiled).unwrap();
                let num_queries = span.queries.len();
                assert_same(
                    "alone",
                    &alone[(rows.len() - num_queries) * hidden..],
                    &batch[span.queries.start * hidden..span.queries.end * hidden],
                );
            }
        }
    }
}

#[test]
fn a_window_beyond_every_span_is_none() {
    let Some(stream) = device(ElementType::F16) else { return };
    let p = params(2, 1, 64, Mask::Causal);
    let inputs = Inputs::new(&stream, &case("", p, &[[30, 100, 100], [30, 7, 7]])).unwrap();
    let causal = inputs.attend(&stream, &inputs.spans, p, Lists::Tiled).unwrap();
    for window in [130, 4096, 1 << 31, usize::MAX] {
        let p = AttentionParams { mask: Mask::Window(window), ..p };
        let out = inputs.attend(&stream, &inputs.spans, p, Lists::Tiled).unwrap();
        assert_same("window", &out, &causal);
    }
}

#[test]
fn operands_that_the_kernels_do_not_take_are_refused() {
    let Some(stream) = device(ElementType::BF16) else { return };
    let p = params(1, 1, 64, Mask::Full);
    let spans = [Span::whole(0..4)];
    let operand =
        |len| Buffer::allocate(&stream, [(Role::Operand, len)]).unwrap().into_iter().next().unwrap();
    let full = |len| Buffer::allocate(&stream, [(Role::Full, len)]).unwrap().into_iter().next().unwrap();
    let (mut out, wide) = (operand(4 * 64), operand(4 * 200));
    let rows = |column| Rows { buffer: &wide, stride: 200, column };
    let span_list = indices(&stream, &[0, 4, 0, 0, 0, 4]).unwrap();
    let listed = Spans::single(&spans, span_list.view(Size::from(6)).address(), Size::from(1));
    let mut refused = |q, k, v, name: &str| {
        let result = attention(&stream, &mut out, q, k, v, listed, p);
        assert!(
            matches!(result, Err(Error::Parameter { parameter, .. }) if parameter == name),
            "{name}: {result:?}"
        );
    };
    refused(rows(0), rows(4), rows(128), "k");
    let odd = operand(4 * 196);
    refused(Rows { buffer: &odd, stride: 196, column: 0 }, rows(64), rows(128), "q");
    refused(rows(0), rows(64), Rows { buffer: &wide, stride: 192, column: 128 }, "v");
    let float = full(4 * 200);
    refused(rows(0), rows(64), Rows { buffer: &float, stride: 200, column: 0 }, "v");
    let [q, k, v] = [rows(0), rows(64), rows(128)];
    let result = attention(&stream, &mut full(256), q, k, v, listed, p);
    assert!(matches!(result, Err(Error::Parameter { parameter: "out", .. })));
    let uncapped = AttentionParams { softcap: Some(0.0), ..p };
    let result = attention(&stream, &mut operand(256), q, k, v, listed, uncapped);
    assert!(matches!(result, Err(Error::NotPositive { parameter: "softcap", .. })), "{result:?}");
    // A list that was never sent.
    let result = attention(&stream, &mut operand(256), q, k, v, Spans::from(spans.as_slice()), p);
    assert!(matches!(result, Err(Error::Device(_))), "{result:?}");
}

#[track_caller]
pub(super) fn assert_same(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}: length");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "{what}: element {i} is {a} and {b}");
    }
}

#[test]
fn no_bank_conflicts_in_reading_operands() {
    for operand_type in OPERAND_TYPES {
        crate::test_devices::without_bank_conflicts(operand_type, |stream| check(stream).unwrap());
    }
}
