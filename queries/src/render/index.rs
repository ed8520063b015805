//! An index on a worker: rows are cut, joined with the logged vectors, and applied to this worker's
//! shard, tick by tick, in the order of time.
//!
//! ```text
//!  documents (arranged, imported) ─┐
//!                                  ├─▶ Shard: buffer by T ─▶ complete? ─▶ apply ≤ 2 ms a turn ─▶ legs' changes ─▶ caches
//!  facts: vectors bound at T ──────┘
//! ```
//!
//! The operator keeps its capability until it has wholly applied a tick (PROTOCOLS §3.2): what is
//! sealed is applied. Graph building is maintenance: it holds no capability and changes nothing
//! that can be seen.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use engine::limits::ACTIVATION_MICROS_MAX;
use engine::model::{ContentHash, DocVersion, Key, ModelId, Time, VectorFact, VectorRef};
use operators::index::{LegChange, Shard, ShardConfig};
use timely::dataflow::channels::pact::Pipeline as Local;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::{Capability, Input};
use timely::dataflow::{InputHandle, ProbeHandle, Scope, StreamVec};
use timely::worker::Worker;

use super::cache::{self, CacheHost};
use super::pipeline::{IndexSpec, Pipeline};
use super::relation::Relation;

/// Longest activation, microseconds.
pub(super) const BUDGET_MICROS: u64 = ACTIVATION_MICROS_MAX;

/// Vectors that exist, with the time from which on. Equal on every worker.
#[derive(Default)]
pub(super) struct FactTable {
    facts: AHashMap<(ModelId, ContentHash), (VectorRef, Time)>,
}

impl FactTable {
    pub(super) fn add(&mut self, model: ModelId, content: ContentHash, at: VectorRef, time: Time) {
        let known = self.facts.entry((model, content)).or_insert((at, time));
        // Forgotten by the store, and computed again since: what is there now is the new one.
        if known.0 != at {
            *known = (at, time);
        }
    }

    /// A vector that the store has forgotten; one that was computed again since stays.
    pub(super) fn remove(&mut self, fact: &VectorFact) {
        let key = (fact.model, fact.content);
        if self.facts.get(&key).is_some_and(|(at, _)| *at == fact.at) {
            self.facts.remove(&key);
        }
    }

    /// The vector that is bound at or before a time.
    fn get(&self, model: ModelId, content: ContentHash, by: Time) -> Option<VectorRef> {
        let (at, bound) = self.facts.get(&(model, content))?;
        (*bound <= by).then_some(*at)
    }
}

/// Feeds the contents whose vectors are bound.
pub(super) type Facts =
    InputHandle<Time, timely::container::CapacityContainerBuilder<Vec<ContentHash>>>;

/// A rendered index.
pub(super) struct Index {
    pub(super) spec: Arc<IndexSpec>,
    pub(super) shard: Rc<RefCell<Shard>>,
    pub(super) facts: Option<Facts>,
    /// Passed by everything applied to the shards.
    pub(super) probe: ProbeHandle<Time>,
    /// Passed by everything applied to the caches.
    pub(super) cache_probe: ProbeHandle<Time>,
    pub(super) caches: Rc<RefCell<CacheHost>>,
    pub(super) operations: cache::Operations,
    pub(super) dataflow: usize,
}

