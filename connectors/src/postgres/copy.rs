//! The rows that a table has now, joined to the log without gap or overlap.
//!
//! ```text
//! temporary slot ─▶ consistent point L ─┬─ snapshot: everything committed before L ─▶ rows
//!                                       └─ log: everything committed from L on ─▶ super::stream
//! ```
//!
//! The idea: a slot, made for the moment, gives a snapshot and the place in the log that it belongs
//! to; both are used on one connection. A copy that was interrupted begins again, and one that finds
//! rows already (a lost slot, another type of a column) reconciles them: equal rows are left alone,
//! rows that are gone are deleted at the end.
//!
//! Invariants: nothing that the copy stages has a position before the last batch, so an unfinished
//! copy is never taken for a finished one. Limits: PostgreSQL waits for transactions that run when the
//! slot is made; a table is copied by one cursor.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::contract::{SinkClosed, SourceContext};
use engine::model::{ContentHash, Key, Row};
use engine::telemetry;

use super::session::{Failure, PostgresOptions, Session};
use super::setup;
use super::table::Table;
use super::{Stand, facts, position};

/// Bytes of one batch of copied rows, and of one fetch from the cursor.
const BATCH_BYTES: usize = 1 << 20;
/// Rows of one batch.
const BATCH_ROWS: usize = 512;
/// Rows of one fetch, at first and at most.
const FETCH_FIRST: usize = 64;
const FETCH_MAX: usize = 256;
/// Time between two lines about a copy.
const TELL: Duration = Duration::from_secs(5);

/// Copies that this process began: names their slots.
static COPIES: AtomicU64 = AtomicU64::new(0);

/// How a copy ended.
pub(super) enum Ended {
    /// The source stands where the copy belongs.
    At(Stand),
    /// The source was stopped.
    Closed,
}

/// Copies a table into its source; `is_first` is false when rows are there from before.
pub(super) async fn copy(
    options: &PostgresOptions,
    context: &SourceContext,
    table: &mut Table,
    system: &str,
    is_first: bool,
) -> Result<Ended, Failure> {
    let slot = format!(
        "headwater_copy_{}_{}",
        std::process::id(),
        COPIES.fetch_add(1, Ordering::Relaxed)
    );
    let mut session = Session::open(options).await?;
    session
        .rows("BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ")
        .await?;
    tracing::info!(
        source = context.name,
        table = %table.name,
        "waiting for a snapshot: running transactions must end first"
    );
    let made = session
        .rows_at_last(&format!(
            "CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL pgoutput USE_SNAPSHOT"
        ))
        .await?;
    let point = setup::consistent_point(&made)?;

    // In the snapshot: the catalog as the rows have it.
    let facts = facts::of(&mut session, &table.name).await?;
    facts.check(&table.name, &table.schema, is_first)?;
    table.copy_from(&facts);
    session
        .rows(&format!(
            "DECLARE headwater_copy NO SCROLL CURSOR FOR SELECT {} FROM {}",
            table.select(&facts),
            table.name.sql()
        ))
        .await?;
    let mut copying = Copying {
        context,
        table,
        left: context.resume.live().into_iter().collect(),
        place: format!("copy into {} at {}", context.name, point_text(point)),
        rows: 0,
        guess: facts.rows,
        told: Instant::now(),
    };
    if copying.rows(&mut session).await?.is_err() {
        return Ok(Ended::Closed);
    }
    session.rows("COMMIT").await?;
    let stand = Stand {
        lsn: point,
        system: system.to_owned(),
        shape: copying.table.shape().map(str::to_owned),
        inside: None,
    };
    match copying.finish(&stand) {
        Ok(()) => Ok(Ended::At(stand)),
        Err(SinkClosed) => Ok(Ended::Closed),
    }
}

pub(super) fn point_text(point: u64) -> String {
    pgwire_replication::Lsn::from_u64(point).to_string()
}

/// A copy that runs.
struct Copying<'a> {
    context: &'a SourceContext,
    table: &'a mut Table,
    /// Rows from before that the copy has not met.
    left: HashMap<Key, ContentHash>,
    place: String,
    rows: u64,
    guess: i64,
    told: Instant,
}

impl Copying<'_> {
    /// Reads the cursor to its end.
    async fn rows(&mut self, session: &mut Session) -> Result<Result<(), SinkClosed>, Failure> {
        let mut fetch = FETCH_FIRST;
        loop {
            let rows = session
                .rows(&format!("FETCH FORWARD {fetch} FROM headwater_copy"))
                .await?;
            if rows.is_empty() {
                return Ok(Ok(()));
            }
            let values = rows.iter().flatten().flatten();
            let bytes: usize = values.map(String::len).sum();
            // The next rows may be larger than these: it grows slowly.
            let fits = BATCH_BYTES * rows.len() / bytes.max(1);
            fetch = fits.clamp(1, FETCH_MAX.min(2 * fetch));
            for row in &rows {
                let left = &self.left;
                let is_same =
                    |key: &Key, row: &Row| left.get(key) == Some(&ContentHash::of(row.as_bytes()));
                let key = self.table.copied(row, is_same, &self.place);
                if let Some(key) = key {
                    self.left.remove(&key);
                }
                let is_full = self.table.len() >= BATCH_ROWS || self.table.bytes() >= BATCH_BYTES;
                if is_full && self.stage(None).is_err() {
                    return Ok(Err(SinkClosed));
                }
            }
            self.rows += rows.len() as u64;
            self.tell();
        }
    }

    fn stage(&mut self, stand: Option<&Stand>) -> Result<(), SinkClosed> {
        if self.context.is_stopping() {
            return Err(SinkClosed);
        }
        let batch = self.table.take(stand.map(position));
        self.context.sink.stage(batch)?;
        self.table.staged();
        Ok(())
    }

    /// Rows that were not read again are gone; the last batch says where the source stands.
    fn finish(&mut self, stand: &Stand) -> Result<(), SinkClosed> {
        for key in std::mem::take(&mut self.left).into_keys() {
            self.table.delete(key);
            if self.table.len() >= BATCH_ROWS {
                self.stage(None)?;
            }
        }
        self.stage(Some(stand))?;
        self.told = Instant::now() - TELL;
        self.tell();
        tracing::info!(
            source = self.context.name,
            rows = self.rows,
            at = point_text(stand.lsn),
            "the table is copied"
        );
        Ok(())
    }

    fn tell(&mut self) {
        if self.told.elapsed() < TELL {
            return;
        }
        self.told = Instant::now();
        metrics::gauge!(telemetry::SNAPSHOT_ROWS.name, "source" => self.context.name.clone())
            .set(self.rows as f64);
        tracing::info!(
            source = self.context.name,
            rows = self.rows,
            about = self.guess,
            "copying the table"
        );
    }
}
