//! One table on its way into its source: rows of the log and of the copy to changes of the sink.
//!
//! The idea: the log names columns by place, the source by name; [`Table::relation`] maps them each
//! time the table changes. A value that was not sent (TOAST) is taken from the row as it stands, which
//! is always known, because every change of the table passes here in the order of its commits.
//!
//! Invariants: a row that cannot be read is a dead letter *and* takes the row before it away: what is
//! served is never older than the table, and an unsent value is never taken from the wrong version. A
//! declared column that the table lost is NULL in all rows.

use std::sync::Arc;

use engine::contract::{Resume, SourceBatch};
use engine::error::{DataError, DeadLetter, WorldError};
use engine::model::{Key, Row, Schema, Value};
use serde_json::Value as Json;

use super::facts::{TableFacts, TableName, check_key, not_identity};
use super::message::{Field, Message, Relation};
use super::session::{Failure, TextRow};
use super::value;
use crate::envelope::table::LiveRows;
use crate::key;
use crate::live::Rows;

/// Where a declared column is in a tuple, and the type of its texts.
type Place = Option<(usize, u32)>;

/// See the module.
pub(super) struct Table {
    pub(super) name: TableName,
    pub(super) schema: Schema,
    source: String,
    rows: Rows,
    /// The declared columns' places in the log's tuples.
    places: Vec<Place>,
    /// Types of the declared columns as the rows of the source were read; `None` before the first
    /// copy.
    shape: Option<String>,
    batch: SourceBatch,
    /// Bytes of the batch's rows.
    bytes: usize,
}

impl Table {
    /// Errors: a schema without a row format.
    pub(super) fn new(
        source: &str,
        resume: Arc<dyn Resume>,
        name: TableName,
        schema: Schema,
    ) -> Result<Table, WorldError> {
        Ok(Table {
            name,
            source: source.to_owned(),
            rows: Rows::new(source, resume, &schema)?,
            schema,
            places: Vec::new(),
            shape: None,
            batch: SourceBatch::default(),
            bytes: 0,
        })
    }

    /// The types as they were when the rows were read.
    pub(super) fn shape(&self) -> Option<&str> {
        self.shape.as_deref()
    }

    /// Goes on with rows that were read under these types.
    pub(super) fn set_shape(&mut self, shape: Option<String>) {
        self.shape = shape;
    }

    /// The table and the types of its declared columns as the catalog has them.
    pub(super) fn shape_of(&self, facts: &TableFacts) -> String {
        shape(&self.schema, facts.id, |name| types(facts, name))
    }

    /// Reads the columns of a cursor over [`Table::select`].
    pub(super) fn copy_from(&mut self, facts: &TableFacts) {
        let types = |name: &str| types(facts, name);
        self.shape = Some(self.shape_of(facts));
        let (mut next, mut places) = (0, Vec::new());
        for column in &self.schema.columns {
            let place = types(&column.name).map(|(type_id, _)| (next, type_id));
            next += usize::from(place.is_some());
            places.push(place);
        }
        self.places = places;
    }

    /// The declared columns that the table has, for a SELECT.
    pub(super) fn select(&self, facts: &TableFacts) -> String {
        let columns = self.schema.columns.iter();
        let columns = columns.filter(|column| facts.column(&column.name).is_some());
        let names: Vec<String> = columns
            .map(|column| super::session::quoted(&column.name))
            .collect();
        names.join(", ")
    }

    /// Reads the log's tuples as a relation message has them. False: the types are others than those
    /// under which the rows were read, and the table must be copied again.
    pub(super) fn relation(&mut self, relation: &Relation) -> Result<bool, Failure> {
        let columns = &relation.columns;
        let find = |name: &str| columns.iter().position(|column| column.name == name);
        for at in &self.schema.key {
            let name = &self.schema.columns[*at].name;
            match find(name) {
                None => {
                    let detail = format!("{} has no column \"{name}\" any more", self.name);
                    return Err(Failure::Lasting(detail));
                }
                Some(at) if !columns[at].is_identity => {
                    return Err(Failure::Lasting(not_identity(&self.name, name)));
                }
                Some(_) => {}
            }
        }
        if !relation.is_full {
            let identity = columns.iter().filter(|column| column.is_identity);
            let names = identity.map(|column| column.name.as_str());
            check_key(&self.name, &self.schema, names)?;
        }
        let types = |name: &str| {
            let at = find(name)?;
            Some((columns[at].type_id, columns[at].modifier))
        };
        let shape = shape(&self.schema, relation.id, types);
        let place = |name: &str| find(name).map(|at| (at, columns[at].type_id));
        let declared = self.schema.columns.iter();
        self.places = declared.map(|column| place(&column.name)).collect();
        Ok(self.shape.as_ref() == Some(&shape))
    }

