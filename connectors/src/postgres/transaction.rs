//! A transaction of the log, message by message, to its place in the sources.
//!
//! The idea: one that comes whole, at its commit, and one that was sent before it
//! ([`super::streamed`]) take the same way; the second is given to it as if it came now.
//!
//! Invariants: a transaction is staged at its commit, a large one in pieces that become visible together
//! (in parts only beyond [`TRANSACTION_BYTES_MAX`], counted); nothing of a transaction that is not
//! committed reaches a table, the shape of the table included; changes are counted in the order in which
//! any server sends them, so that a piece that was staged is skipped however the rest comes again.

use std::sync::Arc;

use engine::contract::Part;
use engine::limits::{TRANSACTION_BYTES_MAX, TRANSACTION_PIECE_BYTES_MAX};
use engine::telemetry;

use super::copy::point_text;
use super::hub::Reader;
use super::member::{Member, State, Upto};
use super::message::{self, Message, Relation};
use super::session::Failure;
use super::stream::Stream;
use super::streamed::{Streamed, Unkept};

/// Messages of a replay between two looks whether the sources are being stopped.
const REPLAY_LOOK: usize = 1_024;

/// The transaction that is being read.
pub(super) struct Transaction {
    /// Where its commit begins.
    commit: u64,
    /// For dead letters.
    name: String,
    /// Bytes of its pieces that are staged and not visible.
    open_bytes: usize,
    /// Whether parts of it may be visible already.
    is_split: bool,
    /// Sources whose rows must be copied again after it.
    to_copy: Vec<u64>,
}

impl Transaction {
    /// It is too large to become visible at once.
    fn split(&mut self, connection: &str) {
        if std::mem::replace(&mut self.is_split, true) {
            return;
        }
        metrics::counter!(
            telemetry::TRANSACTIONS_SPLIT.name, "connection" => connection.to_owned()
        )
        .increment(1);
        tracing::warn!(
            connection,
            transaction = self.name,
            limit = TRANSACTION_BYTES_MAX,
            "a transaction is larger than TRANSACTION_BYTES_MAX: it becomes visible in parts"
        );
    }
}

impl Reader {
    /// Takes a message; whether the stream must begin again.
    pub(super) fn received(
        &mut self,
        stream: &mut Stream,
        message: &Message<'_>,
    ) -> Result<bool, Failure> {
        match *message {
            Message::Begin { commit } => self.begin(stream, commit),
            Message::Commit { end } => {
                if let Some(transaction) = stream.transaction.take() {
                    return Ok(self.commit(stream, &transaction, end));
                }
            }
            Message::StreamStart { xid, is_first } => {
                let started = stream.streamed.start(xid, is_first);
                started.map_err(|why| self.unkept(why))?;
            }
            Message::StreamStop => {
                stream.streamed.stop().map_err(|why| self.unkept(why))?;
                self.tell_streamed(&stream.streamed);
            }
            Message::StreamAbort { xid, subxid } => {
                stream.streamed.abort(xid, subxid);
                self.tell_streamed(&stream.streamed);
                if xid == subxid {
                    self.count_streamed("rolled back");
                }
            }
            Message::StreamCommit { xid, commit, end } => {
                return self.replay(stream, xid, (commit, end));
            }
            _ => self.message(stream, message)?,
        }
        Ok(false)
    }

    fn begin(&mut self, stream: &mut Stream, commit: u64) {
        for member in self.members.values_mut() {
            member.changes = 0;
        }
        stream.transaction = Some(Transaction {
            commit,
            name: format!("transaction at {}", point_text(commit)),
            open_bytes: 0,
            is_split: false,
            to_copy: Vec::new(),
        });
    }

