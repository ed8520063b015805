//! One connection of the replication kind, byte by byte: logging in, statements, the start of the log.
//!
//! The idea: framing, TLS and SCRAM are the client crate's ([`pgwire_replication`]); what is said over
//! them is said here, because its own client asks for version 1 of `pgoutput` only, and a large
//! transaction would then be sent no earlier than at its commit. Source: PostgreSQL's documentation,
//! "Frontend/Backend Protocol", "Message Flow" and "Streaming Replication Protocol".
//!
//! Invariants: an answer belongs to the statement that was sent last: a connection whose answer was
//! not waited for takes no further one. Limits: a password in clear text or by SCRAM-SHA-256 (not MD5).

use pgwire_replication::auth::ScramClient;
use pgwire_replication::protocol::framing::{
    MessageReader, write_copy_data, write_copy_done, write_password_message, write_query,
    write_startup_message,
};
use pgwire_replication::protocol::{BackendMessage, parse_auth_request, parse_error_response};
use pgwire_replication::tls::rustls::{MaybeTlsStream, maybe_upgrade_to_tls};
use pgwire_replication::{PgWireError, TlsConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::session::TextRow;

/// Version 3.0 of the frontend's protocol.
const PROTOCOL: i32 = 196_608;
/// Bytes read ahead: several messages for one call of the operating system.
const AHEAD: usize = 128 << 10;
/// The one way of SASL that is spoken here.
const SCRAM: &str = "SCRAM-SHA-256";

/// What bytes go over: plain, TLS, or a socket of this machine.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// See the module.
pub(super) struct Wire {
    socket: BufReader<Box<dyn Socket>>,
    reader: MessageReader,
    /// An answer is on its way: nothing else may be asked.
    is_busy: bool,
}

/// Who logs in.
pub(super) struct Login<'a> {
    pub(super) user: &'a str,
    pub(super) password: &'a str,
    pub(super) database: &'a str,
    /// Shown in `pg_stat_replication`.
    pub(super) application: &'a str,
    /// Settings of the session, as `-c name=value`.
    pub(super) options: &'a str,
}

impl Wire {
    /// Connects and logs in. A host that begins with a slash is the folder of a socket.
    pub(super) async fn open(
        host: &str,
        port: u16,
        tls: &TlsConfig,
        login: &Login<'_>,
    ) -> Result<Wire, PgWireError> {
        let socket = connect(host, port, tls).await?;
        let mut wire = Wire {
            socket: BufReader::with_capacity(AHEAD, socket),
            reader: MessageReader::new(),
            is_busy: true,
        };
        let parameters = [
            ("user", login.user),
            ("database", login.database),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", login.application),
            ("options", login.options),
        ];
        write_startup_message(&mut wire.socket, PROTOCOL, &parameters).await?;
        wire.log_in(login).await?;
        wire.is_busy = false;
        Ok(wire)
    }

