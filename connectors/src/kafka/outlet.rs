//! What becomes of messages behind the consumer: lanes of the source's own, or a group's.
//!
//! The idea: the reader finds partitions, fetches them and waits for schemas; where a partition stands
//! and what its messages come to is the outlet's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use ahash::AHashMap;
use engine::contract::SourceContext;
use engine::error::WorldError;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::BorrowedMessage;

use super::client::{Client, Next};
use super::lane::{self, Lane};
use super::letter_topic::LetterTopic;
use super::staging::Staging;
use super::waiting::Waiting;
use super::{Ended, KafkaSource, Partition, assignment, record};
use crate::envelope::Decoder;
use crate::format::Wait;

/// Partitions to fetch no longer, and those to fetch again.
pub(super) type Turns = (Vec<Partition>, Vec<Partition>);

/// See the module.
pub(super) trait Outlet {
    /// Reads a partition from an offset on.
    fn begin(
        &mut self,
        partition: &Partition,
        offset: i64,
        consumer: &BaseConsumer<Client>,
    ) -> Result<(), Ended>;
    /// Never reads a partition again.
    fn give_up(&mut self, partition: &Partition) -> Result<(), Ended>;
    /// The next message to fetch of a partition that is read.
    fn next(&self, partition: &Partition) -> Option<i64>;
    /// A partition was read to its end; told where transactions are waited for.
    fn reached_end(&mut self, _partition: i32) -> Result<(), Ended> {
        Ok(())
    }
    /// Partitions with these numbers were read to their ends, and what was taken was given on.
    fn pass(
        &mut self,
        _ended: &BTreeSet<i32>,
        _consumer: &BaseConsumer<Client>,
        _waiting: &Waiting,
    ) -> Result<(), Ended> {
        Ok(())
    }
    /// Partitions to fetch anew, so that their ends are told again.
    fn to_fetch_anew(&mut self) -> Vec<Partition> {
        Vec::new()
    }
    /// The partitions that are looked for were found, also if none of them can be read.
    fn found_all(&mut self) -> Result<(), Ended> {
        Ok(())
    }
    /// Takes a message; one of a partition that is not read, or not now, is dropped.
    ///
    /// Errors: its schema could not be had. Nothing is taken.
    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<(), Wait>;
    /// Whether there is something to stage although no message came.
    fn has_work(&self) -> bool {
        false
    }
    /// Gives on what was taken.
    fn stage(&mut self, consumer: &BaseConsumer<Client>) -> Result<(), Ended>;
    /// What changed since the last call in what is to be fetched; whatever is fetched again goes on at
    /// [`Outlet::next`].
    fn turns(&mut self) -> Turns {
        Turns::default()
    }
    /// Whether a partition is not to be fetched now.
    fn is_paused(&self, _partition: &Partition) -> bool {
        false
    }
    /// Returns when everything that was given on is staged.
    fn settle(&mut self) -> Result<(), Ended> {
        Ok(())
    }
    /// What follows the messages that are logged, or on their way.
    fn logged(&self) -> Vec<(Partition, i64)>;
    /// Goes on with letters for other programs.
    fn pump(&mut self) -> Result<(), Ended> {
        Ok(())
    }
    /// The source stops.
    fn finish(&mut self) {}
}

/// Lanes of a source that stages by itself.
pub(super) struct Own<'a> {
    source: &'a KafkaSource,
    context: &'a SourceContext,
    next: Next,
    lanes: Vec<(Decoder, Lane)>,
    /// By the engine's name: which of them.
    names: BTreeMap<String, usize>,
    /// Topic, partition: which of them.
    places: AHashMap<String, AHashMap<i32, usize>>,
    letters: Option<LetterTopic>,
    staging: Staging,
}

impl<'a> Own<'a> {
    /// Errors: settings of the topic of dead letters that librdkafka refuses; no thread.
    pub(super) fn new(
        source: &'a KafkaSource,
        context: &'a SourceContext,
        next: Next,
    ) -> Result<Own<'a>, WorldError> {
        Ok(Own {
            source,
            context,
            next,
            lanes: Vec::new(),
            names: BTreeMap::new(),
            places: AHashMap::new(),
            letters: LetterTopic::new(&source.options, context)?,
            staging: Staging::new(context)?,
        })
    }

    /// The place of a partition's lane, which is made if need be.
    fn lane(&mut self, partition: &Partition) -> Result<usize, Ended> {
        let name = lane::lane_of(partition, self.source.envelope);
        if let Some(at) = self.names.get(&name) {
            return Ok(*at);
        }
        let source = self.source;
        let lane = Lane::new(self.context, name.clone(), &source.schema, source.envelope);
        self.lanes
            .push((source.decoder(), lane.map_err(Ended::Failed)?));
        let at = self.lanes.len() - 1;
        self.names.insert(name, at);
        Ok(at)
    }

    fn place(&self, topic: &str, partition: i32) -> Option<usize> {
        self.places.get(topic)?.get(&partition).copied()
    }
}

