//! The wrappers of hopper.cuh against the PTX manual: on the emulator, and on a Hopper GPU the same.
//!
//! Where both agree with the layouts written down here, the emulator's boxes, operands and sums lie as the hardware's do, byte by byte.

use crate::ElementType;
use crate::device::cpp_name;
use crate::params::{Instance, ParameterBlock, Source, parameter_block};

parameter_block! {
    HopperTestParams {
        block_words: u32,
        unused: u32,
    }
}

static SOURCE: Source = Source {
    path: "hardware_tests_hopper.cu",
    text: include_str!("hardware_tests_hopper.cu"),
    assertions: HopperTestParams::assertions,
};

/// One for each operand type. No product code launches them.
pub(crate) fn instances() -> Vec<Instance> {
    [ElementType::F16, ElementType::BF16]
        .map(|element_type| Instance {
            source: &SOURCE,
            name: format!("hardware_test_hopper<{}>", cpp_name(element_type)),
            threads: 128,
            cluster: 2,
            shared_bytes: (64 + 256 + 64) * 128 + 16,
            blocks_per_sm: 1,
        })
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Heads, TensorMap};
    use crate::params::narrow;
    use crate::test_devices::{HOPPER, OPERAND_TYPES, under_schedules_on};
    use crate::{Buffer, Role, Stream};

    /// Rows and columns of the matrices.
    const A: (usize, usize) = (100, 72);
    const B: (usize, usize) = (256, 64);
    const OUT: (usize, usize) = (70, 72);
    /// Where the boxes of a and of the output begin.
    const A_ORIGIN: (usize, usize) = (48, 16);
    const OUT_ORIGIN: (usize, usize) = (20, 16);
    /// Rows and elements of a swizzled box.
    const BOX: usize = 64;
    /// 32-bit words: of boxes, of a thread's sums, of the matrices that stmatrix stores.
    const BOX_WORDS: usize = (64 + 256) * 32;
    const SUMS: usize = 32 + 64 + 128;
    const REGISTER_SUMS: usize = 32 + SUMS;
    const BLOCK_WORDS: usize = BOX_WORDS + 128 * (SUMS + REGISTER_SUMS) + 64 * 32 + 64 * 8;
    /// a's rows as so many heads of so many columns; heads of a box; where it begins: column, head and row.
    const HEADS: (usize, usize) = (3, 24);
    const BOX_HEADS: usize = 2;
    const HEADS_ORIGIN: (usize, usize, usize) = (8, 2, 80);

    /// Small integers: every product and sum is exact. Nothing lies outside.
    fn a(row: usize, column: usize) -> f32 {
        if row < A.0 && column < A.1 { ((row * 7 + column * 3) % 11) as f32 - 5.0 } else { 0.0 }
    }

    fn b(row: usize, column: usize) -> f32 {
        ((row * 5 + column * 2) % 13) as f32 - 6.0
    }

    fn bits(element_type: ElementType, x: f32) -> u32 {
        match element_type {
            ElementType::BF16 => half::bf16::from_f32(x).to_bits().into(),
            _ => half::f16::from_f32(x).to_bits().into(),
        }
    }

    /// The element of a box's row that word `word` of its 128 bytes begins with: chunks of 16 bytes change places by the row ("Swizzling
    /// modes").
    fn swizzled_element(row: usize, word: usize) -> usize {
        ((word / 4) ^ (row % 8)) * 8 + word % 4 * 2
    }

    /// What the manual says that thread `thread` holds of a product with `n` columns ("Register fragments and shared memory matrix
    /// layouts"); `left(row, k)` and `right(column, k)` are the operands.
    fn sums(
        thread: usize,
        n: usize,
        left: impl Fn(usize, usize) -> f32,
        right: impl Fn(usize, usize) -> f32,
    ) -> impl Iterator<Item = f32> {
        let (warp, r, c) = (thread / 32, thread % 32 / 4, thread % 4);
        (0..n / 2).map(move |i| {
            let (group, half, e) = (i / 4, i / 2 % 2, i % 2);
            let (row, column) = (16 * warp + r + 8 * half, 8 * group + 2 * c + e);
            (0..BOX).map(|k| left(row, k) * right(column, k)).sum()
        })
    }

    /// The operand that the threads make up in registers.
    fn register_element(row: usize, k: usize) -> f32 {
        ((row * 5 + k * 7) % 9) as f32 - 4.0
    }

    /// The element of a's map with heads at a place of the box, whose lines are the heads of a row and then those of the next.
    fn head_element(line: usize, column: usize) -> f32 {
        let (column, head) = (HEADS_ORIGIN.0 + column, HEADS_ORIGIN.1 + line % BOX_HEADS);
        let is_inside = column < HEADS.1 && head < HEADS.0;
        if is_inside { a(HEADS_ORIGIN.2 + line / BOX_HEADS, head * HEADS.1 + column) } else { 0.0 }
    }

    fn expected(element_type: ElementType) -> Vec<u32> {
        let pair = |low: f32, high: f32| bits(element_type, low) | bits(element_type, high) << 16;
        let mut words = Vec::new();
        for row in 0..64 {
            words.extend((0..32).map(|word| {
                let (row_of_a, column) = (A_ORIGIN.0 + row, A_ORIGIN.1 + swizzled_element(row, word));
                pair(a(row_of_a, column), a(row_of_a, column + 1))
            }));
        }
        for row in 0..256 {
            words.extend((0..32).map(|word| {
                let column = swizzled_element(row, word);
                pair(b(row, column), b(row, column + 1))
            }));
        }
        for thread in 0..128 {
            let left = |row, k| a(A_ORIGIN.0 + row, A_ORIGIN.1 + k);
            words.extend([64, 128, 256].into_iter().flat_map(|n| sums(thread, n, left, b)).map(f32::to_bits));
        }
        for thread in 0..128 {
            words.extend(sums(thread, 64, register_element, b).map(f32::to_bits));
            let transposed = |column: usize, k| b(column / BOX * BOX + k, column % BOX);
            let sums = |n| sums(thread, n, register_element, transposed);
            words.extend([64, 128, 256].into_iter().flat_map(sums).map(f32::to_bits));
        }
        for line in 0..64 {
            words.extend((0..32).map(|word| {
                let column = swizzled_element(line, word);
                pair(head_element(line, column), head_element(line, column + 1))
            }));
        }
        for row in 0..64 {
            // Matrices 0 and 1 are rows 0 to 7 and 8 to 15 of a warp's left half, 2 and 3 of the right.
            words.extend((0..8).map(|word| {
                let (matrix, lane) = (word / 4 * 2 + row % 16 / 8, row % 8 * 4 + word % 4);
                narrow((row / 16 * 32 + lane) * 4 + matrix)
            }));
        }
        assert_eq!(words.len(), BLOCK_WORDS);
        words
    }

    #[test]
    fn wrappers_do_what_the_manual_says() {
        for (element_type, instance) in OPERAND_TYPES.into_iter().zip(instances()) {
            under_schedules_on(HOPPER, element_type, |stream| check(stream, element_type, &instance));
        }
    }

    fn check(stream: &Stream, element_type: ElementType, instance: &Instance) {
        let Stream::Cuda(cuda) = stream else { panic!("not a GPU") };
        if cuda.device().properties().compute_capability != HOPPER {
            eprintln!("SKIPPED: the GPU is none of Hopper's");
            return;
        }
        let wanted = [(Role::Operand, A.0 * A.1), (Role::Operand, B.0 * B.1), (Role::Operand, OUT.0 * OUT.1)];
        let [mut left, mut right, mut out] = Buffer::allocate(stream, wanted).unwrap();
        let [words] = Buffer::allocate(stream, [(Role::Full, 2 * BLOCK_WORDS)]).unwrap();
        left.write(&(0..A.0 * A.1).map(|i| a(i / A.1, i % A.1)).collect::<Vec<_>>()).unwrap();
        right.write(&(0..B.0 * B.1).map(|i| b(i / B.1, i % B.1)).collect::<Vec<_>>()).unwrap();
        out.write(&vec![-1.0; OUT.0 * OUT.1]).unwrap();

        let address = |buffer: &Buffer| buffer.on(cuda.device()).unwrap().address();
        let map = |buffer: &Buffer, (rows, columns): (usize, usize), box_rows| TensorMap {
            address: address(buffer),
            rows,
            columns,
            stride: columns,
            heads: None,
            element_type,
            box_rows,
            box_columns: narrow(BOX),
            is_swizzled: true,
        };
        let heads = TensorMap {
            columns: HEADS.1,
            heads: Some(Heads { count: HEADS.0, box_heads: narrow(BOX_HEADS) }),
            ..map(&left, A, narrow(64 / BOX_HEADS))
        };
        let maps = [map(&left, A, 64), map(&right, B, 128), heads, map(&out, OUT, 64)];
        let params = HopperTestParams { block_words: narrow(BLOCK_WORDS), unused: 0 };
        instance.launch_mapped(cuda.device(), 1, &maps, &[address(&words)], &params).unwrap();

        let words = words.read(2 * BLOCK_WORDS).unwrap();
        let expected = expected(element_type);
        for (block, words) in words.chunks(BLOCK_WORDS).enumerate() {
            for (i, (word, expected)) in words.iter().zip(&expected).enumerate() {
                assert_eq!(word.to_bits(), *expected, "{element_type:?}, block {block}, word {i}");
            }
        }
        let out = out.read(OUT.0 * OUT.1).unwrap();
        for (i, x) in out.iter().enumerate() {
            let (row, column) = (i / OUT.1, i % OUT.1);
            let inside = (row.wrapping_sub(OUT_ORIGIN.0), column.wrapping_sub(OUT_ORIGIN.1));
            let expected = match inside {
                (row, column) if row < BOX && column < BOX => narrow(row * BOX + column),
                _ => bits(element_type, -1.0),
            };
            assert_eq!(bits(element_type, *x), expected, "{element_type:?}, row {row}, column {column}");
        }
    }
}
