//! One `psql` that stays open: SQL in, rows out, a few hundred microseconds a statement.
//!
//! **Idea.** Statements are written to its standard input, followed by an `\echo` of a word that
//! occurs nowhere else; what comes before the word is the answer, as CSV with a mark for NULL.
//!
//! **Invariants.** An error ends the process (`ON_ERROR_STOP`), so no answer is taken for another
//! one's. Transactions work: the session is one connection.
//!
//! **Limits.** A backslash at the start of a line is a command of `psql`, not SQL. A row of no
//! columns is read as a row of one empty text.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// One value of a row: NULL is `None`.
pub type Row = Vec<Option<String>>;

const NULL: &str = "\u{1}";
const END: &str = "--end-of-answer-7c1f--";

/// An open connection.
pub struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    /// Starts `psql` for a connection string; a password that is not in
    /// it comes separately.
    ///
    /// # Errors
    /// When `psql` cannot be started. A failed connection is told by the first statement.
    pub fn open(psql: &Path, connection: &str, password: &str) -> Result<Session, String> {
        // Errors come in the same stream as answers, behind those that were given before.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$@" 2>&1"#, "sh"])
            .arg(psql)
            .args(["-X", "-q", "-t", "--csv", "-v", "ON_ERROR_STOP=1"])
            .args(["-P", &format!("null={NULL}"), "-d", connection])
            .envs((!password.is_empty()).then_some(("PGPASSWORD", password)))
            .env("PGCLIENTENCODING", "UTF8")
            .env("PGOPTIONS", "-c client_min_messages=error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("psql: {error}"))?;
        Ok(Session {
            input: child.stdin.take().expect("piped"),
            output: BufReader::new(child.stdout.take().expect("piped")),
            child,
        })
    }

    /// Runs statements (a `;` between them) and gives their rows, one after another.
    ///
    /// # Errors
    /// What the server says; the session is over then.
    pub fn run(&mut self, sql: &str) -> Result<Vec<Row>, String> {
        let Session { input, output, .. } = self;
        // Written beside reading: neither pipe can fill while the other one waits.
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                // A psql that has ended says why in its output.
                let _ = writeln!(input, "{sql}\n;\n\\echo {END}").and_then(|()| input.flush());
            });
            read_answer(output)
        });
        match answer {
            Ok(csv) => Ok(rows(&csv)),
            Err(said) => Err(format!("{}\nthe SQL: {sql}", said.trim())),
        }
    }
}

/// Reads up to the end mark; without one, psql has ended, and what it said is the error.
fn read_answer(output: &mut impl BufRead) -> Result<String, String> {
    let mut answer = String::new();
    loop {
        let start = answer.len();
        if !matches!(output.read_line(&mut answer), Ok(1..)) {
            return Err(answer);
        }
        if answer[start..].trim_end() == END {
            answer.truncate(start);
            return Ok(answer);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads CSV as `psql` writes it.
fn rows(csv: &str) -> Vec<Row> {
    let mut out = Vec::new();
    let mut row = Row::new();
    let mut value = String::new();
    let mut is_quoted = false;
    let mut letters = csv.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if is_quoted && letters.peek() == Some(&'"') => {
                letters.next();
                value.push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' | '\n' if !is_quoted => {
                let value = std::mem::take(&mut value);
                row.push((value != NULL).then_some(value));
                if letter == '\n' {
                    out.push(std::mem::take(&mut row));
                }
            }
            letter => value.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_keeps_quotes_commas_lines_and_nulls() {
        let found = rows("1,\u{1},\n\"a \"\"b\"\"\",\"x,\ny\",\"\"\n");
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            found,
            [
                vec![some("1"), None, some("")],
                vec![some("a \"b\""), some("x,\ny"), some("")],
            ]
        );
    }
}
