//! The manifest: which segment files are the log, in which order.
//!
//! `log.manifest` is one frame ([`super::frame`], kind 1) around a bincode [`Manifest`], replaced
//! as a whole. A segment belongs to the log exactly when the manifest lists it; any other
//! `log-*.hwl` is what a crash left behind between two steps and is deleted at the next start.
//!
//! ```text
//!  base 4 · base 5 │ sealed 2 · sealed 3 · … │ open 9        numbers only name files;
//!  (compacted)     │ (full, synced)          │ (appended)    the list gives the order
//! ```
//!
//! Invariants: exactly the last segment is open; a sealed one has its durable length, so that
//! bytes behind it (a failed append that could not be undone) are not read.

use serde::{Deserialize, Serialize};

use super::frame::{self, Frame};
use super::record::corrupt;
use crate::contract::Store;
use crate::error::WorldError;
use crate::model::Time;

/// The manifest's file.
pub(super) const MANIFEST: &str = "log.manifest";
const KIND: u8 = 1;

/// The segments of the log in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The number of the next new segment.
    pub next: u64,
    /// Base segments first, the open one last.
    pub segments: Vec<Segment>,
}

/// One segment file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    /// Names the file.
    pub number: u64,
    /// Written by compaction.
    pub is_base: bool,
    /// `None` for the open one.
    pub sealed: Option<Sealed>,
}

/// What is known of a segment that is no longer appended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sealed {
    /// Its durable length.
    pub bytes: u64,
    /// The greatest engine time in it, if it has any.
    pub time: Option<Time>,
}

impl Segment {
    /// The file's name.
    pub fn name(&self) -> String {
        segment_name(self.number)
    }
}

/// The file of a segment number.
pub(super) fn segment_name(number: u64) -> String {
    format!("log-{number:010}.hwl")
}

impl Manifest {
    /// Reads it; `None` when the folder has no log yet.
    pub fn load(store: &dyn Store) -> Result<Option<Manifest>, WorldError> {
        let Some(size) = store.size(MANIFEST)? else {
            return Ok(None);
        };
        let bytes = store.read_at(MANIFEST, 0, size as usize)?;
        let payload = match frame::decode(&bytes) {
            Ok(Frame {
                kind: KIND,
                payload,
                ..
            }) => payload,
            other => return Err(corrupt(MANIFEST, 0, format!("not a manifest: {other:?}"))),
        };
        bincode::serde::decode_from_slice(payload, bincode::config::standard())
            .map(|(manifest, _)| Some(manifest))
            .map_err(|error| corrupt(MANIFEST, 0, format!("cannot decode: {error}")))
    }

    /// Replaces it durably.
    pub fn save(&self, store: &dyn Store) -> Result<(), WorldError> {
        assert!(
            self.segments
                .iter()
                .rev()
                .skip(1)
                .all(|segment| segment.sealed.is_some()),
            "only the last segment may be open"
        );
        let payload = bincode::serde::encode_to_vec(self, bincode::config::standard())
            .expect("plain data always encodes");
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, 0, KIND, &payload);
        store.replace(MANIFEST, &bytes)
    }

    /// Deletes segment files that are not listed.
    pub fn remove_strangers(&self, store: &dyn Store) -> Result<(), WorldError> {
        for name in store.list()? {
            let is_segment = name.starts_with("log-") && name.ends_with(".hwl");
            if is_segment && !self.segments.iter().any(|segment| segment.name() == name) {
                tracing::info!(file = %name, "deleting a segment that is not part of the log");
                store.remove(&name)?;
            }
        }
        Ok(())
    }
}
