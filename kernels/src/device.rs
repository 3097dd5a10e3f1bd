//! A GPU, or the emulator in its place: memory, kernels by name, launches, recorded launches.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::bench::Variant;
use crate::compile::{Compiler, knows_programmatic_launch};
use crate::driver::{
    Counters, Driver, EmulatorOptions, Event, Function, Graph, Launch, Properties, Resources, TensorMap,
};
use crate::error::DeviceError;
use crate::params::{Instance, ParameterBlock, narrow};
use crate::profile::{Detail, Profiler};
use crate::staging::{Pool, Ring, download};
use crate::{ElementType, Error};

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
    /// Taken out when the device is dropped, and never before.
    uploads: Mutex<Option<Ring>>,
    downloads: Mutex<Pool>,
    /// Launches of one thread that are being recorded instead of submitted.
    recording: Mutex<Option<Recorder>>,
    under_way: Mutex<UnderWay>,
    profiler: Profiler,
    is_synchronous: bool,
    is_portable: bool,
    /// Whether a launch may begin before the one ahead of it has ended.
    is_programmatic: AtomicBool,
}

/// What has been submitted since the stream was last seen at rest.
#[derive(Default)]
struct UnderWay {
    /// Distinct kernels.
    kernels: Vec<String>,
    /// Kernels and graphs submitted in all.
    count: u64,
}

/// How much has been submitted so far.
#[derive(Clone, Copy)]
pub(crate) struct Moment(u64);

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
        let uploads = Ring::new(&driver)?;
        Ok(Arc::new(Self {
            compiler: Compiler::new(properties.compute_capability, properties.driver_version.0),
            driver,
            properties,
            functions: Mutex::default(),
            uploads: Mutex::new(Some(uploads)),
            downloads: Mutex::default(),
            recording: Mutex::default(),
            under_way: Mutex::default(),
            profiler: Profiler::default(),
            is_synchronous: is_set(SYNCHRONOUS_VARIABLE),
            is_portable: is_set(PORTABLE_VARIABLE),
            is_programmatic: AtomicBool::new(false),
        }))
    }

    pub(crate) fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Whether kernels that only Hopper runs are to be launched.
    pub(crate) fn is_hopper(&self) -> bool {
        self.properties.compute_capability == (9, 0) && !self.is_portable
    }

    /// From now on, lets a kernel begin before the one launched ahead of it has ended, or not; where kernels cannot, it stays so.
    pub(crate) fn set_programmatic_launch(&self, is_wanted: bool) {
        let is_possible = knows_programmatic_launch(self.properties.compute_capability);
        self.is_programmatic.store(is_wanted && is_possible, Ordering::Relaxed);
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
        let address = self.driver.allocate(total).map_err(|error| self.name_under_way(error))?;
        let allocation = Arc::new(Allocation { device: Arc::clone(self), address });
        Ok((allocation, offsets.into_iter().map(|offset| address + offset as u64).collect()))
    }

    /// Copies `bytes` to `address`, in the order of the stream. When this returns they may change.
    pub(crate) fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        match &mut *lock(&self.uploads) {
            Some(ring) => {
                ring.upload(&self.driver, address, bytes).map_err(|error| self.name_under_way(error))
            }
            None => Ok(()),
        }
    }

    /// Copies from `address`, once all work submitted so far is done.
    pub(crate) fn download(self: &Arc<Self>, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        download(self, address, bytes)
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Host memory for downloads.
    pub(crate) fn pool(&self) -> MutexGuard<'_, Pool> {
        lock(&self.downloads)
    }

    /// Waits until everything submitted is done.
    pub(crate) fn synchronize(&self) -> Result<(), Error> {
        let moment = self.moment();
        // Of a device that is lost later calls name the same kernels.
        self.driver.synchronize().map_err(|error| self.name_under_way(error))?;
        self.has_reached(moment);
        Ok(())
    }

    /// Waits until the stream has come to an event, that was recorded at this moment.
    pub(crate) fn wait(&self, event: &Event, moment: Moment) -> Result<(), Error> {
        self.driver.wait(event).map_err(|error| self.name_under_way(error))?;
        self.has_reached(moment);
        Ok(())
    }

    /// Now.
    pub(crate) fn moment(&self) -> Moment {
        Moment(lock(&self.under_way).count)
    }

    /// Takes note that what was submitted up to then is done.
    fn has_reached(&self, moment: Moment) {
        let mut under_way = lock(&self.under_way);
        if under_way.count == moment.0 {
            under_way.kernels.clear();
        }
    }

    /// Takes note of kernels that are submitted.
    fn submits(&self, kernels: &[String]) {
        let mut under_way = lock(&self.under_way);
        under_way.count += 1;
        kernels.iter().for_each(|kernel| note(&mut under_way.kernels, kernel));
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
        let Loaded { function, .. } = self.function(instance).map_err(|error| self.name_under_way(error))?;
        let resident = self.properties.num_sms * instance.blocks_per_sm / instance.cluster;
        let encode = |map| self.driver.encode(map).map_err(|error| self.name_under_way(error));
        let launch = Launch {
            function,
            blocks: narrow(items).min(resident.max(1)) * instance.cluster,
            threads: instance.threads,
            shared_bytes: instance.shared_bytes,
            cluster: instance.cluster,
            is_programmatic: self.is_programmatic.load(Ordering::Relaxed),
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
        self.submits(std::slice::from_ref(&instance.name));
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

    /// Names the kernels under way in an error of a device that is lost.
    pub(crate) fn name_under_way(&self, error: Error) -> Error {
        self.name_kernels(error, &[])
    }

    /// Names kernels in the driver's errors: those under way on a device that is lost, and `launched` where it refused these.
    fn name_kernels(&self, error: Error, launched: &[String]) -> Error {
        let Error::Device(device_error) = error else { return error };
        match *device_error {
            DeviceError::Lost { device, call, code, text, .. } => {
                let kernels = lock(&self.under_way).kernels.clone();
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
        self.submits(&recording.kernels);
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
        lock(&self.uploads).take().into_iter().for_each(|ring| ring.free(&self.driver));
        std::mem::take(&mut *lock(&self.downloads)).free(&self.driver);
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
