//! The one thread that makes time (PROTOCOLS §1–3).
//!
//! ```text
//! staged batches ┐                         ┌─▶ log (group commit, beside the work)
//! vectors        ├─▶ tick T (bounded) ─────┤
//! operations     ┘                         └─▶ command stream ─▶ workers ─▶ uppers ─▶ sealed
//! ```
//!
//! Invariants: T strictly increases; a tick is published when the workers' frontier has passed it
//! and its record is durable; unsealed ticks are bounded by count and bytes, so that back-pressure
//! acts before binding; questions read at sealed times only.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque, hash_map};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::{AHashMap, AHashSet};
use crossbeam_channel::Receiver;
use tracing::Span;

use super::Shared;
use super::board::Board;
use super::bus::CommandSender;
use super::clock::{Mint, RESERVE_MICROS};
use super::command::{Command, Tick};
use super::lanes::{Lanes, StagedBatch, VectorKey};
use super::message::{AskRequest, CatalogChange, Declared, Message};
use super::program::{Program, QuestionId};
use crate::durable::{Ddl, LaneRange, LogSequence, Record, Tick as LoggedTick};
use crate::limits;
use crate::model::{Change, Key, ObjectId, Time, VectorFact, VectorRef};

/// Idle ticks: how old a reply's `as_of` may be when nothing changes.
const HEARTBEAT_MICROS: u64 = 1_000_000;
/// Vector facts bound to one tick.
const TICK_FACTS_MAX: usize = 4 * limits::TICK_INDEXED_ROWS_MAX;

/// The sequencer's state.
pub(super) struct Sequencer<P: Program> {
    pub(super) shared: Arc<Shared<P>>,
    pub(super) bus: CommandSender<P>,
    pub(super) mint: Mint,
    pub(super) lanes: Lanes,
    pub(super) board: Board,
    /// Vectors bound to some tick.
    pub(super) bound: AHashMap<VectorKey, VectorRef>,
    /// Texts that their models refuse.
    refused: AHashSet<VectorKey>,
    /// Vectors stored, to be bound with the next ticks.
    pub(super) facts: VecDeque<VectorFact>,
    operations: VecDeque<(P::Operation, Box<dyn FnOnce(Time) + Send>)>,
    /// Logged ticks that are not durable yet.
    undurable: VecDeque<(LogSequence, Time)>,
    durable_through: LogSequence,
    /// Unlogged times up to here may be published.
    reserved: Time,
    reserving: Option<(LogSequence, Time)>,
    /// Broadcast and not applied everywhere: (T, bytes).
    unsealed: VecDeque<(Time, usize, Instant)>,
    unsealed_bytes: usize,
    /// One span a tick from its binding to its seal.
    spans: VecDeque<(Time, Span)>,
    waiting: Vec<AskRequest<P>>,
    holds: BTreeMap<QuestionId, (Vec<ObjectId>, Time)>,
    /// What replay holds for an object ([`super::Pin`]).
    pins: BTreeMap<ObjectId, (ObjectId, Time)>,
    declaring: AHashMap<LogSequence, (Time, Declared)>,
    due: Option<Time>,
    is_resumed: bool,
}

impl<P: Program> Sequencer<P> {
    pub(super) fn new(shared: Arc<Shared<P>>, bus: CommandSender<P>) -> Self {
        Sequencer {
            shared,
            bus,
            mint: Mint::default(),
            lanes: Lanes::default(),
            board: Board::default(),
            bound: AHashMap::new(),
            refused: AHashSet::new(),
            facts: VecDeque::new(),
            operations: VecDeque::new(),
            undurable: VecDeque::new(),
            durable_through: LogSequence::default(),
            reserved: 0,
            reserving: None,
            unsealed: VecDeque::new(),
            unsealed_bytes: 0,
            spans: VecDeque::new(),
            waiting: Vec::new(),
            holds: BTreeMap::new(),
            pins: BTreeMap::new(),
            declaring: AHashMap::new(),
            due: None,
            is_resumed: false,
        }
    }

    /// Runs until told to stop. The last tick is sealed and durable on return.
    pub(super) fn run(mut self, mailbox: &Receiver<Message<P>>) {
        loop {
            let pause = self.pause();
            match mailbox.recv_timeout(pause) {
                Ok(Message::Stop) => break,
                Ok(message) => self.take(message),
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => break,
            }
            let mut stop = false;
            for message in mailbox.try_iter().take(10_000) {
                match message {
                    Message::Stop => stop = true,
                    message => self.take(message),
                }
            }
            self.turn();
            if stop {
                break;
            }
        }
        self.finish(mailbox);
    }

