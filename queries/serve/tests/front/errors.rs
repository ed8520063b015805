//! Law: whatever goes wrong, the reply is a problem with a code, a request id and the right status.

use std::io::{Read, Write};

use serde_json::json;

use crate::http::{Server, gzip};

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

/// A gzip of 65 kB that unpacks to 64 MiB and one byte.
#[test]
fn a_packed_body_is_measured_unpacked() {
    let server = Server::start();
    let most = engine::limits::BODY_BYTES_MAX;
    let path = "/v1/sources/tickets/documents";
    let packed = [("content-encoding", "gzip")];
    let bomb = gzip(&vec![b' '; most + 1]);
    assert!(bomb.len() < 100_000, "{}", bomb.len());
    let problem = server
        .send("POST", path, &packed, &bomb)
        .problem(413, "body-too-large");
    assert_eq!(
        problem["detail"],
        format!("the body unpacks to more than {most} bytes")
    );
    assert_eq!(
        problem["expected"],
        format!("at most {most} bytes (BODY_BYTES_MAX)")
    );
    assert_eq!(problem["hint"], "send it in several requests");
    // All of it is room: it is the lines that are missing.
    let full = gzip(&vec![b' '; most]);
    let problem = server
        .send("POST", path, &packed, &full)
        .problem(422, "invalid-request");
    assert_eq!(problem["detail"], "the body has no lines");
}

#[test]
fn what_is_packed_otherwise_is_refused() {
    let server = Server::start();
    let path = "/v1/sources/tickets/documents";
    let refused = |encoding: &str, body: &[u8], status: u16, code: &str| {
        let reply = server.send("POST", path, &[("content-encoding", encoding)], body);
        reply.problem(status, code)["detail"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let line = b"{\"op\":\"delete\",\"key\":1}";
    assert_eq!(
        refused("br", line, 415, "unsupported-media-type"),
        "a body with Content-Encoding br is not understood"
    );
    assert_eq!(
        refused("gzip", line, 400, "invalid-gzip"),
        "the body is not gzip: invalid gzip header"
    );
    let whole = gzip(line);
    assert_eq!(
        refused("gzip", &whole[..whole.len() - 6], 400, "invalid-gzip"),
        "the body is not gzip: it ends early, or its checksum does not fit"
    );
    let mut spoiled = whole.clone();
    spoiled[whole.len() - 6] ^= 1;
    assert_eq!(
        refused("gzip", &spoiled, 400, "invalid-gzip"),
        "the body is not gzip: it ends early, or its checksum does not fit"
    );
    assert_eq!(
        server.fake.pushes.lock().unwrap().len(),
        0,
        "nothing came through"
    );
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
    let path = "/v1/vector_stores/support/search";
    let problem = server.post(path, &json!({})).problem(501, "not-supported");
    assert_eq!(
        problem["error"]["code"], "not-supported",
        "OpenAI's clients read this"
    );
}
