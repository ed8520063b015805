//! One connection to PostgreSQL: statements first, then the stream of its log.
//!
//! The idea: everything, the copy of a table included, runs on connections of the replication kind
//! (`replication=database`), which take plain SQL as well; so one client and one way to log in are
//! enough, and what is asked before the stream begins is answered by the server that streams.
//!
//! Invariants: every text has the form of [`super::value`]; a standby is passed over; a failure says
//! whether waiting can help. Limits: `pgoutput` protocol version 1, in which the server puts a large
//! transaction together on its own disk before it sends it.

use std::path::PathBuf;
use std::time::Duration;

use engine::error::WorldError;
use pgwire_replication::{
    Lsn, PgWireError, QueryRow, ReplicationClient, ReplicationConfig, SslMode, TlsConfig,
};

use super::value::SESSION_OPTIONS;

/// How the connection is protected; libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsMode {
    /// Never encrypted.
    Disable,
    /// Encrypted where the server offers it, nothing is checked.
    #[default]
    Prefer,
    /// Encrypted, the server is not checked.
    Require,
    /// Encrypted, the server's certificate is signed by a known authority.
    VerifyCa,
    /// Also for this host name.
    VerifyFull,
}

/// Where a database is and how to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresOptions {
    /// Name of the connection, for messages.
    pub name: String,
    /// `(host, port)` in the order in which they are tried; the first primary is taken.
    pub hosts: Vec<(String, u16)>,
    /// The database.
    pub database: String,
    /// The role: it needs REPLICATION and SELECT on the tables.
    pub user: String,
    /// Its password; empty where the server asks for none.
    pub password: String,
    /// See [`TlsMode`].
    pub tls: TlsMode,
    /// Authorities to trust, a PEM file; `None`: the operating system's.
    pub authorities: Option<PathBuf>,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// Whether slot and publication are made and dropped with the connection's sources.
    pub is_own: bool,
    /// Whether tables are copied again when the slot or its log is lost; else the sources stop.
    pub copies_again: bool,
}

impl std::fmt::Debug for PostgresOptions {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("name", &self.name)
            .field("hosts", &self.hosts)
            .field("database", &self.database)
            .field("user", &self.user)
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

/// What went wrong between us and the database.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Failure {
    /// Waiting may help: the server is away, busy, or changes.
    #[error("{0}")]
    Passing(String),
    /// A person must act.
    #[error("{0}")]
    Lasting(String),
}

impl Failure {
    /// For one who runs the source.
    pub(super) fn into_world(self, options: &PostgresOptions) -> WorldError {
        let is_transient = matches!(self, Failure::Passing(_));
        let hosts: Vec<String> = options
            .hosts
            .iter()
            .map(|(host, port)| format!("{host}:{port}"))
            .collect();
        let at = hosts.join(",");
        WorldError::Service {
            service: format!("PostgreSQL {at}, database \"{}\"", options.database),
            detail: self.to_string(),
            is_transient,
        }
    }
}

impl From<PgWireError> for Failure {
    /// Whatever the server says may change while the source waits: a password, a right, a table.
    fn from(error: PgWireError) -> Self {
        Failure::Passing(error.to_string())
    }
}

/// A row of texts.
pub(super) type TextRow = Vec<Option<String>>;

/// A value of a row; `None` is NULL.
pub(super) fn text(row: &TextRow, at: usize) -> Option<&str> {
    row.get(at)?.as_deref()
}

/// Longest wait for a connection and its first answer.
const CONNECT: Duration = Duration::from_secs(10);
/// How often the server is told how far the log is durable here.
const STATUS: Duration = Duration::from_millis(500);
/// Events between the client's task and us; each is a message of at most a row, which may be large.
const EVENTS: usize = 64;
/// The client looks whether it must say something so rarely when nothing happens; the server, which
/// is told to wait 60 s for a word (see [`SESSION_OPTIONS`]), asks for one after 30 s.
const WAKE: Duration = Duration::from_secs(60);
/// A server that says nothing for so long is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(75);

/// See the module.
pub(super) struct Session {
    client: ReplicationClient,
}

