//! The worker loop: take commands in order, step the dataflows, keep house, report seals, park.
//!
//! ```text
//! loop { commands, one tick at most → program.{install,feed,ask,…} ; worker.step ; program.maintain ; report uppers ; park }
//! ```
//!
//! Parking, never spinning: four workers on two cores took 8.3 ms a question spinning and 0.22 ms
//! parked (PROTOCOLS §3.11). A command's sender unparks.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use timely::worker::Worker;

use super::bus::{CommandOf, CommandReceivers, CommandStream};
use super::command::Command;
use super::program::{Program, ProgramFactory};
use crate::model::{ObjectId, Time};

/// Reports the uppers of objects to the sequencer: called on worker 0 when one has moved.
pub(super) type Report = dyn Fn(&[(ObjectId, Time)]) + Send + Sync;

/// Longest sleep without a message.
const PARK: Duration = Duration::from_millis(500);

/// A broken invariant must not leave the other workers waiting for this one: abort, loudly.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a worker panicked; the process aborts, a restart replays the log");
            std::process::abort();
        }
    }
}

/// Runs one worker until it is told to stop.
pub(super) fn run_worker<P: Program>(
    worker: &mut Worker,
    receivers: &CommandReceivers<P>,
    factory: &ProgramFactory<P>,
    report: &Report,
) {
    let _abort = AbortOnPanic;
    let mut commands = CommandStream::new(worker, receivers);
    let mut program = factory(worker.index(), worker.peers());
    let mut reported: Vec<(ObjectId, Time)> = Vec::new();
    loop {
        while let Some(command) = commands.next() {
            // One tick a step: a backlog of ticks must not become one long activation.
            let is_tick = matches!(*command, Command::Tick(_));
            if !obey(&mut program, worker, command) {
                return;
            }
            if is_tick {
                break;
            }
        }
        let started = Instant::now();
        let is_active = worker.step();
        if is_active {
            let micros = started.elapsed().as_secs_f64();
            metrics::histogram!("headwater_worker_step_seconds").record(micros);
        }
        let has_more = program.maintain();
        if worker.index() == 0 {
            report_uppers(&program, &mut reported, report);
        }
        if !has_more && !commands.is_waiting() {
            // Returns at once when an operator is active.
            worker.step_or_park(Some(PARK));
            if worker.index() == 0 {
                report_uppers(&program, &mut reported, report);
            }
        }
    }
}

/// Carries out one command; false to stop.
fn obey<P: Program>(program: &mut P, worker: &mut Worker, command: Arc<CommandOf<P>>) -> bool {
    let command = match Arc::try_unwrap(command) {
        Ok(Command::Tick(mut tick)) => {
            let since = std::mem::take(&mut tick.since);
            program.feed(Cow::Owned(tick));
            compact(program, &since);
            return true;
        }
        Ok(command) => Arc::new(command),
        Err(shared) => shared,
    };
    match &*command {
        Command::Tick(tick) => {
            program.feed(Cow::Borrowed(tick));
            compact(program, &tick.since);
        }
        Command::Ask { at, questions } => {
            let (worker_index, count) = (worker.index(), questions.len());
            let _span =
                tracing::debug_span!("ask", at, questions = count, worker = worker_index).entered();
            program.ask(worker, *at, questions);
        }
        Command::Cancel(question) => program.cancel(worker, *question),
        Command::Install { at, id, object } => program.install(worker, *at, *id, object),
        Command::Uninstall(id) => program.uninstall(worker, *id),
        Command::Forget(facts) => program.forget(facts),
        Command::Stop => return false,
    }
    true
}

fn compact<P: Program>(program: &mut P, since: &[(ObjectId, Time)]) {
    for (id, since) in since {
        program.allow_compaction(*id, *since);
    }
}

fn report_uppers<P: Program>(program: &P, reported: &mut Vec<(ObjectId, Time)>, report: &Report) {
    let mut uppers = Vec::with_capacity(reported.len());
    program.uppers(&mut |id, upper| uppers.push((id, upper)));
    if uppers != *reported {
        report(&uppers);
        *reported = uppers;
    }
}
