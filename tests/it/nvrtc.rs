//! What NVIDIA's compilers make of every kernel instance, for every architecture. No GPU is needed: only NVRTC, and `OUTCROP_NVDISASM`
//! for a look at the instructions. tests/run fetches both; without them these tests say so and pass, unless `REQUIRE` lists `nvrtc`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::Range;
use std::process::Command;
use std::sync::OnceLock;

use outcrop_kernels::{CompiledInstance, Nvrtc, compile_all};

use crate::fixtures::{path, required};

/// What a multiprocessor has, as the CUDA programming guide's table of compute capabilities lists it.
struct Architecture {
    name: &'static str,
    /// Shared memory in KiB: of one block, and of all.
    block_shared: u32,
    shared: u32,
    threads: u32,
}

const ARCHITECTURES: [Architecture; 6] = [
    Architecture { name: "sm_80", block_shared: 163, shared: 164, threads: 2048 },
    Architecture { name: "sm_86", block_shared: 99, shared: 100, threads: 1536 },
    Architecture { name: "sm_89", block_shared: 99, shared: 100, threads: 1536 },
    Architecture { name: "sm_90a", block_shared: 227, shared: 228, threads: 2048 },
    Architecture { name: "sm_100", block_shared: 227, shared: 228, threads: 2048 },
    Architecture { name: "sm_120", block_shared: 99, shared: 100, threads: 1536 },
];

/// 32-bit registers of a multiprocessor; a thread gets them by eights.
const REGISTERS: u32 = 65536;
/// Shared memory that the system takes of every block, in bytes.
const SYSTEM_SHARED: u32 = 1024;

/// Kernels that must multiply on tensor cores, from shared memory that asynchronous copies fill; and how those for Hopper do it.
const MATRIX_KERNELS: [&str; 2] = ["gemm/", "attention/"];
const MATRIX_INSTRUCTIONS: [&str; 3] = ["HMMA", "LDSM", "LDGSTS"];
const HOPPER_INSTRUCTIONS: [&str; 3] = ["HGMMA", "UTMALDG", "SYNCS"];
/// Spilled registers, and arrays that are not in registers.
const LOCAL_MEMORY: [&str; 2] = ["LDL", "STL"];

/// Where code waits for the kernel before it, and lets the next one start; on which architectures; and what it may not do earlier:
/// everything that reaches global memory but hints (UTMAPF, UTMACCTL, CCTL).
const WAIT: &str = "ACQBULK";
const START: &str = "PREEXIT";
const WAITING_ARCHITECTURES: [&str; 3] = ["sm_90a", "sm_100", "sm_120"];
const GLOBAL_ACCESSES: [&str; 14] = [
    "LD", "LDG", "LDGSTS", "ST", "STG", "RED", "REDG", "ATOM", "ATOMG", "UTMALDG", "UTMASTG", "UTMAREDG",
    "UBLKCP", "UBLKRED",
];

/// Set to write `kernels.txt` instead of comparing with it.
const RECORD_VARIABLE: &str = "OUTCROP_RECORD_KERNELS";

fn nvrtc() -> Option<&'static Nvrtc> {
    static NVRTC: OnceLock<Option<Nvrtc>> = OnceLock::new();
    NVRTC
        .get_or_init(|| match Nvrtc::find(u32::MAX) {
            Ok(nvrtc) => Some(nvrtc),
            Err(error) => {
                assert!(!required("nvrtc"), "REQUIRE lists nvrtc, but: {error}");
                eprintln!("SKIPPED: {error}");
                None
            }
        })
        .as_ref()
}

/// Every instance, for each architecture in turn.
fn compiled() -> Option<&'static [(Architecture, Vec<CompiledInstance>)]> {
    static COMPILED: OnceLock<Vec<(Architecture, Vec<CompiledInstance>)>> = OnceLock::new();
    let nvrtc = nvrtc()?;
    let compile = |architecture: Architecture| {
        let instances = compile_all(nvrtc, architecture.name);
        let instances = instances.unwrap_or_else(|error| panic!("{}: {error}", architecture.name));
        (architecture, instances)
    };
    Some(COMPILED.get_or_init(|| ARCHITECTURES.into_iter().map(compile).collect()))
}

