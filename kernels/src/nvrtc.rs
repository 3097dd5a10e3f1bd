//! NVIDIA's run-time compiler: the few functions of it that we need, from whichever of its libraries is there.
//!
//! cudarc binds it too, but panics when no library loads, does not look into Python environments, and has no call for machine code.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use crate::Error;
use crate::error::DeviceError;

/// Names a library file, or the folder that holds one.
pub(crate) const LIBRARY_VARIABLE: &str = "OUTCROP_NVRTC";

type Program = *mut c_void;

/// Older versions lack what the kernels are written in, and nobody has tried them.
const MAJOR_MIN: u32 = 12;

/// The compiler, loaded.
pub struct Nvrtc {
    /// The file.
    pub path: PathBuf,
    /// Such as 12 and 9.
    pub version: (u32, u32),
    /// Bytes of the file: two builds of one version may differ.
    pub(crate) file_bytes: u64,
    /// Numbers of the architectures that it knows, such as 80 and 90.
    architectures: Vec<u32>,
    functions: Functions,
}

/// How a search for the library came out.
pub struct NvrtcSearch {
    /// The library to compile with.
    pub found: Option<Nvrtc>,
    /// Libraries that were found before it and cannot be used, each with its reason.
    pub refused: Vec<String>,
    /// The file or the folders that were looked at. The system's own come after them, unless a place was named.
    pub places: Vec<PathBuf>,
}

struct Functions {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    add_name: unsafe extern "C" fn(Program, *const c_char) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log: Output,
    log_size: OutputSize,
    cubin: Output,
    cubin_size: OutputSize,
    ptx: Output,
    ptx_size: OutputSize,
    lowered_name: unsafe extern "C" fn(Program, *const c_char, *mut *const c_char) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    num_architectures: unsafe extern "C" fn(*mut c_int) -> c_int,
    architectures: unsafe extern "C" fn(*mut c_int) -> c_int,
}

type Output = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type OutputSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;

/// What compiling one instance gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiled {
    /// A cubin, or PTX with its terminating zero.
    pub(crate) code: Vec<u8>,
    /// The instance's name in it.
    pub(crate) symbol: String,
    /// What the compilers had to say.
    pub(crate) log: String,
}

/// A source text with its name and what it includes.
pub(crate) struct SourceText<'a> {
    pub(crate) name: &'a str,
    pub(crate) text: &'a str,
    /// Texts by the name they are included by.
    pub(crate) headers: &'a [(&'a str, &'a str)],
}

impl NvrtcSearch {
    /// Looks for a library whose code a driver of CUDA version `driver_major` can run, and which knows `architecture`: where the user
    /// says, or else in Python environments, CUDA installations and the system, in this order. The first that will do is taken.
    pub(crate) fn new(driver_major: u32, architecture: &str) -> Self {
        let (places, candidates) = match std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty())
        {
            // What is named explicitly is taken or refused; nothing else is tried in its stead.
            Some(path) => {
                let path = std::path::absolute(&path).unwrap_or_else(|_| path.into());
                let candidates = if path.is_dir() { libraries_in(&path) } else { vec![path.clone()] };
                (vec![path], candidates)
            }
            None => {
                let places = places();
                let files = places.iter().flat_map(|place| libraries_in(place));
                let candidates = files.chain(NAMES.map(PathBuf::from)).collect();
                (places, candidates)
            }
        };
        let mut search = Self { found: None, refused: Vec::new(), places };
        if candidates.is_empty() {
            let place = search.places.first().map_or_else(String::new, |place| place.display().to_string());
            search.refused.push(format!("{place}: holds no {}", NAMES.join(", ")));
        }
        let mut seen = Vec::new();
        for candidate in candidates {
            let refused = match Nvrtc::load(&candidate) {
                Ok(nvrtc) if seen.contains(&nvrtc.path) => continue,
                Ok(nvrtc) => match nvrtc.refusal(driver_major, architecture) {
                    None => {
                        search.found = Some(nvrtc);
                        break;
                    }
                    Some(reason) => {
                        seen.push(nvrtc.path.clone());
                        format!("{}: {reason}", nvrtc.path.display())
                    }
                },
                // A name that the system does not know is no finding; all else that does not load is.
                Err(reason)
                    if candidate.is_relative() && reason.contains("cannot open shared object file") =>
                {
                    continue;
                }
                Err(reason) => format!("{}: {reason}", candidate.display()),
            };
            search.refused.push(refused);
        }
        search
    }

    /// The library, or the error that says why there is none.
    pub(crate) fn library(&self) -> Result<&Nvrtc, Error> {
        self.found.as_ref().ok_or_else(|| DeviceError::NoNvrtc { refused: self.refused.clone() }.into())
    }
}

