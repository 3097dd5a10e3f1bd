//! `outcrop doctor`: whether a GPU can be used, and if not, what is missing.

use std::time::Instant;

use outcrop::doctor::{ARCHITECTURES, Findings, FoundCache, FoundDevice, TriedKernel, compile, examine};
use serde_json::{Value, json};

use crate::args::DoctorArgs;
use crate::error::Error;
use crate::output::Output;
use crate::{Status, report};

/// The kernels, compiled for one architecture.
struct Compiled {
    architecture: &'static str,
    kernels: Vec<TriedKernel>,
    seconds: f64,
}

/// What it all comes to.
struct Verdict {
    is_usable: bool,
    text: String,
}

/// Prints what was found, the verdict last.
///
/// # Errors
///
/// The output cannot be written, or no threads can be started.
pub(crate) fn run(args: &DoctorArgs, quiet: bool) -> Result<Status, Error> {
    let wanted = args.architecture.as_deref();
    let wanted = ARCHITECTURES.into_iter().find(|architecture| Some(*architecture) == wanted);
    let findings = examine(wanted);
    let mut output = Output::create(None)?;
    if !args.json {
        print_findings(&mut output, &findings)?;
        // What follows takes a while.
        output.flush()?;
    }
    let mut compiled = Vec::new();
    for architecture in architectures(args, wanted, &findings) {
        if !quiet {
            report::line(&format!("compiling the kernels for {architecture}"));
        }
        let start = Instant::now();
        let kernels = compile(architecture).map_err(outcrop::Error::from)?;
        compiled.push(Compiled { architecture, kernels, seconds: start.elapsed().as_secs_f64() });
    }
    if args.compile && compiled.is_empty() && !quiet {
        report::line("no device to compile for: name an architecture, such as --architecture sm_90a");
    }
    let verdict = verdict(wanted, &findings, &compiled);
    if args.json {
        output.json_line(&as_json(&findings, &compiled, &verdict))?;
    } else {
        compiled.iter().try_for_each(|compiled| print_compiled(&mut output, compiled))?;
        output.text(&format!("\n{}\n", verdict.text))?;
    }
    output.flush()?;
    Ok(if verdict.is_usable { Status::Done } else { Status::SomeFailed })
}

