//! `GET /v1/dead_letters`, page by page or one by its id, and the replay of some.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use engine::limits::PAGE_ROWS_MAX;
use queries::api::{Backend, DeadLetterReply, DeadLetterRequest, ReplayRequest};
use queries::problem::Problem;
use serde_json::{Value as Json, json};

use crate::body;
use crate::params::Params;
use crate::reply::{self, Outcome};
use crate::routes::Front;

const PAGE_ROWS: usize = 100;

pub(crate) async fn list<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    request: Request,
) -> Outcome {
    let mut params = Params::of(request.uri())?;
    let source = params.text("source")?;
    let code = params.text("code")?;
    let id = params.text("id")?;
    let limit = params.number("limit", (1, PAGE_ROWS_MAX as u64))?;
    let limit = limit.map_or(PAGE_ROWS, |limit| limit as usize);
    let cursor = params.text("cursor")?;
    params.finish()?;
    let cursor = match cursor.as_deref().map(str::parse::<u64>) {
        None => None,
        Some(Ok(cursor)) => Some(cursor),
        Some(Err(_)) => {
            let problem = Problem::invalid("the cursor is none of ours");
            return Err(problem.expected("next_cursor of an earlier page").into());
        }
    };
    // One more than asked for tells whether a next page exists.
    let wanted = DeadLetterRequest {
        source,
        code,
        id,
        limit: limit + 1,
        cursor,
    };
    let mut letters = front.backend.dead_letters(wanted).await?;
    let has_more = letters.len() > limit;
    letters.truncate(limit);
    let next = letters
        .last()
        .filter(|_| has_more)
        .map(|letter| letter.cursor.to_string());
    let shown: Vec<Json> = letters.iter().map(show).collect();
    Ok(reply::json(
        StatusCode::OK,
        &json!({ "dead_letters": shown, "next_cursor": next }),
    ))
}

/// The payload as text where it is text; otherwise its bytes in hexadecimal.
fn show(reply: &DeadLetterReply) -> Json {
    let letter = &reply.letter;
    let mut error = json!({ "code": letter.error.code, "detail": letter.error.detail });
    for (name, value) in [
        ("expected", &letter.error.expected),
        ("hint", &letter.error.hint),
    ] {
        if let Some(value) = value {
            error[name] = json!(value);
        }
    }
    let mut shown = json!({
        "id": reply.id,
        "at": reply.last_seen,
        "source": letter.source,
        "position": letter.position,
        "error": error,
        "first_seen": reply.first_seen,
        "last_seen": reply.last_seen,
        "count": reply.count,
        "bytes": letter.bytes,
    });
    if let Some(column) = letter.error.column() {
        shown["error"]["column"] = json!(column);
    }
    if let Some(key) = &letter.key {
        shown["key"] = key.to_json();
    }
    match std::str::from_utf8(&letter.payload) {
        Ok(text) => shown["payload"] = json!(text),
        Err(_) => {
            let hex = letter
                .payload
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>();
            shown["payload_hex"] = json!(hex);
        }
    }
    shown
}

pub(crate) async fn replay<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    request: Request,
) -> Outcome {
    Params::of(request.uri())?.finish()?;
    let wanted: ReplayRequest = body::read_json(request).await?;
    let replayed = front.backend.replay(wanted).await?;
    Ok(reply::json(StatusCode::OK, &replayed))
}
