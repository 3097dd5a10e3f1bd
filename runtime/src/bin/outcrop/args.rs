//! The arguments of every command.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use outcrop::{Device, doctor};

pub(crate) use crate::bench::args::{BenchArgs, Benchmark, Compared, KernelsArgs, ModelBenchArgs};
use crate::dtype::Dtype;
use crate::score::shard::Shard;
pub(crate) use crate::serve::args::ServeArgs;
use crate::synth::{Family, Size, Task};

/// Score (query, passage) pairs with reranker models.
#[derive(Debug, Parser)]
#[command(
    name = "outcrop",
    version,
    after_help = "\
Examples:
  outcrop rerank --model BAAI/bge-reranker-base 'what is panda?' 'hi' 'The giant panda is a bear.'
  outcrop score --model ./bge-reranker-v2-m3 --input pairs.jsonl --output scores.jsonl
  outcrop embed --model BAAI/bge-m3 --input texts.jsonl > vectors.jsonl
  outcrop inspect ./bge-reranker-base
  outcrop convert ./bge-reranker-v2-minicpm-layerwise ./minicpm-28-bf16 --dtype bf16 --cutoff 28
  outcrop synth --family xlmr --size base ./random-base
  outcrop doctor
  outcrop bench kernels gemm/base

Exit status: 0, all done; 1, some inputs failed and the others were done; 2, a wrong call, or a model or file that cannot be used."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print no progress, no warnings and no summary; errors are still printed.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

/// The arguments of this process. Those of `serve` may also be given by the environment.
pub(crate) fn parse() -> Args {
    let matches = command().get_matches();
    Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The command line, every flag of `serve` with its environment variable: `--max-batch-tokens` is `OUTCROP_MAX_BATCH_TOKENS`.
pub(crate) fn command() -> clap::Command {
    Args::command().mut_subcommand("serve", |serve| {
        serve.mut_args(|arg| match arg.get_long() {
            Some(long) if arg.get_env().is_none() => {
                let name = format!("OUTCROP_{}", long.replace('-', "_").to_uppercase());
                arg.env(name)
            }
            _ => arg,
        })
    })
}

/// A command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Rerank(RerankArgs),
    Score(ScoreArgs),
    Embed(EmbedArgs),
    Serve(ServeArgs),
    Inspect(InspectArgs),
    Convert(ConvertArgs),
    Synth(SynthArgs),
    Doctor(DoctorArgs),
    Bench(BenchArgs),
}

/// The size at which weights are split into files, as the published ones are.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Where the model is.
#[derive(Debug, ClapArgs)]
pub(crate) struct ModelArgs {
    /// A model directory, or a model's name on the hub such as BAAI/bge-reranker-base.
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: String,
    /// Branch, tag or commit of a model on the hub.
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
}

/// How the work is done.
#[derive(Debug, ClapArgs)]
pub(crate) struct EngineArgs {
    /// Where to run: auto (a GPU if there is one that can be used), cpu, cuda, cuda:1, cuda:0,1 or cuda:all. `outcrop doctor` shows
    /// what there is.
    #[arg(long, value_name = "DEVICE", default_value = "auto", env = "OUTCROP_DEVICE")]
    pub(crate) device: Device,
    /// Launch the kernels of a GPU one by one instead of as recorded graphs. Scores do not change.
    #[arg(long)]
    pub(crate) no_graphs: bool,
    /// Begin each kernel of a GPU before the one ahead of it has ended (programmatic dependent launch), where the GPU can: `outcrop
    /// doctor` says so. Scores do not change.
    #[arg(long)]
    pub(crate) programmatic_launch: bool,
    /// Fold the RMSNorms of v2-gemma and MiniCPM into their matrices, on a GPU, for weights stored in f32. Scores move by no more than the
    /// rounding of 16 bits moves them.
    #[arg(long)]
    pub(crate) fold_norms: bool,
    /// Number of threads; all cores if not given.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Most tokens computed in one batch: more needs more memory.
    #[arg(long, value_name = "N")]
    pub(crate) batch_tokens: Option<NonZeroUsize>,
    /// The type in which matrices are held in memory; all else is f32. On a GPU the type in which it multiplies, f16 or bf16.
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto, help_heading = MODEL)]
    pub(crate) dtype: DtypeArg,
}