impl Outlet for Own<'_> {
    fn begin(
        &mut self,
        partition: &Partition,
        offset: i64,
        _consumer: &BaseConsumer<Client>,
    ) -> Result<(), Ended> {
        let at = self.lane(partition)?;
        self.lanes[at].1.begin(partition.1, offset);
        let places = self.places.entry(partition.0.clone()).or_default();
        places.insert(partition.1, at);
        Ok(())
    }

    fn give_up(&mut self, partition: &Partition) -> Result<(), Ended> {
        if let Some(places) = self.places.get_mut(&partition.0) {
            places.remove(&partition.1);
        }
        let at = self.lane(partition)?;
        self.lanes[at].1.give_up(partition.1);
        Ok(())
    }

    fn next(&self, partition: &Partition) -> Option<i64> {
        let (_, lane) = &self.lanes[self.place(&partition.0, partition.1)?];
        lane.next(partition.1)
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<(), Wait> {
        record::with_raw(message, |record| {
            let Some(at) = self.place(record.topic, record.partition) else {
                return Ok(());
            };
            let (decoder, lane) = &mut self.lanes[at];
            let letters = self.letters.as_mut();
            let decoded = decoder.decode(record)?;
            lane.take(decoded, record, letters);
            Ok(())
        })
    }

    fn pass(
        &mut self,
        ended: &BTreeSet<i32>,
        consumer: &BaseConsumer<Client>,
        waiting: &Waiting,
    ) -> Result<(), Ended> {
        // librdkafka does not say of which topic the partition is; where it stands is true of each.
        let Ok(positions) = consumer.position() else {
            return Ok(());
        };
        self.settle()?;
        let mut is_news = false;
        for position in positions.elements() {
            let (topic, partition) = (position.topic(), position.partition());
            // Of one that waits, messages were read and dropped.
            let is_read = ended.contains(&partition) && !waiting.has(topic, partition);
            if let Some(at) = self.place(topic, partition).filter(|_| is_read)
                && let Offset::Offset(offset) = position.offset()
            {
                is_news |= self.lanes[at].1.pass(partition, offset, self.context);
            }
        }
        match is_news {
            true => self.stage(consumer),
            false => Ok(()),
        }
    }

    fn has_work(&self) -> bool {
        self.lanes.iter().any(|(_, lane)| lane.wants_ends())
    }

    fn stage(&mut self, consumer: &BaseConsumer<Client>) -> Result<(), Ended> {
        for (_, lane) in &mut self.lanes {
            if lane.wants_ends() {
                match assignment::ends(consumer, lane) {
                    Ok(ends) => lane.sweep_at(ends),
                    Err(error) => {
                        tracing::warn!(source = self.context.name, %error, "asking for the ends");
                    }
                }
            }
            if let Some(batch) = lane.batch() {
                self.staging.stage(batch)?;
                lane.is_leaving();
            }
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            for (partition, offset) in lane.reading() {
                next.insert((lane.topic().to_owned(), partition), offset);
            }
        }
        Ok(())
    }

    fn logged(&self) -> Vec<(Partition, i64)> {
        let lanes = self.lanes.iter();
        let all = lanes.flat_map(|(_, lane)| {
            let topic = lane.topic();
            let reading = lane.reading();
            reading.map(move |(partition, next)| ((topic.to_owned(), partition), next))
        });
        all.collect()
    }

    fn pump(&mut self) -> Result<(), Ended> {
        match &mut self.letters {
            Some(letters) => Ok(letters.pump(self.context)?),
            None => Ok(()),
        }
    }

    fn settle(&mut self) -> Result<(), Ended> {
        self.staging.settle()?;
        self.lanes.iter_mut().for_each(|(_, lane)| lane.settled());
        Ok(())
    }

    fn finish(&mut self) {
        // A sink that is closed takes nothing more.
        let _ = self.staging.settle();
        if let Some(letters) = &mut self.letters {
            letters.finish(self.context);
        }
    }
}
