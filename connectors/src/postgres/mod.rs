//! `FROM POSTGRES`: tables of a database, straight from its own log.
//!
//! The idea: the sources of one connection share one replication slot, so that a transaction over
//! several tables comes as one piece and becomes visible at one time. Each table is copied once, from
//! a snapshot that belongs to a known place in the log, and goes on from there.
//!
//! ```text
//! source A ─ join ┐        ┌ copy (snapshot at L) ─▶ rows ─┐
//! source B ─ join ┼▶ hub ──┤                                ├─▶ LaneSink of each source
//! source C ─ join ┘  (1 thread a connection)                │   a transaction: stage_together
//!                          └ stream (one slot) ─▶ commits ──┘
//! ```
//!
//! Invariants: a source's position is the end of the last transaction that its rows contain; the
//! slot is confirmed only up to what all sources have durably; so every source's logged position is at
//! or above the confirmed one, and one that is below has missed something and is copied again. The log
//! is read in commit order, so no older row ever overwrites a newer one.
//!
//! A transaction that is so large that the server sends it before its commit is kept ([`streamed`]) and
//! taken at its commit, as any other.
//!
//! Limits: while a table joins that was copied beside the running stream, the stream is read again
//! from the snapshot's place; a transaction of more than [`engine::limits::TRANSACTION_BYTES_MAX`]
//! becomes visible in parts; sequences, large objects and generated columns are not in the log.

mod copy;
mod facts;
mod feed;
mod hub;
mod member;
pub mod message;
mod session;
mod setup;
mod stream;
pub mod streamed;
mod table;
mod transaction;
pub mod value;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use engine::contract::{Source, SourceContext};
use engine::error::WorldError;
use engine::model::Schema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

pub use facts::TableName;
use hub::{Hub, Ticket};
pub use session::{PostgresOptions, TlsMode};

/// The lane of each source: its order is the slot's.
const LANE: &str = "";

/// Where a source stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stand {
    /// The end of the last transaction that its rows contain.
    lsn: u64,
    /// The cluster whose log that is.
    system: String,
    /// The table and its columns' types under which the rows were read.
    shape: Option<String>,
    /// What its rows contain of a transaction that is not over, staged in pieces.
    inside: Option<Inside>,
}

/// The beginning of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Inside {
    /// Where its commit begins.
    commit: u64,
    /// Changes of the source's table that were taken.
    changes: u64,
}

/// A stand as the sink's position.
fn position(stand: &Stand) -> Json {
    json!({
        "marks": { "lsn": stand.lsn },
        "system": stand.system,
        "shape": stand.shape,
        "inside": stand.inside,
    })
}

/// A position as a stand; `None` before the first copy was through.
fn stand(position: Option<Json>) -> Option<Stand> {
    #[derive(Serialize, Deserialize)]
    struct Marks {
        lsn: u64,
    }
    #[derive(Serialize, Deserialize)]
    struct Stored {
        marks: Marks,
        system: String,
        shape: Option<String>,
        inside: Option<Inside>,
    }
    let stored: Stored = serde_json::from_value(position?).ok()?;
    Some(Stand {
        lsn: stored.marks.lsn,
        system: stored.system,
        shape: stored.shape,
        inside: stored.inside,
    })
}

/// The databases that sources of this process read: sources of one connection share a thread and a
/// slot.
#[derive(Default)]
pub struct Connections {
    hubs: Mutex<HashMap<String, Arc<Hub>>>,
}

impl Connections {
    /// A reader of a table. Nothing is connected before it runs; but once made, its connection waits
    /// for it (until it runs or is dropped), so that sources which start together join together.
    pub fn source(
        &self,
        options: PostgresOptions,
        table: TableName,
        schema: Schema,
    ) -> PostgresSource {
        let mut hubs = self.hubs.lock().expect("no panic while held");
        let hub = hubs.entry(options.name.clone());
        let hub = hub.or_insert_with(|| Arc::new(Hub::new(options.clone())));
        // A connection that was dropped and made anew is another one; a password may change.
        if !hub.is_of(&options) {
            *hub = Arc::new(Hub::new(options));
        }
        PostgresSource {
            ticket: Ticket::of(hub),
            table,
            schema,
        }
    }
}

/// Reads a table. See the module.
pub struct PostgresSource {
    ticket: Ticket,
    table: TableName,
    schema: Schema,
}

impl Source for PostgresSource {
    fn run(self: Box<Self>, context: SourceContext) -> Result<(), WorldError> {
        let resume = Arc::clone(&context.resume);
        let table = table::Table::new(&context.name, resume, self.table, self.schema)?;
        self.ticket.run(context, table)
    }
}

/// The columns and the key of a table, for a source that declares none. Blocks for one connection.
///
/// Errors: the database cannot be reached; there is no such table; it has no primary key.
pub fn describe(options: &PostgresOptions, table: &TableName) -> Result<Schema, WorldError> {
    let runtime = hub::runtime()?;
    let described = runtime.block_on(async {
        let mut session = session::Session::open(options).await?;
        let facts = facts::of(&mut session, table).await?;
        facts.schema(table).map_err(session::Failure::Lasting)
    });
    described.map_err(|failure| failure.into_world(options))
}
