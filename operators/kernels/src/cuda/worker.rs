//! One device's worker: packs, starts, looks, delivers; opens a fresh engine after a fault, rests after
//! two. [`service`](super::service) says what it promises.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::device::Fault;
use super::engine::{Class, Engine, SlotPlan};
use super::service::{Job, Opener, Shared, until};

/// A batch on the device.
struct Flight {
    jobs: Vec<Job>,
    since: Instant,
}

/// What ended a shift.
enum End {
    /// The service closes and nothing is left to do.
    Closed,
    /// The engine failed while these were on it; whether it had delivered a batch before.
    Failed(Fault, Vec<Job>, bool),
}

/// The worker's life. Without an opener the CPU does all.
pub(super) fn run(device: usize, opener: Option<Opener>, shared: &Shared) {
    let Some(open) = opener else {
        return rest(shared, None);
    };
    let settings = shared.settings;
    let (mut faults_in_a_row, mut pause) = (0u32, settings.rest);
    loop {
        let end = match guarded(&open) {
            Ok(engine) => shift(device, engine, shared),
            Err(fault) => End::Failed(fault, Vec::new(), false),
        };
        let (fault, jobs, has_worked) = match end {
            End::Closed => return,
            End::Failed(fault, jobs, has_worked) => (fault, jobs, has_worked),
        };
        if has_worked {
            (faults_in_a_row, pause) = (0, settings.rest);
        }
        faults_in_a_row += 1;
        sort_out(shared, jobs);
        let is_resting = faults_in_a_row > 1 || matches!(fault, Fault::Unavailable(_));
        let reason = format!("device {device}: {fault}");
        {
            let mut desk = shared.desk();
            desk.status.faults += 1;
            if is_resting {
                desk.note_rest(device, Some(reason));
            }
        }
        shared.changed.notify_all();
        if is_resting {
            rest(shared, Some(Instant::now() + pause));
            pause = (pause * 2).min(settings.rest_max);
            let desk = shared.desk();
            if desk.is_closing && desk.is_empty() {
                return;
            }
        }
    }
}

/// Runs what may panic (cudarc does when a library lacks a function) and makes a fault of it.
fn guarded<T>(run: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Fault::Lost(
            text.unwrap_or("a panic without a message").to_owned(),
        ))
    })
}

/// Texts of a failed batch: once more on a device, the second time on the CPU.
fn sort_out(shared: &Shared, jobs: Vec<Job>) {
    let (again, twice): (Vec<Job>, Vec<Job>) = jobs
        .into_iter()
        .map(|mut job| {
            job.faults += 1;
            job
        })
        .partition(|job| job.faults < 2);
    shared.desk().give_back(again);
    if !twice.is_empty() {
        shared.compute_on_cpu(twice);
    }
}

/// The CPU's turn, until a time or for good: takes what waits while no device works.
fn rest(shared: &Shared, end: Option<Instant>) {
    loop {
        let mut desk = shared.desk();
        let is_over = end.is_some_and(|end| Instant::now() >= end);
        if is_over || (desk.is_closing && desk.is_empty()) {
            return;
        }
        let mut jobs = Vec::new();
        // A service that closes does not wait for a device to come back.
        if desk.status.devices == 0 || desk.is_closing {
            while jobs.len() < shared.settings.fallback_texts {
                match desk.take(Class::Bulk, usize::MAX) {
                    Some(job) => jobs.push(job),
                    None => break,
                }
            }
        }
        if jobs.is_empty() {
            let wait = end.map_or(Duration::from_secs(1), until);
            let wait = wait.min(Duration::from_millis(100));
            drop(shared.changed.wait_timeout(desk, wait));
            continue;
        }
        drop(desk);
        shared.compute_on_cpu(jobs);
    }
}

