//! A driver whose device is this process: kernels compiled for the host, device memory from the host's allocator.

use std::alloc::Layout;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::{Launch, Properties};
use crate::Error;
use crate::error::DeviceError;

/// How the emulator runs.
#[derive(Clone, Debug)]
pub struct EmulatorOptions {
    /// The kernels, built for the host.
    pub library: PathBuf,
    /// Which thread goes next, as kernels/emulator numbers it.
    pub schedule: u32,
    /// When asynchronous copies take effect, likewise.
    pub asynchronous: u32,
    /// Of whatever is random in a schedule.
    pub seed: u64,
    /// Whether races and reads of unwritten shared memory are looked for.
    pub detect_races: bool,
    /// Which device is emulated: it decides which of several kernels for the same thing is launched.
    pub compute_capability: (u32, u32),
    /// Multiprocessors of the device that is emulated: they decide how many blocks a launch has.
    pub num_sms: u32,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// Devices to emulate, each with memory of its own.
    pub num_devices: usize,
    /// Whether bank conflicts are counted, see [`Counters`].
    pub count_conflicts: bool,
}

impl EmulatorOptions {
    /// The defaults with the kernels of `library`: the first schedule, detectors off, one device of 3 multiprocessors without a limit of memory.
    pub fn new(library: impl Into<PathBuf>) -> Self {
        Self {
            library: library.into(),
            schedule: 0,
            asynchronous: 0,
            seed: 1,
            detect_races: false,
            compute_capability: (8, 0),
            num_sms: 3,
            memory_bytes: u64::MAX,
            num_devices: 1,
            count_conflicts: false,
        }
    }
}

/// What launches have done so far: `emulator_counters` of kernels/emulator/abi.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Changes from one thread to another.
    pub switches: u64,
    /// Barriers, shuffles and other collectives.
    pub collectives: u64,
    /// Matrix products of a warp.
    pub mma: u64,
    /// Asynchronous copies of 16 bytes.
    pub async_copies: u64,
    /// Phases of 8 rows in which `ldmatrix` reads.
    pub ldmatrix: u64,
    /// Cycles that they lost to bank conflicts.
    pub ldmatrix_extra: u64,
    /// Phases of 128 bytes of other loads and stores of shared memory.
    pub shared: u64,
    /// Cycles that they lost to bank conflicts.
    pub shared_extra: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.switches += other.switches;
        self.collectives += other.collectives;
        self.mma += other.mma;
        self.async_copies += other.async_copies;
        self.ldmatrix += other.ldmatrix;
        self.ldmatrix_extra += other.ldmatrix_extra;
        self.shared += other.shared;
        self.shared_extra += other.shared_extra;
    }
}

/// `emulator_launch` of kernels/emulator/abi.h.
#[repr(C)]
struct AbiLaunch {
    kernel: *const c_char,
    blocks: u32,
    cluster: u32,
    threads: u32,
    shared_bytes: u32,
    args: *mut *mut c_void,
    schedule: u32,
    asynchronous: u32,
    seed: u64,
    detect_races: u32,
    programmatic: u32,
}

type LaunchFn = unsafe extern "C" fn(*const AbiLaunch, *mut Counters) -> *const c_char;
type KernelsFn = unsafe extern "C" fn() -> *const *const c_char;

pub(crate) struct Emulator {
    options: EmulatorOptions,
    /// Keeps the code of `launch` loaded.
    _library: libloading::Library,
    launch: LaunchFn,
    /// Names without spaces.
    kernels: Vec<CString>,
    state: Mutex<State>,
    counters: Mutex<Counters>,
}

#[derive(Default)]
struct State {
    /// What has been submitted and not run yet.
    queue: VecDeque<Command>,
    allocations: BTreeMap<u64, Layout>,
    allocated: u64,
    /// The kernel at fault, and what it did.
    fault: Option<(String, String)>,
}

#[derive(Clone)]
pub(crate) struct Function(Arc<CStr>);

/// A list that is replayed.
pub(crate) struct Graph(Arc<[Launch]>);

impl Graph {
    pub(super) fn new(launches: Vec<Launch>) -> Self {
        Self(launches.into())
    }
}

pub(crate) struct Event(Arc<OnceLock<Instant>>);

impl Event {
    pub(super) fn elapsed_ms(&self, end: &Self) -> f32 {
        let time = |event: &Self| event.0.get().copied().unwrap_or_else(Instant::now);
        time(end).duration_since(time(self)).as_secs_f32() * 1e3
    }
}

enum Command {
    Launch(Launch),
    Graph(Arc<[Launch]>),
    /// From the second address to the first.
    Copy(u64, u64, usize),
    Event(Arc<OnceLock<Instant>>),
}

