//! `headwater dlq list|show|replay`: the dead letters of a running server.

use std::process::ExitCode;

use serde_json::{Value as Json, json};

use super::output::Output;
use super::{InputError, Server};
use crate::client::{Client, encode};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Lists dead letters, oldest first
    List {
        /// Of this source only
        #[arg(long)]
        source: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        server: Server,
    },
    /// Shows one with its payload
    Show {
        /// Its id, from `list`
        id: u64,
        #[command(flatten)]
        server: Server,
    },
    /// Puts dead letters through the pipeline again
    Replay {
        #[command(flatten)]
        server: Server,
    },
}

pub(crate) fn dlq(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::List {
            source,
            limit,
            server,
        } => {
            let letters = letters(&server.client(), source.as_deref(), limit)?;
            list(&letters, output)?;
        }
        Action::Show { id, server } => show(&server.client(), id, output)?,
        Action::Replay { server } => {
            let reply: Json = server
                .client()
                .post("/v1/dead_letters/replay", &json!({}))?;
            output.json(&reply)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Follows the pages until there are `limit` letters or no more.
fn letters(client: &Client, source: Option<&str>, limit: usize) -> anyhow::Result<Vec<Json>> {
    let (mut letters, mut cursor) = (Vec::new(), None::<String>);
    while letters.len() < limit {
        let page = (limit - letters.len()).min(1_000);
        let mut path = format!("/v1/dead_letters?limit={page}");
        if let Some(source) = source {
            path += &format!("&source={}", encode(source));
        }
        if let Some(cursor) = &cursor {
            path += &format!("&cursor={}", encode(cursor));
        }
        let reply = client.get(&path)?;
        letters.extend(
            reply["dead_letters"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
        cursor = reply["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    Ok(letters)
}

fn list(letters: &[Json], output: &Output) -> anyhow::Result<()> {
    if output.is_json {
        return letters.iter().try_for_each(|letter| output.json(letter));
    }
    if letters.is_empty() {
        return output.line("no dead letters");
    }
    let heads = ["id", "source", "position", "code", "detail"].map(str::to_owned);
    let row = |letter: &Json| {
        let error = &letter["error"];
        let fields = [
            &letter["id"],
            &letter["source"],
            &letter["position"],
            &error["code"],
            &error["detail"],
        ];
        fields.map(Json::clone).to_vec()
    };
    output.line(&output.table(&heads, &letters.iter().map(row).collect::<Vec<_>>()))
}

/// The page that begins just after the id before this one begins with this one.
fn show(client: &Client, id: u64, output: &Output) -> anyhow::Result<()> {
    let before = id.saturating_sub(1);
    let page = client.get(&format!("/v1/dead_letters?limit=1&cursor={before}"))?;
    let letter = &page["dead_letters"][0];
    if letter["id"].as_str() != Some(&id.to_string()) {
        let message = format!("there is no dead letter {id}");
        return Err(InputError::new(message)
            .hint("`headwater dlq list` shows those kept")
            .into());
    }
    if output.is_json {
        return output.json(letter);
    }
    for name in [
        "id",
        "at",
        "source",
        "position",
        "error",
        "payload",
        "payload_hex",
    ] {
        match &letter[name] {
            Json::Null => {}
            Json::String(text) => output.line(&format!("{}: {text}", output.bold(name)))?,
            other => output.line(&format!("{}: {other}", output.bold(name)))?,
        }
    }
    Ok(())
}
