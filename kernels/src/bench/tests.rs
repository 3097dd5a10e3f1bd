use super::calls::{Call, Fused, Sequences};
use super::noise::Noise;
use super::{AttentionParams, Bench, Ceilings, Difference, Mask, Times};
use crate::profile::Detail;
use crate::test_devices::{OPERAND_TYPES, device};
use crate::{Buffer, Cost, ElementType, Graphs, Role, Stream};

/// A call of every kind that the stream has, as small as it may be.
fn tiny_calls(stream: &Stream) -> Vec<Call> {
    let sequences = Sequences { number: 3, len: 8, is_ragged: false };
    let (rows, width) = (5, 64);
    let params = AttentionParams {
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 32,
        softmax_scale: 0.2,
        mask: Mask::Causal,
        softcap: None,
    };
    let product = |name: &&str| Call::Gemm { m: 5, n: 64, k: 16, fused: Fused::named(name, 64).unwrap() };
    let mut calls: Vec<Call> = Fused::NAMES.iter().map(product).collect();
    // Queries and keys are rotated, values are not.
    calls.push(Call::Gemm { m: 5, n: 64, k: 16, fused: Fused::Rope { head_dim: 16, columns: 48 } });
    calls.retain(|call| matches!(stream, Stream::Cuda(_)) || call.is_on_cpu());
    calls.extend([
        Call::Attention { sequences, params },
        Call::Attention { sequences: Sequences { is_ragged: true, ..sequences }, params },
        Call::AttentionRow { sequences, params },
        Call::AddLayerNorm { rows, width },
        Call::RmsNorm { rows, width },
        Call::SandwichNorm { rows, width },
        Call::EmbedLayerNorm { rows, width },
        Call::Embed { rows, width },
        Call::GatherRows { rows, of: 20, width, is_full: false },
        Call::GatherRows { rows, of: 20, width, is_full: true },
        Call::RowDot { rows, width },
        Call::Pool { sequences, width },
        Call::L2Normalize { rows, width },
        Call::TokenCompress { sequences, width },
        Call::Layout { sequences },
        Call::CopyBlock { rows, width: 16, stride: 64 },
    ]);
    calls
}

/// Equal seeds give equal results, other seeds others, and all are finite: operands are filled, and the call does what it is named for.
fn every_call_runs(stream: &Stream) {
    let bench = Bench::new(stream, ElementType::F32).unwrap();
    for call in tiny_calls(stream) {
        let mut sets = bench.operands(call, &[1, 1, 2]).unwrap();
        let run = |set: &mut Box<dyn super::Launch>| {
            set.launch(stream).unwrap();
            set.outputs().unwrap().concat()
        };
        let [first, same, other] = [0, 1, 2].map(|i| run(&mut sets[i]));
        assert!(first == same, "{call:?}: equal seeds, other results");
        assert!(first.iter().all(|x| x.is_finite()), "{call:?}");
        if matches!(call, Call::Layout { .. }) {
            // A shape has one layout, and on the CPU none to look at.
            assert_eq!(first, other);
            assert_eq!(first.is_empty(), matches!(stream, Stream::Cpu(_)));
        } else {
            assert!(first != other, "{call:?}: other seeds, equal results");
        }
    }
}

#[test]
fn every_call_runs_on_the_cpu() {
    every_call_runs(&Stream::cpu(Some(2)).unwrap());
}

#[test]
fn every_call_runs_on_a_device() {
    for operand_type in OPERAND_TYPES {
        let Some(stream) = device(operand_type) else { return };
        every_call_runs(&stream);
    }
}

#[test]
fn times_are_of_one_launch_and_kernels_are_named() {
    let Some(stream) = device(ElementType::F16) else { return };
    let bench = Bench::new(&stream, ElementType::F32).unwrap();
    let mut prepared = bench.prepare(Call::L2Normalize { rows: 4, width: 64 }).unwrap();
    let kernels = bench.kernels(&mut prepared).unwrap();
    let kernel = &kernels[0];
    assert_eq!(
        (kernels.len(), &*kernel.name, kernel.path),
        (1, "l2_normalize", "l2_normalize/l2_normalize.cu")
    );
    // More than twice the cache lies between two uses of a copy.
    let bytes = prepared.cost().bytes;
    assert!((prepared.copies() as u64 - 1) * bytes >= bench.rotation_bytes() as u64, "{}", prepared.copies());
    let times = bench.time(&mut prepared, 0.01).unwrap();
    assert!(times.laps() >= 5 && times.median_us() > 0.0, "{times:?}");
    assert!(times.launches_per_lap().is_multiple_of(prepared.copies()), "{times:?}");
}

