//! The runtime: workers, the command stream, the sequencer that makes time, admission, and the
//! table of who may read what.
//!
//! ```text
//!  sources ──stage──▶ Ingest ──▶ log (Stage) ──▶ lanes ──▶ tick T ──▶ log (Tick)
//!                                  │ prepare threads           │
//!                                  └── wants vectors           ▼ one ordered command stream
//!  questions ──ask──▶ sequencer (T, hold) ───────────▶ workers: feed · step · ask · maintain
//!                          ▲                                   │
//!                          └──────────── uppers ◀──────────────┘
//! ```
//!
//! Invariants: [`sequencer`] alone makes T and publishes what is sealed; [`board`] alone moves
//! `since`; a [`Program`] sees the same commands in the same order on every worker; no call in
//! here waits for a model. Limits: [`crate::limits`].

mod board;
mod bus;
mod clock;
mod command;
mod dead_letters;
mod ingest;
mod lanes;
mod message;
mod preparer;
mod program;
mod questions;
mod replay;
mod sequencer;
mod sink;
mod worker;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
pub use timely::CommunicationConfig;
use timely::communication::WorkerGuards;

pub use board::Readable;
pub use clock::{Clock, SystemClock, VirtualClock};
pub use command::Tick;
pub use dead_letters::DeadLetters;
pub use lanes::StagedBatch;
pub use message::{AskError, AskTime, CatalogChange, Declared, WriteToken};
pub use preparer::{Prepared, Preparer, Want};
pub use program::{Program, ProgramFactory, QuestionId, Wire};
pub use replay::{Pin, Recovered};
pub use sink::{EngineSink, NotReplayed, OnDurable, PUSH_LANE, Staged};

use crate::durable::{CompactOptions, Compacted, InputLog, Record};
use crate::error::WorldError;
use crate::model::{ContentHash, ModelId, ObjectId, Time, VectorFact};
use board::Board;
use ingest::Ingest;
use message::{AskRequest, Message};
use sequencer::Sequencer;

/// What an engine runs with.
pub struct EngineOptions {
    /// How the workers talk: `Process(n)` for n workers in this process, `Cluster` for several.
    pub communication: CommunicationConfig,
    /// Workers of this process.
    pub local_workers: usize,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Threads that prepare batches.
    pub prepare_threads: usize,
    /// Compact the log when at least so many bytes can be folded into its base.
    pub compact_bytes: u64,
}

impl EngineOptions {
    /// `workers` in one process, on the operating system's clock.
    pub fn workers(workers: usize) -> Self {
        EngineOptions {
            communication: CommunicationConfig::Process(workers),
            local_workers: workers,
            clock: Arc::new(SystemClock),
            prepare_threads: 1,
            compact_bytes: 256 << 20,
        }
    }
}

/// What sealed and newest times are now.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The collections.
    pub collections: BTreeMap<ObjectId, Readable>,
    /// The last time minted.
    pub last: Time,
}

/// What threads share.
pub(crate) struct Shared<P: Program> {
    mailbox: Sender<Message<P>>,
    log: Arc<InputLog>,
    ingest: Ingest,
    dead_letters: Arc<DeadLetters>,
    preparer: Arc<dyn Preparer>,
    clock: Arc<dyn Clock>,
    is_cluster: bool,
    prepare: [Sender<StagedBatch>; 2],
    published: Mutex<Published>,
    sealed: Condvar,
    next_question: AtomicU64,
}

impl<P: Program> Shared<P> {
    /// Shows what is published to readers outside the sequencer.
    fn show(&self, board: &Board, last: Time) {
        let mut published = self.published.lock().expect("no panic while held");
        published.collections = board.all();
        published.last = last;
        metrics::gauge!("headwater_read_holds").set(board.holds() as f64);
        drop(published);
        self.sealed.notify_all();
    }

    /// Hands a batch to the prepare threads.
    fn prepare(&self, batch: StagedBatch) {
        // Gone only when the engine stops.
        let _ = self.prepare[usize::from(!batch.is_push)].send(batch);
    }
}

/// Called for each catalog change that replay finds, before it is rendered. What it gives back is
/// held for the object until [`Engine::unpin`].
pub type OnCatalog<'a, P> =
    dyn FnMut(&CatalogChange<<P as Program>::Definition>) -> Result<Option<Pin>, WorldError> + 'a;

/// What became of a text's vector.
enum News {
    Stored(VectorFact),
    Refused(ModelId, ContentHash),
}

