//! NVIDIA's driver, through cudarc's lazily loaded bindings. One context and one stream per device.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use libloading::Library;

use super::{Launch, Properties, Resources};
use crate::Error;
use crate::error::DeviceError;
use crate::nvrtc::loader_reason;

pub(crate) struct Cuda {
    context: sys::CUcontext,
    stream: sys::CUstream,
    device: sys::CUdevice,
}

// SAFETY: the driver's handles may be used from any thread; every call makes the context current on its thread first.
unsafe impl Send for Cuda {}
// SAFETY: as for `Send`; the driver synchronises its own calls.
unsafe impl Sync for Cuda {}

#[derive(Clone, Copy)]
pub(crate) struct Function(sys::CUfunction);

// SAFETY: a handle, as above. Modules are never unloaded before the device goes.
unsafe impl Send for Function {}
// SAFETY: as for `Send`.
unsafe impl Sync for Function {}

pub(crate) struct Graph(sys::CUgraphExec);

// SAFETY: a handle, as above.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the handle is ours. A graph in flight is destroyed by the driver when it is done.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

pub(crate) struct Event(sys::CUevent);

// SAFETY: a handle, as above.
unsafe impl Send for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the handle is ours.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Every function of the driver that is called here, also by cudarc for us: it panics where it looks one up in vain.
const FUNCTIONS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventElapsedTime",
    "cuEventDestroy_v2",
    "cuGraphCreate",
    "cuGraphAddKernelNode_v2",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// The devices that the driver sees, at least one.
pub(super) fn devices() -> Result<Vec<Properties>, Error> {
    load()?;
    result::init().map_err(|error| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => DeviceError::NoDevices,
        _ => DeviceError::DriverRefused { code: name(error), text: text(error) },
    })?;
    let count = result::device::get_count().map_err(|error| failed("cuDeviceGetCount", error))?;
    if count == 0 {
        return Err(DeviceError::NoDevices.into());
    }
    (0..count).map(|ordinal| properties(device(ordinal)?)).collect()
}

