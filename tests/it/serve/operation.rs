//! Starting, stopping, keys, limits, metrics and logs.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Running, read_answer, serve, start, write_request};
use crate::cli::spawn;
use crate::fixtures::path;

fn body(texts: usize) -> Value {
    let texts: Vec<String> = (0..texts).map(|i| format!("passage {i} {}", "word ".repeat(60))).collect();
    json!({"query": "what is panda?", "texts": texts})
}

/// Every sample of `/metrics`, by name and labels.
pub(super) fn metrics(server: &Running) -> Vec<(String, f64)> {
    let answer = server.get("/metrics");
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"), "{answer:?}");
    let mut samples = Vec::new();
    for line in answer.body.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            assert!(comment.starts_with("HELP ") || comment.starts_with("TYPE "), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        samples.push((name.to_owned(), value.parse().unwrap()));
    }
    samples
}

pub(super) fn sample(samples: &[(String, f64)], name: &str) -> f64 {
    samples.iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("no {name} in {samples:?}")).1
}

#[test]
fn it_says_when_it_lives_and_when_it_is_ready() {
    let server = start(&["xlmr_base"], &[]);
    for path in ["/health", "/ping", "/live"] {
        let answer = server.get(path);
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    }
    server.logged("ready");
    assert_eq!(server.get("/ready").status, 200);
    assert_eq!(server.post("/rerank", &body(2)).status, 200);
}

#[test]
fn a_model_that_cannot_be_opened_ends_it() {
    for (args, words) in [
        (vec!["--model", "nowhere/at all"], "nowhere/at all"),
        (
            vec!["--model", "tests/nowhere", "--served-model-name=a", "--served-model-name=b"],
            "2 names for 1 models",
        ),
        (vec!["--model=a", "--log-level", "warn,outcrop=loud"], "--log-level"),
        (vec!["--model=a", "--api-key="], "api-key"),
        (vec!["--model=a", "--api-key-file", "/nowhere"], "cannot read /nowhere"),
    ] {
        let child = spawn([vec!["serve", "--port=0"], args].concat());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(words), "no {words:?} in {stderr}");
    }
}

#[test]
fn flags_are_environment_variables_too() {
    let mut command = crate::cli::command(["serve"]);
    command.env("OUTCROP_MODEL", path("xlmr_base")).env("OUTCROP_PORT", "0").env("OUTCROP_NO_GRAPHS", "true");
    command.env("OUTCROP_SERVED_MODEL_NAME", "environment").env("OUTCROP_LOG_FORMAT", "json");
    let server = super::running(command.spawn().unwrap());
    server.logged("ready");
    assert_eq!(server.get("/info").json()["served_model_name"], "environment");
}

/// Without the right key nothing is said, not even what there is.
#[test]
fn keys() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from file\n\n").unwrap();
    let args = ["--api-key=first,second".to_owned(), format!("--api-key-file={}", file.path().display())];
    let server = serve(&["xlmr_base"], &args.each_ref().map(String::as_str));
    let bodies = body(1).to_string();
    for path in ["/rerank", "/v1/rerank", "/v1/embeddings", "/tokenize", "/nowhere"] {
        for header in [None, Some("Bearer "), Some("Bearer wrong"), Some("first"), Some("Basic first")] {
            let headers: Vec<_> = header.map(|header| ("authorization", header)).into_iter().collect();
            let answer = server.send("POST", path, &headers, bodies.as_bytes());
            assert_eq!(answer.status, 401, "{answer:?}");
            assert!(!answer.body.contains("xlmr") && !answer.body.contains("first"), "{answer:?}");
        }
    }
    for path in ["/info", "/metrics", "/v1/models", "/nowhere"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    assert_eq!((server.get("/health").status, server.get("/ready").status), (200, 200));
    for key in ["first", "second", "from file"] {
        let header = format!("Bearer {key}");
        let answer = server.send("POST", "/rerank", &[("authorization", &header)], bodies.as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[test]
fn a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    // One that a killed server left behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let server = start(&["xlmr_base"], &[&format!("--uds-path={}", socket.display())]);
    server.logged("ready");
    let mut stream = UnixStream::connect(&socket).unwrap();
    write_request(&mut stream, "POST", "/rerank", &[], body(2).to_string().as_bytes());
    assert_eq!(read_answer(stream).json().as_array().unwrap().len(), 2);
    server.terminate();
    assert!(server.ended().success());
    assert!(!socket.exists());
}

#[test]
fn browsers_of_allowed_origins_may_ask() {
    let server = serve(&["xlmr_base"], &["--cors-allow-origin=https://a.example"]);
    let preflight = |origin| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type"),
        ];
        server.send("OPTIONS", "/rerank", &headers, b"")
    };
    let allowed = preflight("https://a.example");
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://a.example"), "{allowed:?}");
    assert_eq!(preflight("https://b.example").header("access-control-allow-origin"), None);
}

