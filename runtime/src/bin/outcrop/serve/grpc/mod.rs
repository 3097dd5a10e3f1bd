//! gRPC: the services of text-embeddings-inference, health and reflection, on a port of their own.
//!
//! A message is what JSON is to HTTP: it becomes the same calls (`call`), with the same places, limits, keys and metrics. What the messages
//! have no fields for comes as metadata (`message`).

mod health;
mod message;
mod services;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::Builder;
use tonic_types::{ErrorDetails, StatusExt};

use self::health::Health;
use self::services::Tei;
use self::tei::embed_server::EmbedServer;
use self::tei::info_server::InfoServer;
use self::tei::predict_server::PredictServer;
use self::tei::rerank_server::RerankServer;
use self::tei::tokenize_server::TokenizeServer;
use super::Server;
use super::http::{Protocol, admit, around};
use super::metrics;
use super::problem::{Kind, Problem};

/// What `proto/tei.proto` says, as Rust.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::pedantic, reason = "generated")]
mod tei {
    tonic::include_proto!("tei.v1");
}

/// The same for clients that ask what there is.
const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("tei");

/// Services that need no key: they say whether the server lives, and what every such program says.
const OPEN_SERVICES: [&str; 2] = ["/grpc.health.", "/grpc.reflection."];

pub(super) fn router(server: &Arc<Server>) -> Result<Router, Box<dyn std::error::Error + Send + Sync>> {
    let reflection = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let limit = server.args.payload_limit;
    let tei = Tei(Arc::clone(server));
    let routes = Routes::new(HealthServer::new(Health(Arc::clone(server))))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(InfoServer::new(tei.clone()).max_decoding_message_size(limit))
        .add_service(EmbedServer::new(tei.clone()).max_decoding_message_size(limit))
        .add_service(PredictServer::new(tei.clone()).max_decoding_message_size(limit))
        .add_service(RerankServer::new(tei.clone()).max_decoding_message_size(limit))
        .add_service(TokenizeServer::new(tei).max_decoding_message_size(limit));
    Ok(routes
        .into_axum_router()
        .layer(from_fn_with_state(Arc::clone(server), answer))
        .layer(from_fn_with_state((Arc::clone(server), Protocol::Grpc), around)))
}

pub(super) fn is_open(path: &str) -> bool {
    OPEN_SERVICES.iter().any(|service| path.starts_with(service))
}

/// When a call has arrived, beside it.
#[derive(Clone, Copy)]
struct Arrived(Instant);

/// Reads the message of a call that has one, as the body of an HTTP request is read, and answers.
async fn answer(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Arrived(Instant::now()));
    let path = request.uri().path();
    // A stream takes a place for each of its messages.
    if is_open(path) || path.ends_with("Stream") {
        return next.run(request).await;
    }
    match admit(&server, request).await {
        Ok((_place, head, body)) => next.run(Request::from_parts(head, Body::from(body))).await,
        Err(problem) => failed(problem).into_http(),
    }
}

/// The status of a call that has a problem, which is counted.
#[expect(clippy::needless_pass_by_value, reason = "it is the end of it")]
fn failed(problem: Problem) -> Status {
    metrics::failed(problem.kind);
    status(&problem)
}

pub(super) fn status(problem: &Problem) -> Status {
    let mut details = ErrorDetails::new();
    if problem.retry_after.is_some() {
        details.set_retry_info(problem.retry_after);
    }
    if let Some(field) = &problem.field {
        details.add_bad_request_violation(field, &problem.message);
    }
    Status::with_error_details(problem.kind.code(), &problem.message, details)
}

impl Kind {
    /// TEI's codes, and those that gRPC has for what TEI does not know.
    fn code(self) -> Code {
        match self {
            Self::Malformed | Self::Empty | Self::Invalid | Self::Tokenizer | Self::TooManyTexts => {
                Code::InvalidArgument
            }
            Self::NotFound => Code::NotFound,
            Self::TooLarge => Code::OutOfRange,
            Self::Unauthorized => Code::Unauthenticated,
            Self::Overloaded => Code::ResourceExhausted,
            Self::NotReady => Code::Unavailable,
            Self::SlowBody | Self::Late => Code::DeadlineExceeded,
            Self::Backend => Code::FailedPrecondition,
        }
    }
}

/// The code of a response as far as it has one by now (streams end with theirs), and whether it is the server's fault.
pub(super) fn code(response: &Response) -> (u16, bool) {
    let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
    let faults = [Code::Unknown, Code::DeadlineExceeded, Code::Internal, Code::Unavailable, Code::DataLoss];
    (code as u16, faults.contains(&code))
}
