//! A folder of the local file system as a [`Store`].
//!
//! ```text
//!  append:   open(O_APPEND) … write … fdatasync           a new file: fsync the folder once
//!  replace:  write name.tmp ─▶ fsync ─▶ rename over name ─▶ fsync the folder
//!  lock:     flock on `lock`, which also says who holds it
//! ```
//!
//! Invariants: one process at a time has the folder (an advisory lock that the system releases
//! when the process ends, however it ends); `replace` never shows a mixture. Files are bytes for
//! one owner each: open a file for appending once.
//!
//! Limits: the lock is not reliable on network file systems without lock support.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::contract::{AppendFile, Store};
use crate::error::WorldError;

const LOCK: &str = "lock";
const TEMPORARY: &str = ".tmp";
/// Bytes of one call to write. For a larger one Linux takes larger blocks of free memory to copy it to,
/// which are seldom in a cache and, in a virtual machine, often not backed: of 1 MiB at a time the copy
/// took three to ten times as long.
const WRITE_BYTES: usize = 64 << 10;

/// A folder, locked for as long as this lives.
#[derive(Debug)]
pub struct LocalStore {
    folder: PathBuf,
    _lock: File,
}

impl LocalStore {
    /// Opens a folder, creating it when it is missing, and locks it.
    ///
    /// Errors: [`WorldError::Locked`] with the holder's process id and since when;
    /// [`WorldError::Io`] otherwise.
    pub fn open(folder: &Path) -> Result<LocalStore, WorldError> {
        std::fs::create_dir_all(folder)
            .map_err(|error| WorldError::io("cannot create the folder", folder, error))?;
        let lock = lock(folder)?;
        let store = LocalStore {
            folder: folder.to_owned(),
            _lock: lock,
        };
        for name in store.names()? {
            if name.ends_with(TEMPORARY) {
                store.remove(&name)?; // a replace that a crash cut short
            }
        }
        Ok(store)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, name: &str) -> PathBuf {
        let is_valid = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        assert!(
            !name.is_empty()
                && name != LOCK
                && !name.starts_with('.')
                && name.bytes().all(is_valid),
            "{name:?} is not the name of a stored file"
        );
        self.folder.join(name)
    }

    fn names(&self) -> Result<Vec<String>, WorldError> {
        let failed = |error| WorldError::io("cannot list", &self.folder, error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file()
                && let Ok(name) = entry.file_name().into_string()
                && name != LOCK
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Makes created, renamed and removed names durable.
    fn sync_folder(&self) -> Result<(), WorldError> {
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| WorldError::io("cannot sync the folder", &self.folder, error))
    }
}

/// Takes the folder's lock and writes into it who we are.
fn lock(folder: &Path) -> Result<File, WorldError> {
    let path = folder.join(LOCK);
    let failed = |error| WorldError::io("cannot lock", &path, error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The holder may be writing this very moment.
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                holder => holder.to_owned(),
            };
            return Err(WorldError::Locked {
                path: folder.display().to_string(),
                holder,
            });
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    let since = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    let holder = format!("process {} (since {since})\n", std::process::id());
    // Only for the message of the next one who tries: a full disk must not stop the start here.
    let _ = file
        .set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| file.write_all(holder.as_bytes()));
    Ok(file)
}

impl Store for LocalStore {
    fn append(&self, name: &str) -> Result<Box<dyn AppendFile>, WorldError> {
        let path = self.path(name);
        let failed = |error| WorldError::io("cannot open", &path, error);
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        if is_new {
            self.sync_folder()?;
        }
        Ok(Box::new(LocalFile { path, file, len }))
    }

    fn read_at(&self, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, WorldError> {
        let path = self.path(name);
        let failed = |error| WorldError::io("cannot read", &path, error);
        let file = File::open(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut bytes = vec![0; length.min(size.saturating_sub(offset) as usize)];
        file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        Ok(bytes)
    }

    fn size(&self, name: &str) -> Result<Option<u64>, WorldError> {
        let path = self.path(name);
        match std::fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(WorldError::io("cannot read", &path, error)),
        }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), WorldError> {
        let path = self.path(name);
        let temporary = self.path(&format!("{name}{TEMPORARY}"));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&temporary); // gives a full disk its space back
            WorldError::io("cannot write", &path, error)
        })?;
        self.sync_folder()
    }

    fn remove(&self, name: &str) -> Result<(), WorldError> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Ok(()) => self.sync_folder(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(WorldError::io("cannot remove", &path, error)),
        }
    }

    fn list(&self) -> Result<Vec<String>, WorldError> {
        let mut names = self.names()?;
        names.retain(|name| !name.ends_with(TEMPORARY));
        Ok(names)
    }
}

#[derive(Debug)]
struct LocalFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl AppendFile for LocalFile {
    fn append(&mut self, bytes: &[u8]) -> Result<(), WorldError> {
        let mut pieces = bytes.chunks(WRITE_BYTES);
        match pieces.try_for_each(|piece| self.file.write_all(piece)) {
            Ok(()) => {
                self.len += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Part of it may have been written: a full disk takes what fits.
                if let Ok(metadata) = self.file.metadata() {
                    self.len = metadata.len();
                }
                Err(WorldError::io("cannot write", &self.path, error))
            }
        }
    }

    fn sync(&mut self) -> Result<(), WorldError> {
        self.file
            .sync_data()
            .map_err(|error| WorldError::io("cannot sync", &self.path, error))
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn truncate(&mut self, len: u64) -> Result<(), WorldError> {
        self.file
            .set_len(len)
            .map_err(|error| WorldError::io("cannot truncate", &self.path, error))?;
        self.len = len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        let error = LocalStore::open(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {} (since 2", std::process::id())),
            "{error}"
        );
        drop(store);
        LocalStore::open(folder.path()).unwrap();
    }

    #[test]
    fn a_replace_that_a_crash_cut_short_is_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.tmp"), "half").unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        assert!(store.list().unwrap().is_empty() && !folder.path().join("a.tmp").exists());
    }
}
