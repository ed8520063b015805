//! A [`Store`] in memory that fails and crashes on command.
//!
//! ```text
//!  file = durable bytes (what a sync put there) + volatile bytes (what a reader sees)
//!  crash(seed):  volatile = durable + a torn part of the unsynced tail: cut anywhere, with holes
//! ```
//!
//! The method is redb's: pass one counts the points where durability changes
//! ([`MemoryStore::durability_points`]), pass two runs the same script again and freezes the store
//! at each of them ([`Faults::freeze_at_point`]), then reopens what survives.
//!
//! Invariants: the same seed and the same calls give the same surviving bytes. A frozen store
//! fails every call: what the process "does" after its death changes nothing.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::contract::{AppendFile, Store};
use crate::error::WorldError;

/// What shall go wrong. Counters are absolute; the default is nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The process dies just before the n-th durability point (from 0) takes effect.
    pub freeze_at_point: Option<u64>,
    /// Writes and syncs from the n-th operation (from 0) on fail …
    pub fail_from_operation: Option<u64>,
    /// … until this one.
    pub fail_until_operation: Option<u64>,
    /// The disk is full at this many bytes: an append writes what fits and fails.
    pub capacity_bytes: Option<usize>,
}

/// A folder in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, MemoryFile>,
    faults: Faults,
    operations: u64,
    points: u64,
    is_frozen: bool,
}

#[derive(Clone, Default)]
struct MemoryFile {
    durable: Vec<u8>,
    volatile: Vec<u8>,
}

fn failed(what: &'static str, name: &str, kind: ErrorKind) -> WorldError {
    WorldError::io(what, Path::new(name), Error::from(kind))
}

impl Inner {
    fn alive(&self, name: &str) -> Result<(), WorldError> {
        if self.is_frozen {
            Err(failed("frozen:", name, ErrorKind::BrokenPipe))
        } else {
            Ok(())
        }
    }

    /// A call that changes bytes: counts, and fails when it is told to.
    fn operation(&mut self, name: &str) -> Result<(), WorldError> {
        self.alive(name)?;
        let operation = self.operations;
        self.operations += 1;
        let Faults {
            fail_from_operation,
            fail_until_operation,
            ..
        } = self.faults;
        let fails = fail_from_operation.is_some_and(|from| operation >= from)
            && fail_until_operation.is_none_or(|until| operation < until);
        if fails {
            Err(failed("injected:", name, ErrorKind::Other))
        } else {
            Ok(())
        }
    }

    /// A call that makes bytes durable: may be the one that never happens.
    fn point(&mut self, name: &str) -> Result<(), WorldError> {
        self.operation(name)?;
        let point = self.points;
        self.points += 1;
        if self.faults.freeze_at_point == Some(point) {
            self.is_frozen = true;
        }
        self.alive(name)
    }

    fn bytes(&self) -> usize {
        self.files.values().map(|file| file.volatile.len()).sum()
    }

    fn room(&self) -> usize {
        self.faults
            .capacity_bytes
            .map_or(usize::MAX, |full| full.saturating_sub(self.bytes()))
    }
}

impl MemoryStore {
    /// An empty folder.
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic under this lock")
    }

    /// Sets what shall go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.inner().faults = faults;
    }

    /// Durability points passed: syncs, replacements, removals, new files.
    pub fn durability_points(&self) -> u64 {
        self.inner().points
    }

    /// Calls that change bytes, made so far.
    pub fn operations(&self) -> u64 {
        self.inner().operations
    }

    /// Whether [`Faults::freeze_at_point`] was reached.
    pub fn is_frozen(&self) -> bool {
        self.inner().is_frozen
    }

    /// What a machine that loses its power now finds afterwards: synced bytes, and of unsynced
    /// ones any part, holes included.
    pub fn after_crash(&self, seed: u64) -> MemoryStore {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        self.copy(|file| torn(file, &mut rng))
    }

    /// A folder of its own with all that a reader sees now: opening a log over it changes nothing here.
    pub fn snapshot(&self) -> MemoryStore {
        self.copy(|file| file.volatile.clone())
    }

    fn copy(&self, mut bytes: impl FnMut(&MemoryFile) -> Vec<u8>) -> MemoryStore {
        let inner = self.inner();
        let files = inner.files.iter().map(|(name, file)| {
            let bytes = bytes(file);
            let copy = MemoryFile {
                durable: bytes.clone(),
                volatile: bytes,
            };
            (name.clone(), copy)
        });
        MemoryStore {
            inner: Arc::new(Mutex::new(Inner {
                files: files.collect(),
                ..Inner::default()
            })),
        }
    }

    /// Changes stored bytes behind everybody's back: damage.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner();
        let file = inner
            .files
            .get_mut(name)
            .expect("the file to damage exists");
        change(&mut file.volatile);
        file.durable = file.volatile.clone();
    }
}

