//! Clients that are slow, leave, or send what they should not: each has an answer, and nobody else notices.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Running, read_answer, serve, write_request};

const FINE: &str = r#"{"query": "q", "texts": ["a"]}"#;

fn post(server: &Running, path: &str, body: &[u8]) -> super::Answer {
    server.send("POST", path, &[("content-type", "application/json")], body)
}

#[test]
fn bodies_that_are_no_requests() {
    let server = serve(&["xlmr_base"], &[]);
    let deep = format!("{{\"query\": {}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    let malformed: [&[u8]; 9] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{\"query\": \"q\", \"texts\": [NaN]}",
        b"{\"query\": \"\\ud800\", \"texts\": [\"a\"]}",
        b"{\"query\": \"\xff\", \"texts\": [\"a\"]}",
        b"\x16\x03\x01\x02\x00",
        deep.as_bytes(),
    ];
    for body in malformed {
        for (path, says) in [("/rerank", "error"), ("/v1/rerank", "message"), ("/score", "error")] {
            let answer = post(&server, path, body);
            assert_eq!(
                answer.status,
                400,
                "{:?}: {answer:?}",
                String::from_utf8_lossy(&body[..body.len().min(80)])
            );
            assert!(!answer.json()[says].is_null(), "{answer:?}");
        }
    }
    for (path, body, field) in [
        ("/rerank", json!({"texts": ["a"]}), "query"),
        ("/rerank", json!({"query": "q"}), "texts"),
        ("/rerank", json!({"query": 1, "texts": ["a"]}), "query"),
        ("/rerank", json!({"query": "q", "texts": "a"}), "texts"),
        ("/rerank", json!({"query": "q", "texts": ["a", null]}), "texts"),
        ("/rerank", json!({"query": "q", "texts": ["a"], "max_length": 1e99}), "max_length"),
        (
            "/rerank",
            json!({"query": "q", "texts": ["a"], "truncation_direction": "left"}),
            "truncation_direction",
        ),
        (
            "/rerank",
            json!({"query": "q", "texts": ["a"], "normalize": true, "raw_scores": true}),
            "raw_scores",
        ),
        ("/predict", json!({"inputs": {"a": 1}}), "inputs"),
        ("/tokenize", json!({"inputs": 5}), "inputs"),
        ("/decode", json!({"ids": ["x"]}), "ids"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!((answer.status, answer.json()["field"].as_str()), (422, Some(field)), "{body} {answer:?}");
    }
    // A misspelt option shows.
    let answer = server.post("/rerank", &json!({"query": "q", "texts": ["a"], "cutof_layers": [8]}));
    assert_eq!(
        (answer.status, answer.header("x-outcrop-ignored-fields")),
        (200, Some("[\"cutof_layers\"]")),
        "{answer:?}"
    );
    let answer = server.send("GET", "/rerank", &[], b"");
    assert_eq!(
        (answer.status, answer.json()["error_type"].as_str()),
        (405, Some("Validation")),
        "{answer:?}"
    );
    let answer = server.get("/v3/rerank");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("/v2/rerank"), "{answer:?}");
}

#[test]
fn texts_of_any_kind_are_scored() {
    let server = serve(&["xlmr_base"], &[]);
    let texts = ["", "\u{0}", "🐼", "e\u{301}", "\u{202e}abc", "<s></s>", &"a".repeat(100_000), "\u{ffff}"];
    let answer = server.post("/rerank", &json!({"query": "", "texts": texts}));
    assert_eq!((answer.status, answer.json().as_array().unwrap().len()), (200, texts.len()), "{answer:?}");
}

#[test]
fn too_much_is_refused_and_the_server_goes_on() {
    let server = serve(&["xlmr_base"], &[]);
    let answer = post(&server, "/rerank", &vec![b'x'; 50 << 20]);
    assert_eq!(
        (answer.status, answer.json()["error_type"].as_str()),
        (413, Some("Validation")),
        "{answer:?}"
    );
    let answer = server.post("/rerank", &json!({"query": "q", "texts": vec!["a"; 100_000]}));
    assert_eq!(answer.status, 422, "{}", answer.status);
    assert!(answer.body.contains("100000 texts; a request may have 1000"), "{}", answer.body);
    let answer = server.post("/rerank", &json!({"query": "q", "texts": vec!["a"; 1000]}));
    assert_eq!(answer.json().as_array().unwrap().len(), 1000);
}

