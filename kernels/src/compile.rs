//! From a kernel's source to machine code for a device, through a cache on disk.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sha2::{Digest, Sha256};

use crate::Error;
use crate::bench::Variant;
use crate::error::DeviceError;
use crate::nvrtc::{Compiled, Nvrtc, NvrtcSearch, SourceText, path_variable};
use crate::params::{Instance, Source};

/// Names the cache's folder.
pub(crate) const CACHE_VARIABLE: &str = "OUTCROP_CACHE_DIR";

/// What kernels include, by the names they use.
pub(crate) const HEADERS: &[(&str, &str)] = &[
    ("hardware.cuh", include_str!("hardware.cuh")),
    ("../hardware.cuh", include_str!("hardware.cuh")),
    ("hopper.cuh", include_str!("hopper.cuh")),
    ("../hopper.cuh", include_str!("hopper.cuh")),
    ("../packed.cuh", include_str!("packed.cuh")),
    ("../row.cuh", include_str!("row.cuh")),
    ("attention.cuh", include_str!("attention/attention.cuh")),
    ("epilogues.cuh", include_str!("gemm/epilogues.cuh")),
];
/// Begins a cache entry; a new layout takes a new number.
const MAGIC: &[u8; 8] = b"outcrop1";

/// Ends the name of a cache entry.
const EXTENSION: &str = "kernel";

/// Every architecture that code is compiled for.
pub const ARCHITECTURES: [&str; 7] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120", "compute_80"];

/// The architecture that code is compiled for, from the least of a family up.
///
/// Of 8.x and 12.x the features we use are those of x.0; wgmma and register reallocation exist on exactly 9.0 under the name
/// sm_90a. What is newer than all of these gets PTX, which its driver translates; so do the embedded ones (8.7, 10.1), which run no
/// code of the others of their family.
pub(crate) fn architecture(compute_capability: (u32, u32)) -> &'static str {
    match compute_capability {
        (8, 0) => "sm_80",
        (8, 6) => "sm_86",
        (8, 9) => "sm_89",
        (9, 0) => "sm_90a",
        (10, 0 | 3) => "sm_100",
        (12, _) => "sm_120",
        _ => "compute_80",
    }
}

/// Whether the code for a device of this capability waits itself for the kernel before it, so that it may be launched to begin ahead of
/// that one's end. PTX for 8.0 does not, whatever runs it.
pub(crate) fn knows_programmatic_launch(compute_capability: (u32, u32)) -> bool {
    compute_capability >= (9, 0) && architecture(compute_capability) != "compute_80"
}

/// What turns instances into code for one architecture.
pub(crate) struct Compiler {
    architecture: &'static str,
    driver_major: u32,
    /// Looked for when the first instance is asked for.
    search: OnceLock<NvrtcSearch>,
    cache: Cache,
    /// What is being compiled, by key: whoever asks for the same meanwhile waits for it.
    under_way: Mutex<HashMap<String, Arc<Mutex<Option<Compiled>>>>>,
}

impl Compiler {
    /// For a device of this capability, under a driver of CUDA version `driver_major`.
    pub(crate) fn new(compute_capability: (u32, u32), driver_major: u32) -> Self {
        Self::of(architecture(compute_capability), driver_major)
    }

    /// For one of [`ARCHITECTURES`].
    pub(crate) fn of(architecture: &'static str, driver_major: u32) -> Self {
        Self {
            architecture,
            driver_major,
            search: OnceLock::new(),
            cache: Cache::from_environment(),
            under_way: Mutex::default(),
        }
    }

    /// Code for `instance`, from the cache or compiled and put there, by one thread however many ask.
    ///
    /// The cache alone will do: a machine that has compiled everything once does without NVRTC. What is found damaged is compiled
    /// again.
    pub(crate) fn compile(&self, instance: &Instance) -> Result<Compiled, Error> {
        let source = source_text(instance);
        let options = options(self.architecture);
        let key = key(instance, &source, &options);
        let place = Arc::clone(lock(&self.under_way).entry(key.clone()).or_default());
        let mut place = lock(&place);
        if let Some(compiled) = &*place {
            return Ok(compiled.clone());
        }
        let compiled = self.read_or_compile(instance, &source, &options, &key);
        // Only for those who wait: whoever comes later asks the cache.
        *place = compiled.as_ref().ok().cloned();
        lock(&self.under_way).remove(&key);
        compiled
    }

