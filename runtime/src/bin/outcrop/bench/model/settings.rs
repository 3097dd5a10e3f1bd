//! What is run: every combination of texts, depths and engines that the arguments name.

use clap::ValueEnum;
use outcrop::{Compression, Dtype, Engine, EngineOptions, ScoreOptions};
use serde_json::{Map, Value, json};

use super::texts::Workload;
use crate::args::{Compared, DtypeArg, ModelBenchArgs};
use crate::error::Error;

/// An engine to open, and what it adds to the names of its rows.
#[derive(Clone)]
pub(super) struct Kind {
    pub(super) suffix: String,
    pub(super) options: EngineOptions,
}

/// A row of the table.
pub(super) struct Setting {
    /// Texts, and what differs from the defaults: the same whatever else a run compares.
    pub(super) name: String,
    /// Indices of its engine and its texts.
    pub(super) engine: usize,
    pub(super) workload: usize,
    pub(super) options: ScoreOptions,
    /// For the record.
    pub(super) facts: Map<String, Value>,
}

/// Every kind of engine.
pub(super) fn kinds(args: &ModelBenchArgs) -> Vec<Kind> {
    let batches: Vec<Option<usize>> = match args.batch_tokens.as_slice() {
        [] => vec![None],
        tokens => tokens.iter().map(|tokens| Some(tokens.get())).collect(),
    };
    let mut kinds = Vec::new();
    for dtype in &args.dtype {
        for batch_tokens in &batches {
            let suffix = match dtype {
                DtypeArg::Auto => String::new(),
                dtype => format!("/{}", dtype.name()),
            };
            let options = EngineOptions {
                threads: args.threads.map(Into::into),
                batch_tokens: *batch_tokens,
                device: args.device.clone(),
                dtype: Dtype::from(*dtype),
                ..EngineOptions::default()
            };
            let suffix = suffix + &batch_tokens.map_or_else(String::new, |tokens| format!("/batch:{tokens}"));
            let mut compared = vec![Kind { suffix, options }];
            for what in Compared::value_variants().iter().filter(|what| args.compare.contains(what)) {
                compared = compared.into_iter().flat_map(|kind| [kind.clone(), kind.other(*what)]).collect();
            }
            kinds.extend(compared);
        }
    }
    kinds
}

impl Kind {
    /// The same with one thing the other way round.
    fn other(self, what: Compared) -> Self {
        let Self { mut suffix, mut options } = self;
        let (option, name) = match what {
            Compared::Graphs => (&mut options.graphs, "graphs"),
            Compared::ProgrammaticLaunch => (&mut options.programmatic_launch, "programmatic-launch"),
            Compared::FoldNorms => (&mut options.fold_norms, "fold-norms"),
            Compared::PrefixSharing => (&mut options.prefix_sharing, "prefix-sharing"),
        };
        *option = !*option;
        suffix += &format!("/{name}:{}", if *option { "on" } else { "off" });
        Self { suffix, options }
    }
}

/// Every setting, texts first.
pub(super) fn settings(
    args: &ModelBenchArgs,
    kinds: &[Kind],
    engine: &Engine,
    workloads: &[Workload],
) -> Result<Vec<Setting>, Error> {
    let cutoffs = match args.cutoff_layers.as_slice() {
        [] => vec![None],
        cutoffs => cutoffs.iter().map(|cutoffs| Some(&cutoffs.0)).collect(),
    };
    let ratios = match args.compress_ratio.as_slice() {
        [] => vec![None],
        ratios => ratios.iter().copied().map(Some).collect(),
    };
    let layers = args.compress_layers.as_deref().unwrap_or(Compression::DEFAULT_LAYERS);
    let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut settings = Vec::new();
    for (workload, texts) in workloads.iter().enumerate() {
        for cutoffs in &cutoffs {
            for ratio in &ratios {
                let options = ScoreOptions {
                    max_length: Some(args.max_length.map_or(texts.max_length, Into::into)),
                    cutoff_layers: cutoffs.map(|layers| engine.cutoffs(layers)).transpose()?,
                    compression: ratio.map(|ratio| Compression::new(ratio, layers)).transpose()?,
                    ..ScoreOptions::default()
                };
                let mut name = texts.name.clone();
                name += &cutoffs.map_or_else(String::new, |layers| format!("/cutoff:{}", list(layers)));
                name += &ratio.map_or_else(String::new, |ratio| format!("/ratio:{ratio}@{}", list(layers)));
                for (engine, kind) in kinds.iter().enumerate() {
                    let EngineOptions {
                        graphs,
                        programmatic_launch,
                        fold_norms,
                        prefix_sharing,
                        batch_tokens,
                        ..
                    } = &kind.options;
                    let facts = json!({
                        "texts": texts.name,
                        "calls": texts.calls.len(),
                        "cutoff_layers": cutoffs,
                        "compress_ratio": ratio,
                        "compress_layers": ratio.map(|_| layers),
                        "dtype": args.dtype[engine / (kinds.len() / args.dtype.len())].name(),
                        "batch_tokens": batch_tokens,
                        "graphs": graphs,
                        "programmatic_launch": programmatic_launch,
                        "fold_norms": fold_norms,
                        "prefix_sharing": prefix_sharing,
                    });
                    settings.push(Setting {
                        name: format!("{name}{}", kind.suffix),
                        engine,
                        workload,
                        options: options.clone(),
                        facts: facts.as_object().cloned().unwrap_or_default(),
                    });
                }
            }
        }
    }
    Ok(settings)
}
