//! `headwater search INDEX QUESTION`: ranked chunks of a running server.

use std::process::ExitCode;

use queries::api::{Hit, SearchReply};
use serde_json::{Map, Value as Json, json};

use super::Server;
use super::output::{Output, one_line, shorten};

/// Characters of a hit's text that people see; `--json` has all of it.
const TEXT_CHARS: usize = 400;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The index
    index: String,
    /// The question
    question: String,
    /// How many chunks, at most 1000
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// A SQL predicate over INCLUDEd columns, applied before k
    #[arg(long = "where", value_name = "PREDICATE")]
    filter: Option<String>,
    /// hybrid, vector or keyword [default: the legs the index has]
    #[arg(long)]
    mode: Option<String>,
    /// Engine time or RFC 3339 [default: now]
    #[arg(long, value_name = "TIME")]
    as_of: Option<String>,
    #[command(flatten)]
    server: Server,
}

pub(crate) fn search(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    let reply: Json = args.server.client().post("/v1/search", &body(&args))?;
    if output.is_json {
        output.json(&reply)?;
        return Ok(ExitCode::SUCCESS);
    }
    let reply: SearchReply = serde_json::from_value(reply)?;
    for (rank, hit) in reply.hits.iter().enumerate() {
        output.line(&shown(rank + 1, hit, output))?;
    }
    output.line(&output.dim(&summary(&reply)))?;
    Ok(ExitCode::SUCCESS)
}

fn body(args: &Args) -> Json {
    let mut body = Map::new();
    body.insert("index".to_owned(), json!(args.index));
    body.insert("query".to_owned(), json!(args.question));
    body.insert("k".to_owned(), json!(args.k));
    if let Some(filter) = &args.filter {
        body.insert("where".to_owned(), json!(filter));
    }
    if let Some(mode) = &args.mode {
        body.insert("mode".to_owned(), json!(mode));
    }
    if let Some(as_of) = &args.as_of {
        let time = as_of
            .parse::<u64>()
            .map_or_else(|_| json!(as_of), |time| json!(time));
        body.insert("as_of".to_owned(), time);
    }
    Json::Object(body)
}

fn shown(rank: usize, hit: &Hit, output: &Output) -> String {
    let key = match &hit.document.key {
        Json::String(text) => one_line(text),
        other => other.to_string(),
    };
    let place = format!(
        "v{} · bytes {}–{} · score {:.3}{}",
        hit.document.version,
        hit.range.0,
        hit.range.1,
        hit.score,
        hit.heading
            .iter()
            .map(|h| format!(" · {}", one_line(h)))
            .collect::<String>(),
    );
    let text = shorten(hit.text.as_deref().unwrap_or_default().trim(), TEXT_CHARS);
    let text: Vec<String> = text
        .lines()
        .map(|line| format!("    {}", one_line(line)))
        .collect();
    format!(
        "{rank:>2}. {}  {}\n{}\n",
        output.bold(&key),
        output.dim(&place),
        text.join("\n")
    )
}

fn summary(reply: &SearchReply) -> String {
    let total = reply.timing_ms.get("total").and_then(Json::as_f64);
    let count = match reply.hits.len() {
        1 => "1 hit".to_owned(),
        count => format!("{count} hits"),
    };
    let mut text = format!("{count} as of {}", reply.as_of);
    if let Some(total) = total {
        text += &format!(" in {total:.1} ms");
    }
    if reply.pending > 0 {
        text += &format!("; {} documents wait for their embedding", reply.pending);
    }
    if reply.is_degraded {
        text += &format!("; degraded: {}", reply.degraded.join(", "));
    }
    text
}
