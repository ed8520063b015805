//! The operating system's notifications that files changed.
//!
//! Idea: they only say where to look first. They are lost when their queue is full, when a folder is
//! new, on network folders and when the system's number of watches is used up; so all that follows
//! from one is a look at a path or an earlier scan, and without them everything is found by scans.
//!
//! ```text
//! notify's thread ─ try_send ─▶ bounded queue ─ wait ─▶ Notice::Path, Notice::Scan
//!                      └─ full ─▶ a flag ─────────────▶ Notice::Scan
//! ```
//!
//! Invariants: the system's thread never waits; PATH that comes back, or another folder under its name,
//! is watched anew; trouble is said once, as a warning, and shown by the metric.
//!
//! Limits: one watch a folder on Linux (`fs.inotify.max_user_watches`); after a failure scans go on alone
//! until the source is started again.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use engine::telemetry;
use metrics::Gauge;
use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};

use super::read::relative;

/// Notifications that wait; beyond, the folder is scanned.
const QUEUE: usize = 8_192;
/// How often a stop is looked for.
const STEP: Duration = Duration::from_millis(20);

/// What a notification comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// Something changed at this relative path; `true`: it came, went or was moved, and may be a folder.
    Path(String, bool),
    /// Notifications were lost: scan.
    Scan,
}

enum Signal {
    Changed(PathBuf, bool),
    Failed(notify::Error),
}

/// The notifications of one folder.
pub(super) struct Notices {
    source: String,
    root: PathBuf,
    is_wanted: bool,
    pending: Option<Pending>,
    attached: Option<Attached>,
    gauge: Gauge,
}

/// A watch on its way: a thread of its own goes through all folders for it.
struct Pending {
    made: Receiver<notify::Result<Watch>>,
    folder: PathBuf,
    identity: Identity,
}

struct Attached {
    /// Ends its thread when dropped.
    _watcher: RecommendedWatcher,
    receive: Receiver<Signal>,
    is_over: Arc<AtomicBool>,
    folder: PathBuf,
    identity: Identity,
}

impl Notices {
    pub(super) fn new(source: &str, root: &Path, is_wanted: bool) -> Notices {
        let gauge = metrics::gauge!(telemetry::FILES_WATCHED.name, "source" => source.to_owned());
        gauge.set(0.0);
        Notices {
            source: source.to_owned(),
            root: std::path::absolute(root).unwrap_or_else(|_| root.to_owned()),
            is_wanted,
            pending: None,
            attached: None,
            gauge,
        }
    }

    /// Begins to watch PATH if it is there and is not watched, or is another folder now.
    pub(super) fn attach(&mut self) {
        let metadata = std::fs::metadata(&self.root);
        let Some(metadata) = metadata.ok().filter(|_| self.is_wanted) else {
            self.detach();
            return;
        };
        let identity = identity(&metadata);
        let attached = self.attached.as_ref().map(|attached| attached.identity);
        let pending = self.pending.as_ref().map(|pending| pending.identity);
        if attached.or(pending) == Some(identity) {
            return;
        }
        self.detach();
        // A file is watched by its folder, because editors put another one in its place.
        let (folder, mode) = match (metadata.is_file(), self.root.parent()) {
            (true, Some(folder)) => (folder.to_owned(), RecursiveMode::NonRecursive),
            _ => (self.root.clone(), RecursiveMode::Recursive),
        };
        let (send, made) = sync_channel(1);
        let watched = folder.clone();
        // The receiver may be gone when it is made; then it ends here.
        let work = move || drop(send.send(watch(&watched, mode)));
        let thread = std::thread::Builder::new().name("watch".to_owned());
        match thread.spawn(work) {
            Ok(_) => {
                self.pending = Some(Pending {
                    made,
                    folder,
                    identity,
                });
            }
            Err(error) => self.give_up(&notify::Error::io(error)),
        }
    }

    fn detach(&mut self) {
        self.attached = None;
        self.pending = None;
        self.gauge.set(0.0);
    }

    /// Takes over a watch that is made; true when there is one since now.
    fn is_attached_now(&mut self) -> bool {
        let Some(made) = self.pending.as_ref().map(|pending| pending.made.try_recv()) else {
            return false;
        };
        if matches!(made, Err(TryRecvError::Empty)) {
            return false;
        }
        let pending = self.pending.take();
        match (made, pending) {
            (Ok(Ok((watcher, receive, is_over))), Some(pending)) => {
                self.gauge.set(1.0);
                self.attached = Some(Attached {
                    _watcher: watcher,
                    receive,
                    is_over,
                    folder: pending.folder,
                    identity: pending.identity,
                });
                return true;
            }
            // It went away in between: the next scan says so.
            (Ok(Err(_)), _) if !self.root.exists() => {}
            (Ok(Err(error)), _) => self.give_up(&error),
            (Err(_), _) => self.give_up(&notify::Error::generic("its thread failed")),
            (Ok(Ok(_)), None) => {}
        }
        false
    }

    fn give_up(&mut self, error: &notify::Error) {
        self.detach();
        self.is_wanted = false;
        let hint = match error.kind {
            notify::ErrorKind::MaxFilesWatch => "raise fs.inotify.max_user_watches",
            _ => "changes are found by scans only, somewhat later",
        };
        tracing::warn!(
            source = self.source,
            path = %self.root.display(),
            %error,
            hint,
            "the folder is not watched, only scanned"
        );
    }

