//! Tables, values and servers that a reader of PostgreSQL's log gets wrong.

use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::alone;
use crate::postgres::{connection, rows_at};
use crate::program::Program;
use crate::servers::postgres::Postgres;
use crate::servers::{Run, wait_for};

fn table(name: &str) -> String {
    format!("CREATE SOURCE {name} FROM POSTGRES (CONNECTION pg, TABLE '{name}');")
}

/// The rows of a source at the log's present place.
fn now(program: &Program, postgres: &Postgres, source: &str, columns: &str) -> Vec<Json> {
    let lsn = postgres.value("SELECT pg_current_wal_flush_lsn()");
    rows_at(
        program,
        &format!(
            "SELECT {columns} FROM {source} ORDER BY id AS OF AT LEAST lsn('{source}', '{lsn}')"
        ),
    )
}

/// Why a source has stopped.
fn failure(program: &Program, source: &str) -> String {
    let mut reasons = String::new();
    program.wait(&format!("{source} fails"), |program| {
        let (_, ready) = program.get("/ready");
        reasons = ready.to_string();
        reasons.contains("stopped: ")
    });
    reasons
}

/// Waits until the server has noticed that nobody reads the slot any more.
fn program_gone(postgres: &Postgres) {
    let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
    wait_for("the slot is free", Duration::from_secs(120), || {
        (postgres.value(active) == "0").then_some(())
    });
}

/// A statement that must fail: status and problem.
fn refused(program: &Program, sql: &str) -> (u16, Json) {
    program.post("/v1/sql", &json!({ "sql": sql }))
}

