//! Bodies of requests: read within a bound and a time, unpacked while they arrive, parsed with the place
//! of a mistake.
//!
//! Invariants: a body of any encoding takes at most [`BODY_BYTES_MAX`] of memory: a gzip that unpacks to
//! more is refused at the byte that passes the bound, however small it was sent. All bodies that are being
//! unpacked take at most [`UNPACK_MIB_MAX`] together: beyond, 429.

use std::io::{Error, Write};
use std::time::Duration;

use axum::body::{BodyDataStream, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use engine::limits::{BODY_BYTES_MAX, BODY_WAIT_MS, UNPACK_MIB_MAX};
use flate2::write::MultiGzDecoder;
use futures_util::StreamExt;
use queries::problem::Problem;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Types that we read as JSON. The last is what `curl -d` sends by itself; a web page cannot use it
/// to reach us, because `guard` looks at the origin.
const JSON_TYPES: [&str; 4] = [
    "application/json",
    "text/json",
    "text/plain",
    "application/x-www-form-urlencoded",
];

/// Packed bytes that are unpacked at once: at most a thousand times as many, some milliseconds.
const PIECE_BYTES: usize = 8 << 10;

/// What the bodies of all requests may unpack to together, MiB.
static UNPACKING: Semaphore = Semaphore::const_new(UNPACK_MIB_MAX);

/// Reads the whole body, unpacked: 413 over [`BODY_BYTES_MAX`], 408 after [`BODY_WAIT_MS`], 415 in an
/// encoding other than gzip.
pub(crate) async fn read(request: Request) -> Result<Vec<u8>, Problem> {
    let is_packed = is_gzip(request.headers())?;
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let body = request.into_body();
    if declared.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
        discard(body.into_data_stream()).await;
        return Err(too_large(declared));
    }
    let wait = Duration::from_millis(BODY_WAIT_MS);
    if is_packed {
        let mut stream = body.into_data_stream();
        return match tokio::time::timeout(wait, unpack(&mut stream, &UNPACKING)).await {
            Ok(Err(problem)) => {
                discard(stream).await;
                Err(problem)
            }
            Ok(unpacked) => unpacked,
            Err(_) => Err(too_late()),
        };
    }
    match tokio::time::timeout(wait, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(error)) if is_over_limit(&error) => Err(too_large(None)),
        Ok(Err(error)) => Err(incomplete(&error)),
        Err(_) => Err(too_late()),
    }
}

/// Whether the body is packed by gzip. Errors: 415 for another encoding.
fn is_gzip(headers: &HeaderMap) -> Result<bool, Problem> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else {
        return Ok(false);
    };
    let encoding = value
        .to_str()
        .unwrap_or("not text")
        .trim()
        .to_ascii_lowercase();
    match &*encoding {
        "" | "identity" => Ok(false),
        "gzip" | "x-gzip" => Ok(true),
        _ => {
            let detail = format!("a body with Content-Encoding {encoding} is not understood");
            Err(Problem::new(415, "unsupported-media-type", detail)
                .expected("gzip, or no Content-Encoding"))
        }
    }
}

/// Unpacks while the body arrives, as much as is free of what all bodies share.
async fn unpack(stream: &mut BodyDataStream, shared: &Semaphore) -> Result<Vec<u8>, Problem> {
    let mut unpacked = MultiGzDecoder::new(Bounded::default());
    let mut share = shared.try_acquire_many(0).ok();
    let mut packed = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| incomplete(&error))?;
        packed += piece.len();
        // A gzip may be made of members without content, as many as one likes.
        if packed > BODY_BYTES_MAX {
            return Err(too_large(None));
        }
        for piece in piece.chunks(PIECE_BYTES) {
            let written = unpacked.write_all(piece);
            written.map_err(|error| not_unpacked(&error, unpacked.get_ref()))?;
            take_share(shared, &mut share, unpacked.get_ref().bytes.len())?;
            tokio::task::yield_now().await;
        }
    }
    // What is wrong only now is the end; which of the two it is depends on the unpacker.
    let finished = unpacked.try_finish();
    let ends_badly = || Error::other("it ends early, or its checksum does not fit");
    finished.map_err(|_| not_unpacked(&ends_badly(), unpacked.get_ref()))?;
    Ok(std::mem::take(&mut unpacked.get_mut().bytes))
}

