//! The hub client against a server on this machine that answers as the hub does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::*;

const MODEL: &str = "quarry/granite";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and how it behaves. Can be changed while it runs.
#[derive(Clone, Default)]
struct Repository {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// Revisions that exist, beside the commit itself.
    revisions: Vec<&'static str>,
    /// Answer 401 to requests without this token.
    token: Option<&'static str>,
    /// Break the connection after this many bytes of a body.
    cut: Option<usize>,
    /// Answer every request for a part of a file with the whole file.
    ignore_ranges: bool,
    /// Answer requests for files with a redirection, as the hub does for large ones.
    redirect: bool,
    commit: Option<&'static str>,
}

#[derive(Debug, Clone)]
struct Request {
    path: String,
    range: Option<(usize, Option<usize>)>,
    authorization: Option<String>,
}

struct Server {
    endpoint: String,
    repository: Arc<Mutex<Repository>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(repository: Repository) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let repository = Arc::new(Mutex::new(repository));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (state, log, own) = (repository.clone(), requests.clone(), endpoint.clone());
        // Ends with the test process: nothing is left to do when the last test has its answer.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read_request(&stream) else { continue };
                log.lock().unwrap().push(request.clone());
                let repository = state.lock().unwrap().clone();
                // A client that hangs up early is part of some tests.
                let _ = stream.write_all(&respond(&repository, &own, &request));
            }
        });
        Server { endpoint, repository, requests }
    }

    fn change(&self, change: impl FnOnce(&mut Repository)) {
        change(&mut self.repository.lock().unwrap());
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    fn settings(&self, cache: &TempDir) -> Settings {
        Settings {
            endpoint: self.endpoint.clone(),
            cache: cache.path().to_owned(),
            token: None,
            offline: false,
        }
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut request = Request { path, range: None, authorization: None };
    for line in lines {
        let line = line.ok()?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                let (start, end) = value.strip_prefix("bytes=")?.split_once('-')?;
                request.range = Some((start.parse().ok()?, end.parse().ok()));
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                request.authorization = Some(value.to_owned());
            }
            Some(_) => {}
            None => return Some(request),
        }
    }
    None
}

fn respond(repository: &Repository, endpoint: &str, request: &Request) -> Vec<u8> {
    let status =
        |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let commit = repository.commit.unwrap_or(COMMIT);
    if repository.token.is_some_and(|token| request.authorization != Some(format!("Bearer {token}"))) {
        return status("401 Unauthorized").into_bytes();
    }
    if let Some(revision) = request.path.strip_prefix(&format!("/api/models/{MODEL}/revision/")) {
        if revision != commit && !repository.revisions.contains(&revision) {
            return status("404 Not Found").into_bytes();
        }
        let siblings = repository.files.keys().map(|file| serde_json::json!({ "rfilename": file }));
        let body = serde_json::json!({ "sha": commit, "siblings": siblings.collect::<Vec<_>>() }).to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        return [head.into_bytes(), body.into_bytes()].concat();
    }
    let direct = request.path.strip_prefix("/storage/");
    let resolve = request.path.strip_prefix(&format!("/{MODEL}/resolve/{commit}/"));
    let Some((name, body)) = direct.or(resolve).and_then(|name| repository.files.get_key_value(name)) else {
        return status("404 Not Found").into_bytes();
    };
    let labels = format!("ETag: \"{:x}\"\r\nX-Repo-Commit: {commit}\r\n", body.len());
    if repository.redirect && direct.is_none() {
        let to = format!("Location: {endpoint}/storage/{name}\r\n");
        return format!("HTTP/1.1 302 Found\r\n{to}{labels}Content-Length: 0\r\nConnection: close\r\n\r\n")
            .into_bytes();
    }
    let length = body.len();
    let whole = (0, length);
    let (start, end) =
        request.range.map_or(whole, |(start, last)| (start, last.map_or(length, |last| last + 1)));
    // The length is asked for with a range of one byte, to which even this server answers properly.
    let (start, end) = if repository.ignore_ranges && start > 0 { whole } else { (start, end.min(length)) };
    let part = &body[start.min(end)..end];
    let range = format!("Content-Range: bytes {start}-{}/{length}\r\n", end.saturating_sub(1));
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\n{labels}{range}Content-Length: {}\r\nConnection: close\r\n\r\n",
        part.len()
    );
    let cut = repository.cut.filter(|_| part.len() > 1).unwrap_or(part.len()).min(part.len());
    [head.into_bytes(), part[..cut].to_vec()].concat()
}

