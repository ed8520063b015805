//! A JSON reader that keeps what Connect needs and `serde_json`'s tree does not: the digits of
//! numbers (NUMERIC is exact), the order of members (keys), and the text of the `schema` member,
//! which is equal in nearly all messages of a topic and need not be parsed again.
//!
//! The grammar is RFC 8259, checked against `serde_json` on random and damaged texts in the tests.
//! Strings without escapes are borrowed. Cost: linear in the bytes. Limits: [`DEPTH_MAX`].

use std::borrow::Cow;

use engine::error::DataError;

use super::{Node, raw};

/// Nesting of arrays and objects, so that no message can overflow the stack.
pub const DEPTH_MAX: usize = 128;

/// Texts of which so many bytes are simple are taken in larger steps.
const LONG_TEXT: usize = 16;
/// Room for a text with escapes, at first.
const UNESCAPED_BYTES: usize = 4_096;
/// Room for an object's members, at first.
const MEMBERS: usize = 8;

/// Parses one JSON value. `what` names it in errors: `key`, `value`.
pub fn parse<'a>(bytes: &'a [u8], what: &str) -> Result<Node<'a>, DataError> {
    parse_text(raw::utf8(bytes, what)?, what)
}

/// Parses a value that may be wrapped by Connect's JsonConverter: of
/// `{"schema":…,"payload":…}` the schema's text and the payload, else no schema and the value.
pub fn parse_wrapped<'a>(
    bytes: &'a [u8],
    what: &str,
) -> Result<(Option<&'a str>, Node<'a>), DataError> {
    let text = raw::utf8(bytes, what)?;
    let mut parser = Parser::new(text);
    match parser.wrapped() {
        Ok(Some((schema, payload))) => Ok((Some(schema), payload)),
        // Not wrapped, or damaged: the plain reading says which.
        _ => parse_text(text, what).map(|node| (None, node)),
    }
}

fn parse_text<'a>(text: &'a str, what: &str) -> Result<Node<'a>, DataError> {
    let mut parser = Parser::new(text);
    parser
        .document()
        .map_err(|reason| parser.error(reason, what))
}

/// How many bytes of a string come before one that is not simply taken: a quote, a backslash, a
/// control character. Eight at a time, by the tests for a zero byte and for a byte less than n of
/// Anderson's "Bit Twiddling Hacks" (the lowest byte that they find is one); of long texts more.
fn plain_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let special = |word: u64| {
        let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word & HIGH;
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        quote | backslash | below(word, 0x20)
    };
    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk::<8>() {
        let found = special(u64::from_le_bytes(*word));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
        if at == LONG_TEXT {
            at += plain_blocks(&bytes[at..]);
        }
    }
    let rest = bytes[at..].iter();
    at + rest.take_while(|byte| !is_special(**byte)).count()
}

/// How many bytes lie in blocks of simple ones, of which compilers test each by a few wide instructions.
fn plain_blocks(bytes: &[u8]) -> usize {
    const BLOCK: usize = 32;
    let is_plain = |block: &&[u8; BLOCK]| {
        let found = block.iter().map(|byte| u8::from(is_special(*byte)));
        found.fold(0, |any, one| any | one) == 0
    };
    let blocks = bytes.as_chunks::<BLOCK>().0.iter();
    blocks.take_while(is_plain).count() * BLOCK
}

fn is_special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < b' '
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

