//! What every request gets, whatever its route does: an id, a span, metrics, a caught panic, and the
//! body of its problem.
//!
//! | metric | unit | labels |
//! |---|---|---|
//! | `headwater_http_requests_total` | requests | `method`, `route`, `status` |
//! | `headwater_http_request_seconds` | seconds to the reply's head | `method`, `route` |
//!
//! `route` is the pattern (`/v1/documents/{source}`), never the path, so that labels stay few.

use std::collections::hash_map::RandomState;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use engine::limits::REQUESTS_MAX;
use queries::api::Backend;
use queries::problem::Problem;
use tracing::Instrument;

use crate::reply::{Failure, REQUEST_ID, problem_reply};
use crate::routes::Front;

const REQUESTS_TOTAL: &str = "headwater_http_requests_total";
const REQUEST_SECONDS: &str = "headwater_http_request_seconds";

/// Unit and meaning, once.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        REQUESTS_TOTAL,
        "HTTP requests answered, by route and status"
    );
    metrics::describe_histogram!(
        REQUEST_SECONDS,
        metrics::Unit::Seconds,
        "Time from an HTTP request to the head of its reply"
    );
}

/// The id of a request, for handlers that pass it on.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// Unguessable enough to search logs by, and unlike any other of this process: a counter through a
/// keyed hash.
fn new_request_id() -> String {
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("r_{:016x}", SEED.hash_one(number))
}

pub(crate) async fn observe<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = new_request_id();
    let method = method_label(request.method());
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.map_or("none", MatchedPath::as_str).to_owned();
    let span = span(&id, method, &route, request.headers());
    request.extensions_mut().insert(RequestId(id.clone()));
    let answer = async {
        let Ok(_permit) = front.requests.try_acquire() else {
            let detail = format!("{REQUESTS_MAX} requests are in progress (REQUESTS_MAX)");
            return Failure::from(Problem::new(429, "too-many-requests", detail)).into_response();
        };
        or_caught(next.run(request)).await
    };
    let mut response = answer.instrument(span.clone()).await;
    if let Some(Failure(problem)) = response.extensions_mut().remove::<Failure>() {
        let _entered = span.enter();
        if problem.status >= 500 {
            tracing::warn!(code = %problem.code, detail = %problem.detail, "request failed");
        } else {
            tracing::debug!(code = %problem.code, detail = %problem.detail, "request refused");
        }
        let allow = response.headers_mut().remove(header::ALLOW);
        response = problem_reply(*problem, &id);
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    let id = HeaderValue::from_str(&id).expect("an id is hexadecimal");
    response.headers_mut().insert(REQUEST_ID, id);
    let status = response.status().as_str().to_owned();
    metrics::counter!(REQUESTS_TOTAL, "method" => method, "route" => route.clone(), "status" => status)
        .increment(1);
    metrics::histogram!(REQUEST_SECONDS, "method" => method, "route" => route)
        .record(started.elapsed().as_secs_f64());
    response
}

/// Clients may send any word as a method; labels must stay few.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn span(id: &str, method: &str, route: &str, headers: &HeaderMap) -> tracing::Span {
    let parent = headers
        .get("traceparent")
        .and_then(|value| traceparent(value.to_str().ok()?));
    let (trace_id, parent_id) = parent.unwrap_or_default();
    tracing::info_span!("request", id, method, route, trace_id, parent_id)
}

/// Trace and parent of a W3C `traceparent` (`00-<32 hex>-<16 hex>-<2 hex>`); zeros mean none.
fn traceparent(text: &str) -> Option<(&str, &str)> {
    let mut fields = text.split('-');
    let (version, trace, parent, flags) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let is_hex = |field: &str, length: usize| {
        field.len() == length
            && field
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_some = |field: &str| field.bytes().any(|b| b != b'0');
    let is_whole =
        is_hex(version, 2) && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    let is_known = version != "ff" && (version != "00" || fields.next().is_none());
    (is_whole && is_known && is_some(trace) && is_some(parent)).then_some((trace, parent))
}

/// A panic in one request answers that request with 500; the others go on.
async fn or_caught(answer: impl Future<Output = Response>) -> Response {
    let mut answer = pin!(answer);
    poll_fn(move |context| {
        // Unwind safe: a caught future is never polled again, and handlers share only the backend,
        // whose own locks decide what a panic under them means.
        match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(context))) {
            Ok(poll) => poll,
            Err(_) => {
                let detail = "the request hit a defect of the server; its log says more";
                Poll::Ready(Failure::from(Problem::internal(detail)).into_response())
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_is_read_as_w3c_writes_it() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let good = format!("00-{trace}-{parent}-01");
        assert_eq!(traceparent(&good), Some((trace, parent)));
        let zeros = "0".repeat(32);
        let bad = [
            "",
            "00-x-y-01",
            &format!("00-{zeros}-{parent}-01"),
            &format!("ff-{trace}-{parent}-01"),
            &format!("{good}-more"),
            &good.to_uppercase(),
        ];
        for text in bad {
            assert_eq!(traceparent(text), None, "{text}");
        }
    }

    #[test]
    fn request_ids_differ() {
        assert_ne!(new_request_id(), new_request_id());
    }
}