impl Nvrtc {
    /// The first library found whose code a driver of CUDA version `driver_major` can run.
    pub fn find(driver_major: u32) -> Result<Self, Error> {
        let NvrtcSearch { found, refused, .. } = NvrtcSearch::new(driver_major, "compute_80");
        found.ok_or_else(|| DeviceError::NoNvrtc { refused }.into())
    }

    /// Loads the library at `path`, or of this name.
    fn load(path: &Path) -> Result<Self, String> {
        // The path stands before every reason that is shown.
        let prefix = format!("{}: ", path.display());
        let text = |error| {
            let reason = loader_reason(&error);
            reason.strip_prefix(&prefix).map(str::to_owned).unwrap_or(reason)
        };
        // SAFETY: NVRTC's initialisation has no preconditions.
        let library = unsafe { Library::new(path) }.map_err(text)?;
        // SAFETY: the names and types are those of nvrtc.h, unchanged from version 12 to 13.
        let functions = unsafe { Functions::of(&library) }.map_err(text)?;
        // Stays loaded to the end: a library of this kind is not made to be unloaded.
        std::mem::forget(library);
        let succeeded = |call: &str, code: c_int| match code {
            0 => Ok(()),
            code => Err(format!("{call} failed with code {code}")),
        };
        let (mut major, mut minor, mut count): (c_int, c_int, c_int) = (0, 0, 0);
        // SAFETY: all numbers outlive the calls, here and below.
        succeeded("nvrtcVersion", unsafe { (functions.version)(&raw mut major, &raw mut minor) })?;
        // SAFETY: as above.
        succeeded("nvrtcGetNumSupportedArchs", unsafe { (functions.num_architectures)(&raw mut count) })?;
        let mut architectures: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for `count` numbers.
        succeeded("nvrtcGetSupportedArchs", unsafe {
            (functions.architectures)(architectures.as_mut_ptr())
        })?;
        let path = loaded_file(functions.version as usize).unwrap_or_else(|| path.to_owned());
        Ok(Self {
            file_bytes: std::fs::metadata(&path).map_or(0, |metadata| metadata.len()),
            path,
            version: (major.unsigned_abs(), minor.unsigned_abs()),
            architectures: architectures.into_iter().map(c_int::unsigned_abs).collect(),
            functions,
        })
    }

    /// Why it cannot compile for `architecture`, or a driver of CUDA version `driver_major` not run what it compiles.
    fn refusal(&self, driver_major: u32, architecture: &str) -> Option<String> {
        let (major, minor) = self.version;
        let number = architecture.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
        if major > driver_major {
            Some(format!("version {major}.{minor} is newer than the driver's CUDA {driver_major}"))
        } else if major < MAJOR_MIN {
            Some(format!("version {major}.{minor} is too old, the kernels need {MAJOR_MIN}.0"))
        } else if !self.architectures.contains(&number) {
            Some(format!("version {major}.{minor} does not know {architecture}, a newer one may"))
        } else {
            None
        }
    }

