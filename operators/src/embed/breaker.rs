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

    /// A call worked. True when this closed an open breaker.
    pub fn succeed(&mut self) -> bool {
        let was_open = self.is_open();
        (self.failures, self.retry_at, self.is_probing) = (0, None, false);
        self.was_told = false;
        was_open
    }

    /// A call said nothing about the world (a bad text): a probe is over, no more.
    pub fn abstain(&mut self) {
        self.is_probing = false;
    }

    /// A call failed. `jitter` in [0, 1) spreads callers: the wait is ½ to 1 of its step, or at least
    /// what the other side asked for. True when this opened the breaker.
    pub fn fail(&mut self, now: Instant, jitter: f64, told: Option<Duration>) -> bool {
        let was_open = self.is_open();
        let step = self
            .first
            .saturating_mul(1 << self.failures.min(20))
            .min(self.longest);
        let wait = step.mul_f64(0.5 + 0.5 * jitter);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + wait.max(told.unwrap_or_default()));
        self.was_told = told.is_some();
        self.is_probing = false;
        !was_open && self.is_open()
    }

    /// A call was refused in a way that only a person can repair: open at once, with the longest
    /// wait. True when this opened the breaker.
    pub fn refuse(&mut self, now: Instant, jitter: f64) -> bool {
        let was_open = self.is_open();
        self.failures = self.failures.saturating_add(1).max(self.failures_to_open);
        self.retry_at = Some(now + self.longest.mul_f64(0.5 + 0.5 * jitter));
        self.was_told = false;
        self.is_probing = false;
        !was_open
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
        assert!(!breaker.fail(start, 0.0, None) && !breaker.fail(start, 0.0, None));
        assert!(!breaker.is_open());
        assert_eq!(
            breaker.admits(start),
            Admission::Wait(100 * MS),
            "half of the second step"
        );
        assert_eq!(breaker.admits(start + 100 * MS), Admission::Free);
        assert!(breaker.fail(start, 0.0, None), "the third opens it");
        assert_eq!(breaker.admits(start + 200 * MS), Admission::Probe);
        breaker.begin_probe();
        assert!(
            matches!(breaker.admits(start + 200 * MS), Admission::Wait(_)),
            "one probe only"
        );
        assert!(
            !breaker.fail(start + 200 * MS, 0.0, None),
            "it was open already"
        );
        assert_eq!(breaker.admits(start + 600 * MS), Admission::Probe);
        assert!(breaker.succeed());
        assert_eq!(breaker.admits(start + 600 * MS), Admission::Free);
    }

    #[test]
    fn waits_stop_growing() {
        let start = Instant::now();
        let mut breaker = Breaker::new(3, 100 * MS, 1000 * MS);
        for _ in 0..100 {
            breaker.fail(start, 0.999, None);
        }
        assert!(breaker.admits(start + 1000 * MS) == Admission::Probe);
    }

    #[test]
    fn the_other_sides_wish_is_the_least_wait() {
        let start = Instant::now();
        let mut breaker = Breaker::new(3, 100 * MS, 1000 * MS);
        breaker.fail(start, 0.0, Some(5000 * MS));
        assert!(!breaker.is_open() && breaker.was_told());
        assert_eq!(breaker.admits(start), Admission::Wait(5000 * MS));
        breaker.succeed();
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
}
