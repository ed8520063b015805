//! What a server costs that has nothing to do: less than 2 % of a core, by the operating system's count
//! of its processor time; also while a client waits for a time that is still to come.
//!
//! The real binary with a model, a folder that is watched, indexes and a cache. The command is
//!
//! ```text
//! cargo test --release --workspace --test load idle -- --nocapture
//! ```

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::server::Server;
use crate::simple::post;

/// One look at the processor time; a tick of the kernel's count is 10 ms.
const WINDOW: Duration = Duration::from_secs(5);
/// Share of one core. A development build is allowed twice as much: beside other work it comes near the bar.
const SHARE_MAX: f64 = if cfg!(debug_assertions) { 0.04 } else { 0.02 };
/// Kernel's ticks a second, in what it tells programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of processor time, user and system, of a process.
fn cpu_seconds(id: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th behind it.
    let (_, behind) = text.rsplit_once(')')?;
    let mut fields = behind.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / TICKS_PER_SECOND)
}

/// The least share of a core in up to three windows: the first one that is small enough ends it.
fn share(server: &Server, what: &str) -> Option<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..3 {
        let (begun, before) = (Instant::now(), cpu_seconds(server.id())?);
        std::thread::sleep(WINDOW);
        let used = cpu_seconds(server.id())? - before;
        let share = used / begun.elapsed().as_secs_f64();
        println!("{what}: {:.2} % of a core", share * 100.0);
        least = least.min(share);
        if least < SHARE_MAX {
            break;
        }
    }
    Some(least)
}

#[test]
fn an_idle_server_uses_next_to_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let texts = folder.path().join("texts");
    std::fs::create_dir(&texts).expect("writable");
    std::fs::write(texts.join("a.md"), "# River\n\nIt is clear.\n").expect("writable");
    let pipeline = format!(
        "CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
         CREATE SOURCE manual FROM FILES (PATH '{}');
         CREATE MODEL minilm FROM 'sentence-transformers/all-MiniLM-L6-v2';
         CREATE INDEX found ON docs USING HYBRID (body) EMBED WITH minilm;
         CREATE INDEX pages ON manual USING HYBRID (text) EMBED WITH minilm;
         CREATE CACHE answers ON found WITH (K = 1);",
        texts.display()
    );
    let server = Server::start(folder.path(), &pipeline, &[]);
    let push = json!([{"op": "upsert", "key": "a", "value": {"body": "the river is clear"}}]);
    let path = "/v1/sources/docs/documents?wait=visible&timeout_ms=60000";
    let (status, reply) = post(&server.url, path, &push);
    assert_eq!(status, 200, "{reply}");
    let search = |index: &str| json!({"index": index, "query": "a river", "k": 1});
    for index in ["found", "pages"] {
        assert_eq!(post(&server.url, "/v1/search", &search(index)).0, 200);
    }
    std::thread::sleep(Duration::from_secs(2));
    let Some(idle) = share(&server, "idle") else {
        return println!("this system has no /proc: nothing is measured");
    };
    assert!(idle < SHARE_MAX, "idle: {:.1} %", idle * 100.0);

    // A minute ahead: nobody can be answered meanwhile, and nothing must turn for it.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let ahead = since.expect("after 1970") + Duration::from_secs(60);
    let mut waiting = search("found");
    waiting["at_least"] = json!(format!("t1.{}", ahead.as_micros()));
    waiting["timeout_ms"] = json!(60_000);
    let url = server.url.clone();
    // Ends with the server.
    let asked = std::thread::spawn(move || {
        let agent = ureq::Agent::new_with_defaults();
        let request = agent.post(format!("{url}/v1/search"));
        let request = request.header("content-type", "application/json");
        drop(request.send(waiting.to_string()));
    });
    std::thread::sleep(Duration::from_millis(500));
    let waited = share(&server, "one question waits").expect("read before");
    assert!(!asked.is_finished(), "the question waits");
    assert!(waited < SHARE_MAX, "waiting: {:.1} %", waited * 100.0);
    drop(server);
    asked.join().expect("no panic");
}
