//! Errors for people and programs: RFC 9457 problems, used by SQL, HTTP and the command line alike.

use serde::{Deserialize, Serialize};

/// A place in a text: both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Line.
    pub line: u64,
    /// Column.
    pub column: u64,
}

/// What went wrong, where, what was expected, and a hint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// `https://headwater.dev/errors/<code>`; all are listed in `docs/errors.md`.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// Kebab case, for programs.
    pub code: String,
    /// The code in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// One sentence about this occurrence.
    pub detail: String,
    /// Where in the statement, if it is about a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// What would have been right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Several problems of one request.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<Problem>,
    /// Index of the failed statement of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<usize>,
    /// Further members: `cause`, `documents`, `reached`, `request_id`.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Problem {
    /// A problem with a code in kebab case, a status and one sentence.
    pub fn new(status: u16, code: &str, detail: impl Into<String>) -> Problem {
        let mut title = code.replace('-', " ");
        if let Some(first) = title.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        Problem {
            type_uri: format!("https://headwater.dev/errors/{code}"),
            code: code.to_owned(),
            title,
            status,
            detail: detail.into(),
            position: None,
            expected: None,
            hint: None,
            errors: Vec::new(),
            statement: None,
            extra: serde_json::Map::new(),
        }
    }

    /// 400 `syntax-error`.
    pub fn syntax(detail: impl Into<String>) -> Problem {
        Problem::new(400, "syntax-error", detail)
    }

    /// 404 `not-found`.
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(404, "not-found", detail)
    }

    /// 422 `invalid-request`.
    pub fn invalid(detail: impl Into<String>) -> Problem {
        Problem::new(422, "invalid-request", detail)
    }

    /// 422 `not-supported`: parsed, and refused by this version.
    pub fn not_supported(detail: impl Into<String>) -> Problem {
        Problem::new(422, "not-supported", detail)
    }

    /// 500 `internal`: a world that failed.
    pub fn internal(detail: impl Into<String>) -> Problem {
        Problem::new(500, "internal", detail)
    }

    /// Adds a position.
    pub fn at(mut self, line: u64, column: u64) -> Problem {
        self.position = Some(Position { line, column });
        self
    }

    /// Adds what would have been right.
    pub fn expected(mut self, expected: impl Into<String>) -> Problem {
        self.expected = Some(expected.into());
        self
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a further member.
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Problem {
        self.extra.insert(name.to_owned(), value.into());
        self
    }
}
