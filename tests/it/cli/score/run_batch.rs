//! Lines for vLLM's run-batch.

use serde_json::{Value, json};

use super::{Files, args, outcrop, score, score_text};
use crate::cli::{made, outcrop_with_input};

fn request(custom_id: &str, url: &str, body: &Value) -> String {
    format!("{}\n", json!({ "custom_id": custom_id, "method": "POST", "url": url, "body": body }))
}

/// The scores of pairs as plain lines, in 0..1, as their texts; and their tokens.
fn normalized(pairs: &[(&str, &str)]) -> Vec<(String, u64)> {
    let lines: String = pairs
        .iter()
        .map(|(query, passage)| format!("{}\n", json!({ "query": query, "passage": passage })))
        .collect();
    let model = crate::cli::model("xlmr_base");
    let args = ["score", "--quiet", "--normalize", "--model", &model, "--input", "-"];
    let ran = outcrop_with_input(args, lines.as_bytes());
    let tokens = |line: &Value| line["tokens"].as_u64().unwrap();
    ran.stdout.lines().map(score_text).zip(ran.json_lines().iter().map(tokens)).collect()
}

/// Every byte of the answers, but for the digits of scores.
#[test]
fn answers_have_vllms_shape() {
    let plain = normalized(&[("panda", "city"), ("panda", "bear"), ("bear", "city")]);
    let (city, bear, other) = (plain[0].0.as_str(), plain[1].0.as_str(), plain[2].0.as_str());
    let tokens = |pairs: &[usize]| pairs.iter().map(|i| plain[*i].1).sum::<u64>();
    let input = [
        request(
            "a",
            "/v1/score",
            &json!({ "model": "m", "queries": "panda", "documents": ["city", "bear"] }),
        ),
        request(
            "b",
            "/score",
            &json!({ "text_1": ["panda", "bear"], "text_2": ["bear", "city"], "model": "m" }),
        ),
        request(
            "c",
            "/v2/rerank",
            &json!({ "model": "m", "query": "panda", "documents": ["city", "bear"], "user": "u" }),
        ),
        request(
            "d",
            "/rerank",
            &json!({ "model": "m", "query": "panda", "documents": ["city", "bear"], "top_n": 1 }),
        ),
    ];
    let ran = outcrop_with_input(
        ["score", "--quiet", "--model", &crate::cli::model("xlmr_base"), "--input", "-"],
        input.concat().as_bytes(),
    );
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let (best, worst) = if bear.parse::<f64>().unwrap() > city.parse::<f64>().unwrap() {
        ((1, "bear", bear), (0, "city", city))
    } else {
        ((0, "city", city), (1, "bear", bear))
    };
    let place = |(index, text, score): (usize, &str, &str)| {
        format!(
            "{{\"index\":{index},\"document\":{{\"text\":\"{text}\",\"multi_modal\":null}},\"relevance_score\":{score}}}"
        )
    };
    let (best, worst) = (place(best), place(worst));
    let line = |id: &str, body: &str| {
        format!(
            "{{\"id\":\"batch-{id}\",\"custom_id\":\"{id}\",\"response\":{{\"status_code\":200,\"request_id\":\"request-{id}\",\
             \"body\":{body}}},\"error\":null}}\n"
        )
    };
    let scores = |id: &str, first: &str, second: &str, tokens: u64| {
        let body = format!(
            "{{\"id\":\"score-{id}\",\"object\":\"list\",\"created\":0,\"model\":\"m\",\"data\":[\
             {{\"index\":0,\"object\":\"score\",\"score\":{first}}},{{\"index\":1,\"object\":\"score\",\"score\":{second}}}],\
             \"usage\":{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens},\"completion_tokens\":0,\"prompt_tokens_details\":null}}}}"
        );
        line(id, &body)
    };
    let ranking = |id: &str, results: &str| {
        let tokens = tokens(&[0, 1]);
        let usage = format!("{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}");
        line(
            id,
            &format!("{{\"id\":\"rerank-{id}\",\"model\":\"m\",\"usage\":{usage},\"results\":[{results}]}}"),
        )
    };
    let expected = [
        scores("a", city, bear, tokens(&[0, 1])),
        scores("b", bear, other, tokens(&[1, 2])),
        ranking("c", &format!("{best},{worst}")),
        ranking("d", &best),
    ];
    assert_eq!(ran.stdout, expected.concat());
}

