//! What names mean: the declared objects, the objects that earlier statements of the same text
//! declare ([`Overlay`]), and the system collections.
//!
//! Every object that can be read has a [`Schema`]: a source's and a view's own, an index's live
//! chunks, a cache's live entries.

use std::collections::BTreeMap;

use engine::model::{Column, ObjectId, Schema, SqlType};

use crate::definition::{ConnectionDef, Definition, IndexDef, Object, PostgresDef, SecretDef};

/// A table of a database whose columns a statement does not declare.
#[derive(Debug, Clone, Copy)]
pub struct DatabaseTable<'a> {
    /// The source that would read it.
    pub source: &'a str,
    /// Which table.
    pub table: &'a PostgresDef,
    /// How to get there.
    pub connection: &'a ConnectionDef,
    /// The connection's password.
    pub secret: Option<&'a SecretDef>,
}

/// The declared objects as they are now.
pub trait CatalogView {
    /// The object of a (folded) name.
    fn object(&self, name: &str) -> Option<Object>;
    /// All names, in any order.
    fn names(&self) -> Vec<String>;
    /// The columns of a table; those of its source, when that reads it already. The error says why
    /// they are not known.
    fn describe(&self, sought: &DatabaseTable<'_>) -> Result<Schema, String> {
        let table = &sought.table.table;
        Err(format!("the columns of {table} are not known here"))
    }
}

/// A catalog without objects: for `check`, and for files that are then reconciled.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmptyCatalog;

impl CatalogView for EmptyCatalog {
    fn object(&self, _name: &str) -> Option<Object> {
        None
    }
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A catalog without objects that knows the tables of databases, as the function describes them.
#[derive(Clone, Copy)]
pub struct Undeclared<F>(pub F);

impl<F: Fn(&DatabaseTable<'_>) -> Result<Schema, String>> CatalogView for Undeclared<F> {
    fn object(&self, _name: &str) -> Option<Object> {
        None
    }
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
    fn describe(&self, sought: &DatabaseTable<'_>) -> Result<Schema, String> {
        (self.0)(sought)
    }
}

impl CatalogView for Vec<Object> {
    fn object(&self, name: &str) -> Option<Object> {
        self.iter().find(|object| object.name == name).cloned()
    }
    fn names(&self) -> Vec<String> {
        self.iter().map(|object| object.name.clone()).collect()
    }
}

/// A catalog with the effects of earlier statements on top.
pub struct Overlay<'a> {
    base: &'a dyn CatalogView,
    changed: BTreeMap<String, Option<Object>>,
}

impl<'a> Overlay<'a> {
    /// An overlay without changes.
    pub fn new(base: &'a dyn CatalogView) -> Self {
        Overlay {
            base,
            changed: BTreeMap::new(),
        }
    }

    /// Declares an object. Its id is a placeholder: the real one is given when it is installed.
    pub fn create(&mut self, name: &str, statement: &str, definition: Definition) {
        let object = Object {
            id: ObjectId(u32::MAX),
            name: name.to_owned(),
            statement: statement.to_owned(),
            definition,
        };
        self.changed.insert(name.to_owned(), Some(object));
    }

    /// Drops an object.
    pub fn drop(&mut self, name: &str) {
        self.changed.insert(name.to_owned(), None);
    }
}

impl CatalogView for Overlay<'_> {
    fn describe(&self, sought: &DatabaseTable<'_>) -> Result<Schema, String> {
        self.base.describe(sought)
    }

    fn object(&self, name: &str) -> Option<Object> {
        match self.changed.get(name) {
            Some(changed) => changed.clone(),
            None => self.base.object(name),
        }
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.base.names();
        names.retain(|name| !self.changed.contains_key(name));
        names.extend(
            self.changed
                .iter()
                .filter(|(_, o)| o.is_some())
                .map(|(n, _)| n.clone()),
        );
        names.sort_unstable();
        names
    }
}

/// The names of objects that read `name`, directly or not, in an order in which they can be
/// dropped: each before what it reads.
pub fn dependents(catalog: &dyn CatalogView, name: &str) -> Vec<String> {
    fn visit(catalog: &dyn CatalogView, all: &[String], name: &str, out: &mut Vec<String>) {
        for other in all {
            let reads = catalog
                .object(other)
                .is_some_and(|object| object.definition.depends_on().contains(&name));
            if reads && !out.contains(other) {
                visit(catalog, all, other, out);
                // A dependent reached over two ways was pushed by the first.
                if !out.contains(other) {
                    out.push(other.clone());
                }
            }
        }
    }
    let mut all = catalog.names();
    all.sort_unstable();
    let mut out = Vec::new();
    visit(catalog, &all, name, &mut out);
    out
}

