//! Where real texts are on every machine that builds this: the user's cargo registry.

use std::path::PathBuf;

/// The README files of the crates in the registry, sorted by path.
pub fn readmes() -> Vec<PathBuf> {
    files(3, |name| name == "README.md")
}

/// All Markdown and all Rust sources of the crates in the registry, sorted by path.
#[allow(dead_code)] // not every bench wants so many
pub fn documentation() -> Vec<PathBuf> {
    files(usize::MAX, |name| {
        name.ends_with(".md") || name.ends_with(".rs")
    })
}

fn files(depth: usize, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| std::env::home_dir().expect("a home folder").join(".cargo"));
    let mut paths: Vec<PathBuf> = walkdir::WalkDir::new(home.join("registry/src"))
        .max_depth(depth)
        .into_iter()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(&is_wanted))
        .map(walkdir::DirEntry::into_path)
        .collect();
    paths.sort();
    paths
}
