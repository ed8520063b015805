//! The log of one slot, as transactions of the sources that read it.
//!
//! ```text
//! Begin ─▶ changes ─▶ Table of each source ─▶ Commit at L ─▶ stage_together ─▶ every source stands at L
//!                                                             each second: sync, confirm L
//! ```
//!
//! Invariants: a transaction is staged whole, at its commit (in parts only beyond
//! [`TRANSACTION_BYTES_MAX`], counted); a source skips what its position contains; the slot is
//! confirmed at L only after every source has logged a position of at least L and the log is synced.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::contract::Part;
use engine::limits::TRANSACTION_BYTES_MAX;
use engine::telemetry;
use pgwire_replication::{Lsn, ReplicationClient, ReplicationEvent};

use super::hub::{AGAIN, CONNECTION, LOOK, Reader, TABLE};
use super::member::{Member, State, Upto};
use super::message::{self, Message, Relation};
use super::session::{Failure, SILENCE, Session, silent};
use super::setup;

/// Time between two confirmations.
const CONFIRM: Duration = Duration::from_secs(1);
/// Time between two looks whether the tables are still those that are published.
const TABLES: Duration = Duration::from_secs(30);

/// The transaction that is being read.
struct Transaction {
    /// Where its commit begins.
    commit: u64,
    /// For dead letters.
    name: String,
    /// Whether parts of it are staged already.
    is_split: bool,
    /// Sources whose rows must be copied again after it.
    to_copy: Vec<u64>,
}

/// The state of one stream.
struct Stream {
    client: ReplicationClient,
    /// Everything before was taken.
    at: u64,
    /// What the slot is confirmed to.
    confirmed: u64,
    confirmed_at: Instant,
    /// The end of the server's log, as far as it told.
    end: u64,
    /// The sources of a table, by the table's object id.
    readers: HashMap<u32, Vec<u64>>,
    transaction: Option<Transaction>,
    heard: Instant,
    /// The look at the tables that is on its way, and when the next one is due.
    look: Option<tokio::task::JoinHandle<Result<bool, Failure>>>,
    look_at: Instant,
}

impl Reader {
    /// Connects, prepares what is missing, and reads until something changes.
    pub(super) async fn session(&mut self) -> Result<(), Failure> {
        let options = self.hub.options();
        let mut session = Session::open(&options, &options.slot).await?;
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
        let client = session.start().await?;
        self.has_streamed = true;
        let mut stream = Stream {
            client,
            at: slot.confirmed,
            confirmed: slot.confirmed,
            confirmed_at: Instant::now(),
            end: slot.confirmed,
            readers: HashMap::new(),
            transaction: None,
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
        stream.client.stop();
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
            let ready = tokio::time::timeout(Duration::ZERO, stream.client.recv()).await;
            let event = match ready {
                Ok(event) => Some(event?),
                Err(_) => {
                    self.idle(stream);
                    let event = tokio::time::timeout(LOOK, stream.client.recv()).await;
                    event.ok().transpose()?
                }
            };
            match event {
                None if stream.heard.elapsed() > SILENCE => return Err(silent()),
                None => {}
                Some(None) => return Err(Failure::Passing("the stream ended".to_owned())),
                Some(Some(event)) => {
                    stream.heard = Instant::now();
                    if self.event(stream, &event)? {
                        return Ok(());
                    }
                }
            }
            if stream.confirmed_at.elapsed() >= CONFIRM && stream.transaction.is_none() {
                self.confirm(stream);
            }
        }
    }

    /// Takes one event; whether a table must be copied again.
    fn event(&mut self, stream: &mut Stream, event: &ReplicationEvent) -> Result<bool, Failure> {
        match event {
            ReplicationEvent::Begin { final_lsn, .. } => {
                self.members
                    .values_mut()
                    .for_each(|member| member.changes = 0);
                stream.transaction = Some(Transaction {
                    commit: final_lsn.as_u64(),
                    name: format!("transaction at {final_lsn}"),
                    is_split: false,
                    to_copy: Vec::new(),
                });
            }
            ReplicationEvent::XLogData { data, wal_end, .. } => {
                let message = message::decode(data).map_err(|error| {
                    Failure::Lasting(format!("a message that cannot be read: {error}"))
                })?;
                stream.end = stream.end.max(wal_end.as_u64());
                self.message(stream, &message)?;
            }
            ReplicationEvent::Commit { end_lsn, .. } => {
                if let Some(transaction) = stream.transaction.take() {
                    return Ok(self.commit(stream, &transaction, end_lsn.as_u64()));
                }
            }
            ReplicationEvent::KeepAlive { wal_end, .. } if stream.transaction.is_none() => {
                // Everything before was sent; what concerns no table of ours is passed over.
                stream.at = stream.at.max(wal_end.as_u64());
            }
            ReplicationEvent::KeepAlive { wal_end, .. } => {
                stream.end = stream.end.max(wal_end.as_u64());
            }
            ReplicationEvent::Message { .. } | ReplicationEvent::StoppedAt { .. } => {}
        }
        Ok(false)
    }