/// The columns of anything that can be read; `None` for unknown names and models.
///
/// System collections are named with their schema: `headwater.progress`.
pub fn relation_schema(catalog: &dyn CatalogView, name: &str) -> Option<Schema> {
    if let Some(system) = name.strip_prefix("headwater.") {
        return system_schema(system);
    }
    match catalog.object(name)?.definition {
        Definition::Source(source) => Some(source.schema),
        Definition::View(view) => Some(view.schema),
        Definition::Index(index) => chunk_schema(catalog, &index),
        Definition::Cache(_) => Some(cache_schema()),
        Definition::Model(_)
        | Definition::Secret(_)
        | Definition::Connection(_)
        | Definition::Sink(_) => None,
    }
}

/// Names that `search()` gives to its own columns; an included column may not take them.
pub const SEARCH_COLUMNS: [&str; 6] = ["chunk", "document", "version", "ordinal", "text", "score"];

/// The columns of an index's live chunks: those of `search()` without `score`. The key is `chunk`.
///
/// `document` has the type of a one-column key; several columns make a JSON object.
pub fn chunk_schema(catalog: &dyn CatalogView, index: &IndexDef) -> Option<Schema> {
    let relation = relation_schema(catalog, &index.on)?;
    let document = match relation.key[..] {
        [one] => relation.columns[one].sql_type,
        _ => SqlType::Jsonb,
    };
    let mut columns = vec![
        required("chunk", SqlType::Text),
        required("document", document),
        required("version", SqlType::Int8),
        required("ordinal", SqlType::Int4),
        Column::new("text", SqlType::Text),
    ];
    columns.extend(include_schema(catalog, index)?.columns);
    Some(Schema {
        columns,
        key: vec![0],
    })
}

/// The columns of `search(index, …)`: chunk, document, version, ordinal, text, score, then the
/// included columns.
pub fn search_schema(catalog: &dyn CatalogView, index: &IndexDef) -> Option<Schema> {
    let mut schema = chunk_schema(catalog, index)?;
    schema.columns.insert(5, required("score", SqlType::Float8));
    Some(schema)
}

/// The included columns of an index, in declared order: what filters before k may name. No key.
pub fn include_schema(catalog: &dyn CatalogView, index: &IndexDef) -> Option<Schema> {
    let relation = relation_schema(catalog, &index.on)?;
    let columns: Option<Vec<Column>> = index
        .include
        .iter()
        .map(|name| {
            relation
                .position(name)
                .map(|at| relation.columns[at].clone())
        })
        .collect();
    Some(Schema {
        columns: columns?,
        key: Vec::new(),
    })
}

/// The columns of a cache's live entries. The key is `entry`.
pub fn cache_schema() -> Schema {
    Schema {
        columns: vec![
            required("entry", SqlType::Text),
            required("question", SqlType::Text),
            required("answer", SqlType::Jsonb),
            required("citations", SqlType::Jsonb),
            required("parameters", SqlType::Jsonb),
            required("stored_at", SqlType::TimestampTz),
            required("expires_at", SqlType::TimestampTz),
            required("hits", SqlType::Int8),
            required("suspended", SqlType::Boolean),
        ],
        key: vec![0],
    }
}

fn required(name: &str, sql_type: SqlType) -> Column {
    Column {
        nullable: false,
        ..Column::new(name, sql_type)
    }
}

/// The system collections, in the schema `headwater`.
pub const SYSTEM: [&str; 11] = [
    "sources",
    "progress",
    "indexes",
    "shards",
    "caches",
    "sinks",
    "retractions",
    "dead_letters",
    "dead_letter_causes",
    "dataflows",
    "operators",
];

