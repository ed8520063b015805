//! A client that closes its connection while its question waits: the question is forgotten, and holds
//! nothing.
//!
//! The real binary over sockets. `at_least` names the write after the last one, so the question waits; with
//! the connection open it is answered when that write comes (which shows that it did wait), with the
//! connection closed it never is.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::server::Server;
use crate::simple::{metric, post};

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
CREATE INDEX found ON docs USING KEYWORD (body) WITH (RETAIN = '1 second');
";

const ANSWERED: &str = "headwater_question_seconds_count{kind=\"search\"";
const HOLDS: &str = "headwater_read_holds";

fn push(server: &Server, body: &str) -> String {
    let lines = json!([{"op": "upsert", "key": "a", "value": {"body": body}}]);
    let path = "/v1/sources/docs/documents?wait=visible&timeout_ms=20000";
    let (status, reply) = post(&server.url, path, &lines);
    assert_eq!(status, 200, "{reply}");
    reply["token"].as_str().expect("a token").to_owned()
}

/// The token that the next write will have: `w1.<source>.<number>.<lane>`.
fn next(token: &str) -> String {
    let mut parts: Vec<String> = token.splitn(4, '.').map(str::to_owned).collect();
    let number: u64 = parts[2].parse().expect("a number");
    parts[2] = (number + 1).to_string();
    parts.join(".")
}

/// Asks for what is written next, and leaves the answer in the socket.
fn ask(server: &Server, at_least: &str) -> TcpStream {
    let address = server.url.trim_start_matches("http://");
    let body = json!({
        "index": "found", "query": "river", "at_least": at_least, "timeout_ms": 60_000,
    })
    .to_string();
    let mut stream = TcpStream::connect(address).expect("listening");
    let head = format!(
        "POST /v1/search HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream
}

fn since(server: &Server) -> u64 {
    let sql = json!({"sql": "SELECT since FROM headwater.progress WHERE collection = 'found'"});
    let (status, reply) = post(&server.url, "/v1/sql", &sql);
    assert_eq!(status, 200, "{reply}");
    reply["rows"][0][0].as_u64().expect("a time")
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_question_whose_connection_is_closed_is_forgotten() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), PIPELINE, &["--workers", "1"]);
    let first = push(&server, "the river is clear");

    // Open: it waits, and is answered when the write comes.
    let mut open = ask(&server, &next(&first));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(metric(&server.url, ANSWERED), 0.0, "it waits");
    let second = push(&server, "the river rises");
    let mut reply = [0; 12];
    open.read_exact(&mut reply).expect("answered");
    assert_eq!(&reply, b"HTTP/1.1 200");
    eventually("counted", || metric(&server.url, ANSWERED) == 1.0);
    drop(open);

    // Closed while it waits, many at once.
    let many: Vec<TcpStream> = (0..50).map(|_| ask(&server, &next(&second))).collect();
    std::thread::sleep(Duration::from_millis(300));
    drop(many);
    std::thread::sleep(Duration::from_millis(300));
    push(&server, "the river falls");
    let search = json!({"index": "found", "query": "falls"});
    let (_, found): (_, Json) = post(&server.url, "/v1/search", &search);
    assert_eq!(found["hits"].as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!(metric(&server.url, ANSWERED), 2.0, "this one alone");
    // Taken from the last time that was published: one comes every second.
    eventually("nothing is held", || metric(&server.url, HOLDS) == 0.0);
    let then = since(&server);
    eventually("history is given up", || since(&server) > then);
}