    /// Waits until something comes, or `until`, or for a step in which a stop is not looked for.
    pub(super) fn wait(&mut self, until: Instant) -> Vec<Notice> {
        let step = until.saturating_duration_since(Instant::now()).min(STEP);
        if self.is_attached_now() {
            // What changed before nothing told of.
            return vec![Notice::Scan];
        }
        let Some(attached) = &self.attached else {
            std::thread::sleep(step);
            return Vec::new();
        };
        let mut notices = Vec::new();
        let mut failed = None;
        let mut next = attached.receive.recv_timeout(step);
        loop {
            match next {
                Ok(Signal::Changed(path, is_structure)) => {
                    notices.extend(attached.notice(&self.root, &path, is_structure));
                }
                Ok(Signal::Failed(error)) => failed = Some(error),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    failed = Some(notify::Error::generic("the watch ended"));
                    break;
                }
            }
            next = match attached.receive.try_recv() {
                Ok(signal) => Ok(signal),
                Err(_) => break,
            };
        }
        if attached.is_over.swap(false, Ordering::Relaxed) {
            metrics::counter!(
                telemetry::FILES_OVERFLOWS.name,
                "source" => self.source.clone()
            )
            .increment(1);
            notices.push(Notice::Scan);
        }
        if let Some(error) = failed {
            self.give_up(&error);
            notices.push(Notice::Scan);
        }
        notices
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.gauge.set(0.0);
    }
}

impl Attached {
    fn notice(&self, root: &Path, path: &Path, is_structure: bool) -> Option<Notice> {
        let is_file = self.folder != root;
        match (path == root, path.starts_with(root)) {
            (true, _) if is_file => Some(Notice::Path(relative(root, path), is_structure)),
            // PATH itself: the scan looks at it.
            (true, _) => is_structure.then_some(Notice::Scan),
            (false, true) => Some(Notice::Path(relative(root, path), is_structure)),
            (false, false) => None,
        }
    }
}

type Watch = (RecommendedWatcher, Receiver<Signal>, Arc<AtomicBool>);

fn watch(folder: &Path, mode: RecursiveMode) -> notify::Result<Watch> {
    let (send, receive) = sync_channel(QUEUE);
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let handler = move |event: notify::Result<Event>| pass_on(event, &send, &over);
    let config = Config::default().with_follow_symlinks(false);
    let mut watcher = RecommendedWatcher::new(handler, config)?;
    watcher.watch(folder, mode)?;
    Ok((watcher, receive, is_over))
}

/// Runs on the thread of notifications: never waits.
fn pass_on(event: notify::Result<Event>, send: &SyncSender<Signal>, is_over: &AtomicBool) {
    let pass = |signal| {
        if send.try_send(signal).is_err() {
            is_over.store(true, Ordering::Relaxed);
        }
    };
    match event {
        Err(error) => pass(Signal::Failed(error)),
        Ok(event) if event.need_rescan() => is_over.store(true, Ordering::Relaxed),
        Ok(event) => {
            // What only reads, as scans do, is no change.
            let is_structure = match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
                EventKind::Access(_) => return,
                EventKind::Create(CreateKind::File) => false,
                EventKind::Create(_) | EventKind::Remove(_) => true,
                EventKind::Modify(ModifyKind::Name(_)) => true,
                _ => false,
            };
            for path in event.paths {
                pass(Signal::Changed(path, is_structure));
            }
        }
    }
}

/// What tells a folder from another one of its name.
type Identity = (u64, u64);

#[cfg(unix)]
fn identity(metadata: &Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    match metadata.is_file() {
        // Another file under the same name is still watched, by its folder.
        true => (0, 0),
        false => (metadata.dev(), metadata.ino()),
    }
}

#[cfg(not(unix))]
fn identity(_metadata: &Metadata) -> Identity {
    (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The notifications of a folder that is watched.
    fn watched(folder: &Path) -> Notices {
        let mut notices = Notices::new("test", folder, true);
        notices.attach();
        let until = Instant::now() + Duration::from_secs(10);
        while !notices.is_attached_now() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(notices.attached.is_some());
        notices
    }

    #[test]
    fn lost_notifications_ask_for_a_scan() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut notices = watched(folder.path());
        let wait = |notices: &mut Notices| notices.wait(Instant::now() + STEP);
        std::fs::write(folder.path().join("a"), "").expect("written");
        let until = Instant::now() + Duration::from_secs(10);
        let mut found = Vec::new();
        while !found.contains(&Notice::Path("a".to_owned(), false)) && Instant::now() < until {
            found.extend(wait(&mut notices));
        }
        assert!(
            !found.is_empty() && !found.contains(&Notice::Scan),
            "{found:?}"
        );
        for number in 0..QUEUE + 1 {
            std::fs::write(folder.path().join(number.to_string()), "").expect("written");
        }
        let mut found = Vec::new();
        while !found.contains(&Notice::Scan) && Instant::now() < until {
            found.extend(wait(&mut notices));
        }
        assert!(found.contains(&Notice::Scan));
    }

    #[test]
    fn after_the_system_s_limit_scans_go_on_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut notices = watched(folder.path());
        notices.give_up(&notify::Error::new(notify::ErrorKind::MaxFilesWatch));
        notices.attach();
        assert!(
            notices.attached.is_none() && notices.pending.is_none(),
            "not tried again"
        );
        assert_eq!(notices.wait(Instant::now()), []);
    }
}
