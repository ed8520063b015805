//! `POST /v1/sql`: statements in, one JSON reply or a stream of lines out.
//!
//! One statement → its reply; several → an array of replies. After a failure the reply is its
//! problem with `statement` (the index of the failed one) and `replies` (of those before it), so
//! that the HTTP status is true and nothing that was done is hidden.
//!
//! With `Accept: application/x-ndjson`: `{"columns":…}`, `{"row":[…]}`…, `{"end":{…}}` for each
//! statement, and `{"error":problem}` last if one failed after another had answered.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::model::Time;
use futures_util::stream;
use queries::api::{Backend, SqlReply};
use queries::problem::Problem;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::reply::{self, NDJSON, Outcome};
use crate::routes::Front;
use crate::{body, params::Params};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlRequest {
    sql: String,
    #[serde(default)]
    params: Vec<Json>,
}

pub(crate) async fn sql<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    request: Request,
) -> Outcome {
    Params::of(request.uri())?.finish()?;
    let as_lines = accepts_lines(request.headers());
    let SqlRequest { sql, params } = body::read_json(request).await?;
    let (replies, problem) = front.backend.sql(sql, params).await;
    let as_of = replies.iter().rev().find_map(|reply| reply.as_of);
    let response = match (replies.is_empty(), problem) {
        (true, Some(problem)) => return Err(problem.into()),
        (_, problem) if as_lines => lines(replies, problem),
        (false, Some(mut problem)) => {
            problem.statement.get_or_insert(replies.len());
            return Err(problem.with("replies", json!(replies)).into());
        }
        (_, None) if replies.len() == 1 => reply::json(StatusCode::OK, &replies[0]),
        (_, None) => reply::json(StatusCode::OK, &replies),
    };
    Ok(stamped(response, as_of))
}

fn stamped(response: Response, as_of: Option<Time>) -> Response {
    match as_of {
        Some(as_of) => reply::with_as_of(response, as_of),
        None => response,
    }
}

fn accepts_lines(headers: &HeaderMap) -> bool {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains(NDJSON))
}

/// Encodes as the reader pulls: at most one piece of about 64 KiB is in memory as text.
fn lines(replies: Vec<SqlReply>, problem: Option<Problem>) -> Response {
    const PIECE_BYTES: usize = 64 << 10;
    let failed = replies.len();
    let error = problem.map(|mut problem| {
        problem.statement.get_or_insert(failed);
        json!({ "error": problem })
    });
    let values = replies.into_iter().flat_map(reply_lines).chain(error);
    let pieces = stream::unfold(values, |mut values| async move {
        let mut piece = Vec::new();
        while piece.len() < PIECE_BYTES {
            let Some(value) = values.next() else { break };
            piece.extend_from_slice(value.to_string().as_bytes());
            piece.push(b'\n');
        }
        (!piece.is_empty()).then_some((Ok::<_, std::convert::Infallible>(piece), values))
    });
    ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(pieces)).into_response()
}

fn reply_lines(reply: SqlReply) -> impl Iterator<Item = Json> {
    let mut end = json!({ "rows": reply.rows.len(), "tag": reply.tag });
    if let Some(as_of) = reply.as_of {
        end["as_of"] = as_of.into();
    }
    if !reply.notices.is_empty() {
        end["notices"] = json!(reply.notices);
    }
    let columns = json!({ "columns": reply.columns });
    let rows = reply.rows.into_iter().map(|row| json!({ "row": row }));
    std::iter::once(columns)
        .chain(rows)
        .chain(std::iter::once(json!({ "end": end })))
}