/// Connections are not closed on what has not been read: the answer would be lost with it.
#[test]
fn refusals_reach_those_who_send_a_lot() {
    let server = serve(&["xlmr_base"], &["--api-key=secret", "--max-concurrent-requests=1"]);
    let sizes = [300_000, 3 << 20, 20 << 20];
    for size in sizes {
        assert_eq!(server.send("POST", "/rerank", &[], &vec![b'x'; size]).status, 401, "{size} bytes");
    }
    // Its place is taken by one whose body never comes.
    let mut other = server.connect();
    let head =
        b"POST /rerank HTTP/1.1\r\nhost: t\r\nauthorization: Bearer secret\r\ncontent-length: 100\r\n\r\n{";
    other.write_all(head).unwrap();
    let key = [("authorization", "Bearer secret")];
    let start = Instant::now();
    while server.send("POST", "/rerank", &key, b"{}").status != 429 {
        assert!(start.elapsed() < Duration::from_secs(60), "there is room for two");
    }
    for size in sizes {
        let answer = server.send("POST", "/rerank", &key, &vec![b'x'; size]);
        assert_eq!((answer.status, answer.header("retry-after")), (429, Some("1")), "{size} bytes");
    }
    // Who asks first gets the answer first.
    let start = Instant::now();
    let expects = [("expect", "100-continue"), ("content-length", "1000000")];
    assert_eq!(server.send("PUT", "/rerank", &expects, b"").status, 401);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn slow_and_vanishing_clients() {
    let server = serve(&["xlmr_base"], &["--read-timeout=1"]);
    let started = Instant::now();
    // A head that never ends, a body that never comes, and one that stops in the middle.
    let mut head = server.connect();
    head.write_all(b"POST /rerank HTTP/1.1\r\nhost: ").unwrap();
    let mut body = server.connect();
    body.write_all(
        b"POST /rerank HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{\"que",
    )
    .unwrap();
    let mut gone = server.connect();
    gone.write_all(b"POST /rerank HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n{\"que").unwrap();
    drop(gone);
    let mut garbage = server.connect();
    garbage.write_all(b"\x00\x01\x02 nonsense\r\n\r\n").unwrap();
    // Others are answered meanwhile.
    for _ in 0..5 {
        assert_eq!(post(&server, "/rerank", FINE.as_bytes()).status, 200);
    }
    assert_eq!(read_answer(body).status, 408);
    assert_eq!(read_answer(garbage).status, 400);
    let mut bytes = Vec::new();
    let _ = std::io::Read::read_to_end(&mut head, &mut bytes);
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!(server.get("/health").status, 200);
}

/// Killed in the middle of its work it can be started again at once; another replica's scores have the same bits.
#[test]
fn kill_and_restart_and_replicas() {
    let texts: Vec<String> = (0..50).map(|i| format!("passage number {i}")).collect();
    let body = json!({"query": "q", "texts": texts, "raw_scores": true});
    let mut first = serve(&["xlmr_base"], &["--batch-tokens=64"]);
    let second = serve(&["xlmr_base"], &["--batch-tokens=700"]);
    let expected = second.post("/rerank", &body).body;
    assert_eq!(first.post("/rerank", &body).body, expected);
    // Clients of two replicas of which one is killed: whoever loses its connection asks the other.
    let (first_address, all) = (
        first.address.clone(),
        thread::scope(|scope| {
            let ask = |i: usize| {
                let mut answers = Vec::new();
                for nth in 0..20 {
                    let mut stream = match (i + nth) % 2 {
                        0 => {
                            std::net::TcpStream::connect(first.address.strip_prefix("http://").unwrap()).ok()
                        }
                        _ => None,
                    };
                    let answer = stream.take().and_then(|mut stream| {
                        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                        write_request(&mut stream, "POST", "/rerank", &[], body.to_string().as_bytes());
                        let mut bytes = Vec::new();
                        let _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
                        let text = String::from_utf8(bytes).ok()?;
                        text.starts_with("HTTP/1.1 200")
                            .then(|| text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()))?
                    });
                    // An answer that was cut off is no JSON.
                    let answer = answer.filter(|body| serde_json::from_str::<Value>(body).is_ok());
                    answers.push(answer.unwrap_or_else(|| second.post("/rerank", &body).body));
                }
                answers
            };
            let clients: Vec<_> = (0..4).map(|i| scope.spawn(move || ask(i))).collect();
            thread::sleep(Duration::from_millis(200));
            let pid = first.child.id().to_string();
            std::process::Command::new("kill").args(["-9", &pid]).status().unwrap();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
        }),
    );
    assert_eq!(all.len(), 80);
    assert!(all.iter().all(|body| *body == expected));
    first.child.wait().unwrap();
    let port = first_address.rsplit_once(':').unwrap().1.to_owned();
    let again = super::serve_at(&["xlmr_base"], &port);
    assert_eq!(again.post("/rerank", &body).body, expected);
}

/// JSON values that a client could send, more or less like a request.
fn requests() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 20, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{1,5}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    });
    let names = prop::sample::select(vec![
        "query",
        "texts",
        "documents",
        "inputs",
        "input",
        "queries",
        "items",
        "model",
        "top_n",
        "return_documents",
        "raw_scores",
        "normalize",
        "cutoff_layers",
        "compress_ratio",
        "compress_layers",
        "max_length",
        "query_max_length",
        "truncate",
        "deadline_ms",
        "rank_fields",
        "dimensions",
        "encoding_format",
        "prompt",
        "ids",
        "truncate_prompt_tokens",
        "truncation_direction",
    ]);
    let field = prop_oneof![
        4 => (names, value),
        1 => Just(("query", json!("q"))),
        1 => Just(("texts", json!(["a", "b"]))),
        1 => Just(("documents", json!(["a", {"text": "b"}]))),
        1 => Just(("inputs", json!([["a", "b"]]))),
    ];
    prop::collection::vec(field, 0..6)
        .prop_map(|fields| Value::from_iter(fields.into_iter().map(|(name, value)| (name.to_owned(), value))))
}

/// Whatever is sent, the answer is JSON with a status of the dialect's, and never a failure of ours.
#[test]
fn any_request_has_an_answer() {
    let server = serve(&["gemma2_lightweight"], &[]);
    let paths = prop::sample::select(vec![
        "/rerank",
        "/predict",
        "/embed",
        "/tokenize",
        "/decode",
        "/v1/rerank",
        "/v2/rerank",
        "/score",
        "/v1/embeddings",
    ]);
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 400, ..Default::default() });
    runner
        .run(&(paths, requests()), |(path, body)| {
            let answer = server.post(path, &body);
            // 424 is the answer of a reranker to what it cannot do, such as embeddings; 504 that to a deadline of no time.
            prop_assert!([200, 400, 404, 422, 424, 504].contains(&answer.status), "{path} {body} {answer:?}");
            prop_assert!(serde_json::from_str::<Value>(&answer.body).is_ok(), "{path} {body} {answer:?}");
            Ok(())
        })
        .unwrap();
    assert_eq!(server.get("/ready").status, 200);
}
