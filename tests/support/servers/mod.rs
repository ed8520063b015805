//! Real servers for the system tests: Apache Kafka, Kafka Connect with Debezium, a schema registry,
//! PostgreSQL.
//!
//! **Idea.** A test makes a [`Run`] (a folder), starts what it needs in it and speaks to it on free
//! loopback ports. [`install`] fetches what is missing, once per machine; nothing is ever skipped:
//! a server that cannot be had or does not come up is a panic that says why and what would help.
//! What costs a Java start elsewhere (topics, records) goes over Kafka's own protocol in
//! [`topics`]; SQL goes through one long-lived `psql`.
//!
//! ```text
//! let run = Run::new("debezium");
//! let stack = Stack::start(&run);
//! stack.postgres.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text)");
//! stack.connect.create_connector("docs", &connect::debezium(&stack.postgres, "docs", "public.docs"));
//! stack.connect.wait_running("docs");
//! let records = stack.kafka.wait_records("docs.public.docs", 1);
//! ```
//!
//! **Invariants.** Make the `Run` before the servers: it is dropped last. Data folders go in any
//! case; the logs stay when the test fails, and their path is printed. No process outlives the
//! test ([`process`]).
//!
//! **Limits.** Unix only. A `Run` in a static is never
//! dropped: its folder is swept by a later run, a day after.

// Every test binary uses its own part of this.
#![allow(dead_code)]

pub mod broker;
pub mod committed;
pub mod connect;
pub mod install;
pub mod java;
pub mod kafka;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod psql;
pub mod records;
pub mod registry;
pub mod system;
pub mod tls;
pub mod topics;
pub mod wire;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use connect::Connect;
use kafka::Kafka;
use postgres::Postgres;
use registry::Registry;
use serde_json::Value as Json;

/// Of every server that asks for one.
pub const USER: &str = "tester";
pub const PASSWORD: &str = "secret";

const PREFIX: &str = "headwater-servers-";
/// Abandoned folders (a test that was killed) are removed after this time.
const SWEEP_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Free ports are looked for here: below the ranges that systems hand out to clients, so that a
/// server that is down for a moment finds its port free when it comes back.
const PORTS: std::ops::Range<u16> = 11_000..30_000;

/// The folder of one test run: `logs/` and `data/`.
pub struct Run {
    folder: Option<tempfile::TempDir>,
}

impl Run {
    /// A new folder below the system's folder for temporary files.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str) -> Run {
        sweep();
        let folder = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{name}-"))
            .tempdir()
            .expect("a folder for temporary files");
        // PostgreSQL runs as another user and has to pass through.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("our own folder");
        for part in ["logs", "data"] {
            std::fs::create_dir(folder.path().join(part)).expect("writable");
        }
        Run {
            folder: Some(folder),
        }
    }

    /// Room for one server: the second of a kind gets a number.
    ///
    /// # Panics
    /// When its folder cannot be made.
    pub fn place(&self, server: &str) -> Place {
        let data = self.path().join("data");
        let names = (1..).map(|n| match n {
            1 => server.to_owned(),
            n => format!("{server}-{n}"),
        });
        for name in names {
            match std::fs::create_dir(data.join(&name)) {
                Ok(()) => {
                    return Place {
                        log: self.path().join("logs").join(format!("{name}.log")),
                        data: data.join(&name),
                    };
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("{}: {error}", data.join(&name).display()),
            }
        }
        unreachable!("names do not end")
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        let folder = self.folder.as_ref();
        folder.expect("there until the drop").path()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let folder = self.folder.take().expect("dropped once").keep();
            let _ = std::fs::remove_dir_all(folder.join("data"));
            eprintln!(
                "the servers' logs are kept: {}",
                folder.join("logs").display()
            );
        }
    }
}

/// Where one server keeps its things.
#[derive(Clone)]
pub struct Place {
    pub data: PathBuf,
    pub log: PathBuf,
}

/// Removes what killed tests have left behind.
fn sweep() {
    let entries = std::fs::read_dir(std::env::temp_dir());
    for entry in entries.into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let changed = entry.metadata().and_then(|found| found.modified()).ok();
        let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        if is_ours && age.is_some_and(|age| age > SWEEP_AFTER) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The servers of one way from a table to a topic. A registry costs a quarter of a gigabyte and is
/// started only where it is used ([`Stack::with_registry`]).
pub struct Stack {
    pub connect: Connect,
    pub kafka: Kafka,
    pub postgres: Postgres,
}

impl Stack {
    /// Starts all, side by side.
    ///
    /// # Panics
    /// When one cannot be had or does not come up.
    pub fn start(run: &Run) -> Stack {
        Stack::start_with(run, &[])
    }

    /// The same with a registry.
    ///
    /// # Panics
    /// When one cannot be had or does not come up.
    pub fn with_registry(run: &Run) -> (Stack, Registry) {
        install::all();
        std::thread::scope(|scope| {
            let registry = scope.spawn(|| Registry::start(run));
            let stack = Stack::start(run);
            (stack, registry.join().unwrap_or_else(go_on))
        })
    }

    /// The same as [`Stack::start`] with more settings for the broker.
    ///
    /// # Panics
    /// When one cannot be had or does not come up.
    pub fn start_with(run: &Run, broker: &[(&str, &str)]) -> Stack {
        install::all();
        std::thread::scope(|scope| {
            let postgres = scope.spawn(|| Postgres::start(run));
            let kafka = Kafka::start_with(run, broker);
            let connect = Connect::start(run, &kafka);
            Stack {
                connect,
                kafka,
                postgres: postgres.join().unwrap_or_else(go_on),
            }
        })
    }
}

/// The panic of a helper thread becomes the test's.
fn go_on<T>(panic: Box<dyn std::any::Any + Send>) -> T {
    std::panic::resume_unwind(panic)
}

/// A loopback port that nobody listens on, and that was not handed out before.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    let (_listener, port) = listen();
    port
}

/// A listener at such a port.
fn listen() -> (TcpListener, u16) {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut at = now.map_or(0, |now| now.subsec_nanos()) ^ std::process::id().rotate_left(8);
    for _ in 0..1000 {
        // A step of a linear congruential generator (Numerical Recipes).
        at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let offset = (at >> 8) % u32::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(offset).expect("below the count");
        let is_new = GIVEN.lock().expect("no panic inside").insert(port);
        if let (true, Ok(listener)) = (is_new, TcpListener::bind(("127.0.0.1", port))) {
            return (listener, port);
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// Waits until `probe` gives a value.
///
/// # Panics
/// After `limit`, with `what`.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// One HTTP request: the status and the body (JSON, or its text as a JSON string).
fn http(method: &str, url: &str, body: Option<&Json>) -> Result<(u16, Json), String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(120)))
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .build()
        .into();
    let request = ureq::http::Request::builder().method(method).uri(url);
    let failed = |error: ureq::Error| format!("{method} {url}: {error}");
    let reply = match body {
        None => agent.run(request.body(()).map_err(|e| e.to_string())?),
        Some(body) => {
            let request = request.header("content-type", "application/json");
            agent.run(request.body(body.to_string()).map_err(|e| e.to_string())?)
        }
    };
    let mut reply = reply.map_err(failed)?;
    let text = reply.body_mut().read_to_string().map_err(failed)?;
    let json = serde_json::from_str(&text).unwrap_or(Json::String(text));
    Ok((reply.status().as_u16(), json))
}
