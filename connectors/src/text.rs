//! What files have in common, wherever they lie: bytes to a text, and which paths are meant.
//!
//! Idea: `FROM FILES` and `FROM GIT` must agree on what a text is, what becomes a dead letter with
//! which words, and what a pattern matches; so both ask here.
//!
//! Limits: a text is UTF-8 and at most [`TEXT_BYTES_MAX`]; a pattern is a glob over a relative path
//! with `/`: `*` does not cross folders, `**` does.

use engine::error::{DataError, WorldError};
use engine::limits::TEXT_BYTES_MAX;
use globset::{GlobBuilder, GlobMatcher};

/// Bytes of a file that is not UTF-8, kept with its dead letter.
const PAYLOAD_BYTES: usize = 1024;

/// What is wrong with a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadFile {
    /// So many bytes.
    TooLarge(u64),
    /// The first bad byte, counting from 0.
    InvalidUtf8(usize),
}

impl BadFile {
    /// The code of its dead letter.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            BadFile::TooLarge(_) => "text-too-large",
            BadFile::InvalidUtf8(_) => "invalid-utf8",
        }
    }

    /// The error for the file of this name.
    pub(crate) fn on(&self, name: &str) -> DataError {
        match self {
            BadFile::TooLarge(bytes) => DataError::new(
                self.code(),
                format!(
                    "file '{name}' has {bytes} bytes; the limit TEXT_BYTES_MAX is {TEXT_BYTES_MAX}"
                ),
            )
            .hint("split it, or leave it out by PATTERN"),
            BadFile::InvalidUtf8(at) => DataError::new(
                self.code(),
                format!("file '{name}' is not UTF-8 at byte {at}"),
            )
            .expected("UTF-8 text")
            .hint("convert it, or leave it out by PATTERN"),
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