/// Over the options of the deep models. An option that a model does not have is refused by name.
const MODEL: &str = "Model";
pub(crate) const LAYERS: &str = "Layers and compression";

/// Which network is run, where the files leave a choice.
#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = MODEL)]
pub(crate) struct NetworkArgs {
    /// A directory with a LoRA adapter to add to the weights. May be repeated: they are added in this order.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Vec<PathBuf>,
    /// Which scoring head belongs to a cutoff layer, where a model has several heads.
    #[arg(long, value_enum)]
    pub(crate) heads: Option<HeadsArg>,
    /// Apply the attention soft-cap that config.json states and the reference does not apply.
    #[arg(long)]
    pub(crate) attention_softcap: bool,
    /// The form of the GELU; what config.json says if not given.
    #[arg(long, value_enum)]
    pub(crate) gelu: Option<GeluArg>,
    /// Compute every pair from its first token, also where pairs share a query. Scores do not change.
    #[arg(long)]
    pub(crate) no_prefix_sharing: bool,
}

/// How much of the network is run, and on how many tokens.
#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = LAYERS)]
pub(crate) struct LayersArgs {
    /// Number of layers after which to score; several separated by commas give a score each. All if not given.
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub(crate) cutoff_layers: Option<Vec<usize>>,
    /// How many neighbouring passage tokens become one.
    #[arg(long, value_name = "N")]
    pub(crate) compress_ratio: Option<usize>,
    /// Layers before which passages are compressed; 8 if not given.
    #[arg(long, value_name = "N,...", value_delimiter = ',', requires = "compress_ratio")]
    pub(crate) compress_layers: Option<Vec<usize>>,
}

/// The type in which matrices are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeArg {
    /// As stored; what an adapter changes, f32.
    Auto,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 32-bit floating point.
    F32,
}

impl DtypeArg {
    /// The spelling on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            DtypeArg::Auto => "auto",
            DtypeArg::F16 => "f16",
            DtypeArg::Bf16 => "bf16",
            DtypeArg::F32 => "f32",
        }
    }
}

impl From<DtypeArg> for outcrop::Dtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::Auto => Self::Auto,
            DtypeArg::F16 => Self::F16,
            DtypeArg::Bf16 => Self::BF16,
            DtypeArg::F32 => Self::F32,
        }
    }
}

/// Which of several scoring heads belongs to a cutoff layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HeadsArg {
    /// As the reference implementation takes them.
    Reference,
    /// Each layer has its own.
    ByLayer,
}

/// The form of the GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GeluArg {
    /// The approximation by tanh.
    Tanh,
    /// By the error function.
    Exact,
}

/// How a pair becomes a score.
#[derive(Debug, ClapArgs)]
pub(crate) struct PairArgs {
    /// Longest input in tokens; the end of a longer passage is cut off.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_length: Option<usize>,
    /// Longest query in tokens; three quarters of the longest input if not given.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) query_max_length: Option<usize>,
    /// Map scores into 0..1 with the logistic function.
    #[arg(long)]
    pub(crate) normalize: bool,
    /// Text put before every query; the model's own if not given, none if empty.
    #[arg(long, value_name = "TEXT")]
    pub(crate) query_instruction: Option<String>,
    /// Text put before every passage; the model's own if not given, none if empty.
    #[arg(long, value_name = "TEXT")]
    pub(crate) passage_instruction: Option<String>,
    /// How instruction and query are joined: the first {} is the instruction, the second the query.
    #[arg(long, value_name = "FORMAT", default_value = "{}{}")]
    pub(crate) query_instruction_format: String,
    /// How instruction and passage are joined.
    #[arg(long, value_name = "FORMAT", default_value = "{}{}")]
    pub(crate) passage_instruction_format: String,
    /// The question put behind every pair; the model's own if not given, none if empty.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
}

