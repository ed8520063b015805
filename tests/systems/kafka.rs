//! Topics that people write to themselves: rows, upserts, texts; and brokers that go away.

use serde_json::{Value as Json, json};

use crate::alone;
use crate::program::Program;
use crate::servers::Run;
use crate::servers::kafka::Kafka;

fn source(name: &str, columns: &str, kafka: &Kafka, what: &str) -> String {
    format!(
        "CREATE SOURCE {name} ({columns}) FROM KAFKA (BROKERS '{}', {what};\n",
        kafka.bootstrap
    )
}

/// Writes a message; null is a tombstone.
pub fn put(kafka: &Kafka, topic: &str, partition: i32, key: &str, value: &Json) {
    let value = value.to_string();
    let value = (value != "null").then_some(value.as_bytes());
    kafka.produce(topic, partition, &[(Some(key.as_bytes()), value)]);
}

#[test]
fn rows_upserts_and_texts_over_partitions_restarts_and_bad_messages() {
    let _alone = alone();
    let run = Run::new("kafka");
    let mut kafka = Kafka::start(&run);
    for topic in ["events", "users", "lines"] {
        kafka.create_topic(topic, 2, &[]);
    }
    let pipeline = source(
        "events",
        "kind TEXT, n BIGINT",
        &kafka,
        "TOPIC 'events') FORMAT JSON INCLUDE PARTITION, OFFSET AS at, HEADERS",
    ) + &source(
        "users",
        "id TEXT PRIMARY KEY, name TEXT, age INTEGER",
        &kafka,
        "TOPIC 'users') KEY FORMAT TEXT VALUE FORMAT JSON ENVELOPE UPSERT",
    ) + &source(
        "lines",
        "id TEXT PRIMARY KEY, body TEXT",
        &kafka,
        "TOPIC 'lines') FORMAT TEXT ENVELOPE UPSERT",
    ) + "CREATE INDEX found ON lines USING KEYWORD (body);";
    let mut program = Program::start(&pipeline);

    put(&kafka, "events", 0, "a", &json!({"kind": "click", "n": 1}));
    put(&kafka, "events", 1, "b", &json!({"kind": "view", "n": 2}));
    let events = "SELECT kind, n, partition, at FROM events ORDER BY partition, at";
    let mut expected = vec![
        vec![json!("click"), json!(1), json!(0), json!(0)],
        vec![json!("view"), json!(2), json!(1), json!(0)],
    ];
    program.wait_rows(events, &expected);

    put(&kafka, "users", 0, "u1", &json!({"name": "Ada", "age": 36}));
    put(
        &kafka,
        "users",
        1,
        "u2",
        &json!({"name": "Alan", "age": 41}),
    );
    put(
        &kafka,
        "users",
        0,
        "u1",
        &json!({"name": "Ada L.", "age": 36}),
    );
    put(&kafka, "users", 1, "u2", &Json::Null);
    put(
        &kafka,
        "users",
        1,
        "u3",
        &json!({"name": "Edsger", "age": "old"}),
    );
    put(
        &kafka,
        "users",
        1,
        "u4",
        &json!({"name": "Grace", "age": 85}),
    );
    let users = "SELECT id, name, age FROM users ORDER BY id";
    program.wait_rows(
        users,
        &[
            vec![json!("u1"), json!("Ada L."), json!(36)],
            vec![json!("u4"), json!("Grace"), json!(85)],
        ],
    );
    let letters = program.letters("users");
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0][0], "users/1 offset 2");
    assert_eq!(letters[0][1], "wrong-type");
    assert!(letters[0][2].contains("\"age\""), "{letters:?}");

    kafka.produce("lines", 0, &[(Some(b"l1"), Some(b"the quick brown fox"))]);
    let search = "SELECT text FROM search(found, 'brown', k => 3)";
    program.wait_rows(search, &[vec![json!("the quick brown fox")]]);

    reads_its_own_writes(&kafka, &program);

    // Both go away, one after the other: nothing is lost and nothing comes twice.
    program.kill();
    put(&kafka, "events", 0, "c", &json!({"kind": "click", "n": 3}));
    kafka.kill();
    kafka.restart();
    program.restart();
    put(&kafka, "events", 1, "d", &json!({"kind": "view", "n": 4}));
    expected.insert(1, vec![json!("click"), json!(3), json!(0), json!(1)]);
    expected.push(vec![json!("view"), json!(4), json!(1), json!(1)]);
    program.wait_rows(events, &expected);
    kafka.kill();
    let state = "SELECT status, error FROM headwater.sources WHERE name = 'events'";
    program.wait("the source says what is wrong", |program| {
        let row = &program.rows(state)[0];
        row[0] == "retrying" && row[1].as_str().is_some_and(|error| !error.is_empty())
    });
    println!("{}", program.rows(state)[0][1]);
    kafka.restart();
    put(&kafka, "events", 1, "e", &json!({"kind": "view", "n": 5}));
    expected.push(vec![json!("view"), json!(5), json!(1), json!(2)]);
    program.wait_rows(events, &expected);
    program.wait_rows(state, &[vec![json!("running"), json!(null)]]);

    // A new partition is found.
    kafka.set_partitions("events", 3);
    put(&kafka, "events", 2, "f", &json!({"kind": "late", "n": 6}));
    expected.push(vec![json!("late"), json!(6), json!(2), json!(0)]);
    program.wait_rows(events, &expected);
}

