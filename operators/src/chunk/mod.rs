//! Cuts a text into chunks so that an edit changes only the chunks that it touches.
//!
//! ```text
//! text ─ tokenise once ─▶ Units ─┐
//!      ─ strategy ─▶ Segments ───┴▶ cuts (where, level, local hash) ─ pack ─▶ pieces ─ trim, hash ─▶ ChunkPiece*
//! ```
//!
//! The idea: a chunk is embedded again when its bytes change, so what an edit costs is decided by
//! where the *other* chunks end. Filling chunks greedily from the front moves every later boundary
//! of a section; here a boundary is chosen by what is written beside it (content-defined
//! chunking), structure first: headings, blocks, items, lines, sentences, words, characters.
//! [`pack`] has the algorithm; `docs/chunking.md` the measurements.
//!
//! Laws (tested in `tests/chunk_laws.rs`), for every text and for `overlap = 0`:
//! - *Coverage*: every non-blank byte is in exactly one chunk; between chunks lies white space only.
//! - *Bounds*: ranges lie on character boundaries, are trimmed and not empty; a chunk has at most
//!   `max_tokens` tokens, specials included (not for `none`: there the model cuts).
//! - *Function*: equal texts have equal chunks, whatever was cut before.
//! - *Locality*: what stands before a heading that begins a section of its own has no influence on
//!   the chunks after it, and the other way round.
//!
//! Limits: texts up to [`engine::limits::TEXT_BYTES_MAX`]; cost O(n log n) in the number of
//! possible cuts, linear in bytes and tokens.

mod markdown;
mod pack;
mod prose;
mod tokens;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use engine::model::{ChunkPiece, ContentHash};
use serde::{Deserialize, Serialize};

pub use tokens::{ModelTokens, TokenCounter, WordTokens};

use pack::{Budget, Cut};
use tokens::Units;

/// Share of `max_tokens` kept free for the headings when they are embedded with the text.
const HEADING_SHARE: u32 = 4;
/// The smallest budget of text tokens that a chunker works with, whatever was declared.
const TEXT_TOKENS_MIN: u32 = 4;

/// How texts are cut: the CHUNK BY clause.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkingSpec {
    /// How to cut.
    pub strategy: ChunkStrategy,
    /// Longest chunk in tokens of the model, special tokens included.
    pub max_tokens: u32,
    /// Tokens repeated from the chunk before (`fixed` and `recursive`); 0 for edit-stable chunks.
    pub overlap: u32,
    /// Whether the heading path is put before the text that is embedded.
    pub heading_prefix: bool,
}

impl Default for ChunkingSpec {
    /// `recursive(max_tokens => 256)`, the language's default.
    fn default() -> Self {
        ChunkingSpec {
            strategy: ChunkStrategy::Recursive,
            max_tokens: 256,
            overlap: 0,
            heading_prefix: false,
        }
    }
}

/// Ways to cut a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChunkStrategy {
    /// Along headings, blocks, items, lines, sentences.
    Markdown,
    /// Along paragraphs, lines, sentences, words, characters.
    Recursive,
    /// Every `max_tokens` tokens, at word boundaries where there are any.
    Fixed,
    /// One chunk a text.
    None,
}

impl ChunkingSpec {
    /// The canonical text of the clause: part of every chunk's id. Defaults are left out, so that
    /// naming a default changes no id.
    pub fn canonical(&self) -> String {
        let name = match self.strategy {
            ChunkStrategy::Markdown => "markdown",
            ChunkStrategy::Recursive => "recursive",
            ChunkStrategy::Fixed => "fixed",
            ChunkStrategy::None => return "none".to_owned(),
        };
        let mut text = format!("{name}(max_tokens => {}", self.max_tokens);
        if self.overlap > 0 && self.strategy != ChunkStrategy::Markdown {
            text.push_str(&format!(", overlap => {}", self.overlap));
        }
        if self.heading_prefix && self.strategy == ChunkStrategy::Markdown {
            text.push_str(", headings => 'prefix'");
        }
        text + ")"
    }
}

/// One stretch of text that a strategy found, before sizes are looked at.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    /// First byte.
    start: u32,
    /// How good a place its start is for a cut.
    level: Level,
    /// Whether it may be cut inside even when it fits (prose) or only when it does not (code,
    /// tables, front matter).
    whole: bool,
    /// For a heading: depth and title.
    heading: Option<(u8, Arc<str>)>,
}

/// How good a place is for a cut: structure before prose, prose before bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Between two tokens of one word.
    Character,
    /// Between two words.
    Word,
    /// Between a heading and what it heads: last resort among the structural ones.
    Glue,
    /// Between two sentences.
    Sentence,
    /// Between two lines.
    Line,
    /// Between list items, or between a text that ends in a colon and what it announces.
    Item,
    /// Between paragraphs, lists, tables, code.
    Block,
    /// Before a heading of depth 6 to 1: the outer the better.
    Heading(u8),
}

