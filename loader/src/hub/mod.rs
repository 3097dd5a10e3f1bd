//! Models by hub id: downloads what a model needs into the cache that the Python tools use as well.
//!
//! A model that is complete in the cache is used as it is, without a request. Otherwise the hub is asked which commit
//! the revision is and which files it has; files are then fetched from that commit, so that they fit each other.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use crate::Error;
use crate::json::{self, Fields};
use settings::Settings;

mod settings;
#[cfg(test)]
mod tests;

const DEFAULT_REVISION: &str = "main";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Files without which a model cannot run, beside its weights.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];

/// Files that embedders may have.
const OPTIONAL: [&str; 3] = ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"];

/// Which version of a model to use.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// A branch, a tag or a commit id; `main` if none is given.
    pub revision: Option<String>,
}

/// How far the download of one file is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The file, as it is called in the repository.
    pub file: &'a str,
    /// Bytes on disk, those of an earlier attempt included.
    pub bytes_done: u64,
    /// The length of the file.
    pub bytes_total: u64,
}

/// The directory of `model`: the path itself if there is such a directory, else the model of that hub id in the
/// cache, downloaded if it is not there yet.
///
/// `progress` is called on this thread, at the start of each file and then for every few kilobytes.
///
/// The environment decides as for the Python tools: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`,
/// `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`. Offline, a model counts as complete without the files that only some embedders
/// have, since the cache cannot tell whether the hub has them.
///
/// # Errors
///
/// [`Error::NotAModel`], [`Error::NotADirectory`], [`Error::NotARevision`], [`Error::RevisionOfDirectory`], [`Error::NoHubCache`], and the
/// variants of [`Error`] that begin with `Hub`.
pub fn resolve(model: &str, options: &HubOptions, progress: &dyn Fn(Progress<'_>)) -> Result<PathBuf, Error> {
    let path = Path::new(model);
    if path.is_dir() {
        return match options.revision.clone() {
            None => Ok(path.to_owned()),
            Some(revision) => Err(Error::RevisionOfDirectory { path: path.to_owned(), revision }),
        };
    }
    if path.exists() {
        return Err(Error::NotADirectory { path: path.to_owned() });
    }
    let revision = options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
    Hub::new(model, revision, Settings::from_env)?.resolve(progress)
}

/// One model of the hub at one revision.
struct Hub<'a> {
    model: &'a str,
    revision: &'a str,
    settings: Settings,
}

