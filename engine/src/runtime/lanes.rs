//! Staged batches between the log and a tick: order within a lane, fairness between lanes, and
//! the wait of a lane's head for its vectors (PROTOCOLS §4.2).
//!
//! ```text
//! stage ─▶ Preparing ─▶ Waiting(missing vectors, deadline) ─▶ Ready ─▶ bound to a tick
//! ```
//!
//! A pure structure: no clock, no thread, no log. Invariants: a lane's batches are bound in the
//! order of their sequence numbers; a batch is bound whole; lanes wait for nobody but their head.

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
}

/// Names a lane.
pub(super) type LaneId = (ObjectId, Arc<str>);
/// Names a vector.
pub(super) type VectorKey = (ModelId, ContentHash);

#[derive(Debug)]
struct Waiting {
    batch: StagedBatch,
    tokens: usize,
    is_prepared: bool,
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
            tokens: 0,
            is_prepared: false,
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
        waiting.is_prepared = true;
        waiting.tokens = prepared.tokens;
        waiting.deadline = now.saturating_add(prepared.deadline_ms * 1000);
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
        let (mut rows, mut bytes, mut tokens) = (0, 0, 0);
        let mut taken: Vec<StagedBatch> = Vec::new();
        let mut progress = true;
        while progress {
            progress = false;
            let turns: Vec<LaneId> = self.push_turn.iter().chain(&self.turn).cloned().collect();
            for id in turns {
                let Some(lane) = self.lanes.get_mut(&id) else {
                    continue;
                };
                let Some(head) = lane.queue.front() else {
                    continue;
                };
                let is_ready = head.is_prepared
                    && (head.missing.is_empty()
                        || now >= head.deadline
                        || head.missing.iter().all(|(model, _)| is_open(model)));
                let fits = taken.is_empty()
                    || (rows + head.batch.changes.len() <= limits::TICK_ROWS_MAX
                        && bytes + head.batch.bytes <= limits::TICK_BYTES_MAX
                        && tokens + head.tokens <= limits::TICK_TOKENS_MAX);
                if !is_ready || !fits {
                    continue;
                }
                let head = lane.queue.pop_front().expect("looked at above");
                rows += head.batch.changes.len();
                bytes += head.batch.bytes;
                tokens += head.tokens;
                lane.note_bound(&head, at);
                taken.push(head.batch);
                progress = true;
            }
        }
        self.push_turn
            .rotate_left(usize::from(self.push_turn.len() > 1));
        self.turn.rotate_left(usize::from(self.turn.len() > 1));
        taken
    }

    /// The earliest deadline of a head that waits for vectors.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        let heads = self.lanes.values().filter_map(|lane| lane.queue.front());
        heads
            .filter(|head| head.is_prepared)
            .map(|head| head.deadline)
            .min()
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

impl Lane {
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

    fn batch(lane: &str, sequence: u64, is_push: bool) -> StagedBatch {
        StagedBatch {
            source: ObjectId(1),
            lane: lane.into(),
            sequence,
            changes: Arc::new(Vec::new()),
            bytes: 1,
            is_push,
        }
    }

    fn want(byte: u8) -> Prepared {
        let content = ContentHash([byte; 16]);
        Prepared {
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
}
