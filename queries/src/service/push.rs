//! Pushes: decode, stage, acknowledge when synced (API §5).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::contract::SourceBatch;
use engine::durable::Idempotency;
use engine::error::{DataError, DeadLetter, WorldError};
use engine::limits;
use engine::model::ObjectId;
use engine::runtime::{AskTime, EngineSink, PUSH_LANE, Staged, WriteToken};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{DecodedPush, Inner};
use crate::api::{PushReply, PushRequest, RejectedLine, Reply};
use crate::definition::{Connector, Definition};
use crate::problem::Problem;
use crate::render::{Declared, WorkerProgram};

/// Rejected lines shown in a reply.
const REJECTED_MAX: usize = 100;
/// How long a reply is remembered, microseconds.
const REPLY_MICROS: u64 = 24 * 3600 * 1_000_000;

/// What is remembered of a request.
#[derive(Debug, Clone)]
enum Remembered {
    Running([u8; 32]),
    Done {
        body: [u8; 32],
        reply: String,
        at: u64,
    },
}

/// Pause between two looks for replies that are too old; a look goes through all of them.
const PURGE_MICROS: u64 = 60 * 1_000_000;

/// Replies by (source, idempotency key).
#[derive(Default)]
pub(super) struct Replies(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    by_key: HashMap<(ObjectId, String), Remembered>,
    purged_at: u64,
}

impl Remembered {
    fn is_old(&self, now: u64) -> bool {
        match self {
            Remembered::Running(_) => false,
            Remembered::Done { at, .. } => at.saturating_add(REPLY_MICROS) <= now,
        }
    }
}

/// A reply as it is logged.
#[derive(Serialize, Deserialize)]
struct StoredReply {
    accepted: u64,
    ignored: u64,
    rejected: Vec<RejectedLine>,
    rejected_total: u64,
    token: String,
}

impl Replies {
    /// From the log.
    pub(super) fn recovered(replies: Vec<(ObjectId, Idempotency, u64)>) -> Self {
        let entries = replies.into_iter().map(|(source, stored, at)| {
            let done = Remembered::Done {
                body: stored.body_hash,
                reply: stored.reply,
                at,
            };
            ((source, stored.key), done)
        });
        Replies(Mutex::new(Kept {
            by_key: entries.collect(),
            purged_at: 0,
        }))
    }

    /// A remembered reply; `None` when this request is the first, and is now running.
    fn begin(&self, key: &(ObjectId, String), body: [u8; 32], now: u64) -> Reply<Option<String>> {
        let mut kept = self.0.lock().expect("no panic while held");
        if kept.purged_at.saturating_add(PURGE_MICROS) <= now {
            kept.purged_at = now;
            kept.by_key.retain(|_, remembered| !remembered.is_old(now));
        }
        let replies = &mut kept.by_key;
        match replies
            .get(key)
            .filter(|remembered| !remembered.is_old(now))
        {
            None => {
                replies.insert(key.clone(), Remembered::Running(body));
                Ok(None)
            }
            Some(Remembered::Running(known) | Remembered::Done { body: known, .. })
                if *known != body =>
            {
                Err(Problem::new(
                    422,
                    "idempotency-key-reused",
                    format!("Idempotency-Key \"{}\" was used with another body", key.1),
                )
                .hint("use a new key for a new request"))
            }
            Some(Remembered::Running(_)) => Err(Problem::new(
                409,
                "idempotency-key-running",
                format!(
                    "a request with Idempotency-Key \"{}\" is still running",
                    key.1
                ),
            )
            .hint("wait for it and repeat the request: it will get the stored reply")),
            Some(Remembered::Done { reply, .. }) => Ok(Some(reply.clone())),
        }
    }

    fn finish(&self, key: (ObjectId, String), body: [u8; 32], reply: String, at: u64) {
        let mut replies = self.0.lock().expect("no panic while held");
        replies
            .by_key
            .insert(key, Remembered::Done { body, reply, at });
    }

    fn abandon(&self, key: &(ObjectId, String)) {
        let mut replies = self.0.lock().expect("no panic while held");
        replies.by_key.remove(key);
    }
}

/// Forgets a running request whose future was dropped or failed.
struct Abandon<'a>(Option<(&'a Replies, (ObjectId, String))>);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        if let Some((replies, key)) = self.0.take() {
            replies.abandon(&key);
        }
    }
}

