//! What a kernel can refuse.

use std::path::PathBuf;

/// Why a kernel did not run. Each variant names the kernel and the operand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has fewer elements than its shape needs.
    #[error("{kernel}: operand `{operand}` holds {found} elements, expected {expected}")]
    Length {
        /// Kernel folder name.
        kernel: &'static str,
        /// Operand name as in the contract.
        operand: &'static str,
        /// Elements the shape needs.
        expected: usize,
        /// Elements the operand holds.
        found: usize,
    },
    /// A parameter lies outside what the kernel is written for.
    #[error("{kernel}: {parameter} is {found}, expected {expected}")]
    Parameter {
        /// Kernel folder name.
        kernel: &'static str,
        /// Parameter name as in the contract.
        parameter: &'static str,
        /// The allowed values.
        expected: &'static str,
        /// The value given.
        found: usize,
    },
    /// A factor or a bound that is no number above 0.
    #[error("{kernel}: {parameter} is {found}, expected a finite number above 0")]
    NotPositive {
        /// Kernel folder name.
        kernel: &'static str,
        /// Parameter name as in the contract.
        parameter: &'static str,
        /// The value given.
        found: f32,
    },
    /// An index points outside the table it selects from.
    #[error("{kernel}: {table} index {index} at position {position}, but the table has {rows} rows")]
    IndexOutOfRange {
        /// Kernel folder name.
        kernel: &'static str,
        /// Which table.
        table: &'static str,
        /// The index found.
        index: u32,
        /// Where in the index list it stands.
        position: usize,
        /// Rows of the table.
        rows: usize,
    },
    /// The device, its driver or its compiler refused.
    #[error(transparent)]
    Device(#[from] Box<DeviceError>),
    /// The thread pool of a CPU stream could not be started.
    #[error("cannot start {threads} compute threads: lower `threads`, or raise the process limit")]
    ThreadPool {
        /// Threads asked for.
        threads: usize,
        /// The operating system's answer.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
}

/// What can go wrong between us and a GPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No driver library.
    #[error("no CUDA driver: {reason}; install NVIDIA's driver, or run with `--device cpu`")]
    NoDriver {
        /// Why its library does not load.
        reason: String,
    },
    /// A driver without a function that we call.
    #[error(
        "the CUDA driver is too old: it has no {function}; update it to one of CUDA 12.0 or newer, or run with `--device cpu`"
    )]
    OldDriver {
        /// The function.
        function: &'static str,
    },
    /// The driver finds no device.
    #[error(
        "the CUDA driver is there, but it sees no device; check `nvidia-smi` and CUDA_VISIBLE_DEVICES, in a container that it was \
         given a GPU, or run with `--device cpu`"
    )]
    NoDevices,
    /// The driver is there, but does not start.
    #[error(
        "the CUDA driver does not start: {code} ({text}); check it with `nvidia-smi`, or run with `--device cpu`"
    )]
    DriverRefused {
        /// Name of the driver's code.
        code: String,
        /// Its explanation.
        text: String,
    },
    /// No device of this number.
    #[error(
        "no CUDA device {ordinal}: the driver sees {found}; name one below that number, or run with `--device cpu`"
    )]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// Devices there are.
        found: usize,
    },
    /// A device without the instructions that the kernels are written in.
    #[error(
        "{name} has compute capability {}.{}, the kernels need 8.0 (Ampere) or newer; run with `--device cpu`",
        compute_capability.0, compute_capability.1
    )]
    TooOld {
        /// The device.
        name: String,
        /// What it can execute.
        compute_capability: (u32, u32),
    },
    /// No compiler.
    #[error(
        "no usable NVRTC library, which compiles the kernels (`pip install nvidia-cuda-nvrtc-cu12` brings it into the Python environment \
         in use); or name its file by OUTCROP_NVRTC, `outcrop doctor` shows where it is looked for{}",
        listed(refused)
    )]
    NoNvrtc {
        /// Libraries that were found and cannot be used, and why.
        refused: Vec<String>,
    },
    /// A kernel that the compiler refused.
    #[error("{kernel} does not compile with {options}:\n{log}")]
    Compile {
        /// The instance.
        kernel: String,
        /// Compiler options.
        options: String,
        /// What the compiler says.
        log: String,
    },
    /// Code that the driver refused.
    #[error("{kernel} cannot be loaded: {code} ({text}); `outcrop doctor` shows what was compiled for what")]
    Load {
        /// The instance.
        kernel: String,
        /// Name of the driver's code.
        code: String,
        /// Its explanation.
        text: String,
    },
    /// The cache of compiled kernels cannot be written to.
    #[error("cannot write to the kernel cache {}: make it writable, or name another folder by OUTCROP_CACHE_DIR", folder.display())]
    Cache {
        /// The folder.
        folder: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Not enough device memory.
    #[error("out of device memory: {} asked for, {free} of {total} free", bytes(*requested))]
    OutOfMemory {
        /// Bytes asked for; `None` where the driver wanted some for itself.
        requested: Option<u64>,
        /// Bytes free.
        free: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {code} ({text})")]
    Driver {
        /// The call.
        call: &'static str,
        /// Name of the driver's code.
        code: String,
        /// Its explanation.
        text: String,
    },
    /// A launch, or a sequence of them, that the driver refused.
    #[error(
        "{} cannot be launched: {call} reported {code} ({text}); `outcrop doctor` shows what kernels take of a device{}",
        one_of(kernels),
        if kernels.len() > 1 { ", `--no-graphs` names the one" } else { "" }
    )]
    Launch {
        /// The kernel, or those of the sequence.
        kernels: Vec<String>,
        /// The call.
        call: &'static str,
        /// Name of the driver's code.
        code: String,
        /// Its explanation.
        text: String,
    },
    /// The device has stopped: nothing on it works any more in this process.
    #[error(
        "CUDA device {device} is lost: {call} reported {code} ({text}){}{}; restart the process, and if it happens again, run with \
         OUTCROP_SYNCHRONOUS=1, which names the kernel",
        if kernels.is_empty() { "" } else { " in " },
        one_of(kernels)
    )]
    Lost {
        /// Its number.
        device: usize,
        /// The call that reported it.
        call: &'static str,
        /// Name of the driver's code.
        code: String,
        /// Its explanation.
        text: String,
        /// Kernels that were under way: one of them failed.
        kernels: Vec<String>,
    },
    /// The emulator found a kernel at fault.
    #[error("{kernel}: {fault}")]
    Fault {
        /// The instance.
        kernel: String,
        /// What it did, and where.
        fault: String,
    },
    /// The emulator's library does not load.
    #[error("the emulator's kernels {} cannot be loaded", library.display())]
    Emulator {
        /// The file.
        library: PathBuf,
        /// The loader's answer.
        #[source]
        source: libloading::Error,
    },
    /// A type that the device's kernels do not multiply in.
    #[error("f32 operands run on the CPU only; choose f16 or bf16, or run with `--device cpu`")]
    FullPrecision,
    /// A kernel file given by its path, without a GPU to compile it for.
    #[error("a kernel file given by its path runs on a GPU alone; choose one by `--device cuda`")]
    NoVariants,
    /// Operands of different devices in one call.
    #[error("operand `{operand}` is on another device than the stream")]
    OtherDevice {
        /// The operand, or what it is.
        operand: &'static str,
    },
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        Self::Device(Box::new(error))
    }
}

