//! From the model's name on the command line to a directory or an engine.

use std::path::{Path, PathBuf};

use outcrop::loader::Gelu;
use outcrop::loader::hub::{self, HubOptions};
use outcrop::{Device, Dtype, Engine, EngineOptions, HeadRule};

use crate::args::{EngineArgs, GeluArg, HeadsArg, ModelArgs, NetworkArgs};
use crate::error::Error;
use crate::progress::download_bar;
use crate::report;

/// The directory of a model, downloaded first if it is only a name.
pub(crate) fn locate(model: &str, revision: Option<&str>, quiet: bool) -> Result<PathBuf, Error> {
    let bar = download_bar(quiet);
    let options = HubOptions { revision: revision.map(str::to_owned) };
    let dir = hub::resolve(model, &options, &|progress| {
        bar.set_message(progress.file.to_owned());
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
    });
    bar.finish_and_clear();
    Ok(dir?)
}

/// Opens the model for work.
pub(crate) fn open(
    model: &ModelArgs,
    engine: &EngineArgs,
    network: &NetworkArgs,
    quiet: bool,
) -> Result<Engine, Error> {
    let dir = locate(&model.model, model.revision.as_deref(), quiet)?;
    open_dir(&dir, engine, network, quiet)
}

/// Opens the model in a directory for work.
pub(crate) fn open_dir(
    dir: &Path,
    engine: &EngineArgs,
    network: &NetworkArgs,
    quiet: bool,
) -> Result<Engine, Error> {
    let options = EngineOptions {
        device: engine.device.clone(),
        graphs: !engine.no_graphs,
        programmatic_launch: engine.programmatic_launch,
        fold_norms: engine.fold_norms,
        threads: engine.threads.map(Into::into),
        batch_tokens: engine.batch_tokens.map(Into::into),
        dtype: Dtype::from(engine.dtype),
        adapters: network.adapter.clone(),
        heads: network.heads.map(|heads| match heads {
            HeadsArg::Reference => HeadRule::Reference,
            HeadsArg::ByLayer => HeadRule::ByLayer,
        }),
        attention_softcap: network.attention_softcap,
        gelu: network.gelu.map(|gelu| match gelu {
            GeluArg::Tanh => Gelu::Tanh,
            GeluArg::Exact => Gelu::Exact,
        }),
        prefix_sharing: !network.no_prefix_sharing,
    };
    let engine = Engine::open(dir, &options)?;
    if matches!(options.device, Device::Auto) && !quiet {
        report::line(&format!("running on {}", engine.device()));
    }
    Ok(engine)
}

/// Prints what the engine has noticed on the way.
pub(crate) fn warn(engine: &Engine, quiet: bool) {
    let warnings = engine.take_warnings();
    if !quiet {
        warnings.iter().for_each(|warning| report::line(&format!("warning: {warning}")));
    }
}
