//! The environment variables that say where models come from and where they are kept.
//!
//! The names and their order are those of the Python package huggingface_hub, so that both share one cache.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Error;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where to download from, where to keep it, and as whom. Read from the environment in one place.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The hub, without a slash at the end.
    pub(crate) endpoint: String,
    /// The directory that holds `models--<org>--<name>`; absolute.
    pub(crate) cache: PathBuf,
    /// Sent with every request to the endpoint's own host.
    pub(crate) token: Option<String>,
    /// Make no request at all.
    pub(crate) offline: bool,
}

impl Settings {
    pub(crate) fn from_env() -> Result<Settings, Error> {
        Settings::from_lookup(|name| std::env::var_os(name))
    }

    /// The settings under the variables that `lookup` knows. A variable that is empty counts as not set.
    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Settings, Error> {
        let set = |name| lookup(name).filter(|value| !value.is_empty());
        let text = |name| set(name).map(|value| value.to_string_lossy().trim().to_owned());
        let path = |name| set(name).map(PathBuf::from);

        let user_cache = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        let home = path("HF_HOME").or_else(|| Some(user_cache()?.join("huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")))
            .ok_or(Error::NoHubCache)?;
        // The cache's links are made relative to it, for which it must not depend on the working directory.
        let cache = std::path::absolute(&cache).map_err(|source| Error::Read { path: cache, source })?;

        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let stored_token = || std::fs::read_to_string(token_file?).ok();
        let token = text("HF_TOKEN").or_else(stored_token).map(|token| token.trim().to_owned());

        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let offline = text("HF_HUB_OFFLINE").map(|value| value.to_ascii_lowercase());
        Ok(Settings {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache,
            token: token.filter(|token| !token.is_empty()),
            offline: matches!(offline.as_deref(), Some("1" | "on" | "yes" | "true")),
        })
    }
}
