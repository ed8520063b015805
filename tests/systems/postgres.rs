//! PostgreSQL → Headwater, straight from the log: at every pause each collection is its table, and a
//! reader that never stops sees no half transaction.
//!
//! At a pause writing stops, the log's place is noted, and the questions say `AT LEAST` that place. At
//! some pauses something was killed or cut before. `HEADWATER_POSTGRES_STATEMENTS` and
//! `HEADWATER_POSTGRES_PAUSES` make it longer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::alone;
use crate::program::Program;
use crate::servers::Run;
use crate::servers::postgres::Postgres;
use crate::servers::proxy::Proxy;
use crate::workload::{COMPARED, TABLES, Workload, truth};

/// A source that lost its server comes back within.
const RECOVERY: Duration = Duration::from_secs(180);

/// A number from the environment.
pub fn number(name: &str, default: usize) -> usize {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

/// What declares the connection `pg`.
pub fn connection(run: &Run, postgres: &Postgres, port: u16, more: &str) -> String {
    let secret = run.path().join("password");
    std::fs::write(&secret, format!("{}\n", postgres.password)).expect("writable");
    format!(
        "CREATE SECRET password AS FILE '{}';
         CREATE CONNECTION pg TO POSTGRES (HOST '127.0.0.1', PORT {port}, USER '{}',
             PASSWORD SECRET password, DATABASE '{}'{more});\n",
        secret.display(),
        postgres.user,
        postgres.database,
    )
}

/// The rows of a statement that waits, as arrays; asks again while the place is not reached.
pub fn rows_at(program: &Program, sql: &str) -> Vec<Json> {
    let deadline = Instant::now() + RECOVERY;
    loop {
        let (status, reply) = program.post("/v1/sql", &json!({ "sql": sql }));
        match status {
            200 => return reply["rows"].as_array().expect("rows").clone(),
            504 if Instant::now() < deadline => {}
            _ => panic!("{sql}: {status} {reply}\n{}", program.log()),
        }
    }
}

/// Compares all tables at the log's present place; how long the slowest waited.
fn compare(program: &Program, postgres: &Postgres, what: &str) -> Duration {
    let lsn = postgres.value("SELECT pg_current_wal_flush_lsn()");
    let waited = Instant::now();
    for (table, columns, select) in COMPARED {
        let order = match table {
            "notes" => "id, part",
            _ => "id",
        };
        let sql = format!(
            "SELECT {columns} FROM {table} ORDER BY {order} AS OF AT LEAST lsn('{table}', '{lsn}')"
        );
        let found = rows_at(program, &sql);
        let letters = program.letters(table);
        assert!(letters.is_empty(), "{letters:?}");
        assert_eq!(found, truth(postgres, select), "{what}: {table} at {lsn}");
    }
    waited.elapsed()
}

/// Reads the shadow's three rows at one time, again and again.
pub struct Watcher {
    url: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watcher {
    pub fn start(url: String) -> Watcher {
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stopping, count): (_, Arc<AtomicUsize>) = (Arc::clone(&stop), Arc::clone(&reads));
        let url = Arc::new(Mutex::new(url));
        let address = Arc::clone(&url);
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let url = address.lock().expect("no panic inside").clone();
                // A server that is being killed does not answer.
                let Some(seen) = seen(&url) else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                assert!(
                    seen.iter().all(|n| *n == seen[0]),
                    "half a transaction: {seen:?}"
                );
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Watcher {
            url,
            stop,
            reads,
            thread: Some(thread),
        }
    }

    /// The server was started again, at another address.
    pub fn moved(&self, url: String) {
        *self.url.lock().expect("no panic inside") = url;
    }

    /// Ends it; how often it has read.
    pub fn end(self) -> usize {
        self.try_end().expect("no half transaction was seen")
    }

    /// The same; `None` when it has seen half a transaction.
    pub fn try_end(mut self) -> Option<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("ended once");
        let is_sound = thread.join().is_ok();
        is_sound.then(|| self.reads.load(Ordering::Relaxed))
    }
}

