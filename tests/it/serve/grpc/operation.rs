//! Keys, limits, health, reflection, metrics, and the end.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use prost::Message;
use tokio::sync::mpsc;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt;

use super::super::operation::{metrics, sample};
use super::super::{read_answer, start, write_request};
use super::tei::{InfoRequest, RerankRequest};
use super::{from, grpc, many, pair, refused, with_options};

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

/// Without the right key nothing is said but whether the server lives, and what every such program says.
#[tokio::test(flavor = "multi_thread")]
async fn keys() {
    let grpc = grpc(&["xlmr_base"], &["--api-key=secret"]).await;
    for header in [None, Some("Bearer wrong"), Some("secret")] {
        let mut request = Request::new(many(1));
        let mut messages = Request::new(stream::iter([pair("a", "b")]));
        if let Some(header) = header {
            request.metadata_mut().insert("authorization", header.parse().unwrap());
            messages.metadata_mut().insert("authorization", header.parse().unwrap());
        }
        refused(grpc.rerank().rerank(request).await, Code::Unauthenticated, "Authorization: Bearer KEY");
        refused(grpc.predict().predict_pair_stream(messages).await, Code::Unauthenticated, "KEY");
    }
    refused(grpc.info().info(InfoRequest {}).await, Code::Unauthenticated, "KEY");
    let mut request = Request::new(many(1));
    request.metadata_mut().insert("authorization", "Bearer secret".parse().unwrap());
    assert_eq!(grpc.rerank().rerank(request).await.unwrap().into_inner().ranks.len(), 1);
    let state = HealthClient::new(grpc.channel.clone()).check(of("")).await.unwrap().into_inner();
    assert_eq!(state.status(), ServingStatus::Serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_told_with_the_time_to_come_back() {
    let grpc = grpc(&["xlmr_base"], &["--max-concurrent-requests=2", "--batch-tokens=100"]).await;
    let expected = grpc.rerank().rerank(many(40)).await.unwrap().into_inner().ranks;
    let ask = || async { grpc.rerank().rerank(many(40)).await };
    let answers = futures_util::future::join_all((0..16).map(|_| ask())).await;
    let (done, not_done): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(!done.is_empty() && !not_done.is_empty(), "{} of 16", done.len());
    assert!(done.into_iter().all(|answer| answer.unwrap().into_inner().ranks == expected));
    for answer in not_done {
        let status = refused(answer, Code::ResourceExhausted, "--max-concurrent-requests");
        let delay = status.get_details_retry_info().unwrap().retry_delay.unwrap();
        assert_eq!(delay, Duration::from_secs(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_too_late_is_dropped() {
    let grpc = grpc(&["xlmr_base"], &["--batch-tokens=100"]).await;
    let late = with_options(many(1000), r#"{"deadline_ms": 30}"#);
    refused(grpc.rerank().rerank(late).await, Code::DeadlineExceeded, "deadline");
    // As gRPC tells it; a client of it would not wait for the answer.
    let message = many(1000).encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    let mut stream = std::net::TcpStream::connect(grpc.address.strip_prefix("http://").unwrap()).unwrap();
    let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "30m")];
    let started = Instant::now();
    write_request(&mut stream, "POST", "/tei.v1.Rerank/Rerank", &headers, &frame);
    let answer = read_answer(stream);
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("4")), "{answer:?}");
    assert_eq!(grpc.rerank().rerank(many(1)).await.unwrap().into_inner().ranks.len(), 1);
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!(sample(&metrics(&grpc.server), "te_queue_size{model=\"xlmr_base\"}"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_and_what_there_is_not() {
    let grpc = grpc(&["xlmr_base"], &["--payload-limit=10000"]).await;
    let large = "x".repeat(20_000);
    refused(grpc.predict().predict_pair(pair("q", &large)).await, Code::OutOfRange, "--payload-limit");
    let mut answers =
        grpc.predict().predict_pair_stream(stream::iter([pair("q", &large)])).await.unwrap().into_inner();
    refused(answers.next().await.unwrap(), Code::OutOfRange, "10000");
    let nowhere = tonic::codegen::http::uri::PathAndQuery::from_static("/tei.v1.Nowhere/Nothing");
    let mut client = tonic::client::Grpc::new(grpc.channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<RerankRequest, RerankRequest>::default();
    refused(client.unary(Request::new(many(1)), nowhere, codec).await, Code::Unimplemented, "");
    let mut request = Request::new(many(1));
    request.metadata_mut().insert("x-request-id", "mine".parse().unwrap());
    let answer = grpc.rerank().rerank(request).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "mine");
    let line = loop {
        let line = grpc.server.next_line();
        if line["id"] == "mine" {
            break line;
        }
    };
    assert_eq!((line["path"].as_str(), line["status"].as_u64()), (Some("/tei.v1.Rerank/Rerank"), Some(0)));
    assert!(line["run"].is_string(), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection() {
    let server = start(&["xlmr_base"], &["--grpc-port=0"]);
    let address = server.logged("listening for gRPC")["address"].as_str().unwrap().to_owned();
    let channel = Endpoint::from_shared(address).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    let mut states = health.watch(of("tei.v1.Rerank")).await.unwrap().into_inner();
    let mut last = states.next().await.unwrap().unwrap().status();
    while last != ServingStatus::Serving {
        assert_eq!(last, ServingStatus::NotServing);
        last = states.next().await.unwrap().unwrap().status();
    }
    server.logged("ready");
    // A reranker has no vectors.
    for (service, serves) in [
        ("", true),
        ("tei.v1.Info", true),
        ("tei.v1.Tokenize", true),
        ("tei.v1.Rerank", true),
        ("tei.v1.Predict", true),
        ("tei.v1.Embed", false),
    ] {
        let state = health.check(of(service)).await.unwrap().into_inner().status();
        assert_eq!(state == ServingStatus::Serving, serves, "{service}");
    }
    refused(health.check(of("tei.v1.Nowhere")).await, Code::NotFound, "tei.v1.Nowhere");
    let request = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let requests = [
        request(MessageRequest::ListServices(String::new())),
        request(MessageRequest::FileContainingSymbol("tei.v1.Rerank".to_owned())),
    ];
    let mut reflection = ServerReflectionClient::new(channel);
    let mut answers = reflection.server_reflection_info(stream::iter(requests)).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(services)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["grpc.health.v1.Health", "tei.v1.Embed", "tei.v1.Info", "tei.v1.Predict", "tei.v1.Rerank"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::FileDescriptorResponse(files)) = answer else { panic!("{answer:?}") };
    let text = String::from_utf8_lossy(&files.file_descriptor_proto[0]).into_owned();
    assert!(text.contains("RerankStreamRequest"), "{text}");
    // Whoever watches learns of the end, and does not hold it up.
    server.terminate();
    assert_eq!(states.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(states.next().await.is_none());
    drop((answers, reflection));
    assert!(server.ended().success());
}

/// SIGTERM: what was taken is answered, a stream ends behind its last answer, and the process ends.
#[tokio::test(flavor = "multi_thread")]
async fn it_drains() {
    let grpc = grpc(&["xlmr_base"], &["--batch-tokens=100"]).await;
    let expected = grpc.rerank().rerank(many(300)).await.unwrap().into_inner().ranks;
    let (sender, receiver) = mpsc::channel(1);
    sender.send(pair("a", "b")).await.unwrap();
    let mut answers = grpc.predict().predict_pair_stream(from(receiver)).await.unwrap().into_inner();
    assert_eq!(answers.next().await.unwrap().unwrap().predictions.len(), 1);
    let mut client = grpc.rerank();
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.rerank(many(300)).await })
        })
        .collect();
    let start = Instant::now();
    while sample(&metrics(&grpc.server), "te_queue_size{model=\"xlmr_base\"}") < 3.0 {
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    grpc.server.terminate();
    grpc.server.logged("stopping: what was taken is answered");
    refused(answers.next().await.unwrap(), Code::Unavailable, "shutting down");
    drop(sender);
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().into_inner().ranks, expected);
    }
    let _ = client.rerank(many(1)).await.unwrap_err();
    assert!(grpc.server.ended().success());
}

/// A client that goes away takes the work of its stream along.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_is_dropped() {
    let grpc = grpc(&["xlmr_base"], &["--batch-tokens=100"]).await;
    let message = pair("what is panda?", &"word ".repeat(80));
    let messages = stream::iter(vec![message; 2000]);
    let mut answers = grpc.predict().predict_pair_stream(messages).await.unwrap().into_inner();
    answers.next().await.unwrap().unwrap();
    drop(answers);
    let start = Instant::now();
    while sample(&metrics(&grpc.server), "te_queue_size{model=\"xlmr_base\"}") != 0.0 {
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let scored = sample(&metrics(&grpc.server), "te_predict_success");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(sample(&metrics(&grpc.server), "te_predict_success"), scored);
    assert!(scored < 1500.0, "{scored}");
    // Its places are free again.
    assert_eq!(grpc.rerank().rerank(many(2)).await.unwrap().into_inner().ranks.len(), 2);
}

/// One counter for both ways in.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happened() {
    let grpc = grpc(&["xlmr_base"], &[]).await;
    grpc.rerank().rerank(many(3)).await.unwrap();
    grpc.predict().predict_pair(pair("a", "b")).await.unwrap();
    let messages = stream::iter([pair("a", "b"), pair("a", "c")]);
    let answers = grpc.predict().predict_pair_stream(messages).await.unwrap().into_inner();
    assert_eq!(answers.count().await, 2);
    grpc.predict().predict_pair(pair("a", "b")).await.unwrap();
    refused(grpc.rerank().rerank(many(0)).await, Code::InvalidArgument, "no texts");
    let samples = metrics(&grpc.server);
    for (name, value) in [
        ("te_request_count{method=\"batch\"}", 1.0),
        ("te_request_count{method=\"single\"}", 4.0),
        ("te_request_success{method=\"batch\"}", 1.0),
        ("te_request_success{method=\"single\"}", 4.0),
        ("te_request_failure{err=\"validation\"}", 1.0),
        ("te_predict_success", 7.0),
        ("te_predict_inference_duration_count", 5.0),
    ] {
        assert_eq!(sample(&samples, name), value, "{name}");
    }
}
