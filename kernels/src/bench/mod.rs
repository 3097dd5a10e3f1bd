//! Kernel calls timed one by one: what `outcrop bench` measures by.
//!
//! A [`Call`] is a kernel with its shape. [`Bench::prepare`] makes operands for it, random and normally distributed, and as many copies
//! of them as it takes to be beyond the device's cache whenever a launch begins: more than twice its size lies between two uses of a
//! copy. [`Bench::time`] launches on all copies in turn. A *lap* is so many rounds of that as take half a millisecond; on a GPU it is a
//! recorded sequence between two events, submitted behind the lap before, so that neither the host nor the cost of a launch call is in
//! the time. What is: a launch's own start behind the end of the one before, as in a forward pass.
//!
//! [`Bench::compare`] puts a kernel file given by its path beside the built-in one: the same operands, laps in turns.
//!
//! What this module does not do: it knows no model and prints nothing.

mod calls;
mod noise;
mod operands;
#[cfg(test)]
mod tests;
mod times;
mod variant;

pub use crate::attention::{AttentionParams, Mask};

pub use self::calls::{Call, Fused, Sequences};
pub use self::times::Times;
pub use self::variant::{Comparison, Difference, Variant, kernel_files};

use self::noise::Noise;
use self::operands::Launch;
use crate::{Cost, ElementType, Error, Graphs, LoadedKernel, Stream};

/// Least milliseconds of a lap: a thousand times what events can tell apart.
const LAP_MS: f64 = 0.5;
/// Launches of a lap at most: recordings stay small.
const LAUNCHES_MAX: usize = 4096;
/// Laps of a call: enough for its quantiles, however long one takes; and no more events than a driver holds with ease.
const LAPS_MIN: usize = 5;
const LAPS_MAX: usize = 2000;
/// Copies of operands at most: of calls so small that this is too few, part may stay in the cache.
const COPIES_MAX: u64 = 512;
/// In place of the CPU's cache: more than the cores of most share. What a larger one holds, small calls find there.
const CPU_CACHE_BYTES: usize = 32 << 20;

/// A stream to time calls on.
pub struct Bench<'a> {
    stream: &'a Stream,
    weight_type: ElementType,
    noise: Noise,
}

/// A call with its operands.
pub struct Prepared {
    call: Call,
    cost: Cost,
    copies: Vec<Box<dyn Launch>>,
}

/// What the device gives at best: measured by its own calls, the largest of their kind.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Floating-point operations a second, by a large matrix product.
    pub flops_per_second: f64,
    /// Bytes a second, read and written, by a large copy.
    pub bytes_per_second: f64,
    /// The product.
    pub product: Call,
    /// The copy.
    pub copy: Call,
}

impl Ceilings {
    /// The least seconds that work of this cost takes, and whether bytes decide it.
    pub fn least_seconds(&self, cost: Cost) -> (f64, bool) {
        let compute = cost.flops as f64 / self.flops_per_second;
        let memory = cost.bytes as f64 / self.bytes_per_second;
        (compute.max(memory), memory >= compute)
    }
}

impl<'a> Bench<'a> {
    /// Matrices are held in `weight_type` on the CPU; on a GPU in its operand type.
    pub fn new(stream: &'a Stream, weight_type: ElementType) -> Result<Self, Error> {
        let weight_type = match stream {
            Stream::Cpu(_) => weight_type,
            Stream::Cuda(_) => stream.operand_type(),
        };
        Ok(Self { stream, weight_type, noise: Noise::new(stream)? })
    }

    /// Twice the cache: the bytes that at least lie between two uses of the same operands.
    pub fn rotation_bytes(&self) -> usize {
        2 * self.stream.properties().map_or(CPU_CACHE_BYTES, |properties| properties.l2_bytes as usize)
    }

    /// Makes the operands of `call`.
    pub fn prepare(&self, call: Call) -> Result<Prepared, Error> {
        let cost = call.cost(self.stream.operand_type().bytes(), self.weight_type.bytes());
        let copies = (self.rotation_bytes() as u64).div_ceil(cost.bytes.max(1)) + 1;
        let seeds: Vec<u64> = (0..copies.clamp(2, COPIES_MAX)).collect();
        Ok(Prepared { call, cost, copies: self.operands(call, &seeds)? })
    }

    /// The instances that the call launches.
    pub fn kernels(&self, prepared: &mut Prepared) -> Result<Vec<LoadedKernel>, Error> {
        self.stream.kernels_of(|| prepared.copies[0].launch(self.stream))
    }

