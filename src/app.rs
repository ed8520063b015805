//! The composition root: functions that the command line calls, and the only place where all crates
//! meet.
//!
//! Everything here is synchronous and owns its threads; the command line needs no runtime of its own.
//! Wrong input is a [`crate::cli::InputError`] or a [`queries::problem::Problem`] inside the
//! `anyhow::Error`, which become exit code 2; anything else is 1.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use engine::contract::Embedder;
use engine::model::{ChunkId, Key};
use operators::chunk::{Chunker, ChunkingSpec, ModelTokens};
pub use operators::embed::Measured;
use operators::embed::{Kernel, ModelFolder};
use queries::definition::Definition;
use queries::problem::Problem;
use queries::render::chunking;
use queries::service::Service;
use queries::sql::{EmptyCatalog, Planned, Undeclared, explain, plan_text};
use serde::Serialize;

use crate::cli::InputError;
use crate::wiring;

/// The version of everything on disk; `--version` shows it.
pub use engine::durable::frame::FORMAT_VERSION;

/// The model of the demo and of commands that name none.
pub const DEFAULT_MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// Threads that speak HTTP: they parse and wait, workers compute.
const HTTP_THREADS: usize = 2;

/// How the cores are shared out where nobody says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// Dataflow workers: they sleep unless there is something to do, and one core is left to others.
    pub workers: usize,
    /// Threads that embed documents without a GPU. While there is much to embed they are busy all the
    /// time and workers wait for them: half the cores, so that questions find the other half.
    pub embed: usize,
}

impl Default for Threads {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Threads {
            workers: (cores - 1).max(1),
            embed: (cores / 2).max(1),
        }
    }
}

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
    /// Threads on which a model of this machine's cores embeds documents.
    pub embed_threads: usize,
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
    if options.process != 0 || options.hosts.is_some() {
        bail!("several processes are not served yet: leave out --process and --hosts");
    }
    let text = options
        .pipeline
        .as_ref()
        .map(|path| read_pipeline(path))
        .transpose()?;
    refuse_open_address(&options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .thread_name("http")
        .enable_all()
        .build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind(options.listen));
    let listener = listener.map_err(|error| cannot_listen(options.listen, &error))?;
    let addr = listener.local_addr()?;
    let service = Service::start(wiring::wiring(&options)?, runtime.handle().clone())?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let backend = Arc::new(service.clone());
    let server = runtime.spawn(serve::run(
        listener,
        backend,
        shutdown,
        serve::Options {
            insecure: options.insecure,
            ..serve::Options::default()
        },
    ));
    if let Some(text) = text
        && let Err(error) = reconcile(&runtime, &service, &text, &options)
    {
        service.stop();
        return Err(error);
    }
    let stop = Box::new(move || {
        let _ = stop.send(());
        let served = runtime.block_on(async {
            tokio::time::timeout(std::time::Duration::from_secs(10), server).await
        });
        service.stop();
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        match served {
            Ok(Ok(result)) => Ok(result?),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Ok(()),
        }
    });
    Ok(RunningServer { addr, stop })
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
    let text = read_pipeline(path)?;
    let mut report = CheckReport {
        plan: String::new(),
        problems: Vec::new(),
    };
    for planned in plan_text(&text, &Undeclared(crate::wiring::describe_undeclared)) {
        match planned {
            Ok(planned) => {
                report.plan.push_str(&explain(&planned));
                report.plan.push('\n');
            }
            Err(problem) => report.problems.push(problem),
        }
    }
    Ok(report)
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
    progress: DownloadProgress<'_>,
) -> anyhow::Result<ModelReport> {
    let before = operators::embed::find_in(models, name)?;
    let progress = std::cell::RefCell::new(progress);
    let folder = operators::embed::pull_in(models, name, &|at| {
        (*progress.borrow_mut())(&at.what, at.done_bytes, at.total_bytes);
    })?;
    report(&folder, before.is_some())
}

/// The models in the model folder.
pub fn model_list(models: Option<&Path>) -> anyhow::Result<Vec<ModelReport>> {
    let folders = operators::embed::list_of(models)?;
    folders.iter().map(|folder| report(folder, true)).collect()
}

/// Reads a model's files again and compares their sums with the pinned ones.
pub fn model_verify(name: &str, models: Option<&Path>) -> anyhow::Result<ModelReport> {
    match operators::embed::find_in(models, name)? {
        Some(folder) => report(&folder, true),
        None => bail!(
            "model \"{name}\" is not on this machine; `headwater model pull {name}` fetches it"
        ),
    }
}

/// What is known of CUDA devices: a line each, or why none is used. Loads the driver, which a broken
/// installation may not survive or end.
pub fn gpus() -> Vec<String> {
    operators::embed::gpu::report()
}

