//! Reads the block structure of Markdown: enough of CommonMark to know where a text may be cut.
//!
//! One pass over lines. What it knows: ATX and setext headings, fenced and indented code, tables
//! (GitHub's), lists with items, block quotes, HTML blocks, thematic breaks, front matter. What it
//! does not: inline markup, nesting inside quotes. A wrong guess costs a worse boundary, never
//! a byte: segments always cover the text.
//!
//! [`sections`] then groups segments by heading. A heading begins a piece of its own ("hard")
//! unless both its section and the one before are tiny, or the one before has no body at all:
//! so a changelog's one-line sections share chunks, and a title keeps to its first section.

use std::ops::Range;
use std::sync::Arc;

use super::prose::lines;
use super::tokens::Units;
use super::{Level, Segment};

/// A section is tiny below this share of a chunk.
const TINY_SHARE: u32 = 8;
/// A setext underline turns at most this many lines of a paragraph into a heading; below a longer
/// one it is taken for a thematic break.
const SETEXT_LINES_MAX: usize = 3;
/// Lines within which front matter must end.
const FRONT_MATTER_LINES_MAX: usize = 200;

/// A heading with what stands before the next one.
#[derive(Debug)]
pub(crate) struct Section {
    /// First byte.
    pub(crate) start: u32,
    /// Just past the last byte.
    pub(crate) end: u32,
    /// Which segments it has.
    pub(crate) segments: Range<usize>,
    /// The headings that enclose it, its own included.
    path: Arc<[Arc<str>]>,
    /// Whether nothing but its heading stands in it.
    is_bare: bool,
    /// Whether no chunk may reach over its beginning.
    pub(crate) is_hard: bool,
}

/// Groups segments (a cover of the text) to sections (a cover of the text).
pub(crate) fn sections(text: &str, segments: &[Segment], units: &Units, max: u32) -> Vec<Section> {
    let mut out: Vec<Section> = Vec::new();
    let mut path: Vec<(u8, Arc<str>)> = Vec::new();
    let mut before: Option<(u8, u32)> = None;
    let mut first = 0;
    while first < segments.len() {
        let is_heading = |segment: &Segment| segment.heading.is_some();
        let last = (first + 1..segments.len())
            .find(|index| is_heading(&segments[*index]))
            .unwrap_or(segments.len());
        let start = if first == 0 { 0 } else { segments[first].start };
        let end = segments
            .get(last)
            .map_or(text.len() as u32, |next| next.start);
        let depth = segments[first]
            .heading
            .as_ref()
            .map_or(0, |heading| heading.0);
        if let Some((depth, title)) = &segments[first].heading {
            path.retain(|outer| outer.0 < *depth);
            path.push((*depth, title.clone()));
        }
        let size = units.between(start, end);
        let is_tiny = size < max / TINY_SHARE;
        let shares = match (before, out.last()) {
            (Some((outer, size_before)), Some(last)) => {
                depth > outer && last.is_bare
                    || depth >= outer && is_tiny && size_before < max / TINY_SHARE
            }
            _ => false,
        };
        out.push(Section {
            start,
            end,
            segments: first..last,
            path: path.iter().map(|(_, title)| title.clone()).collect(),
            is_bare: is_heading(&segments[first]) && last == first + 1,
            is_hard: !shares,
        });
        before = Some((depth, size));
        first = last;
    }
    out
}

/// The headings that enclose all of a piece: the common beginning of the paths of the sections that
/// it overlaps; bare headings, which only lead to the next section, are passed over.
pub(crate) fn common_path(region: &[Section], piece: (u32, u32)) -> Arc<[Arc<str>]> {
    let first = region.partition_point(|section| section.end <= piece.0);
    let last = region
        .partition_point(|section| section.start < piece.1)
        .max(first + 1);
    let touched = &region[first..last.min(region.len())];
    let mut bodies = touched.iter().filter(|section| !section.is_bare).peekable();
    if bodies.peek().is_none() {
        return touched[touched.len() - 1].path.clone();
    }
    let mut common: Option<Arc<[Arc<str>]>> = None;
    for section in bodies {
        common = Some(match common {
            None => section.path.clone(),
            Some(path) => {
                let equal = path
                    .iter()
                    .zip(section.path.iter())
                    .take_while(|(a, b)| a == b);
                let length = equal.count();
                if length == path.len() {
                    path
                } else {
                    path[..length].into()
                }
            }
        });
    }
    common.unwrap_or_else(|| Arc::from([]))
}