#[test]
fn limits_are_told_by_name() {
    let server = serve(&["xlmr_base"], &["--max-client-batch-size=3", "--payload-limit=2000"]);
    let answer = server.post("/rerank", &json!({"query": "q", "texts": ["a", "b", "c", "d"]}));
    assert_eq!(
        (answer.status, answer.json()["error_type"].as_str()),
        (422, Some("Validation")),
        "{answer:?}"
    );
    assert!(answer.body.contains("4 texts") && answer.body.contains("--max-client-batch-size"), "{answer:?}");
    let answer = server.post("/v1/rerank", &json!({"query": "q", "documents": ["x".repeat(3000)]}));
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.json()["message"].as_str().unwrap().contains("2000 bytes"), "{answer:?}");
    // Without a length told ahead.
    let mut stream = server.connect();
    let head = "POST /rerank HTTP/1.1\r\nhost: t\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{}\r\n", 1500, "x".repeat(1500));
    std::io::Write::write_all(&mut stream, format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(read_answer(stream).status, 413);
    assert_eq!(server.post("/rerank", &json!({"query": "q", "texts": []})).json()["error_type"], "Empty");
    let samples = metrics(&server);
    assert_eq!(sample(&samples, "te_request_failure{err=\"batch_size\"}"), 1.0);
    assert_eq!(sample(&samples, "te_request_failure{err=\"validation\"}"), 3.0);
}

