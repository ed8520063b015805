//! Collections written to real topics: exactly once for those who read committed messages, whatever
//! dies on the way.
//!
//! The law: random changes of few keys are pushed while the program and the broker are killed at random
//! moments; at the end the topic's table is the collection, every (key, time) is there once, and each
//! event's `before` is the former one's `after`. The seed is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use crate::alone;
use crate::program::Program;
use crate::servers::Run;
use crate::servers::kafka::Kafka;
use crate::servers::records::Record;
use crate::servers::registry::Registry;
use topic::{
    LONG, check_events, check_once, collection, events_table, push, sink, table, time, wait_topic,
    wait_written,
};

mod topic;

#[test]
fn sinks_write_every_change_once_whatever_dies() {
    let _alone = alone();
    let seed = std::env::var("SINK_SEED").map_or_else(
        |_| rand::rng().random_range(1..u64::from(u32::MAX)),
        |seed| seed.parse().expect("a number"),
    );
    let rounds = std::env::var("SINK_ROUNDS").map_or(5, |n| n.parse().expect("a number"));
    println!("SINK_SEED={seed} SINK_ROUNDS={rounds}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let run = Run::new("sink");
    let mut kafka = Kafka::start(&run);
    let pipeline = "CREATE SOURCE docs FROM PUSH (id BIGINT PRIMARY KEY, grp BIGINT, body TEXT);\n\
         CREATE VIEW even AS SELECT id, grp, body FROM docs WHERE grp % 2 = 0;\n"
        .to_owned()
        + &sink(
            "rows",
            "docs",
            &kafka,
            "out.rows",
            "FORMAT JSON ENVELOPE UPSERT",
        )
        + &sink("events", "even", &kafka, "out.events", "ENVELOPE DEBEZIUM");
    let mut program = Program::start(&pipeline);
    // Each way to die comes as often as the others, and first another one each time.
    let first_fault = random.random_range(0..4);
    for round in 0..rounds {
        for _ in 0..random.random_range(5..40) {
            let line = |random: &mut ChaCha8Rng| {
                let id = random.random_range(0..12);
                match random.random_bool(0.25) {
                    true => json!({"op": "delete", "key": id}),
                    false => json!({"id": id, "grp": random.random_range(0..4),
                        "body": format!("{round} {}", random.random_range(0..3))}),
                }
            };
            // Several lines are one time, also for one key.
            let count = random.random_range(1..5);
            let lines: Vec<Json> = (0..count).map(|_| line(&mut random)).collect();
            assert!(
                push(&program, "docs", &Json::from(lines)),
                "{}",
                program.log()
            );
            if random.random_bool(0.3) {
                std::thread::sleep(Duration::from_millis(random.random_range(0..60)));
            }
        }
        match (first_fault + round) % 4 {
            0 => {
                program.kill();
                program.restart();
            }
            1 => {
                kafka.kill();
                std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
                kafka.restart();
            }
            2 => {
                kafka.kill();
                program.kill();
                program.restart();
                assert!(push(
                    &program,
                    "docs",
                    &json!({"id": 1, "grp": 2, "body": "away"})
                ));
                kafka.restart();
            }
            _ => {}
        }
        // Otherwise the next death comes before anything is written, or in the middle of it.
        if round == 0 || random.random_bool(0.6) {
            wait_written(&program);
        }
    }
    assert!(push(
        &program,
        "docs",
        &json!({"id": 99, "grp": 0, "body": "last"})
    ));
    // Partitions are read one after another: only the whole tells that nothing is under way.
    let docs = collection(&program, "docs");
    let rows = wait_topic(&program, &kafka, "out.rows", |r| table(r) == docs);
    check_once(&rows);
    let even = collection(&program, "even");
    let is_last = |record: &Record| record.value_text().contains("last");
    let is_whole =
        |records: &[Record]| records.iter().any(is_last) && events_table(records) == even;
    let events = wait_topic(&program, &kafka, "out.events", is_whole);
    assert_eq!(check_events(&events), even);
    let times = |records: &[Record]| records.iter().map(time).collect::<BTreeSet<_>>().len();
    let (rows, events) = ((rows.len(), times(&rows)), (events.len(), times(&events)));
    println!("(records, times): {rows:?} rows, {events:?} events");
    assert!(rows.1 > 20 && events.1 > 10, "{rows:?} {events:?}");
    let kinds =
        program.rows("SELECT name, collection, connector, topic, error FROM headwater.sinks");
    assert_eq!(
        kinds,
        [
            vec![
                json!("rows"),
                json!("docs"),
                json!("kafka"),
                json!("out.rows"),
                Json::Null
            ],
            vec![
                json!("events"),
                json!("even"),
                json!("kafka"),
                json!("out.events"),
                Json::Null
            ],
        ]
    );
    wait_written(&program);
}

#[test]
fn what_was_there_comes_first_and_our_own_source_reads_it_back() {
    let _alone = alone();
    let run = Run::new("sink-back");
    let kafka = Kafka::start(&run);
    let registry = Registry::start(&run);
    let columns = "id BIGINT PRIMARY KEY, name TEXT, n INTEGER, price NUMERIC(10,2), ok BOOLEAN, \
        ratio DOUBLE PRECISION, at TIMESTAMPTZ, local TIMESTAMP, day DATE, raw BYTEA, meta JSONB, \
        ref UUID, v VECTOR(2)";
    let names = "id, name, n, price, ok, ratio, at, local, day, raw, meta, ref, v";
    let source = format!("CREATE SOURCE docs FROM PUSH ({columns});\n");
    let mut program = Program::start(&source);
    let row = |id: i64, name: &str| {
        json!({"id": id, "name": name, "n": -7, "price": "-12.34", "ok": true, "ratio": 0.1,
            "at": "2026-11-21T10:00:00.000001Z", "local": "2026-11-21T10:00:00.000002",
            "day": "1969-12-31", "raw": "aGVsbG8=", "meta": {"a": [1, null]},
            "ref": "550e8400-e29b-41d4-a716-446655440000", "v": [0.5, -1.0]})
    };
    let nulls = json!({"id": 3, "name": "nothing"});
    assert!(push(
        &program,
        "docs",
        &json!([row(1, "one"), row(2, "two"), nulls])
    ));
    // Sinks that come later begin with what is there.
    let avro = format!("FORMAT AVRO (REGISTRY '{}')", registry.confluent_url());
    let mut pipeline = source;
    for (name, what) in [
        ("upsert_json", "FORMAT JSON ENVELOPE UPSERT".to_owned()),
        ("debezium_json", "FORMAT JSON ENVELOPE DEBEZIUM".to_owned()),
        ("upsert_avro", format!("{avro} ENVELOPE UPSERT")),
        ("debezium_avro", format!("{avro} ENVELOPE DEBEZIUM")),
    ] {
        pipeline += &sink(&format!("s_{name}"), "docs", &kafka, name, &what);
        let with = match name {
            "debezium_json" => " WITH (DECIMAL MODE = 'string')",
            _ => "",
        };
        pipeline += &format!(
            "CREATE SOURCE {name} ({columns}) FROM KAFKA (BROKERS '{}', TOPIC '{name}') {what}{with};\n",
            kafka.bootstrap
        );
    }
    program.replace(&pipeline);
    let truth = |program: &Program| program.rows(&format!("SELECT {names} FROM docs ORDER BY id"));
    let back = [
        "upsert_json",
        "debezium_json",
        "upsert_avro",
        "debezium_avro",
    ];
    let equal = |program: &Program| {
        let truth = truth(program);
        for name in back {
            program.wait_rows(&format!("SELECT {names} FROM {name} ORDER BY id"), &truth);
            assert_eq!(program.letters(name), [] as [[String; 3]; 0]);
        }
    };
    equal(&program);
    let first = kafka.committed("debezium_json");
    let ops: Vec<Json> = first.iter().map(|r| r.value_json()["op"].clone()).collect();
    assert_eq!(ops, ["r", "r", "r"]);
    assert!(push(
        &program,
        "docs",
        &json!([row(2, "two, again"), {"op": "delete", "key": 1}, row(4, "four")]),
    ));
    assert!(push(
        &program,
        "docs",
        &json!([{"op": "delete", "key": 3}, row(5, "five")])
    ));
    equal(&program);
    let subjects = registry.subjects();
    for subject in [
        "upsert_avro-key",
        "upsert_avro-value",
        "debezium_avro-value",
    ] {
        assert!(
            subjects.iter().any(|known| known == subject),
            "{subjects:?}"
        );
    }
    wait_written(&program);
    let metrics = program.get("/metrics").1.to_string();
    for metric in [
        "sink_lag_seconds",
        "sink_records_total",
        "sink_transactions_total",
    ] {
        let line = format!("headwater_{metric}{{sink=\\\"s_upsert_json\\\"}}");
        assert!(metrics.contains(&line), "{metric}");
    }
    // A dropped sink leaves no progress behind; one of the same name begins anew.
    let progress = |kafka: &Kafka| -> BTreeMap<String, Json> {
        let mut table = table(&kafka.committed("headwater-progress"));
        table.retain(|key, _| !key.contains("start"));
        table
    };
    assert_eq!(progress(&kafka).len(), 4);
    let dropped = program.post("/v1/sql", &json!({"sql": "DROP SINK s_upsert_json"}));
    assert_eq!(dropped.0, 200, "{}", dropped.1);
    let left = progress(&kafka);
    assert_eq!(left.len(), 3, "{left:?}\n{}", program.log());
    assert!(left.keys().all(|key| !key.contains("s_upsert_json")));
}

#[test]
fn a_record_that_is_too_large_is_named_and_the_rest_goes_on() {
    let _alone = alone();
    let run = Run::new("sink-large");
    let mut kafka = Kafka::start(&run);
    kafka.create_topic("small", 1, &[("max.message.bytes", "20000")]);
    let pipeline = "CREATE SOURCE docs FROM PUSH (id BIGINT PRIMARY KEY, grp BIGINT, body TEXT);\n"
        .to_owned()
        + &sink("small", "docs", &kafka, "small", "ENVELOPE UPSERT")
        + &sink("large", "docs", &kafka, "large", "ENVELOPE UPSERT");
    let mut program = Program::start(&pipeline);
    // Together they are more than a batch may be, alone none is.
    let many: Vec<Json> = (0..20)
        .map(|id| json!({"id": id, "grp": 0, "body": "x".repeat(5_000)}))
        .collect();
    assert!(push(&program, "docs", &Json::from(many)));
    for topic in ["small", "large"] {
        wait_topic(&program, &kafka, topic, |records| {
            table(records).len() == 20
        });
    }
    let big = json!({"id": 77, "grp": 0, "body": "y".repeat(50_000)});
    assert!(push(&program, "docs", &big));
    wait_topic(&program, &kafka, "large", |records| {
        table(records).len() == 21
    });
    let state = "SELECT status, error FROM headwater.sinks WHERE name = 'small'";
    program.wait("the sink says what is wrong", |program| {
        let row = &program.rows(state)[0];
        let error = row[1].as_str().unwrap_or_default();
        row[0] == "retrying"
            && error.starts_with("the record of key {\"id\":77} has 50")
            && error.contains("more than topic \"small\" takes; raise its max.message.bytes")
    });
    // Nothing of it is seen; what comes later waits behind it, here and over a restart: each time's change
    // is owed, so that a delete of the row does not help.
    assert!(push(
        &program,
        "docs",
        &json!({"id": 78, "grp": 0, "body": "z"})
    ));
    assert_eq!(table(&kafka.committed("small")).len(), 20);
    program.kill();
    kafka.kill();
    program.restart();
    kafka.restart();
    assert!(push(&program, "docs", &json!({"op": "delete", "key": 77})));
    wait_topic(&program, &kafka, "large", |records| {
        table(records).len() == 21
    });
    let row = &program.rows(state)[0];
    assert_ne!(row[0], "failed", "{row:?}");
    assert_eq!(table(&kafka.committed("small")).len(), 20);
    kafka.set_config("small", "max.message.bytes", "100000");
    let docs = collection(&program, "docs");
    let records = wait_topic(&program, &kafka, "small", |records| table(records) == docs);
    check_once(&records);
    assert_eq!((records.len(), docs.len()), (23, 21));
    wait_written(&program);
}

#[test]
fn a_copied_folder_and_a_topic_that_is_gone_stop_the_sink() {
    let _alone = alone();
    let run = Run::new("sink-gone");
    let kafka = Kafka::start(&run);
    let create = sink("out", "docs", &kafka, "out", "ENVELOPE UPSERT");
    let pipeline = "CREATE SOURCE docs FROM PUSH (id BIGINT PRIMARY KEY, grp BIGINT, body TEXT);\n"
        .to_owned()
        + &create;
    let row = |id: i64| json!({"id": id, "grp": 0, "body": format!("row {id}")});
    let is_through = |program: &Program| {
        check_once(&wait_topic(program, &kafka, "out", |records| {
            table(records) == collection(program, "docs")
        }));
    };
    let mut program = Program::start(&pipeline);
    assert!(push(&program, "docs", &json!([row(1), row(2)])));
    is_through(&program);
    program.kill();
    let copy = program.copied();
    program.restart();
    assert!(push(&program, "docs", &row(3)));
    is_through(&program);
    program.kill();
    let failed = |program: &Program, why: &str| {
        let deadline = Instant::now() + LONG;
        loop {
            let row = &program.rows("SELECT status, error FROM headwater.sinks")[0];
            if row[0] == "failed" && row[1].as_str().is_some_and(|error| error.contains(why)) {
                break;
            }
            assert!(Instant::now() < deadline, "{row:?}\n{}", program.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let (_, ready) = program.get("/ready");
        let reason = ready["reasons"][0].as_str().unwrap_or_default();
        assert!(reason.contains(why), "{ready}");
    };
    // The copy has never heard of the start that wrote last; it does not at its second start, either.
    let mut other = Program::over(copy, &pipeline);
    for _ in 0..2 {
        assert!(push(&other, "docs", &row(4)));
        failed(
            &other,
            "was written by a start that this data folder does not know",
        );
        other.kill();
        other.restart();
    }
    drop(other);
    program.restart();
    assert!(push(&program, "docs", &row(5)));
    is_through(&program);
    // Who deletes the topic deletes what the changes change.
    program.kill();
    kafka.delete_topic("out");
    program.restart();
    assert!(push(&program, "docs", &row(6)));
    failed(
        &program,
        "topic \"out\" is gone, and this sink had written through ",
    );
    assert!(kafka.topics().iter().all(|topic| topic.name != "out"));
    for sql in ["DROP SINK out", &create] {
        let done = program.post("/v1/sql", &json!({"sql": sql}));
        assert_eq!(done.0, 200, "{}", done.1);
    }
    is_through(&program);
    wait_written(&program);
}
