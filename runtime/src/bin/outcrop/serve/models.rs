//! The models that are served: each with its queue, found by its name.

use std::sync::Arc;
use std::time::Duration;

use outcrop::loader::Config;
use outcrop::queue::{Queue, QueueOptions, Run};
use outcrop::{ElementType, Engine, ScoreOptions};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::args::ServeArgs;
use super::cache::ScoreCache;
use super::metrics;
use super::problem::{Kind, Problem};
use crate::error::Error;
use crate::model;

/// A model that is served.
pub(crate) struct Model {
    /// What requests call it.
    pub(crate) name: String,
    /// Where it comes from: a name on the hub, or a directory.
    pub(crate) id: String,
    pub(crate) revision: Option<String>,
    pub(crate) queue: Queue,
    pub(crate) cache: Option<ScoreCache>,
}

/// All models, the default first.
pub(crate) struct Models(Vec<Model>);

impl Models {
    /// Opens every model, reads its weights and runs it once.
    pub(crate) fn open(args: &ServeArgs, quiet: bool) -> Result<Self, Error> {
        let names = names(args)?;
        let mut models = Vec::with_capacity(names.len());
        for (id, name) in args.model.iter().zip(names) {
            let dir = model::locate(id, args.revision.as_deref(), quiet)?;
            // What it would print is in the log.
            let engine = Arc::new(model::open_dir(&dir, &args.engine, &args.network, true)?);
            info!(model = name, device = %engine.device(), "loaded");
            let queue = Queue::new(Arc::clone(&engine), queue_options(args, &name, &engine))?;
            let cache = (args.score_cache > 0).then(|| ScoreCache::new(args.score_cache));
            let model = Model { name, id: id.clone(), revision: args.revision.clone(), queue, cache };
            model.warm_up()?;
            metrics::declare(&model.name);
            info!(model = model.name, "warm");
            models.push(model);
        }
        Ok(Self(models))
    }

    /// The model of that name; the only one whatever the name, as clients send what other services call theirs.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<&Model, Problem> {
        let found = match name {
            Some(name) if self.0.len() > 1 => {
                self.0.iter().find(|model| model.name == name || model.id == name)
            }
            _ => self.0.first(),
        };
        found.ok_or_else(|| {
            let names: Vec<&str> = self.0.iter().map(|model| model.name.as_str()).collect();
            let message = format!(
                "model: {:?} is not served here; there are {}",
                name.unwrap_or_default(),
                names.join(", ")
            );
            Problem { field: Some("model".to_owned()), ..Problem::new(Kind::NotFound, message) }
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Model> {
        self.0.iter()
    }
}

impl Model {
    pub(crate) fn engine(&self) -> &Engine {
        self.queue.engine()
    }

    /// Reads what the first request would wait for, and runs the kernels once.
    fn warm_up(&self) -> Result<(), Error> {
        let engine = self.engine();
        if engine.is_reranker() {
            let options = ScoreOptions::default();
            engine.prepare(&options)?;
            engine.score(&[("warm", "up")], &options)?;
        } else {
            engine.embed(&["warm up"], &outcrop::EmbedOptions::default())?;
        }
        Ok(())
    }

    /// TEI's name of the type that weights are held in.
    pub(crate) fn dtype(&self) -> &'static str {
        match self.engine().element_type() {
            ElementType::F32 => "float32",
            ElementType::F16 => "float16",
            ElementType::BF16 => "bfloat16",
        }
    }

    /// TEI's description of a model, and ours behind it.
    pub(crate) fn info(&self, args: &ServeArgs) -> Value {
        let engine = self.engine();
        let labels = json!({"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}});
        let model_type = match engine.is_reranker() {
            true => json!({"reranker": labels}),
            false => json!({"embedding": {"pooling": match engine.default_pooling() {
                Some(outcrop::Pooling::Mean) => "mean",
                _ => "cls",
            }}}),
        };
        let cutoffs: Option<Vec<usize>> = engine.allowed_cutoffs().map(|allowed| allowed.iter().collect());
        json!({
            "model_id": self.id,
            "model_sha": self.revision,
            "model_dtype": self.dtype(),
            "served_model_name": self.name,
            "model_type": model_type,
            "max_concurrent_requests": args.max_concurrent_requests,
            "max_input_length": engine.max_length(),
            "max_batch_tokens": engine.batch_tokens(),
            "max_batch_requests": null,
            "max_client_batch_size": args.max_client_batch_size,
            "auto_truncate": args.auto_truncate,
            "tokenization_workers": self.queue.tokenize_threads(),
            "version": env!("CARGO_PKG_VERSION"),
            "sha": null,
            "docker_label": null,
            "outcrop": {
                "architecture": engine.config().architecture().name(),
                "device": engine.device().to_string(),
                "cutoff_layers": cutoffs,
                "compression": engine.can_compress(),
                "prompt": matches!(engine.config(), Config::Decoder(_)) && engine.is_reranker(),
                "payload_limit": args.payload_limit,
                "max_queued_tokens": args.max_queued_tokens,
                "deadline_ms": args.deadline_ms,
            },
        })
    }
}

/// What requests call each model.
fn names(args: &ServeArgs) -> Result<Vec<String>, Error> {
    let given = &args.served_model_name;
    if !given.is_empty() && given.len() != args.model.len() {
        return Err(Error::ServedNames { models: args.model.len(), names: given.len() });
    }
    let of_path = |id: &String| {
        let path = std::path::Path::new(id);
        let name = path.file_name().filter(|_| path.is_dir()).map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| id.clone())
    };
    let names: Vec<String> =
        if given.is_empty() { args.model.iter().map(of_path).collect() } else { given.clone() };
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            return Err(Error::SameServedName { name: name.clone() });
        }
    }
    Ok(names)
}

fn queue_options(args: &ServeArgs, name: &str, engine: &Arc<Engine>) -> QueueOptions {
    let (name, engine) = (name.to_owned(), Arc::clone(engine));
    QueueOptions {
        max_requests: args.max_concurrent_requests.get(),
        max_tokens: args.max_queued_tokens.get(),
        batch_tokens: args.max_batch_tokens,
        tokenize_threads: args.tokenization_workers,
        fairness: Duration::from_millis(args.fairness_ms),
        on_run: Some(Arc::new(move |run: &Run| {
            metrics::run(&name, run);
            engine.take_warnings().iter().for_each(|warning| warn!(model = name, "{warning}"));
        })),
    }
}
