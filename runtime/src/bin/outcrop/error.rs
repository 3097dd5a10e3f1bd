//! The error that ends a command.

use std::io;
use std::path::PathBuf;

use clap::ValueEnum;
use outcrop::loader::{self, AllowedCutoffs, Dtype};

use crate::score::parquet::TableError;
use crate::score::shard::Shard;
use crate::synth::{Family, Size, Task};

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The model could not be found or read, or the library refused it or the options. Boxed, because it is several times
    /// as large as the others.
    #[error(transparent)]
    Engine(Box<outcrop::Error>),
    /// An input could not be opened or read.
    #[error("cannot read {from}")]
    Read { from: String, source: io::Error },
    /// A result could not be written.
    #[error("cannot write {to}")]
    Write { to: String, source: io::Error },
    /// Results could not be written, and those that had been are kept.
    #[error(
        "cannot write {to}; when there is room, or the cause is gone, the same command with --resume goes on from the last checkpoint"
    )]
    WritePart { to: String, source: io::Error },
    /// A Parquet file that cannot be used.
    #[error("cannot use {path}")]
    Table { path: String, source: Box<TableError> },
    /// A Parquet file is made in a file beside it.
    #[error("{} is not a regular file, and a .parquet file cannot be written into anything else; give an --output with another ending", path.display())]
    TableNeedsFile { path: PathBuf },
    /// What can be read only once has no parts.
    #[error(
        "--shard {shard} needs an input file, so that each run can read its part; {name} can only be read as a whole"
    )]
    ShardOfStream { name: String, shard: Shard },
    /// Nothing to go on from.
    #[error("--resume needs an input and an output that are files: --input FILE and --output FILE")]
    ResumeNeedsFiles,
    /// A checkpoint of another run.
    #[error("{path} is from a run that was not the same: {}; give the same again, or leave out --resume to start over", differences.join("; "))]
    OtherRun { path: String, differences: Vec<String> },
    /// A file that is no checkpoint.
    #[error("{path} is no checkpoint of `outcrop score` ({reason}); leave out --resume to start over")]
    NoCheckpoint { path: String, reason: String },
    /// Results that the checkpoint counts on are gone.
    #[error("{} has {found} bytes, and its checkpoint counts on {bytes}: it was changed; leave out --resume to start over", path.display())]
    PartTooShort { path: PathBuf, found: u64, bytes: u64 },
    /// Another process is writing the same output.
    #[error("{} is being written by another process; wait for it, or give another --output (each shard needs its own)", path.display())]
    Locked { path: PathBuf },
    /// Input and output are one file.
    #[error("{} is the input; writing the output there would destroy it", path.display())]
    OutputIsInput { path: PathBuf },
    /// Nothing to rank.
    #[error("no passages to rank: give them as arguments, or a file with one per line as --passages FILE")]
    NoPassages,
    /// An .npy file is completed at its beginning, which a pipe does not allow.
    #[error("--format npy needs --output FILE")]
    NpyNeedsOutput,
    /// A directory that a model would be written into holds files.
    #[error("{} is not empty; --force writes into it and replaces the files of the same names", dir.display())]
    NotEmpty { dir: PathBuf },
    /// `convert` would change the model that it reads.
    #[error("{} is the model's directory {} or lies in it; give a directory outside", out.display(), model.display())]
    OutInModel { out: PathBuf, model: PathBuf },
    /// A weight is too large for a shorter type.
    #[error(
        "tensor {tensor} holds {value}, which {dtype:?} cannot hold; {}",
        if *dtype == Dtype::F16 { "convert to bf16, which has the range of f32" } else { "keep f32" }
    )]
    Overflow { tensor: String, value: f32, dtype: Dtype },
    /// A cutoff for a model that is always run whole.
    #[error("{architecture} has no cutoff layers: --cutoff is not for it")]
    NoCutoffs { architecture: &'static str },
    /// A cutoff that the model does not have.
    #[error("the model cannot be cut off at {layers} layers; allowed are {allowed}")]
    Cutoff { layers: usize, allowed: AllowedCutoffs },
    /// A weight file that is needed as a whole.
    #[error("{} is not there; convert needs every weight file, except those that --cutoff leaves out whole", path.display())]
    MissingFile { path: PathBuf },
    /// A combination that nobody published.
    #[error(
        "no model of family {}, size {} and task {} was published; xlmr has the sizes tiny, base, large and m3, bert tiny, base and \
         large for embed, gemma, minicpm and gemma2 tiny and published for rerank",
        name(family),
        name(size),
        name(task)
    )]
    NoSuchShape { family: Family, size: Size, task: Task },
    /// No row to time has such a name.
    #[error("no row's name holds {filter:?}; the nearest are {}; --list shows all", nearest.join(", "))]
    NoRow { filter: String, nearest: Vec<String> },
    /// A file that is no record of rows.
    #[error("{} is no record of `outcrop bench {what} --output`: {reason}", path.display())]
    Baseline { path: PathBuf, what: &'static str, reason: String },
    /// A record of another model.
    #[error("{} is a record of the model {baseline}, and this is {now}", path.display())]
    OtherModel { path: PathBuf, baseline: String, now: String },
    /// A file of texts to measure with that cannot be used.
    #[error("{}, line {line}: {reason}; a line is {{\"query\", \"passage\"}}, {{\"query\", \"passages\": [...]}} or query<TAB>passage", path.display())]
    Texts { path: PathBuf, line: usize, reason: String },
    /// A file without a pair to measure with.
    #[error("{} holds no pair", path.display())]
    NoTexts { path: PathBuf },
    /// Pairs that cannot be as short as asked for.
    #[error(
        "a pair cannot have {asked} tokens: a query of {query} and the shortest passage make {least}; ask for longer pairs, or give --query-tokens"
    )]
    TooShort { asked: usize, query: usize, least: usize },
    /// A fresh process that did not score.
    #[error("the fresh process ended without a score ({status})")]
    Fresh { status: std::process::ExitStatus },
    /// A record of another device or type.
    #[error(
        "{} was measured on {baseline}, and this is {now}: a ratio would compare machines, not kernels; --any-device does all the same",
        path.display()
    )]
    OtherDevice { path: PathBuf, baseline: String, now: String },
    /// Variants are compiled for a GPU.
    #[error("--variant compiles a kernel file for a GPU, and this is none: choose one by --device cuda")]
    VariantNeedsGpu,
    /// No kernel file that the variant could stand for.
    #[error("no built-in kernel file is called {name}; name the one that it stands for by --variant-of: {}", files.join(", "))]
    NoBuiltIn { name: String, files: Vec<&'static str> },
    /// Names for other models than there are.
    #[error(
        "{names} names for {models} models: give --served-model-name once for each --model, in the same order"
    )]
    ServedNames { models: usize, names: usize },
    /// Two models that requests could not tell apart.
    #[error("two models are called {name}: tell them apart by --served-model-name")]
    SameServedName { name: String },
    /// A server that cannot listen.
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    /// The threads of the server, its signals or its metrics could not be set up.
    #[error("the server cannot be started: {what}")]
    Server { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    /// A header or level that cannot be read.
    #[error("{flag} {value:?}: {reason}")]
    Flag { flag: &'static str, value: String, reason: String },
    /// None of the rows runs what the variant stands for.
    #[error("none of these rows launches {of} on this device")]
    VariantNotLaunched { of: &'static str },
}

impl From<outcrop::Error> for Error {
    fn from(error: outcrop::Error) -> Error {
        Error::Engine(Box::new(error))
    }
}

impl From<loader::Error> for Error {
    fn from(error: loader::Error) -> Error {
        outcrop::Error::from(error).into()
    }
}

/// The spelling of a value on the command line.
fn name<T: ValueEnum>(value: &T) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
