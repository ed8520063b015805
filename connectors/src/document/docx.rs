//! DOCX to Markdown: paragraphs, headings, lists and tables of the main text.
//!
//! Idea: a DOCX is a zip of XML. Its main part is read event by event; only the paragraph at hand is held.
//! Headings are known by their styles' outline level or built-in name, so that documents of all
//! languages' Word have them.
//!
//! ```text
//! zip ─ _rels/.rels ─▶ the main part ─┬─ its styles ──▶ style ─▶ heading level
//!                                     └─ events ─▶ Body: open paragraphs, tables ─▶ Markdown
//! ```
//!
//! Source: ECMA-376 part 1, §17; part 2, §9 (relationships). Invariants: deleted text, what a format was
//! before a change, field codes and the second rendering of a drawing (`mc:Fallback`) are no text; a text
//! box stands before the paragraph that anchors it. What is held is bounded: the main part's XML by
//! [`PART_BYTES_MAX`], all open text by [`TEXT_BYTES_MAX`], nesting by [`DEPTH_MAX`]; every
//! [`CLOCK_EVENTS`] events the clock is looked at.
//!
//! Limits: headers, footers, footnotes and comments are left out; numbers of lists are not counted out
//! (`- `); styles follow `basedOn` for eight steps.

use std::collections::HashMap;
use std::io::{Cursor, Read};

use engine::limits::{ARCHIVE_MEMBERS_MAX, TEXT_BYTES_MAX};
use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;
use zip::ZipArchive;

use super::guard::Clock;
use crate::text::BadFile;

/// How an entry of a zip's directory begins.
const DIRECTORY_ENTRY: &[u8] = b"PK\x01\x02";
/// How the end of a directory of more than 65,535 entries begins.
const LARGE_DIRECTORY: &[u8] = b"PK\x06\x06";
/// How Microsoft's older files begin; a DOCX with a password is one.
const OLE: &[u8] = b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1";
/// XML of the main part: marks beside the words.
const PART_BYTES_MAX: usize = 8 * TEXT_BYTES_MAX;
/// XML of the parts beside it: relations, styles.
const SIDE_BYTES_MAX: usize = TEXT_BYTES_MAX;
/// Open paragraphs and rows: text boxes and tables nest.
const DEPTH_MAX: usize = 64;
/// Styles that are known.
const STYLES_MAX: usize = 16_384;
/// Events between two looks at the clock.
const CLOCK_EVENTS: u32 = 1_024;
/// Steps of `basedOn`.
const STYLE_STEPS: usize = 8;
/// The kind of file, for errors.
const FORMAT: &str = "DOCX";

/// A zip over bytes in memory, its directory bounded before it is read.
pub(crate) type Zip<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// Opens a zip. Errors: no zip, or one with more than [`ARCHIVE_MEMBERS_MAX`] members.
pub(crate) fn open_zip<'a>(content: &'a [u8], format: &'static str) -> Result<Zip<'a>, BadFile> {
    // The reader takes some hundred bytes for each entry of the directory. Only one that says where its
    // large directory ends can have more entries than 16 bits count.
    let has = |mark: &'static [u8]| {
        content
            .windows(mark.len())
            .filter(move |found| *found == mark)
    };
    let is_large = has(LARGE_DIRECTORY).next().is_some();
    let entries = has(DIRECTORY_ENTRY).take(ARCHIVE_MEMBERS_MAX + 1);
    if is_large && entries.count() > ARCHIVE_MEMBERS_MAX {
        return Err(BadFile::TooMuch {
            what: format!(
                "unpacks to more than {ARCHIVE_MEMBERS_MAX} members (ARCHIVE_MEMBERS_MAX)"
            ),
            after: None,
        });
    }
    ZipArchive::new(Cursor::new(content)).map_err(|error| BadFile::Broken {
        format: format.into(),
        reason: error.to_string(),
    })
}

