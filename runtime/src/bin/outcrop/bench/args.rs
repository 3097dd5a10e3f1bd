//! The arguments of `outcrop bench`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::PossibleValuesParser;
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use outcrop::Device;
use outcrop::bench::Fused;

use super::model::Lengths;
use crate::args::{DtypeArg, LAYERS};

/// Measure the parts of the program one by one.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop bench kernels
  outcrop bench kernels gemm/base --device cuda
  outcrop bench model ./bge-reranker-v2-m3 --device cuda --passages 20 --profile")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: Benchmark,
}

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Benchmark {
    Kernels(Box<KernelsArgs>),
    Model(Box<ModelBenchArgs>),
}

/// Over the options of `bench kernels`.
const SHAPE: &str = "Shapes";
const COMPARISON: &str = "Comparison";

/// Time every kernel at the shapes of the published models, or of your own.
///
/// A row is a kernel, a model and a number of tokens. Its time is the median of one launch over many laps, by the clock of the device;
/// p10 .. p90 are the laps on either side. Operands are random and rotated over copies beyond twice the device's L2 cache. The ceiling is
/// what this device gives in this run: a large matrix product for what computes, a large copy for what moves bytes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop bench kernels --device cuda --output h200.json
  outcrop bench kernels gemm/base attention --tokens 4096,16384
  outcrop bench kernels --m 512,4096 --n 3072 --k 768 --epilogue bias-gelu-erf --dtype bf16
  outcrop bench kernels --baseline h200.json --fail-below 0.98
  outcrop bench kernels gemm --variant ./my/gemm.cu
  outcrop bench kernels --list

Models:  base; large, also v2-m3; gemma; minicpm; gemma2, which is v2.5-gemma2-lightweight.
A variant is a kernel file that takes the place of the built-in file of the same name, or of --variant-of. It has the same instances and
the same parameter block; it includes what lies beside it, and the built-in headers. Its results are compared with those of the built-in
file first; then both are timed in turns.
Exit status: 0, all done; 1, a row failed, or was slower than --fail-below allows; 2, a wrong call or a file that cannot be used.")]
pub(crate) struct KernelsArgs {
    /// Time only the rows whose name holds one of these.
    #[arg(value_name = "PATTERN")]
    pub(crate) filter: Vec<String>,
    /// Print the names of the rows instead of timing them; with --json also their shapes.
    #[arg(long)]
    pub(crate) list: bool,
    /// Where to run: auto (a GPU if there is one that can be used), cpu, cuda or cuda:1.
    #[arg(long, value_name = "DEVICE", default_value = "auto", env = "OUTCROP_DEVICE")]
    pub(crate) device: Device,
    /// Number of threads on the CPU; all cores if not given.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// On a GPU the type of all operands, f16 if not given; on the CPU that of matrices, f32 if not given.
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub(crate) dtype: DtypeArg,
    /// Measure each row for about this long.
    #[arg(long, value_name = "S", default_value = "0.3", value_parser = positive)]
    pub(crate) seconds: f64,
    /// Print a JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Also write the JSON object to this file, for --baseline.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// What the record says was measured; what was stated when the program was built if not given.
    #[arg(long, value_name = "TEXT")]
    pub(crate) commit: Option<String>,
    /// Read names of rows from standard input, and answer each with a line of JSON.
    #[arg(long, conflicts_with_all = ["list", "json", "output", "baseline", "variant"])]
    pub(crate) lines: bool,
    /// Numbers of tokens to time; few on the CPU and up to 51200 on a GPU if not given.
    #[arg(long, value_name = "N,...", value_delimiter = ',', help_heading = SHAPE)]
    pub(crate) tokens: Option<Vec<NonZeroUsize>>,
    /// Time a matrix product of this many rows, whatever the models have.
    #[arg(long, value_name = "M,...", value_delimiter = ',', help_heading = SHAPE, requires = "n", requires = "k", conflicts_with_all = ["filter", "tokens"])]
    pub(crate) m: Vec<NonZeroUsize>,
    /// Of this many outputs; a gated one has two rows of weights for each.
    #[arg(long, value_name = "N,...", value_delimiter = ',', help_heading = SHAPE, requires = "m")]
    pub(crate) n: Vec<NonZeroUsize>,
    /// Over this many inputs.
    #[arg(long, value_name = "K,...", value_delimiter = ',', help_heading = SHAPE, requires = "m")]
    pub(crate) k: Vec<NonZeroUsize>,
    /// What happens to an output before it is stored.
    #[arg(long, value_name = "NAME", default_value = "none", help_heading = SHAPE, value_parser = PossibleValuesParser::new(Fused::NAMES))]
    pub(crate) epilogue: String,
    /// Compare with an earlier --output: its time over this one's, row by row, and the geometric mean.
    #[arg(long, value_name = "FILE", help_heading = COMPARISON)]
    pub(crate) baseline: Option<PathBuf>,
    /// Exit with status 1 if a row's ratio is below this.
    #[arg(long, value_name = "RATIO", help_heading = COMPARISON, requires = "baseline", value_parser = positive)]
    pub(crate) fail_below: Option<f64>,
    /// Also take a baseline of another device or type.
    #[arg(long, help_heading = COMPARISON, requires = "baseline")]
    pub(crate) any_device: bool,
    /// Compare with a kernel file given by its path. For GPUs.
    #[arg(long, value_name = "PATH.cu", help_heading = COMPARISON, conflicts_with = "baseline")]
    pub(crate) variant: Option<PathBuf>,
    /// The built-in file that the variant stands for, such as gemm/gemm.cu; that of the same name if not given.
    #[arg(long, value_name = "NAME", help_heading = COMPARISON, requires = "variant")]
    pub(crate) variant_of: Option<String>,
}