/// A file of lines.
#[derive(Debug, ClapArgs)]
pub(crate) struct LinesArgs {
    /// The input file; - is standard input.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) input: PathBuf,
    /// The output file; standard output if not given. An existing file is replaced.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Longest line in bytes; a longer one becomes an error in its place.
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    pub(crate) max_line_bytes: usize,
}

/// Rank passages by how well they answer a query, best first.
///
/// With an embedding model passages are ranked by the cosine of the angle between the vectors.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop rerank --model BAAI/bge-reranker-base 'what is panda?' 'hi' 'The giant panda is a bear.'
  outcrop rerank --model ./model 'how do I list open files?' --passages descriptions.txt --top-n 5
  ls | outcrop rerank --model ./model 'licence' --passages - --json

With --json the output is an array of {\"index\", \"score\", \"passage\"}, best first; with several cutoff layers also
\"scores\" by layer, and with compression \"tokens_after\". The index counts from 0: over the arguments, or over the lines
of the file. Blank lines of the file are counted but not ranked.")]
pub(crate) struct RerankArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The query.
    pub(crate) query: String,
    /// The passages.
    #[arg(value_name = "PASSAGE")]
    pub(crate) passage: Vec<String>,
    /// A file with one passage per line; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "passage")]
    pub(crate) passages: Option<PathBuf>,
    /// Show only the N best.
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) top_n: Option<NonZeroUsize>,
    /// Print a JSON array instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) pair: PairArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) layers: LayersArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Score the pairs of a file, line by line.
///
/// Results come in the order of the input and are written as they are computed: into FILE.part, which becomes FILE when it is
/// complete, or to standard output.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop score --model BAAI/bge-reranker-base --input pairs.jsonl --output scores.jsonl
  outcrop score --model ./model --input pairs.tsv --normalize
  outcrop score --model ./model --input pairs.parquet --output scores.parquet --resume
  outcrop score --model ./model --input pairs.jsonl --output scores-3.jsonl --shard 3/8
  outcrop score --model ./minicpm-layerwise --input pairs.jsonl --cutoff-layers 8,16,28
  outcrop score --model ./lightweight --input pairs.jsonl --cutoff-layers 25 --compress-ratio 2
  zcat pairs.jsonl.gz | outcrop score --model ./model --input - | gzip > scores.jsonl.gz

