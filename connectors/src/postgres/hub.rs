//! One thread a connection: who reads through it, and what becomes of them.
//!
//! The idea: sources come and go one by one, but read one log. Each source's own thread only joins and
//! waits; the hub's thread copies, streams and stages for all of them.
//!
//! Invariants: the stream does not begin before all sources that were made have joined, so that
//! nothing is confirmed which one of them has not seen; a source that fails leaves the others alone;
//! whoever was dropped for good gives up its place in the publication, and the last one the slot, which
//! would otherwise keep the database's log for ever.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::contract::{LaneSink, SourceContext};
use engine::error::WorldError;

use super::copy::{self, Ended};
use super::facts::TableName;
use super::member::{Member, State};
use super::session::{Failure, PostgresOptions};
use super::setup;
use super::table::Table;

/// Time between two looks at commands, when nothing else is to do.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for sources that were made and have not joined.
const EXPECT: Duration = Duration::from_secs(10);
/// Pause after a failure, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// A source's thread waits so long for the hub to let go of it.
const LEAVE: Duration = Duration::from_millis(800);
/// What could not be done for one source is tried again so much later.
pub(super) const AGAIN: Duration = Duration::from_secs(3);
/// What a source may wait for ([`SourceContext::waits_for`]).
pub(super) const CONNECTION: &str = "connection";
pub(super) const TABLE: &str = "table";
const COPY: &str = "copy";
/// Attempts to drop a slot that the server still counts as in use.
const REMOVE_ATTEMPTS: usize = 20;

/// See the module.
pub(super) struct Hub {
    pub(super) name: String,
    /// With the password that was read last.
    options: Mutex<PostgresOptions>,
    state: Mutex<HubState>,
}

#[derive(Default)]
struct HubState {
    /// Sources that were made, and that the thread has not taken.
    expected: usize,
    next: u64,
    /// To the thread, while it runs.
    commands: Option<Sender<Command>>,
}

enum Command {
    Join(Box<Member>),
    Leave {
        id: u64,
        is_dropped: bool,
        left: Sender<()>,
    },
}

/// A place that is kept for a source from its making until it joins.
pub(super) struct Ticket {
    hub: Arc<Hub>,
    has_joined: bool,
}

impl Ticket {
    pub(super) fn of(hub: &Arc<Hub>) -> Ticket {
        hub.state.lock().expect("no panic while held").expected += 1;
        Ticket {
            hub: Arc::clone(hub),
            has_joined: false,
        }
    }

    /// Joins, and waits for the source's stop or its end.
    pub(super) fn run(mut self, context: SourceContext, table: Table) -> Result<(), WorldError> {
        let (ended, ends) = channel();
        let id = self.join(context.clone(), table, ended)?;
        loop {
            match ends.recv_timeout(LOOK) {
                Ok(error) => return Err(error),
                Err(RecvTimeoutError::Timeout) if !context.is_stopping() => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    let detail = "the reading thread ended by a defect; the log has the panic";
                    let failure = Failure::Lasting(detail.to_owned());
                    return Err(failure.into_world(&self.hub.options()));
                }
            }
        }
        let (left, leaves) = channel();
        let state = self.hub.state.lock().expect("no panic while held");
        if let Some(commands) = &state.commands {
            let is_dropped = context.is_dropped();
            let _ = commands.send(Command::Leave {
                id,
                is_dropped,
                left,
            });
        }
        drop(state);
        let _ = leaves.recv_timeout(LEAVE);
        Ok(())
    }

    fn join(
        &mut self,
        context: SourceContext,
        table: Table,
        ended: Sender<WorldError>,
    ) -> Result<u64, WorldError> {
        let mut state = self.hub.state.lock().expect("no panic while held");
        state.next += 1;
        let member = Member::new(state.next, context, table, ended);
        let id = member.id;
        if state.commands.is_none() {
            let (commands, receiver) = channel();
            let reader = Reader::new(Arc::clone(&self.hub), receiver)?;
            let name = format!("postgres-{}", self.hub.name);
            let thread = std::thread::Builder::new().name(name);
            thread
                .spawn(move || reader.run())
                .map_err(|error| WorldError::io("cannot start", "a thread".as_ref(), error))?;
            state.commands = Some(commands);
        }
        let commands = state.commands.as_ref().expect("set above");
        // The thread takes its commands before it ends (see `Hub::close`).
        self.has_joined = commands.send(Command::Join(Box::new(member))).is_ok();
        Ok(id)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.has_joined {
            let mut state = self.hub.state.lock().expect("no panic while held");
            state.expected -= 1;
        }
    }
}

impl Hub {
    pub(super) fn new(options: PostgresOptions) -> Hub {
        Hub {
            name: options.name.clone(),
            options: Mutex::new(options),
            state: Mutex::default(),
        }
    }

    /// How to connect now.
    pub(super) fn options(&self) -> PostgresOptions {
        self.options.lock().expect("no panic while held").clone()
    }