#[test]
fn odd_tables_are_read_right_or_refused_in_words() {
    let _alone = alone();
    let run = Run::new("postgres-edges");
    let postgres = Postgres::start(&run);
    postgres.execute(
        "CREATE TABLE times (id int PRIMARY KEY, body text, at timestamptz);
         ALTER TABLE times ALTER body SET STORAGE EXTERNAL, SET (toast_tuple_target = 128);
         CREATE TABLE keyless (id int, body text);
         CREATE TABLE whole (id int NOT NULL, body text);
         ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE aside (id int PRIMARY KEY, code int NOT NULL UNIQUE);
         ALTER TABLE aside REPLICA IDENTITY USING INDEX aside_code_key;
         CREATE TABLE parts (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);
         CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
         CREATE DOMAIN amount AS int CHECK (value >= 0);
         CREATE DOMAIN settings AS jsonb;
         CREATE TABLE domains (id int PRIMARY KEY, n amount, meta settings);
         INSERT INTO domains VALUES (1, 7, '{\"a\": [1]}');
         CREATE TABLE tenants (tenant int, id int, body text, PRIMARY KEY (tenant, id));
         CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (200);
         INSERT INTO parts VALUES (1, 'low'), (101, 'high');
         INSERT INTO whole VALUES (1, 'a');",
    );
    let program = Program::start(&format!(
        "{}{}{}{}CREATE SOURCE whole (id INTEGER PRIMARY KEY, body TEXT)
               FROM POSTGRES (CONNECTION pg, TABLE 'public.whole');",
        connection(&run, &postgres, postgres.port, ""),
        table("times"),
        table("parts"),
        table("domains"),
    ));
    let domains = now(&program, &postgres, "domains", "id, n, meta");
    assert_eq!(domains, [json!([1, 7, {"a": [1]}])]);

    // Rows of all partitions are one table's, also when they move.
    postgres.execute("UPDATE parts SET id = 150 WHERE id = 1; INSERT INTO parts VALUES (2, 'new')");
    let parts = now(&program, &postgres, "parts", "id, body");
    assert_eq!(
        parts,
        [json!([2, "new"]), json!([101, "high"]), json!([150, "low"])]
    );

    // The identity is the whole row: the declared key is read from it.
    postgres.execute("UPDATE whole SET id = 2, body = 'b'; INSERT INTO whole VALUES (3, NULL)");
    let whole = now(&program, &postgres, "whole", "id, body");
    assert_eq!(whole, [json!([2, "b"]), json!([3, null])]);

    // A value that has no place here: the row goes, the letter says why, a good one brings it back.
    // Out of line from 2 kB on.
    let long = "long ".repeat(600);
    postgres.execute(&format!(
        "INSERT INTO times VALUES (1, '{long}', '2026-11-21 10:00:00+00'), (2, 'b', NULL)"
    ));
    postgres.execute("UPDATE times SET at = 'infinity' WHERE id = 1");
    let ids = now(&program, &postgres, "times", "id");
    assert_eq!(
        ids,
        [json!([2])],
        "no version older than the table's is served"
    );
    let letters = program.letters("times");
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0][1], "infinite-time");
    assert!(letters[0][2].contains("column \"at\""), "{letters:?}");
    assert!(
        letters[0][0].starts_with("transaction at 0/"),
        "{letters:?}"
    );
    // The long text was not sent again, and its row is not known: it is not guessed.
    postgres.execute("UPDATE times SET at = now() WHERE id = 1");
    assert_eq!(now(&program, &postgres, "times", "id"), [json!([2])]);
    let letters = program.letters("times");
    assert!(
        letters
            .iter()
            .any(|letter| letter[1] == "unavailable-value"),
        "{letters:?}"
    );
    postgres.execute("UPDATE times SET body = 'short' WHERE id = 1");
    let times = now(&program, &postgres, "times", "id, body");
    assert_eq!(times, [json!([1, "short"]), json!([2, "b"])]);

    // With the whole row in the log it is there.
    postgres.execute("ALTER TABLE times REPLICA IDENTITY FULL");
    postgres.execute(&format!(
        "UPDATE times SET body = '{long}' WHERE id = 1;
         UPDATE times SET at = '-infinity' WHERE id = 1"
    ));
    assert_eq!(now(&program, &postgres, "times", "id"), [json!([2])]);
    postgres.execute("UPDATE times SET at = now() WHERE id = 1");
    let times = now(&program, &postgres, "times", "id, body");
    assert_eq!(times, [json!([1, long]), json!([2, "b"])]);
    assert!(program.letters("times").is_empty(), "they are resolved");

    // A key that is not the whole identity: rows of two tenants would be one.
    program.rows(
        "CREATE SOURCE tenants (id INTEGER PRIMARY KEY, body TEXT)
         FROM POSTGRES (CONNECTION pg, TABLE 'tenants')",
    );
    let why = failure(&program, "tenants");
    assert!(why.contains("only a part of the replica identity"), "{why}");
    program.rows("DROP SOURCE tenants");

    // A table that may not be published: its own application would be refused.
    let keyless = "CREATE SOURCE keyless (id INTEGER PRIMARY KEY, body TEXT) \
                   FROM POSTGRES (CONNECTION pg, TABLE 'keyless')";
    program.rows(keyless);
    let why = failure(&program, "keyless");
    assert!(why.contains("has no replica identity"), "{why}");
    postgres.execute("INSERT INTO keyless VALUES (1, 'a'); UPDATE keyless SET body = 'b'");
    program.rows("DROP SOURCE keyless");

    // An identity that does not name the rows.
    program.rows(
        "CREATE SOURCE aside (id INTEGER PRIMARY KEY, code INTEGER)
         FROM POSTGRES (CONNECTION pg, TABLE 'aside')",
    );
    let why = failure(&program, "aside");
    assert!(why.contains("is not in its replica identity"), "{why}");
    program.rows("DROP SOURCE aside");
    program.rows(
        "CREATE SOURCE aside (code INTEGER PRIMARY KEY, id INTEGER)
         FROM POSTGRES (CONNECTION pg, TABLE 'aside')",
    );
    postgres.execute(
        "INSERT INTO aside VALUES (1, 10), (2, 20); UPDATE aside SET code = 11 WHERE id = 1",
    );
    let aside = now(&program, &postgres, "aside", "id, code");
    assert_eq!(aside, [json!([1, 11]), json!([2, 20])]);

    // What a statement gets wrong is told at once.
    let cases = [
        (table("nothing"), "there is no table public.nothing"),
        (table("keyless"), "has no primary key"),
    ];
    for (sql, expected) in cases {
        let (status, problem) = refused(&program, &sql);
        assert_eq!(status, 503, "{problem}");
        assert!(problem.to_string().contains(expected), "{problem}");
    }
}