Input lines:   {\"id\": \"a1\", \"query\": \"...\", \"passage\": \"...\"}     (id is optional; \"document\" is the same as \"passage\")
               {\"id\": \"a2\", \"query\": \"...\", \"passages\": [\"...\", ...]}     (\"documents\" is the same)
               {\"custom_id\": \"a3\", \"method\": \"POST\", \"url\": \"/v1/rerank\", \"body\": {...}}     (as for vLLM's run-batch)
               or, in a file named *.tsv, query<TAB>passage
               or, in a file named *.parquet, rows with columns id, query and passage or passages
Output lines:  {\"id\": \"a1\", \"score\": 1.25, \"tokens\": 87, \"truncated\": false}
               {\"id\": \"a2\", \"index\": 0, \"score\": 0.5, ...}     (one for each passage of a list)
               {\"id\": \"a2\", \"error\": \"...\"}
               or, in a file named *.parquet, rows with the same columns
A line without an id is named by its number, counted from 1: {\"line\": 7, ...}; a row by its own, counted from 0: {\"row\": 6, ...}.
Blank lines are skipped. With several cutoff layers a line also has \"scores\": {\"8\": 0.5, \"28\": 1.25}, and the score is the
deepest layer's; with compression it has \"tokens_after\": 61.

A line for run-batch is answered as vLLM answers it, with scores in 0..1 unless its body has \"use_activation\": false. Its body may
also have max_length, query_max_length, query_instruction, passage_instruction, prompt, cutoff_layers, compress_ratio and
compress_layers, in place of the options here.

The shards of a file follow one another: cat of their outputs is the output without --shard. Each shard needs its own --output.")]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) lines: LinesArgs,
    /// Score only part I of N consecutive parts of the input file, counted from 0.
    #[arg(long, value_name = "I/N")]
    pub(crate) shard: Option<Shard>,
    /// Go on where the same command was interrupted, or start if there is nothing to go on from. The output is that of a run without an
    /// interruption, byte for byte.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Time between two checkpoints, FILE.checkpoint: how much work an interruption may cost. 0: after every 64 lines.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub(crate) checkpoint_seconds: u64,
    /// Write what is said at the end to a file as well, as a JSON object: pairs, tokens, failures, seconds and rates.
    #[arg(long, value_name = "FILE")]
    pub(crate) summary: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) pair: PairArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) layers: LayersArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// Turn the texts of a file into vectors.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop embed --model BAAI/bge-m3 --input texts.jsonl --output vectors.jsonl
  outcrop embed --model ./bge-base-en-v1.5 --input queries.jsonl \\
      --instruction 'Represent this sentence for searching relevant passages: '
  outcrop embed --model ./model --input texts.jsonl --format npy --output vectors.npy

Input lines:   {\"id\": \"a1\", \"text\": \"...\"}     (id is optional)
Output lines:  {\"id\": \"a1\", \"embedding\": [0.01, ...], \"tokens\": 9, \"truncated\": false}
               {\"id\": \"a2\", \"error\": \"...\"}
A line without an id is named by its number, counted from 1: {\"line\": 7, ...}. Blank lines are skipped.
With --format npy the output is one float32 array [texts, hidden_size]; row i belongs to the i-th line that is not
blank. The row of a line that failed is all NaN, and the error is printed with the number of the line.")]
pub(crate) struct EmbedArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) lines: LinesArgs,
    /// The form of the output.
    #[arg(long, value_enum, default_value_t = EmbedFormat::Jsonl)]
    pub(crate) format: EmbedFormat,
    /// Longest input in tokens; the end of a longer text is cut off.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_length: Option<usize>,
    /// Text put before every text.
    #[arg(long, value_name = "TEXT")]
    pub(crate) instruction: Option<String>,
    /// How instruction and text are joined: the first {} is the instruction, the second the text.
    #[arg(long, value_name = "FORMAT", default_value = "{}{}")]
    pub(crate) instruction_format: String,
    /// How the vectors of the tokens become one; what the model's files say if not given.
    #[arg(long, value_enum)]
    pub(crate) pooling: Option<PoolingArg>,
    /// Scale vectors to length 1, whatever the model's files say.
    #[arg(long, overrides_with = "no_normalize")]
    pub(crate) normalize: bool,
    /// Leave vectors as they are, whatever the model's files say.
    #[arg(long, overrides_with = "normalize")]
    pub(crate) no_normalize: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// The form of `embed`'s output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EmbedFormat {
    /// One JSON object per line.
    Jsonl,
    /// One NumPy array.
    Npy,
}

/// How the vectors of the tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PoolingArg {
    /// The vector of the first token.
    Cls,
    /// The mean over all tokens.
    Mean,
}

/// Show what a model is, without reading its weights.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop inspect ./bge-reranker-base
  outcrop inspect BAAI/bge-m3 --json | jq .parameters")]
pub(crate) struct InspectArgs {
    /// A model directory, or a model's name on the hub such as BAAI/bge-reranker-base.
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Branch, tag or commit of a model on the hub.
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// Print a JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write a smaller checkpoint of a model: in a shorter type, or without layers that are never run.
///
/// Scores of what is kept stay the same, but for the rounding to the type.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop convert BAAI/bge-reranker-v2-gemma ./gemma-bf16 --dtype bf16
  outcrop convert ./bge-reranker-v2-minicpm-layerwise ./minicpm-28 --cutoff 28
  outcrop convert ./bge-reranker-v2.5-gemma2-lightweight ./lightweight-25-f16 --cutoff 25 --dtype f16

The tokenizer and the other small files are copied. Adapters and weights in other formats are not.")]
pub(crate) struct ConvertArgs {
    /// A model directory, or a model's name on the hub such as BAAI/bge-reranker-v2-gemma.
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// The directory to make.
    pub(crate) out: PathBuf,
    /// Branch, tag or commit of a model on the hub.
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// The type to store weights in, rounded to nearest; each keeps its own if not given.
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<Dtype>,
    /// Leave out the layers from this number on, and the heads that only they use.
    #[arg(long, value_name = "N")]
    pub(crate) cutoff: Option<usize>,
    /// Largest weight file; larger weights are split.
    #[arg(long, value_name = "BYTES", default_value_t = MAX_SHARD_BYTES)]
    pub(crate) max_shard_bytes: u64,
    /// Write into a directory that is not empty: weights and files of the same names are replaced, others stay.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Write a model of a published shape with random weights and a working tokenizer.
///
/// It takes the time and the memory of the published model, so that speed can be measured without a download. Its
/// scores mean nothing. The same seed gives the same bytes on every machine.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop synth --family xlmr --size base ./random-reranker-base
  outcrop synth --family xlmr --size m3 --dtype f16 --seed 7 ./random-v2-m3
  outcrop synth --family bert --size large ./random-bge-large-en
  outcrop synth --family minicpm --size published --layers 8 --dtype bf16 ./random-minicpm-8

Shapes:  xlmr     base, large, m3   as bge-reranker-base, -large, -v2-m3; with --task embed, m3 is as bge-m3
         bert     base, large       as bge-base-en-v1.5, bge-large-en-v1.5
         gemma    published         as bge-reranker-v2-gemma
         minicpm  published         as bge-reranker-v2-minicpm-layerwise
         gemma2   published         as bge-reranker-v2.5-gemma2-lightweight
         tiny                       2 layers, of a decoder 8, of width 64, and 8192 tokens: for trying things out")]
pub(crate) struct SynthArgs {
    /// The family of networks.
    #[arg(long, value_enum)]
    pub(crate) family: Family,
    /// What the model answers with; embed for bert and rerank for the others if not given.
    #[arg(long, value_enum)]
    pub(crate) task: Option<Task>,
    /// The published size.
    #[arg(long, value_enum)]
    pub(crate) size: Size,
    /// The type in which the weights are stored.
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub(crate) dtype: Dtype,
    /// Chooses the random weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Number of layers, instead of the published one.
    #[arg(long, value_name = "N")]
    pub(crate) layers: Option<NonZeroUsize>,
    /// Largest weight file; larger weights are split.
    #[arg(long, value_name = "BYTES", default_value_t = MAX_SHARD_BYTES)]
    pub(crate) max_shard_bytes: u64,
    /// Write into a directory that is not empty: weights and files of the same names are replaced, others stay.
    #[arg(long)]
    pub(crate) force: bool,
    /// The directory to make.
    pub(crate) dir: PathBuf,
}

/// Show whether a GPU can be used, and if not, what is missing.
///
/// Looks at the driver, every device, the compiler of the kernels (NVRTC) and their cache, runs a kernel on every device, and compiles
/// them all where one has run. The last line says what to do next.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  outcrop doctor
  outcrop doctor --json | jq .verdict
  outcrop doctor --architecture sm_90a

Compiled kernels are kept: a service that starts after this need not wait for them. --architecture needs no GPU, so that an image can
be built with its kernels in it; such an image needs no NVRTC.
Exit status: 0, a GPU can be used (with --architecture: every kernel compiles); 1, it cannot.")]
pub(crate) struct DoctorArgs {
    /// Print a JSON object instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    /// Compile every kernel even if none runs on the devices that there are.
    #[arg(long)]
    pub(crate) compile: bool,
    /// Compile every kernel for this architecture, whatever devices there are.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(doctor::ARCHITECTURES))]
    pub(crate) architecture: Option<String>,
}