    /// One turn: publish, bind what is ready, dispatch questions, keep house.
    fn turn(&mut self) {
        self.publish();
        self.reserve();
        if self.is_resumed {
            while self.has_room() && self.tick_if_needed() {}
        }
        self.dispatch();
    }

    /// How long to sleep when nobody writes.
    fn pause(&self) -> Duration {
        let now = self.shared.clock.now_micros();
        let mut until =
            self.mint.last().max(now.saturating_sub(HEARTBEAT_MICROS)) + HEARTBEAT_MICROS;
        until = until.min(self.due.unwrap_or(Time::MAX));
        if self.has_room() {
            until = until.min(self.lanes.next_deadline().unwrap_or(Time::MAX));
            let wanted = self.waiting.iter();
            let wanted = wanted.filter_map(|ask| ask.wants_tick_at(self.mint.last()));
            until = until.min(wanted.min().unwrap_or(Time::MAX));
        }
        let mut pause =
            Duration::from_micros(until.saturating_sub(now).clamp(200, HEARTBEAT_MICROS));
        if let Some(deadline) = self.waiting.iter().map(|ask| ask.deadline).min() {
            let left = deadline.saturating_duration_since(Instant::now());
            pause = pause.min(left.max(Duration::from_micros(200)));
        }
        pause
    }

    fn take(&mut self, message: Message<P>) {
        match message {
            Message::Staged(batches) => {
                batches
                    .into_iter()
                    .for_each(|batch| self.lanes.stage(batch));
            }
            Message::Prepared {
                lane,
                sequence,
                prepared,
            } => {
                for want in &prepared.wants {
                    if let Some(at) = want.at {
                        self.fact(VectorFact {
                            model: want.model,
                            content: want.content,
                            at,
                        });
                    }
                }
                let now = self.shared.clock.now_micros();
                let (bound, refused) = (&self.bound, &self.refused);
                let is_known = |key: &VectorKey| bound.contains_key(key) || refused.contains(key);
                self.lanes
                    .prepared(&lane, sequence, &prepared, now, &is_known);
            }
            Message::Vector(fact) => self.fact(fact),
            // Who needs one of them again waits for it again.
            Message::Forgotten(facts) => {
                for fact in &facts {
                    let key = (fact.model, fact.content);
                    if self.bound.get(&key) == Some(&fact.at) {
                        self.bound.remove(&key);
                    }
                }
                self.bus.send(Command::Forget(facts));
            }
            Message::NoVector(model, content) => self.no_vector((model, content)),
            Message::Ask(ask) => self.waiting.push(ask),
            Message::Done(id) => self.release(id),
            Message::Cancel(id) => {
                self.waiting.retain(|ask| ask.id != id);
                if self.holds.contains_key(&id) {
                    self.bus.send(Command::Cancel(id));
                    self.release(id);
                }
            }
            Message::Operate(operation, bound) => self.operations.push_back((operation, bound)),
            Message::Declare(change, declared) => self.declare(change, declared),
            Message::Uppers(uppers) => {
                for (id, upper) in uppers {
                    self.board.applied(id, upper);
                }
            }
            Message::Durable(through) => {
                self.durable_through = self.durable_through.max(through);
            }
            Message::Due(at) => self.due = Some(self.due.map_or(at, |due| due.min(at))),
            Message::Unpin(id) => self.unpin(id),
            Message::Resume => {
                self.is_resumed = true;
                // A tick at once: questions wait for a time above all that was published before.
                self.due = Some(0);
            }
            Message::Stop => unreachable!("handled by run"),
        }
    }

    /// Ends the workers of an engine that does not start.
    pub(super) fn stop_workers(&mut self) {
        self.bus.send(Command::Stop);
    }

    /// A vector is stored: bind it once; again when it was forgotten meanwhile and has another place.
    fn fact(&mut self, fact: VectorFact) {
        self.refused.remove(&(fact.model, fact.content));
        // `bound` from here on: a batch prepared before the next tick must not wait for it.
        let before = self.bound.insert((fact.model, fact.content), fact.at);
        if before != Some(fact.at) {
            self.facts.push_back(fact);
        }
        self.lanes
            .vector_arrived(&(fact.model, fact.content), self.mint.last() + 1);
    }