#[test]
fn a_table_that_joins_late_and_a_copy_that_is_killed_are_whole() {
    let _alone = alone();
    let run = Run::new("postgres-late");
    let postgres = Postgres::start(&run);
    postgres.execute(
        "CREATE TABLE first (id int PRIMARY KEY, body text);
         CREATE TABLE late (id int PRIMARY KEY, body text);
         INSERT INTO first SELECT n, 'first ' || n FROM generate_series(1, 30000) n;
         INSERT INTO late SELECT n, 'late ' || n FROM generate_series(1, 20000) n;",
    );
    let mut program = Program::start(&format!(
        "{}{}",
        connection(&run, &postgres, postgres.port, ""),
        table("first")
    ));
    // In the middle of the copy.
    program.wait("rows arrive", |program| {
        let rows = program.rows("SELECT rows FROM headwater.sources WHERE name = 'first'");
        rows[0][0].as_u64().is_some_and(|rows| rows > 500)
    });
    program.kill();
    postgres.execute(
        "DELETE FROM first WHERE id % 3 = 0; UPDATE first SET body = 'again' WHERE id % 5 = 0",
    );
    program.restart();
    let count = |program: &Program, source: &str, condition: &str| {
        let lsn = postgres.value("SELECT pg_current_wal_flush_lsn()");
        let sql =
            format!("SELECT id FROM {source} {condition} AS OF AT LEAST lsn('{source}', '{lsn}')");
        let deadline = std::time::Instant::now() + Duration::from_secs(180);
        loop {
            let found = rows_at(program, &sql).len().to_string();
            let truth = postgres.value(&format!("SELECT count(*) FROM {source} {condition}"));
            if found == truth || std::time::Instant::now() > deadline {
                assert_eq!(found, truth, "{source} {condition}");
                return;
            }
        }
    };
    count(&program, "first", "");
    count(&program, "first", "WHERE body = 'again'");

    // A second table joins the stream while both are written, in transactions over both.
    program.rows(&table("late"));
    for n in 0..200 {
        postgres.execute(&format!(
            "BEGIN; UPDATE first SET body = 'both {n}' WHERE id = {0};
             UPDATE late SET body = 'both {n}' WHERE id = {0}; DELETE FROM late WHERE id = {1}; COMMIT;",
            n * 7 + 1,
            20_000 - n
        ));
    }
    for source in ["first", "late"] {
        count(&program, source, "");
        count(&program, source, "WHERE body LIKE 'both %'");
    }
}

#[test]
fn a_lost_slot_stops_in_words_or_heals() {
    let _alone = alone();
    let run = Run::new("postgres-slot");
    let postgres = Postgres::start(&run);
    postgres.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text); INSERT INTO docs VALUES (1, 'a'), (2, 'b')",
    );
    for (more, heals) in [("", false), (", SLOT LOST 'copy'", true)] {
        let mut program = Program::start(&format!(
            "{}{}",
            connection(&run, &postgres, postgres.port, more),
            table("docs")
        ));
        assert_eq!(now(&program, &postgres, "docs", "id").len(), 2);
        program.kill();
        program_gone(&postgres);
        postgres.execute("SELECT pg_drop_replication_slot('headwater_pg')");
        postgres.execute("DELETE FROM docs WHERE id = 1");
        program.restart();
        if heals {
            program.wait_rows("SELECT id, body FROM docs", &[vec![json!(2), json!("b")]]);
        } else {
            let why = failure(&program, "docs");
            assert!(why.contains("slot"), "{why}");
            assert!(why.contains("is gone: changes since are lost"), "{why}");
            assert!(why.contains("SLOT LOST 'copy'"), "{why}");
            postgres.execute("INSERT INTO docs VALUES (1, 'a')");
        }
    }
}

