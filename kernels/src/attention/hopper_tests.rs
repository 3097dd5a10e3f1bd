//! attention_hopper.cu behind its launch code, against f64 and against itself to the bit.

use super::cuda_tests::{
    Case, Inputs, Lists, assert_same, attend, capped, case, compare, params, small_cases, stride,
};
use super::hopper::instances;
use super::{AttentionParams, Mask, Span};
use crate::test_devices::{HOPPER, OPERAND_TYPES, device_of, is_hopper, under_schedules_on};
use crate::{Buffer, ElementType, Role, Stream};

/// What the portable kernels' cases lack: groups whose keys stay in shared memory for several rounds of tiles, and groups whose keys do
/// not fit; so many groups that a ring comes round; heads packed and not, in packs that are not all that share keys.
fn own_cases() -> Vec<Case> {
    let causal = |num_heads, num_kv_heads, head_dim| params(num_heads, num_kv_heads, head_dim, Mask::Causal);
    vec![
        case(
            "resident",
            params(1, 1, 64, Mask::Full),
            &[[0, 450, 450], [0, 70, 70], [0, 3, 3], [0, 200, 200]],
        ),
        case("rounds", params(6, 6, 128, Mask::Full), &[[0, 200, 200]]),
        case("streaming", params(1, 1, 64, Mask::Full), &[[0, 800, 300]]),
        case("streaming, causal, packed", causal(4, 1, 128), &[[30, 330, 330], [30, 90, 90]]),
        case("streaming, widest", capped(30.0, causal(4, 2, 256)), &[[70, 190, 190], [70, 20, 20]]),
        case("window, many groups", params(1, 1, 128, Mask::Window(60)), &[[0, 600, 600]]),
        case("window, streaming", params(2, 1, 256, Mask::Window(90)), &[[0, 330, 330]]),
        case("packs of 2 of 6", causal(6, 1, 64), &[[10, 100, 100], [10, 40, 40]]),
        case("packs of 64", params(64, 1, 32, Mask::Full), &[[0, 70, 5]]),
    ]
}

/// A representative set on `stream`; says what is wrong first.
pub(crate) fn check(stream: &Stream) -> Result<(), String> {
    let Stream::Cuda(cuda) = stream else { return Ok(()) };
    let representative = [
        "full",
        "prefix",
        "window of 40",
        "rounds",
        "window, many groups",
        "window, streaming",
        "packs of 2 of 6",
        "packs of 64",
    ];
    let cases = small_cases().into_iter().chain(own_cases());
    let mut chosen = cases.filter(|case| representative.contains(&case.name));
    chosen.try_for_each(|case| compare(stream, cuda.operand_type(), &case))
}

#[test]
fn shapes_match_f64_under_every_schedule() {
    for operand_type in OPERAND_TYPES {
        under_schedules_on(HOPPER, operand_type, |stream| {
            for case in small_cases().into_iter().chain(own_cases()) {
                compare(stream, operand_type, &case).unwrap();
            }
        });
    }
}

#[test]
fn every_instance_matches_f64() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device_of(HOPPER, operand_type) else { return };
        if !is_hopper(&stream) {
            eprintln!("SKIPPED: the GPU is none of Hopper's, or OUTCROP_PORTABLE_KERNELS is set");
            return;
        }
        for head_dim in [32, 64, 128, 256] {
            for softcap in [None, Some(20.0)] {
                let p = AttentionParams { softcap, ..params(2, 1, head_dim, Mask::Causal) };
                let p = AttentionParams { softmax_scale: 2.0 * p.softmax_scale, ..p };
                compare(&stream, operand_type, &case("instance", p, &[[0, 200, 200], [0, 90, 90]])).unwrap();
            }
        }
        let loaded = stream.loaded_kernels();
        let prefix = format!("attention_hopper<{}, ", crate::device::cpp_name(operand_type));
        for instance in instances().iter().filter(|instance| instance.name.starts_with(&prefix)) {
            assert!(
                loaded.iter().any(|kernel| kernel.name == instance.name),
                "{} was not run",
                instance.name
            );
        }
    }
}