/// A reranker's repository, with files that no runtime needs.
fn reranker() -> Repository {
    let files = [
        ("README.md", "# Granite"),
        ("config.json", "{}"),
        ("model.safetensors", "the weights, which are longer than the rest"),
        ("onnx/model.onnx", "other weights"),
        ("pytorch_model.bin", "the same weights"),
        ("tokenizer.json", "{ }"),
    ];
    let files = files.map(|(name, text)| (name, text.as_bytes().to_vec()));
    Repository { files: files.into(), revisions: vec!["main", "v1"], ..Repository::default() }
}

fn resolve_quietly(settings: Settings, revision: &str) -> Result<PathBuf, Error> {
    Hub::new(MODEL, revision, || Ok(settings))?.resolve(&|_| ())
}

/// The files below `dir`, with their contents, links followed.
fn files_below(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true => files.extend(
                files_below(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)),
            ),
            false => {
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn names_below(dir: &Path) -> Vec<String> {
    files_below(dir).into_keys().collect()
}

#[test]
fn downloads_what_a_reranker_needs_and_nothing_else() {
    let (server, cache) = (Server::start(reranker()), TempDir::new().unwrap());
    let events = RefCell::new(Vec::new());
    let progress = |event: Progress<'_>| {
        events.borrow_mut().push((event.file.to_owned(), event.bytes_done, event.bytes_total));
    };
    let dir = Hub::new(MODEL, "main", || Ok(server.settings(&cache))).unwrap().resolve(&progress).unwrap();

    assert_eq!(dir, cache.path().join("models--quarry--granite/snapshots").join(COMMIT));
    let mut expected = reranker().files;
    expected.retain(|name, _| ["config.json", "model.safetensors", "tokenizer.json"].contains(name));
    let found = files_below(&dir);
    assert_eq!(found, expected.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect());

    let weights = found["model.safetensors"].len() as u64;
    let events = events.into_inner();
    assert!(events.contains(&("model.safetensors".to_owned(), 0, weights)));
    assert!(events.contains(&("model.safetensors".to_owned(), weights, weights)));
    assert!(events.iter().all(|(_, done, total)| done <= total));
    assert!(server.requests().iter().all(|request| request.authorization.is_none()));
}

#[test]
fn a_complete_model_is_used_without_a_request() {
    let (server, cache) = (Server::start(reranker()), TempDir::new().unwrap());
    let first = resolve_quietly(server.settings(&cache), "main").unwrap();
    assert!(!server.requests().is_empty());
    assert_eq!(resolve_quietly(server.settings(&cache), "main").unwrap(), first);
    // A commit is known by its own name.
    assert_eq!(resolve_quietly(server.settings(&cache), COMMIT).unwrap(), first);
    let offline = Settings { offline: true, ..server.settings(&cache) };
    assert_eq!(resolve_quietly(offline, "main").unwrap(), first);
    assert!(server.requests().is_empty());
}

#[test]
fn offline_an_incomplete_model_is_an_error_without_a_request() {
    let (server, cache) = (Server::start(reranker()), TempDir::new().unwrap());
    let offline = || Settings { offline: true, ..server.settings(&cache) };
    let message = resolve_quietly(offline(), "main").unwrap_err().to_string();
    assert!(
        message.contains("config.json of quarry/granite") && message.contains("HF_HUB_OFFLINE"),
        "{message}"
    );

    let dir = resolve_quietly(server.settings(&cache), "main").unwrap();
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    server.requests();
    let message = resolve_quietly(offline(), "main").unwrap_err().to_string();
    assert!(message.contains("tokenizer.json of quarry/granite"), "{message}");
    assert!(server.requests().is_empty());
    // Online, only the missing file is fetched.
    assert_eq!(resolve_quietly(server.settings(&cache), "main").unwrap(), dir);
    let fetched = server.requests().into_iter().filter(|request| request.path.contains("/resolve/"));
    assert!(fetched.map(|request| request.path).all(|path| path.ends_with("/tokenizer.json")));
}