/// Renders an index over a relation.
pub(super) fn index(
    worker: &mut Worker,
    pipeline: &Arc<Pipeline>,
    spec: &Arc<IndexSpec>,
    from: &mut Relation,
    table: &Rc<RefCell<FactTable>>,
    at: Time,
) -> Index {
    let shard = Rc::new(RefCell::new(Shard::new(ShardConfig {
        dimensions: spec
            .model
            .as_ref()
            .map(super::pipeline::ModelKind::dimensions),
        keyword: spec.definition.keyword,
        analyzer: spec.analyzer,
        quantization: spec.quantization,
        head_max: engine::limits::HEAD_VECTORS_MAX,
        builder: pipeline.builder.clone(),
    })));
    let (probe, mut cache_probe) = (ProbeHandle::new(), ProbeHandle::new());
    let caches = Rc::new(RefCell::new(CacheHost::new(worker.index(), worker.peers())));
    let dataflow = worker.next_dataflow_index();
    let name = &spec.object.name;
    let (mut facts, mut operations) = worker.dataflow_named(name, |scope| {
        let (facts, fact_stream) = scope.new_input::<Vec<ContentHash>>();
        let (rows, _button) = from.documents.import_frontier(scope, name);
        let rows = rows
            .as_collection(|key, value| (key.clone(), value.clone()))
            .inner;
        let applier = Applier::new(pipeline, spec, &shard, table, &caches, at);
        let changes = apply_stream(scope, rows, fact_stream, applier);
        let changes = timely::dataflow::operators::Probe::probe_with(changes, &probe);
        let (operations, operation_stream) = scope.new_input();
        cache::render(
            changes,
            operation_stream,
            pipeline,
            &caches,
            &mut cache_probe,
        );
        (facts, operations)
    });
    facts.advance_to(at);
    operations.advance_to(at);
    Index {
        spec: Arc::clone(spec),
        shard,
        facts: Some(facts),
        probe,
        cache_probe,
        caches,
        operations,
        dataflow,
    }
}

type Rows<'scope> = StreamVec<'scope, Time, ((Key, DocVersion), Time, isize)>;

/// What is still to do of one tick.
#[derive(Default)]
struct TickWork {
    rows: Vec<(Key, DocVersion, isize)>,
    facts: Vec<ContentHash>,
}

/// A tick being applied.
struct Applying {
    at: Time,
    documents: VecDeque<(Key, Option<DocVersion>)>,
    facts: VecDeque<ContentHash>,
    changes: Vec<(LegChange, bool)>,
    capability: Capability<Time>,
}

/// Applies ticks to a shard.
struct Applier {
    /// Nobody reads the index before this time, and no fact that was bound by then is told again: rows of
    /// earlier times find the vectors that came after them.
    begin: Time,
    pipeline: Arc<Pipeline>,
    spec: Arc<IndexSpec>,
    shard: Rc<RefCell<Shard>>,
    table: Rc<RefCell<FactTable>>,
    caches: Rc<RefCell<CacheHost>>,
    pending: BTreeMap<Time, TickWork>,
    capabilities: BTreeMap<Time, Capability<Time>>,
    current: Option<Applying>,
}

fn apply_stream<'scope>(
    scope: Scope<'scope, Time>,
    rows: Rows<'scope>,
    facts: StreamVec<'scope, Time, ContentHash>,
    mut applier: Applier,
) -> StreamVec<'scope, Time, cache::TickChanges> {
    rows.binary_frontier(facts, Local, Local, "Shard", move |_, info| {
        let activator = scope.activator_for(info.address);
        move |(rows, row_frontier), (facts, fact_frontier), output| {
            let started = Instant::now();
            rows.for_each(|capability, batch| {
                for ((key, value), time, diff) in batch.drain(..) {
                    applier
                        .note(&capability.retain(0), time)
                        .rows
                        .push((key, value, diff));
                }
            });
            facts.for_each(|capability, batch| {
                let time = *capability.time();
                applier
                    .note(&capability.retain(0), time)
                    .facts
                    .append(batch);
            });
            let is_complete =
                |time: &Time| !row_frontier.less_equal(time) && !fact_frontier.less_equal(time);
            while let Some((capability, changes)) = applier.work(started, &is_complete) {
                if let Some(changes) = changes {
                    output.session(&capability).give(changes);
                }
            }
            if applier.current.is_some() {
                activator.activate();
            }
            metrics::histogram!("headwater_activation_seconds")
                .record(started.elapsed().as_secs_f64());
        }
    })
}