/// More than is allowed at once is refused with the time to come back; what was taken is answered.
#[test]
fn overload_is_told_and_nothing_else_happens() {
    let server = serve(&["xlmr_base"], &["--max-concurrent-requests=4", "--batch-tokens=100"]);
    let expected = server.post("/rerank", &body(40)).body;
    let answers = thread::scope(|scope| {
        let ask = || server.post("/rerank", &body(40));
        let callers: Vec<_> = (0..24).map(|_| scope.spawn(ask)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect::<Vec<_>>()
    });
    let (done, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(!done.is_empty() && !refused.is_empty(), "{} of 24", done.len());
    assert!(done.iter().all(|answer| answer.body == expected));
    for answer in refused {
        assert_eq!(
            (answer.status, answer.json()["error_type"].as_str()),
            (429, Some("Overloaded")),
            "{answer:?}"
        );
        assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }
}

#[test]
fn what_comes_too_late_is_dropped() {
    let server = serve(&["xlmr_base"], &["--batch-tokens=100"]);
    let mut late = body(1000);
    late["deadline_ms"] = json!(30);
    let started = Instant::now();
    let answer = server.post("/rerank", &late);
    assert_eq!((answer.status, answer.json()["error_type"].as_str()), (504, Some("Backend")), "{answer:?}");
    // Its work has gone with it: the next request does not wait for it.
    assert_eq!(server.post("/rerank", &body(1)).status, 200);
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!(sample(&metrics(&server), "te_queue_size{model=\"xlmr_base\"}"), 0.0);
}

/// A caller that hangs up takes its work along.
#[test]
fn what_nobody_waits_for_is_dropped() {
    let server = serve(&["xlmr_base"], &["--batch-tokens=100"]);
    let mut stream = server.connect();
    write_request(&mut stream, "POST", "/rerank", &[], body(1000).to_string().as_bytes());
    let start = Instant::now();
    while sample(&metrics(&server), "te_queue_size{model=\"xlmr_base\"}") != 1.0 {
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    let tokens = |server: &Running| sample(&metrics(server), "outcrop_tokens{model=\"xlmr_base\"}");
    drop(stream);
    while sample(&metrics(&server), "te_queue_size{model=\"xlmr_base\"}") != 0.0 {
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    thread::sleep(Duration::from_millis(300));
    let before = tokens(&server);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(tokens(&server), before);
    // Far from all of it.
    assert!(before < 30_000.0, "{before}");
}

/// SIGTERM: what was taken is answered, nothing new is, and the process ends.
#[test]
fn it_drains() {
    let server = serve(&["xlmr_base"], &["--batch-tokens=100"]);
    let expected = server.post("/rerank", &body(300)).body;
    let answers = thread::scope(|scope| {
        let ask = || server.post("/rerank", &body(300));
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        let start = Instant::now();
        while sample(&metrics(&server), "te_queue_size{model=\"xlmr_base\"}") < 4.0 {
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        let mut idle = server.connect();
        server.terminate();
        server.logged("stopping: what was taken is answered");
        // A connection that is open already learns that it has to go elsewhere; a new one finds nobody.
        write_request(&mut idle, "GET", "/ready", &[], b"");
        let mut bytes = Vec::new();
        let _ = std::io::Read::read_to_end(&mut idle, &mut bytes);
        assert!(
            bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 503"),
            "{:?}",
            String::from_utf8_lossy(&bytes)
        );
        callers.into_iter().map(|caller| caller.join().unwrap()).collect::<Vec<_>>()
    });
    for answer in answers {
        assert_eq!((answer.status, answer.body == expected), (200, true), "{}", answer.status);
    }
    assert!(server.ended().success());
}

#[test]
fn metrics_count_what_happened() {
    let server = serve(&["gemma2_lightweight"], &[]);
    let allowed = server.get("/info").json()["outcrop"]["cutoff_layers"].clone();
    let mut shallow = body(3);
    shallow["cutoff_layers"] = json!([allowed[0]]);
    shallow["compress_ratio"] = json!(2);
    shallow["compress_layers"] = json!([1]);
    assert_eq!(server.post("/rerank", &shallow).status, 200);
    assert_eq!(server.post("/predict", &json!({"inputs": ["a", "b"]})).status, 200);
    assert_eq!(server.post("/predict", &json!({"inputs": [["a"]]})).status, 422);
    let samples = metrics(&server);
    for (name, value) in [
        ("te_request_count{method=\"batch\"}", 1.0),
        ("te_request_count{method=\"single\"}", 1.0),
        ("te_request_success{method=\"batch\"}", 1.0),
        ("te_request_success{method=\"single\"}", 1.0),
        ("te_request_failure{err=\"validation\"}", 1.0),
        ("te_predict_count", 4.0),
        ("te_predict_success", 4.0),
        ("te_request_duration_count", 2.0),
        ("te_predict_inference_duration_count", 2.0),
        ("te_request_input_length_count", 4.0),
        ("te_queue_size{model=\"gemma2_lightweight\"}", 0.0),
        ("outcrop_queue_tokens{model=\"gemma2_lightweight\"}", 0.0),
    ] {
        assert_eq!(sample(&samples, name), value, "{name}");
    }
    for by in ["cutoff", "compression", "prefix_sharing"] {
        let name = format!("outcrop_layer_tokens_saved{{model=\"gemma2_lightweight\",by=\"{by}\"}}");
        assert!(sample(&samples, &name) > 0.0, "{by}");
    }
    assert!(sample(&samples, "outcrop_device_busy_seconds{model=\"gemma2_lightweight\"}") > 0.0);
}

/// What is remembered has the bits that are computed, for the same options alone.
#[test]
fn pairs_that_come_again_are_remembered() {
    let models = ["gemma2_lightweight"];
    let (plain, remembering) = (serve(&models, &[]), serve(&models, &["--score-cache=100"]));
    let cutoff = plain.get("/info").json()["outcrop"]["cutoff_layers"][1].clone();
    let shallow = |texts: Value| json!({"query": "q", "texts": texts, "cutoff_layers": [cutoff]});
    let requests = [
        (body(3), 0),
        (body(3), 3),
        (body(5), 3),
        (shallow(json!(["a", "b"])), 0),
        (shallow(json!(["b", "c", "a"])), 2),
        (json!({"query": "q", "texts": ["a", "b"]}), 0),
    ];
    let mut total = 0.0;
    for (request, hits) in requests {
        let [expected, found] = [&plain, &remembering].map(|server| server.post("/rerank", &request));
        assert_eq!((found.status, &found.body), (200, &expected.body), "{request}");
        total += f64::from(hits);
        let samples = metrics(&remembering);
        let hits = samples.iter().find(|(name, _)| name.starts_with("outcrop_score_cache_hits")).unwrap();
        assert_eq!(hits.1, total, "{request}");
    }
    // Other dialects ask for the same pairs, and what is refused is refused.
    let score = json!({"queries": "q", "documents": ["b", "a"], "cutoff_layers": [cutoff]});
    let [expected, found] = [&plain, &remembering].map(|server| server.post("/score", &score).json());
    assert_eq!(found["data"], expected["data"]);
    let samples = metrics(&remembering);
    let hits = samples.iter().find(|(name, _)| name.starts_with("outcrop_score_cache_hits")).unwrap();
    assert_eq!(hits.1, total + 2.0);
    assert_eq!(
        remembering.post("/rerank", &json!({"query": "q", "texts": ["a"], "cutoff_layers": [99]})).status,
        422
    );
}

#[test]
fn the_log_tells_each_request() {
    let server = serve(&["xlmr_base"], &[]);
    let answer = server.send("POST", "/rerank", &[("x-request-id", "mine")], body(2).to_string().as_bytes());
    assert_eq!(answer.header("x-request-id"), Some("mine"));
    let line = loop {
        let line = server.next_line();
        if line["id"] == "mine" {
            break line;
        }
    };
    assert_eq!(
        (line["method"].as_str(), line["path"].as_str(), line["status"].as_u64()),
        (Some("POST"), Some("/rerank"), Some(200))
    );
    assert!(line["ms"].as_f64().unwrap() > 0.0 && line["run"].is_string(), "{line}");
    // Without an id, one is made; one that is no id is not taken over.
    let long = "x".repeat(1000);
    for headers in [vec![], vec![("x-request-id", long.as_str())]] {
        let answer = server.send("GET", "/info", &headers, b"");
        assert_eq!(answer.header("x-request-id").unwrap().len(), 36);
    }
}