    /// Code for `instance` from a variant of its file. It is compiled every time: what it includes may have changed.
    pub(crate) fn compile_variant(&self, instance: &Instance, variant: &Variant) -> Result<Compiled, Error> {
        let nvrtc = self.search().library()?;
        let folder = match variant.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let name = variant.path.display().to_string();
        let text = with_assertions(&name, &variant.text, instance.source);
        // A header beside the variant goes before the built-in one of its name.
        let headers: Vec<_> =
            HEADERS.iter().copied().filter(|(name, _)| !folder.join(name).exists()).collect();
        let source = SourceText { name: &name, text: &text, headers: &headers };
        let mut options = options(self.architecture);
        options.push(format!("--include-path={}", folder.display()));
        nvrtc.compile(&source, &instance.name, &options)
    }

    fn read_or_compile(
        &self,
        instance: &Instance,
        source: &str,
        options: &[String],
        key: &str,
    ) -> Result<Compiled, Error> {
        let search = self.search();
        let nvrtc = match search.library() {
            Ok(nvrtc) => nvrtc,
            Err(error) => return self.cache.read_any(key, self.driver_major).ok_or(error),
        };
        let build = Build { version: nvrtc.version, file_bytes: nvrtc.file_bytes };
        if let Some(found) = self.cache.read(key, &build) {
            return Ok(found);
        }
        let compiled = compile(nvrtc, instance, source, options)?;
        self.cache.write(key, &build, &compiled)?;
        Ok(compiled)
    }

    /// How the search for a library that compiles came out.
    pub(crate) fn search(&self) -> &NvrtcSearch {
        self.search.get_or_init(|| NvrtcSearch::new(self.driver_major, self.architecture))
    }
}

/// Nothing that these locks guard is left half-done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compiles `instance` for `architecture` without a cache and without a device: for looking at the code.
pub(crate) fn compile_for(nvrtc: &Nvrtc, instance: &Instance, architecture: &str) -> Result<Compiled, Error> {
    compile(nvrtc, instance, &source_text(instance), &options(architecture))
}

fn compile(nvrtc: &Nvrtc, instance: &Instance, text: &str, options: &[String]) -> Result<Compiled, Error> {
    let source = SourceText { name: instance.source.path, text, headers: HEADERS };
    nvrtc.compile(&source, &instance.name, options)
}

/// `-v` has ptxas report registers and spills in the log, which says at once why a kernel is slow.
fn options(architecture: &str) -> Vec<String> {
    let architecture = format!("--gpu-architecture={architecture}");
    [architecture.as_str(), "--std=c++17", "--ptxas-options=-v"].map(str::to_owned).to_vec()
}

/// The instance's file and what follows it.
fn source_text(instance: &Instance) -> String {
    with_assertions(instance.source.path, instance.source.text, instance.source)
}

/// A kernel file and, behind it, the assertions that hold its parameter blocks to ours.
fn with_assertions(path: &str, text: &str, source: &Source) -> String {
    format!("#line 1 \"{path}\"\n{text}\n#line 1 \"{path}: layout\"\n{}", (source.assertions)())
}

/// Everything that decides the code, hashed.
fn key(instance: &Instance, source: &str, options: &[String]) -> String {
    let mut hash = Sha256::new();
    for (name, text) in HEADERS {
        hash.update(name);
        hash.update([0]);
        hash.update(text);
        hash.update([0]);
    }
    for text in [source, &instance.name, &options.join(" "), env!("CARGO_PKG_VERSION")] {
        hash.update(text);
        hash.update([0]);
    }
    hexadecimal(&hash.finalize())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Where compiled code is kept: a file per key and build of NVRTC.
pub(crate) struct Cache {
    /// None where neither a cache folder nor a home folder is known.
    folder: Option<PathBuf>,
    /// Whether the user named it: then failing to write is an error.
    is_explicit: bool,
}

/// What compiled an entry: another build may compile otherwise.
struct Build {
    version: (u32, u32),
    file_bytes: u64,
}

/// What the cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheContents {
    pub(crate) entries: usize,
    pub(crate) bytes: u64,
    /// Files that are no whole entries, by name. They are compiled again when they are needed.
    pub(crate) damaged: Vec<String>,
}