/// Announces to the engine what became of vectors, from any thread.
#[derive(Clone)]
pub struct Announcer(Arc<dyn Fn(News) + Send + Sync>);

impl Announcer {
    fn new<P: Program>(mailbox: Sender<Message<P>>) -> Announcer {
        Announcer(Arc::new(move |news| {
            // Gone only when the engine stops.
            let _ = mailbox.send(match news {
                News::Stored(fact) => Message::Vector(fact),
                News::Refused(model, content) => Message::NoVector(model, content),
            });
        }))
    }

    /// The vector is stored; it will be bound to a tick.
    pub fn vector_stored(&self, fact: VectorFact) {
        (self.0)(News::Stored(fact));
    }

    /// The model refuses the text: nothing waits for its vector any more, until it is stored after all.
    pub fn vector_refused(&self, model: ModelId, content: ContentHash) {
        (self.0)(News::Refused(model, content));
    }
}

/// A running engine. Dropping it stops it; [`Engine::stop`] also seals what is bound.
pub struct Engine<P: Program> {
    shared: Arc<Shared<P>>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    workers: Mutex<Option<WorkerGuards<()>>>,
    compact_bytes: u64,
}

/// A running question: dropping it cancels the question and releases its hold.
pub struct AskGuard<P: Program> {
    shared: Arc<Shared<P>>,
    id: QuestionId,
    is_done: bool,
}

impl<P: Program> AskGuard<P> {
    /// The question's id, as the program's reply names it.
    pub fn id(&self) -> QuestionId {
        self.id
    }

    /// The reply has come: release the hold, nothing to cancel.
    pub fn done(mut self) {
        self.is_done = true;
        let _ = self.shared.mailbox.send(Message::Done(self.id));
    }
}

impl<P: Program> Drop for AskGuard<P> {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = self.shared.mailbox.send(Message::Cancel(self.id));
        }
    }
}

impl<P: Program> Engine<P> {
    /// Starts the workers, replays the log, and leaves the sequencer running.
    ///
    /// `on_catalog` resolves each object before workers render it. Nothing is prepared or bound
    /// before [`Engine::resume`].
    pub fn start(
        options: EngineOptions,
        log: Arc<InputLog>,
        replay: crate::durable::Replay,
        factory: Arc<ProgramFactory<P>>,
        preparer: impl FnOnce(Announcer) -> Arc<dyn Preparer>,
        on_catalog: &mut OnCatalog<'_, P>,
    ) -> Result<(Self, Recovered<P>), WorldError> {
        let (mailbox, inbox) = unbounded();
        let announcer = Announcer::new(mailbox.clone());
        let (push_sender, push_receiver) = unbounded();
        let (bulk_sender, bulk_receiver) = unbounded();
        let shared = Arc::new(Shared {
            mailbox,
            log,
            ingest: Ingest::default(),
            dead_letters: Arc::default(),
            preparer: preparer(announcer),
            clock: Arc::clone(&options.clock),
            is_cluster: matches!(options.communication, CommunicationConfig::Cluster { .. }),
            prepare: [push_sender, bulk_sender],
            published: Mutex::default(),
            sealed: Condvar::new(),
            next_question: AtomicU64::new(1),
        });
        let mailbox = shared.mailbox.clone();
        let report: Arc<worker::Report> = Arc::new(move |uppers: &[(ObjectId, Time)]| {
            let _ = mailbox.send(Message::Uppers(uppers.to_vec()));
        });
        let communication = options.communication.clone();
        let (bus, workers) = start_workers(communication, options.local_workers, report, factory)?;
        let mut threads = Vec::new();
        for i in 0..options.prepare_threads.max(1) {
            let shared = Arc::clone(&shared);
            let queues = [push_receiver.clone(), bulk_receiver.clone()];
            threads.push(spawn(&format!("prepare-{i}"), move || {
                prepare_loop(&shared, &queues)
            }));
        }
        let durable = shared.mailbox.clone();
        shared.log.set_durable_listener(Box::new(move |through| {
            let _ = durable.send(Message::Durable(through));
        }));
        let mut sequencer = Sequencer::new(Arc::clone(&shared), bus);
        let recovered = match replay::replay(&mut sequencer, replay, &inbox, on_catalog) {
            Ok(recovered) => recovered,
            Err(error) => {
                // Dropping the workers waits for them: they must be told.
                sequencer.stop_workers();
                return Err(error);
            }
        };
        threads.push(spawn("sequencer", move || sequencer.run(&inbox)));
        let threads = Mutex::new(threads);
        Ok((
            Engine {
                shared,
                threads,
                workers: Mutex::new(Some(workers)),
                compact_bytes: options.compact_bytes,
            },
            recovered,
        ))
    }

