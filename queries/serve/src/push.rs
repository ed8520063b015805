//! `POST /v1/sources/{source}/documents`: a body of changes, cut into lines.
//!
//! ```text
//! {"op":…}\n{"op":…}\n   ─┐
//!                         ├─▶ PushLine { line, raw }… ─▶ Backend::push ─▶ 202 / 200
//! [ {"op":…}, {"op":…} ] ─┘
//! ```
//!
//! Lines are only cut here, never judged: the backend decodes each, so that
//! a bad one becomes a rejected line *and* a dead letter while the others are taken. Hence neither
//! invalid UTF-8 nor an oversize line fails a request; only a body that cannot be cut, or into more
//! than [`PUSH_LINES_MAX`] lines, does.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use engine::limits::{IDEMPOTENCY_KEY_CHARS_MAX, PUSH_LINES_MAX, VISIBLE_WAIT_MS, WAIT_MS_MAX};
use queries::api::{Backend, PushLine, PushRequest};
use queries::problem::Problem;

use crate::body;
use crate::observe::RequestId;
use crate::params::Params;
use crate::reply::{self, Outcome, REPLAYED, TOKEN};
use crate::routes::Front;

const TYPES: [&str; 6] = [
    "application/x-ndjson",
    "application/jsonl",
    "application/ndjson",
    "application/json",
    "text/plain",
    "application/x-www-form-urlencoded",
];

pub(crate) async fn push<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    Path(source): Path<String>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    request: Request,
) -> Outcome {
    let mut params = Params::of(request.uri())?;
    let atomic = params.flag("atomic")?;
    let wait = params.text("wait")?;
    let timeout_ms = params.number("timeout_ms", (0, WAIT_MS_MAX))?;
    params.finish()?;
    let wait_visible_ms = match wait.as_deref() {
        Some("visible") => Some(timeout_ms.unwrap_or(VISIBLE_WAIT_MS)),
        Some(other) => {
            let detail = format!("parameter wait = {other} is unknown");
            return Err(Problem::invalid(detail).expected("visible").into());
        }
        None => None,
    };
    body::expect_type(request.headers(), &TYPES)?;
    let idempotency_key = idempotency_key(request.headers())?;
    let lines = split(&body::read(request).await?)?;
    let request = PushRequest {
        source,
        lines,
        atomic,
        wait_visible_ms,
        idempotency_key,
        request_id,
    };
    let done = front.backend.push(request).await?;
    let status = match done.visible {
        Some(true) => StatusCode::OK,
        _ => StatusCode::ACCEPTED,
    };
    let response = reply::with_header(reply::json(status, &done), TOKEN, &done.token);
    Ok(if done.replayed {
        reply::with_header(response, REPLAYED, "true")
    } else {
        response
    })
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    if text.is_empty() || text.len() > IDEMPOTENCY_KEY_CHARS_MAX {
        let most = IDEMPOTENCY_KEY_CHARS_MAX;
        let expected =
            format!("1 to {most} printable ASCII characters (IDEMPOTENCY_KEY_CHARS_MAX)");
        return Err(Problem::invalid("the Idempotency-Key is not usable").expected(expected));
    }
    Ok(Some(text.to_owned()))
}

/// Cuts a body into lines, or an array into elements; empty lines count and are left out.
/// Cost: one pass, one copy.
fn split(body: &[u8]) -> Result<Vec<PushLine>, Problem> {
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    let lines = match body.trim_ascii_start().first() {
        Some(b'[') => elements(body)?,
        _ => body
            .split(|byte| *byte == b'\n')
            .zip(1..)
            .map(|(raw, line)| (raw.trim_ascii(), line))
            .filter(|(raw, _)| !raw.is_empty())
            // One more than may be shows that there are more.
            .take(PUSH_LINES_MAX + 1)
            .map(|(raw, line)| PushLine {
                line,
                raw: raw.to_vec(),
            })
            .collect(),
    };
    if lines.len() > PUSH_LINES_MAX {
        let detail = format!("the body has more than {PUSH_LINES_MAX} lines");
        return Err(Problem::new(413, "body-too-large", detail)
            .expected(format!("at most {PUSH_LINES_MAX} lines (PUSH_LINES_MAX)"))
            .hint("send it in several requests"));
    }
    if lines.is_empty() {
        return Err(Problem::invalid("the body has no lines")
            .expected("NDJSON, or a JSON array, of {\"op\":\"upsert\",\"key\":…,\"value\":{…}}"));
    }
    Ok(lines)
}

