//! Finds the possible cuts of running text: paragraphs, lines, sentences, words, characters.
//!
//! Finer cuts are looked for only inside stretches of more than half a chunk: a smaller one never
//! has to be divided, because a region that is too large always has a cut in the middle half
//! unless one stretch of at least half a chunk covers it (see [`super::pack`]). So the list
//! of cuts stays short: one a block in ordinary documents.

use std::sync::Arc;

use super::pack::Cut;
use super::tokens::Units;
use super::{Level, Segment};

/// The paragraphs of a text: what blank lines part.
pub(crate) fn paragraphs(text: &str) -> Vec<Segment> {
    let mut out = Vec::new();
    let mut is_after_blank = true;
    for (start, line) in lines(text) {
        let is_blank = line.trim().is_empty();
        if !is_blank && is_after_blank {
            let heading: Option<(u8, Arc<str>)> = None;
            out.push(Segment {
                start,
                level: Level::Block,
                whole: false,
                heading,
            });
        }
        is_after_blank = is_blank;
    }
    out
}

/// The lines of a text with their offsets, line ends included.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let mut at = 0u32;
    text.split_inclusive('\n').map(move |line| {
        let start = at;
        at += line.len() as u32;
        (start, line)
    })
}

/// The possible cuts of consecutive segments that end at `end`, strictly increasing. The start of the
/// first segment is not one.
pub(crate) fn cuts(
    text: &str,
    units: &Units,
    segments: &[Segment],
    end: u32,
    max: u32,
) -> Vec<Cut> {
    let mut out = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let stop = segments.get(index + 1).map_or(end, |next| next.start);
        if index > 0 {
            out.push(Cut::new(text, segment.start, segment.level));
        }
        let size = units.between(segment.start, stop);
        let must_split = if segment.whole {
            size > max
        } else {
            size > max / 2
        };
        if must_split {
            Finder {
                text,
                units,
                half: max / 2,
                whole: segment.whole,
                out: &mut out,
            }
            .lines(segment.start, stop);
        }
    }
    out
}

/// Adds the finer cuts of one segment.
struct Finder<'a> {
    text: &'a str,
    units: &'a Units,
    half: u32,
    /// Code: lines are parted, sentences mean nothing.
    whole: bool,
    out: &'a mut Vec<Cut>,
}

impl Finder<'_> {
    fn lines(&mut self, start: u32, end: u32) {
        let mut is_after_blank = false;
        for (offset, line) in lines(&self.text[start as usize..end as usize]) {
            let at = start + offset;
            let is_blank = line.trim().is_empty();
            if offset > 0 && !is_blank {
                let level = if is_after_blank {
                    Level::Item
                } else {
                    Level::Line
                };
                self.out.push(Cut::new(self.text, at, level));
            }
            is_after_blank = is_blank;
            let stop = at + line.len() as u32;
            if self.units.between(at, stop) > self.half {
                if self.whole {
                    self.words(at, stop)
                } else {
                    self.sentences(at, stop)
                }
            }
        }
    }

    fn sentences(&mut self, start: u32, end: u32) {
        let mut from = start;
        let ends: Vec<u32> = sentence_starts(&self.text[start as usize..end as usize]).collect();
        for at in ends.into_iter().map(|at| start + at).chain([end]) {
            if self.units.between(from, at) > self.half {
                self.words(from, at);
            }
            if at < end {
                self.out.push(Cut::new(self.text, at, Level::Sentence));
            }
            from = at;
        }
    }

    fn words(&mut self, start: u32, end: u32) {
        let piece = &self.text[start as usize..end as usize];
        let mut from = start;
        let mut is_after_blank = false;
        for (offset, c) in piece.char_indices() {
            let at = start + offset as u32;
            if is_after_blank && !c.is_whitespace() {
                self.characters(from, at);
                self.out.push(Cut::new(self.text, at, Level::Word));
                from = at;
            }
            is_after_blank = offset > 0 && c.is_whitespace();
        }
        self.characters(from, end);
    }

    fn characters(&mut self, start: u32, end: u32) {
        if self.units.between(start, end) <= self.half {
            return;
        }
        let mut last = start;
        for at in self.units.inside(start, end) {
            if *at > last {
                self.out.push(Cut::new(self.text, *at, Level::Character));
                last = *at;
            }
        }
    }
}

/// Where sentences after the first begin: after `.`, `!`, `?` or `…` with closing marks and white
/// space, unless a lower-case letter follows ("e.g. this"); after the ideographic stops at once.
fn sentence_starts(text: &str) -> impl Iterator<Item = u32> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        /// Within a sentence.
        Inside,
        /// After a full stop, waiting for white space.
        Stopped,
        /// After a full stop and white space.
        Parted,
        /// After an ideographic stop, which needs no white space.
        Ideographic,
    }
    let is_closing = |c: char| {
        matches!(
            c,
            ')' | ']' | '"' | '\'' | '”' | '’' | '»' | '*' | '_' | '」' | '』'
        )
    };
    let mut state = State::Inside;
    text.char_indices().filter_map(move |(at, c)| {
        let is_start = state == State::Parted && !c.is_whitespace() && !c.is_lowercase()
            || state == State::Ideographic && !c.is_whitespace() && !is_closing(c);
        state = match (c, state) {
            ('。' | '！' | '？', _) => State::Ideographic,
            ('.' | '!' | '?' | '…', _) => State::Stopped,
            (_, State::Stopped | State::Ideographic) if is_closing(c) => state,
            (_, State::Stopped | State::Parted) if c.is_whitespace() => State::Parted,
            (_, State::Ideographic) if c.is_whitespace() => state,
            _ => State::Inside,
        };
        (is_start && at > 0).then_some(at as u32)
    })
}
