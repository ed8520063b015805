//! One connection to PostgreSQL: statements first, then the stream of its log.
//!
//! The idea: everything, the copy of a table included, runs on connections of the replication kind
//! (`replication=database`), which take plain SQL as well; so one client and one way to log in are
//! enough, and what is asked before the stream begins is answered by the server that streams.
//!
//! Invariants: every text has the form of [`super::value`]; a standby is passed over; a failure says
//! whether waiting can help. Limits: the versions of `pgoutput` that send prepared transactions
//! before they commit (3) or let several workers apply one (4, `parallel`) have no use here.

use std::path::PathBuf;
use std::time::Duration;

use engine::error::WorldError;
use pgwire_replication::{PgWireError, SslMode, TlsConfig};

use super::feed::Feed;
use super::value::SESSION_OPTIONS;
use super::wire::{Login, Wire};

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
    /// Where transactions lie that do not fit into memory before they commit.
    pub folder: PathBuf,
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
/// A server that says nothing for so long is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(75);

/// See the module.
pub(super) struct Session {
    /// `None` after it left.
    wire: Option<Wire>,
}

impl Session {
    /// Logs in to the first of the hosts that is a primary.
    pub(super) async fn open(options: &PostgresOptions) -> Result<Session, Failure> {
        let mut told = Vec::new();
        for (host, port) in &options.hosts {
            let opened = tokio::time::timeout(CONNECT, Session::open_at(options, host, *port));
            match opened.await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => told.push(format!("{host}:{port}: {error}")),
                Err(_) => told.push(format!("{host}:{port}: no answer within {CONNECT:?}")),
            }
        }
        Err(Failure::Passing(told.join("; ")))
    }

    async fn open_at(options: &PostgresOptions, host: &str, port: u16) -> Result<Session, Failure> {
        let login = Login {
            user: &options.user,
            password: &options.password,
            database: &options.database,
            application: &format!("headwater {}", options.name),
            options: SESSION_OPTIONS,
        };
        let wire = Wire::open(host, port, &tls(options), &login).await?;
        let mut session = Session { wire: Some(wire) };
        let standby = session.one("SELECT pg_is_in_recovery()").await?;
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
        Ok(self.wire()?.query(sql).await?)
    }

    /// The first value of the first row.
    pub(super) async fn one(&mut self, sql: &str) -> Result<Option<String>, Failure> {
        let rows = self.rows(sql).await?;
        let row = rows.into_iter().next();
        Ok(row.and_then(|row| row.into_iter().next().flatten()))
    }

    /// The server's version as a number: 150004 for 15.4.
    pub(super) async fn version(&mut self) -> Result<u32, Failure> {
        let version = self.one("SHOW server_version_num").await?;
        Ok(version.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// The cluster's own identity (another one has another log), and where its log ends.
    pub(super) async fn system(&mut self) -> Result<(String, u64), Failure> {
        let rows = self.rows("IDENTIFY_SYSTEM").await?;
        let row = rows.first();
        let system = row.and_then(|row| text(row, 0)).map(str::to_owned);
        let end = row.and_then(|row| text(row, 2)).and_then(lsn);
        let found = system.zip(end);
        found.ok_or_else(|| Failure::Passing("the server does not say who it is".to_owned()))
    }

    /// Whether the connection still answers.
    pub(super) async fn is_there(&mut self) -> bool {
        self.one("SELECT 1").await.is_ok()
    }

    /// Streams the slot from where it was last confirmed; transactions before they commit, too, where
    /// the server can and `may_stream`.
    pub(super) async fn start(
        mut self,
        options: &PostgresOptions,
        may_stream: bool,
    ) -> Result<Feed, Failure> {
        let protocol = Protocol::of(self.version().await?, may_stream);
        let sql = start_statement(options, protocol);
        let mut wire = self.wire.take().ok_or_else(gone)?;
        heard(wire.start(&sql)).await??;
        tracing::info!(
            connection = options.name,
            version = protocol.version,
            is_streaming = protocol.is_streaming,
            "reading the log by pgoutput"
        );
        Ok(Feed::new(wire))
    }

    fn wire(&mut self) -> Result<&mut Wire, Failure> {
        self.wire.as_mut().ok_or_else(gone)
    }
}

impl Drop for Session {
    /// Says so to the server, which would log a connection that is lost.
    fn drop(&mut self) {
        if let Some(wire) = self.wire.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(wire.leave(false));
        }
    }
}

fn gone() -> Failure {
    Failure::Passing("the connection has ended".to_owned())
}

/// How `pgoutput` is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Protocol {
    version: u32,
    /// Whether large transactions are sent before they commit.
    is_streaming: bool,
}

impl Protocol {
    /// The newest version that a server knows and that has something for us.
    fn of(server: u32, may_stream: bool) -> Protocol {
        let version = match server {
            _ if !may_stream => 1,
            160_000.. => 4,
            140_000.. => 2,
            _ => 1,
        };
        Protocol {
            version,
            is_streaming: version >= 2,
        }
    }
}

fn start_statement(options: &PostgresOptions, protocol: Protocol) -> String {
    // The server reads a list of names, which it would fold.
    let publication = literal(&quoted(&options.publication));
    let streaming = match protocol.is_streaming {
        true => ", streaming 'on'",
        false => "",
    };
    format!(
        "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '{}', publication_names {publication}\
         {streaming})",
        quoted(&options.slot),
        protocol.version
    )
}

/// Reads `16/B374D848`.
pub(super) fn lsn(text: &str) -> Option<u64> {
    let lsn = pgwire_replication::Lsn::parse(text);
    lsn.ok().map(pgwire_replication::Lsn::as_u64)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_servers_and_large_transactions_stream_where_they_can() {
        let cases = [
            (130_011, true, 1, false),
            (140_000, true, 2, true),
            (150_004, true, 2, true),
            (160_000, true, 4, true),
            (180_001, true, 4, true),
            (180_001, false, 1, false),
            (0, true, 1, false),
        ];
        for (server, may_stream, version, is_streaming) in cases {
            let expected = Protocol {
                version,
                is_streaming,
            };
            assert_eq!(Protocol::of(server, may_stream), expected, "{server}");
        }
    }

    #[test]
    fn the_log_is_asked_for_in_the_servers_words() {
        let options = PostgresOptions {
            name: "pg".to_owned(),
            hosts: Vec::new(),
            database: "app".to_owned(),
            user: "app".to_owned(),
            password: String::new(),
            tls: TlsMode::Prefer,
            authorities: None,
            slot: "headwater_pg".to_owned(),
            publication: "it's \"one\"".to_owned(),
            is_own: true,
            copies_again: false,
            folder: PathBuf::new(),
        };
        assert_eq!(
            start_statement(&options, Protocol::of(150_000, true)),
            "START_REPLICATION SLOT \"headwater_pg\" LOGICAL 0/0 (proto_version '2', \
             publication_names '\"it''s \"\"one\"\"\"', streaming 'on')"
        );
        let asked = start_statement(&options, Protocol::of(130_000, true));
        assert!(
            asked.starts_with(
                "START_REPLICATION SLOT \"headwater_pg\" LOGICAL 0/0 (proto_version '1'"
            )
        );
        assert!(!asked.contains("streaming"), "{asked}");
    }
}
