//! The log's writer thread: group commit, rotation, and failing without losing.
//!
//! ```text
//!  wait for records ─▶ take ≤ 8 MiB ─▶ [vectors first] ─▶ append ─▶ sync ─▶ watermark, callbacks
//!                          ▲                                 │ any error
//!                          └── pause 20 ms … 1 s ◀── truncate to the durable length, tell callbacks
//! ```
//!
//! While one group syncs, the next one gathers: the slower the disk, the larger the groups.
//!
//! After a failed sync the kernel may drop the dirty pages and report success for the next sync.
//! So nothing of a failed group is trusted: the file is cut back to its durable length and the
//! bytes are written again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::frame;
use super::log::{LogFailure, LogOptions, LogSequence, OnDurable};
use super::manifest::{Manifest, Sealed, Segment, segment_name};
use super::record::Record;
use crate::contract::{AppendFile, Store};
use crate::error::WorldError;
use crate::limits::{GROUP_COMMIT_BYTES_MAX, LOG_RETRY_MS, RECORD_BYTES_MAX};
use crate::model::Time;
use crate::telemetry;

/// Records of one write, bytes (soft for one record): a larger one costs a call more and a copy less.
const GATHERED_BYTES_MAX: usize = 64 << 10;

/// Buffers that are kept for payloads to come, and the largest of them, bytes.
const SPARE_MAX: usize = 8;
const SPARE_BYTES_MAX: usize = 4 << 20;

/// A record on its way to the file.
pub(super) struct Queued {
    kind: u8,
    payload: Vec<u8>,
    time: Option<Time>,
    has_vectors: bool,
    on_durable: Option<OnDurable>,
}

impl Queued {
    /// Encodes a record into a buffer, on the caller's thread.
    pub fn new(record: &Record, buffer: Vec<u8>, on_durable: Option<OnDurable>) -> Self {
        let payload = record.encode_in(buffer);
        assert!(
            payload.len() <= RECORD_BYTES_MAX,
            "a record of {} bytes",
            payload.len()
        );
        Queued {
            kind: record.kind(),
            payload,
            time: record.time(),
            has_vectors: matches!(record, Record::Tick(tick) if !tick.vectors.is_empty()),
            on_durable,
        }
    }

    fn bytes(&self) -> usize {
        frame::HEADER_BYTES + self.payload.len()
    }
}

/// What appenders, the writer, the replay and compaction share.
pub(super) struct Shared {
    pub store: Arc<dyn Store>,
    pub options: LogOptions,
    /// The manifest as it is stored; held while it is replaced.
    pub manifest: Mutex<Manifest>,
    pub durable: AtomicU64,
    pub failure: Mutex<Option<LogFailure>>,
    pub listener: Mutex<Option<Arc<dyn Fn(LogSequence) + Send + Sync>>>,
    /// The segment files must stay: a replay reads them.
    pub is_replaying: AtomicBool,
    /// One compaction at a time.
    pub compaction: Mutex<()>,
    queue: Mutex<Queue>,
    /// Buffers of payloads that were written, for those to come: memory that is in the caches, and that
    /// the system need not clear again.
    spare: Mutex<Vec<Vec<u8>>>,
    /// Signalled when there is something to write, and on close.
    work: Condvar,
    /// Signalled when the watermark moved.
    progress: Condvar,
}

#[derive(Default)]
struct Queue {
    records: Vec<Queued>,
    bytes: usize,
    last: u64,
    in_flight_bytes: usize,
    is_closed: bool,
}

impl Shared {
    pub fn new(store: Arc<dyn Store>, manifest: Manifest, options: LogOptions) -> Self {
        Shared {
            store,
            options,
            manifest: Mutex::new(manifest),
            durable: AtomicU64::new(0),
            failure: Mutex::new(None),
            listener: Mutex::new(None),
            is_replaying: AtomicBool::new(false),
            compaction: Mutex::new(()),
            queue: Mutex::default(),
            spare: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
        }
    }

    pub fn push(&self, record: Queued) -> LogSequence {
        let mut queue = self.queue();
        queue.last += 1;
        queue.bytes += record.bytes();
        queue.records.push(record);
        self.work.notify_one();
        LogSequence(queue.last)
    }

    /// A buffer for a payload of about so many bytes.
    pub fn buffer(&self, bytes: usize) -> Vec<u8> {
        let wants_spare = bytes >= GATHERED_BYTES_MAX;
        let spare = wants_spare.then(|| self.spare().pop());
        spare.flatten().unwrap_or_default()
    }

