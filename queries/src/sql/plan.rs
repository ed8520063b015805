//! What a statement means: plain serialisable values, from which the engine acts and renders
//! (PROTOCOLS §8.2: plans are values; rendering is a pure function of them).
//!
//! ```text
//! text ─split─▶ statements ─plan─▶ Planned ─┬─ Create { definition }      → catalog, dataflow
//!                                           ├─ Select { from, program, … } → question
//!                                           └─ Drop, Show, Describe, Explain
//! ```

use engine::model::{Key, Schema, SqlType};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::program::ProgramSpec;
use crate::api::{AsOf, AtLeast, ReplyColumn, SearchRequest};
use crate::definition::Definition;
use crate::problem::Position;

/// One planned statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Planned {
    /// `CREATE …`
    Create(Create),
    /// `DROP …`
    Drop(DropPlan),
    /// `SHOW …`
    Show(ShowKind),
    /// `DESCRIBE name`: the columns of a relation.
    Describe(Describe),
    /// `SELECT …`
    Select(SelectPlan),
    /// `EXPLAIN …`
    Explain(ExplainPlan),
}

impl Planned {
    /// The reply's tag: `SELECT`, `CREATE SOURCE`, `DROP INDEX`, `SHOW`, …
    pub fn tag(&self) -> String {
        match self {
            Planned::Create(create) => {
                format!("CREATE {}", create.definition.kind().to_uppercase())
            }
            Planned::Drop(drop) => format!("DROP {}", drop.kind.to_uppercase()),
            Planned::Show(_) => "SHOW".to_owned(),
            Planned::Describe(_) => "DESCRIBE".to_owned(),
            Planned::Select(_) => "SELECT".to_owned(),
            Planned::Explain(_) => "EXPLAIN".to_owned(),
        }
    }
}

/// `CREATE [OR REPLACE] kind [IF NOT EXISTS] name …`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Create {
    /// Folded name.
    pub name: String,
    /// What it is.
    pub definition: Definition,
    /// The statement, normalised with every option written out.
    pub statement: String,
    /// An existing object of this name is a notice, not an error.
    pub if_not_exists: bool,
    /// An existing object of this name is replaced.
    pub or_replace: bool,
    /// Where the statement starts.
    pub position: Position,
}

/// `DROP kind [IF EXISTS] name [CASCADE]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropPlan {
    /// `source`, `model`, `view`, `index`, `cache`, `secret`, `connection` or `sink`.
    pub kind: String,
    /// The name.
    pub name: String,
    /// A missing object is a notice, not an error.
    pub if_exists: bool,
    /// Whether dependents go with it.
    pub cascade: bool,
    /// All objects that go, dependents first; empty when it does not exist (`IF EXISTS`).
    pub objects: Vec<String>,
}

/// `SHOW …`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShowKind {
    /// `SHOW SOURCES`
    Sources,
    /// `SHOW MODELS`
    Models,
    /// `SHOW VIEWS`
    Views,
    /// `SHOW INDEXES`
    Indexes,
    /// `SHOW CACHES`
    Caches,
    /// `SHOW SECRETS`: their places, never their values.
    Secrets,
    /// `SHOW CONNECTIONS`
    Connections,
    /// `SHOW SINKS`
    Sinks,
    /// `SHOW PROGRESS`
    Progress,
    /// `SHOW ALL` (or `OBJECTS`): every declared object.
    All,
    /// `SHOW CREATE [kind] name`
    Create {
        /// The object.
        name: String,
        /// The statement that would make it again.
        statement: String,
    },
}

/// `DESCRIBE name`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Describe {
    /// The object.
    pub name: String,
    /// `source`, `view`, `index`, `cache`, `model` or `system`.
    pub kind: String,
    /// Columns as `(name, type, nullable, whether it is part of the key)`; empty for a model.
    pub columns: Vec<(String, String, bool, bool)>,
    /// The normalised statement, if it was declared.
    pub statement: Option<String>,
}

/// `EXPLAIN …`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainPlan {
    /// The plan as a tree, one node a line.
    pub text: String,
    /// What was explained.
    pub plan: Box<Planned>,
}

