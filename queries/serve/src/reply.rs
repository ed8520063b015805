//! Replies and failures of handlers.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::model::Time;
use queries::problem::Problem;
use serde::Serialize;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("headwater-request-id");
pub(crate) const AS_OF: HeaderName = HeaderName::from_static("headwater-as-of");
pub(crate) const TOKEN: HeaderName = HeaderName::from_static("headwater-token");
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
pub(crate) const NDJSON: &str = "application/x-ndjson";

/// What a handler returns.
pub(crate) type Outcome = Result<Response, Failure>;

/// A problem on its way out. It travels in the response's extensions; `observe` writes the body,
/// because only it knows the request's id. Boxed: the good path should not carry its size.
#[derive(Debug, Clone)]
pub(crate) struct Failure(pub(crate) Box<Problem>);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure(Box::new(problem))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status_of(&self.0);
        response.extensions_mut().insert(self);
        response
    }
}

/// The problem's status; a number that is no error status is ours to answer for, hence 500.
pub(crate) fn status_of(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.status)
        .ok()
        .filter(|status| status.is_client_error() || status.is_server_error())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The problem as a whole reply, with `Retry-After` where the status asks for one.
pub(crate) fn problem_reply(mut problem: Problem, request_id: &str) -> Response {
    problem
        .extra
        .insert("request_id".to_owned(), request_id.into());
    let status = status_of(&problem);
    problem.status = status.as_u16();
    let mut response = bytes(status, PROBLEM_JSON, json_bytes(&problem));
    if matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) {
        let wait_s = problem
            .extra
            .get("retry_after_s")
            .and_then(serde_json::Value::as_u64);
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, wait_s.unwrap_or(1).into());
    }
    response
}

/// A JSON reply.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    bytes(status, "application/json", json_bytes(value))
}

/// A JSON reply that read state.
pub(crate) fn json_as_of(status: StatusCode, value: &impl Serialize, as_of: Time) -> Response {
    with_as_of(json(status, value), as_of)
}

/// Adds `Headwater-As-Of`.
pub(crate) fn with_as_of(mut response: Response, as_of: Time) -> Response {
    response.headers_mut().insert(AS_OF, as_of.into());
    response
}

/// Adds a header whose text the engine made; one that no header can carry is left out.
pub(crate) fn with_header(mut response: Response, name: HeaderName, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// A reply of known bytes.
pub(crate) fn bytes(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
}

/// Our reply types are maps with string keys and finite numbers.
fn json_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("reply types have string keys only")
}
