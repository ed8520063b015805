//! The last changes of the index: what a lease that was read at T0 and admitted at T1 must be
//! tested against, (T0, T1].
//!
//! Bounded by the number of changed chunks; `floor` says how far back it reaches.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use engine::model::{ChunkId, Time};

use super::{ChangeKind, ChunkChange, StatisticsDelta};

/// One applied tick that changed something.
#[derive(Debug)]
struct Tick {
    at: Time,
    changes: Arc<[ChunkChange]>,
    statistics: StatisticsDelta,
}

/// The net effect of several ticks on one chunk.
#[derive(Debug)]
pub(super) struct Net<'a> {
    /// Its last change: where it stands now.
    pub last: &'a ChunkChange,
    /// It appeared, or gained a leg, and is still visible: its state then.
    pub arrival: Option<&'a ChunkChange>,
    /// It was gone in between, so that its old state says nothing.
    pub vanished: bool,
    /// The versions that it went through.
    pub versions: Vec<(Time, u64)>,
}

/// The statistics' net movement over several ticks.
#[derive(Debug, Default)]
pub(super) struct NetStatistics {
    pub chunks: i64,
    pub length: i64,
    pub df: HashMap<u64, i64>,
}

impl NetStatistics {
    pub(super) fn moved(&self) -> bool {
        self.chunks != 0 || self.length != 0 || self.df.values().any(|delta| *delta != 0)
    }
}

/// Changes in (floor, last applied].
#[derive(Debug)]
pub(super) struct Ring {
    ticks: VecDeque<Tick>,
    changes: usize,
    changes_max: usize,
    /// Everything after this time is here.
    floor: Time,
}

impl Ring {
    /// Empty; every change after `begin` will be pushed.
    pub(super) fn new(changes_max: usize, begin: Time) -> Self {
        Ring {
            ticks: VecDeque::new(),
            changes: 0,
            changes_max,
            floor: begin,
        }
    }

    pub(super) fn push(
        &mut self,
        at: Time,
        changes: Arc<[ChunkChange]>,
        statistics: StatisticsDelta,
    ) {
        if changes.is_empty() && statistics.is_empty() {
            return;
        }
        // A tick weighs at least one, so that empty ones cannot pile up for ever.
        self.changes += changes.len().max(1);
        self.ticks.push_back(Tick {
            at,
            changes,
            statistics,
        });
        while self.changes > self.changes_max
            && let Some(oldest) = self.ticks.pop_front()
        {
            self.changes -= oldest.changes.len().max(1);
            self.floor = oldest.at;
        }
    }

    /// Whether every change after `at` is known.
    pub(super) fn reaches(&self, at: Time) -> bool {
        self.floor <= at
    }

    fn after(&self, at: Time) -> impl Iterator<Item = &Tick> {
        let from = self.ticks.partition_point(|tick| tick.at <= at);
        self.ticks.range(from..)
    }

    /// What the changes after `at` amount to, by chunk.
    pub(super) fn net_after(&self, at: Time) -> BTreeMap<ChunkId, Net<'_>> {
        let mut net = BTreeMap::new();
        for tick in self.after(at) {
            for change in tick.changes.iter() {
                fold(&mut net, tick.at, change);
            }
        }
        net
    }

    /// By how much the statistics moved after `at`.
    pub(super) fn statistics_after(&self, at: Time) -> NetStatistics {
        let mut net = NetStatistics::default();
        for tick in self.after(at) {
            net.chunks += tick.statistics.chunks;
            net.length += tick.statistics.length;
            for (term, delta) in &tick.statistics.df {
                *net.df.entry(*term).or_default() += delta;
            }
        }
        net
    }
}

/// Adds one change to the net effect so far.
pub(super) fn fold<'a>(net: &mut BTreeMap<ChunkId, Net<'a>>, at: Time, change: &'a ChunkChange) {
    let row = net.entry(change.chunk).or_insert(Net {
        last: change,
        arrival: None,
        vanished: false,
        versions: Vec::new(),
    });
    row.last = change;
    row.versions.push((at, change.version));
    match change.kind {
        ChangeKind::Appeared if change.admitted => row.arrival = Some(change),
        ChangeKind::Appeared | ChangeKind::Vanished { .. } => {
            row.arrival = None;
            row.vanished = true;
        }
        ChangeKind::Reversioned => {}
    }
}

impl Net<'_> {
    /// The chunk is not visible after these changes; was its document deleted?
    pub(super) fn gone(&self) -> Option<bool> {
        match self.last.kind {
            ChangeKind::Vanished { document_deleted } => Some(document_deleted),
            // No longer admitted by the filter: the document lives.
            ChangeKind::Appeared if !self.last.admitted => Some(false),
            _ => None,
        }
    }
}