/// The number that stands before `words` in what ptxas says.
fn number_before(log: &str, words: &str) -> u32 {
    let found = log.split(words).next().filter(|before| before.len() < log.len());
    let number = found.and_then(|before| before.split_whitespace().last()?.parse().ok());
    number.unwrap_or_else(|| panic!("no number before `{words}` in:\n{log}"))
}

fn registers(instance: &CompiledInstance) -> u32 {
    number_before(&instance.log, " registers")
}

/// Fails with all of `objections`.
fn assert_none(objections: &[String]) {
    assert!(objections.is_empty(), "\n{}", objections.join("\n"));
}

#[test]
fn instances_fit_every_architecture_without_spills_or_warnings() {
    let Some(compiled) = compiled() else { return };
    let mut objections = Vec::new();
    for (architecture, instances) in compiled {
        for instance in instances {
            let mut object = |what: String| {
                objections.push(format!("{} for {}: {what}", instance.name, architecture.name));
            };
            let log = &instance.log;
            for words in [" bytes stack frame", " bytes spill stores", " bytes spill loads"] {
                let bytes = number_before(log, words);
                if bytes > 0 {
                    object(format!("{bytes}{words}"));
                }
            }
            // ptxas says with a number C7508 that setmaxnreg is ignored, with C7511 that wgmma is serialised.
            if let Some(line) =
                log.lines().find(|line| line.to_lowercase().contains("warning") || line.contains("C75"))
            {
                object(line.to_owned());
            }

            let (threads, shared) = (instance.threads, instance.shared_bytes);
            if shared > architecture.block_shared << 10 {
                object(format!("{shared} bytes of shared memory of {} KiB", architecture.block_shared));
            }
            // Blocks that a launch counts on, or as many as other limits let in.
            let blocks = instance
                .blocks_per_sm
                .min(architecture.threads / threads)
                .min((architecture.shared << 10) / (shared + SYSTEM_SHARED))
                .max(1);
            let registers = registers(instance).next_multiple_of(8);
            if registers * threads * blocks > REGISTERS {
                object(format!("{registers} registers for {blocks} blocks of {threads} threads"));
            }
        }
    }
    assert_none(&objections);
}

#[test]
fn matrix_kernels_use_tensor_cores_and_no_kernel_local_memory() {
    let Some(compiled) = compiled() else { return };
    let Some(nvdisasm) = std::env::var_os("OUTCROP_NVDISASM") else {
        assert!(!required("nvrtc"), "REQUIRE lists nvrtc, but OUTCROP_NVDISASM is not set");
        eprintln!("SKIPPED: OUTCROP_NVDISASM is not set");
        return;
    };
    let mut objections = Vec::new();
    for (architecture, instances) in compiled {
        // The disassembler takes longer to start than to read a kernel: it gets the code of all in one.
        let mut code = Vec::new();
        let ranges: Vec<Range<usize>> = instances
            .iter()
            .map(|instance| {
                let start = code.len();
                code.extend(machine_code(&instance.code));
                start..code.len()
            })
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, &code).unwrap();
        let target = architecture.name.replace("sm_", "SM");
        let output = Command::new(&nvdisasm).args(["-ndf", "-b", &target]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listing = String::from_utf8(output.stdout).unwrap();
        let mut instructions = listing.lines().filter_map(instruction).peekable();

        for (instance, range) in instances.iter().zip(ranges) {
            let mut names = Vec::new();
            while let Some((_, name)) = instructions.next_if(|(offset, _)| range.contains(offset)) {
                names.push(name);
            }
            let found: BTreeSet<&str> = names.iter().copied().collect();
            // 128 bits each.
            assert_eq!(
                names.len() * 16,
                range.len(),
                "{} for {}: bytes disassembled",
                instance.name,
                architecture.name
            );
            let mut object = |what: &str, name: &str| {
                objections.push(format!("{} for {} has {what} {name}", instance.name, architecture.name));
            };
            if let Some((what, name)) = objection_to_start(&names, architecture.name) {
                object(what, name);
            }
            if is_overlapping(&instance.name) && !has_softmax_under_products(&names) {
                object("no softmax between its waits for", "HGMMA");
            }
            for name in LOCAL_MEMORY.into_iter().filter(|name| found.contains(name)) {
                object("local memory:", name);
            }
            if MATRIX_KERNELS.iter().any(|folder| instance.path.starts_with(folder)) {
                let is_hopper = instance.path.ends_with("_hopper.cu");
                let wanted = if is_hopper { HOPPER_INSTRUCTIONS } else { MATRIX_INSTRUCTIONS };
                for name in wanted.into_iter().filter(|name| !found.contains(name)) {
                    object("no", name);
                }
            }
        }
        assert!(instructions.next().is_none());
    }
    assert_none(&objections);
}

