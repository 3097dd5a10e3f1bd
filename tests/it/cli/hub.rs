//! A model by its name on the hub, from a server on this machine that answers as the hub does.
//!
//! What the client does with every kind of answer is tested in the loader; here a download goes through the program.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use serde_json::{Value, json};

use super::{command, model, outcrop};
use crate::fixtures;

const NAME: &str = "quarry/slate";
const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// Serves the files below `dir` as the hub's model [`NAME`], until the test process ends. Returns the endpoint.
fn serve(dir: &Path) -> String {
    let mut files = BTreeMap::new();
    for name in
        ["config.json", "tokenizer.json", "model.safetensors", "modules.json", "sentence_bert_config.json"]
    {
        files.insert(name.to_owned(), fs::read(dir.join(name)).unwrap());
    }
    files.insert("1_Pooling/config.json".to_owned(), fs::read(dir.join("1_Pooling/config.json")).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &files);
        }
    });
    endpoint
}

fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>) {
    let mut lines = BufReader::new(&stream).lines();
    let path = lines.next().unwrap().unwrap().split(' ').nth(1).unwrap().to_owned();
    let mut range = None;
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some((start, end)) =
            line.to_ascii_lowercase().strip_prefix("range: bytes=").and_then(|r| r.split_once('-'))
        {
            range = Some((start.parse::<usize>().unwrap(), end.parse::<usize>().ok()));
        }
    }
    let (status, labels, body) = if path == format!("/api/models/{NAME}/revision/main") {
        let siblings: Vec<Value> = files.keys().map(|file| json!({ "rfilename": file })).collect();
        ("200 OK", String::new(), json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes())
    } else if let Some(file) =
        path.strip_prefix(&format!("/{NAME}/resolve/{COMMIT}/")).and_then(|name| files.get(name))
    {
        let (start, last) = range.unwrap_or((0, None));
        let end = last.map_or(file.len(), |last| (last + 1).min(file.len()));
        let place = format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, file.len());
        let labels = format!("ETag: \"{:x}\"\r\nX-Repo-Commit: {COMMIT}\r\n{place}", file.len());
        ("206 Partial Content", labels, file[start..end].to_vec())
    } else {
        ("404 Not Found", String::new(), Vec::new())
    };
    let head =
        format!("HTTP/1.1 {status}\r\n{labels}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // A client that hangs up early shows in its own output.
    let _ = stream.write_all(&[head.into_bytes(), body].concat());
}

#[test]
fn a_model_is_downloaded_once_and_then_found_offline() {
    let endpoint = serve(&fixtures::path("embed_minilm"));
    let home = tempfile::tempdir().unwrap();
    let args =
        ["rerank", "--json", "--quiet", "--model", NAME, "what is panda?", "hi", "a bear that eats bamboo"];
    let online = || {
        let mut command = command(args);
        command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &endpoint).env("HF_HOME", home.path());
        command.output().unwrap()
    };
    let first = online();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let offline = command(args).env("HF_HOME", home.path()).output().unwrap();
    assert!(offline.status.success(), "{}", String::from_utf8_lossy(&offline.stderr));
    assert_eq!(first.stdout, offline.stdout);

    let local = model("embed_minilm");
    let local = outcrop(args.map(|argument| if argument == NAME { local.as_str() } else { argument }));
    assert_eq!(String::from_utf8(first.stdout).unwrap(), local.stdout);
}

#[test]
fn a_name_that_is_neither_here_nor_there_says_both() {
    let endpoint = serve(&fixtures::path("embed_minilm"));
    let home = tempfile::tempdir().unwrap();
    let mut command = command(["rerank", "--model", "quarry/sandstone", "q", "p"]);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &endpoint).env("HF_HOME", home.path());
    let ran = command.output().unwrap();
    let message = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{message}");
    assert!(message.contains("directory quarry/sandstone") && message.contains(&endpoint), "{message}");

    outcrop(["rerank", "--model", "quarry/sandstone", "q", "p"])
        .refused(&["no directory quarry/sandstone", "HF_HUB_OFFLINE"]);
}
