//! The sources of one transaction topic: what they took, what goes on, and how it is staged.
//!
//! ```text
//! source ─ take ─▶ Assembly ─ step ─▶ Lane of the source ─┐
//! source ─ take ─▶    ▲    ─ step ─▶ Lane of the source ─┴▶ stage_together: one record, one T
//! ENDs ───────────────┘
//! ```
//!
//! The idea: an event that waits is not applied, so its lane's position, and with it what a restart
//! reads again, stands before it. What goes on together is staged together, several whole
//! transactions at once when many are there.
//!
//! Where it begins again after a restart: each batch has, beside the offsets of its topic, what
//! follows the last END that had passed. An END below is not the source's own any more: the source
//! had its part, or none. Reading begins at the lowest of the sources' places, so no END that one of
//! them needs is missed, and each needs only those at its own place or above.
//!
//! Invariants: a record holds whole transactions, but for those counted as split. No thread, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use engine::contract::{Part, SinkClosed, SourceContext};
use engine::error::WorldError;
use engine::model::Schema;
use engine::telemetry;

use super::assembly::{Arrival, Assembly, Bounds, End, Place, Split};
use crate::envelope::{Decoded, Envelope};
use crate::kafka::Record;
use crate::kafka::lane::Lane;
use crate::kafka::letter_topic::LetterTopic;

/// Events staged at once, at most (soft for one transaction).
const BATCH_EVENTS: usize = 4_096;
/// Bytes of them.
const BATCH_BYTES: usize = 2 << 20;
/// A source without events logs its place in the transaction topic so often, milliseconds.
const LOG_PLACE: u64 = 60_000;

/// A message that was decoded and not applied yet.
#[derive(Debug)]
pub struct Held {
    /// What it says.
    pub decoded: Decoded,
    /// What a dead letter of it needs.
    pub record: Record,
}

/// What the group wants of a source's reader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Partitions that are not to be fetched now.
    pub paused: BTreeSet<i32>,
    /// Partitions whose ends are to be told.
    pub look_at: BTreeSet<i32>,
    /// Whether the ends of all partitions are to be told, for a snapshot that began again.
    pub wants_ends: bool,
    /// What follows the messages that are staged.
    pub staged: BTreeMap<i32, i64>,
    /// Why the group cannot go on.
    pub failure: Option<String>,
}

/// A place for wishes that two threads know.
pub type Board = Arc<Mutex<Wishes>>;

struct Member {
    context: SourceContext,
    lane: Lane,
    letters: Option<LetterTopic>,
    board: Board,
    /// It takes no more rows.
    is_leaving: bool,
    was_told_strange: bool,
    /// The place in the transaction topic that was staged last.
    placed: Option<i64>,
}

/// See the module.
pub struct Group {
    /// The transaction topic.
    name: String,
    assembly: Assembly<Held>,
    members: BTreeMap<u64, Member>,
    has_started: bool,
    is_closing: bool,
    /// Why it cannot go on.
    failure: Option<String>,
    placed_at: u64,
    split_told_at: Option<u64>,
    splits_untold: u64,
    splits: u64,
}

impl Group {
    /// A group of a transaction topic, without sources.
    pub fn new(name: &str, bounds: Bounds) -> Group {
        Group {
            name: name.to_owned(),
            assembly: Assembly::new(bounds),
            members: BTreeMap::new(),
            has_started: false,
            is_closing: false,
            failure: None,
            placed_at: 0,
            split_told_at: None,
            splits_untold: 0,
            splits: 0,
        }
    }

    /// A source of a topic's rows comes.
    ///
    /// Errors: a schema without a row format; a stored position that cannot be read.
    pub fn join(
        &mut self,
        number: u64,
        context: SourceContext,
        topic: &str,
        schema: &Schema,
        board: Board,
    ) -> Result<(), WorldError> {
        let lane = Lane::new(&context, topic.to_owned(), schema, Envelope::Debezium)?;
        if self.has_started {
            self.assembly.join(number, topic, 0, true);
        }
        let mut wishes = board.lock().unwrap_or_else(PoisonError::into_inner);
        wishes.failure.clone_from(&self.failure);
        drop(wishes);
        let member = Member {
            placed: lane.transactions(),
            context,
            lane,
            letters: None,
            board,
            is_leaving: false,
            was_told_strange: false,
        };
        self.members.insert(number, member);
        Ok(())
    }

    /// Gives a source its topic of dead letters.
    pub(crate) fn set_letters(&mut self, number: u64, letters: Option<LetterTopic>) {
        if let Some(member) = self.members.get_mut(&number) {
            member.letters = letters;
        }
    }

    /// A source waits so long at least, milliseconds.
    pub fn wait_at_least(&mut self, wait: u64) {
        self.assembly.wait_at_least(wait);
    }