/// What to compile for: what was asked for, or what the devices need that run kernels; all devices' with `--compile`.
fn architectures(args: &DoctorArgs, wanted: Option<&'static str>, findings: &Findings) -> Vec<&'static str> {
    if let Some(architecture) = wanted {
        return vec![architecture];
    }
    // The cache alone may have let a kernel run.
    if findings.nvrtc.found.is_none() && !args.compile {
        return Vec::new();
    }
    let tried = |device: &&FoundDevice| args.compile || device.tried.is_ok();
    let devices = findings.devices.as_deref().unwrap_or_default().iter();
    let mut architectures: Vec<_> = devices.filter(tried).filter_map(|device| device.architecture).collect();
    architectures.sort_unstable();
    architectures.dedup();
    architectures
}

fn verdict(wanted: Option<&'static str>, findings: &Findings, compiled: &[Compiled]) -> Verdict {
    let no = |text: String| Verdict { is_usable: false, text };
    let kernels = || compiled.iter().flat_map(|compiled| &compiled.kernels);
    if wanted.is_none()
        && let Err(error) = findings.usable()
    {
        return no(format!("no GPU can be used: {}", first_line(error)));
    }
    if let Some(error) = kernels().find_map(|kernel| kernel.compiled.as_ref().err()) {
        let failed = kernels().filter(|kernel| kernel.compiled.is_err()).count();
        return no(format!(
            "{failed} of {} kernels cannot be compiled: {}",
            kernels().count(),
            first_line(error)
        ));
    }
    let text = match wanted {
        Some(architecture) => format!("every kernel is compiled for {architecture}"),
        None => "a GPU can be used: run with `--device cuda`".to_owned(),
    };
    let text = match (&findings.cache.folder, &findings.cache.writable) {
        (Some(_), Ok(())) => text,
        (Some(_), Err(error)) => {
            format!("{text}; every start compiles the kernels anew: {}", first_line(error))
        }
        (None, _) => format!(
            "{text}; every start compiles the kernels anew: name a folder for them by OUTCROP_CACHE_DIR"
        ),
    };
    Verdict { is_usable: true, text }
}

/// An error in one line. Lists and compilers' texts below it are printed elsewhere.
fn first_line(error: &outcrop::KernelError) -> String {
    report::chain(error).lines().next().unwrap_or_default().to_owned()
}

fn print_findings(output: &mut Output, findings: &Findings) -> Result<(), Error> {
    let mut row = |name: &str, value: &str| output.text(&format!("{name:<12}{value}\n"));
    row("outcrop", env!("CARGO_PKG_VERSION"))?;
    match &findings.driver {
        Ok(version) => row("driver", &format!("CUDA {}", dotted(*version)))?,
        Err(error) => row("driver", &report::chain(error))?,
    }
    match &findings.devices {
        Ok(devices) => {
            for (number, device) in devices.iter().enumerate() {
                row(&format!("cuda:{number}"), &device_text(device))?;
                match &device.tried {
                    Ok(()) => row("", "runs kernels")?,
                    Err(error) => row("", &format!("does not run kernels: {}", first_line(error)))?,
                }
            }
        }
        // The driver's line says it already where there is none.
        Err(error) if findings.driver.is_ok() => row("devices", &report::chain(error))?,
        Err(_) => {}
    }
    match &findings.nvrtc.found {
        Some(nvrtc) => row("NVRTC", &format!("{}, {}", dotted(nvrtc.version), nvrtc.path.display()))?,
        None => row(
            "NVRTC",
            "none that can be used: `pip install nvidia-cuda-nvrtc-cu12`, or name its file by OUTCROP_NVRTC",
        )?,
    }
    for refused in &findings.nvrtc.refused {
        row("", &format!("refused {refused}"))?;
    }
    if findings.nvrtc.found.is_none() {
        for place in &findings.nvrtc.places {
            row("", &format!("looked at {}", place.display()))?;
        }
    }
    row("cache", &cache_text(&findings.cache))?;
    for damaged in &findings.cache.damaged {
        row("", &format!("damaged, compiled again when needed: {damaged}"))?;
    }
    Ok(())
}

fn device_text(device: &FoundDevice) -> String {
    let properties = &device.properties;
    let memory = size(properties.memory_bytes);
    let memory = device.free_bytes.map_or(memory.clone(), |free| format!("{memory} ({} free)", size(free)));
    format!(
        "{}, compute capability {}, {memory}, {} multiprocessors, {} shared memory a block{}{}",
        properties.name,
        dotted(properties.compute_capability),
        properties.num_sms,
        size(properties.shared_bytes_max.into()),
        device.architecture.map_or(String::new(), |architecture| format!(", kernels for {architecture}")),
        if device.programmatic_launch { ", programmatic launch" } else { "" },
    )
}

fn cache_text(cache: &FoundCache) -> String {
    let Some(folder) = &cache.folder else {
        return "none: neither OUTCROP_CACHE_DIR nor XDG_CACHE_HOME nor HOME is set".to_owned();
    };
    let writable =
        cache.writable.as_ref().err().map_or_else(|| "writable".to_owned(), |error| report::chain(error));
    format!("{}, {} kernels, {}; {writable}", folder.display(), cache.entries, size(cache.bytes))
}

/// A table of the kernels, and behind it the whole text of those that failed.
fn print_compiled(output: &mut Output, compiled: &Compiled) -> Result<(), Error> {
    let Compiled { architecture, kernels, seconds } = compiled;
    output.text(&format!("\nkernels for {architecture}: {} in {seconds:.1} s\n\n", kernels.len()))?;
    let width = kernels.iter().map(|kernel| kernel.name.len()).max().unwrap_or(0).max("kernel".len());
    output.text(&format!("{:<width$}  registers  spilled  static  dynamic     code\n", "kernel"))?;
    for kernel in kernels {
        let Ok(code) = &kernel.compiled else { continue };
        let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        output.text(&format!(
            "{:<width$}  {:>9}  {:>7}  {:>6}  {:>7}  {:>7}\n",
            kernel.name,
            number(code.usage.map(|usage| usage.registers)),
            number(code.usage.map(|usage| usage.spill_bytes)),
            number(code.usage.map(|usage| usage.static_shared_bytes)),
            kernel.dynamic_shared_bytes,
            code.bytes,
        ))?;
    }
    // Kernels fail for one reason, a missing compiler say, more often than for as many as there are.
    let mut said: Vec<String> = Vec::new();
    for kernel in kernels {
        let Err(error) = &kernel.compiled else { continue };
        let text = report::chain(error);
        output.text(&match said.contains(&text) {
            true => format!("{}: as above\n", kernel.name),
            false => format!("{}: {text}\n", kernel.name),
        })?;
        said.push(text);
    }
    Ok(())
}

fn as_json(findings: &Findings, compiled: &[Compiled], verdict: &Verdict) -> Value {
    let devices: Vec<Value> =
        findings.devices.as_deref().unwrap_or_default().iter().enumerate().map(device_json).collect();
    let nvrtc = findings.nvrtc.found.as_ref();
    let cache = &findings.cache;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "driver": {
            "cuda_version": findings.driver.as_ref().ok().map(|version| dotted(*version)),
            "error": error_json(&findings.driver),
        },
        "devices": devices,
        "devices_error": error_json(&findings.devices),
        "nvrtc": {
            "path": nvrtc.map(|nvrtc| nvrtc.path.display().to_string()),
            "version": nvrtc.map(|nvrtc| dotted(nvrtc.version)),
            "refused": findings.nvrtc.refused,
            "places": findings.nvrtc.places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>(),
        },
        "cache": {
            "folder": cache.folder.as_ref().map(|folder| folder.display().to_string()),
            "error": error_json(&cache.writable),
            "entries": cache.entries,
            "bytes": cache.bytes,
            "damaged": cache.damaged,
        },
        "compiled": compiled.iter().map(|compiled| json!({
            "architecture": compiled.architecture,
            "seconds": compiled.seconds,
            "kernels": compiled.kernels.iter().map(kernel_json).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "usable": verdict.is_usable,
        "verdict": verdict.text,
    })
}

fn device_json((number, device): (usize, &FoundDevice)) -> Value {
    let properties = &device.properties;
    json!({
        "device": format!("cuda:{number}"),
        "name": properties.name,
        "compute_capability": dotted(properties.compute_capability),
        "memory_bytes": properties.memory_bytes,
        "free_bytes": device.free_bytes,
        "multiprocessors": properties.num_sms,
        "shared_bytes_per_block": properties.shared_bytes_max,
        "architecture": device.architecture,
        "programmatic_launch": device.programmatic_launch,
        "error": error_json(&device.tried),
    })
}

fn kernel_json(kernel: &TriedKernel) -> Value {
    let code = kernel.compiled.as_ref().ok();
    let usage = code.and_then(|code| code.usage);
    json!({
        "name": kernel.name,
        "path": kernel.path,
        "threads": kernel.threads,
        "registers": usage.map(|usage| usage.registers),
        "spill_bytes": usage.map(|usage| usage.spill_bytes),
        "stack_bytes": usage.map(|usage| usage.stack_bytes),
        "static_shared_bytes": usage.map(|usage| usage.static_shared_bytes),
        "dynamic_shared_bytes": kernel.dynamic_shared_bytes,
        "code_bytes": code.map(|code| code.bytes),
        "log": code.map(|code| code.log.as_str()),
        "error": error_json(&kernel.compiled),
    })
}

fn error_json<T>(result: &Result<T, outcrop::KernelError>) -> Value {
    result.as_ref().err().map_or(Value::Null, |error| json!(report::chain(error)))
}

fn dotted((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

/// Bytes in the largest unit of which there is a whole one.
fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1024 => return format!("{bytes} bytes"),
        1024..1_048_576 => (1024, "KiB"),
        1_048_576..1_073_741_824 => (1_048_576, "MiB"),
        _ => (1_073_741_824, "GiB"),
    };
    // One digit behind the point, rounded.
    let tenths = (bytes * 10 + unit / 2) / unit;
    if tenths.is_multiple_of(10) {
        format!("{} {name}", tenths / 10)
    } else {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    }
}
