//! Transactions that are so large that PostgreSQL sends them before their commit.
//!
//! The servers here have `logical_decoding_work_mem = 64kB`, so that a few hundred rows are such a
//! transaction; each test makes sure that they really were sent before.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::alone;
use crate::postgres::{connection, rows_at};
use crate::program::Program;
use crate::servers::Run;
use crate::servers::postgres::Postgres;

const TABLES: &str = "
CREATE TABLE docs (id int PRIMARY KEY, body text);
CREATE TABLE other (id int PRIMARY KEY, body text);
INSERT INTO docs VALUES (0, 'first'); INSERT INTO other VALUES (0, 'first');
";

fn start(name: &str) -> (Run, Postgres, Program) {
    let run = Run::new(name);
    let postgres = Postgres::start(&run);
    postgres.execute(TABLES);
    let table =
        |name| format!("CREATE SOURCE {name} FROM POSTGRES (CONNECTION pg, TABLE '{name}');\n");
    let connection = connection(&run, &postgres, postgres.port, "");
    let program = Program::start(&format!("{connection}{}{}", table("docs"), table("other")));
    compare(&program, &postgres, "the copy");
    // A copy that ends begins the stream anew: both are in it.
    postgres.wait_slot_active("headwater_pg");
    (run, postgres, program)
}

/// Rows `from..to` of about `bytes` bytes each.
fn rows(table: &str, from: usize, to: usize, bytes: usize) -> String {
    let times = bytes / 32;
    format!(
        "INSERT INTO {table} SELECT n, repeat(md5(n::text), {times})
         FROM generate_series({from}, {to} - 1) n;"
    )
}

/// Both tables, row by row, at the log's present place; how long it took.
fn compare(program: &Program, postgres: &Postgres, what: &str) -> Duration {
    let lsn = postgres.value("SELECT pg_current_wal_flush_lsn()");
    let waited = Instant::now();
    for table in ["docs", "other"] {
        let found = rows_at(
            program,
            &format!(
                "SELECT id, length(body), left(body, 40) FROM {table} ORDER BY id
                 AS OF AT LEAST lsn('{table}', '{lsn}')"
            ),
        );
        let truth = postgres.query(&format!(
            "SELECT json_build_array(id, length(body), left(body, 40))::text FROM {table} ORDER BY id"
        ));
        let json = |row: &Vec<Option<String>>| -> Json {
            serde_json::from_str(row[0].as_deref().expect("a row")).expect("JSON")
        };
        let truth: Vec<Json> = truth.iter().map(json).collect();
        assert_eq!(found.len(), truth.len(), "{what}: rows of {table}");
        let differs = found
            .iter()
            .zip(&truth)
            .find(|(found, truth)| found != truth);
        assert_eq!(differs, None, "{what}: {table}");
    }
    waited.elapsed()
}

/// A figure of the program's.
fn metric(program: &Program, line: &str) -> f64 {
    let (_, text) = program.get("/metrics");
    let text = text.as_str().unwrap_or_default();
    let found = text.lines().find_map(|one| one.strip_prefix(line));
    found.map_or(0.0, |rest| rest.trim().parse().expect("a number"))
}

fn kept(program: &Program, place: &str) -> f64 {
    let name = "headwater_postgres_streamed_bytes";
    metric(
        program,
        &format!("{name}{{connection=\"pg\",place=\"{place}\"}}"),
    )
}

fn ended(program: &Program, outcome: &str) -> f64 {
    let name = "headwater_postgres_streamed_total";
    metric(
        program,
        &format!("{name}{{connection=\"pg\",outcome=\"{outcome}\"}}"),
    )
}

fn count(program: &Program, table: &str) -> usize {
    program.rows(&format!("SELECT id FROM {table}")).len()
}

/// Whether all rows of the largest transaction are there, of which no part may be.
fn is_all(program: &Program) -> bool {
    let ids = "SELECT id FROM docs WHERE id IN (1, 2500, 20000, 84999)";
    match program.rows(ids).len() {
        0 => false,
        found => {
            assert_eq!(found, 4, "a part of it is seen");
            true
        }
    }
}