/// `SELECT …` over one collection, one `search()`, or nothing.
///
/// To run it: read `from` at the time that `as_of` chooses, then give the rows to
/// [`SelectProgram::rows`](super::SelectProgram::rows) of [`SelectPlan::compile`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelectPlan {
    /// What is read.
    pub from: From,
    /// Filter (after k, for a search) and outputs, over `from`'s columns. Outputs beyond
    /// `columns` are sort keys that the reply does not show.
    pub program: ProgramSpec,
    /// `ORDER BY`, as positions of the program's outputs.
    pub order_by: Vec<SortKey>,
    /// `LIMIT`
    pub limit: Option<u64>,
    /// `OFFSET`
    pub offset: u64,
    /// `AS OF …`
    pub as_of: Option<AsOfClause>,
    /// The reply's columns.
    pub columns: Vec<ReplyColumn>,
}

/// What a `SELECT` reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum From {
    /// No `FROM`: one row without columns.
    Values,
    /// A source, a view, an index (its live chunks) or a cache (its live entries).
    Collection {
        /// Its name.
        name: String,
        /// `source`, `view`, `index` or `cache`.
        kind: String,
        /// The one row that can pass the filter: only it is read.
        key: Option<Key>,
    },
    /// `headwater.name`
    System {
        /// Without the schema.
        name: String,
    },
    /// `search(index, question, …)`
    Search(SearchCall),
}

/// `search(index, question, k => 5, …)`, and the conjuncts that filter before k.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchCall {
    /// The index.
    pub index: String,
    /// The question.
    pub question: Option<String>,
    /// Its vector, instead of or beside the question.
    pub vector: Option<Vec<f32>>,
    /// Results wanted.
    pub k: usize,
    /// `hybrid`, `vector` or `keyword`.
    pub mode: Option<String>,
    /// Exact scan.
    pub exact: bool,
    /// Least score.
    pub min_score: Option<f64>,
    /// At most so many chunks of one document.
    pub per_document: Option<usize>,
    /// Conjuncts that name only included columns, joined by `AND`.
    pub filter: Option<String>,
    /// Parameters of `filter`.
    pub params: Vec<Json>,
}

impl SearchCall {
    /// The same question as a request of the front door (without time, see [`AsOfClause`]).
    pub fn request(&self) -> SearchRequest {
        SearchRequest {
            index: self.index.clone(),
            query: self.question.clone(),
            vector: self.vector.clone(),
            k: Some(self.k),
            mode: self.mode.clone(),
            filter: self.filter.clone(),
            params: self.params.clone(),
            exact: self.exact,
            min_score: self.min_score,
            per_document: self.per_document,
            ..SearchRequest::default()
        }
    }
}

/// One key of an `ORDER BY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SortKey {
    /// Position among the program's outputs.
    pub output: usize,
    /// Its type.
    pub sql_type: SqlType,
    /// `DESC`
    pub descending: bool,
    /// `NULLS FIRST`; PostgreSQL's default is last for `ASC`, first for `DESC`.
    pub nulls_first: bool,
}

/// `AS OF [AT LEAST] …`, folded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AsOfClause {
    /// Engine time, microseconds.
    Time(u64),
    /// RFC 3339.
    Text(String),
    /// `AT LEAST 'token'`
    AtLeastToken(String),
    /// `AT LEAST offset('tickets', 0, 812)`, `AT LEAST lsn('grants', '0/16B3748')`
    AtLeastPosition(Map<String, Json>),
}

impl AsOfClause {
    /// The version that is wanted, in the front door's form.
    pub fn as_of(&self) -> Option<AsOf> {
        match self {
            AsOfClause::Time(time) => Some(AsOf::Time(*time)),
            AsOfClause::Text(text) => Some(AsOf::Text(text.clone())),
            _ => None,
        }
    }

    /// The position to wait for, in the front door's form.
    pub fn at_least(&self) -> Option<AtLeast> {
        match self {
            AsOfClause::AtLeastToken(token) => Some(AtLeast::Token(token.clone())),
            AsOfClause::AtLeastPosition(at) => Some(AtLeast::Position(at.clone())),
            _ => None,
        }
    }
}

/// The reply's columns of a schema.
pub(super) fn reply_columns(schema: &Schema, visible: usize) -> Vec<ReplyColumn> {
    let columns = schema.columns.iter().take(visible);
    columns
        .map(|c| ReplyColumn {
            name: c.name.clone(),
            type_name: c.sql_type.to_string(),
        })
        .collect()
}