    /// Compiles the instance `name` of `source` with `options`; PTX where the target is not a real architecture.
    pub(crate) fn compile(
        &self,
        source: &SourceText<'_>,
        name: &str,
        options: &[String],
    ) -> Result<Compiled, Error> {
        let program = ProgramGuard::new(self, source)?;
        let functions = &self.functions;
        let c_name = c_string(name);
        // SAFETY: program and string are live, here and below.
        program.check("nvrtcAddNameExpression", unsafe {
            (functions.add_name)(program.program, c_name.as_ptr())
        })?;
        let options: Vec<CString> = options.iter().map(|option| c_string(option)).collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        // SAFETY: as above.
        let code = unsafe { (functions.compile)(program.program, count, pointers.as_ptr()) };
        let log = program.log();
        if code != 0 {
            let log = format!("{}\n{log}", self.error_text(code));
            return Err(DeviceError::Compile { kernel: name.to_owned(), options: join(&options), log }.into());
        }
        let mut lowered = ptr::null();
        // SAFETY: as above; the string lives as long as the program.
        program.check("nvrtcGetLoweredName", unsafe {
            (functions.lowered_name)(program.program, c_name.as_ptr(), &raw mut lowered)
        })?;
        // SAFETY: a string of NVRTC's.
        let symbol = unsafe { CStr::from_ptr(lowered) }.to_string_lossy().into_owned();
        let is_virtual =
            options.iter().any(|option| option.to_bytes().starts_with(b"--gpu-architecture=compute_"));
        let code = match is_virtual {
            true => program.bytes("nvrtcGetPTX", functions.ptx_size, functions.ptx)?,
            false => program.bytes("nvrtcGetCUBIN", functions.cubin_size, functions.cubin)?,
        };
        Ok(Compiled { code, symbol, log })
    }

    fn error_text(&self, code: c_int) -> String {
        // SAFETY: gives a static string for any number.
        unsafe { CStr::from_ptr((self.functions.error)(code)) }.to_string_lossy().into_owned()
    }
}

impl Functions {
    /// # Safety
    /// `library` is NVRTC.
    unsafe fn of(library: &Library) -> Result<Self, libloading::Error> {
        // SAFETY: passed on to the caller.
        unsafe {
            Ok(Self {
                create: *library.get(b"nvrtcCreateProgram\0")?,
                destroy: *library.get(b"nvrtcDestroyProgram\0")?,
                add_name: *library.get(b"nvrtcAddNameExpression\0")?,
                compile: *library.get(b"nvrtcCompileProgram\0")?,
                log: *library.get(b"nvrtcGetProgramLog\0")?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0")?,
                cubin: *library.get(b"nvrtcGetCUBIN\0")?,
                cubin_size: *library.get(b"nvrtcGetCUBINSize\0")?,
                ptx: *library.get(b"nvrtcGetPTX\0")?,
                ptx_size: *library.get(b"nvrtcGetPTXSize\0")?,
                lowered_name: *library.get(b"nvrtcGetLoweredName\0")?,
                error: *library.get(b"nvrtcGetErrorString\0")?,
                version: *library.get(b"nvrtcVersion\0")?,
                num_architectures: *library.get(b"nvrtcGetNumSupportedArchs\0")?,
                architectures: *library.get(b"nvrtcGetSupportedArchs\0")?,
            })
        }
    }
}

/// A program, destroyed at the end.
struct ProgramGuard<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
    name: &'a str,
}

