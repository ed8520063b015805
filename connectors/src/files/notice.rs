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
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
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
    attached: Option<Attached>,
    gauge: Gauge,
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
            attached: None,
            gauge,
        }
    }

    /// Watches PATH if it is there and is not watched, or is another folder now.
    pub(super) fn attach(&mut self) {
        let metadata = std::fs::metadata(&self.root);
        let Some(metadata) = metadata.ok().filter(|_| self.is_wanted) else {
            self.attached = None;
            self.gauge.set(0.0);
            return;
        };
        let identity = identity(&metadata);
        if self
            .attached
            .as_ref()
            .is_some_and(|attached| attached.identity == identity)
        {
            return;
        }
        self.attached = None;
        // A file is watched by its folder, because editors put another one in its place.
        let (folder, mode) = match (metadata.is_file(), self.root.parent()) {
            (true, Some(folder)) => (folder.to_owned(), RecursiveMode::NonRecursive),
            _ => (self.root.clone(), RecursiveMode::Recursive),
        };
        match watch(&folder, mode) {
            Ok((watcher, receive, is_over)) => {
                self.gauge.set(1.0);
                self.attached = Some(Attached {
                    _watcher: watcher,
                    receive,
                    is_over,
                    folder,
                    identity,
                });
            }
            // It went away in between: the next scan says so.
            Err(_) if !self.root.exists() => {}
            Err(error) => self.give_up(&error),
        }
    }

    fn give_up(&mut self, error: &notify::Error) {
        self.gauge.set(0.0);
        self.attached = None;
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

    #[test]
    fn lost_notifications_ask_for_a_scan() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut notices = Notices::new("test", folder.path(), true);
        notices.attach();
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
        let mut notices = Notices::new("test", folder.path(), true);
        notices.attach();
        assert!(notices.attached.is_some());
        notices.give_up(&notify::Error::new(notify::ErrorKind::MaxFilesWatch));
        notices.attach();
        assert!(notices.attached.is_none(), "not tried again");
        assert_eq!(notices.wait(Instant::now()), []);
    }
}
