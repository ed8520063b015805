//! Everything that is served, as one table; the OpenAPI test compares the description with it.

use std::sync::Arc;

use axum::Router;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post};
use engine::limits::{REQUESTS_MAX, STREAMS_MAX};
use queries::api::Backend;
use tokio::sync::{Semaphore, watch};

use crate::{
    Options, cache, dead_letters, documents, embeddings, events, guard, later, observe, push,
    search, sql, status,
};

/// What every handler shares.
pub(crate) struct Front<B> {
    pub(crate) backend: Arc<B>,
    pub(crate) options: Options,
    /// Becomes true when the server stops; streams end then.
    pub(crate) closing: watch::Receiver<bool>,
    /// Requests in progress.
    pub(crate) requests: Semaphore,
    /// Open streams; a permit lives in the stream's state and returns when the reader goes.
    pub(crate) streams: Arc<Semaphore>,
}

impl<B: Backend> Front<B> {
    pub(crate) fn new(
        backend: Arc<B>,
        options: Options,
        closing: watch::Receiver<bool>,
    ) -> Arc<Front<B>> {
        Arc::new(Front {
            backend,
            options,
            closing,
            requests: Semaphore::new(REQUESTS_MAX),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        })
    }
}

/// One row of the table: method, path, handler, and whether this version answers it at all.
type Row<B> = (Method, &'static str, MethodRouter<Arc<Front<B>>>);

fn table<B: Backend>() -> Vec<Row<B>> {
    let (read, write, remove) = (Method::GET, Method::POST, Method::DELETE);
    vec![
        (write.clone(), "/v1/sql", post(sql::sql::<B>)),
        (write.clone(), "/v1/search", post(search::search::<B>)),
        (
            write.clone(),
            "/v1/sources/{source}/documents",
            post(push::push::<B>),
        ),
        (
            read.clone(),
            "/v1/documents/{source}",
            get(documents::by_parameter::<B>),
        ),
        (
            read.clone(),
            "/v1/documents/{source}/{*key}",
            get(documents::by_path::<B>),
        ),
        (
            write.clone(),
            "/v1/caches/{cache}/lookup",
            post(cache::lookup::<B>),
        ),
        (
            write.clone(),
            "/v1/caches/{cache}/store",
            post(cache::store::<B>),
        ),
        (
            read.clone(),
            "/v1/caches/{cache}/events",
            get(events::cache::<B>),
        ),
        (
            read.clone(),
            "/v1/caches/{cache}/entries/{id}",
            get(cache::entry::<B>),
        ),
        (
            remove,
            "/v1/caches/{cache}/entries/{id}",
            delete(cache::forget::<B>),
        ),
        (
            read.clone(),
            "/v1/dead_letters",
            get(dead_letters::list::<B>),
        ),
        (
            write.clone(),
            "/v1/dead_letters/replay",
            post(dead_letters::replay::<B>),
        ),
        (
            write.clone(),
            "/v1/embeddings",
            post(embeddings::embeddings::<B>),
        ),
        (read.clone(), "/v1/pipeline", get(status::pipeline::<B>)),
        (read.clone(), "/v1/progress", get(status::progress::<B>)),
        (read.clone(), "/health", get(status::health)),
        (read.clone(), "/ready", get(status::ready::<B>)),
        (read.clone(), "/metrics", get(status::metrics::<B>)),
        (read.clone(), "/openapi.json", get(status::openapi)),
        (read.clone(), "/console", get(status::console)),
        // Named by the public interface and not built yet: refused by name, never a bare 404.
        (
            write.clone(),
            "/v1/search/subscribe",
            post(later::subscribe),
        ),
        (read, "/v1/search/subscribe", get(later::subscribe)),
        (
            write.clone(),
            "/v1/vector_stores/{index}/search",
            post(later::vector_store),
        ),
        (write, "/mcp", post(later::mcp)),
    ]
}

/// Method and path of every route, paths as OpenAPI writes them (`{*key}` is `{key}`).
pub fn served() -> Vec<(String, String)> {
    table::<Nobody>()
        .into_iter()
        .map(|(method, path, _)| (method.to_string(), path.replace("{*", "{")))
        .collect()
}

pub(crate) fn router<B: Backend>(front: Arc<Front<B>>) -> Router {
    let routes = table::<B>();
    let router = routes
        .into_iter()
        .fold(Router::new(), |router, (_, path, handler)| {
            router.route(path, handler)
        });
    router
        .fallback(later::nowhere)
        .method_not_allowed_fallback(later::wrong_method)
        .layer(from_fn_with_state(Arc::clone(&front), guard::guard::<B>))
        .layer(from_fn_with_state(
            Arc::clone(&front),
            observe::observe::<B>,
        ))
        .with_state(front)
}

/// A backend type for [`served`], which needs the table's type and never calls a handler.
enum Nobody {}

mod nobody {
    //! [`super::Nobody`] has no values, so every call of it is impossible by type.
    use queries::api::*;
    use queries::problem::Problem;
    use serde_json::Value as Json;

    use super::Nobody;

    impl Backend for Nobody {
        async fn sql(&self, _: String, _: Vec<Json>) -> (Vec<SqlReply>, Option<Problem>) {
            match *self {}
        }
        async fn search(&self, _: SearchRequest) -> Reply<SearchReply> {
            match *self {}
        }
        async fn push(&self, _: PushRequest) -> Reply<PushReply> {
            match *self {}
        }
        async fn document(&self, _: DocumentRequest) -> Reply<DocumentReply> {
            match *self {}
        }
        async fn lookup(&self, _: String, _: LookupRequest) -> Reply<LookupReply> {
            match *self {}
        }
        async fn store(&self, _: String, _: StoreRequest) -> Reply<StoreReply> {
            match *self {}
        }
        async fn entry(&self, _: String, _: String) -> Reply<Json> {
            match *self {}
        }
        async fn forget(&self, _: String, _: String) -> Reply<Json> {
            match *self {}
        }
        async fn cache_events(
            &self,
            _: String,
            _: Option<String>,
            _: u64,
        ) -> Reply<Vec<(String, String, Json)>> {
            match *self {}
        }
        async fn dead_letters(&self, _: DeadLetterRequest) -> Reply<Vec<DeadLetterReply>> {
            match *self {}
        }
        async fn replay(&self, _: ReplayRequest) -> Reply<ReplayReply> {
            match *self {}
        }
        async fn embeddings(&self, _: EmbeddingsRequest) -> Reply<EmbeddingsReply> {
            match *self {}
        }
        async fn pipeline(&self) -> Reply<Json> {
            match *self {}
        }
        async fn progress(&self) -> Reply<Json> {
            match *self {}
        }
        fn readiness(&self) -> Readiness {
            match *self {}
        }
        fn metrics(&self) -> String {
            match *self {}
        }
    }
}