/// The text of a document. Errors: [`BadFile`].
pub(super) fn text(content: &[u8], clock: &Clock) -> Result<String, BadFile> {
    if content.starts_with(OLE) {
        return Err(BadFile::Encrypted);
    }
    let mut zip = open_zip(content, FORMAT)?;
    let main = related(&mut zip, "_rels/.rels", "/officeDocument", clock)?;
    let main = main.unwrap_or_else(|| "word/document.xml".to_owned());
    let (folder, name) = main.rsplit_once('/').unwrap_or(("", &main));
    let relations = format!("{folder}/_rels/{name}.rels");
    let found = related(
        &mut zip,
        relations.trim_start_matches('/'),
        "/styles",
        clock,
    )?;
    let of_styles = found.map_or_else(
        || "word/styles.xml".to_owned(),
        |target| match target.strip_prefix('/') {
            Some(absolute) => absolute.to_owned(),
            None => format!("{folder}/{target}")
                .trim_start_matches('/')
                .to_owned(),
        },
    );
    let styles = match part(&mut zip, &of_styles, SIDE_BYTES_MAX) {
        Ok(part) => styles(Events::of(&part, clock))?,
        Err(_) => HashMap::new(),
    };
    let part = part(&mut zip, main.trim_start_matches('/'), PART_BYTES_MAX)?;
    body(Events::of(&part, clock), &styles)
}

/// A part of the document, whole.
fn part(zip: &mut Zip<'_>, name: &str, max: usize) -> Result<Vec<u8>, BadFile> {
    let broken = |reason: &dyn std::fmt::Display| broken(format!("{name}: {reason}"));
    let file = zip.by_name(name).map_err(|error| broken(&error))?;
    let mut part = Vec::new();
    let read = file.take(max as u64 + 1).read_to_end(&mut part);
    read.map_err(|error| broken(&error))?;
    match part.len() > max {
        true => Err(broken(&format_args!("it has more than {max} bytes"))),
        false => Ok(part),
    }
}

/// The target of the first relation whose type ends so, in a part of relations that may be missing.
fn related(
    zip: &mut Zip<'_>,
    relations: &str,
    kind: &str,
    clock: &Clock,
) -> Result<Option<String>, BadFile> {
    let Ok(part) = part(zip, relations, SIDE_BYTES_MAX) else {
        return Ok(None);
    };
    let mut events = Events::of(&part, clock);
    loop {
        match events.next()? {
            Event::Start(element) | Event::Empty(element) => {
                let is_kind =
                    attribute(&element, "Type").is_some_and(|found| found.ends_with(kind));
                if is_kind {
                    return Ok(attribute(&element, "Target"));
                }
            }
            Event::Eof => return Ok(None),
            _ => {}
        }
    }
}

fn broken(reason: String) -> BadFile {
    BadFile::Broken {
        format: FORMAT.into(),
        reason,
    }
}

/// The events of a part.
struct Events<'a> {
    xml: Reader<&'a [u8]>,
    clock: &'a Clock,
    count: u32,
}

impl<'a> Events<'a> {
    fn of(part: &'a [u8], clock: &'a Clock) -> Events<'a> {
        Events {
            xml: Reader::from_reader(part),
            clock,
            count: 0,
        }
    }

    /// The next event. Errors: what is not XML; the time is over.
    fn next(&mut self) -> Result<Event<'a>, BadFile> {
        self.count = self.count.wrapping_add(1);
        if self.count.is_multiple_of(CLOCK_EVENTS) {
            self.clock.look()?;
        }
        let event = self.xml.read_event();
        event.map_err(|error| broken(error.to_string()))
    }
}

/// An attribute, whatever its prefix.
fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let mut attributes = element.attributes();
    let mut found = attributes.with_checks(false).flatten();
    let found = found.find(|attribute| attribute.key.local_name().as_ref() == name)?;
    Some(
        found
            .normalized_value(XmlVersion::Explicit1_0)
            .ok()?
            .into_owned(),
    )
}

fn val(element: &BytesStart<'_>) -> Option<String> {
    attribute(element, "val")
}

/// Outline levels count from 0; 9 is body text.
fn level_of(outline: &str) -> Option<usize> {
    outline
        .parse()
        .ok()
        .filter(|level| *level < 9)
        .map(|level: usize| level + 1)
}

#[derive(Default)]
struct Style {
    level: Option<usize>,
    is_item: Option<bool>,
    based_on: Option<String>,
}

/// What a style makes of a paragraph.
#[derive(Clone, Copy, Default)]
struct Look {
    /// Its heading level.
    level: Option<usize>,
    /// Whether it is an item of a list.
    is_item: bool,
}