#[test]
fn shards_and_the_files_of_embedders_are_fetched() {
    let mut repository = reranker();
    repository.files.remove("model.safetensors");
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    repository.files.insert("model.safetensors.index.json", index.to_vec());
    for name in ["model-1.safetensors", "model-2.safetensors", "model-3.safetensors"] {
        repository.files.insert(name, format!("the {name}").into_bytes());
    }
    for name in ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"] {
        repository.files.insert(name, format!("the {name}").into_bytes());
    }
    let (server, cache) = (Server::start(repository), TempDir::new().unwrap());
    let dir = resolve_quietly(server.settings(&cache), "main").unwrap();
    let names = [
        "1_Pooling/config.json",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
    ];
    assert_eq!(names_below(&dir), names);
    server.requests();
    resolve_quietly(server.settings(&cache), "main").unwrap();
    assert!(server.requests().is_empty());

    fs::remove_file(dir.join("model-2.safetensors")).unwrap();
    let offline = Settings { offline: true, ..server.settings(&cache) };
    let message = resolve_quietly(offline, "main").unwrap_err().to_string();
    assert!(message.contains("model-2.safetensors"), "{message}");
}

#[test]
fn an_index_cannot_name_files_outside_the_model() {
    let mut repository = reranker();
    repository.files.remove("model.safetensors");
    let index = br#"{"weight_map": {"a": "../../../stolen"}}"#;
    repository.files.insert("model.safetensors.index.json", index.to_vec());
    let (server, cache) = (Server::start(repository), TempDir::new().unwrap());
    assert!(matches!(resolve_quietly(server.settings(&cache), "main"), Err(Error::UnsafePath { .. })));
}

#[test]
fn large_files_may_be_redirected() {
    let repository = Repository { redirect: true, ..reranker() };
    let (server, cache) = (Server::start(repository), TempDir::new().unwrap());
    let dir = resolve_quietly(server.settings(&cache), "main").unwrap();
    assert_eq!(names_below(&dir), ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn a_revision_is_kept_apart_from_main() {
    let (server, cache) = (Server::start(reranker()), TempDir::new().unwrap());
    let dir = resolve_quietly(server.settings(&cache), "v1").unwrap();
    assert!(dir.ends_with(COMMIT));
    let offline = Settings { offline: true, ..server.settings(&cache) };
    assert!(resolve_quietly(offline.clone(), "v1").is_ok());
    assert!(matches!(resolve_quietly(offline, "main"), Err(Error::HubOffline { .. })));

    let error = resolve_quietly(server.settings(&cache), "v2").unwrap_err();
    assert_eq!(error.to_string(), "model quarry/granite has no revision \"v2\"");
}

#[test]
fn an_unknown_model_is_told_from_an_unknown_revision() {
    let (server, cache) = (Server::start(reranker()), TempDir::new().unwrap());
    for revision in ["main", "v1"] {
        let hub = Hub::new("quarry/basalt", revision, || Ok(server.settings(&cache))).unwrap();
        let error = hub.resolve(&|_| ()).unwrap_err();
        assert!(matches!(error, Error::HubModel { .. }), "{error}");
        assert!(error.to_string().contains("neither a directory quarry/basalt"), "{error}");
    }
}

#[test]
fn the_token_is_sent_and_its_absence_explained() {
    let repository = Repository { token: Some("hf_secret"), ..reranker() };
    let (server, cache) = (Server::start(repository), TempDir::new().unwrap());
    for token in [None, Some("hf_wrong".to_owned())] {
        let settings = Settings { token, ..server.settings(&cache) };
        let error = resolve_quietly(settings, "main").unwrap_err();
        assert!(matches!(error, Error::HubAccess { status: 401, .. }), "{error}");
        assert!(error.to_string().contains("HF_TOKEN") && !error.to_string().contains("hf_"), "{error}");
    }
    let settings = Settings { token: Some("hf_secret".to_owned()), ..server.settings(&cache) };
    assert!(resolve_quietly(settings, "main").is_ok());
}

#[test]
fn a_broken_download_is_continued_and_never_looks_complete() {
    let (server, cache) = (Server::start(reranker()), TempDir::new().unwrap());
    server.change(|repository| repository.cut = Some(10));
    let error = resolve_quietly(server.settings(&cache), "main").unwrap_err();
    assert!(matches!(&error, Error::HubDownload { file, .. } if file == "model.safetensors"), "{error}");
    let model_dir = cache.path().join("models--quarry--granite");
    assert!(!model_dir.join("snapshots").join(COMMIT).join("model.safetensors").exists());
    assert!(!model_dir.join("refs/main").exists());
    let offline = Settings { offline: true, ..server.settings(&cache) };
    assert!(matches!(resolve_quietly(offline, "main"), Err(Error::HubOffline { .. })));

    server.change(|repository| repository.cut = None);
    server.requests();
    let dir = resolve_quietly(server.settings(&cache), "main").unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), reranker().files["model.safetensors"]);
    let ranges = server.requests().into_iter().filter_map(|request| request.range);
    assert!(ranges.into_iter().any(|range| range == (10, None)), "started again instead of continuing");
}

