//! One thread a group: it takes what the sources and the transaction topic bring, and stages.
//!
//! Invariants: the group begins when all sources that were made have joined, and a little later when
//! one of them is new (others of the same pipeline may follow); what arrives before waits. Time that
//! passes while the pipeline takes no rows does not count as waiting.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use engine::contract::SourceContext;
use engine::error::WorldError;
use engine::limits::{
    TRANSACTION_BYTES_MAX, TRANSACTION_EVENTS_BYTES_MAX, TRANSACTION_PIECE_BYTES_MAX,
};
use engine::model::Schema;

use super::assembly::{Bounds, End, Place};
use super::feed::Feed;
use super::group::{Board, Group, Held};
use super::metadata::{Line, Metadata};
use crate::envelope::Options;
use crate::kafka::client::Next;
use crate::kafka::letter_topic::LetterTopic;
use crate::kafka::{KafkaOptions, KafkaSource, Security};

/// Longest wait for a command: deadlines are looked at so often.
const LOOK: Duration = Duration::from_millis(20);
/// Commands taken before work is done.
const COMMANDS: usize = 64;
/// Longest wait for sources that were made and have not joined: their threads do so first of all, and a
/// group that begins without one shows its rows apart until it has caught up.
const EXPECT: Duration = Duration::from_secs(60);
/// A group with a source that is new waits so long for others after the last one.
const GATHER: Duration = Duration::from_secs(1);

/// Bounds of a group without sources.
const BOUNDS: Bounds = Bounds {
    wait: 0,
    bytes: TRANSACTION_EVENTS_BYTES_MAX,
    piece: TRANSACTION_PIECE_BYTES_MAX,
    whole: TRANSACTION_BYTES_MAX,
};

/// What sources and the transaction topic tell the group.
pub(super) enum Command {
    Join(Box<Joining>),
    Leave {
        number: u64,
        left: Sender<()>,
    },
    Begin {
        place: Place,
        offset: i64,
        /// Where the partition ended; what nobody could say is none.
        high: Option<i64>,
        /// Where the transaction topic ended before that.
        ends: Option<i64>,
    },
    GiveUp(Place),
    Ready(u64),
    Taken {
        number: u64,
        messages: Vec<Held>,
        bytes: usize,
        on_the_way: Arc<AtomicUsize>,
    },
    /// All that was written to a partition until then, by the group's time, was taken.
    Dry {
        place: Place,
        at: u64,
    },
    /// A partition was read to its end.
    Reached(Place),
    SweepAt {
        number: u64,
        ends: BTreeMap<i32, i64>,
    },
    /// Of the reader of the transaction topic that has this number.
    Told(u64, Told),
}

/// What the reader of the transaction topic tells.
pub(super) enum Told {
    Ends(Vec<End>),
    /// All that was written until then, by the group's time, was told.
    All(u64),
    /// ENDs are read from this offset on.
    Began(i64),
    /// The transaction topic is another one.
    Anew,
    /// What it waits for; `None`: it goes on.
    Waits(Option<String>),
    Failed(String),
}

/// A source that joins.
pub(super) struct Joining {
    number: u64,
    context: SourceContext,
    options: KafkaOptions,
    decoding: Options,
    schema: Schema,
    letters: Option<LetterTopic>,
    board: Board,
}

/// What makes sources a group.
type Name = (String, String, Security);

/// The groups of sources of this process.
#[derive(Default)]
pub struct Groups {
    hubs: Mutex<Vec<(Name, Weak<Hub>)>>,
}

