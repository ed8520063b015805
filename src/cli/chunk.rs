//! `headwater chunk --strategy '…'`: a text on stdin → one chunk a line as JSON.

use std::io::Read;
use std::process::ExitCode;

use super::output::Output;
use super::{InputError, Models};
use crate::app;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// As after CHUNK BY: markdown(max_tokens => 256), recursive(…), fixed(…), none
    #[arg(long)]
    strategy: String,
    /// Whose tokens count [default: the default model's]
    #[arg(long)]
    model: Option<String>,
    #[command(flatten)]
    models: Models,
}

pub(crate) fn chunk(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to() + 1;
        InputError::new(format!("the text on stdin is not UTF-8 at byte {at}"))
    })?;
    let (model, models) = (args.model.as_deref(), args.models.models.as_deref());
    let chunks = app::chunk(&args.strategy, model, models, &text)?;
    chunks.iter().try_for_each(|chunk| output.json(chunk))?;
    Ok(ExitCode::SUCCESS)
}
