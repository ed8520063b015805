//! What files have in common, wherever they lie: bytes to a text, and which paths are meant.
//!
//! Idea: `FROM FILES` and `FROM GIT` must agree on what a text is, what becomes a dead letter with
//! which words, and what a pattern matches; so both ask here.
//!
//! Limits: a text is UTF-8 and at most [`TEXT_BYTES_MAX`]; a pattern is a glob over a relative path
//! with `/`: `*` does not cross folders, `**` does.

use std::borrow::Cow;

use engine::error::{DataError, WorldError};
use engine::limits::{DOCUMENT_BYTES_MAX, EXTRACT_MS_MAX, TEXT_BYTES_MAX};
use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::document::Kind;

/// Bytes of a file that is not UTF-8, kept with its dead letter.
const PAYLOAD_BYTES: usize = 1024;

/// What to do about a file that is too large.
const SPLIT: &str = "split it, or leave it out by PATTERN";

/// What is wrong with a file's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum BadFile {
    /// A text of so many bytes.
    TooLarge(u64),
    /// A document or an archive of so many bytes.
    DocumentTooLarge(u64),
    /// The text taken out of it has so many bytes, at least.
    TextTooLarge(u64),
    /// The first bad byte, counting from 0.
    InvalidUtf8(usize),
    /// The encoding that it declares.
    UnknownEncoding(String),
    /// The encoding that it declares, and that its bytes do not keep.
    WrongEncoding(String),
    /// It asks for a password.
    Encrypted,
    /// It is not what its name says.
    Broken {
        /// `PDF`
        format: Cow<'static, str>,
        /// In the words of its reader.
        reason: String,
    },
    /// Pages without a text: pictures of one.
    NoText,
    /// Its text was not found in time.
    TooSlow,
    /// An archive in an archive.
    NestedArchive,
    /// An archive that unpacks to more than may be, or for longer.
    TooMuch {
        /// `unpacks to more than 7 bytes (NAME)`
        what: String,
        /// The last member that was read.
        after: Option<String>,
    },
}

impl BadFile {
    /// A file of so many bytes is too large for its kind.
    pub(crate) fn too_large(kind: Kind, bytes: u64) -> BadFile {
        match kind {
            Kind::Plain => BadFile::TooLarge(bytes),
            _ => BadFile::DocumentTooLarge(bytes),
        }
    }

    /// The error for the file of this name.
    pub(crate) fn on(&self, name: &str) -> DataError {
        match self {
            BadFile::TooLarge(bytes) => DataError::new(
                "text-too-large",
                format!(
                    "file '{name}' has {bytes} bytes; the limit TEXT_BYTES_MAX is {TEXT_BYTES_MAX}"
                ),
            )
            .hint(SPLIT),
            BadFile::TextTooLarge(bytes) => DataError::new(
                "text-too-large",
                format!(
                    "the text of file '{name}' has {bytes} bytes or more; the limit \
                     TEXT_BYTES_MAX is {TEXT_BYTES_MAX}"
                ),
            )
            .hint(SPLIT),
            BadFile::DocumentTooLarge(bytes) => DataError::new(
                "document-too-large",
                format!(
                    "file '{name}' has {bytes} bytes; the limit DOCUMENT_BYTES_MAX is \
                     {DOCUMENT_BYTES_MAX}"
                ),
            )
            .hint(SPLIT),
            BadFile::InvalidUtf8(at) => DataError::new(
                "invalid-utf8",
                format!("file '{name}' is not UTF-8 at byte {at}"),
            )
            .expected("UTF-8 text")
            .hint("convert it, or leave it out by PATTERN"),
            BadFile::UnknownEncoding(label) => DataError::new(
                "unknown-encoding",
                format!("file '{name}' declares the encoding '{label}', which is not known"),
            )
            .expected("a name of the Encoding Standard, utf-8 for example")
            .hint("correct its declaration, or convert it to UTF-8"),
            BadFile::WrongEncoding(label) => DataError::new(
                "unknown-encoding",
                format!("file '{name}' declares the encoding {label}, but its bytes are not in it"),
            )
            .hint("correct its declaration, or convert it to UTF-8"),
            BadFile::Encrypted => {
                DataError::new("encrypted-document", format!("file '{name}' is encrypted"))
                    .expected("a document that opens without a password")
                    .hint("save it without one, or leave it out by PATTERN")
            }
            BadFile::Broken { format, reason } => DataError::new(
                "broken-document",
                format!("file '{name}' is not a readable {format}: {reason}"),
            )
            .hint("open it in its program and save it again, or leave it out by PATTERN"),
            BadFile::NoText => {
                DataError::new("no-text", format!("file '{name}' has pages, but no text")).hint(
                    "recognise its text (OCR) and save it with it, or leave it out by PATTERN",
                )
            }
            BadFile::TooSlow => DataError::new(
                "extraction-timeout",
                format!(
                    "the text of file '{name}' was not found within {EXTRACT_MS_MAX} ms \
                     (EXTRACT_MS_MAX)"
                ),
            )
            .hint("it is tried again some times; leave it out by PATTERN"),
            BadFile::NestedArchive => DataError::new(
                "nested-archive",
                format!("file '{name}' is an archive in an archive"),
            )
            .hint("unpack the outer one, or leave it out by PATTERN"),
            BadFile::TooMuch { what, after } => {
                let rest = after.as_ref().map_or_else(String::new, |after| {
                    format!("; what follows member '{after}' is left out")
                });
                DataError::new(
                    "archive-too-large",
                    format!("archive '{name}' {what}{rest}"),
                )
                .hint("split it, or unpack it beside")
            }
        }
    }
}

/// A file's text, or what is wrong with its bytes and the payload of the dead letter.
pub(crate) fn text(content: Vec<u8>) -> Result<String, (BadFile, Vec<u8>)> {
    if content.len() > TEXT_BYTES_MAX {
        return Err((BadFile::TooLarge(content.len() as u64), Vec::new()));
    }
    String::from_utf8(content).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let mut payload = error.into_bytes();
        payload.truncate(PAYLOAD_BYTES);
        (BadFile::InvalidUtf8(at), payload)
    })
}

/// The matcher of a glob. Errors: `option` of `service` is no glob.
pub(crate) fn glob(service: &str, option: &str, pattern: &str) -> Result<GlobMatcher, WorldError> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    let glob = glob.map_err(|error| WorldError::Service {
        service: service.to_owned(),
        detail: format!("{option} '{pattern}' is not a glob: {}", error.kind()),
        is_transient: false,
    })?;
    Ok(glob.compile_matcher())
}
