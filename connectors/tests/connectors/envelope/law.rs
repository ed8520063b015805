//! The envelope law: generated histories of random tables, sent as Debezium sends them, against the
//! tables themselves.
//!
//! At random pauses (everything sent has been read) and at the end the rows equal the naive table,
//! no row waits, and there is no letter: see [`super::history`]. `HEADWATER_SEED` repeats a failure,
//! `HEADWATER_EVENTS` runs longer.

use super::history::{Choices, run};
use crate::dice::Dice;

const EVENTS: usize = 100_000;
/// Of one history.
const HISTORY_EVENTS: usize = 1_500;

#[test]
fn rows_equal_the_source_after_any_history() {
    let variable = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let first = variable("HEADWATER_SEED").unwrap_or(20_261_121);
    let events = variable("HEADWATER_EVENTS").map_or(EVENTS, |events| events as usize);
    println!("seed {first}");
    let (mut read, mut seed) = (0, first);
    while read < events {
        let choices = Choices {
            source: Dice::seeded(seed),
            schedule: Dice::seeded(seed ^ 0x5eed),
            broker: Dice::seeded(seed ^ 0xb20c),
        };
        read += run(choices, HISTORY_EVENTS, &format!("seed {seed}"));
        seed += 1;
    }
    println!("{read} events of {} tables", seed - first);
}
