//! Questions as short-lived dataflows: one installation shared by the questions of one time,
//! gone when they are answered.
//!
//! ```text
//!  every worker:  statistics at T ──broadcast──▶ sum; search own shard ─┐
//!                 rows, documents, sizes at T ──────────────────────────┴─▶ worker 0: gather, merge, reply
//! ```
//!
//! Completion is counted: each worker sends exactly one partial a question and stage (PROTOCOLS
//! §3.7). "Published" means applied everywhere, so a shard is read at once; an arrangement is read
//! when its own frontier has passed T, which needs no message from anybody.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use differential_dataflow::trace::{Cursor, TraceReader};
use engine::contract::ChangePage;
use engine::error::DataError;
use engine::model::{DocVersion, Key, ObjectId, Row, Time};
use operators::cache::LookupOutcome;
use operators::index::{Candidate, ShardSizes, Statistics, merge};
use timely::dataflow::Scope;
use timely::dataflow::channels::pact::{Exchange, Pipeline as Local};
use timely::dataflow::operators::Concat;
use timely::dataflow::operators::generic::{Operator, source};
use timely::dataflow::operators::vec::Broadcast;
use timely::progress::Antichain;
use timely::worker::Worker;

use super::changes::ChangeReader;
use super::index::Index;
use super::pipeline::Pipeline;
use super::question::{
    Answer, DocumentAnswer, LookupAnswer, MissingChunk, Partial, ProgramReply, Question,
    SearchAnswer, SearchQuestion,
};
use super::relation::{Documents, Relations};
use crate::sql::FilterProgram;

/// What a question reads on this worker.
pub(super) struct Readers {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) relations: Relations,
    pub(super) indexes: Rc<RefCell<BTreeMap<ObjectId, Index>>>,
}

type Questions = Rc<Vec<(u64, Question)>>;

/// Installs the dataflow of some questions at one time; returns its index.
pub(super) fn install(
    worker: &mut Worker,
    readers: &Rc<Readers>,
    at: Time,
    questions: &[(u64, Question)],
) -> usize {
    let questions: Questions = Rc::new(questions.to_vec());
    let dataflow = worker.next_dataflow_index();
    let (index, peers) = (worker.index(), worker.peers());
    worker.dataflow_named::<u64, _, _>("Question", |scope| {
        let statistics = statistics(scope, readers, at, &questions);
        let searched = searched(statistics, readers, at, &questions, peers);
        let read = read(scope, readers, at, &questions, index);
        let partials = searched.concat(read);
        gather(partials, readers, &questions, peers);
    });
    dataflow
}

fn search_of(question: &Question) -> Option<&SearchQuestion> {
    match question {
        Question::Search(search) => Some(search),
        Question::Lookup(lookup) => Some(&lookup.search),
        _ => None,
    }
}

type Numbered<T> = (u32, T);
type Stream<'scope, T> = timely::dataflow::StreamVec<'scope, u64, Numbered<T>>;

/// Stage one: this worker's statistics at T, for every question that searches.
fn statistics<'scope>(
    scope: Scope<'scope, u64>,
    readers: &Rc<Readers>,
    at: Time,
    questions: &Questions,
) -> Stream<'scope, Statistics> {
    let (readers, questions) = (Rc::clone(readers), Rc::clone(questions));
    source(scope, "Statistics", move |capability, _| {
        let mut capability = Some(capability);
        move |output| {
            let Some(capability) = capability.take() else {
                return;
            };
            let indexes = readers.indexes.borrow();
            let mut session = output.session(&capability);
            for (i, (_, question)) in questions.iter().enumerate() {
                let Some(search) = search_of(question) else {
                    continue;
                };
                let terms = search.question.distinct_terms();
                let statistics = indexes
                    .get(&search.index)
                    .map(|index| index.shard.borrow().statistics(&terms, at))
                    .unwrap_or_default();
                session.give((i as u32, statistics));
            }
        }
    })
}

/// Stage two: with the sum of all statistics, search this worker's shard.
fn searched<'scope>(
    statistics: Stream<'scope, Statistics>,
    readers: &Rc<Readers>,
    at: Time,
    questions: &Questions,
    peers: usize,
) -> Stream<'scope, Partial> {
    let (readers, questions) = (Rc::clone(readers), Rc::clone(questions));
    statistics.broadcast().unary(Local, "Search", move |_, _| {
        let mut sums: BTreeMap<u32, (usize, Statistics)> = BTreeMap::new();
        move |input, output| {
            input.for_each(|capability, batch| {
                for (i, statistics) in batch.drain(..) {
                    let sum = sums.entry(i).or_default();
                    sum.0 += 1;
                    sum.1.add(&statistics);
                    if sum.0 == peers {
                        let question = &questions[i as usize].1;
                        let partial = search(&readers, at, question, sum.1.clone());
                        output.session(&capability).give((i, partial));
                    }
                }
            });
        }
    })
}