impl Cache {
    pub(crate) fn from_environment() -> Self {
        if let Some(folder) = path_variable(CACHE_VARIABLE) {
            // Made absolute for messages.
            let folder = std::path::absolute(&folder).unwrap_or(folder);
            return Self { folder: Some(folder), is_explicit: true };
        }
        let base =
            path_variable("XDG_CACHE_HOME").or_else(|| path_variable("HOME").map(|home| home.join(".cache")));
        Self { folder: base.map(|base| base.join("outcrop")), is_explicit: false }
    }

    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The entry of `key` by this build of NVRTC. A damaged one is none.
    fn read(&self, key: &str, build: &Build) -> Option<Compiled> {
        decode(&fs::read(self.folder.as_ref()?.join(file_name(key, build))).ok()?)
    }

    /// The entry of `key` by any build of NVRTC whose code a driver of this version runs: where there is none to compile with.
    fn read_any(&self, key: &str, driver_major: u32) -> Option<Compiled> {
        let files = fs::read_dir(self.folder.as_ref()?).ok()?;
        files.flatten().find_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let major = name.strip_prefix(key)?.strip_prefix('-')?.split('.').next()?;
            let runs = major.parse::<u32>().is_ok_and(|major| major <= driver_major);
            if runs { decode(&fs::read(file.path()).ok()?) } else { None }
        })
    }

    /// Puts an entry in its place whole or not at all: written beside it under a name of its own, then renamed.
    fn write(&self, key: &str, build: &Build, compiled: &Compiled) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let written = fs::create_dir_all(folder).and_then(|()| {
            let mut file = new_file(folder)?;
            file.write_all(&encode(compiled))?;
            file.as_file().sync_all()?;
            file.persist(folder.join(file_name(key, build))).map_err(|error| error.error)?;
            Ok(())
        });
        match written {
            // A default folder that cannot be written to, in a container say, costs compile time and nothing else.
            Err(source) if self.is_explicit => {
                Err(DeviceError::Cache { folder: folder.clone(), source }.into())
            }
            _ => Ok(()),
        }
    }

    /// Whether entries can be written, by writing one and removing it.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        fs::create_dir_all(folder)
            .and_then(|()| new_file(folder)?.write_all(MAGIC))
            .map_err(|source| DeviceError::Cache { folder: folder.clone(), source }.into())
    }

    /// What is there, every entry read and verified.
    pub(crate) fn contents(&self) -> CacheContents {
        let mut contents = CacheContents::default();
        let Some(files) = self.folder.as_ref().and_then(|folder| fs::read_dir(folder).ok()) else {
            return contents;
        };
        let is_entry = |path: &PathBuf| path.extension().is_some_and(|extension| extension == EXTENSION);
        for path in files.flatten().map(|file| file.path()).filter(is_entry) {
            let bytes = fs::read(&path).unwrap_or_default();
            contents.entries += 1;
            contents.bytes += bytes.len() as u64;
            if decode(&bytes).is_none() {
                contents.damaged.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        contents.damaged.sort();
        contents
    }
}

/// A file that is removed unless it is given a name. Others than its owner may read it: what one user compiles into an image,
/// another one runs.
fn new_file(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o644)).tempfile_in(folder)
}

fn file_name(key: &str, build: &Build) -> String {
    let Build { version: (major, minor), file_bytes } = build;
    format!("{key}-{major}.{minor}-{file_bytes}.{EXTENSION}")
}

/// Magic, SHA-256 of the rest, then symbol and log, each behind its length, then the code.
fn encode(compiled: &Compiled) -> Vec<u8> {
    let mut payload = Vec::new();
    for text in [&compiled.symbol, &compiled.log] {
        payload.extend((text.len() as u64).to_le_bytes());
        payload.extend(text.as_bytes());
    }
    payload.extend(&compiled.code);
    [MAGIC.as_slice(), Sha256::digest(&payload).as_slice(), &payload].concat()
}