/// A producer knows the offset of what it wrote; a reader that names it sees it, at once.
fn reads_its_own_writes(kafka: &Kafka, program: &Program) {
    for n in 0..20 {
        let line = format!("own write number{n}");
        let offset = kafka.produce("lines", 1, &[(Some(b"own"), Some(line.as_bytes()))]);
        let at = format!("AS OF AT LEAST offset('lines', 1, {offset})");
        let rows = program.rows(&format!("SELECT body FROM lines WHERE id = 'own' {at}"));
        assert_eq!(rows, [[json!(line)]], "offset {offset}");
        let sql = format!("SELECT text FROM search(found, 'number{n}', k => 1) {at}");
        assert_eq!(program.rows(&sql), [[json!(line)]], "offset {offset}");
    }
    let request = |offset: i64| {
        json!({
            "index": "found", "query": "own", "mode": "keyword", "timeout_ms": 300,
            "at_least": {"source": "lines", "offsets": {"1": offset}},
        })
    };
    assert_eq!(program.post("/v1/search", &request(19)).0, 200);
    let (status, problem) = program.post("/v1/search", &request(20));
    assert_eq!((status, &problem["code"]), (504, &json!("not-reached")));
}

#[test]
fn starts_patterns_and_logs_that_are_not_what_they_were() {
    let _alone = alone();
    let run = Run::new("kafka-starts");
    let kafka = Kafka::start(&run);
    for topic in ["one", "app.a", "expired", "again"] {
        kafka.create_topic(topic, 1, &[]);
    }
    for n in 0..4 {
        put(&kafka, "one", 0, "k", &json!({"n": n}));
        put(&kafka, "app.a", 0, "k", &json!({"n": n}));
    }
    let part = |name: &str, what: &str| source(name, "n BIGINT", &kafka, what);
    let pipeline = part("late", "TOPIC 'one', START 'latest')")
        + &part("third", "TOPIC 'one', START OFFSETS '0:2')")
        + &part(
            "past",
            "TOPIC 'one', START TIMESTAMP '2020-01-01T00:00:00Z')",
        )
        + &part(
            "future",
            "TOPIC 'one', START TIMESTAMP '2120-01-01T00:00:00Z')",
        )
        + &part("all", "TOPIC PATTERN 'app[.].*')")
        + &part("missing", "TOPIC 'not.there.yet')")
        + &part("expired", "TOPIC 'expired')")
        + &part("again", "TOPIC 'again')");
    let mut program = Program::start(&pipeline);
    let numbers =
        |numbers: &[i64]| -> Vec<Vec<Json>> { numbers.iter().map(|n| vec![json!(n)]).collect() };
    let of = |name: &str| format!("SELECT n FROM {name} ORDER BY n");
    program.wait_rows(&of("third"), &numbers(&[2, 3]));
    program.wait_rows(&of("past"), &numbers(&[0, 1, 2, 3]));
    program.wait_rows(&of("all"), &numbers(&[0, 1, 2, 3]));
    // "latest" was chosen before; it holds over a restart with nothing read.
    program.kill();
    put(&kafka, "one", 0, "k", &json!({"n": 4}));
    program.restart();
    program.wait_rows(&of("late"), &numbers(&[4]));
    program.wait_rows(&of("future"), &numbers(&[4]));
    // Topics that appear later.
    kafka.create_topic("app.b", 1, &[]);
    put(&kafka, "app.b", 0, "k", &json!({"n": 7}));
    kafka.create_topic("not.there.yet", 1, &[]);
    put(&kafka, "not.there.yet", 0, "k", &json!({"n": 8}));
    program.wait_rows(&of("all"), &numbers(&[0, 1, 2, 3, 7]));
    program.wait_rows(&of("missing"), &numbers(&[8]));

    // While nobody reads: unread messages expire, and a topic is made again.
    for n in 0..3 {
        put(&kafka, "expired", 0, "k", &json!({"n": n}));
        put(&kafka, "again", 0, "k", &json!({"n": n}));
    }
    program.wait_rows(&of("expired"), &numbers(&[0, 1, 2]));
    program.wait_rows(&of("again"), &numbers(&[0, 1, 2]));
    program.kill();
    for n in 3..6 {
        put(&kafka, "expired", 0, "k", &json!({"n": n}));
    }
    kafka.delete_records("expired", 0, 5);
    kafka.delete_topic("again");
    kafka.create_topic("again", 1, &[]);
    put(&kafka, "again", 0, "k", &json!({"n": 9}));
    program.restart();
    program.wait("both are told", |program| {
        !program.letters("expired").is_empty() && !program.letters("again").is_empty()
    });
    assert_eq!(
        program.letters("expired"),
        [[
            "expired/0 offset 3".to_owned(),
            "offset-expired".to_owned(),
            "expired/0 begins at offset 5; offsets 3 to 4 were deleted unread".to_owned(),
        ]]
    );
    assert_eq!(
        program.letters("again"),
        [[
            "again/0 offset 3".to_owned(),
            "offset-moved-back".to_owned(),
            "again/0 ends at offset 1; it was read up to 3 before".to_owned(),
        ]]
    );
    // The others go on.
    put(&kafka, "one", 0, "k", &json!({"n": 5}));
    program.wait_rows(&of("late"), &numbers(&[4, 5]));
    assert_eq!(program.rows(&of("expired")), numbers(&[0, 1, 2]));
}
