//! `outcrop convert`: the same model in less space, by a shorter type or without the layers that are never run.

mod files;
mod plan;
mod round;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Instant;

use outcrop::loader::{Checkpoint, writer};

use crate::args::ConvertArgs;
use crate::error::Error;
use crate::output::{prepare_dir, write_json};
use crate::{Status, model, report};
use files::Files;
use plan::Plan;

/// Writes the smaller checkpoint. Weights are read and written piece by piece; config.json, without which a directory is
/// no model, comes last.
///
/// # Errors
///
/// The model cannot be read; the cutoff is not one of the model's; a weight does not fit the type; the directory is
/// in use, or cannot be written.
pub(crate) fn run(args: &ConvertArgs, quiet: bool) -> Result<Status, Error> {
    let started = Instant::now();
    let dir = model::locate(&args.model, args.revision.as_deref(), quiet)?;
    check_apart(&dir, &args.out)?;
    let checkpoint = Checkpoint::open(&dir)?;
    let plan = Plan::new(&checkpoint, args.dtype, args.cutoff)?;
    let files = Files::of(&dir)?;
    prepare_dir(&args.out, args.force)?;

    let written =
        writer::write(&args.out, &plan.tensors, args.max_shard_bytes, |index, first_byte, block| {
            let spec = &plan.tensors[index];
            let tensor = checkpoint.tensor(&spec.name)?;
            let filled = round::fill(block, tensor.data, first_byte, spec.dtype);
            // What has been converted is not read again.
            tensor.release();
            filled.map_err(|value| Error::Overflow { tensor: spec.name.clone(), value, dtype: spec.dtype })
        })?;
    files.copy(&args.out)?;
    write_json(&args.out, "config.json", &plan.config)?;

    if !quiet {
        plan.notes().iter().chain(&files.notes()).for_each(|note| report::line(note));
        let bytes: usize = checkpoint.tensors().map(|tensor| tensor.bytes).sum();
        report::line(&format!(
            "{}: {} tensors, {} bytes of {bytes}, {:.1} s",
            args.out.display(),
            plan.tensors.len(),
            written.bytes,
            started.elapsed().as_secs_f64()
        ));
    }
    Ok(Status::Done)
}

/// Refuses an output directory that is the model's, or would be inside it.
fn check_apart(model: &Path, out: &Path) -> Result<(), Error> {
    let model_dir =
        model.canonicalize().map_err(|source| Error::Read { from: model.display().to_string(), source })?;
    let existing = out.ancestors().find_map(|ancestor| {
        let ancestor = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
        ancestor.canonicalize().ok()
    });
    match existing {
        Some(existing) if existing.starts_with(&model_dir) => {
            Err(Error::OutInModel { out: out.to_owned(), model: PathBuf::from(model) })
        }
        _ => Ok(()),
    }
}
