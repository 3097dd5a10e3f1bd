//! The wrappers of hardware.cuh against the PTX manual: on the emulator, and on a GPU the same.
//!
//! Where both agree with the layouts written down here, the emulator's operands lie as the hardware's do, word by word.

use crate::device::cpp_name;
use crate::operands::OPERAND_TYPES;
use crate::params::{Instance, ParameterBlock, Source, parameter_block};

parameter_block! {
    HardwareTestParams {
        num_floats: u32,
        unused: u32,
    }
}

static SOURCE: Source = Source {
    path: "hardware_tests.cu",
    text: include_str!("hardware_tests.cu"),
    assertions: HardwareTestParams::assertions,
};

/// One for each operand type. No product code launches them.
pub(crate) fn instances() -> Vec<Instance> {
    OPERAND_TYPES
        .map(|element_type| Instance {
            source: &SOURCE,
            name: format!("hardware_test<{}>", cpp_name(element_type)),
            threads: 32,
            cluster: 1,
            shared_bytes: 2048,
            blocks_per_sm: 1,
        })
        .to_vec()
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::params::narrow;
    use crate::test_devices::under_schedules;
    use crate::testing::values;
    use crate::{Buffer, ElementType, Role, Stream};

    /// Words that each lane stores.
    const WORDS: usize = 25;

    fn bits(element_type: ElementType, x: f32) -> u32 {
        match element_type {
            ElementType::BF16 => bf16::from_f32(x).to_bits().into(),
            _ => f16::from_f32(x).to_bits().into(),
        }
    }

    fn rounded(element_type: ElementType, x: f32) -> f32 {
        match element_type {
            ElementType::BF16 => bf16::from_f32(x).to_f32(),
            _ => f16::from_f32(x).to_f32(),
        }
    }

    /// Small integers: every product and sum is exact.
    fn a(row: usize, k: usize) -> f32 {
        ((row * 7 + k * 3) % 11) as f32 - 5.0
    }

    fn b(row: usize, k: usize) -> f32 {
        ((row * 5 + k * 2) % 13) as f32 - 6.0
    }

    /// What the manual says that a lane gets ("ldmatrix", "Matrix fragments for mma.m16n8k16").
    fn expected(element_type: ElementType, lane: usize) -> Vec<u32> {
        let (g, t) = (lane / 4, lane % 4);
        let pair = |lo: f32, hi: f32| bits(element_type, lo) | bits(element_type, hi) << 16;
        let mut words = Vec::new();
        for r in 0..4 {
            let (row, k) = (g + 8 * (r & 1), 2 * t + 8 * (r >> 1));
            words.push(pair(a(row, k), a(row, k + 1)));
        }
        words.extend([0, 8].map(|k| pair(b(g, 2 * t + k), b(g, 2 * t + k + 1))));
        for r in 0..4 {
            let (row, k) = (2 * t + 8 * (r & 1), g + 8 * (r >> 1));
            words.push(pair(a(row, k), a(row + 1, k)));
        }
        for (row, col) in [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)] {
            let product: f32 = (0..16).map(|k| a(row, k) * b(col, k)).sum();
            words.push((2.0 * product).to_bits());
        }
        let lane = narrow(lane);
        let (low, high) = (lane as f32 * 0.5, lane as f32 + 0.25);
        words.push(0);
        words.extend([31 - lane, 31 - lane + 300, lane ^ 5]);
        words.push(if lane < 3 { lane } else { lane - 3 });
        words.extend([14, pair(low, high)]);
        words
            .extend([rounded(element_type, low), rounded(element_type, high), 496.0, 31.0].map(f32::to_bits));
        words
    }

    #[test]
    fn wrappers_do_what_the_manual_says() {
        for (element_type, instance) in OPERAND_TYPES.into_iter().zip(instances()) {
            under_schedules(element_type, |stream| check(stream, element_type, &instance));
        }
    }

    fn check(stream: &Stream, element_type: ElementType, instance: &Instance) {
        let x: Vec<f32> = values(1, 500).into_iter().map(|x| 20.0 * x).collect();
        let n = x.len();
        let wanted =
            [(Role::Full, WORDS * 32), (Role::Full, 4 * n), (Role::Operand, 256), (Role::Operand, 128)];
        let [fragments, floats, mut left, mut right] = Buffer::allocate(stream, wanted).unwrap();
        left.write(&(0..256).map(|i| a(i / 16, i % 16)).collect::<Vec<_>>()).unwrap();
        right.write(&(0..128).map(|i| b(i / 16, i % 16)).collect::<Vec<_>>()).unwrap();
        let input = Buffer::upload(stream, &x).unwrap();
        let Stream::Cuda(cuda) = stream else { panic!("not a GPU") };
        let pointers =
            [&fragments, &floats, &left, &right, &input].map(|x| x.on(cuda.device()).unwrap().address());
        let params = HardwareTestParams { num_floats: narrow(n), unused: 0 };
        instance.launch(cuda.device(), 1, &pointers, &params).unwrap();

        let fragments = fragments.read(WORDS * 32).unwrap();
        for lane in 0..32 {
            let got: Vec<u32> = (0..WORDS).map(|word| fragments[word * 32 + lane].to_bits()).collect();
            assert_eq!(got, expected(element_type, lane), "{element_type:?}, lane {lane}");
        }
        let floats = floats.read(4 * n).unwrap();
        for (i, x) in x.iter().enumerate() {
            let exact = f64::from(*x);
            for (k, exact) in [exact.exp2(), 1.0 / exact, 1.0 / exact.abs().sqrt()].into_iter().enumerate() {
                let error = (f64::from(floats[k * n + i]) - exact).abs();
                assert!(error <= 2f64.powi(-21) * exact.abs(), "function {k} of {x}: {}", floats[k * n + i]);
            }
            assert_eq!(floats[3 * n + i], rounded(element_type, *x), "{x}");
        }
    }
}
