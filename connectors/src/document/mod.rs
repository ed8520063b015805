//! The text of a document: Markdown and plain text as they are, HTML, DOCX and PDF taken apart.
//!
//! ```text
//! name, first bytes ─ kind_of ─▶ Kind ─▶ text: html │ docx │ pdf ─▶ Markdown or plain text
//!                                  │        │                  └── process: one of its own
//!                                  │        └── guard: a thread with a time limit that may panic
//!                                  └─ Archive: `files::archive` walks its members
//! ```
//!
//! Idea: files come from anywhere, so that every parser here meets broken and hostile ones. Ours look at
//! the clock, bound what they hold and write at most [`TEXT_BYTES_MAX`]; a panic in what others wrote is
//! met by the guard. The reader of PDF bounds nothing, so it has a process that is bounded from outside.
//! All failures are [`BadFile`]: a dead letter with a name and a reason.
//!
//! Invariants: the same bytes give the same text; nothing here touches the file system.

pub(crate) mod docx;
mod encoding;
mod guard;
mod html;
mod lines;
mod pdf;
mod process;
mod widths;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use engine::limits::{DOCUMENT_BYTES_MAX, TEXT_BYTES_MAX};

use crate::text::{self, BadFile};

pub(crate) use guard::Guarded;
pub use process::{EXTRACT_PDF, Extractor, extract_pdf};

/// First bytes of a file that [`kind_of`] looks at.
pub(crate) const HEAD_BYTES: usize = 512;

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As it is: Markdown, plain text, source code.
    Plain,
    /// A web page.
    Html,
    /// Word's format since 2007.
    Docx,
    /// Pages.
    Pdf,
    /// Files in a file.
    Archive(Packing),
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// `.zip`
    Zip,
    /// `.tar`
    Tar,
    /// `.tar.gz`, `.tgz`
    TarGz,
    /// `.gz`: one file.
    Gz,
}

impl Kind {
    /// The most bytes that a file of this kind may have.
    pub(crate) fn bytes_max(self) -> usize {
        match self {
            Kind::Plain => TEXT_BYTES_MAX,
            _ => DOCUMENT_BYTES_MAX,
        }
    }
}

/// How archives end their names.
const ARCHIVES: [(&str, Packing); 5] = [
    (".zip", Packing::Zip),
    (".tar.gz", Packing::TarGz),
    (".tgz", Packing::TarGz),
    (".tar", Packing::Tar),
    (".gz", Packing::Gz),
];

/// The kind of a file by its name, or by its first bytes where the name says nothing.
pub(crate) fn kind_of(name: &str, head: &[u8]) -> Kind {
    let lower = name
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    if let Some(packing) = packing_of(&lower) {
        return Kind::Archive(packing);
    }
    match lower
        .rsplit_once('.')
        .map_or("", |(_, extension)| extension)
    {
        "html" | "htm" | "xhtml" => Kind::Html,
        "docx" | "docm" => Kind::Docx,
        "pdf" => Kind::Pdf,
        _ if head.starts_with(b"%PDF-") => Kind::Pdf,
        "" => match head.trim_ascii_start().get(..5) {
            Some(start) if start.eq_ignore_ascii_case(b"<html") => Kind::Html,
            Some(start) if start.eq_ignore_ascii_case(b"<!doc") => Kind::Html,
            _ if head.starts_with(b"PK\x03\x04") => Kind::Docx,
            _ => Kind::Plain,
        },
        _ => Kind::Plain,
    }
}

/// How the archive of this name is packed, if the name is one's.
pub(crate) fn packing_of(name: &str) -> Option<Packing> {
    let name = name
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let found = ARCHIVES
        .iter()
        .find(|(end, _)| name.ends_with(end) && name.len() > end.len());
    found.map(|(_, packing)| *packing)
}

/// The text of a file that is no archive. Cost: linear in its bytes for what browsers and Word write;
/// bounded by the extractor's time.
///
/// Errors: what is wrong with it, and the payload of its dead letter.
pub(crate) fn text(
    kind: Kind,
    content: Vec<u8>,
    extractor: &Extractor,
    stop: &Arc<AtomicBool>,
) -> Guarded<Result<String, (BadFile, Vec<u8>)>> {
    let bare = |bad| (bad, Vec::new());
    if content.len() > kind.bytes_max() {
        return Guarded::Done(Err(bare(BadFile::too_large(kind, content.len() as u64))));
    }
    let limit = extractor.limit();
    let found = match kind {
        Kind::Plain => return Guarded::Done(text::text(utf8(content))),
        Kind::Archive(_) => return Guarded::Done(Err(bare(BadFile::NestedArchive))),
        Kind::Html => guard::run("HTML page", limit, stop, move |clock| {
            html::text(&content, clock).and_then(fits)
        }),
        Kind::Docx => guard::run("DOCX", limit, stop, move |clock| {
            docx::text(&content, clock).and_then(fits)
        }),
        Kind::Pdf => extractor.pdf(content, stop),
    };
    found.map(|found| found.map_err(bare))
}

/// A text with a byte order mark as UTF-8 without one; anything else as it is.
fn utf8(mut content: Vec<u8>) -> Vec<u8> {
    match encoding_rs::Encoding::for_bom(&content) {
        Some((encoding, mark)) if encoding == encoding_rs::UTF_8 => {
            content.drain(..mark);
            content
        }
        Some((encoding, _)) => match encoding.decode(&content) {
            (text, _, false) => text.into_owned().into_bytes(),
            _ => content,
        },
        None => content,
    }
}

fn fits(text: String) -> Result<String, BadFile> {
    match text.len() {
        bytes if bytes > TEXT_BYTES_MAX => Err(BadFile::TextTooLarge(bytes as u64)),
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests;
