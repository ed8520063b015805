//! PostgreSQL → Debezium → Kafka → Headwater with a transaction topic: a reader that never stops sees
//! no half transaction, and at every pause each collection is its table.
//!
//! At a pause writing stops and a marker is written into each table by one transaction; when it has
//! arrived everything before it has. Before some pauses something is killed or cut while statements run;
//! the reader reads on. In Avro with a registry; `HEADWATER_TRANSACTIONS_FORMAT=json` for JSON.
//! `HEADWATER_TRANSACTIONS_STATEMENTS` and `HEADWATER_TRANSACTIONS_PAUSES` make it longer;
//! `HEADWATER_TRANSACTIONS_FAULT` (a number of [`World::fault`]) makes each fault this one. When a split
//! was counted the last records of the topics are shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::alone;
use crate::postgres::{Watcher, number};
use crate::program::Program;
use crate::servers::connect::{avro, debezium, keep_log, keep_nulls, with};
use crate::servers::registry::Registry;
use crate::servers::{Run, Stack};
use crate::workload::{COMPARED, TABLES, Workload, truth};

const PAUSES: usize = 10;
/// Records of a partition that are shown when a split was counted.
const TAIL: i64 = 120;

/// They wait long enough for whatever a fault delays.
fn sources(brokers: &str, format: &str) -> String {
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
                 FORMAT {format} ENVELOPE DEBEZIUM;\n"
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

/// What matters for transactions of a record: of JSON its transaction and place in the log, else its text.
fn shown(value: &str) -> String {
    let Ok(json) = serde_json::from_str::<Json>(value) else {
        return value
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect();
    };
    let source = &json["source"];
    match json["status"].as_str() {
        Some(_) => json.to_string(),
        None => format!(
            "{} {} {} {} {}",
            json["op"], json["transaction"], source["txId"], source["lsn"], source["sequence"]
        ),
    }
}

/// The servers, with Debezium's connector running, and the program.
struct World {
    // Before the servers it speaks to.
    program: Program,
    stack: Stack,
    _registry: Option<Registry>,
    /// Offsets of the connector, noted at an earlier pause.
    older: Json,
}

impl World {
    fn start(run: &Run, format: &str) -> World {
        let (stack, registry) = match format {
            "json" => (Stack::start(run), None),
            "avro" => {
                let (stack, registry) = Stack::with_registry(run);
                (stack, Some(registry))
            }
            other => panic!("HEADWATER_TRANSACTIONS_FORMAT is json or avro, not {other}"),
        };
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
        let mut config = with(with(config, &keep_log()), &keep_nulls());
        let mut format = "JSON".to_owned();
        if let Some(registry) = &registry {
            config = with(config, &avro(registry));
            format = format!("AVRO (REGISTRY '{}')", registry.confluent_url());
        }
        stack.connect.create_connector("db", &config);
        stack.connect.wait_running("db");
        let program = Program::start(&sources(&stack.kafka.proxied(), &format));
        for table in ["docs", "notes", "shadow"] {
            program.wait(&format!("the first rows of {table}"), |program| {
                !program.rows(&format!("SELECT id FROM {table}")).is_empty()
            });
        }
        // A connector that dies before it has written its place reads all tables again, row by row.
        stack.connect.offsets("db");
        World {
            program,
            stack,
            _registry: registry,
            older: Json::Null,
        }
    }

    /// Breaks something while `write` writes, and mends it; in words. The faults come in this order, one
    /// of each number of `step`.
    fn fault(
        &mut self,
        step: usize,
        watcher: &Watcher,
        write: &mut dyn FnMut(&World),
    ) -> &'static str {
        match step {
            2 => {
                self.older = self.stack.connect.offsets("db");
                "none"
            }
            4 => {
                self.program.kill();
                write(self);
                self.program.restart();
                watcher.moved(self.program.address());
                "kill -9 of the program"
            }
            6 => {
                let connect = &self.stack.connect;
                connect.restart_from_older_offsets("db", &self.older);
                "the connector goes back to older offsets"
            }
            8 => {
                self.stack.kafka.kill();
                write(self);
                self.stack.kafka.restart();
                "the broker is killed"
            }
            10 => {
                self.stack.kafka.proxy.cut();
                write(self);
                self.stack.kafka.proxy.mend();
                "the network is cut"
            }
            12 => {
                self.stack.connect.kill();
                write(self);
                self.stack.connect.restart();
                "kill -9 of Connect"
            }
            14 => {
                self.stack.postgres.restart();
                "PostgreSQL is restarted"
            }
            16 => {
                self.stack.kafka.proxy.freeze();
                write(self);
                self.stack.kafka.proxy.mend();
                "the network lets nothing through"
            }
            18 => {
                self.program.kill();
                self.stack.connect.kill();
                write(self);
                self.stack.connect.restart();
                self.program.restart();
                watcher.moved(self.program.address());
                "kill -9 of Connect and of the program"
            }
            _ => "none",
        }
    }

    /// Writes a marker, waits for it and compares; how long it took to come.
    fn compare(&self, pause: usize) -> Duration {
        let marker = 1_000_000 + pause;
        self.stack.postgres.execute(&format!(
            "BEGIN; INSERT INTO docs VALUES ({marker}, 'marker', NULL, NULL);
             INSERT INTO notes VALUES ('marker', {marker}, 0, NULL, NULL, NULL);
             INSERT INTO shadow VALUES ({marker}, 0); COMMIT;"
        ));
        let waited = Instant::now();
        let select = format!("SELECT id FROM shadow WHERE id = {marker}");
        self.program.wait_rows(&select, &[vec![json!(marker)]]);
        let waited = waited.elapsed();
        for (table, columns, select) in COMPARED {
            let order = match table {
                "notes" => "id, part",
                _ => "id",
            };
            let sql = format!("SELECT {columns} FROM {table} ORDER BY {order}");
            let found: Vec<_> = self
                .program
                .rows(&sql)
                .into_iter()
                .map(|row| json!(row))
                .collect();
            let letters = self.program.letters(table);
            assert!(letters.is_empty(), "{letters:?}");
            assert_eq!(
                found,
                truth(&self.stack.postgres, select),
                "pause {pause}: {table}\n{}",
                self.program.log()
            );
        }
        if splits(&self.program) > 0.0 {
            panic!(
                "pause {pause}: a split\n{}\n{}",
                self.program.log(),
                self.tails()
            );
        }
        waited
    }

    /// Panics with what the program was given, and what it said.
    fn fail(&self, what: &str) -> ! {
        panic!("{what}\n{}\n{}", self.program.log(), self.tails());
    }

    /// The last records of the topics, of each partition.
    fn tails(&self) -> String {
        let mut out = String::new();
        for topic in [
            "db.transaction",
            "db.public.docs",
            "db.public.notes",
            "db.public.shadow",
        ] {
            let records = self.stack.kafka.records(topic);
            let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
            for record in &records {
                let end = ends.entry(record.partition).or_default();
                *end = record.offset.max(*end);
            }
            for record in records
                .iter()
                .filter(|record| record.offset + TAIL > ends[&record.partition])
            {
                let _ = writeln!(
                    out,
                    "{topic}/{}@{} {} {} {}",
                    record.partition,
                    record.offset,
                    record.timestamp,
                    record.key_text(),
                    shown(&record.value_text()),
                );
            }
        }
        out
    }

    /// A transaction of more than may wait for its END: it is logged in pieces, the program is killed
    /// between them, and a reader sees all of it or nothing.
    fn large(&mut self) {
        const ROWS: usize = 12_000;
        let seen = |program: &Program| {
            let rows = program
                .rows("SELECT id FROM docs WHERE id >= 2000000")
                .len();
            assert!(rows == 0 || rows == ROWS, "{rows} of {ROWS} rows are seen");
            rows == ROWS
        };
        let taken = |program: &Program| {
            let rows = program.rows("SELECT rows FROM headwater.sources WHERE name = 'docs'");
            rows[0][0].as_u64().expect("a number")
        };
        let before = taken(&self.program);
        self.stack.postgres.execute(&format!(
            "BEGIN; INSERT INTO docs SELECT 2000000 + n, 'large', repeat(md5(n::text), 94), NULL
                 FROM generate_series(1, {ROWS}) n;
             INSERT INTO notes VALUES ('large', 1, 2, NULL, NULL, NULL); COMMIT;"
        ));
        self.program.wait("a piece is logged", |program| {
            assert!(!seen(program), "the program was not killed in time");
            taken(program) > before
        });
        self.program.kill();
        self.program.restart();
        let waited = Instant::now();
        self.program.wait("all of it is there", seen);
        println!(
            "{ROWS} rows of 3 kB in one transaction: there {:.2?} after a kill between its pieces",
            waited.elapsed()
        );
        let postgres = &self.stack.postgres;
        postgres.execute("DELETE FROM docs WHERE id >= 2000000");
    }
}

