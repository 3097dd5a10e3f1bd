//! Random operands. Their distribution matters: matrix units draw more power, and run slower, on noise than on zeros.

use crate::copy_block::{Block, copy_block};
use crate::{Buffer, Error, Role, Stream};

/// Rows and columns of the noise in the memory of the stream: 4 Mi numbers.
const ROWS: usize = 4096;
const WIDTH: usize = 1024;
/// A prime number: rows of no matrix repeat.
const PERIOD: usize = 4_194_301;

/// Standard normal numbers, drawn once.
pub(super) struct Noise {
    /// `[PERIOD]`
    host: Vec<f32>,
    /// `[ROWS, WIDTH]` for either role, in its type.
    operand: Buffer,
    full: Buffer,
}

impl Noise {
    pub(super) fn new(stream: &Stream) -> Result<Self, Error> {
        let host: Vec<f32> = (0..PERIOD as u64).map(normal).collect();
        let len = ROWS * WIDTH;
        let [mut operand, mut full] = Buffer::allocate(stream, [(Role::Operand, len), (Role::Full, len)])?;
        let values: Vec<f32> = host.iter().cycle().take(len).copied().collect();
        operand.write(&values)?;
        full.write(&values)?;
        Ok(Self { host, operand, full })
    }

    /// `len` numbers of this standard deviation, others for every seed.
    pub(super) fn values(&self, seed: u64, len: usize, deviation: f32) -> Vec<f32> {
        let start = first(seed, PERIOD);
        self.host.iter().cycle().skip(start).take(len).map(|x| x * deviation).collect()
    }

    /// Fills a buffer of this role. Of one whose length is no multiple of 8 the last elements stay as they are.
    pub(super) fn fill(
        &self,
        stream: &Stream,
        buffer: &mut Buffer,
        role: Role,
        seed: u64,
    ) -> Result<(), Error> {
        let source = match role {
            Role::Operand => &self.operand,
            Role::Full => &self.full,
        };
        let block = |stride, row: usize| Block { stride, row: row.into(), column: 0 };
        let rows = buffer.len() / WIDTH;
        let (mut row, mut from) = (0, first(seed, ROWS));
        while row < rows {
            let part = (rows - row).min(ROWS - from);
            let (to, source_block) = (block(WIDTH, row), block(WIDTH, from));
            copy_block(stream, buffer, to, source, source_block, part.into(), WIDTH)?;
            (row, from) = (row + part, (from + part) % ROWS);
        }
        // What is left of a row, in the smallest rows that a copy takes.
        let (to, source_block) = (block(8, rows * WIDTH / 8), block(8, from * WIDTH / 8));
        copy_block(stream, buffer, to, source, source_block, (buffer.len() % WIDTH / 8).into(), 8)
    }
}

/// Where the noise of `seed` begins among `len` numbers.
fn first(seed: u64, len: usize) -> usize {
    below(!seed, len)
}

/// A random number below `bound`, another one for every `i`.
#[expect(clippy::cast_possible_truncation, reason = "below a usize")]
pub(super) fn below(i: u64, bound: usize) -> usize {
    (random(i) % bound as u64) as usize
}

/// The `i`-th of independent standard normal numbers (Box and Muller 1958).
#[expect(clippy::cast_possible_truncation, reason = "rounding to the type of the operands")]
fn normal(i: u64) -> f32 {
    let uniform = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let (radius, angle) = (uniform(random(2 * i)), uniform(random(2 * i + 1)));
    ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
}

/// 64 random bits, others for every `i`: splitmix64 (Steele et al. 2014).
fn random(i: u64) -> u64 {
    let z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
