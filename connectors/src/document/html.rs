//! HTML to Markdown: what a reader of the page reads, with its headings, lists and code.
//!
//! Idea: only the tokens of the page are read, as browsers cut them; no tree is built. A page nested a
//! million deep costs no stack, and missing end tags do no harm, since every block starts a line. The page
//! is read in pieces; between two of them the clock and the bytes of the text are looked at.
//!
//! ```text
//! bytes ─ encoding (BOM, <meta charset>, UTF-8) ─▶ tokens ─▶ Page: open blocks, lists, <pre> ─▶ Markdown
//! ```
//!
//! | HTML | becomes |
//! |---|---|
//! | `h1` … `h6` | `#` … `######`; the title is the first heading of a page without `h1` |
//! | `ul`, `ol`, `li` | `- `, `1. `, two blanks a level |
//! | `pre`; `code` | a fence with the language of `class="language-x"`; backticks |
//! | `a`, `b`, `em` … | their text; an image its `alt` |
//! | `tr`, `td` | one line, cells apart by a bar |
//! | `script`, `style`, `template`, `noscript`, `nav`, `button`, `select`, `svg`, `iframe`, `hidden` | nothing |
//!
//! Invariants: linear in the bytes but for the attributes of one tag, each of which is compared with all
//! others (the clock ends that); white space is folded outside `pre`, characters without width (soft
//! hyphens) are dropped; a text that would read as a heading is escaped. A `nav` or `hidden` element that
//! is never closed hides nothing.
//!
//! Limits: styles are not looked at, so what CSS hides is text; forms keep their labels only; lists
//! deeper than [`LISTS_MAX`] count as that deep.

use std::cell::RefCell;

use engine::limits::TEXT_BYTES_MAX;
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};

use super::encoding::decode;
use super::guard::Clock;
use crate::text::BadFile;

/// Characters that are not seen: where a word may be cut, and marks of a text's begin.
const NO_WIDTH: [char; 3] = ['\u{ad}', '\u{200b}', '\u{feff}'];
/// Levels of lists that are indented.
const LIST_LEVELS: usize = 16;
/// Levels of lists that are told apart.
const LISTS_MAX: usize = 1_024;
/// Bytes of the page between two looks at the clock.
const PIECE_BYTES: usize = 16 << 10;

/// The text of a page. Errors: an encoding that is not known, or that its bytes do not keep; too much
/// text; the time is over.
pub(super) fn text(content: &[u8], clock: &Clock) -> Result<String, BadFile> {
    let page = decode(content)?;
    let read_page = match read(&page, true, clock)? {
        // An element without an end would take the rest of the page with it.
        Page {
            hidden: Some(hidden),
            ..
        } if hidden.is_open_to_doubt() => read(&page, false, clock)?,
        page => page,
    };
    Ok(read_page.finish())
}

fn read(page: &str, hides_more: bool, clock: &Clock) -> Result<Page, BadFile> {
    let reader = Reader(RefCell::new(Page {
        hides_more,
        ..Page::default()
    }));
    let tokenizer = Tokenizer::new(reader, TokenizerOpts::default());
    let input = BufferQueue::default();
    let mut rest = page;
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        rest = more;
        input.push_back(StrTendril::from_slice(piece));
        // Nothing here answers with a script or an encoding, so one call takes all.
        let _ = tokenizer.feed(&input);
        clock.look()?;
        let bytes = tokenizer.sink.0.borrow().bytes();
        if bytes > TEXT_BYTES_MAX {
            return Err(BadFile::TextTooLarge(bytes as u64));
        }
    }
    tokenizer.end();
    Ok(tokenizer.sink.0.into_inner())
}

struct Reader(RefCell<Page>);