    fn message(&mut self, stream: &mut Stream, message: &Message<'_>) -> Result<(), Failure> {
        let tables = match message {
            Message::Relation(relation) => return self.relation(stream, relation),
            Message::Other => return Ok(()),
            Message::Insert { table, .. }
            | Message::Update { table, .. }
            | Message::Delete { table, .. } => std::slice::from_ref(table),
            Message::Truncate { tables } => tables,
        };
        let Some(transaction) = &mut stream.transaction else {
            return Err(Failure::Lasting(
                "a change outside a transaction".to_owned(),
            ));
        };
        let ids = tables.iter().filter_map(|table| stream.readers.get(table));
        for id in ids.flatten() {
            let Some(member) = self.members.get_mut(id) else {
                continue;
            };
            member.changes += 1;
            if member.wants(transaction.commit)
                && !member.has(transaction.commit)
                && !transaction.to_copy.contains(id)
                && let Some(table) = &mut member.table
            {
                table.apply(message, &transaction.name);
            }
        }
        let tables = self
            .members
            .values()
            .filter_map(|member| member.table.as_ref());
        let bytes: usize = tables.map(super::table::Table::bytes).sum();
        if bytes > TRANSACTION_BYTES_MAX {
            if !std::mem::replace(&mut transaction.is_split, true) {
                metrics::counter!(
                    telemetry::TRANSACTIONS_SPLIT.name, "connection" => self.hub.name.clone()
                )
                .increment(1);
                tracing::warn!(
                    connection = self.hub.name,
                    transaction = transaction.name,
                    limit = TRANSACTION_BYTES_MAX,
                    "a transaction is larger than TRANSACTION_BYTES_MAX: it becomes visible in parts"
                );
            }
            let commit = transaction.commit;
            self.stage(Upto::Inside(commit));
        }
        Ok(())
    }

    /// Who reads a table, and how its columns lie.
    fn relation(&mut self, stream: &mut Stream, relation: &Relation) -> Result<(), Failure> {
        let (mut ids, mut failed) = (Vec::new(), Vec::new());
        for (id, member) in &mut self.members {
            let is_named =
                (&*member.name.schema, &*member.name.name) == (&*relation.schema, &*relation.name);
            let Some(table) = member.table.as_mut().filter(|_| is_named) else {
                continue;
            };
            ids.push(*id);
            match table.relation(relation) {
                Ok(true) => {}
                Ok(false) => {
                    let Some(transaction) = &mut stream.transaction else {
                        continue;
                    };
                    let commit = transaction.commit;
                    if member.state == State::Live
                        && member
                            .stand
                            .as_ref()
                            .is_some_and(|stand| stand.lsn <= commit)
                    {
                        tracing::warn!(
                            source = member.context.name,
                            table = %member.name,
                            at = transaction.name,
                            "columns of the table changed: it is copied again"
                        );
                        table.clear();
                        transaction.to_copy.push(*id);
                    }
                }
                Err(failure) => failed.push((*id, failure)),
            }
        }
        stream.readers.insert(relation.id, ids);
        for (id, failure) in failed {
            self.fail(id, &failure);
        }
        Ok(())
    }

    /// Stages the transaction; whether a table must be copied again.
    fn commit(&mut self, stream: &mut Stream, transaction: &Transaction, end: u64) -> bool {
        stream.at = stream.at.max(end);
        self.stage(Upto::End(end));
        for member in self.members.values_mut() {
            member.pass(end);
        }
        for id in &transaction.to_copy {
            if let Some(member) = self.members.get_mut(id) {
                member.state = State::Behind;
                member.stand = None;
            }
        }
        !transaction.to_copy.is_empty()
    }

    /// Stages what the sources' tables hold, as one transaction.
    fn stage(&mut self, upto: Upto) {
        loop {
            // All of them are being stopped, one after another: a part without the others' must not be
            // logged. It is read again.
            let mut members = self.members.values();
            let is_end = members.any(|one| one.context.is_stopping() && !one.context.is_dropped());
            let mut parts: Vec<Part> = Vec::new();
            for member in self.members.values_mut() {
                member.is_leaving |= is_end || member.context.is_stopping();
                parts.extend(member.part(upto));
            }
            let Some(first) = parts.first().map(|part| part.source) else {
                return;
            };
            let mut members = self.members.values_mut();
            let first = members.find(|member| member.context.sink.source() == first);
            let first = first.expect("the parts are the members'");
            // Closed: that source is stopping. The others' parts are taken again without it.
            let sources: Vec<_> = parts.iter().map(|part| part.source).collect();
            let refused = first.context.sink.stage_together(parts).err();
            first.is_leaving |= refused.is_some();
            let sink = Arc::clone(&first.context.sink);
            let Some(refused) = refused else {
                if !self.staged_by.iter().any(|other| Arc::ptr_eq(other, &sink)) {
                    self.staged_by.push(sink);
                }
                let is_in = |member: &&mut Member| sources.contains(&member.context.sink.source());
                let members = self.members.values_mut().filter(is_in);
                members.for_each(|member| member.staged(upto));
                return;
            };
            for part in refused {
                let is_its = |member: &&mut Member| member.context.sink.source() == part.source;
                if let Some(member) = self.members.values_mut().find(is_its) {
                    member.give_back(part);
                }
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
        metrics::gauge!(
            telemetry::POSTGRES_LAG_BYTES.name, "connection" => self.hub.name.clone()
        )
        .set(stream.end.saturating_sub(stream.at) as f64);
        // A copy goes on from a point that must still be in the log when it is through.
        let mut members = self.members.values();
        let is_leaving = members.any(|member| member.is_leaving || member.context.is_stopping());
        if stream.at <= stream.confirmed || self.copying.is_some() || is_leaving {
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
        stream.client.update_applied_lsn(Lsn::from_u64(stream.at));
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