    /// The sources that start together have joined. Where the transaction topic is to be read from;
    /// `None`: nobody stands anywhere.
    pub fn start(&mut self) -> Option<i64> {
        self.has_started = true;
        let start = self.members.values().filter_map(|one| one.placed).min();
        for (number, member) in &self.members {
            let is_late = start.is_some() && member.placed.is_none();
            let (topic, from) = (member.lane.topic(), member.placed.unwrap_or(0));
            self.assembly.join(*number, topic, from, is_late);
        }
        start
    }

    /// The transaction topic is read from this offset on. Every source logs a place at once, so that
    /// one that has none after a restart is a new one.
    pub fn began(&mut self, offset: i64) {
        self.assembly.began(offset);
        self.log_places();
    }

    /// The transaction topic was made again: its offsets mean nothing any more.
    pub fn begin_anew(&mut self) {
        for (number, member) in &mut self.members {
            member.lane.forget_transactions();
            self.assembly.begin_anew(*number);
        }
    }

    /// Whether [`Group::start`] was called.
    pub fn has_started(&self) -> bool {
        self.has_started
    }

    /// Whether there is a source.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether a source of it stands nowhere yet.
    pub fn has_new(&self) -> bool {
        self.members.values().any(|member| member.placed.is_none())
    }

    /// A source goes; its letters are given up to the other thread no longer.
    pub fn leave(&mut self, number: u64) {
        self.note_leaving();
        self.assembly.leave(number);
        if let Some(mut member) = self.members.remove(&number)
            && let Some(letters) = &mut member.letters
        {
            letters.finish(&member.context);
        }
    }

    /// Reads a partition of a source from an offset on; it ends at `high` now.
    pub fn begin(&mut self, place: Place, offset: i64, high: i64) {
        if let Some(member) = self.members.get_mut(&place.member) {
            member.lane.begin(place.partition, offset);
            self.assembly.begin(place, offset, high);
        }
    }

    /// Never reads a partition of a source again.
    pub fn give_up(&mut self, place: Place) {
        if let Some(member) = self.members.get_mut(&place.member) {
            member.lane.give_up(place.partition);
            self.assembly.end(place);
        }
    }

    /// All partitions of a source have begun.
    pub fn ready(&mut self, number: u64) {
        self.assembly.ready(number);
    }

    /// Messages of a source, in their order.
    pub fn take(&mut self, number: u64, messages: Vec<Held>, now: u64) {
        for held in messages {
            let place = Place {
                member: number,
                partition: held.record.partition(),
            };
            let arrival = Arrival {
                transaction: held.decoded.transaction.clone(),
                offset: held.record.offset(),
                bytes: held.record.bytes(),
                message: held,
            };
            self.assembly.arrive(place, arrival, now);
        }
    }

    /// An END of the transaction topic.
    pub fn told(&mut self, end: End, now: u64) {
        self.assembly.told(end, now);
    }

    /// All ENDs that were written a moment ago were told.
    pub fn told_all(&mut self, now: u64) {
        self.assembly.told_all(now);
    }

    /// A partition's log ended at `high` a moment ago.
    pub fn looked(&mut self, place: Place, high: i64, now: u64) {
        self.assembly.looked(place, high, now);
    }

    /// Where the partitions of a source that wanted to know ended a moment ago.
    pub fn sweep_at(&mut self, number: u64, ends: BTreeMap<i32, i64>) {
        if let Some(member) = self.members.get_mut(&number) {
            member.lane.sweep_at(ends);
        }
    }

    /// Transactions that became visible in parts.
    pub fn splits(&self) -> u64 {
        self.splits
    }

    /// ENDs that wait.
    pub fn ends(&self) -> usize {
        self.assembly.ends()
    }

    /// Whether the transaction topic is to be looked at, because something waited too long for it.
    pub fn wants_told_all(&self, now: u64) -> bool {
        self.assembly.overdue(now).1
    }

    /// Applies and stages what can go on.
    pub fn work(&mut self, now: u64) {
        loop {
            let (mut events, mut bytes) = (0, 0);
            while events < BATCH_EVENTS && bytes < BATCH_BYTES {
                let members = &self.members;
                let has_seen = |place: Place, held: &Held| {
                    let member = members.get(&place.member);
                    member.is_some_and(|member| member.lane.has_seen(&held.decoded))
                };
                let free = self.assembly.step(now, &has_seen);
                if free.is_empty() {
                    break;
                }
                events += free.len();
                for (place, held) in free {
                    bytes += held.record.bytes();
                    self.apply(place, held);
                }
            }
            self.tell_splits(now);
            if now >= self.placed_at + LOG_PLACE {
                self.placed_at = now;
                self.log_places();
            }
            let staged = self.stage();
            if events == 0 || staged.is_err() {
                break;
            }
        }
        self.wish(now);
    }

    fn apply(&mut self, place: Place, held: Held) {
        let Some(member) = self.members.get_mut(&place.member) else {
            return;
        };
        let Held { decoded, record } = held;
        let (lane, letters) = (&mut member.lane, member.letters.as_mut());
        record.with_raw(|raw| lane.take(decoded, raw, letters));
    }

