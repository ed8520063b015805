//! The stream of a slot's log: messages to the hub, the place that it has durably to the server.
//!
//! ```text
//! server ─▶ Wire ─▶ task ─(a few messages)─▶ Feed::next, the hub's thread
//!    ▲                 │
//!    └─ standby status ┴◀──────────────────── Feed::confirm
//! ```
//!
//! The idea: the task goes on telling the server that we are there while the hub waits for room, which
//! may take longer than the server's patience; what is not taken waits in the server.
//!
//! Invariants: what is confirmed never exceeds [`Feed::confirm`]; messages come in the server's order;
//! dropping the feed ends the task and the connection.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgwire_replication::protocol::{
    ReplicationCopyData, encode_standby_status_update, parse_copy_data, unix_to_pg_timestamp,
};
use pgwire_replication::{Lsn, PgWireError};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::wire::Wire;

/// How often the server is told how far the log is durable here, while there is something to tell.
const STATUS: Duration = Duration::from_millis(500);
/// Messages between the task and the hub; each is at most a row, which may be large.
const AHEAD: usize = 64;
/// The server is told that we are there so rarely when nothing happens; it is told to wait 60 s for a
/// word (see [`super::value::SESSION_OPTIONS`]) and asks for one after 30 s.
const WAKE: Duration = Duration::from_secs(60);

/// The hub's end. See the module.
pub(super) struct Feed {
    messages: mpsc::Receiver<Result<ReplicationCopyData, PgWireError>>,
    confirmed: watch::Sender<u64>,
}

impl Feed {
    /// Reads a connection on which the log was begun. Within a runtime.
    pub(super) fn new(wire: Wire) -> Feed {
        let (out, messages) = mpsc::channel(AHEAD);
        let (confirmed, receiver) = watch::channel(0);
        tokio::spawn(async move {
            let told_at = Instant::now();
            let mut task = Task {
                wire,
                confirmed: receiver,
                told: 0,
                told_at,
            };
            match task.run(&out).await {
                // Nobody listens: the server frees the slot at once.
                Ok(()) => drop(task.wire.leave(true).await),
                Err(error) => drop(out.send(Err(error)).await),
            }
        });
        Feed {
            messages,
            confirmed,
        }
    }

    /// The next message; `None`: the stream has ended and told why before. May be given up.
    pub(super) async fn next(&mut self) -> Option<Result<ReplicationCopyData, PgWireError>> {
        self.messages.recv().await
    }

    /// Everything before a place of the log is durable here.
    pub(super) fn confirm(&self, at: u64) {
        self.confirmed.send_replace(at);
    }
}

struct Task {
    wire: Wire,
    confirmed: watch::Receiver<u64>,
    /// What the server was told last, and when.
    told: u64,
    told_at: Instant,
}

type Out = mpsc::Sender<Result<ReplicationCopyData, PgWireError>>;

impl Task {
    /// Reads until nobody listens.
    async fn run(&mut self, out: &Out) -> Result<(), PgWireError> {
        let mut has_read = false;
        loop {
            let is_news = has_read || *self.confirmed.borrow_and_update() > self.told;
            let due = self.told_at + if is_news { STATUS } else { WAKE };
            if Instant::now() >= due {
                self.tell().await?;
                has_read = false;
                continue;
            }
            let message = tokio::select! {
                biased;
                message = self.wire.read() => message?,
                () = out.closed() => return Ok(()),
                () = sleep_until(due) => continue,
                // A feed that is being dropped is noticed above.
                _ = self.confirmed.changed() => continue,
            };
            has_read = true;
            if message.is_copy_data() {
                let data = parse_copy_data(message.payload)?;
                if data.requires_reply() {
                    self.tell().await?;
                }
                if !self.give(data, out).await? {
                    return Ok(());
                }
            }
        }
    }

    /// Hands a message on when there is room; whether anybody takes it.
    async fn give(&mut self, data: ReplicationCopyData, out: &Out) -> Result<bool, PgWireError> {
        loop {
            tokio::select! {
                biased;
                room = out.reserve() => return Ok(room.map(|room| room.send(Ok(data))).is_ok()),
                () = sleep_until(self.told_at + STATUS) => {}
            }
            self.tell().await?;
        }
    }

    async fn tell(&mut self) -> Result<(), PgWireError> {
        let confirmed = *self.confirmed.borrow();
        let clock = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = clock.map_or(0, |time| {
            i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
        });
        let status = encode_standby_status_update(
            Lsn::from_u64(confirmed),
            unix_to_pg_timestamp(micros),
            false,
        );
        self.wire.say(&status).await?;
        (self.told, self.told_at) = (confirmed, Instant::now());
        Ok(())
    }
}
