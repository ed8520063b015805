//! `headwater check PIPELINE.sql`: the plan to stdout, all errors to stderr, exit code 2 if any.

use std::path::PathBuf;
use std::process::ExitCode;

use super::InputError;
use super::output::{Output, problem_text};
use crate::app;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pipeline
    pipeline: PathBuf,
}

pub(crate) fn check(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    if !args.pipeline.is_file() {
        let message = format!("there is no file {}", args.pipeline.display());
        return Err(InputError::new(message).into());
    }
    let report = app::check(&args.pipeline)?;
    if output.is_json {
        output.json(&report)?;
    } else {
        output.line(&report.plan)?;
        for problem in &report.problems {
            output.note(&format!(
                "{}: {}",
                args.pipeline.display(),
                problem_text(problem)
            ));
        }
    }
    Ok(ExitCode::from(if report.problems.is_empty() {
        0
    } else {
        2
    }))
}
