//! The answer cache's calls: look-up, store, and its entries.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use engine::limits::{ANSWER_BYTES_MAX, K_MAX};
use queries::api::{Backend, LookupReply, LookupRequest, StoreRequest};
use queries::problem::Problem;
use serde_json::Value as Json;

use crate::params::Params;
use crate::reply::{self, Outcome};
use crate::routes::Front;
use crate::{body, search};

pub(crate) async fn lookup<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    Path(cache): Path<String>,
    request: Request,
) -> Outcome {
    Params::of(request.uri())?.finish()?;
    let asked: LookupRequest = body::read_json(request).await?;
    search::question(&asked.question)?;
    let found = front.backend.lookup(cache, asked).await?;
    let (LookupReply::Hit { as_of, .. } | LookupReply::Miss { as_of, .. }) = found;
    Ok(reply::json_as_of(StatusCode::OK, &found, as_of))
}

pub(crate) async fn store<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    Path(cache): Path<String>,
    request: Request,
) -> Outcome {
    Params::of(request.uri())?.finish()?;
    let answer: StoreRequest = body::read_json(request).await?;
    let bytes = answer.answer.to_string().len();
    if bytes > ANSWER_BYTES_MAX {
        let most = format!("at most {ANSWER_BYTES_MAX} bytes (ANSWER_BYTES_MAX)");
        let detail = format!("the answer has {bytes} bytes");
        return Err(Problem::new(413, "answer-too-large", detail)
            .expected(most)
            .into());
    }
    if answer.citations.len() > K_MAX {
        let detail = format!("citations = {} is out of range", answer.citations.len());
        let most = format!("at most {K_MAX} (K_MAX)");
        return Err(Problem::new(422, "limit-exceeded", detail)
            .expected(most)
            .into());
    }
    let stored = front.backend.store(cache, answer).await?;
    Ok(reply::json_as_of(
        StatusCode::CREATED,
        &stored,
        stored.as_of,
    ))
}

pub(crate) async fn entry<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    Path((cache, id)): Path<(String, String)>,
    request: Request,
) -> Outcome {
    Params::of(request.uri())?.finish()?;
    Ok(stamped(&front.backend.entry(cache, id).await?))
}

pub(crate) async fn forget<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    Path((cache, id)): Path<(String, String)>,
    request: Request,
) -> Outcome {
    Params::of(request.uri())?.finish()?;
    Ok(stamped(&front.backend.forget(cache, id).await?))
}

/// A reply whose own `as_of`, if it has one, is also its header.
fn stamped(value: &Json) -> axum::response::Response {
    match value["as_of"].as_u64() {
        Some(as_of) => reply::json_as_of(StatusCode::OK, value, as_of),
        None => reply::json(StatusCode::OK, value),
    }
}
