//! `/v1/embeddings` byte for byte as OpenAI writes it, and its refusals as OpenAI's clients read them.

use serde_json::{Value as Json, json};

use crate::http::Server;

const PATH: &str = "/v1/embeddings";

/// What OpenAI's clients read of a refusal.
fn refused(server: &Server, body: &Json, status: u16, code: &str) -> Json {
    server.post(PATH, body).problem(status, code)["error"].clone()
}

#[test]
fn a_reply_is_openais_byte_for_byte() {
    let server = Server::start();
    let reply = server.post(PATH, &json!({"model": "minilm", "input": "one"}));
    assert_eq!(reply.status, 200);
    assert_eq!(
        String::from_utf8_lossy(&reply.body),
        r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,0.0]}],"model":"minilm","usage":{"prompt_tokens":7,"total_tokens":7}}"#
    );
    let asked = json!({
        "model": "minilm", "input": ["one", "long"], "encoding_format": "base64",
        "dimensions": 2, "user": "u", "input_type": "query",
    });
    assert_eq!(
        server.post(PATH, &asked).json(),
        json!({
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": "AAAAPwAAAAA="},
                {"object": "embedding", "index": 1, "embedding": "AAAAPwAAgD8="},
            ],
            "model": "minilm",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
            "truncated": [1],
        })
    );
    let asked = server.fake.embeddings.lock().unwrap().clone();
    assert_eq!(asked[0].input, ["one"]);
    assert!(!asked[0].is_question && asked[0].dimensions.is_none());
    assert_eq!(asked[1].input, ["one", "long"]);
    assert!(asked[1].is_question && asked[1].dimensions == Some(2));
}

#[test]
fn refusals_are_told_word_for_word() {
    let server = Server::start();
    let with = |field: &str, value: Json| {
        let mut body = json!({"model": "minilm", "input": "one"});
        body[field] = value;
        body
    };
    let texts = "expected: a text, or an array of texts";
    let cases = [
        (
            with("input", json!([])),
            "input",
            format!("input is an empty array; {texts}"),
        ),
        (
            with("input", json!(7)),
            "input",
            format!("input is neither a text nor an array; {texts}"),
        ),
        (
            with("input", json!(["a", ""])),
            "input",
            format!("input[1] is empty; {texts}"),
        ),
        (
            with("input", json!(["a", null])),
            "input",
            format!("input[1] is no text; {texts}"),
        ),
        (
            with("input", json!([[1, 2], [3]])),
            "input",
            format!(
                "input is an array of token ids, which are of another tokenizer; {texts}; \
                 hint: let the client send texts: LangChain has check_embedding_ctx_length=False"
            ),
        ),
        (
            with("encoding_format", json!("hex")),
            "encoding_format",
            "encoding_format \"hex\" is unknown; expected: float or base64".to_owned(),
        ),
        (
            with("dimensions", json!(0)),
            "dimensions",
            "dimensions = 0 is out of range; expected: from 1 to 8192 (DIMENSIONS_MAX)".to_owned(),
        ),
        (
            with("input_type", json!("joke")),
            "input_type",
            "input_type \"joke\" is unknown; expected: query or document".to_owned(),
        ),
    ];
    for (body, param, message) in cases {
        let error = refused(&server, &body, 400, "invalid-request");
        assert_eq!(
            error,
            json!({
                "message": message, "type": "invalid_request_error",
                "param": param, "code": "invalid-request",
            })
        );
    }
    let many = with("input", json!(vec!["a"; 2_049]));
    assert_eq!(
        refused(&server, &many, 400, "limit-exceeded")["message"],
        "input has 2049 texts; expected: at most 2048 (EMBEDDING_INPUTS_MAX)"
    );
    assert_eq!(
        refused(&server, &with("model", json!("x")), 404, "not-found"),
        json!({
            "message": "there is no model \"x\"; hint: SHOW MODELS lists them",
            "type": "invalid_request_error", "param": "model", "code": "model_not_found",
        })
    );
    let unknown = refused(&server, &with("colour", json!(1)), 400, "invalid-request");
    let message = unknown["message"].as_str().unwrap();
    assert!(message.starts_with("unknown field `colour`"), "{message}");
}

#[test]
fn an_encoder_that_is_away_is_503_with_its_wait() {
    let server = Server::start();
    let body = json!({"model": "away", "input": "one"});
    let reply = server.post(PATH, &body);
    assert_eq!(reply.header("retry-after"), Some("7"));
    assert_eq!(
        reply.problem(503, "encoder-unavailable")["error"],
        json!({
            "message": "model away: it is away", "type": "server_error",
            "param": null, "code": "encoder-unavailable",
        })
    );
}
