//! Puts the commit into `--version`: from `HEADWATER_COMMIT`, else from git, else "unknown".
//!
//! A source archive has no git folder and must build all the same, so nothing here can fail.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=HEADWATER_COMMIT");
    // The log of HEAD grows with every commit and checkout; watching it keeps the commit true. A
    // path that is missing would make cargo run this every time.
    for path in [".git/HEAD", ".git/logs/HEAD"] {
        if Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let given = std::env::var("HEADWATER_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty());
    let commit = given
        .or_else(from_git)
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=HEADWATER_COMMIT={commit}");
}

fn from_git() -> Option<String> {
    // Only our own repository: an archive unpacked inside another one is not at that commit.
    if !Path::new(".git").exists() {
        return None;
    }
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}
