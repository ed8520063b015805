//! Asking the workers, and giving up politely: dropping the future cancels the question.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::model::{ObjectId, Time};
use engine::runtime::{AskError, AskTime, WriteToken};
use serde_json::{Map, Value as Json};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use super::Inner;
use crate::api::{AsOf, AtLeast, Reply};
use crate::definition::{Connector, Definition};
use crate::problem::Problem;
use crate::render::{Answer, Declared, ProgramReply, Question};

/// Removes a reader whose caller is gone.
struct Forget<'a>(&'a Inner, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0
            .waiting
            .lock()
            .expect("no panic while held")
            .remove(&self.1);
    }
}

/// How long a question may wait for its time when nothing else is said.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Time between two looks whether a position is staged.
const STAGED_POLL: Duration = Duration::from_millis(1);

impl Inner {
    /// Carries out what must not end in its middle when its caller goes away.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Reply<T>> + Send + 'static,
    ) -> Reply<T> {
        let task = self.runtime.spawn(work.in_current_span());
        task.await
            .unwrap_or_else(|error| Err(Problem::internal(error.to_string())))
    }

    /// Waits until everything that workers told before now is noted: of a time that is sealed they have
    /// told all, but it may still be on its way here.
    pub(super) async fn noted(&self) {
        let (mark, mut dropped) = mpsc::unbounded_channel();
        (self.pipeline.replies)(ProgramReply::Mark(mark));
        let _ = dropped.recv().await;
    }

    /// Asks one question over some collections.
    #[tracing::instrument(
        name = "question",
        level = "debug",
        skip_all,
        fields(kind = question.kind(), as_of = tracing::field::Empty)
    )]
    pub(super) async fn ask(
        &self,
        over: Vec<ObjectId>,
        at: AskTime,
        timeout: Duration,
        question: Question,
    ) -> Reply<(Time, Answer)> {
        let (accept, accepted) = oneshot::channel();
        let (send, receive) = oneshot::channel();
        let waiting = Arc::clone(&self.waiting);
        let guard = self.engine.ask(
            over,
            at,
            timeout,
            |id| {
                waiting
                    .lock()
                    .expect("no panic while held")
                    .insert(id, send);
                Some(question)
            },
            Box::new(move |result| {
                let _ = accept.send(result);
            }),
        );
        let forget = Forget(self, guard.id());
        let at = accepted
            .await
            .map_err(|_| stopping())?
            .map_err(ask_problem)?;
        tracing::Span::current().record("as_of", at);
        let answer = receive.await.map_err(|_| {
            Problem::new(
                503,
                "not-ready",
                "the question was cancelled: its collection was dropped",
            )
        })?;
        drop(forget);
        guard.done();
        if let Answer::Failed(error) = answer {
            return Err(Problem::new(422, &error.code, error.detail));
        }
        Ok((at, answer))
    }

    /// Waits until some collections are sealed as wished; returns the time.
    pub(super) async fn reach(
        &self,
        over: Vec<ObjectId>,
        at: AskTime,
        timeout: Duration,
    ) -> Result<Time, AskError> {
        let (accept, accepted) = oneshot::channel();
        let sent = Box::new(move |result| {
            let _ = accept.send(result);
        });
        let guard = self.engine.ask(over, at, timeout, |_| None, sent);
        let result = accepted.await.unwrap_or(Err(AskError::Stopping));
        guard.done();
        result
    }

    /// The wished time of a request.
    /// A position that nobody has staged yet is waited for, at most until `timeout`.
    pub(super) async fn ask_time(
        &self,
        as_of: Option<&AsOf>,
        at_least: Option<&AtLeast>,
        timeout: Duration,
    ) -> Reply<AskTime> {
        match (as_of, at_least) {
            (Some(_), Some(_)) => Err(Problem::invalid("as_of and at_least exclude each other")
                .hint("as_of names one time; at_least waits for the newest time that has a write")),
            (Some(AsOf::Time(at)), None) => Ok(AskTime::At(*at)),
            (Some(AsOf::Text(text)), None) => {
                let at: jiff::Timestamp = text.parse().map_err(|_| {
                    Problem::invalid(format!("as_of: \"{text}\" is not a time"))
                        .expected("microseconds since the epoch, or RFC 3339")
                })?;
                Ok(AskTime::At(u64::try_from(at.as_microsecond()).unwrap_or(0)))
            }
            (None, Some(AtLeast::Token(token))) => {
                if let Some(at) = token.strip_prefix("t1.") {
                    let at = at.parse().map_err(|_| bad_token(token))?;
                    return Ok(AskTime::NotBefore(at));
                }
                let token: WriteToken = token.parse().map_err(|_| bad_token(token))?;
                Ok(AskTime::After(vec![token]))
            }
            (None, Some(AtLeast::Position(position))) => {
                let (source, marks) = self.marks(position)?;
                let deadline = Instant::now() + timeout;
                let mut tokens = Vec::with_capacity(marks.len());
                for (name, mark) in marks {
                    let token = loop {
                        if let Some(token) = self.engine.covering(source, &name, mark) {
                            break token;
                        }
                        if Instant::now() >= deadline {
                            let reached = self.engine.published().last;
                            return Err(ask_problem(AskError::NotReached { reached }));
                        }
                        tokio::time::sleep(STAGED_POLL).await;
                    };
                    tokens.push(token);
                }
                Ok(AskTime::After(tokens))
            }
            (None, None) => Ok(AskTime::Newest),
        }
    }

    /// The marks that a position wants its source to have reached: the offset after each named one.
    fn marks(&self, position: &Map<String, Json>) -> Reply<(ObjectId, Vec<(String, u64)>)> {
        let wrong = |detail: String| {
            Problem::invalid(detail)
                .expected(r#"{"source":"name","offsets":{"partition":offset,…}}"#)
        };
        let Some(name) = position.get("source").and_then(Json::as_str) else {
            return Err(wrong("at_least: no source is named".to_owned()));
        };
        let declared = self.pipeline.by_name(name);
        let Some(Declared::Source { object, .. }) = declared else {
            return Err(Problem::not_found(format!("there is no source \"{name}\"")));
        };
        let connector = match &object.definition {
            Definition::Source(source) => Some(&source.connector),
            _ => None,
        };
        if let (Some(Connector::Postgres(_)), Some(lsn)) = (connector, position.get("lsn")) {
            let mark = lsn.as_str().and_then(parse_lsn).ok_or_else(|| {
                Problem::invalid(format!(
                    "at_least: {lsn} is no position in PostgreSQL's log"
                ))
                .expected(r#"{"source":"name","lsn":"0/16B3748"}"#)
                .hint("SELECT pg_current_wal_flush_lsn() after the COMMIT")
            })?;
            return Ok((object.id, vec![("lsn".to_owned(), mark)]));
        }
        let (Some(Connector::Kafka(kafka)), Some(offsets)) = (connector, position.get("offsets"))
        else {
            return Err(Problem::not_supported(format!(
                "at_least by position: source \"{name}\" has no such positions"
            ))
            .hint(
                "pass the Headwater-Token of the write, offsets of a source FROM KAFKA, or the \
                 lsn of a source FROM POSTGRES",
            ));
        };
        let offsets = offsets.as_object().filter(|offsets| !offsets.is_empty());
        let offsets =
            offsets.ok_or_else(|| wrong("at_least: offsets is no object of numbers".to_owned()))?;
        let mark = |(partition, offset): (&String, &Json)| {
            let offset = offset.as_u64().ok_or_else(|| {
                wrong(format!(
                    "at_least: the offset of \"{partition}\" is {offset}"
                ))
            })?;
            // With a pattern a partition is named with its topic: `events.a/0`.
            if kafka.is_pattern && !partition.contains('/') {
                let detail = format!("at_least: \"{partition}\" names no topic");
                return Err(wrong(detail)
                    .hint("the source reads several topics: write \"topic/partition\""));
            }
            let name = match kafka.is_pattern {
                true => partition.clone(),
                false => format!("{}/{partition}", kafka.topic),
            };
            Ok((name, offset.saturating_add(1)))
        };
        let marks: Reply<Vec<(String, u64)>> = offsets.iter().map(mark).collect();
        Ok((object.id, marks?))
    }
}

/// PostgreSQL's way to write a place in its log: two hexadecimal halves.
fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let half = |text: &str| u32::from_str_radix(text, 16).ok();
    Some(u64::from(half(high)?) << 32 | u64::from(half(low)?))
}

fn bad_token(token: &str) -> Problem {
    Problem::invalid(format!(
        "at_least: \"{token}\" is not a token of this server"
    ))
    .expected("the Headwater-Token of a reply")
}

fn stopping() -> Problem {
    Problem::new(503, "not-ready", "the engine is stopping")
}

/// A question that was not taken, as a problem.
pub(super) fn ask_problem(error: AskError) -> Problem {
    match error {
        AskError::OutOfRange { since, upper, .. } => {
            Problem::new(422, "as-of-out-of-range", error.to_string())
                .expected(format!("{since} ≤ as_of < {upper}"))
                .hint("RETAIN of the index decides how far back one can read")
        }
        AskError::Gone => Problem::not_found("the collection was dropped"),
        AskError::NotReached { reached } => {
            Problem::new(504, "not-reached", error.to_string()).with("reached", reached)
        }
        AskError::Stopping => stopping(),
    }
}