type Parsed<T> = Result<T, &'static str>;

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Parser {
            text,
            bytes: text.as_bytes(),
            at: 0,
            depth: 0,
        }
    }

    fn error(&self, reason: &str, what: &str) -> DataError {
        DataError::new(
            "invalid-json",
            format!("the {what} is not valid JSON at byte {}: {reason}", self.at),
        )
        .expected("UTF-8 JSON")
    }

    fn document(&mut self) -> Parsed<Node<'a>> {
        let node = self.value()?;
        self.end()?;
        Ok(node)
    }

    fn end(&mut self) -> Parsed<()> {
        self.space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err("trailing characters"),
        }
    }

    /// `{"schema":…,"payload":…}` with exactly these members, in any order.
    fn wrapped(&mut self) -> Parsed<Option<(&'a str, Node<'a>)>> {
        self.space();
        if self.peek() != Some(b'{') {
            return Ok(None);
        }
        self.at += 1;
        let (mut schema, mut payload) = (None, None);
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            self.take(b':', "expected `:`")?;
            self.space();
            match &*name {
                "schema" if schema.is_none() => {
                    let start = self.at;
                    self.skip()?;
                    schema = Some(&self.text[start..self.at]);
                }
                "payload" if payload.is_none() => payload = Some(self.value()?),
                _ => return Ok(None),
            }
            self.space();
            match self.next() {
                Some(b',') => {}
                Some(b'}') => break,
                _ => return Err("expected `,` or `}`"),
            }
        }
        self.end()?;
        Ok(schema.zip(payload))
    }

    fn value(&mut self) -> Parsed<Node<'a>> {
        self.space();
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => self.string().map(Node::Text),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Node::Bool(true)),
            Some(b'f') => self.word("false", Node::Bool(false)),
            Some(b'n') => self.word("null", Node::Null),
            Some(_) => Err("expected a value"),
            None => Err("the text ends too early"),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Parsed<Node<'a>>) -> Parsed<Node<'a>> {
        if self.depth == DEPTH_MAX {
            return Err("nested too deeply");
        }
        self.depth += 1;
        self.at += 1;
        let node = read(self)?;
        self.depth -= 1;
        Ok(node)
    }

    fn object(&mut self) -> Parsed<Node<'a>> {
        let mut members = Vec::with_capacity(MEMBERS);
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Node::Object(members));
        }
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            self.take(b':', "expected `:`")?;
            members.push((name, self.value()?));
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err("expected `,` or `}`"),
            }
        }
        self.at += 1;
        Ok(Node::Object(members))
    }

    fn array(&mut self) -> Parsed<Node<'a>> {
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Node::Array(items));
        }
        loop {
            items.push(self.value()?);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err("expected `,` or `]`"),
            }
        }
        self.at += 1;
        Ok(Node::Array(items))
    }

    fn word(&mut self, word: &str, node: Node<'a>) -> Parsed<Node<'a>> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err("expected a value");
        }
        self.at += word.len();
        Ok(node)
    }

    fn number(&mut self) -> Parsed<Node<'a>> {
        let start = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err("expected a digit"),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
        }
        Ok(Node::Number(Cow::Borrowed(&self.text[start..self.at])))
    }

    fn digits(&mut self) -> Parsed<()> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start {
            return Err("expected a digit");
        }
        Ok(())
    }

    fn string(&mut self) -> Parsed<Cow<'a, str>> {
        self.take(b'"', "expected a string")?;
        let mut start = self.at;
        let mut owned = String::new();
        loop {
            self.at += plain_prefix(&self.bytes[self.at..]);
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    if owned.capacity() == 0 {
                        // Where one escape is, more follow: a text does not grow step by step.
                        owned.reserve((self.bytes.len() - start).min(UNESCAPED_BYTES));
                    }
                    owned.push_str(&self.text[start..self.at]);
                    self.at += 1;
                    owned.push(self.escape()?);
                    start = self.at;
                }
                Some(_) => return Err("a control character in a string"),
                None => return Err("the text ends in a string"),
            }
        }
        let rest = &self.text[start..self.at];
        self.at += 1;
        if owned.is_empty() {
            return Ok(Cow::Borrowed(rest));
        }
        owned.push_str(rest);
        Ok(Cow::Owned(owned))
    }

    fn escape(&mut self) -> Parsed<char> {
        Ok(match self.next() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err("an unknown escape"),
        })
    }

    fn unicode(&mut self) -> Parsed<char> {
        let first = self.hex4()?;
        let code = if (0xd800..0xdc00).contains(&first) {
            if self.next() != Some(b'\\') || self.next() != Some(b'u') {
                return Err("half a surrogate pair");
            }
            let second = self.hex4()?;
            if !(0xdc00..0xe000).contains(&second) {
                return Err("half a surrogate pair");
            }
            0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
        } else {
            first
        };
        char::from_u32(code).ok_or("half a surrogate pair")
    }

    fn hex4(&mut self) -> Parsed<u32> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.next().and_then(|byte| char::from(byte).to_digit(16));
            code = code << 4 | digit.ok_or("expected four hexadecimal digits")?;
        }
        Ok(code)
    }

    /// Passes over a value without building it. Brackets and strings only: what it passes over is
    /// parsed when it is looked at.
    fn skip(&mut self) -> Parsed<()> {
        let mut open = 0usize;
        loop {
            match self.peek().ok_or("the text ends too early")? {
                b'"' => self.skip_string()?,
                b'{' | b'[' => {
                    open += 1;
                    self.at += 1;
                }
                b'}' | b']' if open == 0 => return Ok(()),
                b'}' | b']' => {
                    open -= 1;
                    self.at += 1;
                }
                b',' if open == 0 => return Ok(()),
                _ => self.at += 1,
            }
        }
    }

    fn skip_string(&mut self) -> Parsed<()> {
        self.at += 1;
        loop {
            match self.next() {
                Some(b'"') => return Ok(()),
                Some(b'\\') => self.at += 1,
                Some(_) => {}
                None => return Err("the text ends in a string"),
            }
        }
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8, reason: &'static str) -> Parsed<()> {
        if self.peek() != Some(byte) {
            return Err(reason);
        }
        self.at += 1;
        Ok(())
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }
}
