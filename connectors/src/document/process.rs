//! The text of a PDF, taken out by a process of its own.
//!
//! ```text
//! source ─ stdin: the file ─▶ this program once more, `extract-pdf` ─ stdout: JSON ─▶ text, or why not
//!    └── killed after the time, or when the source stops    └── memory bounded by the system
//! ```
//!
//! Idea: a small PDF can ask its reader for any amount of memory, time and stack, and nothing can end a
//! thread from outside. A process can be ended, and the system bounds what it takes: what a hostile file
//! does to it is a dead letter. The program is named by whoever wires the engine; tests of the connectors
//! read in their own process.
//!
//! Invariants: no process is left behind, also when this one is killed: it ends by its own clock. Ctrl-C
//! does not reach it, or a stop would look like a broken file.
//!
//! Limits: memory is bounded where the system has `setrlimit` for data (Linux). In this process
//! ([`Extractor::in_process`]) only the time and the text are bounded, not the memory.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use engine::limits::{DOCUMENT_BYTES_MAX, EXTRACT_BYTES_MAX, EXTRACT_MS_MAX, TEXT_BYTES_MAX};

use super::guard::{self, Clock, Guarded};
use super::{fits, pdf};
use crate::text::BadFile;

/// The subcommand that a program given to [`Extractor::program`] must have.
pub const EXTRACT_PDF: &str = "extract-pdf";

/// How often a stop is looked for.
const STEP: Duration = Duration::from_millis(20);
/// Beyond its own clock, until a process is killed.
const GRACE: Duration = Duration::from_secs(2);
/// A reply: each byte of a text is at most six in JSON.
const REPLY_BYTES_MAX: u64 = 6 * TEXT_BYTES_MAX as u64 + 1_024;
/// The kind of file, for errors.
const FORMAT: &str = "PDF";

/// How the text of documents is taken out.
#[derive(Debug, Clone)]
pub struct Extractor {
    program: Option<PathBuf>,
    limit: Duration,
}

impl Extractor {
    /// In this process, on threads: for tests. Memory is not bounded.
    pub fn in_process() -> Extractor {
        Extractor {
            program: None,
            limit: Duration::from_millis(EXTRACT_MS_MAX),
        }
    }

    /// PDFs by processes of this program, whose subcommand [`EXTRACT_PDF`] calls [`extract_pdf`].
    pub fn program(program: PathBuf) -> Extractor {
        Extractor {
            program: Some(program),
            ..Extractor::in_process()
        }
    }

    /// With another limit of time than [`EXTRACT_MS_MAX`], for tests.
    pub fn within(self, limit: Duration) -> Extractor {
        Extractor { limit, ..self }
    }

    /// The limit of time.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// The text of a PDF.
    pub(super) fn pdf(
        &self,
        content: Vec<u8>,
        stop: &Arc<AtomicBool>,
    ) -> Guarded<Result<String, BadFile>> {
        match &self.program {
            Some(program) => match Running::start(program, content) {
                Ok(running) => running.reply(self.limit + GRACE, stop),
                Err(error) => {
                    tracing::warn!(%error, "a process that reads a PDF cannot be started");
                    Guarded::Busy
                }
            },
            None => here(content, self.limit, stop),
        }
    }
}

/// Reads a PDF in this process.
fn here(
    content: Vec<u8>,
    limit: Duration,
    stop: &Arc<AtomicBool>,
) -> Guarded<Result<String, BadFile>> {
    guard::run(FORMAT, limit, stop, move |clock: &Clock| {
        pdf::text(&content, clock).and_then(fits)
    })
}

/// The work of the process: a PDF from `input`, its text or what is wrong with it to `output`, as JSON.
///
/// Errors: those of reading and writing.
pub fn extract_pdf(input: impl Read, mut output: impl Write) -> std::io::Result<()> {
    let mut content = Vec::new();
    let mut input = input.take(DOCUMENT_BYTES_MAX as u64 + 1);
    input.read_to_end(&mut content)?;
    let limit = Duration::from_millis(EXTRACT_MS_MAX);
    let Guarded::Done(found) = here(content, limit, &Arc::default()) else {
        return Err(std::io::Error::other("no thread could be started"));
    };
    serde_json::to_writer(&mut output, &found)?;
    output.flush()
}

/// A process at work; killed when dropped.
struct Running {
    child: Child,
    reply: std::sync::mpsc::Receiver<Vec<u8>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(program: &PathBuf, content: Vec<u8>) -> std::io::Result<Running> {
        let mut command = Command::new(program);
        command
            .arg(EXTRACT_PDF)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // The allocator takes what it needs, not a GiB ahead: what it holds is bounded.
            .env("MIMALLOC_ARENA_EAGER_COMMIT", "0");
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let (send, reply) = sync_channel(1);
        let mut running = Running {
            child: command.spawn()?,
            reply,
        };
        let pipes = (running.child.stdin.take(), running.child.stdout.take());
        let (Some(mut stdin), Some(stdout)) = pipes else {
            return Err(std::io::Error::other("it has no pipes"));
        };
        let thread = || std::thread::Builder::new().name("extract".to_owned());
        // Both threads end when the process does: then its pipes are closed.
        thread().spawn(move || drop(stdin.write_all(&content)))?;
        thread().spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.take(REPLY_BYTES_MAX).read_to_end(&mut bytes);
            let _ = send.send(bytes);
        })?;
        Ok(running)
    }

    fn reply(
        mut self,
        limit: Duration,
        stop: &Arc<AtomicBool>,
    ) -> Guarded<Result<String, BadFile>> {
        let until = Instant::now() + limit;
        let reply = loop {
            match self.reply.recv_timeout(STEP) {
                Ok(reply) => break reply,
                Err(RecvTimeoutError::Disconnected) => break Vec::new(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if stop.load(Ordering::Relaxed) {
                return Guarded::Stopped;
            }
            if Instant::now() >= until {
                return Guarded::Done(Err(BadFile::TooSlow));
            }
        };
        if let Ok(found) = serde_json::from_slice(&reply) {
            return Guarded::Done(found);
        }
        let status = self.child.wait();
        match status {
            // The system was short of memory, or somebody meant it: nothing is wrong with the file.
            Ok(status) if is_killed(status) => Guarded::Busy,
            Err(_) => Guarded::Busy,
            Ok(_) => Guarded::Done(Err(BadFile::Broken {
                format: FORMAT.into(),
                reason: format!(
                    "its reader failed on it, or needs more than {EXTRACT_BYTES_MAX} bytes of \
                     memory (EXTRACT_BYTES_MAX)"
                ),
            })),
        }
    }
}

#[cfg(unix)]
fn is_killed(status: ExitStatus) -> bool {
    const KILL: i32 = 9;
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(KILL)
}

#[cfg(not(unix))]
fn is_killed(_status: ExitStatus) -> bool {
    false
}
