//! What a consumer of committed messages sees: transactions that were aborted are left out, and nothing
//! behind one that is open is read.
//!
//! **Idea.** The broker tells with each fetch which producers aborted from which offset on; a mark in
//! the log ends each transaction (Kafka's protocol, `Fetch` version 4, `isolation_level` 1).

use super::kafka::Kafka;
use super::records::{self, Batch, Record};
use super::topics::metadata;

impl Kafka {
    /// Every committed record of a topic, by partition and offset.
    ///
    /// # Errors
    /// When there is no such topic, or the broker does not answer.
    pub fn try_committed(&self, topic: &str) -> Result<Vec<Record>, String> {
        let topics = metadata(&self.bootstrap)?.topics;
        let known = topics.iter().find(|known| known.name == topic);
        let known = known.ok_or_else(|| format!("no topic {topic}"))?;
        let mut out = Vec::new();
        for &partition in &known.partitions {
            let mut at = self.first_offset(topic, partition)?;
            loop {
                let (aborted, bytes) = self.fetch_raw(topic, partition, at, true)?;
                let batches = records::batches(partition, bytes)?;
                let Some(last) = batches.last() else { break };
                let next = last.last + 1;
                if next <= at {
                    break;
                }
                out.extend(committed(batches, aborted, at));
                at = next;
            }
        }
        Ok(out)
    }

    /// Every committed record of a topic, by partition and offset.
    ///
    /// # Panics
    /// When there is no such topic.
    pub fn committed(&self, topic: &str) -> Vec<Record> {
        self.try_committed(topic)
            .unwrap_or_else(|error| panic!("{topic}: {error}"))
    }
}

/// Leaves out what was aborted: `(producer, first offset)` each.
fn committed(batches: Vec<Batch>, mut aborted: Vec<(i64, i64)>, from: i64) -> Vec<Record> {
    aborted.sort_by_key(|(_, first)| *first);
    let mut aborted = aborted.into_iter().peekable();
    let (mut open, mut out): (Vec<i64>, Vec<Record>) = (Vec::new(), Vec::new());
    for batch in batches {
        while let Some((producer, _)) = aborted.next_if(|(_, first)| *first <= batch.last) {
            open.push(producer);
        }
        if batch.is_control {
            open.retain(|producer| *producer != batch.producer);
        } else if !(batch.is_transactional && open.contains(&batch.producer)) {
            let records = batch.records.into_iter();
            out.extend(records.filter(|record| record.offset >= from));
        }
    }
    out
}