/// The columns of `headwater.dead_letters`.
const DEAD_LETTERS: [(&str, SqlType); 15] = [
    ("id", SqlType::Text),
    ("source", SqlType::Text),
    ("at", SqlType::TimestampTz),
    ("position", SqlType::Text),
    ("code", SqlType::Text),
    ("detail", SqlType::Text),
    ("expected", SqlType::Text),
    ("hint", SqlType::Text),
    ("payload", SqlType::Text),
    ("column", SqlType::Text),
    ("key", SqlType::Jsonb),
    ("first_seen", SqlType::TimestampTz),
    ("last_seen", SqlType::TimestampTz),
    ("count", SqlType::Int8),
    ("bytes", SqlType::Int8),
];

/// The columns of `headwater.dead_letter_causes`.
const DEAD_LETTER_CAUSES: [(&str, SqlType); 8] = [
    ("source", SqlType::Text),
    ("code", SqlType::Text),
    ("seen", SqlType::Int8),
    ("kept", SqlType::Int8),
    ("dropped", SqlType::Int8),
    ("resolved", SqlType::Int8),
    ("first_seen", SqlType::TimestampTz),
    ("last_seen", SqlType::TimestampTz),
];

/// The columns of a system collection (its name without `headwater.`).
pub fn system_schema(name: &str) -> Option<Schema> {
    use SqlType::{Boolean, Float8, Int4, Int8, Jsonb, Text, TimestampTz};
    let (key, columns): (usize, &[(&str, SqlType)]) = match name {
        "dead_letters" => (1, &DEAD_LETTERS),
        "dead_letter_causes" => (2, &DEAD_LETTER_CAUSES),
        "sources" => (
            1,
            &[
                ("name", Text),
                ("connector", Text),
                ("status", Text),
                ("rows", Int8),
                ("bytes", Int8),
                ("staged_bytes", Int8),
                ("dead_letters", Int8),
                ("error", Text),
                ("statement", Text),
            ],
        ),
        "progress" => (
            1,
            &[
                ("collection", Text),
                ("kind", Text),
                ("since", Int8),
                ("upper", Int8),
                ("lag_ms", Float8),
                ("rows", Int8),
                ("bytes", Int8),
                ("pending", Int8),
                ("behind", Int8),
            ],
        ),
        "indexes" => (
            1,
            &[
                ("name", Text),
                ("relation", Text),
                ("method", Text),
                ("model", Text),
                ("version", Int4),
                ("documents", Int8),
                ("chunks", Int8),
                ("pending", Int8),
                ("bytes", Int8),
                ("statement", Text),
            ],
        ),
        "shards" => (
            2,
            &[
                ("index", Text),
                ("worker", Int4),
                ("chunks", Int8),
                ("dead", Int8),
                ("head", Int8),
                ("generations", Int4),
                ("bytes", Int8),
                ("sealed", Int8),
            ],
        ),
        "caches" => (
            1,
            &[
                ("name", Text),
                ("index", Text),
                ("entries", Int8),
                ("suspended", Int8),
                ("hits", Int8),
                ("misses", Int8),
                ("retractions", Int8),
                ("capacity", Int8),
                ("statement", Text),
            ],
        ),
        "sinks" => (
            1,
            &[
                ("name", Text),
                ("collection", Text),
                ("connector", Text),
                ("topic", Text),
                ("status", Text),
                ("progress", Int8),
                ("lag_ms", Float8),
                ("records", Int8),
                ("transactions", Int8),
                ("error", Text),
                ("statement", Text),
            ],
        ),
        "retractions" => (
            2,
            &[
                ("cache", Text),
                ("entry", Text),
                ("cause", Text),
                ("at", TimestampTz),
                ("document", Jsonb),
                ("version", Int8),
                ("question", Text),
            ],
        ),
        "dataflows" => (
            2,
            &[
                ("id", Int8),
                ("worker", Int4),
                ("name", Text),
                ("resident", Boolean),
                ("operators", Int8),
                ("installed_at", TimestampTz),
            ],
        ),
        "operators" => (
            3,
            &[
                ("dataflow", Int8),
                ("worker", Int4),
                ("id", Int8),
                ("name", Text),
                ("activations", Int8),
                ("busy_ms", Float8),
                ("longest_ms", Float8),
            ],
        ),
        _ => return None,
    };
    let columns = columns
        .iter()
        .enumerate()
        .map(|(at, (name, sql_type))| Column {
            nullable: at >= key,
            ..Column::new(name, *sql_type)
        });
    Some(Schema {
        columns: columns.collect(),
        key: (0..key).collect(),
    })
}
