//! What is fuzzed: a target is a function of any bytes that panics when a law is broken.
//!
//! ```text
//! libFuzzer (tests/fuzz)  ┐
//! the corpus, in cargo test ┴─▶ run(target, input) ─▶ decoder under test, held against its laws
//! ```
//!
//! The laws beside "it does not panic": two readings are equal; what was read is written and read
//! again the same; a row fits its declared columns and packs; what is made is bounded by what came;
//! a letter is a few sentences; 64 kB take less than a second.
//!
//! An input that begins with the byte 255 is unfolded first ([`unfolded`]): a part of it is
//! repeated, which is how time that grows with the square of the input is found by short inputs.

mod avro;
mod avro_maker;
mod checks;
mod envelope;
mod json;
mod pgoutput;
mod text;

use std::borrow::Cow;
use std::time::{Duration, Instant};

/// Largest input, as it comes and unfolded.
pub const INPUT_BYTES_MAX: usize = 64 << 10;
/// What one input may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// The targets by name.
pub const TARGETS: [(&str, fn(&[u8])); 5] = [
    ("json", json::run),
    ("avro", avro::run),
    ("envelope", envelope::run),
    ("pgoutput", pgoutput::run),
    ("text", text::run),
];

/// Runs a target.
///
/// # Panics
/// When it breaks a law, and when there is no target of the name.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    let (_, target) = target.unwrap_or_else(|| panic!("no target is called {name:?}"));
    let input = unfolded(input);
    let start = Instant::now();
    target(&input);
    if start.elapsed() > PATIENCE {
        // The machine may have done something else: what counts is the thread's own time.
        let start = (own_time(), Instant::now());
        target(&input);
        let took = match (start.0, own_time()) {
            (Some(start), Some(end)) => end - start,
            _ => start.1.elapsed(),
        };
        assert!(took <= PATIENCE, "{} bytes took {took:?}", input.len());
    }
}

/// How long this thread has run, where the system tells (Linux).
fn own_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos = text.split(' ').next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// `255, from, to, …`: what lies between two places of the rest (in 256ths of it) again and again.
fn unfolded(input: &[u8]) -> Cow<'_, [u8]> {
    let input = &input[..input.len().min(INPUT_BYTES_MAX)];
    let [255, from, to, rest @ ..] = input else {
        return Cow::Borrowed(input);
    };
    let place = |part: u8| rest.len() * usize::from(part) / 256;
    let (from, to) = (place(*from.min(to)), place(*from.max(to)));
    let middle = &rest[from..to];
    let times = (INPUT_BYTES_MAX - rest.len()) / middle.len().max(1);
    let mut out = rest[..to].to_vec();
    if !middle.is_empty() {
        out.extend(middle.iter().cycle().take(times * middle.len()));
    }
    out.extend(&rest[to..]);
    Cow::Owned(out)
}