/// Each is refused in its line, by the field that is to blame.
#[test]
fn requests_that_cannot_be_answered() {
    let documents = json!({ "query": "q", "documents": ["d"] });
    let with = |field: &str, value: Value| {
        let mut body = documents.clone();
        body[field] = value;
        body
    };
    let cases = [
        (
            "/v1/chat/completions",
            documents.clone(),
            json!("url"),
            "\"/v1/chat/completions\" is not supported",
        ),
        ("/rerank", json!({ "documents": ["d"] }), json!("query"), "query is missing"),
        ("/rerank", json!({ "query": "q" }), json!("documents"), "documents is missing"),
        ("/rerank", json!({ "query": "q", "documents": [] }), json!("documents"), "an empty list"),
        (
            "/rerank",
            json!({ "query": "q", "documents": ["d", 3] }),
            json!("documents[1]"),
            "expected a string",
        ),
        ("/rerank", with("queries", json!("q")), json!("queries"), "no field of /rerank"),
        ("/score", with("queries", json!("q")), json!("query"), "no field of /score"),
        (
            "/score",
            json!({ "queries": ["a", "b"], "documents": ["c", "c", "c"] }),
            json!("queries"),
            "2 queries and 3 documents",
        ),
        ("/rerank", with("mm_processor_kwargs", json!({})), json!("mm_processor_kwargs"), "unknown field"),
        (
            "/rerank",
            with("truncate_prompt_tokens", json!(-1)),
            json!("truncate_prompt_tokens"),
            "not negative",
        ),
        ("/rerank", with("truncation_side", json!("left")), json!("truncation_side"), "only the end"),
        ("/rerank", with("cutoff_layers", json!([8])), json!("cutoff_layers"), "no option cutoff_layers"),
        ("/rerank", with("prompt", json!("?")), json!(null), "no option prompt"),
        ("/rerank", with("compress_layers", json!([8])), json!("compress_layers"), "needs compress_ratio"),
        ("/rerank", json!(["m"]), json!("body"), "must be an object"),
    ];
    let lines: String =
        cases.iter().enumerate().map(|(i, (url, body, _, _))| request(&i.to_string(), url, body)).collect();
    let answers = score(&[], &lines, 1);
    assert_eq!(answers.len(), cases.len());
    for (i, (answer, (_, _, param, message))) in answers.iter().zip(&cases).enumerate() {
        let fields: Vec<&String> = answer.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["id", "custom_id", "response", "error"]);
        assert_eq!(answer["custom_id"], i.to_string());
        let response = json!({ "status_code": 400, "request_id": format!("request-{i}"), "body": null });
        assert_eq!(answer["response"], response);
        let error = &answer["error"]["error"];
        assert_eq!(
            (&error["type"], &error["code"], &error["param"]),
            (&json!("BadRequestError"), &json!(400), param),
            "{answer}"
        );
        assert!(error["message"].as_str().unwrap().contains(message), "{answer}");
    }
    // Without its id a line has no such answer.
    let answers = score(
        &[],
        "{\"custom_id\": 7, \"url\": \"/score\", \"body\": {}}\n{\"custom_id\": \"a\", \"url\": \"/score\"}\n",
        1,
    );
    assert_eq!(
        answers[0],
        json!({ "line": 1, "error": "field \"custom_id\" must be a string, found a number" })
    );
    assert_eq!(answers[1], json!({ "line": 2, "error": "field \"body\" is missing" }));
}

/// Requests with options of their own, plain lines among them: as if each were asked for alone.
#[test]
fn options_of_a_request() {
    let made = made("minicpm");
    let model = made.model.to_str().unwrap();
    let run = |extra: &[&str], input: &str| {
        let args = ["score", "--quiet", "--model", model, "--input", "-"];
        let ran = outcrop_with_input(args.iter().chain(extra), input.as_bytes());
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        ran.json_lines()
    };
    let pair = "{\"query\": \"panda\", \"passage\": \"the giant panda eats bamboo all day\"}\n";
    let body = |extra: Value| {
        let mut body = json!({ "query": "panda", "documents": "the giant panda eats bamboo all day", "use_activation": false });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        request("r", "/rerank", &body)
    };
    let allowed = run(&["--cutoff-layers", "4"], pair);
    let input = [
        pair.to_owned(),
        body(json!({ "cutoff_layers": [4] })),
        body(json!({ "cutoff_layers": [4, 8] })),
        body(json!({ "max_length": 40, "prompt": "Is it so?", "cutoff_layers": [4] })),
        pair.to_owned(),
    ];
    let answers = run(&[], &input.concat());
    let result = |i: usize| &answers[i]["response"]["body"]["results"][0];
    assert_eq!(result(1)["relevance_score"], allowed[0]["score"]);
    let both = run(&["--cutoff-layers", "4,8"], pair);
    assert_eq!(result(2)["scores"], both[0]["scores"]);
    assert_eq!(result(2)["relevance_score"], both[0]["score"]);
    let prompted = run(&["--cutoff-layers", "4", "--max-length", "40", "--prompt", "Is it so?"], pair);
    assert_eq!(result(3)["relevance_score"], prompted[0]["score"]);
    assert_ne!(result(3)["relevance_score"], result(1)["relevance_score"]);
    for plain in [0, 4] {
        assert_eq!(answers[plain]["score"], run(&[], pair)[0]["score"]);
    }
}

/// The model of the command line answers, whatever a line calls it, and that is said once.
#[test]
fn another_model_is_told_of() {
    let files = Files::new();
    let body = json!({ "model": "BAAI/other", "query": "q", "documents": ["d"] });
    let input = files.write("in.jsonl", request("a", "/rerank", &body).repeat(2));
    let args = args(&input, &files.path("out.jsonl"), &[]);
    let ran = outcrop(args.iter().filter(|arg| *arg != "--quiet"));
    assert_eq!(ran.status, Some(0));
    assert_eq!(
        ran.stderr.matches("warning: lines ask for the model BAAI/other").count(),
        1,
        "{}",
        ran.stderr
    );
}
