//! What stands in a sink's topic, and whether it may.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::program::Program;
use crate::servers::kafka::Kafka;
use crate::servers::records::Record;

/// Nothing that is waited for takes so long.
pub const LONG: Duration = Duration::from_secs(180);

pub fn sink(name: &str, from: &str, kafka: &Kafka, topic: &str, what: &str) -> String {
    format!(
        "CREATE SINK {name} FROM {from} INTO KAFKA (BROKERS '{}', TOPIC '{topic}', PARTITIONS 3) {what};\n",
        kafka.bootstrap
    )
}

/// Pushes rows, and lines that delete, and waits until they are seen; an answer that did not come may have been taken.
pub fn push(program: &Program, source: &str, body: &Json) -> bool {
    let line = |row: &Json| match row.get("op") {
        Some(_) => row.clone(),
        None => json!({"op": "upsert", "key": row["id"], "value": row}),
    };
    let body: Json = match body {
        Json::Array(rows) => rows.iter().map(line).collect(),
        row => Json::Array(vec![line(row)]),
    };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into();
    let url = format!(
        "{}/v1/sources/{source}/documents?wait=visible",
        program.address()
    );
    let sent = agent
        .post(url)
        .header("content-type", "application/json")
        .send(body.to_string());
    match sent.and_then(|mut reply| reply.body_mut().read_json::<Json>()) {
        Ok(reply) => {
            assert_eq!(reply["rejected_total"], 0, "{reply}");
            true
        }
        Err(_) => false,
    }
}

/// The change's time, from its header.
pub fn time(record: &Record) -> u64 {
    let header = record
        .headers
        .iter()
        .find(|(name, _)| name == "headwater.time");
    let (_, value) = header.expect("every record has its time");
    let text = String::from_utf8(value.clone().expect("a value")).expect("digits");
    text.parse().expect("digits")
}

/// The newest value of each key, in the order of each partition.
pub fn table(records: &[Record]) -> BTreeMap<String, Json> {
    let mut table = BTreeMap::new();
    for record in records {
        match &record.value {
            Some(_) => table.insert(record.key_text(), record.value_json()),
            None => table.remove(&record.key_text()),
        };
    }
    table
}

/// The collection as an upsert topic has it.
pub fn collection(program: &Program, name: &str) -> BTreeMap<String, Json> {
    let rows = program.rows(&format!("SELECT id, grp, body FROM {name}"));
    let row = |row: Vec<Json>| {
        let key = json!({"id": row[0]}).to_string();
        (key, json!({"id": row[0], "grp": row[1], "body": row[2]}))
    };
    rows.into_iter().map(row).collect()
}

/// Waits until the committed records of a topic are as wished.
pub fn wait_topic(
    program: &Program,
    kafka: &Kafka,
    topic: &str,
    mut holds: impl FnMut(&[Record]) -> bool,
) -> Vec<Record> {
    let deadline = Instant::now() + LONG;
    loop {
        let found = kafka.try_committed(topic);
        if let Ok(records) = &found
            && holds(records)
        {
            return records.clone();
        }
        if Instant::now() > deadline {
            let sinks =
                program.rows("SELECT name, status, progress, lag_ms, error FROM headwater.sinks");
            let count = found.map(|records| records.len());
            panic!("{topic}: {count:?} records; {sinks:?}\n{}", program.log());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One record a key and time, times in order within a key.
pub fn check_once(records: &[Record]) {
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    let mut places: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    for record in records {
        let (key, at) = (record.key_text(), time(record));
        let before = last.insert(key.clone(), at);
        assert!(
            before.is_none_or(|before| before < at),
            "{key} at {at} behind {before:?}"
        );
        places.entry(key).or_default().insert(record.partition);
    }
    assert!(
        places.values().all(|places| places.len() == 1),
        "{places:?}"
    );
}

/// Each event begins where the former one of its key ended, and a null follows each delete.
pub fn check_events(records: &[Record]) -> BTreeMap<String, Json> {
    let mut rows: BTreeMap<String, Json> = BTreeMap::new();
    let mut seen: BTreeSet<(String, u64)> = BTreeSet::new();
    let mut deleted: BTreeMap<String, u64> = BTreeMap::new();
    for record in records {
        let (key, at) = (record.key_text(), time(record));
        if record.value.is_none() {
            assert_eq!(deleted.remove(&key), Some(at), "{key}: a null alone");
            continue;
        }
        assert!(
            !deleted.contains_key(&key),
            "{key}: no null behind a delete"
        );
        let event = record.value_json();
        assert!(seen.insert((key.clone(), at)), "{key} at {at} twice");
        let before = rows.get(&key).cloned().unwrap_or(Json::Null);
        assert_eq!(event["before"], before, "{key} at {at}");
        assert_eq!(event["source"]["ts_us"], json!(at));
        let op = match (&event["before"], &event["after"]) {
            (Json::Null, _) if event["source"]["snapshot"] == "true" => "r",
            (Json::Null, _) => "c",
            (_, Json::Null) => "d",
            _ => "u",
        };
        assert_eq!(event["op"], op, "{event}");
        match event["after"].clone() {
            Json::Null => {
                rows.remove(&key);
                deleted.insert(key, at);
            }
            row => {
                assert_ne!(event["before"], row, "{key} at {at} changed nothing");
                rows.insert(key, row);
            }
        }
    }
    assert!(deleted.is_empty(), "{deleted:?}");
    rows
}

/// What the events say that there is, not checked.
pub fn events_table(records: &[Record]) -> BTreeMap<String, Json> {
    let mut rows = BTreeMap::new();
    for record in records.iter().filter(|record| record.value.is_some()) {
        match record.value_json()["after"].take() {
            Json::Null => rows.remove(&record.key_text()),
            row => rows.insert(record.key_text(), row),
        };
    }
    rows
}

/// The state of all sinks is `running`, and nothing is left to write.
pub fn wait_written(program: &Program) {
    program.wait("the sinks are through", |program| {
        let rows = program.rows("SELECT status, lag_ms FROM headwater.sinks");
        let is_through = |row: &Vec<Json>| {
            row[0] == "running" && row[1].as_f64().is_some_and(|lag| lag < 1_500.0)
        };
        !rows.is_empty() && rows.iter().all(is_through)
    });
}
