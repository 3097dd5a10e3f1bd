//! Where kernels run.

use std::sync::Arc;

use crate::device::{Device, LoadedKernel, Recordings};
use crate::driver::{Counters, EmulatorOptions, Properties};
use crate::error::DeviceError;
use crate::l2_normalize::l2_normalize;
use crate::profile::Profiler;
use crate::{Buffer, ElementType, Error, Role};

/// A place to run kernels.
///
/// Calls from several threads may share one stream. On the CPU their work interleaves; on CUDA it runs in the order in which it was
/// submitted. Results never depend on the number of threads.
pub enum Stream {
    /// A pool of compute threads.
    Cpu(Arc<CpuStream>),
    /// A GPU.
    Cuda(CudaStream),
}

/// A pool of compute threads.
pub struct CpuStream {
    pool: rayon::ThreadPool,
    profiler: Profiler,
}

/// A GPU and the type in which it multiplies.
pub struct CudaStream {
    device: Arc<Device>,
    operand_type: ElementType,
}

impl Stream {
    /// A CPU stream, see [`CpuStream::new`].
    pub fn cpu(threads: Option<usize>) -> Result<Self, Error> {
        Ok(Self::Cpu(CpuStream::new(threads)?))
    }

    /// A stream on the GPU that the driver numbers `ordinal`, with operands of `operand_type`, one of the 16-bit types.
    pub fn cuda(ordinal: usize, operand_type: ElementType) -> Result<Self, Error> {
        Self::on(operand_type, || Device::cuda(ordinal))
    }

    /// A stream on an emulated GPU.
    pub fn emulator(options: EmulatorOptions, operand_type: ElementType) -> Result<Self, Error> {
        Self::on(operand_type, || Device::emulator(options))
    }

    fn on(
        operand_type: ElementType,
        device: impl FnOnce() -> Result<Arc<Device>, Error>,
    ) -> Result<Self, Error> {
        if operand_type == ElementType::F32 {
            return Err(DeviceError::FullPrecision.into());
        }
        Ok(Self::Cuda(CudaStream { device: device()?, operand_type }))
    }

    /// Whether a GPU may begin a kernel before the one ahead of it has ended, to hide the time between the two: programmatic dependent
    /// launch. Off at first; without effect where kernels cannot, see [`doctor::FoundDevice`](crate::doctor::FoundDevice).
    pub fn set_programmatic_launch(&self, is_wanted: bool) {
        if let Self::Cuda(cuda) = self {
            cuda.device.set_programmatic_launch(is_wanted);
        }
    }

    /// Runs `work` where kernels called from it start without a hand-over: inside the pool of a CPU stream.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Self::Cpu(cpu) => cpu.run(work),
            Self::Cuda(_) => work(),
        }
    }

    /// Runs a small kernel: an error says why none can be run.
    pub fn check(&self) -> Result<(), Error> {
        let [mut row] = Buffer::allocate(self, [(Role::Full, 8)])?;
        row.write(&[3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0])?;
        l2_normalize(self, &mut row, 1.into(), 8)?;
        self.synchronize()
    }

    /// What the GPU is; `None` for a CPU stream.
    pub fn properties(&self) -> Option<&Properties> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(cuda) => Some(cuda.device.properties()),
        }
    }

    /// What an emulated GPU has counted, if it was told to count.
    pub fn counters(&self) -> Option<Counters> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(cuda) => cuda.device.counters(),
        }
    }

    /// Kernels that a GPU has loaded so far.
    pub fn loaded_kernels(&self) -> Vec<LoadedKernel> {
        match self {
            Self::Cpu(_) => Vec::new(),
            Self::Cuda(cuda) => cuda.device.loaded_kernels(),
        }
    }

    /// The type of the operands of matrix products: f32 on the CPU.
    pub fn operand_type(&self) -> ElementType {
        match self {
            Self::Cpu(_) => ElementType::F32,
            Self::Cuda(cuda) => cuda.operand_type,
        }
    }

    /// The kernels that `work` launches on a GPU, where they are loaded and not run.
    pub(crate) fn kernels_of(
        &self,
        work: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Vec<LoadedKernel>, Error> {
        match self {
            Self::Cpu(_) => Ok(Vec::new()),
            Self::Cuda(cuda) => cuda.device.kernels_of(work),
        }
    }

    /// Milliseconds of each of `count` laps, by the clocks of [`Stream::time_ms`]; `lap(i)` submits the `i`-th, behind those before.
    pub(crate) fn laps_ms(
        &self,
        count: usize,
        mut lap: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<Vec<f32>, Error> {
        match self {
            Self::Cpu(_) => (0..count).map(|i| self.time_ms(|| lap(i))).collect(),
            Self::Cuda(cuda) => cuda.device.laps(count, lap),
        }
    }

    /// Milliseconds that what `work` submits takes on the device, by its own clock; on the CPU by that of the host.
    pub fn time_ms(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<f32, Error> {
        match self {
            Self::Cpu(_) => {
                let start = std::time::Instant::now();
                work()?;
                Ok(start.elapsed().as_secs_f32() * 1e3)
            }
            Self::Cuda(cuda) => cuda.device.time(work),
        }
    }

    /// Waits until everything submitted is done.
    pub fn synchronize(&self) -> Result<(), Error> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => cuda.device.synchronize(),
        }
    }
}

