//! The input log: append from any thread, durable in groups, read back in order.
//!
//! ```text
//!  append(record) ─▶ encoded on the caller's thread ─▶ queue ─▶ writer ([`super::writer`])
//!     │ LogSequence n                                             │ some writes, one sync a group
//!     └────────────── durable() ≥ n  ◀── on_durable(Ok), listener ┘
//! ```
//!
//! [`InputLog::append`] never waits for the disk. Records become durable in the order of their
//! sequences, all of them: when the disk fails, the writer undoes what it wrote of the group,
//! tells every waiting callback, and tries again until it succeeds, so that no later record can
//! become durable without the ones that it builds on. A callback with `Err` therefore means "not
//! durable now, outcome open", like a connection lost during a commit. While [`InputLog::failure`]
//! says something, callers should stop taking in new rows; the queue itself has no bound but theirs
//! (staged bytes, unsealed ticks).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::frame::{self, Tail};
use super::manifest::{MANIFEST, Manifest, Segment};
use super::record::{Record, corrupt};
use super::replay::{Replay, SegmentReader};
use super::writer::{Queued, Shared, Writer};
use crate::contract::Store;
use crate::error::WorldError;
use crate::limits::SEGMENT_BYTES;
use crate::model::Time;

/// Counts the records appended since this log was opened: the first one has 1. What was replayed
/// is durable; 0 stands for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogSequence(pub u64);

/// Called once, on the writer's thread: quickly done, never blocking.
pub type OnDurable = Box<dyn FnOnce(Result<(), Arc<WorldError>>) + Send>;

/// How a log is kept.
#[derive(Clone)]
pub struct LogOptions {
    /// A segment is closed beyond this size.
    pub segment_bytes: u64,
    /// Called before a group with a [`super::Tick`] that carries vectors is written; makes their
    /// bytes durable ([`super::EmbeddingStore::flush`]). An error is a failed write.
    pub before_vectors: Option<Arc<dyn Fn() -> Result<(), WorldError> + Send + Sync>>,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            segment_bytes: SEGMENT_BYTES,
            before_vectors: None,
        }
    }
}

/// Why the log does not make progress.
#[derive(Debug, Clone)]
pub struct LogFailure {
    /// The last error.
    pub error: Arc<WorldError>,
    /// When the first attempt of this failure was made.
    pub since: Instant,
    /// Attempts that failed.
    pub attempts: u32,
}

/// The one input log. `Sync`: share it by `Arc`. Dropping it writes what is queued.
pub struct InputLog {
    pub(super) shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl InputLog {
    /// Opens the log in a store, creating it when there is none, and starts its writer.
    ///
    /// The log may be appended to while the [`Replay`] is still being read; compaction waits
    /// for the replay to be dropped.
    ///
    /// Errors: the store's; [`WorldError::Corrupt`] for a damaged manifest or last segment (other
    /// segments are checked as they are replayed). Cost: reads the last segment once.
    pub fn open(
        store: Arc<dyn Store>,
        options: LogOptions,
    ) -> Result<(InputLog, Replay), WorldError> {
        let manifest = match Manifest::load(&*store)? {
            Some(manifest) => manifest,
            None => create(&*store)?,
        };
        manifest.remove_strangers(&*store)?;
        let open = manifest
            .segments
            .last()
            .expect("a manifest has an open segment")
            .clone();
        let (length, time) = recover(&*store, &open)?;
        let mut file = store.append(&open.name())?;
        if file.len() > length {
            tracing::warn!(
                file = %open.name(), offset = length, lost_bytes = file.len() - length,
                "cut off the torn end that a crash left in the log"
            );
            file.truncate(length)?;
        }
        // What is replayed must not get lost by a second crash after it was acted upon.
        file.sync()?;

        let shared = Arc::new(Shared::new(store, manifest, options));
        let replay = Replay::new(&shared, length);
        let writer = Writer::new(Arc::clone(&shared), file, length, time);
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| WorldError::Io {
                what: "cannot start the writer of",
                path: MANIFEST.to_owned(),
                source,
            })?;
        Ok((
            InputLog {
                shared,
                thread: Some(thread),
            },
            replay,
        ))
    }

