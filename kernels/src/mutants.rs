//! Planted bugs: every patch in a kernel's `mutants.txt` must be noticed by that kernel's check.
//!
//! A mutant becomes a library of its own, checked in a process of its own, since it may crash or hang: this binary, running
//! [`kernels_pass_their_checks`] alone. Where a mutant leaves an allocation of device memory, sanitizers watch.
//!
//! Blocks of `mutants.txt` are set apart by blank lines:
//!
//! ```text
//! # what is wrong, and who must notice (values), (races), (protocol), or (bounds)
//! file: gemm/gemm.cu
//! - what occurs there exactly once: lines, or a part of one
//! + what stands there instead
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use crate::test_devices::{HOPPER, OPERAND_TYPES, PORTABLE, SCHEDULES, required, under_schedules_on};
use crate::{Stream, emulator_units};

/// Runs a small set of shapes; says what is wrong first.
type Check = fn(&Stream) -> Result<(), String>;

/// By the kernel's folder, for files that only Hopper runs with `_hopper` behind it; and the device to emulate.
const CHECKS: &[(&str, (u32, u32), Check)] = &[
    ("add_layer_norm", PORTABLE, crate::add_layer_norm::cuda_tests::check),
    ("attention", PORTABLE, crate::attention::cuda_tests::check),
    ("attention_hopper", HOPPER, crate::attention::hopper_tests::check),
    ("copy_block", PORTABLE, crate::copy_block::cuda_tests::check),
    ("embed", PORTABLE, crate::embed::cuda_tests::check),
    ("embed_layer_norm", PORTABLE, crate::embed_layer_norm::cuda_tests::check),
    ("gather_rows", PORTABLE, crate::gather_rows::cuda_tests::check),
    ("gemm", PORTABLE, crate::gemm::cuda_tests::check),
    ("gemm_hopper", HOPPER, crate::gemm::hopper_tests::check),
    ("l2_normalize", PORTABLE, crate::l2_normalize::cuda_tests::check),
    ("layout", PORTABLE, crate::layout::cuda_tests::check),
    ("pack_weights", PORTABLE, crate::pack_weights::cuda_tests::check),
    ("pool", PORTABLE, crate::pool::cuda_tests::check),
    ("rms_norm", PORTABLE, crate::rms_norm::cuda_tests::check),
    ("row_dot", PORTABLE, crate::row_dot::cuda_tests::check),
    ("sandwich_norm", PORTABLE, crate::sandwich_norm::cuda_tests::check),
    ("token_compress", PORTABLE, crate::token_compress::cuda_tests::check),
];

/// Names the one check that [`kernels_pass_their_checks`] is to run.
const CHECK_VARIABLE: &str = "OUTCROP_CHECK";
/// Restricts the planted bugs to those of files whose path contains it, while one works on a kernel.
const MUTANTS_VARIABLE: &str = "OUTCROP_MUTANTS";
/// Begins the line that says what a check noticed, of each run.
const NOTICED: &str = "noticed: ";
/// What the race detector says.
const RACES: [&str; 2] = ["race on the shared word", "which this block has never written"];
/// Where a fault was, in what the emulator says of one.
const FAULT: &str = ": block ";
/// A mutant that has not come to an end by then hangs. So long that a busy machine does not decide what is noticed.
const TIME_MAX: Duration = Duration::from_secs(600);

#[test]
fn kernels_pass_their_checks() {
    let only = env::var(CHECK_VARIABLE).ok();
    let mut failed = 0;
    for (kernel, compute_capability, check) in
        CHECKS.iter().filter(|(kernel, ..)| only.as_deref().is_none_or(|only| only == *kernel))
    {
        for operand_type in OPERAND_TYPES {
            let noticed = std::cell::Cell::new(0);
            under_schedules_on(*compute_capability, operand_type, |stream| {
                if let Err(what) = check(stream) {
                    println!("{NOTICED}{kernel}: {}", what.replace('\n', " "));
                    noticed.set(noticed.get() + 1);
                }
            });
            failed += noticed.get();
        }
    }
    assert_eq!(failed, 0, "runs of checks that failed");
}

/// Who must notice a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The check, under some schedule: by what the kernel computes. A fault is no proof of that.
    Values,
    /// The race detector, under every schedule.
    Races,
    /// The emulator, under every schedule: a rule of the hardware's is broken, everybody waits, or there is a race.
    Protocol,
    /// The sanitizers.
    Bounds,
}

struct Mutant {
    /// The kernel's folder.
    kernel: String,
    what: String,
    by: By,
    /// Below `kernels/src`.
    file: String,
    /// Texts and what replaces them.
    patches: Vec<(String, String)>,
}