fn search(readers: &Readers, at: Time, question: &Question, statistics: Statistics) -> Partial {
    let Some(search) = search_of(question) else {
        unreachable!("only searches get here")
    };
    let indexes = readers.indexes.borrow();
    let Some(index) = indexes.get(&search.index) else {
        return Partial::Failed(DataError::new("not-found", "the index is gone"));
    };
    let filter = match &search.filter {
        None => None,
        Some((predicate, params)) => match index.spec.filter(predicate, &parsed(params)) {
            Ok(filter) => Some(filter),
            Err(problem) => return Partial::Failed(DataError::new(&problem.code, problem.detail)),
        },
    };
    let candidates = candidates(index, search, filter.as_ref(), &statistics, at);
    let pending = index.shard.borrow().pending_documents(at);
    match question {
        Question::Lookup(lookup) => {
            let caches = index.caches.borrow();
            let outcome = caches.shard(lookup.cache).map(|cache| {
                let asked = &lookup.question;
                let features = operators::cache::Features::of(&asked.text);
                cache.lookup(at, &asked.scope, asked.vector.as_deref(), &features)
            });
            let outcome = Box::new(outcome.unwrap_or_default());
            Partial::Lookup {
                outcome,
                candidates,
                statistics,
                pending,
            }
        }
        _ => Partial::Candidates {
            candidates,
            statistics,
            pending,
        },
    }
}

fn parsed(params: &str) -> Vec<serde_json::Value> {
    serde_json::from_str(params).expect("the service wrote an array")
}

fn candidates(
    index: &Index,
    search: &SearchQuestion,
    filter: Option<&FilterProgram>,
    statistics: &Statistics,
    at: Time,
) -> Vec<Candidate> {
    let shard = index.shard.borrow();
    let started = Instant::now();
    let candidates = match filter {
        None => shard.search(&search.question, None, statistics, at),
        Some(filter) => {
            let matches = |rows: &[&Row]| filter.matches(rows, at);
            shard.search(&search.question, Some(&matches), statistics, at)
        }
    };
    metrics::histogram!("headwater_search_seconds").record(started.elapsed().as_secs_f64());
    candidates
}

/// Everything that needs no global statistics.
fn read<'scope>(
    scope: Scope<'scope, u64>,
    readers: &Rc<Readers>,
    at: Time,
    questions: &Questions,
    worker: usize,
) -> Stream<'scope, Partial> {
    let (readers, questions) = (Rc::clone(readers), Rc::clone(questions));
    source(scope, "Read", move |capability, info| {
        let activator = scope.activator_for(info.address);
        let mut capability = Some(capability);
        let mut waiting: Vec<(u32, Reading)> = Vec::new();
        let mut is_started = false;
        move |output| {
            let Some(held) = capability.as_ref() else {
                return;
            };
            if !is_started {
                is_started = true;
                let mut session = output.session(held);
                for (i, (_, question)) in questions.iter().enumerate() {
                    if let Some(reading) = Reading::of(&readers, at, question, worker) {
                        waiting.push((i as u32, reading));
                    } else if let Some(partial) = read_shard(&readers, at, question) {
                        session.give((i as u32, partial));
                    }
                }
            }
            let deadline = Instant::now() + Duration::from_micros(super::index::BUDGET_MICROS);
            waiting.retain_mut(|(i, reader)| match reader.read(deadline) {
                None => true,
                Some(partial) => {
                    output.session(held).give((*i, partial));
                    false
                }
            });
            if waiting.is_empty() {
                capability = None;
            } else {
                activator.activate();
            }
        }
    })
}

