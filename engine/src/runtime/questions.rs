//! Choosing the time of a question (PROTOCOLS §3.3): the newest sealed time of everything it
//! reads, or the one it asks for.

use std::time::Instant;

use super::board::Board;
use super::lanes::Lanes;
use super::message::{AskError, AskRequest, AskTime};
use super::program::Program;
use crate::model::Time;

impl<P: Program> AskRequest<P> {
    /// The time to answer at; `None` to wait on.
    pub(super) fn decide(&self, board: &Board, lanes: &Lanes) -> Option<Result<Time, AskError>> {
        let Some(readable) = board.readable(&self.over) else {
            return Some(Err(AskError::Gone));
        };
        let newest = readable.upper.saturating_sub(1);
        let late = || {
            (Instant::now() >= self.deadline)
                .then_some(Err(AskError::NotReached { reached: newest }))
        };
        if newest < readable.since {
            return late();
        }
        match &self.at {
            AskTime::Newest if newest >= board.floor() => Some(Ok(newest)),
            AskTime::Newest => late(),
            AskTime::NotBefore(at) if newest >= *at => Some(Ok(newest)),
            AskTime::NotBefore(_) => late(),
            AskTime::At(at) if (readable.since..readable.upper).contains(at) => Some(Ok(*at)),
            AskTime::At(at) => Some(Err(AskError::OutOfRange {
                at: *at,
                since: readable.since,
                upper: readable.upper,
            })),
            AskTime::After(tokens) => {
                let visible = tokens.iter().try_fold(0, |latest: Time, token| {
                    let lane = (token.source, token.lane.as_str().into());
                    Some(latest.max(lanes.visible_at(&lane, token.sequence)?))
                });
                match visible {
                    Some(at) if newest >= at => Some(Ok(newest)),
                    _ => late(),
                }
            }
        }
    }

    /// The time that the question waits for, when no tick has reached it yet: a tick is wanted then, and
    /// not before the clock says so.
    pub(super) fn wants_tick_at(&self, last: Time) -> Option<Time> {
        match self.at {
            AskTime::NotBefore(at) if last < at => Some(at),
            _ => None,
        }
    }
}