impl Session {
    /// Logs in to the first of the hosts that is a primary. `slot` is what [`Session::start`] will
    /// stream.
    pub(super) async fn open(options: &PostgresOptions, slot: &str) -> Result<Session, Failure> {
        let mut told = Vec::new();
        for (host, port) in &options.hosts {
            match Session::open_at(options, slot, host, *port).await {
                Ok(session) => return Ok(session),
                Err(error) => told.push(format!("{host}:{port}: {error}")),
            }
        }
        Err(Failure::Passing(told.join("; ")))
    }

    async fn open_at(
        options: &PostgresOptions,
        slot: &str,
        host: &str,
        port: u16,
    ) -> Result<Session, Failure> {
        let config = ReplicationConfig::new(
            host,
            &*options.user,
            &*options.password,
            &*options.database,
            slot,
            // The server reads a list of names, which it would fold.
            quoted(&options.publication),
        );
        let mut config = config
            .with_port(port)
            .with_tls(tls(options))
            .with_options(SESSION_OPTIONS)
            .with_application_name(format!("headwater {}", options.name))
            .with_start_lsn(Lsn::ZERO)
            .with_status_interval(STATUS)
            .with_buffer_size(EVENTS);
        config.idle_wakeup_interval = WAKE;
        let client = ReplicationClient::connect_gated(config).await?;
        let mut session = Session { client };
        let first = session.one("SELECT pg_is_in_recovery()");
        let standby = tokio::time::timeout(CONNECT, first).await;
        let standby =
            standby.map_err(|_| Failure::Passing(format!("no answer within {CONNECT:?}")))??;
        match standby.as_deref() {
            Some("f") => Ok(session),
            _ => Err(Failure::Passing("a standby, not the primary".to_owned())),
        }
    }

    /// Runs a statement that answers within [`SILENCE`].
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Vec<TextRow>, Failure> {
        heard(self.rows_at_last(sql)).await?
    }

    /// Runs a statement that may wait for others' transactions.
    pub(super) async fn rows_at_last(&mut self, sql: &str) -> Result<Vec<TextRow>, Failure> {
        let rows = self.client.simple_query(sql).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let row = |row: &QueryRow| row.iter().map(|value| value.as_deref().map(text)).collect();
        Ok(rows.iter().map(row).collect())
    }

    /// The first value of the first row.
    pub(super) async fn one(&mut self, sql: &str) -> Result<Option<String>, Failure> {
        let rows = self.rows(sql).await?;
        let row = rows.into_iter().next();
        Ok(row.and_then(|row| row.into_iter().next().flatten()))
    }

    /// The cluster's own identity (another one has another log), and where its log ends.
    pub(super) async fn system(&mut self) -> Result<(String, u64), Failure> {
        let system = heard(self.client.identify_system()).await??;
        Ok((system.system_id, system.xlogpos.as_u64()))
    }

    /// Whether the connection still answers.
    pub(super) async fn is_there(&mut self) -> bool {
        self.one("SELECT 1").await.is_ok()
    }

    /// Streams the slot from where it was last confirmed.
    pub(super) async fn start(mut self) -> Result<ReplicationClient, Failure> {
        self.client.start().await?;
        heard(self.client.wait_started()).await??;
        Ok(self.client)
    }
}

/// An answer that comes within [`SILENCE`].
async fn heard<T>(answer: impl Future<Output = T>) -> Result<T, Failure> {
    let heard = tokio::time::timeout(SILENCE, answer).await;
    heard.map_err(|_| silent())
}

/// A server that is gone without a word.
pub(super) fn silent() -> Failure {
    Failure::Passing(format!("the server has been silent for {SILENCE:?}"))
}

fn tls(options: &PostgresOptions) -> TlsConfig {
    // The client would trust a list of its own; ours is the operating system's.
    let authorities = || {
        let file = options.authorities.clone();
        file.or_else(|| openssl_probe::probe().cert_file)
    };
    match options.tls {
        TlsMode::Disable => TlsConfig::disabled(),
        TlsMode::Prefer => TlsConfig {
            mode: SslMode::Prefer,
            ..TlsConfig::default()
        },
        TlsMode::Require => TlsConfig::require(),
        TlsMode::VerifyCa => TlsConfig::verify_ca(authorities()),
        TlsMode::VerifyFull => TlsConfig::verify_full(authorities()),
    }
}

/// A name in a statement.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text in a statement.
pub(super) fn literal(text: &str) -> String {
    // A backslash means itself: standard_conforming_strings is asked for.
    format!("'{}'", text.replace('\'', "''"))
}
