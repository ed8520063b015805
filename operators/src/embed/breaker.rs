//! A circuit breaker with exponential back-off, as a plain state machine over given instants.
//!
//! ```text
//! closed ── failures in a row ──▶ open ── retry time ──▶ one probe ── success ──▶ closed
//!    ▲ any success                  ▲───────── failure, longer wait ──┘
//! ```
//!
//! Invariant: after a failure nothing is retried before its wait is over, nor before the other side
//! wants it; while open at most one call is under way.

use std::time::{Duration, Instant};

/// What may be called now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Anything.
    Free,
    /// One small call, to see whether the world is back. Taken by [`Breaker::begin_probe`].
    Probe,
    /// Nothing before this long.
    Wait(Duration),
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Breaker {
    failures_to_open: u32,
    first: Duration,
    longest: Duration,
    failures: u32,
    retry_at: Option<Instant>,
    /// Whether the other side said when it wants to be asked again.
    was_told: bool,
    /// When the last failure was seen: calls that began before say nothing new.
    failed_at: Option<Instant>,
    /// A call is under way that asks whether the world is back.
    is_probing: bool,
}

impl Breaker {
    /// Opens after `failures_to_open` failures in a row; waits from `first`, doubling, to `longest`.
    pub fn new(failures_to_open: u32, first: Duration, longest: Duration) -> Self {
        Breaker {
            failures_to_open,
            first,
            longest,
            failures: 0,
            retry_at: None,
            was_told: false,
            failed_at: None,
            is_probing: false,
        }
    }

    /// Whether the last calls failed often enough that nobody should wait for the next.
    pub fn is_open(&self) -> bool {
        self.failures >= self.failures_to_open
    }

    /// Whether the wait that is under way is the other side's wish: then not even a question tries.
    pub fn was_told(&self) -> bool {
        self.was_told
    }

    /// What may be called at `now`.
    pub fn admits(&self, now: Instant) -> Admission {
        let wait = self
            .retry_at
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        if !wait.is_zero() {
            return Admission::Wait(wait);
        }
        match (self.is_open(), self.is_probing) {
            (false, _) => Admission::Free,
            (true, false) => Admission::Probe,
            // The probe's end wakes whoever waits.
            (true, true) => Admission::Wait(self.longest),
        }
    }

    /// Notes that the probe is under way.
    pub fn begin_probe(&mut self) {
        self.is_probing = true;
    }

    /// A call that began at `started` worked. False when that is no news: others failed since it began,
    /// and their waits hold.
    pub fn succeed(&mut self, started: Instant) -> bool {
        if self.is_old(started) {
            return false;
        }
        (self.failures, self.retry_at, self.failed_at) = (0, None, None);
        (self.was_told, self.is_probing) = (false, false);
        true
    }

    /// A call said nothing about the world (a bad text): a probe is over, no more.
    pub fn abstain(&mut self) {
        self.is_probing = false;
    }

    /// A call that began at `started` failed. `jitter` in [0, 1) spreads callers: the wait is ½ to 1 of
    /// its step, or at least what the other side asked for. Calls that were under way together fail
    /// together: they count once. True when this opened the breaker.
    pub fn fail(
        &mut self,
        now: Instant,
        started: Instant,
        jitter: f64,
        told: Option<Duration>,
    ) -> bool {
        if self.is_old(started) {
            if let Some(told) = told {
                self.wait_until(now + told);
                self.was_told = true;
            }
            return false;
        }
        let was_open = self.is_open();
        let step = self
            .first
            .saturating_mul(1 << self.failures.min(20))
            .min(self.longest);
        let wait = step.mul_f64(0.5 + 0.5 * jitter);
        self.failures = self.failures.saturating_add(1);
        self.wait_until(now + wait.max(told.unwrap_or_default()));
        self.was_told = told.is_some();
        self.failed_at = Some(now);
        self.is_probing = false;
        !was_open && self.is_open()
    }