    /// Applies a change of the table. `position` names it for people.
    pub(super) fn apply(&mut self, message: &Message<'_>, position: &str) {
        match message {
            Message::Insert { new, .. } => self.upsert(None, false, new, position),
            Message::Update {
                old, is_whole, new, ..
            } => self.upsert(old.as_deref(), *is_whole, new, position),
            Message::Delete { old, .. } => match self.key(old, None) {
                Ok(key) => self.delete(key),
                Err(error) => self.letter(old, None, error, position),
            },
            Message::Truncate { .. } => {
                for key in self.rows.keys() {
                    self.delete(key);
                }
            }
            _ => {}
        }
    }

    /// Takes a row of a copy; its key, where it has one.
    pub(super) fn copied(
        &mut self,
        row: &TextRow,
        is_same: impl Fn(&Key, &Row) -> bool,
        position: &str,
    ) -> Option<Key> {
        let fields = row
            .iter()
            .map(|text| text.as_deref().map_or(Field::Null, Field::Text));
        let tuple: Vec<Field<'_>> = fields.collect();
        let key = match self.key(&tuple, None) {
            Ok(key) => key,
            Err(error) => {
                self.letter(&tuple, None, error, position);
                return None;
            }
        };
        match self.values(&tuple, None, &key) {
            Ok(values) => {
                let row = self.rows.pack(&values);
                if !is_same(&key, &row) {
                    self.put(key.clone(), Some(row));
                }
                Some(key)
            }
            Err(error) => {
                // The delete first: it is no answer to the letter.
                self.delete(key.clone());
                self.letter(&tuple, Some(key.clone()), error, position);
                Some(key)
            }
        }
    }

