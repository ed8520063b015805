//! One worker's part of the pipeline: obeys the command stream.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::Hashable;
use engine::model::{Change, DocVersion, ObjectId, Time, VectorFact};
use engine::runtime::{Program, QuestionId, Tick};
use operators::cache::{CacheConfig, Scoring};
use timely::worker::Worker;

use super::ask::{self, Readers};
use super::index::{self, FactTable, Index};
use super::pipeline::{Declared, IndexSpec, Pipeline};
use super::question::{Operation, Question};
use super::relation::{self, Relations};
use super::upsert::Upsert;
use crate::definition::{CacheDef, Fusion, Object};

/// See the module's documentation.
pub struct WorkerProgram {
    pipeline: Arc<Pipeline>,
    worker: usize,
    peers: usize,
    relations: Relations,
    indexes: Rc<RefCell<BTreeMap<ObjectId, Index>>>,
    facts: Rc<RefCell<FactTable>>,
    readers: Rc<Readers>,
    /// Dataflows of questions that may still run.
    asked: Vec<(usize, Vec<QuestionId>)>,
}

impl WorkerProgram {
    /// The program of worker `worker` of `peers`.
    pub fn new(pipeline: Arc<Pipeline>, worker: usize, peers: usize) -> Self {
        let relations = Relations::default();
        let indexes = Rc::default();
        let readers = Rc::new(Readers {
            pipeline: Arc::clone(&pipeline),
            relations: Rc::clone(&relations),
            indexes: Rc::clone(&indexes),
        });
        WorkerProgram {
            pipeline,
            worker,
            peers,
            relations,
            indexes,
            facts: Rc::default(),
            readers,
            asked: Vec::new(),
        }
    }

    fn owns(&self, key: &engine::model::Key) -> bool {
        // The same hash as the upsert's exchange, so that rows stay where they are fed.
        self.peers == 1 || key.hashed() as usize % self.peers == self.worker
    }

    /// Feeds the rows of a tick to their sources; the rest of it.
    fn feed_rows<'t>(&self, mut tick: Cow<'t, Tick<Operation>>) -> Cow<'t, Tick<Operation>> {
        let own = match &mut tick {
            Cow::Owned(tick) => {
                let mut own = std::mem::take(&mut tick.changes);
                for (_, changes) in &mut own {
                    changes.retain(|change| self.owns(&change.key));
                }
                own
            }
            Cow::Borrowed(tick) => {
                let own = |changes: &Vec<Change>| {
                    let own = changes.iter().filter(|change| self.owns(&change.key));
                    own.cloned().collect()
                };
                let sources = tick.changes.iter();
                sources.map(|(id, changes)| (*id, own(changes))).collect()
            }
        };
        let mut relations = self.relations.borrow_mut();
        for (source, changes) in own {
            let relation = relations.get_mut(&source);
            let Some(input) = relation.and_then(|relation| relation.input.as_mut()) else {
                continue;
            };
            input.advance_to(tick.at);
            let upsert = |Change { key, row, version }| -> Upsert {
                let value = row.map(|row| DocVersion { version, row });
                (key, value, tick.at)
            };
            input.send_batch(&mut changes.into_iter().map(upsert).collect());
        }
        drop(relations);
        tick
    }

    fn install_cache(&mut self, at: Time, id: ObjectId, cache: &CacheDef, index: &IndexSpec) {
        let scoring = match (index.definition.vector, index.definition.keyword) {
            (true, false) => Scoring::Vector,
            (false, _) => Scoring::Keyword,
            (true, true) => match index.definition.fusion {
                Fusion::Convex { weight } => Scoring::Convex { weight },
                Fusion::Rrf => Scoring::Rrf,
            },
        };
        let dimensions = index
            .model
            .as_ref()
            .map_or(0, super::pipeline::ModelKind::dimensions);
        let config = CacheConfig {
            similarity: cache.similarity,
            ttl_micros: cache.ttl_micros,
            capacity: cache.capacity.div_ceil(self.peers),
            // The index scores vectors as stored; bf16 moves a cosine by at most 2⁻⁸.
            epsilon: match index.quantization {
                operators::index::Quantization::F32 => 1e-5,
                operators::index::Quantization::Bf16 => 4e-3,
            },
            ..CacheConfig::new(scoring, dimensions)
        };
        let indexes = self.indexes.borrow();
        let host = indexes
            .get(&index.object.id)
            .expect("an index outlives its caches");
        host.caches
            .borrow_mut()
            .install(id, config, at.saturating_sub(1));
    }
}