    /// Prepares what replay found unbound, and begins to bind.
    pub fn resume(&self, recovered: &mut Recovered<P>) {
        for batch in std::mem::take(&mut recovered.unbound) {
            self.shared.prepare(batch);
        }
        let _ = self.shared.mailbox.send(Message::Resume);
    }

    /// Declares or drops an object; `declared` is called when that is durable.
    pub fn declare(&self, change: CatalogChange<P::Definition>, declared: Declared) {
        let _ = self.shared.mailbox.send(Message::Declare(change, declared));
    }

    /// Asks a question over some collections. `accepted` gets the time, or why not, from the
    /// sequencer's thread. `question: None` takes a time and a hold only.
    pub fn ask(
        &self,
        over: Vec<ObjectId>,
        at: AskTime,
        timeout: Duration,
        question: impl FnOnce(QuestionId) -> Option<P::Question>,
        accepted: Box<dyn FnOnce(Result<Time, AskError>) + Send>,
    ) -> AskGuard<P> {
        let id = self.shared.next_question.fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + timeout;
        let question = question(id);
        let ask = AskRequest {
            id,
            over,
            at,
            deadline,
            question,
            accepted,
        };
        let _ = self.shared.mailbox.send(Message::Ask(ask));
        AskGuard {
            shared: Arc::clone(&self.shared),
            id,
            is_done: false,
        }
    }

    /// Adds an operation to the next tick; `bound` gets its time.
    pub fn operate(&self, operation: P::Operation, bound: Box<dyn FnOnce(Time) + Send>) {
        let _ = self.shared.mailbox.send(Message::Operate(operation, bound));
    }

    /// Asks for a tick not later than a time.
    pub fn due(&self, at: Time) {
        let _ = self.shared.mailbox.send(Message::Due(at));
    }

    /// Releases what replay held for an object ([`Pin`]).
    pub fn unpin(&self, object: ObjectId) {
        let _ = self.shared.mailbox.send(Message::Unpin(object));
    }

    /// Announces a stored vector.
    pub fn vector_stored(&self, fact: VectorFact) {
        let _ = self.shared.mailbox.send(Message::Vector(fact));
    }

    /// Announces that the store is about to forget vectors.
    pub fn vectors_forgotten(&self, facts: Vec<VectorFact>) {
        let _ = self.shared.mailbox.send(Message::Forgotten(facts));
    }

    /// Announces from other threads what became of vectors.
    pub fn announcer(&self) -> Announcer {
        Announcer::new(self.shared.mailbox.clone())
    }

    /// Where sources put their batches.
    pub fn sink(&self, source: ObjectId, name: &str, is_push: bool) -> EngineSink<P> {
        EngineSink::new(Arc::clone(&self.shared), source, name, is_push)
    }

    /// Sealed times now.
    pub fn published(&self) -> Published {
        self.shared
            .published
            .lock()
            .expect("no panic while held")
            .clone()
    }

