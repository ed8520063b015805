//! One source that reads through the hub: how far it is, and its part of a transaction.
//!
//! ```text
//! Behind ──copy──▶ Copying ──its point──▶ Live ──types change, slot lost──▶ Behind
//! ```
//!
//! Invariants: `stand` moves only with what was staged, or past what concerns no table of it; `logged`
//! is never beyond the last batch that the log took; `reached` is never beyond `stand`.

use std::sync::mpsc::Sender;
use std::time::Instant;

use engine::contract::{Part, SinkClosed, SourceBatch, SourceContext};
use engine::error::WorldError;

use super::copy::point_text;
use super::facts::{self, TableName};
use super::session::{Failure, PostgresOptions, Session};
use super::setup::{self, Slot};
use super::table::Table;
use super::{Inside, LANE, Stand, position, stand};

/// What a source is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It needs a copy.
    Behind,
    /// Its table is with the copying thread.
    Copying,
    /// The stream is its truth.
    Live,
}

/// A source that reads through the hub.
pub(super) struct Member {
    pub(super) id: u64,
    pub(super) context: SourceContext,
    /// `None` while it is copied.
    pub(super) table: Option<Table>,
    pub(super) name: TableName,
    pub(super) state: State,
    pub(super) stand: Option<Stand>,
    /// The position of the last batch that was staged.
    pub(super) logged: u64,
    /// The position that the sink knows of.
    pub(super) reached: u64,
    pub(super) is_published: bool,
    /// When its table is to be looked at again, after something that may pass.
    pub(super) again: Option<Instant>,
    /// The table's object id, as it was looked at last.
    pub(super) table_id: u32,
    /// Changes of its table in the transaction that is being read.
    pub(super) changes: u64,
    /// It takes no more rows and will leave: its position no longer moves.
    pub(super) is_leaving: bool,
    /// Tells the source's own thread that it failed.
    pub(super) ended: Sender<WorldError>,
}

/// How far a batch goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Upto {
    /// The end of a transaction, and where its commit begins.
    End { commit: u64, end: u64 },
    /// The middle of one whose commit begins there.
    Inside(u64),
}

impl Member {
    /// A source that joins: it goes on from where its last batch stood.
    pub(super) fn new(
        id: u64,
        context: SourceContext,
        table: Table,
        ended: Sender<WorldError>,
    ) -> Member {
        let stand = stand(context.resume.position(LANE));
        Member {
            id,
            name: table.name.clone(),
            logged: stand.as_ref().map_or(0, |stand| stand.lsn),
            reached: 0,
            table: Some(table),
            state: State::Behind,
            stand,
            is_published: false,
            again: None,
            table_id: 0,
            changes: 0,
            is_leaving: false,
            context,
            ended,
        }
    }

    /// Whether it never read a row.
    pub(super) fn is_new(&self) -> bool {
        self.stand.is_none() && self.context.resume.keys().is_empty()
    }

    /// Looks at the table and puts it into the publication. A table that is another one now, has other
    /// types, or was not in the publication, has to be copied (again).
    pub(super) async fn prepare(
        &mut self,
        session: &mut Session,
        options: &PostgresOptions,
        system: &str,
    ) -> Result<(), Failure> {
        let stood = self.stand.as_ref();
        if let Some(stood) = stood.filter(|stood| stood.system != system)
            && !options.copies_again
        {
            return Err(Failure::Lasting(format!(
                "this is another cluster (system identifier {system}, the source read {}): its log \
                 does not go on from there; drop the connection's sources and create them again, or \
                 create the connection with SLOT LOST 'copy'",
                stood.system
            )));
        }
        let Some(table) = &self.table else {
            // It is being copied: that was looked at.
            return Ok(());
        };
        let is_first = self.is_new();
        let facts = facts::of(session, &table.name).await?;
        facts.check(&table.name, &table.schema, is_first)?;
        let schema = &table.schema;
        let is_added = setup::publish(session, options, &table.name, &facts, schema).await?;
        let shape = table.shape_of(&facts);
        let is_other = |stood: &Stand| is_added || stood.shape.as_deref() != Some(&*shape);
        self.table_id = facts.id;
        if self.stand.as_ref().is_some_and(is_other) {
            tracing::warn!(
                source = self.context.name,
                table = %self.name,
                "the table is another one, has other types, or was not published: it is copied again"
            );
            self.stand = None;
        }
        Ok(())
    }

