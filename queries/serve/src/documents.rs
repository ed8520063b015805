//! `GET /v1/documents/{source}?key=…` and `/v1/documents/{source}/{key}`.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use engine::limits::KEY_BYTES_MAX;
use queries::api::{Backend, DocumentRequest};
use queries::problem::Problem;
use serde_json::Value as Json;

use crate::params::Params;
use crate::reply::{self, Outcome};
use crate::routes::Front;

pub(crate) async fn by_parameter<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    Path(source): Path<String>,
    request: Request,
) -> Outcome {
    let mut params = Params::of(request.uri())?;
    let Some(key) = params.text("key")? else {
        let problem = Problem::invalid("parameter key is missing");
        return Err(problem
            .expected("?key=… or /v1/documents/{source}/{key}")
            .into());
    };
    answer(&front, source, &key, params).await
}

pub(crate) async fn by_path<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    Path((source, key)): Path<(String, String)>,
    request: Request,
) -> Outcome {
    answer(&front, source, &key, Params::of(request.uri())?).await
}

async fn answer<B: Backend>(
    front: &Front<B>,
    source: String,
    key: &str,
    mut params: Params,
) -> Outcome {
    let as_of = params.as_of()?;
    let history = params.flag("history")?;
    params.finish()?;
    if key.len() > KEY_BYTES_MAX {
        let detail = format!("the key has {} bytes", key.len());
        let most = format!("at most {KEY_BYTES_MAX} (KEY_BYTES_MAX)");
        return Err(Problem::new(422, "limit-exceeded", detail)
            .expected(most)
            .into());
    }
    let request = DocumentRequest {
        source,
        key: key_of(key),
        as_of,
        history,
    };
    let document = front.backend.document(request).await?;
    Ok(reply::json_as_of(StatusCode::OK, &document, document.as_of))
}

/// The key in its column's JSON form, where reading it so loses nothing; else plain text.
///
/// `812` is a number and `"812"` a text; `007`, `1e3` and `T-1` are plain texts, because JSON either
/// cannot read them or would not write them back. A backend reads a number for a text column as its
/// digits.
fn key_of(text: &str) -> Json {
    let plain = || Json::from(text);
    match serde_json::from_str::<Json>(text) {
        Ok(json @ (Json::String(_) | Json::Object(_) | Json::Array(_))) => json,
        // The texts are compared: `7` is a number, `"7"` and `007` are not.
        #[allow(clippy::cmp_owned)]
        Ok(json) if json.to_string() == text && !json.is_null() => json,
        _ => plain(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_json_where_that_loses_nothing() {
        let cases = [
            ("T-1", json!("T-1")),
            ("\"T-1\"", json!("T-1")),
            ("812", json!(812)),
            ("\"812\"", json!("812")),
            ("007", json!("007")),
            ("1e3", json!("1e3")),
            ("1.50", json!("1.50")),
            ("true", json!(true)),
            ("null", json!("null")),
            ("{\"a\":1}", json!({"a":1})),
            ("notes/{x}.md", json!("notes/{x}.md")),
        ];
        for (text, key) in cases {
            assert_eq!(key_of(text), key, "{text}");
        }
    }
}
