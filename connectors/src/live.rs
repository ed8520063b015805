//! The rows of a source as they stand after everything that its reader took, staged or not.
//!
//! Idea: the sink knows what it was given; what lies in the batch that is being made is kept beside
//! it. So a value that the upstream did not send again is taken from the row as it really stands.

use std::collections::BTreeSet;
use std::sync::Arc;

use ahash::AHashMap;
use engine::contract::Resume;
use engine::error::WorldError;
use engine::model::{Key, Row, RowCodec, Schema, Value};

use crate::envelope::table::LiveRows;

/// See the module.
pub(crate) struct Rows {
    resume: Arc<dyn Resume>,
    codec: RowCodec,
    /// Changes of the batch that is being made.
    staged: AHashMap<Key, Option<Row>>,
    /// Those of the batch before, which may be on its way to the sink.
    leaving: AHashMap<Key, Option<Row>>,
    /// Where rows are packed, one after the other.
    buffer: Vec<u8>,
}

impl LiveRows for Rows {
    fn row(&self, key: &Key) -> Option<Vec<Value>> {
        match self.staged.get(key).or_else(|| self.leaving.get(key)) {
            Some(None) => None,
            Some(Some(row)) => Some(self.codec.unpack(row)),
            None => self.resume.row(key).map(|row| self.codec.unpack(&row)),
        }
    }
}

impl Rows {
    /// Errors: a schema without a row format.
    pub(crate) fn new(
        source: &str,
        resume: Arc<dyn Resume>,
        schema: &Schema,
    ) -> Result<Rows, WorldError> {
        let codec = RowCodec::new(schema.clone()).map_err(|error| WorldError::Service {
            service: format!("source \"{source}\""),
            detail: error.to_string(),
            is_transient: false,
        })?;
        Ok(Rows {
            resume,
            codec,
            staged: AHashMap::new(),
            leaving: AHashMap::new(),
            buffer: Vec::new(),
        })
    }

    /// A row in the engine's form.
    pub(crate) fn pack(&mut self, values: &[Value]) -> Row {
        self.codec.pack_in(&mut self.buffer, values)
    }

    /// Notes a change of the batch.
    pub(crate) fn note(&mut self, key: Key, row: Option<Row>) {
        self.staged.insert(key, row);
    }

    /// The batch was staged: the sink knows it now.
    pub(crate) fn staged(&mut self) {
        self.staged.clear();
    }

    /// The batch is on its way: the sink knows the one before it, and this one soon.
    pub(crate) fn leave(&mut self) {
        std::mem::swap(&mut self.staged, &mut self.leaving);
        self.staged.clear();
    }

    /// All keys. Cost: linear in the source's live rows.
    pub(crate) fn keys(&self) -> BTreeSet<Key> {
        let mut keys: BTreeSet<Key> = self.resume.keys().into_iter().collect();
        for (key, row) in self.leaving.iter().chain(&self.staged) {
            match row {
                Some(_) => keys.insert(key.clone()),
                None => keys.remove(key),
            };
        }
        keys
    }
}
