//! The HTTP front door: wire formats in, [`queries::api::Backend`] calls, wire formats out.
//!
//! The idea: this crate knows nothing of the engine. A route turns bytes into a request value, the
//! backend answers or has a [`queries::problem::Problem`], and one middleware gives every reply its
//! id, its span, its metrics and, if it is a problem, its body. So no handler can forget any of it.
//!
//! ```text
//! socket ─▶ observe (id, span, metrics, panics) ─▶ guard (host, origin) ─▶ route ─▶ Backend
//!    ▲                      │
//!    └── problem+json ◀─────┘  every error, 404 and 405 included
//! ```
//!
//! Invariants:
//! - every error is `application/problem+json` with a code of `docs/errors.md` and a `request_id`;
//! - every bound is one of [`engine::limits`] and is named in the error that it causes;
//! - what is not known (a field, a parameter) is refused, never ignored;
//! - a client that goes away drops its handler's future, and with it the backend's holds;
//! - streams are pulled by their reader: nothing is buffered for a slow one.
//!
//! Reading order: [`run`], then `routes` (the table of everything served), then one file per route.

mod body;
mod cache;
mod dead_letters;
mod documents;
mod embeddings;
mod events;
mod guard;
mod later;
mod observe;
mod params;
mod push;
mod reply;
mod routes;
mod search;
mod sql;
mod status;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use engine::limits::DRAIN_MS;
use queries::api::Backend;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use routes::served;
pub use status::OPENAPI;

/// How the front door behaves; the defaults are the safe ones.
#[derive(Debug, Clone)]
pub struct Options {
    /// Also answers hosts and origins other than loopback names and addresses. Without credentials
    /// a page on the web could otherwise reach a server on its reader's own machine (DNS rebinding,
    /// cross-site posts).
    pub insecure: bool,
    /// From the signal to stop to the end of requests that still run, milliseconds.
    pub drain_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            insecure: false,
            drain_ms: DRAIN_MS,
        }
    }
}

/// Serves `backend` on `listener` until `shutdown` completes, then lets running requests finish for
/// at most [`Options::drain_ms`]. Event streams end at once.
///
/// The caller brings both the socket and the signal, so that tests bind port 0 and stop at will.
///
/// # Errors
/// Only if the socket cannot be set up; a failing connection ends by itself.
pub async fn run<B: Backend>(
    listener: TcpListener,
    backend: Arc<B>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    options: Options,
) -> io::Result<()> {
    observe::describe_metrics();
    let drain = Duration::from_millis(options.drain_ms);
    let (close, closing) = watch::channel(false);
    let router = routes::router(routes::Front::new(backend, options, closing.clone()));
    let listener = listener.tap_io(|stream| {
        // Replies are small; without this a reply may wait for the acknowledgement of the last one.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    let signal = async move {
        shutdown.await;
        // Nobody listening is fine: then there is no stream to end.
        let _ = close.send(true);
    };
    let serving = axum::serve(listener, router)
        .with_graceful_shutdown(signal)
        .into_future();
    let mut expired = closing;
    let deadline = async move {
        if expired.wait_for(|is_closing| *is_closing).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        result = serving => result,
        () = deadline => {
            tracing::warn!(drain_ms = drain.as_millis() as u64, "requests still ran at the end of the drain");
            Ok(())
        }
    }
}
