//! A GPU, or the emulator in its place: memory, kernels by name, launches, recorded launches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::bench::Variant;
use crate::compile::Compiler;
use crate::driver::{
    Counters, Driver, EmulatorOptions, Event, Function, Graph, Launch, Properties, Resources, TensorMap,
};
use crate::error::DeviceError;
use crate::params::{Instance, ParameterBlock, narrow};
use crate::profile::{Detail, Profiler};
use crate::{ElementType, Error};

/// Pinned memory through which everything goes to the device and back.
const STAGING_BYTES: usize = 32 << 20;
/// Alignment of the parts of one allocation: a whole number of memory transactions.
const ALIGNMENT: usize = 256;
/// Runs kernels one at a time, so that a failure is that of the kernel named.
const SYNCHRONOUS_VARIABLE: &str = "OUTCROP_SYNCHRONOUS";
/// Keeps to the kernels that run on every GPU, where there are others for this one: to compare them.
const PORTABLE_VARIABLE: &str = "OUTCROP_PORTABLE_KERNELS";

/// One GPU with one stream: what is submitted runs in the order of submission.
pub(crate) struct Device {
    driver: Driver,
    properties: Properties,
    compiler: Compiler,
    functions: Mutex<HashMap<String, Loaded>>,
    staging: Mutex<Staging>,
    /// Launches of one thread that are being recorded instead of submitted.
    recording: Mutex<Option<Recorder>>,
    /// Kernels submitted since the stream was last waited for.
    under_way: Mutex<Vec<String>>,
    profiler: Profiler,
    is_synchronous: bool,
    is_portable: bool,
}

/// Launches of one thread, and the distinct kernels among them.
struct Recorder {
    thread: ThreadId,
    launches: Vec<Launch>,
    kernels: Vec<String>,
}

/// A kernel in the device's hands.
#[derive(Clone)]
pub(crate) struct Loaded {
    instance: Instance,
    function: Function,
    resources: Resources,
}

/// Host memory that the device copies from and to.
struct Staging {
    memory: *mut u8,
    /// Bytes that copies under way may still read.
    used: usize,
}

// SAFETY: the memory is used under the lock around this alone.
unsafe impl Send for Staging {}

/// Device memory, freed when the last part of it is dropped.
pub(crate) struct Allocation {
    device: Arc<Device>,
    address: u64,
}

/// A kernel that has been loaded, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedKernel {
    /// C++ expression of the instance.
    pub name: String,
    /// Path of its file below `kernels/src`.
    pub path: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// What it takes of a multiprocessor.
    pub resources: Resources,
}

impl Loaded {
    pub(crate) fn name(&self) -> &str {
        &self.instance.name
    }

    pub(crate) fn report(&self) -> LoadedKernel {
        let Instance { source, name, threads, shared_bytes, .. } = &self.instance;
        LoadedKernel {
            name: name.clone(),
            path: source.path,
            threads: *threads,
            shared_bytes: *shared_bytes,
            resources: self.resources,
        }
    }
}

impl Device {
    /// The GPU that the driver numbers `ordinal`.
    pub(crate) fn cuda(ordinal: usize) -> Result<Arc<Self>, Error> {
        let (driver, properties) = Driver::cuda(ordinal)?;
        Self::open(driver, properties)
    }

    /// The emulator.
    pub(crate) fn emulator(options: EmulatorOptions) -> Result<Arc<Self>, Error> {
        let (driver, properties) = Driver::emulator(options)?;
        Self::open(driver, properties)
    }

    fn open(driver: Driver, properties: Properties) -> Result<Arc<Self>, Error> {
        let memory = driver.allocate_pinned(STAGING_BYTES)?;
        Ok(Arc::new(Self {
            compiler: Compiler::new(properties.compute_capability, properties.driver_version.0),
            driver,
            properties,
            functions: Mutex::default(),
            staging: Mutex::new(Staging { memory, used: 0 }),
            recording: Mutex::default(),
            under_way: Mutex::default(),
            profiler: Profiler::default(),
            is_synchronous: is_set(SYNCHRONOUS_VARIABLE),
            is_portable: is_set(PORTABLE_VARIABLE),
        }))
    }

    pub(crate) fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Whether kernels that only Hopper runs are to be launched.
    pub(crate) fn is_hopper(&self) -> bool {
        self.properties.compute_capability == (9, 0) && !self.is_portable
    }