#[test]
fn a_row_that_a_new_copy_cannot_read_leaves_and_its_letter_stays() {
    let _alone = alone();
    let run = Run::new("postgres-recopy");
    let postgres = Postgres::start(&run);
    postgres.execute(
        "CREATE TABLE parts (id int PRIMARY KEY, amount int);
         INSERT INTO parts VALUES (1, 10), (2, 20)",
    );
    let program = Program::start(&format!(
        "{}CREATE SOURCE parts (id INTEGER PRIMARY KEY, amount BIGINT)
           FROM POSTGRES (CONNECTION pg, TABLE 'parts');",
        connection(&run, &postgres, postgres.port, "")
    ));
    let parts = || now(&program, &postgres, "parts", "id, amount");
    assert_eq!(parts(), [json!([1, 10]), json!([2, 20])]);

    // Another type: the table is copied again, and one of its rows fits the column no more.
    postgres.execute(
        "BEGIN; ALTER TABLE parts ALTER amount TYPE text;
         UPDATE parts SET amount = 'many' WHERE id = 1; COMMIT;",
    );
    program.wait("the letter", |program| program.letters("parts").len() == 1);
    postgres.execute("UPDATE parts SET amount = '21' WHERE id = 2");
    assert_eq!(parts(), [json!([2, 21])], "nothing older than the table");
    let letters = program.letters("parts");
    assert_eq!(
        letters.len(),
        1,
        "taking the row away is no answer: {letters:?}"
    );

    postgres.execute("UPDATE parts SET amount = '11' WHERE id = 1");
    assert_eq!(parts(), [json!([1, 11]), json!([2, 21])]);
    assert!(program.letters("parts").is_empty(), "it is resolved");
}

#[test]
fn a_swapped_table_a_foreign_one_and_a_failed_source_harm_nobody() {
    let _alone = alone();
    let run = Run::new("postgres-swap");
    let postgres = Postgres::start(&run);
    postgres.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text); INSERT INTO docs VALUES (1, 'old');
         CREATE TABLE other (id int PRIMARY KEY, body text); INSERT INTO other VALUES (1, 'a');
         CREATE ROLE reader LOGIN REPLICATION PASSWORD 'reader';
         GRANT SELECT ON docs TO reader; GRANT CREATE ON DATABASE postgres TO reader;
         ALTER TABLE docs OWNER TO reader;",
    );
    let secret = run.path().join("reader");
    std::fs::write(&secret, "reader").expect("writable");
    let mut program = Program::start(&format!(
        "CREATE SECRET reader AS FILE '{}';
         CREATE CONNECTION pg TO POSTGRES (HOST '127.0.0.1', PORT {}, USER 'reader',
             PASSWORD SECRET reader, DATABASE 'postgres');
         {}",
        secret.display(),
        postgres.port,
        table("docs"),
    ));
    assert_eq!(now(&program, &postgres, "docs", "body"), [json!(["old"])]);
    // Somebody else's table cannot be published by this role; the other source goes on meanwhile.
    program.rows(
        "CREATE SOURCE other (id INTEGER PRIMARY KEY, body TEXT)
         FROM POSTGRES (CONNECTION pg, TABLE 'other')",
    );
    for n in 2..6 {
        postgres.execute(&format!("INSERT INTO docs VALUES ({n}, 'new')"));
        assert_eq!(now(&program, &postgres, "docs", "id").len(), n);
        std::thread::sleep(Duration::from_millis(300));
    }
    postgres.execute("ALTER TABLE other OWNER TO reader");
    program.wait_rows("SELECT id, body FROM other", &[vec![json!(1), json!("a")]]);

    // Another table takes the name, while nobody looks.
    program.kill();
    program_gone(&postgres);
    postgres.execute(
        "CREATE TABLE fresh (id int PRIMARY KEY, body text); INSERT INTO fresh VALUES (9, 'fresh');
         ALTER TABLE fresh OWNER TO reader; DROP TABLE docs; ALTER TABLE fresh RENAME TO docs",
    );
    program.restart();
    program.wait_rows(
        "SELECT id, body FROM docs",
        &[vec![json!(9), json!("fresh")]],
    );
    postgres.execute("INSERT INTO docs VALUES (10, 'more')");
    assert_eq!(now(&program, &postgres, "docs", "id").len(), 2);

    // A source that has failed still gives up what it holds.
    postgres.execute("ALTER TABLE docs DROP COLUMN id; ALTER TABLE docs ADD PRIMARY KEY (body)");
    postgres.execute("INSERT INTO docs VALUES ('without a key')");
    let why = failure(&program, "docs");
    assert!(why.contains("column \\\"id\\\""), "{why}");
    program.rows("DROP SOURCE docs");
    program.rows("DROP SOURCE other");
    wait_for(
        "the slot goes with the last source",
        Duration::from_secs(120),
        || {
            let slots = postgres.value("SELECT count(*) FROM pg_replication_slots");
            (slots == "0").then_some(())
        },
    );
}

