//! Wall clocks, injected so that tests own time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::model::Time;

/// Reads the wall clock, microseconds since the epoch. May step backwards; the sequencer does not.
pub trait Clock: Send + Sync {
    /// Now.
    fn now_micros(&self) -> Time;
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_micros(&self) -> Time {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_micros()).unwrap_or(u64::MAX / 2)
            })
    }
}

/// A clock that moves only when told to: for tests of time travel, leases and time-outs.
#[derive(Debug, Clone)]
pub struct VirtualClock(Arc<AtomicU64>);

impl VirtualClock {
    /// Starts at a time.
    pub fn new(micros: Time) -> Self {
        VirtualClock(Arc::new(AtomicU64::new(micros)))
    }

    /// Moves forward.
    pub fn advance(&self, micros: u64) {
        self.0.fetch_add(micros, Ordering::SeqCst);
    }

    /// Jumps anywhere, backwards too: a stepped clock.
    pub fn set(&self, micros: Time) {
        self.0.store(micros, Ordering::SeqCst);
    }
}

impl Clock for VirtualClock {
    fn now_micros(&self) -> Time {
        self.0.load(Ordering::SeqCst)
    }
}

/// How far ahead times are reserved: after a crash none of them gets a second meaning.
pub(super) const RESERVE_MICROS: u64 = 5_000_000;

/// Makes strictly increasing timestamps: `T = max(last + 1, wall clock)` (PROTOCOLS §1.1).
#[derive(Debug, Default)]
pub(super) struct Mint {
    last: Time,
    floor: Time,
    warned: bool,
}

impl Mint {
    /// Never mints at or below `floor` again.
    pub(super) fn raise(&mut self, floor: Time) {
        self.last = self.last.max(floor);
        self.floor = self.last;
    }

    /// The last time minted.
    pub(super) fn last(&self) -> Time {
        self.last
    }

    /// The next time.
    pub(super) fn mint(&mut self, wall: Time) -> Time {
        const LEAD_MICROS_MAX: u64 = 1_000_000;
        self.last = wall.max(self.last + 1);
        // A run that was killed had reserved a few seconds ahead: the clock was not stepped.
        let reserved = match self.last - self.floor < LEAD_MICROS_MAX {
            true => RESERVE_MICROS,
            false => 0,
        };
        let leads = self.last > wall.saturating_add(LEAD_MICROS_MAX + reserved);
        if leads && !self.warned {
            tracing::warn!(
                lead_ms = (self.last - wall) / 1000,
                "engine time leads the wall clock: the clock was stepped back; going on by 1 µs"
            );
        }
        self.warned = leads;
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_a_killed_run_had_reserved_are_no_step_of_the_clock() {
        let wall = 100_000_000;
        let mut mint = Mint::default();
        mint.raise(wall + RESERVE_MICROS);
        assert_eq!(mint.mint(wall), wall + RESERVE_MICROS + 1);
        assert!(!mint.warned);
        mint.mint(wall - 2_000_000);
        assert!(mint.warned);
        mint.mint(wall + 2 * RESERVE_MICROS);
        assert!(!mint.warned);
        mint.mint(wall);
        assert!(mint.warned);
    }

    #[test]
    fn time_increases_whatever_the_clock_does() {
        let mut mint = Mint::default();
        let walls = [10, 10, 5, 0, 20, 19, 3_000_000, 1];
        let times: Vec<Time> = walls.iter().map(|wall| mint.mint(*wall)).collect();
        assert_eq!(times, [10, 11, 12, 13, 20, 21, 3_000_000, 3_000_001]);
    }
}
