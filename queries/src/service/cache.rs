//! The answer cache's desk: look-up, lease, store, events, rechecks (API §6, PROTOCOLS §5).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::limits;
use engine::model::{ChunkId, ObjectId, Time};
use engine::runtime::AskTime;
use operators::cache::{
    CacheEvent, CacheOp, Death, EntryId, EventKind, Hit as CacheHit, LeaseId, Member,
    Question as CacheQuestion, Refusal, Retrieval, Statistics,
};
use serde_json::{Map, Value as Json, json};
use tokio::sync::{Notify, oneshot};

use super::Inner;
use super::asking::{PATIENCE, ask_problem};
use super::search::{checked_text, show};
use crate::api::{
    Citation, DocumentRef, LookupReply, LookupRequest, Reply, SearchRequest, StoreReply,
    StoreRequest,
};
use crate::definition::CacheDef;
use crate::problem::Problem;
use crate::render::{
    Answer, Declared, IndexSpec, LookupAnswer, LookupQuestion, Operation, Question, SearchAnswer,
    SearchQuestion,
};

/// Events kept a cache for those who resume.
const EVENTS_MAX: usize = 10_000;

/// A shown event: position, name, data.
type Shown = ((Time, u32), String, Json);
type Decision = (Time, Result<EntryId, Refusal>);

#[derive(Default)]
struct Desk {
    events: VecDeque<Shown>,
    /// Stores that wait for their decision.
    deciding: HashMap<LeaseId, Vec<oneshot::Sender<Decision>>>,
    /// Retracted entries, with when and why, for `GET entries/{id}` after retention.
    retracted: BTreeMap<EntryId, (Time, Death)>,
}

/// What the service remembers of the caches.
#[derive(Default)]
pub(super) struct CacheDesk {
    desks: Mutex<BTreeMap<ObjectId, Desk>>,
    changed: Notify,
    next: AtomicU64,
}

impl CacheDesk {
    /// Forgets a dropped cache.
    pub(super) fn forget(&self, cache: ObjectId) {
        self.desks
            .lock()
            .expect("no panic while held")
            .remove(&cache);
    }

    /// Ids unique over restarts: microseconds of the first use, then counting.
    fn fresh(&self, now: Time) -> u64 {
        let seen = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(last.max(now) + 1)
            });
        seen.map_or(now, |last| last.max(now) + 1)
    }

    fn add(&self, cache: ObjectId, at: Time, name: &str, data: Json) {
        let mut desks = self.desks.lock().expect("no panic while held");
        let events = &mut desks.entry(cache).or_default().events;
        let number = match events.back() {
            Some(((last, n), ..)) if *last == at => n + 1,
            Some(((last, n), ..)) if *last > at => {
                // A hit is noted at its own as_of, which a later event may have passed.
                let position = (*last, n + 1);
                events.push_back((position, name.to_owned(), data));
                return;
            }
            _ => 0,
        };
        events.push_back(((at, number), name.to_owned(), data));
        if events.len() > EVENTS_MAX {
            events.pop_front();
        }
    }
}

/// A cache, resolved.
struct Cache {
    id: ObjectId,
    name: String,
    definition: CacheDef,
    index: Arc<IndexSpec>,
}

impl Inner {
    fn cache(&self, name: &str) -> Reply<Cache> {
        match self.pipeline.by_name(name) {
            Some(Declared::Cache {
                object,
                definition,
                index,
            }) => Ok(Cache {
                id: object.id,
                name: object.name,
                definition,
                index,
            }),
            _ => Err(Problem::not_found(format!("there is no cache \"{name}\""))
                .hint("SHOW CACHES lists them")),
        }
    }