#[test]
fn a_server_that_ignores_ranges_does_not_damage_the_file() {
    let (server, cache) = (Server::start(reranker()), TempDir::new().unwrap());
    server.change(|repository| repository.cut = Some(10));
    assert!(resolve_quietly(server.settings(&cache), "main").is_err());
    server.change(|repository| (repository.cut, repository.ignore_ranges) = (None, true));
    let length = reranker().files["model.safetensors"].len() as u64;
    let error = resolve_quietly(server.settings(&cache), "main").unwrap_err();
    assert!(
        matches!(error, Error::HubLength { expected, found, .. } if (expected, found) == (length, length + 10)),
        "{error}"
    );
    // What was wrong is gone, so the next attempt starts from nothing.
    let dir = resolve_quietly(server.settings(&cache), "main").unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap().len() as u64, length);
}

#[test]
fn missing_files_are_named() {
    let mut repository = reranker();
    repository.files.remove("model.safetensors");
    let (server, cache) = (Server::start(repository), TempDir::new().unwrap());
    let error = resolve_quietly(server.settings(&cache), "main").unwrap_err();
    assert!(matches!(error, Error::HubWeights { .. }), "{error}");
    server.change(|repository| {
        repository.files.remove("tokenizer.json");
    });
    fs::remove_dir_all(cache.path().join("models--quarry--granite")).unwrap();
    let error = resolve_quietly(server.settings(&cache), "main").unwrap_err();
    assert_eq!(error.to_string(), "model quarry/granite has no tokenizer.json at revision main");
}

#[test]
fn a_hub_that_is_not_there_or_talks_nonsense_is_an_error() {
    let cache = TempDir::new().unwrap();
    // Bound and dropped at once: nobody listens on this port.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = Settings {
        endpoint: format!("http://127.0.0.1:{port}"),
        cache: cache.path().to_owned(),
        token: None,
        offline: false,
    };
    let error = resolve_quietly(nobody, "main").unwrap_err();
    assert!(matches!(error, Error::HubRequest { .. }), "{error}");
    assert!(error.to_string().contains("HF_HUB_OFFLINE=1"), "{error}");

    let server = Server::start(Repository { commit: Some("../../../etc"), ..reranker() });
    assert!(matches!(resolve_quietly(server.settings(&cache), "main"), Err(Error::HubCommit { .. })));
}

