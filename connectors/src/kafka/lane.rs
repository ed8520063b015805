//! A lane: decoded messages in, batches of rows and dead letters out.
//!
//! For rows and upserts a lane is a partition. Debezium's changes of one table may lie in several
//! partitions and mean something only together (a key change, a truncate), so there a lane is the
//! whole topic, and the state that tells re-deliveries and completes rows travels in its position:
//! what the log has of the rows and what the table knows of them can never differ.
//!
//! Invariants: the position of a batch names the next offset of each partition that was ever read,
//! as of the batch's last message, and what else a restart must not forget; an unsent value is taken
//! from the row as it stands after everything before the message.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::contract::{SourceBatch, SourceContext};
use engine::error::{DeadLetter, WorldError};
use engine::model::{Key, Schema};
use engine::telemetry;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::Partition;
use super::letter::Message;
use super::letter_topic::LetterTopic;
use crate::envelope::table::{Applied, Delivery, Letter, Output, Table};
use crate::envelope::{Decoded, Envelope, RawRecord};
use crate::live::Rows;

/// How people name a partition.
pub(super) fn name((topic, partition): &Partition) -> String {
    format!("{topic}/{partition}")
}

/// Whether a lane's position says that a partition was given up.
pub(super) fn is_given_up(position: &Json, partition: &Partition) -> bool {
    let given_up = position["given_up"].as_array();
    given_up.is_some_and(|all| all.iter().any(|one| *one == partition.1))
}

/// How people name a message.
pub(super) fn position(partition: &Partition, offset: i64) -> String {
    format!("{} offset {offset}", name(partition))
}

/// The engine's lane that a partition belongs to.
pub(super) fn lane_of(partition: &Partition, envelope: Envelope) -> String {
    match envelope {
        Envelope::Debezium => partition.0.clone(),
        Envelope::Append | Envelope::Upsert => name(partition),
    }
}

/// The topic of a lane.
pub(super) fn topic_of(lane: &str, envelope: Envelope) -> &str {
    match envelope {
        Envelope::Debezium => lane,
        Envelope::Append | Envelope::Upsert => {
            lane.rsplit_once('/').map_or(lane, |(topic, _)| topic)
        }
    }
}

/// The offset that a lane's position has for a partition.
pub(super) fn stored_offset(position: &Json, partition: &Partition) -> Option<i64> {
    position["marks"][name(partition)].as_i64()
}

/// A transaction of which pieces are staged, and not the last: nothing of the lane is visible until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// The transaction.
    pub(super) id: String,
    /// How many different events of it the lane has.
    pub(super) events: u64,
}

/// What a lane's position says, beside what the engine reads of it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    /// The next offset of each partition, by its name.
    marks: BTreeMap<String, i64>,
    /// Partitions that are never read again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    given_up: BTreeSet<i32>,
    /// The table's state, of a lane that is a whole topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    /// See [`Lane`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sweep_at: Option<BTreeMap<i32, i64>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    wants_ends: bool,
    /// See [`Begun`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun: Option<Begun>,
    /// The offset that follows the last transaction of the transaction topic that the lane has, or
    /// had no part in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transactions: Option<i64>,
}

/// See the module.
pub(super) struct Lane {
    lane: String,
    topic: String,
    source: String,
    is_whole_topic: bool,
    table: Table,
    rows: Rows,
    /// The next offset of each partition that was ever read: a mark is never forgotten.
    marks: BTreeMap<i32, i64>,
    /// The partitions that are read now.
    reading: BTreeSet<i32>,
    /// The partitions that are never read again.
    given_up: BTreeSet<i32>,
    batch: SourceBatch,
    is_changed: bool,
    /// After a snapshot that began again: where each partition ended when it was through.
    sweep_at: Option<BTreeMap<i32, i64>>,
    /// A snapshot that began again is through: somebody must say where the partitions end.
    wants_ends: bool,
    /// See [`Stored`].
    transactions: Option<i64>,
    begun: Option<Begun>,
}

impl Lane {
    /// A lane that goes on where the log ends.
    ///
    /// Errors: a schema without a row format; a stored position that cannot be read.
    pub(super) fn new(
        context: &SourceContext,
        lane: String,
        schema: &Schema,
        envelope: Envelope,
    ) -> Result<Lane, WorldError> {
        let failed = |detail: String| WorldError::Service {
            service: format!("source \"{}\"", context.name),
            detail,
            is_transient: false,
        };
        let unreadable = |error: String| failed(format!("the stored position of {lane}: {error}"));
        let rows = Rows::new(&context.name, Arc::clone(&context.resume), schema)?;
        let stored = match context.resume.position(&lane) {
            Some(json) => serde_json::from_value(json).map_err(|e| unreadable(e.to_string()))?,
            None => Stored::default(),
        };
        let table = match &stored.table {
            Some(state) => decode_table(state).map_err(unreadable)?,
            None => Table::new(1),
        };
        let topic = topic_of(&lane, envelope).to_owned();
        let number = |(name, next): (String, i64)| {
            let (_, partition) = name.rsplit_once('/')?;
            Some((partition.parse().ok()?, next))
        };
        let marks = stored.marks.into_iter().filter_map(number).collect();
        Ok(Lane {
            lane,
            topic,
            source: context.name.clone(),
            is_whole_topic: envelope == Envelope::Debezium,
            table,
            rows,
            marks,
            reading: BTreeSet::new(),
            given_up: stored.given_up,
            batch: SourceBatch::default(),
            is_changed: false,
            sweep_at: stored.sweep_at,
            wants_ends: stored.wants_ends,
            transactions: stored.transactions,
            begun: stored.begun,
        })
    }

