//! PostgreSQL → Debezium → Kafka → Headwater: at every pause the collection is the table.
//!
//! Random statements from a printed seed: inserts, updates that leave a TOAST column alone, key
//! changes, deletes, truncates, transactions. At a pause a marker row is written; when it has
//! arrived (one partition keeps the order) everything before it has, and both are compared. At some
//! pauses something is killed first, or the program's cable to the broker is pulled.
//! `HEADWATER_DEBEZIUM_STATEMENTS` makes it longer, `HEADWATER_DEBEZIUM_PAUSES` adds pauses.

use std::time::Instant;

use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use crate::alone;
use crate::program::Program;
use crate::servers::connect::{debezium, keep_log, keep_nulls, with};
use crate::servers::postgres::Postgres;
use crate::servers::{Run, Stack};

const TABLE: &str = "
CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text, price numeric(10,2));
ALTER TABLE docs ALTER body SET STORAGE EXTERNAL, SET (toast_tuple_target = 128);
";
/// Those with faults among them.
const PAUSES: usize = 20;
/// Markers are rows above all others.
const MARKER: i64 = 1_000_000;

struct Workload {
    rng: ChaCha8Rng,
    next: i64,
}

impl Workload {
    /// A key that may live.
    fn some(&mut self) -> i64 {
        self.rng.random_range(0..self.next.max(1))
    }

    fn body(&mut self) -> String {
        // A row of more than 2 kB lies out of line.
        let words = self.rng.random_range(60..500);
        let word = |_| format!("w{:x}", self.rng.random::<u32>());
        (0..words).map(word).collect::<Vec<_>>().join(" ")
    }

    fn statement(&mut self) -> String {
        match self.rng.random_range(0..100) {
            0..40 => {
                let (id, body) = (self.next, self.body());
                self.next += 1;
                format!("INSERT INTO docs VALUES ({id}, 'title {id}', '{body}', {id}.25);")
            }
            // The body is not sent: it lies out of line and did not change.
            40..65 => {
                let (id, n) = (self.some(), self.rng.random::<u16>());
                format!("UPDATE docs SET title = 'again {n}', price = NULL WHERE id = {id};")
            }
            65..75 => {
                let (id, body) = (self.some(), self.body());
                format!("UPDATE docs SET body = '{body}' WHERE id = {id};")
            }
            75..83 => {
                let (from, to) = (self.some(), self.next);
                self.next += 1;
                format!("UPDATE docs SET id = {to} WHERE id = {from};")
            }
            83..95 => format!("DELETE FROM docs WHERE id = {};", self.some()),
            95..99 => {
                let count = self.rng.random_range(2..6);
                let all: String = (0..count).map(|_| self.statement()).collect();
                format!("BEGIN; {all} COMMIT;")
                    .replace("BEGIN; BEGIN;", "BEGIN;")
                    .replace("COMMIT; COMMIT;", "COMMIT;")
            }
            _ if self.next % 3 == 0 => "TRUNCATE docs;".to_owned(),
            _ => format!("DELETE FROM docs WHERE id < {};", self.some() / 4),
        }
    }
}

/// The table as PostgreSQL has it.
fn truth(postgres: &Postgres) -> Vec<Vec<Json>> {
    let rows = postgres.query("SELECT id, title, body, price FROM docs ORDER BY id");
    let row = |row: &Vec<Option<String>>| -> Vec<Json> {
        let mut row: Vec<Json> = row.iter().map(|value| json!(value)).collect();
        let id = row[0].as_str().and_then(|id| id.parse::<i64>().ok());
        row[0] = json!(id);
        row
    };
    rows.iter().map(row).collect()
}

