//! `headwater embed`: one JSON string a line on stdin → `{"tokens":n,"vector":[…]}` a line on stdout.
//!
//! Lines go through the model in batches, yet each reply line is the same alone or in company: vectors
//! are batch-invariant. A line that is no JSON string ends the command with its number, exit code 2.

use std::io::BufRead;
use std::process::ExitCode;

use super::output::Output;
use super::{InputError, Models};
use crate::app;

/// Texts of one batch: enough to feed a model, few enough to answer soon.
const BATCH_TEXTS: usize = 64;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Hub name or folder
    #[arg(long, default_value = app::DEFAULT_MODEL)]
    model: String,
    /// Adds the token ids
    #[arg(long)]
    ids: bool,
    #[command(flatten)]
    models: Models,
}

pub(crate) fn embed(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    let mut embed = app::embedder(&args.model, args.models.models.as_deref(), args.ids)?;
    let mut batch = Vec::with_capacity(BATCH_TEXTS);
    let mut flush = |batch: &mut Vec<String>| -> anyhow::Result<()> {
        if !batch.is_empty() {
            embed(batch)?
                .iter()
                .try_for_each(|embedded| output.json(embedded))?;
            batch.clear();
        }
        Ok(())
    };
    for (line, number) in std::io::stdin().lock().lines().zip(1u64..) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let text = serde_json::from_str::<String>(&line).map_err(|error| {
            InputError::new(format!("line {number} is no JSON string: {error}"))
                .hint("write each text as one JSON string a line")
        });
        match text {
            Ok(text) => batch.push(text),
            Err(error) => {
                // What came before the bad line is answered.
                flush(&mut batch)?;
                return Err(error.into());
            }
        }
        if batch.len() == BATCH_TEXTS {
            flush(&mut batch)?;
        }
    }
    flush(&mut batch)?;
    Ok(ExitCode::SUCCESS)
}
