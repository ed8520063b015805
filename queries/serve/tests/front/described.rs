//! The description served at `/openapi.json` is true: it names exactly the routes served, each
//! answers with a status that it documents, and each JSON reply fits its schema.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde_json::{Value as Json, json};

use crate::http::{Reply, Server};
use crate::schema;

fn description() -> Json {
    serde_json::from_str(serve::OPENAPI).unwrap()
}

/// (METHOD, path, operation) of everything described.
fn operations(root: &Json) -> Vec<(String, String, Json)> {
    let paths = root["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(|(method, op)| (method.to_uppercase(), path.clone(), op.clone()))
    });
    all.collect()
}

#[test]
fn it_names_exactly_what_is_served() {
    let described: BTreeSet<_> = operations(&description())
        .into_iter()
        .map(|(method, path, _)| (method, path))
        .collect();
    let served: BTreeSet<_> = serve::served().into_iter().collect();
    assert_eq!(described, served);
}

#[test]
fn its_operations_are_well_formed() {
    let root = description();
    assert!(root["openapi"].as_str().unwrap().starts_with("3.1."));
    let mut ids = BTreeSet::new();
    for (method, path, op) in operations(&root) {
        assert!(
            ids.insert(op["operationId"].as_str().unwrap().to_owned()),
            "{method} {path}"
        );
        for parameter in path
            .split('{')
            .skip(1)
            .map(|rest| rest.split('}').next().unwrap())
        {
            let listed = op["parameters"].as_array().into_iter().flatten();
            assert!(
                listed.into_iter().any(|p| p["name"] == parameter),
                "{method} {path}: {parameter}"
            );
        }
        assert!(
            op["responses"]
                .as_object()
                .is_some_and(|all| !all.is_empty())
        );
    }
}

/// The reply has a documented status, the documented headers, and a body that fits its schema.
fn check(root: &Json, op: &Json, name: &str, reply: &Reply) {
    let documented = &op["responses"][reply.status.to_string()];
    assert!(
        documented.is_object(),
        "{name}: status {} is not documented",
        reply.status
    );
    assert!(reply.header("headwater-request-id").is_some(), "{name}");
    let found = reply.header("content-type").unwrap_or_default();
    let schema = &documented["content"][found]["schema"];
    assert!(
        schema.is_object(),
        "{name}: {found} is not documented for {}",
        reply.status
    );
    if found.ends_with("json") {
        let checked = schema::check(root, schema, &reply.json());
        assert_eq!(checked, Ok(()), "{name} {}", reply.status);
    }
}

fn filled(path: &str) -> String {
    let names = [
        ("source", "tickets"),
        ("cache", "answers"),
        ("id", "e_1"),
        ("index", "support"),
    ];
    let path = names.iter().fold(path.to_owned(), |path, (name, value)| {
        path.replace(&format!("{{{name}}}"), value)
    });
    path.replace("{key}", "a")
}

fn ask(server: &Server, method: &str, path: &str, op: &Json) -> Reply {
    let example = &op["x-example"];
    let query = example["query"].as_str().filter(|_| method == "GET");
    let path = format!(
        "{}{}",
        filled(path),
        query.map(|q| format!("?{q}")).unwrap_or_default()
    );
    match method {
        "POST" => server.post(&path, example),
        _ => server.send(method, &path, &[], b""),
    }
}

#[test]
fn every_call_answers_as_described() {
    let (root, server) = (description(), Server::start());
    for is_ready in [false, true] {
        server.fake.is_ready.store(is_ready, Ordering::SeqCst);
        for (method, path, op) in operations(&root) {
            if op["x-example"]["stream"] == true {
                continue; // An endless reply; tests/front/streams.rs reads it.
            }
            let reply = ask(&server, &method, &path, &op);
            check(&root, &op, &format!("{method} {path}"), &reply);
            let is_later = op["summary"].as_str().unwrap().ends_with("a later version");
            let is_waiting = path == "/ready" && !is_ready;
            assert_eq!(
                reply.status < 300,
                !is_later && !is_waiting,
                "{method} {path}"
            );
        }
    }
}

#[test]
fn failures_answer_as_described() {
    let (root, server) = (description(), Server::start());
    for (method, path, op) in operations(&root) {
        let name = format!("{method} {path}");
        let foreign = server.send(&method, &filled(&path), &[("host", "evil.example")], b"");
        check(&root, &op, &name, &foreign);
        if op["requestBody"].is_object() {
            let xml = [("content-type", "text/xml")];
            check(
                &root,
                &op,
                &name,
                &server.send(&method, &filled(&path), &xml, b"<a/>"),
            );
            check(
                &root,
                &op,
                &name,
                &server.send(&method, &filled(&path), &[], b"[{"),
            );
            check(
                &root,
                &op,
                &name,
                &server.send(&method, &filled(&path), &[], b"{\"x\":1}"),
            );
        }
        if path.contains("{source}") {
            let path = path.replace("{source}", "nope").replace("{key}", "a");
            let reply = ask(&server, &method, &path, &op);
            check(&root, &op, &name, &reply);
            reply.problem(404, "not-found");
        }
    }
}

#[test]
fn requests_are_described_as_they_are_read() {
    let (root, server) = (description(), Server::start());
    let bodies = [
        (
            "/v1/search",
            "SearchRequest",
            json!({ "index": "support", "query": "q", "k": 5, "mode": "hybrid",
            "where": "a = 1", "params": [1], "as_of": 7, "at_least": { "source": "t", "offsets": { "0": 1 } },
            "timeout_ms": 10, "exact": true, "min_score": 0.5, "per_document": 2, "select": ["text"], "explain": true }),
        ),
        (
            "/v1/sql",
            "SqlRequest",
            json!({ "sql": "SELECT 1", "params": [null] }),
        ),
        (
            "/v1/caches/answers/lookup",
            "LookupRequest",
            json!({ "question": "q", "parameters": { "lang": "en" } }),
        ),
        (
            "/v1/caches/answers/store",
            "StoreRequest",
            json!({ "lease": "l_1", "answer": {}, "citations": ["c_9f"] }),
        ),
    ];
    for (path, name, body) in bodies {
        let schema = &root["components"]["schemas"][name];
        assert_eq!(schema::check(&root, schema, &body), Ok(()), "{name}");
        let described = schema["properties"]
            .as_object()
            .unwrap()
            .keys()
            .collect::<BTreeSet<_>>();
        // All fields described are in the example, but those that exclude each other.
        let given = body.as_object().unwrap().keys().collect::<BTreeSet<_>>();
        let missing: Vec<_> = described
            .difference(&given)
            .map(|name| name.as_str())
            .collect();
        assert!(
            missing
                .iter()
                .all(|name| ["queries", "vector"].contains(name)),
            "{name}: {missing:?}"
        );
        assert!(
            server.post(path, &body).status < 300,
            "{path} takes what is described"
        );
    }
}