    /// A model refuses a text: nobody waits for its vector, neither now nor when it is asked for again.
    fn no_vector(&mut self, key: VectorKey) {
        if self.refused.len() >= limits::EMBED_REFUSED_MAX {
            // Who needs one of them asks its model, which says so again.
            self.refused.clear();
        }
        self.refused.insert(key);
        self.lanes.vector_arrived(&key, self.mint.last());
    }

    fn has_room(&self) -> bool {
        self.unsealed.len() < limits::UNSEALED_TICKS_MAX
            && self.unsealed_bytes < limits::UNSEALED_BYTES_MAX
    }

    /// Makes a tick when there is something to bind or time must move; false when not.
    fn tick_if_needed(&mut self) -> bool {
        let now = self.shared.clock.now_micros();
        let next = now.max(self.mint.last() + 1);
        let preparer = Arc::clone(&self.shared.preparer);
        let taken = self.lanes.take(now, next, &|model| preparer.is_open(model));
        let is_due = self.due.is_some_and(|due| due <= now)
            || now >= self.mint.last().saturating_add(HEARTBEAT_MICROS)
            || self
                .waiting
                .iter()
                .filter_map(|ask| ask.wants_tick_at(self.mint.last()))
                .any(|at| at <= now);
        if taken.is_empty() && self.facts.is_empty() && self.operations.is_empty() && !is_due {
            return false;
        }
        let at = self.mint.mint(now);
        debug_assert!(at >= next, "bound at the time that was noted");
        if self.due.is_some_and(|due| due <= at) {
            self.due = None;
        }
        self.tick(at, taken);
        true
    }

    /// Logs and broadcasts a tick.
    fn tick(&mut self, at: Time, batches: Vec<StagedBatch>) {
        let count = self.facts.len().min(TICK_FACTS_MAX);
        let facts: Vec<VectorFact> = self.facts.drain(..count).collect();
        let operations: Vec<_> = self.operations.drain(..).collect();
        let bytes = batches.iter().map(|batch| batch.bytes).sum::<usize>() + facts.len() * 64;
        if !batches.is_empty() || !facts.is_empty() {
            let lanes = lane_ranges(&batches);
            let record = Record::Tick(LoggedTick {
                at,
                lanes,
                vectors: facts.clone(),
            });
            let sequence = self.shared.log.append(record, None);
            self.undurable.push_back((sequence, at));
            metrics::counter!("headwater_ticks_total").increment(1);
        }
        for batch in &batches {
            self.shared.ingest.release(batch.source, batch.bytes);
        }
        let (operations, callbacks): (Vec<_>, Vec<_>) = operations.into_iter().unzip();
        self.broadcast(at, batches, &facts, operations, bytes);
        callbacks.into_iter().for_each(|callback| callback(at));
    }

    /// Broadcasts a tick to the workers.
    pub(super) fn broadcast(
        &mut self,
        at: Time,
        batches: Vec<StagedBatch>,
        facts: &[VectorFact],
        operations: Vec<P::Operation>,
        bytes: usize,
    ) {
        let since = self.board.advance_sinces();
        let is_remote = self.shared.is_cluster;
        let vectors = facts
            .iter()
            .map(|fact| {
                let vector = is_remote
                    .then(|| self.shared.preparer.vector(fact.at))
                    .flatten();
                (*fact, vector)
            })
            .collect();
        let changes = merge_batches(batches);
        let rows = changes
            .iter()
            .map(|(_, changes)| changes.len())
            .sum::<usize>();
        let (vectors_count, operations_count) = (facts.len(), operations.len());
        let span = tracing::debug_span!(
            "tick",
            at,
            rows,
            bytes,
            vectors = vectors_count,
            operations = operations_count
        );
        // A span that nobody listens to need not be kept.
        if !span.is_disabled() {
            self.spans.push_back((at, span));
        }
        self.bus.send(Command::Tick(Tick {
            at,
            changes,
            vectors,
            operations,
            since,
        }));
        self.unsealed.push_back((at, bytes, Instant::now()));
        self.unsealed_bytes += bytes;
    }