/// The segments of a text, in order; they cover it from the first non-blank line on.
pub(crate) fn segments(text: &str) -> Vec<Segment> {
    let mut reader = Reader {
        text,
        out: Vec::new(),
        state: State::Blank,
        is_after_heading: false,
        is_list: false,
    };
    let all: Vec<(u32, &str)> = lines(text).collect();
    let mut index = front_matter(&all);
    if index > 0 {
        reader.open(0, Level::Block, true);
    }
    while index < all.len() {
        let (start, line) = all[index];
        let next = all.get(index + 1).map(|(_, line)| *line);
        reader.line(start, line, next);
        index += 1;
    }
    reader.out
}

/// How many lines of YAML or TOML stand at the beginning, fences included.
fn front_matter(all: &[(u32, &str)]) -> usize {
    let Some(fence) = all.first().map(|(_, line)| line.trim_end()) else {
        return 0;
    };
    if fence != "---" && fence != "+++" {
        return 0;
    }
    // "---", a blank line and prose is a thematic break.
    if all.get(1).is_none_or(|(_, line)| line.trim().is_empty()) {
        return 0;
    }
    let close = all.iter().take(FRONT_MATTER_LINES_MAX).skip(1);
    close
        .map(|(_, line)| line.trim_end())
        .position(|line| line == fence)
        .map_or(0, |at| at + 2)
}

/// What the lines before the present one have begun.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// Nothing: any block may begin.
    Blank,
    /// A paragraph, quote or list item, of so many lines since its segment began.
    Text { lines: usize },
    /// A blank line inside a list: an indented line goes on with the item.
    ListBlank,
    /// Fenced code, until a line of at least `length` × `mark`.
    Fence {
        mark: u8,
        length: usize,
        in_list: bool,
    },
    /// Indented code.
    Indented,
    /// A table.
    Table,
    /// An HTML block until a blank line.
    Html,
    /// An HTML block until its closing mark.
    HtmlUntil(&'static str),
}

struct Reader<'a> {
    text: &'a str,
    out: Vec<Segment>,
    state: State,
    /// The last thing read was a heading: what follows belongs to it.
    is_after_heading: bool,
    /// The last segment is an item of a list, or a further part of one.
    is_list: bool,
}

