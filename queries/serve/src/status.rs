//! What the server says of itself: pipeline, progress, health, readiness, metrics, its description
//! and its web page.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use queries::api::Backend;
use queries::problem::Problem;
use serde_json::json;

use crate::params::Params;
use crate::reply::{self, Outcome};
use crate::routes::Front;

/// The OpenAPI 3.1 description that is served, as text.
pub const OPENAPI: &str = include_str!("../openapi.json");

const CONSOLE: &str = include_str!("../../../console/index.html");

pub(crate) async fn pipeline<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    request: Request,
) -> Outcome {
    Params::of(request.uri())?.finish()?;
    Ok(reply::json(
        StatusCode::OK,
        &front.backend.pipeline().await?,
    ))
}

pub(crate) async fn progress<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    request: Request,
) -> Outcome {
    Params::of(request.uri())?.finish()?;
    Ok(reply::json(
        StatusCode::OK,
        &front.backend.progress().await?,
    ))
}

/// Alive means that this answers.
pub(crate) async fn health() -> Response {
    reply::json(StatusCode::OK, &json!({ "status": "ok" }))
}

pub(crate) async fn ready<B: Backend>(State(front): State<Arc<Front<B>>>) -> Outcome {
    let readiness = front.backend.readiness();
    if readiness.ready {
        return Ok(reply::json(StatusCode::OK, &readiness));
    }
    let detail = match readiness.reasons.as_slice() {
        [] => "the server is not ready yet".to_owned(),
        reasons => reasons.join("; "),
    };
    Err(Problem::new(503, "not-ready", detail)
        .with("ready", false)
        .with("reasons", json!(readiness.reasons))
        .into())
}

pub(crate) async fn metrics<B: Backend>(State(front): State<Arc<Front<B>>>) -> Response {
    let text = front.backend.metrics();
    reply::bytes(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        text.into_bytes(),
    )
}

pub(crate) async fn openapi() -> Response {
    reply::bytes(
        StatusCode::OK,
        "application/json",
        OPENAPI.as_bytes().to_vec(),
    )
}

/// One page without any outside resource; the policy says so to the browser as well.
pub(crate) async fn console() -> Response {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                          connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, CONSOLE).into_response()
}
