//! Traces, as a collector receives them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::serve;
use crate::cli::spawn;

/// A collector that hands on what it is told.
struct Collector(Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        // The test may have seen enough.
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Starts a collector: its address, and what it is told.
fn collect() -> (String, Receiver<ExportTraceServiceRequest>) {
    let (sender, receiver) = channel();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = format!("http://{}", incoming.local_addr().unwrap());
    let service = TraceServiceServer::new(Collector(sender));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    (address, receiver)
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every request a span below its caller's, with one for each stage.
#[tokio::test(flavor = "multi_thread")]
async fn requests_and_their_stages() {
    let (address, received) = collect();
    let flag = format!("--otlp-endpoint={address}");
    let server = serve(&["xlmr_base"], &[&flag, "--otlp-service-name=reranker", "--grpc-port=0"]);
    let (trace, caller) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let parent = format!("00-{trace}-{caller}-01");
    let body = json!({"query": "q", "texts": ["a", "b"]}).to_string();
    let headers = [("traceparent", parent.as_str()), ("x-request-id", "mine")];
    assert_eq!(server.send("POST", "/rerank", &headers, body.as_bytes()).status, 200);
    // One that its caller does not sample, one without a caller, one that is refused, and one that is none.
    let unsampled = format!("00-{trace}-{caller}-00");
    assert_eq!(server.send("POST", "/rerank", &[("traceparent", &unsampled)], body.as_bytes()).status, 200);
    assert_eq!(server.send("POST", "/rerank", &[], body.as_bytes()).status, 200);
    assert_eq!(server.send("POST", "/rerank", &headers, b"{").status, 400);
    assert_eq!(server.get("/health").status, 200);
    let grpc = server.logged("listening for gRPC")["address"].as_str().unwrap().to_owned();
    super::grpc::rerank_once(&grpc, &parent).await;
    // What is left is sent at the end.
    server.terminate();
    assert!(server.ended().success());
    let mut spans: Vec<Span> = Vec::new();
    let started = Instant::now();
    while spans.len() < 13 {
        let left = Duration::from_secs(60).saturating_sub(started.elapsed());
        for resource in received.recv_timeout(left).expect("too few spans").resource_spans {
            let name = attribute(&resource.resource.as_ref().unwrap().attributes, "service.name").unwrap();
            assert_eq!(name, &Value::StringValue("reranker".to_owned()));
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let requests: Vec<&Span> = spans.iter().filter(|span| span.kind() == SpanKind::Server).collect();
    assert_eq!(requests.len(), 4, "{spans:#?}");
    let stages = |request: &Span| -> Vec<&Span> {
        let mut stages: Vec<_> = spans.iter().filter(|span| span.parent_span_id == request.span_id).collect();
        stages.sort_by_key(|stage| stage.start_time_unix_nano);
        stages
    };
    let [told, own, refused, grpc] = requests[..] else { panic!("{requests:?}") };
    for (span, name, code) in [
        (told, "rerank", ("http.response.status_code", 200)),
        (refused, "rerank", ("http.response.status_code", 400)),
        (grpc, "tei.v1.Rerank/Rerank", ("rpc.grpc.status_code", 0)),
    ] {
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (trace.to_owned(), caller.to_owned()));
        assert_eq!(span.name, name);
        assert_eq!(attribute(&span.attributes, code.0), Some(&Value::IntValue(code.1)), "{span:?}");
    }
    assert_eq!(
        attribute(&told.attributes, "outcrop.request_id"),
        Some(&Value::StringValue("mine".to_owned()))
    );
    assert_ne!(hex(&own.trace_id), trace);
    assert!(own.parent_span_id.is_empty());
    assert!(stages(refused).is_empty());
    for request in [told, own, grpc] {
        let stages = stages(request);
        assert_eq!(
            stages.iter().map(|stage| stage.name.as_str()).collect::<Vec<_>>(),
            ["tokenize", "queue", "run"]
        );
        for stage in &stages {
            assert_eq!(stage.trace_id, request.trace_id);
            assert_eq!(attribute(&stage.attributes, "outcrop.texts"), Some(&Value::IntValue(2)));
            assert!(stage.start_time_unix_nano >= request.start_time_unix_nano, "{stage:?} {request:?}");
            assert!(stage.end_time_unix_nano <= request.end_time_unix_nano, "{stage:?} {request:?}");
        }
        for two in stages.windows(2) {
            assert_eq!(two[0].end_time_unix_nano, two[1].start_time_unix_nano);
        }
        assert!(stages[2].end_time_unix_nano > stages[2].start_time_unix_nano);
    }
}

/// A collector that is not there is told of, and nothing else happens.
#[test]
fn without_a_collector() {
    let server = serve(&["xlmr_base"], &["--otlp-endpoint=http://127.0.0.1:9"]);
    let body = json!({"query": "q", "texts": ["a", "b"]});
    assert_eq!(server.post("/rerank", &body).status, 200);
    server.terminate();
    let mut told = false;
    while let Some(line) = server.line_before_the_end() {
        told |= line["level"] == "WARN" || line["level"] == "ERROR";
    }
    assert!(told);
    assert!(server.ended().success());
    for endpoint in ["https://collector:4317", "collector:4317", "http://"] {
        let child = spawn(["serve", "--port=0", "--model=a", "--otlp-endpoint", endpoint]);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("--otlp-endpoint"), "{stderr}");
    }
}