    /// Reads a partition from an offset on, also when nothing comes for now: a start that was chosen
    /// once holds.
    pub(super) fn begin(&mut self, partition: i32, offset: i64) {
        self.marks.insert(partition, offset);
        self.reading.insert(partition);
        self.table.set_partitions(self.marks.len());
        self.is_changed = true;
    }

    /// Never reads a partition again, also after a restart.
    pub(super) fn give_up(&mut self, partition: i32) {
        self.reading.remove(&partition);
        self.given_up.insert(partition);
        self.is_changed = true;
    }

    /// Where a partition stands that is read.
    pub(super) fn next(&self, partition: i32) -> Option<i64> {
        let is_read = self.reading.contains(&partition);
        self.marks.get(&partition).copied().filter(|_| is_read)
    }

    /// The partitions that are read, with their next offsets.
    pub(super) fn reading(&self) -> impl Iterator<Item = (i32, i64)> {
        let reading = self.reading.iter();
        reading.filter_map(|partition| Some((*partition, *self.marks.get(partition)?)))
    }

    /// Takes what a message says into the batch; what is bad of it goes to `topic`, too, if there is
    /// one.
    pub(super) fn take(
        &mut self,
        decoded: Decoded,
        record: &RawRecord<'_>,
        topic: Option<&mut LetterTopic>,
    ) {
        let applied = self.table.apply(decoded, &self.rows);
        self.put_all(applied, record, topic);
        self.marks.insert(record.partition, record.offset + 1);
    }

    /// Takes a truncate before earlier messages of its partition: it comes once more in its turn.
    pub(super) fn take_ahead(
        &mut self,
        decoded: &Decoded,
        record: &RawRecord<'_>,
        topic: Option<&mut LetterTopic>,
    ) {
        let applied = self.table.truncate_ahead(decoded);
        self.put_all(applied, record, topic);
    }

    fn put_all(
        &mut self,
        applied: Applied,
        record: &RawRecord<'_>,
        topic: Option<&mut LetterTopic>,
    ) {
        self.was_sent_again(applied.dropped);
        for output in applied.outputs {
            self.put(output);
        }
        if let Some(topic) = topic {
            let errors = applied.letters.iter().map(|letter| &letter.error);
            errors.for_each(|error| topic.send(record, error));
        }
        for letter in applied.letters {
            self.letter(record, letter);
        }
        self.is_changed = true;
    }

    /// Counts changes that had been taken before.
    pub(super) fn was_sent_again(&self, changes: u64) {
        if changes > 0 {
            metrics::counter!(telemetry::ROWS_IGNORED.name, "source" => self.source.clone())
                .increment(changes);
        }
    }

    /// Whether what a message says was taken before, from another place.
    pub(super) fn delivery(&self, decoded: &Decoded) -> Delivery {
        self.table.delivery(decoded)
    }

    /// Where the lane stands in the transaction topic; `None` of one that was never in a group.
    pub(super) fn transactions(&self) -> Option<i64> {
        self.transactions
    }

    /// Everything that it has to do with before this offset of the transaction topic is in the batch,
    /// or was staged. It is logged with the next batch.
    pub(super) fn pass_transactions(&mut self, offset: i64) {
        self.transactions = self.transactions.max(Some(offset));
    }

    /// The transaction of which the lane has pieces.
    pub(super) fn begun(&self) -> Option<&Begun> {
        self.begun.as_ref()
    }

    /// What is staged next is a piece of a transaction, or ends it. It is logged with the next batch.
    pub(super) fn set_begun(&mut self, begun: Option<Begun>) {
        self.begun = begun;
    }

    /// It does not stand where others do, and has no place until it does.
    pub(super) fn leave_transactions(&mut self) {
        self.transactions = None;
    }

    /// The transaction topic is another one now, and nothing of it was read.
    pub(super) fn forget_transactions(&mut self) {
        self.transactions = Some(0);
    }

    /// Logs the lane's position with the next batch, also when nothing comes.
    pub(super) fn log_position(&mut self) {
        self.is_changed = true;
    }

    /// What stands before this offset and is no message (marks of transactions, aborted messages) was read,
    /// too; everything else was staged. Whether that is news.
    pub(super) fn pass(&mut self, partition: i32, offset: i64, context: &SourceContext) -> bool {
        let is_news = self.next(partition).is_some_and(|next| next < offset);
        if is_news {
            // A restart may read it again: it is logged with the next batch.
            self.marks.insert(partition, offset);
            let marks = serde_json::json!({ "marks": self.named_marks() });
            context.sink.reached(&self.lane, &marks);
        }
        is_news
    }

