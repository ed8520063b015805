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
//! A large transaction is staged in pieces, each with what was staged meanwhile; all of it becomes visible
//! with the last ([`super::assembly`]).
//!
//! Invariants: records that become visible together hold whole transactions, but for those counted as
//! split; what ends a transaction names every lane that has something behind its first piece. No thread, no
//! clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use engine::contract::{Part, SinkClosed, SourceContext};
use engine::error::WorldError;
use engine::model::Schema;
use engine::telemetry;

use super::assembly::{Arrival, Assembly, Bounds, End, Next, Parted, Place, Split};
use crate::envelope::table::Delivery;
use crate::envelope::{ChangeKind, Decoded, Envelope, Order};
use crate::kafka::Record;
use crate::kafka::lane::{Begun, Lane};
use crate::kafka::letter_topic::LetterTopic;

/// Events staged at once, at most (soft for one transaction).
const BATCH_EVENTS: usize = 4_096;
/// Bytes of them.
const BATCH_BYTES: usize = 2 << 20;
/// A source without events logs its place in the transaction topic so often, milliseconds.
const LOG_PLACE: u64 = 60_000;

/// What a source may wait for, beside its own topic.
const TOPIC: &str = "the transaction topic";

/// A message that was decoded and not applied yet.
#[derive(Debug, Clone)]
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
    /// Partitions of which it is to be told when all has arrived that was written until now.
    pub look_at: BTreeSet<i32>,
    /// The group's time of that.
    pub asked_at: u64,
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
    /// Whether a streamed change without a transaction was told.
    was_told_bare: bool,
    /// The place in the transaction topic that was staged last.
    placed: Option<i64>,
}

/// See the module.
pub struct Group {
    /// The transaction topic.
    name: String,
    assembly: Assembly<Held>,
    members: BTreeMap<u64, Member>,
    /// The sources that staged something since the first piece of a transaction.
    open: BTreeSet<u64>,
    has_started: bool,
    is_closing: bool,
    /// Why it cannot go on.
    failure: Option<String>,
    /// What its transaction topic waits for.
    waits: Option<String>,
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
            open: BTreeSet::new(),
            has_started: false,
            is_closing: false,
            failure: None,
            waits: None,
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
        let mut lane = Lane::new(&context, topic.to_owned(), schema, Envelope::Debezium)?;
        if self.has_started {
            lane.leave_transactions();
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
            was_told_bare: false,
        };
        self.show(&member);
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
    pub fn start(&mut self, now: u64) -> Option<i64> {
        self.has_started = true;
        self.resume(now);
        let start = self.members.values().filter_map(|one| one.placed).min();
        for (number, member) in &self.members {
            let is_late = start.is_some() && member.placed.is_none();
            let (topic, from) = (member.lane.topic(), member.placed.unwrap_or(0));
            self.assembly.join(*number, topic, from, is_late);
        }
        start
    }

    /// Goes on with a transaction of which pieces were staged.
    fn resume(&mut self, now: u64) {
        let members = self.members.iter();
        let begun =
            members.filter_map(|(number, one)| Some((number, one.placed, one.lane.begun()?)));
        self.open.extend(begun.clone().map(|(number, ..)| *number));
        // A source that failed alone may stand in an earlier one.
        let first = begun.clone().min_by_key(|(_, placed, _)| *placed);
        let Some((.., first)) = first else {
            return;
        };
        let same = begun.filter(|(.., begun)| begun.id == first.id);
        let base = same.map(|(number, _, begun)| (*number, begun.events));
        self.assembly.resume(&first.id, base.collect(), now);
    }

    /// The transaction topic is read from this offset on. Every source logs a place at once, so that
    /// one that has none after a restart is a new one.
    pub fn began(&mut self, offset: i64) {
        self.assembly.began(offset);
        self.log_places();
    }