impl Level {
    /// 0 for the worst place. `Heading` holds 7 − depth, so that outer headings rank higher.
    fn rank(self) -> u8 {
        match self {
            Level::Character => 0,
            Level::Word => 1,
            Level::Glue => 2,
            Level::Sentence => 3,
            Level::Line => 4,
            Level::Item => 5,
            Level::Block => 6,
            Level::Heading(outerness) => 7 + outerness,
        }
    }
}

/// Cuts texts by one CHUNK BY clause. `Send + Sync`; make one an index and share it.
pub struct Chunker {
    spec: ChunkingSpec,
    strategy: String,
    tokens: Arc<dyn TokenCounter>,
}

impl Chunker {
    /// A chunker for a clause, counting with the tokens of the index's model
    /// ([`ModelTokens`]), or with words ([`WordTokens`]) for an index without one.
    ///
    /// A `max_tokens` that leaves fewer than four text tokens is raised to four; an `overlap`
    /// above half of the budget is lowered to half.
    pub fn new(chunking: &ChunkingSpec, tokens: Arc<dyn TokenCounter>) -> Self {
        Chunker {
            spec: chunking.clone(),
            strategy: chunking.canonical(),
            tokens,
        }
    }

    /// The canonical text of the clause, for [`engine::model::ChunkId::new`].
    pub fn strategy(&self) -> &str {
        &self.strategy
    }

    /// Text tokens that fit one chunk: special tokens and room for headings are taken off.
    pub fn text_tokens_max(&self) -> u32 {
        let special = u32::try_from(self.tokens.special_tokens()).unwrap_or(u32::MAX);
        let mut max = self.spec.max_tokens.saturating_sub(special);
        if self.has_heading_prefix() {
            max -= max / HEADING_SHARE;
        }
        max.max(TEXT_TOKENS_MIN)
    }

    fn has_heading_prefix(&self) -> bool {
        self.spec.heading_prefix && self.spec.strategy == ChunkStrategy::Markdown
    }

    /// The chunks of a text, in text order; none for blank text.
    ///
    /// # Panics
    /// When the text has 4 GiB or more: callers refuse texts above
    /// [`engine::limits::TEXT_BYTES_MAX`] long before.
    pub fn cut(&self, text: &str) -> Vec<ChunkPiece> {
        assert!(
            u32::try_from(text.len()).is_ok(),
            "texts of 4 GiB are refused at the door"
        );
        if text.trim().is_empty() {
            return Vec::new();
        }
        let none: Arc<[Arc<str>]> = Arc::from([]);
        let ranges: Vec<(u32, u32, Arc<[Arc<str>]>)> = match self.spec.strategy {
            ChunkStrategy::None => vec![(0, text.len() as u32, none)],
            ChunkStrategy::Markdown => self.cut_markdown(text),
            ChunkStrategy::Recursive => {
                let units = Units::of(text, &*self.tokens);
                let pieces = self.cut_prose(text, &units);
                pieces
                    .into_iter()
                    .map(|(start, end)| (start, end, none.clone()))
                    .collect()
            }
            ChunkStrategy::Fixed => {
                let units = Units::of(text, &*self.tokens);
                let budget = self.budget(self.overlap());
                let step = budget.max_units - budget.overlap_units;
                let ends = pack::every(text, &units, step);
                let pieces = self.bound(text, &units, budget, ends);
                pieces
                    .into_iter()
                    .map(|(start, end)| (start, end, none.clone()))
                    .collect()
            }
        };
        number(text, ranges)
    }

