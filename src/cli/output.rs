//! How results look: tables and colour for people, JSON lines for programs.
//!
//! Colour only on a terminal and without `NO_COLOR`. Tables measure cells in characters; on a terminal
//! those of several rows are cut when they are long, so that a row stays a row. Files and pipes, and who
//! asks for one row, get all of it.

use std::io::{IsTerminal, Write};

use queries::problem::Problem;
use serde_json::{Value as Json, json};

/// Longest cell of a table, characters.
const CELL_CHARS_MAX: usize = 80;

/// Where results go and how.
pub(crate) struct Output {
    pub(crate) is_json: bool,
    is_terminal: bool,
    is_coloured: bool,
    is_coloured_error: bool,
}

impl Output {
    pub(crate) fn of_terminal(is_json: bool) -> Output {
        let wants = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Output {
            is_json,
            is_terminal: std::io::stdout().is_terminal(),
            is_coloured: wants && !is_json && std::io::stdout().is_terminal(),
            is_coloured_error: wants && !is_json && std::io::stderr().is_terminal(),
        }
    }

    /// One line to stdout; a reader that went away is an error, not a panic.
    pub(crate) fn line(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.write_all(b"\n")?;
        Ok(stdout.flush()?)
    }

    pub(crate) fn json(&self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        self.line(&serde_json::to_string(value)?)
    }

    pub(crate) fn bold(&self, text: &str) -> String {
        paint(self.is_coloured, "1", text)
    }

    pub(crate) fn dim(&self, text: &str) -> String {
        paint(self.is_coloured, "2", text)
    }

    pub(crate) fn green(&self, text: &str) -> String {
        paint(self.is_coloured, "32", text)
    }

    pub(crate) fn red(&self, text: &str) -> String {
        paint(self.is_coloured, "31", text)
    }

    /// A note to stderr: progress, warnings.
    pub(crate) fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// What went wrong, to stderr; a JSON line with `--json`.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let problem = error.downcast_ref::<Problem>();
        let text = match (problem, self.is_json) {
            (Some(problem), true) => json!({ "error": problem }).to_string(),
            (None, true) => json!({ "error": { "detail": format!("{error:#}") } }).to_string(),
            (Some(problem), false) => {
                format!(
                    "{} {}",
                    paint(self.is_coloured_error, "1;31", "error:"),
                    problem_text(problem)
                )
            }
            (None, false) => {
                format!(
                    "{} {error:#}",
                    paint(self.is_coloured_error, "1;31", "error:")
                )
            }
        };
        self.note(&text);
    }

    /// A table with a head; columns of numbers are aligned right.
    pub(crate) fn table(&self, heads: &[String], rows: &[Vec<Json>]) -> String {
        let most = if self.is_terminal && rows.len() > 1 {
            CELL_CHARS_MAX
        } else {
            usize::MAX
        };
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|value| cell(value, most)).collect())
            .collect();
        let width = |column: usize| {
            let of_rows = cells
                .iter()
                .filter_map(|row| row.get(column))
                .map(|c| c.chars().count());
            of_rows
                .chain([heads[column].chars().count()])
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        let is_number: Vec<bool> = (0..heads.len())
            .map(|column| {
                !rows.is_empty()
                    && rows.iter().all(|row| {
                        row.get(column)
                            .is_some_and(|v| v.is_number() || v.is_null())
                    })
            })
            .collect();
        let line = |row: &[String]| {
            let cells = row.iter().zip(&widths).zip(&is_number);
            let padded: Vec<String> = cells
                .map(|((cell, width), right)| match right {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                })
                .collect();
            padded.join("  ").trim_end().to_owned()
        };
        let head = self.bold(&line(heads));
        let rule = widths
            .iter()
            .map(|width| "─".repeat(*width))
            .collect::<Vec<_>>()
            .join("  ");
        let body = cells.iter().map(|row| line(row));
        [head, self.dim(&rule)]
            .into_iter()
            .chain(body)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn paint(is_coloured: bool, code: &str, text: &str) -> String {
    if is_coloured {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

/// A value in one line: text bare, NULL empty, control characters escaped, cut to so many characters.
fn cell(value: &Json, most: usize) -> String {
    let text = match value {
        Json::Null => String::new(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    };
    shorten(&one_line(&text), most)
}

/// Escapes what would break the line or reach the terminal as a command.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

/// The first characters, with an ellipsis where something was cut.
pub(crate) fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text
            .chars()
            .take(most.saturating_sub(1))
            .chain(['…'])
            .collect(),
        None => text.to_owned(),
    }
}

/// A problem in a few lines: what, where, expected, hint, and its parts.
pub(crate) fn problem_text(problem: &Problem) -> String {
    let mut lines = vec![one_line(&problem.detail)];
    if let Some(at) = problem.position {
        lines.push(format!("  at line {}, column {}", at.line, at.column));
    }
    if let Some(expected) = &problem.expected {
        lines.push(format!("  expected: {}", one_line(expected)));
    }
    if let Some(hint) = &problem.hint {
        lines.push(format!("  hint: {}", one_line(hint)));
    }
    if let Some(statement) = problem.statement {
        lines.push(format!("  in statement {} (the first is 0)", statement));
    }
    lines.extend(
        problem
            .errors
            .iter()
            .map(|inner| format!("- {}", problem_text(inner))),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Output = Output {
        is_json: false,
        is_terminal: false,
        is_coloured: false,
        is_coloured_error: false,
    };

    #[test]
    fn tables_align_numbers_right_and_keep_rows_in_one_line() {
        let heads = ["name".to_owned(), "n".to_owned()];
        let rows = [
            vec![json!("é\n1"), json!(7)],
            vec![json!("long name"), json!(1234)],
        ];
        let table = PLAIN.table(&heads, &rows);
        let want = [
            "name          n",
            "─────────  ────",
            "é\\n1          7",
            "long name  1234",
        ];
        assert_eq!(table.lines().collect::<Vec<_>>(), want);
    }

    #[test]
    fn long_cells_are_cut_by_characters_where_people_read_rows() {
        let (heads, long) = (["n".to_owned()], vec![json!("ü".repeat(100))]);
        let terminal = Output {
            is_terminal: true,
            ..PLAIN
        };
        let widest = |output: &Output, rows: &[Vec<Json>]| {
            let table = output.table(&heads, rows);
            table.lines().map(|line| line.chars().count()).max()
        };
        let two = [long.clone(), long.clone()];
        assert_eq!(widest(&terminal, &two), Some(CELL_CHARS_MAX));
        assert_eq!(widest(&terminal, &[long]), Some(100));
        assert_eq!(widest(&PLAIN, &two), Some(100));
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("abcd", 3), "ab…");
    }

    #[test]
    fn problems_say_what_where_expected_and_hint() {
        let problem = Problem::syntax("unexpected FORM")
            .at(2, 7)
            .expected("FROM")
            .hint("a typo?");
        let want = "unexpected FORM\n  at line 2, column 7\n  expected: FROM\n  hint: a typo?";
        assert_eq!(problem_text(&problem), want);
    }

    #[test]
    fn a_document_cannot_command_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
    }
}
