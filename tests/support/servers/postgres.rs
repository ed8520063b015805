//! One PostgreSQL server with logical replication.
//!
//! **Idea.** `initdb` and `postgres` run as an unprivileged user when the test is root, in a data
//! folder that this user owns. Passwords are checked with SCRAM, so every test connection proves it.
//! SQL goes through one open `psql`; [`Postgres::session`] gives further ones for concurrency.
//!
//! **Invariants.** Port and data stay over `kill`, `stop` and `restart`. An open session is lost
//! with the server and opened anew by the next statement.
//!
//! **Limits.** `fsync` is off: what is killed here is the server, never the machine.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use super::process::{Launch, Process};
use super::psql::{Row, Session};
use super::system;
use super::tls::Certificate;
use super::{PASSWORD, Place, Run, USER, free_port, wait_for};

const START_LIMIT: Duration = Duration::from_secs(180);
const DATABASE: &str = "postgres";

/// A running server.
pub struct Postgres {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: String,
    pub database: String,
    bin: PathBuf,
    place: Place,
    settings: Vec<String>,
    process: Process,
    session: Mutex<Option<Session>>,
}

impl Postgres {
    /// Starts an empty server.
    ///
    /// # Panics
    /// When it cannot be had or does not come up.
    pub fn start(run: &Run) -> Postgres {
        Postgres::start_with(run, &[])
    }

    /// The same with more settings (`max_wal_senders=3`), which win over ours.
    ///
    /// # Panics
    /// When it cannot be had or does not come up.
    pub fn start_with(run: &Run, settings: &[&str]) -> Postgres {
        let (bin, place) = (system::postgres(), run.place("postgres"));
        initialize(&bin, &place).unwrap_or_else(|error| panic!("PostgreSQL: {error}"));
        let settings = settings.iter().map(|&one| one.to_owned()).collect();
        Postgres::begin(bin, place, settings)
    }

    /// Starts a physical standby of this server, which follows it until `SELECT pg_promote()`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn standby(&self, run: &Run) -> Postgres {
        let (bin, place) = (self.bin.clone(), run.place("postgres"));
        let from = format!("{} password={}", self.connection(), self.password);
        let mut command = Command::new(bin.join("pg_basebackup"));
        command
            .args(["-D", "cluster", "-R", "-X", "stream", "-c", "fast", "-N"])
            .args(["-d", &from])
            .current_dir(&place.data);
        let copied = own(&place.data).map_err(|error| error.to_string());
        let copied = copied.and_then(|()| as_user(&mut command));
        let copied = copied.and_then(|()| system::run("pg_basebackup", &mut command));
        copied.unwrap_or_else(|error| panic!("PostgreSQL: {error}"));
        Postgres::begin(bin, place, self.settings.clone())
    }

    fn begin(bin: PathBuf, place: Place, settings: Vec<String>) -> Postgres {
        let port = free_port();
        Postgres {
            host: "127.0.0.1".to_owned(),
            port,
            user: USER.to_owned(),
            password: PASSWORD.to_owned(),
            database: DATABASE.to_owned(),
            process: launch(&bin, &place, port, &settings),
            bin,
            place,
            settings,
            session: Mutex::new(None),
        }
    }

    /// `postgresql://user:password@host:port/database`
    pub fn url(&self) -> String {
        self.url_at(self.port)
    }

    /// The same at another port, that of a proxy.
    pub fn url_at(&self, port: u16) -> String {
        format!(
            "postgresql://{}:{}@{}:{port}/{}",
            self.user, self.password, self.host, self.database
        )
    }

    /// The same as [`Postgres::start`] with TLS; the authority to trust is in the returned file.
    ///
    /// # Panics
    /// When it cannot be had or does not come up.
    pub fn start_secure(run: &Run) -> (Postgres, PathBuf) {
        let tls = Certificate::make(run);
        let place = run.place("postgres-tls").data;
        // PostgreSQL wants its key for itself alone.
        let copy = |from: &Path, name: &str| {
            let to = place.join(name);
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::copy(from, &to)
                .and_then(|_| std::fs::set_permissions(&to, private))
                .and_then(|()| own(&to))
                .unwrap_or_else(|error| panic!("{}: {error}", to.display()));
            to.display().to_string()
        };
        let certificate = format!("ssl_cert_file={}", copy(&tls.certificate, "server.pem"));
        let key = format!("ssl_key_file={}", copy(&tls.key, "server.key"));
        let postgres = Postgres::start_with(run, &["ssl=on", &certificate, &key]);
        (postgres, tls.authority)
    }

    /// Runs statements.
    ///
    /// # Panics
    /// With what the server says.
    pub fn execute(&self, sql: &str) {
        self.query(sql);
    }

    /// Runs statements and gives their rows.
    ///
    /// # Panics
    /// With what the server says.
    pub fn query(&self, sql: &str) -> Vec<Row> {
        self.try_query(sql)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs statements and gives their rows.
    ///
    /// # Errors
    /// What the server says; or that it is not there.
    pub fn try_query(&self, sql: &str) -> Result<Vec<Row>, String> {
        let mut shared = self
            .session
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        let mut session = match shared.take() {
            Some(session) => session,
            None => self.session()?,
        };
        let rows = session.run(sql)?;
        // One that failed is not kept.
        *shared = Some(session);
        Ok(rows)
    }

    /// The first value of the first row.
    ///
    /// # Panics
    /// When there is none, or it is NULL.
    pub fn value(&self, sql: &str) -> String {
        let first = self.query(sql).into_iter().flatten().next().flatten();
        first.unwrap_or_else(|| panic!("no value: {sql}"))
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// When `psql` cannot be started.
    pub fn session(&self) -> Result<Session, String> {
        Session::open(&self.bin.join("psql"), &self.connection(), &self.password)
    }

    fn connection(&self) -> String {
        format!(
            "host={} port={} user={} dbname={} connect_timeout=10",
            self.host, self.port, self.user, self.database
        )
    }

    /// Up to where the log is safely written: the number of `pg_current_wal_flush_lsn()`.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn wal_flush_lsn(&self) -> u64 {
        let text = self.value("SELECT pg_current_wal_flush_lsn()");
        lsn(&text).unwrap_or_else(|| panic!("no LSN: {text}"))
    }

    /// Waits until somebody reads a replication slot.
    ///
    /// # Panics
    /// After a minute.
    pub fn wait_slot_active(&self, slot: &str) {
        let sql =
            format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}' AND active");
        wait_for(&format!("slot {slot} in use"), START_LIMIT, || {
            self.query(&sql).pop().map(drop)
        });
    }

    /// Ends it at once (SIGKILL); its helpers follow by themselves.
    pub fn kill(&mut self) {
        self.process.kill();
        self.close_session();
    }

    /// Ends it in an orderly way, ending connections.
    pub fn stop(&mut self) {
        self.process.stop("INT");
        self.close_session();
    }

    /// Starts it again (after an orderly end, if it runs): the same data, the same port.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.stop();
        let deadline = std::time::Instant::now() + START_LIMIT;
        let mut started = try_launch(&self.bin, &self.place, self.port, &self.settings);
        // Helpers of a killed server may hold its memory for a moment.
        while started.is_err() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
            started = try_launch(&self.bin, &self.place, self.port, &self.settings);
        }
        self.process = started.unwrap_or_else(|error| panic!("{error}"));
    }

    fn close_session(&mut self) {
        let shared = self.session.get_mut();
        *shared.unwrap_or_else(|poison| poison.into_inner()) = None;
    }

    /// The process, for pauses and figures.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// `16/B374D848` as a number.
