//! What must be there before the log can be read: publication and slot.
//!
//! Invariants: what is there already is used as it is, if it sends all that a source promises; errors
//! name the statement that would help.

use engine::model::Schema;

use super::facts::{TableFacts, TableName};
use super::session::{Failure, PostgresOptions, Session, TextRow, literal, lsn, quoted, text};

/// Makes the publication if there is none, and puts a table into it; whether the table was not in it
/// before, so that changes since are not in the log.
pub(super) async fn publish(
    session: &mut Session,
    options: &PostgresOptions,
    table: &TableName,
    facts: &TableFacts,
    declared: &Schema,
) -> Result<bool, Failure> {
    let (name, publication) = (literal(&options.publication), quoted(&options.publication));
    let found = session
        .rows(&format!(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot
             FROM pg_publication WHERE pubname = {name}"
        ))
        .await?;
    let Some(row) = found.first() else {
        let made = session
            .rows(&format!(
                "CREATE PUBLICATION {publication} FOR TABLE {}
                 WITH (publish_via_partition_root = true)",
                table.sql()
            ))
            .await;
        return made.map(|_| true).map_err(|error| {
            Failure::Passing(format!(
                "{error}; an owner of {table} can run: CREATE PUBLICATION {publication} FOR TABLE {} \
                 WITH (publish_via_partition_root = true)",
                table.sql()
            ))
        });
    };
    if text(row, 0) != Some("t") {
        return Err(Failure::Lasting(format!(
            "the publication {publication} leaves out inserts, updates, deletes or truncates: rows \
             would stay behind; ALTER PUBLICATION {publication} SET (publish = 'insert, update, \
             delete, truncate')"
        )));
    }
    if facts.is_partitioned && text(row, 1) != Some("t") {
        return Err(Failure::Lasting(format!(
            "the publication {publication} sends the changes of {table} under its partitions' names; \
             ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)"
        )));
    }
    if is_published(session, options, table, declared).await? {
        return Ok(false);
    }
    let statement = format!("ALTER PUBLICATION {publication} ADD TABLE {}", table.sql());
    let added = session.rows(&statement).await;
    added
        .map(|_| true)
        .map_err(|error| Failure::Passing(format!("{error}; the owner can run: {statement}")))
}

/// Whether the publication has a table, all its rows and the declared columns.
async fn is_published(
    session: &mut Session,
    options: &PostgresOptions,
    table: &TableName,
    declared: &Schema,
) -> Result<bool, Failure> {
    let (name, publication) = (literal(&options.publication), quoted(&options.publication));
    let (schema, table_name) = (literal(&table.schema), literal(&table.name));
    let version = session.version().await?;
    // Filters and lists of columns came with version 15.
    let more = match version >= 150_000 {
        true => "rowfilter, array_to_string(attnames, E'\\n')",
        false => "NULL, NULL",
    };
    let found = session
        .rows(&format!(
            "SELECT {more} FROM pg_publication_tables
             WHERE pubname = {name} AND schemaname = {schema} AND tablename = {table_name}"
        ))
        .await?;
    let Some(row) = found.first() else {
        return Ok(false);
    };
    if text(row, 0).is_some() {
        return Err(Failure::Lasting(format!(
            "the publication {publication} filters the rows of {table}: rows that leave the filter \
             would stay here; publish the whole table and filter in a view"
        )));
    }
    if let Some(sent) = text(row, 1) {
        let is_sent = |name: &str| sent.split('\n').any(|sent| sent == name);
        let mut declared = declared.columns.iter();
        if let Some(column) = declared.find(|column| !is_sent(&column.name)) {
            return Err(Failure::Lasting(format!(
                "the publication {publication} does not send column \"{}\" of {table}; add it to \
                 the publication's column list, or leave it out of the source",
                column.name
            )));
        }
    }
    Ok(true)
}

