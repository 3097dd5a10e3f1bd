//! What a kernel call costs, in the units benchmarks report.

/// Work of one kernel call, counted from its contract and not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a fused multiply-add counts two.
    pub flops: u64,
    /// Bytes that must cross memory once: every operand read or written, each counted once.
    pub bytes: u64,
}

impl Cost {
    /// A cost from counts held as `usize`.
    pub(crate) fn new(flops: usize, bytes: usize) -> Self {
        Self { flops: flops as u64, bytes: bytes as u64 }
    }
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}
