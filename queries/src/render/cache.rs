//! The answer caches of an index, on every worker: changes of the legs are broadcast, operations
//! reach the shard that owns them, events are gathered on worker 0 in one order.
//!
//! At each sealed T in order: data changes, then leases and stores, then TTL and capacity
//! (PROTOCOLS §5.1). A cache is applied through T before its probe passes T, so a look-up at a
//! sealed time finds it complete.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use engine::model::{ObjectId, Time};
use operators::cache::{
    CacheEvent, CacheOp, CacheShard, ChangeKind, ChunkChange, EventKind, StatisticsDelta,
};
use operators::index::LegChange;
use serde::{Deserialize, Serialize};
use timely::dataflow::channels::pact::{Exchange, Pipeline as Local};
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::{InputHandle, ProbeHandle, StreamVec};

use super::pipeline::Pipeline;
use super::question::ProgramReply;

/// Feeds operations: `(cache, operation)`.
pub(super) type Operations =
    InputHandle<Time, timely::container::CapacityContainerBuilder<Vec<(ObjectId, CacheOp)>>>;

/// What one worker's shard did in one tick, as the caches see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TickChanges {
    at: Time,
    changes: Vec<ChunkChange>,
    chunks: i64,
    length: i64,
    df: Vec<(u64, i64)>,
}

impl TickChanges {
    /// `(change, whether its document is gone after the tick)`, in order.
    pub(super) fn of(at: Time, changes: &[(LegChange, bool)]) -> Self {
        let mut out = TickChanges {
            at,
            changes: Vec::new(),
            chunks: 0,
            length: 0,
            df: Vec::new(),
        };
        for (change, document_deleted) in changes {
            let (fact, kind) = match change {
                LegChange::Appeared { fact, .. } => (fact, ChangeKind::Appeared),
                LegChange::Reversioned { fact, .. } => (fact, ChangeKind::Reversioned),
                LegChange::Vanished { fact, .. } => (
                    fact,
                    ChangeKind::Vanished {
                        document_deleted: *document_deleted,
                    },
                ),
                LegChange::Statistics { delta, .. } => {
                    out.chunks += delta.chunks;
                    out.length += delta.length;
                    out.df
                        .extend(delta.frequencies.iter().map(|(term, df)| (term.0, *df)));
                    continue;
                }
            };
            out.changes.push(ChunkChange {
                chunk: fact.chunk,
                key: fact.document.clone(),
                version: fact.version,
                kind,
                vector: fact.vector.clone(),
                terms: fact.terms.iter().map(|(term, tf)| (term.0, *tf)).collect(),
                length: fact.length,
                admitted: true,
            });
        }
        out
    }
}

struct Hosted {
    shard: CacheShard,
    due: Option<Time>,
}

/// This worker's shards of all caches of one index.
pub(super) struct CacheHost {
    caches: BTreeMap<ObjectId, Hosted>,
    worker: usize,
    peers: usize,
}

impl CacheHost {
    pub(super) fn new(worker: usize, peers: usize) -> Self {
        CacheHost {
            caches: BTreeMap::new(),
            worker,
            peers,
        }
    }

    /// Begins a cache: every change after `begin` reaches it.
    pub(super) fn install(
        &mut self,
        id: ObjectId,
        config: operators::cache::CacheConfig,
        begin: Time,
    ) {
        let shard = CacheShard::new(config, self.worker, self.peers, begin);
        self.caches.insert(id, Hosted { shard, due: None });
    }

    pub(super) fn uninstall(&mut self, id: ObjectId) {
        self.caches.remove(&id);
    }

    pub(super) fn wants_changes(&self) -> bool {
        !self.caches.is_empty()
    }

    pub(super) fn shard(&self, id: ObjectId) -> Option<&CacheShard> {
        self.caches.get(&id).map(|hosted| &hosted.shard)
    }