impl Applier {
    fn new(
        pipeline: &Arc<Pipeline>,
        spec: &Arc<IndexSpec>,
        shard: &Rc<RefCell<Shard>>,
        table: &Rc<RefCell<FactTable>>,
        caches: &Rc<RefCell<CacheHost>>,
        begin: Time,
    ) -> Self {
        Applier {
            begin,
            pipeline: Arc::clone(pipeline),
            spec: Arc::clone(spec),
            shard: Rc::clone(shard),
            table: Rc::clone(table),
            caches: Rc::clone(caches),
            pending: BTreeMap::new(),
            capabilities: BTreeMap::new(),
            current: None,
        }
    }

    fn note(&mut self, capability: &Capability<Time>, time: Time) -> &mut TickWork {
        self.capabilities
            .entry(time)
            .or_insert_with(|| capability.delayed(&time));
        self.pending.entry(time).or_default()
    }

    /// Works until a tick is done (returns its capability and changes), nothing is complete, or
    /// the activation's time is used up (`None`, with `current` left for the next).
    fn work(
        &mut self,
        started: Instant,
        is_complete: &dyn Fn(&Time) -> bool,
    ) -> Option<(Capability<Time>, Option<cache::TickChanges>)> {
        if self.current.is_none() {
            let at = *self.pending.first_key_value()?.0;
            if !is_complete(&at) {
                return None;
            }
            let work = self.pending.remove(&at).expect("looked at above");
            let capability = self.capabilities.remove(&at).expect("noted with the work");
            self.current = Some(Applying {
                at,
                documents: consolidate(work.rows),
                facts: work.facts.into(),
                changes: Vec::new(),
                capability,
            });
        }
        let current = self.current.as_mut().expect("set above");
        let mut shard = self.shard.borrow_mut();
        shard.set_observed(self.caches.borrow().wants_changes());
        let (model, at) = (
            self.spec.model.as_ref().map(super::pipeline::ModelKind::id),
            current.at,
        );
        let by = at.max(self.begin);
        let vector = |content: ContentHash| {
            let stored = self.table.borrow().get(model?, content, by)?;
            self.pipeline.vectors.get(stored)
        };
        let budget = Duration::from_micros(BUDGET_MICROS);
        while let Some((key, value)) = current.documents.pop_front() {
            let state = value.map(|value| self.spec.document(&key, &value));
            let is_deleted = state.is_none();
            let changes = shard.apply_document(at, &key, state, &vector);
            current
                .changes
                .extend(changes.into_iter().map(|change| (change, is_deleted)));
            if started.elapsed() > budget {
                return None;
            }
        }
        while let Some(content) = current.facts.pop_front() {
            if let Some(vector) = vector(content) {
                let changes = shard.apply_vector(at, content, &vector);
                current
                    .changes
                    .extend(changes.into_iter().map(|change| (change, false)));
            }
            if started.elapsed() > budget {
                return None;
            }
        }
        let done = self.current.take().expect("set above");
        let changes =
            (!done.changes.is_empty()).then(|| cache::TickChanges::of(done.at, &done.changes));
        Some((done.capability, changes))
    }
}

/// The documents that a tick leaves: at most one row a key.
fn consolidate(rows: Vec<(Key, DocVersion, isize)>) -> VecDeque<(Key, Option<DocVersion>)> {
    let mut documents: BTreeMap<Key, BTreeMap<DocVersion, isize>> = BTreeMap::new();
    for (key, value, diff) in rows {
        *documents.entry(key).or_default().entry(value).or_default() += diff;
    }
    documents
        .into_iter()
        .filter_map(|(key, values)| {
            let mut changed = values.into_iter().filter(|(_, diff)| *diff != 0).peekable();
            changed.peek()?;
            let live = changed
                .filter(|(_, diff)| *diff > 0)
                .map(|(value, _)| value)
                .last();
            Some((key, live))
        })
        .collect()
}