    /// A source whose topic is still goes on in the transaction topic.
    fn log_places(&mut self) {
        let through = self.assembly.through();
        for member in self.members.values_mut() {
            if through.is_some() && member.placed != through {
                member.lane.log_position();
            }
        }
    }

    /// Stages what the lanes hold, as one record.
    fn stage(&mut self) -> Result<(), SinkClosed> {
        self.note_leaving();
        if self.is_closing {
            return Err(SinkClosed);
        }
        // A late one has no place yet, and is late again after a restart.
        let through = self.assembly.through();
        let (mut numbers, mut parts) = (Vec::new(), Vec::new());
        for (number, member) in &mut self.members {
            if member.is_leaving {
                continue;
            }
            let is_late = self.assembly.is_late(*number);
            if let Some(through) = through.filter(|_| !is_late) {
                member.lane.pass_transactions(through);
            }
            let Some(batch) = member.lane.batch() else {
                continue;
            };
            numbers.push(*number);
            parts.push(Part {
                source: member.context.sink.source(),
                name: member.context.name.as_str().into(),
                batch,
            });
        }
        while let Some(first) = numbers.first() {
            let Some(member) = self.members.get_mut(first) else {
                break;
            };
            let Err(refused) = member.context.sink.stage_together(parts) else {
                break;
            };
            parts = refused;
            member.is_leaving = true;
            if !member.context.is_dropped() {
                // All of them are being stopped, one after another: a part without the others' must
                // not be logged. It is read again.
                self.is_closing = true;
                return Err(SinkClosed);
            }
            numbers.remove(0);
            parts.remove(0);
        }
        for number in &numbers {
            if let Some(member) = self.members.get_mut(number) {
                member.lane.was_staged();
                member.placed = member.lane.transactions();
            }
        }
        Ok(())
    }

    fn note_leaving(&mut self) {
        for member in self.members.values_mut() {
            if member.context.is_stopping() {
                member.is_leaving = true;
                self.is_closing |= !member.context.is_dropped();
            }
        }
    }

    /// Goes on with letters for other programs; `false` when a source takes no more.
    pub(crate) fn pump(&mut self) {
        for member in self.members.values_mut() {
            if let Some(letters) = &mut member.letters
                && !member.is_leaving
                && letters.pump(&member.context).is_err()
            {
                member.is_leaving = true;
            }
        }
    }

    /// Says why it cannot go on.
    pub fn fail(&mut self, reason: &str) {
        self.is_closing = true;
        self.failure = Some(reason.to_owned());
        for member in self.members.values() {
            let mut wishes = member.board.lock().unwrap_or_else(PoisonError::into_inner);
            wishes.failure.clone_from(&self.failure);
        }
    }

    /// Tells the readers what is wanted of them.
    fn wish(&mut self, now: u64) {
        let held = self.assembly.held_bytes();
        metrics::gauge!(telemetry::TRANSACTIONS_HELD.name, "connection" => self.name.clone())
            .set(held as f64);
        let paused = self.assembly.paused();
        let (look_at, _) = self.assembly.overdue(now);
        for (number, member) in &self.members {
            let own = |places: &mut dyn Iterator<Item = &Place>| -> BTreeSet<i32> {
                let own = places.filter(|place| place.member == *number);
                own.map(|place| place.partition).collect()
            };
            let mut wishes = member.board.lock().unwrap_or_else(PoisonError::into_inner);
            wishes.paused = own(&mut paused.iter());
            wishes.look_at = own(&mut look_at.iter());
            wishes.wants_ends = member.lane.wants_ends();
            wishes.staged = member.lane.reading().collect();
        }
    }

    /// Counts what became visible in parts, and says it once a second at most.
    fn tell_splits(&mut self, now: u64) {
        for number in self.assembly.strangers() {
            let Some(member) = self.members.get_mut(&number) else {
                continue;
            };
            if !std::mem::replace(&mut member.was_told_strange, true) {
                tracing::warn!(
                    source = member.context.name,
                    topic = member.lane.topic(),
                    transactions = self.name,
                    "the topic's name does not end with the name of a table that the transaction \
                     topic tells: its events are not waited for; route no topics by name"
                );
            }
        }
        for (id, split) in self.assembly.splits() {
            self.splits += 1;
            metrics::counter!(
                telemetry::TRANSACTIONS_SPLIT.name, "connection" => self.name.clone()
            )
            .increment(1);
            if self.split_told_at.is_some_and(|at| now < at + 1_000) {
                self.splits_untold += 1;
                continue;
            }
            self.split_told_at = Some(now);
            let why = match split {
                Split::NoEnd => "its END did not come in time",
                Split::Missing => "not all of its events came",
                Split::TooLarge => "it is larger than TRANSACTION_BYTES_MAX",
            };
            tracing::warn!(
                transactions = self.name,
                transaction = &*id,
                why,
                others = std::mem::take(&mut self.splits_untold),
                "a transaction becomes visible in parts"
            );
        }
    }
}
