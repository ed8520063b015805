//! `headwater demo --once`: exit code 0 only if every step was really observed.
//!
//! The real program over small folders. What it prints on stdout with `--json` is one object a step.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value as Json;

/// All steps, in their order.
const STEPS: [&str; 9] = [
    "model",
    "files indexed",
    "question answered with citations",
    "answer cached",
    "same question hit",
    "cited file edited: entry retracted",
    "new text found",
    "embedded again",
    "file deleted: gone",
];

/// Runs the demo over a folder of documents; its sample and data lie in a folder that is given, too.
fn demo(documents: &Path, work: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_headwater"))
        .args(["--json", "demo", "--once", "--workers", "1"])
        .args(["--listen", "127.0.0.1:0", "--path"])
        .arg(documents)
        .env("TMPDIR", work)
        .output()
        .expect("the binary runs")
}

/// The names of the steps that were observed.
fn steps(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(|line| {
        let json: Json = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(json["observed"], true, "{line}");
        assert!(json["took_ms"].is_number(), "{line}");
        json["step"].as_str().expect("a name").to_owned()
    });
    lines.collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("within a folder")).expect("writable");
    std::fs::write(path, text).expect("writable");
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder)
        .expect("a folder")
        .next()
        .is_none()
}

#[test]
fn the_demo_ends_with_0_when_every_step_was_observed() {
    let documents = tempfile::tempdir().expect("a folder");
    let work = tempfile::tempdir().expect("a folder");
    // As Windows' editors write them, one of them.
    write(
        documents.path(),
        "rivers.md",
        "\u{feff}# Rivers\n\nA river begins at its headwater, in the hills.\n\n\
         ## Floods\n\nIn spring the snow melts and the river rises over its banks.\n",
    );
    write(
        documents.path(),
        "lakes/README.md",
        "# Lakes\n\nA lake keeps its water for years; a reservoir is a lake behind a dam.\n",
    );
    write(
        documents.path(),
        "canals.md",
        "# Canals\n\nA canal joins two rivers. Locks lift the boats from one to the other.\n",
    );
    let before = std::fs::read(documents.path().join("rivers.md")).expect("readable");
    let output = demo(documents.path(), work.path());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(steps(&output), STEPS);
    let after = std::fs::read(documents.path().join("rivers.md")).expect("readable");
    assert_eq!(before, after, "documents are copied, never written");
    assert!(is_empty(work.path()), "nothing is left behind");
}

/// Files without an ending that are pages: they are indexed by the text that is taken out of them, and no
/// citation can be found in the bytes of its file.
#[test]
fn the_demo_ends_with_1_when_a_step_was_not_observed() {
    let documents = tempfile::tempdir().expect("a folder");
    let work = tempfile::tempdir().expect("a folder");
    for name in ["a/readme", "b/readme", "c/readme"] {
        let page = format!(
            "<!doctype html><html><body><h1>Page {name}</h1><p>Water &amp; stones lie in the \
             bed of the <b>river</b>.</p></body></html>"
        );
        write(documents.path(), name, &page);
    }
    let output = demo(documents.path(), work.path());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(steps(&output), STEPS[..2], "the steps before it");
    let said = stderr(&output);
    assert!(said.contains("is not its file's text"), "{said}");
    assert!(is_empty(work.path()), "nothing is left behind");
}