    /// Publishes what is applied and durable.
    pub(super) fn publish(&mut self) {
        let applied = self.board.applied_min().unwrap_or(Time::MAX);
        while self.unsealed.front().is_some_and(|(at, ..)| *at < applied) {
            let (_, bytes, sent) = self.unsealed.pop_front().expect("looked at above");
            self.unsealed_bytes -= bytes;
            metrics::histogram!("headwater_tick_seal_seconds").record(sent.elapsed().as_secs_f64());
        }
        while self
            .undurable
            .front()
            .is_some_and(|(log, _)| *log <= self.durable_through)
        {
            self.undurable.pop_front();
        }
        if let Some((log, until)) = self.reserving
            && log <= self.durable_through
        {
            self.reserved = self.reserved.max(until);
            self.reserving = None;
        }
        let through = self.durable_through;
        for (_, (at, declared)) in self.declaring.extract_if(|log, _| *log <= through) {
            declared(Ok(at));
        }
        let logged = self
            .undurable
            .front()
            .map_or(self.mint.last(), |(_, at)| at - 1);
        let durable = logged.min(self.reserved);
        while self
            .spans
            .front()
            .is_some_and(|(at, _)| *at < applied && *at <= durable)
        {
            self.spans.pop_front();
        }
        if self.board.publish(durable) {
            self.shared.show(&self.board, self.mint.last());
        }
        metrics::gauge!("headwater_unsealed_ticks").set(self.unsealed.len() as f64);
    }

    /// Keeps times reserved ahead, so that a crash gives no published time a second meaning.
    fn reserve(&mut self) {
        let wall = self.shared.clock.now_micros();
        let now = wall.max(self.mint.last());
        // Time that leads the clock goes on by microseconds: of a program that is killed again and again,
        // each run would else take seconds more.
        let ahead = match self.mint.last() > wall {
            true => RESERVE_MICROS / 20,
            false => RESERVE_MICROS,
        };
        if self.reserving.is_none() && self.reserved < now + ahead / 2 {
            let until = now + ahead;
            let sequence = self.shared.log.append(Record::Reserve(until), None);
            self.reserving = Some((sequence, until));
        }
    }

    /// Sends every question whose time has come, those of one time together.
    fn dispatch(&mut self) {
        let mut ready: BTreeMap<Time, Vec<(QuestionId, P::Question)>> = BTreeMap::new();
        for ask in std::mem::take(&mut self.waiting) {
            match ask.decide(&self.board, &self.lanes) {
                None => self.waiting.push(ask),
                Some(Err(error)) => (ask.accepted)(Err(error)),
                Some(Ok(at)) => {
                    self.board.hold(&ask.over, at);
                    self.holds.insert(ask.id, (ask.over, at));
                    if let Some(question) = ask.question {
                        ready.entry(at).or_default().push((ask.id, question));
                    }
                    (ask.accepted)(Ok(at));
                }
            }
        }
        for (at, questions) in ready {
            self.bus.send(Command::Ask { at, questions });
        }
    }

    fn release(&mut self, id: QuestionId) {
        if let Some((over, at)) = self.holds.remove(&id) {
            self.board.release(&over, at);
        }
    }

    /// Holds a collection's history for an object until [`Sequencer::unpin`].
    pub(super) fn pin(&mut self, id: ObjectId, collection: ObjectId, at: Time) {
        self.board.hold(&[collection], at);
        self.pins.insert(id, (collection, at));
    }

    fn unpin(&mut self, id: ObjectId) {
        if let Some((collection, at)) = self.pins.remove(&id) {
            self.board.release(&[collection], at);
        }
    }

    fn declare(&mut self, change: CatalogChange<P::Definition>, declared: Declared) {
        let at = self.mint.mint(self.shared.clock.now_micros());
        let payload = bincode::serde::encode_to_vec(&change, bincode::config::standard())
            .expect("definitions are plain values");
        let sequence = self
            .shared
            .log
            .append(Record::Ddl(Ddl { at, payload }), None);
        self.undurable.push_back((sequence, at));
        self.declaring.insert(sequence, (at, declared));
        // A new object asks itself for what is bound before it; what waits was prepared without it.
        let mut read = Vec::new();
        if let CatalogChange::Install { retain, .. } = &change {
            read.extend(retain.iter().map(|(id, _)| *id));
        }
        self.install(at, change);
        self.broadcast(at, Vec::new(), &[], Vec::new(), 0);
        for batch in self.lanes.prepare_again(&read) {
            self.shared.prepare(batch);
        }
    }