    /// Whether these are its options; takes their password, which may be a new one.
    pub(super) fn is_of(&self, options: &PostgresOptions) -> bool {
        let mut own = self.options.lock().expect("no panic while held");
        let password = options.password.clone();
        let is_of = PostgresOptions {
            password,
            ..own.clone()
        } == *options;
        if is_of {
            own.password.clone_from(&options.password);
        }
        is_of
    }

    /// The thread has taken a source: until then it is expected, else a session could begin without it.
    fn has_come(&self) {
        self.state.lock().expect("no panic while held").expected -= 1;
    }

    fn is_expecting(&self) -> bool {
        self.state.lock().expect("no panic while held").expected > 0
    }

    /// Ends the thread's service, unless somebody joined meanwhile.
    fn close(&self, commands: &Receiver<Command>) -> Option<Command> {
        let mut state = self.state.lock().expect("no panic while held");
        match commands.try_recv() {
            Ok(command) => Some(command),
            Err(_) => {
                state.commands = None;
                None
            }
        }
    }
}

/// A runtime whose one thread keeps connections alive while the hub's own waits for room.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, WorldError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("postgres-net")
        .enable_all()
        .build()
        .map_err(|error| WorldError::io("cannot start", "a runtime".as_ref(), error))
}

type CopyThread = JoinHandle<(Table, Result<Ended, Failure>)>;

/// The hub's thread.
pub(super) struct Reader {
    pub(super) hub: Arc<Hub>,
    commands: Receiver<Command>,
    pub(super) members: BTreeMap<u64, Member>,
    runtime: Arc<tokio::runtime::Runtime>,
    /// While a table is copied, the log from its snapshot on must be kept.
    pub(super) copying: Option<(u64, CopyThread)>,
    /// A copy that failed is tried again then.
    copy_again: Instant,
    /// Tables of sources that were dropped for good.
    dropped: Vec<TableName>,
    /// Sources that failed: they still need the slot, until they are dropped.
    pub(super) failed: Vec<(TableName, Arc<AtomicBool>)>,
    /// Who staged since the last confirmation: what they logged must be synced first.
    pub(super) staged_by: Vec<Arc<dyn LaneSink>>,
    /// Whether the stream ran since the last failure.
    pub(super) has_streamed: bool,
    /// Whether large transactions may be sent before they commit: false once they had no room here.
    pub(super) may_stream: bool,
}

impl Reader {
    fn new(hub: Arc<Hub>, commands: Receiver<Command>) -> Result<Reader, WorldError> {
        Ok(Reader {
            hub,
            commands,
            members: BTreeMap::new(),
            runtime: Arc::new(runtime()?),
            copying: None,
            copy_again: Instant::now(),
            dropped: Vec::new(),
            failed: Vec::new(),
            staged_by: Vec::new(),
            has_streamed: false,
            may_stream: true,
        })
    }

    fn run(mut self) {
        let mut pause = PAUSE.0;
        let began = Instant::now();
        loop {
            self.wait(LOOK);
            self.note_dropped();
            if self.members.is_empty() {
                self.give_up();
                if !self.failed.is_empty() {
                    continue;
                }
                let hub = Arc::clone(&self.hub);
                match hub.close(&self.commands) {
                    Some(command) => self.take(command),
                    None => return,
                }
                continue;
            }
            let is_expecting = self.hub.is_expecting() && began.elapsed() < EXPECT;
            let mut members = self.members.values();
            if is_expecting || members.all(|member| member.context.is_stopping()) {
                continue;
            }
            self.give_up();
            let runtime = Arc::clone(&self.runtime);
            let ended = runtime.block_on(self.session());
            if std::mem::take(&mut self.has_streamed) {
                pause = PAUSE.0;
            }
            match ended {
                Ok(()) => pause = PAUSE.0,
                Err(Failure::Passing(detail)) => {
                    tracing::warn!(
                        connection = self.hub.name,
                        detail,
                        ?pause,
                        "PostgreSQL cannot be read; trying again"
                    );
                    for member in self.members.values() {
                        member.context.waits_for(CONNECTION, &detail);
                    }
                    let until = Instant::now() + pause;
                    pause = (pause * 2).min(PAUSE.1);
                    while Instant::now() < until && !self.members.is_empty() {
                        self.wait(LOOK);
                    }
                }
                Err(failure @ Failure::Lasting(_)) => {
                    for id in self.members.keys().copied().collect::<Vec<_>>() {
                        self.fail(id, &failure);
                    }
                }
            }
        }
    }

    /// Takes commands for some time; whether members came or went.
    pub(super) fn wait(&mut self, time: Duration) -> bool {
        match self.commands.recv_timeout(time) {
            Ok(command) => {
                self.take(command);
                self.commands_now();
                true
            }
            Err(_) => false,
        }
    }

