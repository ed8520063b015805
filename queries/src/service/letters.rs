//! Dead letters: shown, counted, and decoded again by their source (replay).
//!
//! ```text
//! letter ─▶ redecode (Wiring: the source's own decoding) ─┬─ still bad: stays
//!                                                        ├─ refused: stays, with the reason
//!                                                        └─ good ─▶ sink: is it still there? ─▶ rows
//! ```
//!
//! Invariants: a replay takes a letter at most once, and never over a newer row of its key: the sink
//! looks while the source's order is held. It answers when what it took is synced.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use engine::error::{DataError, DeadLetter, WorldError};
use engine::letters::{LetterId, Listed, Redecoded};
use engine::limits::REPLAY_LETTERS_MAX;
use engine::model::{Key, ObjectId, Value};
use engine::runtime::{EngineSink, NotReplayed};

use super::Inner;
use super::connection::Access;
use super::system::{int, text};
use crate::api::{
    DeadLetterReply, DeadLetterRequest, RefusedLetter, ReplayIds, ReplayReply, ReplayRequest, Reply,
};
use crate::definition::{Connector, Definition, SourceDef};
use crate::problem::Problem;
use crate::render::{Declared, WorkerProgram};

/// Refused letters shown in a reply.
const REFUSED_MAX: usize = 100;
/// Longest wait of a replay for room, and for the sync.
const PATIENCE: Duration = Duration::from_secs(30);

impl Inner {
    /// Letters of a page.
    pub(super) fn letters(&self, request: &DeadLetterRequest) -> Reply<Vec<DeadLetterReply>> {
        if let Some(name) = &request.source
            && self.schema_of(name).is_none()
        {
            return Err(Problem::not_found(format!("there is no source \"{name}\"")));
        }
        let (source, code) = (request.source.as_deref(), request.code.as_deref());
        let letters = self.engine.dead_letters();
        let found: Vec<Listed> = match &request.id {
            Some(id) => letters.get(parse(id)?).into_iter().collect(),
            None => letters.list(source, code, request.cursor.unwrap_or(0), request.limit),
        };
        let shown = found.into_iter().map(|listed| DeadLetterReply {
            id: listed.id.to_string(),
            cursor: listed.number,
            first_seen: listed.kept.first_seen,
            last_seen: listed.kept.last_seen,
            count: listed.kept.count,
            letter: listed.kept.letter,
        });
        Ok(shown.collect())
    }

    /// The rows of `headwater.dead_letters`.
    pub(super) fn letter_rows(&self) -> Vec<Vec<Value>> {
        let letters = self.engine.dead_letters().list(None, None, 0, usize::MAX);
        let rows = letters.into_iter().map(|Listed { id, kept, .. }| {
            let letter = &kept.letter;
            let error = &letter.error;
            let some = |value: &Option<String>| value.as_ref().map_or(Value::Null, text);
            let key = letter.key.as_ref();
            vec![
                text(id.to_string()),
                text(&letter.source),
                Value::Timestamp(kept.last_seen as i64),
                text(&letter.position),
                text(&error.code),
                text(&error.detail),
                some(&error.expected),
                some(&error.hint),
                text(String::from_utf8_lossy(&letter.payload)),
                error.column().map_or(Value::Null, text),
                key.map_or(Value::Null, |key| text(key.as_str())),
                Value::Timestamp(kept.first_seen as i64),
                Value::Timestamp(kept.last_seen as i64),
                int(kept.count),
                int(letter.bytes),
            ]
        });
        rows.collect()
    }

    /// The rows of `headwater.dead_letter_causes`.
    pub(super) fn cause_rows(&self) -> Vec<Vec<Value>> {
        let causes = self.engine.dead_letters().causes();
        let rows = causes.into_iter().map(|cause| {
            vec![
                text(&cause.source),
                text(&cause.code),
                int(cause.seen),
                int(cause.kept),
                int(cause.dropped),
                int(cause.resolved),
                Value::Timestamp(cause.first_seen as i64),
                Value::Timestamp(cause.last_seen as i64),
            ]
        });
        rows.collect()
    }

    /// A rendered row turned bad, or is good again.
    pub(super) fn row_error(&self, relation: ObjectId, key: &Key, error: DataError, diff: i64) {
        let Some(declared) = self.pipeline.get(relation) else {
            return;
        };
        let source = &*declared.object().name;
        let letters = self.engine.dead_letters();
        if diff > 0 {
            let at = self.engine.clock().now_micros();
            let payload = key.as_str().as_bytes();
            let letter = DeadLetter::new(source, format!("key {key}"), error, payload);
            letters.add(at, [Arc::new(letter.key(Some(key.clone())))]);
        } else {
            letters.retract(source, key);
        }
    }

    /// Forgets the letters of what is no longer declared.
    pub(super) fn forget_letters(&self) {
        self.engine
            .forget_letters(|name| self.pipeline.by_name(name).is_some());
    }

    /// Decodes letters again and takes what is good. Blocks: decoding, room, the sync.
    pub(super) fn replay_letters(&self, request: &ReplayRequest) -> Reply<ReplayReply> {
        let mut replay = Replay {
            inner: self,
            sources: BTreeMap::new(),
            deadline: Instant::now() + PATIENCE,
            reply: ReplayReply::default(),
            synced: channel(),
        };
        for listed in replay.chosen(request)? {
            replay.one(&listed)?;
        }
        replay.finish()
    }

