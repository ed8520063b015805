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
        #[command(flatten)]
        of: Of,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        server: Server,
    },
    /// Shows one with its payload
    Show {
        /// Its id, from `list`
        id: String,
        #[command(flatten)]
        server: Server,
    },
    /// Decodes dead letters again, as their sources decode now, and takes what is good
    Replay {
        /// Ids, from `list`
        ids: Vec<String>,
        #[command(flatten)]
        of: Of,
        /// All that --source and --code let through
        #[arg(long, conflicts_with = "ids")]
        all: bool,
        #[command(flatten)]
        server: Server,
    },
}

/// Which letters.
#[derive(Debug, clap::Args)]
struct Of {
    /// Of this source (or view) only
    #[arg(long)]
    source: Option<String>,
    /// Of this cause only
    #[arg(long)]
    code: Option<String>,
}

pub(crate) fn dlq(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::List { of, limit, server } => {
            let letters = letters(&server.client(), &of, limit)?;
            list(&letters, output)?;
        }
        Action::Show { id, server } => show(&server.client(), &id, output)?,
        Action::Replay {
            ids,
            of,
            all,
            server,
        } => return replay(&server.client(), &ids, &of, all, output),
    }
    Ok(ExitCode::SUCCESS)
}

/// Follows the pages until there are `limit` letters or no more.
fn letters(client: &Client, of: &Of, limit: usize) -> anyhow::Result<Vec<Json>> {
    let (mut letters, mut cursor) = (Vec::new(), None::<String>);
    while letters.len() < limit {
        let page = (limit - letters.len()).min(1_000);
        let mut path = format!("/v1/dead_letters?limit={page}");
        let given = [
            ("source", &of.source),
            ("code", &of.code),
            ("cursor", &cursor),
        ];
        for (name, value) in given {
            if let Some(value) = value {
                path += &format!("&{name}={}", encode(value));
            }
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
    let heads = ["id", "source", "position", "count", "code", "detail"].map(str::to_owned);
    let row = |letter: &Json| {
        let error = &letter["error"];
        let fields = [
            &letter["id"],
            &letter["source"],
            &letter["position"],
            &letter["count"],
            &error["code"],
            &error["detail"],
        ];
        fields.map(Json::clone).to_vec()
    };
    output.line(&output.table(&heads, &letters.iter().map(row).collect::<Vec<_>>()))
}

fn show(client: &Client, id: &str, output: &Output) -> anyhow::Result<()> {
    let page = client.get(&format!("/v1/dead_letters?id={}", encode(id)))?;
    let letter = &page["dead_letters"][0];
    if letter.is_null() {
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
        "source",
        "position",
        "key",
        "error",
        "first_seen",
        "last_seen",
        "count",
        "bytes",
        "payload",
        "payload_hex",
    ] {
        match &letter[name] {
            Json::Null => {}
            Json::String(text) => output.line(&format!("{}: {text}", output.bold(name)))?,
            Json::Number(at) if name.ends_with("_seen") => {
                let micros = at.as_i64().unwrap_or_default();
                output.line(&format!("{}: {}", output.bold(name), time(micros)))?;
            }
            other => output.line(&format!("{}: {other}", output.bold(name)))?,
        }
    }
    Ok(())
}

/// RFC 3339 in UTC.
fn time(micros: i64) -> String {
    engine::model::Value::Timestamp(micros)
        .to_json(engine::model::SqlType::TimestampTz)
        .as_str()
        .map_or_else(|| micros.to_string(), str::to_owned)
}

/// Exit code 1 when something could not be replayed.
fn replay(
    client: &Client,
    ids: &[String],
    of: &Of,
    all: bool,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    if ids.is_empty() && !all && of.source.is_none() && of.code.is_none() {
        return Err(
            InputError::new("nothing says which dead letters are replayed")
                .hint("name ids, --source, --code or --all")
                .into(),
        );
    }
    let mut body = json!({});
    for (name, value) in [("source", &of.source), ("code", &of.code)] {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    match ids {
        [] => body["ids"] = json!("all"),
        ids => body["ids"] = json!(ids),
    }
    let reply: Json = client.post("/v1/dead_letters/replay", &body)?;
    if output.is_json {
        output.json(&reply)?;
    } else {
        let number = |name: &str| reply[name].as_u64().unwrap_or_default();
        output.line(&format!(
            "{} replayed, {} still bad, {} refused, {} gone",
            number("replayed"),
            number("still_bad"),
            number("refused_total"),
            number("gone"),
        ))?;
        for refused in reply["refused"].as_array().into_iter().flatten() {
            let text = |name: &str| refused[name].as_str().unwrap_or_default();
            output.line(&format!("  {} {}", text("id"), text("reason")))?;
        }
    }
    let is_done = reply["still_bad"] == 0 && reply["refused_total"] == 0;
    Ok(ExitCode::from(u8::from(!is_done)))
}
