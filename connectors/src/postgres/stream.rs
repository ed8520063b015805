//! The log of one slot, as transactions of the sources that read it.
//!
//! ```text
//! Begin ─▶ changes ─▶ Table of each source ─▶ Commit at L ─▶ stage_together ─▶ every source stands at L
//!            ▲                                                each second: sync, confirm L
//! StreamCommit, the replay of what `super::streamed` kept
//! ```
//!
//! Invariants: transactions are taken in the order of their commits, also those that were sent before
//! ([`super::transaction`]); a source skips what its position contains; the slot is
//! confirmed at L only after every source has logged a position of at least L and the log is synced.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use engine::telemetry;
use pgwire_replication::protocol::ReplicationCopyData;

use super::feed::Feed;
use super::hub::{AGAIN, CONNECTION, LOOK, Reader, TABLE};
use super::member::State;
use super::session::{Failure, SILENCE, Session, silent};
use super::setup;
use super::streamed::Streamed;
use super::transaction::{Transaction, decoded};

/// Time between two confirmations.
const CONFIRM: Duration = Duration::from_secs(1);
/// Time between two looks whether the tables are still those that are published.
const TABLES: Duration = Duration::from_secs(30);

/// The state of one stream.
pub(super) struct Stream {
    feed: Feed,
    /// Everything before was taken.
    pub(super) at: u64,
    /// What the slot is confirmed to.
    confirmed: u64,
    confirmed_at: Instant,
    /// The end of the server's log, as far as it told.
    end: u64,
    /// The sources of a table, by the table's object id.
    pub(super) readers: HashMap<u32, Vec<u64>>,
    pub(super) transaction: Option<Transaction>,
    /// Transactions that are sent before they commit.
    pub(super) streamed: Streamed,
    heard: Instant,
    /// The look at the tables that is on its way, and when the next one is due.
    look: Option<tokio::task::JoinHandle<Result<bool, Failure>>>,
    look_at: Instant,
}

impl Reader {
    /// Connects, prepares what is missing, and reads until something changes.
    pub(super) async fn session(&mut self) -> Result<(), Failure> {
        let options = self.hub.options();
        let mut session = Session::open(&options).await?;
        let (system, end) = session.system().await?;
        for member in self.members.values() {
            member.context.goes_on(CONNECTION);
        }
        self.prepare(&mut session, &system).await?;
        if self.members.is_empty() {
            return Ok(());
        }
        let mut members = self.members.values();
        let is_first = members.all(|member| member.stand.is_none()) && self.failed.is_empty();
        let may_make = is_first || options.copies_again;
        let slot = setup::slot(&mut session, &options, may_make).await?;
        if slot.is_new {
            tracing::info!(slot = options.slot, "made the replication slot");
        }
        for member in self.members.values_mut() {
            member.place(&slot, &system, end);
        }
        self.start_copy(&system);
        let mut members = self.members.values();
        if !members.any(|member| member.state == State::Live) {
            drop(session);
            while !self.wait(LOOK) && !self.copy_ended() && !self.is_again() && !self.note_dropped()
            {
                self.start_copy(&system);
            }
            return Ok(());
        }
        let feed = session.start(&options, self.may_stream).await?;
        self.has_streamed = true;
        let mut stream = Stream {
            feed,
            at: slot.confirmed,
            confirmed: slot.confirmed,
            confirmed_at: Instant::now(),
            end: slot.confirmed,
            readers: HashMap::new(),
            transaction: None,
            streamed: Streamed::new(&options.folder),
            heard: Instant::now(),
            look: None,
            look_at: Instant::now() + TABLES,
        };
        let ended = self.read(&mut stream, &system).await;
        for member in self.members.values_mut() {
            if let Some(table) = &mut member.table {
                table.clear();
            }
        }
        self.tell_streamed(&Streamed::new(&options.folder));
        ended
    }

    /// Looks at every source's table and puts it into the publication. What one source lacks does not
    /// hold up the others.
    async fn prepare(&mut self, session: &mut Session, system: &str) -> Result<(), Failure> {
        let mut failed = Vec::new();
        let options = self.hub.options();
        for (id, member) in &mut self.members {
            member.again = None;
            member.is_published = false;
            match member.prepare(session, &options, system).await {
                Ok(()) => {
                    member.is_published = true;
                    member.context.goes_on(TABLE);
                }
                Err(failure @ Failure::Lasting(_)) => failed.push((*id, failure)),
                Err(passing) if !session.is_there().await => return Err(passing),
                Err(passing) => {
                    tracing::warn!(
                        source = member.context.name,
                        detail = %passing,
                        "the table cannot be published yet; trying again"
                    );
                    member.context.waits_for(TABLE, &passing);
                    member.again = Some(Instant::now() + AGAIN);
                }
            }
        }
        for (id, failure) in failed {
            self.fail(id, &failure);
        }
        Ok(())
    }