/// Beside others, with its prefix elsewhere, alone, and its tiles on other blocks of the device.
#[test]
fn a_span_has_the_same_bits_alone_and_in_any_batch() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device_of(HOPPER, operand_type) else { return };
        for (p, lengths) in [
            (params(2, 1, 64, Mask::Causal), [[40, 100, 100], [40, 1, 1], [40, 70, 33], [40, 24, 24]]),
            (params(2, 1, 256, Mask::Window(70)), [[66, 300, 300], [66, 5, 5], [66, 70, 33], [66, 60, 60]]),
            (params(3, 3, 64, Mask::Full), [[0, 300, 300], [0, 1, 1], [0, 130, 70], [0, 64, 64]]),
        ] {
            let (hidden, stride) = (p.num_heads * p.head_dim, stride(p));
            let inputs = Inputs::new(&stream, &case("batch", p, &lengths)).unwrap();
            let batch = inputs.attend(&stream, &inputs.spans, p, Lists::Tiled).unwrap();
            for span in &inputs.spans {
                let rows: Vec<usize> = span.prefix.clone().chain(span.keys.clone()).collect();
                let values: Vec<f32> =
                    rows.iter().flat_map(|row| inputs.values[row * stride..][..stride].to_vec()).collect();
                let [mut qkv] = Buffer::allocate(&stream, [(Role::Operand, values.len())]).unwrap();
                qkv.write(&values).unwrap();
                let keys = span.prefix.len()..rows.len();
                let num_queries = span.queries.len();
                let alone =
                    Span { queries: rows.len() - num_queries..rows.len(), prefix: 0..keys.start, keys };
                let spans = std::slice::from_ref(&alone);
                let out = attend(&stream, &qkv, rows.len(), spans, p, Lists::Tiled).unwrap();
                assert_same(
                    "alone",
                    &out[alone.queries.start * hidden..],
                    &batch[span.queries.start * hidden..span.queries.end * hidden],
                );
            }
        }
    }
}

/// Rows behind a span's last key are none of its own, whatever they hold: here the largest numbers and NaN.
#[test]
fn what_stands_behind_a_span_does_not_reach_it() {
    let Some(stream) = device_of(HOPPER, ElementType::F16) else { return };
    for (p, lengths) in [
        (params(2, 2, 64, Mask::Full), [[0, 70, 70]]),
        (params(2, 1, 128, Mask::Causal), [[30, 100, 100]]),
        (params(4, 1, 256, Mask::Causal), [[70, 3, 3]]),
    ] {
        let mut inputs = Inputs::new(&stream, &case("", p, &lengths)).unwrap();
        let out = inputs.attend(&stream, &inputs.spans, p, Lists::Tiled).unwrap();
        let (stride, span) = (stride(p), inputs.spans[0].clone());
        for (row, elements) in inputs.values.chunks_exact_mut(stride).enumerate() {
            let is_used = span.prefix.contains(&row) || span.keys.contains(&row);
            if !is_used {
                elements
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, x)| *x = if i % 2 == 0 { f32::INFINITY } else { -6e4 });
            }
        }
        let values = inputs.values.clone();
        inputs.qkv.write(&values).unwrap();
        assert_same("other rows", &inputs.attend(&stream, &inputs.spans, p, Lists::Tiled).unwrap(), &out);
    }
}

#[test]
fn numbers_in_device_memory_and_by_value_give_the_same_bits() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device_of(HOPPER, operand_type) else { return };
        let p = params(2, 1, 64, Mask::Causal);
        let inputs =
            Inputs::new(&stream, &case("sizes", p, &[[0, 100, 100], [0, 65, 65], [0, 3, 3]])).unwrap();
        let run = |spans: &[Span], lists| inputs.attend(&stream, spans, p, lists).unwrap();
        let by_value = run(&inputs.spans, Lists::Tiled);
        for bound in [5, 1000] {
            assert_same("from memory", &run(&inputs.spans, Lists::TiledOfAtMost(bound)), &by_value);
        }
        for lists in [Lists::Tiled, Lists::TiledOfAtMost(7), Lists::Single] {
            assert!(run(&[], lists).iter().all(|x| x.is_nan()));
        }
    }
}

#[test]
fn no_bank_conflicts_in_reading_queries() {
    for operand_type in OPERAND_TYPES {
        crate::test_devices::without_bank_conflicts_on(HOPPER, operand_type, |stream| {
            compare(stream, operand_type, &case("", params(2, 1, 64, Mask::Causal), &[[0, 100, 100]]))
                .unwrap();
        });
    }
}
