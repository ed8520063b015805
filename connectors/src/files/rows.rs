//! Rows, deletes and dead letters of files, gathered to batches.
//!
//! Invariants: the order of what is told is kept; a batch holds at most [`BATCH_ROWS`] changes and as
//! many letters, and [`BATCH_BYTES`] (soft for one file).

use engine::contract::{SinkClosed, SourceBatch, SourceContext};
use engine::error::{DataError, DeadLetter};
use engine::limits::KEY_BYTES_MAX;
use engine::model::{ContentHash, Key, Row, RowCodec, Value};

use super::read::Stamp;
use super::schema;

/// Rows and dead letters of one batch.
const BATCH_ROWS: usize = 256;
/// Bytes of one batch (soft for one file).
const BATCH_BYTES: usize = 2 << 20;
/// The column that holds the text.
const TEXT_COLUMN: usize = 1;

pub(super) fn row(codec: &RowCodec, name: &str, text: String, stamp: Stamp) -> Row {
    let bytes = text.len() as i64;
    codec.pack(&[
        Value::Text(name.into()),
        Value::Text(text.into()),
        Value::Int(bytes),
        Value::Timestamp(stamp.modified_micros()),
    ])
}

/// What goes to the sink.
pub(super) struct Rows {
    pub(super) context: SourceContext,
    codec: RowCodec,
    batch: SourceBatch,
    bytes: usize,
}

impl Rows {
    pub(super) fn new(context: SourceContext) -> Rows {
        Rows {
            context,
            codec: RowCodec::new(schema()).expect("types that Arrow can order"),
            batch: SourceBatch::default(),
            bytes: 0,
        }
    }

    pub(super) fn row(&self, name: &str, text: String, stamp: Stamp) -> Row {
        row(&self.codec, name, text, stamp)
    }

    /// Whether the key has a row in the engine: this source may not know it, when a replayed letter
    /// has brought it.
    pub(super) fn is_live(&self, name: &str) -> bool {
        self.context.resume.row(&Key::text(name)).is_some()
    }

    /// The hash of the live row's text.
    pub(super) fn live_text(&self, name: &str) -> Option<ContentHash> {
        let row = self.context.resume.row(&Key::text(name))?;
        match self.codec.unpack(&row).into_iter().nth(TEXT_COLUMN) {
            Some(Value::Text(text)) => Some(ContentHash::of(text.as_bytes())),
            _ => None,
        }
    }

    /// Gathers a row, or a delete.
    pub(super) fn emit(&mut self, name: &str, row: Option<Row>) -> Result<(), SinkClosed> {
        self.bytes += row.as_ref().map_or(0, |row| row.as_bytes().len());
        self.batch.changes.push((Key::text(name), row, None));
        self.flush_if_full()
    }

    /// Gathers a dead letter of the file of this name.
    pub(super) fn file_letter(
        &mut self,
        name: &str,
        error: DataError,
        payload: &[u8],
    ) -> Result<(), SinkClosed> {
        self.letter(name.to_owned(), error, payload, Some(Key::text(name)))
    }

    /// Gathers a dead letter.
    pub(super) fn letter(
        &mut self,
        position: String,
        error: DataError,
        payload: &[u8],
        key: Option<Key>,
    ) -> Result<(), SinkClosed> {
        self.bytes += payload.len();
        let letter = DeadLetter::new(&*self.context.name, position, error, payload)
            .key(key)
            .after(self.batch.changes.len());
        self.batch.dead_letters.push(letter);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<(), SinkClosed> {
        let count = self.batch.changes.len().max(self.batch.dead_letters.len());
        match count >= BATCH_ROWS || self.bytes >= BATCH_BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Hands over what is gathered.
    pub(super) fn flush(&mut self) -> Result<(), SinkClosed> {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.changes.is_empty() && batch.dead_letters.is_empty() {
            return Ok(());
        }
        self.context.sink.stage(batch)
    }
}

/// The error of a member whose path is too long for a key, if it is.
pub(super) fn too_long(name: &str) -> Option<DataError> {
    let bytes = Key::text(name).as_str().len();
    (bytes > KEY_BYTES_MAX).then(|| {
        DataError::new(
            "key-too-large",
            format!("the key has {bytes} bytes; the limit KEY_BYTES_MAX is {KEY_BYTES_MAX}"),
        )
    })
}