fn read_shard(readers: &Readers, at: Time, question: &Question) -> Option<Partial> {
    let indexes = readers.indexes.borrow();
    let index = |id: &ObjectId| indexes.get(id);
    Some(match question {
        Question::Rows { .. }
        | Question::Changes(_)
        | Question::Search(_)
        | Question::Lookup(_) => return None,
        Question::Document { index: id, key } => {
            let view = index(id).and_then(|index| index.shard.borrow().document(key, at));
            let document = view.map(|view| DocumentAnswer {
                key: key.clone(),
                view,
            });
            Partial::Documents(document.into_iter().collect())
        }
        Question::Documents { index: id } => {
            Partial::Documents(index(id).map_or(Vec::new(), |index| {
                let shard = index.shard.borrow();
                let all = shard.documents(at);
                all.map(|(key, view)| DocumentAnswer {
                    key: key.clone(),
                    view,
                })
                .collect()
            }))
        }
        Question::Missing { index: id, limit } => {
            Partial::Missing(index(id).map_or(Vec::new(), |index| missing(index, at, *limit)))
        }
        Question::Contents {
            index: id,
            from,
            limit,
        } => {
            let page = index(id).map(|index| index.shard.borrow().contents(*from, *limit));
            let (contents, next) = page.unwrap_or_default();
            Partial::Contents(contents, next)
        }
        Question::Sizes { index: id } => {
            let sizes = index(id).map(|index| {
                let shard = index.shard.borrow();
                (shard.pending_documents(at), shard.sizes())
            });
            let (pending, sizes) = sizes.unwrap_or((0, ShardSizes::default()));
            Partial::Sizes(pending, sizes)
        }
        Question::Entries { cache } => {
            let entries = indexes.values().find_map(|index| {
                let host = index.caches.borrow();
                host.shard(*cache).map(|shard| shard.entries(at).collect())
            });
            Partial::Entries(entries.unwrap_or_default())
        }
    })
}

/// Chunks of at most `limit` texts: many may have one text, and must not hide the others.
fn missing(index: &Index, at: Time, limit: usize) -> Vec<MissingChunk> {
    /// Chunks a text, on average, beyond which the rest comes with another round.
    const CHUNKS_A_TEXT: usize = 16;
    let shard = index.shard.borrow();
    let mut out = Vec::new();
    let mut texts = HashSet::new();
    // Mostly few are missing, of many: none is looked for behind the last one.
    let mut pending = shard.pending_documents(at);
    for (key, view) in shard.documents(at) {
        if pending == 0 {
            break;
        }
        let is_pending = view.chunks.iter().any(|chunk| !chunk.has_vector);
        pending = pending.saturating_sub(u64::from(is_pending));
        for chunk in view.chunks.iter().filter(|chunk| !chunk.has_vector) {
            let piece = &view.state.chunks[chunk.ordinal as usize].piece;
            texts.insert(piece.content);
            if texts.len() > limit || out.len() >= CHUNKS_A_TEXT * limit {
                return out;
            }
            let text = index.spec.embedded_text(&view.state.text, piece);
            out.push(MissingChunk {
                key: key.clone(),
                content: piece.content,
                text,
            });
        }
    }
    out
}

/// What is read of an arrangement, in bounded steps.
enum Reading {
    Rows(RowReader),
    Changes(ChangeReader),
}

impl Reading {
    fn of(readers: &Readers, at: Time, question: &Question, worker: usize) -> Option<Reading> {
        match question {
            Question::Rows { collection, key } => {
                let reader = RowReader::new(readers, *collection, key.clone(), at);
                Some(Reading::Rows(reader))
            }
            Question::Changes(question) => {
                let reader = ChangeReader::new(&readers.relations, question, at, worker);
                Some(Reading::Changes(reader))
            }
            _ => None,
        }
    }

    /// This worker's part, when it is read; `None` to be called again.
    fn read(&mut self, deadline: Instant) -> Option<Partial> {
        match self {
            Reading::Rows(reader) => reader.read(deadline).map(Partial::Rows),
            Reading::Changes(reader) => reader
                .read(deadline)
                .map(|(changes, next)| Partial::Changes(changes, next)),
        }
    }
}

/// Reads an arrangement at T, in bounded steps.
struct RowReader {
    documents: Option<Documents>,
    key: Option<Key>,
    at: Time,
    after: Option<Key>,
    rows: Vec<(Key, DocVersion)>,
}

impl RowReader {
    fn new(readers: &Readers, id: ObjectId, key: Option<Key>, at: Time) -> Self {
        let documents = readers
            .relations
            .borrow()
            .get(&id)
            .map(|r| r.documents.clone());
        RowReader {
            documents,
            key,
            at,
            after: None,
            rows: Vec::new(),
        }
    }

