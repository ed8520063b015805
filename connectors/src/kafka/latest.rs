//! Where `START 'latest'` begins: the ends of all partitions at the source's first look, as one record.
//!
//! Idea: a partition that is not in the record when it is complete appeared later and is read from its
//! beginning. Each lane logs its own place too, but not at the same moment: a crash between two of them
//! must not make an old partition look like a new one, and give its whole history.
//!
//! ```text
//! first look ─▶ ends of all partitions ─▶ lane "#start" {latest: {"t/0": 7, "t/1": 4}, is_complete} ─▶ read
//! later      ─▶ "t/1" has no place yet: 4      "t/2": appeared later, its first offset
//! ```
//!
//! Limits: the brokers that do not answer at the first look are asked again; until all have, a partition
//! that appears is taken for one that was there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use engine::contract::{SinkClosed, SourceBatch, SourceContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::Client;
use super::{Partition, lane};

/// No topic has such a name.
const LANE: &str = "#start";

/// See the module.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Latest {
    /// By the partition's name: the first offset to read.
    latest: BTreeMap<String, i64>,
    /// Whether all partitions of the first look are in it.
    is_complete: bool,
}

/// Where a partition begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    At(i64),
    /// At its first offset: it appeared later.
    First,
    /// Not known yet.
    Later,
}

impl Latest {
    /// What was noted so far.
    pub(super) fn of(context: &SourceContext) -> Latest {
        let stored = context.resume.position(LANE);
        let noted = stored.and_then(|json| serde_json::from_value(json).ok());
        noted.unwrap_or_default()
    }

    /// Where a partition begins that has no place of its own yet.
    pub(super) fn place(&self, partition: &Partition) -> Place {
        match self.latest.get(&lane::name(partition)) {
            Some(offset) => Place::At(*offset),
            None if self.is_complete => Place::First,
            None => Place::Later,
        }
    }

    /// Asks for the ends of the partitions that are not noted, and notes them; `is_certain`: there are no
    /// others.
    pub(super) fn note(
        mut self,
        consumer: &BaseConsumer<Client>,
        context: &SourceContext,
        partitions: &[Partition],
        is_certain: bool,
        (answer, budget): (Duration, Duration),
    ) -> Result<Latest, SinkClosed> {
        if self.is_complete {
            return Ok(self);
        }
        let before = self.clone();
        let deadline = Instant::now() + budget;
        self.is_complete = is_certain;
        for partition in partitions {
            let name = lane::name(partition);
            if self.latest.contains_key(&name) {
                continue;
            }
            let is_late = context.is_stopping() || Instant::now() > deadline;
            let asked =
                (!is_late).then(|| consumer.fetch_watermarks(&partition.0, partition.1, answer));
            match asked {
                Some(Ok((_, high))) => drop(self.latest.insert(name, high)),
                Some(Err(error)) => {
                    self.is_complete = false;
                    tracing::warn!(source = context.name, partition = name, %error, "trying again");
                    context.waits_for(name.clone(), format!("{name}: {error}"));
                }
                None => self.is_complete = false,
            }
        }
        if self != before {
            context.sink.stage(SourceBatch {
                lane: LANE.to_owned(),
                position: Some(json!(self)),
                ..SourceBatch::default()
            })?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_begins_at_its_end_and_what_came_later_at_its_beginning() {
        let partition = |number| ("t".to_owned(), number);
        let mut noted = Latest::default();
        assert_eq!(noted.place(&partition(0)), Place::Later);
        noted.latest.insert("t/0".to_owned(), 7);
        assert_eq!(noted.place(&partition(0)), Place::At(7));
        assert_eq!(noted.place(&partition(1)), Place::Later);
        noted.is_complete = true;
        assert_eq!(noted.place(&partition(0)), Place::At(7));
        assert_eq!(noted.place(&partition(1)), Place::First);
    }
}
