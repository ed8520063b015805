//! A scripted server: each fault with its exact message, and what is sent.

use std::sync::atomic::{AtomicU64, Ordering};

use engine::testing::{Act, EmbeddingServer, embedder_laws};
use serde_json::json;

use super::*;

fn options(server: &EmbeddingServer) -> RemoteOptions {
    RemoteOptions {
        name: "m".to_owned(),
        model: "text-embedding-3-small".to_owned(),
        url: server.url(),
        key: None,
        dimensions: 8,
        sends_dimensions: false,
        max_tokens: 256,
        batch_texts: 16,
        batch_tokens: 10_000,
        calls: 2,
        requests_per_minute: None,
        timeout: Duration::from_secs(10),
        encoding: Encoding::Float,
        prompts: Prompts::default(),
        tokenizer: None,
    }
}

fn remote(options: RemoteOptions) -> RemoteEmbedder {
    RemoteEmbedder::new(options, None).unwrap()
}

fn key(value: &str) -> Option<(String, KeySource)> {
    let value = value.to_owned();
    let place = "secret \"openai_key\"".to_owned();
    Some((place, Arc::new(move || Ok(value.clone()))))
}

/// The error of one text after an act, with the server's address as `URL`.
fn told(act: Act) -> (String, EmbedFault) {
    let server = EmbeddingServer::start(8);
    server.always(act);
    let mut options = options(&server);
    options.key = key("sk-secret");
    options.timeout = Duration::from_millis(300);
    let error = remote(options).embed(&["text"]).unwrap_err();
    let url = format!("{}/embeddings", server.url());
    (error.to_string().replace(&url, "URL"), error.fault)
}

#[test]
fn it_keeps_the_laws_in_both_encodings() {
    for encoding in [Encoding::Float, Encoding::Base64] {
        let server = EmbeddingServer::start(8);
        let mut options = options(&server);
        options.encoding = encoding;
        embedder_laws(&remote(options));
    }
}

#[test]
fn the_worlds_faults_word_for_word() {
    const WORLD: EmbedFault = EmbedFault::WORLD;
    let ms = Duration::from_millis;
    let slow = "model m: URL gave no whole reply within 0.3 s (TIMEOUT)";
    let cases = [
        (
            Act::refuse(500, "boom"),
            "model m: URL answers 500 Internal Server Error: boom",
        ),
        (
            Act::Refuse(503, Vec::new(), String::new()),
            "model m: URL answers 503 Service Unavailable",
        ),
        (
            Act::refuse(429, "slow down"),
            "model m: URL answers 429 Too Many Requests: slow down",
        ),
        (Act::Hang(ms(2_000)), slow),
        (Act::Trickle(ms(20)), slow),
        (Act::TooFew, "model m: URL returned 0 vectors for 1 texts"),
        (
            Act::Say("<html>".to_owned()),
            "model m: URL returned something else than embeddings (line 1, column 1)",
        ),
        (
            Act::Say("x".repeat(3 << 20)),
            "model m: URL returned more than 1053120 bytes",
        ),
    ];
    for (act, expected) in cases {
        assert_eq!(told(act), (expected.to_owned(), WORLD));
    }
    for act in [Act::Close, Act::BreakOff] {
        let (detail, fault) = told(act);
        assert!(detail.starts_with("model m: URL"), "{detail}");
        assert_eq!(fault, WORLD);
    }
    let wait = ("Retry-After".to_owned(), "7".to_owned());
    let (detail, fault) = told(Act::Refuse(429, vec![wait], String::new()));
    assert_eq!(
        detail,
        "model m: URL answers 429 Too Many Requests (Retry-After: 7 s)"
    );
    let retry_after = Some(Duration::from_secs(7));
    assert_eq!(fault, EmbedFault::World { retry_after });
}

#[test]
fn nobody_there_is_the_worlds_fault() {
    let server = EmbeddingServer::start(8);
    let mut options = options(&server);
    options.url = "http://127.0.0.1:9/v1".to_owned();
    let error = remote(options).embed(&["text"]).unwrap_err();
    let detail = error.to_string();
    assert!(
        detail.starts_with("model m: http://127.0.0.1:9/v1/embeddings cannot be reached: "),
        "{detail}"
    );
    assert_eq!(error.fault, EmbedFault::WORLD);
}

#[test]
fn the_declarations_faults_word_for_word() {
    let cases = [
        (
            Act::refuse(401, "Incorrect API key provided: sk-secret"),
            "model m: URL answers 401 Unauthorized; expected a key that it takes; hint: see secret \"openai_key\"",
        ),
        (
            Act::refuse(403, "no"),
            "model m: URL answers 403 Forbidden; expected a key that it takes; hint: see secret \"openai_key\"",
        ),
        (
            Act::refuse(404, "The model does not exist"),
            "model m: URL answers 404 Not Found: The model does not exist; expected an API with the model 'text-embedding-3-small'; hint: URL is its base, like 'http://host/v1'",
        ),
        (
            Act::Refuse(
                302,
                vec![("Location".to_owned(), "http://127.0.0.1:9/".to_owned())],
                String::new(),
            ),
            "model m: URL answers 302 Found; expected 200",
        ),
        (
            Act::Longer,
            "model m: URL returned vectors of 9 numbers; expected DIMENSIONS = 8; hint: declare another model with DIMENSIONS = 9, or have the server answer 8",
        ),
        (
            Act::refuse(400, "dimensions is not supported"),
            "model m: even the text 'a' fails: URL answers 400 Bad Request: dimensions is not supported",
        ),
        (
            Act::NotANumber,
            "model m: even the text 'a' fails: URL returned a vector whose component 0 is not a finite number",
        ),
    ];
    for (act, expected) in cases {
        assert_eq!(told(act), (expected.to_owned(), EmbedFault::Model));
    }
    let server = EmbeddingServer::start(8);
    server.always(Act::refuse(401, "no"));
    let error = remote(options(&server)).embed(&["text"]).unwrap_err();
    assert!(
        error.detail.ends_with(
            "/v1/embeddings answers 401 Unauthorized; expected no key, and the server wants one; \
             hint: KEY SECRET name, after CREATE SECRET name AS ENV 'VARIABLE'"
        ),
        "{error}"
    );
}

