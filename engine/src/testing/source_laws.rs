//! The laws of [`Source`], for every implementation, and the scripted sink that they need.
//!
//! Idea: the sink records batches as the input log would and is interrupted by script; what it
//! recorded, cut at a random point after the last `sync` as a crash cuts a log, is what the next run
//! resumes from. After any number of such runs the rows must be those of one run in peace.
//!
//! ```text
//! run ─ batches ─▶ ScriptedSink (open, blocked, closed after n) ─ cut ─▶ Recorded ─ resume ─▶ run …
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value as Json;

use crate::contract::{LaneSink, Part, Resume, SinkClosed, Source, SourceBatch, SourceContext};
use crate::error::{DeadLetter, WorldError};
use crate::model::{ContentHash, Key, ObjectId, Row};

/// A source must return so soon after a stop.
const STOP: Duration = Duration::from_secs(10);
/// Nothing that a test waits for takes so long.
const LONG: Duration = Duration::from_secs(30);
/// Interrupted runs of [`source_laws`].
const INTERRUPTIONS: usize = 8;

/// What recorded batches amount to: rows, positions, dead letters.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// The live rows.
    pub rows: BTreeMap<Key, Row>,
    /// The last position of each lane.
    pub positions: BTreeMap<String, Json>,
    /// All dead letters, in order.
    pub dead_letters: Vec<DeadLetter>,
    /// Those about a key that no later change of it ended.
    open: BTreeMap<Key, Vec<Arc<DeadLetter>>>,
    versions: BTreeMap<Key, u64>,
}

impl Recorded {
    /// Applies batches in order. A change that has a version is taken only if it is newer than the
    /// key's; others count on from it, as the engine's sink does.
    pub fn of(batches: &[SourceBatch]) -> Self {
        let mut recorded = Recorded::default();
        for batch in batches {
            recorded.apply(batch);
        }
        recorded
    }

    fn apply(&mut self, batch: &SourceBatch) {
        for (key, row, version) in &batch.changes {
            let last = self.versions.get(key).copied();
            if version.is_some() && *version <= last {
                continue;
            }
            let next = version.unwrap_or(last.map_or(0, |last| last + 1));
            self.versions.insert(key.clone(), next);
            match row {
                Some(row) => self.rows.insert(key.clone(), row.clone()),
                None => self.rows.remove(key),
            };
        }
        if let Some(position) = &batch.position {
            self.positions.insert(batch.lane.clone(), position.clone());
        }
        for (key, _, _) in &batch.changes {
            self.open.remove(key);
        }
        for letter in &batch.dead_letters {
            let later = batch.changes.get(letter.after..).unwrap_or_default();
            if let Some(key) = &letter.key
                && later.iter().all(|(changed, _, _)| changed != key)
            {
                let letters = self.open.entry(key.clone()).or_default();
                letters.push(Arc::new(letter.clone()));
            }
        }
        self.dead_letters.extend(batch.dead_letters.iter().cloned());
    }
}

impl Resume for Recorded {
    fn position(&self, lane: &str) -> Option<Json> {
        self.positions.get(lane).cloned()
    }

    fn live(&self) -> Vec<(Key, ContentHash)> {
        let hashed = |(key, row): (&Key, &Row)| (key.clone(), ContentHash::of(row.as_bytes()));
        self.rows.iter().map(hashed).collect()
    }

    /// As of the run's begin: sources under these laws send whole rows.
    fn row(&self, key: &Key) -> Option<Row> {
        self.rows.get(key).cloned()
    }

    fn lanes(&self) -> Vec<String> {
        self.positions.keys().cloned().collect()
    }

    fn letters(&self) -> Vec<Arc<DeadLetter>> {
        self.open.values().flatten().cloned().collect()
    }
}

/// A sink that keeps what it is given, and blocks or closes by script.
#[derive(Default)]
pub struct ScriptedSink {
    state: Mutex<SinkState>,
    changed: Condvar,
}

#[derive(Default)]
struct SinkState {
    batches: Vec<SourceBatch>,
    /// Those that go on with the next.
    open: Vec<usize>,
    /// Batches that a `sync` confirmed.
    synced: usize,
    block_at: Option<usize>,
    close_at: Option<usize>,
}

impl ScriptedSink {
    /// A sink that takes everything.
    pub fn open() -> Arc<Self> {
        Arc::default()
    }

    /// Blocks the source once it staged so many batches, until [`ScriptedSink::close`] or
    /// [`ScriptedSink::unblock`].
    pub fn block_after(&self, batches: usize) {
        self.lock().block_at = Some(batches);
    }