/// Which ways to compiled kernels a GPU would find here, and what is wrong with each, as far as can be told
/// without one.
pub fn gpu_kernels() -> String {
    operators::embed::gpu::kernels()
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
///
/// `precision` and `device` as `CREATE MODEL` has them.
pub fn embedder(
    model: &str,
    precision: &str,
    device: &str,
    models: Option<&Path>,
    with_ids: bool,
) -> anyhow::Result<EmbedTexts> {
    let folder = operators::embed::pull_in(models, model, &|_| {})?;
    let local = operators::embed::placed(&folder, device, precision)?;
    // As the engine embeds documents.
    let (encoder, prompt) = (local.model, local.prompts.document);
    Ok(Box::new(move |texts| {
        let texts: Vec<String> = texts.iter().map(|text| format!("{prompt}{text}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let vectors = encoder.embed(&texts)?;
        let embedded = texts.iter().zip(vectors).map(|(text, vector)| {
            let ids = encoder.token_ids(text);
            Embedded {
                tokens: ids.len(),
                vector,
                ids: with_ids.then_some(ids),
            }
        });
        Ok(embedded.collect())
    }))
}

/// Measures a model on this documentation, cut as an index cuts it, for about `time`.
pub fn measure(
    model: &str,
    precision: &str,
    device: &str,
    models: Option<&Path>,
    time: Duration,
) -> anyhow::Result<Measured> {
    const PAGES: [&str; 4] = [
        include_str!("../docs/architecture.md"),
        include_str!("../docs/language.md"),
        include_str!("../docs/api.md"),
        include_str!("../docs/sources.md"),
    ];
    let folder = operators::embed::pull_in(models, model, &|_| {})?;
    let mut texts = Vec::new();
    for page in PAGES {
        let chunks = chunk("markdown(max_tokens => 256)", Some(model), models, page)?;
        texts.extend(chunks.into_iter().map(|chunk| chunk.text));
    }
    Ok(operators::embed::measure(
        &folder, precision, device, &texts, time,
    )?)
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
    models: Option<&Path>,
    text: &str,
) -> anyhow::Result<Vec<ChunkLine>> {
    let model = model.unwrap_or(DEFAULT_MODEL);
    let chunking = chunking_of(strategy)?;
    let folder = operators::embed::pull_in(models, model, &|_| {})?;
    let encoder: Arc<dyn Embedder> = operators::embed::local(&folder, Kernel::F32)?.model;
    let chunker = Chunker::new(&chunking, Arc::new(ModelTokens(encoder)));
    let key = Key::text("");
    let pieces = chunker.cut(text);
    let lines = pieces.iter().map(|piece| ChunkLine {
        id: ChunkId::new(
            "",
            &key,
            chunker.strategy(),
            piece.content,
            piece.occurrence,
        )
        .to_string(),
        content_hash: piece.content.to_string(),
        range: piece.range,
        heading: piece.heading.iter().map(ToString::to_string).collect(),
        text: text[piece.range.0 as usize..piece.range.1 as usize].to_owned(),
    });
    Ok(lines.collect())
}

/// Reads a pipeline file.
fn read_pipeline(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .map_err(|error| InputError::new(format!("cannot read {}: {error}", path.display())).into())
}

/// Why there is no server at an address, and what to do.
fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{address} is in use: stop the other server, or choose another address with --listen"
        ),
        _ => anyhow::anyhow!("cannot listen at {address}: {error}"),
    }
}

/// Without credentials only this machine may ask (API §2).
fn refuse_open_address(options: &RunOptions) -> anyhow::Result<()> {
    if options.listen.ip().is_loopback() || options.insecure {
        return Ok(());
    }
    Err(InputError::new(format!(
        "{} can be reached from other machines and no credentials are configured; \
         listen on 127.0.0.1, or pass --insecure",
        options.listen
    ))
    .into())
}

/// Brings the catalog to what a pipeline file says.
fn reconcile(
    runtime: &tokio::runtime::Runtime,
    service: &Service,
    text: &str,
    options: &RunOptions,
) -> anyhow::Result<()> {
    match runtime.block_on(service.reconcile(text, options.replace, options.prune)) {
        Ok(done) => {
            for warning in done.warnings {
                tracing::warn!("{warning}");
            }
            Ok(())
        }
        Err(mut problems) if problems.len() == 1 => Err(problems.remove(0).into()),
        Err(problems) => {
            let mut all = Problem::new(
                422,
                "invalid-pipeline",
                format!("{} statements are wrong", problems.len()),
            );
            all.errors = problems;
            Err(all.into())
        }
    }
}

/// A model's files with their sums.
fn report(folder: &ModelFolder, was_present: bool) -> anyhow::Result<ModelReport> {
    let checked = operators::embed::checked(folder)?;
    let is_pinned = checked.iter().any(|file| file.expected.is_some());
    let mut bytes = 0;
    for file in &checked {
        let path = folder.path.join(&file.file);
        bytes += std::fs::metadata(&path)
            .with_context(|| path.display().to_string())?
            .len();
    }
    Ok(ModelReport {
        name: folder.name.clone(),
        folder: folder.path.clone(),
        bytes,
        is_verified: is_pinned.then(|| checked.iter().all(operators::embed::Checked::is_good)),
        sha256: checked
            .into_iter()
            .map(|file| (file.file, file.sha256))
            .collect(),
        was_present,
    })
}

/// A CHUNK BY clause on its own.
fn chunking_of(strategy: &str) -> anyhow::Result<ChunkingSpec> {
    let text = format!(
        "CREATE SOURCE s FROM PUSH (id TEXT PRIMARY KEY, body TEXT); \
         CREATE MODEL m FROM '{DEFAULT_MODEL}'; \
         CREATE INDEX i ON s USING HYBRID (body) EMBED WITH m CHUNK BY {strategy}"
    );
    let mut problems = Vec::new();
    for planned in plan_text(&text, &EmptyCatalog) {
        match planned {
            Ok(Planned::Create(create)) => {
                if let Definition::Index(index) = &create.definition {
                    return Ok(chunking(index));
                }
            }
            Ok(_) => {}
            Err(problem) => problems.push(problem),
        }
    }
    let mut problem = problems
        .pop()
        .unwrap_or_else(|| Problem::syntax("not a CHUNK BY clause"));
    // Its place is one in the text around the clause.
    problem.position = None;
    Err(problem.into())
}
