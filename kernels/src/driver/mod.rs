//! What the launch layer asks of a device, and who answers: NVIDIA's driver, or the emulator that stands in for it.
//!
//! Both run the same kernels behind the same host code: arena, parameter blocks, launch geometry, recorded launches. The emulator
//! gets its kernels from a library built for the host (kernels/emulator), its device memory is host memory, and like a stream it
//! runs nothing before somebody waits, so that host code which reads or overwrites too early is found out.

mod cuda;
mod emulator;
mod functions;
mod tensor_map;

pub use self::emulator::{Counters, EmulatorOptions};
pub(crate) use self::tensor_map::{EncodedMap, Heads, SWIZZLED_COLUMNS, TensorMap};

use std::ffi::c_void;
use std::ptr;

use crate::Error;
use crate::error::DeviceError;

/// The least that the kernels are written for.
pub(crate) const CAPABILITY_MIN: (u32, u32) = (8, 0);

/// What a device is and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Marketing name.
    pub name: String,
    /// Major and minor version of what it can execute.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub num_sms: u32,
    /// Shared memory that one block may ask for.
    pub shared_bytes_max: u32,
    /// Memory in all.
    pub memory_bytes: u64,
    /// The cache that all multiprocessors share.
    pub l2_bytes: u32,
    /// The CUDA version that the driver speaks, such as 12 and 8.
    pub driver_version: (u32, u32),
}

impl Properties {
    /// Whether it is the emulator that stands in for a GPU.
    pub fn is_emulated(&self) -> bool {
        self.driver_version == (0, 0)
    }
}

/// One launch with everything it needs, ready to be submitted now or again and again.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) function: Function,
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    /// Blocks of a cluster, which the kernel's code fixes.
    pub(crate) cluster: u32,
    /// Whether it may begin before a kernel right ahead of it has ended, for which it waits itself.
    pub(crate) is_programmatic: bool,
    /// The leading arguments.
    pub(crate) maps: Vec<EncodedMap>,
    /// Device addresses, the next ones.
    pub(crate) pointers: Vec<u64>,
    /// The parameter block, the last argument; in words for its alignment.
    pub(crate) params: Vec<u64>,
}

impl Launch {
    /// Addresses of the arguments, as a driver takes them.
    fn arguments(&self) -> Vec<*mut c_void> {
        let maps = self.maps.iter().map(|map| ptr::from_ref(map).cast_mut().cast());
        let pointers = self.pointers.iter().map(|pointer| ptr::from_ref(pointer).cast_mut().cast());
        maps.chain(pointers).chain([self.params.as_ptr().cast_mut().cast()]).collect()
    }
}

/// A kernel, loaded.
#[derive(Clone)]
pub(crate) enum Function {
    Cuda(cuda::Function),
    Emulator(emulator::Function),
}

/// A sequence of launches that is submitted as one.
pub(crate) enum Graph {
    Cuda(cuda::Graph),
    Emulator(emulator::Graph),
}

/// A moment in a stream's work.
pub(crate) enum Event {
    Cuda(cuda::Event),
    Emulator(emulator::Event),
}

pub(crate) enum Driver {
    Cuda(cuda::Cuda),
    Emulator(Box<emulator::Emulator>),
}

/// Registers and local memory of a loaded kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread: anything but 0 is spilled registers.
    pub local_bytes: u32,
}

/// The devices that the driver sees: an error says why there are none.
pub fn devices() -> Result<Vec<Properties>, Error> {
    cuda::devices()
}

/// The CUDA version that the driver speaks, such as 12 and 8.
pub(crate) fn driver_version() -> Result<(u32, u32), Error> {
    cuda::version()
}

impl Driver {
    pub(crate) fn cuda(ordinal: usize) -> Result<(Self, Properties), Error> {
        let (driver, properties) = cuda::Cuda::open(ordinal)?;
        Ok((Self::Cuda(driver), properties))
    }

    pub(crate) fn emulator(options: EmulatorOptions) -> Result<(Self, Properties), Error> {
        let (driver, properties) = emulator::Emulator::open(options)?;
        Ok((Self::Emulator(Box::new(driver)), properties))
    }