impl TokenSink for Reader {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut page = self.0.borrow_mut();
        match token {
            Token::CharacterTokens(text) => page.characters(&text),
            Token::TagToken(tag) if tag.kind == TagKind::StartTag => {
                page.open(&tag);
                return raw(&tag.name).map_or(TokenSinkResult::Continue, TokenSinkResult::RawData);
            }
            Token::TagToken(tag) => page.close(&tag.name),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// Elements whose content is not cut into tags.
fn raw(name: &str) -> Option<RawKind> {
    match name {
        "script" => Some(RawKind::ScriptData),
        "style" | "xmp" | "iframe" | "noembed" | "noframes" => Some(RawKind::Rawtext),
        "title" | "textarea" => Some(RawKind::Rcdata),
        _ => None,
    }
}

/// An element whose content is left out.
struct Hidden {
    name: String,
    depth: usize,
}

impl Hidden {
    /// Whether leaving its end tag out hides what was meant to be seen; scripts end with the page.
    fn is_open_to_doubt(&self) -> bool {
        raw(&self.name).is_none()
    }
}

/// The page as far as it is read.
#[derive(Default)]
struct Page {
    out: String,
    hides_more: bool,
    hidden: Option<Hidden>,
    /// White space that is written when a word follows.
    has_blank: bool,
    /// What begins the next line that has a word.
    prefix: Option<String>,
    /// Open lists: the next number of an ordered one; and how many more are open than are told apart.
    lists: Vec<Option<u64>>,
    deeper: usize,
    /// The text of an open `pre`, and its language.
    pre: Option<(String, String)>,
    /// The text of an open `title`.
    title: Option<String>,
    is_in_title: bool,
    /// Open elements of code within a line, and whether the first waits for its first word.
    code_depth: usize,
    opens_code: bool,
    has_heading: bool,
    has_cell: bool,
}

impl Page {
    /// Bytes that are held.
    fn bytes(&self) -> usize {
        let pre = self
            .pre
            .as_ref()
            .map_or(0, |(code, language)| code.len() + language.len());
        self.out.len() + pre + self.title.as_ref().map_or(0, String::len)
    }

    fn open(&mut self, tag: &Tag) {
        let name = &*tag.name;
        if let Some(hidden) = &mut self.hidden {
            let is_same = hidden.name == *name;
            // The next of its kind ends a paragraph or an item, whose end tag may be left out.
            if !(is_same && has_optional_end(name)) {
                hidden.depth += usize::from(is_same);
                return;
            }
            self.hidden = None;
        }
        if self.hides(tag) {
            self.hidden = Some(Hidden {
                name: name.to_owned(),
                depth: 1,
            });
            return;
        }
        if let Some((_, language)) = &mut self.pre {
            if language.is_empty() && name == "code" {
                *language = language_of(tag);
            }
            if name == "br" {
                self.characters("\n");
            }
            return;
        }
        match name {
            "title" => self.is_in_title = true,
            "pre" => {
                self.block();
                self.pre = Some((String::new(), language_of(tag)));
            }
            "code" | "kbd" | "samp" => self.code(),
            // A row stays one line.
            "br" if self.has_cell => self.has_blank = true,
            "br" => self.line(),
            "img" => {
                let alt = attribute(tag, "alt").unwrap_or_default().to_owned();
                self.characters(&alt);
            }
            "ul" | "ol" | "menu" if self.lists.len() >= LISTS_MAX => {
                self.line();
                self.deeper += 1;
            }
            "ul" | "ol" | "menu" => {
                match self.lists.is_empty() {
                    true => self.block(),
                    false => self.line(),
                }
                let start = attribute(tag, "start").and_then(|start| start.parse().ok());
                self.lists.push((name == "ol").then(|| start.unwrap_or(1)));
            }
            "li" => self.item(),
            "tr" => {
                self.line();
                self.has_cell = false;
            }
            "td" | "th" => {
                if std::mem::replace(&mut self.has_cell, true) {
                    self.out.push_str(" | ");
                    self.has_blank = false;
                }
            }
            _ => match heading(name) {
                Some(level) => {
                    self.has_heading |= level == 1;
                    self.block();
                    self.prefix = Some(format!("{} ", "#".repeat(level)));
                }
                None if is_block(name) => self.boundary(),
                None => {}
            },
        }
    }

    fn close(&mut self, name: &str) {
        if let Some(hidden) = &mut self.hidden {
            hidden.depth -= usize::from(hidden.name == *name);
            if hidden.depth == 0 {
                self.hidden = None;
            }
            return;
        }
        if self.pre.is_some() && name != "pre" {
            return;
        }
        match name {
            "title" => self.is_in_title = false,
            "pre" => self.fence(),
            "code" | "kbd" | "samp" => self.code_end(),
            "ul" | "ol" | "menu" if self.deeper > 0 => {
                self.line();
                self.deeper -= 1;
            }
            "ul" | "ol" | "menu" => {
                self.lists.pop();
                match self.lists.is_empty() {
                    true => self.block(),
                    false => self.line(),
                }
            }
            "li" => self.line(),
            "tr" | "table" => {
                self.has_cell = false;
                self.line();
                if name == "table" {
                    self.boundary();
                }
            }
            _ if heading(name).is_some() => self.block(),
            _ if is_block(name) => self.boundary(),
            _ => {}
        }
    }

    fn characters(&mut self, text: &str) {
        if self.hidden.is_some() {
            return;
        }
        if self.is_in_title {
            self.title.get_or_insert_default().push_str(text);
            return;
        }
        if let Some((code, _)) = &mut self.pre {
            code.push_str(text);
            return;
        }
        let shown: String;
        let text = match text.contains(NO_WIDTH) {
            true => {
                shown = text.replace(NO_WIDTH, "");
                &*shown
            }
            false => text,
        };
        let is_blank = |c: char| c.is_ascii_whitespace() || c == '\u{a0}';
        self.has_blank |= text.starts_with(is_blank);
        for (at, word) in text
            .split(is_blank)
            .filter(|word| !word.is_empty())
            .enumerate()
        {
            self.has_blank |= at > 0;
            self.word(word);
        }
        self.has_blank |= text.ends_with(is_blank);
    }

    fn word(&mut self, word: &str) {
        let is_line_start = self.out.is_empty() || self.out.ends_with('\n');
        if is_line_start {
            match self.prefix.take() {
                Some(prefix) => self.out.push_str(&prefix),
                // A text, not a heading.
                None if word.starts_with('#') => self.out.push('\\'),
                None => {}
            }
        } else if self.has_blank && !self.out.ends_with(' ') {
            self.out.push(' ');
        }
        self.has_blank = false;
        if std::mem::take(&mut self.opens_code) {
            self.out.push('`');
        }
        self.out.push_str(word);
    }

    /// Begins code within a line; its backtick waits for a word.
    fn code(&mut self) {
        self.opens_code |= self.code_depth == 0;
        self.code_depth += 1;
    }

    fn code_end(&mut self) {
        self.code_depth = self.code_depth.saturating_sub(1);
        if self.code_depth == 0 && !std::mem::take(&mut self.opens_code) && self.is_in_line() {
            self.out.push('`');
        }
    }

    fn is_in_line(&self) -> bool {
        !self.out.is_empty() && !self.out.ends_with('\n')
    }

    /// Ends the line, if one has begun.
    fn line(&mut self) {
        // Code does not cross lines: a page that never closes it has one backtick too few, not a
        // code block to its end.
        self.code_depth = 0;
        self.opens_code = false;
        if self.is_in_line() {
            self.out.push('\n');
        }
        self.has_blank = false;
    }

    /// Ends the paragraph: a blank line.
    fn block(&mut self) {
        self.line();
        self.prefix = None;
        if !self.out.is_empty() && !self.out.ends_with("\n\n") {
            self.out.push('\n');
        }
    }

    /// A block's begin or end: within a list or a table it is a line only.
    fn boundary(&mut self) {
        match self.lists.is_empty() && !self.has_cell {
            true if self.prefix.is_none() => self.block(),
            true => {}
            false if self.has_cell => self.has_blank = true,
            false => self.line(),
        }
    }

    fn item(&mut self) {
        self.line();
        let indent = "  ".repeat(self.lists.len().saturating_sub(1).min(LIST_LEVELS));
        let mark = match self.lists.last_mut() {
            Some(Some(number)) => {
                let mark = format!("{number}. ");
                *number = number.saturating_add(1);
                mark
            }
            _ => "- ".to_owned(),
        };
        self.prefix = Some(indent + &mark);
    }

    /// Writes what a `pre` held, between fences that are longer than any in it.
    fn fence(&mut self) {
        let Some((code, language)) = self.pre.take() else {
            return;
        };
        let code = code.trim_matches('\n');
        if code.trim().is_empty() {
            return;
        }
        let runs = code.split(|c| c != '`').map(str::len);
        let fence = "`".repeat(runs.max().unwrap_or(0).max(2) + 1);
        self.block();
        self.out
            .push_str(&format!("{fence}{language}\n{code}\n{fence}\n\n"));
    }

    fn hides(&self, tag: &Tag) -> bool {
        let is_hidden = match &*tag.name {
            "script" | "style" | "template" | "noscript" | "iframe" | "object" | "svg"
            | "canvas" | "button" | "select" | "datalist" | "noembed" | "noframes" => true,
            "nav" => self.hides_more,
            _ => {
                let is_navigation = attribute(tag, "role") == Some("navigation");
                let is_hidden = attribute(tag, "hidden").is_some_and(|it| it != "until-found");
                self.hides_more && (is_navigation || is_hidden)
            }
        };
        is_hidden && !is_void(&tag.name) && !(tag.self_closing && &*tag.name == "svg")
    }

    fn finish(mut self) -> String {
        self.fence();
        let title = self.title.unwrap_or_default();
        let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = self.out.trim();
        let mut text = match self.has_heading || title.is_empty() {
            true => text.to_owned(),
            false => format!("# {title}\n\n{text}").trim_end().to_owned(),
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }
}

fn heading(name: &str) -> Option<usize> {
    match name.as_bytes() {
        [b'h', level @ b'1'..=b'6'] => Some(usize::from(level - b'0')),
        _ => None,
    }
}

fn is_block(name: &str) -> bool {
    matches!(
        name,
        "p" | "div"
            | "section"
            | "article"
            | "main"
            | "header"
            | "footer"
            | "aside"
            | "nav"
            | "blockquote"
            | "figure"
            | "figcaption"
            | "address"
            | "form"
            | "fieldset"
            | "legend"
            | "details"
            | "summary"
            | "dl"
            | "dt"
            | "dd"
            | "table"
            | "caption"
            | "hr"
            | "body"
            | "option"
            | "center"
    )
}

/// Elements whose end tag may be left out before another of them.
fn has_optional_end(name: &str) -> bool {
    matches!(
        name,
        "p" | "li" | "dt" | "dd" | "tr" | "td" | "th" | "option"
    )
}

/// Elements that have no end tag.
fn is_void(name: &str) -> bool {
    matches!(
        name,
        "area"
            | "base"
            | "br"
            | "col"
            | "embed"
            | "hr"
            | "img"
            | "input"
            | "link"
            | "meta"
            | "param"
            | "source"
            | "track"
            | "wbr"
    )
}

fn attribute<'a>(tag: &'a Tag, name: &str) -> Option<&'a str> {
    let found = tag
        .attrs
        .iter()
        .find(|attribute| &*attribute.name.local == name);
    found.map(|attribute| &*attribute.value)
}

/// `rust` of `class="highlight language-rust"`.
fn language_of(tag: &Tag) -> String {
    let classes = attribute(tag, "class").unwrap_or_default();
    let language = classes.split_ascii_whitespace().find_map(|class| {
        class
            .strip_prefix("language-")
            .or_else(|| class.strip_prefix("lang-"))
    });
    language
        .filter(|name| !name.contains('`'))
        .unwrap_or_default()
        .to_owned()
}
