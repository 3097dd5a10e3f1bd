//! The `outcrop` command line: arguments, files and terminals around the library.
//!
//! Results go to standard output or to `--output`; everything else goes to standard error. Exit status: 0, all
//! done; 1, some inputs failed and the others were done; 2, a wrong call, or a model or file that cannot be used. `doctor` answers 1
//! if no GPU can be used, and `bench` if a row is slower than its baseline by more than was allowed.

mod api;
mod args;
mod bench;
mod convert;
mod doctor;
mod dtype;
mod embed;
mod error;
mod inspect;
mod lines;
mod model;
mod npy;
mod output;
mod progress;
mod record;
mod report;
mod rerank;
mod score;
mod serve;
mod synth;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use args::{Args, BenchArgs, Benchmark, Command};
use bench::model as bench_model;
use error::Error;

/// How a command that ran to its end came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    /// Every input has its result.
    Done,
    /// Some inputs failed, perhaps all, and each was reported; or what `doctor` looked for is not usable.
    SomeFailed,
}

impl Status {
    /// The status of a command that failed on `failed` inputs.
    fn of(failed: u64) -> Status {
        if failed == 0 { Status::Done } else { Status::SomeFailed }
    }
}

fn main() -> ExitCode {
    let Args { command, quiet } = args::parse();
    let result = match command {
        Command::Rerank(args) => rerank::run(&args, quiet),
        Command::Score(args) => score::run(&args, quiet),
        Command::Embed(args) => embed::run(&args, quiet),
        Command::Serve(args) => serve::run(args, quiet),
        Command::Inspect(args) => inspect::run(&args, quiet),
        Command::Convert(args) => convert::run(&args, quiet),
        Command::Synth(args) => synth::run(&args, quiet),
        Command::Doctor(args) => doctor::run(&args, quiet),
        Command::Bench(BenchArgs { what: Benchmark::Kernels(args) }) => bench::run(&args, quiet),
        Command::Bench(BenchArgs { what: Benchmark::Model(args) }) => bench_model::run(&args, quiet),
    };
    match result {
        Ok(Status::Done) => ExitCode::SUCCESS,
        Ok(Status::SomeFailed) => ExitCode::from(1),
        // The reader of our output has seen enough: `outcrop ... | head`.
        Err(Error::Write { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            report::error(&error);
            ExitCode::from(2)
        }
    }
}
