//! Every dialect: fields, shapes and codes, with the scores of the library.

use outcrop::{Engine, EngineOptions, ScoreOptions};
use serde_json::{Value, json};

use super::{Answer, Running, serve};
use crate::fixtures::{on_cpu, path};

pub(super) const QUERY: &str = "what is panda?";
pub(super) const TEXTS: [&str; 3] = ["hi", "The giant panda is a bear species endemic to China.", "Paris"];

pub(super) fn engine(model: &str) -> Engine {
    Engine::open(path(model), &EngineOptions { threads: Some(2), ..on_cpu() }).unwrap()
}

/// Scores in the order of `TEXTS`.
pub(super) fn scores(model: &str, options: &ScoreOptions) -> Vec<f64> {
    let pairs = TEXTS.map(|text| (QUERY, text));
    engine(model).score(&pairs, options).unwrap().into_iter().map(|score| score.unwrap().score).collect()
}

pub(super) fn normalized() -> ScoreOptions {
    ScoreOptions { normalize: true, ..Default::default() }
}

/// Indices, best first.
pub(super) fn order(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}

pub(super) fn tokens(model: &str) -> usize {
    let engine = engine(model);
    let of =
        |text| engine.pair_sequence(QUERY, text, &ScoreOptions::default()).unwrap().sequence.input_ids.len();
    TEXTS.into_iter().map(of).sum()
}

fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn tei_rerank() {
    let server = serve(&["xlmr_base"], &[]);
    let (plain, raw) = (scores("xlmr_base", &normalized()), scores("xlmr_base", &ScoreOptions::default()));
    let expected = |scores: &[f64]| -> Vec<Value> {
        order(scores).into_iter().map(|i| json!({"index": i, "score": scores[i]})).collect()
    };
    let answer = server.post("/rerank", &json!({"query": QUERY, "texts": TEXTS}));
    assert_eq!(ok(&answer), json!(expected(&plain)));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    for name in ["x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"]
    {
        assert!(answer.header(name).unwrap().parse::<u64>().is_ok(), "{name}: {answer:?}");
    }
    assert_eq!(answer.header("x-compute-type"), Some("cpu"));
    assert_eq!(answer.header("x-compute-tokens"), Some(tokens("xlmr_base").to_string().as_str()));
    let characters = QUERY.len() + TEXTS.concat().len();
    assert_eq!(answer.header("x-compute-characters"), Some(characters.to_string().as_str()));
    let body = json!({"query": QUERY, "texts": TEXTS, "raw_scores": true, "truncate": null, "truncation_direction": "Right"});
    assert_eq!(ok(&server.post("/rerank", &body)), json!(expected(&raw)));
    let body = json!({"query": QUERY, "texts": TEXTS, "return_text": true});
    let found = ok(&server.post("/rerank", &body));
    for result in found.as_array().unwrap() {
        let keys: Vec<&String> = result.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["index", "text", "score"]);
        assert_eq!(result["text"], TEXTS[result["index"].as_u64().unwrap() as usize]);
    }
}

#[test]
fn tei_predict() {
    let server = serve(&["xlmr_base"], &[]);
    let plain = scores("xlmr_base", &normalized());
    let one = json!([{"score": plain[1], "label": "LABEL_0"}]);
    assert_eq!(ok(&server.post("/predict", &json!({"inputs": [QUERY, TEXTS[1]]}))), one);
    let batch: Vec<Value> = TEXTS.iter().map(|text| json!([QUERY, text])).collect();
    let expected: Vec<Value> =
        plain.iter().map(|score| json!([{"score": score, "label": "LABEL_0"}])).collect();
    assert_eq!(ok(&server.post("/predict", &json!({"inputs": batch}))), json!(expected));
    for inputs in [json!("alone"), json!([["alone"]]), json!([["a", "b", "c"]])] {
        let answer = server.post("/predict", &json!({"inputs": inputs}));
        assert_eq!((answer.status, answer.json()["field"].as_str()), (422, Some("inputs")), "{answer:?}");
    }
}

