//! The laws of chunkers, on random texts made of everything that ever broke a splitter: structure,
//! giant words, blanks, several scripts, code that does not end.
//!
//! A failing case prints its seed and the text.

use std::sync::Arc;

use engine::contract::TokenSpans;
use engine::model::{ChunkPiece, ContentHash};
use operators::chunk::{ChunkStrategy, Chunker, ChunkingSpec, TokenCounter, WordTokens};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Like WordPiece: words in pieces of at most four characters, counted from the word's start, so that
/// a cut inside a word changes its tokens; punctuation alone; control characters dropped.
struct PieceTokens;

impl TokenCounter for PieceTokens {
    fn token_spans(&self, text: &str) -> TokenSpans {
        let mut spans = TokenSpans::default();
        let mut in_word = 0;
        for (at, c) in text.char_indices() {
            let end = (at + c.len_utf8()) as u32;
            if c.is_whitespace() || c.is_control() {
                in_word = 0;
            } else if c.is_alphanumeric() {
                if in_word % 4 == 0 {
                    spans.starts.push(at as u32);
                    spans.ends.push(end);
                } else {
                    *spans.ends.last_mut().expect("a word has begun") = end;
                }
                in_word += 1;
            } else {
                // An emoji is several tokens with one place.
                for _ in 0..c.len_utf8().div_ceil(2) {
                    spans.starts.push(at as u32);
                    spans.ends.push(end);
                }
                in_word = 0;
            }
        }
        spans
    }

    fn special_tokens(&self) -> usize {
        2
    }
}

fn spec(strategy: ChunkStrategy, max_tokens: u32, overlap: u32) -> ChunkingSpec {
    ChunkingSpec {
        strategy,
        max_tokens,
        overlap,
        heading_prefix: false,
    }
}

fn random_text(rng: &mut ChaCha8Rng) -> String {
    let pieces = [
        "# Title\n",
        "## Part {#id} ##\n",
        "Under\n===\n",
        "Line\nmore\n---\n",
        "---\n",
        "***\n",
        "```rust\nfn main() {}\n\n# not a heading\n```\n",
        "~~~\nnever closed\n",
        "- item\n",
        "  - nested item. With two sentences.\n",
        "1. first\n",
        "   goes on\n",
        "| a | b |\n",
        "|---|---|\n",
        "> quoted text\n",
        "<div>\nhtml\n</div>\n",
        "<!-- comment\n",
        "-->\n",
        "    indented code\n",
        "A sentence. Another one! And e.g. this? \"Yes.\" ",
        "word ",
        "Ein längerer Satz mit Umlauten, der weitergeht. ",
        "漢字の文です。次の文。",
        "👩‍👩‍👧‍👦",
        "e\u{301}",
        "\u{0}\u{1}",
        "\u{200b}",
        "\u{a0}",
        "\r\n",
        "\t",
        "   ",
        "\n",
        "\n\n",
        "Introduction:\n",
        "https://example.org/a/very/long/path?with=query&and=more ",
    ];
    let mut text = String::new();
    for _ in 0..rng.random_range(0..60) {
        match rng.random_range(0..30) {
            0 => text.push_str(&"x".repeat(rng.random_range(1..3000))),
            1 => text.push_str(&" ".repeat(rng.random_range(1..500))),
            2 => text.push_str(&"Some words of a paragraph ".repeat(rng.random_range(1..40))),
            3 => text.push_str(&"| cell | cell |\n".repeat(rng.random_range(1..40))),
            4 => text.push_str(&"漢".repeat(rng.random_range(1..300))),
            _ => text.push_str(pieces.choose(rng).expect("not empty")),
        }
    }
    text
}

fn check(
    text: &str,
    pieces: &[ChunkPiece],
    chunker: &Chunker,
    counter: &dyn TokenCounter,
    spec: &ChunkingSpec,
) {
    let mut at = 0;
    let mut seen = std::collections::HashMap::new();
    for piece in pieces {
        let (start, end) = (piece.range.0 as usize, piece.range.1 as usize);
        let body = &text[start..end];
        assert!(
            !body.is_empty() && body.trim() == body,
            "trimmed and not empty: {body:?}"
        );
        assert_eq!(piece.content, ContentHash::of(body.as_bytes()));
        let count = seen.entry(piece.content).or_insert(0);
        assert_eq!(
            piece.occurrence, *count,
            "occurrences count from 0 in text order"
        );
        *count += 1;
        if spec.overlap == 0 {
            assert!(start >= at, "chunks do not overlap");
        }
        if start > at {
            assert!(
                text[at..start].trim().is_empty(),
                "lost: {:?}",
                &text[at..start]
            );
        }
        at = at.max(end);
        if spec.strategy != ChunkStrategy::None {
            let tokens = counter.token_spans(body).starts.len() + counter.special_tokens();
            let bound = spec.max_tokens.max(4 + counter.special_tokens() as u32) as usize;
            assert!(tokens <= bound, "{tokens} tokens in {body:?}");
        }
    }
    assert!(
        text[at..].trim().is_empty(),
        "lost at the end: {:?}",
        &text[at..]
    );
    assert_eq!(
        pieces,
        chunker.cut(text),
        "the same text is cut the same way"
    );
}

