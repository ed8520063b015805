//! Examples of the Markdown chunker: what must stay together, where headings go.

use std::sync::Arc;

use operators::chunk::{ChunkStrategy, Chunker, ChunkingSpec, WordTokens};

fn chunks(text: &str, max_tokens: u32) -> Vec<(String, String)> {
    let spec = ChunkingSpec {
        strategy: ChunkStrategy::Markdown,
        max_tokens,
        overlap: 0,
        heading_prefix: false,
    };
    let pieces = Chunker::new(&spec, Arc::new(WordTokens)).cut(text);
    pieces
        .iter()
        .map(|piece| {
            let body = &text[piece.range.0 as usize..piece.range.1 as usize];
            (piece.heading.join(" > "), body.to_owned())
        })
        .collect()
}

fn words(count: usize, word: &str) -> String {
    vec![word; count].join(" ")
}

#[test]
fn headings_are_a_path_outermost_first() {
    let body = words(12, "body");
    let text = format!(
        "preface {body}\n\n# Guide\n\n{body}\n\nSetup\n-----\n\n{body}\n\n### Linux ###\n\n{body}\n\n## Use\n\n{body}\n"
    );
    let paths: Vec<String> = chunks(&text, 20)
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    assert_eq!(
        paths,
        [
            "",
            "Guide",
            "Guide > Setup",
            "Guide > Setup > Linux",
            "Guide > Use"
        ]
    );
}

#[test]
fn code_and_tables_that_fit_are_never_cut() {
    let code = "```sh\none two three\n\nfour five six\nseven eight\n```";
    let table = "| a | b |\n|---|---|\n| one two | three |\n| four five | six |";
    for filler in 0..30 {
        let prose = words(filler, "prose");
        let text =
            format!("# T\n\n{prose}\n\n{code}\n\n{prose} more. And more.\n\n{table}\n\n{prose}\n");
        let all = chunks(&text, 10);
        for whole in [code, table] {
            assert!(
                all.iter().any(|(_, body)| body.contains(whole)),
                "{filler}: {all:#?}"
            );
        }
    }
}

#[test]
fn code_is_not_read_as_markdown() {
    let body = words(10, "body");
    let text = format!("# A\n\n{body}\n\n```\n# comment\n- x\n```\n\n# B\n\n{body}\n");
    let paths: Vec<String> = chunks(&text, 100)
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    assert_eq!(paths, ["A", "B"]);
}

#[test]
fn a_bare_title_keeps_to_its_first_section() {
    let body = words(12, "body");
    let text = format!("# Title\n\n## First\n\n{body}\n\n## Second\n\n{body}\n");
    let all = chunks(&text, 30);
    assert_eq!(all.len(), 2);
    assert!(all[0].1.starts_with("# Title\n\n## First"));
    assert_eq!(all[0].0, "Title > First");
    assert_eq!(all[1].0, "Title > Second");
}

#[test]
fn tiny_sections_share_a_chunk_under_their_common_heading() {
    let text = "# Changes\n\n## 1.2\n\n### Fixed\n\n- one\n\n### Added\n\n- two\n\n### Removed\n\n- three\n";
    let all = chunks(text, 64);
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!(all[0].0, "Changes > 1.2");
}

#[test]
fn front_matter_html_and_thematic_breaks_are_blocks() {
    let body = words(12, "body");
    let text = format!(
        "---\ntitle: x\n# not a heading\n---\n\n<div>\n\n# H\n\n{body}\n\n---\n\n{body}\n\n<!-- # no\n\n# no -->\n"
    );
    let all = chunks(&text, 200);
    let paths: Vec<&str> = all.iter().map(|(path, _)| &**path).collect();
    assert_eq!(paths, ["", "H"], "{all:#?}");
    assert!(all[0].1.starts_with("---\ntitle"));
}

#[test]
fn headings_before_the_embedded_text() {
    let spec = ChunkingSpec {
        strategy: ChunkStrategy::Markdown,
        max_tokens: 40,
        overlap: 0,
        heading_prefix: true,
    };
    let chunker = Chunker::new(&spec, Arc::new(WordTokens));
    assert_eq!(
        chunker.strategy(),
        "markdown(max_tokens => 40, headings => 'prefix')"
    );
    let text = format!("# A\n\n{}\n\n## B\n\n{}\n", words(20, "x"), words(20, "y"));
    let pieces = chunker.cut(&text);
    let last = chunker.embedded_text(&text, pieces.last().unwrap());
    assert!(last.starts_with("A > B\n\n## B"), "{last}");
    assert!(pieces.iter().all(|piece| {
        chunker
            .embedded_text(&text, piece)
            .split_whitespace()
            .count()
            <= 44
    }));
}