impl<'a> Hub<'a> {
    /// Checks the names before the settings are made: a misspelt path must not depend on the environment.
    fn new(
        model: &'a str,
        revision: &'a str,
        settings: impl FnOnce() -> Result<Settings, Error>,
    ) -> Result<Hub<'a>, Error> {
        if !is_hub_id(model) {
            return Err(Error::NotAModel { model: model.to_owned() });
        }
        if !is_revision(revision) {
            return Err(Error::NotARevision { revision: revision.to_owned() });
        }
        Ok(Hub { model, revision, settings: settings()? })
    }

    fn resolve(&self, progress: &dyn Fn(Progress<'_>)) -> Result<PathBuf, Error> {
        let snapshot = self.cached_snapshot();
        let missing = match &snapshot {
            Some(snapshot) => self.missing_file(snapshot)?,
            None => Some(REQUIRED[0].to_owned()),
        };
        match (snapshot, missing) {
            (Some(snapshot), None) => Ok(snapshot),
            (_, Some(file)) if self.settings.offline => {
                let (model, cache) = (self.model.to_owned(), self.settings.cache.clone());
                Err(Error::HubOffline { model, file, cache })
            }
            _ => self.download(progress),
        }
    }

    /// The snapshot of the revision in the cache, however much of it is there.
    fn cached_snapshot(&self) -> Option<PathBuf> {
        if is_commit(self.revision) {
            return Some(self.snapshot(self.revision));
        }
        let reference = self.model_dir().join("refs").join(self.revision);
        let commit = fs::read_to_string(reference).ok()?;
        is_commit(commit.trim()).then(|| self.snapshot(commit.trim()))
    }

    /// A file that the model needs and `snapshot` lacks.
    fn missing_file(&self, snapshot: &Path) -> Result<Option<String>, Error> {
        let has = |file: &str| snapshot.join(file).exists();
        let mut needed: Vec<String> = REQUIRED.map(str::to_owned).to_vec();
        if !has(WEIGHTS) {
            match json::read_value_if_present(&snapshot.join(INDEX))? {
                Some(index) => needed.extend(shards(&snapshot.join(INDEX), &index)?),
                None => needed.push(WEIGHTS.to_owned()),
            }
        }
        if !self.settings.offline {
            let absent = |file: &&str| absent_marker(snapshot, file).is_some_and(|marker| marker.exists());
            needed.extend(OPTIONAL.into_iter().filter(|file| !absent(file)).map(str::to_owned));
        }
        Ok(needed.into_iter().find(|file| !has(file)))
    }

    /// Asks the hub for the commit and its files, and fetches those that are needed and not in the cache.
    fn download(&self, progress: &dyn Fn(Progress<'_>)) -> Result<PathBuf, Error> {
        let api = self.api()?;
        let info = api.repo(self.repo(self.revision)).info().map_err(|error| self.info_error(&api, error))?;
        let commit = info.sha.as_str();
        if !is_commit(commit) {
            let (model, endpoint) = (self.model.to_owned(), self.settings.endpoint.clone());
            return Err(Error::HubCommit { model, endpoint, commit: commit.to_owned() });
        }
        let snapshot = self.snapshot(commit);
        let listed = |file: &str| info.siblings.iter().any(|sibling| sibling.rfilename == file);
        let fetch = |file: &str| match snapshot.join(file).exists() {
            true => Ok(()),
            false if listed(file) => self.fetch(&api, commit, file, progress),
            false => Err(self.no_file(file)),
        };

        for file in REQUIRED {
            fetch(file)?;
        }
        for file in OPTIONAL {
            match listed(file) {
                true => fetch(file)?,
                false => mark_absent(&snapshot, file)?,
            }
        }
        if listed(WEIGHTS) {
            fetch(WEIGHTS)?;
        } else if listed(INDEX) {
            fetch(INDEX)?;
            let index_path = snapshot.join(INDEX);
            let index = json::read_value_if_present(&index_path)?.ok_or_else(|| self.no_file(INDEX))?;
            for shard in shards(&index_path, &index)? {
                fetch(&shard)?;
            }
        } else {
            let (model, revision) = (self.model.to_owned(), self.revision.to_owned());
            return Err(Error::HubWeights { model, revision });
        }
        // Last, so that the revision never points to a commit of which files are missing.
        let reference = self.cache().repo(self.repo(self.revision)).create_ref(commit);
        reference.map_err(|source| Error::Write { path: self.model_dir().join("refs"), source })?;
        Ok(snapshot)
    }

    /// Fetches one file of a commit into the cache. It appears there under its name only when it is whole.
    fn fetch(
        &self,
        api: &Api,
        commit: &str,
        file: &str,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<(), Error> {
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| {
            let (model, file) = (self.model.to_owned(), file.to_owned());
            match source.downcast_ref::<ApiError>().and_then(status) {
                Some(status @ (401 | 403)) => self.access(status),
                _ => Error::HubDownload { model, file, source },
            }
        };
        let expected = Cell::new(0);
        let reporter = Reporter { progress, file, bytes_done: 0, bytes_total: &expected };
        let repo = api.repo(self.repo(commit));
        let path = repo.download_with_progress(file, reporter).map_err(|error| broken(error.into()))?;

        // A server that ignores ranges makes a resumed file too long, and hf-hub does not look.
        let blob = fs::canonicalize(&path).map_err(|error| broken(error.into()))?;
        let found = fs::metadata(&blob).map_err(|error| broken(error.into()))?.len();
        let expected = expected.get();
        if found != expected {
            for damaged in [path, blob] {
                fs::remove_file(damaged).map_err(|error| broken(error.into()))?;
            }
            let (model, file) = (self.model.to_owned(), file.to_owned());
            return Err(Error::HubLength { model, file, expected, found });
        }
        Ok(())
    }

    /// What the hub's refusal to describe the revision means.
    fn info_error(&self, api: &Api, error: ApiError) -> Error {
        let (model, endpoint) = (self.model.to_owned(), self.settings.endpoint.clone());
        match status(&error) {
            Some(status @ (401 | 403)) => self.access(status),
            // The model may be missing or only the revision: the default revision, which all models have, tells.
            Some(404) if self.revision != DEFAULT_REVISION => {
                match api.repo(self.repo(DEFAULT_REVISION)).info() {
                    Ok(_) => Error::HubRevision { model, revision: self.revision.to_owned() },
                    Err(_) => Error::HubModel { model, endpoint },
                }
            }
            Some(404) => Error::HubModel { model, endpoint },
            _ => Error::HubRequest { model, endpoint, source: error.into() },
        }
    }

    fn access(&self, status: u16) -> Error {
        Error::HubAccess { model: self.model.to_owned(), endpoint: self.settings.endpoint.clone(), status }
    }

    fn no_file(&self, file: &str) -> Error {
        let (model, revision) = (self.model.to_owned(), self.revision.to_owned());
        Error::HubFile { model, revision, file: file.to_owned() }
    }

    fn api(&self) -> Result<Api, Error> {
        let builder = ApiBuilder::from_cache(self.cache())
            .with_endpoint(self.settings.endpoint.clone())
            .with_token(self.settings.token.clone())
            .with_user_agent("outcrop", env!("CARGO_PKG_VERSION"))
            .with_progress(false);
        let (model, endpoint) = (self.model.to_owned(), self.settings.endpoint.clone());
        builder.build().map_err(|error| Error::HubRequest { model, endpoint, source: error.into() })
    }

    fn cache(&self) -> Cache {
        Cache::new(self.settings.cache.clone())
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.model.to_owned(), RepoType::Model, revision.to_owned())
    }

    fn model_dir(&self) -> PathBuf {
        self.settings.cache.join(self.repo(self.revision).folder_name())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.model_dir().join("snapshots").join(commit)
    }
}

/// Passes hf-hub's progress on, and keeps the length that it was told.
struct Reporter<'a> {
    progress: &'a dyn Fn(Progress<'_>),
    file: &'a str,
    bytes_done: u64,
    bytes_total: &'a Cell<u64>,
}

