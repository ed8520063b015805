//! What the data folder remembers of sinks: its own name outside, how far each sink was, its starts.
//!
//! The truth about a sink's progress lies outside, where it is written together with the changes.
//! Here is only a late copy of it, for two questions of a start. How much history must be kept until
//! the outside can be asked: what happened after the noted time. Has the outside *lost* a progress
//! that was there: a sink with a note has written something.
//!
//! And is the progress outside this folder's own? A copy of the folder has the same name. So each start
//! is a *run* with a random number ([`SinkRuns`]), which the progress names; the end of the last run is
//! fixed when the next one begins, before anything is bound to a time.
//!
//! `sinks.state` is one frame ([`super::frame`], kind 1) around a bincode value, replaced as a whole.
//! Invariants: a note is never ahead of what is written outside; the name is made once and is random,
//! so that no two data folders write under one name, unless one is a copy of the other; a run is durable
//! before any progress names it. Limits: a run is forgotten once every sink has noted a progress beyond
//! its end; of more than SINK_RUNS_MAX the oldest are, too, and a progress of theirs is refused then.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::frame::{self, Frame};
use super::record::corrupt;
use crate::contract::{SinkRun, SinkRuns, Store};
use crate::error::WorldError;
use crate::limits::SINK_RUNS_MAX;
use crate::model::{ObjectId, Time};