/// Sequences of launches that a GPU has recorded and runs again as one, by what decides them.
///
/// Launches depend on a batch's bounds and not on its sizes, which kernels read from device memory; so a key that holds the bounds
/// and the options of a run says all.
pub struct Graphs<K> {
    recordings: Recordings<K>,
    is_enabled: bool,
}

impl<K: std::hash::Hash + Eq> Graphs<K> {
    /// None recorded yet; nothing ever will be unless `is_enabled`.
    pub fn new(is_enabled: bool) -> Self {
        Self { recordings: Recordings::default(), is_enabled }
    }

    /// Runs the launches of `work`. On a GPU `work` is called the first time that `key` comes, and after that its launches are
    /// replayed without it: it must do nothing but launch.
    pub fn run<E: From<Error>>(
        &mut self,
        stream: &Stream,
        key: K,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        match stream {
            Stream::Cuda(cuda)
                if self.is_enabled && !cuda.device.is_synchronous() && !stream.times_kernels() =>
            {
                self.recordings.run(&cuda.device, key, work)
            }
            _ => work(),
        }
    }
}

impl CudaStream {
    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Type of the operands of matrix products.
    pub fn operand_type(&self) -> ElementType {
        self.operand_type
    }
}

impl CpuStream {
    /// A pool of `threads` compute threads; `None` takes as many as the process may use.
    pub fn new(threads: Option<usize>) -> Result<Arc<Self>, Error> {
        let threads = threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
            .max(1);
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("outcrop-{i}"))
            .build()
            .map(|pool| Arc::new(Self { pool, profiler: Profiler::default() }))
            .map_err(|source| Error::ThreadPool { threads, source })
    }

    /// Runs `work` inside the pool, so that kernels called from it start without a thread hand-over.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    pub(crate) fn profiler(&self) -> &Profiler {
        &self.profiler
    }

    /// Compute threads.
    pub fn num_threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Calls `task(i)` for every `i < num_tasks` on the pool, each exactly once, in no particular order.
    pub(crate) fn for_each(&self, num_tasks: usize, task: impl Fn(usize) + Sync + Send) {
        use rayon::prelude::*;
        if num_tasks <= 1 || self.num_threads() == 1 {
            (0..num_tasks).for_each(task);
        } else {
            self.pool.install(|| (0..num_tasks).into_par_iter().with_max_len(1).for_each(task));
        }
    }

    /// `[f(0), f(1), ..]`, computed on the pool.
    pub(crate) fn map<T: Send>(&self, num_tasks: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        use rayon::prelude::*;
        self.pool.install(|| (0..num_tasks).into_par_iter().map(f).collect())
    }

    /// Splits `num_rows` rows into runs of about `rows_per_task` and calls `task(first_row, num_rows)` for each.
    pub(crate) fn for_each_rows(
        &self,
        num_rows: usize,
        rows_per_task: usize,
        task: impl Fn(usize, usize) + Sync + Send,
    ) {
        let rows_per_task = rows_per_task.max(1);
        self.for_each(num_rows.div_ceil(rows_per_task), |i| {
            let first = i * rows_per_task;
            task(first, rows_per_task.min(num_rows - first));
        });
    }
}