#[test]
fn a_text_is_blamed_only_while_a_known_one_works() {
    let server = EmbeddingServer::start(8);
    server.poison("bad");
    let model = remote(options(&server));
    let error = model.embed(&["good", "bad"]).unwrap_err();
    let url = server.url();
    assert_eq!(
        error.to_string(),
        format!("model m: {url}/embeddings answers 400 Bad Request: the input is too long")
    );
    assert_eq!(error.fault, EmbedFault::Text);
    assert_eq!(server.requests().len(), 2, "the batch, and the known text");
    assert_eq!(model.embed(&["bad"]).unwrap_err().fault, EmbedFault::Text);
    assert_eq!(server.requests().len(), 3, "it was sound a moment ago");
    server.script([Act::NotANumber]);
    assert_eq!(model.embed(&["odd"]).unwrap_err().fault, EmbedFault::Text);
}

#[test]
fn what_is_sent_is_what_was_declared() {
    let server = EmbeddingServer::start(8);
    let mut options = options(&server);
    options.key = key("sk-secret");
    options.sends_dimensions = true;
    options.encoding = Encoding::Base64;
    options.url += "/";
    options.prompts = Prompts {
        query: "query: ".to_owned(),
        document: "passage: ".to_owned(),
    };
    options.max_tokens = 8;
    let model = remote(options);
    let vector = model.embed(&["short", "", "a b c d e f g h"]).unwrap();
    let norm: f32 = vector[0].iter().map(|x| x * x).sum();
    assert!(
        (norm - 1.0).abs() < 1e-5,
        "units, whatever the server answers"
    );
    model.embed_questions(&["why"]).unwrap();
    let request = |input: &[&str]| {
        json!({
            "model": "text-embedding-3-small",
            "input": input,
            "encoding_format": "base64",
            "dimensions": 8,
        })
    };
    // 8 tokens: 2 special ones, 3 of `passage: `, so 3 of the text.
    assert_eq!(
        server.requests(),
        [
            request(&["passage: short", "passage: ", "passage: a b c"]),
            request(&["query: why"])
        ]
    );
    let sent = Some("Bearer sk-secret".to_owned());
    assert_eq!(server.keys(), [sent.clone(), sent]);
    assert_eq!(model.special_tokens(), 5);
}

#[test]
fn the_key_is_read_for_each_call_and_an_unreadable_one_is_told() {
    let server = EmbeddingServer::start(8);
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let read: KeySource = Arc::new(move || match counted.fetch_add(1, Ordering::SeqCst) {
        2 => Err(WorldError::Service {
            service: "secret".to_owned(),
            detail: "the environment variable KEY is not set in the server".to_owned(),
            is_transient: false,
        }),
        n => Ok(format!("key{n}")),
    });
    let mut options = options(&server);
    options.key = Some(("secret \"k\"".to_owned(), read));
    let model = remote(options);
    model.embed(&["a"]).unwrap();
    model.embed(&["b"]).unwrap();
    let error = model.embed(&["c"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model m: its key cannot be read: secret: the environment variable KEY is not set in the server"
    );
    assert_eq!(error.fault, EmbedFault::Model);
    let sent = ["Bearer key0", "Bearer key1"].map(|key| Some(key.to_owned()));
    assert_eq!(server.keys(), sent);
}

#[test]
fn identity_is_server_name_dimensions_limit_and_prompts_and_nothing_else() {
    let server = EmbeddingServer::start(8);
    let base = || options(&server);
    let id = |change: &dyn Fn(&mut RemoteOptions)| {
        let mut options = base();
        change(&mut options);
        remote(options).id()
    };
    let same = id(&|_| {});
    let equal: [&dyn Fn(&mut RemoteOptions); 4] = [
        &|o| o.name = "other".to_owned(),
        &|o| o.url = o.url.replace("http://", "https://ada:pw@") + "/api",
        &|o| o.key = key("sk-other"),
        &|o| o.encoding = Encoding::Base64,
    ];
    equal.iter().for_each(|change| assert_eq!(id(change), same));
    let other: [&dyn Fn(&mut RemoteOptions); 7] = [
        &|o| o.url = "http://localhost:1/v1".to_owned(),
        &|o| o.url = "http://localhost:2/v1".to_owned(),
        &|o| o.max_tokens += 1,
        &|o| o.model = "text-embedding-3-large".to_owned(),
        &|o| o.dimensions = 7,
        &|o| o.prompts.query = "q".to_owned(),
        &|o| o.prompts.document = "q".to_owned(),
    ];
    let mut ids: Vec<ModelId> = other.iter().map(|change| id(change)).collect();
    ids.push(same);
    let distinct: std::collections::HashSet<&ModelId> = ids.iter().collect();
    assert_eq!(distinct.len(), 8);
}
