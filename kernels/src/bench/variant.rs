//! A kernel file given by its path, in the place of a built-in one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{Bench, Prepared, Rounds, Times};
use crate::catalog::instances;
use crate::device::{Device, Loaded};
use crate::error::DeviceError;
use crate::{Error, LoadedKernel, Stream};

/// A kernel file that may be launched instead of a built-in one.
///
/// It must have the same instances and the same parameter block; the assertions compiled with the built-in file are compiled with this
/// one too. What it includes is looked for in its own folder first, and then among the built-in headers.
pub struct Variant {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    /// The built-in file, below `kernels/src`.
    of: &'static str,
    /// Instances compiled so far, by name.
    loaded: HashMap<String, Loaded>,
}

/// Built-in and variant, measured in turns.
pub struct Comparison {
    /// Of the built-in file.
    pub built_in: Times,
    /// Of the variant.
    pub variant: Times,
    /// The built-in's time over the variant's in the lap behind it: above 1 the variant is faster.
    pub ratios: Times,
    /// What the variant's instances take.
    pub kernels: Vec<LoadedKernel>,
    /// How the results differ on the same operands.
    pub difference: Difference,
}

/// How two results differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Elements whose bits differ.
    pub different: usize,
    /// Elements in all.
    pub elements: usize,
    /// The largest distance of two elements; infinite where one of them is not finite and the other is another.
    pub largest: f64,
    /// The largest finite magnitude of the built-in's results, for scale.
    pub magnitude: f64,
}

/// The built-in kernel files, by their paths below `kernels/src`.
pub fn kernel_files() -> Vec<&'static str> {
    let mut paths: Vec<_> = instances().iter().map(|instance| instance.source.path).collect();
    paths.sort_unstable();
    paths.dedup();
    // A file of tests alone.
    paths.retain(|path| path.contains('/'));
    paths
}

impl Variant {
    /// `text`, which was read from `path`, in the place of the built-in file `of`, one of [`kernel_files`].
    pub fn new(path: &Path, text: String, of: &'static str) -> Self {
        Self { path: path.to_owned(), text, of, loaded: HashMap::new() }
    }

    /// The built-in file.
    pub fn of(&self) -> &'static str {
        self.of
    }

    /// Compiles and loads the instances of these names, and takes them out of the store.
    fn take(&mut self, device: &Device, names: &[&str]) -> Result<Vec<Loaded>, Error> {
        for instance in instances() {
            if names.contains(&instance.name.as_str()) && !self.loaded.contains_key(&instance.name) {
                let loaded = device.load_variant(&instance, self)?;
                self.loaded.insert(instance.name, loaded);
            }
        }
        Ok(names.iter().filter_map(|name| self.loaded.remove(*name)).collect())
    }
}

impl Bench<'_> {
    /// Times the call with the built-in file and with `variant`, lap by lap in turns, for about `seconds` each; first compares what they
    /// give. `None` if the call launches nothing of that file.
    pub fn compare(
        &self,
        prepared: &mut Prepared,
        variant: &mut Variant,
        seconds: f64,
    ) -> Result<Option<Comparison>, Error> {
        let Stream::Cuda(cuda) = self.stream else { return Err(DeviceError::NoVariants.into()) };
        let kernels = self.kernels(prepared)?;
        let names: Vec<&str> =
            kernels.iter().filter(|kernel| kernel.path == variant.of).map(|kernel| &*kernel.name).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let mut loaded = variant.take(cuda.device(), &names)?;
        let compared = self.compare_loaded(cuda.device(), prepared, &mut loaded, seconds);
        variant.loaded.extend(loaded.into_iter().map(|loaded| (loaded.name().to_owned(), loaded)));
        compared.map(Some)
    }

    fn compare_loaded(
        &self,
        device: &Device,
        prepared: &mut Prepared,
        loaded: &mut [Loaded],
        seconds: f64,
    ) -> Result<Comparison, Error> {
        let kernels = loaded.iter().map(Loaded::report).collect();
        let mut built_in = self.operands(prepared.call, &[0])?;
        let mut variant = self.operands(prepared.call, &[0])?;
        built_in[0].launch(self.stream)?;
        instead(device, loaded, || variant[0].launch(self.stream))?;
        let difference =
            Difference::between(&built_in[0].outputs()?.concat(), &variant[0].outputs()?.concat());
        drop((built_in, variant));

        let mut rounds = Rounds::new(self.stream, &mut prepared.copies)?;
        let (warm_up, laps) = rounds.laps(seconds);
        // Recorded while the variant is in place, and from then on replayed.
        instead(device, loaded, || rounds.lap(true))?;
        let mut times = self.stream.laps_ms(2 * (warm_up + laps), |lap| rounds.lap(lap % 2 == 1))?;
        times.drain(..2 * warm_up);
        let of_turn = |turn: usize| times.iter().skip(turn).step_by(2).copied().collect::<Vec<f32>>();
        let (built_in, variant) = (of_turn(0), of_turn(1));
        let ratios = built_in.iter().zip(&variant).map(|(a, b)| f64::from(*a) / f64::from(*b)).collect();
        Ok(Comparison {
            ratios: Times::new(1, ratios),
            built_in: rounds.per_launch(&built_in),
            variant: rounds.per_launch(&variant),
            kernels,
            difference,
        })
    }
}

/// Runs `work` with the variant's instances in the place of the built-in ones.
fn instead<R>(
    device: &Device,
    loaded: &mut [Loaded],
    work: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Error> {
    loaded.iter_mut().for_each(|loaded| device.exchange(loaded));
    let done = work();
    loaded.iter_mut().for_each(|loaded| device.exchange(loaded));
    done
}

impl Difference {
    pub(super) fn between(expected: &[f32], found: &[f32]) -> Self {
        let mut all = Self { different: 0, elements: expected.len(), largest: 0.0, magnitude: 0.0 };
        for (a, b) in expected.iter().zip(found) {
            if a.is_finite() {
                all.magnitude = all.magnitude.max(f64::from(a.abs()));
            }
            if a.to_bits() != b.to_bits() {
                all.different += 1;
                let distance = (f64::from(*a) - f64::from(*b)).abs();
                all.largest = all.largest.max(if distance.is_nan() { f64::INFINITY } else { distance });
            }
        }
        all
    }
}