    /// Look-up: a hit, or a lease with what the index says now.
    #[tracing::instrument(
        name = "lookup",
        level = "debug",
        skip_all,
        fields(cache = name, hit = tracing::field::Empty)
    )]
    pub(super) async fn cache_lookup(
        &self,
        name: &str,
        request: LookupRequest,
    ) -> Reply<LookupReply> {
        let started = std::time::Instant::now();
        let cache = self.cache(name)?;
        checked_text(&request.question)?;
        let (search, question) = self.cache_question(&cache, &request).await?;
        let ask = Question::Lookup(LookupQuestion {
            cache: cache.id,
            question: question.clone(),
            search: search.clone(),
        });
        let over = vec![cache.id, cache.index.object.id];
        let (at, answer) = self.ask(over, AskTime::Newest, PATIENCE, ask).await?;
        let Answer::Lookup(answer) = answer else {
            unreachable!("a look-up is answered by a look-up");
        };
        metrics::histogram!("headwater_question_seconds", "kind" => "lookup")
            .record(started.elapsed().as_secs_f64());
        let LookupAnswer {
            outcome,
            search: searched,
        } = *answer;
        tracing::Span::current().record("hit", outcome.hit.is_some());
        if let Some(hit) = outcome.hit {
            return Ok(self.hit(&cache, at, hit));
        }
        let near_miss = outcome.near_miss.map(|near| {
            metrics::counter!("headwater_cache_near_misses_total", "cache" => cache.name.clone())
                .increment(1);
            json!({"similarity": near.similarity, "refused": near.refused})
        });
        metrics::counter!("headwater_cache_misses_total", "cache" => cache.name.clone())
            .increment(1);
        let lease = LeaseId(self.caches.fresh(self.engine.clock().now_micros()));
        let retrieval = retrieval(at, &cache.definition, &search, &searched);
        let operation = CacheOp::Lease {
            lease,
            question: Arc::new(question),
            retrieval,
        };
        self.operate(cache.id, operation);
        let hits = searched
            .merged
            .hits
            .iter()
            .map(|hit| show(&cache.index, hit, None))
            .collect();
        Ok(LookupReply::Miss {
            hit: false,
            lease: lease.to_string(),
            as_of: at,
            hits,
            near_miss,
        })
    }

    fn hit(&self, cache: &Cache, at: Time, hit: CacheHit) -> LookupReply {
        metrics::counter!("headwater_cache_hits_total", "cache" => cache.name.clone()).increment(1);
        self.operate(cache.id, CacheOp::Touch { entry: hit.entry });
        self.caches.add(
            cache.id,
            at,
            "hit",
            json!({"entry": hit.entry.to_string(), "at": at}),
        );
        self.caches.changed.notify_waiters();
        let source = &cache.index.definition.source;
        LookupReply::Hit {
            hit: true,
            entry: hit.entry.to_string(),
            answer: serde_json::from_str(&hit.answer).unwrap_or(Json::Null),
            citations: hit
                .citations
                .iter()
                .map(|cited| citation(source, cited))
                .collect(),
            as_of: at,
            similarity: hit.similarity,
            stored_at: hit.stored_at,
        }
    }

    /// The retrieval and the cache's form of a question.
    async fn cache_question(
        &self,
        cache: &Cache,
        request: &LookupRequest,
    ) -> Reply<(SearchQuestion, CacheQuestion)> {
        let search = SearchRequest {
            index: cache.index.object.name.clone(),
            exact: cache.definition.exact,
            ..SearchRequest::default()
        };
        let text = Some(&*request.question);
        let prepared = self
            .prepare_question(&cache.index, text, None, &search, cache.definition.k)
            .await?;
        if let Some(why) = prepared.degraded.first() {
            // Half a retrieval must not be remembered as a whole one.
            return Err(
                Problem::new(503, "encoder-unavailable", why.clone()).with("retry_after_s", 1)
            );
        }
        let parameters = serde_json::to_string(&request.parameters).expect("plain JSON");
        let terms = prepared
            .question
            .terms
            .iter()
            .flat_map(|terms| terms.iter());
        let terms = terms
            .flat_map(|(term, n)| std::iter::repeat_n(term.0, *n as usize))
            .collect();
        let question = CacheQuestion {
            text: request.question.clone(),
            vector: prepared.question.vector.clone(),
            terms,
            scope: scope(cache, &parameters),
            parameters,
        };
        let search = SearchQuestion {
            index: cache.index.object.id,
            question: prepared.question,
            filter: None,
        };
        Ok((search, question))
    }

    /// Stores an answer under a lease; decided in the dataflow at its own T.
    #[tracing::instrument(
        name = "store",
        level = "debug",
        skip_all,
        fields(cache = name, stored = tracing::field::Empty)
    )]
    pub(super) async fn cache_store(&self, name: &str, request: StoreRequest) -> Reply<StoreReply> {
        let cache = self.cache(name)?;
        let lease = LeaseId::parse(&request.lease).ok_or_else(|| gone(&request.lease))?;
        let answer = request.answer.to_string();
        if answer.len() > limits::ANSWER_BYTES_MAX {
            return Err(Problem::new(
                413,
                "answer-too-large",
                format!(
                    "the answer has {} bytes; the limit ANSWER_BYTES_MAX is {}",
                    answer.len(),
                    limits::ANSWER_BYTES_MAX
                ),
            ));
        }
        let citations = request.citations.iter().map(|text| {
            ChunkId::parse(text).ok_or_else(|| {
                Problem::invalid(format!("citation \"{text}\" is not a chunk id"))
                    .expected("chunk ids out of the lease's hits")
            })
        });
        let citations: Vec<ChunkId> = citations.collect::<Reply<_>>()?;
        let (send, receive) = oneshot::channel();
        {
            let mut desks = self.caches.desks.lock().expect("no panic while held");
            desks
                .entry(cache.id)
                .or_default()
                .deciding
                .entry(lease)
                .or_default()
                .push(send);
        }
        let entry = EntryId(self.caches.fresh(self.engine.clock().now_micros()));
        self.operate(
            cache.id,
            CacheOp::Store {
                lease,
                entry,
                answer: answer.into(),
                citations,
            },
        );
        let decided = tokio::time::timeout(PATIENCE, receive).await;
        let Ok(Ok((at, decision))) = decided else {
            return Err(Problem::new(
                503,
                "not-ready",
                "the store was not decided in time",
            ));
        };
        tracing::Span::current().record("stored", decision.is_ok());
        match decision {
            Ok(entry) => {
                // 201 after the seal: a look-up that follows finds it.
                let sealed = AskTime::NotBefore(at);
                let reached = self.reach(vec![cache.id], sealed, PATIENCE).await;
                let as_of = reached.map_err(ask_problem)?;
                Ok(StoreReply {
                    entry: entry.to_string(),
                    as_of: as_of.max(at),
                })
            }
            Err(Refusal::Gone) => Err(gone(&request.lease)),
            Err(Refusal::NotRetrieved(chunk)) => Err(Problem::invalid(format!(
                "citation \"{chunk}\" is not among the lease's hits"
            ))
            .expected("chunk ids out of the lease's hits")
            .hint("the lease is still open: store again with its own chunks")),
            Err(Refusal::AlreadyStored(entry)) => Err(Problem::new(
                409,
                "lease-used",
                format!("the lease already carries another answer, in entry {entry}"),
            )
            .with("entry", entry.to_string())),
            Err(Refusal::NoLongerTrue(death)) => Err(no_longer_true(&cache, &death)),
        }
    }

    /// Manual retraction.
    pub(super) async fn cache_forget(&self, name: &str, entry: &str) -> Reply<Json> {
        let cache = self.cache(name)?;
        let id = EntryId::parse(entry).ok_or_else(|| no_entry(name, entry))?;
        self.cache_entry(name, entry).await?;
        let (send, receive) = oneshot::channel();
        let operation = CacheOp::Forget { entry: id };
        self.engine.operate(
            Operation::Cache {
                cache: cache.id,
                operation,
            },
            Box::new(move |at| {
                let _ = send.send(at);
            }),
        );
        let at = receive
            .await
            .map_err(|_| Problem::new(503, "not-ready", "stopping"))?;
        let sealed = AskTime::NotBefore(at);
        self.reach(vec![cache.id], sealed, PATIENCE)
            .await
            .map_err(ask_problem)?;
        Ok(json!({"entry": entry, "cause": "manual", "at": at}))
    }

    /// A live or lately retracted entry.
    pub(super) async fn cache_entry(&self, name: &str, entry: &str) -> Reply<Json> {
        let cache = self.cache(name)?;
        let id = EntryId::parse(entry).ok_or_else(|| no_entry(name, entry))?;
        let ask = Question::Entries { cache: cache.id };
        let (at, answer) = self
            .ask(vec![cache.id], AskTime::Newest, PATIENCE, ask)
            .await?;
        let Answer::Entries(entries) = answer else {
            unreachable!("entries are answered by entries");
        };
        let source = &cache.index.definition.source;
        if let Some(view) = entries.into_iter().find(|view| view.entry == id) {
            return Ok(json!({
                "entry": entry,
                "question": view.question.text,
                "answer": serde_json::from_str::<Json>(&view.answer).unwrap_or(Json::Null),
                "citations": view.citations.iter().map(|c| citation(source, c)).collect::<Vec<_>>(),
                "stored_at": view.stored_at,
                "is_live": view.is_live,
                "as_of": at,
            }));
        }
        self.noted().await;
        let desks = self.caches.desks.lock().expect("no panic while held");
        let retracted = desks
            .get(&cache.id)
            .and_then(|desk| desk.retracted.get(&id));
        let (when, death) = retracted.ok_or_else(|| no_entry(name, entry))?;
        let mut shown = shown_death(source, death);
        shown.insert("entry".to_owned(), Json::from(entry));
        shown.insert("is_live".to_owned(), Json::from(false));
        shown.insert("retracted_at".to_owned(), Json::from(*when));
        shown.insert("as_of".to_owned(), Json::from(at));
        Ok(Json::Object(shown))
    }

    /// Events after a position, waiting for the first.
    pub(super) async fn cache_event_list(
        &self,
        name: &str,
        after: Option<&str>,
        wait_ms: u64,
    ) -> Reply<Vec<(String, String, Json)>> {
        let cache = self.cache(name)?;
        let after = after.map(parse_position).transpose()?;
        let deadline = tokio::time::Instant::now() + Duration::from_millis(wait_ms);
        loop {
            let changed = self.caches.changed.notified();
            let found = {
                let desks = self.caches.desks.lock().expect("no panic while held");
                let events = desks.get(&cache.id).map(|desk| &desk.events);
                let later = events
                    .into_iter()
                    .flatten()
                    .filter(|(at, ..)| after.is_none_or(|a| *at > a));
                let shown = later
                    .map(|((at, n), name, data)| (format!("{at}/{n}"), name.clone(), data.clone()));
                shown.collect::<Vec<_>>()
            };
            if !found.is_empty() || tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok(found);
            }
        }
    }

    /// Live entries as rows of the cache's collection.
    pub(super) async fn cache_entries(
        &self,
        id: ObjectId,
        at: AskTime,
    ) -> Reply<(Time, Vec<operators::cache::EntryView>)> {
        let ask = Question::Entries { cache: id };
        let (at, answer) = self.ask(vec![id], at, PATIENCE, ask).await?;
        match answer {
            Answer::Entries(entries) => Ok((
                at,
                entries.into_iter().filter(|entry| entry.is_live).collect(),
            )),
            _ => unreachable!("entries are answered by entries"),
        }
    }

    /// Retractions remembered, by cache, for `headwater.retractions`.
    pub(super) fn retractions(&self) -> Vec<(ObjectId, EntryId, Time, Death)> {
        let desks = self.caches.desks.lock().expect("no panic while held");
        let all = desks.iter().flat_map(|(id, desk)| {
            desk.retracted
                .iter()
                .map(|(entry, (at, death))| (*id, *entry, *at, death.clone()))
        });
        all.collect()
    }

    fn operate(&self, cache: ObjectId, operation: CacheOp) {
        self.engine
            .operate(Operation::Cache { cache, operation }, Box::new(|_| {}));
    }

    /// Events from the dataflow: decisions to those who wait, rechecks to the index.
    pub(super) fn cache_events(self_: &Arc<Inner>, cache: ObjectId, events: Vec<CacheEvent>) {
        let Some(Declared::Cache {
            object,
            definition,
            index,
        }) = self_.pipeline.get(cache)
        else {
            return;
        };
        let resolved = Arc::new(Cache {
            id: object.id,
            name: object.name,
            definition,
            index,
        });
        for event in events {
            let entry = event.entry.map(|entry| entry.to_string());
            match event.kind {
                EventKind::Stored { suspect, repeated } => {
                    let id = event.entry.expect("stored means that there is an entry");
                    self_.decide(cache, event.lease, (event.at, Ok(id)));
                    if !repeated {
                        let data = json!({"entry": entry, "at": event.at, "suspect": suspect});
                        self_.caches.add(cache, event.at, "stored", data);
                    }
                }
                EventKind::Refused(refusal) => {
                    self_.decide(cache, event.lease, (event.at, Err(refusal)));
                }
                EventKind::Suspended if entry.is_some() => {
                    let data = json!({"entry": entry, "at": event.at});
                    self_.caches.add(cache, event.at, "suspended", data);
                }
                EventKind::Reinstated if entry.is_some() => {
                    let data = json!({"entry": entry, "at": event.at});
                    self_.caches.add(cache, event.at, "reinstated", data);
                }
                EventKind::Retracted(death) => {
                    if let Some(id) = event.entry {
                        self_.retracted(&resolved, id, event.at, death);
                    }
                }
                EventKind::RecheckRequested(question) => {
                    let (inner, cache) = (Arc::clone(self_), Arc::clone(&resolved));
                    let (lease, at) = (event.lease, event.at);
                    self_.runtime.spawn(async move {
                        inner.recheck(&cache, lease, at, &question).await;
                    });
                }
                EventKind::Suspended | EventKind::Reinstated => {}
            }
        }
        self_.caches.changed.notify_waiters();
    }

    fn retracted(&self, cache: &Cache, entry: EntryId, at: Time, death: Death) {
        let mut data = shown_death(&cache.index.definition.source, &death);
        data.insert("entry".to_owned(), Json::from(entry.to_string()));
        data.insert("at".to_owned(), Json::from(at));
        self.caches
            .add(cache.id, at, "retracted", Json::Object(data));
        let mut desks = self.caches.desks.lock().expect("no panic while held");
        let retracted = &mut desks.entry(cache.id).or_default().retracted;
        retracted.insert(entry, (at, death));
        if retracted.len() > EVENTS_MAX {
            retracted.pop_first();
        }
    }

    fn decide(&self, cache: ObjectId, lease: LeaseId, decision: Decision) {
        let outcome = if decision.1.is_ok() {
            "stored"
        } else {
            "refused"
        };
        metrics::counter!("headwater_cache_stores_total", "outcome" => outcome).increment(1);
        let mut desks = self.caches.desks.lock().expect("no panic while held");
        let waiting = desks
            .get_mut(&cache)
            .and_then(|desk| desk.deciding.remove(&lease));
        for sender in waiting.into_iter().flatten() {
            let _ = sender.send(decision.clone());
        }
    }

    /// Runs a suspect entry's question again.
    async fn recheck(&self, cache: &Cache, lease: LeaseId, at: Time, question: &CacheQuestion) {
        let request = SearchRequest {
            exact: cache.definition.exact,
            ..SearchRequest::default()
        };
        let k = cache.definition.k;
        // A vector of its own needs no encoder: a recheck never waits for a model.
        let prepared = self.prepare_question(
            &cache.index,
            Some(&question.text),
            question.vector.as_deref(),
            &request,
            k,
        );
        let Ok(prepared) = prepared.await else { return };
        let search = SearchQuestion {
            index: cache.index.object.id,
            question: prepared.question,
            filter: None,
        };
        let ask = Question::Search(search.clone());
        let over = vec![cache.index.object.id];
        let answered = self.ask(over, AskTime::NotBefore(at), PATIENCE, ask).await;
        if let Ok((read_at, Answer::Search(answer))) = answered {
            let retrieval = retrieval(read_at, &cache.definition, &search, &answer);
            self.operate(
                cache.id,
                CacheOp::Recheck {
                    watch: lease,
                    retrieval,
                },
            );
        }
    }
}

