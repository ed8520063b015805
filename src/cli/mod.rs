//! The command line: one file per subcommand.
//!
//! Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 the input is
//! wrong, 130 interrupted. `--json` makes results (and errors) one JSON value a line.

mod check;
mod chunk;
mod config;
mod demo;
mod dlq;
mod doctor;
mod embed;
mod extract;
mod model;
mod output;
mod run;
mod search;
mod sql;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{Parser, Subcommand};
use queries::problem::Problem;

use crate::app::FORMAT_VERSION;
use crate::client::{Client, DEFAULT_URL};
use output::Output;

/// The input is wrong: exit code 2. Says what, what was expected, and a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputError {
    /// What is wrong and where.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl InputError {
    /// An input error without a hint.
    pub fn new(message: impl Into<String>) -> InputError {
        InputError {
            message: message.into(),
            hint: None,
        }
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> InputError {
        self.hint = Some(hint.into());
        self
    }
}

impl std::fmt::Display for InputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        self.hint
            .iter()
            .try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

impl std::error::Error for InputError {}

/// Change events in, answers that are true now out.
#[derive(Debug, Parser)]
#[command(name = "headwater", version = version(), propagate_version = true)]
struct Cli {
    /// Results as JSON, one value a line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows the main job on real documents of this machine, step by step
    Demo(demo::Args),
    /// Runs a pipeline, or the stored one
    Run(run::Args),
    /// Parses, types and plans a pipeline; prints the plan and all errors
    Check(check::Args),
    /// Statements against a running server; a prompt without -c
    Sql(sql::Args),
    /// Asks an index of a running server
    Search(search::Args),
    /// Model weights: fetch, list, verify
    Model(model::Args),
    /// Texts to vectors: one JSON string a line on stdin
    Embed(embed::Args),
    /// A text to chunks: text on stdin, one chunk a line as JSON
    Chunk(chunk::Args),
    /// Dead letters of a running server
    Dlq(dlq::Args),
    /// The text of a PDF on stdin, for the server itself
    #[command(name = connectors::files::EXTRACT_PDF, hide = true)]
    ExtractPdf,
    /// What this machine has, and what the engine will use and why
    Doctor(doctor::Args),
}

/// Which server a client command asks.
#[derive(Debug, Clone, clap::Args)]
struct Server {
    /// The running server
    #[arg(long, env = "HEADWATER_URL", default_value = DEFAULT_URL)]
    url: String,
}

impl Server {
    fn client(&self) -> Client {
        Client::new(&self.url)
    }
}

/// Where model weights lie.
#[derive(Debug, Clone, clap::Args)]
struct Models {
    /// The model folder [default: in the user's data folder]
    #[arg(long, env = "HEADWATER_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
}

fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(version_text);
    &VERSION
}

fn version_text() -> String {
    let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("HEADWATER_COMMIT"));
    format!("{version} (commit {commit}, format {FORMAT_VERSION})")
}

/// Parses the arguments, runs the command, prints what went wrong.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are printed by the same way and are no mistake.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let output = Output::of_terminal(cli.json);
    let done = match cli.command {
        Command::Demo(args) => demo::demo(args, &output),
        Command::Run(args) => run::run(args, &output),
        Command::Check(args) => check::check(args, &output),
        Command::Sql(args) => sql::sql(args, &output),
        Command::Search(args) => search::search(args, &output),
        Command::Model(args) => model::model(args, &output),
        Command::Embed(args) => embed::embed(args, &output),
        Command::Chunk(args) => chunk::chunk(args, &output),
        Command::Dlq(args) => dlq::dlq(args, &output),
        Command::ExtractPdf => extract::extract_pdf(),
        Command::Doctor(args) => doctor::doctor(args, &output),
    };
    match done {
        Ok(code) => code,
        // Whoever read our output has seen enough: `headwater … | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// 2 where the caller can do better, 1 where the world failed.
fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<InputError>().is_some() {
        return 2;
    }
    match error.downcast_ref::<Problem>() {
        Some(problem) if matches!(problem.status, 400 | 404 | 405 | 413 | 415 | 422) => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exit_codes_tell_input_from_world() {
        assert_eq!(exit_code(&InputError::new("x").into()), 2);
        assert_eq!(exit_code(&Problem::syntax("x").into()), 2);
        assert_eq!(exit_code(&Problem::new(503, "not-ready", "x").into()), 1);
        assert_eq!(exit_code(&anyhow::anyhow!("disk full")), 1);
    }

    #[test]
    fn the_version_names_commit_and_format() {
        let version = version();
        assert!(
            version.contains("commit ") && version.contains(&format!("format {FORMAT_VERSION}")),
            "{version}"
        );
    }
}