    pub(super) fn compact(&mut self, id: ObjectId, since: Time) {
        if let Some(hosted) = self.caches.get_mut(&id) {
            hosted.shard.compact(since);
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ObjectId> {
        self.caches.keys().copied()
    }

    /// Whether an operation concerns this worker.
    fn owns(&self, operation: &CacheOp) -> bool {
        match operation {
            CacheOp::Lease { lease, .. }
            | CacheOp::Store { lease, .. }
            | CacheOp::Recheck { watch: lease, .. } => lease.shard(self.peers) == self.worker,
            CacheOp::Touch { .. } | CacheOp::Forget { .. } | CacheOp::InvalidateAll => true,
        }
    }

    fn apply(
        &mut self,
        at: Time,
        changes: &Arc<[ChunkChange]>,
        statistics: &StatisticsDelta,
        mut operations: Vec<(ObjectId, CacheOp)>,
    ) -> Vec<(ObjectId, CacheEvent)> {
        operations.retain(|(_, operation)| self.owns(operation));
        let mut events = Vec::new();
        for (id, hosted) in &mut self.caches {
            if at <= hosted.shard.applied() {
                continue;
            }
            let own = operations.extract_if(.., |(cache, _)| cache == id);
            let own = own.map(|(_, operation)| operation).collect();
            let happened = hosted.shard.apply(at, Arc::clone(changes), statistics, own);
            events.extend(happened.into_iter().map(|event| (*id, event)));
        }
        events
    }

    /// The earliest due time, when it is earlier than the last that was announced.
    fn due(&mut self) -> Option<Time> {
        let mut earliest = None;
        for hosted in self.caches.values_mut() {
            let due = hosted.shard.next_due();
            if due != hosted.due {
                hosted.due = due;
                earliest = earliest.into_iter().chain(due).min();
            }
        }
        earliest
    }
}

/// What is collected of a time before it is complete.
#[derive(Default)]
struct Collected {
    ticks: Vec<TickChanges>,
    operations: Vec<(ObjectId, CacheOp)>,
}

impl Collected {
    fn merged(&mut self) -> (Arc<[ChunkChange]>, StatisticsDelta) {
        let mut statistics = StatisticsDelta::default();
        let mut df: BTreeMap<u64, i64> = BTreeMap::new();
        let mut changes = Vec::new();
        for tick in self.ticks.drain(..) {
            changes.extend(tick.changes);
            statistics.chunks += tick.chunks;
            statistics.length += tick.length;
            for (term, delta) in tick.df {
                *df.entry(term).or_default() += delta;
            }
        }
        statistics.df = df.into_iter().filter(|(_, delta)| *delta != 0).collect();
        (changes.into(), statistics)
    }
}

/// Renders the caches of an index behind its shards.
pub(super) fn render<'scope>(
    changes: StreamVec<'scope, Time, TickChanges>,
    operations: StreamVec<'scope, Time, (ObjectId, CacheOp)>,
    pipeline: &Arc<Pipeline>,
    host: &Rc<RefCell<CacheHost>>,
    probe: &mut ProbeHandle<Time>,
) {
    let (host, replies) = (Rc::clone(host), Arc::clone(pipeline));
    let events = changes.broadcast().binary_frontier(
        operations,
        Local,
        Local,
        "Caches",
        move |capability, _| {
            let mut capability = Some(capability);
            let mut collected: BTreeMap<Time, Collected> = BTreeMap::new();
            move |(changes, change_frontier), (operations, operation_frontier), output| {
                changes.for_each(|_, batch| {
                    for tick in batch.drain(..) {
                        collected.entry(tick.at).or_default().ticks.push(tick);
                    }
                });
                operations.for_each(|time, batch| {
                    collected
                        .entry(*time.time())
                        .or_default()
                        .operations
                        .append(batch);
                });
                let frontiers = [change_frontier.frontier(), operation_frontier.frontier()];
                let complete = frontiers
                    .iter()
                    .filter_map(|frontier| frontier.first())
                    .min()
                    .copied();
                let Some(frontier) = complete else {
                    capability = None;
                    return;
                };
                let Some(capability) = capability.as_mut() else {
                    return;
                };
                let mut host = host.borrow_mut();
                while let Some(entry) = collected.first_entry().filter(|e| *e.key() < frontier) {
                    let (at, mut tick) = entry.remove_entry();
                    let (changes, statistics) = tick.merged();
                    let events = host.apply(at, &changes, &statistics, tick.operations);
                    if *capability.time() < at {
                        capability.downgrade(&at);
                    }
                    output
                        .session(&*capability)
                        .give_iterator(events.into_iter());
                }
                if frontier > *capability.time() {
                    let none: Arc<[ChunkChange]> = Arc::from([]);
                    let last = frontier - 1;
                    let events = host.apply(last, &none, &StatisticsDelta::default(), Vec::new());
                    if !events.is_empty() {
                        if *capability.time() < last {
                            capability.downgrade(&last);
                        }
                        output
                            .session(&*capability)
                            .give_iterator(events.into_iter());
                    }
                    capability.downgrade(&frontier);
                }
                if let Some(due) = host.due() {
                    (replies.replies)(ProgramReply::Due(due));
                }
            }
        },
    );
    gather(events, pipeline, probe);
}

/// Brings the events of a time together on worker 0, in their order.
fn gather<'scope>(
    events: StreamVec<'scope, Time, (ObjectId, CacheEvent)>,
    pipeline: &Arc<Pipeline>,
    probe: &mut ProbeHandle<Time>,
) {
    let pipeline = Arc::clone(pipeline);
    let exchange = Exchange::new(|_: &(ObjectId, CacheEvent)| 0);
    events
        .unary_frontier::<timely::container::CapacityContainerBuilder<Vec<()>>, _, _, _>(
            exchange,
            "CacheEvents",
            move |_, _| {
                let mut waiting: BTreeMap<Time, BTreeMap<ObjectId, Vec<CacheEvent>>> =
                    BTreeMap::new();
                move |(input, frontier), _output| {
                    input.for_each(|_, batch| {
                        for (cache, event) in batch.drain(..) {
                            let time = waiting.entry(event.at).or_default();
                            time.entry(cache).or_default().push(event);
                        }
                    });
                    while let Some(entry) = waiting
                        .first_entry()
                        .filter(|e| !frontier.less_equal(e.key()))
                    {
                        for (cache, mut events) in entry.remove() {
                            events.sort_by_key(CacheEvent::rank);
                            count(&events);
                            (pipeline.replies)(ProgramReply::CacheEvents { cache, events });
                        }
                    }
                }
            },
        )
        .probe_with(probe);
}

fn count(events: &[CacheEvent]) {
    for event in events {
        if let (Some(_), EventKind::Retracted(death)) = (event.entry, &event.kind) {
            let cause = death.cause.as_str();
            metrics::counter!("headwater_cache_retractions_total", "cause" => cause).increment(1);
        }
    }
}