    /// Keeps the buffer of a payload that was written, if it is worth it.
    fn give_back(&self, payload: Vec<u8>) {
        let mut spare = self.spare();
        let is_kept = (GATHERED_BYTES_MAX..=SPARE_BYTES_MAX).contains(&payload.capacity());
        if is_kept && spare.len() < SPARE_MAX {
            spare.push(payload);
        }
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().expect("no panic under this lock")
    }

    pub fn queued_bytes(&self) -> usize {
        let queue = self.queue();
        queue.bytes + queue.in_flight_bytes
    }

    pub fn close(&self) {
        self.queue().is_closed = true;
        self.work.notify_all();
    }

    pub fn wait_durable(&self, through: LogSequence, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut queue = self.queue();
        while self.durable.load(Ordering::Acquire) < through.0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self
                .progress
                .wait_timeout(queue, left)
                .expect("no panic under this lock")
                .0;
        }
        true
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic under this lock")
    }

    /// Moves queued records to `group`, in order, up to the limit of a group. Waits for the first
    /// one when `group` is empty; false when the log is closed and all is taken.
    fn take(&self, group: &mut Vec<Queued>) -> bool {
        let mut queue = self.queue();
        while group.is_empty() && queue.records.is_empty() {
            if queue.is_closed {
                return false;
            }
            queue = self.work.wait(queue).expect("no panic under this lock");
        }
        let (mut count, mut bytes) = (0, queue.in_flight_bytes);
        for record in &queue.records {
            if bytes > 0 && bytes + record.bytes() > GROUP_COMMIT_BYTES_MAX {
                break;
            }
            bytes += record.bytes();
            count += 1;
        }
        group.extend(queue.records.drain(..count));
        queue.bytes -= bytes - queue.in_flight_bytes;
        queue.in_flight_bytes = bytes;
        true
    }

    /// After a failure: pauses, and takes the callbacks of all records that wait, so that nobody
    /// waits longer than one attempt for bad news.
    fn pause(&self, pause: Duration) -> bool {
        let queue = self.queue();
        let (queue, _) = self
            .work
            .wait_timeout_while(queue, pause, |queue| !queue.is_closed)
            .expect("no panic under this lock");
        !queue.is_closed
    }

    fn take_callbacks(&self) -> Vec<OnDurable> {
        self.queue()
            .records
            .iter_mut()
            .filter_map(|record| record.on_durable.take())
            .collect()
    }
}