impl Error {
    /// Whether a device had too little memory; with less work at a time the call may succeed.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Device(error) if matches!(**error, DeviceError::OutOfMemory { .. }))
    }

    /// Whether a device has stopped: nothing on it works any more in this process.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Device(error) if matches!(**error, DeviceError::Lost { .. }))
    }

    /// Whether the compiler refused a kernel's file.
    pub fn is_refused_source(&self) -> bool {
        matches!(self, Self::Device(error) if matches!(**error, DeviceError::Compile { .. }))
    }
}

fn listed(reasons: &[String]) -> String {
    reasons.iter().map(|reason| format!("\n  {reason}")).collect()
}

/// Kernels that an error names at most.
const NAMED_MAX: usize = 8;

fn one_of(kernels: &[String]) -> String {
    match kernels {
        [] => String::new(),
        [one] => one.clone(),
        several if several.len() <= NAMED_MAX => format!("one of {}", several.join(", ")),
        many => format!("one of {} and {} more", many[..NAMED_MAX].join(", "), many.len() - NAMED_MAX),
    }
}

fn bytes(requested: Option<u64>) -> String {
    requested.map_or_else(|| "some".to_owned(), |bytes| format!("{bytes} bytes"))
}

/// Checks that every index points into a table of `rows` rows.
pub(crate) fn check_indices(
    kernel: &'static str,
    table: &'static str,
    indices: &[u32],
    rows: usize,
) -> Result<(), Error> {
    match indices.iter().position(|index| *index as usize >= rows) {
        Some(position) => {
            Err(Error::IndexOutOfRange { kernel, table, index: indices[position], position, rows })
        }
        None => Ok(()),
    }
}

/// Checks a factor or a bound against the contract.
pub(crate) fn check_positive(kernel: &'static str, parameter: &'static str, found: f32) -> Result<(), Error> {
    // Written so that a NaN is refused.
    if found > 0.0 && found.is_finite() {
        Ok(())
    } else {
        Err(Error::NotPositive { kernel, parameter, found })
    }
}

/// Checks one operand's length against the contract.
pub(crate) fn check_length(
    kernel: &'static str,
    operand: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), Error> {
    if found < expected { Err(Error::Length { kernel, operand, expected, found }) } else { Ok(()) }
}
