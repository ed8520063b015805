//! Real documents that any machine has which built this program: the README, CHANGELOG and docs files
//! of the crates in its cargo registry. They are copied; the registry is never written.
//!
//! Newest first (ties by path), Markdown before other text, at most [`SAMPLE_BYTES`] unless all are
//! wanted; what is left out is counted and said. Files that are empty, not UTF-8 or over
//! [`engine::limits::TEXT_BYTES_MAX`] are passed over.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use tempfile::TempDir;
use walkdir::{DirEntry, WalkDir};

use crate::cli::InputError;

/// Text that the demo takes unless `--all` is given: indexed in seconds on two cores.
pub const SAMPLE_BYTES: u64 = 300_000;

/// Fewer documents than this show nothing.
const FILES_MIN: usize = 3;

/// Which documents to take.
#[derive(Debug, Clone, Default)]
pub struct SampleOptions {
    /// A folder instead of the cargo registry; all its Markdown is taken for documents.
    pub path: Option<PathBuf>,
    /// Without the bound on bytes.
    pub all: bool,
}

/// Copied documents, removed when this is dropped.
#[derive(Debug)]
pub struct Sample {
    /// Keeps the folder alive.
    folder: TempDir,
    /// Paths relative to the folder, with `/`, in the order of taking.
    pub files: Vec<String>,
    /// Bytes of all files taken.
    pub bytes: u64,
    /// Documents that were found and not taken.
    pub left_out: usize,
    /// Their bytes.
    pub left_out_bytes: u64,
    /// Where they came from.
    pub from: PathBuf,
}

impl Sample {
    /// The folder of the copies.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// `61 files, 299 kB from …; 512 files, 4.1 MB left out (--all takes them)`
    pub fn summary(&self) -> String {
        let (files, kb) = (self.files.len(), self.bytes / 1_000);
        let mut text = format!(
            "{files} files, {kb} kB, copied from {}",
            self.from.display()
        );
        if self.left_out > 0 {
            let kb = self.left_out_bytes / 1_000;
            text += &format!(
                "; {} files, {kb} kB left out (--all takes them)",
                self.left_out
            );
        }
        text
    }
}

struct Found {
    path: PathBuf,
    relative: String,
    bytes: u64,
    modified: SystemTime,
    is_markdown: bool,
}

/// Finds and copies documents.
///
/// # Errors
/// [`InputError`] when there are too few, with the way to name a folder.
pub fn gather(options: &SampleOptions) -> anyhow::Result<Sample> {
    let is_registry = options.path.is_none();
    let from = match &options.path {
        Some(path) if path.is_dir() => path.clone(),
        Some(path) => {
            return Err(InputError::new(format!("there is no folder {}", path.display())).into());
        }
        None => registry(),
    };
    let mut found = find(&from, is_registry);
    found.sort_by(|a, b| {
        let newest = b.modified.cmp(&a.modified);
        b.is_markdown
            .cmp(&a.is_markdown)
            .then(newest)
            .then_with(|| a.relative.cmp(&b.relative))
    });
    let folder = tempfile::Builder::new()
        .prefix("headwater-demo-")
        .tempdir()?;
    let mut sample = Sample {
        folder,
        files: Vec::new(),
        bytes: 0,
        left_out: 0,
        left_out_bytes: 0,
        from,
    };
    for file in found {
        if !options.all && sample.bytes + file.bytes > SAMPLE_BYTES {
            sample.left_out += 1;
            sample.left_out_bytes += file.bytes;
        } else if copy(&file, sample.root())? {
            sample.bytes += file.bytes;
            sample.files.push(file.relative);
        }
    }
    if sample.files.len() < FILES_MIN {
        let (count, place) = (sample.files.len(), sample.from.display());
        let message = format!("{place} has {count} documents; the demo needs {FILES_MIN}");
        let hint = "name a folder of Markdown files: headwater demo --path DIR";
        return Err(InputError::new(message).hint(hint).into());
    }
    Ok(sample)
}

/// `$CARGO_HOME/registry/src`, by default in the home folder.
fn registry() -> PathBuf {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(etcetera::home_dir().ok()?.join(".cargo")));
    cargo_home.unwrap_or_default().join("registry").join("src")
}

fn find(root: &Path, is_registry: bool) -> Vec<Found> {
    let walk = WalkDir::new(root)
        .follow_links(false)
        .max_depth(8)
        .sort_by_file_name();
    let entries = walk
        .into_iter()
        .filter_entry(|entry| entry.depth() == 0 || !is_skipped(entry));
    // What cannot be read is not ours to complain about.
    let files = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file());
    files
        .filter_map(|entry| document(root, &entry, is_registry))
        .collect()
}

/// Build outputs and hidden folders hold no documents and many files.
fn is_skipped(entry: &DirEntry) -> bool {
    let name = entry.file_name().to_string_lossy();
    entry.file_type().is_dir()
        && (name.starts_with('.') || name == "target" || name == "node_modules")
}

