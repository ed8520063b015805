//! Staged batches between the log and a tick: order within a lane, fairness between lanes, and
//! the wait of a lane's head for its vectors (PROTOCOLS §4.2).
//!
//! ```text
//! stage ─▶ Preparing ─▶ Waiting(missing vectors, deadline) ─▶ Ready ─▶ bound to a tick
//! ```
//!
//! A pure structure: no clock, no thread, no log. Invariants: a lane's batches are bound in the
//! order of their sequence numbers; a batch is bound whole; batches that were staged together are
//! bound together (all were staged at once, so every lane has them in the same order and none waits
//! for another in a circle); an open batch is bound with the next one of its lane, so a transaction that
//! was staged in pieces is bound whole, when its last piece is there; lanes wait for nobody but their head
//! and what belongs to it; a head that did not fit into a tick goes first in the next one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::preparer::{Prepared, Want};
use crate::limits;
use crate::model::{Change, ContentHash, ModelId, ObjectId, Time};

/// One logged batch of one lane.
#[derive(Debug, Clone)]
pub struct StagedBatch {
    /// Its source.
    pub source: ObjectId,
    /// Its lane.
    pub lane: Arc<str>,
    /// Its number within the lane, from 1.
    pub sequence: u64,
    /// Its rows.
    pub changes: Arc<Vec<Change>>,
    /// Its payload, bytes.
    pub bytes: usize,
    /// Whether somebody waits for it: pushes are bound and embedded first.
    pub is_push: bool,
    /// The lanes of the transaction that it is a part of, its own included; empty for a batch that
    /// stands alone.
    pub together: Arc<[LaneId]>,
    /// Whether the next batch of its lane goes on with what it began: both are bound together.
    pub is_open: bool,
}

/// Names a lane.
pub type LaneId = (ObjectId, Arc<str>);

/// The mates of batches that are staged at once; a batch that stands alone has none.
pub(super) fn together(lanes: impl ExactSizeIterator<Item = LaneId>) -> Arc<[LaneId]> {
    match lanes.len() {
        1 => Arc::default(),
        _ => lanes.collect(),
    }
}

/// Names a vector.
pub(super) type VectorKey = (ModelId, ContentHash);

#[derive(Debug)]
struct Waiting {
    batch: StagedBatch,
    is_indexed: bool,
    tokens: usize,
    /// How often it is being prepared.
    preparing: u32,
    missing: AHashSet<VectorKey>,
    deadline: Time,
}

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<Waiting>,
    /// Recently bound batches: (sequence, T).
    bound: VecDeque<(u64, Time)>,
    through: u64,
    /// T of the last late vector that completed a batch.
    late: Time,
    /// Bound batches whose vectors are still missing.
    unfinished: BTreeMap<u64, AHashSet<VectorKey>>,
}

/// All lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<LaneId, Lane>,
    /// Round-robin order; pushes have a turn of their own.
    turn: VecDeque<LaneId>,
    push_turn: VecDeque<LaneId>,
    /// The first ready head that did not fit into the last tick.
    passed_over: Option<LaneId>,
    /// Which batches wait for a vector.
    waiters: AHashMap<VectorKey, Vec<(LaneId, u64)>>,
}

/// Bound batches remembered a lane, to answer "when was sequence n bound".
const BOUND_MAX: usize = 4096;

impl Lanes {
    /// Adds a batch behind its lane.
    pub(super) fn stage(&mut self, batch: StagedBatch) {
        let id = (batch.source, Arc::clone(&batch.lane));
        let turn = if batch.is_push {
            &mut self.push_turn
        } else {
            &mut self.turn
        };
        if !turn.contains(&id) {
            turn.push_back(id.clone());
        }
        self.lanes.entry(id).or_default().queue.push_back(Waiting {
            batch,
            is_indexed: false,
            tokens: 0,
            preparing: 1,
            missing: AHashSet::new(),
            deadline: Time::MAX,
        });
    }

