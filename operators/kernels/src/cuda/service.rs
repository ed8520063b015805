//! Callers on one side, devices on the other: two queues, one worker a device, and the CPU behind all.
//!
//! ```text
//!   submit(question) ─▶ ▢▢▢   ─┐             ┌─▶ worker 0 ─ packs by token budget ─▶ engine ─┐
//!   submit(bulk)     ─▶ ▢▢▢▢▢▢─┴─ first come ┤                                              ├─▶ ticket
//!        ▲                                   └─▶ worker 1 …                                 │
//!        └─ once more, on a fresh context ◀── a fault ◀─────────────────────────────────────┤
//!                                              └─ the second time: the CPU ─────────────────┘
//! ```
//!
//! A fault (context lost, memory exhausted, no answer in time, a call that does not come back) costs the
//! engine: it is dropped, a new one opened, and the texts that were on it go to the front of the queue, once.
//! What faults twice is computed by the CPU, and the device rests for a while, longer each time; while no
//! device works the CPU takes everything and [`Status::is_degraded`] says why. A vector with a number that is
//! not finite (a state beyond a half's range) is computed again by the CPU, alone.
//!
//! Invariants: every text that was accepted gets exactly one answer, in whatever weather, until its
//! ticket is dropped, even if a call into the device never returns; questions go before bulk wherever a
//! slot is free; a worker never ends before the service does, and the service ends when its queues are
//! empty. Limits: a worker looks at a busy
//! device without pause (one core a device); which of device and CPU made a vector the caller sees in its last
//! bits (of int8 in a cosine of 0.9995).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::batch::{Text, check};
use super::device::Fault;
pub use super::engine::Class;
use super::engine::Engine;
use super::worker;
use crate::weights::BertConfig;

/// Opens an engine on a fresh context, on a thread of the engine's own.
pub type Opener = Box<dyn Fn() -> Result<Box<dyn Engine>, Fault> + Send + Sync>;
/// Computes texts without a device: one result a text, in order.
pub type Fallback = dyn Fn(&[&Text]) -> Vec<Vec<f32>> + Send + Sync;
/// Fails on a text that the model cannot take.
pub type Check = dyn Fn(&Text) -> Result<(), Fault> + Send + Sync;

/// What a model of this shape can take.
pub fn checker(config: &BertConfig) -> Arc<Check> {
    let (longest, vocabulary) = (config.max_position_embeddings, config.vocab_size);
    let segments = config.type_vocab_size;
    Arc::new(move |text| check(text, longest, vocabulary, segments))
}

/// Times and sizes.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// A batch, or a call into the device, that takes longer is given up.
    pub batch_timeout: Duration,
    /// Opening that takes longer is given up: kernels may have to be compiled.
    pub open_timeout: Duration,
    /// How long a device rests after its second fault in a row; doubled each time, up to `rest_max`.
    pub rest: Duration,
    /// The longest rest.
    pub rest_max: Duration,
    /// Texts that the CPU takes at a time while devices rest.
    pub fallback_texts: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            batch_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(120),
            rest: Duration::from_secs(5),
            rest_max: Duration::from_secs(600),
            fallback_texts: 16,
        }
    }
}

/// How things stand; counters only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Devices that work.
    pub devices: usize,
    /// Why the last device that rests does so; empty when none does.
    pub reason: String,
    /// Whether any device rests.
    pub is_degraded: bool,
    /// Texts computed by devices.
    pub device_texts: u64,
    /// Texts computed by the CPU, whatever the reason.
    pub cpu_texts: u64,
    /// Texts whose device result was not finite.
    pub not_finite: u64,
    /// Batches.
    pub batches: u64,
    /// Faults.
    pub faults: u64,
    /// Texts waiting.
    pub waiting: usize,
}

/// One text on its way.
pub(super) struct Job {
    pub(super) text: Text,
    pub(super) class: Class,
    /// Faults so far.
    pub(super) faults: u8,
    index: usize,
    reply: Sender<(usize, Result<Vec<f32>, String>)>,
    is_wanted: Arc<AtomicBool>,
}

impl Job {
    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    pub(super) fn answer(self, result: Result<Vec<f32>, String>) {
        // A caller that left needs no answer.
        let _ = self.reply.send((self.index, result));
    }
}

/// What workers and callers share.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) questions: VecDeque<Job>,
    pub(super) bulk: VecDeque<Job>,
    pub(super) status: Status,
    /// Reasons by device, absent while it works.
    pub(super) resting: Vec<Option<String>>,
    pub(super) is_closing: bool,
}

impl Desk {
    /// The next text of a class's slot that has at most `room` ids, dropping unwanted ones.
    pub(super) fn take(&mut self, class: Class, room: usize) -> Option<Job> {
        let queues = [
            Some(&mut self.questions),
            (class == Class::Bulk).then_some(&mut self.bulk),
        ];
        for queue in queues.into_iter().flatten() {
            while queue.front().is_some_and(|job| !job.is_wanted()) {
                queue.pop_front();
            }
            if let Some(job) = queue.front() {
                // First come, first served: what does not fit waits for the next batch, with all behind.
                return if job.text.ids.len() <= room {
                    queue.pop_front()
                } else {
                    None
                };
            }
        }
        None
    }