impl Groups {
    /// A place for a source that names a transaction topic.
    pub(crate) fn ticket(&self, options: &KafkaOptions) -> Option<Ticket> {
        let topic = options.transactions.as_ref()?.topic.clone();
        let name = (options.brokers.clone(), topic, options.security.clone());
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.retain(|(_, hub)| hub.strong_count() > 0);
        let known = hubs.iter().find(|(other, _)| *other == name);
        let other = hubs.iter().find(|(other, _)| other.1 == name.1);
        if let (None, Some(((brokers, ..), _))) = (known, other) {
            tracing::warn!(
                transactions = name.1,
                brokers = name.0,
                other = brokers,
                "another group has a transaction topic of this name: sources wait for each other only \
                 if their BROKERS and their login are written alike"
            );
        }
        let hub = known.and_then(|(_, hub)| hub.upgrade());
        let hub = hub.unwrap_or_else(|| {
            let hub = Arc::new(Hub {
                topic: name.1.clone(),
                state: Mutex::default(),
            });
            hubs.push((name, Arc::downgrade(&hub)));
            hub
        });
        hub.state().expected += 1;
        Some(Ticket {
            hub,
            has_joined: false,
        })
    }
}

/// A group's meeting point.
pub(crate) struct Hub {
    topic: String,
    state: Mutex<HubState>,
}

#[derive(Default)]
struct HubState {
    /// Sources that were made, and of which the thread has not taken the [`Command::Join`]: one that is on
    /// its way to the thread counts, else the group could begin without it.
    expected: usize,
    numbers: u64,
    /// To the thread, while it runs.
    commands: Option<Sender<Command>>,
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, HubState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is kept for a source from its making until it joins.
pub struct Ticket {
    hub: Arc<Hub>,
    has_joined: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.has_joined {
            self.hub.state().expected -= 1;
        }
    }
}

impl Ticket {
    /// Joins. Errors: a thread cannot be started; settings that librdkafka refuses.
    pub(crate) fn join(
        mut self,
        source: &KafkaSource,
        context: &SourceContext,
        lag: Next,
    ) -> Result<Feed, WorldError> {
        let letters = LetterTopic::new(&source.options, context)?;
        let hub = Arc::clone(&self.hub);
        let mut state = hub.state();
        state.numbers += 1;
        let number = state.numbers;
        let board = Board::default();
        let joining = Joining {
            number,
            context: context.clone(),
            options: source.options.clone(),
            decoding: source.decoding.clone(),
            schema: source.schema.clone(),
            letters,
            board: Arc::clone(&board),
        };
        let mut command = Command::Join(Box::new(joining));
        // The thread may just have ended.
        if let Some(commands) = &state.commands {
            match commands.send(command) {
                Ok(()) => {
                    let commands = commands.clone();
                    self.has_joined = true;
                    return Ok(self.feed(source, context, number, commands, board, lag));
                }
                Err(unsent) => command = unsent.0,
            }
        }
        let (commands, receiver) = channel();
        let thread = Thread::new(Arc::clone(&hub), receiver, commands.clone());
        let name = format!("transactions-{}", hub.topic);
        std::thread::Builder::new()
            .name(name)
            .spawn(move || thread.run())
            .map_err(|error| WorldError::io("cannot start", "a thread".as_ref(), error))?;
        // The thread's receiver lives at least until it was told of this.
        self.has_joined = commands.send(command).is_ok();
        state.commands = Some(commands.clone());
        drop(state);
        Ok(self.feed(source, context, number, commands, board, lag))
    }

    fn feed(
        &self,
        source: &KafkaSource,
        context: &SourceContext,
        number: u64,
        commands: Sender<Command>,
        board: Board,
        lag: Next,
    ) -> Feed {
        let topics = (&*source.options.topic, &*self.hub.topic);
        let decoder = source.decoder();
        Feed::new(
            number,
            context.clone(),
            topics,
            decoder,
            commands,
            board,
            lag,
        )
    }
}

/// The hub's thread.
struct Thread {
    hub: Arc<Hub>,
    receiver: Receiver<Command>,
    commands: Sender<Command>,
    group: Group,
    /// How the transaction topic is read: as the first source reads.
    first: Option<(KafkaOptions, Options)>,
    /// Commands that came before the group began.
    early: Vec<Command>,
    line: Arc<Line>,
    /// The number of its reader of the transaction topic.
    reader: u64,
    began: Instant,
    /// When the first source came.
    opened: Instant,
    joined: Instant,
    /// Time in which the pipeline took rows, or took none.
    busy: Duration,
}

