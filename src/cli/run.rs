//! `headwater run [PIPELINE.sql]`: a server until a signal.
//!
//! SIGTERM and Ctrl-C finish what runs and seal; the first exits 0, the second 130. A second signal
//! does not wait.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use super::InputError;
use super::config::{Layers, Shown};
use super::output::Output;
use crate::app::{self, RunOptions};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pipeline; without one the stored catalog is served
    pipeline: Option<PathBuf>,
    /// Data folder [default: ./headwater-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Address; port 0 is any free one [default: 127.0.0.1:7654]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Dataflow workers [default: cores − 1, at least 1]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Threads that embed documents where no GPU does [default: cores / 2, at least 1]
    #[arg(long, value_name = "N")]
    embed_threads: Option<usize>,
    /// Model folder [default: in the user's data folder]
    #[arg(long, value_name = "DIR")]
    models: Option<String>,
    /// Index of this process in the hosts file
    #[arg(long, value_name = "I", requires = "hosts")]
    process: Option<usize>,
    /// File with one host:port a line, for several processes
    #[arg(long, value_name = "FILE", requires = "process")]
    hosts: Option<PathBuf>,
    /// Changed definitions replace stored ones
    #[arg(long, requires = "pipeline")]
    replace: bool,
    /// Stored definitions that the pipeline lacks are dropped
    #[arg(long, requires = "pipeline")]
    prune: bool,
    /// Lets others than this machine ask, without credentials
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure: Option<bool>,
    /// What is logged: info, debug, headwater=trace, … [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Settings [default: headwater.toml, if it exists]
    #[arg(long, env = "HEADWATER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prints each setting with its origin, and ends
    #[arg(long)]
    print_config: bool,
}

/// What the layers came to.
#[derive(Debug)]
struct Settings {
    options: RunOptions,
    log: String,
    log_format: String,
    shown: Vec<Shown>,
}

pub(crate) fn run(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    let settings = settings(&args, &|name| std::env::var(name).ok())?;
    if args.print_config {
        return print(&settings.shown, output);
    }
    start_log(&settings.log, &settings.log_format)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Signals count from here on: one that comes while the server starts must not be lost.
    let signals = runtime.block_on(async { Signals::new() })?;
    let server = app::start(settings.options)?;
    if output.is_json {
        output.json(&json!({ "listening": server.addr.to_string() }))?;
    } else {
        output.line(&format!("listening on http://{}", server.addr))?;
    }
    let code = runtime.block_on(signals.first());
    output.note("stopping: finishing what runs (again to stop at once)");
    let stop = std::thread::spawn(server.stop);
    while !stop.is_finished() {
        let tick = std::time::Duration::from_millis(20);
        let again = runtime.block_on(async { tokio::time::timeout(tick, signals_again()).await });
        if again.is_ok() {
            return Ok(ExitCode::from(130));
        }
    }
    stop.join()
        .map_err(|_| anyhow::anyhow!("the server's stop hit a defect"))??;
    Ok(ExitCode::from(code))
}

/// The two ways of being told to stop.
pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    pub(crate) fn new() -> anyhow::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Signals {
            terminate: signal(terminate)?,
            interrupt: signal(interrupt)?,
        })
    }

    #[cfg(not(unix))]
    pub(crate) fn new() -> anyhow::Result<Signals> {
        Ok(Signals {})
    }

    /// Waits for the first signal; the exit code that it asks for.
    #[cfg(unix)]
    pub(crate) async fn first(mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 0,
            _ = self.interrupt.recv() => 130,
        }
    }

    #[cfg(not(unix))]
    pub(crate) async fn first(self) -> u8 {
        // Without a console there is nothing to wait for; ending is the safe answer.
        let _ = tokio::signal::ctrl_c().await;
        130
    }
}

async fn signals_again() {
    match Signals::new() {
        Ok(signals) => drop(signals.first().await),
        Err(_) => std::future::pending().await,
    }
}