fn torn(file: &MemoryFile, rng: &mut impl Rng) -> Vec<u8> {
    if !file.volatile.starts_with(&file.durable) {
        // An unsynced truncation: the old bytes may come back.
        return if rng.random() {
            file.durable.clone()
        } else {
            file.volatile.clone()
        };
    }
    let mut bytes = file.volatile.clone();
    let start = file.durable.len();
    bytes.truncate(rng.random_range(start..=bytes.len()));
    if bytes.len() > start && rng.random_bool(0.5) {
        let from = rng.random_range(start..bytes.len());
        let to = rng.random_range(from..=bytes.len());
        bytes[from..to].fill(0);
    }
    bytes
}

impl Store for MemoryStore {
    fn append(&self, name: &str) -> Result<Box<dyn AppendFile>, WorldError> {
        let mut inner = self.inner();
        if inner.files.contains_key(name) {
            inner.alive(name)?;
        } else {
            inner.point(name)?;
            inner.files.insert(name.to_owned(), MemoryFile::default());
        }
        Ok(Box::new(Handle {
            store: self.clone(),
            name: name.to_owned(),
        }))
    }

    fn read_at(&self, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, WorldError> {
        let inner = self.inner();
        inner.alive(name)?;
        let file = inner
            .files
            .get(name)
            .ok_or_else(|| failed("cannot read", name, ErrorKind::NotFound))?;
        let from = (offset as usize).min(file.volatile.len());
        let to = from.saturating_add(length).min(file.volatile.len());
        Ok(file.volatile[from..to].to_vec())
    }

    fn size(&self, name: &str) -> Result<Option<u64>, WorldError> {
        let inner = self.inner();
        inner.alive(name)?;
        Ok(inner.files.get(name).map(|file| file.volatile.len() as u64))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), WorldError> {
        let mut inner = self.inner();
        inner.point(name)?;
        if bytes.len() > inner.room() {
            return Err(failed("cannot write", name, ErrorKind::StorageFull));
        }
        let file = MemoryFile {
            durable: bytes.to_vec(),
            volatile: bytes.to_vec(),
        };
        inner.files.insert(name.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), WorldError> {
        let mut inner = self.inner();
        inner.point(name)?;
        inner.files.remove(name);
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, WorldError> {
        let inner = self.inner();
        inner.alive("")?;
        Ok(inner.files.keys().cloned().collect())
    }
}

struct Handle {
    store: MemoryStore,
    name: String,
}

impl Handle {
    /// Runs `f` on the file; a removed one is gone for its owner too, which no caller does.
    fn with<T>(&self, f: impl FnOnce(&mut MemoryFile) -> T) -> T {
        f(self
            .store
            .inner()
            .files
            .entry(self.name.clone())
            .or_default())
    }
}

impl AppendFile for Handle {
    fn append(&mut self, bytes: &[u8]) -> Result<(), WorldError> {
        let (result, fits) = {
            let mut inner = self.store.inner();
            match inner.operation(&self.name) {
                Ok(()) if inner.room() >= bytes.len() => (Ok(()), bytes.len()),
                Ok(()) => {
                    let full = failed("cannot write", &self.name, ErrorKind::StorageFull);
                    (Err(full), inner.room())
                }
                Err(error) => {
                    // A failing write leaves a part behind, a dead process nothing.
                    let part = if inner.is_frozen { 0 } else { bytes.len() / 2 };
                    (Err(error), part)
                }
            }
        };
        self.with(|file| file.volatile.extend_from_slice(&bytes[..fits]));
        result
    }

    fn sync(&mut self) -> Result<(), WorldError> {
        self.store.inner().point(&self.name)?;
        self.with(|file| file.durable = file.volatile.clone());
        Ok(())
    }

    fn len(&self) -> u64 {
        self.with(|file| file.volatile.len() as u64)
    }

    fn truncate(&mut self, len: u64) -> Result<(), WorldError> {
        self.store.inner().operation(&self.name)?;
        self.with(|file| file.volatile.truncate(len as usize));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_a_folder_of_its_own() {
        let store = MemoryStore::new();
        let mut file = store.append("a").unwrap();
        file.append(b"not synced").unwrap();
        let copy = store.snapshot();
        copy.append("a").unwrap().truncate(3).unwrap();
        assert_eq!(copy.read_at("a", 0, 99).unwrap(), b"not");
        assert_eq!(store.read_at("a", 0, 99).unwrap(), b"not synced");
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_may_tear_the_rest() {
        let store = MemoryStore::new();
        let mut file = store.append("a").unwrap();
        file.append(b"synced").unwrap();
        file.sync().unwrap();
        file.append(b" and lost").unwrap();
        let mut seen = std::collections::HashSet::new();
        for seed in 0..200 {
            let bytes = store.after_crash(seed).read_at("a", 0, 99).unwrap();
            assert!(bytes.starts_with(b"synced"));
            seen.insert(bytes);
        }
        assert!(seen.len() > 20, "tails are torn in many ways");
    }
}
