//! Calls that the public interface names and this version does not have, and calls that nobody has.

use axum::extract::Request;
use axum::http::Uri;
use queries::problem::Problem;

use crate::embeddings::for_openai;
use crate::reply::Failure;

/// 501: well understood, not built.
fn not_yet(what: &str) -> Problem {
    Problem {
        status: 501,
        ..Problem::not_supported(format!("{what} is not supported by this version"))
    }
}

pub(crate) async fn subscribe() -> Failure {
    not_yet("a live top-k")
        .hint("ask POST /v1/search again")
        .into()
}

pub(crate) async fn vector_store() -> Failure {
    for_openai(not_yet("the vector store call").hint("use POST /v1/search"))
}

pub(crate) async fn mcp() -> Failure {
    not_yet("the Model Context Protocol")
        .hint("use POST /v1/search")
        .into()
}

pub(crate) async fn nowhere(uri: Uri) -> Failure {
    let detail = format!("there is nothing at {}", uri.path());
    Problem::not_found(detail)
        .hint("GET /openapi.json lists all calls")
        .into()
}

pub(crate) async fn wrong_method(request: Request) -> Failure {
    let detail = format!(
        "{} does not take {}",
        request.uri().path(),
        request.method()
    );
    Problem::new(405, "method-not-allowed", detail)
        .hint("the Allow header and GET /openapi.json list what it takes")
        .into()
}