    /// Free memory and memory in all.
    pub(crate) fn memory(&self) -> (u64, u64) {
        self.driver.memory()
    }

    /// What the emulator has counted; `None` of a GPU.
    pub(crate) fn counters(&self) -> Option<Counters> {
        self.driver.counters()
    }

    /// Kernels loaded so far.
    pub(crate) fn loaded_kernels(&self) -> Vec<LoadedKernel> {
        let functions = lock(&self.functions);
        let mut kernels: Vec<_> = functions.values().map(Loaded::report).collect();
        kernels.sort_by(|a, b| a.name.cmp(&b.name));
        kernels
    }

    /// One allocation with a part for each of `lengths`, in bytes. Contents are undefined.
    pub(crate) fn allocate(
        self: &Arc<Self>,
        lengths: &[usize],
    ) -> Result<(Arc<Allocation>, Vec<u64>), Error> {
        let offsets: Vec<usize> = lengths
            .iter()
            .scan(0, |end, len| {
                let start = *end;
                *end += len.next_multiple_of(ALIGNMENT);
                Some(start)
            })
            .collect();
        // The last part is not rounded up: a kernel that leaves it leaves the allocation, where tools see it.
        let total = offsets.last().zip(lengths.last()).map_or(0, |(offset, len)| offset + len);
        let address = self.driver.allocate(total).map_err(|error| self.name_kernels(error, &[]))?;
        let allocation = Arc::new(Allocation { device: Arc::clone(self), address });
        Ok((allocation, offsets.into_iter().map(|offset| address + offset as u64).collect()))
    }

