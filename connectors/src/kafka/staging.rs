//! Batches on their way to the log: while a thread stages one, the reader decodes the next.
//!
//! ```text
//! reader ─ fetch, decode, pack: batch N + 1 ─▶ │ one at a time │ ─▶ versions, log, lane: batch N
//! ```
//!
//! The idea: versions are looked up in a table of all keys, which waits for memory; decoding waits for
//! nothing. The channel has no room of its own: a batch is handed over when the thread is done with the
//! one before it.
//!
//! Invariants: batches are staged in the order in which they are handed over; at most one is on its way;
//! back-pressure reaches the reader with the next one; a panic of the thread is the reader's.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use engine::contract::{LaneSink, SinkClosed, SourceBatch, SourceContext};
use engine::error::WorldError;

/// See the module.
pub(super) struct Staging {
    /// `None`: nothing is taken any more.
    batches: Option<SyncSender<Option<SourceBatch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Staging {
    /// Errors: there is no thread to be had.
    pub(super) fn new(context: &SourceContext) -> Result<Staging, WorldError> {
        let (batches, handed) = sync_channel(0);
        let sink = Arc::clone(&context.sink);
        let thread = std::thread::Builder::new().name(format!("{}-stage", context.name));
        let thread = thread.spawn(move || stage(&*sink, &handed));
        let thread = thread.map_err(|error| {
            super::failed(&context.name, format!("no thread for its batches: {error}"))
        })?;
        Ok(Staging {
            batches: Some(batches),
            thread: Some(thread),
        })
    }

    /// Hands a batch over; the one before it is staged then.
    pub(super) fn stage(&mut self, batch: SourceBatch) -> Result<(), SinkClosed> {
        self.hand(Some(batch))
    }

    /// Returns when everything that was handed over is staged.
    pub(super) fn settle(&mut self) -> Result<(), SinkClosed> {
        self.hand(None)
    }

    fn hand(&mut self, batch: Option<SourceBatch>) -> Result<(), SinkClosed> {
        let batches = self.batches.as_ref().ok_or(SinkClosed)?;
        if batches.send(batch).is_ok() {
            return Ok(());
        }
        self.batches = None;
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        Err(SinkClosed)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it was seen by who handed something over, or nothing was lost by it.
            let _ = thread.join();
        }
    }
}

fn stage(sink: &dyn LaneSink, handed: &Receiver<Option<SourceBatch>>) {
    for batch in handed {
        if let Some(batch) = batch
            && sink.stage(batch).is_err()
        {
            return;
        }
    }
}
