//! The functions of NVIDIA's driver that are called here, looked up by name once.
//!
//! Types and constants are cudarc's, made from cuda.h. Its functions are not called: they panic where the driver lacks one, and give
//! a code as an enum of those that cuda.h knew, which the code of a newer driver is not one of. Here a code is a number.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    CUDA_KERNEL_NODE_PARAMS, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUgraph, CUgraphEdgeData, CUgraphExec, CUgraphNode, CUlaunchConfig, CUmodule,
    CUstream, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};
use libloading::Library;

use crate::Error;
use crate::error::DeviceError;
use crate::nvrtc::loader_reason;

/// What a function answers: 0, or what went wrong.
pub(super) type Code = c_uint;

/// The driver's library. The toolkit's `libcuda.so` may be a stub to link against.
const LIBRARY: &str = "libcuda.so.1";

macro_rules! functions {
    (
        required { $($name:ident($($argument:ty),*);)* }
        optional { $($optional:ident($($of_optional:ty),*);)* }
    ) => {
        #[allow(non_snake_case)]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> Code,)*
            $(pub(super) $optional: Option<unsafe extern "C" fn($($of_optional),*) -> Code>,)*
        }

        impl Functions {
            /// Looks every function up; an error names one that is not there and that we cannot do without.
            ///
            /// # Safety
            /// `library` is NVIDIA's driver.
            unsafe fn of(library: &Library) -> Result<Self, &'static str> {
                // SAFETY: the names and types are those of cuda.h, which a driver keeps for good.
                unsafe {
                    Ok(Self {
                        $($name: *library.get(stringify!($name).as_bytes()).map_err(|_| stringify!($name))?,)*
                        $($optional: library.get(stringify!($optional).as_bytes()).ok().map(|found| *found),)*
                    })
                }
            }
        }
    };
}

functions! {
    required {
        cuInit(c_uint);
        cuDriverGetVersion(*mut c_int);
        cuGetErrorName(Code, *mut *const c_char);
        cuGetErrorString(Code, *mut *const c_char);
        cuDeviceGet(*mut CUdevice, c_int);
        cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
        cuDeviceGetCount(*mut c_int);
        cuDeviceGetName(*mut c_char, c_int, CUdevice);
        cuDeviceTotalMem_v2(*mut usize, CUdevice);
        cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
        cuDevicePrimaryCtxRelease_v2(CUdevice);
        cuCtxSetCurrent(CUcontext);
        cuMemAlloc_v2(*mut CUdeviceptr, usize);
        cuMemFree_v2(CUdeviceptr);
        cuMemGetInfo_v2(*mut usize, *mut usize);
        cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
        cuMemFreeHost(*mut c_void);
        cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
        cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
        cuModuleLoadData(*mut CUmodule, *const c_void);
        cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
        cuFuncGetAttribute(*mut c_int, CUfunction_attribute, CUfunction);
        cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int);
        cuLaunchKernelEx(*const CUlaunchConfig, CUfunction, *mut *mut c_void, *mut *mut c_void);
        cuTensorMapEncodeTiled(
            *mut CUtensorMap, CUtensorMapDataType, c_uint, *mut c_void, *const u64, *const u64, *const c_uint, *const c_uint,
            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill
        );
        cuStreamCreate(*mut CUstream, c_uint);
        cuStreamDestroy_v2(CUstream);
        cuStreamSynchronize(CUstream);
        cuEventCreate(*mut CUevent, c_uint);
        cuEventRecord(CUevent, CUstream);
        cuEventSynchronize(CUevent);
        cuEventElapsedTime(*mut f32, CUevent, CUevent);
        cuEventDestroy_v2(CUevent);
        cuGraphCreate(*mut CUgraph, c_uint);
        cuGraphAddKernelNode_v2(*mut CUgraphNode, CUgraph, *const CUgraphNode, usize, *const CUDA_KERNEL_NODE_PARAMS);
        cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, u64);
        cuGraphLaunch(CUgraphExec, CUstream);
        cuGraphDestroy(CUgraph);
        cuGraphExecDestroy(CUgraphExec);
    }
    optional {
        // Of CUDA 12.3.
        cuGraphAddDependencies_v2(
            CUgraph, *const CUgraphNode, *const CUgraphNode, *const CUgraphEdgeData, usize
        );
    }
}

impl Functions {
    /// The driver, loaded with the first call.
    pub(super) fn load() -> Result<&'static Self, Error> {
        static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
        if let Some(functions) = FUNCTIONS.get() {
            return Ok(functions);
        }
        // SAFETY: the driver's initialisation has no preconditions.
        let library = unsafe { Library::new(LIBRARY) }
            .map_err(|error| DeviceError::NoDriver { reason: loader_reason(&error) })?;
        // SAFETY: that is the driver's name.
        let functions =
            unsafe { Self::of(&library) }.map_err(|function| DeviceError::OldDriver { function })?;
        // Stays loaded to the end: a driver is not made to be unloaded.
        std::mem::forget(library);
        Ok(FUNCTIONS.get_or_init(|| functions))
    }

    /// Name and explanation of a code.
    pub(super) fn describe(&self, code: Code) -> (String, String) {
        let string = |get: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| {
            let mut text = std::ptr::null();
            // SAFETY: takes any number; `text` outlives the call and stays null where the number means nothing to the driver.
            let _ = unsafe { get(code, &raw mut text) };
            // SAFETY: a string of the driver's, there for good.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = string(self.cuGetErrorName).unwrap_or_else(|| format!("code {code}"));
        (name, string(self.cuGetErrorString).unwrap_or_else(|| "unknown to the driver".to_owned()))
    }

    /// The error of a call that failed and needs no context.
    pub(super) fn check(&self, call: &'static str, code: Code) -> Result<(), Error> {
        if code == 0 {
            return Ok(());
        }
        let (code, text) = self.describe(code);
        Err(DeviceError::Driver { call, code, text }.into())
    }
}