    /// Notes what a batch needs. `is_known` tells the vectors that are bound or about to be.
    pub(super) fn prepared(
        &mut self,
        id: &LaneId,
        sequence: u64,
        prepared: &Prepared,
        now: Time,
        is_known: &dyn Fn(&VectorKey) -> bool,
    ) {
        let Some(waiting) = self.lanes.get_mut(id).and_then(|lane| {
            lane.queue
                .iter_mut()
                .find(|waiting| waiting.batch.sequence == sequence)
        }) else {
            return;
        };
        // A source that was dropped meanwhile may have begun its numbers anew.
        waiting.preparing = waiting.preparing.saturating_sub(1);
        waiting.is_indexed |= prepared.is_indexed;
        waiting.tokens = waiting.tokens.max(prepared.tokens);
        let deadline = now.saturating_add(prepared.deadline_ms * 1000);
        waiting.deadline = waiting.deadline.min(deadline);
        for Want { model, content, at } in &prepared.wants {
            let key = (*model, *content);
            if at.is_none() && !is_known(&key) && waiting.missing.insert(key) {
                self.waiters
                    .entry(key)
                    .or_default()
                    .push((id.clone(), sequence));
            }
        }
    }

    /// The batches of these sources that wait, to be prepared again: for each, [`Lanes::prepared`] is to be
    /// called once more, and before that none is bound.
    pub(super) fn prepare_again(&mut self, sources: &[ObjectId]) -> Vec<StagedBatch> {
        let lanes = self.lanes.iter_mut();
        let lanes = lanes.filter(|((source, _), _)| sources.contains(source));
        let waiting = lanes.flat_map(|(_, lane)| lane.queue.iter_mut());
        let batches = waiting.map(|waiting| {
            waiting.preparing += 1;
            waiting.deadline = Time::MAX;
            waiting.batch.clone()
        });
        batches.collect()
    }

    /// A vector will be bound with the next tick: whoever waited for it no longer does.
    pub(super) fn vector_arrived(&mut self, key: &VectorKey, at: Time) {
        for (id, sequence) in self.waiters.remove(key).unwrap_or_default() {
            let Some(lane) = self.lanes.get_mut(&id) else {
                continue;
            };
            if let Some(missing) = lane.unfinished.get_mut(&sequence) {
                missing.remove(key);
                if missing.is_empty() {
                    lane.unfinished.remove(&sequence);
                    lane.late = lane.late.max(at);
                }
            } else if let Some(waiting) = lane
                .queue
                .iter_mut()
                .find(|waiting| waiting.batch.sequence == sequence)
            {
                waiting.missing.remove(key);
            }
        }
    }

    /// Takes heads that may be bound, pushes first, one batch a lane and round, within a tick's
    /// bounds (soft for one batch). `is_open` tells whether a model's breaker is open.
    pub(super) fn take(
        &mut self,
        now: Time,
        at: Time,
        is_open: &dyn Fn(&ModelId) -> bool,
    ) -> Vec<StagedBatch> {
        let mut load = Load::default();
        let mut taken: Vec<StagedBatch> = Vec::new();
        let mut first = self.passed_over.take();
        let mut progress = true;
        while progress {
            progress = false;
            let turns = first.take().into_iter();
            let turns = turns.chain(self.push_turn.iter().chain(&self.turn).cloned());
            for id in turns.collect::<Vec<LaneId>>() {
                let Some((lanes, heads)) = self.ready_heads(&id, now, is_open) else {
                    continue;
                };
                if !taken.is_empty() && !(load + heads).fits() {
                    self.passed_over.get_or_insert(id);
                    continue;
                }
                load = load + heads;
                for (id, count) in lanes {
                    let lane = self.lanes.get_mut(&id).expect("its head is ready");
                    for _ in 0..count {
                        let head = lane.queue.pop_front().expect("it is ready");
                        lane.note_bound(&head, at);
                        taken.push(head.batch);
                    }
                }
                progress = true;
            }
        }
        self.push_turn
            .rotate_left(usize::from(self.push_turn.len() > 1));
        self.turn.rotate_left(usize::from(self.turn.len() > 1));
        taken
    }

    /// The lanes that are bound with the head of `id`, its own included, with how many batches each, and
    /// what they weigh; `None` while one of those is not ready.
    fn ready_heads(
        &self,
        id: &LaneId,
        now: Time,
        is_open: &dyn Fn(&ModelId) -> bool,
    ) -> Option<(Vec<(LaneId, usize)>, Load)> {
        let group = self.group(id)?;
        let mut load = Load::default();
        for (id, count) in &group {
            for waiting in self.lanes.get(id)?.queue.iter().take(*count) {
                if !waiting.is_ready(now, is_open) {
                    return None;
                }
                load = load + waiting.load();
            }
        }
        Some((group, load))
    }

