//! Every call: its answer to the bit, and what it refuses.

use futures_util::{StreamExt, stream};
use outcrop::{EmbedOptions, ScoreOptions};
use serde_json::json;
use tonic::Code;

use super::super::dialects::{QUERY, TEXTS, engine, normalized, order, scores, tokens};
use super::tei::{
    DecodeRequest, EmbedAllRequest, EmbedRequest, EmbedSparseRequest, EncodeRequest, InfoRequest, ModelType,
    PredictRequest, RerankRequest, RerankResponse, RerankStreamRequest, TruncationDirection,
};
use super::{field, grpc, pair, refused, with_options};

fn bits(score: f64) -> u32 {
    (score as f32).to_bits()
}

/// Index and score of each text, best first.
fn expected(scores: &[f64]) -> Vec<(u32, u32)> {
    order(scores).into_iter().map(|i| (i as u32, bits(scores[i]))).collect()
}

fn found(answer: &RerankResponse) -> Vec<(u32, u32)> {
    answer.ranks.iter().map(|rank| (rank.index, rank.score.to_bits())).collect()
}

fn rerank() -> RerankRequest {
    RerankRequest {
        query: QUERY.to_owned(),
        texts: TEXTS.map(str::to_owned).to_vec(),
        truncate: true,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rerank_and_its_stream() {
    let grpc = grpc(&["xlmr_base"], &[]).await;
    let mut client = grpc.rerank();
    for (raw_scores, options) in [(false, normalized()), (true, ScoreOptions::default())] {
        let expected = expected(&scores("xlmr_base", &options));
        let answer = client.rerank(RerankRequest { raw_scores, ..rerank() }).await.unwrap();
        let compute_tokens = tokens("xlmr_base");
        let header = answer.metadata().get("x-compute-tokens").unwrap();
        assert_eq!(header.to_str().unwrap(), compute_tokens.to_string());
        let answer = answer.into_inner();
        assert_eq!(found(&answer), expected);
        assert!(answer.ranks.iter().all(|rank| rank.text.is_none()));
        let metadata = answer.metadata.unwrap();
        assert_eq!(metadata.compute_tokens as usize, compute_tokens);
        assert_eq!(metadata.compute_chars as usize, QUERY.len() + TEXTS.concat().len());
        let parts = metadata.tokenization_time_ns + metadata.queue_time_ns + metadata.inference_time_ns;
        assert!(metadata.inference_time_ns > 0 && parts <= metadata.total_time_ns, "{metadata:?}");
        // The first message says what kind of scores, and whether to return texts.
        let message = |(i, text): (usize, &str)| RerankStreamRequest {
            query: QUERY.to_owned(),
            text: text.to_owned(),
            truncate: true,
            raw_scores: raw_scores == (i == 0),
            return_text: i == 0,
            ..Default::default()
        };
        let messages: Vec<_> = TEXTS.into_iter().enumerate().map(message).collect();
        let answer = client.rerank_stream(stream::iter(messages)).await.unwrap().into_inner();
        assert_eq!(found(&answer), expected);
        for rank in &answer.ranks {
            assert_eq!(rank.text.as_deref(), Some(TEXTS[rank.index as usize]));
        }
        assert_eq!(answer.metadata.unwrap().compute_tokens as usize, compute_tokens);
    }
    let answer = client.rerank(RerankRequest { return_text: true, ..rerank() }).await.unwrap().into_inner();
    for rank in &answer.ranks {
        assert_eq!(rank.text.as_deref(), Some(TEXTS[rank.index as usize]));
    }
    refused(
        client.rerank(RerankRequest { texts: Vec::new(), ..rerank() }).await,
        Code::InvalidArgument,
        "no texts",
    );
    refused(client.rerank_stream(stream::iter([])).await, Code::InvalidArgument, "no texts");
    let left = TruncationDirection::Left.into();
    let answer = client.rerank(RerankRequest { truncation_direction: left, ..rerank() }).await;
    let status = refused(answer, Code::InvalidArgument, "on the right only");
    assert_eq!(field(&status).as_deref(), Some("truncation_direction"));
    let texts = vec!["a".to_owned(); 1001];
    let answer = client.rerank(RerankRequest { texts, ..rerank() }).await;
    refused(answer, Code::InvalidArgument, "--max-client-batch-size");
}

/// A text that is too long fails alone; a bool that is not there is false, so nothing is cut that nobody asked to cut.
#[tokio::test(flavor = "multi_thread")]
async fn texts_that_are_too_long() {
    let grpc = grpc(&["xlmr_base"], &[]).await;
    let long = "word ".repeat(10_000);
    let mut request = RerankRequest { truncate: false, ..rerank() };
    request.texts.push(long.clone());
    let answer = grpc.rerank().rerank(request.clone()).await.unwrap();
    assert_eq!(answer.metadata().get("x-outcrop-failed").unwrap(), "[3]");
    assert_eq!(found(answer.get_ref()), expected(&scores("xlmr_base", &normalized())));
    request.truncate = true;
    let answer = grpc.rerank().rerank(request.clone()).await.unwrap();
    assert_eq!((answer.metadata().get("x-outcrop-failed"), answer.get_ref().ranks.len()), (None, 4));
    request.truncate = false;
    request.texts.drain(..3);
    refused(grpc.rerank().rerank(request).await, Code::InvalidArgument, "tokens");
    let mut alone = pair(QUERY, &long);
    assert_eq!(grpc.predict().predict_pair(alone.clone()).await.unwrap().into_inner().predictions.len(), 1);
    alone.truncate = false;
    refused(grpc.predict().predict_pair(alone).await, Code::InvalidArgument, "tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn predict_and_its_streams() {
    // Places for two messages: the others of a stream wait for theirs.
    let grpc = grpc(&["xlmr_base"], &["--max-concurrent-requests=3"]).await;
    let mut client = grpc.predict();
    let expected = scores("xlmr_base", &normalized());
    for (text, score) in TEXTS.iter().zip(&expected) {
        let answer = client.predict_pair(pair(QUERY, text)).await.unwrap().into_inner();
        let [prediction] = &answer.predictions[..] else { panic!("{answer:?}") };
        assert_eq!((prediction.score.to_bits(), prediction.label.as_str()), (bits(*score), "LABEL_0"));
    }
    let messages: Vec<_> = TEXTS.iter().cycle().take(100).map(|text| pair(QUERY, text)).collect();
    let answers = client.predict_pair_stream(stream::iter(messages)).await.unwrap().into_inner();
    let answers: Vec<_> =
        answers.map(|answer| answer.unwrap().predictions[0].score.to_bits()).collect().await;
    let cycled: Vec<_> = expected.iter().cycle().take(100).map(|score| bits(*score)).collect();
    assert_eq!(answers, cycled);
    // A message that fails ends its stream, after the answers to those before it.
    let messages = [pair(QUERY, TEXTS[0]), super::PredictPairRequest::default(), pair(QUERY, TEXTS[1])];
    let mut answers = client.predict_pair_stream(stream::iter(messages)).await.unwrap().into_inner();
    assert_eq!(answers.next().await.unwrap().unwrap().predictions[0].score.to_bits(), bits(expected[0]));
    let status = refused(answers.next().await.unwrap(), Code::InvalidArgument, "0 texts");
    assert_eq!(field(&status).as_deref(), Some("inputs"));
    assert!(answers.next().await.is_none());
    // A reranker scores pairs.
    let alone = PredictRequest { inputs: "alone".to_owned(), ..Default::default() };
    refused(client.predict(alone.clone()).await, Code::InvalidArgument, "1 texts");
    let mut answers = client.predict_stream(stream::iter([alone])).await.unwrap().into_inner();
    refused(answers.next().await.unwrap(), Code::InvalidArgument, "1 texts");
}

/// A stream waits while the queue is full, where a single request would be refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_waits_for_room() {
    let grpc = grpc(&["xlmr_base"], &["--max-concurrent-requests=16", "--max-queued-tokens=1"]).await;
    let messages: Vec<_> = TEXTS.iter().cycle().take(60).map(|text| pair(QUERY, text)).collect();
    let answers = grpc.predict().predict_pair_stream(stream::iter(messages)).await.unwrap().into_inner();
    let answers: Vec<_> =
        answers.map(|answer| answer.unwrap().predictions[0].score.to_bits()).collect().await;
    let expected = scores("xlmr_base", &normalized());
    let expected: Vec<_> = expected.iter().cycle().take(60).map(|score| bits(*score)).collect();
    assert_eq!(answers, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn embed_and_its_stream() {
    let grpc = grpc(&["embed_minilm"], &[]).await;
    let engine = engine("embed_minilm");
    let mut client = grpc.embed();
    let message = |text: &str, normalize| EmbedRequest {
        inputs: text.to_owned(),
        truncate: true,
        normalize,
        ..Default::default()
    };
    let bits = |vector: &[f32]| vector.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for normalize in [true, false] {
        let options = EmbedOptions { normalize: Some(normalize), ..Default::default() };
        let expected = engine.embed(&TEXTS, &options).unwrap();
        let expected: Vec<_> = expected.into_iter().map(|embedding| embedding.unwrap()).collect();
        let answer = client.embed(message(TEXTS[1], normalize)).await.unwrap().into_inner();
        assert_eq!(bits(&answer.embeddings), bits(&expected[1].vector));
        assert_eq!(answer.metadata.unwrap().compute_tokens as usize, expected[1].tokens);
        let messages = TEXTS.map(|text| message(text, normalize));
        let answers = client.embed_stream(stream::iter(messages)).await.unwrap().into_inner();
        let answers: Vec<_> = answers.map(|answer| bits(&answer.unwrap().embeddings)).collect().await;
        assert_eq!(answers, expected.iter().map(|one| bits(&one.vector)).collect::<Vec<_>>());
    }
    let named = EmbedRequest { prompt_name: Some("query".to_owned()), ..message("x", true) };
    assert_eq!(
        field(&refused(client.embed(named).await, Code::InvalidArgument, "outcrop-options")).as_deref(),
        Some("prompt_name")
    );
    refused(client.embed_sparse(EmbedSparseRequest::default()).await, Code::Unimplemented, "Embed");
    refused(client.embed_all(EmbedAllRequest::default()).await, Code::Unimplemented, "Embed");
    let none = stream::iter([EmbedAllRequest::default()]);
    refused(client.embed_all_stream(none).await, Code::Unimplemented, "Embed");
    // It ranks by cosine.
    let ranking = engine.rerank(QUERY, &TEXTS, &ScoreOptions::default()).unwrap();
    let expected: Vec<_> =
        ranking.results.iter().map(|one| (one.index as u32, self::bits(one.score))).collect();
    let answer = grpc.rerank().rerank(rerank()).await.unwrap().into_inner();
    assert_eq!(found(&answer), expected);
    // It does not score pairs, and a reranker has no vectors.
    refused(grpc.predict().predict_pair(pair("a", "b")).await, Code::FailedPrecondition, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_what_the_model_is() {
    let grpc = grpc(&["xlmr_base"], &[]).await;
    let mut client = grpc.tokenize();
    let http = |special| {
        let body = json!({"inputs": TEXTS[1], "add_special_tokens": special});
        grpc.server.post("/tokenize", &body).json()
    };
    for special in [true, false] {
        let message =
            EncodeRequest { inputs: TEXTS[1].to_owned(), add_special_tokens: special, prompt_name: None };
        let answer = client.tokenize(message.clone()).await.unwrap().into_inner();
        let token = |token: &super::tei::SimpleToken| json!({"id": token.id, "text": token.text, "special": token.special, "start": token.start, "stop": token.stop});
        assert_eq!(json!([answer.tokens.iter().map(token).collect::<Vec<_>>()]), http(special));
        let messages = stream::iter([message.clone(), message]);
        let answers = client.tokenize_stream(messages).await.unwrap().into_inner();
        let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
        assert_eq!(answers, [answer.clone(), answer.clone()]);
        let ids: Vec<u32> = answer.tokens.iter().map(|token| token.id).collect();
        let back = DecodeRequest { ids: ids.clone(), skip_special_tokens: true };
        let text = client.decode(back.clone()).await.unwrap().into_inner().text;
        let expected = grpc.server.post("/decode", &json!({"ids": ids})).json();
        assert_eq!(json!([text]), expected);
        let answers = client.decode_stream(stream::iter([back])).await.unwrap().into_inner();
        let answers: Vec<_> = answers.map(|answer| answer.unwrap().text).collect().await;
        assert_eq!(json!(answers), expected);
    }
    let info = grpc.info().info(InfoRequest {}).await.unwrap().into_inner();
    let http = grpc.server.get("/info").json();
    assert_eq!(info.model_type(), ModelType::Reranker);
    assert_eq!(
        json!({
            "version": info.version, "model_id": info.model_id, "model_sha": info.model_sha,
            "model_dtype": info.model_dtype, "max_concurrent_requests": info.max_concurrent_requests,
            "max_input_length": info.max_input_length, "max_batch_tokens": info.max_batch_tokens,
            "max_client_batch_size": info.max_client_batch_size,
            "tokenization_workers": info.tokenization_workers,
        }),
        json!({
            "version": http["version"], "model_id": http["model_id"], "model_sha": http["model_sha"],
            "model_dtype": http["model_dtype"], "max_concurrent_requests": http["max_concurrent_requests"],
            "max_input_length": http["max_input_length"], "max_batch_tokens": http["max_batch_tokens"],
            "max_client_batch_size": http["max_client_batch_size"],
            "tokenization_workers": http["tokenization_workers"],
        })
    );
}

/// What the messages have no fields for.
#[tokio::test(flavor = "multi_thread")]
async fn options() {
    let grpc = grpc(&["gemma2_lightweight", "xlmr_base"], &[]).await;
    let engine = engine("gemma2_lightweight");
    let first = engine.allowed_cutoffs().unwrap().start;
    let options = ScoreOptions {
        cutoff_layers: Some(engine.cutoffs(&[first]).unwrap()),
        compression: Some(outcrop::Compression::new(2, &[1]).unwrap()),
        prompt: Some("Is it é?".to_owned()),
        ..normalized()
    };
    let told = format!(
        "{{\"cutoff_layers\": [{first}], \"compress_ratio\": 2, \"compress_layers\": [1], \"prompt\": \"Is it \\u00e9?\"}}"
    );
    let answer = grpc.rerank().rerank(with_options(rerank(), &told)).await.unwrap().into_inner();
    assert_eq!(found(&answer), expected(&scores("gemma2_lightweight", &options)));
    let messages: Vec<_> = TEXTS.iter().map(|text| pair(QUERY, text)).collect();
    let answers = grpc.predict().predict_pair_stream(with_options(stream::iter(messages), &told)).await;
    let answers = answers.unwrap().into_inner();
    let answers: Vec<_> =
        answers.map(|answer| answer.unwrap().predictions[0].score.to_bits()).collect().await;
    let one_by_one: Vec<_> = scores("gemma2_lightweight", &options).into_iter().map(bits).collect();
    assert_eq!(answers, one_by_one);
    let other = with_options(rerank(), r#"{"model": "xlmr_base"}"#);
    let answer = grpc.rerank().rerank(other).await.unwrap().into_inner();
    assert_eq!(found(&answer), expected(&scores("xlmr_base", &normalized())));
    for (options, code, words) in [
        (r#"{"model": "nowhere"}"#, Code::NotFound, "nowhere"),
        ("[]", Code::InvalidArgument, "outcrop-options: no JSON object"),
        (r#"{"cutof_layers": [8]}"#, Code::InvalidArgument, "cutof_layers"),
        (r#"{"normalize": true}"#, Code::InvalidArgument, "normalize is a field of the message"),
        (r#"{"cutoff_layers": [99]}"#, Code::InvalidArgument, "99"),
        (r#"{"cutoff_layers": [1, 2]}"#, Code::InvalidArgument, "room for one score"),
        (r#"{"model": "xlmr_base", "prompt": "?"}"#, Code::InvalidArgument, "prompt"),
    ] {
        refused(grpc.rerank().rerank(with_options(rerank(), options)).await, code, words);
    }
}
