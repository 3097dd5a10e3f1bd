//! What there is to run kernels with: driver, devices, compiler, cache, and every kernel compiled.
//!
//! For reports: what is missing or fails is a finding here, never a failure of the whole.

use std::path::PathBuf;

use crate::catalog;
use crate::compile::{Cache, Compiler, architecture, knows_programmatic_launch};
use crate::driver::{self, Properties};
use crate::nvrtc::NvrtcSearch;
use crate::params::Instance;
use crate::{CpuStream, ElementType, Error, Stream};

pub use crate::compile::ARCHITECTURES;

/// What was found on this machine.
pub struct Findings {
    /// The CUDA version that the driver speaks, such as 12 and 8; or why there is no driver.
    pub driver: Result<(u32, u32), Error>,
    /// The devices in the driver's order; or why there are none.
    pub devices: Result<Vec<FoundDevice>, Error>,
    /// How the search for the compiler came out.
    pub nvrtc: NvrtcSearch,
    /// Where compiled kernels are kept.
    pub cache: FoundCache,
}

/// A GPU, tried.
pub struct FoundDevice {
    /// What it is.
    pub properties: Properties,
    /// What kernels are compiled for on it; none if it is too old for them.
    pub architecture: Option<&'static str>,
    /// Whether a kernel can begin on it before the one ahead of it has ended.
    pub programmatic_launch: bool,
    /// Memory that nobody uses; none if it could not be asked.
    pub free_bytes: Option<u64>,
    /// How it went to run a kernel.
    pub tried: Result<(), Error>,
}

/// The folder of compiled kernels.
pub struct FoundCache {
    /// None where neither a cache folder nor a home folder is known: nothing is kept.
    pub folder: Option<PathBuf>,
    /// Whether entries can be written.
    pub writable: Result<(), Error>,
    /// Compiled kernels, damaged ones included.
    pub entries: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Names of files that hold no whole entry. They are compiled again when they are needed.
    pub damaged: Vec<String>,
}

/// One instance of a kernel.
pub struct TriedKernel {
    /// C++ expression that names it.
    pub name: String,
    /// Path of its file below `kernels/src`.
    pub path: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory that it is launched with.
    pub dynamic_shared_bytes: u32,
    /// What compiling it gave.
    pub compiled: Result<Code, Error>,
}

/// Code of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Bytes of the cubin, or of the PTX where its driver is to translate it.
    pub bytes: usize,
    /// What it takes of a multiprocessor; unknown of PTX.
    pub usage: Option<Usage>,
    /// All that the compilers say.
    pub log: String,
}

/// What a kernel takes, as ptxas reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that a thread writes to and reads from memory for want of registers.
    pub spill_bytes: u32,
    /// Bytes of a thread's stack.
    pub stack_bytes: u32,
    /// Bytes of static shared memory of a block.
    pub static_shared_bytes: u32,
}

/// Looks at everything, and tries every device. `for_architecture` is what the compiler is to know, if it is not the first device's.
pub fn examine(for_architecture: Option<&'static str>) -> Findings {
    let driver = driver::driver_version();
    let devices = driver::devices();
    let first = devices.as_ref().ok().and_then(|devices| devices.iter().find_map(architecture_of));
    let architecture = for_architecture.or(first).unwrap_or("compute_80");
    let nvrtc = NvrtcSearch::new(driver_major(&driver), architecture);
    let cache = Cache::from_environment();
    // Read before a kernel is run, which mends its entry.
    let contents = cache.contents();
    let cache = FoundCache {
        folder: cache.folder().map(PathBuf::from),
        writable: cache.check(),
        entries: contents.entries,
        bytes: contents.bytes,
        damaged: contents.damaged,
    };
    let devices =
        devices.map(|devices| devices.into_iter().enumerate().map(|(i, device)| tried(i, device)).collect());
    Findings { driver, devices, nvrtc, cache }
}

