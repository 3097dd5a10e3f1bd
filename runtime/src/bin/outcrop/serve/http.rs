//! Paths, and what happens around every request: its id, its key, its limits, its line in the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use opentelemetry::context::FutureExt;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};
use tracing::{info, warn};
use uuid::Uuid;

use super::args::ServeArgs;
use super::dialects::{Call, Endpoint, plain_error};
use super::fields::Fields;
use super::problem::{Kind, Problem};
use super::{Server, grpc, metrics, page, traces};
use crate::error::Error;

const REQUEST_ID: &str = "x-request-id";
/// The longest id that is taken over from a caller.
const MAX_ID_BYTES: usize = 128;
/// What is read, and forgotten, of a body that was refused, and how long.
const DISCARDED_BYTES: usize = 64 << 20;
const DISCARDING_TIME: Duration = Duration::from_secs(10);

/// Paths that need no key: they say whether the server lives, and what every such program says.
const OPEN_PATHS: [&str; 7] = ["/health", "/ping", "/live", "/ready", "/", "/docs", "/openapi.json"];

pub(crate) fn router(server: Arc<Server>, cors: Option<CorsLayer>) -> Router {
    let mut router = Router::new()
        .route("/", get(page::index))
        .route("/docs", get(page::docs))
        .route("/openapi.json", get(page::openapi))
        .route("/health", get(health))
        .route("/ping", get(health))
        .route("/live", get(health))
        .route("/ready", get(ready))
        .route("/info", get(info))
        .route("/v1/models", get(models))
        .route("/metrics", get(prometheus));
    for (path, endpoint) in Endpoint::PATHS {
        let handler = move |State(server), request| answer(server, request, endpoint);
        router = router.route(path, post(handler));
    }
    let router = router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state((Arc::clone(&server), Protocol::Http), around))
        .with_state(server);
    match cors {
        Some(cors) => router.layer(cors),
        None => router,
    }
}

/// Who may call from a browser.
pub(crate) fn cors(args: &ServeArgs) -> Result<Option<CorsLayer>, Error> {
    let origins = &args.cors_allow_origin;
    if origins.is_empty() {
        return Ok(None);
    }
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let value = |origin: &String| {
            HeaderValue::from_str(origin).map_err(|error| Error::Flag {
                flag: "--cors-allow-origin",
                value: origin.clone(),
                reason: error.to_string(),
            })
        };
        AllowOrigin::list(origins.iter().map(value).collect::<Result<Vec<_>, _>>()?)
    };
    let headers = [header::AUTHORIZATION, header::CONTENT_TYPE];
    let layer = CorsLayer::new().allow_origin(origin).allow_methods([Method::GET, Method::POST]);
    Ok(Some(layer.allow_headers(headers).expose_headers(Any)))
}

/// The id of a request, beside it.
#[derive(Clone)]
struct Id(String);

/// What has paths, and its own way to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

impl Protocol {
    fn is_open(self, path: &str) -> bool {
        match self {
            Self::Http => OPEN_PATHS.contains(&path),
            Self::Grpc => grpc::is_open(path),
        }
    }

    fn refuse(self, problem: &Problem) -> Response {
        match self {
            Self::Http => plain_error(problem),
            Self::Grpc => grpc::status(problem).into_http(),
        }
    }

    /// The code of a response, and whether it is the server's fault.
    fn status(self, response: &Response) -> (u16, bool) {
        match self {
            Self::Http => (response.status().as_u16(), response.status().is_server_error()),
            Self::Grpc => grpc::code(response),
        }
    }

    /// What traces call a path.
    pub(crate) fn path_attribute(self) -> &'static str {
        match self {
            Self::Http => "url.path",
            Self::Grpc => "rpc.method",
        }
    }

    /// What traces call the code of a response.
    pub(crate) fn status_attribute(self) -> &'static str {
        match self {
            Self::Http => "http.response.status_code",
            Self::Grpc => "rpc.grpc.status_code",
        }
    }
}

