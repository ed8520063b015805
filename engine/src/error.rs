//! Three kinds of failure, never mixed (DESIGN §2).
//!
//! - Bad **data** is a [`DataError`]: a [`DeadLetter`] in the dead-letter collection. It never
//!   stops the pipeline.
//! - A failing **world** (disk, network, device) is a [`WorldError`], which knows whether trying
//!   again can help.
//! - A broken **invariant** is a panic (`assert!`, `expect`) that stops the process loudly.

use serde::{Deserialize, Serialize};

pub use crate::letters::DeadLetter;

/// Bad data: what, where, expected, hint. Becomes a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct DataError {
    /// Kebab case, for programs: `invalid-json`, `wrong-type`, `text-too-large`, …
    pub code: String,
    /// One sentence: what is wrong and where.
    pub detail: String,
    /// What would have been right.
    pub expected: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl DataError {
    /// A data error without `expected` and `hint`.
    pub fn new(code: &str, detail: impl Into<String>) -> Self {
        DataError {
            code: code.to_owned(),
            detail: detail.into(),
            expected: None,
            hint: None,
        }
    }

    /// Adds what would have been right.
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The column that the error is about: sentences about one begin `column "name": …`.
    pub fn column(&self) -> Option<&str> {
        let (name, _) = self.detail.strip_prefix("column \"")?.split_once("\":")?;
        Some(name)
    }
}

/// A failing world: something outside the process did not do what we asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorldError {
    /// Reading or writing failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried: `cannot write`, `cannot read`.
        what: &'static str,
        /// Which file or folder.
        path: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The data folder is in use.
    #[error("the data folder {path} is in use by {holder}")]
    Locked {
        /// Which folder.
        path: String,
        /// `process 4711 on host (since …)`
        holder: String,
    },
    /// Stored bytes do not pass their checksum or have an unknown format version.
    #[error("{path} at byte {offset}: {detail}")]
    Corrupt {
        /// Which file.
        path: String,
        /// Where the bad record starts.
        offset: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// A model or another service could not answer.
    #[error("{service}: {detail}")]
    Service {
        /// Which one.
        service: String,
        /// What happened.
        detail: String,
        /// Whether trying again can help.
        is_transient: bool,
    },
}

impl WorldError {
    /// An input or output error with its path.
    pub fn io(what: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        WorldError::Io {
            what,
            path: path.display().to_string(),
            source,
        }
    }

    /// Whether trying again can help without a person doing something first.
    pub fn is_transient(&self) -> bool {
        match self {
            WorldError::Io { source, .. } => {
                use std::io::ErrorKind as Kind;
                matches!(
                    source.kind(),
                    Kind::Interrupted | Kind::TimedOut | Kind::WouldBlock
                )
            }
            WorldError::Service { is_transient, .. } => *is_transient,
            WorldError::Locked { .. } | WorldError::Corrupt { .. } => false,
        }
    }
}