#[test]
fn the_collection_is_the_table_whatever_is_killed() {
    let _alone = alone();
    let seed = std::env::var("HEADWATER_SEED").ok();
    let seed = seed.map_or_else(rand::random, |seed| seed.parse().expect("a number"));
    let number = |name: &str, default: usize| {
        let number = std::env::var(name).ok();
        number.map_or(default, |n| n.parse().expect("a number"))
    };
    let statements = number("HEADWATER_DEBEZIUM_STATEMENTS", 2_000);
    let pauses = number("HEADWATER_DEBEZIUM_PAUSES", PAUSES).max(PAUSES);
    println!("HEADWATER_SEED={seed}, {statements} statements, {pauses} pauses");
    let run = Run::new("debezium");
    let mut stack = Stack::start(&run);
    stack.postgres.execute(TABLE);
    let config = debezium(&stack.postgres, "db", "public.docs");
    let config = with(config, &json!({"skipped.operations": "none"}));
    let config = with(with(config, &keep_log()), &keep_nulls());
    stack.connect.create_connector("db", &config);
    stack.connect.wait_running("db");
    let mut program = Program::start(&format!(
        "CREATE SOURCE docs (id BIGINT PRIMARY KEY, title TEXT, body TEXT, price NUMERIC(10,2))
             FROM KAFKA (BROKERS '{}', TOPIC 'db.public.docs') FORMAT JSON ENVELOPE DEBEZIUM;
         CREATE INDEX found ON docs USING KEYWORD (body) INCLUDE (title);",
        stack.kafka.proxied()
    ));
    let mut work = Workload {
        rng: ChaCha8Rng::seed_from_u64(seed),
        next: 0,
    };
    let mut older = None;
    for pause in 0..pauses {
        match pause {
            13 => stack.kafka.proxy.cut(),
            16 => stack.kafka.proxy.freeze(),
            _ => {}
        }
        for _ in 0..statements / pauses {
            let statement = work.statement();
            stack.postgres.execute(&statement);
        }
        stack.kafka.proxy.mend();
        let fault = match pause {
            3 => {
                older = Some(stack.connect.offsets("db"));
                "none"
            }
            5 => {
                program.kill();
                program.restart();
                "kill -9 of the program"
            }
            8 => {
                stack.kafka.kill();
                stack.kafka.restart();
                "the broker is killed"
            }
            11 => {
                let older = older.as_ref().expect("noted at an earlier pause");
                stack.connect.restart_from_older_offsets("db", older);
                "the connector goes back to older offsets"
            }
            13 => "the network was cut",
            14 => {
                stack.postgres.restart();
                "PostgreSQL is restarted"
            }
            16 => "the network let nothing through",
            17 => {
                program.kill();
                stack.connect.kill();
                stack.connect.restart();
                program.restart();
                "kill -9 of Connect and of the program"
            }
            _ => "none",
        };
        let marker = MARKER + pause as i64;
        let insert = format!("INSERT INTO docs VALUES ({marker}, 'marker', NULL, NULL)");
        stack.postgres.execute(&insert);
        let waited = Instant::now();
        let select = format!("SELECT id FROM docs WHERE id = {marker}");
        program.wait_rows(&select, &[vec![json!(marker)]]);
        println!(
            "pause {pause}: fault {fault}; arrived after {:.2?}",
            waited.elapsed()
        );
        let found = program.rows("SELECT id, title, body, price FROM docs ORDER BY id");
        let letters = program.letters("docs");
        assert!(letters.is_empty(), "{letters:?}");
        assert_eq!(found, truth(&stack.postgres), "pause {pause}");
    }
    // The index follows the collection: a word of the newest body finds its row.
    let newest = stack.postgres.query(
        "SELECT id::text, split_part(body, ' ', 3) FROM docs WHERE body IS NOT NULL \
         ORDER BY id DESC LIMIT 1",
    );
    if let Some([Some(id), Some(word)]) = newest.first().map(Vec::as_slice) {
        let sql = format!("SELECT document FROM search(found, '{word}', k => 1)");
        program.wait("the newest body is found", |program| {
            let rows = program.rows(&sql);
            rows.first()
                .is_some_and(|row| row[0].to_string().contains(id))
        });
    }
}
