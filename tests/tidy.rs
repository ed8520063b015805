//! Keeps the house: import edges, fences, module docs, lengths, links, metric names.
//!
//! An ordinary test, so that one command proves the tree. Change the code, not the limit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Hard limits; aims are half of them.
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 150;

/// (folder, package, packages of ours that it may name).
const EDGES: [(&str, &str, &[&str]); 7] = [
    ("engine", "headwater-engine", &[]),
    ("operators/kernels", "headwater-kernels", &[]),
    ("operators", "headwater-operators", &["engine", "kernels"]),
    ("connectors", "headwater-connectors", &["engine"]),
    ("queries", "headwater-queries", &["engine", "operators"]),
    ("queries/serve", "headwater-serve", &["engine", "queries"]),
    (
        ".",
        "headwater",
        &[
            "engine",
            "operators",
            "connectors",
            "queries",
            "serve",
            "kernels",
        ],
    ),
];
const OURS: [&str; 6] = [
    "engine",
    "kernels",
    "operators",
    "connectors",
    "queries",
    "serve",
];

/// (crate as named in `use` paths, the only places that may name it).
const FENCES: [(&str, &[&str]); 5] = [
    (
        "usearch::",
        &[
            "operators/src/index/usearch.rs",
            "benches/",
            "tests/tidy.rs",
        ],
    ),
    ("axum::", &["queries/serve/", "tests/tidy.rs"]),
    ("rdkafka::", &["connectors/", "tests/tidy.rs"]),
    ("gix::", &["connectors/", "tests/tidy.rs"]),
    ("cudarc::", &["operators/kernels/", "tests/tidy.rs"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(extension: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, extension: &str, out: &mut Vec<(String, String)>) {
        let entries = std::fs::read_dir(folder).expect("a folder of the checkout");
        for entry in entries.map(|entry| entry.expect("readable").path()) {
            let name = entry
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if entry.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "headwater-data" {
                    walk(&entry, extension, out);
                }
            } else if entry.extension().is_some_and(|found| found == extension) {
                let text = std::fs::read_to_string(&entry).expect("UTF-8");
                let path = entry.strip_prefix(root()).expect("below the root");
                out.push((path.to_string_lossy().replace('\\', "/"), text));
            }
        }
    }
    let mut out = Vec::new();
    walk(&root(), extension, &mut out);
    out.sort();
    out
}

fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn imports_go_one_way() {
    let mut problems = Vec::new();
    for (folder, package, allowed) in EDGES {
        let path = root().join(folder).join("Cargo.toml");
        let manifest = std::fs::read_to_string(&path).expect("a manifest");
        let all = manifest
            .split("\n[")
            .find(|part| part.starts_with("dependencies]"));
        for line in all.unwrap_or_default().lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if OURS.contains(&name) && !allowed.contains(&name) {
                problems.push(format!("{package} must not depend on {name}"));
            }
        }
    }
    none(problems);
}

#[test]
fn foreign_libraries_stay_behind_their_fences() {
    let mut problems = Vec::new();
    for (path, text) in files("rs") {
        for (name, homes) in FENCES {
            let is_home = homes.iter().any(|home| path.starts_with(home));
            if !is_home
                && text
                    .lines()
                    .any(|line| !is_comment(line) && names(line, name))
            {
                problems.push(format!("{path} names {name}, which lives in {homes:?}"));
            }
        }
    }
    none(problems);
}

/// Whether a line names a foreign crate: not a module of ours with the same name.
fn names(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].trim_end();
        !before.ends_with("::") && !before.ends_with("pub use")
    })
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

#[test]
fn unsafe_stays_in_kernels() {
    let mut problems = Vec::new();
    for (path, text) in files("rs") {
        if path.starts_with("operators/kernels/") || path == "tests/tidy.rs" {
            continue;
        }
        let has_unsafe = |line: &str| {
            !is_comment(line) && (line.contains("unsafe {") || line.contains("unsafe fn"))
        };
        if text.lines().any(has_unsafe) {
            problems.push(format!("{path} has unsafe code"));
        }
    }
    none(problems);
}

#[test]
fn every_file_opens_with_module_docs() {
    let opens = |text: &str| text.trim_start().starts_with("//!");
    let bare = files("rs").into_iter().filter(|(_, text)| !opens(text));
    none(
        bare.map(|(path, _)| format!("{path} has no module docs"))
            .collect(),
    );
}

#[test]
fn files_and_functions_are_short() {
    let mut problems = Vec::new();
    for (path, text) in files("rs") {
        let is_test =
            path.contains("tests/") || path.ends_with("tests.rs") || path.ends_with("law.rs");
        if is_test || path.starts_with("benches/") {
            continue;
        }
        let code = text.split("#[cfg(test)]\nmod").next().unwrap_or_default();
        let lines = code.lines().count();
        if lines > FILE_LINES_MAX {
            problems.push(format!("{path}: {lines} lines, at most {FILE_LINES_MAX}"));
        }
        for (name, lines) in functions(code) {
            if lines > FUNCTION_LINES_MAX {
                problems.push(format!("{path}: fn {name} has {lines} lines"));
            }
        }
    }
    none(problems);
}