impl Inner {
    /// Takes a push.
    pub(super) async fn push_rows(&self, request: PushRequest) -> Reply<PushReply> {
        let (id, schema) = self.push_source(&request.source)?;
        let now = self.engine.clock().now_micros();
        let mut running = Abandon(None);
        let body = body_hash(&request);
        if let Some(key) = &request.idempotency_key {
            let key = (id, key.clone());
            if let Some(stored) = self.replies.begin(&key, body, now)? {
                let stored: StoredReply = serde_json::from_str(&stored)
                    .map_err(|error| Problem::internal(error.to_string()))?;
                return Ok(reply_of(stored, true));
            }
            running.0 = Some((&self.replies, key));
        }
        let decoded = (self.decode_push)(&schema, &request.lines);
        if request.atomic && !decoded.rejected.is_empty() {
            return Err(refused(&decoded));
        }
        let sink = self.engine.sink(id, &request.source, true);
        if !sink.has_room() {
            return Err(Problem::new(
                429,
                "too-many-requests",
                format!(
                    "source \"{}\" has {} bytes staged that are not indexed yet",
                    request.source,
                    limits::STAGED_BYTES_MAX
                ),
            )
            .with("retry_after_s", 1)
            .hint("slow down: wait for Retry-After seconds"));
        }
        let (staged, stored) = self.stage(&sink, &request, decoded, body).await?;
        if let Some((_, key)) = running.0.take() {
            let text = serde_json::to_string(&stored).expect("plain values");
            self.replies.finish(key, body, text, now);
        }
        let mut reply = reply_of(stored, false);
        if let Some(wait_ms) = request.wait_visible_ms {
            reply.visible = Some(self.wait_visible(id, staged.token, wait_ms).await);
        }
        Ok(reply)
    }

    fn push_source(&self, name: &str) -> Reply<(ObjectId, engine::model::Schema)> {
        match self.pipeline.by_name(name) {
            Some(Declared::Source { object, .. }) => match object.definition {
                Definition::Source(source) if source.connector == Connector::Push => {
                    Ok((object.id, source.schema))
                }
                _ => Err(
                    Problem::invalid(format!("source \"{name}\" is not a push source"))
                        .expected("a source declared FROM PUSH"),
                ),
            },
            Some(other) => Err(Problem::not_found(format!(
                "\"{name}\" is {}, not a source",
                other.object().definition.kind_with_article()
            ))),
            None => Err(Problem::not_found(format!("there is no source \"{name}\""))
                .hint("CREATE SOURCE … FROM PUSH (…) declares one")),
        }
    }

    /// Logs a decoded push and waits for the sync.
    async fn stage(
        &self,
        sink: &EngineSink<WorkerProgram>,
        request: &PushRequest,
        decoded: DecodedPush,
        body: [u8; 32],
    ) -> Reply<(Staged, StoredReply)> {
        let (send, receive) = oneshot::channel::<Result<(), Arc<WorldError>>>();
        let dead_letters = dead_letters(request, &decoded);
        let replaced = decoded.accepted - decoded.changes.len() as u64;
        let rejected_total = decoded.rejected.len() as u64;
        metrics::counter!("headwater_rows_rejected_total", "source" => request.source.clone())
            .increment(rejected_total);
        let shown = decoded.rejected.into_iter().take(REJECTED_MAX);
        let rejected: Vec<RejectedLine> = shown
            .map(|rejected| RejectedLine {
                line: rejected.line,
                error: line_problem(&rejected.error),
            })
            .collect();
        let batch = SourceBatch {
            lane: PUSH_LANE.to_owned(),
            changes: decoded.changes,
            dead_letters,
            position: None,
        };
        let stored = |staged: &Staged| StoredReply {
            // A line that a later one of the same request replaced was taken, too.
            accepted: staged.accepted + replaced,
            ignored: staged.ignored,
            rejected: rejected.clone(),
            rejected_total,
            token: staged.token.to_string(),
        };
        let idempotency = |staged: &Staged| {
            let key = request.idempotency_key.clone()?;
            let reply = serde_json::to_string(&stored(staged)).expect("plain values");
            Some(Idempotency {
                key,
                body_hash: body,
                reply,
            })
        };
        let on_durable = Box::new(move |result| {
            let _ = send.send(result);
        });
        let staged = sink.stage_now(batch, idempotency, Some(on_durable));
        match receive.await {
            Ok(Ok(())) => Ok((staged.clone(), stored(&staged))),
            Ok(Err(error)) => Err(Problem::new(
                503,
                "not-durable",
                format!("the changes are not acknowledged: {error}"),
            )
            .with("retry_after_s", 5)
            .hint("free space or repair the data folder's disk; then repeat the request")),
            Err(_) => Err(Problem::new(503, "not-ready", "the engine is stopping")),
        }
    }