impl Thread {
    fn new(hub: Arc<Hub>, receiver: Receiver<Command>, commands: Sender<Command>) -> Thread {
        Thread {
            group: Group::new(&hub.topic, BOUNDS),
            hub,
            receiver,
            commands,
            first: None,
            early: Vec::new(),
            line: Arc::default(),
            reader: 0,
            began: Instant::now(),
            opened: Instant::now(),
            joined: Instant::now(),
            busy: Duration::ZERO,
        }
    }

    fn now(&self) -> u64 {
        (self.began.elapsed() - self.busy).as_millis() as u64
    }

    fn run(mut self) {
        loop {
            let first = match self.receiver.recv_timeout(LOOK) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let more = self.receiver.try_iter().take(COMMANDS);
            let commands: Vec<Command> = first.into_iter().chain(more).collect();
            for command in commands {
                self.take(command);
            }
            if self.group.is_empty() && self.close() {
                break;
            }
            if !self.group.has_started() && self.is_complete() {
                self.start();
            }
            if self.group.has_started() {
                let begun = Instant::now();
                let now = self.now();
                self.group.work(now);
                self.busy += begun.elapsed();
                self.line
                    .waiting
                    .store(self.group.ends(), Ordering::Relaxed);
                if self.group.wants_told_all(now) {
                    self.line.wants_all(now);
                }
            }
            self.group.pump();
        }
        self.line.stop.store(true, Ordering::Relaxed);
    }

    /// Ends the service when nobody is there; false when somebody joined meanwhile.
    fn close(&mut self) -> bool {
        let hub = Arc::clone(&self.hub);
        let mut state = hub.state();
        match self.receiver.try_recv() {
            Ok(command) => {
                drop(state);
                self.take(command);
                self.group.is_empty() && self.close()
            }
            Err(_) => {
                state.commands = None;
                true
            }
        }
    }

    /// Whether those that start together have joined.
    fn is_complete(&self) -> bool {
        let is_expecting = self.hub.state().expected > 0 && self.opened.elapsed() < EXPECT;
        let is_gathering = self.group.has_new() && self.joined.elapsed() < GATHER;
        !is_expecting && !is_gathering && !self.group.is_empty()
    }

    fn start(&mut self) {
        let start = self.group.start(self.now());
        let Some((options, decoding)) = &self.first else {
            return;
        };
        let metadata = Metadata::new(
            options,
            &self.hub.topic,
            decoding,
            start,
            (self.reader, self.commands.clone()),
            Arc::clone(&self.line),
        );
        let spawned = metadata.and_then(|metadata| {
            std::thread::Builder::new()
                .name(format!("ends-{}", self.hub.topic))
                .spawn(move || metadata.run())
                .map_err(|error| WorldError::io("cannot start", "a thread".as_ref(), error))
        });
        if let Err(error) = spawned {
            self.group.fail(&error.to_string());
        }
        for command in std::mem::take(&mut self.early) {
            self.take(command);
        }
    }

    fn take(&mut self, command: Command) {
        let now = self.now();
        let command = match command {
            Command::Join(joining) => return self.join(*joining),
            Command::Leave { number, left } => {
                self.group.leave(number);
                let _ = left.send(());
                if self.group.is_empty() {
                    self.reset();
                }
                return;
            }
            // Of a reader that is being stopped.
            Command::Told(reader, _) if reader != self.reader => return,
            command if !self.group.has_started() => return self.early.push(command),
            command => command,
        };
        match command {
            Command::Join(_) | Command::Leave { .. } => {}
            Command::Begin {
                place,
                offset,
                high,
                ends,
            } => self.group.begin(place, offset, high, ends),
            Command::GiveUp(place) => self.group.give_up(place),
            Command::Ready(number) => self.group.ready(number),
            Command::Taken {
                number,
                messages,
                bytes,
                on_the_way,
            } => {
                on_the_way.fetch_sub(bytes, Ordering::Relaxed);
                self.group.take(number, messages, now);
            }
            Command::Dry { place, at } => self.group.dry(place, at),
            Command::Reached(place) => self.group.reached(place),
            Command::SweepAt { number, ends } => self.group.sweep_at(number, ends),
            Command::Told(_, told) => match told {
                Told::Ends(ends) => ends.into_iter().for_each(|end| self.group.told(end, now)),
                Told::All(at) => self.group.told_all(at),
                Told::Began(offset) => self.group.began(offset),
                Told::Anew => self.group.begin_anew(),
                Told::Waits(reason) => self.group.waits(reason),
                Told::Failed(reason) => self.group.fail(&reason),
            },
        }
    }

