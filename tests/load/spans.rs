//! Every kind of span is really seen in the log, with how long it took: a server with a push, a question,
//! an answer cache, a source that is dropped, and a graph that is built. (`sink` needs a broker; it is not
//! looked for here.)

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::server::{Server, log};
use crate::simple::post;

/// More rows than the scanned head of one worker's shard takes: a graph is built.
const ROWS: usize = engine::limits::HEAD_VECTORS_MAX + 100;

const MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

fn pipeline() -> String {
    format!(
        "CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
         CREATE MODEL minilm FROM '{MODEL}';
         CREATE INDEX found ON docs USING HYBRID (body) EMBED WITH minilm;
         CREATE CACHE answers ON found WITH (K = 1);
         CREATE SOURCE rows FROM GENERATE (ROWS {ROWS}, SEED 1, DIMENSIONS 8);
         CREATE MODEL vecs FROM COLUMN WITH (DIMENSIONS = 8);
         CREATE INDEX built ON rows USING VECTOR (embedding) CHUNK BY none EMBED WITH vecs;
         CREATE SOURCE gone FROM GENERATE (ROWS 1, SEED 1);"
    )
}

/// Spans that ended, by name: the fields of each.
fn ended(log: &str) -> BTreeMap<String, Vec<Json>> {
    let mut out: BTreeMap<String, Vec<Json>> = BTreeMap::new();
    for line in log.lines() {
        let Ok(line) = serde_json::from_str::<Json>(line) else {
            continue;
        };
        if line["fields"]["message"] == "close" {
            assert!(line["fields"]["time.busy"].is_string(), "{line}");
            let name = line["span"]["name"].as_str().unwrap_or_default();
            out.entry(name.to_owned())
                .or_default()
                .push(line["span"].clone());
        }
    }
    out
}

#[test]
fn a_span_of_each_kind_is_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = ["--workers", "1", "--log-format", "json", "--log"];
    let filter = "info,engine=debug,operators=debug,queries=debug,serve=debug";
    let options: Vec<&str> = options.into_iter().chain([filter]).collect();
    let server = Server::start(folder.path(), &pipeline(), &options);
    let push = json!([{"op": "upsert", "key": "a", "value": {"body": "the river is clear"}}]);
    let path = "/v1/sources/docs/documents?wait=visible&timeout_ms=60000";
    let (status, reply) = post(&server.url, path, &push);
    assert_eq!(status, 200, "{reply}");
    let search = json!({"index": "found", "query": "a river", "k": 1});
    assert_eq!(post(&server.url, "/v1/search", &search).0, 200);
    let question = json!({"question": "what is clear?"});
    let (status, miss) = post(&server.url, "/v1/caches/answers/lookup", &question);
    assert_eq!(status, 200, "{miss}");
    let store = json!({
        "lease": miss["lease"], "answer": "the river", "citations": [miss["hits"][0]["chunk"]],
    });
    let (status, reply) = post(&server.url, "/v1/caches/answers/store", &store);
    assert_eq!(status, 201, "{reply}");
    let (status, reply) = post(&server.url, "/v1/sql", &json!({"sql": "DROP SOURCE gone"}));
    assert_eq!(status, 200, "{reply}");

    let expected: BTreeSet<&str> = [
        "request", "question", "ask", "prepare", "tick", "embed", "rebuild", "lookup", "store",
        "source",
    ]
    .into();
    let deadline = Instant::now() + Duration::from_secs(300);
    let seen = loop {
        let seen = ended(&log(folder.path()));
        let names: BTreeSet<&str> = seen.keys().map(String::as_str).collect();
        if expected.is_subset(&names) {
            assert_eq!(names, expected, "a kind that nobody documented");
            break seen;
        }
        let missing: Vec<&&str> = expected.difference(&names).collect();
        assert!(Instant::now() < deadline, "no span {missing:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let has = |name: &str, fields: &Json| {
        let fields = fields.as_object().expect("fields");
        seen[name]
            .iter()
            .any(|span| fields.iter().all(|(field, value)| span[field] == *value))
    };
    for (name, fields) in [
        ("question", json!({"kind": "search"})),
        ("question", json!({"kind": "lookup"})),
        ("prepare", json!({"source": "docs", "rows": 1})),
        (
            "embed",
            json!({"model": MODEL, "kind": "passages", "outcome": "ok"}),
        ),
        ("lookup", json!({"cache": "answers", "hit": false})),
        ("store", json!({"cache": "answers", "stored": true})),
        ("source", json!({"source": "gone"})),
        ("request", json!({"method": "POST", "route": "/v1/search"})),
    ] {
        assert!(has(name, &fields), "{name} {fields}: {:?}", seen[name]);
    }
    // One tick binds what is ready, of several sources.
    let rows = seen["tick"].iter().filter_map(|span| span["rows"].as_u64());
    let rows: u64 = rows.sum();
    assert_eq!(rows, ROWS as u64 + 2, "each row is bound once");
}

#[test]
fn nothing_of_them_is_logged_unless_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipeline = "CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);";
    let server = Server::start(folder.path(), pipeline, &["--log-format", "json"]);
    let push = json!([{"op": "upsert", "key": "a", "value": {"body": "the river is clear"}}]);
    let path = "/v1/sources/docs/documents?wait=visible";
    assert_eq!(post(&server.url, path, &push).0, 200);
    drop(server);
    let log = log(folder.path());
    assert!(ended(&log).is_empty(), "{log}");
}