const FILE: &str = "sinks.state";
const KIND: u8 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    pipeline: String,
    progress: BTreeMap<ObjectId, Time>,
    runs: SinkRuns,
    /// Objects below it have been declared once: a dropped sink's number is not given again, because its
    /// progress may still be outside.
    next_object: u32,
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
                    runs: SinkRuns::default(),
                    next_object: 0,
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

    /// The next number of an object, as far as is known here.
    pub fn next_object(&self) -> u32 {
        self.lock().next_object
    }

    /// Begins a run, before anything of it is bound. `last`: no time above it was published before.
    /// `sinks`: those that are declared.
    ///
    /// Errors: a folder that cannot be written; then nothing may be written outside, either.
    pub fn begin_run(
        &self,
        last: Time,
        sinks: &[ObjectId],
        next_object: u32,
    ) -> Result<(), WorldError> {
        let mut state = self.lock();
        let State { progress, runs, .. } = &mut *state;
        progress.retain(|sink, _| sinks.contains(sink));
        if let Some(run) = runs.0.last_mut() {
            run.end.get_or_insert(last);
        }
        // What stands outside is at or above the note.
        let noted = |sink| progress.get(sink).copied().unwrap_or(0);
        let least = sinks.iter().map(noted).min().unwrap_or(Time::MAX);
        runs.0.retain(|run| run.end.is_some_and(|end| end >= least));
        let over = (runs.0.len() + 1).saturating_sub(SINK_RUNS_MAX);
        runs.0.drain(..over);
        runs.0.push(SinkRun {
            id: RandomState::new().build_hasher().finish(),
            end: None,
        });
        state.next_object = state.next_object.max(next_object);
        save(&*self.store, &state)
    }

    /// The runs; the last one is this.
    pub fn runs(&self) -> SinkRuns {
        self.lock().runs.clone()
    }

    /// Forgets a sink that is dropped. `next_object`: the number that comes next.
    pub fn forget(&self, sink: ObjectId, next_object: u32) -> Result<(), WorldError> {
        let mut state = self.lock();
        state.progress.remove(&sink);
        state.next_object = state.next_object.max(next_object);
        save(&*self.store, &state)
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
    use crate::contract::ForeignProgress;
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
            notes.forget(b, 3).unwrap();
            notes.pipeline()
        };
        assert_eq!(name.len(), 32);
        let store = Arc::new(LocalStore::open(folder.path()).unwrap());
        let notes = SinkNotes::open(Arc::clone(&store) as _).unwrap();
        assert_eq!(notes.pipeline(), name);
        assert_eq!((notes.progress(a), notes.progress(b)), (Some(9), None));
        assert_eq!(notes.next_object(), 3);
        store.replace(FILE, b"damaged").unwrap();
        let error = SinkNotes::open(store).err().unwrap().to_string();
        assert!(error.starts_with("sinks.state at byte 0: "), "{error}");
        let other = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(other.path()).unwrap());
        assert_ne!(SinkNotes::open(store).unwrap().pipeline(), name);
    }

    /// What a server does at its start.
    fn start(store: &Arc<LocalStore>, last: Time, sinks: &[ObjectId]) -> (SinkNotes, SinkRuns) {
        let notes = SinkNotes::open(Arc::clone(store) as _).unwrap();
        notes.begin_run(last, sinks, 9).unwrap();
        let runs = notes.runs();
        (notes, runs)
    }

    #[test]
    fn a_copied_folder_and_its_original_know_each_others_progress_over_any_starts() {
        let (folder, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Arc::new(LocalStore::open(folder.path()).unwrap());
        let sinks = [ObjectId(1)];
        let (notes, first) = start(&store, 0, &sinks);
        notes.note(sinks[0], 50).unwrap();
        let copy = Arc::new(LocalStore::open(copied.path()).unwrap());
        let bytes = store.read_at(FILE, 0, store.size(FILE).unwrap().unwrap() as usize);
        copy.replace(FILE, &bytes.unwrap()).unwrap();
        // The original goes on, in the same run and in another one.
        let (_, second) = start(&store, 100, &sinks);
        assert_eq!(second.check(first.current(), 100, 0), Ok(()));
        assert_eq!(second.check(second.current(), 180, 180), Ok(()));
        // The copy's log ends at 60; whatever time its own later starts reserve, that stays so.
        for last in [60, 1_000, 5_000] {
            let (_, third) = start(&copy, last, &sinks);
            let beyond = Err(ForeignProgress::Beyond(60));
            assert_eq!(third.check(first.current(), 60, 0), Ok(()));
            assert_eq!(third.check(first.current(), 61, 9_000), beyond);
            let unknown = Err(ForeignProgress::Unknown);
            assert_eq!(third.check(second.current(), 50, 9_000), unknown);
            let (_, own) = start(&store, last, &sinks);
            assert_eq!(own.check(third.current(), last, 9_000), unknown);
            let beyond = Err(ForeignProgress::Beyond(last));
            assert_eq!(third.check(third.current(), last + 1, last), beyond);
        }
    }

    #[test]
    fn runs_are_forgotten_when_every_sink_is_beyond_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(folder.path()).unwrap());
        let (a, b) = (ObjectId(1), ObjectId(2));
        start(&store, 0, &[a, b]);
        let (notes, _) = start(&store, 10, &[a, b]);
        notes.note(a, 30).unwrap();
        assert_eq!(start(&store, 20, &[a, b]).1.0.len(), 3);
        let (notes, _) = start(&store, 40, &[a, b]);
        notes.note(b, 11).unwrap();
        let ends = |runs: SinkRuns| runs.0.iter().map(|run| run.end).collect::<Vec<_>>();
        let left = [Some(20), Some(40), Some(50), None];
        assert_eq!(ends(start(&store, 50, &[a, b]).1), left);
        assert_eq!(
            ends(start(&store, 60, &[a]).1),
            [Some(40), Some(50), Some(60), None]
        );
        assert_eq!(ends(start(&store, 70, &[]).1), [None]);
        let many = (0..SINK_RUNS_MAX as u64).map(|id| SinkRun {
            id,
            end: Some(100 + id),
        });
        let notes = SinkNotes::open(Arc::clone(&store) as _).unwrap();
        notes.lock().runs = SinkRuns(many.collect());
        notes.begin_run(9_000, &[b], 9).unwrap();
        let runs = notes.runs();
        assert_eq!((runs.0.len(), runs.0[0].id), (SINK_RUNS_MAX, 1));
    }
}