impl<'a> ProgramGuard<'a> {
    fn new(nvrtc: &'a Nvrtc, source: &SourceText<'a>) -> Result<Self, Error> {
        let text = c_string(source.text);
        let name = c_string(source.name);
        let header_texts: Vec<CString> = source.headers.iter().map(|(_, text)| c_string(text)).collect();
        let header_names: Vec<CString> = source.headers.iter().map(|(name, _)| c_string(name)).collect();
        let texts: Vec<*const c_char> = header_texts.iter().map(|text| text.as_ptr()).collect();
        let names: Vec<*const c_char> = header_names.iter().map(|name| name.as_ptr()).collect();
        let mut guard = Self { nvrtc, program: ptr::null_mut(), name: source.name };
        let count = c_int::try_from(texts.len()).unwrap_or(c_int::MAX);
        // SAFETY: all strings outlive the call, which copies them.
        let code = unsafe {
            (nvrtc.functions.create)(
                &raw mut guard.program,
                text.as_ptr(),
                name.as_ptr(),
                count,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        guard.check("nvrtcCreateProgram", code)?;
        Ok(guard)
    }

    fn check(&self, call: &str, code: c_int) -> Result<(), Error> {
        if code == 0 {
            return Ok(());
        }
        let log = format!("{call}: {}", self.nvrtc.error_text(code));
        Err(DeviceError::Compile { kernel: self.name.to_owned(), options: String::new(), log }.into())
    }

    fn bytes(&self, call: &str, size: OutputSize, get: Output) -> Result<Vec<u8>, Error> {
        let mut len = 0;
        // SAFETY: the program is live and has been compiled.
        self.check(call, unsafe { size(self.program, &raw mut len) })?;
        let mut bytes = vec![0u8; len];
        // SAFETY: as above, with room for `len` bytes.
        self.check(call, unsafe { get(self.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    /// What the compilers say. That it cannot be had is no reason to do without the code.
    fn log(&self) -> String {
        let functions = &self.nvrtc.functions;
        let bytes = self.bytes("nvrtcGetProgramLog", functions.log_size, functions.log).unwrap_or_default();
        // It ends in one zero or two.
        String::from_utf8_lossy(&bytes).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()
    }
}

impl Drop for ProgramGuard<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: the program is live and destroyed once.
            unsafe { (self.nvrtc.functions.destroy)(&raw mut self.program) };
        }
    }
}

/// Our texts hold no zero; if one did, it would end there and not compile.
fn c_string(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

fn join(options: &[CString]) -> String {
    let options: Vec<_> = options.iter().map(|option| option.to_string_lossy()).collect();
    options.join(" ")
}

/// The library's names, the newest first.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
/// Where it lies in a place: by itself, as a Python package, in a CUDA installation. Of the packages that of version 12 comes first:
/// drivers of version 12 and 13 run its code.
const FOLDERS: [&str; 6] =
    ["", "nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib", "lib64", "lib", "targets/x86_64-linux/lib"];

/// Places that may hold the library, in the order of preference, as far as there are such.
fn places() -> Vec<PathBuf> {
    let sites = python_prefixes().into_iter().flat_map(|prefix| site_packages(&prefix));
    let installations = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(path_variable);
    let mut places: Vec<PathBuf> = Vec::new();
    let named = sites.chain(installations).chain([PathBuf::from("/usr/local/cuda")]);
    for place in named.filter_map(|place| place.canonicalize().ok()) {
        if place.is_dir() && !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// The libraries in a place, by each of their names there.
fn libraries_in(place: &Path) -> Vec<PathBuf> {
    let names = FOLDERS.into_iter().flat_map(|folder| NAMES.map(|name| Path::new(folder).join(name)));
    names.map(|name| place.join(name)).filter(|path| path.exists()).collect()
}

/// The active environment, then those of every `python3` on the path, then the user's and the machine's own packages.
fn python_prefixes() -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(path_variable).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let pythons = std::env::split_paths(&path).map(|folder| folder.join("python3"));
    for python in pythons.filter(|python| python.exists()) {
        // A virtual environment's interpreter is a link; its packages stand beside the link, not beside what it points to.
        for python in [Some(python.clone()), python.canonicalize().ok()].into_iter().flatten() {
            let Some(prefix) = python.parent().and_then(Path::parent) else { continue };
            prefixes.push(prefix.to_owned());
            // pyenv's is a script that stands for one of these.
            let versions = std::fs::read_dir(prefix.join("versions"));
            prefixes.extend(versions.into_iter().flatten().flatten().map(|version| version.path()));
        }
    }
    // Debian's python3 in /usr has its own packages there, and those that pip installs below /usr/local.
    prefixes.extend(path_variable("HOME").map(|home| home.join(".local")));
    prefixes.push(PathBuf::from("/usr/local"));
    prefixes
}

/// `lib/python3.*/{site,dist}-packages` below a prefix.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let mut sites = Vec::new();
    for lib in ["lib", "lib64"] {
        let Ok(entries) = std::fs::read_dir(prefix.join(lib)) else { continue };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with("python3") {
                sites.extend(["site-packages", "dist-packages"].map(|folder| entry.path().join(folder)));
            }
        }
    }
    sites.sort();
    sites
}

pub(crate) fn path_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// What the system's loader says: it stands in the cause of the error alone.
pub(crate) fn loader_reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The file that `address` in this process was loaded from.
fn loaded_file(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let (end, rest) = rest.split_once(' ')?;
        let bound = |text| usize::from_str_radix(text, 16).ok();
        let path = rest.find('/').map(|at| PathBuf::from(&rest[at..]));
        path.filter(|_| bound(start) <= Some(address) && Some(address) < bound(end))
    })
}