/// Cuts a JSON array at its top-level commas without parsing the elements, so that a bad element
/// spoils itself only. Strings hide brackets and commas; a backslash hides a quote.
fn elements(body: &[u8]) -> Result<Vec<PushLine>, Problem> {
    let open = body
        .iter()
        .position(|byte| *byte == b'[')
        .unwrap_or_default();
    let (mut depth, mut in_string, mut is_escaped) = (0usize, false, false);
    let (mut lines, mut from) = (Vec::new(), open + 1);
    let mut line = 1;
    for (at, byte) in body.iter().enumerate().skip(open) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b',' if depth == 1 => {
                if lines.len() > PUSH_LINES_MAX {
                    return Ok(lines);
                }
                lines.push(PushLine {
                    line,
                    raw: body[from..at].trim_ascii().to_vec(),
                });
                from = at + 1;
                line += 1;
            }
            b']' | b'}' => {
                depth -= 1;
                if depth == 0 {
                    let last = body[from..at].trim_ascii();
                    if !last.is_empty() || line > 1 {
                        lines.push(PushLine {
                            line,
                            raw: last.to_vec(),
                        });
                    }
                    return match body[at + 1..].trim_ascii() {
                        [] => Ok(lines),
                        _ => Err(array_problem("goes on after the array", body, at + 1)),
                    };
                }
            }
            _ => {}
        }
    }
    Err(array_problem("ends inside the array", body, body.len()))
}

fn array_problem(what: &str, body: &[u8], at: usize) -> Problem {
    let before = String::from_utf8_lossy(&body[..at]);
    let line = before.matches('\n').count() as u64 + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count() as u64
        + 1;
    let detail = format!("the body is not JSON: it {what}");
    Problem::new(400, "invalid-json", detail).at(line, column)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn cut(body: &str) -> Vec<(u64, String)> {
        let lines = split(body.as_bytes()).unwrap();
        lines
            .into_iter()
            .map(|l| (l.line, String::from_utf8(l.raw).unwrap()))
            .collect()
    }

    #[test]
    fn lines_keep_their_numbers_past_empty_ones() {
        let want = [(1, "{\"a\":1}".to_owned()), (4, "bad".to_owned())];
        assert_eq!(cut("\u{feff}{\"a\":1}\r\n\n  \nbad\n"), want);
    }

    /// Law: cutting an array's text gives exactly the array's elements, whatever they hold.
    #[test]
    fn an_array_is_cut_into_its_elements() {
        let nasty =
            json!([{"a":"],[\"\\"},[1,[2,{}]],"x\\\"",null,-1.5,{"b":{"c":"é\n"}},"",[],{}]);
        for text in [
            nasty.to_string(),
            serde_json::to_string_pretty(&nasty).unwrap(),
        ] {
            let parsed: Vec<Json> = cut(&text)
                .iter()
                .map(|(_, raw)| serde_json::from_str(raw).unwrap())
                .collect();
            assert_eq!(Json::from(parsed), nasty);
        }
        assert_eq!(
            cut("[1, oops ,3]")[1],
            (2, "oops".to_owned()),
            "a bad element stays alone"
        );
    }

    #[test]
    fn a_push_has_a_bounded_number_of_lines() {
        let most = PUSH_LINES_MAX;
        assert_eq!(
            split("1\n".repeat(most).as_bytes()).map(|lines| lines.len()),
            Ok(most)
        );
        let list = format!("[{}1]", "1,".repeat(most));
        for body in ["1\n\n".repeat(most + 1), list] {
            let problem = split(body.as_bytes()).unwrap_err();
            assert_eq!((problem.status, &*problem.code), (413, "body-too-large"));
            assert_eq!(problem.detail, "the body has more than 262144 lines");
            let expected = "at most 262144 lines (PUSH_LINES_MAX)";
            assert_eq!(problem.expected.as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_broken_array_says_where() {
        let problem = split(b"[{\"a\":1},\n{\"b\"").unwrap_err();
        assert_eq!(
            problem.detail,
            "the body is not JSON: it ends inside the array"
        );
        assert_eq!(problem.position.map(|p| (p.line, p.column)), Some((2, 5)));
        assert!(
            split(b"[1] 2")
                .unwrap_err()
                .detail
                .ends_with("goes on after the array")
        );
        assert_eq!(split(b" \n").unwrap_err().detail, "the body has no lines");
        assert_eq!(split(b"[]").unwrap_err().detail, "the body has no lines");
        assert!(
            split(b"[1}").is_ok(),
            "cut only; the element's decoder judges"
        );
    }
}