    fn named_marks(&self) -> BTreeMap<String, i64> {
        let marks = self.marks.iter();
        let named = marks.map(|(partition, next)| {
            let partition = (self.topic.clone(), *partition);
            (name(&partition), *next)
        });
        named.collect()
    }

    fn put(&mut self, output: Output) {
        match output {
            Output::Upsert { key, values } => {
                let row = self.rows.pack(&values);
                if self.is_whole_topic {
                    self.rows.note(key.clone(), Some(row.clone()));
                }
                self.batch.changes.push((key, Some(row), None));
            }
            Output::Delete { key } => self.delete(key),
            Output::Truncate { survivors } => {
                for key in self.rows.keys() {
                    if !survivors.contains(&key) {
                        self.delete(key);
                    }
                }
            }
            Output::SnapshotStarted { .. } => {}
            Output::SnapshotEnded => self.wants_ends = true,
        }
    }

    fn delete(&mut self, key: Key) {
        if self.is_whole_topic {
            self.rows.note(key.clone(), None);
        }
        self.batch.changes.push((key, None, None));
    }

    fn letter(&mut self, record: &RawRecord<'_>, letter: Letter) {
        let payload = record.value.or(record.key).unwrap_or_default();
        let position = position(&(record.topic.to_owned(), record.partition), record.offset);
        let dead = DeadLetter::new(&*self.source, position, letter.error, payload);
        let mut dead = dead.key(letter.key).after(self.batch.changes.len());
        dead.context = Message::of(record).encode();
        self.batch.dead_letters.push(dead);
    }

    /// Whether a snapshot that began again is through, and [`Lane::sweep_at`] is to be told where the
    /// topic ends.
    pub(super) fn wants_ends(&self) -> bool {
        self.wants_ends
    }

    /// The topic.
    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// When these offsets are read, rows that the snapshot did not read again are gone.
    pub(super) fn sweep_at(&mut self, ends: BTreeMap<i32, i64>) {
        self.wants_ends = false;
        self.sweep_at = Some(ends);
        self.is_changed = true;
    }

    fn sweep(&mut self) {
        let Some(ends) = &self.sweep_at else { return };
        let is_read = |(partition, end): (&i32, &i64)| {
            let next = self.next(*partition);
            next.is_none_or(|next| next >= *end)
        };
        if !ends.iter().all(is_read) {
            return;
        }
        self.sweep_at = None;
        self.is_changed = true;
        let live = self.rows.keys();
        for ghost in self.table.sweep(&live) {
            self.delete(ghost);
        }
    }

    /// What is to be staged, with the position that follows it; after that, [`Lane::was_staged`] or
    /// [`Lane::is_leaving`].
    pub(super) fn batch(&mut self) -> Option<SourceBatch> {
        self.sweep();
        if !std::mem::take(&mut self.is_changed) {
            return None;
        }
        let mut batch = std::mem::take(&mut self.batch);
        batch.lane.clone_from(&self.lane);
        batch.position = Some(self.position());
        Some(batch)
    }

    /// No batch of it is on its way to the sink any more.
    pub(super) fn settled(&mut self) {
        self.rows.settled();
    }

    /// The sink has the batch.
    pub(super) fn was_staged(&mut self) {
        self.tell_parked();
        self.rows.staged();
    }

    /// The batch is on its way to the sink, which has the one before it.
    pub(super) fn is_leaving(&mut self) {
        self.tell_parked();
        self.rows.leave();
    }

    fn tell_parked(&self) {
        metrics::gauge!(telemetry::ROWS_PARKED.name, "source" => self.source.clone())
            .set(self.table.parked_rows() as f64);
    }

    fn position(&self) -> Json {
        let stored = Stored {
            marks: self.named_marks(),
            given_up: self.given_up.clone(),
            table: self.is_whole_topic.then(|| encode_table(&self.table)),
            sweep_at: self.sweep_at.clone(),
            wants_ends: self.wants_ends,
            transactions: self.transactions,
            begun: self.begun.clone(),
        };
        serde_json::to_value(stored).expect("a position is plain values")
    }
}

/// Format of a stored table.
const TABLE_FORMAT: u8 = 3;

/// A table as text: it has maps whose keys JSON cannot have, and is written with every batch.
fn encode_table(table: &Table) -> String {
    let encoded = bincode::serde::encode_to_vec(table, bincode::config::standard());
    let mut bytes = vec![TABLE_FORMAT];
    bytes.extend(encoded.expect("the state is plain values"));
    STANDARD.encode(bytes)
}

fn decode_table(text: &str) -> Result<Table, String> {
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    match bytes.split_first() {
        Some((&TABLE_FORMAT, rest)) => {
            let decoded = bincode::serde::decode_from_slice(rest, bincode::config::standard());
            decoded
                .map(|(table, _)| table)
                .map_err(|error| error.to_string())
        }
        format => Err(format!(
            "format {:?}, this version reads {TABLE_FORMAT}",
            format.map(|(format, _)| format)
        )),
    }
}