    /// The text that is embedded for a piece: its bytes, after its headings (innermost kept, at
    /// most a quarter of `max_tokens`) when the clause says `headings => 'prefix'`.
    ///
    /// A vector made from it depends on the headings too: key it by the hash of *this* text.
    pub fn embedded_text<'a>(&self, text: &'a str, piece: &ChunkPiece) -> Cow<'a, str> {
        let body = &text[piece.range.0 as usize..piece.range.1 as usize];
        if !self.has_heading_prefix() || piece.heading.is_empty() {
            return Cow::Borrowed(body);
        }
        // Two tokens of slack: joining prefix and body may re-tokenise the seam.
        let room = (self.spec.max_tokens / HEADING_SHARE).saturating_sub(2) as usize;
        let fits = |path: &str| self.tokens.token_spans(path).starts.len() <= room;
        let prefix = (0..piece.heading.len())
            .map(|skip| piece.heading[skip..].join(" > "))
            .find(|path| fits(path));
        match prefix {
            Some(prefix) => Cow::Owned(format!("{prefix}\n\n{body}")),
            None => Cow::Borrowed(body),
        }
    }

    /// The overlap that applies: `markdown` is edit-stable by design and has none.
    fn overlap(&self) -> u32 {
        match self.spec.strategy {
            ChunkStrategy::Markdown | ChunkStrategy::None => 0,
            _ => self.spec.overlap.min(self.text_tokens_max() / 2),
        }
    }

    fn budget(&self, overlap_units: u32) -> Budget {
        Budget {
            max_units: self.text_tokens_max(),
            overlap_units,
        }
    }

    /// `recursive`: one region, paragraphs as its segments.
    fn cut_prose(&self, text: &str, units: &Units) -> Vec<(u32, u32)> {
        let budget = self.budget(self.overlap());
        let segments = prose::paragraphs(text);
        let room = budget.max_units - budget.overlap_units;
        let cuts = prose::cuts(text, units, &segments, text.len() as u32, room);
        let ends = pack::split(&cuts, (0, text.len() as u32), units, room);
        self.bound(text, units, budget, ends)
    }

    /// `markdown`: regions between hard headings, each packed on its own.
    fn cut_markdown(&self, text: &str) -> Vec<(u32, u32, Arc<[Arc<str>]>)> {
        let units = Units::of(text, &*self.tokens);
        let budget = self.budget(0);
        let segments = markdown::segments(text);
        let sections = markdown::sections(text, &segments, &units, budget.max_units);
        let mut out = Vec::new();
        for region in sections.chunk_by(|_, next| !next.is_hard) {
            let (first, last) = (&region[0], &region[region.len() - 1]);
            let (start, end) = (first.start, last.end);
            let inside = &segments[first.segments.start..last.segments.end];
            let cuts: Vec<Cut> = prose::cuts(text, &units, inside, end, budget.max_units);
            let ends = pack::split(&cuts, (start, end), &units, budget.max_units);
            let pieces = self.bound_from(text, &units, budget, start, ends);
            out.extend(
                pieces
                    .into_iter()
                    .map(|(start, end)| (start, end, markdown::common_path(region, (start, end)))),
            );
        }
        out
    }

    fn bound(&self, text: &str, units: &Units, budget: Budget, ends: Vec<u32>) -> Vec<(u32, u32)> {
        self.bound_from(text, units, budget, 0, ends)
    }

    /// Turns the ends of pieces into trimmed ranges that hold the bound when they are tokenised
    /// alone, with overlap put in front.
    ///
    /// A cut inside a word can change how its halves are tokenised, and some tokenizers look at the
    /// white space before a word. So a piece that begins or ends inside a word, or is nearly
    /// full, is counted again by itself, and halved while it is over.
    fn bound_from(
        &self,
        text: &str,
        units: &Units,
        budget: Budget,
        from: u32,
        ends: Vec<u32>,
    ) -> Vec<(u32, u32)> {
        let mut pieces: Vec<(u32, u32)> = Vec::with_capacity(ends.len());
        let mut start = from;
        for end in ends {
            let mut queue = vec![(start, end)];
            while let Some((start, end)) = queue.pop() {
                let Some((start, end)) = trim(text, start, end) else {
                    continue;
                };
                let overlapped = match pieces.last() {
                    Some(_) if budget.overlap_units > 0 => {
                        units.step_back(text, start, budget.overlap_units)
                    }
                    _ => start,
                };
                if self.is_over(text, units, budget, overlapped, end) {
                    if !self.is_over(text, units, budget, start, end) {
                        pieces.push((start, end));
                    } else if let Some(middle) = units.middle(text, start, end) {
                        queue.push((middle, end));
                        queue.push((start, middle));
                    } else {
                        pieces.push((start, end));
                    }
                } else {
                    pieces.push((overlapped, end));
                }
            }
            start = end;
        }
        pieces
    }

    fn is_over(&self, text: &str, units: &Units, budget: Budget, start: u32, end: u32) -> bool {
        let count = units.between(start, end);
        let is_inside_a_word = |at: u32| {
            let (before, after) = text.split_at(at as usize);
            let word = |c: char| !c.is_whitespace();
            before.chars().next_back().is_some_and(word) && after.chars().next().is_some_and(word)
        };
        let is_doubtful = count + count / 8 >= budget.max_units
            || is_inside_a_word(start)
            || is_inside_a_word(end);
        count > budget.max_units
            || is_doubtful
                && Units::of(&text[start as usize..end as usize], &*self.tokens).len()
                    > budget.max_units
    }
}

/// Takes white space off both ends; `None` when nothing is left.
fn trim(text: &str, start: u32, end: u32) -> Option<(u32, u32)> {
    let piece = &text[start as usize..end as usize];
    let kept = piece.trim_start();
    let start = end - kept.len() as u32;
    let kept = kept.trim_end();
    (!kept.is_empty()).then_some((start, start + kept.len() as u32))
}

/// Trims, hashes and numbers equal contents.
fn number(text: &str, ranges: Vec<(u32, u32, Arc<[Arc<str>]>)>) -> Vec<ChunkPiece> {
    let mut seen: HashMap<ContentHash, u32> = HashMap::new();
    ranges
        .into_iter()
        .filter_map(|(start, end, heading)| {
            let (start, end) = trim(text, start, end)?;
            let content = ContentHash::of(&text.as_bytes()[start as usize..end as usize]);
            let count = seen.entry(content).or_insert(0);
            let occurrence = *count;
            *count += 1;
            Some(ChunkPiece {
                range: (start, end),
                content,
                occurrence,
                heading,
            })
        })
        .collect()
}
