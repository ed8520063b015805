//! Documents of a shard and their versions within retention.
//!
//! Attributes and text are held once per document version, never per chunk (PROTOCOLS §6.2); a
//! version lists the slots of its chunks in text order, so an ordinal is a position.

use std::sync::Arc;

use ahash::AHashMap;
use engine::model::{ContentHash, Key, Time};

use super::DocumentState;
use super::slots::NEVER;

#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) from: Time,
    pub(crate) to: Time,
    pub(crate) state: Arc<DocumentState>,
    /// Parallel to `state.chunks`; `NONE` for a piece that makes no chunk.
    pub(crate) slots: Arc<[u32]>,
}

#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) key: Key,
    /// Oldest first; at most one is open, the last.
    pub(crate) versions: Vec<Version>,
    /// Chunks of the open version without a vector.
    pub(crate) waiting: u32,
}

impl Document {
    pub(crate) fn version(&self, at: Time) -> Option<&Version> {
        self.versions
            .iter()
            .rev()
            .find(|version| version.from <= at && at < version.to)
    }

    /// Closes the open version and returns what it held.
    pub(crate) fn close(&mut self, at: Time) -> Option<(Arc<DocumentState>, Arc<[u32]>)> {
        let open = self
            .versions
            .last_mut()
            .filter(|version| version.to == NEVER)?;
        open.to = at;
        Some((open.state.clone(), open.slots.clone()))
    }
}

/// Documents by number and key. A number is reused after its document's last version is gone.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    entries: Vec<Option<Document>>,
    by_key: AHashMap<Key, u32>,
    free: Vec<u32>,
}

impl Documents {
    pub(crate) fn find(&self, key: &Key) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn find_or_add(&mut self, key: &Key) -> u32 {
        if let Some(number) = self.find(key) {
            return number;
        }
        let entry = Some(Document {
            key: key.clone(),
            versions: Vec::new(),
            waiting: 0,
        });
        let number = match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).expect("fewer than 2³² documents in a shard")
            }
        };
        self.by_key.insert(key.clone(), number);
        number
    }

    /// A document that a live slot names.
    pub(crate) fn get(&self, number: u32) -> &Document {
        self.entries[number as usize]
            .as_ref()
            .expect("slots name documents that exist")
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> &mut Document {
        self.entries[number as usize]
            .as_mut()
            .expect("slots name documents that exist")
    }

    /// Drops the versions that nobody reads any more, and the document with its last one.
    pub(crate) fn compact(&mut self, number: u32, since: Time) {
        let entry = &mut self.entries[number as usize];
        let Some(document) = entry else { return };
        document.versions.retain(|version| version.to > since);
        if document.versions.is_empty() {
            self.by_key.remove(&document.key);
            *entry = None;
            self.free.push(number);
        }
    }

    /// Every document with a version at a time.
    pub(crate) fn at(&self, at: Time) -> impl Iterator<Item = (u32, &Version)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(move |(number, entry)| Some((number as u32, entry.as_ref()?.version(at)?)))
    }

    /// The texts of all versions that are held, of documents from number `from` on, until `room` is
    /// used up; and the number to go on with, if there are more.
    pub(crate) fn contents(&self, from: u32, room: usize) -> (Vec<ContentHash>, Option<u32>) {
        let mut contents = Vec::new();
        for (number, entry) in self.entries.iter().enumerate().skip(from as usize) {
            if contents.len() >= room {
                return (contents, Some(number as u32));
            }
            let versions = entry.iter().flat_map(|document| &document.versions);
            let pieces = versions.flat_map(|version| version.state.chunks.iter());
            contents.extend(pieces.map(|chunk| chunk.piece.content));
        }
        (contents, None)
    }

    /// Documents held, those without a live version included.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Upper bound of document numbers.
    pub(crate) fn numbers(&self) -> usize {
        self.entries.len()
    }
}
