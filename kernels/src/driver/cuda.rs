//! NVIDIA's driver: one context and one stream per device.

use std::ffi::{CStr, CString, c_int};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys;

use super::functions::{Code, Functions};
use super::{EncodedMap, Heads, Launch, Properties, Resources, TensorMap};
use crate::error::DeviceError;
use crate::{ElementType, Error};

pub(crate) struct Cuda {
    cu: &'static Functions,
    context: sys::CUcontext,
    stream: sys::CUstream,
    device: sys::CUdevice,
    /// For errors.
    ordinal: usize,
    /// What was submitted to the stream last; locked over a submission.
    last: Mutex<Submitted>,
}

/// What the next launch stands behind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Submitted {
    Kernel,
    /// Copies, events and graphs: who comes next waits for their end.
    Other,
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

pub(crate) struct Graph(&'static Functions, sys::CUgraphExec);

// SAFETY: a handle, as above.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the handle is ours. A graph in flight is destroyed by the driver when it is done.
        let _ = unsafe { (self.0.cuGraphExecDestroy)(self.1) };
    }
}

pub(crate) struct Event(&'static Functions, sys::CUevent);

// SAFETY: a handle, as above.
unsafe impl Send for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the handle is ours.
        let _ = unsafe { (self.0.cuEventDestroy_v2)(self.1) };
    }
}

const NO_DEVICE: Code = sys::CUresult::CUDA_ERROR_NO_DEVICE as Code;
const OUT_OF_MEMORY: Code = sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as Code;

/// What leaves a context unusable: every call after it answers the same.
const LOST: [sys::CUresult; 18] = {
    use sys::CUresult::*;
    [
        CUDA_ERROR_DEINITIALIZED,
        CUDA_ERROR_ECC_UNCORRECTABLE,
        CUDA_ERROR_NVLINK_UNCORRECTABLE,
        CUDA_ERROR_CONTAINED,
        CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_LAUNCH_TIMEOUT,
        CUDA_ERROR_CONTEXT_IS_DESTROYED,
        CUDA_ERROR_ASSERT,
        CUDA_ERROR_HARDWARE_STACK_ERROR,
        CUDA_ERROR_ILLEGAL_INSTRUCTION,
        CUDA_ERROR_MISALIGNED_ADDRESS,
        CUDA_ERROR_INVALID_ADDRESS_SPACE,
        CUDA_ERROR_INVALID_PC,
        CUDA_ERROR_LAUNCH_FAILED,
        CUDA_ERROR_TENSOR_MEMORY_LEAK,
        CUDA_ERROR_MPS_CLIENT_TERMINATED,
        CUDA_ERROR_EXTERNAL_DEVICE,
        CUDA_ERROR_UNKNOWN,
    ]
};

/// The edge to a kernel that may begin once every block of the one before lets it, or has ended.
#[expect(clippy::cast_possible_truncation, reason = "port and type are bytes")]
const PROGRAMMATIC: sys::CUgraphEdgeData = sys::CUgraphEdgeData {
    from_port: sys::CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC as u8,
    to_port: 0,
    type_: sys::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8,
    reserved: [0; 5],
};

/// The devices that the driver sees, at least one.
pub(super) fn devices() -> Result<Vec<Properties>, Error> {
    let cu = Functions::load()?;
    // SAFETY: may be called at any time, again and again.
    match unsafe { (cu.cuInit)(0) } {
        0 => {}
        NO_DEVICE => return Err(DeviceError::NoDevices.into()),
        code => {
            let (code, text) = cu.describe(code);
            return Err(DeviceError::DriverRefused { code, text }.into());
        }
    }
    let mut count = 0;
    // SAFETY: `count` outlives the call.
    cu.check("cuDeviceGetCount", unsafe { (cu.cuDeviceGetCount)(&raw mut count) })?;
    if count <= 0 {
        return Err(DeviceError::NoDevices.into());
    }
    (0..count).map(|ordinal| properties(cu, device(cu, ordinal)?)).collect()
}