/// Owns the open segment.
pub(super) struct Writer {
    shared: Arc<Shared>,
    file: Box<dyn AppendFile>,
    number: u64,
    /// Bytes of the open segment that are durable; the file may be longer after a failure.
    durable_bytes: u64,
    /// The greatest engine time in the open segment.
    time: Option<Time>,
    /// The file may hold bytes behind `durable_bytes`.
    is_dirty: bool,
    buffer: Vec<u8>,
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        file: Box<dyn AppendFile>,
        durable_bytes: u64,
        time: Option<Time>,
    ) -> Self {
        let number = {
            let manifest = shared.manifest.lock().expect("no panic under this lock");
            manifest
                .segments
                .last()
                .expect("a manifest has an open segment")
                .number
        };
        Writer {
            shared,
            file,
            number,
            durable_bytes,
            time,
            is_dirty: false,
            buffer: Vec::new(),
        }
    }

    /// Writes groups until the log is closed and empty. On close a failing log gets one last try.
    pub fn run(mut self) {
        let mut group = Vec::new();
        while self.shared.take(&mut group) {
            let (mut pause_ms, pause_ms_max) = LOG_RETRY_MS;
            while let Err(error) = self.write(&group) {
                self.failed(&mut group, error);
                if !self.shared.pause(Duration::from_millis(pause_ms)) {
                    if let Err(error) = self.write(&group) {
                        tracing::error!(%error, records = group.len(), "closed without writing");
                        self.failed(&mut group, error);
                        return;
                    }
                    break;
                }
                pause_ms = (pause_ms * 2).min(pause_ms_max);
            }
            self.succeeded(&mut group);
        }
    }

    fn failed(&mut self, group: &mut [Queued], error: WorldError) {
        let error = Arc::new(error);
        let attempts = {
            let mut failure = self
                .shared
                .failure
                .lock()
                .expect("no panic under this lock");
            let (since, attempts) = match &*failure {
                Some(failure) => (failure.since, failure.attempts + 1),
                None => (Instant::now(), 1),
            };
            *failure = Some(LogFailure {
                error: Arc::clone(&error),
                since,
                attempts,
            });
            attempts
        };
        if attempts.is_power_of_two() {
            tracing::warn!(%error, attempts, "the input log cannot be written; trying again");
        }
        metrics::counter!(telemetry::LOG_FAILURES.name).increment(1);
        // Undo now, so that the space is free and a crash finds no half group; `write` does it
        // again when this fails.
        if self.file.truncate(self.durable_bytes).is_ok() {
            self.is_dirty = false;
        }
        let waiting = group
            .iter_mut()
            .filter_map(|record| record.on_durable.take());
        for on_durable in waiting.chain(self.shared.take_callbacks()) {
            on_durable(Err(Arc::clone(&error)));
        }
    }

    fn succeeded(&mut self, group: &mut Vec<Queued>) {
        if let Some(failure) = self
            .shared
            .failure
            .lock()
            .expect("no panic under this lock")
            .take()
        {
            tracing::info!(
                attempts = failure.attempts,
                "the input log can be written again"
            );
        }
        let watermark = {
            let mut queue = self.shared.queue();
            queue.in_flight_bytes = 0;
            self.shared
                .durable
                .fetch_add(group.len() as u64, Ordering::AcqRel)
                + group.len() as u64
        };
        self.shared.progress.notify_all();
        for record in group.drain(..) {
            if let Some(on_durable) = record.on_durable {
                on_durable(Ok(()));
            }
            self.shared.give_back(record.payload);
        }
        let listener = self
            .shared
            .listener
            .lock()
            .expect("no panic under this lock")
            .clone();
        if let Some(listener) = listener {
            listener(LogSequence(watermark));
        }
    }

    /// Makes a group durable, or fails and leaves `durable_bytes` as it was.
    fn write(&mut self, group: &[Queued]) -> Result<(), WorldError> {
        if self.durable_bytes >= self.shared.options.segment_bytes {
            self.rotate()?;
        }
        if group.iter().any(|record| record.has_vectors)
            && let Some(before_vectors) = &self.shared.options.before_vectors
        {
            before_vectors()?;
        }
        if self.is_dirty {
            self.file.truncate(self.durable_bytes)?;
        }
        self.is_dirty = true;
        let bytes = self.append(group)?;
        let started = Instant::now();
        self.file.sync()?;
        metrics::histogram!(telemetry::LOG_SYNC_SECONDS.name).record(started.elapsed());
        metrics::counter!(telemetry::LOG_BYTES.name).increment(bytes);
        metrics::counter!(telemetry::LOG_RECORDS.name).increment(group.len() as u64);
        self.is_dirty = false;
        self.durable_bytes += bytes;
        self.time = group
            .iter()
            .map(|record| record.time)
            .fold(self.time, Option::max);
        Ok(())
    }

    /// Appends the frames of a group; their bytes. Small ones are gathered, large payloads are written
    /// from where they lie.
    fn append(&mut self, group: &[Queued]) -> Result<u64, WorldError> {
        self.buffer.clear();
        let mut bytes = 0;
        for Queued { kind, payload, .. } in group {
            frame::encode_header(&mut self.buffer, self.durable_bytes, *kind, payload);
            let is_large = payload.len() >= GATHERED_BYTES_MAX;
            if !is_large {
                self.buffer.extend_from_slice(payload);
            }
            if is_large || self.buffer.len() >= GATHERED_BYTES_MAX {
                self.file.append(&self.buffer)?;
                bytes += self.buffer.len();
                self.buffer.clear();
            }
            if is_large {
                self.file.append(payload)?;
                bytes += payload.len();
            }
        }
        if !self.buffer.is_empty() {
            self.file.append(&self.buffer)?;
            bytes += self.buffer.len();
        }
        Ok(bytes as u64)
    }

    /// Closes the open segment and opens the next. Idempotent: a failed attempt is made again.
    fn rotate(&mut self) -> Result<(), WorldError> {
        let mut manifest = self
            .shared
            .manifest
            .lock()
            .expect("no panic under this lock");
        let mut next = manifest.clone();
        let open = next
            .segments
            .last_mut()
            .expect("a manifest has an open segment");
        assert_eq!(
            open.number, self.number,
            "the writer's file is the manifest's open segment"
        );
        open.sealed = Some(Sealed {
            bytes: self.durable_bytes,
            time: self.time,
        });
        let number = next.next;
        next.next += 1;
        next.segments.push(Segment {
            number,
            is_base: false,
            sealed: None,
        });

        let mut file = self.shared.store.append(&segment_name(number))?;
        // Left over from an attempt that was cut short.
        if !file.is_empty() {
            file.truncate(0)?;
        }
        file.sync()?;
        next.save(&*self.shared.store)?;
        *manifest = next;
        (self.file, self.number, self.durable_bytes, self.time) = (file, number, 0, None);
        self.is_dirty = false;
        Ok(())
    }
}