/// The CUDA version that the driver speaks, whether or not it finds a device.
pub(super) fn version() -> Result<(u32, u32), Error> {
    load()?;
    let mut version = 0;
    // SAFETY: needs no initialised driver; `version` outlives the call.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|error| failed("cuDriverGetVersion", error))?;
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

/// Finds the driver. Afterwards every function of it may be called.
fn load() -> Result<(), Error> {
    // SAFETY: opens and closes the driver's library, whose initialisation is sound.
    if !unsafe { sys::is_culib_present() } {
        // SAFETY: as above. Under this name it has just failed too, and now says why.
        let reason = match unsafe { Library::new("libcuda.so.1") } {
            Err(error) => loader_reason(&error),
            Ok(_) => String::new(),
        };
        return Err(DeviceError::NoDriver { reason }.into());
    }
    // SAFETY: the library is there.
    let library = unsafe { sys::culib() };
    // SAFETY: the functions are looked up and not called.
    let is_missing = |name: &&str| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err();
    match FUNCTIONS.iter().copied().find(is_missing) {
        Some(function) => Err(DeviceError::OldDriver { function }.into()),
        None => Ok(()),
    }
}

fn device(ordinal: i32) -> Result<sys::CUdevice, Error> {
    result::device::get(ordinal).map_err(|error| failed("cuDeviceGet", error))
}

fn properties(device: sys::CUdevice) -> Result<Properties, Error> {
    use sys::CUdevice_attribute_enum as Attribute;
    let attribute = |attribute| {
        // SAFETY: `device` is valid.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        value.map(i32::unsigned_abs).map_err(|error| failed("cuDeviceGetAttribute", error))
    };
    Ok(Properties {
        name: result::device::get_name(device).map_err(|error| failed("cuDeviceGetName", error))?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_max: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        // SAFETY: `device` is valid.
        memory_bytes: unsafe { result::device::total_mem(device) }
            .map_err(|error| failed("cuDeviceTotalMem", error))? as u64,
        driver_version: version()?,
    })
}

fn name(error: DriverError) -> String {
    error.error_name().map_or_else(|_| format!("{:?}", error.0), |name| name.to_string_lossy().into_owned())
}

fn text(error: DriverError) -> String {
    error.error_string().map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
}

/// The error of one call. What leaves the context unusable is told apart: nothing on this device works any more.
fn failed(call: &'static str, error: DriverError) -> Error {
    use sys::CUresult as Code;
    let (code, text) = (name(error), text(error));
    let is_lost = matches!(
        error.0,
        Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | Code::CUDA_ERROR_DEINITIALIZED
            | Code::CUDA_ERROR_UNKNOWN
            | Code::CUDA_ERROR_ASSERT
    );
    match is_lost {
        true => DeviceError::Lost { call, code, text, launched: Vec::new() }.into(),
        false => DeviceError::Driver { call, code, text }.into(),
    }
}

impl Cuda {
    pub(super) fn open(ordinal: usize) -> Result<(Self, Properties), Error> {
        let found = devices()?;
        let Some(properties) = found.get(ordinal).cloned() else {
            return Err(DeviceError::NoDevice { ordinal, found: found.len() }.into());
        };
        if properties.compute_capability < super::CAPABILITY_MIN {
            let compute_capability = properties.compute_capability;
            return Err(DeviceError::TooOld { name: properties.name, compute_capability }.into());
        }
        let device = device(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
        // SAFETY: `device` is valid; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(|error| failed("cuDevicePrimaryCtxRetain", error))?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(|error| failed("cuCtxSetCurrent", error))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|error| failed("cuStreamCreate", error))?;
        Ok((Self { context, stream, device }, properties))
    }

    /// Makes the context current on this thread, for the calls that follow.
    fn enter(&self) -> Result<(), Error> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(|error| failed("cuCtxSetCurrent", error))
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, Error> {
        self.enter()?;
        // SAFETY: the memory is freed by `free`.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(address),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = self.memory();
                Err(DeviceError::OutOfMemory { requested: bytes as u64, free, total }.into())
            }
            Err(error) => Err(failed("cuMemAlloc", error)),
        }
    }

    pub(super) fn free(&self, address: u64) {
        if self.enter().is_ok() {
            // SAFETY: `address` is of `allocate`; the driver waits for work that uses it. A device that is lost has nothing to free.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    pub(super) fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8, Error> {
        self.enter()?;
        // SAFETY: the memory is freed by `free_pinned`.
        unsafe { result::malloc_host(bytes, 0) }
            .map(<*mut c_void>::cast)
            .map_err(|error| failed("cuMemHostAlloc", error))
    }

    pub(super) fn free_pinned(&self, memory: *mut u8) {
        if self.enter().is_ok() {
            // SAFETY: `memory` is of `allocate_pinned`.
            let _ = unsafe { result::free_host(memory.cast()) };
        }
    }

    /// # Safety
    /// As [`Driver::copy_to_device`](super::Driver::copy_to_device).
    pub(super) unsafe fn copy_to_device(
        &self,
        address: u64,
        source: *const u8,
        bytes: usize,
    ) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: passed on to the caller.
        unsafe { sys::cuMemcpyHtoDAsync_v2(address, source.cast(), bytes, self.stream) }
            .result()
            .map_err(|error| failed("cuMemcpyHtoDAsync", error))
    }

    /// # Safety
    /// As [`Driver::copy_to_host`](super::Driver::copy_to_host).
    pub(super) unsafe fn copy_to_host(
        &self,
        target: *mut u8,
        address: u64,
        bytes: usize,
    ) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: passed on to the caller.
        unsafe { sys::cuMemcpyDtoHAsync_v2(target.cast(), address, bytes, self.stream) }
            .result()
            .map_err(|error| failed("cuMemcpyDtoHAsync", error))
    }

    pub(super) fn load(
        &self,
        kernel: &str,
        code: &[u8],
        symbol: &str,
        shared_bytes: u32,
    ) -> Result<(Function, Resources), Error> {
        use sys::CUfunction_attribute_enum as Attribute;
        self.enter()?;
        let refused = |error| -> Error {
            DeviceError::Load { kernel: kernel.to_owned(), code: name(error), text: text(error) }.into()
        };
        // SAFETY: `code` is a whole cubin, or PTX with its terminating zero; the driver copies it.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(refused)?;
        let symbol = CString::new(symbol).unwrap_or_default();
        // SAFETY: the module was just loaded, and is never unloaded.
        let function = unsafe { result::module::get_function(module, symbol) }.map_err(refused)?;
        // SAFETY: `function` is valid, here and below.
        unsafe {
            result::function::set_function_attribute(
                function,
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes.cast_signed(),
            )
        }
        .map_err(refused)?;
        let attribute = |attribute| {
            // SAFETY: as above.
            let value = unsafe { result::function::get_function_attribute(function, attribute) };
            value.map(i32::unsigned_abs).map_err(refused)
        };
        let resources = Resources {
            registers: attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        };
        Ok((Function(function), resources))
    }

    pub(super) fn launch(&self, function: &Function, launch: &Launch) -> Result<(), Error> {
        self.enter()?;
        let mut arguments = arguments(launch);
        // SAFETY: the arguments are those of the kernel's signature: pointers into live allocations of this device, then its parameter
        // block, whose layout the compiler has checked.
        unsafe {
            result::launch_kernel(
                function.0,
                (launch.blocks, 1, 1),
                (launch.threads, 1, 1),
                launch.shared_bytes,
                self.stream,
                &mut arguments,
            )
        }
        .map_err(|error| failed("cuLaunchKernel", error))
    }

    pub(super) fn instantiate(&self, launches: &[Launch]) -> Result<Graph, Error> {
        self.enter()?;
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` outlives the call.
        unsafe { sys::cuGraphCreate(&raw mut graph, 0) }
            .result()
            .map_err(|error| failed("cuGraphCreate", error))?;
        let exec = Self::add_nodes(graph, launches).and_then(|()| {
            let mut exec = ptr::null_mut();
            // SAFETY: `graph` is whole; `exec` outlives the call.
            unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0) }
                .result()
                .map_err(|error| failed("cuGraphInstantiate", error))?;
            Ok(Graph(exec))
        });
        // SAFETY: the graph is ours; what was instantiated does not need it.
        let _ = unsafe { result::graph::destroy(graph) };
        exec
    }

    /// A chain: each launch depends on the one before it.
    fn add_nodes(graph: sys::CUgraph, launches: &[Launch]) -> Result<(), Error> {
        let mut before: sys::CUgraphNode = ptr::null_mut();
        for (i, launch) in launches.iter().enumerate() {
            let super::Function::Cuda(function) = &launch.function else {
                return Err(DeviceError::OtherDevice { operand: "kernel" }.into());
            };
            let mut arguments = arguments(launch);
            let params = sys::CUDA_KERNEL_NODE_PARAMS {
                func: function.0,
                gridDimX: launch.blocks,
                gridDimY: 1,
                gridDimZ: 1,
                blockDimX: launch.threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: launch.shared_bytes,
                kernelParams: arguments.as_mut_ptr(),
                extra: ptr::null_mut(),
                kern: ptr::null_mut(),
                ctx: ptr::null_mut(),
            };
            let mut node = ptr::null_mut();
            let dependencies = if i == 0 { ptr::null() } else { &raw const before };
            // SAFETY: as for a launch; the driver copies the arguments.
            unsafe {
                sys::cuGraphAddKernelNode_v2(
                    &raw mut node,
                    graph,
                    dependencies,
                    usize::from(i > 0),
                    &raw const params,
                )
            }
            .result()
            .map_err(|error| failed("cuGraphAddKernelNode", error))?;
            before = node;
        }
        Ok(())
    }

    pub(super) fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the graph is live, and so are the allocations that its launches use.
        unsafe { result::graph::launch(graph.0, self.stream) }.map_err(|error| failed("cuGraphLaunch", error))
    }

    pub(super) fn record(&self) -> Result<Event, Error> {
        self.enter()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map(Event)
            .map_err(|error| failed("cuEventCreate", error))?;
        // SAFETY: event and stream are live.
        unsafe { result::event::record(event.0, self.stream) }
            .map_err(|error| failed("cuEventRecord", error))?;
        Ok(event)
    }

    pub(super) fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32, Error> {
        self.enter()?;
        // SAFETY: both events are live.
        unsafe { result::event::elapsed(start.0, end.0) }.map_err(|error| failed("cuEventElapsedTime", error))
    }

    pub(super) fn synchronize(&self) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the stream is live.
        unsafe { result::stream::synchronize(self.stream) }
            .map_err(|error| failed("cuStreamSynchronize", error))
    }

    pub(super) fn memory(&self) -> (u64, u64) {
        if self.enter().is_err() {
            return (0, 0);
        }
        result::mem_get_info().map_or((0, 0), |(free, total)| (free as u64, total as u64))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            // SAFETY: both handles are ours, and nothing uses them any more. A lost device may refuse; there is nothing to save.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
        // SAFETY: releases what `open` retained.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Addresses of the arguments, as the driver takes them.
fn arguments(launch: &Launch) -> Vec<*mut c_void> {
    let pointers = launch.pointers.iter().map(|pointer| ptr::from_ref(pointer).cast_mut().cast());
    pointers.chain([launch.params.as_ptr().cast_mut().cast()]).collect()
}
