//! `headwater sql [-c STATEMENT]`: statements against a running server.
//!
//! With `-c` or input that is no terminal: all of it, exit code by the result. On a terminal: a prompt
//! with history; a statement ends at `;`, Ctrl-C forgets the line, Ctrl-D leaves.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use queries::api::SqlReply;
use queries::problem::Problem;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::output::Output;
use super::{InputError, Server};
use crate::client::Client;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Statements to execute
    #[arg(short, long, value_name = "STATEMENT")]
    command: Option<String>,
    /// Parameters of $1, $2, … as JSON; a text that is no JSON is itself
    #[arg(
        short,
        long,
        value_name = "VALUE",
        requires = "command",
        allow_hyphen_values = true
    )]
    param: Vec<String>,
    #[command(flatten)]
    server: Server,
}

pub(crate) fn sql(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    let client = args.server.client();
    let params: Vec<Json> = args.param.iter().map(|text| parameter(text)).collect();
    if let Some(statement) = &args.command {
        execute(&client, statement, &params, output)?;
    } else if std::io::stdin().is_terminal() {
        prompt(&client, output)?;
    } else {
        let mut statements = String::new();
        std::io::stdin().read_to_string(&mut statements)?;
        if statements.trim().is_empty() {
            return Err(InputError::new("there are no statements on stdin").into());
        }
        execute(&client, &statements, &params, output)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parameter(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|_| Json::from(text))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Replies {
    Several(Vec<SqlReply>),
    One(SqlReply),
}

fn execute(
    client: &Client,
    statements: &str,
    params: &[Json],
    output: &Output,
) -> anyhow::Result<()> {
    let body = json!({ "sql": statements, "params": params });
    let replies = match client.post("/v1/sql", &body) {
        Ok(Replies::One(reply)) => vec![reply],
        Ok(Replies::Several(replies)) => replies,
        Err(mut error) => {
            // What the statements before the failed one answered is shown all the same.
            let done = error
                .downcast_mut::<Problem>()
                .and_then(|p| p.extra.remove("replies"));
            let done: Option<Vec<SqlReply>> =
                done.and_then(|done| serde_json::from_value(done).ok());
            done.iter()
                .flatten()
                .try_for_each(|reply| print(reply, output))?;
            return Err(error);
        }
    };
    replies.iter().try_for_each(|reply| print(reply, output))
}

fn print(reply: &SqlReply, output: &Output) -> anyhow::Result<()> {
    if output.is_json {
        return output.json(reply);
    }
    reply
        .notices
        .iter()
        .for_each(|notice| output.note(&format!("notice: {notice}")));
    if reply.columns.is_empty() {
        return output.line(&reply.tag);
    }
    let heads: Vec<String> = reply
        .columns
        .iter()
        .map(|column| column.name.clone())
        .collect();
    output.line(&output.table(&heads, &reply.rows))?;
    let rows = match reply.rows.len() {
        1 => "1 row".to_owned(),
        n => format!("{n} rows"),
    };
    let as_of = reply
        .as_of
        .map(|as_of| format!(" as of {as_of}"))
        .unwrap_or_default();
    output.line(&output.dim(&format!("({rows}{as_of})")))
}

fn prompt(client: &Client, output: &Output) -> anyhow::Result<()> {
    let mut editor = DefaultEditor::new()?;
    let history = history_file();
    if let Some(path) = &history {
        // The first time there is none.
        let _ = editor.load_history(path);
    }
    output.note(&format!(
        "{}; statements end with ;  \\q leaves",
        client.url()
    ));
    let mut statement = String::new();
    loop {
        let prompt = if statement.is_empty() {
            "headwater> "
        } else {
            "       ... "
        };
        let line = match editor.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                statement.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        if statement.is_empty() && matches!(line.trim(), "\\q" | "quit" | "exit") {
            break;
        }
        if !statement.is_empty() {
            statement.push('\n');
        }
        statement.push_str(&line);
        if statement.trim().is_empty() {
            statement.clear();
        } else if statement.trim_end().ends_with(';') {
            editor.add_history_entry(statement.trim())?;
            if let Err(error) = execute(client, &statement, &[], output) {
                output.error(&error);
            }
            statement.clear();
        }
    }
    if let Some(path) = &history {
        save(&mut editor, path, output);
    }
    Ok(())
}

fn save(editor: &mut DefaultEditor, path: &PathBuf, output: &Output) {
    let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let saved = folder
        .map_err(ReadlineError::from)
        .and_then(|()| editor.save_history(path));
    if let Err(error) = saved {
        output.note(&format!(
            "the history was not saved to {}: {error}",
            path.display()
        ));
    }
}

fn history_file() -> Option<PathBuf> {
    use etcetera::BaseStrategy;
    let folders = etcetera::choose_base_strategy().ok()?;
    Some(folders.data_dir().join("headwater").join("sql_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_json_or_text() {
        assert_eq!(parameter("7"), json!(7));
        assert_eq!(parameter("[1,2]"), json!([1, 2]));
        assert_eq!(parameter("T-1"), json!("T-1"));
    }

    #[test]
    fn one_reply_and_several_are_told_apart() {
        let one = json!({ "columns": [], "rows": [], "tag": "CREATE SOURCE" });
        assert!(matches!(
            serde_json::from_value(one.clone()),
            Ok(Replies::One(_))
        ));
        assert!(matches!(
            serde_json::from_value(json!([one])),
            Ok(Replies::Several(_))
        ));
    }
}