/// What a lease stands on.
fn retrieval(
    at: Time,
    cache: &CacheDef,
    search: &SearchQuestion,
    answer: &SearchAnswer,
) -> Retrieval {
    let merged = &answer.merged;
    let list = merged.hits.iter().map(|hit| Member {
        chunk: hit.candidate.chunk,
        key: hit.candidate.document.clone(),
        version: hit.candidate.state.version,
        score: hit.score,
        cos: hit.candidate.cosine,
        bm25: hit.candidate.bm25,
    });
    let terms = search.question.distinct_terms();
    let frequencies = answer.statistics.frequencies.iter();
    Retrieval {
        read_at: at,
        list: list.collect(),
        k: cache.k,
        best_outsider: merged
            .outsider
            .into_iter()
            .chain(merged.ceiling)
            .reduce(f64::max),
        statistics: Statistics {
            chunks: answer.statistics.chunks,
            length: answer.statistics.length,
            df: terms
                .iter()
                .map(|term| term.0)
                .zip(frequencies.copied())
                .collect(),
        },
    }
}

fn scope(cache: &Cache, parameters: &str) -> Vec<u8> {
    // Tenant and principal are `local` until credentials exist; they come first, so that adding
    // them changes no layout.
    format!(
        "local\0local\0{}\0{}\0{parameters}",
        cache.index.object.id, cache.id
    )
    .into_bytes()
}