fn settings(
    args: &Args,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, InputError> {
    let mut layers = Layers::read(args.config.as_deref(), variable)?;
    let threads = app::Threads::default();
    let data = layers.pick("data", args.data.clone(), "./headwater-data".to_owned())?;
    let default = SocketAddr::from(([127, 0, 0, 1], 7654));
    let listen: SocketAddr = layers.pick("listen", args.listen, default)?;
    let workers = layers.pick("workers", args.workers, threads.workers)?;
    let embed_threads = layers.pick("embed-threads", args.embed_threads, threads.embed)?;
    let models = layers.pick_optional("models", args.models.clone(), None)?;
    let insecure = layers.pick("insecure", args.insecure, false)?;
    let log = layers.pick("log", args.log.clone(), "info".to_owned())?;
    let log_format = layers.pick("log-format", args.log_format.clone(), "text".to_owned())?;
    let shown = layers.finish()?;
    if workers == 0 {
        return Err(InputError::new("workers = 0: a server needs at least 1"));
    }
    if embed_threads == 0 {
        return Err(InputError::new(
            "embed_threads = 0: a model needs at least 1",
        ));
    }
    if !listen.ip().is_loopback() && !insecure {
        let message =
            format!("{listen} can be reached by others, and no credentials are configured");
        return Err(InputError::new(message).hint(
            "listen on 127.0.0.1, or say --insecure if others may read and write everything",
        ));
    }
    let options = RunOptions {
        pipeline: args.pipeline.clone(),
        data: data.into(),
        listen,
        workers,
        embed_threads,
        models: models.map(PathBuf::from),
        replace: args.replace,
        prune: args.prune,
        insecure,
        process: args.process.unwrap_or(0),
        hosts: args.hosts.clone(),
    };
    Ok(Settings {
        options,
        log,
        log_format,
        shown,
    })
}

fn print(shown: &[Shown], output: &Output) -> anyhow::Result<ExitCode> {
    for setting in shown {
        let (name, origin) = (setting.name.replace('-', "_"), setting.origin.to_string());
        match (output.is_json, &*setting.value) {
            (true, value) => {
                output.json(&json!({ "name": name, "value": value, "origin": origin }))?;
            }
            (false, "") => output.line(&format!("# {name} is not set  # {origin}"))?,
            (false, value) => {
                let value = toml::Value::String(value.to_owned());
                output.line(&format!("{name} = {value}  # {origin}"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Logs go to stderr: stdout belongs to results. Who asks for more than `info` is also told how long each
/// span took.
fn start_log(filter: &str, format: &str) -> anyhow::Result<()> {
    // What the reader of PDF warns of is whole fonts; what it cannot read is a dead letter.
    let directives = match filter.contains("lopdf") {
        true => filter.to_owned(),
        false => format!("{filter},lopdf=off"),
    };
    let filter: tracing_subscriber::EnvFilter = directives
        .parse()
        .map_err(|error| InputError::new(format!("log = {filter}: {error}")))?;
    let spans = match filter.max_level_hint() {
        Some(level) if level <= LevelFilter::INFO => FmtSpan::NONE,
        _ => FmtSpan::CLOSE,
    };
    let log = tracing_subscriber::fmt()
        .with_span_events(spans)
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match format {
        "json" => log.json().try_init(),
        "text" => log
            .with_ansi(std::env::var_os("NO_COLOR").is_none())
            .try_init(),
        other => {
            let message = format!("log_format = {other} is unknown");
            return Err(InputError::new(message).hint("text or json").into());
        }
    };
    started
        .map_err(|error| anyhow::anyhow!(error))
        .context("the log cannot be started")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Whole {
        #[command(flatten)]
        args: Args,
    }

    fn of(
        words: &[&str],
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Settings, InputError> {
        let words = std::iter::once("run").chain(words.iter().copied());
        settings(
            &Whole::try_parse_from(words)
                .unwrap_or_else(|e| panic!("{e}"))
                .args,
            variable,
        )
    }

    #[test]
    fn without_credentials_only_this_machine_may_ask() {
        let none = |_: &str| None;
        let error = of(&["--listen", "0.0.0.0:7654"], &none).unwrap_err();
        assert!(
            error
                .message
                .starts_with("0.0.0.0:7654 can be reached by others"),
            "{error}"
        );
        assert!(of(&["--listen", "0.0.0.0:7654", "--insecure"], &none).is_ok());
        let variable = |name: &str| (name == "HEADWATER_INSECURE").then(|| "true".to_owned());
        assert!(of(&["--listen", "0.0.0.0:7654"], &variable).is_ok());
        assert!(of(&[], &none).is_ok_and(|settings| settings.options.workers >= 1));
    }

    #[test]
    fn mistakes_are_input_errors() {
        let none = |_: &str| None;
        assert!(of(&["--workers", "0"], &none).is_err());
        assert!(of(&["--embed-threads", "0"], &none).is_err());
        let variable = |name: &str| (name == "HEADWATER_LISTEN").then(|| "here".to_owned());
        let error = of(&[], &variable).unwrap_err();
        assert!(
            error.message.starts_with("HEADWATER_LISTEN = here: "),
            "{error}"
        );
    }
}