impl Program for WorkerProgram {
    type Definition = Object;
    type Question = Question;
    type Operation = Operation;

    fn install(&mut self, worker: &mut Worker, at: Time, id: ObjectId, object: &Object) {
        let declared = match self.pipeline.register(object) {
            Ok(declared) => declared,
            Err(error) => panic!(
                "\"{}\" was declared and cannot be rendered: {error}",
                object.name
            ),
        };
        match declared {
            Declared::Source { .. } => {
                let source = relation::source(worker, &object.name, at);
                self.relations.borrow_mut().insert(id, source);
            }
            Declared::View { from, program, .. } => {
                let mut relations = self.relations.borrow_mut();
                let base = relations
                    .get_mut(&from)
                    .expect("a view's relation outlives it");
                let view = relation::view(worker, &self.pipeline, id, &object.name, base, &program);
                relations.insert(id, view);
            }
            Declared::Model { .. } | Declared::Plain { .. } | Declared::Sink { .. } => {}
            Declared::Index(spec) => {
                let mut relations = self.relations.borrow_mut();
                let base = relations
                    .get_mut(&spec.on)
                    .expect("an index's relation outlives it");
                let index = index::index(worker, &self.pipeline, &spec, base, &self.facts, at);
                self.indexes.borrow_mut().insert(id, index);
            }
            Declared::Cache {
                definition, index, ..
            } => {
                self.install_cache(at, id, &definition, &index);
            }
        }
    }

    fn uninstall(&mut self, worker: &mut Worker, id: ObjectId) {
        if let Some(relation) = self.relations.borrow_mut().remove(&id) {
            let dataflow = relation.dataflow;
            drop(relation);
            worker.drop_dataflow(dataflow);
        }
        let index = self.indexes.borrow_mut().remove(&id);
        if let Some(index) = index {
            let dataflow = index.dataflow;
            drop(index);
            worker.drop_dataflow(dataflow);
        }
        for index in self.indexes.borrow().values() {
            index.caches.borrow_mut().uninstall(id);
        }
        self.pipeline.unregister(id);
    }

    fn forget(&mut self, facts: &[VectorFact]) {
        let mut table = self.facts.borrow_mut();
        for fact in facts {
            table.remove(fact);
        }
    }

    fn feed(&mut self, tick: Cow<'_, Tick<Operation>>) {
        for (fact, vector) in &tick.vectors {
            if let Some(vector) = vector {
                self.pipeline.vectors.note(fact.at, vector);
            }
            self.facts
                .borrow_mut()
                .add(fact.model, fact.content, fact.at, tick.at);
        }
        let tick = self.feed_rows(tick);
        let mut relations = self.relations.borrow_mut();
        for relation in relations.values_mut() {
            if let Some(input) = relation.input.as_mut() {
                input.advance_to(tick.at + 1);
            }
            // Not only when history is given up, which begins with the first RETAIN: until then each
            // tick's batch would stay by itself.
            relation.allow_merging();
        }
        for index in self.indexes.borrow_mut().values_mut() {
            let model = index
                .spec
                .model
                .as_ref()
                .map(super::pipeline::ModelKind::id);
            if let Some(facts) = index.facts.as_mut() {
                facts.advance_to(tick.at);
                for (fact, _) in tick
                    .vectors
                    .iter()
                    .filter(|(fact, _)| Some(fact.model) == model)
                {
                    facts.send(fact.content);
                }
                facts.advance_to(tick.at + 1);
            }
            index.operations.advance_to(tick.at);
            for Operation::Cache { cache, operation } in &tick.operations {
                if index.caches.borrow().shard(*cache).is_some() {
                    index.operations.send((*cache, operation.clone()));
                }
            }
            index.operations.advance_to(tick.at + 1);
        }
    }