/// What is wrong with how code begins that may be launched before the kernel ahead of it has ended, given its instructions in order.
fn objection_to_start<'a>(names: &[&'a str], architecture: &str) -> Option<(&'static str, &'a str)> {
    let place = |name: &str| names.iter().position(|found| *found == name);
    let (wait, start) = (place(WAIT), place(START));
    if !WAITING_ARCHITECTURES.contains(&architecture) {
        return wait.or(start).map(|i| ("what this architecture does not know:", names[i]));
    }
    let Some(wait) = wait else { return Some(("no", WAIT)) };
    let early = |name: &&&str| GLOBAL_ACCESSES.contains(*name);
    if let Some(access) = names[..wait].iter().find(early) {
        return Some(("before its wait", access));
    }
    // A block that ends without the wait would say that the kernel ahead has ended.
    if let Some(exit) = names[..wait].iter().find(|name| **name == "EXIT") {
        return Some(("before its wait", exit));
    }
    match start {
        None => Some(("no", START)),
        Some(start) if start < wait => Some(("before its wait", START)),
        Some(_) => None,
    }
}

/// Whether an instance is to compute a softmax while its own products are under way: all heads but the widest.
fn is_overlapping(instance: &str) -> bool {
    instance.starts_with("attention_hopper<") && !instance.contains(", 256, ")
}

/// Whether somewhere behind products there are the exponentials of a block of scores, 32 a thread, between one wait for products and the
/// next: WARPGROUP is what begins products and what waits for them, and each begins with HGMMA behind it.
fn has_softmax_under_products(names: &[&str]) -> bool {
    names.split(|name| *name == "HGMMA").any(|between| {
        let mut stretches = between.split(|name| *name == "WARPGROUP");
        // In front of the first wait, and then between it and the second.
        let under = stretches.by_ref().nth(1).unwrap_or_default();
        // Another WARPGROUP ends the stretch, and the next products begin with one more.
        let is_waited_for_again = stretches.count() >= 2;
        is_waited_for_again && under.iter().filter(|name| **name == "MUFU").count() >= 32
    })
}

#[test]
fn a_softmax_behind_all_waits_is_told_from_one_between_them() {
    let exponentials = "MUFU ".repeat(32);
    let of = |text: String| has_softmax_under_products(&text.split_whitespace().collect::<Vec<_>>());
    assert!(of(format!("HGMMA HGMMA WARPGROUP FMNMX {exponentials} WARPGROUP FMUL WARPGROUP HGMMA")));
    assert!(!of(format!("HGMMA HGMMA WARPGROUP FMNMX WARPGROUP {exponentials} FMUL WARPGROUP HGMMA")));
    assert!(!of(format!("HGMMA WARPGROUP {exponentials} WARPGROUP HGMMA WARPGROUP")));
    assert!(!of("HGMMA WARPGROUP MUFU WARPGROUP FMUL WARPGROUP HGMMA".to_owned()));
}

#[test]
fn code_that_begins_wrongly_is_objected_to() {
    let objection = |text: &str, architecture: &str| {
        objection_to_start(&text.split(' ').collect::<Vec<_>>(), architecture)
            .map(|(what, name)| format!("{what} {name}"))
    };
    let of = |text: &str| objection(text, "sm_90a");
    assert_eq!(of("LDC S2R UTMAPF STS ACQBULK PREEXIT LDG STG EXIT"), None);
    assert_eq!(of("LDC LDG EXIT").as_deref(), Some("no ACQBULK"));
    assert_eq!(of("LDC ACQBULK LDG EXIT").as_deref(), Some("no PREEXIT"));
    assert_eq!(of("LDC PREEXIT ACQBULK LDG EXIT").as_deref(), Some("before its wait PREEXIT"));
    assert_eq!(of("LDC EXIT ACQBULK PREEXIT LDG EXIT").as_deref(), Some("before its wait EXIT"));
    for access in GLOBAL_ACCESSES {
        let early = format!("LDC {access} ACQBULK PREEXIT EXIT");
        assert_eq!(of(&early), Some(format!("before its wait {access}")));
        assert_eq!(of(&format!("LDC ACQBULK PREEXIT {access} EXIT")), None);
    }
    assert_eq!(objection("LDC LDG EXIT", "sm_89"), None);
    assert!(objection("LDC ACQBULK LDG EXIT", "sm_89").is_some());
}