impl Reader<'_> {
    fn line(&mut self, start: u32, line: &str, next: Option<&str>) {
        match self.state {
            State::Fence {
                mark,
                length,
                in_list,
            } => {
                if closes_fence(line, mark, length) {
                    self.state = if in_list {
                        State::ListBlank
                    } else {
                        State::Blank
                    };
                }
                return;
            }
            State::HtmlUntil(close) => {
                if contains_ignoring_case(line, close) {
                    self.state = State::Blank;
                }
                return;
            }
            _ => {}
        }
        if line.trim().is_empty() {
            self.state = match self.state {
                State::Text { .. } if self.is_in_list() => State::ListBlank,
                State::ListBlank => State::ListBlank,
                State::Indented => State::Indented,
                _ => State::Blank,
            };
            return;
        }
        let indent = indent(line);
        if self.begins_block(start, line, indent, next) {
            return;
        }
        self.continues(start, line, indent);
    }

    /// Whether the line begins something that can interrupt a paragraph, and is dealt with.
    fn begins_block(&mut self, start: u32, line: &str, indent: usize, next: Option<&str>) -> bool {
        let in_list = indent > 0 && self.is_in_list();
        let code = indent >= 4 && !in_list;
        let body = line.trim();
        if let Some((mark, length)) = opens_fence(body).filter(|_| !code) {
            let level = if in_list {
                Level::Line
            } else {
                self.block_level(start)
            };
            self.open(start, level, true);
            self.state = State::Fence {
                mark,
                length,
                in_list,
            };
            return true;
        }
        if let Some((depth, title)) = atx_heading(body).filter(|_| indent < 4) {
            self.heading(start, depth, &title);
            return true;
        }
        if let State::Text { lines } = self.state
            && let Some(depth) = setext_underline(body).filter(|_| indent < 4)
            && lines <= SETEXT_LINES_MAX
            && !self.is_in_list()
        {
            self.setext(start, depth);
            return true;
        }
        if is_thematic_break(body) && indent < 4 {
            let level = self.block_level(start);
            self.open(start, level, false);
            self.state = State::Blank;
            return true;
        }
        if is_list_marker(body) && !code {
            let is_first = !self.is_in_list();
            let level = match (is_first, indent) {
                (true, _) => self.block_level(start),
                (false, 0..=1) => Level::Item,
                (false, _) => Level::Line,
            };
            self.open_item(start, level);
            return true;
        }
        let can_begin = !matches!(self.state, State::Text { .. } | State::Table | State::Html);
        if can_begin && next.is_some_and(|next| line.contains('|') && is_table_rule(next)) {
            let level = self.block_level(start);
            self.open(start, level, true);
            self.state = State::Table;
            return true;
        }
        if can_begin
            && indent < 4
            && let Some(close) = opens_html(body)
        {
            let level = self.block_level(start);
            self.open(start, level, false);
            self.state = match close {
                None => State::Html,
                Some(close) if contains_ignoring_case(line, close) => State::Blank,
                Some(close) => State::HtmlUntil(close),
            };
            return true;
        }
        false
    }

    /// An ordinary line.
    fn continues(&mut self, start: u32, line: &str, indent: usize) {
        match self.state {
            State::Text { lines } => self.state = State::Text { lines: lines + 1 },
            State::ListBlank if indent >= 2 => {
                // A further paragraph of the item.
                self.open_item(start, Level::Line);
            }
            State::Table if line.contains('|') => {}
            State::Html => {}
            State::Indented if indent >= 4 => {}
            State::Blank if indent >= 4 => {
                let level = self.block_level(start);
                self.open(start, level, true);
                self.state = State::Indented;
            }
            State::Blank | State::ListBlank | State::Table | State::Indented => {
                let level = self.block_level(start);
                self.open(start, level, false);
                self.state = State::Text { lines: 1 };
            }
            State::Fence { .. } | State::HtmlUntil(_) => {}
        }
    }

    /// The level of a block that begins here: what follows a heading or a colon keeps to it.
    fn block_level(&self, start: u32) -> Level {
        if self.is_after_heading {
            Level::Glue
        } else if self.text[..start as usize].trim_end().ends_with(':') {
            Level::Item
        } else {
            Level::Block
        }
    }

    fn is_in_list(&self) -> bool {
        self.is_list
            && matches!(
                self.state,
                State::Text { .. } | State::ListBlank | State::Fence { .. }
            )
    }

    fn open(&mut self, start: u32, level: Level, whole: bool) {
        self.out.push(Segment {
            start,
            level,
            whole,
            heading: None,
        });
        self.is_after_heading = false;
        self.is_list = level == Level::Line;
    }

    fn open_item(&mut self, start: u32, level: Level) {
        self.open(start, level, false);
        self.is_list = true;
        self.state = State::Text { lines: 1 };
    }

    fn heading(&mut self, start: u32, depth: u8, title: &str) {
        let level = Level::Heading(7 - depth);
        let heading = Some((depth, Arc::from(title)));
        self.out.push(Segment {
            start,
            level,
            whole: false,
            heading,
        });
        self.is_after_heading = true;
        self.is_list = false;
        self.state = State::Blank;
    }

    /// The paragraph before an underline becomes a heading.
    fn setext(&mut self, underline: u32, depth: u8) {
        let paragraph = self.out.pop().expect("text lies in a segment");
        let title = &self.text[paragraph.start as usize..underline as usize];
        let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
        self.heading(paragraph.start, depth, &title);
    }
}