    /// Appends a record. Never waits for the disk.
    ///
    /// `on_durable` is called once: with `Ok` after the sync, or with the error of the first
    /// attempt that failed; the record stays queued even then (see the module).
    pub fn append(&self, record: Record, on_durable: Option<OnDurable>) -> LogSequence {
        let buffer = self.shared.buffer(record.bytes_about());
        self.shared.push(Queued::new(&record, buffer, on_durable))
    }

    /// Everything up to here survives a crash.
    pub fn durable(&self) -> LogSequence {
        LogSequence(self.shared.durable.load(Ordering::Acquire))
    }

    /// Called on the writer's thread after each group with the new watermark, after the group's
    /// callbacks. Replaces the one before.
    pub fn set_durable_listener(&self, listener: Box<dyn Fn(LogSequence) + Send + Sync>) {
        *self
            .shared
            .listener
            .lock()
            .expect("no panic under this lock") = Some(listener.into());
    }

    /// Waits until a record is durable; false when `timeout` is over.
    pub fn wait_durable(&self, through: LogSequence, timeout: Duration) -> bool {
        self.shared.wait_durable(through, timeout)
    }

    /// Whether the last attempt to write failed.
    pub fn is_failing(&self) -> bool {
        self.failure().is_some()
    }

    /// The present failure, for `/ready`; `None` once a group was written again.
    pub fn failure(&self) -> Option<LogFailure> {
        self.shared
            .failure
            .lock()
            .expect("no panic under this lock")
            .clone()
    }

    /// Bytes appended and not yet durable.
    pub fn queued_bytes(&self) -> usize {
        self.shared.queued_bytes()
    }

    /// Bytes of the base and of the sealed segments that a [`InputLog::compact`] to `since` would
    /// rewrite: compact when the second is as large as the first, and the cost of rewriting stays
    /// proportional to what is written.
    pub fn compactable_bytes(&self, since: Time) -> (u64, u64) {
        let manifest = self
            .shared
            .manifest
            .lock()
            .expect("no panic under this lock");
        super::compact::compactable(&manifest, since)
            .iter()
            .fold((0, 0), |(base, new), segment| {
                let bytes = segment.sealed.map_or(0, |sealed| sealed.bytes);
                if segment.is_base {
                    (base + bytes, new)
                } else {
                    (base, new + bytes)
                }
            })
    }
}

impl Drop for InputLog {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log's writer panicked");
        }
    }
}

/// Lays a new log: one open, empty segment.
fn create(store: &dyn Store) -> Result<Manifest, WorldError> {
    let open = Segment {
        number: 1,
        is_base: false,
        sealed: None,
    };
    let manifest = Manifest {
        next: 2,
        segments: vec![open.clone()],
    };
    // A segment without a manifest is the log of a lost manifest, never to be written over.
    if store.size(&open.name())?.is_some_and(|bytes| bytes > 0) {
        return Err(corrupt(
            MANIFEST,
            0,
            format!("missing, but {} is there", open.name()),
        ));
    }
    store.append(&open.name())?.sync()?;
    manifest.save(store)?;
    Ok(manifest)
}

/// The durable length of the open segment and the greatest time in it.
fn recover(store: &dyn Store, open: &Segment) -> Result<(u64, Option<Time>), WorldError> {
    let name = open.name();
    let Some(size) = store.size(&name)? else {
        return Err(corrupt(
            &name,
            0,
            "the manifest lists this segment, but it is missing",
        ));
    };
    let mut reader = SegmentReader::new(name.clone(), size);
    let mut time = None;
    while let Some(frame) = reader.next_or_tail(store)? {
        // Staged rows carry no time: only the small records need decoding here.
        if !Record::is_staged(frame.kind) {
            let record = Record::decode(frame.kind, frame.payload)
                .map_err(|detail| corrupt(&name, frame.offset, detail))?;
            time = time.max(record.time());
        }
    }
    let offset = reader.offset();
    let tail = store.read_at(&name, offset, (size - offset) as usize)?;
    match frame::judge_tail(&tail, offset) {
        Tail::Clean | Tail::Torn(_) => Ok((offset, time)),
        Tail::Damaged(offset, detail) => Err(corrupt(&name, offset, detail)),
    }
}
