//! A caller that goes away: what its question held is given back, and history goes on being forgotten.
//!
//! The future of a search is polled once and then left alone, so that the question has its time and its
//! hold for as long as the test wants; dropping it is what a server does whose client is gone.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use engine::model::Time;
use queries::api::{AtLeast, Backend, SearchRequest};
use serde_json::json;

use crate::rig::{Rig, alone, eventually};

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
CREATE INDEX found ON docs USING KEYWORD (body) WITH (RETAIN = '1 second');
";

/// Earliest and first not yet readable time of the index.
fn readable(rig: &Rig) -> (Time, Time) {
    let rows = rig.rows("SELECT since, upper FROM headwater.progress WHERE collection = 'found'");
    let time = |n: usize| rows[0][n].as_u64().expect("a time");
    (time(0), time(1))
}

/// Holds of unfinished questions, as `/metrics` has them.
fn holds() -> String {
    let text = engine::telemetry::install().render();
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("headwater_read_holds "));
    line.expect("declared").to_owned()
}

/// Asks, and lets `while_waiting` happen before the caller is gone.
fn leave(rig: &Rig, request: SearchRequest, while_waiting: impl FnOnce()) {
    let mut asked = pin!(rig.service.search(request));
    let once = poll_fn(|context| Poll::Ready(asked.as_mut().poll(context).is_pending()));
    assert!(rig.runtime.block_on(once), "answered at the first look");
    while_waiting();
}

#[test]
fn a_question_whose_caller_is_gone_holds_no_history() {
    let _room = alone();
    engine::telemetry::install();
    let rig = Rig::start(PIPELINE);
    rig.upsert("docs", "a", &json!({"body": "the river is clear"}));
    let request = SearchRequest {
        index: "found".to_owned(),
        query: Some("river".to_owned()),
        ..SearchRequest::default()
    };
    let (_, asked_at) = readable(&rig);
    leave(&rig, request.clone(), || {
        // Retention is a second: without the hold, all of this would be forgotten.
        eventually("three seconds pass", || {
            readable(&rig).1 > asked_at + 3_000_000
        });
        let (since, upper) = readable(&rig);
        assert!(
            since <= asked_at + 1_000_000,
            "{since} of {asked_at}..{upper}"
        );
        // Others come and go: the service asks for its own gauges.
        eventually("one is held", || holds() == "1");
    });
    eventually("the hold is released", || holds() == "0");
    eventually("history is forgotten", || {
        let (since, upper) = readable(&rig);
        since > asked_at + 1_000_000 && upper - since < 2_500_000
    });

    // A time that is never reached: the question waits, and holds nothing, before and after.
    let (_, asked_at) = readable(&rig);
    let never = SearchRequest {
        at_least: Some(AtLeast::Token(format!("t1.{}", asked_at + 3_600_000_000))),
        timeout_ms: Some(3_600_000),
        ..request
    };
    leave(&rig, never.clone(), || {
        std::thread::sleep(Duration::from_millis(1_500));
        eventually("none is held", || holds() == "0");
    });
    eventually("history is forgotten", || readable(&rig).0 > asked_at);
    leave(&rig, never, || {});
    assert_eq!(rig.find("found", "river"), ["a"]);
}