    /// Whether the stream is its truth, or it must be copied. `end`: of the server's log.
    pub(super) fn place(&mut self, slot: &Slot, system: &str, end: u64) {
        if self.state == State::Copying {
            return;
        }
        let stood = self.stand.as_ref();
        let is_whole = stood.is_some_and(|stood| {
            let is_in_log = (slot.confirmed..=end).contains(&stood.lsn);
            is_in_log && !slot.is_new && stood.system == system && self.is_published
        });
        if !is_whole
            && self.is_published
            && let Some(stood) = stood
        {
            tracing::warn!(
                source = self.context.name,
                stands_at = point_text(stood.lsn),
                log_begins_at = point_text(slot.confirmed),
                log_ends_at = point_text(end),
                "the log does not go on from where the source stands: the table is copied again"
            );
        }
        let shape = stood.and_then(|stood| stood.shape.clone());
        if let Some(table) = self.table.as_mut().filter(|_| is_whole) {
            table.set_shape(shape);
        }
        self.state = match is_whole {
            true => State::Live,
            false => State::Behind,
        };
    }

    /// Whether a transaction is not in its rows yet.
    pub(super) fn wants(&self, commit: u64) -> bool {
        let stood = self.stand.as_ref();
        self.state == State::Live && stood.is_some_and(|stood| stood.lsn <= commit)
    }

    /// Whether its rows contain the present change of a transaction that was staged in parts.
    pub(super) fn has(&self, commit: u64) -> bool {
        let inside = self.stand.as_ref().and_then(|stand| stand.inside);
        inside.is_some_and(|inside| inside.commit == commit && self.changes <= inside.changes)
    }

    /// Everything before `at` is in its rows.
    pub(super) fn pass(&mut self, at: u64) {
        if self.state == State::Live
            && !self.is_leaving
            && let Some(stand) = &mut self.stand
        {
            // What comes before that transaction may be sent again, too.
            if stand.inside.is_some_and(|inside| at > inside.commit) {
                stand.inside = None;
            }
            stand.lsn = stand.lsn.max(at);
        }
    }

    /// Where it will stand after a batch.
    fn stand_at(&self, upto: Upto) -> Option<Stand> {
        let stand = self.stand.clone()?;
        Some(match upto {
            Upto::End { commit, end } => Stand {
                lsn: stand.lsn.max(end),
                inside: stand.inside.filter(|inside| inside.commit != commit),
                ..stand
            },
            Upto::Inside(commit) => Stand {
                inside: Some(Inside {
                    commit,
                    changes: self.changes,
                }),
                ..stand
            },
        })
    }

    /// Where the commit of the transaction begins of which something is staged, and that goes on.
    pub(super) fn inside(&self) -> Option<u64> {
        let stand = self.stand.as_ref().filter(|_| self.state == State::Live)?;
        stand.inside.map(|inside| inside.commit)
    }

    /// Its part of a transaction, if it has one: an empty one ends what was left open of it.
    pub(super) fn part(&mut self, upto: Upto, is_open: bool) -> Option<Part> {
        let stand = self.stand_at(upto);
        let (Upto::End { commit, .. } | Upto::Inside(commit)) = upto;
        let ends = !is_open && self.inside() == Some(commit);
        let table = self.table.as_mut()?;
        if self.is_leaving {
            table.clear();
            return None;
        }
        if table.is_empty() && !ends {
            return None;
        }
        Some(Part {
            source: self.context.sink.source(),
            name: self.context.name.as_str().into(),
            batch: SourceBatch {
                lane: LANE.to_owned(),
                ..table.take(stand.as_ref().map(position))
            },
        })
    }

    /// Its part was staged.
    pub(super) fn staged(&mut self, upto: Upto) {
        let stand = self.stand_at(upto);
        let Some(table) = &mut self.table else { return };
        table.staged();
        self.stand = stand;
        if let Upto::End { end, .. } = upto {
            self.logged = self.logged.max(end);
            self.reached = self.logged;
        }
    }

    /// Its part was not staged: it waits again.
    pub(super) fn give_back(&mut self, part: Part) {
        if let Some(table) = &mut self.table {
            table.give_back(part.batch);
        }
    }

    /// Tells the sink how far it is, without a word in the log.
    pub(super) fn tell_reached(&mut self) {
        let is_there = self.state == State::Live && !self.is_leaving;
        let Some(stand) = self.stand.as_ref().filter(|_| is_there) else {
            return;
        };
        if stand.lsn > self.reached {
            self.context.sink.reached(LANE, &position(stand));
            self.reached = stand.lsn;
        }
    }

    /// Logs that it has come to a position.
    pub(super) fn log_position(&mut self, at: u64) -> Result<(), SinkClosed> {
        self.pass(at);
        // Between the pieces of a transaction it would be taken for the end.
        let is_news = |stand: &&Stand| stand.lsn > self.logged && stand.inside.is_none();
        let Some(stand) = self.stand.as_ref().filter(is_news) else {
            return Ok(());
        };
        self.context.sink.stage(SourceBatch {
            lane: LANE.to_owned(),
            position: Some(position(stand)),
            ..SourceBatch::default()
        })?;
        self.logged = stand.lsn;
        self.reached = stand.lsn;
        Ok(())
    }
}
