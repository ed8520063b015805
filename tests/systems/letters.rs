//! Dead letters of real topics: a poisoned partition, the topic of dead letters, replay.

use serde_json::{Value as Json, json};

use crate::alone;
use crate::program::Program;
use crate::servers::Run;
use crate::servers::kafka::Kafka;
use crate::servers::records::Record;

/// Bad messages of the poisoned partition.
const POISON: usize = 3_000;

fn pipeline(kafka: &Kafka, age: &str, options: &str) -> String {
    format!(
        "CREATE SOURCE users (id TEXT PRIMARY KEY, age {age}) FROM KAFKA (BROKERS '{}', TOPIC 'users', \
         DEAD LETTER TOPIC 'users.dead'{options}) KEY FORMAT TEXT VALUE FORMAT JSON ENVELOPE UPSERT;",
        kafka.bootstrap
    )
}

fn put(kafka: &Kafka, partition: i32, key: &str, age: &Json) {
    let value = json!({ "age": age }).to_string();
    let record = (Some(key.as_bytes()), Some(value.as_bytes()));
    kafka.produce("users", partition, &[record]);
}

fn header<'a>(record: &'a Record, name: &str) -> &'a str {
    let name = format!("__connect.errors.{name}");
    let found = record.headers.iter().find(|(key, _)| *key == name);
    let value = found.and_then(|(_, value)| value.as_deref());
    std::str::from_utf8(value.unwrap_or_else(|| panic!("no {name}: {record:?}"))).expect("text")
}

#[test]
fn a_poisoned_partition_stops_nobody_and_its_letters_go_their_ways() {
    let _alone = alone();
    let run = Run::new("letters");
    let kafka = Kafka::start(&run);
    kafka.create_topic("users", 3, &[]);
    kafka.create_topic("users.dead", 1, &[]);
    let poison: Vec<(String, String)> = (0..POISON)
        .map(|n| (format!("p{n}"), format!("{{\"age\":\"old {n}\"}}")))
        .collect();
    let records: Vec<(Option<&[u8]>, Option<&[u8]>)> = poison
        .iter()
        .map(|(key, value)| (Some(key.as_bytes()), Some(value.as_bytes())))
        .collect();
    kafka.produce("users", 1, &records);
    let mut program = Program::start(&pipeline(&kafka, "INTEGER", ""));
    put(&kafka, 0, "a", &json!(1));
    put(&kafka, 2, "b", &json!(2));
    let good = "SELECT id, age FROM users ORDER BY id";
    let mut expected = vec![vec![json!("a"), json!(1)], vec![json!("b"), json!(2)]];
    program.wait_rows(good, &expected);
    let causes = "SELECT code, seen, kept, resolved FROM headwater.dead_letter_causes";
    let counted = |seen: usize, kept: usize, resolved: usize| {
        [vec![
            json!("wrong-type"),
            json!(seen),
            json!(kept),
            json!(resolved),
        ]]
    };
    program.wait_rows(causes, &counted(POISON, POISON, 0));
    let letter = &program.letters("users")[7];
    assert_eq!(letter[0], "users/1 offset 7");
    assert_eq!(
        letter[2],
        "column \"age\": expected integer, found \"old 7\""
    );

    // Each letter is a message of the topic, in order, as Kafka Connect would tell it.
    let told = kafka.wait_records("users.dead", POISON);
    let keys: Vec<String> = told.iter().map(Record::key_text).collect();
    assert_eq!(
        keys,
        poison
            .iter()
            .map(|(key, _)| key.clone())
            .collect::<Vec<_>>()
    );
    let seventh = &told[7];
    assert_eq!(seventh.value.as_deref(), Some(poison[7].1.as_bytes()));
    for (name, value) in [
        ("topic", "users"),
        ("partition", "1"),
        ("offset", "7"),
        ("connector.name", "users"),
        ("task.id", "0"),
        ("stage", "TASK_PUT"),
        ("class.name", "headwater"),
        ("exception.class.name", "wrong-type"),
        (
            "exception.message",
            "column \"age\": expected integer, found \"old 7\"",
        ),
        (
            "exception.stacktrace",
            "column \"age\": expected integer, found \"old 7\"\nexpected: integer",
        ),
    ] {
        assert_eq!(header(seventh, name), value, "{name}");
    }

    // A good record of a key resolves its letter; the poisoned partition goes on behind its poison.
    put(&kafka, 1, "p0", &json!(3));
    expected.push(vec![json!("p0"), json!(3)]);
    program.wait_rows(good, &expected);
    program.wait_rows(causes, &counted(POISON, POISON - 1, 1));

    // What was delivered is known after a while, and then also over a restart.
    program.wait("the note of what was delivered", |_| {
        kafka.records("users.dead").len() == POISON
    });
    std::thread::sleep(std::time::Duration::from_secs(3));
    program.kill();
    put(&kafka, 1, "late", &json!("bad while nobody looks"));
    program.restart();
    program.wait_rows(causes, &counted(POISON + 1, POISON, 1));
    let told = kafka.wait_records("users.dead", POISON + 1);
    assert_eq!(told.last().map(Record::key_text).as_deref(), Some("late"));
    assert_eq!(
        told.len(),
        POISON + 1,
        "nothing is told again that was known to be delivered"
    );

    replays(&mut program, &kafka, &expected);
}