/// Time a model from texts to scores, and show where the time goes.
///
/// Texts are made of common words so that pairs have the lengths asked for in the model's own tokens, special tokens and prompt included; or
/// they are read from a file. Options that take several values make a row for every combination; the rows take turns, in rounds that each
/// start with another one. A call is one query with its passages, or all queries of --queries. Its time is from texts to scores. Device time
/// is from the first upload of a batch to its scores on the host, by the clock of the device; what is neither that nor tokenisation is host time.
/// The ceiling is what a large matrix product gives on this device in this run.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop bench model ./bge-reranker-base --device cuda
  outcrop bench model ./bge-reranker-v2-m3 --device cuda --passages 1,20,100 --lengths fixed:160 --seconds 10
  outcrop bench model ./bge-reranker-v2-minicpm-layerwise --cutoff-layers 8 --cutoff-layers 16 --cutoff-layers 28 --svg layers.svg
  outcrop bench model ./bge-reranker-v2.5-gemma2-lightweight --cutoff-layers 28 --compress-ratio 1,2,4 --compress-layers 8 --profile
  outcrop bench model ./model --lengths lognormal:170 --compare graphs --output before.json
  outcrop bench model ./model --lengths lognormal:170 --baseline before.json --fail-below 0.98
  outcrop bench model ./model --lengths file:requests.jsonl --first 5