    /// Takes a transaction that was sent before its commit as if it came now; whether the
    /// stream must begin again.
    fn replay(
        &mut self,
        stream: &mut Stream,
        xid: u32,
        (commit, end): (u64, u64),
    ) -> Result<bool, Failure> {
        let replay = stream.streamed.commit(xid);
        let mut replay = replay.map_err(|why| self.unkept(why))?;
        self.begin(stream, commit);
        let mut count = 0;
        while let Some(bytes) = replay.next().map_err(|why| self.unkept(why))? {
            let message = decoded(bytes, true)?;
            self.message(stream, &message)?;
            count += 1;
            let mut members = self.members.values();
            if count % REPLAY_LOOK == 0 && members.all(|member| member.context.is_stopping()) {
                // It is read again from the slot.
                return Ok(true);
            }
        }
        self.tell_streamed(&stream.streamed);
        self.count_streamed("committed");
        let transaction = stream.transaction.take();
        Ok(transaction.is_some_and(|transaction| self.commit(stream, &transaction, end)))
    }

    /// What cannot be kept here the server keeps, when it is asked to: nothing is lost.
    pub(super) fn unkept(&mut self, why: Unkept) -> Failure {
        if let Unkept::NoRoom(detail) = &why {
            self.may_stream = false;
            tracing::warn!(
                connection = self.hub.name,
                detail,
                "large transactions are read after their commit from now on, until the sources start anew"
            );
        }
        Failure::Passing(why.to_string())
    }

    pub(super) fn tell_streamed(&self, streamed: &Streamed) {
        let (bytes, files) = streamed.bytes();
        for (place, bytes) in [("memory", bytes - files), ("file", files)] {
            metrics::gauge!(
                telemetry::POSTGRES_STREAMED_BYTES.name,
                "connection" => self.hub.name.clone(), "place" => place
            )
            .set(bytes as f64);
        }
    }

    fn count_streamed(&self, outcome: &'static str) {
        metrics::counter!(
            telemetry::POSTGRES_STREAMED.name,
            "connection" => self.hub.name.clone(), "outcome" => outcome
        )
        .increment(1);
    }

    fn message(&mut self, stream: &mut Stream, message: &Message<'_>) -> Result<(), Failure> {
        let tables = match message {
            Message::Relation(relation) => return self.relation(stream, relation),
            Message::Other
            | Message::Begin { .. }
            | Message::Commit { .. }
            | Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. } => return Ok(()),
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
        if bytes > TRANSACTION_PIECE_BYTES_MAX {
            transaction.open_bytes += bytes;
            let is_open = transaction.open_bytes <= TRANSACTION_BYTES_MAX;
            if !is_open {
                transaction.open_bytes = 0;
                transaction.split(&self.hub.name);
            }
            let upto = Upto::Inside(transaction.commit);
            self.stage(upto, is_open);
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
        let commit = transaction.commit;
        self.stage(Upto::End { commit, end }, false);
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

    /// Stages what the sources' tables hold, as one transaction, which goes on if `is_open`.
    fn stage(&mut self, upto: Upto, is_open: bool) {
        loop {
            // All of them are being stopped, one after another: a part without the others' must not be
            // logged. It is read again.
            let mut members = self.members.values();
            let is_end = members.any(|one| one.context.is_stopping() && !one.context.is_dropped());
            let mut parts: Vec<Part> = Vec::new();
            for member in self.members.values_mut() {
                member.is_leaving |= is_end || member.context.is_stopping();
                parts.extend(member.part(upto, is_open));
            }
            let Some(first) = parts.first().map(|part| part.source) else {
                return;
            };
            let mut members = self.members.values_mut();
            let first = members.find(|member| member.context.sink.source() == first);
            let first = first.expect("the parts are the members'");
            // Closed: that source is stopping. The others' parts are taken again without it.
            let sources: Vec<_> = parts.iter().map(|part| part.source).collect();
            let refused = first.context.sink.stage_together(parts, is_open).err();
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
}

/// A message; `is_streamed` as in [`message::decode`].
pub(super) fn decoded(bytes: &[u8], is_streamed: bool) -> Result<Message<'_>, Failure> {
    message::decode(bytes, is_streamed)
        .map_err(|error| Failure::Lasting(format!("a message that cannot be read: {error}")))
}