    /// Takes batches again.
    pub fn unblock(&self) {
        self.lock().block_at = None;
        self.changed.notify_all();
    }

    /// Refuses what comes after so many batches.
    pub fn close_after(&self, batches: usize) {
        self.lock().close_at = Some(batches);
        self.changed.notify_all();
    }

    /// Refuses everything from now on; a source that waits is told, too.
    pub fn close(&self) {
        self.close_after(0);
    }

    /// Everything taken so far.
    pub fn batches(&self) -> Vec<SourceBatch> {
        self.lock().batches.clone()
    }

    /// Which of them go on with the next, by number.
    pub fn open_batches(&self) -> Vec<usize> {
        self.lock().open.clone()
    }

    /// What it amounts to.
    pub fn recorded(&self) -> Recorded {
        Recorded::of(&self.lock().batches)
    }

    /// Waits until what was taken satisfies `is_there`; false after 30 seconds.
    pub fn wait(&self, mut is_there: impl FnMut(&Recorded) -> bool) -> bool {
        let until = Instant::now() + LONG;
        let mut seen = None;
        while Instant::now() < until {
            let state = self.lock();
            if seen != Some(state.batches.len()) {
                seen = Some(state.batches.len());
                let recorded = Recorded::of(&state.batches);
                drop(state);
                if is_there(&recorded) {
                    return true;
                }
                continue;
            }
            drop(self.wait_for_batch(state, Duration::from_millis(50)));
        }
        false
    }

    /// Waits until nothing came for `settle`.
    pub fn wait_quiet(&self, settle: Duration) {
        let mut seen = self.lock().batches.len();
        let mut since = Instant::now();
        while since.elapsed() < settle {
            let state = self.wait_for_batch(self.lock(), settle);
            if state.batches.len() != seen {
                seen = state.batches.len();
                since = Instant::now();
            }
        }
    }

    fn wait_for_batch<'a>(
        &self,
        state: MutexGuard<'a, SinkState>,
        wait: Duration,
    ) -> MutexGuard<'a, SinkState> {
        let waited = self.changed.wait_timeout(state, wait);
        waited.expect("no panic while held").0
    }

    fn lock(&self) -> MutexGuard<'_, SinkState> {
        self.state.lock().expect("no panic while held")
    }

    /// Waits while blocked; refuses when closed.
    fn admit(&self) -> Result<MutexGuard<'_, SinkState>, SinkClosed> {
        let mut state = self.lock();
        loop {
            let taken = state.batches.len();
            if state.close_at.is_some_and(|at| taken >= at) {
                return Err(SinkClosed);
            }
            if state.block_at.is_none_or(|at| taken < at) {
                return Ok(state);
            }
            state = self.changed.wait(state).expect("no panic while held");
        }
    }
}

impl LaneSink for ScriptedSink {
    fn stage(&self, batch: SourceBatch) -> Result<(), SinkClosed> {
        self.admit()?.batches.push(batch);
        self.changed.notify_all();
        Ok(())
    }

    fn stage_together(&self, mut parts: Vec<Part>, is_open: bool) -> Result<(), Vec<Part>> {
        assert_eq!(parts.len(), 1, "the script is of one source");
        match self.admit() {
            Ok(mut state) => {
                let number = state.batches.len();
                state.batches.push(parts.remove(0).batch);
                state.open.extend(is_open.then_some(number));
            }
            Err(SinkClosed) => return Err(parts),
        }
        self.changed.notify_all();
        Ok(())
    }

    fn reached(&self, _lane: &str, _position: &Json) {}

    fn source(&self) -> ObjectId {
        ObjectId(1)
    }

    fn sync(&self) -> Result<(), SinkClosed> {
        let mut state = self.admit()?;
        state.synced = state.batches.len();
        Ok(())
    }
}

/// A source that runs on a thread of its own.
pub struct SourceRun {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), WorldError>>,
}