pub(crate) async fn around(
    State((server, protocol)): State<(Arc<Server>, Protocol)>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let id = given
        .filter(|id| !id.is_empty() && id.len() <= MAX_ID_BYTES)
        .map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
    request.extensions_mut().insert(Id(id.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let is_open = protocol.is_open(&path);
    let traces = server.traces.as_ref().filter(|_| !is_open);
    let span = traces.map(|traces| traces.request(protocol, &path, &id, request.headers()));
    let mut response = if is_open || server.keys.allow(request.headers()) {
        match &span {
            Some(span) => next.run(request).with_context(span.clone()).await,
            None => next.run(request).await,
        }
    } else {
        let (head, body) = request.into_parts();
        discard(&head, body).await;
        protocol.refuse(&Problem::new(
            Kind::Unauthorized,
            "no key, or a wrong one: send `Authorization: Bearer KEY`",
        ))
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let ((status, is_fault), ms) = (protocol.status(&response), started.elapsed().as_secs_f64() * 1e3);
    if let Some(span) = span {
        traces::answered(&span, protocol, status, is_fault);
    }
    let stage =
        |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
    let stages = (stage("x-tokenization-time"), stage("x-queue-time"), stage("x-inference-time"));
    let (tokenize, queue, run) = stages;
    // Probes are no news: that a server is loading, or has lost its GPU, is said when it happens.
    if is_fault && !is_open {
        warn!(id, %method, path, status, ms, tokenize, queue, run);
    } else if !is_open {
        info!(id, %method, path, status, ms, tokenize, queue, run);
    }
    response
}

/// Reads the body and answers.
async fn answer(server: Arc<Server>, request: Request, endpoint: Endpoint) -> Response {
    let started = Instant::now();
    let id = request.extensions().get::<Id>().map_or_else(String::new, |id| id.0.clone());
    let (_place, fields) = match admit(&server, request).await {
        Ok((place, _, body)) => (Some(place), Fields::parse(&body)),
        Err(problem) => (None, Err(problem)),
    };
    endpoint.answer(Call { server, id, started }, fields).await
}

/// Takes a place for a request and reads its body, apart from its head.
pub(crate) async fn admit(
    server: &Server,
    request: Request,
) -> Result<(OwnedSemaphorePermit, Parts, Bytes), Problem> {
    let (head, body) = request.into_parts();
    // Before a body is kept that nobody will look at.
    let place = server.place().and_then(|place| server.models().map(|_| place));
    match place {
        Ok(place) => {
            let body = read_body(&server.args, &head, body).await?;
            Ok((place, head, body))
        }
        Err(problem) => {
            discard(&head, body).await;
            Err(problem)
        }
    }
}

async fn read_body(args: &ServeArgs, head: &Parts, mut body: Body) -> Result<Bytes, Problem> {
    let limit = args.payload_limit;
    let told =
        head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let timeout = Duration::from_secs(args.read_timeout);
    if told.is_none_or(|length| length <= limit as u64) {
        match tokio::time::timeout(timeout, Limited::new(&mut body, limit).collect()).await {
            Ok(Ok(body)) => return Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {}
            Ok(Err(error)) => {
                return Err(Problem::new(Kind::Malformed, format!("the body could not be read: {error}")));
            }
            Err(_) => {
                let message = format!("the body did not arrive within {} s", timeout.as_secs());
                return Err(Problem::new(Kind::SlowBody, message));
            }
        }
    }
    discard(head, body).await;
    let message = format!("the body is larger than {limit} bytes (--payload-limit): send several requests");
    Err(Problem::new(Kind::TooLarge, message))
}

/// Reads what a caller still sends who is refused. A connection that is closed on bytes that nobody has read is reset, and the answer is
/// lost with it: to most clients a refusal would look like a crash.
async fn discard(head: &Parts, mut body: Body) {
    // Who asks first has sent nothing yet.
    if head.headers.contains_key(header::EXPECT) {
        return;
    }
    let read = async {
        let mut left = DISCARDED_BYTES;
        while left > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    // Who is slower finds the connection closed.
    let _ = tokio::time::timeout(DISCARDING_TIME, read).await;
}

/// The process lives and is of use; no device is asked.
async fn health(State(server): State<Arc<Server>>) -> Response {
    match server.check_health() {
        Ok(()) => StatusCode::OK.into_response(),
        Err(problem) => plain_error(&problem),
    }
}

/// Whether requests would be answered now.
async fn ready(State(server): State<Arc<Server>>) -> Response {
    match server.models() {
        Ok(_) => StatusCode::OK.into_response(),
        Err(problem) => plain_error(&problem),
    }
}

/// TEI's description of the first model, and of all under `models`.
async fn info(State(server): State<Arc<Server>>) -> Response {
    let models = match server.models() {
        Ok(models) => models,
        Err(problem) => return plain_error(&problem),
    };
    let all: Vec<Value> = models.iter().map(|model| model.info(&server.args)).collect();
    let mut first = all.first().cloned().unwrap_or_default();
    if all.len() > 1 {
        first["models"] = Value::Array(all);
    }
    Json(first).into_response()
}

/// OpenAI's list of models.
async fn models(State(server): State<Arc<Server>>) -> Response {
    match server.models() {
        Ok(models) => {
            let model = |model: &super::models::Model| json!({"id": model.name, "object": "model", "created": 0, "owned_by": "outcrop", "root": model.id});
            Json(json!({"object": "list", "data": models.iter().map(model).collect::<Vec<_>>()}))
                .into_response()
        }
        Err(problem) => plain_error(&problem),
    }
}

async fn prometheus(State(server): State<Arc<Server>>) -> Response {
    for model in server.models.get().iter().flat_map(|models| models.iter()) {
        metrics::queue(&model.name, &model.queue.status());
    }
    let text = server.prometheus.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], Body::from(text)).into_response()
}

async fn no_such_path(request: Request) -> Response {
    let paths: Vec<&str> = Endpoint::PATHS.iter().map(|(path, _)| *path).collect();
    let message = format!("there is no {}; requests go to {}", request.uri().path(), paths.join(", "));
    plain_error(&Problem::new(Kind::NotFound, message))
}

async fn no_such_method(request: Request) -> Response {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    let mut response = plain_error(&Problem::new(Kind::Malformed, message));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}