    /// Reads the stream until members come or go, or a copy ends.
    async fn read(&mut self, stream: &mut Stream, system: &str) -> Result<(), Failure> {
        loop {
            if stream.transaction.is_none() {
                let is_other = self.commands_now() || self.copy_ended() || self.is_again();
                if is_other || self.note_dropped() {
                    return Ok(());
                }
                if self.tables_changed(stream).await {
                    tracing::warn!(
                        connection = self.hub.name,
                        "a table was made anew or left the publication: looking at all of them"
                    );
                    return Ok(());
                }
                self.start_copy(system);
            }
            let ready = tokio::time::timeout(Duration::ZERO, stream.feed.next()).await;
            let event = match ready {
                Ok(event) => Some(event),
                Err(_) => {
                    self.idle(stream);
                    tokio::time::timeout(LOOK, stream.feed.next()).await.ok()
                }
            };
            match event {
                None if stream.heard.elapsed() > SILENCE => return Err(silent()),
                None => {}
                Some(None) => return Err(Failure::Passing("the stream ended".to_owned())),
                Some(Some(event)) => {
                    let is_other = self.event(stream, &event?)?;
                    // Taking it may have waited for room.
                    stream.heard = Instant::now();
                    if is_other {
                        return Ok(());
                    }
                }
            }
            if stream.confirmed_at.elapsed() >= CONFIRM && stream.transaction.is_none() {
                self.confirm(stream);
            }
        }
    }

    /// Takes one event; whether the stream must begin again (a table must be copied, sources go).
    fn event(&mut self, stream: &mut Stream, event: &ReplicationCopyData) -> Result<bool, Failure> {
        match event {
            ReplicationCopyData::XLogData { data, wal_end, .. } => {
                stream.end = stream.end.max(wal_end.as_u64());
                if stream.streamed.is_open() && data.first() != Some(&b'E') {
                    let kept = stream.streamed.take(data);
                    return kept.map(|()| false).map_err(|why| self.unkept(why));
                }
                let message = decoded(data, false)?;
                self.received(stream, &message)
            }
            ReplicationCopyData::KeepAlive { wal_end, .. } => {
                stream.end = stream.end.max(wal_end.as_u64());
                if stream.transaction.is_none() {
                    // Everything that was committed before was sent; what concerns no table of ours is
                    // passed over. (What is not committed yet is sent again, if need be.)
                    stream.at = stream.at.max(wal_end.as_u64());
                }
                Ok(false)
            }
        }
    }

    /// Nothing waits to be read: readers may be told how far everything is.
    fn idle(&mut self, stream: &mut Stream) {
        if stream.transaction.is_some() {
            return;
        }
        for member in self.members.values_mut() {
            member.pass(stream.at);
            member.tell_reached();
        }
    }

    /// Confirms what is durable in all sources, so that the server may forget it.
    fn confirm(&mut self, stream: &mut Stream) {
        stream.confirmed_at = Instant::now();
        let behind = stream.end.saturating_sub(stream.at);
        metrics::gauge!(
            telemetry::POSTGRES_LAG_BYTES.name, "connection" => self.hub.name.clone()
        )
        .set(behind as f64);
        for member in self.members.values() {
            member.context.waits.is_behind(&self.hub.name, behind);
        }
        // A copy goes on from a point that must still be in the log when it is through.
        let mut members = self.members.values();
        let is_leaving = members.any(|member| member.is_leaving || member.context.is_stopping());
        if stream.at <= stream.confirmed || self.copying.is_some() || is_leaving {
            return;
        }
        // What is open of a transaction must be in the server's log until its end is here.
        if self
            .members
            .values()
            .any(|member| member.inside().is_some())
        {
            return;
        }
        for member in self.members.values_mut() {
            if member.log_position(stream.at).is_err() {
                return;
            }
        }
        // A transaction's record was logged by one of its sources, which may have left since.
        for sink in &self.staged_by {
            if sink.sync().is_err() {
                return;
            }
        }
        for member in self.members.values() {
            if member.context.sink.sync().is_err() {
                return;
            }
        }
        self.staged_by.clear();
        stream.confirmed = stream.at;
        stream.feed.confirm(stream.at);
    }
}

impl Reader {
    /// Looks from time to time, on a connection aside, whether a table of a name is another one now.
    async fn tables_changed(&self, stream: &mut Stream) -> bool {
        if let Some(look) = stream.look.take_if(|look| look.is_finished()) {
            // A look that fails says nothing: the stream itself will notice a server that is away.
            return matches!(look.await, Ok(Ok(false)));
        }
        if stream.look.is_none() && Instant::now() >= stream.look_at {
            stream.look_at = Instant::now() + TABLES;
            let live = self.members.values();
            let live = live.filter(|member| member.state == State::Live && member.is_published);
            let tables = live.map(|member| (member.name.clone(), member.table_id));
            let tables: Vec<_> = tables.collect();
            let options = self.hub.options();
            let look = async move { setup::are_there(&options, &tables).await };
            stream.look = Some(tokio::spawn(look));
        }
        false
    }
}