    /// Puts texts of a failed batch back where they came from.
    pub(super) fn give_back(&mut self, jobs: Vec<Job>) {
        for job in jobs.into_iter().rev() {
            match job.class {
                Class::Question => self.questions.push_front(job),
                Class::Bulk => self.bulk.push_front(job),
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.questions.is_empty() && self.bulk.is_empty()
    }

    pub(super) fn note_rest(&mut self, device: usize, reason: Option<String>) {
        self.resting[device] = reason;
        let reasons = self.resting.iter().flatten();
        self.status.reason = reasons.clone().last().cloned().unwrap_or_default();
        self.status.is_degraded = reasons.clone().next().is_some();
        self.status.devices = self.resting.len() - reasons.count();
    }
}

pub(super) struct Shared {
    pub(super) desk: Mutex<Desk>,
    pub(super) changed: Condvar,
    pub(super) settings: Settings,
    pub(super) fallback: Arc<Fallback>,
    check: Arc<Check>,
}

impl Shared {
    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        // The desk is consistent between statements: a panic elsewhere does not spoil it.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers texts without a device. A panic inside reaches the callers as an error.
    pub(super) fn compute_on_cpu(&self, jobs: Vec<Job>) {
        let texts: Vec<&Text> = jobs.iter().map(|job| &job.text).collect();
        let computed = catch_unwind(AssertUnwindSafe(|| (self.fallback)(&texts)));
        self.desk().status.cpu_texts += jobs.len() as u64;
        match computed {
            Ok(results) if results.len() == jobs.len() => {
                for (job, result) in jobs.into_iter().zip(results) {
                    job.answer(Ok(result));
                }
            }
            _ => {
                for job in jobs {
                    job.answer(Err("the CPU encoder failed on a batch".to_owned()));
                }
            }
        }
    }
}

/// The encoder's front: see the module.
pub struct Service {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// Answers to one submission.
pub struct Ticket {
    receiver: Receiver<(usize, Result<Vec<f32>, String>)>,
    texts: usize,
    is_wanted: Arc<AtomicBool>,
}

impl Ticket {
    /// Waits for all results, in the order of the texts. Fails when the CPU encoder itself failed.
    pub fn wait(self) -> Result<Vec<Vec<f32>>, String> {
        let mut results = vec![Vec::new(); self.texts];
        for _ in 0..self.texts {
            let (index, result) = self
                .receiver
                .recv()
                .map_err(|_| "the encoder's service ended".to_owned())?;
            results[index] = result?;
        }
        Ok(results)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.is_wanted.store(false, Ordering::Relaxed);
    }
}

impl Service {
    /// Starts a worker for each opener. Engines are opened by the workers: until then, and when none
    /// opens, texts wait or are computed by `fallback`. Without openers the CPU does all.
    pub fn start(
        openers: Vec<Opener>,
        check: Arc<Check>,
        fallback: Arc<Fallback>,
        settings: Settings,
    ) -> std::io::Result<Service> {
        let mut desk = Desk {
            resting: vec![None; openers.len()],
            ..Desk::default()
        };
        desk.status.devices = openers.len();
        let shared = Arc::new(Shared {
            desk: Mutex::new(desk),
            changed: Condvar::new(),
            settings,
            fallback,
            check,
        });
        let mut service = Service {
            shared,
            workers: Vec::new(),
        };
        let mut openers: Vec<Option<Opener>> = openers.into_iter().map(Some).collect();
        if openers.is_empty() {
            openers.push(None);
        }
        for (device, opener) in openers.into_iter().enumerate() {
            let shared = Arc::clone(&service.shared);
            let worker = std::thread::Builder::new()
                .name(format!("encoder-{device}-watch"))
                .spawn(move || worker::run(device, opener.map(Arc::new), &shared))?;
            service.workers.push(worker);
        }
        Ok(service)
    }

    /// Queues texts. Fails when the model cannot take one of them; then none is queued.
    pub fn submit(&self, class: Class, texts: Vec<Text>) -> Result<Ticket, Fault> {
        for text in &texts {
            check(text, usize::MAX, usize::MAX, 2)?;
            (self.shared.check)(text)?;
        }
        let (reply, receiver) = channel();
        let is_wanted = Arc::new(AtomicBool::new(true));
        let ticket = Ticket {
            receiver,
            texts: texts.len(),
            is_wanted: Arc::clone(&is_wanted),
        };
        let jobs = texts.into_iter().enumerate().map(|(index, text)| Job {
            text,
            class,
            faults: 0,
            index,
            reply: reply.clone(),
            is_wanted: Arc::clone(&is_wanted),
        });
        let mut desk = self.shared.desk();
        match class {
            Class::Question => desk.questions.extend(jobs),
            Class::Bulk => desk.bulk.extend(jobs),
        }
        drop(desk);
        self.shared.changed.notify_all();
        Ok(ticket)
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        let desk = self.shared.desk();
        Status {
            waiting: desk.questions.len() + desk.bulk.len(),
            ..desk.status.clone()
        }
    }
}

impl Drop for Service {
    /// Finishes what was accepted, then ends the workers.
    fn drop(&mut self) {
        self.shared.desk().is_closing = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panic was reported where it happened; there is nobody left to tell.
            let _ = worker.join();
        }
    }
}

/// Time left until `end`, at least nothing.
pub(super) fn until(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}
