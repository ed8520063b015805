//! One worker's part of a cache: the clockwork of a tick.
//!
//! ```text
//! apply(T): ring ← changes ─▶ watches observe ─▶ operations ─▶ due leases, TTL, capacity ─▶ events
//! ```
//!
//! Invariants: times strictly increase; after `apply(T)` every entry is right at T; nothing
//! depends on the order of hash maps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engine::model::{ChunkId, Time};

use super::lookup::Entries;
use super::ring::{Ring, fold};
use super::watches::{Verdict, Watches};
use super::{
    CacheConfig, CacheEvent, CacheOp, Cause, ChunkChange, Death, EntryId, EventKind, LeaseId,
    Question, StatisticsDelta,
};

/// What became of a lease that has not expired.
#[derive(Debug)]
pub(super) enum LeaseFate {
    /// Watched; no answer yet.
    Open,
    /// What it saw is no longer true.
    Dead(Death),
    /// It carries an answer.
    Stored(EntryId),
}

#[derive(Debug)]
pub(super) struct LeaseRow {
    pub expires: Time,
    pub fate: LeaseFate,
}

/// One worker's part of a cache. Pure and deterministic: no clock, no I/O, no threads.
///
/// Feed every shard the same changes and operations; each acts on the leases that it owns
/// ([`LeaseId::shard`]) and ignores the others. Its entries stand on the shard of their lease.
#[derive(Debug)]
pub struct CacheShard {
    pub(super) config: CacheConfig,
    pub(super) shard: usize,
    pub(super) shards: usize,
    pub(super) applied: Time,
    pub(super) since: Time,
    pub(super) ring: Ring,
    pub(super) watches: Watches,
    pub(super) entries: Entries,
    pub(super) leases: BTreeMap<LeaseId, LeaseRow>,
    /// (first time without it, lease).
    pub(super) lease_dues: BTreeSet<(Time, LeaseId)>,
    /// (first time without it, entry), of entries that are not retracted.
    pub(super) entry_dues: BTreeSet<(Time, EntryId)>,
    /// (last use, entry), of entries that are not retracted.
    pub(super) uses: BTreeSet<(Time, EntryId)>,
}

impl CacheShard {
    /// Shard number `shard` of `shards`, empty. `begin`: a sealed time; every later change will be
    /// given to [`CacheShard::apply`]. Leases read before it are refused.
    pub fn new(config: CacheConfig, shard: usize, shards: usize, begin: Time) -> Self {
        CacheShard {
            ring: Ring::new(config.ring_changes_max, begin),
            watches: Watches::new(config.scoring, config.dimensions, config.epsilon),
            config,
            shard,
            shards,
            applied: begin,
            since: begin,
            entries: Entries::default(),
            leases: BTreeMap::new(),
            lease_dues: BTreeSet::new(),
            entry_dues: BTreeSet::new(),
            uses: BTreeSet::new(),
        }
    }

    /// Applies one sealed tick and says what happened, in the order of [`CacheEvent::rank`].
    ///
    /// # Panics
    /// When `at` is not later than the last applied time: a broken invariant of the caller.
    pub fn apply(
        &mut self,
        at: Time,
        changes: Arc<[ChunkChange]>,
        statistics: &StatisticsDelta,
        ops: Vec<CacheOp>,
    ) -> Vec<CacheEvent> {
        assert!(
            at > self.applied,
            "tick {at} after {}: times must increase",
            self.applied
        );
        self.applied = at;
        let mut events = Vec::new();
        if !changes.is_empty() || !statistics.is_empty() {
            let mut net = BTreeMap::new();
            for change in changes.iter() {
                fold(&mut net, at, change);
            }
            let verdicts = self
                .watches
                .observe(&net, statistics, self.config.tick_work_max);
            drop(net);
            self.ring.push(at, changes, statistics.clone());
            for (lease, verdict) in verdicts {
                self.carry_out(at, lease, verdict, &mut events);
            }
        }
        for op in ops {
            self.operate(at, op, &mut events);
        }
        self.expire(at, &mut events);
        events.sort_by_key(CacheEvent::rank);
        events
    }

    /// A tick without changes and operations: TTLs and leases only.
    pub fn advance(&mut self, at: Time) -> Vec<CacheEvent> {
        self.apply(at, Arc::from([]), &StatisticsDelta::default(), Vec::new())
    }

    /// When a TTL or a lease is due: an otherwise idle engine ticks then.
    pub fn next_due(&self) -> Option<Time> {
        let lease = self.lease_dues.first().map(|(due, _)| *due);
        let entry = self.entry_dues.first().map(|(due, _)| *due);
        lease.into_iter().chain(entry).min()
    }

    /// Readers ask for times from `since` on: earlier states are forgotten.
    pub fn compact(&mut self, since: Time) {
        self.since = self.since.max(since);
        self.entries.compact(self.since);
        self.watches.compact(self.since);
    }