/// The command line, against letters of a source whose column became wider.
fn replays(program: &mut Program, kafka: &Kafka, expected: &[Vec<Json>]) {
    let (code, text) =
        program.command(&["dlq", "list", "--source", "users", "--limit", "2", "--json"]);
    assert_eq!((code, text.lines().count()), (Some(0), 2), "{text}");
    let first: Json = serde_json::from_str(text.lines().next().unwrap_or_default()).expect("JSON");
    let id = first["id"].as_str().expect("an id").to_owned();
    assert_eq!((&first["key"], &first["count"]), (&json!("p1"), &json!(1)));
    let (code, text) = program.command(&["dlq", "show", &id]);
    assert_eq!(code, Some(0));
    assert!(text.contains("payload: {\"age\":\"old 1\"}"), "{text}");
    assert_eq!(
        program.command(&["dlq", "show", "d_000000000000"]).0,
        Some(2)
    );
    assert_eq!(program.command(&["dlq", "replay"]).0, Some(2));
    let (code, text) = program.command(&["dlq", "replay", &id]);
    assert_eq!(code, Some(1));
    assert_eq!(text.trim(), "0 replayed, 1 still bad, 0 refused, 0 gone");

    // A wider column, and a start behind the old messages: only the letters have them.
    program.replace(&pipeline(kafka, "TEXT", ", START 'latest'"));
    let (code, text) = program.command(&["dlq", "replay", &id]);
    assert_eq!(
        (code, text.trim()),
        (Some(0), "1 replayed, 0 still bad, 0 refused, 0 gone")
    );
    program.wait_rows(
        "SELECT id, age FROM users",
        &[vec![json!("p1"), json!("old 1")]],
    );
    let (_, text) = program.command(&["dlq", "replay", &id]);
    assert_eq!(text.trim(), "0 replayed, 0 still bad, 0 refused, 1 gone");
    let (code, text) = program.command(&["dlq", "replay", "--source", "users"]);
    let all = format!("{} replayed, 0 still bad, 0 refused, 0 gone", POISON - 1);
    assert_eq!((code, text.trim()), (Some(0), &*all));
    program.wait("all rows", |program| {
        program.rows("SELECT id FROM users").len() == POISON
    });
    assert!(program.letters("users").is_empty());
    let late = program.rows("SELECT age FROM users WHERE id = 'late'");
    assert_eq!(late, [[json!("bad while nobody looks")]]);
    // What was good before the source was made again is not there: it starts at the latest.
    assert_eq!(expected.len(), 3);
}

#[test]
fn letters_that_cannot_be_decoded_by_themselves_are_refused() {
    let _alone = alone();
    let run = Run::new("letters-refused");
    let kafka = Kafka::start(&run);
    for topic in ["tickets", "gone"] {
        kafka.create_topic(topic, 1, &[]);
    }
    let brokers = &kafka.bootstrap;
    let program = Program::start(&format!(
        "CREATE SOURCE tickets (id BIGINT PRIMARY KEY, body TEXT) FROM KAFKA (BROKERS '{brokers}', \
         TOPIC 'tickets') FORMAT JSON ENVELOPE DEBEZIUM;
         CREATE SOURCE gone (n BIGINT) FROM KAFKA (BROKERS '{brokers}', TOPIC 'gone');"
    ));
    let event = br#"{"before":null,"after":{"id":1,"body":"x"},"op":"z","source":{"lsn":1}}"#;
    kafka.produce("tickets", 0, &[(Some(br#"{"id":1}"#), Some(event))]);
    kafka.produce("gone", 0, &[(None, Some(br#"{"n":1}"#))]);
    program.wait_rows("SELECT n FROM gone", &[vec![json!(1)]]);
    program.wait("the letter", |program| {
        program.letters("tickets").len() == 1
    });
    assert_eq!(program.letters("tickets")[0][2], "\"op\" is \"z\"");
    let replay = |source: &str| {
        let (status, reply) = program.post(
            "/v1/dead_letters/replay",
            &json!({"source": source, "ids": "all"}),
        );
        assert_eq!(
            (status, &reply["refused_total"]),
            (200, &json!(1)),
            "{reply}"
        );
        reply["refused"][0]["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(
        replay("tickets"),
        "a Debezium event changes the table in the source's order and may rely on the rows before it: \
         write the row again in its database, or take an incremental snapshot"
    );
    // A later good event of the row resolves it.
    let event = br#"{"before":null,"after":{"id":1,"body":"x"},"op":"c","source":{"lsn":2}}"#;
    kafka.produce("tickets", 0, &[(Some(br#"{"id":1}"#), Some(event))]);
    program.wait("the letter's end", |program| {
        program.letters("tickets").is_empty()
    });

    kafka.delete_topic("gone");
    program.wait("the letter", |program| program.letters("gone").len() == 1);
    assert_eq!(
        program.letters("gone"),
        [[
            "gone/0 offset 1",
            "partition-gone",
            "gone/0 is gone; it was read up to offset 1"
        ]
        .map(str::to_owned)]
    );
    assert_eq!(
        replay("gone"),
        "it is about a partition, not about a message"
    );
    assert_eq!(program.rows("SELECT n FROM gone"), [[json!(1)]]);
}
