//! The language: text to definitions and plans.
//!
//! ```text
//! text ─token─▶ statements ─┬─ create, drop, show … : our own parsers over tokens (cursor, options)
//!                           └─ select, views, filters: the SQL parser, then DataFusion's planner
//!                                 └─▶ Planned (plain values) ─▶ RowProgram, FilterProgram
//! ```
//!
//! Reading order: `plan` (what comes out), `token`, `cursor`, `statement`, `create`, `index`,
//! `select`, `expr`, `program`. The reference for users is `docs/language.md`.
//!
//! Invariants: every error has a place and says what was expected; nothing a statement says is
//! ignored: what this version cannot do is refused with 422 `not-supported`; a plan is a plain
//! serialisable value and compiling it is a pure function; no text makes the planner panic.

mod ast;
mod catalog;
mod connection;
mod create;
mod cursor;
mod explain;
mod expr;
mod format;
mod git;
mod index;
mod interval;
mod kafka;
mod model;
mod normal;
mod options;
mod plan;
mod program;
mod query;
mod reconcile;
mod search;
mod security;
mod select;
mod select_program;
mod sink;
mod source;
mod statement;
mod token;
mod types;
mod view;

pub use catalog::{
    CatalogView, DatabaseTable, EmptyCatalog, Overlay, SEARCH_COLUMNS, SYSTEM, Undeclared,
    cache_schema, chunk_schema, dependents, include_schema, relation_schema, search_schema,
    system_schema,
};
pub use explain::explain;
pub use normal::statement_of;
pub use plan::{
    AsOfClause, Create, Describe, DropPlan, ExplainPlan, From, Planned, SearchCall, SelectPlan,
    ShowKind, SortKey,
};
pub use program::{FilterProgram, ProgramSpec, RowProgram, filter_program};
pub use reconcile::{Action, reconcile};
pub use select_program::SelectProgram;
pub use statement::{plan_text, plan_text_with};
pub use token::{SpannedStatement, split};
pub use view::view_program;
