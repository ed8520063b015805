//! What the data folder remembers of sinks: its own name outside, and how far each sink was.
//!
//! The truth about a sink's progress lies outside, where it is written together with the changes.
//! Here is only a late copy of it, for two questions of a start. How much history must be kept until
//! the outside can be asked: what happened after the noted time. Has the outside *lost* a progress
//! that was there: a sink with a note has written something.
//!
//! `sinks.state` is one frame ([`super::frame`], kind 1) around a bincode value, replaced as a whole.
//! Invariants: a note is never ahead of what is written outside; the name is made once and is random,
//! so that no two data folders write under one name, unless one is a copy of the other.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::frame::{self, Frame};
use super::record::corrupt;
use crate::contract::Store;
use crate::error::WorldError;
use crate::model::{ObjectId, Time};

const FILE: &str = "sinks.state";
const KIND: u8 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    pipeline: String,
    progress: BTreeMap<ObjectId, Time>,
}

/// See the module.
pub struct SinkNotes {
    store: Arc<dyn Store>,
    state: Mutex<State>,
}

impl SinkNotes {
    /// Reads the notes, or begins them.
    ///
    /// Errors: a damaged file, or a folder that cannot be written.
    pub fn open(store: Arc<dyn Store>) -> Result<SinkNotes, WorldError> {
        let state = match store.size(FILE)? {
            Some(size) => decode(&store.read_at(FILE, 0, size as usize)?)?,
            None => {
                let state = State {
                    pipeline: random_name(),
                    progress: BTreeMap::new(),
                };
                save(&*store, &state)?;
                state
            }
        };
        let state = Mutex::new(state);
        Ok(SinkNotes { store, state })
    }

    /// The name of this data folder: 32 hexadecimal digits.
    pub fn pipeline(&self) -> String {
        self.lock().pipeline.clone()
    }

    /// How far a sink was, at least; `None` when it has written nothing.
    pub fn progress(&self, sink: ObjectId) -> Option<Time> {
        self.lock().progress.get(&sink).copied()
    }

    /// Remembers how far a sink is. Cost: a synced file.
    pub fn note(&self, sink: ObjectId, progress: Time) -> Result<(), WorldError> {
        let mut state = self.lock();
        state.progress.insert(sink, progress);
        save(&*self.store, &state)
    }

    /// Forgets all sinks but some.
    pub fn retain(&self, keep: impl Fn(ObjectId) -> bool) -> Result<(), WorldError> {
        let mut state = self.lock();
        let before = state.progress.len();
        state.progress.retain(|sink, _| keep(*sink));
        match state.progress.len() == before {
            true => Ok(()),
            false => save(&*self.store, &state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decode(bytes: &[u8]) -> Result<State, WorldError> {
    let payload = match frame::decode(bytes) {
        Ok(Frame {
            kind: KIND,
            payload,
            ..
        }) => payload,
        other => {
            return Err(corrupt(
                FILE,
                0,
                format!("not the notes of sinks: {other:?}"),
            ));
        }
    };
    bincode::serde::decode_from_slice(payload, bincode::config::standard())
        .map(|(state, _)| state)
        .map_err(|error| corrupt(FILE, 0, format!("cannot decode: {error}")))
}

fn save(store: &dyn Store, state: &State) -> Result<(), WorldError> {
    let payload = bincode::serde::encode_to_vec(state, bincode::config::standard())
        .expect("plain data always encodes");
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, 0, KIND, &payload);
    store.replace(FILE, &bytes)
}

/// 128 bits that the operating system chose.
fn random_name() -> String {
    let half = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", half(), half())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::LocalStore;

    #[test]
    fn the_name_stays_and_notes_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (ObjectId(1), ObjectId(2));
        let name = {
            let store = Arc::new(LocalStore::open(folder.path()).unwrap());
            let notes = SinkNotes::open(store).unwrap();
            notes.note(a, 7).unwrap();
            notes.note(b, 8).unwrap();
            notes.note(a, 9).unwrap();
            notes.retain(|sink| sink == a).unwrap();
            notes.pipeline()
        };
        assert_eq!(name.len(), 32);
        let store = Arc::new(LocalStore::open(folder.path()).unwrap());
        let notes = SinkNotes::open(Arc::clone(&store) as _).unwrap();
        assert_eq!(notes.pipeline(), name);
        assert_eq!((notes.progress(a), notes.progress(b)), (Some(9), None));
        store.replace(FILE, b"damaged").unwrap();
        let error = SinkNotes::open(store).err().unwrap().to_string();
        assert!(error.starts_with("sinks.state at byte 0: "), "{error}");
        let other = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(other.path()).unwrap());
        assert_ne!(SinkNotes::open(store).unwrap().pipeline(), name);
    }
}