    fn ask(&mut self, worker: &mut Worker, at: Time, questions: &[(QuestionId, Question)]) {
        let installed = worker.installed_dataflows();
        self.asked
            .retain(|(dataflow, _)| installed.contains(dataflow));
        let dataflow = ask::install(worker, &self.readers, at, questions);
        self.asked
            .push((dataflow, questions.iter().map(|(id, _)| *id).collect()));
    }

    fn cancel(&mut self, worker: &mut Worker, question: QuestionId) {
        for (dataflow, questions) in &mut self.asked {
            questions.retain(|id| *id != question);
            if questions.is_empty() {
                worker.drop_dataflow(*dataflow);
            }
        }
        self.asked.retain(|(_, questions)| !questions.is_empty());
    }

    fn allow_compaction(&mut self, id: ObjectId, since: Time) {
        if let Some(relation) = self.relations.borrow_mut().get_mut(&id) {
            relation.allow_compaction(since);
        }
        let indexes = self.indexes.borrow();
        if let Some(index) = indexes.get(&id) {
            index.shard.borrow_mut().compact(since);
        } else {
            for index in indexes.values() {
                index.caches.borrow_mut().compact(id, since);
            }
        }
    }

    fn maintain(&mut self) -> bool {
        let mut has_more = false;
        for index in self.indexes.borrow().values() {
            has_more |= index.shard.borrow_mut().maintain().has_more;
        }
        has_more
    }

    fn uppers(&self, report: &mut dyn FnMut(ObjectId, Time)) {
        let upper = |probe: &timely::dataflow::ProbeHandle<Time>| {
            probe.with_frontier(|frontier| frontier.first().copied().unwrap_or(Time::MAX))
        };
        for (id, relation) in self.relations.borrow().iter() {
            report(*id, upper(&relation.probe));
        }
        for (id, index) in self.indexes.borrow().iter() {
            report(*id, upper(&index.probe));
            for cache in index.caches.borrow().ids() {
                report(cache, upper(&index.cache_probe));
            }
        }
    }
}

/// Runs the workers of a process that follows another, with vectors from the ticks themselves.
///
/// `load` resolves models as in the leading process; graphs are built on `builder`. Returns when the
/// leader stops.
pub fn follow(
    communication: engine::runtime::CommunicationConfig,
    workers: usize,
    load: Box<super::ModelLoader>,
    builder: operators::index::BuilderHandle,
) -> Result<(), engine::error::WorldError> {
    let vectors = Arc::new(TickVectors::default());
    let pipeline = Arc::new(Pipeline::new(load, builder, vectors, Arc::new(|_| {})));
    let factory = move |index, peers| WorkerProgram::new(Arc::clone(&pipeline), index, peers);
    engine::runtime::follow::<WorkerProgram>(communication, workers, Arc::new(factory))
}

/// Vectors that came with ticks, for a process without a store.
#[derive(Default)]
struct TickVectors(std::sync::Mutex<BTreeMap<engine::model::VectorRef, Arc<[f32]>>>);

impl super::VectorBytes for TickVectors {
    fn get(&self, at: engine::model::VectorRef) -> Option<Arc<[f32]>> {
        self.0
            .lock()
            .expect("no panic while held")
            .get(&at)
            .cloned()
    }

    fn note(&self, at: engine::model::VectorRef, vector: &Arc<[f32]>) {
        self.0
            .lock()
            .expect("no panic while held")
            .insert(at, Arc::clone(vector));
    }
}