/// The CUDA version that the driver speaks, whether or not it finds a device.
pub(super) fn version() -> Result<(u32, u32), Error> {
    let cu = Functions::load()?;
    let mut version = 0;
    // SAFETY: needs no initialised driver; `version` outlives the call.
    cu.check("cuDriverGetVersion", unsafe { (cu.cuDriverGetVersion)(&raw mut version) })?;
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

fn device(cu: &Functions, ordinal: c_int) -> Result<sys::CUdevice, Error> {
    let mut device = 0;
    // SAFETY: `device` outlives the call.
    cu.check("cuDeviceGet", unsafe { (cu.cuDeviceGet)(&raw mut device, ordinal) })?;
    Ok(device)
}

fn properties(cu: &Functions, device: sys::CUdevice) -> Result<Properties, Error> {
    use sys::CUdevice_attribute_enum as Attribute;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: `device` is valid; `value` outlives the call.
        let code = unsafe { (cu.cuDeviceGetAttribute)(&raw mut value, attribute, device) };
        cu.check("cuDeviceGetAttribute", code).map(|()| value.unsigned_abs())
    };
    // The driver ends what it has to cut off with a zero too.
    let mut name = [0; 256];
    // SAFETY: `device` is valid, and there is room for as many bytes as are named.
    cu.check("cuDeviceGetName", unsafe { (cu.cuDeviceGetName)(name.as_mut_ptr().cast(), 256, device) })?;
    let mut memory_bytes = 0;
    // SAFETY: `device` is valid; `memory_bytes` outlives the call.
    cu.check("cuDeviceTotalMem", unsafe { (cu.cuDeviceTotalMem_v2)(&raw mut memory_bytes, device) })?;
    Ok(Properties {
        name: CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned(),
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_max: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        memory_bytes: memory_bytes as u64,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        driver_version: version()?,
    })
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
        let cu = Functions::load()?;
        let device = device(cu, c_int::try_from(ordinal).unwrap_or(c_int::MAX))?;
        let mut context = ptr::null_mut();
        // SAFETY: `device` is valid, `context` outlives the call; it is released when this is dropped.
        let code = unsafe { (cu.cuDevicePrimaryCtxRetain)(&raw mut context, device) };
        cu.check("cuDevicePrimaryCtxRetain", code)?;
        let last = Mutex::new(Submitted::Other);
        let mut cuda = Self { cu, context, stream: ptr::null_mut(), device, ordinal, last };
        cuda.enter()?;
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the handle outlives the call.
        let code = unsafe { (cu.cuStreamCreate)(&raw mut cuda.stream, flags) };
        cuda.check("cuStreamCreate", code)?;
        Ok((cuda, properties))
    }

    /// The error of a call that failed. What can be helped, too little memory, is told apart, and what cannot.
    fn check(&self, call: &'static str, code: Code) -> Result<(), Error> {
        match code {
            OUT_OF_MEMORY => Err(self.out_of_memory(None)),
            code if LOST.iter().any(|lost| *lost as Code == code) => {
                let (device, (code, text)) = (self.ordinal, self.cu.describe(code));
                Err(DeviceError::Lost { device, call, code, text, kernels: Vec::new() }.into())
            }
            code => self.cu.check(call, code),
        }
    }

    fn out_of_memory(&self, requested: Option<u64>) -> Error {
        let (free, total) = self.memory();
        DeviceError::OutOfMemory { requested, free, total }.into()
    }

    /// Makes the context current on this thread, for the calls that follow.
    fn enter(&self) -> Result<(), Error> {
        // SAFETY: the context is retained as long as `self` lives.
        self.check("cuCtxSetCurrent", unsafe { (self.cu.cuCtxSetCurrent)(self.context) })
    }

    /// Submits something to the stream; `submit` learns what it stands behind.
    fn submit(&self, what: Submitted, submit: impl FnOnce(Submitted) -> Code) -> Code {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let code = submit(*last);
        *last = what;
        code
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, Error> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: `address` outlives the call; the memory is freed by `free`.
        match unsafe { (self.cu.cuMemAlloc_v2)(&raw mut address, bytes.max(1)) } {
            OUT_OF_MEMORY => Err(self.out_of_memory(Some(bytes as u64))),
            code => self.check("cuMemAlloc", code).map(|()| address),
        }
    }

    pub(super) fn free(&self, address: u64) {
        // Calls end before what they have submitted. A device that is lost has nothing to free.
        if self.synchronize().is_ok() {
            // SAFETY: `address` is of `allocate`, and nothing under way uses it.
            let _ = unsafe { (self.cu.cuMemFree_v2)(address) };
        }
    }

    pub(super) fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8, Error> {
        self.enter()?;
        let mut memory = ptr::null_mut();
        // SAFETY: `memory` outlives the call; what it points to is freed by `free_pinned`.
        let code = unsafe { (self.cu.cuMemHostAlloc)(&raw mut memory, bytes, 0) };
        // It is the host's memory, of which smaller batches would need no less.
        self.cu.check("cuMemHostAlloc", code).map(|()| memory.cast())
    }

    pub(super) fn free_pinned(&self, memory: *mut u8) {
        if self.enter().is_ok() {
            // SAFETY: `memory` is of `allocate_pinned`.
            let _ = unsafe { (self.cu.cuMemFreeHost)(memory.cast()) };
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
        let code = self.submit(Submitted::Other, |_| {
            // SAFETY: passed on to the caller.
            unsafe { (self.cu.cuMemcpyHtoDAsync_v2)(address, source.cast(), bytes, self.stream) }
        });
        self.check("cuMemcpyHtoDAsync", code)
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
        let code = self.submit(Submitted::Other, |_| {
            // SAFETY: passed on to the caller.
            unsafe { (self.cu.cuMemcpyDtoHAsync_v2)(target.cast(), address, bytes, self.stream) }
        });
        self.check("cuMemcpyDtoHAsync", code)
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
        let check = |call, code| match self.check(call, code) {
            Err(Error::Device(error)) => Err(match *error {
                DeviceError::Driver { code, text, .. } => {
                    DeviceError::Load { kernel: kernel.to_owned(), code, text }.into()
                }
                other => other.into(),
            }),
            done => done,
        };
        let mut module = ptr::null_mut();
        // SAFETY: `code` is a whole cubin, or PTX with its terminating zero; the driver copies it.
        check("cuModuleLoadData", unsafe {
            (self.cu.cuModuleLoadData)(&raw mut module, code.as_ptr().cast())
        })?;
        let symbol = CString::new(symbol).unwrap_or_default();
        let mut function = ptr::null_mut();
        // SAFETY: the module was just loaded, and is never unloaded.
        check("cuModuleGetFunction", unsafe {
            (self.cu.cuModuleGetFunction)(&raw mut function, module, symbol.as_ptr())
        })?;
        let shared = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: `function` is valid, here and below.
        check("cuFuncSetAttribute", unsafe {
            (self.cu.cuFuncSetAttribute)(function, shared, shared_bytes.cast_signed())
        })?;
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: as above; `value` outlives the call.
            let code = unsafe { (self.cu.cuFuncGetAttribute)(&raw mut value, attribute, function) };
            check("cuFuncGetAttribute", code).map(|()| value.unsigned_abs())
        };
        let resources = Resources {
            registers: attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        };
        Ok((Function(function), resources))
    }

    pub(super) fn encode(&self, map: &TensorMap) -> Result<EncodedMap, Error> {
        let data_type = match map.element_type {
            ElementType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            ElementType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            ElementType::BF16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let swizzle = match map.is_swizzled {
            true => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            false => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        };
        // Innermost first; the innermost has no stride.
        let (columns, rows) = (map.columns as u64, map.rows as u64);
        let (rank, dimensions, strides, boxes) = match map.heads {
            None => (2, [columns, rows, 1], [map.row_bytes(), 0], [map.box_columns, map.box_rows, 1]),
            Some(Heads { count, box_heads }) => {
                let strides = [map.head_bytes(), map.row_bytes()];
                (3, [columns, count as u64, rows], strides, [map.box_columns, box_heads, map.box_rows])
            }
        };
        let element_strides = [1; 3];
        let mut encoded = EncodedMap([0; 16]);
        // SAFETY: `encoded` has the size and the alignment of a CUtensorMap; the arrays have room for three dimensions.
        let code = unsafe {
            (self.cu.cuTensorMapEncodeTiled)(
                (&raw mut encoded).cast(),
                data_type,
                rank,
                ptr::with_exposed_provenance_mut(usize::try_from(map.address).unwrap_or(0)),
                dimensions.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                element_strides.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.check("cuTensorMapEncodeTiled", code)?;
        Ok(encoded)
    }

    pub(super) fn launch(&self, function: &Function, launch: &Launch) -> Result<(), Error> {
        self.enter()?;
        let mut arguments = launch.arguments();
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let code = self.submit(Submitted::Kernel, |last| {
            // Nothing but a kernel lets another begin ahead of its own end.
            let is_programmatic = launch.is_programmatic && last == Submitted::Kernel;
            let config = sys::CUlaunchConfig {
                gridDimX: launch.blocks,
                gridDimY: 1,
                gridDimZ: 1,
                blockDimX: launch.threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: launch.shared_bytes,
                hStream: self.stream,
                attrs: &raw mut attribute,
                numAttrs: is_programmatic.into(),
            };
            // SAFETY: the arguments are those of the kernel's signature: pointers into live allocations of this device, then its parameter
            // block, whose layout the compiler has checked. Configuration and attribute outlive the call.
            unsafe {
                (self.cu.cuLaunchKernelEx)(
                    &raw const config,
                    function.0,
                    arguments.as_mut_ptr(),
                    ptr::null_mut(),
                )
            }
        });
        self.check("cuLaunchKernelEx", code)
    }

    pub(super) fn instantiate(&self, launches: &[Launch]) -> Result<Graph, Error> {
        self.enter()?;
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` outlives the call.
        self.check("cuGraphCreate", unsafe { (self.cu.cuGraphCreate)(&raw mut graph, 0) })?;
        let exec = self.add_nodes(graph, launches).and_then(|()| {
            let mut exec = ptr::null_mut();
            // SAFETY: `graph` is whole; `exec` outlives the call.
            let code = unsafe { (self.cu.cuGraphInstantiateWithFlags)(&raw mut exec, graph, 0) };
            self.check("cuGraphInstantiate", code).map(|()| Graph(self.cu, exec))
        });
        // SAFETY: the graph is ours; what was instantiated does not need it.
        let _ = unsafe { (self.cu.cuGraphDestroy)(graph) };
        exec
    }

    /// A chain: each launch depends on the one before it, on its end or on its consent.
    fn add_nodes(&self, graph: sys::CUgraph, launches: &[Launch]) -> Result<(), Error> {
        let mut before: sys::CUgraphNode = ptr::null_mut();
        for (i, launch) in launches.iter().enumerate() {
            let super::Function::Cuda(function) = &launch.function else {
                return Err(DeviceError::OtherDevice { operand: "kernel" }.into());
            };
            let mut arguments = launch.arguments();
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
            let programmatic = self.cu.cuGraphAddDependencies_v2.filter(|_| i > 0 && launch.is_programmatic);
            let waits_for_end = i > 0 && programmatic.is_none();
            let dependencies = if waits_for_end { &raw const before } else { ptr::null() };
            // SAFETY: as for a launch; the driver copies the arguments.
            let code = unsafe {
                (self.cu.cuGraphAddKernelNode_v2)(
                    &raw mut node,
                    graph,
                    dependencies,
                    usize::from(waits_for_end),
                    &raw const params,
                )
            };
            self.check("cuGraphAddKernelNode", code)?;
            if let Some(add_dependencies) = programmatic {
                let edge = PROGRAMMATIC;
                // SAFETY: both nodes are of the graph, which has no such edge yet; all three outlive the call.
                let code = unsafe {
                    add_dependencies(graph, &raw const before, &raw const node, &raw const edge, 1)
                };
                self.check("cuGraphAddDependencies", code)?;
            }
            before = node;
        }
        Ok(())
    }

    pub(super) fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.enter()?;
        let code = self.submit(Submitted::Other, |_| {
            // SAFETY: the graph is live, and so are the allocations that its launches use.
            unsafe { (self.cu.cuGraphLaunch)(graph.1, self.stream) }
        });
        self.check("cuGraphLaunch", code)
    }

    pub(super) fn record(&self) -> Result<Event, Error> {
        self.record_with(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    pub(super) fn mark(&self) -> Result<Event, Error> {
        self.record_with(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn record_with(&self, flags: sys::CUevent_flags) -> Result<Event, Error> {
        self.enter()?;
        let mut event = ptr::null_mut();
        let flags = flags as u32;
        // SAFETY: the handle outlives the call.
        self.check("cuEventCreate", unsafe { (self.cu.cuEventCreate)(&raw mut event, flags) })?;
        let event = Event(self.cu, event);
        let code = self.submit(Submitted::Other, |_| {
            // SAFETY: event and stream are live.
            unsafe { (self.cu.cuEventRecord)(event.1, self.stream) }
        });
        self.check("cuEventRecord", code)?;
        Ok(event)
    }

    pub(super) fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32, Error> {
        self.enter()?;
        let mut elapsed_ms = 0.0;
        // SAFETY: both events are live; the number outlives the call.
        let code = unsafe { (self.cu.cuEventElapsedTime)(&raw mut elapsed_ms, start.1, end.1) };
        self.check("cuEventElapsedTime", code).map(|()| elapsed_ms)
    }

    pub(super) fn wait(&self, event: &Event) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the event is live.
        self.check("cuEventSynchronize", unsafe { (self.cu.cuEventSynchronize)(event.1) })
    }

    pub(super) fn synchronize(&self) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the stream is live.
        self.check("cuStreamSynchronize", unsafe { (self.cu.cuStreamSynchronize)(self.stream) })
    }

    /// Free memory and memory in all; zeros where they cannot be had.
    pub(super) fn memory(&self) -> (u64, u64) {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both numbers outlive the calls. The context is made current without `enter`, whose errors may ask for this.
        let _ = unsafe { (self.cu.cuCtxSetCurrent)(self.context) };
        // SAFETY: as above.
        let _ = unsafe { (self.cu.cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        (free as u64, total as u64)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.enter().is_ok() && !self.stream.is_null() {
            // SAFETY: the handle is ours, and nothing uses it any more. A lost device may refuse; there is nothing to save.
            let _ = unsafe { (self.cu.cuStreamDestroy_v2)(self.stream) };
        }
        // SAFETY: releases what `open` retained.
        let _ = unsafe { (self.cu.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}