fn citation(source: &str, cited: &(ChunkId, engine::model::Key, u64)) -> Citation {
    let (chunk, key, version) = cited;
    Citation {
        chunk: chunk.to_string(),
        document: DocumentRef {
            source: source.to_owned(),
            key: key.to_json(),
            version: *version,
        },
    }
}

fn documents(source: &str, death: &Death) -> Vec<Json> {
    let shown = death.by.iter().map(|document| {
        json!({"source": source, "key": document.key.to_json(), "version": document.version})
    });
    shown.collect()
}

fn shown_death(source: &str, death: &Death) -> Map<String, Json> {
    let mut by = documents(source, death);
    let mut data = Map::new();
    data.insert("cause".to_owned(), Json::from(death.cause.as_str()));
    if !by.is_empty() {
        data.insert("documents".to_owned(), Json::from(by.clone()));
        data.insert("by".to_owned(), by.swap_remove(0));
    }
    data
}

fn gone(lease: &str) -> Problem {
    Problem::new(
        410,
        "lease-expired",
        format!("lease \"{lease}\" expired or never was"),
    )
    .hint("look up again: a lease lives 5 minutes")
}

fn no_entry(cache: &str, entry: &str) -> Problem {
    Problem::not_found(format!("cache \"{cache}\" has no entry \"{entry}\""))
}

fn no_longer_true(cache: &Cache, death: &Death) -> Problem {
    Problem::new(
        409,
        "no-longer-true",
        format!(
            "what the lease saw is no longer true: {}",
            death.cause.as_str()
        ),
    )
    .with("cause", death.cause.as_str())
    .with(
        "documents",
        documents(&cache.index.definition.source, death),
    )
    .hint("look up again and answer from the new hits")
}

fn parse_position(text: &str) -> Reply<(Time, u32)> {
    let parsed = text
        .split_once('/')
        .and_then(|(at, n)| Some((at.parse().ok()?, n.parse().ok()?)));
    parsed.ok_or_else(|| {
        Problem::invalid(format!("\"{text}\" is not an event id")).expected("T/n, as in `id:`")
    })
}
