//! `headwater model pull|list|verify`: weights in the model folder.

use std::io::IsTerminal;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Models;
use super::output::Output;
use crate::app::{self, ModelReport};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Fetches a model, going on where an earlier call stopped
    Pull {
        /// Hub name
        #[arg(default_value = app::DEFAULT_MODEL)]
        name: String,
        #[command(flatten)]
        models: Models,
    },
    /// Lists the models in the model folder
    List {
        #[command(flatten)]
        models: Models,
    },
    /// Reads a model's files again and compares their checksums
    Verify {
        /// Hub name or folder
        #[arg(default_value = app::DEFAULT_MODEL)]
        name: String,
        #[command(flatten)]
        models: Models,
    },
}

pub(crate) fn model(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Pull { name, models } => {
            let report = pull(&name, models.models.as_deref())?;
            show(&report, output)?;
        }
        Action::List { models } => list(&app::model_list(models.models.as_deref())?, output)?,
        Action::Verify { name, models } => {
            let report = app::model_verify(&name, models.models.as_deref())?;
            show(&report, output)?;
            if report.is_verified == Some(false) {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Fetches with a bar on stderr, if that is a terminal.
pub(crate) fn pull(name: &str, models: Option<&std::path::Path>) -> anyhow::Result<ModelReport> {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::no_length()
    } else {
        ProgressBar::hidden()
    };
    let style = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta}";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("━╸ "));
    let report = app::model_pull(name, models, &mut |file, bytes, total| {
        bar.set_message(file.to_owned());
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(bytes);
    });
    bar.finish_and_clear();
    report
}

fn show(report: &ModelReport, output: &Output) -> anyhow::Result<()> {
    if output.is_json {
        return output.json(report);
    }
    output.line(&format!(
        "{} in {}",
        output.bold(&report.name),
        report.folder.display()
    ))?;
    for (file, sum) in &report.sha256 {
        output.line(&format!("  {sum}  {file}"))?;
    }
    output.line(match report.is_verified {
        Some(true) => "checksums equal the pinned ones",
        Some(false) => "checksums DIFFER from the pinned ones: pull the model again",
        None => "no checksums are pinned for this model",
    })
}

fn list(reports: &[ModelReport], output: &Output) -> anyhow::Result<()> {
    if output.is_json {
        return reports.iter().try_for_each(|report| output.json(report));
    }
    if reports.is_empty() {
        return output.line("no models; `headwater model pull` fetches the default one");
    }
    let heads = ["name", "bytes", "folder"].map(str::to_owned);
    let rows: Vec<_> = reports
        .iter()
        .map(|report| {
            vec![
                json!(report.name),
                json!(report.bytes),
                json!(report.folder),
            ]
        })
        .collect();
    output.line(&output.table(&heads, &rows))
}