#[test]
fn an_open_transaction_is_kept_and_what_is_rolled_back_is_never_seen() {
    let _alone = alone();
    let (_run, postgres, program) = start("postgres-streams");
    let mut large = postgres.session().expect("a session");
    let mut doomed = postgres.session().expect("a session");
    large.run("BEGIN").expect("it begins");
    large.run(&rows("docs", 1, 1_000, 500)).expect("rows");
    program.wait("the open transaction is sent", |program| {
        kept(program, "memory") > 100_000.0
    });
    assert_eq!(count(&program, "docs"), 1, "nothing of it is seen");

    // Others in turns: one that is small, one that will be rolled back.
    postgres.execute("INSERT INTO other VALUES (-1, 'in between')");
    compare(&program, &postgres, "beside an open transaction");
    let before = kept(&program, "memory");
    doomed.run("BEGIN").expect("it begins");
    doomed.run(&rows("other", 5_000, 6_000, 500)).expect("rows");
    program.wait("so is the other", |program| {
        kept(program, "memory") > before + 300_000.0
    });
    // Savepoints: one goes with what was released into it, one stays, one changes a table and goes.
    large
        .run(&format!(
            "SAVEPOINT a; {} SAVEPOINT b; {} RELEASE b; ROLLBACK TO a;
             SAVEPOINT c; {} UPDATE docs SET body = 'kept' WHERE id < 10; RELEASE c;
             SAVEPOINT d; ALTER TABLE docs ADD COLUMN more text DEFAULT 'x'; {} ROLLBACK TO d;
             SAVEPOINT e; TRUNCATE docs; ROLLBACK TO e; DELETE FROM docs WHERE id = 11;",
            rows("docs", 1_000, 2_000, 500),
            rows("docs", 2_000, 3_000, 500),
            rows("docs", 3_000, 4_000, 500),
            "INSERT INTO docs SELECT n, md5(n::text), 'y' FROM generate_series(4000, 6000) n;",
        ))
        .expect("savepoints");
    doomed.run("ROLLBACK").expect("it is rolled back");
    postgres.execute("UPDATE other SET body = 'again' WHERE id = -1");
    compare(&program, &postgres, "before the commit");
    assert_eq!(count(&program, "docs"), 1, "nothing of it is seen");
    program.wait("the other is forgotten", |program| {
        ended(program, "rolled back") == 1.0
    });

    large.run("COMMIT").expect("it is committed");
    let waited = compare(&program, &postgres, "after the commit");
    assert_eq!(count(&program, "docs"), 1 + 1_999 - 1);
    assert_eq!(ended(&program, "committed"), 1.0);
    assert_eq!(
        (kept(&program, "memory"), kept(&program, "file")),
        (0.0, 0.0)
    );
    println!("a transaction of 5,000 rows and savepoints: there {waited:.2?} after its commit");

    // A truncate and another type in one: the table is copied again.
    postgres.execute(&format!(
        "BEGIN; {} TRUNCATE docs; ALTER TABLE docs ALTER body TYPE varchar; {} COMMIT;",
        rows("docs", 7_000, 8_000, 500),
        rows("docs", 8_000, 9_000, 500),
    ));
    compare(&program, &postgres, "after another type");
    assert_eq!(count(&program, "docs"), 1_000);
    let streams =
        "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = 'headwater_pg'";
    program.wait("the server says that it streamed", |_| {
        postgres.value(streams).parse::<u64>().expect("a number") >= 3
    });
    assert!(program.letters("docs").is_empty() && program.letters("other").is_empty());
}