#[test]
fn names_that_cannot_be_hub_ids_are_refused_before_anything_else() {
    let settings = || -> Result<Settings, Error> { panic!("the environment was read") };
    for model in
        ["", "./models/granite", "/granite", "a/b/c", "../granite", "a/..", "a b", "a/", "-a", "a--b", "ü"]
    {
        assert!(matches!(Hub::new(model, "main", settings), Err(Error::NotAModel { .. })), "{model}");
    }
    for revision in ["", "../main", "a//b", "a b", "/main", "main?x", "."] {
        assert!(matches!(Hub::new(MODEL, revision, settings), Err(Error::NotARevision { .. })), "{revision}");
    }
    assert!(
        is_hub_id("gpt2")
            && is_hub_id("BAAI/bge-reranker-v2-m3")
            && is_hub_id("sentence-transformers/all-MiniLM-L6-v2")
    );
    assert!(is_revision("refs/pr/4") && is_revision("v1.0_final"));
}

#[test]
fn a_directory_is_returned_as_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(resolve(path, &HubOptions::default(), &|_| ()).unwrap(), dir.path());
    let options = HubOptions { revision: Some("main".to_owned()) };
    assert!(matches!(resolve(path, &options, &|_| ()), Err(Error::RevisionOfDirectory { .. })));
    let file = dir.path().join("model.safetensors");
    fs::write(&file, "").unwrap();
    let error = resolve(file.to_str().unwrap(), &HubOptions::default(), &|_| ()).unwrap_err();
    assert!(matches!(error, Error::NotADirectory { .. }), "{error}");
}

/// The settings under these environment variables.
fn settings(variables: &[(&str, &str)]) -> Result<Settings, Error> {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    Settings::from_lookup(|name| variables.get(name).map(OsString::from))
}

#[test]
fn the_environment_decides_as_for_the_python_tools() {
    let cache = |variables: &[(&str, &str)]| settings(variables).unwrap().cache;
    let home = ("HOME", "/home/me");
    assert_eq!(cache(&[home]), Path::new("/home/me/.cache/huggingface/hub"));
    assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
    assert_eq!(cache(&[home, ("HF_HOME", "/h")]), Path::new("/h/hub"));
    assert_eq!(cache(&[home, ("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
    assert_eq!(cache(&[home, ("HF_HOME", "")]), Path::new("/home/me/.cache/huggingface/hub"));
    assert!(cache(&[("HF_HUB_CACHE", "relative")]).is_absolute());
    assert!(matches!(settings(&[]), Err(Error::NoHubCache)));

    let plain = settings(&[home]).unwrap();
    assert_eq!((plain.endpoint.as_str(), plain.offline), ("https://huggingface.co", false));
    let mirror = settings(&[home, ("HF_ENDPOINT", "http://mirror.example/")]).unwrap();
    assert_eq!(mirror.endpoint, "http://mirror.example");
    for (value, offline) in
        [("1", true), ("TRUE", true), ("yes", true), ("0", false), ("", false), ("no", false)]
    {
        assert_eq!(settings(&[home, ("HF_HUB_OFFLINE", value)]).unwrap().offline, offline, "{value}");
    }
}

#[test]
fn the_token_comes_from_the_variable_or_a_file() {
    let dir = TempDir::new().unwrap();
    let home = ("HF_HOME", dir.path().to_str().unwrap());
    let token = |variables: &[(&str, &str)]| settings(variables).unwrap().token;
    assert_eq!(token(&[home]), None);
    fs::write(dir.path().join("token"), "from-login\n").unwrap();
    assert_eq!(token(&[home]).as_deref(), Some("from-login"));
    let other = dir.path().join("other");
    fs::write(&other, "from-path").unwrap();
    let path = ("HF_TOKEN_PATH", other.to_str().unwrap());
    assert_eq!(token(&[home, path]).as_deref(), Some("from-path"));
    assert_eq!(token(&[home, path, ("HF_TOKEN", " from-variable ")]).as_deref(), Some("from-variable"));
}