/// Whether tables are still those (by object id) that a publication sends.
pub(super) async fn are_there(
    options: &PostgresOptions,
    tables: &[(TableName, u32)],
) -> Result<bool, Failure> {
    let mut session = Session::open(options).await?;
    for (table, id) in tables {
        let name = literal(&options.publication);
        let (schema, table_name) = (literal(&table.schema), literal(&table.name));
        let found = session
            .one(&format!(
                "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 JOIN pg_publication_tables p ON p.schemaname = n.nspname AND p.tablename = c.relname
                 WHERE p.pubname = {name} AND n.nspname = {schema} AND c.relname = {table_name}"
            ))
            .await?;
        if found != Some(id.to_string()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A replication slot.
pub(super) struct Slot {
    /// Everything before is confirmed and no longer sent.
    pub(super) confirmed: u64,
    /// Whether it was made just now.
    pub(super) is_new: bool,
}

/// Finds the slot, or makes it.
pub(super) async fn slot(
    session: &mut Session,
    options: &PostgresOptions,
    may_make: bool,
) -> Result<Slot, Failure> {
    let level = session.one("SHOW wal_level").await?.unwrap_or_default();
    if level != "logical" {
        return Err(Failure::Lasting(format!(
            "wal_level is '{level}': set wal_level = logical in postgresql.conf and restart \
             PostgreSQL"
        )));
    }
    let name = literal(&options.slot);
    let found = session
        .rows(&format!(
            "SELECT plugin, database, wal_status, confirmed_flush_lsn
             FROM pg_replication_slots WHERE slot_name = {name}"
        ))
        .await?;
    let Some(row) = found.first() else {
        return match may_make {
            true => make_slot(session, options).await,
            false => Err(lost(options, "is gone")),
        };
    };
    let text = |at| text(row, at).unwrap_or_default();
    if text(0) != "pgoutput" || text(1) != options.database {
        return Err(Failure::Lasting(format!(
            "the replication slot {name} is of plugin '{}' and database '{}'; name another one \
             by the connection's SLOT",
            text(0),
            text(1)
        )));
    }
    if text(2) == "lost" {
        if !may_make {
            return Err(lost(options, "has lost the log that it needs"));
        }
        session
            .rows(&format!("SELECT pg_drop_replication_slot({name})"))
            .await?;
        return make_slot(session, options).await;
    }
    let confirmed = lsn(text(3));
    let confirmed =
        confirmed.ok_or_else(|| Failure::Passing(format!("slot {name} is being made")))?;
    Ok(Slot {
        confirmed,
        is_new: false,
    })
}

fn lost(options: &PostgresOptions, what: &str) -> Failure {
    Failure::Lasting(format!(
        "the replication slot \"{}\" {what}: changes since are lost; drop the connection's sources \
         and create them again, or create the connection with SLOT LOST 'copy' to copy the tables \
         again by itself (raise max_slot_wal_keep_size so that it does not come back)",
        options.slot
    ))
}

async fn make_slot(session: &mut Session, options: &PostgresOptions) -> Result<Slot, Failure> {
    let slot = quoted(&options.slot);
    let made = session
        .rows(&format!(
            "CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput NOEXPORT_SNAPSHOT"
        ))
        .await?;
    Ok(Slot {
        confirmed: consistent_point(&made)?,
        is_new: true,
    })
}

/// From where on a slot that was just made sends: the answer to CREATE_REPLICATION_SLOT.
pub(super) fn consistent_point(made: &[TextRow]) -> Result<u64, Failure> {
    let point = made.first().and_then(|row| text(row, 1)).and_then(lsn);
    point.ok_or_else(|| Failure::Passing("the new slot has no consistent point".to_owned()))
}

/// Removes what was made for the sources of a connection, when the last of them was dropped.
pub(super) async fn remove(options: &PostgresOptions) -> Result<(), Failure> {
    let mut session = Session::open(options).await?;
    let slot = literal(&options.slot);
    session
        .rows(&format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
             WHERE slot_name = {slot}"
        ))
        .await?;
    let publication = quoted(&options.publication);
    session
        .rows(&format!("DROP PUBLICATION IF EXISTS {publication}"))
        .await?;
    Ok(())
}

/// Takes the table of a dropped source out of the publication.
pub(super) async fn unpublish(options: &PostgresOptions, table: &TableName) -> Result<(), Failure> {
    let mut session = Session::open(options).await?;
    let publication = quoted(&options.publication);
    session
        .rows(&format!(
            "ALTER PUBLICATION {publication} DROP TABLE {}",
            table.sql()
        ))
        .await?;
    Ok(())
}