#[test]
fn a_kill_in_the_middle_of_a_streamed_transaction_loses_and_doubles_nothing() {
    let _alone = alone();
    let (_run, mut postgres, mut program) = start("postgres-streams-kill");
    let mut large = postgres.session().expect("a session");
    large.run("BEGIN").expect("it begins");
    large.run(&rows("docs", 1, 2_000, 1_000)).expect("rows");
    program.wait("the open transaction is sent", |program| {
        kept(program, "memory") > 1e6
    });
    // Something is confirmed that lies behind its beginning.
    postgres.execute("INSERT INTO other VALUES (1, 'before the kill')");
    compare(&program, &postgres, "before the kill");
    let confirmed = "SELECT confirmed_flush_lsn >= pg_current_wal_flush_lsn() - 1000::numeric
                     FROM pg_replication_slots WHERE slot_name = 'headwater_pg'";
    program.wait("the slot moves on", |_| postgres.value(confirmed) == "t");
    program.kill();
    large.run(&rows("docs", 2_000, 3_000, 1_000)).expect("rows");
    postgres.execute("INSERT INTO other VALUES (2, 'meanwhile')");
    program.restart();
    compare(&program, &postgres, "after the kill");
    program.wait("all of it is sent again", |program| {
        kept(program, "memory") > 2.5e6
    });
    assert_eq!(count(&program, "docs"), 1, "nothing of it is seen");

    // More than memory takes goes to files, which have no names.
    large
        .run(&format!(
            "{} SAVEPOINT a; {} ROLLBACK TO a; {}",
            rows("docs", 3_000, 30_000, 1_000),
            rows("docs", 30_000, 40_000, 1_000),
            rows("docs", 40_000, 85_000, 1_000),
        ))
        .expect("rows");
    program.wait("a part of it lies in a file", |program| {
        kept(program, "file") > 6e7
    });
    let files = std::fs::read_dir(program.data().join("open")).expect("a folder");
    assert_eq!(files.count(), 0, "they end with the process");

    // It is larger than one record of the log, too: killed between its pieces it goes on after what is
    // logged, and a reader sees all of it or nothing. What was committed just before comes again first.
    for number in 10..20 {
        postgres.execute(&format!(
            "INSERT INTO other VALUES ({number}, 'just before')"
        ));
    }
    large.run("COMMIT").expect("it is committed");
    program.wait("a piece is logged", |program| {
        let rows = program.rows("SELECT rows FROM headwater.sources WHERE name = 'docs'");
        let is_seen = is_all(program);
        assert!(!is_seen, "the program was not killed in time");
        rows[0][0].as_u64().is_some_and(|rows| rows > 1)
    });
    program.kill();
    program.restart();
    let waited = Instant::now();
    program.wait("all of it is there", is_all);
    println!(
        "74,999 rows of 1 kB: there {:.2?} after a kill between their pieces",
        waited.elapsed()
    );
    compare(&program, &postgres, "after a kill between the pieces");
    assert_eq!(count(&program, "docs"), 75_000);
    let split = "headwater_transactions_split_total{connection=\"pg\"}";
    assert_eq!(metric(&program, split), 0.0);

    // The server is killed under another one: its log has no end of it, and tells that at a checkpoint.
    let mut lost = postgres.session().expect("a session");
    lost.run("BEGIN").expect("it begins");
    lost.run("UPDATE docs SET body = 'lost' WHERE id < 5000")
        .expect("rows");
    program.wait("it is sent", |program| kept(program, "memory") > 100_000.0);
    postgres.kill();
    postgres.restart();
    drop(lost);
    postgres.execute("UPDATE docs SET body = 'there' WHERE id = 7");
    compare(&program, &postgres, "after the server was killed");
    postgres.execute("CHECKPOINT");
    program.wait("it is forgotten", |program| kept(program, "memory") == 0.0);
    program.wait_rows(
        "SELECT body FROM docs WHERE id = 7",
        &[vec![json!("there")]],
    );
}

#[test]
fn without_room_for_an_open_transaction_the_server_keeps_it() {
    let _alone = alone();
    let (_run, postgres, program) = start("postgres-streams-room");
    // A file where the folder should be: as good as a full disk.
    std::fs::write(program.data().join("open"), "").expect("writable");
    let mut large = postgres.session().expect("a session");
    large.run("BEGIN").expect("it begins");
    large.run(&rows("docs", 1, 40_000, 1_000)).expect("rows");
    program.wait("it is told", |program| {
        let log = program.log();
        log.contains("cannot be written to a file in")
            && log.contains("after their commit from now on")
    });
    postgres.execute("INSERT INTO other VALUES (1, 'meanwhile')");
    compare(&program, &postgres, "beside an open transaction");
    assert_eq!(
        (kept(&program, "memory"), count(&program, "docs")),
        (0.0, 1)
    );
    large.run("COMMIT").expect("it is committed");
    let waited = compare(&program, &postgres, "after the commit");
    println!("39,999 rows of 1 kB, sent at their commit: there {waited:.2?} after it");
    assert_eq!(count(&program, "docs"), 40_000);
    assert_eq!(ended(&program, "committed"), 0.0, "it came whole");
}
