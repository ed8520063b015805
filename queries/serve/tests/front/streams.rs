//! Streams resume, end with their server, and readers that leave release what they held.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fake::NOW;
use crate::http::{DRAIN_MS, Server};

/// Reads until `enough` of the text so far, or the end.
fn read_until(mut stream: impl Read, enough: impl Fn(&str) -> bool) -> String {
    let (mut text, mut block) = (String::new(), [0; 4096]);
    while !enough(&text) {
        let n = stream.read(&mut block).unwrap();
        if n == 0 {
            break;
        }
        text += &String::from_utf8_lossy(&block[..n]);
    }
    text
}

fn ids(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .collect()
}

#[test]
fn events_come_in_order_and_resume_after_the_last_one_seen() {
    let server = Server::start();
    let path = "/v1/caches/answers/events";
    let all = [format!("{NOW}/1"), format!("{NOW}/2"), format!("{NOW}/3")];
    let stream = server.open("GET", path, &[], None);
    let text = read_until(stream, |text| ids(text).len() == 3);
    assert!(text.contains("content-type: text/event-stream"), "{text}");
    assert!(text.contains(&format!(
        "id: {NOW}/1\nevent: stored\ndata: {{\"entry\":1}}\n\n"
    )));
    assert_eq!(ids(&text), all);
    let stream = server.open("GET", path, &[("last-event-id", &all[1])], None);
    let text = read_until(stream, |text| text.contains(": waiting"));
    assert_eq!(ids(&text), all[2..], "no loss, no repetition");
    let stream = server.open(
        "GET",
        &format!("{path}?last_event_id={}", all[0]),
        &[],
        None,
    );
    assert_eq!(
        ids(&read_until(stream, |text| ids(text).len() == 2)),
        all[1..]
    );
}

#[test]
fn trouble_is_an_event_and_then_the_end() {
    let server = Server::start();
    server
        .get("/v1/caches/nope/events")
        .problem(404, "not-found");
    let stream = server.open("GET", "/v1/caches/fails/events", &[], None);
    let text = read_until(stream, |_| false);
    let error = text.split("event: error\ndata: ").nth(1).unwrap();
    assert!(error.contains("\"detail\":\"the disk is gone\""), "{text}");
}

#[test]
fn a_stopping_server_ends_its_streams_at_once() {
    let mut server = Server::start();
    let stream = server.open("GET", "/v1/caches/quiet/events", &[], None);
    read_until(&stream, |text| text.contains(": waiting"));
    let started = Instant::now();
    server.stop();
    assert!(
        started.elapsed() < Duration::from_millis(DRAIN_MS),
        "{:?}",
        started.elapsed()
    );
    read_until(&stream, |_| false);
}

#[test]
fn a_client_that_leaves_drops_its_question() {
    let server = Server::start();
    let body = json!({ "index": "slow", "query": "q" }).to_string();
    let json = [("content-type", "application/json")];
    let mut stream = server.open("POST", "/v1/search", &json, Some(body.len()));
    std::io::Write::write_all(&mut stream, body.as_bytes()).unwrap();
    let searching = |want: usize| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.fake.searching.load(Ordering::SeqCst) != want {
            assert!(Instant::now() < deadline, "still not {want} searches");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    searching(1);
    drop(stream);
    searching(0);
}

#[test]
fn a_question_that_never_ends_does_not_hold_the_server() {
    let mut server = Server::start();
    let body = json!({ "index": "slow", "query": "q" }).to_string();
    let mut stream = server.open("POST", "/v1/search", &[], Some(body.len()));
    std::io::Write::write_all(&mut stream, body.as_bytes()).unwrap();
    while server.fake.searching.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    let started = Instant::now();
    server.stop();
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "the drain is bounded"
    );
}
