//! PostgreSQL → Debezium → Avro with a registry → Kafka → Headwater: the collection is the table.
//!
//! Twice at once: in Confluent's wire format, and with the ids in headers as Apicurio's converter
//! writes them by default. A column is added on the way (a new schema), the program is killed and
//! restarted without any schema while the registry is down: it waits, and nothing is lost.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::alone;
use crate::program::Program;
use crate::servers::connect::{avro, avro_headers, debezium, keep_log, with};
use crate::servers::kafka::Kafka;
use crate::servers::postgres::Postgres;
use crate::servers::{Run, Stack};

const TABLE: &str = "
CREATE TABLE docs (
    id bigint PRIMARY KEY, title text, body text, price numeric(10,2), any_scale numeric,
    at timestamp, zoned timestamptz, day date, clock time, is_open boolean, ratio double precision,
    small real, raw bytea, meta jsonb, ref uuid, tags text[], bits bit(5));
ALTER TABLE docs ALTER body SET STORAGE EXTERNAL, SET (toast_tuple_target = 128);
";

const COLUMNS: &str = "id BIGINT PRIMARY KEY, title TEXT, body TEXT, price NUMERIC(10,2),
    any_scale NUMERIC(38,3), at TIMESTAMP, zoned TIMESTAMPTZ, day DATE, clock TEXT, is_open BOOLEAN,
    ratio DOUBLE PRECISION, small REAL, raw BYTEA, meta JSONB, ref UUID, tags JSONB, bits TEXT,
    added TEXT";

/// Every column as text, in the spelling of Headwater's replies.
const TRUTH: &str = r#"SELECT id::text, title, body, price::text, round(any_scale, 3)::text,
    to_char(at, 'YYYY-MM-DD"T"HH24:MI:SS.US'),
    to_char(zoned AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), day::text, clock::text,
    is_open::text, ratio::text, small::text, encode(raw, 'base64'), meta::text, ref::text,
    to_json(tags)::text, bits::text, ADDED FROM docs ORDER BY docs.id"#;

const SELECT: &str = "SELECT id, title, body, price, any_scale, at, zoned, day, clock, is_open, \
    ratio, small, raw, meta, ref, tags, bits, added FROM";

/// A row whose every column follows from its id.
fn insert(id: u32) -> String {
    let body = format!("word{id} ").repeat(60);
    format!(
        "INSERT INTO docs VALUES ({id}, 'it''s {id} → é', '{body}', {id}.25, -{id}.125,
            '2026-11-21 10:00:00.{id:06}', '2026-11-21 10:00:00.{id:06}+01', '2026-11-{day:02}',
            '23:59:59.{micros:06}', {id} % 2 = 0, {id}.1, {id}.25, '\\x00ff{id:04x}',
            '{{\"n\": {id}, \"list\": [1, null, \"x\"]}}', gen_random_uuid(),
            ARRAY['a', NULL, '{id}'], B'10{a}0{b}');",
        day = id % 28 + 1,
        micros = 100_001 + 10 * id,
        a = id % 2,
        b = id / 2 % 2,
    )
}

/// The table: one text a cell; JSON in one spelling.
fn truth(postgres: &Postgres, added: &str) -> Vec<Vec<Json>> {
    let rows = postgres.query(&TRUTH.replace("ADDED", added));
    let one = |at: usize, cell: &Option<String>| match (at, cell) {
        (_, None) => Json::Null,
        (13 | 15, Some(text)) => {
            let json: Json = serde_json::from_str(text).expect("JSON");
            Json::from(json.to_string())
        }
        (_, Some(text)) => Json::from(text.replace('\n', "")),
    };
    let row = |row: &Vec<Option<String>>| {
        row.iter()
            .enumerate()
            .map(|(at, cell)| one(at, cell))
            .collect()
    };
    rows.iter().map(row).collect()
}

/// The collection in the same form.
fn found(program: &Program, source: &str) -> Vec<Vec<Json>> {
    let cell = |cell: Json| match cell {
        Json::Null => Json::Null,
        Json::String(text) => Json::from(text),
        other => Json::from(other.to_string()),
    };
    let rows = program.rows(&format!("{SELECT} {source} ORDER BY id"));
    let row = |row: Vec<Json>| row.into_iter().map(cell).collect();
    rows.into_iter().map(row).collect()
}

/// Waits until a row is there in all sources: one partition keeps the order, so all before it is, too.
fn reach(program: &Program, sources: &[&str], id: u32) {
    for source in sources {
        let sql = format!("SELECT id FROM {source} WHERE id = {id}");
        program.wait(&format!("row {id} of {source}"), |program| {
            let letters = program.letters(source);
            assert!(letters.is_empty(), "{letters:?}");
            !program.rows(&sql).is_empty()
        });
    }
}