/// Offset and first word of an instruction: `/*01a0*/ @P0 LDG.E.128 R4, [R2] ;` gives `LDG`.
fn instruction(line: &str) -> Option<(usize, &str)> {
    let (offset, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    let name = rest.split_whitespace().find(|word| !word.starts_with('@'))?;
    Some((usize::from_str_radix(offset, 16).ok()?, name.split(['.', ';']).next()?))
}

/// The executable sections of a cubin, which is an ELF file of 64 bits.
fn machine_code(elf: &[u8]) -> Vec<u8> {
    const EXECUTABLE: u64 = 4;
    let number = |at: usize, bytes: usize| {
        elf[at..at + bytes].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    assert!(elf.starts_with(b"\x7fELF\x02"));
    let (headers, header_bytes, num_sections) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    let mut code = Vec::new();
    for section in (0..num_sections).map(|i| (headers + i * header_bytes) as usize) {
        if number(section + 8, 8) & EXECUTABLE != 0 {
            let (start, bytes) = (number(section + 24, 8) as usize, number(section + 32, 8) as usize);
            code.extend(&elf[start..start + bytes]);
        }
    }
    assert!(!code.is_empty());
    code
}

#[test]
fn registers_and_sizes_are_those_recorded() {
    let (Some(nvrtc), Some(compiled)) = (nvrtc(), compiled()) else { return };
    let (major, minor) = nvrtc.version;
    let title = format!("Registers and bytes of code by architecture, from NVRTC {major}.{minor}\n");
    let mut text = format!("{title}\n{:<44}{:>8}{:>8}", "", "threads", "shared");
    for (architecture, _) in compiled {
        let _ = write!(text, "{:>12}", architecture.name);
    }
    // sm_90a has every instance, the others those that do not need Hopper.
    let (_, all) = compiled.iter().find(|(architecture, _)| architecture.name == "sm_90a").unwrap();
    for instance in all {
        let _ = write!(text, "\n{:<44}{:>8}{:>8}", instance.name, instance.threads, instance.shared_bytes);
        for (_, instances) in compiled {
            let _ = match instances.iter().find(|other| other.name == instance.name) {
                Some(found) => write!(text, "{:>6}{:>6}", registers(found), found.code.len()),
                None => write!(text, "{:>6}{:>6}", "-", "-"),
            };
        }
    }
    text.push('\n');

    let file = path("kernels.txt");
    if std::env::var_os(RECORD_VARIABLE).is_some() {
        std::fs::write(file, text).unwrap();
        return;
    }
    let recorded = std::fs::read_to_string(&file).unwrap();
    if !recorded.starts_with(&title) {
        eprintln!("SKIPPED: {} is of another NVRTC than {major}.{minor}", file.display());
        return;
    }
    let differences: Vec<String> = recorded
        .lines()
        .map(|line| format!("- {line}"))
        .filter(|line| !text.lines().any(|new| new == &line[2..]))
        .chain(
            text.lines()
                .map(|line| format!("+ {line}"))
                .filter(|line| !recorded.lines().any(|old| old == &line[2..])),
        )
        .collect();
    assert!(
        recorded == text,
        "{} differs; {RECORD_VARIABLE}=1 writes it anew:\n{}",
        file.display(),
        differences.join("\n")
    );
}

#[test]
fn devices_newer_than_every_architecture_get_ptx() {
    let Some(nvrtc) = nvrtc() else { return };
    for instance in compile_all(nvrtc, "compute_80").unwrap() {
        let text = std::str::from_utf8(&instance.code).unwrap();
        assert!(text.contains(".target sm_80") && text.contains(".entry"), "{}:\n{text}", instance.name);
        assert!(text.ends_with('\0'), "{}: the driver expects a zero at the end", instance.name);
    }
}