#[test]
fn planted_bugs_are_noticed() {
    let Some(plain) = library("OUTCROP_EMULATOR") else { return };
    let Some(sanitized) = library("OUTCROP_EMULATOR_SANITIZED") else { return };
    let mut mutants = mutants();
    assert!(mutants.len() >= 15, "only {} mutants", mutants.len());
    if let Ok(part) = env::var(MUTANTS_VARIABLE) {
        mutants.retain(|mutant| mutant.file.contains(&part));
    }
    // Without a bug nobody must notice anything. For the library as it is another test says so.
    let sanitized_checks: BTreeSet<String> =
        mutants.iter().filter(|mutant| mutant.by == By::Bounds).map(Mutant::check_name).collect();
    for check in sanitized_checks {
        let run = run_check(&sanitized, &check, true);
        assert!(run.has_passed, "{check} without a bug: {}", run.output);
    }

    let next = AtomicUsize::new(0);
    let missed = AtomicUsize::new(0);
    let work = || {
        while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
            let base = if mutant.by == By::Bounds { &sanitized } else { &plain };
            let (verdict, text) = match mutant.check(base) {
                Ok(text) => ("noticed", text),
                Err(text) => {
                    missed.fetch_add(1, Ordering::Relaxed);
                    ("MISSED ", text)
                }
            };
            println!("{verdict} {}: {} ({:?}): {text}", mutant.file, mutant.what, mutant.by);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(work);
        }
    });
    assert_eq!(missed.into_inner(), 0, "mutants that nobody noticed");
}

/// The library that `variable` names. Its folder holds the objects that it was linked from.
fn library(variable: &str) -> Option<PathBuf> {
    let library = env::var_os(variable).map(PathBuf::from);
    if library.is_none() {
        assert!(!required("emulator"), "REQUIRE asks for the emulator, but {variable} is not set");
        eprintln!("SKIPPED: {variable} is not set");
    }
    library
}

fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Those of all kernels.
fn mutants() -> Vec<Mutant> {
    let mut mutants = Vec::new();
    let mut folders: Vec<_> =
        fs::read_dir(crate_folder().join("src")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    for folder in folders {
        let Ok(text) = fs::read_to_string(folder.join("mutants.txt")) else { continue };
        let kernel = folder.file_name().unwrap().to_string_lossy().into_owned();
        assert!(CHECKS.iter().any(|(name, ..)| *name == kernel), "{kernel} has mutants and no check");
        mutants.extend(text.split("\n\n").map(|block| Mutant::parse(&kernel, block)));
    }
    mutants
}

impl Mutant {
    fn parse(kernel: &str, block: &str) -> Self {
        let (mut what, mut file, mut patches) =
            (String::new(), String::new(), Vec::<(String, String)>::new());
        for line in block.lines() {
            let part =
                |prefix| line.strip_prefix(prefix).map(|rest: &str| rest.strip_prefix(' ').unwrap_or(rest));
            if let Some(text) = part("#") {
                what = format!("{what} {text}");
            } else if let Some(text) = part("file:") {
                text.clone_into(&mut file);
            } else if let Some(text) = part("-") {
                // A line to be replaced behind one that replaces begins another patch.
                if patches.last().is_none_or(|(_, to)| !to.is_empty()) {
                    patches.push(Default::default());
                }
                push_line(&mut patches.last_mut().unwrap().0, text);
            } else if let (Some(text), Some((_, to))) = (part("+"), patches.last_mut()) {
                push_line(to, text);
            } else {
                panic!("{kernel}/mutants.txt: this line belongs to no block: {line}");
            }
        }
        let kinds = [
            ("(values)", By::Values),
            ("(races)", By::Races),
            ("(protocol)", By::Protocol),
            ("(bounds)", By::Bounds),
        ];
        let found =
            kinds.into_iter().find_map(|(kind, by)| Some((what.trim().strip_suffix(kind)?.trim(), by)));
        let (what, by) =
            found.unwrap_or_else(|| panic!("{kernel}/mutants.txt does not say who must notice:{what}"));
        assert!(!patches.is_empty(), "{kernel}/mutants.txt: {what}: nothing is replaced");
        Self { kernel: kernel.to_owned(), what: what.to_owned(), by, file, patches }
    }

    /// The check that must notice it.
    fn check_name(&self) -> String {
        let suffix = if self.file.ends_with("_hopper.cu") { "_hopper" } else { "" };
        format!("{}{suffix}", self.kernel)
    }

    /// What noticed it, or why nothing did.
    fn check(&self, base: &Path) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let library = self.build(folder.path(), base.parent().unwrap());
        run_check(&library, &self.check_name(), self.by == By::Bounds).noticed(self.by)
    }

    /// Builds in `folder` the library in `base` with the mutant in the kernel's place. The tree of kernels is copied, with the
    /// emulator beside it, so that includes lead from mutant to mutant.
    fn build(&self, folder: &Path, base: &Path) -> PathBuf {
        copy_sources(&crate_folder().join("src"), &folder.join("src"));
        copy_sources(&crate_folder().join("emulator"), &folder.join("emulator"));
        let path = folder.join("src").join(&self.file);
        let mut text =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (from, to) in &self.patches {
            let count = text.matches(from).count();
            assert_eq!(count, 1, "{}: {}: occurrences in {} of\n{from}", self.kernel, self.what, self.file);
            text = text.replacen(from, to, 1);
        }
        fs::write(path, text).unwrap();

        // A header's mutant is one of all files of the kernel that has it in its list.
        let units = folder.join("units");
        fs::create_dir(&units).unwrap();
        let is_affected = |path: &str| match self.file.ends_with(".cu") {
            true => path == self.file,
            false => path.split('/').next() == Some(&self.kernel),
        };
        for unit in emulator_units().iter().filter(|unit| is_affected(unit.path)) {
            fs::write(units.join(&unit.file_name), &unit.text).unwrap();
        }
        let mut build = Command::new(folder.join("emulator/build"));
        build.arg(&units).arg("--base").arg(base).args(["-O1", "-w"]);
        if self.by == By::Bounds {
            build.args(["-g", "-fsanitize=address"]);
        }
        let output = build.output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {}: does not compile:\n{log}", self.kernel, self.what);
        units.join("kernels.so")
    }
}