/// Cohere's and Jina's fields together, and vLLM's.
#[test]
fn rerank_of_cohere_jina_and_vllm() {
    let server = serve(&["xlmr_base"], &["--served-model-name=base"]);
    let plain = scores("xlmr_base", &normalized());
    let best = order(&plain);
    let body = json!({"model": "rerank-v3.5", "query": QUERY, "documents": TEXTS, "top_n": 2, "return_documents": true});
    for (path, version) in [("/v1/rerank", "1"), ("/v2/rerank", "2"), ("/rerank", "1")] {
        let answer = server.send("POST", path, &[("x-request-id", "mine")], body.to_string().as_bytes());
        let tokens = tokens("xlmr_base");
        let result =
            |i: &usize| json!({"index": i, "relevance_score": plain[*i], "document": {"text": TEXTS[*i]}});
        let expected = json!({
            "id": "mine",
            "object": "list",
            "model": "base",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": best[..2].iter().map(result).collect::<Vec<_>>(),
            "meta": {
                "api_version": {"version": version},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": tokens, "output_tokens": 0},
            },
        });
        assert_eq!(ok(&answer), expected);
        assert_eq!(answer.header("x-request-id"), Some("mine"));
    }
    // Documents as objects, with the field to rank by.
    let documents: Vec<Value> = TEXTS.iter().map(|text| json!({"title": "t", "snippet": text})).collect();
    let body = json!({"query": QUERY, "documents": documents, "rank_fields": ["snippet"], "return_documents": true, "top_n": 0});
    let found = ok(&server.post("/v1/rerank", &body));
    let indices: Vec<u64> =
        found["results"].as_array().unwrap().iter().map(|r| r["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, best.iter().map(|i| *i as u64).collect::<Vec<_>>());
    assert_eq!(found["results"][0]["document"], documents[best[0]]);
    let documents: Vec<Value> = TEXTS.iter().map(|text| json!({"text": text})).collect();
    let body = json!({"query": QUERY, "documents": documents, "use_activation": false});
    let found = ok(&server.post("/v1/rerank", &body));
    let raw = scores("xlmr_base", &ScoreOptions::default());
    assert_eq!(found["results"][0]["relevance_score"], json!(raw[best[0]]));
    // What has no effect is said.
    let body = json!({"query": QUERY, "documents": TEXTS, "max_tokens_per_doc": 100, "max_length": 12});
    let found = ok(&server.post("/v2/rerank", &body));
    let warnings = found["meta"]["warnings"].to_string();
    assert!(warnings.contains("max_tokens_per_doc") && warnings.contains("too long"), "{found}");
    assert!(found["results"].as_array().unwrap().iter().any(|result| result["truncated"] == true), "{found}");
    // Errors have what each client reads.
    let answer = server.post("/v1/rerank", &json!({"query": QUERY, "documents": [{"title": "no text"}]}));
    assert_eq!(answer.status, 422, "{answer:?}");
    let error = answer.json();
    assert!(error["message"].as_str().unwrap().contains("documents[0]: no field text"), "{error}");
    assert_eq!(error["error"]["message"], error["message"]);
    assert!(error["detail"].as_str().unwrap().starts_with("[RID: "), "{error}");
}

#[test]
fn vllm_score() {
    let server = serve(&["xlmr_base"], &[]);
    let plain = scores("xlmr_base", &normalized());
    let documents = json!(TEXTS);
    for body in [
        json!({"queries": QUERY, "documents": documents}),
        json!({"text_1": QUERY, "text_2": documents}),
        json!({"data_1": [QUERY, QUERY, QUERY], "data_2": documents, "truncate_prompt_tokens": -1}),
        json!({"queries": [QUERY], "items": documents, "model": "whatever", "user": "u"}),
    ] {
        for path in ["/score", "/v1/score"] {
            let found = ok(&server.post(path, &body));
            let data = |(i, score)| json!({"index": i, "object": "score", "score": score});
            assert_eq!(
                found["data"],
                json!(plain.iter().enumerate().map(data).collect::<Vec<_>>()),
                "{body}"
            );
            assert_eq!((&found["object"], &found["model"]), (&json!("list"), &json!("xlmr_base")));
            assert_eq!(found["usage"]["prompt_tokens"], tokens("xlmr_base"));
            assert!(found["created"].as_u64().unwrap() > 1_700_000_000);
        }
    }
    let answer = server.post("/score", &json!({"queries": ["a", "b"], "documents": ["c", "d", "e"]}));
    assert_eq!(
        (answer.status, answer.json()["error"]["param"].as_str()),
        (422, Some("queries")),
        "{answer:?}"
    );
}

#[test]
fn embeddings_of_tei_and_openai() {
    let server = serve(&["embed_minilm"], &[]);
    let engine = engine("embed_minilm");
    let expected = engine.embed(&TEXTS, &Default::default()).unwrap();
    let expected: Vec<_> = expected.into_iter().map(Result::unwrap).collect();
    // Floats are written as short as they can be read back.
    let vectors = expected.iter().map(|embedding| serde_json::to_string(&embedding.vector).unwrap());
    let vectors: Vec<Value> = vectors.map(|vector| serde_json::from_str(&vector).unwrap()).collect();
    let vectors = json!(vectors);
    assert_eq!(ok(&server.post("/embed", &json!({"inputs": TEXTS}))), vectors);
    assert_eq!(ok(&server.post("/embed", &json!({"inputs": TEXTS[1]}))), json!([vectors[1]]));
    let found = ok(&server.post("/v1/embeddings", &json!({"input": TEXTS, "model": "m", "user": "u"})));
    let tokens: usize = expected.iter().map(|embedding| embedding.tokens).sum();
    let data = |(i, vector)| json!({"object": "embedding", "index": i, "embedding": vector});
    let data: Vec<Value> = vectors.as_array().unwrap().iter().enumerate().map(data).collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    assert_eq!(found, json!({"object": "list", "data": data, "model": "embed_minilm", "usage": usage}));
    let body = json!({"input": TEXTS[0], "encoding_format": "base64", "dimensions": engine.hidden_size()});
    let found = ok(&server.post("/v1/embeddings", &body));
    let text = found["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(text.len(), (4 * engine.hidden_size()).div_ceil(3) * 4);
    assert!(text.starts_with(&first_base64(expected[0].vector[0])), "{text}");
    for (body, field) in [
        (json!({"input": [[1, 2]]}), "input"),
        (json!({"input": "x", "dimensions": 3}), "dimensions"),
        (json!({"input": "x", "encoding_format": "int8"}), "encoding_format"),
        (json!({"input": "x", "cutoff_layers": [1]}), "cutoff_layers"),
    ] {
        let answer = server.post("/v1/embeddings", &body);
        assert_eq!(
            (answer.status, answer.json()["error"]["param"].as_str()),
            (422, Some(field)),
            "{answer:?}"
        );
    }
    // It ranks by cosine too, and does not score pairs.
    let ranking = ok(&server.post("/rerank", &json!({"query": QUERY, "texts": TEXTS})));
    let expected = engine.rerank(QUERY, &TEXTS, &ScoreOptions::default()).unwrap();
    let expected: Vec<Value> =
        expected.results.iter().map(|ranked| json!({"index": ranked.index, "score": ranked.score})).collect();
    assert_eq!(ranking, json!(expected));
    let answer = server.post("/score", &json!({"queries": QUERY, "documents": TEXTS}));
    assert_eq!(
        (answer.status, answer.json()["error"]["type"].as_str()),
        (424, Some("server_error")),
        "{answer:?}"
    );
}

/// The first four letters of the base64 of a float: its first three bytes.
fn first_base64(value: f32) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let [a, b, c, _] = value.to_le_bytes().map(u32::from);
    let bits = a << 16 | b << 8 | c;
    (0..4).map(|i| char::from(LETTERS[(bits >> (18 - 6 * i) & 63) as usize])).collect()
}

#[test]
fn tokenize_and_decode() {
    let server = serve(&["xlmr_base"], &[]);
    let found = ok(&server.post("/tokenize", &json!({"inputs": ["hi there", "x"]})));
    let first = found[0].as_array().unwrap();
    assert_eq!(first[0], json!({"id": 0, "text": "<s>", "special": true, "start": null, "stop": null}));
    let pieces: Vec<&Value> = first.iter().filter(|token| token["special"] == false).collect();
    for piece in &pieces {
        let [start, stop] = ["start", "stop"].map(|end| piece[end].as_u64().unwrap() as usize);
        assert_eq!(piece["text"], "hi there"[start..stop]);
    }
    assert_eq!((&pieces[0]["start"], &pieces[pieces.len() - 1]["stop"]), (&json!(0), &json!(8)));
    let bare = ok(&server.post("/tokenize", &json!({"inputs": "hi there", "add_special_tokens": false})));
    assert_eq!(bare[0].as_array().unwrap().len() + 2, first.len());
    let ids: Vec<&Value> = bare[0].as_array().unwrap().iter().map(|token| &token["id"]).collect();
    assert_eq!(ok(&server.post("/decode", &json!({"ids": ids}))), json!(["hi there"]));
    assert_eq!(ok(&server.post("/decode", &json!({"ids": [ids, ids]}))), json!(["hi there", "hi there"]));
}

/// The options of the deep models, with every dialect; and the refusals of those that have none.
#[test]
fn cutoffs_compression_and_prompts() {
    let server = serve(&["gemma2_lightweight", "xlmr_base"], &[]);
    let engine = engine("gemma2_lightweight");
    let allowed = engine.allowed_cutoffs().unwrap();
    let layers = [allowed.start, allowed.last];
    let options = ScoreOptions {
        cutoff_layers: Some(engine.cutoffs(&layers).unwrap()),
        compression: Some(outcrop::Compression::new(2, &[1]).unwrap()),
        prompt: Some("Is it?".to_owned()),
        query_instruction: Some("Q: ".to_owned()),
        ..Default::default()
    };
    let expected = engine.score(&TEXTS.map(|text| (QUERY, text)), &options).unwrap();
    let expected: Vec<_> = expected.into_iter().map(Result::unwrap).collect();
    let extras = json!({
        "model": "gemma2_lightweight", "cutoff_layers": layers, "compress_ratio": 2, "compress_layers": [1],
        "prompt": "Is it?", "query_instruction": "Q: ", "normalize": false,
    });
    let with = |body: Value| {
        let mut body = body;
        body.as_object_mut().unwrap().extend(extras.as_object().unwrap().clone());
        body
    };
    let check = |result: &Value, score: &str| {
        let of = &expected[result["index"].as_u64().unwrap() as usize];
        assert_eq!(result[score], json!(of.score), "{result}");
        for layer in &of.layer_scores {
            assert_eq!(result["scores"][layer.layer.to_string()], json!(layer.score), "{result}");
        }
        assert_eq!(result["tokens_after"], json!(of.tokens_after));
    };
    for (path, body) in [
        ("/rerank", json!({"query": QUERY, "texts": TEXTS})),
        ("/v1/rerank", json!({"query": QUERY, "documents": TEXTS})),
        ("/v2/rerank", json!({"query": QUERY, "documents": TEXTS})),
        ("/v1/score", json!({"queries": QUERY, "documents": TEXTS})),
    ] {
        let found = ok(&server.post(path, &with(body)));
        let (results, score) = match path {
            "/rerank" => (&found, "score"),
            "/v1/score" => (&found["data"], "score"),
            _ => (&found["results"], "relevance_score"),
        };
        assert_eq!(results.as_array().unwrap().len(), 3, "{found}");
        results.as_array().unwrap().iter().for_each(|result| check(result, score));
    }
    for (field, value) in
        [("cutoff_layers", json!([1])), ("compress_ratio", json!(2)), ("prompt", json!("?"))]
    {
        let mut body = json!({"model": "xlmr_base", "query": QUERY, "texts": TEXTS});
        body[field] = value;
        let answer = server.post("/rerank", &body);
        assert_eq!((answer.status, answer.json()["field"].as_str()), (422, Some(field)), "{answer:?}");
    }
    for (field, value) in [
        ("cutoff_layers", json!([allowed.last, allowed.start])),
        ("cutoff_layers", json!([allowed.last + 1])),
        ("cutoff_layers", json!("eight")),
        ("compress_ratio", json!(0)),
        ("compress_layers", json!([1])),
        ("deadline_ms", json!(-1)),
    ] {
        let mut body = json!({"query": QUERY, "texts": TEXTS});
        body[field] = value;
        let answer = server.post("/rerank", &body);
        assert_eq!((answer.status, answer.json()["field"].as_str()), (422, Some(field)), "{answer:?}");
    }
    let answer = server.post("/v1/rerank", &json!({"model": "other", "query": QUERY, "documents": TEXTS}));
    assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (404, Some("model")), "{answer:?}");
    let info = ok(&server.get("/info"));
    assert_eq!(info["model_type"]["reranker"]["id2label"]["0"], "LABEL_0");
    assert_eq!((&info["max_client_batch_size"], &info["model_dtype"]), (&json!(1000), &json!("bfloat16")));
    assert_eq!(info["models"][0]["outcrop"]["cutoff_layers"][0], allowed.start);
    assert_eq!(info["models"][1]["served_model_name"], "xlmr_base");
    let models = ok(&server.get("/v1/models"));
    assert_eq!(models["data"][1]["id"], "xlmr_base");
}

/// Texts that are too long are cut, or refused where the caller wants that.
#[test]
fn truncation_is_the_callers_choice() {
    let long = "word ".repeat(2000);
    let body = json!({"query": QUERY, "texts": [TEXTS[1], long]});
    let ask = |server: &Running, truncate: Value| {
        let mut body = body.clone();
        body["truncate"] = truncate;
        server.post("/rerank", &body)
    };
    let server = serve(&["xlmr_base"], &[]);
    for truncate in [json!(null), json!(true)] {
        let found = ok(&ask(&server, truncate));
        let cut: Vec<_> =
            found.as_array().unwrap().iter().filter(|result| result["truncated"] == true).collect();
        assert_eq!((cut.len(), &cut[0]["index"]), (1, &json!(1)), "{found}");
    }
    // Its neighbour has its score; who is missing is said.
    let answer = ask(&server, json!(false));
    assert_eq!(ok(&answer).as_array().unwrap().len(), 1);
    assert_eq!(answer.header("x-outcrop-failed"), Some("[1]"));
    let found =
        ok(&server.post("/v1/rerank", &json!({"query": QUERY, "documents": [long, "x"], "truncate": false})));
    assert_eq!(found["failed"][0]["index"], 0, "{found}");
    let answer =
        server.post("/score", &json!({"queries": QUERY, "documents": ["x", long], "truncate": false}));
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(answer.body.contains("text 1: the text has more than the 512 tokens allowed"), "{answer:?}");
    let strict = serve(&["xlmr_base"], &["--auto-truncate=false"]);
    let answer = strict.post("/rerank", &json!({"query": QUERY, "texts": [long]}));
    assert_eq!((answer.status, answer.json()["error_type"].as_str()), (422, Some("Tokenizer")), "{answer:?}");
    assert_eq!(ok(&ask(&strict, json!(true))).as_array().unwrap().len(), 2);
}

/// The description says what is there: every path, and no field that would not be understood.
#[test]
fn the_description_is_true() {
    let server = serve(&["xlmr_base"], &[]);
    let document = ok(&server.get("/openapi.json"));
    let nowhere = server.get("/nowhere").json();
    let mut told: Vec<&str> =
        nowhere["error"].as_str().unwrap().rsplit(" go to ").next().unwrap().split(", ").collect();
    told.sort_unstable();
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths {
        if methods.get("get").is_some() {
            assert_eq!(server.get(path).status, 200, "{path}");
            continue;
        }
        let content = &methods["post"]["requestBody"]["content"]["application/json"];
        let mut body = content["example"].clone();
        let embeds = path.contains("embed");
        let answer = server.post(path, &body);
        assert_eq!(answer.status, if embeds { 424 } else { 200 }, "{path} {answer:?}");
        for (name, value) in examples(&content["schema"], &document) {
            let is_there = body.get(&name).is_some() || name == "raw_scores";
            if !is_there {
                body[name] = value;
            }
        }
        let answer = server.post(path, &body);
        assert_eq!(answer.status, if embeds { 424 } else { 200 }, "{path} {body} {answer:?}");
        assert_eq!(answer.header("x-outcrop-ignored-fields"), None, "{path}");
    }
    let mut posts: Vec<&str> = paths
        .iter()
        .filter(|(_, methods)| methods.get("post").is_some())
        .map(|(path, _)| path.as_str())
        .collect();
    posts.sort_unstable();
    assert_eq!(posts, told);
    for page in ["/", "/docs"] {
        let answer = server.get(page);
        assert!(
            answer.body.starts_with("<!doctype html>") && answer.header("content-security-policy").is_some()
        );
        assert!(
            !answer.body.contains("http://") && !answer.body.contains("https://"),
            "{page} loads something"
        );
    }
}

/// The examples of a schema's fields.
fn examples(schema: &Value, document: &Value) -> Vec<(String, Value)> {
    if let Some(name) = schema["$ref"].as_str() {
        return examples(document.pointer(&name[1..]).unwrap(), document);
    }
    let own = schema["properties"].as_object().into_iter().flatten();
    let own = own.filter_map(|(name, what)| Some((name.clone(), what.get("example")?.clone())));
    let parts = schema["allOf"].as_array().into_iter().flatten().flat_map(|part| examples(part, document));
    own.chain(parts).collect()
}