impl SourceRun {
    /// Starts a source named `test`.
    pub fn start(source: Box<dyn Source>, sink: &Arc<ScriptedSink>, resume: Recorded) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let context = SourceContext {
            name: "test".to_owned(),
            sink: Arc::clone(sink) as _,
            resume: Arc::new(resume),
            stop: Arc::clone(&stop),
            dropped: Arc::default(),
            waits: Arc::default(),
        };
        let thread = std::thread::spawn(move || source.run(context));
        SourceRun { stop, thread }
    }

    /// Stops the source.
    ///
    /// # Panics
    /// When it takes longer than ten seconds (one, by the contract; the machine may be busy), panicked, or returns
    /// an error.
    pub fn stop(self) {
        let begun = Instant::now();
        self.stop.store(true, Ordering::Relaxed);
        while !self.thread.is_finished() {
            assert!(
                begun.elapsed() < STOP,
                "run returns within {STOP:?} of stop"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        let result = self.thread.join().expect("a source does not panic");
        result.expect("a source that is stopped returns no error");
    }
}

/// Checks the laws on sources that `make` makes, all over the same unchanging outside world.
/// `settle`: a source that emitted nothing for so long has nothing more to emit. Returns the rows.
///
/// # Panics
/// At the first broken law, with the seed and the round.
pub fn source_laws(make: &dyn Fn() -> Box<dyn Source>, settle: Duration) -> BTreeMap<Key, Row> {
    let whole = undisturbed(make, settle);
    let rows = Recorded::of(&whole).rows;
    assert!(!rows.is_empty(), "laws over no rows prove nothing");

    let log = interrupted(make, &rows, settle, 20_261_121);
    idle_restart_emits_nothing(make, &log, settle);

    let twice: Vec<SourceBatch> = log.iter().chain(&whole).chain(&whole).cloned().collect();
    let redelivered = Recorded::of(&twice).rows;
    assert!(redelivered == rows, "changes delivered twice change rows");
    rows
}

/// What is emitted when nothing disturbs. On a busy machine a source may be silent for longer than
/// `settle`: all is there when one that goes on from there has nothing to add.
fn undisturbed(make: &dyn Fn() -> Box<dyn Source>, settle: Duration) -> Vec<SourceBatch> {
    const RUNS_MAX: usize = 8;
    let mut all: Vec<SourceBatch> = Vec::new();
    for _ in 0..RUNS_MAX {
        let sink = ScriptedSink::open();
        let run = SourceRun::start(make(), &sink, Recorded::of(&all));
        sink.wait_quiet(settle);
        run.stop();
        let more = sink.batches();
        let is_all = more.iter().all(|batch| batch.changes.is_empty());
        all.extend(more);
        if is_all && !all.is_empty() {
            return all;
        }
    }
    panic!("a source that is started again from where it stood emits changes again and again");
}

/// Runs that are interrupted and resumed; returns the log that they leave.
fn interrupted(
    make: &dyn Fn() -> Box<dyn Source>,
    rows: &BTreeMap<Key, Row>,
    settle: Duration,
    seed: u64,
) -> Vec<SourceBatch> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut log: Vec<SourceBatch> = Vec::new();
    for _ in 0..INTERRUPTIONS {
        let sink = ScriptedSink::open();
        let batches = rng.random_range(0..3);
        let is_blocked = rng.random_range(0..2) == 0;
        match is_blocked {
            true => sink.block_after(batches),
            false => sink.close_after(batches),
        }
        let run = SourceRun::start(make(), &sink, Recorded::of(&log));
        let pause = settle.as_millis() as u64 / 2;
        std::thread::sleep(Duration::from_millis(rng.random_range(0..=pause)));
        // The engine closes the sink of a source that it stops: blocked, it could not return.
        sink.close();
        run.stop();
        // A crash loses what was staged and not yet synced.
        let synced = sink.lock().synced;
        let kept = rng.random_range(synced..=sink.batches().len());
        log.extend(sink.batches().into_iter().take(kept));
    }
    let sink = ScriptedSink::open();
    let run = SourceRun::start(make(), &sink, Recorded::of(&log));
    let before = log.clone();
    let all = |sink: &ScriptedSink| {
        let mut all = before.clone();
        all.extend(sink.batches());
        all
    };
    let is_whole = sink.wait(|_| Recorded::of(&all(&sink)).rows == *rows);
    sink.wait_quiet(settle);
    run.stop();
    let log = all(&sink);
    let found = Recorded::of(&log).rows;
    assert!(
        is_whole && found == *rows,
        "interrupted and resumed: {} rows instead of {}, or others (seed {seed})",
        found.len(),
        rows.len()
    );
    log
}

fn idle_restart_emits_nothing(
    make: &dyn Fn() -> Box<dyn Source>,
    log: &[SourceBatch],
    settle: Duration,
) {
    let sink = ScriptedSink::open();
    let run = SourceRun::start(make(), &sink, Recorded::of(log));
    std::thread::sleep(settle);
    run.stop();
    let changes: usize = sink.batches().iter().map(|batch| batch.changes.len()).sum();
    assert_eq!(
        changes, 0,
        "nothing changed outside, so a restart is silent"
    );
}