#[test]
fn logging_in_is_encrypted_checked_and_fails_in_words() {
    let _alone = alone();
    let run = Run::new("postgres-tls");
    let (postgres, authority) = Postgres::start_secure(&run);
    postgres.execute(
        "CREATE TABLE docs (id int PRIMARY KEY, body text); INSERT INTO docs VALUES (1, 'a')",
    );
    let more = format!(
        ", SSLMODE 'verify-full', SSLROOTCERT '{}'",
        authority.display()
    );
    let program = Program::start(&format!(
        "{}{}",
        connection(&run, &postgres, postgres.port, &more).replace("127.0.0.1", "localhost"),
        table("docs")
    ));
    assert_eq!(now(&program, &postgres, "docs", "id"), [json!([1])]);
    postgres.wait_slot_active("headwater_pg");
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)";
    assert_eq!(postgres.value(encrypted), "t");
    // An authority that nobody trusts, and a password that is wrong.
    let wrong = run.path().join("wrong");
    std::fs::write(&wrong, "nope").expect("writable");
    let to = |options: String| {
        let (host, port, user) = ("localhost", postgres.port, &postgres.user);
        format!(
            "CREATE SECRET wrong AS FILE '{}';
             CREATE CONNECTION other TO POSTGRES (HOST '{host}', PORT {port}, USER '{user}',
                 DATABASE 'postgres', {options});
             CREATE SOURCE other_docs FROM POSTGRES (CONNECTION other, TABLE 'docs')",
            wrong.display()
        )
    };
    let cases = [
        (
            "PASSWORD SECRET password, SSLMODE 'verify-full'",
            "certificate",
        ),
        ("PASSWORD SECRET wrong, SSLMODE 'require'", "28P01"),
    ];
    for (options, expected) in cases {
        let (status, problem) = refused(&program, &to(options.to_owned()));
        assert_eq!(status, 503, "{problem}");
        assert!(problem.to_string().contains(expected), "{problem}");
        assert!(!problem.to_string().contains("nope"), "{problem}");
        program.post(
            "/v1/sql",
            &json!({"sql": "DROP CONNECTION IF EXISTS other"}),
        );
        program.post("/v1/sql", &json!({"sql": "DROP SECRET IF EXISTS wrong"}));
    }
}

#[test]
fn a_database_without_a_logical_log_is_told_apart() {
    let _alone = alone();
    let run = Run::new("postgres-level");
    let postgres = Postgres::start_with(&run, &["wal_level=replica"]);
    postgres.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)");
    let program = Program::start(&format!(
        "{}{}",
        connection(&run, &postgres, postgres.port, ""),
        table("docs")
    ));
    let why = failure(&program, "docs");
    assert!(why.contains("set wal_level = logical"), "{why}");
}