fn push_line(text: &mut String, line: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(line);
}

/// Copies what compiling needs.
fn copy_sources(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_sources(&path, &target);
        } else if path.extension().is_none_or(|extension| extension != "rs" && extension != "txt") {
            fs::copy(path, target).unwrap();
        }
    }
}

/// What came of a check in a process of its own.
struct Run {
    has_passed: bool,
    /// By the check, a line for each stream.
    noticed: Vec<String>,
    /// What the sanitizers objected to, and where.
    report: Option<String>,
    output: String,
}

fn run_check(library: &Path, check: &str, is_sanitized: bool) -> Run {
    let output_path = tempfile::NamedTempFile::new().unwrap();
    let output = File::options().append(true).open(&output_path).unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "mutants::kernels_pass_their_checks", "--nocapture", "--test-threads=1"])
        .env("OUTCROP_EMULATOR", library)
        .env(CHECK_VARIABLE, check)
        .env_remove("OUTCROP_TEST_CUDA")
        .env_remove("OUTCROP_LAUNCHED")
        .stdout(Stdio::from(output.try_clone().unwrap()))
        .stderr(Stdio::from(output));
    if is_sanitized {
        command.env("LD_PRELOAD", sanitizers()).env("ASAN_OPTIONS", "detect_leaks=0");
    }
    let mut process = command.spawn().unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status.to_string();
        }
        if start.elapsed() > TIME_MAX {
            process.kill().unwrap();
            process.wait().unwrap();
            break format!("no end within {TIME_MAX:?}");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let output = String::from_utf8_lossy(&fs::read(&output_path).unwrap()).into_owned();
    let noticed = output.lines().filter_map(|line| line.split_once(NOTICED)).map(|(_, what)| what.to_owned());
    Run {
        has_passed: output.contains("test result: ok. 1 passed"),
        noticed: noticed.collect(),
        report: sanitizers_report(&output),
        output: format!("{status}\n{output}"),
    }
}

impl Run {
    /// How it was noticed by whom it had to be, or what happened instead.
    fn noticed(self, by: By) -> Result<String, String> {
        // A check goes over every type under every schedule.
        let runs = OPERAND_TYPES.len() * SCHEDULES.len();
        let is_race = |what: &&String| RACES.iter().any(|words| what.contains(words));
        let is_fault = |what: &String| what.contains(FAULT);
        let text = format!(
            "{} of {runs} runs: {}",
            self.noticed.len(),
            self.noticed.first().map_or("", String::as_str)
        );
        match (by, self.report) {
            (By::Bounds, Some(report)) => Ok(report),
            (By::Values, None) if !self.noticed.iter().all(is_fault) => Ok(text),
            (By::Races, None) if self.noticed.iter().filter(is_race).count() == runs => Ok(text),
            (By::Protocol, None) if self.noticed.iter().filter(|what| is_fault(what)).count() == runs => {
                Ok(text)
            }
            _ => Err(self.output),
        }
    }
}

/// Of a report of AddressSanitizer: what was done, such as `WRITE of size 4`, and the innermost line of a kernel that did it.
fn sanitizers_report(output: &str) -> Option<String> {
    let (_, report) = output.split_once("ERROR: AddressSanitizer: ")?;
    let kind = report.split(' ').next()?;
    let access = report.lines().find_map(|line| line.split_once(" at 0x")).map_or("", |(access, _)| access);
    let mut places = report.lines().filter_map(|line| Some(line.split_once("/src/")?.1));
    // Of the bodies of wrappers the path goes on to the emulator.
    let place = places.find(|place| !place.starts_with("..")).unwrap_or("");
    Some(format!("{kind}, {access} at {place}"))
}

/// The libraries that a process must hold before one of its libraries can be under sanitizers.
fn sanitizers() -> String {
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let path = |name: &str| {
        let output = Command::new(&compiler).arg(format!("-print-file-name={name}")).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    format!("{} {}", path("libasan.so"), path("libubsan.so"))
}