    /// The rows, when all are read; `None` to be called again.
    fn read(&mut self, deadline: Instant) -> Option<Vec<(Key, DocVersion)>> {
        let Some(documents) = self.documents.as_mut() else {
            return Some(Vec::new());
        };
        let mut upper = Antichain::new();
        documents.read_upper(&mut upper);
        if upper.less_equal(&self.at) {
            return None;
        }
        let (mut cursor, storage) = documents.cursor();
        if let Some(from) = self.key.as_ref().or(self.after.as_ref()) {
            cursor.seek_key(&storage, from);
        }
        let mut steps = 0_u32;
        while let Some(key) = cursor.get_key(&storage) {
            if self.key.as_ref().is_some_and(|wanted| wanted != key) {
                break;
            }
            steps += 1;
            if steps.is_multiple_of(64) && Instant::now() > deadline {
                self.after = Some(key.clone());
                return None;
            }
            while let Some(value) = cursor.get_val(&storage) {
                let mut count = 0;
                cursor.map_times(&storage, |time, diff| {
                    if *time <= self.at {
                        count += *diff;
                    }
                });
                if count > 0 {
                    self.rows.push((key.clone(), value.clone()));
                }
                cursor.step_val(&storage);
            }
            cursor.step_key(&storage);
        }
        Some(std::mem::take(&mut self.rows))
    }
}

/// The last stage: on worker 0, merge and reply.
fn gather<'scope>(
    partials: Stream<'scope, Partial>,
    readers: &Rc<Readers>,
    questions: &Questions,
    peers: usize,
) {
    let (pipeline, questions) = (Arc::clone(&readers.pipeline), Rc::clone(questions));
    let exchange = Exchange::new(|_: &Numbered<Partial>| 0);
    partials.unary::<timely::container::CapacityContainerBuilder<Vec<()>>, _, _, _>(
        exchange,
        "Gather",
        move |_, _| {
            let mut gathered: BTreeMap<u32, Vec<Partial>> = BTreeMap::new();
            move |input, _output| {
                input.for_each(|_, batch| {
                    for (i, partial) in batch.drain(..) {
                        let all = gathered.entry(i).or_default();
                        all.push(partial);
                        if all.len() == peers {
                            let partials = std::mem::take(all);
                            let (question, asked) = &questions[i as usize];
                            let answer = answer(asked, partials);
                            (pipeline.replies)(ProgramReply::Answer {
                                question: *question,
                                answer,
                            });
                        }
                    }
                });
            }
        },
    );
}

fn answer(question: &Question, partials: Vec<Partial>) -> Answer {
    let mut rows = Vec::new();
    let mut page = ChangePage::default();
    let mut documents = Vec::new();
    let mut missing = Vec::new();
    let (mut contents, mut go_on) = (Vec::new(), None);
    let mut sizes = Vec::new();
    let mut entries = Vec::new();
    let mut searched = Vec::new();
    let mut outcome = LookupOutcome::default();
    let (mut statistics, mut pending) = (Statistics::default(), 0);
    for partial in partials {
        match partial {
            Partial::Rows(more) => rows.extend(more),
            Partial::Changes(more, next) => {
                page.changes.extend(more);
                if let Some(next) = next {
                    page.next.get_or_insert_default().push(next);
                }
            }
            Partial::Documents(more) => documents.extend(more),
            Partial::Missing(more) => missing.extend(more),
            Partial::Contents(more, next) => {
                contents.extend(more);
                // Shards number their documents each: the one that came least far sets the pace.
                go_on = go_on.into_iter().chain(next).min();
            }
            Partial::Sizes(waiting, size) => sizes.push((waiting, size)),
            Partial::Entries(more) => entries.extend(more),
            Partial::Failed(error) => return Answer::Failed(error),
            Partial::Candidates {
                candidates,
                statistics: global,
                pending: more,
            } => {
                searched.push(candidates);
                statistics = global;
                pending += more;
            }
            Partial::Lookup {
                outcome: one,
                candidates,
                statistics: global,
                pending: more,
            } => {
                searched.push(candidates);
                statistics = global;
                pending += more;
                outcome = outcome.merge(*one);
            }
        }
    }
    let merged = |search: &SearchQuestion| {
        let merged = merge(searched, &search.question, &statistics);
        SearchAnswer {
            merged,
            statistics: statistics.clone(),
            pending,
        }
    };
    match question {
        Question::Rows { .. } => Answer::Rows(rows),
        Question::Changes(_) => Answer::Changes(page),
        Question::Search(search) => Answer::Search(merged(search)),
        Question::Lookup(lookup) => Answer::Lookup(Box::new(LookupAnswer {
            outcome,
            search: merged(&lookup.search),
        })),
        Question::Document { .. } | Question::Documents { .. } => Answer::Documents(documents),
        Question::Missing { .. } => Answer::Missing(missing),
        Question::Contents { .. } => Answer::Contents(contents, go_on),
        Question::Sizes { .. } => Answer::Sizes(sizes),
        Question::Entries { .. } => Answer::Entries(entries),
    }
}