#[test]
fn variants_need_a_gpu() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let bench = Bench::new(&stream, ElementType::F32).unwrap();
    let mut prepared = bench.prepare(Call::L2Normalize { rows: 4, width: 64 }).unwrap();
    let of = "l2_normalize/l2_normalize.cu";
    assert!(super::kernel_files().contains(&of));
    let mut variant = super::Variant::new("mine.cu".as_ref(), String::new(), of);
    let error = bench.compare(&mut prepared, &mut variant, 0.01).err().unwrap().to_string();
    assert!(error.contains("--device cuda"), "{error}");
}

#[test]
fn quantiles_are_values_that_were_measured() {
    let times = Times::new(7, vec![5.0, 1.0, 4.0, 2.0, 3.0]);
    assert_eq!((times.laps(), times.launches_per_lap()), (5, 7));
    let quantiles = [0.0, 0.1, 0.2, 0.21, 0.5, 0.9, 1.0].map(|share| times.quantile(share));
    assert_eq!(quantiles, [1.0, 1.0, 1.0, 2.0, 3.0, 5.0, 5.0]);
    assert_eq!(times.median_us(), 3.0);
    assert_eq!(Times::new(1, vec![1.0, 2.0]).median_us(), 1.0);
    assert!(Times::new(1, Vec::new()).median_us().is_nan());
}

#[test]
fn differences_are_found_and_sized() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for (expected, found, different, largest) in [
        (&[1.0, -3.0][..], &[1.0, -3.0][..], 0, 0.0),
        (&[1.0, -3.0], &[1.5, -2.0], 2, 1.0),
        (&[1.0, -3.0], &[1.0, nan], 1, f64::INFINITY),
        (&[inf, -3.0], &[inf, -3.0], 0, 0.0),
        (&[inf, -3.0], &[1.0, -3.0], 1, f64::INFINITY),
        (&[0.0, -3.0], &[-0.0, -3.0], 1, 0.0),
    ] {
        let difference = Difference::between(expected, found);
        assert_eq!(
            (difference.different, difference.largest),
            (different, largest),
            "{expected:?} {found:?}"
        );
        assert_eq!((difference.elements, difference.magnitude), (2, 3.0));
    }
}

#[test]
fn noise_is_standard_normal_and_fills_whole_buffers() {
    let stream = Stream::cpu(Some(1)).unwrap();
    let noise = Noise::new(&stream).unwrap();
    let values = noise.values(3, 1 << 20, 2.0);
    let mean =
        |f: &dyn Fn(f64) -> f64| values.iter().map(|x| f(f64::from(*x))).sum::<f64>() / values.len() as f64;
    // Moments within five standard errors of 0, 4 and 3 * 16.
    assert!(
        mean(&|x| x).abs() < 0.01 && (mean(&|x| x * x) - 4.0).abs() < 0.03,
        "{} {}",
        mean(&|x| x),
        mean(&|x| x * x)
    );
    assert!((mean(&|x| x.powi(4)) - 48.0).abs() < 0.8, "{}", mean(&|x| x.powi(4)));
    // Of every length: below a row of the source, and beyond all of them.
    for len in [8, 1000, 1024, 5000, (4 << 20) + 2048 + 16] {
        let [mut buffer] = Buffer::allocate(&stream, [(Role::Full, len)]).unwrap();
        noise.fill(&stream, &mut buffer, Role::Full, 5).unwrap();
        assert!(buffer.read(len).unwrap().iter().all(|x| *x != 0.0), "{len}");
    }
}

#[test]
fn the_costlier_resource_decides() {
    let call = Call::RowDot { rows: 1, width: 1 };
    let ceilings = Ceilings { flops_per_second: 100.0, bytes_per_second: 10.0, product: call, copy: call };
    assert_eq!(ceilings.least_seconds(Cost { flops: 1000, bytes: 50 }), (10.0, false));
    assert_eq!(ceilings.least_seconds(Cost { flops: 400, bytes: 50 }), (5.0, true));
}

#[test]
fn ragged_sequences_have_as_many_tokens() {
    let lengths = |number, len, is_ragged| Sequences { number, len, is_ragged }.lengths();
    assert_eq!(lengths(3, 8, false), [8, 8, 8]);
    assert_eq!(lengths(3, 8, true), [4, 8, 12]);
    for (number, len) in [(1, 5), (2, 7), (7, 100), (64, 256), (200, 3)] {
        let lengths = lengths(number, len, true);
        assert_eq!(lengths.iter().sum::<usize>(), number * len, "{lengths:?}");
        assert!(lengths.is_sorted() && lengths[0] > 0, "{lengths:?}");
    }
    let wide = lengths(64, 256, true);
    assert_eq!((wide[0], wide[63]), (67, 445));
}