/// The shadow's number in each table at one time; `None` when not all could be read.
fn seen(url: &str) -> Option<[String; 3]> {
    let ask = |sql: String| -> Option<Json> {
        let reply = ureq::post(format!("{url}/v1/sql"))
            .header("content-type", "application/json")
            .send(json!({ "sql": sql }).to_string());
        serde_json::from_str(&reply.ok()?.body_mut().read_to_string().ok()?).ok()
    };
    let first = ask("SELECT n FROM shadow WHERE id = 1".to_owned())?;
    let at = first["as_of"].as_u64()?;
    let title = ask(format!("SELECT title FROM docs WHERE id = -1 AS OF {at}"))?;
    let doc = ask(format!(
        "SELECT doc FROM notes WHERE id = 'shadow' AS OF {at}"
    ))?;
    let text = |json: &Json| {
        let value = &json["rows"][0][0];
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    Some([text(&first), text(&title), text(&doc)])
}

fn sources() -> String {
    let source = |(table, ..): (&str, &str, &str)| {
        format!("CREATE SOURCE {table} FROM POSTGRES (CONNECTION pg, TABLE 'public.{table}');\n")
    };
    COMPARED.map(source).concat()
}

#[test]
fn collections_are_tables_whatever_is_killed_and_transactions_are_whole() {
    let _alone = alone();
    let seed = number("HEADWATER_SEED", rand::random::<u32>() as usize) as u64;
    let statements = number("HEADWATER_POSTGRES_STATEMENTS", 2_000);
    let pauses = number("HEADWATER_POSTGRES_PAUSES", 20);
    println!("HEADWATER_SEED={seed}, {statements} statements, {pauses} pauses");
    let run = Run::new("postgres");
    let mut postgres = Postgres::start(&run);
    postgres.execute(TABLES);
    let proxy = Proxy::to(postgres.port);
    let mut program = Program::start(&format!(
        "{}{}CREATE INDEX found ON docs USING KEYWORD (body) INCLUDE (title);",
        connection(&run, &postgres, proxy.port, ""),
        sources()
    ));
    compare(&program, &postgres, "the first copy");
    let mut work = Workload::new(seed);
    let (mut reads, mut slowest, mut streams) = (0, Duration::ZERO, 0);
    for pause in 0..pauses {
        let watcher = Watcher::start(program.address());
        for _ in 0..statements / pauses {
            postgres.execute(&work.statement());
        }
        let fault = match (pause * 20 / pauses, pause * 20 % pauses < 20) {
            (3, true) => {
                program.kill();
                for _ in 0..20 {
                    postgres.execute(&work.statement());
                }
                program.restart();
                watcher.moved(program.address());
                "kill -9 of the program, and changes meanwhile"
            }
            (6, true) => {
                postgres.restart();
                "PostgreSQL is restarted"
            }
            (9, true) => {
                proxy.cut();
                for _ in 0..20 {
                    postgres.execute(&work.statement());
                }
                proxy.mend();
                "the network is cut"
            }
            (12, true) => {
                postgres.kill();
                postgres.restart();
                "PostgreSQL is killed"
            }
            (15, true) => {
                program.kill();
                postgres.stop();
                program.restart();
                watcher.moved(program.address());
                postgres.restart();
                "the program starts without PostgreSQL"
            }
            (17, true) => {
                postgres.execute("ALTER TABLE docs ALTER price TYPE numeric(12,2)");
                postgres.execute("UPDATE docs SET title = title WHERE id = -1");
                "the type of a column is widened: the table is copied again"
            }
            _ => "none",
        };
        let waited = compare(&program, &postgres, &format!("pause {pause}"));
        slowest = slowest.max(waited);
        reads += watcher.end();
        // The server counts from when it was killed last.
        let sent = postgres.value("SELECT sum(stream_txns) FROM pg_stat_replication_slots");
        streams = streams.max(sent.parse::<u64>().expect("a number"));
        println!("pause {pause}: fault {fault}; there after {waited:.2?}");
        if waited > Duration::from_secs(5) {
            println!("{}", program.log());
        }
    }
    println!("{reads} reads of the shadow, slowest pause {slowest:.2?}");
    assert!(reads > 0, "the reader read");
    println!("{streams} transactions at least were sent before they ended");
    assert!(streams > 0, "large transactions are");

    // Whoever goes takes what the database kept for it along.
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(postgres.value(slots), "1");
    for sql in [
        "DROP INDEX found",
        "DROP SOURCE docs",
        "DROP SOURCE notes",
        "DROP SOURCE shadow",
    ] {
        program.rows(sql);
    }
    program.wait("the slot is dropped with the last source", |_| {
        postgres.value(slots) == "0"
    });
}