#[test]
fn every_type_by_wire_format_and_by_header_and_without_a_registry() {
    let _alone = alone();
    let run = Run::new("avro");
    let (stack, mut registry) = Stack::with_registry(&run);
    // Contents and versions are counted apart from here on: an id of the wrong kind would be seen.
    for subject in ["one", "two", "three"] {
        registry.register(subject, r#"{"type":"fixed","name":"Filler","size":3}"#);
    }
    let postgres = &stack.postgres;
    postgres.execute(TABLE);
    for id in 1..=20 {
        postgres.execute(&insert(id));
    }
    for (prefix, format) in [
        ("wire", avro(&registry)),
        ("heads", avro_headers(&registry)),
    ] {
        let config = debezium(postgres, prefix, "public.docs");
        let config = with(config, &json!({"skipped.operations": "none"}));
        let config = with(with(config, &format), &keep_log());
        stack.connect.create_connector(prefix, &config);
        stack.connect.wait_running(prefix);
        // One after the other: see the limits of `servers::registry`.
        let topic = format!("{prefix}.public.docs");
        stack.kafka.wait_records(&topic, 20);
    }
    let (brokers, url) = (stack.kafka.bootstrap.clone(), registry.confluent_url());
    let source = |name: &str| {
        format!(
            "CREATE SOURCE {name} ({COLUMNS}) FROM KAFKA (BROKERS '{brokers}', TOPIC '{name}.public.docs')
                 FORMAT AVRO (REGISTRY '{url}') ENVELOPE DEBEZIUM;\n"
        )
    };
    let mut program = Program::start(&(source("wire") + &source("heads")));
    let both = ["wire", "heads"];

    // The snapshot, and a stream of changes.
    reach(&program, &both, 20);
    for change in [
        "UPDATE docs SET title = 'the body stays' WHERE id % 3 = 0",
        "UPDATE docs SET id = id + 100 WHERE id IN (4, 5)",
        "DELETE FROM docs WHERE id IN (7, 8)",
        "UPDATE docs SET price = NULL, any_scale = NULL, at = NULL, zoned = NULL, day = NULL, clock = NULL,
            is_open = NULL, ratio = NULL, small = NULL, raw = NULL, meta = NULL, ref = NULL, tags = NULL,
            bits = NULL WHERE id = 9",
    ] {
        postgres.execute(change);
    }
    postgres.execute(&insert(200));
    reach(&program, &both, 200);
    for source in both {
        assert_eq!(found(&program, source), truth(postgres, "NULL"), "{source}");
    }

    // A new schema, of which the program knows nothing when it starts; nor does anybody answer.
    program.kill();
    stack.connect.pause("heads");
    postgres.execute("ALTER TABLE docs ADD COLUMN added text");
    postgres.execute("UPDATE docs SET added = 'now' WHERE id < 4");
    postgres.execute(&insert(201).replace(");", ", 'new');"));
    for source in both {
        if source == "heads" {
            stack.connect.resume(source);
        }
        let topic = format!("{source}.public.docs");
        // Read; updated; key changes and deletes with their tombstones; NULLs; a row. Then updated, a
        // row.
        let count = 20 + 6 + 2 * 3 + 2 * 2 + 1 + 1 + 3 + 1;
        stack.kafka.wait_records(&topic, count);
    }
    registry.kill();
    program.restart();
    let began = Instant::now();
    program.wait("both wait", |program| {
        let (_, metrics) = program.get("/metrics");
        let metrics = metrics.as_str().unwrap_or_default();
        let waits = |source| format!("headwater_schema_waits_total{{source=\"{source}\"}}");
        both.iter().all(|source| metrics.contains(&waits(source)))
    });
    for source in both {
        let sql = format!("SELECT status, error FROM headwater.sources WHERE name = '{source}'");
        program.wait("it says what it waits for", |program| {
            let row = &program.rows(&sql)[0];
            let error = row[1].as_str().unwrap_or_default();
            row[0] == "retrying" && error.contains(".public.docs/0 waits for a schema: ")
        });
        assert_eq!(program.letters(source), [[""; 3]; 0]);
        // What was there is still there, and answers.
        let old = format!("SELECT id FROM {source} WHERE id = 200");
        assert_eq!(program.rows(&old), [[json!(200)]], "{source}");
    }
    // A source that waits still ends at once.
    let extra = source("wire").replace("SOURCE wire", "SOURCE extra");
    assert_eq!(program.post("/v1/sql", &json!({"sql": extra})).0, 200);
    std::thread::sleep(Duration::from_millis(300));
    let dropping = Instant::now();
    assert_eq!(
        program
            .post("/v1/sql", &json!({"sql": "DROP SOURCE extra"}))
            .0,
        200
    );
    assert!(
        dropping.elapsed() < Duration::from_secs(15),
        "{:?}",
        dropping.elapsed()
    );

    registry.restart();
    reach(&program, &both, 201);
    program.wait_rows(
        "SELECT status, error FROM headwater.sources WHERE name = 'wire'",
        &[vec![json!("running"), json!(null)]],
    );
    println!("the registry was away for {:.1?}", began.elapsed());
    for source in both {
        assert_eq!(
            found(&program, source),
            truth(postgres, "added"),
            "{source}"
        );
        assert_eq!(program.letters(source), [[""; 3]; 0]);
    }

    // What comes from elsewhere is told, and stops nothing.
    let topic = "wire.public.docs";
    let (_, at) = stack.kafka.offsets(topic, 0);
    for value in [
        &b"{\"op\":\"c\"}"[..],
        b"\0\x00\x01\x00\x00rest",
        b"\0\0\0\0\x01\0\0\0\0",
    ] {
        stack.kafka.produce(topic, 0, &[(None, Some(value))]);
    }
    postgres.execute(&insert(202).replace(");", ", 'after');"));
    program.wait("the next row", |program| {
        !program
            .rows("SELECT id FROM wire WHERE id = 202")
            .is_empty()
    });
    let letters = program.letters("wire");
    let codes: Vec<&str> = letters.iter().map(|letter| &*letter[1]).collect();
    assert_eq!(
        codes,
        ["no-schema-id", "unknown-schema", "invalid-avro"],
        "{letters:?}"
    );
    assert_eq!(letters[0][0], format!("{topic}/0 offset {at}"));
}

/// The formats that need no registry, from statement to row; and what a statement is refused for.
#[test]
fn a_schema_in_the_statement_and_csv() {
    let _alone = alone();
    let run = Run::new("formats");
    let kafka = Kafka::start(&run);
    for topic in ["readings", "prices"] {
        kafka.create_topic(topic, 1, &[]);
    }
    let schema = r#"{"type":"record","name":"Reading","fields":[{"name":"sensor","type":"string"},
        {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
        {"name":"n","type":["null","int"]}]}"#;
    let at = |topic: &str| {
        format!(
            "FROM KAFKA (BROKERS '{}', TOPIC '{topic}')",
            kafka.bootstrap
        )
    };
    let program = Program::start(&format!(
        "CREATE SOURCE readings (n INTEGER, sensor TEXT, at TIMESTAMPTZ) {} FORMAT AVRO (SCHEMA '{schema}');
         CREATE SOURCE prices (id TEXT PRIMARY KEY, price NUMERIC(10,2), note TEXT) {}
             KEY FORMAT TEXT VALUE FORMAT CSV (DELIMITER ';', HEADER 'note;other;price') ENVELOPE UPSERT;",
        at("readings"),
        at("prices"),
    ));
    let produce = |topic: &str, key: &str, value: Option<&[u8]>| {
        kafka.produce(topic, 0, &[(Some(key.as_bytes()), value)]);
    };
    // "hall", 1000 ms, 7; then one that ends too early, and one more.
    let reading = [8, b'h', b'a', b'l', b'l', 0xd0, 0x0f, 2, 14];
    produce("readings", "", Some(&reading));
    produce("readings", "", Some(&reading[..7]));
    produce("readings", "", Some(&[0, 1, 0]));
    let select = "SELECT sensor, at, n FROM readings ORDER BY offset";
    program.wait_rows(
        select,
        &[
            vec![
                json!("hall"),
                json!("1970-01-01T00:00:01.000000Z"),
                json!(7),
            ],
            vec![json!(""), json!("1969-12-31T23:59:59.999000Z"), Json::Null],
        ],
    );
    let detail =
        "the value does not follow its schema at byte 7, field n: the bytes end in an integer";
    assert_eq!(
        program.letters("readings"),
        [["readings/0 offset 1", "invalid-avro", detail].map(str::to_owned)]
    );
    for (key, value) in [
        ("a", Some("\"one; two\";x;1.5")),
        ("b", Some("gone;;2")),
        ("c", Some("only two;3")),
        ("b", None),
        ("d", Some(";;")),
    ] {
        produce("prices", key, value.map(str::as_bytes));
    }
    program.wait_rows(
        "SELECT id, price, note FROM prices ORDER BY id",
        &[
            vec![json!("a"), json!("1.50"), json!("one; two")],
            vec![json!("d"), Json::Null, Json::Null],
        ],
    );
    let detail = "the value has 2 fields for 3 columns: column \"price\" has none";
    assert_eq!(
        program.letters("prices"),
        [["prices/0 offset 2", "invalid-csv", detail].map(str::to_owned)]
    );
    for (format, expected) in [
        (
            "AVRO (SCHEMA '\"nothing\"')",
            "option SCHEMA: the type \"nothing\" is not defined",
        ),
        (
            "AVRO (REGISTRY 'http://r', USER 'u', PASSWORD ENV 'NO_SUCH_VARIABLE')",
            "option PASSWORD ENV: the variable NO_SUCH_VARIABLE is not set",
        ),
        ("CSV (HEADER 'a,a')", "option HEADER: \"a\" is no new name"),
    ] {
        let sql = format!(
            "CREATE SOURCE bad (a TEXT) {} FORMAT {format}",
            at("readings")
        );
        let (status, problem) = program.post("/v1/sql", &json!({"sql": sql}));
        assert_eq!((status, &problem["detail"]), (422, &json!(expected)));
    }
}
