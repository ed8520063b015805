//! PostgreSQL → Debezium → Kafka → Headwater with a transaction topic: a reader that never stops sees
//! no half transaction, and at every pause each collection is its table.
//!
//! At a pause writing stops and a marker is written into each table by one transaction; when it has
//! arrived everything before it has. At some pauses something was killed before.
//! `HEADWATER_TRANSACTIONS_STATEMENTS` makes it longer.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::alone;
use crate::postgres::Watcher;
use crate::program::Program;
use crate::servers::connect::{debezium, keep_log, keep_nulls, with};
use crate::servers::{Run, Stack};
use crate::workload::{COMPARED, TABLES, Workload, truth};

const PAUSES: usize = 10;

/// They wait long enough for whatever a fault delays.
fn sources(brokers: &str) -> String {
    let columns = [
        (
            "docs",
            "id BIGINT PRIMARY KEY, title TEXT, body TEXT, price NUMERIC(10,2)",
        ),
        (
            "notes",
            "id TEXT, part INTEGER, doc BIGINT, tags JSONB, meta JSONB, made TIMESTAMPTZ, \
             PRIMARY KEY (id, part)",
        ),
        ("shadow", "id INTEGER PRIMARY KEY, n BIGINT"),
    ];
    let source = |(table, columns): (&str, &str)| {
        format!(
            "CREATE SOURCE {table} ({columns}) FROM KAFKA (BROKERS '{brokers}',
                 TOPIC 'db.public.{table}', TRANSACTION TOPIC 'db.transaction',
                 TRANSACTION WAIT '2 minutes')
                 FORMAT JSON ENVELOPE DEBEZIUM;\n"
        )
    };
    columns.map(source).concat()
}

/// What the program counts.
fn splits(program: &Program) -> f64 {
    let (_, text) = program.get("/metrics");
    let text = text.as_str().unwrap_or_default();
    let lines = text.lines().filter(|line| {
        line.starts_with("headwater_transactions_split_total{") && line.contains("db.transaction")
    });
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

#[test]
fn no_half_transaction_is_seen_through_debezium() {
    let _alone = alone();
    let seed = std::env::var("HEADWATER_SEED").ok();
    let seed = seed.map_or_else(rand::random, |seed| seed.parse().expect("a number"));
    let statements = std::env::var("HEADWATER_TRANSACTIONS_STATEMENTS").ok();
    let statements: usize = statements.map_or(600, |n| n.parse().expect("a number"));
    println!("HEADWATER_SEED={seed}, {statements} statements");
    let run = Run::new("debezium-transactions");
    let mut stack = Stack::start(&run);
    // Rows of one table in several partitions; the order of ENDs needs one.
    stack.kafka.create_topic("db.public.docs", 3, &[]);
    stack.kafka.create_topic("db.public.notes", 2, &[]);
    stack.kafka.create_topic("db.transaction", 1, &[]);
    stack.postgres.execute(TABLES);
    let tables = "public.docs,public.notes,public.shadow";
    let config = debezium(&stack.postgres, "db", tables);
    let config = with(
        config,
        &json!({"skipped.operations": "none", "provide.transaction.metadata": "true"}),
    );
    let config = with(with(config, &keep_log()), &keep_nulls());
    stack.connect.create_connector("db", &config);
    stack.connect.wait_running("db");
    let mut program = Program::start(&sources(&stack.kafka.bootstrap));
    for table in ["docs", "notes", "shadow"] {
        program.wait(&format!("the first rows of {table}"), |program| {
            !program.rows(&format!("SELECT id FROM {table}")).is_empty()
        });
    }
    let mut work = Workload::new(seed);
    let (mut reads, mut slowest, mut older) = (0, Duration::ZERO, None);
    for pause in 0..PAUSES {
        let mut watcher = Watcher::start(program.address());
        for _ in 0..statements / PAUSES {
            stack.postgres.execute(&work.statement());
        }
        let fault = match pause {
            1 => {
                older = Some(stack.connect.offsets("db"));
                "none"
            }
            2 => {
                reads += watcher.end();
                program.kill();
                program.restart();
                watcher = Watcher::start(program.address());
                "kill -9 of the program"
            }
            4 => {
                let older = older.as_ref().expect("noted at an earlier pause");
                stack.connect.restart_from_older_offsets("db", older);
                "the connector goes back to older offsets"
            }
            6 => {
                stack.kafka.kill();
                stack.kafka.restart();
                "the broker is killed"
            }
            8 => {
                stack.connect.kill();
                stack.connect.restart();
                "kill -9 of Connect"
            }
            _ => "none",
        };
        let marker = 1_000_000 + pause;
        stack.postgres.execute(&format!(
            "BEGIN; INSERT INTO docs VALUES ({marker}, 'marker', NULL, NULL);
             INSERT INTO notes VALUES ('marker', {marker}, 0, NULL, NULL, NULL);
             INSERT INTO shadow VALUES ({marker}, 0); COMMIT;"
        ));
        let waited = Instant::now();
        let select = format!("SELECT id FROM shadow WHERE id = {marker}");
        program.wait_rows(&select, &[vec![json!(marker)]]);
        let waited = waited.elapsed();
        slowest = slowest.max(waited);
        for (table, columns, select) in COMPARED {
            let order = match table {
                "notes" => "id, part",
                _ => "id",
            };
            let sql = format!("SELECT {columns} FROM {table} ORDER BY {order}");
            let found: Vec<_> = program
                .rows(&sql)
                .into_iter()
                .map(|row| json!(row))
                .collect();
            let letters = program.letters(table);
            assert!(letters.is_empty(), "{letters:?}");
            assert_eq!(
                found,
                truth(&stack.postgres, select),
                "pause {pause}: {table}\n{}",
                program.log()
            );
        }
        reads += watcher.end();
        println!("pause {pause}: fault {fault}; there after {waited:.2?}");
        assert_eq!(splits(&program), 0.0, "{}", program.log());
    }
    println!("{reads} reads of the shadow, slowest pause {slowest:.2?}, no split");
    assert!(reads > 0, "the reader read");
}