/// Of the driver's own allocations.
const ALIGNMENT: usize = 256;
/// What fresh device memory holds: NaN in all three types.
const POISON: u8 = 0xff;

/// The C++ expression of an instance as it is compared: spaces do not matter.
fn without_spaces(name: &CStr) -> CString {
    CString::new(name.to_bytes().iter().copied().filter(|byte| *byte != b' ').collect::<Vec<_>>())
        .unwrap_or_default()
}

impl Emulator {
    pub(super) fn open(options: EmulatorOptions) -> Result<(Self, Properties), Error> {
        let refused = |source| DeviceError::Emulator { library: options.library.clone(), source };
        // SAFETY: the library's initialisation only registers kernels.
        let library = unsafe { libloading::Library::new(&options.library) }.map_err(refused)?;
        // SAFETY: the type is that of abi.h.
        let launch = *unsafe { library.get::<LaunchFn>(b"emulator_launch\0") }.map_err(refused)?;
        // SAFETY: as above.
        let kernels = *unsafe { library.get::<KernelsFn>(b"emulator_kernels\0") }.map_err(refused)?;
        let properties = Properties {
            name: "emulator".to_owned(),
            compute_capability: options.compute_capability,
            num_sms: options.num_sms,
            shared_bytes_max: 227 << 10,
            memory_bytes: options.memory_bytes,
            l2_bytes: 16 << 10,
            driver_version: (0, 0),
        };
        let mut names = Vec::new();
        // SAFETY: a list that ends with a null pointer, of strings that live as long as the library.
        unsafe {
            let mut name = kernels();
            while !(*name).is_null() {
                names.push(without_spaces(CStr::from_ptr(*name)));
                name = name.add(1);
            }
        }
        let emulator = Self {
            options,
            _library: library,
            launch,
            kernels: names,
            state: Mutex::default(),
            counters: Mutex::default(),
        };
        Ok((emulator, properties))
    }

