//! Partitions whose next message cannot be read yet.
//!
//! The idea: a message whose schema the registry does not give now is neither taken nor lost: its
//! partition is no longer fetched, its mark stays before the message, and after a pause it is
//! fetched again from there. So nothing blocks the other partitions, nothing is held in memory, and a
//! stop is seen as ever.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use engine::contract::SourceContext;
use engine::telemetry;

use super::{Partition, lane};
use crate::format::Wait;

/// Shortest pause: fetching anew costs the broker a request.
const PAUSE: Duration = Duration::from_millis(50);

/// What waits then, beside the partition itself.
fn schema_of(name: &str) -> String {
    format!("schema of {name}")
}

/// When each partition is fetched again.
#[derive(Default)]
pub(super) struct Waiting {
    until: BTreeMap<Partition, Instant>,
    /// Those of which people were told that they wait, until a message of theirs was taken.
    told: BTreeSet<Partition>,
}

impl Waiting {
    /// A partition waits from now on.
    pub(super) fn add(&mut self, context: &SourceContext, partition: Partition, wait: &Wait) {
        let source = &context.name;
        metrics::counter!(telemetry::SCHEMA_WAITS.name, "source" => source.clone()).increment(1);
        let name = lane::name(&partition);
        tracing::warn!(
            source,
            partition = name,
            error = %wait.error,
            "a message waits for its schema; trying again"
        );
        context.waits_for(
            schema_of(&name),
            format!("{name} waits for a schema: {}", wait.error),
        );
        self.told.insert(partition.clone());
        self.until
            .insert(partition, Instant::now() + wait.after.max(PAUSE));
    }

    /// Whether none waits, and none did since its last message.
    pub(super) fn is_idle(&self) -> bool {
        self.until.is_empty() && self.told.is_empty()
    }

    /// Whether a partition waits: what still comes of it is fetched again later.
    pub(super) fn has(&self, topic: &str, partition: i32) -> bool {
        let mut waiting = self.until.keys();
        waiting.any(|(other, number)| *number == partition && other == topic)
    }

    /// A partition waits no longer, because it is read no longer.
    pub(super) fn forget(&mut self, context: &SourceContext, partition: &Partition) {
        self.until.remove(partition);
        if self.told.remove(partition) {
            context.goes_on(schema_of(&lane::name(partition)));
        }
    }

    /// A message of a partition was taken.
    pub(super) fn taken(&mut self, context: &SourceContext, (topic, partition): (&str, i32)) {
        if !self.told.is_empty() {
            self.forget(context, &(topic.to_owned(), partition));
        }
    }

    /// Takes out the partitions whose pause is over.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Partition> {
        let due = self.until.iter().filter(|(_, until)| **until <= now);
        let due: Vec<Partition> = due.map(|(partition, _)| partition.clone()).collect();
        for partition in &due {
            self.until.remove(partition);
        }
        due
    }
}
