//! A server on a Java virtual machine: one way to start all of them.
//!
//! Settings are for short lives: the quick compiler only, one thread that collects garbage.

use std::path::Path;
use std::time::Duration;

use super::Place;
use super::process::{Launch, Process};
use super::system;

/// Starts one in its place and waits until it is ready; it has `memory` of heap (`512m`).
///
/// # Panics
/// With the end of its log, when it does not come up within `limit`.
pub fn launch(
    name: &str,
    place: &Place,
    memory: &str,
    arguments: &[&str],
    limit: Duration,
    is_ready: impl FnMut() -> bool,
) -> Process {
    let heap = format!("-Xmx{memory}");
    let settings = [&heap, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
    let all = settings.iter().chain(arguments);
    let launched = Process::start(Launch {
        name,
        program: Path::new(&system::java()),
        arguments: all.map(|one| (*one).to_owned()).collect(),
        folder: &place.data,
        log: place.log.clone(),
        user: None,
        signal: "KILL",
    });
    launched
        .and_then(|mut process| {
            process.wait_ready(limit, is_ready)?;
            Ok(process)
        })
        .unwrap_or_else(|error| panic!("{error}"))
}