fn document(root: &Path, entry: &DirEntry, is_registry: bool) -> Option<Found> {
    let relative = entry.path().strip_prefix(root).ok()?;
    // registry/src/<index>/<crate>/…: the index's folder tells nothing.
    let relative: PathBuf = if is_registry {
        relative.components().skip(1).collect()
    } else {
        relative.to_owned()
    };
    let relative: Vec<_> = relative
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    let name = relative.last()?.to_lowercase();
    let is_markdown = name.ends_with(".md") || name.ends_with(".markdown");
    let is_named = (name.starts_with("readme") || name.starts_with("changelog"))
        && [".rst", ".txt", ".adoc"]
            .iter()
            .any(|end| name.ends_with(end))
        || matches!(&*name, "readme" | "changelog");
    let in_docs = relative.iter().rev().skip(1).any(|part| part == "docs");
    let is_wanted = match is_registry {
        true => {
            is_named
                || is_markdown
                    && (in_docs || name.starts_with("readme") || name.starts_with("changelog"))
        }
        false => is_named || is_markdown,
    };
    let metadata = entry.metadata().ok().filter(|_| is_wanted)?;
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    Some(Found {
        path: entry.path().to_owned(),
        relative: relative.join("/"),
        bytes: metadata.len(),
        modified,
        is_markdown,
    })
}

/// Copies one file; false if it is no document after all.
fn copy(file: &Found, root: &Path) -> anyhow::Result<bool> {
    let is_sized = (1..=engine::limits::TEXT_BYTES_MAX as u64).contains(&file.bytes);
    let Some(text) = is_sized
        .then(|| std::fs::read_to_string(&file.path).ok())
        .flatten()
    else {
        return Ok(false);
    };
    // A file's text is read without its byte order mark; citations are checked against the file's bytes.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.trim().is_empty() {
        return Ok(false);
    }
    let path = root.join(&file.relative);
    let folder = path.parent().expect("a file lies in a folder");
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&path, text))
        .with_context(|| format!("cannot copy to {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        folder
    }

    #[test]
    fn takes_documents_and_says_what_it_left_out() {
        let big = vec![b'x'; 200_000];
        let source = folder(&[
            ("a-1.0/README.md", b"# A"),
            ("a-1.0/CHANGELOG", b"1.0"),
            ("a-1.0/notes.md", b"notes"),
            ("a-1.0/bad.md", b"\xFF\xFE"),
            ("a-1.0/empty.md", b" \n"),
            ("a-1.0/src/lib.rs", b"code"),
            ("target/x.md", b"built"),
            ("b-1.0/big.md", &big),
            ("b-1.0/big2.md", &big),
        ]);
        let path = Some(source.path().to_owned());
        let sample = gather(&SampleOptions {
            path: path.clone(),
            all: false,
        })
        .unwrap();
        let mut files = sample.files.clone();
        files.sort();
        let small = ["a-1.0/CHANGELOG", "a-1.0/README.md", "a-1.0/notes.md"];
        assert!(
            small
                .iter()
                .all(|want| files.iter().any(|file| file == want)),
            "{files:?}"
        );
        assert_eq!(
            (files.len(), sample.left_out, sample.left_out_bytes),
            (4, 1, 200_000)
        );
        assert_eq!(
            sample.files.last().unwrap(),
            "a-1.0/CHANGELOG",
            "Markdown comes first"
        );
        let copied = std::fs::read_to_string(sample.root().join("a-1.0/README.md")).unwrap();
        assert_eq!(copied, "# A");
        assert!(
            sample.summary().contains("1 files, 200 kB left out"),
            "{}",
            sample.summary()
        );
        let all = gather(&SampleOptions { path, all: true }).unwrap();
        assert_eq!((all.files.len(), all.left_out), (5, 0));
        let root = all.root().to_owned();
        drop(all);
        assert!(!root.exists(), "the copies go with the sample");
    }

    #[test]
    fn a_byte_order_mark_is_not_copied() {
        let marked = b"\xEF\xBB\xBF# A";
        let source = folder(&[("a.md", marked), ("b.md", b"# B"), ("c.md", b"# C")]);
        let path = Some(source.path().to_owned());
        let sample = gather(&SampleOptions { path, all: false }).unwrap();
        assert_eq!(std::fs::read(sample.root().join("a.md")).unwrap(), b"# A");
    }

    #[test]
    fn too_few_documents_is_an_error_with_a_way_out() {
        let source = folder(&[("README.md", b"# A")]);
        let path = Some(source.path().to_owned());
        let error = gather(&SampleOptions { path, all: false }).unwrap_err();
        let error = error.downcast_ref::<InputError>().unwrap();
        assert!(
            error.message.ends_with("has 1 documents; the demo needs 3"),
            "{error}"
        );
        assert!(
            error
                .hint
                .as_deref()
                .is_some_and(|hint| hint.contains("--path"))
        );
    }
}