    async fn log_in(&mut self, login: &Login<'_>) -> Result<(), PgWireError> {
        loop {
            let message = self.read().await?;
            match message.tag {
                b'R' => {
                    let (code, data) = parse_auth_request(&message.payload)?;
                    self.prove(code, data, login).await?;
                }
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    }

    /// Answers what the server wants to see.
    async fn prove(
        &mut self,
        code: i32,
        data: &[u8],
        login: &Login<'_>,
    ) -> Result<(), PgWireError> {
        match code {
            0 => Ok(()),
            3 => {
                let password = [login.password.as_bytes(), &[0]].concat();
                write_password_message(&mut self.socket, &password).await
            }
            10 => {
                let mut offered = data.split(|byte| *byte == 0);
                if !offered.any(|name| name == SCRAM.as_bytes()) {
                    let detail = format!("the server does not offer {SCRAM}");
                    return Err(PgWireError::Auth(detail));
                }
                self.prove_by_scram(login).await
            }
            5 => Err(PgWireError::Auth(format!(
                "the server asks for an MD5 password; set password_encryption = 'scram-sha-256' there \
                 and give the role {} its password again",
                login.user
            ))),
            other => Err(PgWireError::Auth(format!(
                "the server asks for a way to log in that is not known here ({other})"
            ))),
        }
    }

    async fn prove_by_scram(&mut self, login: &Login<'_>) -> Result<(), PgWireError> {
        let client = ScramClient::new(login.user);
        let first = client.client_first.as_bytes();
        let length = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
        let hello = [SCRAM.as_bytes(), &[0], &length, first].concat();
        write_password_message(&mut self.socket, &hello).await?;
        let challenge = self.challenge(11).await?;
        let (answer, exchanged, salted) = client.client_final(login.password, &challenge)?;
        write_password_message(&mut self.socket, answer.as_bytes()).await?;
        let proof = self.challenge(12).await?;
        ScramClient::verify_server_final(&proof, &salted, &exchanged)
    }

    /// The server's part of a step of SCRAM.
    async fn challenge(&mut self, step: i32) -> Result<String, PgWireError> {
        loop {
            let message = self.read().await?;
            if message.tag != b'R' {
                continue;
            }
            let (code, data) = parse_auth_request(&message.payload)?;
            return match code == step {
                true => Ok(String::from_utf8_lossy(data).into_owned()),
                false => Err(PgWireError::Auth(format!(
                    "step {code} of a login, expected {step}"
                ))),
            };
        }
    }

    /// Runs a statement and gives its rows. An error of the server's leaves the connection as it is.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Vec<TextRow>, PgWireError> {
        self.ask(sql).await?;
        let (mut rows, mut refused) = (Vec::new(), None);
        loop {
            let message = self.next().await?;
            match message.tag {
                b'D' => rows.push(row(&message.payload)?),
                b'E' => refused = Some(server_error(&message)),
                b'Z' => {
                    self.is_busy = false;
                    return refused.map_or(Ok(rows), Err);
                }
                _ => {}
            }
        }
    }

    /// Begins the log by a `START_REPLICATION` statement; from here on there are only messages.
    pub(super) async fn start(&mut self, sql: &str) -> Result<(), PgWireError> {
        self.ask(sql).await?;
        while self.read().await?.tag != b'W' {}
        Ok(())
    }

    async fn ask(&mut self, sql: &str) -> Result<(), PgWireError> {
        if std::mem::replace(&mut self.is_busy, true) {
            let detail = "the answer to an earlier statement was not waited for";
            return Err(PgWireError::Protocol(detail.to_owned()));
        }
        write_query(&mut self.socket, sql).await
    }

    /// The next message; what the server refuses is an error. May be given up and called again.
    pub(super) async fn read(&mut self) -> Result<BackendMessage, PgWireError> {
        let message = self.next().await?;
        match message.is_error() {
            true => Err(server_error(&message)),
            false => Ok(message),
        }
    }

    async fn next(&mut self) -> Result<BackendMessage, PgWireError> {
        self.reader.read(&mut self.socket).await
    }

    /// Says something within the log's stream.
    pub(super) async fn say(&mut self, payload: &[u8]) -> Result<(), PgWireError> {
        write_copy_data(&mut self.socket, payload).await
    }

    /// Leaves in an orderly way; `is_streaming`: out of the log's stream.
    pub(super) async fn leave(mut self, is_streaming: bool) -> Result<(), PgWireError> {
        if is_streaming {
            write_copy_done(&mut self.socket).await?;
        }
        self.socket.write_all(&[b'X', 0, 0, 0, 4]).await?;
        Ok(self.socket.shutdown().await?)
    }
}

async fn connect(host: &str, port: u16, tls: &TlsConfig) -> Result<Box<dyn Socket>, PgWireError> {
    #[cfg(unix)]
    if host.starts_with('/') {
        if tls.mode.requires_tls() {
            let detail = format!("{host} is a socket of this machine: it has no TLS");
            return Err(PgWireError::Tls(detail));
        }
        let path = format!("{host}/.s.PGSQL.{port}");
        return Ok(Box::new(tokio::net::UnixStream::connect(path).await?));
    }
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    Ok(match maybe_upgrade_to_tls(socket, tls, host).await? {
        MaybeTlsStream::Plain(socket) => Box::new(socket),
        MaybeTlsStream::Tls(socket) => socket,
    })
}

fn server_error(message: &BackendMessage) -> PgWireError {
    PgWireError::Server(parse_error_response(&message.payload))
}

/// The values of a DataRow message.
fn row(payload: &[u8]) -> Result<TextRow, PgWireError> {
    let cut = || PgWireError::Protocol("a row that is cut off".to_owned());
    let (count, mut rest) = payload.split_first_chunk::<2>().ok_or_else(cut)?;
    let mut value = || {
        let (length, left) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        // Minus one is NULL.
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            rest = left;
            return Ok(None);
        };
        let (text, left) = left.split_at_checked(length).ok_or_else(cut)?;
        rest = left;
        Ok(Some(String::from_utf8_lossy(text).into_owned()))
    };
    (0..u16::from_be_bytes(*count)).map(|_| value()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_the_documentation_has_them() {
        let bytes = [0, 3, 0, 0, 0, 1, b'a', 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        let expected = vec![Some("a".to_owned()), None, Some(String::new())];
        assert_eq!(row(&bytes).unwrap(), expected);
        for end in 0..bytes.len() {
            assert!(row(&bytes[..end]).is_err(), "cut at {end}");
        }
    }
}
