//! Server-sent events of a cache.
//!
//! ```text
//! reader pulls ─▶ Backend::cache_events(after, 1 s) ─▶ frames ─▶ after := id of the last one
//! ```
//!
//! The stream is a loop that asks for what comes after the last id sent. So a reader resumes exactly
//! with `Last-Event-ID`, and a slow one holds no memory: nothing is asked for until it has read.
//! A quiet second sends a comment, which tells both ends that the connection lives. Trouble is an
//! `error` event with a problem, then the end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::response::IntoResponse;
use engine::limits::STREAMS_MAX;
use futures_util::stream;
use queries::api::Backend;
use queries::problem::Problem;
use serde_json::Value as Json;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use crate::params::Params;
use crate::reply::Outcome;
use crate::routes::Front;

/// The longest silence on a stream, milliseconds.
const QUIET_MS: u64 = 1_000;

type Event = (String, String, Json);

pub(crate) async fn cache<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    Path(cache): Path<String>,
    request: Request,
) -> Outcome {
    let mut params = Params::of(request.uri())?;
    let parameter = params.text("last_event_id")?;
    params.finish()?;
    let header = request
        .headers()
        .get("last-event-id")
        .and_then(|value| value.to_str().ok());
    let after = header.map(str::to_owned).or(parameter);
    let Ok(permit) = Arc::clone(&front.streams).try_acquire_owned() else {
        let detail = format!("{STREAMS_MAX} event streams are open (STREAMS_MAX)");
        return Err(Problem::new(429, "too-many-streams", detail).into());
    };
    // The first answer comes before the head of the reply: an unknown cache is a 404, not a stream.
    let first = front
        .backend
        .cache_events(cache.clone(), after.clone(), 0)
        .await?;
    let follower = Follower {
        closing: front.closing.clone(),
        front,
        cache,
        after,
        _permit: permit,
    };
    let stream = stream::unfold(Some((follower, Some(first))), |state| async move {
        let (mut follower, first) = state?;
        let (frames, goes_on) = follower.next(first).await?;
        Some((
            Ok::<_, Infallible>(frames),
            goes_on.then_some((follower, None)),
        ))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // Proxies must not hold events back to fill a buffer.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

struct Follower<B> {
    front: Arc<Front<B>>,
    closing: watch::Receiver<bool>,
    cache: String,
    after: Option<String>,
    _permit: OwnedSemaphorePermit,
}

impl<B: Backend> Follower<B> {
    /// The next frames and whether the stream goes on; `None` when the server stops.
    async fn next(&mut self, first: Option<Vec<Event>>) -> Option<(String, bool)> {
        if let Some(events) = first {
            // Also when there are none: the reader learns that it is connected.
            return Some((self.frames(&events), true));
        }
        let quiet = Instant::now() + Duration::from_millis(QUIET_MS);
        let backend = Arc::clone(&self.front.backend);
        let asked = backend.cache_events(self.cache.clone(), self.after.clone(), QUIET_MS);
        let answer = async {
            let answer = asked.await;
            if matches!(&answer, Ok(events) if events.is_empty()) {
                sleep_until(quiet).await;
            }
            answer
        };
        let answer = tokio::select! {
            // An error means that the server is gone: the same end.
            _ = self.closing.wait_for(|is_closing| *is_closing) => None,
            answer = answer => Some(answer),
        };
        Some(match answer? {
            Ok(events) => (self.frames(&events), true),
            Err(problem) => (frame(None, "error", &problem_json(&problem)), false),
        })
    }

    fn frames(&mut self, events: &[Event]) -> String {
        if events.is_empty() {
            return ": waiting\n\n".to_owned();
        }
        let frames = events
            .iter()
            .map(|(id, name, data)| frame(Some(id), name, &data.to_string()));
        let frames = frames.collect();
        self.after = events.last().map(|(id, ..)| id.clone());
        frames
    }
}

fn problem_json(problem: &Problem) -> String {
    serde_json::to_string(problem).expect("a problem has string keys only")
}

/// One event; JSON text has no line breaks, so `data` is one line.
fn frame(id: Option<&str>, name: &str, data: &str) -> String {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("{id}event: {name}\ndata: {data}\n\n")
}