/// Compiles every kernel for one of [`ARCHITECTURES`] through the cache, on all cores. Needs no device; where there is a driver, the
/// code is for it.
pub fn compile(architecture: &'static str) -> Result<Vec<TriedKernel>, Error> {
    let compiler = Compiler::of(architecture, driver_major(&driver::driver_version()));
    let instances = catalog::instances();
    let pool = CpuStream::new(None)?;
    Ok(pool.map(instances.len(), |i| compile_one(&compiler, &instances[i])))
}

fn compile_one(compiler: &Compiler, instance: &Instance) -> TriedKernel {
    TriedKernel {
        name: instance.name.clone(),
        path: instance.source.path,
        threads: instance.threads,
        dynamic_shared_bytes: instance.shared_bytes,
        compiled: compiler.compile(instance).map(|compiled| Code {
            bytes: compiled.code.len(),
            usage: Usage::parse(&compiled.log),
            log: compiled.log,
        }),
    }
}

fn architecture_of(properties: &Properties) -> Option<&'static str> {
    let capability = properties.compute_capability;
    (capability >= driver::CAPABILITY_MIN).then(|| architecture(capability))
}

/// Any version of the compiler will do where there is no driver to run its code.
fn driver_major(driver: &Result<(u32, u32), Error>) -> u32 {
    driver.as_ref().map_or(u32::MAX, |version| version.0)
}

/// Runs a kernel on a device.
fn tried(ordinal: usize, properties: Properties) -> FoundDevice {
    let stream = Stream::cuda(ordinal, ElementType::F16);
    let free_bytes = match &stream {
        Ok(Stream::Cuda(cuda)) => Some(cuda.device().memory().0),
        _ => None,
    };
    let tried = stream.and_then(|stream| stream.check());
    FoundDevice {
        architecture: architecture_of(&properties),
        programmatic_launch: knows_programmatic_launch(properties.compute_capability),
        properties,
        free_bytes,
        tried,
    }
}

impl Findings {
    /// Whether a device runs kernels, or else the error to mend first.
    pub fn usable(&self) -> Result<(), &Error> {
        self.driver.as_ref()?;
        let devices = self.devices.as_ref()?;
        match devices.iter().map(|device| &device.tried).find(|tried| tried.is_ok()) {
            Some(_) => Ok(()),
            None => devices.first().map_or(&Ok(()), |device| &device.tried).as_ref().copied(),
        }
    }
}

impl Usage {
    /// Reads the lines that ptxas adds to the log under `-v`; none where it did not run. Where it reports several functions, the most
    /// that any of them takes, and the spills of all.
    fn parse(log: &str) -> Option<Self> {
        let most = |unit| amounts(log, unit).max();
        Some(Self {
            registers: most(" registers")?,
            spill_bytes: amounts(log, " bytes spill stores").chain(amounts(log, " bytes spill loads")).sum(),
            stack_bytes: most(" bytes stack frame").unwrap_or(0),
            static_shared_bytes: most(" bytes smem").unwrap_or(0),
        })
    }
}

/// The numbers that stand before `unit`.
fn amounts<'a>(log: &'a str, unit: &'a str) -> impl Iterator<Item = u32> + 'a {
    log.match_indices(unit).filter_map(|(at, _)| {
        let before = &log[..at];
        let number = before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        before[number..].parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ptxas_reports_is_read() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z12l2_normalizePf17L2NormalizeParams' for 'sm_90a'
ptxas info    : Function properties for _Z12l2_normalizePf17L2NormalizeParams
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 408 bytes cmem[0]
ptxas info    : Compile time = 4.155 ms";
        let usage = Usage { registers: 40, spill_bytes: 20, stack_bytes: 16, static_shared_bytes: 1024 };
        assert_eq!(Usage::parse(log), Some(usage));
        assert_eq!(
            Usage::parse("ptxas info : Used 7 registers\nptxas info : Used 255 registers, 400 bytes cmem[0]"),
            Some(Usage { registers: 255, ..Usage::default() })
        );
        for without in ["", "ptxas : insufficient register resources", "Used some registers"] {
            assert_eq!(Usage::parse(without), None, "{without}");
        }
    }
}