pub fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let part = |part| u64::from_str_radix(part, 16).ok();
    Some(part(high)? << 32 | part(low)?)
}

/// The user to run as, when we are root.
fn user() -> Result<Option<(u32, u32)>, String> {
    if system::user_id("")? != 0 {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let (Ok(user), Ok(group)) = (system::user_id(name), system::group_id(name)) {
            return Ok(Some((user, group)));
        }
    }
    Err("it refuses root, and there is no user postgres or nobody".to_owned())
}

/// Runs a command as that user.
fn as_user(command: &mut Command) -> Result<(), String> {
    if let Some((user, group)) = user()? {
        command.uid(user).gid(group);
    }
    Ok(())
}

/// Gives a file to the user that the server runs as.
fn own(path: &Path) -> std::io::Result<()> {
    match user().map_err(std::io::Error::other)? {
        Some((user, group)) => std::os::unix::fs::chown(path, Some(user), Some(group)),
        None => Ok(()),
    }
}

fn initialize(bin: &Path, place: &Place) -> Result<(), String> {
    let password = place.data.join("password");
    std::fs::write(&password, PASSWORD).map_err(|error| error.to_string())?;
    let mut command = Command::new(bin.join("initdb"));
    command
        .args(["-D", "cluster", "-U", USER, "--auth=scram-sha-256"])
        .args(["--pwfile=password", "-E", "UTF8", "--locale=C", "--no-sync"])
        .current_dir(&place.data);
    own(&place.data)
        .and_then(|()| own(&password))
        .map_err(|error| error.to_string())?;
    as_user(&mut command)?;
    system::run("initdb", &mut command).map_err(|error| {
        let folder = place.data.display();
        format!("{error}\nwhat would help: TMPDIR that other users may pass through ({folder})")
    })
}

fn launch(bin: &Path, place: &Place, port: u16, settings: &[String]) -> Process {
    try_launch(bin, place, port, settings).unwrap_or_else(|error| panic!("{error}"))
}

fn try_launch(
    bin: &Path,
    place: &Place,
    port: u16,
    settings: &[String],
) -> Result<Process, String> {
    let mut arguments = vec!["-D".to_owned(), "cluster".to_owned()];
    let ours = [
        &format!("port={port}"),
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "wal_level=logical",
        "max_wal_senders=20",
        "max_replication_slots=20",
        "max_prepared_transactions=10",
        // Transactions of some 60 kB are large, and sent before they commit.
        "logical_decoding_work_mem=64kB",
        "fsync=off",
        "shared_buffers=64MB",
        "timezone=UTC",
        "log_min_messages=info",
        "log_line_prefix=%m [%p] %a: ",
    ];
    let all = ours.into_iter().chain(settings.iter().map(String::as_str));
    arguments.extend(all.flat_map(|one| ["-c".to_owned(), one.to_owned()]));
    let mut process = Process::start(Launch {
        name: "PostgreSQL",
        program: &bin.join("postgres"),
        arguments,
        folder: &place.data,
        log: place.log.clone(),
        user: user()?,
        signal: "QUIT",
    })?;
    let mut question = Command::new(bin.join("psql"));
    question
        .args(["-X", "-q", "-c", "SELECT 1", "-d"])
        .arg(format!(
            "host=127.0.0.1 port={port} user={USER} dbname={DATABASE} connect_timeout=5"
        ))
        .env("PGPASSWORD", PASSWORD)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let is_ready = || question.status().is_ok_and(|status| status.success());
    process.wait_ready(START_LIMIT, is_ready)?;
    Ok(process)
}