impl Reporter<'_> {
    fn report(&self) {
        let (file, bytes_done, bytes_total) = (self.file, self.bytes_done, self.bytes_total.get());
        (self.progress)(Progress { file, bytes_done, bytes_total });
    }
}

impl hf_hub::api::Progress for Reporter<'_> {
    /// Called before every attempt, with the length of the file.
    fn init(&mut self, size: usize, _filename: &str) {
        self.bytes_done = 0;
        self.bytes_total.set(size as u64);
    }

    fn update(&mut self, size: usize) {
        self.bytes_done += size as u64;
        self.report();
    }

    fn finish(&mut self) {
        self.report();
    }
}

/// The shards that an index names, each once, checked to lie in the model directory.
fn shards(path: &Path, index: &Value) -> Result<Vec<String>, Error> {
    let weight_map = Fields::new(path, index)?.object("weight_map")?;
    let mut shards = Vec::new();
    for (tensor, _) in weight_map.iter() {
        let shard = weight_map.required_str(tensor)?;
        json::join_inside(Path::new(""), shard, path)?;
        shards.push(shard.to_owned());
    }
    shards.sort_unstable();
    shards.dedup();
    Ok(shards)
}

/// Where the Python tools, too, note that a commit does not have `file`.
fn absent_marker(snapshot: &Path, file: &str) -> Option<PathBuf> {
    let model_dir = snapshot.parent()?.parent()?;
    Some(model_dir.join(".no_exist").join(snapshot.file_name()?).join(file))
}

fn mark_absent(snapshot: &Path, file: &str) -> Result<(), Error> {
    let Some(marker) = absent_marker(snapshot, file) else { return Ok(()) };
    let made = marker.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&marker, ""));
    made.map_err(|source| Error::Write { path: marker, source })
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// Whether `model` can be a hub id: `name` or `org/name`, by the hub's rules for names.
fn is_hub_id(model: &str) -> bool {
    let is_name = |name: &str| {
        let ends = |c: char| c == '-' || c == '.';
        !name.is_empty()
            && name.len() <= 96
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !name.starts_with(ends)
            && !name.ends_with(ends)
            && !name.contains("--")
            && !name.contains("..")
    };
    match model.split_once('/') {
        Some((organisation, name)) => is_name(organisation) && is_name(name),
        None => is_name(model),
    }
}

/// Whether `revision` can name a branch, a tag or a commit. It becomes part of a URL and of a path.
fn is_revision(revision: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    revision.chars().all(allowed) && revision.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Whether `revision` is a full commit id, which can be looked up in the cache as it is.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}
