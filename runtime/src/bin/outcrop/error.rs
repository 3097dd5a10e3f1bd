//! The error that ends a command.

use std::io;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::synth::{Family, Size, Task};

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The model could not be found or read.
    #[error(transparent)]
    Model(#[from] outcrop::loader::Error),
    /// The library refused the model or the options.
    #[error(transparent)]
    Engine(#[from] outcrop::Error),
    /// An input could not be opened or read.
    #[error("cannot read {from}")]
    Read { from: String, source: io::Error },
    /// A result could not be written.
    #[error("cannot write {to}")]
    Write { to: String, source: io::Error },
    /// Input and output are one file.
    #[error("{} is the input; writing the output there would destroy it", path.display())]
    OutputIsInput { path: PathBuf },
    /// Nothing to rank.
    #[error("no passages to rank: give them as arguments, or a file with one per line as --passages FILE")]
    NoPassages,
    /// An .npy file is completed at its beginning, which a pipe does not allow.
    #[error("--format npy needs --output FILE")]
    NpyNeedsOutput,
    /// A directory that `synth` would write into holds files.
    #[error("{} is not empty; --force writes into it and replaces the files of the same names", dir.display())]
    NotEmpty { dir: PathBuf },
    /// A combination that nobody published.
    #[error(
        "no model of family {}, size {} and task {} was published; bert is for embed only, and m3 is an xlmr size",
        name(family),
        name(size),
        name(task)
    )]
    NoSuchShape { family: Family, size: Size, task: Task },
}

/// The spelling of a value on the command line.
fn name<T: ValueEnum>(value: &T) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