/// Functions with their lengths, by indentation: rustfmt closes a function where it opened.
fn functions(code: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut out = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let head = [
            "fn ",
            "pub fn ",
            "pub(crate) fn ",
            "pub(super) fn ",
            "async fn ",
            "pub async fn ",
        ];
        let Some(rest) = head.iter().find_map(|head| trimmed.strip_prefix(head)) else {
            continue;
        };
        let indent = line.len() - trimmed.len();
        let close = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[start..].iter().position(|line| *line == close) {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            out.push((name.to_owned(), length + 1));
        }
    }
    out
}

#[test]
fn nothing_unfinished_is_left() {
    let mut problems = Vec::new();
    for (path, text) in files("rs") {
        if path == "tests/tidy.rs" {
            continue;
        }
        for word in ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX"] {
            if text.contains(word) {
                problems.push(format!("{path} contains {word}"));
            }
        }
    }
    none(problems);
}

/// What cargo finds by itself: `tests/<suite>.rs` and `tests/<suite>/main.rs` of every package.
fn suites() -> BTreeSet<String> {
    let mut suites = BTreeSet::new();
    for (folder, _, _) in EDGES {
        let Ok(entries) = std::fs::read_dir(root().join(folder).join("tests")) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("a readable folder").path();
            if path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").exists() {
                let name = path.file_stem().expect("a name");
                suites.insert(name.to_string_lossy().into_owned());
            }
        }
    }
    suites
}

/// The lanes of the test command choose suites by patterns: each must be in one of them.
#[test]
fn the_test_command_runs_every_suite_once() {
    let command = std::fs::read_to_string(root().join("tests/all.sh")).expect("readable");
    let mut patterns = Vec::new();
    for part in command.split("--test ").skip(1) {
        let pattern = part.split_whitespace().next().expect("a pattern");
        let glob = globset::Glob::new(pattern.trim_matches('\'')).expect("a pattern");
        patterns.push(glob.compile_matcher());
    }
    let is_alone = |suite: &&String| patterns.iter().filter(|p| p.is_match(suite)).count() == 1;
    let suites = suites();
    assert!(suites.len() > 20, "{suites:?}");
    let wrong = suites.iter().filter(|suite| !is_alone(suite));
    none(
        wrong
            .map(|suite| format!("tests/all.sh does not run {suite} once"))
            .collect(),
    );
}

#[test]
fn links_in_docs_resolve() {
    let mut problems = Vec::new();
    for (path, text) in files("md") {
        let folder = root().join(&path);
        let folder = folder.parent().expect("a file has a folder");
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            let target = target.split('#').next().unwrap_or_default();
            let is_local = !target.is_empty() && !target.contains("://") && !target.contains(' ');
            if is_local && !folder.join(target).exists() {
                problems.push(format!("{path}: {target} does not exist"));
            }
        }
    }
    none(problems);
}

#[test]
fn metrics_in_use_are_declared_and_documented_names_exist() {
    let declared: BTreeSet<String> = engine::telemetry::METRICS
        .iter()
        .map(|metric| metric.name.to_owned())
        .collect();
    let mut used: BTreeMap<String, String> = BTreeMap::new();
    for (path, text) in files("rs") {
        let is_test = path.contains("tests/") || path.contains("telemetry.rs");
        for line in text.lines().filter(|line| !is_test && !is_comment(line)) {
            let is_metric = [
                "counter!(",
                "gauge!(",
                "histogram!(",
                ": &str = \"headwater_",
            ];
            if !is_metric.iter().any(|call| line.contains(call)) {
                continue;
            }
            if let Some(name) = line.split('"').find(|part| part.starts_with("headwater_")) {
                used.insert(name.to_owned(), path.clone());
            }
        }
    }
    let missing = used.iter().filter(|(name, _)| !declared.contains(*name));
    none(
        missing
            .map(|(name, path)| format!("{path}: {name} is not in METRICS"))
            .collect(),
    );
}

#[test]
fn every_dependency_has_a_permissive_licence() {
    let deny = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let allow = deny
        .split("allow = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next());
    let allowed: BTreeSet<&str> = allow
        .expect("an allow list")
        .split('"')
        .skip(1)
        .step_by(2)
        .collect();
    let output = std::process::Command::new(env!("CARGO"))
        // Fetches crates of other systems, which no build here has fetched.
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {said}");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let (name, licence) = (
            &package["name"],
            package["license"].as_str().unwrap_or_default(),
        );
        if !is_permissive(licence, &allowed) {
            problems.push(format!(
                "{name}: {licence:?} is not in deny.toml's allow list"
            ));
        }
    }
    none(problems);
}

/// Whether an SPDX expression (as crates write them: `A OR B`, `A/B`, `(A OR B) AND C`) can be met by
/// the allowed licences.
fn is_permissive(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    flat.split(" AND ")
        .all(|part| part.split(" OR ").any(|one| allowed.contains(one.trim())))
}

#[test]
fn unwrap_is_for_tests() {
    let mut problems = Vec::new();
    for (path, text) in files("rs") {
        let is_test = ["tests/", "benches/", "testing/", "examples"]
            .iter()
            .any(|part| path.contains(part));
        if is_test || path.ends_with("tests.rs") || path.ends_with("law.rs") {
            continue;
        }
        let code = text.split("#[cfg(test)]\nmod").next().unwrap_or_default();
        for line in code.lines().filter(|line| !is_comment(line)) {
            if line.contains(".unwrap()") {
                problems.push(format!("{path}: {}", line.trim()));
            }
        }
    }
    none(problems);
}
