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
//! is watched anew, also when the system gives it the old one's number; trouble is said once, as a
//! warning, and shown by the metric.
//!
//! Limits: one watch a folder on Linux (`fs.inotify.max_user_watches`): when they are used up scans go on
//! alone until the source is started again; after any other failure (a folder that cannot be listed) for
//! [`AGAIN`].

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use engine::telemetry;
use metrics::Gauge;
use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};

use super::read::relative;

/// Notifications that wait; beyond, the folder is scanned.
const QUEUE: usize = 8_192;
/// From a failure to the next try.
const AGAIN: Duration = Duration::from_secs(60);
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
    /// When it is tried again after a failure.
    again_at: Option<Instant>,
    /// The failure that was said last.
    said: String,
    pending: Option<Pending>,
    attached: Option<Attached>,
    gauge: Gauge,
}

/// A watch on its way: a thread of its own goes through all folders for it.
struct Pending {
    made: Receiver<notify::Result<Watch>>,
    place: Place,
}

/// What is watched.
#[derive(Clone)]
struct Place {
    /// PATH without links, as notifications name it.
    root: PathBuf,
    /// That, or the folder that it is in when it is a file: editors put another one in its place.
    folder: PathBuf,
    identity: Identity,
}

impl Place {
    /// Where PATH is now.
    fn of(path: &Path) -> std::io::Result<Place> {
        let is_file = std::fs::metadata(path)?.is_file();
        let (folder, root) = match (path.parent(), path.file_name()) {
            (Some(folder), Some(name)) if is_file => {
                let folder = folder.canonicalize()?;
                let root = folder.join(name);
                (folder, root)
            }
            _ => {
                let root = path.canonicalize()?;
                (root.clone(), root)
            }
        };
        let identity = identity(&std::fs::metadata(&folder)?);
        Ok(Place {
            root,
            folder,
            identity,
        })
    }

    fn is_file(&self) -> bool {
        self.folder != self.root
    }
}

struct Attached {
    /// Ends its thread when dropped.
    _watcher: RecommendedWatcher,
    receive: Receiver<Signal>,
    is_over: Arc<AtomicBool>,
    place: Place,
    /// PATH went or was moved: what comes there next is not watched.
    is_dead: bool,
}

impl Notices {
    pub(super) fn new(source: &str, root: &Path, is_wanted: bool) -> Notices {
        let gauge = metrics::gauge!(telemetry::FILES_WATCHED.name, "source" => source.to_owned());
        gauge.set(0.0);
        Notices {
            source: source.to_owned(),
            root: std::path::absolute(root).unwrap_or_else(|_| root.to_owned()),
            is_wanted,
            again_at: None,
            said: String::new(),
            pending: None,
            attached: None,
            gauge,
        }
    }

    /// Begins to watch PATH if it is there and is not watched, or is another folder now.
    pub(super) fn attach(&mut self) {
        let place = Place::of(&self.root).ok().filter(|_| self.is_wanted);
        let Some(place) = place else {
            self.detach();
            return;
        };
        if self.again_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let attached = self.attached.as_ref().filter(|attached| !attached.is_dead);
        let attached = attached.map(|attached| attached.place.identity);
        let pending = self.pending.as_ref().map(|pending| pending.place.identity);
        if attached.or(pending) == Some(place.identity) {
            return;
        }
        self.detach();
        self.again_at = None;
        let mode = match place.is_file() {
            true => RecursiveMode::NonRecursive,
            false => RecursiveMode::Recursive,
        };
        let (send, made) = sync_channel(1);
        let watched = place.folder.clone();
        // The receiver may be gone when it is made; then it ends here.
        let work = move || drop(send.send(watch(&watched, mode)));
        let thread = std::thread::Builder::new().name("watch".to_owned());
        match thread.spawn(work) {
            Ok(_) => self.pending = Some(Pending { made, place }),
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
                    place: pending.place,
                    is_dead: false,
                });
                self.said.clear();
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

    /// Goes on without notifications: for good when the system has no more, or else for a while.
    fn give_up(&mut self, error: &notify::Error) {
        self.detach();
        self.is_wanted = !matches!(error.kind, notify::ErrorKind::MaxFilesWatch);
        self.again_at = Some(Instant::now() + AGAIN);
        let said = error.to_string();
        if std::mem::replace(&mut self.said, said.clone()) == said {
            return;
        }
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
        let Some(attached) = &mut self.attached else {
            std::thread::sleep(step);
            return Vec::new();
        };
        let mut notices = Vec::new();
        let mut failed = None;
        let mut next = attached.receive.recv_timeout(step);
        loop {
            match next {
                Ok(Signal::Changed(path, is_structure)) => {
                    notices.extend(attached.notice(&path, is_structure));
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
    fn notice(&mut self, path: &Path, is_structure: bool) -> Option<Notice> {
        let Place { root, folder, .. } = &self.place;
        let is_file = self.place.is_file();
        // The watched folder itself came, went or was moved: the system no longer tells of that name.
        self.is_dead |= is_structure && path == folder;
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

/// What tells a folder from another one of its name: device, number, and time of birth where the system
/// has one, because numbers are used again.
type Identity = (u64, u64, Option<SystemTime>);

#[cfg(unix)]
fn identity(metadata: &Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino(), metadata.created().ok())
}

#[cfg(not(unix))]
fn identity(metadata: &Metadata) -> Identity {
    (0, 0, metadata.created().ok())
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

    #[test]
    fn another_folder_under_the_name_is_watched_anew() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("docs");
        std::fs::create_dir(&folder).expect("a folder");
        let mut notices = watched(&folder);
        for round in 0..5 {
            std::fs::remove_dir_all(&folder).expect("removed");
            std::fs::create_dir(&folder).expect("a folder");
            let name = format!("{round}");
            let until = Instant::now() + Duration::from_secs(10);
            let mut found = Vec::new();
            while !found.contains(&Notice::Path(name.clone(), false)) && Instant::now() < until {
                notices.attach();
                std::fs::write(folder.join(&name), "").expect("written");
                found.extend(notices.wait(Instant::now() + STEP));
            }
            assert!(Instant::now() < until, "round {round}: {found:?}");
        }
    }

    #[test]
    fn other_failures_are_tried_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut notices = watched(folder.path());
        notices.give_up(&notify::Error::generic("a folder cannot be listed"));
        notices.attach();
        assert!(notices.pending.is_none(), "not at once");
        notices.again_at = Some(Instant::now());
        notices.attach();
        assert!(notices.pending.is_some());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_folder_is_watched() {
        let parent = tempfile::tempdir().expect("a folder");
        let (folder, link) = (parent.path().join("docs"), parent.path().join("link"));
        std::fs::create_dir(&folder).expect("a folder");
        std::os::unix::fs::symlink(&folder, &link).expect("linked");
        let mut notices = watched(&link);
        std::fs::write(folder.join("a"), "").expect("written");
        let until = Instant::now() + Duration::from_secs(10);
        let mut found = Vec::new();
        while !found.contains(&Notice::Path("a".to_owned(), false)) && Instant::now() < until {
            found.extend(notices.wait(Instant::now() + STEP));
        }
        assert!(Instant::now() < until, "{found:?}");
    }
}