Lines of a file:  {\"query\": \"...\", \"passages\": [\"...\", ...]}   a call each
                  {\"query\": \"...\", \"passage\": \"...\"} or query<TAB>passage   all of them one call
Exit status: 0, all done; 1, a row was slower than --fail-below allows; 2, a wrong call or a file that cannot be used.")]
pub(crate) struct ModelBenchArgs {
    /// A model directory, or a model's name on the hub such as BAAI/bge-reranker-base.
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Branch, tag or commit of a model on the hub.
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// Measure each row for about this long, all rounds together.
    #[arg(long, value_name = "S", default_value = "3", value_parser = positive)]
    pub(crate) seconds: f64,
    /// Rounds in which the rows take turns.
    #[arg(long, value_name = "N", default_value = "5")]
    pub(crate) rounds: NonZeroUsize,
    /// Show the time of every kernel, and of every layer by kernel.
    #[arg(long)]
    pub(crate) profile: bool,
    /// Draw the time of every kernel of every layer into this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Also start so many fresh processes, and show how long they take to their first score.
    #[arg(long, value_name = "N")]
    pub(crate) first: Option<NonZeroUsize>,
    /// What the device gives at best, instead of what is measured.
    #[arg(long, value_name = "TFLOPS", value_parser = positive)]
    pub(crate) ceiling: Option<f64>,
    /// Print a JSON object instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    /// Also write the JSON object to this file, for --baseline.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// What the record says was measured; what was stated when the program was built if not given.
    #[arg(long, value_name = "TEXT")]
    pub(crate) commit: Option<String>,
    /// Read names of rows from standard input, and answer each with times and scores of all its calls as a line of JSON.
    #[arg(long, conflicts_with_all = ["json", "output", "baseline", "profile", "svg", "first"])]
    pub(crate) lines: bool,
    /// Be the process of --first.
    #[arg(long, hide = true)]
    pub(crate) fresh: bool,
    /// Queries of a call.
    #[arg(long, value_name = "N", default_value = "1", help_heading = TEXTS)]
    pub(crate) queries: NonZeroUsize,
    /// Passages of a query.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "100", help_heading = TEXTS)]
    pub(crate) passages: Vec<NonZeroUsize>,
    /// Tokens of a pair: fixed:TOKENS, lognormal:MEAN[:SIGMA] (sigma 0.6 if not given), or file:PATH. May be repeated.
    #[arg(long, value_name = "SPEC", default_value = "fixed:512", help_heading = TEXTS)]
    pub(crate) lengths: Vec<Lengths>,
    /// Tokens of a query that is made.
    #[arg(long, value_name = "N", default_value = "32", help_heading = TEXTS)]
    pub(crate) query_tokens: NonZeroUsize,
    /// Longest pair in tokens; if not given 512, or what --lengths asks for.
    #[arg(long, value_name = "TOKENS", help_heading = TEXTS)]
    pub(crate) max_length: Option<NonZeroUsize>,
    /// Write the texts to this file, for file:PATH and for other programs.
    #[arg(long, value_name = "FILE", help_heading = TEXTS)]
    pub(crate) texts_out: Option<PathBuf>,
    /// Where to run: auto (a GPU if there is one that can be used), cpu, cuda, cuda:1, cuda:0,1 or cuda:all.
    #[arg(long, value_name = "DEVICE", default_value = "auto", env = "OUTCROP_DEVICE", help_heading = ENGINE)]
    pub(crate) device: Device,
    /// Number of threads; all cores if not given.
    #[arg(long, value_name = "N", help_heading = ENGINE)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// The type of matrices.
    #[arg(long, value_enum, value_name = "TYPE,...", value_delimiter = ',', default_value = "auto", help_heading = ENGINE)]
    pub(crate) dtype: Vec<DtypeArg>,
    /// Most tokens computed in one batch.
    #[arg(long, value_name = "N,...", value_delimiter = ',', help_heading = ENGINE)]
    pub(crate) batch_tokens: Vec<NonZeroUsize>,
    /// Also run without this, or with what is off by default. Models are opened once for each combination of these, of types and of
    /// batches.
    #[arg(long, value_enum, value_name = "WHAT,...", value_delimiter = ',', help_heading = ENGINE)]
    pub(crate) compare: Vec<Compared>,
    /// Layers after which to score; several separated by commas are scored in one run. May be repeated, for a row each.
    #[arg(long, value_name = "N,...", help_heading = LAYERS)]
    pub(crate) cutoff_layers: Vec<LayerList>,
    /// How many neighbouring passage tokens become one; 1 leaves them alone.
    #[arg(long, value_name = "N,...", value_delimiter = ',', help_heading = LAYERS)]
    pub(crate) compress_ratio: Vec<usize>,
    /// Layers before which passages are compressed; 8 if not given.
    #[arg(long, value_name = "N,...", value_delimiter = ',', requires = "compress_ratio", help_heading = LAYERS)]
    pub(crate) compress_layers: Option<Vec<usize>>,
    /// Compare with an earlier --output: its median time of a call over this one's, row by row, and the geometric mean.
    #[arg(long, value_name = "FILE", help_heading = COMPARISON)]
    pub(crate) baseline: Option<PathBuf>,
    /// Exit with status 1 if a row's ratio is below this.
    #[arg(long, value_name = "RATIO", help_heading = COMPARISON, requires = "baseline", value_parser = positive)]
    pub(crate) fail_below: Option<f64>,
    /// Also take a baseline of another device or type.
    #[arg(long, help_heading = COMPARISON, requires = "baseline")]
    pub(crate) any_device: bool,
}

/// Over the options of `bench model`.
const TEXTS: &str = "Texts";
const ENGINE: &str = "Engine";

/// What `bench model` can do without, or with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compared {
    /// Recorded launches, on a GPU.
    Graphs,
    /// Launches that begin before the one ahead of them has ended, on a GPU: off by default.
    ProgrammaticLaunch,
    /// Norms folded into the matrices behind them, of v2-gemma and MiniCPM on a GPU: off by default.
    FoldNorms,
    /// Computing a query once for its passages, in a decoder.
    PrefixSharing,
}

/// Layers that belong together.
#[derive(Debug, Clone)]
pub(crate) struct LayerList(pub(crate) Vec<usize>);

impl FromStr for LayerList {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// A finite number above 0.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if f64::is_finite(number) && number > 0.0 => Ok(number),
        _ => Err("a number above 0 is needed".to_owned()),
    }
}
