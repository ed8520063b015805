//! What each call passes on and gives back.

use std::sync::atomic::Ordering;

use queries::api::AsOf;
use serde_json::json;

use crate::fake::NOW;
use crate::http::{Server, gzip};

#[test]
fn one_statement_is_a_reply_and_several_are_an_array() {
    let server = Server::start();
    let one = server.post("/v1/sql", &json!({ "sql": "SELECT $1", "params": [1, 2] }));
    assert_eq!(one.json()["rows"], json!([[0], [1]]), "parameters arrive");
    assert_eq!(one.header("headwater-as-of"), Some(&*NOW.to_string()));
    assert_eq!(
        one.json()["columns"],
        json!([{ "name": "n", "type": "bigint" }])
    );
    let several = server.post("/v1/sql", &json!({ "sql": "SELECT 1; SELECT 2" }));
    assert_eq!(several.json().as_array().map(Vec::len), Some(2));
}

#[test]
fn a_failed_statement_of_several_is_a_problem_that_keeps_what_was_done() {
    let server = Server::start();
    let reply = server.post("/v1/sql", &json!({ "sql": "SELECT 1; OOPS; SELECT 2" }));
    let problem = reply.problem(400, "syntax-error");
    assert_eq!(problem["statement"], 1);
    assert_eq!(problem["replies"].as_array().map(Vec::len), Some(1));
    assert_eq!(problem["position"], json!({ "line": 1, "column": 1 }));
}

#[test]
fn sql_streams_as_lines() {
    let server = Server::start();
    let accept = [
        ("accept", "application/x-ndjson"),
        ("content-type", "application/json"),
    ];
    let body = br#"{"sql":"ROWS 30000; OOPS"}"#;
    let reply = server.send("POST", "/v1/sql", &accept, body);
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("application/x-ndjson"))
    );
    let lines: Vec<serde_json::Value> = reply
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 1 + 30_000 + 1 + 1);
    assert_eq!(lines[0]["columns"][0]["name"], "n");
    assert_eq!(lines[30_000], json!({ "row": [29_999] }));
    assert_eq!(
        lines[30_001]["end"],
        json!({ "rows": 30_000, "tag": "SELECT", "as_of": NOW })
    );
    assert_eq!(lines[30_002]["error"]["statement"], 1);
    // A first statement that fails has a status of its own.
    let failed = server.send("POST", "/v1/sql", &accept, br#"{"sql":"OOPS"}"#);
    failed.problem(400, "syntax-error");
}

#[test]
fn search_answers_and_refuses() {
    let server = Server::start();
    let body = json!({ "index": "support", "query": "why?", "as_of": "2026-11-21T10:00:00Z",
                       "where": "lang = $1", "params": ["en"] });
    let reply = server.post("/v1/search", &body);
    assert_eq!(reply.json()["hits"][0]["range"], json!([120, 480]));
    assert_eq!(reply.header("headwater-as-of"), Some(&*NOW.to_string()));
    let seen = server.fake.searches.lock().unwrap()[0].clone();
    assert_eq!(seen.as_of, Some(AsOf::Text("2026-11-21T10:00:00Z".into())));
    assert_eq!(seen.filter.as_deref(), Some("lang = $1"));
    server
        .post("/v1/search", &json!({ "index": "x", "query": "q" }))
        .problem(404, "not-found");
    let late = server.post("/v1/search", &json!({ "index": "late", "query": "q" }));
    assert_eq!(late.problem(504, "at-least-timeout")["reached"], NOW);
    let busy = server.post("/v1/search", &json!({ "index": "busy", "query": "q" }));
    busy.problem(503, "not-ready");
    assert_eq!(busy.header("retry-after"), Some("7"));
    let zero = server.post(
        "/v1/search",
        &json!({ "index": "support", "query": "q", "k": 0 }),
    );
    let zero = zero.problem(422, "invalid-request");
    assert_eq!(zero["detail"], "k = 0 is out of range");
    assert_eq!(zero["expected"], "from 1 to 1000 (K_MAX)");
    let long = server.post(
        "/v1/search",
        &json!({ "index": "support", "query": "q".repeat(100_000) }),
    );
    let long = long.problem(422, "limit-exceeded");
    assert_eq!(long["detail"], "the question has 100000 characters");
    assert_eq!(long["expected"], "at most 32768 (QUESTION_CHARS_MAX)");
}