    /// Nobody is there any more: whoever comes now begins a group of their own.
    fn reset(&mut self) {
        self.line.stop.store(true, Ordering::Relaxed);
        self.line = Arc::default();
        self.reader += 1;
        self.group = Group::new(&self.hub.topic, BOUNDS);
        self.first = None;
        self.early.clear();
        self.opened = Instant::now();
    }

    fn join(&mut self, joining: Joining) {
        self.hub.state().expected -= 1;
        self.joined = Instant::now();
        let wait = joining.options.transactions.as_ref();
        let wait = wait.map_or(Duration::ZERO, |transactions| transactions.wait);
        self.group.wait_at_least(wait.as_millis() as u64);
        let number = joining.number;
        let topic = joining.options.topic.clone();
        let board = Arc::clone(&joining.board);
        let joined = self.group.join(
            number,
            joining.context,
            &topic,
            &joining.schema,
            joining.board,
        );
        match joined {
            Ok(()) => {
                self.group.set_letters(number, joining.letters);
                let first = (joining.options, joining.decoding);
                self.first.get_or_insert(first);
            }
            Err(error) => {
                let mut wishes = board.lock().unwrap_or_else(PoisonError::into_inner);
                wishes.failure = Some(error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::model::{Column, SqlType};
    use engine::testing::{Recorded, ScriptedSink};

    use super::*;
    use crate::envelope::Envelope;
    use crate::kafka::{Start, TransactionTopic};

    fn source() -> KafkaSource {
        let options = KafkaOptions {
            brokers: "127.0.0.1:1".to_owned(),
            topic: "db.rows".to_owned(),
            is_pattern: false,
            start: Start::Earliest,
            group: None,
            dead_letter_topic: None,
            transactions: Some(TransactionTopic {
                topic: "db.transaction".to_owned(),
                wait: Duration::ZERO,
            }),
            security: Security::default(),
            readers: 1,
        };
        let schema = Schema {
            columns: vec![Column::new("id", SqlType::Int8)],
            key: vec![0],
        };
        KafkaSource::new(options, schema, Envelope::Debezium, Options::default())
            .expect("plain options")
    }

    fn context() -> SourceContext {
        SourceContext {
            name: "rows".to_owned(),
            sink: ScriptedSink::open(),
            resume: Arc::new(Recorded::default()),
            stop: Arc::default(),
            dropped: Arc::default(),
            waits: Arc::default(),
        }
    }

    /// A group that begins while a source's word is on its way to its thread takes the source for one that
    /// came later: what it had would be shown apart from the others, also after a restart.
    #[test]
    fn a_group_does_not_begin_while_a_source_is_on_its_way_to_it() {
        let (groups, source) = (Groups::default(), source());
        let tickets = [(); 2].map(|()| groups.ticket(&source.options).expect("it has a topic"));
        let hub = Arc::clone(&tickets[0].hub);
        let (commands, receiver) = channel();
        hub.state().commands = Some(commands.clone());
        let mut thread = Thread::new(hub, receiver, commands);
        let (mut feeds, mut begins) = (Vec::new(), Vec::new());
        for ticket in tickets {
            let feed = ticket.join(&source, &context(), Next::default());
            feeds.push(feed.unwrap_or_else(|error| panic!("{error}")));
        }
        while let Ok(command) = thread.receiver.try_recv() {
            thread.take(command);
            // Nobody else is gathered.
            thread.joined -= GATHER;
            begins.push(thread.is_complete());
        }
        assert_eq!(begins, [false, true]);
    }
}