#[test]
fn no_half_transaction_is_seen_through_debezium() {
    let _alone = alone();
    let seed = number("HEADWATER_SEED", rand::random::<u32>() as usize) as u64;
    let statements = number("HEADWATER_TRANSACTIONS_STATEMENTS", 600);
    let pauses = number("HEADWATER_TRANSACTIONS_PAUSES", PAUSES).max(PAUSES);
    let only = number("HEADWATER_TRANSACTIONS_FAULT", usize::MAX);
    let format = std::env::var("HEADWATER_TRANSACTIONS_FORMAT").unwrap_or_else(|_| "avro".into());
    println!("HEADWATER_SEED={seed}, {statements} statements, {pauses} pauses, {format}");
    let run = Run::new("debezium-transactions");
    let mut world = World::start(&run, &format);
    let mut work = Workload::new(seed);
    let (mut reads, mut slowest) = (0, Duration::ZERO);
    for pause in 0..pauses {
        let watcher = Watcher::start(world.program.address());
        for _ in 0..statements / pauses {
            world.stack.postgres.execute(&work.statement());
        }
        // Each fault once, however many pauses there are.
        let step = match pause * 20 % pauses < 20 {
            _ if only < usize::MAX => only,
            true => pause * 20 / pauses,
            false => usize::MAX,
        };
        let fault = world.fault(step, &watcher, &mut |world| {
            (0..10).for_each(|_| world.stack.postgres.execute(&work.statement()));
        });
        let waited = world.compare(pause);
        slowest = slowest.max(waited);
        let Some(read) = watcher.try_end() else {
            world.fail(&format!("pause {pause}: half a transaction was seen"));
        };
        reads += read;
        println!("pause {pause}: fault {fault}; there after {waited:.2?}");
    }
    world.large();
    world.compare(pauses);
    println!("{reads} reads of the shadow, slowest pause {slowest:.2?}, no split");
    assert!(reads > 0, "the reader read");
}
