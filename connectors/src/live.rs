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

    /// Nothing is on its way any more: what the sink has, others may have written anew.
    pub(crate) fn settled(&mut self) {
        self.leaving.clear();
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

#[cfg(test)]
mod tests {
    use engine::model::{Column, SqlType};
    use engine::testing::Recorded;

    use super::*;

    /// While a batch is on its way its rows are known, and those of the next stand above them; what is
    /// settled hides nothing that others write.
    #[test]
    fn rows_on_their_way_are_known_until_they_are_settled() {
        let column = Column {
            nullable: false,
            ..Column::new("n", SqlType::Int8)
        };
        let schema = Schema {
            columns: vec![column],
            key: vec![0],
        };
        let mut rows = Rows::new("rows", Arc::new(Recorded::default()), &schema)
            .unwrap_or_else(|error| panic!("{error}"));
        let (one, two) = (Key::text("one"), Key::text("two"));
        let values = |n| vec![Value::Int(n)];
        let note = |rows: &mut Rows, key: &Key, n| {
            let row = rows.pack(&values(n));
            rows.note(key.clone(), Some(row));
        };
        note(&mut rows, &one, 1);
        note(&mut rows, &two, 2);
        rows.leave();
        note(&mut rows, &two, 3);
        assert_eq!(
            (rows.row(&one), rows.row(&two)),
            (Some(values(1)), Some(values(3)))
        );
        rows.note(one.clone(), None);
        assert_eq!((rows.row(&one), rows.keys()), (None, [two.clone()].into()));
        // The first batch is there, which this sink forgets; the second is on its way.
        rows.leave();
        assert_eq!(rows.row(&two), Some(values(3)));
        rows.settled();
        assert_eq!((rows.row(&two), rows.keys().len()), (None, 0));
    }
}
