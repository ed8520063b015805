//! What an engine's thread does: packs, starts, looks, delivers, until a fault or the service's end.
//!
//! Invariants: texts are in the post's flights before the device hears of them and until their results
//! are good, so that whoever ends the shift finds them there; a look at a busy device never sleeps.

use std::time::{Duration, Instant};

use super::batch::Batch;
use super::device::Fault;
use super::engine::{Engine, SlotPlan};
use super::service::{Job, Opener, Shared};
use super::worker::{Flight, Post};

/// An engine's whole life; `None` when the service closed.
pub(super) fn serve(device: usize, open: &Opener, shared: &Shared, post: &Post) -> Option<Fault> {
    let settings = shared.settings;
    let mut engine = match post.call(settings.open_timeout, open) {
        Ok(engine) => engine,
        Err(fault) => return Some(fault),
    };
    let fault = shift(device, engine.as_mut(), shared, post).err();
    let is_late = matches!(fault, Some(Fault::TimedOut(_)));
    // The engine ends before its texts go anywhere else, whatever its end may do.
    let end = post.call(settings.batch_timeout, move || {
        if is_late {
            engine.abandon();
        }
        drop(engine);
        Ok(())
    });
    fault.or(end.err())
}

/// Works until the engine fails, or the service closes and nothing is left to do.
fn shift(
    device: usize,
    engine: &mut dyn Engine,
    shared: &Shared,
    post: &Post,
) -> Result<(), Fault> {
    let plans = engine.slots().to_vec();
    post.state().flights = plans.iter().map(|_| None).collect();
    let (mut batch, mut results) = (Batch::new(), Vec::new());
    loop {
        let mut is_busy = false;
        for (slot, &plan) in plans.iter().enumerate() {
            let since = post.state().flights[slot].as_ref().map(|f| f.since);
            is_busy |= match since {
                Some(since) => !land(device, engine, (slot, since), &mut results, shared, post)?,
                None => depart(engine, (slot, plan), &mut batch, shared, post)?,
            };
        }
        if is_busy {
            // A question's whole way takes a few hundred microseconds: no sleep is short enough.
            std::thread::yield_now();
            continue;
        }
        let desk = shared.desk();
        if desk.is_empty() {
            if desk.is_closing {
                return Ok(());
            }
            let wait = Duration::from_millis(100);
            drop(shared.changed.wait_timeout(desk, wait));
        }
    }
}

/// Fills a free slot with what waits and fits; whether there was any.
fn depart(
    engine: &mut dyn Engine,
    (slot, plan): (usize, SlotPlan),
    batch: &mut Batch,
    shared: &Shared,
    post: &Post,
) -> Result<bool, Fault> {
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
        return Ok(false);
    }
    // In flight before it begins: if beginning fails the texts are found there.
    post.state().flights[slot] = Some(Flight {
        jobs,
        since: Instant::now(),
    });
    let limit = shared.settings.batch_timeout;
    post.call(limit, || engine.begin(slot, batch))?;
    Ok(true)
}

/// Delivers a slot's batch if it is done, and says so; fails when it takes too long.
fn land(
    device: usize,
    engine: &mut dyn Engine,
    (slot, since): (usize, Instant),
    results: &mut Vec<f32>,
    shared: &Shared,
    post: &Post,
) -> Result<bool, Fault> {
    let limit = shared.settings.batch_timeout;
    if !post.call(limit, || engine.finish(slot, results))? {
        return match since.elapsed() > limit {
            true => Err(Fault::TimedOut(limit.as_millis())),
            false => Ok(false),
        };
    }
    let width = engine.width();
    let flight = {
        let mut state = post.state();
        let texts = state.flights[slot].as_ref().map_or(0, |f| f.jobs.len());
        if results.len() != texts * width {
            let found = results.len();
            return Err(Fault::Lost(format!(
                "{found} numbers came back for {texts} texts of {width}"
            )));
        }
        state.has_worked = true;
        state.flights[slot].take()
    };
    let Some(flight) = flight else {
        return Ok(true);
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
