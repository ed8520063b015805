//! Asking the workers, and giving up politely: dropping the future cancels the question.

use std::sync::Arc;
use std::time::Duration;

use engine::model::{ObjectId, Time};
use engine::runtime::{AskError, AskTime, WriteToken};
use tokio::sync::oneshot;

use super::Inner;
use crate::api::{AsOf, AtLeast, Reply};
use crate::problem::Problem;
use crate::render::{Answer, Question};

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

impl Inner {
    /// Asks one question over some collections.
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
    pub(super) fn ask_time(
        &self,
        as_of: Option<&AsOf>,
        at_least: Option<&AtLeast>,
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
                let source = position
                    .get("source")
                    .and_then(|s| s.as_str())
                    .unwrap_or("?");
                Err(Problem::not_supported(format!(
                    "at_least by position: source \"{source}\" has no offsets or LSNs"
                ))
                .hint("pass the Headwater-Token of the write"))
            }
            (None, None) => Ok(AskTime::Newest),
        }
    }
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