    /// A call was refused in a way that only a person can repair: open at once, with the longest
    /// wait. True when this opened the breaker.
    pub fn refuse(&mut self, now: Instant, jitter: f64) -> bool {
        let was_open = self.is_open();
        self.failures = self.failures.saturating_add(1).max(self.failures_to_open);
        self.wait_until(now + self.longest.mul_f64(0.5 + 0.5 * jitter));
        self.was_told = false;
        self.failed_at = Some(now);
        self.is_probing = false;
        !was_open
    }

    fn is_old(&self, started: Instant) -> bool {
        self.failed_at.is_some_and(|failed| started < failed)
    }

    /// A wait is never made shorter.
    fn wait_until(&mut self, at: Instant) {
        self.retry_at = Some(self.retry_at.map_or(at, |known| known.max(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn three_failures_open_it_and_one_success_closes_it() {
        let start = Instant::now();
        let mut breaker = Breaker::new(3, 100 * MS, 1000 * MS);
        assert_eq!(breaker.admits(start), Admission::Free);
        assert!(!breaker.fail(start, start, 0.0, None) && !breaker.fail(start, start, 0.0, None));
        assert!(!breaker.is_open());
        assert_eq!(
            breaker.admits(start),
            Admission::Wait(100 * MS),
            "half of the second step"
        );
        assert_eq!(breaker.admits(start + 100 * MS), Admission::Free);
        assert!(breaker.fail(start, start, 0.0, None), "the third opens it");
        assert_eq!(breaker.admits(start + 200 * MS), Admission::Probe);
        breaker.begin_probe();
        assert!(
            matches!(breaker.admits(start + 200 * MS), Admission::Wait(_)),
            "one probe only"
        );
        assert!(
            !breaker.fail(start + 200 * MS, start + 200 * MS, 0.0, None),
            "it was open already"
        );
        assert_eq!(breaker.admits(start + 600 * MS), Admission::Probe);
        assert!(breaker.succeed(start + 600 * MS));
        assert_eq!(breaker.admits(start + 600 * MS), Admission::Free);
    }

    #[test]
    fn waits_stop_growing() {
        let start = Instant::now();
        let mut breaker = Breaker::new(3, 100 * MS, 1000 * MS);
        for _ in 0..100 {
            breaker.fail(start, start, 0.999, None);
        }
        assert!(breaker.admits(start + 1000 * MS) == Admission::Probe);
    }

    #[test]
    fn the_other_sides_wish_is_the_least_wait() {
        let start = Instant::now();
        let mut breaker = Breaker::new(3, 100 * MS, 1000 * MS);
        breaker.fail(start, start, 0.0, Some(5000 * MS));
        assert!(!breaker.is_open() && breaker.was_told());
        assert_eq!(breaker.admits(start), Admission::Wait(5000 * MS));
        breaker.succeed(start + 600 * MS);
        assert!(!breaker.was_told());
    }

    #[test]
    fn what_a_person_must_repair_opens_it_at_once() {
        let start = Instant::now();
        let mut breaker = Breaker::new(3, 100 * MS, 1000 * MS);
        assert!(breaker.refuse(start, 0.0) && breaker.is_open());
        assert_eq!(breaker.admits(start), Admission::Wait(500 * MS));
        assert_eq!(breaker.admits(start + 500 * MS), Admission::Probe);
        assert!(!breaker.refuse(start, 0.0), "it was open already");
    }

    #[test]
    fn calls_that_were_under_way_together_count_once_and_undo_nothing() {
        let start = Instant::now();
        let mut breaker = Breaker::new(3, 100 * MS, 1000 * MS);
        let failed = start + 50 * MS;
        breaker.fail(failed, start, 0.0, Some(5000 * MS));
        for n in 0..3 {
            let began = start + n * MS;
            assert!(
                !breaker.fail(failed + MS, began, 0.0, None),
                "no row of failures"
            );
            assert!(!breaker.succeed(began), "no news");
        }
        assert!(!breaker.is_open() && breaker.was_told());
        assert_eq!(breaker.admits(failed), Admission::Wait(5000 * MS));
        breaker.fail(failed, start, 0.0, Some(7000 * MS));
        assert_eq!(
            breaker.admits(failed),
            Admission::Wait(7000 * MS),
            "the longer wish"
        );
        assert!(breaker.succeed(failed));
        assert_eq!(breaker.admits(failed), Admission::Free);
    }
}
