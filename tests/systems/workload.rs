//! Random statements over three tables, and what PostgreSQL makes of them.
//!
//! `docs` has a column that lies out of line (TOAST), `notes` a key of two columns, an array and a
//! document, `shadow` one row that every multi-table transaction counts up together with a row of each
//! of the others: a reader that sees three different numbers at one time has seen half a transaction.

use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::Value as Json;

use crate::servers::postgres::Postgres;

/// The tables.
pub const TABLES: &str = "
CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text, price numeric(10,2));
ALTER TABLE docs ALTER body SET STORAGE EXTERNAL, SET (toast_tuple_target = 128);
CREATE TABLE notes (id text, part int, doc bigint, tags text[], meta jsonb, made timestamptz,
                    PRIMARY KEY (id, part));
CREATE TABLE shadow (id int PRIMARY KEY, n bigint);
INSERT INTO docs VALUES (-1, '0', 'the shadow''s row', NULL);
INSERT INTO notes VALUES ('shadow', 0, 0, NULL, NULL, NULL);
INSERT INTO shadow VALUES (1, 0);
";

/// Each table with the columns that are compared, as PostgreSQL's JSON of a row.
pub const COMPARED: [(&str, &str, &str); 3] = [
    (
        "docs",
        "id, title, body, price",
        "json_build_array(id, title, body, price::text) FROM docs ORDER BY id",
    ),
    (
        "notes",
        "id, part, doc, tags, meta, made",
        "json_build_array(id, part, doc, tags, meta, to_char(made AT TIME ZONE 'UTC', \
         'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')) FROM notes ORDER BY id COLLATE \"C\", part",
    ),
    (
        "shadow",
        "id, n",
        "json_build_array(id, n) FROM shadow ORDER BY id",
    ),
];

/// The rows of a compared table.
pub fn truth(postgres: &Postgres, select: &str) -> Vec<Json> {
    let rows = postgres.query(&format!("SELECT {select}"));
    let row = |row: &Vec<Option<String>>| {
        let text = row[0].as_deref().expect("a row");
        serde_json::from_str(text).expect("JSON")
    };
    rows.iter().map(row).collect()
}

/// Makes statements.
pub struct Workload {
    rng: ChaCha8Rng,
    next: i64,
    count: i64,
    altered: u32,
}

impl Workload {
    pub fn new(seed: u64) -> Workload {
        Workload {
            rng: ChaCha8Rng::seed_from_u64(seed),
            next: 1,
            count: 0,
            altered: 0,
        }
    }

    /// A key that may live.
    fn some(&mut self) -> i64 {
        self.rng.random_range(1..self.next.max(2))
    }

    fn body(&mut self) -> String {
        // A row of more than 2 kB lies out of line.
        let words = self.rng.random_range(60..500);
        let word = |_| format!("w{:x}", self.rng.random::<u32>());
        (0..words).map(word).collect::<Vec<_>>().join(" ")
    }

    /// The next statement, or transaction.
    pub fn statement(&mut self) -> String {
        match self.rng.random_range(0..100) {
            0..72 => self.change(),
            72..96 => {
                let all = match self.rng.random_range(0..10) {
                    0..2 => self.large(),
                    _ => self.changes(6),
                };
                self.count += 1;
                let n = self.count;
                let end = match self.rng.random_range(0..10) {
                    0 => {
                        self.count -= 1;
                        "ROLLBACK;"
                    }
                    _ => "COMMIT;",
                };
                format!(
                    "BEGIN; UPDATE shadow SET n = {n} WHERE id = 1; {all}
                     UPDATE docs SET title = '{n}' WHERE id = -1;
                     UPDATE notes SET doc = {n} WHERE id = 'shadow'; {end}"
                )
            }
            96 if self.rng.random_bool(0.3) => "BEGIN; DELETE FROM docs WHERE id > 0; \
                 DELETE FROM notes WHERE id <> 'shadow'; COMMIT;"
                .to_owned(),
            96..98 => self.alter(),
            _ => {
                // All rows go, and the shadow's come back in the same transaction.
                let n = self.count;
                format!(
                    "BEGIN; TRUNCATE docs, notes;
                     INSERT INTO docs VALUES (-1, '{n}', 'the shadow''s row', NULL);
                     INSERT INTO notes VALUES ('shadow', 0, {n}, NULL, NULL, NULL); COMMIT;"
                )
            }
        }
    }

    fn changes(&mut self, most: usize) -> String {
        let count = self.rng.random_range(1..most);
        (0..count).map(|_| self.change()).collect()
    }

    /// Changes with savepoints that are rolled back or kept; most are sent before their commit, where the
    /// reader takes such transactions.
    fn large(&mut self) -> String {
        let savepoint = |n| {
            let end = match self.rng.random_range(0..3) {
                0 => "ROLLBACK TO",
                _ => "RELEASE",
            };
            let changes = self.changes(24);
            format!("SAVEPOINT s{n}; {changes} {end} s{n}; {}", self.changes(3))
        };
        (0..5).map(savepoint).collect()
    }

    /// A column that nobody reads comes and goes.
    fn alter(&mut self) -> String {
        self.altered += 1;
        match self.altered % 2 {
            1 => "ALTER TABLE docs ADD COLUMN aside int DEFAULT 7;".to_owned(),
            _ => "ALTER TABLE docs DROP COLUMN aside;".to_owned(),
        }
    }

    fn change(&mut self) -> String {
        match self.rng.random_range(0..100) {
            0..30 => {
                let (id, body) = (self.next, self.body());
                self.next += 1;
                format!(
                    "INSERT INTO docs (id, title, body, price)
                     VALUES ({id}, 'title {id}', '{body}', {id}.25);"
                )
            }
            // The body is not sent: it lies out of line and did not change.
            30..50 => {
                let (id, n) = (self.some(), self.rng.random::<u16>());
                format!("UPDATE docs SET title = 'again {n}', price = NULL WHERE id = {id};")
            }
            50..58 => {
                let (id, body) = (self.some(), self.body());
                format!("UPDATE docs SET body = '{body}' WHERE id = {id};")
            }
            58..66 => {
                let (from, to) = (self.some(), self.next);
                self.next += 1;
                format!("UPDATE docs SET id = {to} WHERE id = {from};")
            }
            66..74 => format!("DELETE FROM docs WHERE id = {};", self.some()),
            74..90 => {
                let (doc, part) = (self.some(), self.rng.random_range(0..4));
                let (a, b) = (self.rng.random::<u16>(), self.rng.random::<u32>());
                format!(
                    "INSERT INTO notes VALUES ('n{a}', {part}, {doc}, ARRAY['x, {a}', NULL, 'q\"'],
                     '{{\"b\": {b}, \"a\": [1, null]}}', to_timestamp({b}.5))
                     ON CONFLICT (id, part) DO UPDATE SET doc = excluded.doc, tags = NULL;"
                )
            }
            90..95 => format!(
                "DELETE FROM notes WHERE doc = {} AND id <> 'shadow';",
                self.some()
            ),
            _ => format!(
                "UPDATE notes SET part = part + 10 WHERE doc = {} AND part < 10 \
                 AND id <> 'shadow';",
                self.some()
            ),
        }
    }
}