    /// Carries a catalog change out, now and at replay.
    pub(super) fn install(&mut self, at: Time, change: CatalogChange<P::Definition>) {
        match change {
            CatalogChange::Install {
                id,
                object,
                is_collection,
                retain,
            } => {
                self.bus.send(Command::Install { at, id, object });
                if is_collection {
                    self.board.add(id, at, 0);
                }
                for (id, micros) in retain {
                    self.board.retain(id, micros);
                }
            }
            CatalogChange::Uninstall { id } => {
                let readers: Vec<QuestionId> = self
                    .holds
                    .iter()
                    .filter(|(_, (over, _))| over.contains(&id))
                    .map(|(question, _)| *question)
                    .collect();
                for question in readers {
                    self.bus.send(Command::Cancel(question));
                    self.release(question);
                }
                self.unpin(id);
                self.bus.send(Command::Uninstall(id));
                self.board.remove(id);
                self.lanes.drop_source(id);
                self.shared.ingest.drop_source(id);
            }
        }
    }

    /// Seals what is bound, then stops the workers.
    fn finish(&mut self, mailbox: &Receiver<Message<P>>) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let last = self.mint.last();
        let sequence = self.shared.log.append(Record::Reserve(last), None);
        self.shared
            .log
            .wait_durable(sequence, Duration::from_secs(5));
        self.durable_through = self.shared.log.durable();
        while Instant::now() < deadline
            && self
                .board
                .applied_min()
                .is_some_and(|applied| applied <= last)
        {
            match mailbox.recv_timeout(Duration::from_millis(50)) {
                Ok(Message::Stop) | Err(_) => {}
                Ok(message) => self.take(message),
            }
            self.publish();
        }
        for ask in self.waiting.drain(..) {
            (ask.accepted)(Err(super::AskError::Stopping));
        }
        self.bus.send(Command::Stop);
    }

    /// Whether more may be broadcast during replay.
    pub(super) fn replay_has_room(&self) -> bool {
        self.has_room()
    }
}

/// `(source, lane)` ranges of the batches of a tick.
fn lane_ranges(batches: &[StagedBatch]) -> Vec<LaneRange> {
    let mut ranges: BTreeMap<(ObjectId, &str), (u64, u64)> = BTreeMap::new();
    for batch in batches {
        let range = ranges
            .entry((batch.source, &batch.lane))
            .or_insert((batch.sequence, batch.sequence));
        range.1 = batch.sequence;
    }
    ranges
        .into_iter()
        .map(|((source, lane), (from, through))| LaneRange {
            source,
            lane: lane.to_owned(),
            from,
            through,
        })
        .collect()
}

/// At most one change a key and source: the last in binding order wins.
fn merge_batches(batches: Vec<StagedBatch>) -> Vec<(ObjectId, Vec<Change>)> {
    let mut sources: BTreeMap<ObjectId, Vec<Change>> = BTreeMap::new();
    for batch in batches {
        // Mostly nobody else has it any more: it is logged and prepared.
        let changes = Arc::unwrap_or_clone(batch.changes);
        match sources.entry(batch.source) {
            Entry::Vacant(first) => drop(first.insert(changes)),
            Entry::Occupied(mut more) => more.get_mut().extend(changes),
        }
    }
    for changes in sources.values_mut() {
        let overtaken = overtaken(changes);
        if overtaken.contains(&true) {
            let mut overtaken = overtaken.into_iter();
            changes.retain(|_| overtaken.next() != Some(true));
        }
    }
    sources.into_iter().collect()
}

/// Of each change, whether another one of its key takes its place.
fn overtaken(changes: &[Change]) -> Vec<bool> {
    let mut overtaken = vec![false; changes.len()];
    let mut last: AHashMap<&Key, usize> = AHashMap::with_capacity(changes.len());
    for (i, change) in changes.iter().enumerate() {
        match last.entry(&change.key) {
            hash_map::Entry::Vacant(first) => drop(first.insert(i)),
            hash_map::Entry::Occupied(mut at) => {
                let is_newer = change.version >= changes[*at.get()].version;
                let loser = if is_newer { at.insert(i) } else { i };
                overtaken[loser] = true;
            }
        }
    }
    overtaken
}