    /// `is_whole`: `old` is the row as it was, not only its identity.
    fn upsert(
        &mut self,
        old: Option<&[Field<'_>]>,
        is_whole: bool,
        new: &[Field<'_>],
        position: &str,
    ) {
        let before = old.map(|old| self.key(old, None));
        let key = self.key(new, old);
        let (before, key) = match (before.transpose(), key) {
            (Ok(before), Ok(key)) => (before.unwrap_or_else(|| key.clone()), key),
            (Ok(Some(before)), Err(error)) => {
                self.delete(before);
                return self.letter(new, None, error, position);
            }
            (Err(error), _) | (_, Err(error)) => return self.letter(new, None, error, position),
        };
        let values = self.values(new, old.filter(|_| is_whole), &before);
        if before != key {
            self.delete(before);
        }
        match values {
            Ok(values) => {
                let row = self.rows.pack(&values);
                self.put(key, Some(row));
            }
            Err(error) => {
                // The delete first: it is no answer to the letter.
                self.delete(key.clone());
                self.letter(new, Some(key), error, position);
            }
        }
    }

    /// The key of a tuple; columns that it does not have are taken from `other`.
    fn key(&self, tuple: &[Field<'_>], other: Option<&[Field<'_>]>) -> Result<Key, DataError> {
        let part = |at: &usize| {
            let column = &self.schema.columns[*at];
            let place = self.places.get(*at).copied().flatten();
            let found = place.and_then(|(at, type_id)| Some((tuple.get(at)?, at, type_id)));
            let (field, at, type_id) = found.ok_or_else(|| unsent(&column.name))?;
            let field = match field {
                Field::Unchanged => other.and_then(|other| other.get(at)).unwrap_or(field),
                field => field,
            };
            match field {
                Field::Text(text) => key::part(value::value(Some(text), type_id, column)?, column),
                Field::Null => {
                    let detail = format!("column \"{}\": NULL in a key column", column.name);
                    Err(DataError::new("null-value", detail))
                }
                Field::Unchanged => Err(unsent(&column.name)),
            }
        };
        let values: Result<Vec<Value>, DataError> = self.schema.key.iter().map(part).collect();
        key::canonical(&self.schema, &values?)
    }

    /// The values of a tuple; what was not sent is the whole old row's, if it came along, else the
    /// row's that stands under `before`.
    fn values(
        &self,
        tuple: &[Field<'_>],
        old: Option<&[Field<'_>]>,
        before: &Key,
    ) -> Result<Vec<Value>, DataError> {
        let mut standing: Option<Option<Vec<Value>>> = None;
        let columns = self.schema.columns.iter().zip(&self.places).enumerate();
        let values = columns.map(|(i, (column, place))| {
            let field = place.and_then(|(at, type_id)| {
                let field = match *tuple.get(at)? {
                    Field::Unchanged => old.and_then(|old| old.get(at).copied()),
                    field => Some(field),
                };
                Some((field.unwrap_or(Field::Unchanged), type_id))
            });
            match field {
                None => Ok(Value::Null),
                Some((Field::Null, type_id)) => value::value(None, type_id, column),
                Some((Field::Text(text), type_id)) => value::value(Some(text), type_id, column),
                Some((Field::Unchanged, _)) => {
                    let row = standing.get_or_insert_with(|| self.rows.row(before));
                    let value = row.as_ref().and_then(|row| row.get(i).cloned());
                    value.ok_or_else(|| unsent(&column.name))
                }
            }
        });
        values.collect()
    }

    fn put(&mut self, key: Key, row: Option<Row>) {
        self.bytes += size(&key, row.as_ref());
        self.rows.note(key.clone(), row.clone());
        self.batch.changes.push((key, row, None));
    }

    /// Takes a row away, if it is there.
    pub(super) fn delete(&mut self, key: Key) {
        if self.rows.row(&key).is_some() {
            self.put(key, None);
        }
    }

    fn letter(&mut self, tuple: &[Field<'_>], key: Option<Key>, error: DataError, position: &str) {
        let member = |(place, column): (&Place, &engine::model::Column)| {
            let (at, _) = (*place)?;
            let value = match tuple.get(at)? {
                Field::Null => Json::Null,
                Field::Unchanged => return None,
                Field::Text(text) => Json::from(*text),
            };
            Some((column.name.clone(), value))
        };
        let members = self.places.iter().zip(&self.schema.columns);
        let payload: serde_json::Map<String, Json> = members.filter_map(member).collect();
        let payload = Json::Object(payload).to_string().into_bytes();
        let letter = DeadLetter::new(&*self.source, position.to_owned(), error, &payload);
        let letter = letter.key(key).after(self.batch.changes.len());
        self.bytes += letter.payload.len();
        self.batch.dead_letters.push(letter);
    }

    /// Bytes of what is waiting to be staged.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is waiting to be staged.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.changes.is_empty() && self.batch.dead_letters.is_empty()
    }

    /// How many changes are waiting to be staged.
    pub(super) fn len(&self) -> usize {
        self.batch.changes.len()
    }

    /// What is waiting, to be staged now.
    pub(super) fn take(&mut self, position: Option<Json>) -> SourceBatch {
        self.bytes = 0;
        let mut batch = std::mem::take(&mut self.batch);
        batch.position = position;
        batch
    }

    /// What was taken could not be staged and waits again.
    pub(super) fn give_back(&mut self, batch: SourceBatch) {
        self.bytes = batch
            .changes
            .iter()
            .map(|(key, row, _)| size(key, row.as_ref()))
            .sum();
        self.batch = batch;
    }

    /// What was taken is staged.
    pub(super) fn staged(&mut self) {
        self.rows.staged();
    }

    /// Drops what is waiting.
    pub(super) fn clear(&mut self) {
        self.take(None);
        self.rows.staged();
    }
}

fn size(key: &Key, row: Option<&Row>) -> usize {
    key.as_str().len() + row.map_or(0, |row| row.as_bytes().len()) + 64
}

fn types(facts: &TableFacts, name: &str) -> Option<(u32, i32)> {
    let column = facts.column(name);
    column.map(|column| (column.type_id, column.modifier))
}

/// The table and the types of its declared columns, as one text to compare.
fn shape(schema: &Schema, table: u32, types: impl Fn(&str) -> Option<(u32, i32)>) -> String {
    let columns = schema
        .columns
        .iter()
        .map(|column| match types(&column.name) {
            Some((type_id, modifier)) => format!("{type_id}:{modifier}"),
            None => "-".to_owned(),
        });
    format!("{table};{}", columns.collect::<Vec<_>>().join(","))
}

fn unsent(column: &str) -> DataError {
    let detail = format!(
        "column \"{column}\": the value did not change and was not sent, and the row before is \
         not known"
    );
    DataError::new("unavailable-value", detail)
        .hint("ALTER TABLE … REPLICA IDENTITY FULL sends whole rows")
}
