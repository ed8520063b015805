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
//!
//! Limits: a reader that fails while its sink has no room says so when there is, or at the stop.

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

#[cfg(test)]
mod tests {
    use engine::testing::{Recorded, ScriptedSink};
    use serde_json::json;

    use super::*;

    #[test]
    fn batches_are_staged_in_order_and_a_closed_sink_is_told() {
        let sink = ScriptedSink::open();
        let context = SourceContext {
            name: "rows".to_owned(),
            sink: Arc::clone(&sink) as _,
            resume: Arc::new(Recorded::default()),
            stop: Arc::default(),
            dropped: Arc::default(),
            waits: Arc::default(),
        };
        let batch = |number: u64| SourceBatch {
            lane: "rows/0".to_owned(),
            position: Some(json!(number)),
            ..SourceBatch::default()
        };
        let mut staging = Staging::new(&context).unwrap_or_else(|error| panic!("{error}"));
        for number in 0..9 {
            assert!(staging.stage(batch(number)).is_ok());
        }
        assert!(staging.settle().is_ok());
        let staged: Vec<_> = sink.batches().into_iter().map(|one| one.position).collect();
        let all: Vec<_> = (0..9).map(|number| Some(json!(number))).collect();
        assert_eq!(staged, all);
        // One is on its way when the sink closes: whoever hands over the next is told.
        sink.block_after(9);
        assert!(staging.stage(batch(9)).is_ok());
        sink.close();
        assert!(staging.settle().is_err() && staging.stage(batch(10)).is_err());
        assert_eq!(sink.batches().len(), 9);
    }
}
