//! Law: whatever goes wrong, the reply is a problem with a code, a request id and the right status.

use std::io::{Read, Write};

use serde_json::json;

use crate::http::Server;

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn wrong_paths_and_methods_are_problems() {
    let server = Server::start();
    let nowhere = server.get("/v2/nothing").problem(404, "not-found");
    assert_eq!(nowhere["detail"], "there is nothing at /v2/nothing");
    let method = server.send("PUT", "/v1/sql", &[], b"");
    method.problem(405, "method-not-allowed");
    assert_eq!(method.header("allow"), Some("POST"));
    let both = server.send("PATCH", "/v1/caches/answers/entries/e_1", &[], b"");
    both.problem(405, "method-not-allowed");
    assert!(
        both.header("allow")
            .is_some_and(|allow| allow.contains("GET") && allow.contains("DELETE"))
    );
}

#[test]
fn wrong_bodies_say_where_and_what() {
    let server = Server::start();
    let syntax = server.send(
        "POST",
        "/v1/sql",
        &[JSON],
        b"{\"sql\": \"SELECT 1\",\n oops}",
    );
    let syntax = syntax.problem(400, "invalid-json");
    assert_eq!(syntax["position"], json!({ "line": 2, "column": 2 }));
    let shape = server
        .send("POST", "/v1/sql", &[JSON], b"{\"sql\": 7}")
        .problem(422, "invalid-request");
    assert_eq!(
        shape["detail"],
        "invalid type: integer `7`, expected a string"
    );
    assert_eq!(shape["position"]["line"], 1);
    let field = server.send(
        "POST",
        "/v1/search",
        &[JSON],
        b"{\"index\":\"a\",\"colour\":1}",
    );
    field.problem(422, "invalid-request");
    server
        .send("POST", "/v1/sql", &[JSON], b"")
        .problem(400, "invalid-json");
    let media = server.send("POST", "/v1/sql", &[("content-type", "text/xml")], b"<a/>");
    media.problem(415, "unsupported-media-type");
    let unknown = server
        .get("/v1/dead_letters?colour=red")
        .problem(422, "invalid-request");
    assert_eq!(unknown["expected"], "source, code, id, limit, cursor");
}

#[test]
fn a_body_over_the_limit_is_413_and_names_it() {
    let server = Server::start();
    let most = engine::limits::BODY_BYTES_MAX;
    // Declared: refused by the length, before a byte is kept.
    let path = "/v1/sources/tickets/documents";
    let declared = server.send("POST", path, &[], &vec![b'x'; most + 1]);
    let problem = declared.problem(413, "body-too-large");
    assert_eq!(
        problem["detail"],
        format!("the body has {} bytes", most + 1)
    );
    assert_eq!(
        problem["expected"],
        format!("at most {most} bytes (BODY_BYTES_MAX)")
    );
    // Not declared: refused when it grows over the limit.
    let mut stream = server.open("POST", path, &[("transfer-encoding", "chunked")], None);
    let block = vec![b'x'; 1 << 20];
    for _ in 0..=most >> 20 {
        let sent = write!(stream, "{:x}\r\n", block.len())
            .and_then(|()| stream.write_all(&block))
            .and_then(|()| stream.write_all(b"\r\n"));
        if sent.is_err() {
            break;
        }
    }
    let mut head = [0; 12];
    if stream.read_exact(&mut head).is_ok() {
        assert_eq!(&head, b"HTTP/1.1 413");
    }
}

#[test]
fn a_panic_is_a_500_and_the_server_goes_on() {
    let server = Server::start();
    let reply = server.post("/v1/search", &json!({ "index": "broken", "query": "q" }));
    reply.problem(500, "internal");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn pages_of_the_web_are_refused() {
    let server = Server::start();
    server
        .send("GET", "/health", &[("host", "evil.example")], b"")
        .problem(403, "host-not-allowed");
    let origin = [("origin", "http://evil.example"), JSON];
    server
        .send("POST", "/v1/sql", &origin, b"{}")
        .problem(403, "origin-not-allowed");
}

#[test]
fn what_comes_later_is_refused_by_name() {
    let server = Server::start();
    for path in ["/v1/search/subscribe", "/mcp"] {
        server.post(path, &json!({})).problem(501, "not-supported");
    }
    for path in ["/v1/vector_stores/support/search", "/v1/embeddings"] {
        let problem = server.post(path, &json!({})).problem(501, "not-supported");
        assert_eq!(
            problem["error"]["code"], "not-supported",
            "OpenAI's clients read this"
        );
    }
}
