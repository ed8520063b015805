//! Bodies of requests: read within a bound and a time, parsed with the place of a mistake.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use engine::limits::{BODY_BYTES_MAX, BODY_WAIT_MS};
use futures_util::StreamExt;
use queries::problem::Problem;
use serde::de::DeserializeOwned;

/// Types that we read as JSON. The last is what `curl -d` sends by itself; a web page cannot use it
/// to reach us, because `guard` looks at the origin.
const JSON_TYPES: [&str; 4] = [
    "application/json",
    "text/json",
    "text/plain",
    "application/x-www-form-urlencoded",
];

/// Reads the whole body: 413 over [`BODY_BYTES_MAX`], 408 after [`BODY_WAIT_MS`].
pub(crate) async fn read(request: Request) -> Result<Vec<u8>, Problem> {
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let body = request.into_body();
    if declared.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
        discard(body).await;
        return Err(too_large(declared));
    }
    let read = to_bytes(body, BODY_BYTES_MAX);
    match tokio::time::timeout(Duration::from_millis(BODY_WAIT_MS), read).await {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(error)) if is_over_limit(&error) => Err(too_large(None)),
        Ok(Err(error)) => {
            let detail = format!("the body ended early: {error}");
            Err(Problem::new(400, "incomplete-body", detail))
        }
        Err(_) => {
            let detail = format!("the body did not arrive within {BODY_WAIT_MS} ms (BODY_WAIT_MS)");
            Err(Problem::new(408, "request-timeout", detail))
        }
    }
}

/// Reads the body as JSON of a known shape.
pub(crate) async fn read_json<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    expect_type(request.headers(), &JSON_TYPES)?;
    parse(&read(request).await?)
}

/// Parses JSON: 400 with the position where it is none, 422 with the position where it is another
/// shape than the route takes.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(
            Problem::new(400, "invalid-json", "the body is empty").expected("a JSON object")
        );
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or_default();
        let (line, column) = position(bytes, error.line(), error.column());
        let problem = match error.classify() {
            serde_json::error::Category::Data => Problem::invalid(shape_reason(reason)),
            _ => Problem::new(
                400,
                "invalid-json",
                format!("the body is not JSON: {reason}"),
            ),
        };
        if line == 0 {
            problem
        } else {
            problem.at(line, column)
        }
    })
}

/// serde names our Rust enums when none of their shapes fits; readers know the field's words.
fn shape_reason(reason: &str) -> String {
    if reason.contains("untagged enum AsOf") {
        "as_of must be a time in microseconds or a text in RFC 3339".to_owned()
    } else if reason.contains("untagged enum AtLeast") {
        "at_least must be a token or an object like {\"source\":\"tickets\",\"offsets\":{\"0\":812}}"
            .to_owned()
    } else {
        reason.to_owned()
    }
}

/// serde_json counts a column in bytes; problems count it in characters.
fn position(bytes: &[u8], line: usize, column: usize) -> (u64, u64) {
    let Some(row) = line
        .checked_sub(1)
        .and_then(|n| bytes.split(|b| *b == b'\n').nth(n))
    else {
        return (0, 0);
    };
    let before = &row[..column.min(row.len())];
    let characters = String::from_utf8_lossy(before).chars().count();
    (line as u64, characters.max(1) as u64)
}

/// 415 when the request says that its body is something else.
pub(crate) fn expect_type(headers: &HeaderMap, known: &[&str]) -> Result<(), Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let text = value.to_str().unwrap_or("not text").to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if known.contains(&essence) || essence.ends_with("+json") {
        return Ok(());
    }
    let detail = format!("a body of type {essence} is not understood");
    Err(Problem::new(415, "unsupported-media-type", detail).expected(known[0]))
}

fn is_over_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.to_string().contains("limit"))
}

fn too_large(declared: Option<u64>) -> Problem {
    let detail = match declared {
        Some(length) => format!("the body has {length} bytes"),
        None => format!("the body has more than {BODY_BYTES_MAX} bytes"),
    };
    Problem::new(413, "body-too-large", detail)
        .expected(format!("at most {BODY_BYTES_MAX} bytes (BODY_BYTES_MAX)"))
        .hint("send it in several requests")
}

/// Takes in and forgets what the client is still sending, up to as much again as we allow, so that
/// it reads our answer instead of a broken pipe.
async fn discard(body: Body) {
    let mut stream = body.into_data_stream();
    let mut taken = 0;
    let drain = async {
        while let Some(Ok(piece)) = stream.next().await {
            taken += piece.len();
            if taken > 2 * BODY_BYTES_MAX {
                break;
            }
        }
    };
    // A client that stalls meanwhile has lost its claim to an answer.
    let _ = tokio::time::timeout(Duration::from_millis(BODY_WAIT_MS), drain).await;
}

#[cfg(test)]
mod tests {
    use queries::api::SearchRequest;
    use queries::problem::Position;

    use super::*;

    fn problem(body: &str) -> Problem {
        parse::<SearchRequest>(body.as_bytes()).unwrap_err()
    }

    #[test]
    fn broken_json_is_400_with_its_place_in_characters() {
        let problem = problem("{\"index\":\"a\",\n \"query\":\"é\" x}");
        assert_eq!((problem.status, &*problem.code), (400, "invalid-json"));
        assert_eq!(
            problem.position,
            Some(Position {
                line: 2,
                column: 14
            })
        );
        assert_eq!(problem.detail, "the body is not JSON: expected `,` or `}`");
    }

    #[test]
    fn json_of_another_shape_is_422_with_its_place() {
        let problem = problem("{\"index\":\"a\",\"colour\":1}");
        assert_eq!((problem.status, &*problem.code), (422, "invalid-request"));
        assert!(
            problem.detail.starts_with("unknown field `colour`"),
            "{}",
            problem.detail
        );
        assert_eq!(problem.position.map(|p| p.line), Some(1));
        let as_of = self::problem("{\"index\":\"a\",\"as_of\":[]}");
        assert_eq!(
            as_of.detail,
            "as_of must be a time in microseconds or a text in RFC 3339"
        );
    }

    #[test]
    fn an_empty_body_says_so() {
        assert_eq!(problem(" \n").detail, "the body is empty");
    }
}