/// What each style makes of its paragraphs.
fn styles(mut events: Events<'_>) -> Result<HashMap<String, Look>, BadFile> {
    let (mut all, mut open) = (HashMap::<String, Style>::new(), None::<String>);
    loop {
        match events.next()? {
            Event::Start(element) | Event::Empty(element) => {
                let name = element.local_name();
                if name.as_ref() == "style" {
                    open = attribute(&element, "styleId").filter(|_| all.len() < STYLES_MAX);
                    continue;
                }
                let Some(style) = open.as_ref().map(|id| all.entry(id.clone()).or_default()) else {
                    continue;
                };
                match name.as_ref() {
                    "name" if style.level.is_none() => {
                        let name = val(&element).unwrap_or_default().to_ascii_lowercase();
                        style.level = match name.strip_prefix("heading ") {
                            Some(level) => level.parse().ok(),
                            None => (name == "title").then_some(1),
                        };
                    }
                    "outlineLvl" => style.level = val(&element).and_then(|level| level_of(&level)),
                    "numId" => style.is_item = Some(val(&element).as_deref() != Some("0")),
                    "basedOn" => style.based_on = val(&element),
                    _ => {}
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    Ok(all.keys().map(|id| (id.clone(), look(&all, id))).collect())
}

/// A style with what it inherits.
fn look(all: &HashMap<String, Style>, id: &str) -> Look {
    let (mut look, mut is_item, mut style) = (Look::default(), None, all.get(id));
    for _ in 0..STYLE_STEPS {
        let Some(found) = style else {
            break;
        };
        look.level = look.level.or(found.level);
        is_item = is_item.or(found.is_item);
        style = found.based_on.as_ref().and_then(|id| all.get(id));
    }
    look.is_item = is_item.unwrap_or(false);
    look
}

/// A paragraph that is open: text boxes nest them.
#[derive(Default)]
struct Paragraph {
    text: String,
    level: Option<usize>,
    /// Its level in a list, counting from 0.
    item: Option<usize>,
}

#[derive(Default)]
struct Body {
    out: String,
    open: Vec<Paragraph>,
    /// Cells of the open rows: tables nest.
    rows: Vec<Vec<String>>,
    was_item: bool,
    /// Bytes of text and cells that were ever begun: what is held is never more.
    bytes: usize,
}

impl Body {
    /// Writes to the open paragraph.
    fn push(&mut self, text: &str) {
        if let Some(paragraph) = self.open.last_mut() {
            paragraph.text.push_str(text);
            self.bytes += text.len();
        }
    }

    /// Errors: more text than may be, or nested deeper than is copied from level to level.
    fn check(&self) -> Result<(), BadFile> {
        let bytes = self.bytes.max(self.out.len());
        if bytes > TEXT_BYTES_MAX {
            return Err(BadFile::TextTooLarge(bytes as u64));
        }
        match self.open.len() + self.rows.len() > DEPTH_MAX {
            true => Err(broken(format!(
                "tables and text boxes are nested more than {DEPTH_MAX} deep"
            ))),
            false => Ok(()),
        }
    }

    fn end_paragraph(&mut self) {
        let Some(paragraph) = self.open.pop() else {
            return;
        };
        let text = paragraph.text.trim();
        if text.is_empty() {
            return;
        }
        if let Some(cell) = self.rows.last_mut().and_then(|row| row.last_mut()) {
            let blank = if cell.is_empty() { "" } else { " " };
            cell.push_str(blank);
            cell.push_str(&text.replace('\n', " "));
            return;
        }
        let is_item = paragraph.level.is_none() && paragraph.item.is_some();
        if self.was_item && !is_item {
            self.out.push('\n');
        }
        self.was_item = is_item;
        match (paragraph.level, paragraph.item) {
            (Some(level), _) => {
                let marks = "#".repeat(level.min(6));
                self.out
                    .push_str(&format!("{marks} {}\n\n", text.replace('\n', " ")));
            }
            (None, Some(level)) => {
                let indent = "  ".repeat(level.min(8));
                self.out
                    .push_str(&format!("{indent}- {}\n", text.replace('\n', " ")));
            }
            (None, None) => {
                let escape = if text.starts_with('#') { "\\" } else { "" };
                self.out.push_str(&format!("{escape}{text}\n\n"));
            }
        }
    }

    /// A row of a table is a line; one of a table within a cell is part of the cell.
    fn end_row(&mut self) {
        let row = self.rows.pop().unwrap_or_default().join(" | ");
        match self.rows.last_mut().and_then(|row| row.last_mut()) {
            Some(cell) => cell.push_str(&format!(" {row}")),
            None => {
                self.out.push_str(&row);
                self.out.push('\n');
            }
        }
    }
}

/// Elements whose content is no text of the document, or is said a second time.
fn is_left_out(name: &str) -> bool {
    matches!(
        name,
        "Fallback"
            | "del"
            | "moveFrom"
            | "instrText"
            | "delText"
            // What a format was before a change of it that is tracked.
            | "pPrChange"
            | "rPrChange"
            | "tblPrChange"
            | "tblPrExChange"
            | "tblGridChange"
            | "trPrChange"
            | "tcPrChange"
            | "sectPrChange"
            | "numberingChange"
    )
}

fn body(mut events: Events<'_>, styles: &HashMap<String, Look>) -> Result<String, BadFile> {
    let mut body = Body::default();
    let (mut is_text, mut left_out) = (false, 0_usize);
    loop {
        let event = events.next()?;
        let is_empty = matches!(event, Event::Empty(_));
        match event {
            Event::Start(element) | Event::Empty(element) => {
                let name = element.local_name();
                let name = name.as_ref();
                if left_out > 0 || is_left_out(name) {
                    left_out += usize::from(!is_empty);
                    continue;
                }
                is_text = name == "t" && !is_empty;
                begin(&mut body, name, &element, is_empty, styles);
            }
            Event::End(_) if left_out > 0 => left_out -= 1,
            Event::End(element) => match element.local_name().as_ref() {
                "t" => is_text = false,
                "p" => body.end_paragraph(),
                "tr" => body.end_row(),
                "tbl" if body.rows.is_empty() => body.out.push('\n'),
                _ => {}
            },
            Event::Text(text) if is_text && left_out == 0 => body.push(&text.xml10_content()),
            Event::CData(text) if is_text && left_out == 0 => body.push(&text.xml10_content()),
            Event::GeneralRef(entity) if is_text && left_out == 0 => {
                let name = entity.xml10_content();
                let character = entity.resolve_char_ref().ok().flatten().map(String::from);
                let named = quick_xml::escape::resolve_predefined_entity(&name);
                body.push(&character.or(named.map(str::to_owned)).unwrap_or_default());
            }
            Event::Eof => break,
            _ => {}
        }
        body.check()?;
    }
    while !body.open.is_empty() {
        body.end_paragraph();
    }
    let text = body.out.trim();
    Ok(if text.is_empty() {
        String::new()
    } else {
        format!("{text}\n")
    })
}

/// An element's begin.
fn begin(
    body: &mut Body,
    name: &str,
    element: &BytesStart<'_>,
    is_empty: bool,
    styles: &HashMap<String, Look>,
) {
    match name {
        "p" if !is_empty => body.open.push(Paragraph::default()),
        "tr" if !is_empty => body.rows.push(Vec::new()),
        "tc" => {
            if let Some(row) = body.rows.last_mut() {
                row.push(String::new());
                // The bar that parts it from the next.
                body.bytes += 3;
            }
        }
        "tab" if !body.open.is_empty() => body.push(" "),
        "br" | "cr" => body.push("\n"),
        "noBreakHyphen" => body.push("-"),
        _ => {}
    }
    let Some(paragraph) = body.open.last_mut() else {
        return;
    };
    match name {
        "pStyle" => {
            let look = val(element)
                .and_then(|id| styles.get(&id).copied())
                .unwrap_or_default();
            paragraph.level = look.level;
            paragraph.item = look.is_item.then_some(0);
        }
        "outlineLvl" => {
            paragraph.level = val(element)
                .and_then(|level| level_of(&level))
                .or(paragraph.level);
        }
        // 0 takes the paragraph out of its style's list.
        "numId" => {
            let is_item = val(element).as_deref() != Some("0");
            paragraph.item = is_item.then(|| paragraph.item.unwrap_or(0));
        }
        "ilvl" => {
            paragraph.item = val(element)
                .and_then(|level| level.parse().ok())
                .or(Some(0))
        }
        _ => {}
    }
}
