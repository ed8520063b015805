//! One device's supervisor: gives each engine a thread of its own, sorts out what a fault leaves, rests
//! after two. [`service`](super::service) says what it promises, [`shift`](super::shift) works.
//!
//! ```text
//!   supervisor ─ spawns ─▶ engine's thread: open ─▶ begin, finish, … ─▶ drop
//!        └─ looks at the post: a call under way for too long? ─▶ takes its texts, never waits for it again
//! ```
//!
//! Invariants: whatever call into a device never returns (opening, starting, asking, ending), its texts
//! are answered and the supervisor goes on; a thread that was given up delivers nothing any more. Limits: a
//! thread that hangs stays until its call returns; beyond [`STUCK_MAX`] of them no engine is opened.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::device::Fault;
use super::engine::Class;
use super::service::{Job, Opener, Shared, until};
use super::shift;

/// Threads of one device that may hang in the driver at a time.
const STUCK_MAX: usize = 4;
/// Between two looks at what an engine's thread does, at most.
const LOOK: Duration = Duration::from_millis(250);

/// A batch on the device.
pub(super) struct Flight {
    pub(super) jobs: Vec<Job>,
    pub(super) since: Instant,
}

/// What an engine's thread and its supervisor share.
#[derive(Default)]
pub(super) struct Post {
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// By slot.
    pub(super) flights: Vec<Option<Flight>>,
    /// Whether a batch was delivered.
    pub(super) has_worked: bool,
    /// The call into the engine that is under way: since when, and how long it may take.
    call: Option<(Instant, Duration)>,
    /// The supervisor waits no longer: what the thread still does counts no more.
    is_given_up: bool,
}

impl Post {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Consistent between statements: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call into an engine. What panics (cudarc does when a library lacks a function) is a fault, and
    /// so is what was given up before it came back.
    pub(super) fn call<T>(
        &self,
        limit: Duration,
        run: impl FnOnce() -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.state().call = Some((Instant::now(), limit));
        let done = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("a panic without a message");
            Err(Fault::Lost(text.to_owned()))
        });
        let is_given_up = {
            let mut state = self.state();
            state.call = None;
            state.is_given_up
        };
        if is_given_up {
            return Err(Fault::TimedOut(limit.as_millis()));
        }
        done
    }

    /// Gives the thread up when its call takes too long.
    fn give_up(&self) -> Option<Fault> {
        let mut state = self.state();
        let (since, limit) = state.call?;
        if since.elapsed() <= limit {
            return None;
        }
        state.is_given_up = true;
        Some(Fault::TimedOut(limit.as_millis()))
    }

    /// The texts that were on the engine, and whether it had delivered any before.
    fn left(&self) -> (Vec<Job>, bool) {
        let mut state = self.state();
        let flights = std::mem::take(&mut state.flights);
        let jobs = flights.into_iter().flatten().flat_map(|flight| flight.jobs);
        (jobs.collect(), state.has_worked)
    }
}

/// The supervisor's life. Without an opener the CPU does all.
pub(super) fn run(device: usize, opener: Option<Arc<Opener>>, shared: &Arc<Shared>) {
    let Some(open) = opener else {
        return rest(shared, None);
    };
    let settings = shared.settings;
    let (mut faults_in_a_row, mut pause) = (0u32, settings.rest);
    let mut stuck: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let post = Arc::new(Post::default());
        let Some(fault) = supervise(device, &open, shared, &post, &mut stuck) else {
            return;
        };
        let (jobs, has_worked) = post.left();
        if has_worked {
            (faults_in_a_row, pause) = (0, settings.rest);
        }
        faults_in_a_row += 1;
        sort_out(shared, jobs);
        let is_resting = faults_in_a_row > 1 || matches!(fault, Fault::Unavailable(_));
        let reason = format!("device {device}: {fault}");
        {
            let mut desk = shared.desk();
            desk.status.faults += 1;
            if is_resting {
                desk.note_rest(device, Some(reason));
            }
        }
        shared.changed.notify_all();
        if is_resting {
            rest(shared, Some(Instant::now() + pause));
            pause = (pause * 2).min(settings.rest_max);
        }
        let desk = shared.desk();
        if desk.is_closing && desk.is_empty() {
            return;
        }
    }
}

/// An engine's life, from the outside; `None` when the service closed.
fn supervise(
    device: usize,
    open: &Arc<Opener>,
    shared: &Arc<Shared>,
    post: &Arc<Post>,
    stuck: &mut Vec<JoinHandle<()>>,
) -> Option<Fault> {
    stuck.retain(|thread| !thread.is_finished());
    if stuck.len() >= STUCK_MAX {
        let why = format!("{STUCK_MAX} calls into its driver have not come back");
        return Some(Fault::Unavailable(why));
    }
    let (report, ended) = channel();
    let spawned = {
        let (open, shared, post) = (Arc::clone(open), Arc::clone(shared), Arc::clone(post));
        std::thread::Builder::new()
            .name(format!("encoder-{device}"))
            .spawn(move || {
                // Nobody listens any more when the thread was given up.
                let _ = report.send(shift::serve(device, &open, &shared, &post));
            })
    };
    let thread = match spawned {
        Ok(thread) => thread,
        Err(error) => return Some(Fault::Lost(format!("no thread for it: {error}"))),
    };
    let settings = shared.settings;
    let shortest = settings.batch_timeout.min(settings.open_timeout);
    loop {
        match ended.recv_timeout((shortest / 4).min(LOOK)) {
            Ok(end) => {
                let _ = thread.join();
                return end;
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Some(Fault::Lost("its thread ended".to_owned()));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(fault) = post.give_up() {
                    stuck.push(thread);
                    return Some(fault);
                }
            }
        }
    }
}

/// Texts of a failed batch: once more on a device, the second time on the CPU.
fn sort_out(shared: &Shared, jobs: Vec<Job>) {
    let (again, twice): (Vec<Job>, Vec<Job>) = jobs
        .into_iter()
        .map(|mut job| {
            job.faults += 1;
            job
        })
        .partition(|job| job.faults < 2);
    shared.desk().give_back(again);
    if !twice.is_empty() {
        shared.compute_on_cpu(twice);
    }
}

/// The CPU's turn, until a time or for good: takes what waits while no device works.
fn rest(shared: &Shared, end: Option<Instant>) {
    loop {
        let mut desk = shared.desk();
        let is_over = end.is_some_and(|end| Instant::now() >= end);
        if is_over || (desk.is_closing && desk.is_empty()) {
            return;
        }
        let mut jobs = Vec::new();
        // A service that closes does not wait for a device to come back.
        if desk.status.devices == 0 || desk.is_closing {
            while jobs.len() < shared.settings.fallback_texts {
                match desk.take(Class::Bulk, usize::MAX) {
                    Some(job) => jobs.push(job),
                    None => break,
                }
            }
        }
        if jobs.is_empty() {
            let wait = end.map_or(Duration::from_secs(1), until);
            let wait = wait.min(Duration::from_millis(100));
            drop(shared.changed.wait_timeout(desk, wait));
            continue;
        }
        drop(desk);
        shared.compute_on_cpu(jobs);
    }
}