    /// The lanes that are bound with the head of `id`, with how many batches each; `None` while something
    /// of it was not staged, or is not at the head of its lane.
    fn group(&self, id: &LaneId) -> Option<Vec<(LaneId, usize)>> {
        let (count, last) = self.lanes.get(id)?.through_last()?;
        let together = &last.batch.together;
        if together.is_empty() {
            return Some(vec![(id.clone(), count)]);
        }
        let mut group = Vec::with_capacity(together.len());
        for id in &**together {
            // The lane of a source that was dropped meanwhile is not waited for.
            let Some(lane) = self.lanes.get(id) else {
                continue;
            };
            let (count, mate) = lane.through_last()?;
            if !Arc::ptr_eq(&mate.batch.together, together) {
                return None;
            }
            group.push((id.clone(), count));
        }
        Some(group)
    }

    /// The earliest deadline of a head that waits for vectors.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        // A part of a transaction waits for the last of its mates.
        let deadline = |lane: &Lane| {
            let (_, last) = lane.through_last()?;
            let mates = last.batch.together.iter();
            let mates = mates.filter_map(|id| self.lanes.get(id)?.deadline());
            lane.deadline().max(mates.max())
        };
        let is_prepared = |lane: &&Lane| lane.queue.front().is_some_and(|head| head.preparing == 0);
        let lanes = self.lanes.values().filter(is_prepared);
        lanes.filter_map(deadline).min()
    }

    /// Marks a batch as bound during replay.
    pub(super) fn replayed(&mut self, id: &LaneId, through: u64, at: Time) -> Vec<StagedBatch> {
        let lane = self.lanes.entry(id.clone()).or_default();
        let mut out = Vec::new();
        while lane
            .queue
            .front()
            .is_some_and(|head| head.batch.sequence <= through)
        {
            out.push(lane.queue.pop_front().expect("looked at above").batch);
        }
        lane.through = lane.through.max(through);
        lane.bound.push_back((through, at));
        out
    }

    /// From which T on everything through `sequence` is visible, vectors included; `None` while
    /// something is on the way.
    pub(super) fn visible_at(&self, id: &LaneId, sequence: u64) -> Option<Time> {
        let lane = self.lanes.get(id)?;
        if lane.through < sequence {
            return None;
        }
        if lane
            .unfinished
            .first_key_value()
            .is_some_and(|(first, _)| *first <= sequence)
        {
            return None;
        }
        let bound = lane
            .bound
            .iter()
            .find(|(last, _)| *last >= sequence)
            .map_or(0, |(_, at)| *at);
        Some(bound.max(lane.late))
    }

    /// Forgets a source.
    pub(super) fn drop_source(&mut self, source: ObjectId) {
        self.lanes.retain(|(id, _), _| *id != source);
        self.turn.retain(|(id, _)| *id != source);
        self.push_turn.retain(|(id, _)| *id != source);
    }
}

/// What a tick is bounded by.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    rows: usize,
    /// Those of them that go into an index.
    indexed: usize,
    bytes: usize,
    tokens: usize,
}

impl std::ops::Add for Load {
    type Output = Load;

    fn add(self, other: Load) -> Load {
        Load {
            rows: self.rows + other.rows,
            indexed: self.indexed + other.indexed,
            bytes: self.bytes + other.bytes,
            tokens: self.tokens + other.tokens,
        }
    }
}

impl Load {
    fn fits(&self) -> bool {
        self.rows <= limits::TICK_ROWS_MAX
            && self.indexed <= limits::TICK_INDEXED_ROWS_MAX
            && self.bytes <= limits::TICK_BYTES_MAX
            && self.tokens <= limits::TICK_TOKENS_MAX
    }
}

impl Waiting {
    fn is_ready(&self, now: Time, is_open: &dyn Fn(&ModelId) -> bool) -> bool {
        self.preparing == 0
            && (self.missing.is_empty()
                || now >= self.deadline
                || self.missing.iter().all(|(model, _)| is_open(model)))
    }

    fn load(&self) -> Load {
        let rows = self.batch.changes.len();
        Load {
            rows,
            indexed: if self.is_indexed { rows } else { 0 },
            bytes: self.batch.bytes,
            tokens: self.tokens,
        }
    }
}

impl Lane {
    /// How many batches of its head on are bound together, and the last of them; `None` while that was not
    /// staged.
    fn through_last(&self) -> Option<(usize, &Waiting)> {
        let last = self.queue.iter().position(|one| !one.batch.is_open)?;
        Some((last + 1, &self.queue[last]))
    }

    /// Until when those wait for vectors at most.
    fn deadline(&self) -> Option<Time> {
        let (count, _) = self.through_last()?;
        let batches = self.queue.iter().take(count);
        batches.map(|waiting| waiting.deadline).max()
    }

