//! Where graphs are built: off the workers, or inline for tests.
//!
//! A builder only runs closures; it knows nothing of shards. A job holds `Arc`s of immutable
//! segments and sends its result through a channel of its own, so a shard polls without blocking
//! and a job whose shard is gone is cancelled by a flag that the shard's drop sets.
//!
//! Limits: jobs run in the order they came, one at a time a thread.

use std::sync::Arc;

/// A unit of work for a builder.
pub type BuildJob = Box<dyn FnOnce() + Send>;

/// Runs build jobs. Cheap to clone; share one handle among all shards of a process, so that
/// building has one thread budget.
#[derive(Clone)]
pub struct BuilderHandle {
    submit: Arc<dyn Fn(BuildJob) + Send + Sync>,
}

impl std::fmt::Debug for BuilderHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BuilderHandle")
    }
}

impl BuilderHandle {
    /// A handle around any executor. `submit` must run the job eventually or drop it; dropping it
    /// makes the shard submit the work again.
    pub fn new(submit: impl Fn(BuildJob) + Send + Sync + 'static) -> Self {
        BuilderHandle {
            submit: Arc::new(submit),
        }
    }

    /// Runs each job within the call that submits it: deterministic, for tests.
    pub fn inline() -> Self {
        BuilderHandle::new(|job| job())
    }

    /// `threads` (at least 1) threads named `hw-builder`, with less claim to a core than the others:
    /// what they make changes speed only, and nobody waits for it. They end when the last clone is
    /// dropped and their queue is empty.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn threads(threads: usize) -> std::io::Result<Self> {
        let (sender, receiver) = crossbeam_channel::unbounded::<BuildJob>();
        for _ in 0..threads.max(1) {
            let receiver = receiver.clone();
            std::thread::Builder::new()
                .name("hw-builder".into())
                .spawn(move || {
                    yield_to_others();
                    for job in receiver {
                        job();
                    }
                })?;
        }
        Ok(BuilderHandle::new(move |job| {
            // The threads live as long as the sender: refused only when one of them panicked, and
            // then the dropped job tells its shard.
            let _ = sender.send(job);
        }))
    }

    pub(crate) fn submit(&self, job: BuildJob) {
        (self.submit)(job);
    }
}

/// Lowers the calling thread's share of a contended core to about a tenth. Where "nice" is the
/// whole process's (everywhere but on Linux) nothing is done.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(10) {
        tracing::debug!(%error, "graphs are built at full priority");
    }
}
