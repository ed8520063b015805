//! Readers of the outside world: each turns it to keyed rows and hands them to the engine's sink.
//!
//! ```text
//! files, generate, git, kafka ─ SourceBatch ─▶ engine::contract::LaneSink   (a thread of its own each)
//! HTTP push line  ─ push::decode ─▶ key, row, version                  (pure; the server stages them)
//! rows ─ sink::encode ─▶ messages ─ sink ─▶ transactions                (asks the engine's ChangeFeed)
//! message ─ format ─▶ nodes ─ envelope ─▶ row changes ─ envelope::table ─▶ rows          (pure)
//! ```
//!
//! Invariants: bad data becomes a dead letter and stops nothing; a failing world is retried; a
//! source can be stopped within a second. Nothing here knows the engine's time.

pub mod arroyo;
mod document;
pub mod envelope;
pub mod files;
pub mod format;
pub mod generate;
pub mod git;
pub mod kafka;
mod key;
mod live;
pub mod postgres;
pub mod push;
pub mod sink;
mod text;

use engine::contract::Source;
use engine::error::WorldError;

/// A folder (or one file) that is read and watched, its documents and archives taken apart. A missing
/// folder is not an error: it is waited for. Errors: a pattern that is no glob.
pub fn files(path: &str, pattern: &str) -> Result<Box<dyn Source>, WorldError> {
    Ok(Box::new(files::FilesSource::new(path, pattern)?))
}

/// Rows and vectors from a seed.
pub fn generate(rows: u64, rate: u64, seed: u64, dimensions: Option<u32>) -> Box<dyn Source> {
    Box::new(generate::GenerateSource::new(rows, rate, seed, dimensions))
}