    /// Times the call for about `seconds`, and at least for a few laps. A fifth as many go before and do not count: an idle device raises
    /// its clocks then.
    pub fn time(&self, prepared: &mut Prepared, seconds: f64) -> Result<Times, Error> {
        self.stream.run(|| {
            let mut rounds = Rounds::new(self.stream, &mut prepared.copies)?;
            let (warm_up, laps) = rounds.laps(seconds);
            let mut times = self.stream.laps_ms(warm_up + laps, |_| rounds.lap(false))?;
            times.drain(..warm_up);
            Ok(rounds.per_launch(&times))
        })
    }

    /// What this device gives at best.
    pub fn ceilings(&self, seconds: f64) -> Result<Ceilings, Error> {
        // On the CPU and the emulator large enough to be beyond caches and start-up, small enough to be quick.
        let (side, rows) = match self.stream.properties() {
            None => (1024, 2048),
            Some(properties) if properties.is_emulated() => (128, 16),
            Some(_) => (8192, 32768),
        };
        let product = Call::Gemm { m: side, n: side, k: side, fused: Fused::None };
        let copy = Call::CopyBlock { rows, width: 8192, stride: 8192 };
        let median_seconds = |call| -> Result<(Cost, f64), Error> {
            let mut prepared = self.prepare(call)?;
            Ok((prepared.cost, self.time(&mut prepared, seconds)?.median_us() / 1e6))
        };
        let (product_cost, product_seconds) = median_seconds(product)?;
        let (copy_cost, copy_seconds) = median_seconds(copy)?;
        Ok(Ceilings {
            flops_per_second: product_cost.flops as f64 / product_seconds,
            bytes_per_second: copy_cost.bytes as f64 / copy_seconds,
            product,
            copy,
        })
    }
}

impl Prepared {
    /// The call.
    pub fn call(&self) -> Call {
        self.call
    }

    /// Its work, with the types that it runs in.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// Copies of its operands.
    pub fn copies(&self) -> usize {
        self.copies.len()
    }
}

/// Launches on all copies in turn, recorded once.
struct Rounds<'a> {
    stream: &'a Stream,
    copies: &'a mut [Box<dyn Launch>],
    /// By how many rounds they hold, and whether of a variant.
    graphs: Graphs<(usize, bool)>,
    /// Rounds of a lap.
    rounds: usize,
    /// Milliseconds that a lap takes, about.
    lap_ms: f64,
}

impl<'a> Rounds<'a> {
    /// Runs every copy, which loads the kernels, and finds out how many rounds make a lap.
    fn new(stream: &'a Stream, copies: &'a mut [Box<dyn Launch>]) -> Result<Self, Error> {
        let mut rounds = Self { stream, copies, graphs: Graphs::new(true), rounds: 1, lap_ms: 0.0 };
        rounds.lap(false)?;
        let tried = stream.laps_ms(2, |_| rounds.lap(false))?;
        let round_ms = f64::from(tried[0].min(tried[1]));
        let most = LAUNCHES_MAX / rounds.copies.len();
        rounds.rounds = whole((LAP_MS / round_ms).ceil()).clamp(1, most.max(1));
        rounds.lap_ms = round_ms * rounds.rounds as f64;
        if rounds.rounds > 1 {
            // Recorded before it counts.
            rounds.lap(false)?;
            stream.synchronize()?;
        }
        Ok(rounds)
    }

    /// Laps before those that count, and those that take about `seconds`.
    fn laps(&self, seconds: f64) -> (usize, usize) {
        let laps = whole(1e3 * seconds / self.lap_ms).clamp(LAPS_MIN, LAPS_MAX);
        (laps.div_ceil(5), laps)
    }

    /// Submits a lap: of the variant, as it was recorded while that was in place, or of the built-in kernels.
    fn lap(&mut self, is_variant: bool) -> Result<(), Error> {
        let Self { stream, copies, graphs, rounds, .. } = self;
        graphs.run(stream, (*rounds, is_variant), || {
            for _ in 0..*rounds {
                copies.iter_mut().try_for_each(|copy| copy.launch(stream))?;
            }
            Ok(())
        })
    }

    /// From milliseconds of laps to those of launches.
    fn per_launch(&self, laps_ms: &[f32]) -> Times {
        let launches = self.rounds * self.copies.len();
        Times::new(launches, laps_ms.iter().map(|ms| f64::from(*ms) * 1e3 / launches as f64).collect())
    }
}

/// A number of things; what is too large or no number at all becomes the largest or none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and is clamped besides"
)]
fn whole(number: f64) -> usize {
    number as usize
}