    pub(super) fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, Error> {
        let mut state = self.state();
        if state.allocated + bytes as u64 > self.options.memory_bytes {
            let free = self.options.memory_bytes - state.allocated;
            return Err(DeviceError::OutOfMemory {
                requested: Some(bytes as u64),
                free,
                total: self.options.memory_bytes,
            }
            .into());
        }
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT)
            .map_err(|_| DeviceError::OutOfMemory { requested: Some(bytes as u64), free: 0, total: 0 })?;
        // SAFETY: the size is not zero.
        let memory = unsafe { std::alloc::alloc(layout) };
        if memory.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        // SAFETY: the memory was just allocated with this size.
        unsafe { memory.write_bytes(POISON, bytes) };
        let address = memory.expose_provenance() as u64;
        state.allocations.insert(address, layout);
        state.allocated += layout.size() as u64;
        Ok(address)
    }

    pub(super) fn free(&self, address: u64) {
        let mut state = self.state();
        self.run_queue(&mut state, &|| false);
        if let Some(layout) = state.allocations.remove(&address) {
            state.allocated -= layout.size() as u64;
            // SAFETY: allocated with this layout, and removed, so freed once.
            unsafe { std::alloc::dealloc(pointer(address), layout) };
        }
    }

    pub(super) fn allocate_pinned(&self, bytes: usize) -> *mut u8 {
        Box::leak(vec![0; bytes].into_boxed_slice()).as_mut_ptr()
    }

    pub(super) fn free_pinned(&self, memory: *mut u8, bytes: usize) {
        let _ = self.synchronize();
        // SAFETY: leaked by `allocate_pinned` with this length.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(memory, bytes)) });
    }

    pub(super) fn copy_to_device(&self, address: u64, source: *const u8, bytes: usize) -> Result<(), Error> {
        self.check(address, bytes)?;
        self.submit(Command::Copy(address, source.expose_provenance() as u64, bytes));
        Ok(())
    }

    pub(super) fn copy_to_host(&self, target: *mut u8, address: u64, bytes: usize) -> Result<(), Error> {
        self.check(address, bytes)?;
        self.submit(Command::Copy(target.expose_provenance() as u64, address, bytes));
        Ok(())
    }

    /// Refuses a copy that leaves its allocation.
    fn check(&self, address: u64, bytes: usize) -> Result<(), Error> {
        let state = self.state();
        let found = state.allocations.range(..=address).next_back();
        match found {
            Some((start, layout)) if address + bytes as u64 <= start + layout.size() as u64 => Ok(()),
            _ => Err(DeviceError::Driver {
                call: "emulated copy",
                code: "out of bounds".to_owned(),
                text: format!("{bytes} bytes at {address:#x} are not within one allocation"),
            }
            .into()),
        }
    }

    pub(super) fn load(&self, name: &str) -> Result<Function, Error> {
        let wanted = CString::new(name).map(|name| without_spaces(&name)).unwrap_or_default();
        match self.kernels.iter().find(|kernel| **kernel == wanted) {
            Some(kernel) => Ok(Function(kernel.as_c_str().into())),
            None => Err(DeviceError::Load {
                kernel: name.to_owned(),
                code: "not in the emulator's library".to_owned(),
                text: self.options.library.display().to_string(),
            }
            .into()),
        }
    }

    pub(super) fn launch(&self, launch: &Launch) -> Result<(), Error> {
        self.submit(Command::Launch(launch.clone()));
        Ok(())
    }

    pub(super) fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.submit(Command::Graph(Arc::clone(&graph.0)));
        Ok(())
    }

    pub(super) fn record(&self) -> Event {
        let time = Arc::new(OnceLock::new());
        self.submit(Command::Event(Arc::clone(&time)));
        Event(time)
    }

    pub(super) fn memory(&self) -> (u64, u64) {
        (self.options.memory_bytes - self.state().allocated, self.options.memory_bytes)
    }

    fn submit(&self, command: Command) {
        self.state().queue.push_back(command);
    }

    /// Runs what has been submitted. As on a GPU, a fault stays: whoever waits next is told, and everybody after.
    pub(super) fn synchronize(&self) -> Result<(), Error> {
        self.run_until(|| false)
    }

    /// The same up to an event: what comes behind it is left for whoever waits for that.
    pub(super) fn wait(&self, event: &Event) -> Result<(), Error> {
        self.run_until(|| event.0.get().is_some())
    }

    /// Runs what has been submitted, as far as `is_reached` does not hold.
    fn run_until(&self, is_reached: impl Fn() -> bool) -> Result<(), Error> {
        let mut state = self.state();
        self.run_queue(&mut state, &is_reached);
        match &state.fault {
            _ if is_reached() => Ok(()),
            None => Ok(()),
            Some((kernel, fault)) => {
                Err(DeviceError::Fault { kernel: kernel.clone(), fault: fault.clone() }.into())
            }
        }
    }

    /// The queue stays locked: a stream runs one thing at a time. Nothing is run behind a fault.
    fn run_queue(&self, state: &mut State, is_reached: &dyn Fn() -> bool) {
        while !is_reached()
            && let Some(command) = state.queue.pop_front()
        {
            if state.fault.is_some() {
                state.queue.clear();
                return;
            }
            let done = match command {
                Command::Launch(launch) => self.run(&launch),
                Command::Graph(launches) => launches.iter().try_for_each(|launch| self.run(launch)),
                Command::Copy(to, from, bytes) => {
                    // SAFETY: the device's side was checked when the copy was submitted, the host's is promised by the caller of
                    // `Driver::copy_*` until now.
                    unsafe { std::ptr::copy_nonoverlapping(pointer(from).cast_const(), pointer(to), bytes) };
                    Ok(())
                }
                Command::Event(time) => {
                    let _ = time.set(Instant::now());
                    Ok(())
                }
            };
            state.fault = done.err();
        }
    }

    fn run(&self, launch: &Launch) -> Result<(), (String, String)> {
        let super::Function::Emulator(Function(kernel)) = &launch.function else {
            return Err(("a kernel of another device".to_owned(), "was submitted".to_owned()));
        };
        let mut args = launch.arguments();
        let abi = AbiLaunch {
            kernel: kernel.as_ptr(),
            blocks: launch.blocks,
            cluster: launch.cluster,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
            args: args.as_mut_ptr(),
            schedule: self.options.schedule,
            asynchronous: self.options.asynchronous,
            seed: self.options.seed,
            detect_races: self.options.detect_races.into(),
            // Every kernel waits for the one before, whether or not its launch asks for that: all are held to it.
            programmatic: 1,
        };
        let mut counters = Counters::default();
        let counted = if self.options.count_conflicts { &raw mut counters } else { std::ptr::null_mut() };
        // SAFETY: the arguments are those of the kernel's signature, as for a real launch.
        let fault = unsafe { (self.launch)(&raw const abi, counted) };
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) += counters;
        if fault.is_null() {
            return Ok(());
        }
        // SAFETY: a string of the library, which stays until this thread's next launch.
        let fault = unsafe { CStr::from_ptr(fault) }.to_string_lossy().into_owned();
        Err((kernel.to_string_lossy().into_owned(), fault))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.synchronize();
    }
}

/// Emulated device memory is host memory, whose provenance was exposed when its address was taken.
fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}