    /// The transaction topic was made again: its offsets mean nothing any more.
    pub fn begin_anew(&mut self) {
        self.assembly.begin_anew();
        for member in self.members.values_mut() {
            member.lane.forget_transactions();
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
        self.open.remove(&number);
        if let Some(mut member) = self.members.remove(&number)
            && let Some(letters) = &mut member.letters
        {
            letters.finish(&member.context);
        }
    }

    /// Reads a partition of a source from an offset on; it ends at `high` now, and the transaction topic
    /// ended at `ends` before that, where they are known.
    pub fn begin(&mut self, place: Place, offset: i64, high: Option<i64>, ends: Option<i64>) {
        if let Some(member) = self.members.get_mut(&place.member) {
            member.lane.begin(place.partition, offset);
            if let Some(ends) = ends {
                self.assembly.begin_from(place.member, ends);
            }
            self.assembly.begin(place, offset, high);
        }
    }

    /// Never reads a partition of a source again, when what waits of it has gone on.
    pub fn give_up(&mut self, place: Place) {
        if !self.assembly.close(place)
            && let Some(member) = self.members.get_mut(&place.member)
        {
            member.lane.give_up(place.partition);
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
            let has_place = |order: Order| order.place().is_some();
            let is_truncate = held.decoded.truncates().any(has_place);
            let arrival = Arrival {
                transaction: held.decoded.transaction.clone(),
                offset: held.record.offset(),
                bytes: held.record.bytes(),
                is_keyed: !held.decoded.changes.is_empty(),
                is_truncate,
                message: held,
            };
            if let Some(member) = self.members.get_mut(&number)
                && !member.was_told_bare
                && is_bare(&arrival.message.decoded)
            {
                member.was_told_bare = true;
                tracing::warn!(
                    source = member.context.name,
                    topic = member.lane.topic(),
                    transactions = self.name,
                    "a change names no transaction, and is visible by itself: is \
                     provide.transaction.metadata=true set, and does no transform remove \"transaction\"?"
                );
            }
            self.assembly.arrive(place, arrival, now);
        }
    }

    /// An END of the transaction topic.
    pub fn told(&mut self, end: End, now: u64) {
        self.assembly.told(end, now);
    }

    /// All ENDs that were written until then were told.
    pub fn told_all(&mut self, at: u64) {
        self.assembly.told_all(at);
    }

    /// All that was written to a partition until then was taken.
    pub fn dry(&mut self, place: Place, at: u64) {
        self.assembly.dry(place, at);
    }

    /// A partition was read to its end.
    pub fn reached(&mut self, place: Place) {
        self.assembly.reached(place);
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
            let (mut events, mut bytes, mut is_closed) = (0, 0, false);
            while events < BATCH_EVENTS && bytes < BATCH_BYTES && !is_closed {
                let members = &self.members;
                let delivery = |place: Place, held: &Held| {
                    let member = members.get(&place.member);
                    member.map_or(Delivery::First, |member| {
                        member.lane.delivery(&held.decoded)
                    })
                };
                let free = self.assembly.step(now, &delivery);
                is_closed = self.assembly.take_closed();
                if free.is_empty() {
                    break;
                }
                events += free.len();
                for next in free {
                    bytes += next.message.record.bytes();
                    self.apply(next);
                }
            }
            self.give_up_drained();
            self.tell_splits(now);
            if now >= self.placed_at + LOG_PLACE {
                self.placed_at = now;
                self.log_places();
            }
            let staged = self.stage();
            if events == 0 && !is_closed || staged.is_err() {
                break;
            }
        }
        self.wish(now);
    }

    fn apply(&mut self, next: Next<Held>) {
        let Some(member) = self.members.get_mut(&next.place.member) else {
            return;
        };
        let Held { decoded, record } = next.message;
        let (lane, letters) = (&mut member.lane, member.letters.as_mut());
        record.with_raw(|raw| match next.is_ahead {
            true => lane.take_ahead(&decoded, raw, letters),
            false => lane.take(decoded, raw, letters),
        });
    }