    /// Waits until a collection is sealed through a time; false when the time-out passed first.
    pub fn wait_sealed(&self, over: &[ObjectId], at: Time, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut published = self.shared.published.lock().expect("no panic while held");
        loop {
            let is_sealed = over.iter().all(|id| {
                published
                    .collections
                    .get(id)
                    .is_some_and(|readable| readable.upper > at)
            });
            if is_sealed {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let wait = self.shared.sealed.wait_timeout(published, left);
            published = wait.expect("no panic while held").0;
        }
    }

    /// The dead letters.
    pub fn dead_letters(&self) -> Arc<DeadLetters> {
        Arc::clone(&self.shared.dead_letters)
    }

    /// Forgets the dead letters of sources that are not to be kept, also over restarts, whoever takes
    /// their names.
    pub fn forget_letters(&self, keep: impl Fn(&str) -> bool) {
        let names = self.shared.dead_letters.forget(keep);
        if !names.is_empty() {
            self.shared.log.append(Record::Forget(names), None);
        }
    }

    /// The engine's clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Live rows and staged bytes of a source.
    pub fn source_sizes(&self, source: ObjectId) -> (usize, usize) {
        self.shared.ingest.sizes(source)
    }

    /// The write with which a mark of a source ([`crate::contract::SourceBatch::position`]) had reached a
    /// number; `None` while none has.
    pub fn covering(&self, source: ObjectId, name: &str, mark: u64) -> Option<WriteToken> {
        let (lane, sequence) = self.shared.ingest.covering(source, name, mark)?;
        Some(WriteToken {
            source,
            lane,
            sequence,
        })
    }

    /// The input log: its sizes and whether it is failing.
    pub fn log(&self) -> &Arc<InputLog> {
        &self.shared.log
    }

    /// Compacts the log to what can still be read; returns at once when there is nothing to do.
    pub fn compact_log(&self, options: &CompactOptions) -> Result<Option<Compacted>, WorldError> {
        let published = self.published();
        let sinces = published
            .collections
            .values()
            .map(|readable| readable.since);
        let Some(since) = sinces.min() else {
            return Ok(None);
        };
        // Rewriting the base pays off when as much again has been added to it.
        let (base, new) = self.shared.log.compactable_bytes(since);
        if new < base.max(self.compact_bytes) {
            return Ok(None);
        }
        self.shared.log.compact(since, options)
    }

    /// Stops: no further input, what is bound gets sealed and durable, workers end.
    pub fn stop(&self) {
        let _ = self.shared.mailbox.send(Message::Stop);
        let Some(workers) = self.workers.lock().expect("no panic while held").take() else {
            return;
        };
        for result in workers.join() {
            if let Err(error) = result {
                tracing::error!(%error, "a worker panicked");
            }
        }
        let threads = std::mem::take(&mut *self.threads.lock().expect("no panic while held"));
        for thread in threads {
            // The prepare threads end with the last sender; do not wait for them here.
            if thread.thread().name() == Some("sequencer") {
                let _ = thread.join();
            }
        }
    }
}

impl<P: Program> Drop for Engine<P> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .expect("the operating system gives a thread at start")
}

/// Runs the workers of a process that follows another: commands come from the leading process,
/// which has the sequencer and the log. Returns when the leader stops.
pub fn follow<P: Program>(
    communication: CommunicationConfig,
    local_workers: usize,
    factory: Arc<ProgramFactory<P>>,
) -> Result<(), WorldError> {
    let report: Arc<worker::Report> = Arc::new(|_: &[(ObjectId, Time)]| {});
    let (_bus, workers) = start_workers(communication, local_workers, report, factory)?;
    for result in workers.join() {
        result.map_err(|detail| workers_failed(&detail))?;
    }
    Ok(())
}

fn workers_failed(detail: &str) -> WorldError {
    WorldError::Service {
        service: "workers".to_owned(),
        detail: detail.to_owned(),
        is_transient: false,
    }
}

fn start_workers<P: Program>(
    communication: CommunicationConfig,
    local_workers: usize,
    report: Arc<worker::Report>,
    factory: Arc<ProgramFactory<P>>,
) -> Result<(bus::CommandSender<P>, WorkerGuards<()>), WorldError> {
    let is_cluster = matches!(communication, CommunicationConfig::Cluster { .. });
    let (bus, receivers) = bus::command_bus::<P>(local_workers, is_cluster);
    let mut config = timely::WorkerConfig::default();
    // Spines keep merging while a worker is otherwise idle, instead of at the next insertion.
    differential_dataflow::configure(
        &mut config,
        &differential_dataflow::Config {
            idle_merge_effort: Some(1000),
        },
    );
    let timely_config = timely::Config {
        communication,
        worker: config,
    };
    let workers = timely::execute(timely_config, move |worker| {
        worker::run_worker(worker, &receivers, &*factory, &*report);
    })
    .map_err(|detail| workers_failed(&detail))?;
    Ok((bus, workers))
}

/// Prepares batches, pushes first, until the engine is gone.
fn prepare_loop<P: Program>(shared: &Arc<Shared<P>>, queues: &[Receiver<StagedBatch>; 2]) {
    let [push, bulk] = queues;
    loop {
        let batch = match push.try_recv() {
            Ok(batch) => batch,
            Err(_) => crossbeam_channel::select_biased! {
                recv(push) -> batch => match batch { Ok(batch) => batch, Err(_) => return },
                recv(bulk) -> batch => match batch { Ok(batch) => batch, Err(_) => return },
            },
        };
        let prepared = shared.preparer.prepare(&batch);
        let message = Message::Prepared {
            lane: (batch.source, Arc::clone(&batch.lane)),
            sequence: batch.sequence,
            prepared,
        };
        // Before it can be bound: its rows are moved then, if nobody else has them.
        drop(batch);
        if shared.mailbox.send(message).is_err() {
            return;
        }
    }
}