    /// Takes the commands that are there; whether members came or went.
    pub(super) fn commands_now(&mut self) -> bool {
        let mut has_changed = false;
        while let Ok(command) = self.commands.try_recv() {
            self.take(command);
            has_changed = true;
        }
        has_changed
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Join(member) => {
                self.hub.has_come();
                self.members.insert(member.id, *member);
            }
            Command::Leave {
                id,
                is_dropped,
                left,
            } => {
                if let Some(member) = self.members.remove(&id)
                    && is_dropped
                {
                    self.dropped.push(member.name);
                }
                let _ = left.send(());
            }
        }
    }

    /// Ends a source that a person must help.
    pub(super) fn fail(&mut self, id: u64, failure: &Failure) {
        if let Some(member) = self.members.remove(&id) {
            let error = failure.clone().into_world(&self.hub.options());
            self.failed.push((member.name, member.context.dropped));
            let _ = member.ended.send(error);
        }
    }

    /// Sources that failed and are dropped now (their thread is gone and says nothing); whether there
    /// are any.
    pub(super) fn note_dropped(&mut self) -> bool {
        let is_dropped =
            |(_, dropped): &mut (TableName, Arc<AtomicBool>)| dropped.load(Ordering::Relaxed);
        let dropped = self.failed.extract_if(.., is_dropped);
        let before = self.dropped.len();
        self.dropped.extend(dropped.map(|(name, _)| name));
        // Nobody else knows of it: the program that ran it has ended.
        self.failed
            .retain(|(_, dropped)| Arc::strong_count(dropped) > 1);
        self.dropped.len() > before
    }

    /// Starts the next copy, if one is due; `system` is the cluster that is copied from.
    pub(super) fn start_copy(&mut self, system: &str) {
        if self.copying.is_some() || Instant::now() < self.copy_again {
            return;
        }
        let mut behind = self.members.values_mut();
        let is_next = |member: &&mut Member| member.state == State::Behind && member.is_published;
        let Some(member) = behind.find(is_next) else {
            return;
        };
        let Some(mut table) = member.table.take() else {
            return;
        };
        member.state = State::Copying;
        let is_first = member.is_new();
        let (options, context) = (self.hub.options(), member.context.clone());
        let (system, runtime) = (system.to_owned(), Arc::clone(&self.runtime));
        let body = move || {
            let copied = copy::copy(&options, &context, &mut table, &system, is_first);
            let copied = runtime.block_on(copied);
            (table, copied)
        };
        let thread = std::thread::Builder::new().name("postgres-copy".to_owned());
        let thread = thread.spawn(body);
        let thread = thread.expect("the operating system gives a thread");
        self.copying = Some((member.id, thread));
    }

    /// Whether a copy has come to its end since the last look, or its source is gone: the stream must
    /// begin again. One that could not be made is tried again later, beside the stream.
    pub(super) fn copy_ended(&mut self) -> bool {
        let is_done = |(_, thread): &mut (u64, CopyThread)| thread.is_finished();
        let Some((id, thread)) = self.copying.take_if(is_done) else {
            return false;
        };
        let joined = thread.join();
        let Some(member) = self.members.get_mut(&id) else {
            return true;
        };
        member.state = State::Behind;
        match joined {
            Ok((mut table, ended)) => {
                table.clear();
                member.table = Some(table);
                match ended {
                    Ok(Ended::At(stand)) => {
                        member.context.goes_on(COPY);
                        member.logged = stand.lsn;
                        member.stand = Some(stand);
                    }
                    Ok(Ended::Closed) => {}
                    Err(Failure::Passing(detail)) => {
                        tracing::warn!(
                            source = member.context.name,
                            detail,
                            "the table could not be copied; trying again"
                        );
                        member.context.waits_for(COPY, &detail);
                        self.copy_again = Instant::now() + AGAIN;
                        return false;
                    }
                    Err(failure) => self.fail(id, &failure),
                }
            }
            Err(_) => {
                let detail = "copying ended by a defect; the log has the panic";
                self.fail(id, &Failure::Lasting(detail.to_owned()));
            }
        }
        true
    }

    /// Whether a source that could not be prepared is to be tried again now.
    pub(super) fn is_again(&self) -> bool {
        let mut members = self.members.values();
        members.any(|member| member.again.is_some_and(|again| again <= Instant::now()))
    }

    /// Gives up what dropped sources hold in the database. What cannot be given up is told: it is a
    /// person's now.
    fn give_up(&mut self) {
        let dropped = std::mem::take(&mut self.dropped);
        let options = &self.hub.options();
        if dropped.is_empty() || !options.is_own {
            return;
        }
        let is_last = self.members.is_empty() && self.failed.is_empty() && !self.hub.is_expecting();
        let given_up = self.runtime.block_on(async {
            if is_last {
                let mut removed = setup::remove(options).await;
                for _ in 1..REMOVE_ATTEMPTS {
                    if removed.is_ok() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    removed = setup::remove(options).await;
                }
                return removed;
            }
            for table in &dropped {
                let mut names = self.members.values().map(|member| &member.name);
                let is_read = names.any(|name| name == table);
                if !is_read && !self.failed.iter().any(|(name, _)| name == table) {
                    setup::unpublish(options, table).await?;
                }
            }
            Ok(())
        });
        if let Err(error) = given_up {
            tracing::warn!(
                connection = options.name,
                slot = options.slot,
                %error,
                "the slot or publication of dropped sources stays in the database: the slot keeps \
                 its log; drop it with pg_drop_replication_slot"
            );
        }
    }
}