/// Takes as many MiB of what all bodies share as this one has bytes for. Errors: 429.
fn take_share<'s>(
    shared: &'s Semaphore,
    share: &mut Option<SemaphorePermit<'s>>,
    bytes: usize,
) -> Result<(), Problem> {
    let held = share.as_ref().map_or(0, SemaphorePermit::num_permits);
    let wanted = bytes.div_ceil(1 << 20).saturating_sub(held);
    let Ok(more) = shared.try_acquire_many(wanted as u32) else {
        let detail =
            format!("bodies are being unpacked to {UNPACK_MIB_MAX} MiB (UNPACK_MIB_MAX) already");
        return Err(Problem::new(429, "too-many-requests", detail).with("retry_after_s", 1));
    };
    match share {
        Some(share) => share.merge(more),
        None => *share = Some(more),
    }
    Ok(())
}

/// Takes what is unpacked, up to [`BODY_BYTES_MAX`].
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_over: bool,
}

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + piece.len() > BODY_BYTES_MAX {
            self.is_over = true;
            return Err(Error::other("too large"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn not_unpacked(error: &Error, unpacked: &Bounded) -> Problem {
    if unpacked.is_over {
        let detail = format!("the body unpacks to more than {BODY_BYTES_MAX} bytes");
        return over_limit(detail);
    }
    Problem::new(
        400,
        "invalid-gzip",
        format!("the body is not gzip: {error}"),
    )
    .expected("what Content-Encoding says")
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

fn incomplete(error: &axum::Error) -> Problem {
    Problem::new(
        400,
        "incomplete-body",
        format!("the body ended early: {error}"),
    )
}

fn too_late() -> Problem {
    let detail = format!("the body did not arrive within {BODY_WAIT_MS} ms (BODY_WAIT_MS)");
    Problem::new(408, "request-timeout", detail)
}

fn too_large(declared: Option<u64>) -> Problem {
    over_limit(match declared {
        Some(length) => format!("the body has {length} bytes"),
        None => format!("the body has more than {BODY_BYTES_MAX} bytes"),
    })
}

fn over_limit(detail: String) -> Problem {
    Problem::new(413, "body-too-large", detail)
        .expected(format!("at most {BODY_BYTES_MAX} bytes (BODY_BYTES_MAX)"))
        .hint("send it in several requests")
}

/// Takes in and forgets what the client is still sending, up to as much again as we allow, so that
/// it reads our answer instead of a broken pipe.
async fn discard(mut stream: BodyDataStream) {
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

    #[tokio::test]
    async fn bodies_share_what_they_unpack_to() {
        use std::io::Write as _;
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(&vec![b' '; 5 << 20]).unwrap();
        let packed = packed.finish().unwrap();
        let stream = || axum::body::Body::from(packed.clone()).into_data_stream();
        let shared = Semaphore::new(7);
        assert_eq!(unpack(&mut stream(), &shared).await.unwrap().len(), 5 << 20);
        assert_eq!(shared.available_permits(), 7, "given back");
        let _other = shared.acquire_many(3).await.unwrap();
        let problem = unpack(&mut stream(), &shared).await.unwrap_err();
        assert_eq!((problem.status, &*problem.code), (429, "too-many-requests"));
        assert_eq!(shared.available_permits(), 4, "given back");
    }

    #[test]
    fn an_empty_body_says_so() {
        assert_eq!(problem(" \n").detail, "the body is empty");
    }
}