    /// The last applied time.
    pub fn applied(&self) -> Time {
        self.applied
    }

    /// Entries that are not retracted, and how many of them are suspended.
    pub fn counts(&self) -> (usize, usize) {
        let suspended = self
            .watches
            .suspects()
            .filter(|watch| watch.entry.is_some())
            .count();
        (self.uses.len(), suspended)
    }

    /// All watches that wait for a recheck, ordered by lease: what a caller asks again that lost a
    /// request, or that spreads a bulk load's rechecks over time.
    pub fn suspects(&self) -> Vec<(LeaseId, Option<EntryId>, Arc<Question>)> {
        let row = |watch: &super::watch::Watch| (watch.lease, watch.entry, watch.question.clone());
        self.watches.suspects().map(row).collect()
    }

    /// Makes a watch's verdict true, and says so.
    pub(super) fn carry_out(
        &mut self,
        at: Time,
        lease: LeaseId,
        verdict: Verdict,
        events: &mut Vec<CacheEvent>,
    ) {
        match verdict {
            Verdict::Dead(death) => self.end(at, lease, death, events),
            Verdict::Suspect => {
                self.watches.suspect(lease);
                let Some(watch) = self.watches.get(lease) else {
                    return;
                };
                let (entry, question) = (watch.entry, watch.question.clone());
                if let Some(row) = entry.and_then(|id| self.entries.get_mut(id))
                    && row.live.last().is_some_and(|(_, to)| to.is_none())
                {
                    row.end(at);
                    events.push(CacheEvent {
                        at,
                        lease,
                        entry,
                        kind: EventKind::Suspended,
                    });
                }
                let kind = EventKind::RecheckRequested(question);
                events.push(CacheEvent {
                    at,
                    lease,
                    entry,
                    kind,
                });
            }
        }
    }

    /// Ends a watch: its entry is retracted, or its lease dies.
    pub(super) fn end(
        &mut self,
        at: Time,
        lease: LeaseId,
        death: Death,
        events: &mut Vec<CacheEvent>,
    ) {
        let Some(watch) = self.watches.remove(lease) else {
            return;
        };
        if let Some(id) = watch.entry
            && let Some(row) = self.entries.get_mut(id)
        {
            row.end(at);
            row.retracted = Some((at, death.clone()));
            row.seats = watch.seats;
            self.entry_dues.remove(&(row.due, id));
            self.uses.remove(&(row.last_used, id));
            let kind = EventKind::Retracted(death.clone());
            events.push(CacheEvent {
                at,
                lease,
                entry: Some(id),
                kind,
            });
        }
        if let Some(row) = self.leases.get_mut(&lease) {
            row.fate = LeaseFate::Dead(death);
        }
    }

    /// TTLs, leases, capacity.
    fn expire(&mut self, at: Time, events: &mut Vec<CacheEvent>) {
        while let Some(&(due, id)) = self.entry_dues.first()
            && due <= at
        {
            self.retract(at, id, Cause::Ttl, events);
        }
        while let Some(&(due, lease)) = self.lease_dues.first()
            && due <= at
        {
            self.lease_dues.pop_first();
            if let Some(LeaseRow {
                fate: LeaseFate::Open,
                ..
            }) = self.leases.remove(&lease)
            {
                self.watches.remove(lease);
            }
        }
        while self.uses.len() > self.config.capacity
            && let Some(&(_, id)) = self.uses.first()
        {
            self.retract(at, id, Cause::Capacity, events);
        }
    }

    /// Ends an entry for a cause without documents. Unknown and retracted ones are left alone.
    pub(super) fn retract(
        &mut self,
        at: Time,
        id: EntryId,
        cause: Cause,
        events: &mut Vec<CacheEvent>,
    ) {
        if let Some(entry) = self.entries.get(id)
            && entry.retracted.is_none()
        {
            self.end(
                at,
                entry.lease,
                Death {
                    cause,
                    by: Vec::new(),
                },
                events,
            );
        }
    }

    /// Seats named in `citations`, in that order, each once.
    pub(super) fn cited(&self, lease: LeaseId, citations: &[ChunkId]) -> Vec<ChunkId> {
        let Some(watch) = self.watches.get(lease) else {
            return Vec::new();
        };
        let mut cited: Vec<ChunkId> = Vec::new();
        for chunk in citations {
            if watch.is_member(*chunk) && !cited.contains(chunk) {
                cited.push(*chunk);
            }
        }
        cited
    }

    /// The first citation that the lease has not retrieved.
    pub(super) fn foreign(&self, lease: LeaseId, citations: &[ChunkId]) -> Option<ChunkId> {
        let watch = self.watches.get(lease)?;
        let mut all = citations.iter().copied();
        all.find(|chunk| !watch.is_member(*chunk))
    }
}