    /// Waits until every index fed by the source shows a write.
    async fn wait_visible(&self, source: ObjectId, token: WriteToken, wait_ms: u64) -> bool {
        let mut over = vec![source];
        let readers = self.pipeline.readers(source);
        over.extend(readers.iter().map(|(index, _)| index.object.id));
        // An answer cache must not serve what the write made untrue, either.
        for declared in self.pipeline.all() {
            if let Declared::Cache { object, index, .. } = declared
                && over.contains(&index.object.id)
            {
                over.push(object.id);
            }
        }
        let timeout = Duration::from_millis(wait_ms);
        self.reach(over, AskTime::After(vec![token]), timeout)
            .await
            .is_ok()
    }
}

fn body_hash(request: &PushRequest) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for line in &request.lines {
        hasher.update(&line.raw);
        hasher.update(b"\n");
    }
    hasher.update(&[u8::from(request.atomic)]);
    *hasher.finalize().as_bytes()
}

fn dead_letters(request: &PushRequest, decoded: &DecodedPush) -> Vec<DeadLetter> {
    let lines: HashMap<u64, &[u8]> = request
        .lines
        .iter()
        .map(|line| (line.line, &*line.raw))
        .collect();
    let letters = decoded.rejected.iter().map(|rejected| {
        let line = rejected.line;
        let raw = lines.get(&line).copied().unwrap_or_default();
        let position = format!("request {} line {line}", request.request_id);
        let letter = DeadLetter::new(&*request.source, position, rejected.error.clone(), raw);
        letter.key(rejected.key.clone()).after(rejected.after)
    });
    letters.collect()
}

fn line_problem(error: &DataError) -> Problem {
    let mut problem = Problem::new(422, &error.code, error.detail.clone());
    problem.expected = error.expected.clone();
    problem.hint = error.hint.clone();
    problem
}

fn refused(decoded: &DecodedPush) -> Problem {
    let mut problem = Problem::new(
        422,
        "rejected-lines",
        format!(
            "nothing was taken: {} lines are bad",
            decoded.rejected.len()
        ),
    )
    .with("rejected_total", decoded.rejected.len());
    for rejected in decoded.rejected.iter().take(REJECTED_MAX) {
        let one = line_problem(&rejected.error).with("line", rejected.line);
        problem.errors.push(one);
    }
    problem
}

fn reply_of(stored: StoredReply, replayed: bool) -> PushReply {
    PushReply {
        accepted: stored.accepted,
        ignored: stored.ignored,
        rejected: stored.rejected,
        rejected_total: stored.rejected_total,
        token: stored.token,
        visible: None,
        replayed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins a request of source 1; its answer in a word.
    fn begun(replies: &Replies, key: &str, body: u8, now: u64) -> String {
        match replies.begin(&(ObjectId(1), key.to_owned()), [body; 32], now) {
            Ok(None) => "first".to_owned(),
            Ok(Some(reply)) => reply,
            Err(problem) => format!("{} {}: {}", problem.status, problem.code, problem.detail),
        }
    }

    #[test]
    fn a_key_runs_once_and_is_remembered_for_a_day() {
        let replies = Replies::default();
        let key = |key: &str| (ObjectId(1), key.to_owned());
        assert_eq!(begun(&replies, "a", 1, 1_000), "first");
        assert_eq!(
            begun(&replies, "a", 1, 1_001),
            "409 idempotency-key-running: a request with Idempotency-Key \"a\" is still running"
        );
        let other = "422 idempotency-key-reused: Idempotency-Key \"a\" was used with another body";
        assert_eq!(begun(&replies, "a", 2, 1_001), other);
        replies.finish(key("a"), [1; 32], "reply".to_owned(), 1_000);
        assert_eq!(begun(&replies, "a", 1, 1_000 + REPLY_MICROS - 1), "reply");
        assert_eq!(begun(&replies, "a", 2, 2_000), other);
        let another = (ObjectId(2), "a".to_owned());
        assert_eq!(
            replies.begin(&another, [2; 32], 2_000),
            Ok(None),
            "of another source"
        );
        // Too old, whether it was purged meanwhile or not.
        assert_eq!(begun(&replies, "a", 2, 1_000 + REPLY_MICROS), "first");
        replies.abandon(&key("a"));
        assert_eq!(
            begun(&replies, "a", 3, 1_000 + REPLY_MICROS),
            "first",
            "failed before"
        );
    }
}