#[test]
fn bad_lines_are_rejected_and_the_others_taken() {
    let server = Server::start();
    let mut body = b"{\"op\":\"delete\",\"key\":1}\n\n{\"op\":\n\xFF\xFE\n".to_vec();
    body.extend(std::iter::repeat_n(
        b'x',
        engine::limits::LINE_BYTES_MAX + 1,
    ));
    body.extend(b"\n{\"op\":\"delete\",\"key\":2}");
    let path = "/v1/sources/tickets/documents";
    let reply = server.send(
        "POST",
        path,
        &[("content-type", "application/x-ndjson")],
        &body,
    );
    assert_eq!(
        (reply.status, reply.header("headwater-token")),
        (202, Some("w_1"))
    );
    let json = reply.json();
    assert_eq!(
        (&json["accepted"], &json["rejected_total"]),
        (&json!(2), &json!(3))
    );
    let rejected: Vec<_> = json["rejected"].as_array().unwrap().iter().collect();
    assert_eq!(
        (&rejected[0]["line"], &rejected[0]["error"]["code"]),
        (&json!(3), &json!("invalid-json"))
    );
    assert_eq!(
        (&rejected[1]["line"], &rejected[1]["error"]["code"]),
        (&json!(4), &json!("invalid-utf8"))
    );
    assert_eq!(
        (&rejected[2]["line"], &rejected[2]["error"]["code"]),
        (&json!(5), &json!("line-too-large"))
    );
    let atomic = server.send("POST", &format!("{path}?atomic=true"), &[], b"{\"op\":\n");
    assert_eq!(
        atomic.problem(422, "invalid-request")["errors"][0]["code"],
        "invalid-json"
    );
}

#[test]
fn a_push_passes_on_what_it_was_asked() {
    let server = Server::start();
    let path = "/v1/sources/tickets/documents";
    let line = b"[{\"op\":\"delete\",\"key\":1}, {\"op\":\"delete\",\"key\":2}]";
    let again = [("idempotency-key", "again")];
    let reply = server.send(
        "POST",
        &format!("{path}?wait=visible&timeout_ms=5"),
        &again,
        line,
    );
    assert_eq!(
        (reply.status, reply.header("idempotency-replayed")),
        (200, Some("true"))
    );
    assert_eq!(reply.json()["visible"], true);
    let late = server.send(
        "POST",
        &format!("{path}?wait=visible&timeout_ms=0"),
        &[],
        line,
    );
    assert_eq!((late.status, &late.json()["visible"]), (202, &json!(false)));
    let pushes = server.fake.pushes.lock().unwrap();
    assert_eq!(pushes[0].wait_visible_ms, Some(5));
    assert_eq!(pushes[0].idempotency_key.as_deref(), Some("again"));
    assert_eq!(pushes[0].lines[1].raw, b"{\"op\":\"delete\",\"key\":2}");
    assert_eq!(
        Some(&*pushes[0].request_id),
        reply.header("headwater-request-id")
    );
}

#[test]
fn a_push_may_be_packed() {
    let server = Server::start();
    let path = "/v1/sources/tickets/documents";
    let lines = b"{\"op\":\"delete\",\"key\":1}\n{\"op\":\"delete\",\"key\":2}\n";
    // As one member, and as two one behind the other.
    for cut in [lines.len(), 26] {
        let body = [gzip(&lines[..cut]), gzip(&lines[cut..])].concat();
        let packed = [
            ("content-encoding", "gzip"),
            ("content-type", "application/x-ndjson"),
        ];
        let reply = server.send("POST", path, &packed, &body);
        assert_eq!(reply.status, 202);
    }
    assert_eq!(
        server
            .send("POST", path, &[("content-encoding", "identity")], lines)
            .status,
        202
    );
    let pushes = server.fake.pushes.lock().unwrap();
    assert_eq!(pushes.len(), 3);
    for push in pushes.iter() {
        assert_eq!(push.lines.len(), 2);
        assert_eq!(push.lines[1].raw, b"{\"op\":\"delete\",\"key\":2}");
    }
}

#[test]
fn documents_by_parameter_and_by_path() {
    let server = Server::start();
    let reply = server.get("/v1/documents/docs?key=a%2Fb.md&as_of=17&history=true");
    assert_eq!(reply.json()["history"][0]["version"], 1);
    assert_eq!(
        server.get("/v1/documents/docs/a/b%20c.md").json()["key"],
        "a/b c.md"
    );
    assert_eq!(server.get("/v1/documents/docs?key=7").json()["key"], 7);
    let seen = server.fake.documents.lock().unwrap();
    assert_eq!(
        (&seen[0].key, &seen[0].as_of),
        (&json!("a/b.md"), &Some(AsOf::Time(17)))
    );
    assert!(seen[0].history);
    server
        .get("/v1/documents/docs")
        .problem(422, "invalid-request");
}

