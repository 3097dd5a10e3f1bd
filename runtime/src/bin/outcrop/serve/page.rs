//! What a browser is shown: a page to try rankings on, and the description of every request. All of it is in the program.

use axum::Json;
use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::Value;

/// Nothing is loaded from anywhere else.
const POLICY: (HeaderName, &str) = (
    header::CONTENT_SECURITY_POLICY,
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'",
);

/// `/`
pub(super) async fn index() -> Response {
    ([POLICY], Html(include_str!("page/index.html"))).into_response()
}

/// `/docs`
pub(super) async fn docs() -> Response {
    ([POLICY], Html(include_str!("page/docs.html"))).into_response()
}

/// `/openapi.json`
pub(super) async fn openapi() -> Response {
    // It is checked by a test.
    let mut document: Value = serde_json::from_str(include_str!("page/openapi.json")).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    Json(document).into_response()
}
