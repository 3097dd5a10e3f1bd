//! Where the CUDA side of the kernels is tested: on the emulator, or on a GPU.
//!
//! `OUTCROP_EMULATOR` names the library that kernels/emulator/build makes. `OUTCROP_TEST_CUDA=1` takes the first GPU instead. A test
//! that has neither says so and passes, unless `REQUIRE` lists `emulator` or `cuda`.

use std::path::PathBuf;

pub(crate) use crate::operands::OPERAND_TYPES;

use crate::{ElementType, EmulatorOptions, Stream};

/// Schedules that every kernel is run under: who goes first, and when asynchronous copies take effect.
pub(crate) const SCHEDULES: [(u32, u32); 4] = [(0, 1), (1, 0), (2, 2), (3, 1)];

/// Compute capabilities that the emulator takes on: the least that kernels are written for, and the one that has kernels of its own.
pub(crate) const PORTABLE: (u32, u32) = (8, 0);
pub(crate) const HOPPER: (u32, u32) = (9, 0);

/// Calls `test` with streams of `operand_type` under every schedule, looking for races; on a GPU once.
pub(crate) fn under_schedules(operand_type: ElementType, test: impl Fn(&Stream)) {
    under_schedules_on(PORTABLE, operand_type, test);
}

/// The same, emulating a device of this compute capability; a GPU has the one it has.
pub(crate) fn under_schedules_on(
    compute_capability: (u32, u32),
    operand_type: ElementType,
    test: impl Fn(&Stream),
) {
    let schedules = if on_gpu() { &SCHEDULES[..1] } else { &SCHEDULES };
    for (i, (schedule, asynchronous)) in schedules.iter().enumerate() {
        let options = |options| EmulatorOptions {
            schedule: *schedule,
            asynchronous: *asynchronous,
            seed: 1 + i as u64,
            detect_races: true,
            compute_capability,
            ..options
        };
        match stream(operand_type, options) {
            Some(stream) => test(&stream),
            None => return,
        }
    }
}

/// A stream of `operand_type` under the first schedule, without detectors: for tests of much work.
pub(crate) fn device(operand_type: ElementType) -> Option<Stream> {
    device_of(PORTABLE, operand_type)
}

/// The same, emulating a device of this compute capability.
pub(crate) fn device_of(compute_capability: (u32, u32), operand_type: ElementType) -> Option<Stream> {
    stream(operand_type, |options| EmulatorOptions { compute_capability, ..options })
}

/// Asserts that the tensor-core operands of what `work` launches lie where no two of a phase share a bank.
pub(crate) fn without_bank_conflicts(operand_type: ElementType, work: impl Fn(&Stream)) {
    without_bank_conflicts_on(PORTABLE, operand_type, work);
}

/// The same, emulating a device of this compute capability.
pub(crate) fn without_bank_conflicts_on(
    compute_capability: (u32, u32),
    operand_type: ElementType,
    work: impl Fn(&Stream),
) {
    if on_gpu() {
        return;
    }
    let counting = |options| EmulatorOptions { count_conflicts: true, compute_capability, ..options };
    let Some(stream) = stream(operand_type, counting) else { return };
    work(&stream);
    stream.synchronize().unwrap();
    let counters = stream.counters().unwrap();
    assert!(counters.ldmatrix > 0, "nothing was read by ldmatrix: {counters:?}");
    assert_eq!(counters.ldmatrix_extra, 0, "{counters:?}");
}

fn stream(
    operand_type: ElementType,
    options: impl FnOnce(EmulatorOptions) -> EmulatorOptions,
) -> Option<Stream> {
    if on_gpu() {
        return Some(Stream::cuda(0, operand_type).expect("OUTCROP_TEST_CUDA asks for a GPU"));
    }
    let Some(library) = std::env::var_os("OUTCROP_EMULATOR").map(PathBuf::from) else {
        assert!(
            !required("emulator") && !required("cuda"),
            "REQUIRE asks for the emulator, but OUTCROP_EMULATOR is not set"
        );
        eprintln!("SKIPPED: neither OUTCROP_EMULATOR nor OUTCROP_TEST_CUDA is set");
        return None;
    };
    let options = options(EmulatorOptions::new(library));
    Some(Stream::emulator(options, operand_type).expect("the emulator's library loads"))
}

/// Whether kernels that only Hopper runs are launched on the stream's device.
pub(crate) fn is_hopper(stream: &Stream) -> bool {
    matches!(stream, Stream::Cuda(cuda) if cuda.device().is_hopper())
}

fn on_gpu() -> bool {
    std::env::var_os("OUTCROP_TEST_CUDA").is_some_and(|value| value == "1")
}

/// Whether `name` is one of the comma-separated words of `REQUIRE`: things a test may not skip for want of.
pub(crate) fn required(name: &str) -> bool {
    std::env::var("REQUIRE").is_ok_and(|list| list.split(',').any(|word| word == name))
}