/// A profile has every call with its kernel, and with the work that its contract counts; without one nothing is noted.
fn profiles_of_calls(stream: &Stream) {
    let is_cpu = matches!(stream, Stream::Cpu(_));
    let bench = Bench::new(stream, ElementType::F32).unwrap();
    for call in tiny_calls(stream) {
        // The CPU lays batches out as they are loaded.
        let launches = usize::from(!(is_cpu && matches!(call, Call::Layout { .. })));
        let mut prepared = bench.prepare(call).unwrap();
        prepared.copies[0].launch(stream).unwrap();
        stream.start_profile(Detail::Kernels);
        stream.label("layer", 3);
        stream.span(|| prepared.copies[0].launch(stream)).unwrap();
        let profile = stream.take_profile().unwrap();
        prepared.copies[0].launch(stream).unwrap();
        assert_eq!((profile.kernels.len(), profile.spans_ms.len()), (launches, 1), "{call:?}: {profile:?}");
        for timed in &profile.kernels {
            assert_eq!(
                (timed.kernel, timed.label.to_string().as_str()),
                (call.kernel(), "layer 3"),
                "{call:?}"
            );
            assert_eq!(timed.cost, prepared.cost(), "{call:?}");
            let names: Vec<String> =
                bench.kernels(&mut prepared).unwrap().into_iter().map(|kernel| kernel.name).collect();
            assert_eq!(timed.instances, names, "{call:?}");
            assert!(timed.ms > 0.0 && timed.ms <= profile.spans_ms[0], "{call:?}: {profile:?}");
        }
        // Spans alone: recorded launches are replayed, and no kernel is noted.
        stream.start_profile(Detail::Spans);
        stream.span(|| prepared.copies[0].launch(stream)).unwrap();
        let profile = stream.take_profile().unwrap();
        assert_eq!((profile.kernels.len(), profile.spans_ms.len()), (0, 1));
    }
}

#[test]
fn profiles_of_calls_on_the_cpu() {
    profiles_of_calls(&Stream::cpu(Some(2)).unwrap());
}

#[test]
fn profiles_of_calls_on_a_device() {
    device(OPERAND_TYPES[0]).iter().for_each(profiles_of_calls);
}

/// Recorded launches are taken apart while kernels are timed, and only then.
#[test]
fn a_profile_takes_graphs_apart() {
    let Some(stream) = device(OPERAND_TYPES[0]) else { return };
    let bench = Bench::new(&stream, ElementType::F32).unwrap();
    let mut prepared = bench.prepare(Call::RowDot { rows: 3, width: 64 }).unwrap();
    let (mut graphs, mut calls) = (Graphs::new(true), 0);
    let mut run = |calls: &mut usize| {
        graphs.run(&stream, (), || {
            *calls += 1;
            prepared.copies[0].launch(&stream)
        })
    };
    for detail in [None, Some(Detail::Spans), Some(Detail::Kernels), None] {
        detail.iter().for_each(|detail| stream.start_profile(*detail));
        run(&mut calls).unwrap();
        let kernels = stream.take_profile().unwrap().kernels.len();
        let is_timed = detail == Some(Detail::Kernels);
        assert_eq!(kernels, usize::from(is_timed), "{detail:?}");
    }
    // Once to be recorded, once to be timed.
    assert_eq!(calls, 2);
}

#[test]
fn costs_count_operands_in_their_types() {
    let product = |fused| Call::Gemm { m: 10, n: 20, k: 30, fused };
    for (call, operand, flops, bytes) in [
        (product(Fused::Bias), 2, 12_000, 2 * (300 + 600 + 200)),
        (product(Fused::Bias), 4, 12_000, 4 * (300 + 600 + 200)),
        (product(Fused::GatedSilu), 2, 24_000, 2 * (300 + 1200 + 200)),
        (product(Fused::AddScaled), 2, 12_000, 2 * (300 + 600) + 8 * 200),
        (product(Fused::AddScaledDeferred), 2, 12_000, 2 * (300 + 600) + 10 * 200 + 4 * 10),
        (product(Fused::GatedSiluDeferred), 2, 24_000, 2 * (300 + 1200 + 200) + 4 * 10),
        (Call::AddLayerNorm { rows: 10, width: 8 }, 2, 720, 6 * 80 + 64),
        (Call::SandwichNorm { rows: 10, width: 8 }, 2, 720, 12 * 80 + 64),
        (Call::RmsNorm { rows: 10, width: 8 }, 2, 320, 6 * 80 + 32),
        (Call::GatherRows { rows: 10, of: 90, width: 8, is_full: true }, 2, 0, 8 * 80),
        (Call::GatherRows { rows: 10, of: 90, width: 8, is_full: false }, 2, 0, 4 * 80),
        (Call::CopyBlock { rows: 10, width: 8, stride: 24 }, 2, 0, 4 * 80),
        (Call::L2Normalize { rows: 10, width: 8 }, 2, 240, 8 * 80),
    ] {
        assert_eq!(call.cost(operand, operand), Cost { flops, bytes }, "{call:?}, {operand} bytes");
    }
}