    /// Partitions that are read no longer, and of which all has gone on.
    fn give_up_drained(&mut self) {
        for place in self.assembly.drained() {
            if let Some(member) = self.members.get_mut(&place.member) {
                member.lane.give_up(place.partition);
            }
        }
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
        let is_open = self.assembly.is_open();
        let (mut numbers, mut parts) = (Vec::new(), Vec::new());
        for (number, member) in &mut self.members {
            if member.is_leaving {
                continue;
            }
            if !is_open && self.open.contains(number) {
                member.lane.log_position();
            }
            let begun = self.assembly.begun(*number);
            member.lane.set_begun(begun.map(|(id, events)| Begun {
                id: id.to_owned(),
                events,
            }));
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
            let Err(refused) = member.context.sink.stage_together(parts, is_open) else {
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
        match is_open {
            true => self.open.extend(&numbers),
            false => self.open.clear(),
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

    /// Tells people of every source that the transaction topic waits, or goes on.
    pub fn waits(&mut self, reason: Option<String>) {
        self.waits = reason;
        self.members.values().for_each(|member| self.show(member));
    }

    fn show(&self, member: &Member) {
        match &self.waits {
            Some(reason) => member.context.waits_for(TOPIC, reason),
            None => member.context.goes_on(TOPIC),
        }
    }

    /// Tells the readers what is wanted of them.
    fn wish(&mut self, now: u64) {
        let held = self.assembly.held_bytes();
        metrics::gauge!(telemetry::TRANSACTIONS_HELD.name, "connection" => self.name.clone())
            .set(held as f64);
        let paused = self.assembly.paused(now);
        let (look_at, _) = self.assembly.overdue(now);
        for (number, member) in &self.members {
            let own = |places: &mut dyn Iterator<Item = &Place>| -> BTreeSet<i32> {
                let own = places.filter(|place| place.member == *number);
                own.map(|place| place.partition).collect()
            };
            let mut wishes = member.board.lock().unwrap_or_else(PoisonError::into_inner);
            wishes.paused = own(&mut paused.iter());
            wishes.look_at = own(&mut look_at.iter());
            wishes.asked_at = now;
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
        for number in self.assembly.caught_up() {
            if let Some(member) = self.members.get(&number) {
                tracing::info!(
                    source = member.context.name,
                    transactions = self.name,
                    "the source has come to where the others of its transaction topic stand; its \
                     transactions are whole from here on"
                );
            }
        }
        for (number, count) in self.assembly.echoes() {
            if let Some(member) = self.members.get(&number) {
                member.lane.was_sent_again(count);
            }
        }
        for parted in self.assembly.splits() {
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
            let others = std::mem::take(&mut self.splits_untold);
            self.tell_split(&parted, others);
        }
    }

    fn tell_split(&self, parted: &Parted, others: u64) {
        let lack = |(number, found, needs): &(u64, u64, u64)| {
            let member = self.members.get(number)?;
            Some(format!(
                "{}: {found} of {needs} events",
                member.context.name
            ))
        };
        let lacks: Vec<String> = parted.lacks.iter().filter_map(lack).collect();
        let (why, hint) = match parted.split {
            Split::NoEnd => (
                "its END did not come in time",
                "does the connector run, and write the transaction topic? else a longer TRANSACTION WAIT",
            ),
            Split::Missing => (
                "not all of its events came",
                "a transform that drops events, skipped.operations, a partition that was given up? else \
                 a longer TRANSACTION WAIT",
            ),
            Split::TooLarge => (
                "it is over TRANSACTION_BYTES_MAX, or more waits than TRANSACTION_EVENTS_BYTES_MAX",
                "smaller transactions, or the source without TRANSACTION TOPIC",
            ),
        };
        tracing::warn!(
            transactions = self.name,
            transaction = &*parted.id,
            why,
            lacks = lacks.join(", "),
            hint,
            others,
            "a transaction becomes visible in parts"
        );
    }
}

/// Whether a message is a change from the database's log that names no transaction.
fn is_bare(decoded: &Decoded) -> bool {
    let is_streamed = |kind| {
        matches!(
            kind,
            ChangeKind::Create | ChangeKind::Update | ChangeKind::Delete
        )
    };
    let mut changes = decoded.changes.iter();
    decoded.transaction.is_none() && changes.any(|change| is_streamed(change.kind))
}