    /// `bytes` of device memory, their contents undefined.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64, Error> {
        match self {
            Self::Cuda(cuda) => cuda.allocate(bytes),
            Self::Emulator(emulator) => emulator.allocate(bytes),
        }
    }

    /// Frees what [`Driver::allocate`] gave, once all work that may use it is done.
    pub(crate) fn free(&self, address: u64) {
        match self {
            Self::Cuda(cuda) => cuda.free(address),
            Self::Emulator(emulator) => emulator.free(address),
        }
    }

    /// `bytes` of host memory that copies may read and write while the host goes on.
    pub(crate) fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8, Error> {
        match self {
            Self::Cuda(cuda) => cuda.allocate_pinned(bytes),
            Self::Emulator(emulator) => Ok(emulator.allocate_pinned(bytes)),
        }
    }

    /// Frees what [`Driver::allocate_pinned`] gave.
    pub(crate) fn free_pinned(&self, memory: *mut u8, bytes: usize) {
        match self {
            Self::Cuda(cuda) => cuda.free_pinned(memory),
            Self::Emulator(emulator) => emulator.free_pinned(memory, bytes),
        }
    }

    /// Copies to device memory, in the order of the stream.
    ///
    /// # Safety
    /// `source` points to `bytes` bytes that stay as they are until the stream has been waited for.
    pub(crate) unsafe fn copy_to_device(
        &self,
        address: u64,
        source: *const u8,
        bytes: usize,
    ) -> Result<(), Error> {
        match self {
            // SAFETY: passed on to the caller.
            Self::Cuda(cuda) => unsafe { cuda.copy_to_device(address, source, bytes) },
            Self::Emulator(emulator) => emulator.copy_to_device(address, source, bytes),
        }
    }

    /// Copies from device memory, in the order of the stream.
    ///
    /// # Safety
    /// `target` points to `bytes` bytes that nobody touches until the stream has been waited for.
    pub(crate) unsafe fn copy_to_host(
        &self,
        target: *mut u8,
        address: u64,
        bytes: usize,
    ) -> Result<(), Error> {
        match self {
            // SAFETY: passed on to the caller.
            Self::Cuda(cuda) => unsafe { cuda.copy_to_host(target, address, bytes) },
            Self::Emulator(emulator) => emulator.copy_to_host(target, address, bytes),
        }
    }

    /// Loads the kernel `name` from machine code; the emulator has its own.
    pub(crate) fn load(
        &self,
        name: &str,
        code: &[u8],
        symbol: &str,
        shared_bytes: u32,
    ) -> Result<(Function, Resources), Error> {
        match self {
            Self::Cuda(cuda) => {
                let (function, resources) = cuda.load(name, code, symbol, shared_bytes)?;
                Ok((Function::Cuda(function), resources))
            }
            Self::Emulator(emulator) => Ok((Function::Emulator(emulator.load(name)?), Resources::default())),
        }
    }

    /// A tensor map as kernels take it.
    pub(crate) fn encode(&self, map: &TensorMap) -> Result<EncodedMap, Error> {
        match self {
            Self::Cuda(cuda) => cuda.encode(map),
            Self::Emulator(_) => Ok(map.for_emulator()),
        }
    }

    /// Submits a launch to the stream.
    pub(crate) fn launch(&self, launch: &Launch) -> Result<(), Error> {
        match (self, &launch.function) {
            (Self::Cuda(cuda), Function::Cuda(function)) => cuda.launch(function, launch),
            (Self::Emulator(emulator), Function::Emulator(_)) => emulator.launch(launch),
            _ => Err(DeviceError::OtherDevice { operand: "kernel" }.into()),
        }
    }

    /// Makes one unit of `launches`, each after the one before.
    pub(crate) fn instantiate(&self, launches: Vec<Launch>) -> Result<Graph, Error> {
        Ok(match self {
            Self::Cuda(cuda) => Graph::Cuda(cuda.instantiate(&launches)?),
            Self::Emulator(_) => Graph::Emulator(emulator::Graph::new(launches)),
        })
    }

    /// Submits a graph to the stream.
    pub(crate) fn replay(&self, graph: &Graph) -> Result<(), Error> {
        match (self, graph) {
            (Self::Cuda(cuda), Graph::Cuda(graph)) => cuda.replay(graph),
            (Self::Emulator(emulator), Graph::Emulator(graph)) => emulator.replay(graph),
            _ => Err(DeviceError::OtherDevice { operand: "graph" }.into()),
        }
    }

    /// An event that the stream has not reached yet.
    pub(crate) fn record(&self) -> Result<Event, Error> {
        Ok(match self {
            Self::Cuda(cuda) => Event::Cuda(cuda.record()?),
            Self::Emulator(emulator) => Event::Emulator(emulator.record()),
        })
    }

    /// The same for waiting alone, without the time.
    pub(crate) fn mark(&self) -> Result<Event, Error> {
        Ok(match self {
            Self::Cuda(cuda) => Event::Cuda(cuda.mark()?),
            Self::Emulator(emulator) => Event::Emulator(emulator.record()),
        })
    }

    /// Waits until the stream has reached an event.
    pub(crate) fn wait(&self, event: &Event) -> Result<(), Error> {
        match (self, event) {
            (Self::Cuda(cuda), Event::Cuda(event)) => cuda.wait(event),
            (Self::Emulator(emulator), Event::Emulator(event)) => emulator.wait(event),
            _ => Err(DeviceError::OtherDevice { operand: "event" }.into()),
        }
    }

    /// Milliseconds from one event to a later one, both reached.
    pub(crate) fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32, Error> {
        match (self, start, end) {
            (Self::Cuda(cuda), Event::Cuda(start), Event::Cuda(end)) => cuda.elapsed_ms(start, end),
            (Self::Emulator(_), Event::Emulator(start), Event::Emulator(end)) => Ok(start.elapsed_ms(end)),
            _ => Err(DeviceError::OtherDevice { operand: "event" }.into()),
        }
    }

    /// Waits until all submitted work is done.
    pub(crate) fn synchronize(&self) -> Result<(), Error> {
        match self {
            Self::Cuda(cuda) => cuda.synchronize(),
            Self::Emulator(emulator) => emulator.synchronize(),
        }
    }

    /// What the emulator has counted; `None` of a GPU.
    pub(crate) fn counters(&self) -> Option<Counters> {
        match self {
            Self::Cuda(_) => None,
            Self::Emulator(emulator) => Some(emulator.counters()),
        }
    }

    /// Free memory and memory in all, as the device reports it.
    pub(crate) fn memory(&self) -> (u64, u64) {
        match self {
            Self::Cuda(cuda) => cuda.memory(),
            Self::Emulator(emulator) => emulator.memory(),
        }
    }
}
