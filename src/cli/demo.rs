//! `headwater demo`: the main job on real documents, each step with what was seen and how long it
//! took; then a server to play with until Ctrl-C. `--once` ends by itself: 0 if every step was
//! observed, 1 otherwise.

use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::output::{Output, one_line, shorten};
use super::run::Signals;
use super::{Models, model};
use crate::app::{self, DEFAULT_MODEL, RunOptions, RunningServer};
use crate::client::Client;
use crate::demo::sample::{Sample, SampleOptions, gather};
use crate::demo::steps::{self, Seen};
use crate::demo::{INDEX, pipeline};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ends after the last step; exit code 0 only if every step was observed
    #[arg(long)]
    once: bool,
    /// Takes all documents found, not just 300 kB
    #[arg(long)]
    all: bool,
    /// Documents of this folder instead of the cargo registry; they are copied, never written
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Address [default: 127.0.0.1:7654, or any free port if that is taken]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Dataflow workers [default: cores − 1, at least 1]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    #[command(flatten)]
    models: Models,
}

pub(crate) fn demo(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let sample = gather(&SampleOptions {
        path: args.path.clone(),
        all: args.all,
    })?;
    output.note(&sample.summary());
    let started = Instant::now();
    let report = model::pull(DEFAULT_MODEL, args.models.models.as_deref())?;
    let how = if report.was_present {
        "was here already"
    } else {
        "fetched"
    };
    show(
        output,
        &Seen {
            step: "model",
            detail: format!(
                "{DEFAULT_MODEL} {how}: {} MB in {}",
                report.bytes / 1_000_000,
                report.folder.display()
            ),
            took_ms: started.elapsed().as_secs_f64() * 1_000.0,
        },
    )?;
    let work = tempfile::Builder::new()
        .prefix("headwater-demo-data-")
        .tempdir()?;
    let server = start(&args, &sample, work.path())?;
    let url = format!("http://{}", server.addr);
    let observed = observe(&Client::new(&url), &sample, output);
    let code = match (&observed, args.once) {
        (Ok(question), false) => {
            output.note(&ways_to_ask(&url, question, &sample));
            runtime.block_on(async { anyhow::Ok(Signals::new()?.first().await) })?;
            ExitCode::SUCCESS
        }
        (Ok(_), true) => ExitCode::SUCCESS,
        (Err(_), _) => ExitCode::FAILURE,
    };
    (server.stop)()?;
    if let Err(error) = observed {
        // Whatever it was, a step was not observed: that is 1, never 2.
        output.error(&anyhow::anyhow!("{error:#}"));
    }
    Ok(code)
}

fn start(args: &Args, sample: &Sample, work: &std::path::Path) -> anyhow::Result<RunningServer> {
    let file = work.join("demo.sql");
    std::fs::write(&file, pipeline(sample.root(), DEFAULT_MODEL))?;
    let threads = app::Threads::default();
    app::start(RunOptions {
        pipeline: Some(file),
        data: work.join("data"),
        listen: args.listen.unwrap_or_else(free_address),
        workers: args.workers.unwrap_or(threads.workers).max(1),
        embed_threads: threads.embed,
        models: args.models.models.clone(),
        replace: false,
        prune: false,
        insecure: false,
        process: 0,
        hosts: None,
    })
}

/// The usual port if nobody has it.
fn free_address() -> SocketAddr {
    let usual = SocketAddr::from(([127, 0, 0, 1], 7654));
    match TcpListener::bind(usual) {
        Ok(_) => usual,
        Err(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
    }
}

fn observe(client: &Client, sample: &Sample, output: &Output) -> anyhow::Result<String> {
    let spinner = if std::io::stderr().is_terminal() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    spinner.set_style(ProgressStyle::with_template("{spinner} {msg}")?);
    let mut broken = None;
    let question = steps::run(
        client,
        sample,
        &mut |seen| {
            let shown = spinner.suspend(|| show(output, seen));
            broken = broken.take().or(shown.err());
        },
        &mut |text| {
            spinner.set_message(shorten(&one_line(text), 120));
            spinner.tick();
        },
    );
    spinner.finish_and_clear();
    match broken {
        Some(error) => Err(error),
        None => question,
    }
}

fn show(output: &Output, seen: &Seen) -> anyhow::Result<()> {
    if output.is_json {
        return output.json(&json!({
            "step": seen.step, "observed": true, "detail": seen.detail, "took_ms": seen.took_ms,
        }));
    }
    let mut lines = seen.detail.lines();
    let first = one_line(lines.next().unwrap_or_default());
    let took = match seen.took_ms {
        ms if ms >= 1_000.0 => format!("{:.1} s", ms / 1_000.0),
        ms => format!("{ms:.1} ms"),
    };
    let (mark, name) = (output.green("✓"), output.bold(seen.step));
    output.line(&format!("{mark} {name}  {}  {first}", output.dim(&took)))?;
    lines.try_for_each(|line| output.line(&output.dim(&format!("    {}", one_line(line)))))
}

fn ways_to_ask(url: &str, question: &str, sample: &Sample) -> String {
    let body = json!({ "index": INDEX, "query": question, "k": 3 })
        .to_string()
        .replace('\'', "'\\''");
    let folder = sample.root().display();
    let sql = format!("SELECT document, score, text FROM search({INDEX}, 'your question', k => 3)");
    format!(
        "\nThe server goes on at {url} (Ctrl-C ends it). Edit the files in {folder} and ask again:\n\n  \
         curl -s {url}/v1/search -H 'content-type: application/json' -d '{body}'\n  \
         headwater search --url {url} {INDEX} 'your question'\n  \
         headwater sql --url {url} -c \"{sql}\"\n  \
         {url}/console in a browser\n"
    )
}
