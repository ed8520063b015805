//! The composition root: functions that the command line calls, and the only place where all crates
//! meet.
//!
//! Everything here is synchronous and owns its threads; the command line needs no runtime of its own.
//! Wrong input is a [`crate::cli::InputError`] or a [`queries::problem::Problem`] inside the
//! `anyhow::Error`, which become exit code 2; anything else is 1.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use queries::problem::Problem;
use serde::Serialize;

/// The version of everything on disk; `--version` shows it.
pub const FORMAT_VERSION: u32 = 1;

/// The model of the demo and of commands that name none.
pub const DEFAULT_MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The pipeline file; without one the stored catalog is served.
    pub pipeline: Option<PathBuf>,
    /// The data folder, locked while the server runs.
    pub data: PathBuf,
    /// Address to listen on; port 0 is any free one.
    pub listen: SocketAddr,
    /// Dataflow workers of this process.
    pub workers: usize,
    /// The model folder, if it is not the default one.
    pub models: Option<PathBuf>,
    /// Changed definitions replace stored ones.
    pub replace: bool,
    /// Stored definitions that the file lacks are dropped.
    pub prune: bool,
    /// Others than this machine may ask, without credentials.
    pub insecure: bool,
    /// Index of this process among `hosts`.
    pub process: usize,
    /// File with one `host:port` a line, for several processes.
    pub hosts: Option<PathBuf>,
}

/// A server that runs in this process. Dropping it stops it without waiting.
pub struct RunningServer {
    /// Where it listens, port included.
    pub addr: SocketAddr,
    /// Finishes what runs, seals, syncs, returns when all threads have ended.
    pub stop: Box<dyn FnOnce() -> anyhow::Result<()> + Send>,
}

/// Starts engine and front door and returns when the socket answers (`/ready` may still say why it
/// is not).
///
/// # Errors
/// A pipeline that is wrong (exit code 2), a data folder in use, a port in use.
pub fn start(options: RunOptions) -> anyhow::Result<RunningServer> {
    bail!(
        "not wired yet: a server on {} with data in {}",
        options.listen,
        options.data.display()
    )
}

/// What `check` found.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// The plan of every statement that has one, as text.
    pub plan: String,
    /// All mistakes, in the order of the file.
    pub problems: Vec<Problem>,
}

/// Parses, types and plans a pipeline file without running it.
pub fn check(path: &Path) -> anyhow::Result<CheckReport> {
    bail!("not wired yet: check {}", path.display())
}

/// A model on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// Its hub name or folder.
    pub name: String,
    /// Where its files lie.
    pub folder: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// SHA-256 by file name.
    pub sha256: Vec<(String, String)>,
    /// Whether the sums equal pinned ones; `None` where none are pinned.
    pub is_verified: Option<bool>,
    /// Whether it was there before the call.
    pub was_present: bool,
}

/// How far a download is: file, bytes so far, bytes in all if known.
pub type DownloadProgress<'a> = &'a mut dyn FnMut(&str, u64, Option<u64>);

/// Fetches a model's files into the model folder (API §8), resuming what a former call left.
pub fn model_pull(
    name: &str,
    models: Option<&Path>,
    _progress: DownloadProgress<'_>,
) -> anyhow::Result<ModelReport> {
    let folder = models
        .map(|folder| format!(" into {}", folder.display()))
        .unwrap_or_default();
    bail!("not wired yet: fetch {name}{folder}")
}

/// The models in the model folder.
pub fn model_list(_models: Option<&Path>) -> anyhow::Result<Vec<ModelReport>> {
    bail!("not wired yet: list models")
}

/// Reads a model's files again and compares their sums with the pinned ones.
pub fn model_verify(name: &str, _models: Option<&Path>) -> anyhow::Result<ModelReport> {
    bail!("not wired yet: verify {name}")
}

/// One embedded text.
#[derive(Debug, Clone, Serialize)]
pub struct Embedded {
    /// Tokens that the model saw, special ones included.
    pub tokens: usize,
    /// Unit length.
    pub vector: Vec<f32>,
    /// Token ids, special ones included, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<u32>>,
}

/// A batch of texts to vectors, in order.
pub type EmbedTexts = Box<dyn FnMut(&[String]) -> anyhow::Result<Vec<Embedded>>>;

/// Loads a model once for many batches.
pub fn embedder(
    model: &str,
    _models: Option<&Path>,
    _with_ids: bool,
) -> anyhow::Result<EmbedTexts> {
    bail!("not wired yet: embed with {model}")
}

/// One chunk of a text.
#[derive(Debug, Clone, Serialize)]
pub struct ChunkLine {
    /// `c_…`, as it would be for a document with an empty key.
    pub id: String,
    /// Hash of the text that is embedded.
    pub content_hash: String,
    /// Bytes of the input, half open.
    pub range: (u32, u32),
    /// Heading path.
    pub heading: Vec<String>,
    /// The input's bytes at `range`.
    pub text: String,
}

/// Cuts a text by a strategy as `CHUNK BY` writes it, counting tokens as the model does.
pub fn chunk(
    strategy: &str,
    model: Option<&str>,
    _models: Option<&Path>,
    _text: &str,
) -> anyhow::Result<Vec<ChunkLine>> {
    bail!(
        "not wired yet: chunk by {strategy} for {}",
        model.unwrap_or(DEFAULT_MODEL)
    )
}
