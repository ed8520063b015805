//! Runs a parser that may panic or never end.
//!
//! Idea: it works on a thread of its own. A panic ends that thread and becomes a dead letter; when the
//! time is over the thread is left to itself, as nothing can end it from outside, and counted: while
//! [`ABANDONED_MAX`] of them run, no further one begins.
//!
//! Work that looks at its [`Clock`] ends by itself: nothing is left behind.
//!
//! Limits: a thread that exhausts its stack ends the process, and memory is bounded by the parser's own
//! limits: parsers that have none run in a process of their own ([`super::process`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use crate::text::BadFile;

/// Threads that may be left behind at once.
const ABANDONED_MAX: usize = 2;
/// Stack of the thread: parsers of PDF recurse some hundred levels.
const STACK_BYTES: usize = 16 << 20;
/// How often a stop is looked for.
const STEP: Duration = Duration::from_millis(20);

static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// When work must end.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    until: Instant,
    stop: Arc<AtomicBool>,
}

impl Clock {
    /// One that ends after `limit`, or with `stop`.
    pub(super) fn new(limit: Duration, stop: &Arc<AtomicBool>) -> Clock {
        Clock {
            until: Instant::now() + limit,
            stop: Arc::clone(stop),
        }
    }

    /// Errors: the time is over, or the source stops.
    pub(super) fn look(&self) -> Result<(), BadFile> {
        let is_over = self.stop.load(Ordering::Relaxed) || Instant::now() > self.until;
        if is_over {
            Err(BadFile::TooSlow)
        } else {
            Ok(())
        }
    }
}

/// What came of guarded work.
#[derive(Debug)]
pub(crate) enum Guarded<T> {
    /// Its result.
    Done(T),
    /// The source is stopping.
    Stopped,
    /// Too many earlier ones still run: try later.
    Busy,
}

impl<T> Guarded<T> {
    fn done(self) -> Result<T, Self> {
        match self {
            Guarded::Done(done) => Ok(done),
            other => Err(other),
        }
    }

    /// The same with another result.
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Guarded<U> {
        match self.done() {
            Ok(done) => Guarded::Done(change(done)),
            Err(Guarded::Stopped) => Guarded::Stopped,
            Err(_) => Guarded::Busy,
        }
    }
}

/// Runs `work` on a `format`, at most `limit` and until `stop`.
pub(super) fn run(
    format: &'static str,
    limit: Duration,
    stop: &Arc<AtomicBool>,
    work: impl FnOnce(&Clock) -> Result<String, BadFile> + Send + 'static,
) -> Guarded<Result<String, BadFile>> {
    let clock = Clock::new(limit, stop);
    let done = run_counted(&ABANDONED, limit, format, stop, move || work(&clock));
    match done.map(|done| done.and_then(|found| found)) {
        // The work saw the stop first.
        Guarded::Done(Err(BadFile::TooSlow)) if stop.load(Ordering::Relaxed) => Guarded::Stopped,
        done => done,
    }
}

/// The same for any work; threads that are left behind are counted by `running`.
fn run_counted<T: Send + 'static>(
    running: &'static AtomicUsize,
    limit: Duration,
    format: &'static str,
    stop: &Arc<AtomicBool>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Guarded<Result<T, BadFile>> {
    if running.load(Ordering::Relaxed) >= ABANDONED_MAX {
        return Guarded::Busy;
    }
    let (send, receive) = sync_channel(1);
    let is_abandoned = Arc::new(AtomicBool::new(false));
    let abandoned = Arc::clone(&is_abandoned);
    let thread = std::thread::Builder::new()
        .name("extract".to_owned())
        .stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        // The work is dropped with its panic; nothing of it is looked at again.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let _ = send.send(result);
        if abandoned.swap(true, Ordering::AcqRel) {
            running.fetch_sub(1, Ordering::Relaxed);
        }
    });
    if started.is_err() {
        return Guarded::Busy;
    }
    let until = Instant::now() + limit;
    loop {
        match receive.recv_timeout(STEP) {
            Ok(Ok(done)) => return Guarded::Done(Ok(done)),
            // A panic: in the parser, whose words are for its authors.
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                let reason = "its reader failed on it".to_owned();
                return Guarded::Done(Err(BadFile::Broken {
                    format: format.into(),
                    reason,
                }));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let is_stopping = stop.load(Ordering::Relaxed);
        if !is_stopping && Instant::now() < until {
            continue;
        }
        running.fetch_add(1, Ordering::Relaxed);
        if is_abandoned.swap(true, Ordering::AcqRel) {
            // It ended in this moment.
            running.fetch_sub(1, Ordering::Relaxed);
        }
        return match is_stopping {
            true => Guarded::Stopped,
            false => Guarded::Done(Err(BadFile::TooSlow)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static RUNNING: AtomicUsize = AtomicUsize::new(0);

    fn guarded<T: Send + 'static>(
        limit_ms: u64,
        is_stopping: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Guarded<Result<T, BadFile>> {
        let stop = Arc::new(AtomicBool::new(is_stopping));
        let limit = Duration::from_millis(limit_ms);
        run_counted(&RUNNING, limit, "PDF", &stop, work)
    }

    #[test]
    fn panics_and_endless_work_are_reasons() {
        assert!(matches!(guarded(1_000, false, || 7), Guarded::Done(Ok(7))));
        let Guarded::Done(Err(bad)) = guarded(1_000, false, || panic!("of the parser")) else {
            panic!("a panic is a reason");
        };
        let error = bad.on("a.pdf");
        assert_eq!(
            error.detail,
            "file 'a.pdf' is not a readable PDF: its reader failed on it"
        );

        let (end, ended) = sync_channel::<()>(0);
        let (other_end, other_ended) = sync_channel::<()>(0);
        let Guarded::Done(Err(bad)) = guarded(30, false, move || ended.recv()) else {
            panic!("a time-out is a reason");
        };
        let error = bad.on("a.pdf");
        let expected = "the text of file 'a.pdf' was not found within 30000 ms (EXTRACT_MS_MAX)";
        assert_eq!(error.detail, expected);
        assert!(matches!(
            guarded(30_000, true, move || other_ended.recv()),
            Guarded::Stopped
        ));
        assert!(
            matches!(guarded(30, false, || 7), Guarded::Busy),
            "two still run"
        );
        drop((end, other_end));
        while RUNNING.load(Ordering::Relaxed) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(guarded(1_000, false, || 8), Guarded::Done(Ok(8))));
    }
}
