//! `POST /v1/embeddings` in OpenAI's shape, so that its clients need another address and nothing else.
//!
//! ```text
//! {"model":"minilm","input":"…" | ["…",…]} ─▶ {"object":"list","data":[{"object":"embedding",…}],"model":…,"usage":…}
//! ```
//!
//! A refusal is a problem like every other, and has `error` as OpenAI's clients read it. Beyond their
//! fields: `input_type` (`query`, `document`) chooses a model's prompt, and a reply names in `truncated`
//! the inputs that were longer than the model's window.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use engine::limits::{DIMENSIONS_MAX, EMBEDDING_INPUTS_MAX};
use engine::model::floats_to_base64;
use queries::api::{Backend, EmbeddingsReply, EmbeddingsRequest};
use queries::problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::body;
use crate::params::Params;
use crate::reply::{self, Failure, Outcome};
use crate::routes::Front;

/// The request as it is written. `user` is for OpenAI's own statistics.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    model: String,
    input: Json,
    encoding_format: Option<String>,
    dimensions: Option<u64>,
    input_type: Option<String>,
    #[serde(rename = "user")]
    _user: Option<Json>,
}

pub(crate) async fn embeddings<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    request: Request,
) -> Outcome {
    let answer = async {
        Params::of(request.uri())?.finish()?;
        let wire: Wire = body::read_json(request).await?;
        let is_base64 = is_base64(wire.encoding_format.as_deref())?;
        let asked = asked(wire)?;
        Ok::<_, Problem>((front.backend.embeddings(asked).await?, is_base64))
    };
    match answer.await {
        Ok((found, is_base64)) => Ok(reply::json(StatusCode::OK, &shown(&found, is_base64))),
        Err(problem) => Err(for_openai(problem)),
    }
}

/// OpenAI's clients read `error`; ours read the problem around it.
pub(crate) fn for_openai(mut problem: Problem) -> Failure {
    // What others call unprocessable, OpenAI calls a bad request.
    if problem.status == 422 {
        problem.status = 400;
    }
    let (kind, code) = match problem.status {
        404 => ("invalid_request_error", "model_not_found"),
        429 => ("rate_limit_error", "rate_limit_exceeded"),
        500.. => ("server_error", &*problem.code),
        _ => ("invalid_request_error", &*problem.code),
    };
    let mut message = problem.detail.clone();
    for (word, text) in [("expected", &problem.expected), ("hint", &problem.hint)] {
        if let Some(text) = text {
            message += &format!("; {word}: {text}");
        }
    }
    let error = json!({
        "message": message,
        "type": kind,
        "code": code,
        "param": problem.extra.get("param").cloned().unwrap_or_default(),
    });
    problem.extra.remove("param");
    problem.with("error", error).into()
}

fn is_base64(format: Option<&str>) -> Result<bool, Problem> {
    match format {
        None | Some("float") => Ok(false),
        Some("base64") => Ok(true),
        Some(other) => Err(wrong(
            "encoding_format",
            format!("encoding_format \"{other}\" is unknown"),
            "float or base64",
        )),
    }
}

fn wrong(param: &str, detail: String, expected: &str) -> Problem {
    Problem::invalid(detail)
        .expected(expected)
        .with("param", param)
}

fn asked(wire: Wire) -> Result<EmbeddingsRequest, Problem> {
    let most = u64::from(DIMENSIONS_MAX);
    if let Some(n) = wire.dimensions.filter(|n| *n == 0 || *n > most) {
        let expected = format!("from 1 to {most} (DIMENSIONS_MAX)");
        let detail = format!("dimensions = {n} is out of range");
        return Err(wrong("dimensions", detail, &expected));
    }
    let is_question = match wire.input_type.as_deref() {
        None | Some("document" | "passage" | "search_document") => false,
        Some("query" | "search_query") => true,
        Some(other) => {
            let detail = format!("input_type \"{other}\" is unknown");
            return Err(wrong("input_type", detail, "query or document"));
        }
    };
    Ok(EmbeddingsRequest {
        model: wire.model,
        input: texts(wire.input)?,
        dimensions: wire.dimensions.map(|n| n as usize),
        is_question,
    })
}

/// A text, or several.
fn texts(input: Json) -> Result<Vec<String>, Problem> {
    const EXPECTED: &str = "a text, or an array of texts";
    let wrong = |detail: String| wrong("input", detail, EXPECTED);
    let all = match input {
        Json::String(text) => vec![Json::String(text)],
        Json::Array(all) => all,
        _ => return Err(wrong("input is neither a text nor an array".to_owned())),
    };
    if all.is_empty() {
        return Err(wrong("input is an empty array".to_owned()));
    }
    if all.len() > EMBEDDING_INPUTS_MAX {
        let detail = format!("input has {} texts", all.len());
        let expected = format!("at most {EMBEDDING_INPUTS_MAX} (EMBEDDING_INPUTS_MAX)");
        return Err(Problem::new(422, "limit-exceeded", detail)
            .expected(expected)
            .with("param", "input"));
    }
    let texts = all.into_iter().enumerate().map(|(at, one)| match one {
        Json::String(text) if text.is_empty() => Err(wrong(format!("input[{at}] is empty"))),
        Json::String(text) => Ok(text),
        Json::Number(_) | Json::Array(_) => Err(wrong(
            "input is an array of token ids, which are of another tokenizer".to_owned(),
        )
        .hint("let the client send texts: LangChain has check_embedding_ctx_length=False")),
        _ => Err(wrong(format!("input[{at}] is no text"))),
    });
    texts.collect()
}

/// The reply as it is written.
#[derive(Serialize)]
struct Shown<'a> {
    object: &'static str,
    data: Vec<Embedding<'a>>,
    model: &'a str,
    usage: Usage,
    #[serde(skip_serializing_if = "<[usize]>::is_empty")]
    truncated: &'a [usize],
}

#[derive(Serialize)]
struct Embedding<'a> {
    object: &'static str,
    index: usize,
    embedding: Numbers<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers<'a> {
    Floats(&'a [f32]),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

fn shown(reply: &EmbeddingsReply, is_base64: bool) -> Shown<'_> {
    let data = reply.vectors.iter().enumerate();
    let data = data.map(|(index, vector)| Embedding {
        object: "embedding",
        index,
        embedding: match is_base64 {
            true => Numbers::Base64(floats_to_base64(vector)),
            false => Numbers::Floats(vector),
        },
    });
    Shown {
        object: "list",
        data: data.collect(),
        model: &reply.model,
        usage: Usage {
            prompt_tokens: reply.tokens,
            total_tokens: reply.tokens,
        },
        truncated: &reply.truncated,
    }
}