    /// Copies `bytes` to `address`, in the order of the stream. When this returns they may change.
    pub(crate) fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut staging = lock(&self.staging);
        let mut done = 0;
        while done < bytes.len() {
            if staging.used == STAGING_BYTES {
                self.synchronize_locked(&mut staging)?;
            }
            let len = (bytes.len() - done).min(STAGING_BYTES - staging.used);
            // SAFETY: `used + len` is within the staging memory, and no copy under way uses what lies behind `used`.
            let part = unsafe { staging.memory.add(staging.used) };
            // SAFETY: `len` bytes are there on both sides, and staging memory is no slice of ours.
            unsafe { part.copy_from_nonoverlapping(bytes[done..].as_ptr(), len) };
            // SAFETY: what lies before `used` stays as it is until the stream has been waited for.
            unsafe { self.driver.copy_to_device(address + done as u64, part, len) }
                .map_err(|error| self.name_kernels(error, &[]))?;
            staging.used += len;
            done += len;
        }
        // Parts that follow start aligned.
        staging.used = staging.used.next_multiple_of(ALIGNMENT).min(STAGING_BYTES);
        Ok(())
    }

    /// Waits for the stream and copies from `address`.
    pub(crate) fn download(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let mut staging = lock(&self.staging);
        self.synchronize_locked(&mut staging)?;
        for (i, part) in bytes.chunks_mut(STAGING_BYTES).enumerate() {
            // SAFETY: a part fits the staging memory, which nobody else uses: its lock is held, and the stream has been waited for.
            unsafe {
                self.driver.copy_to_host(staging.memory, address + (i * STAGING_BYTES) as u64, part.len())
            }
            .map_err(|error| self.name_kernels(error, &[]))?;
            self.synchronize_locked(&mut staging)?;
            // SAFETY: as above, and the copy is done.
            unsafe { part.as_mut_ptr().copy_from_nonoverlapping(staging.memory, part.len()) };
        }
        Ok(())
    }

    /// Waits until everything submitted is done.
    pub(crate) fn synchronize(&self) -> Result<(), Error> {
        self.synchronize_locked(&mut lock(&self.staging))
    }

    fn synchronize_locked(&self, staging: &mut Staging) -> Result<(), Error> {
        // Of a device that is lost later calls name the same kernels.
        self.driver.synchronize().map_err(|error| self.name_kernels(error, &[]))?;
        staging.used = 0;
        lock(&self.under_way).clear();
        Ok(())
    }

    /// Loads `instance`, compiled if need be.
    fn function(&self, instance: &Instance) -> Result<Loaded, Error> {
        if let Some(loaded) = lock(&self.functions).get(&instance.name) {
            return Ok(loaded.clone());
        }
        let name = &instance.name;
        let (function, resources) = match &self.driver {
            Driver::Emulator(_) => self.driver.load(name, &[], "", instance.shared_bytes)?,
            Driver::Cuda(_) => {
                let compiled = self.compiler.compile(instance)?;
                self.driver.load(name, &compiled.code, &compiled.symbol, instance.shared_bytes)?
            }
        };
        let loaded = Loaded { instance: instance.clone(), function, resources };
        lock(&self.functions).insert(name.clone(), loaded.clone());
        Ok(loaded)
    }

    /// Loads `instance` as compiled from a variant of its file, beside the one that launches take.
    pub(crate) fn load_variant(&self, instance: &Instance, variant: &Variant) -> Result<Loaded, Error> {
        let Driver::Cuda(_) = &self.driver else { return Err(DeviceError::NoVariants.into()) };
        let compiled = self.compiler.compile_variant(instance, variant)?;
        let (function, resources) =
            self.driver.load(&instance.name, &compiled.code, &compiled.symbol, instance.shared_bytes)?;
        Ok(Loaded { instance: instance.clone(), function, resources })
    }

    /// Exchanges a kernel with the one of its name that launches take.
    pub(crate) fn exchange(&self, loaded: &mut Loaded) {
        if let Some(taken) = lock(&self.functions).get_mut(&loaded.instance.name) {
            std::mem::swap(taken, loaded);
        }
    }

    /// Launches `instance` with a cluster of blocks for each of `items`, or as many as the device holds at the same time. Without an
    /// item nothing is launched.
    pub(crate) fn launch(
        &self,
        instance: &Instance,
        items: usize,
        maps: &[TensorMap],
        pointers: &[u64],
        params: &impl ParameterBlock,
    ) -> Result<(), Error> {
        if items == 0 {
            return Ok(());
        }
        #[cfg(test)]
        crate::launched::note(&instance.name);
        let Loaded { function, .. } =
            self.function(instance).map_err(|error| self.name_kernels(error, &[]))?;
        let resident = self.properties.num_sms * instance.blocks_per_sm / instance.cluster;
        let encode = |map| self.driver.encode(map).map_err(|error| self.name_kernels(error, &[]));
        let launch = Launch {
            function,
            blocks: narrow(items).min(resident.max(1)) * instance.cluster,
            threads: instance.threads,
            shared_bytes: instance.shared_bytes,
            cluster: instance.cluster,
            maps: maps.iter().map(encode).collect::<Result<_, _>>()?,
            pointers: pointers.to_vec(),
            params: words(params),
        };
        if let Some(recorder) = &mut *lock(&self.recording)
            && recorder.thread == thread::current().id()
        {
            recorder.launches.push(launch);
            note(&mut recorder.kernels, &instance.name);
            return Ok(());
        }
        note(&mut lock(&self.under_way), &instance.name);
        if self.profiler.is_timed(Detail::Kernels) {
            self.profiler.note_launch(&instance.name);
        }
        let refused = |error| self.name_kernels(error, std::slice::from_ref(&instance.name));
        self.driver.launch(&launch).map_err(refused)?;
        if self.is_synchronous { self.synchronize() } else { Ok(()) }
    }

    /// Whether kernels run one at a time. What is recorded does not.
    pub(crate) fn is_synchronous(&self) -> bool {
        self.is_synchronous
    }

    /// Names kernels in the driver's errors: those under way on a device that is lost, and `launched` where it refused these.
    fn name_kernels(&self, error: Error, launched: &[String]) -> Error {
        let Error::Device(device_error) = error else { return error };
        match *device_error {
            DeviceError::Lost { device, call, code, text, .. } => {
                let kernels = lock(&self.under_way).clone();
                DeviceError::Lost { device, call, code, text, kernels }.into()
            }
            DeviceError::Driver { call, code, text } if !launched.is_empty() => {
                DeviceError::Launch { kernels: launched.to_vec(), call, code, text }.into()
            }
            other => other.into(),
        }
    }

    /// Records what `work` launches, without running it.
    fn record<E: From<Error>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Recording, E> {
        let recorder = Recorder { thread: thread::current().id(), launches: Vec::new(), kernels: Vec::new() };
        *lock(&self.recording) = Some(recorder);
        let done = work();
        let recorder = lock(&self.recording).take();
        done?;
        let (launches, kernels) = recorder.map(|r| (r.launches, r.kernels)).unwrap_or_default();
        let graph = self.driver.instantiate(launches).map_err(|error| self.name_kernels(error, &kernels))?;
        Ok(Recording { graph, kernels })
    }

    fn replay(&self, recording: &Recording) -> Result<(), Error> {
        recording.kernels.iter().for_each(|kernel| note(&mut lock(&self.under_way), kernel));
        self.driver.replay(&recording.graph).map_err(|error| self.name_kernels(error, &recording.kernels))
    }

    /// The kernels that `work` launches. They are loaded, and not run.
    pub(crate) fn kernels_of(
        &self,
        work: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Vec<LoadedKernel>, Error> {
        let recording = self.record(work)?;
        let mut kernels = self.loaded_kernels();
        kernels.retain(|kernel| recording.kernels.contains(&kernel.name));
        Ok(kernels)
    }

    /// Milliseconds of each of `count` laps on the device; `lap(i)` submits the `i`-th. None is waited for before all are submitted.
    pub(crate) fn laps(
        &self,
        count: usize,
        mut lap: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<Vec<f32>, Error> {
        let mut events = vec![self.driver.record()?];
        for i in 0..count {
            lap(i)?;
            events.push(self.driver.record()?);
        }
        self.synchronize()?;
        events.windows(2).map(|pair| self.driver.elapsed_ms(&pair[0], &pair[1])).collect()
    }

    pub(crate) fn profiler(&self) -> &Profiler {
        &self.profiler
    }

    /// A moment in the stream's work, behind everything submitted so far.
    pub(crate) fn record_event(&self) -> Result<Event, Error> {
        self.driver.record()
    }

    /// Milliseconds from one moment to a later one, once the stream has come there.
    pub(crate) fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32, Error> {
        self.driver.elapsed_ms(start, end)
    }

    /// Milliseconds that `work` takes on the device.
    pub(crate) fn time(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<f32, Error> {
        let start: Event = self.driver.record()?;
        work()?;
        let end = self.driver.record()?;
        self.synchronize()?;
        self.driver.elapsed_ms(&start, &end)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.driver.synchronize();
        self.driver.free_pinned(lock(&self.staging).memory, STAGING_BYTES);
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.device.driver.free(self.address);
    }
}

impl Allocation {
    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

/// Launches that were recorded once, by what they depend on.
pub(crate) struct Recordings<K> {
    graphs: HashMap<K, Recording>,
}

struct Recording {
    graph: Graph,
    /// Distinct kernels in it, for errors.
    kernels: Vec<String>,
}

/// Recordings kept at most: callers that come with ever new options do not fill memory.
const RECORDINGS_MAX: usize = 32;

impl<K> Default for Recordings<K> {
    fn default() -> Self {
        Self { graphs: HashMap::new() }
    }
}

impl<K: std::hash::Hash + Eq> Recordings<K> {
    /// Runs what `work` launches: records it the first time that `key` comes, replays it ever after.
    pub(crate) fn run<E: From<Error>>(
        &mut self,
        device: &Device,
        key: K,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(recording) = self.graphs.get(&key) {
            return Ok(device.replay(recording)?);
        }
        let recording = device.record(work)?;
        device.replay(&recording)?;
        if self.graphs.len() >= RECORDINGS_MAX {
            self.graphs.clear();
        }
        self.graphs.insert(key, recording);
        Ok(())
    }
}

/// Whether an environment variable is there and not 0.
fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value != "0")
}

/// Adds a name to those that are there.
fn note(kernels: &mut Vec<String>, name: &str) {
    if !kernels.iter().any(|noted| noted == name) {
        kernels.push(name.to_owned());
    }
}

/// The block's bytes in words.
fn words(params: &impl ParameterBlock) -> Vec<u64> {
    let bytes = size_of_val(params);
    let mut words = vec![0u64; bytes.div_ceil(8)];
    // SAFETY: a parameter block is plain data without padding, and there is room for it.
    unsafe {
        std::ptr::from_ref(params).cast::<u8>().copy_to_nonoverlapping(words.as_mut_ptr().cast(), bytes)
    };
    words
}

/// Nothing that these locks guard is left half-done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of a type in a `.cu` file.
pub(crate) fn cpp_name(element_type: ElementType) -> &'static str {
    match element_type {
        ElementType::F32 => "float",
        ElementType::F16 => "f16",
        ElementType::BF16 => "bf16",
    }
}