/// Columns of white space before a line's text; a tab counts four.
fn indent(line: &str) -> usize {
    let blanks = line.bytes().take_while(|byte| matches!(byte, b' ' | b'\t'));
    blanks.map(|byte| if byte == b'\t' { 4 } else { 1 }).sum()
}

fn opens_fence(body: &str) -> Option<(u8, usize)> {
    let mark = *body
        .as_bytes()
        .first()
        .filter(|mark| matches!(mark, b'`' | b'~'))?;
    let length = body.bytes().take_while(|byte| *byte == mark).count();
    let is_inline = mark == b'`' && body[length..].contains('`');
    (length >= 3 && !is_inline).then_some((mark, length))
}

fn closes_fence(line: &str, mark: u8, length: usize) -> bool {
    let body = line.trim();
    body.len() >= length && body.bytes().all(|byte| byte == mark)
}

fn atx_heading(body: &str) -> Option<(u8, String)> {
    let depth = body.bytes().take_while(|byte| *byte == b'#').count();
    let rest = &body[depth..];
    if !(1..=6).contains(&depth) || !(rest.is_empty() || rest.starts_with([' ', '\t'])) {
        return None;
    }
    let title = rest.trim();
    let closed = title.trim_end_matches('#');
    let title = if closed.is_empty() || closed.ends_with([' ', '\t']) {
        closed
    } else {
        title
    };
    Some((depth as u8, title.trim().to_owned()))
}

fn setext_underline(body: &str) -> Option<u8> {
    match body.as_bytes() {
        [b'=', rest @ ..] if rest.iter().all(|byte| *byte == b'=') => Some(1),
        [b'-', rest @ ..] if rest.iter().all(|byte| *byte == b'-') => Some(2),
        _ => None,
    }
}

fn is_thematic_break(body: &str) -> bool {
    let Some(mark) = body
        .bytes()
        .next()
        .filter(|mark| matches!(mark, b'-' | b'*' | b'_'))
    else {
        return false;
    };
    let marks = body.bytes().filter(|byte| *byte == mark).count();
    marks >= 3
        && body
            .bytes()
            .all(|byte| byte == mark || byte == b' ' || byte == b'\t')
}

fn is_list_marker(body: &str) -> bool {
    let digits = body.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &body[digits..];
    let mark = match digits {
        0 => rest.strip_prefix(['-', '*', '+']),
        1..=9 => rest.strip_prefix(['.', ')']),
        _ => None,
    };
    mark.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

fn is_table_rule(line: &str) -> bool {
    let body = line.trim();
    body.contains('-')
        && body.contains('|')
        && body
            .bytes()
            .all(|byte| matches!(byte, b'|' | b'-' | b':' | b' ' | b'\t'))
}

/// `Some(None)`: a block that a blank line ends; `Some(Some(mark))`: one that `mark` ends.
fn opens_html(body: &str) -> Option<Option<&'static str>> {
    let rest = body.strip_prefix('<')?;
    if rest.starts_with("!--") {
        return Some(Some("-->"));
    }
    for (name, close) in [
        ("pre", "</pre>"),
        ("script", "</script>"),
        ("style", "</style>"),
        ("textarea", "</textarea>"),
    ] {
        let is_name = rest
            .get(..name.len())
            .is_some_and(|tag| tag.eq_ignore_ascii_case(name));
        if is_name && !rest[name.len()..].starts_with(|c: char| c.is_alphanumeric()) {
            return Some(Some(close));
        }
    }
    let name = rest.strip_prefix('/').unwrap_or(rest);
    let length = name.bytes().take_while(u8::is_ascii_alphanumeric).count();
    let is_tag = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && matches!(
            name.as_bytes().get(length),
            None | Some(b' ' | b'>' | b'/' | b'\t')
        );
    is_tag.then_some(None)
}

fn contains_ignoring_case(line: &str, ascii: &str) -> bool {
    line.as_bytes()
        .windows(ascii.len())
        .any(|part| part.eq_ignore_ascii_case(ascii.as_bytes()))
}