    fn note_bound(&mut self, head: &Waiting, at: Time) {
        self.through = head.batch.sequence;
        self.bound.push_back((head.batch.sequence, at));
        if self.bound.len() > BOUND_MAX {
            self.bound.pop_front();
        }
        if !head.missing.is_empty() {
            self.unfinished
                .insert(head.batch.sequence, head.missing.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Key;

    fn batch(lane: &str, sequence: u64, is_push: bool) -> StagedBatch {
        StagedBatch {
            source: ObjectId(1),
            lane: lane.into(),
            sequence,
            changes: Arc::new(Vec::new()),
            bytes: 1,
            is_push,
            together: Arc::default(),
            is_open: false,
        }
    }

    /// The parts of a transaction over lanes.
    fn together(parts: &[(&str, u64)]) -> Vec<StagedBatch> {
        let lanes = parts
            .iter()
            .map(|(lane, _)| (ObjectId(1), Arc::from(*lane)))
            .collect();
        let lanes: Arc<[LaneId]> = lanes;
        let part = |(lane, sequence): &(&str, u64)| StagedBatch {
            together: Arc::clone(&lanes),
            ..batch(lane, *sequence, false)
        };
        parts.iter().map(part).collect()
    }

    fn want(byte: u8) -> Prepared {
        let content = ContentHash([byte; 16]);
        Prepared {
            is_indexed: true,
            tokens: 1,
            deadline_ms: 2,
            wants: vec![Want {
                model: ModelId::default(),
                content,
                at: None,
            }],
        }
    }

    fn names(bound: &[StagedBatch]) -> Vec<(String, u64)> {
        bound
            .iter()
            .map(|b| (b.lane.to_string(), b.sequence))
            .collect()
    }

    #[test]
    fn a_head_waits_for_its_vectors_and_other_lanes_do_not_wait_for_it() {
        let mut lanes = Lanes::default();
        let slow: LaneId = (ObjectId(1), "slow".into());
        let quick: LaneId = (ObjectId(1), "quick".into());
        lanes.stage(batch("slow", 1, false));
        lanes.stage(batch("slow", 2, false));
        lanes.stage(batch("quick", 1, true));
        lanes.prepared(&slow, 1, &want(7), 0, &|_| false);
        lanes.prepared(&slow, 2, &Prepared::default(), 0, &|_| false);
        lanes.prepared(&quick, 1, &Prepared::default(), 0, &|_| false);
        assert_eq!(
            names(&lanes.take(0, 1, &|_| false)),
            [("quick".to_owned(), 1)]
        );
        assert_eq!(lanes.visible_at(&slow, 1), None);
        // The deadline passes: bound without the vector, not yet visible as a whole.
        assert_eq!(lanes.next_deadline(), Some(2000));
        let bound = lanes.take(2000, 2, &|_| false);
        assert_eq!(
            names(&bound),
            [("slow".to_owned(), 1), ("slow".to_owned(), 2)]
        );
        assert_eq!(lanes.visible_at(&slow, 1), None);
        lanes.vector_arrived(&(ModelId::default(), ContentHash([7; 16])), 3);
        assert_eq!(lanes.visible_at(&slow, 1), Some(3));
    }

    #[test]
    fn parts_of_a_transaction_are_bound_at_one_time_and_wait_for_each_other() {
        let mut lanes = Lanes::default();
        let [a, b]: [LaneId; 2] = ["a", "b"].map(|lane| (ObjectId(1), lane.into()));
        lanes.stage(batch("b", 1, false));
        let parts = together(&[("a", 1), ("b", 2)]);
        parts.into_iter().for_each(|part| lanes.stage(part));
        lanes.stage(batch("a", 2, false));
        let ready = Prepared::default();
        lanes.prepared(&a, 1, &ready, 0, &|_| false);
        lanes.prepared(&a, 2, &ready, 0, &|_| false);
        lanes.prepared(&b, 2, &ready, 0, &|_| false);
        // The other lane has something before its part: nothing may pass.
        assert_eq!(names(&lanes.take(0, 1, &|_| false)), []);
        lanes.prepared(&b, 1, &want(7), 0, &|_| false);
        assert_eq!(names(&lanes.take(0, 1, &|_| false)), []);
        lanes.vector_arrived(&(ModelId::default(), ContentHash([7; 16])), 1);
        let bound = names(&lanes.take(0, 1, &|_| false));
        let expected = [("b", 1), ("a", 1), ("b", 2), ("a", 2)];
        assert_eq!(bound, expected.map(|(lane, n)| (lane.to_owned(), n)));
    }

    #[test]
    fn the_lane_of_a_dropped_source_is_not_waited_for() {
        let mut lanes = Lanes::default();
        let here: LaneId = (ObjectId(1), "here".into());
        let gone: LaneId = (ObjectId(2), "gone".into());
        let both: Arc<[LaneId]> = Arc::from([here.clone(), gone.clone()]);
        for (source, lane) in [&here, &gone] {
            lanes.stage(StagedBatch {
                source: *source,
                together: Arc::clone(&both),
                ..batch(lane, 1, false)
            });
        }
        lanes.prepared(&here, 1, &Prepared::default(), 0, &|_| false);
        assert_eq!(names(&lanes.take(0, 1, &|_| false)), []);
        lanes.drop_source(ObjectId(2));
        assert_eq!(names(&lanes.take(0, 1, &|_| false)).len(), 1);
    }

    #[test]
    fn rows_that_go_into_an_index_make_smaller_ticks() {
        let row = Change {
            key: Key::text("k"),
            row: None,
            version: 1,
        };
        for (is_indexed, batches) in [(false, 8), (true, 1)] {
            let mut lanes = Lanes::default();
            for sequence in 1..=9 {
                lanes.stage(StagedBatch {
                    changes: Arc::new(vec![row.clone(); 1_000]),
                    ..batch("bulk", sequence, false)
                });
                let prepared = Prepared {
                    is_indexed,
                    ..Prepared::default()
                };
                let bulk = (ObjectId(1), "bulk".into());
                lanes.prepared(&bulk, sequence, &prepared, 0, &|_| false);
            }
            assert_eq!(lanes.take(0, 1, &|_| false).len(), batches);
        }
    }

    #[test]
    fn what_is_open_is_bound_with_its_end_over_all_lanes() {
        let mut lanes = Lanes::default();
        let id = |lane: &str| (ObjectId(1), Arc::from(lane));
        let stage = |lanes: &mut Lanes, batches: Vec<StagedBatch>, is_open| {
            for batch in batches {
                let (id, sequence) = (id(&batch.lane), batch.sequence);
                lanes.stage(StagedBatch { is_open, ..batch });
                lanes.prepared(&id, sequence, &Prepared::default(), 0, &|_| false);
            }
        };
        stage(&mut lanes, vec![batch("a", 1, false)], true);
        stage(&mut lanes, together(&[("a", 2), ("b", 1)]), true);
        stage(&mut lanes, vec![batch("c", 1, false)], false);
        assert_eq!(names(&lanes.take(0, 1, &|_| false)), [("c".to_owned(), 1)]);
        assert_eq!(
            (lanes.visible_at(&id("a"), 1), lanes.next_deadline()),
            (None, None)
        );
        // The end has a vector to wait for.
        let end = together(&[("a", 3), ("b", 2)]);
        end.into_iter().for_each(|part| lanes.stage(part));
        lanes.prepared(&id("a"), 3, &Prepared::default(), 0, &|_| false);
        lanes.prepared(&id("b"), 2, &want(7), 0, &|_| false);
        stage(&mut lanes, vec![batch("b", 3, false)], false);
        assert!(lanes.take(0, 2, &|_| false).is_empty(), "b waits");
        assert_eq!(lanes.next_deadline(), Some(2_000));
        let expected = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("b", 3)];
        let expected = expected.map(|(lane, sequence)| (lane.to_owned(), sequence));
        assert_eq!(names(&lanes.take(2_000, 3, &|_| false)), expected);
        assert_eq!(lanes.visible_at(&id("a"), 1), Some(3));
    }

    #[test]
    fn a_large_batch_is_not_passed_over_for_ever() {
        let mut lanes = Lanes::default();
        let bulk: LaneId = (ObjectId(1), "bulk".into());
        let push: LaneId = (ObjectId(1), "push".into());
        lanes.stage(StagedBatch {
            bytes: limits::TICK_BYTES_MAX + 1,
            ..batch("bulk", 1, false)
        });
        lanes.prepared(&bulk, 1, &Prepared::default(), 0, &|_| false);
        let mut taken = Vec::new();
        for sequence in 1..=2 {
            lanes.stage(batch("push", sequence, true));
            lanes.prepared(&push, sequence, &Prepared::default(), 0, &|_| false);
            taken.push(names(&lanes.take(0, sequence, &|_| false)));
        }
        assert_eq!(taken[0], [("push".to_owned(), 1)]);
        assert_eq!(taken[1], [("bulk".to_owned(), 1)]);
    }
}