#[test]
fn chunks_cover_the_text_within_their_bounds() {
    let counters: [Arc<dyn TokenCounter>; 2] = [Arc::new(PieceTokens), Arc::new(WordTokens)];
    for seed in 0..400 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let text = random_text(&mut rng);
        for strategy in [
            ChunkStrategy::Markdown,
            ChunkStrategy::Recursive,
            ChunkStrategy::Fixed,
            ChunkStrategy::None,
        ] {
            let max_tokens = *[1, 8, 16, 64, 256].choose(&mut rng).expect("not empty");
            let overlap = *[0, 0, 3, 20].choose(&mut rng).expect("not empty");
            let spec = spec(
                strategy,
                max_tokens,
                if strategy == ChunkStrategy::Markdown {
                    0
                } else {
                    overlap
                },
            );
            let counter = &counters[rng.random_range(0..2)];
            let chunker = Chunker::new(&spec, counter.clone());
            let run = || check(&text, &chunker.cut(&text), &chunker, &**counter, &spec);
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                panic!("seed {seed}, {}: text {text:?}", chunker.strategy());
            }
        }
    }
}

/// What a counter gives must never be able to hurt: offsets at any place, in any order.
#[test]
fn a_careless_tokenizer_breaks_nothing() {
    struct Careless;
    impl TokenCounter for Careless {
        fn token_spans(&self, text: &str) -> TokenSpans {
            let mut rng = ChaCha8Rng::seed_from_u64(text.len() as u64);
            let starts: Vec<u32> = (0..text.len() / 3)
                .map(|_| rng.random_range(0..=text.len() as u32 + 3))
                .collect();
            TokenSpans {
                ends: starts.clone(),
                starts,
            }
        }
        fn special_tokens(&self) -> usize {
            0
        }
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..50 {
        let text = random_text(&mut rng);
        let chunker = Chunker::new(&spec(ChunkStrategy::Markdown, 16, 0), Arc::new(Careless));
        let covered: usize = chunker
            .cut(&text)
            .iter()
            .map(|piece| {
                text[piece.range.0 as usize..piece.range.1 as usize]
                    .split_whitespace()
                    .map(str::len)
                    .sum::<usize>()
            })
            .sum();
        assert_eq!(
            covered,
            text.split_whitespace().map(str::len).sum::<usize>()
        );
    }
}

/// Sections that stand on their own do not see each other.
#[test]
fn a_section_does_not_feel_what_stands_before_or_after_it() {
    let section = |rng: &mut ChaCha8Rng, name: &str| {
        let mut text = format!("## {name}\n\n");
        for _ in 0..rng.random_range(3..30) {
            for _ in 0..rng.random_range(5..60) {
                text.push_str(
                    ["alpha ", "beta ", "gamma. ", "Delta "]
                        .choose(rng)
                        .expect("some"),
                );
            }
            text.push_str("\n\n");
        }
        text
    };
    for seed in 0..100 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (a, b, c) = (
            section(&mut rng, "A"),
            section(&mut rng, "B"),
            section(&mut rng, "C"),
        );
        let chunker = Chunker::new(&spec(ChunkStrategy::Markdown, 64, 0), Arc::new(PieceTokens));
        let contents = |text: &str| {
            chunker
                .cut(text)
                .iter()
                .map(|piece| piece.content)
                .collect::<Vec<_>>()
        };
        let alone = contents(&b);
        let all = contents(&format!("{a}{b}{c}"));
        let before = contents(&a).len();
        assert_eq!(all[before..before + alone.len()], alone, "seed {seed}");
        assert!(alone.len() > 1);
    }
}

#[test]
fn cost_is_linear_in_the_text() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let words: String = (0..1 << 20)
        .map(|_| char::from(b'a' + (rng.next_u32() % 26) as u8))
        .map(|c| if c < 'e' { ' ' } else { c })
        .collect();
    let cases = [
        ("prose", words),
        ("one word", "x".repeat(1 << 20)),
        ("ideographs", "漢".repeat(1 << 18)),
        ("equal lines", "the same line\n".repeat(1 << 16)),
        ("headings", "# h\n".repeat(1 << 18)),
        ("blanks", " ".repeat(1 << 20) + "x"),
        ("open fences", "```\n\n".repeat(1 << 18)),
        ("comments", "<!-- \n".repeat(1 << 17)),
    ];
    for strategy in [
        ChunkStrategy::Markdown,
        ChunkStrategy::Recursive,
        ChunkStrategy::Fixed,
    ] {
        let chunker = Chunker::new(&spec(strategy, 256, 0), Arc::new(PieceTokens));
        for (name, text) in &cases {
            let begun = std::time::Instant::now();
            let pieces = chunker.cut(text);
            let took = begun.elapsed();
            assert!(took.as_secs() < 60, "{name} by {strategy:?} took {took:?}");
            assert!(!pieces.is_empty());
        }
    }
}
