//! Writes the sources of the emulator's library into a folder, one per kernel file, and the names of all instances. What
//! kernels/emulator/build compiles.

#![allow(clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

fn main() -> ExitCode {
    let Some(folder) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: emulator_units FOLDER");
        return ExitCode::from(2);
    };
    match write_units(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write to {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write_units(folder: &Path) -> io::Result<()> {
    let units = outcrop_kernels::emulator_units();
    fs::create_dir_all(folder)?;
    // Sources of kernels that are no more.
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_source = path.extension().is_some_and(|extension| extension == "cpp");
        if is_source && !units.iter().any(|unit| path.ends_with(&unit.file_name)) {
            fs::remove_file(path)?;
        }
    }
    for unit in &units {
        write_if_changed(&folder.join(&unit.file_name), &unit.text)?;
    }
    let names: Vec<&str> = units.iter().flat_map(|unit| &unit.instances).map(String::as_str).collect();
    write_if_changed(&folder.join("instances.txt"), &(names.join("\n") + "\n"))
}

/// Left alone if nothing has changed, so that what was compiled from it stays valid.
fn write_if_changed(file: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(file).is_ok_and(|found| found == text) {
        return Ok(());
    }
    fs::write(file, text)
}