#[test]
fn the_cache_hits_misses_stores_and_forgets() {
    let server = Server::start();
    let hit = server.post("/v1/caches/answers/lookup", &json!({ "question": "known" }));
    assert_eq!(
        (&hit.json()["hit"], &hit.json()["entry"]),
        (&json!(true), &json!("e_1"))
    );
    let miss = server.post("/v1/caches/answers/lookup", &json!({ "question": "new" }));
    assert_eq!(
        (&miss.json()["hit"], &miss.json()["lease"]),
        (&json!(false), &json!("l_1"))
    );
    let store = |lease: &str| {
        server.post(
            "/v1/caches/answers/store",
            &json!({ "lease": lease, "answer": "so" }),
        )
    };
    assert_eq!(
        (store("l_1").status, &store("l_1").json()["entry"]),
        (201, &json!("e_1"))
    );
    assert_eq!(
        store("l_x").problem(409, "lease-conflict")["cause"],
        "changed"
    );
    store("l_old").problem(410, "lease-expired");
    let long = json!({ "lease": "l_1", "answer": "x".repeat(2 << 20) });
    server
        .post("/v1/caches/answers/store", &long)
        .problem(413, "answer-too-large");
    assert_eq!(
        server.get("/v1/caches/answers/entries/e_1").json()["state"],
        "live"
    );
    server
        .get("/v1/caches/answers/entries/e_9")
        .problem(404, "not-found");
    let gone = server.send("DELETE", "/v1/caches/answers/entries/e_1", &[], b"");
    assert_eq!(gone.json()["cause"], "manual");
}

#[test]
fn dead_letters_come_page_by_page() {
    let server = Server::start();
    let (mut path, mut ids) = ("/v1/dead_letters?source=tickets&limit=2".to_owned(), vec![]);
    for _ in 0..3 {
        let page = server.get(&path).json();
        for letter in page["dead_letters"].as_array().unwrap() {
            ids.push(letter["id"].as_str().unwrap().to_owned());
            let is_binary = letter["id"] == "d_000000000002";
            assert_eq!(letter.get("payload_hex").is_some(), is_binary, "{letter}");
        }
        let Some(next) = page["next_cursor"].as_str() else {
            break;
        };
        path = format!("/v1/dead_letters?source=tickets&limit=2&cursor={next}");
    }
    let expected: Vec<String> = (1..=5).map(|number| format!("d_{number:012x}")).collect();
    assert_eq!(ids, expected);
    let one = server.get("/v1/dead_letters?id=d_000000000004").json();
    assert_eq!(one["dead_letters"].as_array().unwrap().len(), 1);
    assert_eq!(one["dead_letters"][0]["count"], 4);
    server
        .get("/v1/dead_letters?cursor=zzz")
        .problem(422, "invalid-request");
    let replay = |body: &serde_json::Value| server.post("/v1/dead_letters/replay", body);
    replay(&json!({})).problem(422, "invalid-request");
    replay(&json!({ "ids": "some" })).problem(422, "invalid-request");
    replay(&json!({ "colour": "red" })).problem(422, "invalid-request");
    for body in [
        json!({ "ids": "all" }),
        json!({ "ids": ["d_000000000001"] }),
        json!({ "source": "tickets", "code": "invalid-json" }),
    ] {
        let reply = replay(&body).json();
        assert_eq!(
            (&reply["replayed"], &reply["still_bad"]),
            (&json!(2), &json!(1))
        );
        assert_eq!(reply["refused"][0]["id"], "d_000000000003");
    }
}

#[test]
fn readiness_says_why_and_when_to_come_back() {
    let server = Server::start();
    let reply = server.get("/ready");
    let problem = reply.problem(503, "not-ready");
    assert_eq!(
        problem["reasons"][0],
        "index \"support\": 8 of 10 documents wait for their embedding"
    );
    assert_eq!(
        (&problem["ready"], reply.header("retry-after")),
        (&json!(false), Some("1"))
    );
    server.fake.is_ready.store(true, Ordering::SeqCst);
    assert_eq!(
        server.get("/ready").json(),
        json!({ "ready": true, "reasons": [] })
    );
    assert_eq!(server.get("/health").json()["status"], "ok");
    assert!(
        server
            .get("/metrics")
            .text()
            .contains("headwater_ticks_total 7")
    );
    assert!(server.get("/console").text().starts_with("<!doctype html>"));
}