/// Works with one engine until it fails or the service ends.
fn shift(device: usize, mut engine: Box<dyn Engine>, shared: &Shared) -> End {
    let plans = engine.slots().to_vec();
    let mut flights: Vec<Option<Flight>> = plans.iter().map(|_| None).collect();
    let (mut batch, mut results) = (Batch::new(), Vec::new());
    let mut has_worked = false;
    loop {
        for slot in 0..plans.len() {
            let done = match flights[slot] {
                Some(_) => land(
                    device,
                    engine.as_mut(),
                    slot,
                    &mut flights,
                    &mut results,
                    shared,
                )
                .map(|is_done| has_worked |= is_done),
                None => depart(
                    engine.as_mut(),
                    slot,
                    plans[slot],
                    &mut flights,
                    &mut batch,
                    shared,
                ),
            };
            if let Err(fault) = done {
                if matches!(fault, Fault::TimedOut(_)) {
                    engine.abandon();
                }
                // The engine ends before its texts go anywhere else, whatever its end may do.
                let _ = catch_unwind(AssertUnwindSafe(move || drop(engine)));
                let jobs = flights.into_iter().flatten().flat_map(|flight| flight.jobs);
                return End::Failed(fault, jobs.collect(), has_worked);
            }
        }
        if flights.iter().any(Option::is_some) {
            // A question's whole way takes a few hundred microseconds: no sleep is short enough.
            std::thread::yield_now();
            continue;
        }
        let desk = shared.desk();
        if desk.is_empty() {
            if desk.is_closing {
                return End::Closed;
            }
            drop(
                shared
                    .changed
                    .wait_timeout(desk, Duration::from_millis(100)),
            );
        }
    }
}

/// Fills a free slot with what waits and fits.
fn depart(
    engine: &mut dyn Engine,
    slot: usize,
    plan: SlotPlan,
    flights: &mut [Option<Flight>],
    batch: &mut Batch,
    shared: &Shared,
) -> Result<(), Fault> {
    batch.clear();
    let (mut jobs, mut too_long) = (Vec::new(), Vec::new());
    {
        let mut desk = shared.desk();
        while batch.texts() < plan.most.texts {
            let room = plan.most.tokens - batch.tokens();
            // A text longer than the whole slot is the CPU's, rather than nobody's for ever.
            let whole = if batch.tokens() == 0 {
                usize::MAX
            } else {
                room
            };
            let Some(job) = desk.take(plan.class, whole) else {
                break;
            };
            if job.text.ids.len() > room {
                too_long.push(job);
                continue;
            }
            batch.push(&job.text);
            jobs.push(job);
        }
    }
    if !too_long.is_empty() {
        shared.compute_on_cpu(too_long);
    }
    if jobs.is_empty() {
        return Ok(());
    }
    // In flight before it begins: if beginning fails the texts are found there.
    flights[slot] = Some(Flight {
        jobs,
        since: Instant::now(),
    });
    guarded(|| engine.begin(slot, batch))
}

/// Delivers a slot's batch if it is done, and says so; fails when it takes too long.
fn land(
    device: usize,
    engine: &mut dyn Engine,
    slot: usize,
    flights: &mut [Option<Flight>],
    results: &mut Vec<f32>,
    shared: &Shared,
) -> Result<bool, Fault> {
    let since = flights[slot].as_ref().map(|flight| flight.since);
    if !guarded(|| engine.finish(slot, results))? {
        let limit = shared.settings.batch_timeout;
        if since.is_some_and(|since| since.elapsed() > limit) {
            return Err(Fault::TimedOut(limit.as_millis()));
        }
        return Ok(false);
    }
    let width = engine.width();
    let texts = flights[slot].as_ref().map_or(0, |flight| flight.jobs.len());
    if results.len() != texts * width {
        let found = results.len();
        return Err(Fault::Lost(format!(
            "{found} numbers came back for {texts} texts of {width}"
        )));
    }
    let Some(flight) = flights[slot].take() else {
        return Ok(false);
    };
    let results = flight.jobs.into_iter().zip(results.chunks(width));
    let (good, bad): (Vec<_>, Vec<_>) =
        results.partition(|(_, result)| result.iter().all(|x| x.is_finite()));
    {
        let mut desk = shared.desk();
        desk.status.batches += 1;
        desk.status.device_texts += good.len() as u64;
        desk.status.not_finite += bad.len() as u64;
        if desk.resting[device].is_some() {
            desk.note_rest(device, None);
        }
    }
    for (job, result) in good {
        job.answer(Ok(result.to_vec()));
    }
    let not_finite: Vec<Job> = bad.into_iter().map(|(job, _)| job).collect();
    if !not_finite.is_empty() {
        shared.compute_on_cpu(not_finite);
    }
    Ok(true)
}