fn decode(bytes: &[u8]) -> Option<Compiled> {
    let (digest, mut payload) = bytes.strip_prefix(MAGIC)?.split_at_checked(32)?;
    if Sha256::digest(payload).as_slice() != digest {
        return None;
    }
    let mut text = || {
        let (len, rest) = payload.split_first_chunk::<8>()?;
        let (text, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        payload = rest;
        String::from_utf8(text.to_vec()).ok()
    };
    let (symbol, log) = (text()?, text()?);
    Some(Compiled { symbol, log, code: payload.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled() -> Compiled {
        Compiled { code: vec![1, 2, 3], symbol: "_Z5scale".to_owned(), log: "Used 7 registers".to_owned() }
    }

    const BUILD: Build = Build { version: (12, 9), file_bytes: 7 };

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { folder: Some(folder.path().join("made")), is_explicit: true };
        assert_eq!(cache.read("key", &BUILD), None);
        assert_eq!(cache.contents(), CacheContents::default());
        cache.write("key", &BUILD, &compiled()).unwrap();
        assert_eq!(cache.read("key", &BUILD), Some(compiled()));
        // Another build compiles for itself; without one, what the driver can run will do.
        assert_eq!(cache.read("key", &Build { version: (12, 9), file_bytes: 8 }), None);
        assert_eq!(cache.read("ke", &BUILD), None);
        assert_eq!(cache.read_any("key", 12), Some(compiled()));
        assert_eq!(cache.read_any("key", 11), None);
        assert_eq!(cache.read_any("ke", 12), None);

        let path = folder.path().join("made").join(file_name("key", &BUILD));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o044, 0o044, "others may read it");
        let whole = fs::read(&path).unwrap();
        let contents = |damaged: &[&str]| CacheContents {
            entries: 1,
            bytes: whole.len() as u64,
            damaged: damaged.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert_eq!(cache.contents(), contents(&[]));
        for (at, what) in [(0, "magic"), (9, "digest"), (whole.len() - 1, "code")] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert_eq!(cache.read("key", &BUILD), None, "{what}");
            assert_eq!(cache.read_any("key", 12), None, "{what}");
            assert_eq!(cache.contents(), contents(&["key-12.9-7.kernel"]), "{what}");
        }
        for len in 0..whole.len() {
            assert_eq!(decode(&whole[..len]), None, "{len} bytes");
        }
        cache.write("key", &BUILD, &compiled()).unwrap();
        assert_eq!(cache.read("key", &BUILD), Some(compiled()));
        // Nothing but the entry is left behind.
        cache.check().unwrap();
        assert_eq!(fs::read_dir(folder.path().join("made")).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_an_error_if_it_was_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let cache = |is_explicit| Cache { folder: Some(file.join("below")), is_explicit };
        let error = cache(true).write("key", &BUILD, &compiled()).unwrap_err().to_string();
        assert!(error.contains("below") && error.contains(CACHE_VARIABLE), "{error}");
        cache(false).write("key", &BUILD, &compiled()).unwrap();
        assert!(cache(false).check().is_err());
        assert_eq!(cache(false).contents(), CacheContents::default());
    }

    /// With the real compiler, which `OUTCROP_NVRTC` names.
    #[test]
    fn threads_that_ask_for_the_same_instance_compile_it_once() {
        if std::env::var_os("OUTCROP_NVRTC").is_none() {
            let required = std::env::var("REQUIRE").unwrap_or_default();
            assert!(
                !required.split(',').any(|name| name == "nvrtc"),
                "REQUIRE asks for nvrtc, but OUTCROP_NVRTC is not set"
            );
            eprintln!("SKIPPED: OUTCROP_NVRTC is not set");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { folder: Some(folder.path().to_owned()), is_explicit: true };
        let compiler = Compiler { cache, ..Compiler::of("sm_80", u32::MAX) };
        let instance = &crate::l2_normalize::instances()[0];
        let compile = || compiler.compile(instance).unwrap();
        let compiled: Vec<Compiled> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(compile)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // The log holds the time that compiling took: of two runs it would differ.
        assert!(compiled[0].log.contains("Compile time"), "{}", compiled[0].log);
        assert!(compiled.iter().all(|other| *other == compiled[0]));
        assert!(lock(&compiler.under_way).is_empty());
        assert_eq!(compiler.cache.contents().entries, 1);
    }

    #[test]
    fn every_architecture_has_code() {
        for (capability, expected) in [
            ((8, 0), "sm_80"),
            ((8, 6), "sm_86"),
            ((8, 7), "compute_80"),
            ((8, 9), "sm_89"),
            ((9, 0), "sm_90a"),
            ((10, 0), "sm_100"),
            ((10, 1), "compute_80"),
            ((10, 3), "sm_100"),
            ((12, 1), "sm_120"),
            ((11, 0), "compute_80"),
            ((13, 0), "compute_80"),
        ] {
            assert_eq!(architecture(capability), expected, "{capability:?}");
            // What hardware.cuh tells by the number.
            let has_instruction = ["sm_90a", "sm_100", "sm_120"].contains(&expected);
            assert_eq!(knows_programmatic_launch(capability), has_instruction, "{capability:?}");
            assert!(ARCHITECTURES.contains(&expected));
        }
    }
}
