//! The record of a run as JSON.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use outcrop::bench::{Call, Ceilings, Comparison, Difference, Fused, Times};
use outcrop::{Cost, LoadedKernel, Stream};
use serde_json::{Map, Value, json};

use super::rows::Row;

/// What was seen of a row.
pub(super) struct Seen {
    pub(super) cost: Cost,
    pub(super) copies: usize,
    pub(super) times: Times,
    /// Instances launched; none on the CPU.
    pub(super) kernels: Vec<LoadedKernel>,
    /// With a variant; the times are then the built-in's.
    pub(super) comparison: Option<Comparison>,
}

/// Where the rows were timed.
pub(super) struct Place {
    /// The marketing name: that records of one device have in common.
    pub(super) name: String,
    /// In words, for people.
    pub(super) details: String,
    /// The type of matrices, and on a GPU of all operands.
    pub(super) dtype: &'static str,
    pub(super) json: Value,
}

impl Place {
    pub(super) fn of(stream: &Stream, device: &str, dtype: &'static str) -> Place {
        // Weights that are held as they are stored.
        let held = if dtype == "auto" { "the stored type" } else { dtype };
        let Some(properties) = stream.properties() else {
            let threads = match stream {
                Stream::Cpu(cpu) => cpu.num_threads(),
                Stream::Cuda(_) => 0,
            };
            let name = cpu_name();
            return Place {
                details: format!("{threads} threads, weights in {held}"),
                json: json!({ "device": device, "name": name, "threads": threads }),
                name,
                dtype,
            };
        };
        let ((driver_major, driver_minor), (major, minor)) =
            (properties.driver_version, properties.compute_capability);
        let cuda = format!("{driver_major}.{driver_minor}");
        let module = driver_module();
        Place {
            name: properties.name.clone(),
            details: format!(
                "CUDA {cuda}, driver {}, {} multiprocessors, L2 {} MiB, operands in {held}",
                module.as_deref().unwrap_or("unknown"),
                properties.num_sms,
                properties.l2_bytes >> 20
            ),
            dtype,
            json: json!({
                "device": device,
                "name": properties.name,
                "cuda_version": cuda,
                "driver": module,
                "compute_capability": format!("{major}.{minor}"),
                "multiprocessors": properties.num_sms,
                "l2_bytes": properties.l2_bytes,
                "memory_bytes": properties.memory_bytes,
            }),
        }
    }
}

/// The processor's name, as the system knows it.
fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or("cpu", |(_, name)| name.trim()).to_owned()
}

/// The version of NVIDIA's kernel module, such as 580.65.06.
fn driver_module() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

/// What every record begins with: the program, the moment, the command and the place.
pub(super) fn head(commit: Option<&str>, place: &Place) -> Map<String, Value> {
    let command = std::env::args().skip(1).fold("outcrop".to_owned(), |line, word| line + " " + &word);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut head = Map::new();
    let mut fact = |name: &str, value: Value| head.insert(name.to_owned(), value);
    fact("version", json!(env!("CARGO_PKG_VERSION")));
    fact("commit", json!(commit.or(option_env!("OUTCROP_COMMIT"))));
    fact("date", json!(utc(seconds)));
    fact("command", json!(command));
    fact("device", place.json.clone());
    fact("dtype", json!(place.dtype));
    head
}

/// What the device gives at best.
pub(super) fn ceilings(ceilings: Ceilings) -> Value {
    json!({
        "tflops": ceilings.flops_per_second / 1e12,
        "gbs": ceilings.bytes_per_second / 1e9,
        "product": shape(&ceilings.product.shape()),
        "copy": shape(&ceilings.copy.shape()),
    })
}

fn shape(numbers: &[(&str, usize)]) -> Value {
    numbers.iter().map(|(name, number)| ((*name).to_owned(), json!(number))).collect::<Map<_, _>>().into()
}

/// A row's name and shape.
pub(super) fn named(row: &Row) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("name".to_owned(), json!(row.name));
    object.insert("kernel".to_owned(), json!(row.call.kernel()));
    let mut shape = shape(&row.call.shape());
    if let Call::Gemm { fused, .. } = row.call {
        shape["epilogue"] = json!(fused.name());
        if let Fused::Rope { head_dim, columns } = fused {
            shape["head_dim"] = json!(head_dim);
            shape["rotated_columns"] = json!(columns);
        }
    }
    // Others make the same batch of it.
    if let Call::Attention { sequences, .. } = row.call
        && sequences.is_ragged
    {
        shape["lengths"] = json!(sequences.lengths());
    }
    object.insert("shape".to_owned(), shape);
    object
}

/// All that is known of a row.
pub(super) fn seen(row: &Row, seen: &Seen, ceilings: Option<Ceilings>) -> Map<String, Value> {
    let mut object = named(row);
    let mut fact = |name: &str, value: Value| object.insert(name.to_owned(), value);
    for (name, value) in times(&seen.times) {
        fact(&name, value);
    }
    let seconds = seen.times.median_us() / 1e6;
    fact("copies", json!(seen.copies));
    fact("flops", json!(seen.cost.flops));
    fact("bytes", json!(seen.cost.bytes));
    fact("tflops", json!(seen.cost.flops as f64 / seconds / 1e12));
    fact("gbs", json!(seen.cost.bytes as f64 / seconds / 1e9));
    if let Some(ceilings) = ceilings {
        let (least, is_bandwidth) = ceilings.least_seconds(seen.cost);
        fact("bound", json!(if is_bandwidth { "bandwidth" } else { "compute" }));
        fact("of_ceiling", json!(least / seconds));
    }
    fact("kernels", seen.kernels.iter().map(kernel).collect());
    if let Some(Comparison { variant, ratios, kernels, difference, .. }) = &seen.comparison {
        let mut object: Map<String, Value> = times(variant).collect();
        object.insert("ratio".to_owned(), json!(ratios.quantile(0.5)));
        object.insert("ratio_p10".to_owned(), json!(ratios.quantile(0.1)));
        object.insert("ratio_p90".to_owned(), json!(ratios.quantile(0.9)));
        object.insert("kernels".to_owned(), kernels.iter().map(kernel).collect());
        let Difference { different, elements, largest, magnitude } = difference;
        object.insert(
            "difference".to_owned(),
            // JSON has no infinity: null says that one side is not finite.
            json!({ "different": different, "elements": elements, "largest": largest, "magnitude": magnitude }),
        );
        fact("variant", object.into());
    }
    object
}

/// A row that could not be timed.
pub(super) fn failed(row: &Row, error: &str) -> Map<String, Value> {
    let mut object = named(row);
    object.insert("error".to_owned(), json!(error));
    object
}

fn times(times: &Times) -> impl Iterator<Item = (String, Value)> {
    [
        ("median_us", json!(times.median_us())),
        ("p10_us", json!(times.quantile(0.1))),
        ("p90_us", json!(times.quantile(0.9))),
        ("laps", json!(times.laps())),
        ("launches_per_lap", json!(times.launches_per_lap())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
}

fn kernel(kernel: &LoadedKernel) -> Value {
    json!({
        "name": kernel.name,
        "path": kernel.path,
        "threads": kernel.threads,
        "registers": kernel.resources.registers,
        "shared_bytes": kernel.shared_bytes,
        "local_bytes": kernel.resources.local_bytes,
    })
}

/// A time as RFC 3339 writes it. The date by Hinnant's days-to-civil (2013), whose years begin in March.
pub(super) fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", year + 400 * era + later, second % 60)
}
