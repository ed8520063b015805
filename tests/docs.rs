//! Keeps the reference pages true: what the source can emit is documented, and what is documented
//! can be emitted.
//!
//! The idea: codes, limits and metrics are literals in a few known shapes, so plain text search
//! finds them all. No crate of ours is linked; this test reads files and nothing else.
//!
//! ```text
//!  Problem::new(422, "code" ┐
//!  DataError::new("code"    ├─▶ docs/errors.md, both ways
//!  pub const NAME           ──▶ docs/limits.md, both ways
//!  declare! { … "name" … }  ──▶ docs/operations.md
//!  debug_span!("name", …)   ──▶ docs/operations.md, both ways
//! ```
//!
//! Limits: a code that is put together at run time cannot be seen; there is none, and there should
//! be none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where code that runs in a server lives; tests and benches may invent codes of their own.
const SOURCES: [&str; 6] = [
    "src",
    "engine/src",
    "operators/src",
    "connectors/src",
    "queries/src",
    "queries/serve/src",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect("a file of the checkout")
}

/// All Rust code below [`SOURCES`], without the test modules: at the ends of files, or `tests.rs`.
fn code() -> Vec<String> {
    fn walk(folder: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder of the checkout") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|found| found == "rs")
                && !path.ends_with("tests.rs")
            {
                let text = std::fs::read_to_string(&path).expect("UTF-8");
                let tests = text.find("#[cfg(test)]\nmod").unwrap_or(text.len());
                out.push(text[..tests].to_owned());
            }
        }
    }
    let mut out = Vec::new();
    for folder in SOURCES {
        walk(&root().join(folder), &mut out);
    }
    out
}

/// The text of a string literal that begins here.
fn literal(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix('"')?.split('"').next()
}

/// Codes in `Problem::new(status, "code"` and `DataError::new("code"`, line breaks allowed.
fn emitted() -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for text in code() {
        for call in text.split("Problem::new(").skip(1) {
            let Some((status, rest)) = call.split_once(',') else {
                continue;
            };
            // A variable passes on a code that was made elsewhere.
            if status.trim().parse::<u16>().is_ok() {
                out.extend(literal(rest).map(str::to_owned));
            }
        }
        for call in text.split("DataError::new(").skip(1) {
            out.extend(literal(call).map(str::to_owned));
        }
    }
    out
}

/// First cells of the page's tables that are written as code.
fn table_names(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|rest| rest.split_once("` |"))
        .map(|(name, _)| name.to_owned())
        .collect()
}

fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_code_is_documented() {
    let known = table_names(&read("docs/errors.md"));
    let emitted = emitted();
    assert!(emitted.len() > 40, "the search for codes found too few");
    let missing = emitted.difference(&known);
    none(
        missing
            .map(|code| format!("docs/errors.md has no row for `{code}`"))
            .collect(),
    );
}

#[test]
fn every_documented_code_exists() {
    let emitted = emitted();
    // The tables of codes; the one before them is of members.
    let page = read("docs/errors.md");
    let tables = page.split_once("## Problems").expect("the section").1;
    let known = table_names(tables);
    let invented = known.difference(&emitted);
    none(
        invented
            .map(|code| format!("docs/errors.md: nothing emits `{code}`"))
            .collect(),
    );
}

/// A dead letter's words are its interface: each cause is spelled out in some test.
#[test]
fn every_data_error_has_a_test_with_its_words() {
    fn walk(folder: &Path, out: &mut String) {
        for entry in std::fs::read_dir(folder).expect("a folder of the checkout") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|found| found == "rs")
                && !path.ends_with("tests/docs.rs")
            {
                *out += &std::fs::read_to_string(&path).expect("UTF-8");
            }
        }
    }
    let mut tests = String::new();
    for folder in ["tests", "connectors/tests", "queries/tests"] {
        walk(&root().join(folder), &mut tests);
    }
    let page = read("docs/errors.md");
    let codes = table_names(page.split_once("## Data errors").expect("the section").1);
    assert!(codes.len() > 30, "the search for codes found too few");
    // `"code"`, or the first word of a message: `code: …`.
    let is_told = |code: &String| {
        tests.contains(&format!("\"{code}\"")) || tests.contains(&format!("{code}: "))
    };
    let silent = codes.iter().filter(|code| !is_told(code));
    none(
        silent
            .map(|code| format!("no test has the words of `{code}`"))
            .collect(),
    );
}

#[test]
fn limits_are_documented_both_ways() {
    let source = read("engine/src/limits.rs");
    let page = read("docs/limits.md");
    let declared: BTreeSet<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("pub const "))
        .filter_map(|rest| rest.split(':').next())
        .collect();
    let known: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .filter_map(|rest| rest.split(" |").next())
        .filter(|cell| {
            cell.chars().any(|c| c.is_ascii_uppercase())
                && cell.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        })
        .collect();
    assert!(declared.len() > 40, "the search for limits found too few");
    let missing = declared.difference(&known);
    let invented = known.difference(&declared);
    none(
        missing
            .map(|name| format!("docs/limits.md has no row for {name}"))
            .chain(invented.map(|name| format!("docs/limits.md: there is no limit {name}")))
            .collect(),
    );
}

#[test]
fn metrics_are_documented() {
    let source = read("engine/src/telemetry.rs");
    let page = table_names(&read("docs/operations.md"));
    let declared: Vec<String> = source
        .lines()
        .map(str::trim_start)
        .filter(|line| {
            let kind = line.split(' ').nth(1).unwrap_or_default();
            matches!(kind, "Counter" | "Gauge" | "Histogram")
        })
        .filter_map(|line| line.split('"').nth(1))
        .map(|name| format!("headwater_{name}"))
        .collect();
    assert!(declared.len() > 30, "the search for metrics found too few");
    let missing = declared.iter().filter(|name| !page.contains(*name));
    none(
        missing
            .map(|name| format!("docs/operations.md has no row for `{name}`"))
            .collect(),
    );
}

/// Names of spans, by the macros and by the attribute.
fn spans() -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for text in code() {
        for opening in [
            "debug_span!(",
            "info_span!(",
            "tracing::instrument(\n        name = ",
        ] {
            let calls = text.split(opening).skip(1);
            out.extend(calls.filter_map(literal).map(str::to_owned));
        }
    }
    out
}

#[test]
fn spans_are_documented_and_documented_spans_exist() {
    let page = read("docs/operations.md");
    let section = page.split_once("## Spans").expect("the section").1;
    let section = section.split("\n## ").next().unwrap_or(section);
    assert_eq!(table_names(section), spans());
}