    /// A source's definition with its place to write to.
    fn replayable(&self, name: &str) -> Result<Target, String> {
        match self.pipeline.by_name(name) {
            Some(Declared::Source { object, .. }) => match object.definition {
                Definition::Source(source) => {
                    let is_push = source.connector == Connector::Push;
                    let sink = self.engine.sink(object.id, name, is_push);
                    let access = self.access(&source).map_err(|error| error.to_string())?;
                    Ok((source, access, sink))
                }
                _ => Err(format!("\"{name}\" is not a source")),
            },
            Some(_) => Err(
                "it is a row that a view cannot compute: it goes when the row is good".to_owned(),
            ),
            None => Err(format!("there is no source \"{name}\"")),
        }
    }
}

type Target = (SourceDef, Access, EngineSink<WorkerProgram>);
type Synced = Result<(), Arc<WorldError>>;

/// A replay on its way.
struct Replay<'a> {
    inner: &'a Inner,
    sources: BTreeMap<String, Result<Target, String>>,
    deadline: Instant,
    reply: ReplayReply,
    synced: (Sender<Synced>, Receiver<Synced>),
}

impl Replay<'_> {
    /// The letters that are asked for, in the order of their arrival.
    fn chosen(&mut self, request: &ReplayRequest) -> Reply<Vec<Listed>> {
        let letters = self.inner.engine.dead_letters();
        let (source, code) = (request.source.as_deref(), request.code.as_deref());
        let ids = match &request.ids {
            Some(ReplayIds::Some(ids)) => ids,
            None if source.is_none() && code.is_none() => {
                return Err(
                    Problem::invalid("nothing says which dead letters are replayed")
                        .expected("\"ids\": […] or \"all\", \"source\" or \"code\""),
                );
            }
            _ => {
                if let Some(name) = source.filter(|name| self.inner.schema_of(name).is_none()) {
                    return Err(Problem::not_found(format!("there is no source \"{name}\"")));
                }
                return Ok(letters.list(source, code, 0, REPLAY_LETTERS_MAX));
            }
        };
        if ids.len() > REPLAY_LETTERS_MAX {
            return Err(Problem::new(
                422,
                "limit-exceeded",
                format!("{} ids are given", ids.len()),
            )
            .expected(format!("at most {REPLAY_LETTERS_MAX} (REPLAY_LETTERS_MAX)")));
        }
        let mut chosen = Vec::new();
        for id in ids {
            match letters.get(parse(id)?) {
                Some(listed) => chosen.push(listed),
                None => self.reply.gone += 1,
            }
        }
        chosen.retain(|listed| {
            let letter = &listed.kept.letter;
            source.is_none_or(|source| source == letter.source)
                && code.is_none_or(|code| code == letter.error.code)
        });
        chosen.sort_by_key(|listed| listed.number);
        chosen.dedup_by_key(|listed| listed.number);
        Ok(chosen)
    }

    fn one(&mut self, listed: &Listed) -> Reply<()> {
        let letter = &listed.kept.letter;
        if letter.error.code == super::fill::TEXT_REFUSED {
            let reason = "the model refused a text of it: it is offered again by itself";
            self.refuse(listed.id, reason.to_owned());
            return Ok(());
        }
        let find = || self.inner.replayable(&letter.source);
        let target = self
            .sources
            .entry(letter.source.clone())
            .or_insert_with(find);
        let (source, access, sink) = match target {
            Ok(target) => target,
            Err(reason) => {
                let reason = reason.clone();
                self.refuse(listed.id, reason);
                return Ok(());
            }
        };
        let (lane, changes) = match (self.inner.redecode)(source, access, letter) {
            Redecoded::Good { lane, changes } => (lane, changes),
            Redecoded::StillBad(_) => {
                self.reply.still_bad += 1;
                return Ok(());
            }
            Redecoded::Refused(reason) => {
                self.refuse(listed.id, reason);
                return Ok(());
            }
        };
        while !sink.has_room() {
            if Instant::now() > self.deadline {
                return Err(busy(&letter.source));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let send = self.synced.0.clone();
        let synced = Box::new(move |result| drop(send.send(result)));
        match sink.stage_replayed(listed.id, &lane, changes, Some(synced)) {
            Ok(staged) if staged.accepted == 0 && staged.ignored > 0 => {
                let reason = "a newer version of its key was written: the letter is resolved";
                self.refuse(listed.id, reason.to_owned());
            }
            Ok(_) => self.reply.replayed += 1,
            Err(NotReplayed::Gone) => self.reply.gone += 1,
            Err(NotReplayed::OrderUnknown(key)) => self.refuse(
                listed.id,
                format!("its key, which could not be read before, has been written: nobody knows whether {key} is newer"),
            ),
        }
        Ok(())
    }

    fn refuse(&mut self, id: LetterId, reason: String) {
        self.reply.refused_total += 1;
        if self.reply.refused.len() < REFUSED_MAX {
            let id = id.to_string();
            self.reply.refused.push(RefusedLetter { id, reason });
        }
    }

    /// Waits until everything taken is synced.
    fn finish(self) -> Reply<ReplayReply> {
        let (send, receive) = self.synced;
        drop(send);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receive.recv_timeout(left) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(not_durable(&error.to_string())),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(self.reply),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    return Err(not_durable("the disk does not answer"));
                }
            }
        }
    }
}

fn parse(id: &str) -> Reply<LetterId> {
    id.parse().map_err(|error: String| {
        Problem::invalid(error).expected("an id of GET /v1/dead_letters: d_ and twelve digits")
    })
}

fn busy(source: &str) -> Problem {
    Problem::new(
        429,
        "too-many-requests",
        format!("source \"{source}\" has too much staged that is not indexed yet"),
    )
    .with("retry_after_s", 5)
    .hint("replay again: what was taken is not taken twice")
}

fn not_durable(error: &str) -> Problem {
    Problem::new(
        503,
        "not-durable",
        format!("the replayed rows are not acknowledged: {error}"),
    )
    .with("retry_after_s", 5)
    .hint("free space or repair the data folder's disk; then replay again")
}
