//! `headwater extract-pdf`: the text of a PDF on stdin, as JSON on stdout. The server calls it.
//!
//! Idea: what a hostile file does to its reader ends with this process. It takes its bounds itself, before
//! the first byte is read.

use std::io::{stdin, stdout};
use std::process::ExitCode;

/// Bounds memory and time of this process, where the system can, and leaves no core behind.
#[cfg(unix)]
fn bound() {
    use engine::limits::{EXTRACT_BYTES_MAX, EXTRACT_MS_MAX};
    use rustix::process::{Resource, Rlimit, setrlimit};

    for (resource, most) in [
        (Resource::Data, EXTRACT_BYTES_MAX),
        // Beyond its own clock, for each of several threads.
        (Resource::Cpu, 4 * EXTRACT_MS_MAX / 1_000),
        (Resource::Core, 0),
    ] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        // A system that knows a bound of its own that is lower keeps that.
        let _ = setrlimit(resource, limit);
    }
}

#[cfg(not(unix))]
fn bound() {}

pub(crate) fn extract_pdf() -> anyhow::Result<ExitCode> {
    bound();
    connectors::files::extract_pdf(stdin().lock(), stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}
