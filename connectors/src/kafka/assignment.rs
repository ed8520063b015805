//! Which partitions there are, where each begins, and whether its log still has what we need.
//!
//! A position that the log of a partition no longer covers means lost messages (retention passed
//! us) or another log of the same name (the topic was deleted and made again). Neither is guessed
//! around: the partition stops, with a dead letter that says what happened.
//!
//! Limits: a topic that was made again and already holds more messages than were read from the old
//! one cannot be told from it: the protocol that librdkafka speaks to us has no topic ids.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::{Duration, Instant};

use engine::contract::{SinkClosed, SourceContext};
use engine::error::{DataError, WorldError};
use engine::telemetry;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use regex::Regex;

use super::client::Client;
use super::lane::Lane;
use super::latest::{Latest, Place};
use super::readers::Share;
use super::{KafkaOptions, KafkaSource, Partition, Start, lane};
use crate::envelope::Envelope;

/// Longest time of one look for new partitions; what is left comes with the next look.
const BUDGET: Duration = Duration::from_millis(500);
/// Longest wait for an answer of the brokers: a stop must be seen within about a second.
const ANSWER: Duration = Duration::from_secs(1);

/// Where letters about partitions go: no lane of messages, whose positions they must not touch.
pub(super) const STOPPED_LANE: &str = "";

/// Which topics are read.
pub(super) enum Topics {
    One(String),
    Matching(Regex),
}

impl Topics {
    /// Errors: a pattern that is no regular expression.
    pub(super) fn new(options: &KafkaOptions) -> Result<Topics, WorldError> {
        if !options.is_pattern {
            return Ok(Topics::One(options.topic.clone()));
        }
        let pattern = Regex::new(&format!("^(?:{})$", options.topic));
        pattern
            .map(Topics::Matching)
            .map_err(|error| WorldError::Service {
                service: format!("Kafka at {}", options.brokers),
                detail: format!(
                    "TOPIC PATTERN '{}' is no regular expression: {error}",
                    options.topic
                ),
                is_transient: false,
            })
    }

    /// Whether a topic of this name is read.
    pub(super) fn has(&self, topic: &str) -> bool {
        match self {
            Topics::One(name) => name == topic,
            Topics::Matching(pattern) => !topic.starts_with("__") && pattern.is_match(topic),
        }
    }

    fn list(&self, consumer: &BaseConsumer<Client>) -> KafkaResult<Listing> {
        let only = match self {
            Topics::One(topic) => Some(&**topic),
            Topics::Matching(_) => None,
        };
        let metadata = consumer.fetch_metadata(only, ANSWER)?;
        let mut listing = Listing {
            partitions: Vec::new(),
            is_certain: true,
        };
        for topic in metadata.topics() {
            if !self.has(topic.name()) {
                continue;
            }
            match topic.error().map(RDKafkaErrorCode::from) {
                None => {
                    let ids = topic.partitions().iter().map(|partition| partition.id());
                    let all = ids.map(|id| (topic.name().to_owned(), id));
                    listing.partitions.extend(all);
                }
                Some(RDKafkaErrorCode::UnknownTopicOrPartition) => {}
                // No leader, a broker that starts: it is there, and cannot say what it has.
                Some(_) => listing.is_certain = false,
            }
        }
        Ok(listing)
    }
}

/// What the brokers' metadata has.
struct Listing {
    partitions: Vec<Partition>,
    /// Whether what is not listed is not there.
    is_certain: bool,
}

/// A partition that is no longer read.
pub(super) struct Stopped {
    pub(super) partition: Partition,
    error: DataError,
    offset: i64,
}

impl Stopped {
    /// Says it where people look: the log, a metric, a dead letter.
    pub(super) fn tell(self, context: &SourceContext) -> Result<(), SinkClosed> {
        let name = lane::name(&self.partition);
        tracing::error!(source = context.name, partition = name, error = %self.error, "stopped");
        metrics::counter!(telemetry::KAFKA_STOPPED.name, "source" => context.name.clone())
            .increment(1);
        let position = lane::position(&self.partition, self.offset);
        context.dead_letter(STOPPED_LANE, position, self.error, Vec::new())
    }
}

/// What a look at the brokers found.
#[derive(Default)]
pub(super) struct Found {
    /// New partitions with the offset to begin at.
    pub(super) begun: Vec<(Partition, i64)>,
    /// Partitions that can no longer be read.
    pub(super) stopped: Vec<Stopped>,
    /// Partitions to fetch again from where they stand: librdkafka gave up on some, and does not say
    /// which.
    pub(super) again: Vec<(Partition, i64)>,
    /// Whether all partitions were looked at.
    pub(super) is_complete: bool,
    /// The first reader's share, as soon as it is known: others are to read theirs.
    pub(super) shared: Option<Share>,
}

/// Whether and where a partition begins.
enum Begin {
    At(i64),
    /// It was given up in an earlier run.
    Never,
    /// It is not known yet.
    Later,
    Stop(Stopped),
}

/// The partitions of a source.
pub(super) struct Assignment {
    topics: Topics,
    envelope: Envelope,
    start: Start,
    /// Readers, at most.
    readers: usize,
    /// Which lanes are read here; `None` until the first look.
    share: Option<Share>,
    /// Whether a partition is read; false for one that was stopped.
    known: BTreeMap<Partition, bool>,
    is_doubted: bool,
    was_missing: bool,
}

impl Assignment {
    pub(super) fn new(source: &KafkaSource, share: Option<Share>) -> Result<Self, WorldError> {
        Ok(Assignment {
            envelope: source.envelope,
            topics: Topics::new(&source.options)?,
            start: source.options.start.clone(),
            readers: source.readers(),
            share,
            known: BTreeMap::new(),
            is_doubted: false,
            was_missing: false,
        })
    }

    /// Whether there is a partition to read.
    pub(super) fn reads_any(&self) -> bool {
        self.known.values().any(|is_read| *is_read)
    }

    /// Whether there is a partition, read or given up.
    pub(super) fn knows_any(&self) -> bool {
        !self.known.is_empty()
    }

    /// The next look checks the partitions that are read, too.
    pub(super) fn doubt(&mut self) {
        self.is_doubted = true;
    }

    /// Looks for new partitions, and, when in doubt, at old ones; `next` tells where those stand.
    pub(super) fn discover(
        &mut self,
        consumer: &BaseConsumer<Client>,
        context: &SourceContext,
        next: &dyn Fn(&Partition) -> Option<i64>,
    ) -> KafkaResult<Found> {
        let mut found = Found {
            is_complete: true,
            ..Found::default()
        };
        let deadline = Instant::now() + BUDGET;
        let mut listing = self.topics.list(consumer)?;
        if listing.partitions.is_empty() != self.was_missing {
            self.was_missing = listing.partitions.is_empty();
            if self.was_missing {
                tracing::warn!(source = context.name, "no such topic yet; waiting for it");
                self.waits_for(context, "topic", "no such topic yet");
            } else {
                self.goes_on(context, "topic");
            }
        }
        // The source stops.
        let Ok(latest) = self.latest(consumer, context, &listing) else {
            return Ok(Found::default());
        };
        found.shared = self.share_out(&listing);
        if let Some(share) = self.share {
            let envelope = self.envelope;
            listing.partitions.retain(|one| share.has(one, envelope));
        }
        if self.is_doubted {
            self.recheck(consumer, &listing, next, &mut found)?;
            self.is_doubted = false;
        }
        for partition in listing.partitions {
            if self.known.contains_key(&partition) {
                continue;
            }
            // Other partitions must not wait long for one whose broker does not answer.
            if context.is_stopping() || Instant::now() > deadline {
                found.is_complete = false;
                break;
            }
            // What was found before an error counts; the rest is tried again.
            match self.begin(consumer, context, &latest, &partition) {
                Ok(Begin::At(offset)) => {
                    self.known.insert(partition.clone(), true);
                    context.goes_on(lane::name(&partition));
                    found.begun.push((partition, offset));
                }
                Ok(Begin::Later) => found.is_complete = false,
                Ok(Begin::Never) => {
                    let name = lane::name(&partition);
                    tracing::warn!(
                        source = context.name,
                        partition = name,
                        "was given up before; its dead letter says why"
                    );
                    self.known.insert(partition, false);
                }
                Ok(Begin::Stop(stopped)) => {
                    self.known.insert(partition, false);
                    found.stopped.push(stopped);
                }
                Err(error) => {
                    found.is_complete = false;
                    let partition = lane::name(&partition);
                    tracing::warn!(source = context.name, partition, %error, "trying again");
                    context.waits_for(partition.clone(), format!("{partition}: {error}"));
                }
            }
        }
        Ok(found)
    }

    /// What `START 'latest'` noted; the reader that speaks for all notes what is missing.
    fn latest(
        &self,
        consumer: &BaseConsumer<Client>,
        context: &SourceContext,
        listing: &Listing,
    ) -> Result<Latest, SinkClosed> {
        if !matches!(self.start, Start::Latest) {
            return Ok(Latest::default());
        }
        let noted = Latest::of(context);
        if !self.is_speaker() {
            return Ok(noted);
        }
        let (partitions, limits) = (&listing.partitions, (ANSWER, BUDGET));
        noted.note(consumer, context, partitions, listing.is_certain, limits)
    }

    /// Decides how many readers there are, once there is something to read; the share that is this
    /// one's if there are others.
    fn share_out(&mut self, listing: &Listing) -> Option<Share> {
        if self.share.is_some() || listing.partitions.is_empty() {
            return None;
        }
        let partitions = listing.partitions.iter();
        let lanes = partitions.map(|partition| lane::lane_of(partition, self.envelope));
        let lanes = lanes.collect::<BTreeSet<String>>().len();
        let share = Share {
            index: 0,
            of: self.readers.min(lanes),
        };
        self.share = Some(share);
        (share.of > 1).then_some(share)
    }

    /// Whether this is the reader that speaks for all of them.
    fn is_speaker(&self) -> bool {
        self.share.is_none_or(|share| share.index == 0)
    }

    /// Tells people what all readers wait for.
    pub(super) fn waits_for(
        &self,
        context: &SourceContext,
        what: &'static str,
        reason: impl Display,
    ) {
        if self.is_speaker() {
            context.waits_for(what, reason);
        }
    }

    /// What all readers waited for is there.
    pub(super) fn goes_on(&self, context: &SourceContext, what: &'static str) {
        if self.is_speaker() {
            context.goes_on(what);
        }
    }

    /// Looks at every partition that is read, and gives up those whose log is not what it was.
    fn recheck(
        &mut self,
        consumer: &BaseConsumer<Client>,
        listing: &Listing,
        next: &dyn Fn(&Partition) -> Option<i64>,
        found: &mut Found,
    ) -> KafkaResult<()> {
        let read = self.known.iter().filter(|(_, is_read)| **is_read);
        for (partition, _) in read {
            let Some(offset) = next(partition) else {
                continue;
            };
            let stopped = if listing.partitions.contains(partition) {
                check(consumer, partition, offset)?
            } else if listing.is_certain {
                Some(gone(partition, offset))
            } else {
                None
            };
            match stopped {
                Some(stopped) => found.stopped.push(stopped),
                None => found.again.push((partition.clone(), offset)),
            }
        }
        for Stopped { partition, .. } in &found.stopped {
            self.known.insert(partition.clone(), false);
        }
        Ok(())
    }

    /// Where a partition begins, or why it is not read.
    fn begin(
        &self,
        consumer: &BaseConsumer<Client>,
        context: &SourceContext,
        latest: &Latest,
        partition: &Partition,
    ) -> KafkaResult<Begin> {
        let stored = context
            .resume
            .position(&lane::lane_of(partition, self.envelope))
            .unwrap_or_default();
        if lane::is_given_up(&stored, partition) {
            return Ok(Begin::Never);
        }
        match lane::stored_offset(&stored, partition) {
            Some(offset) => Ok(match check(consumer, partition, offset)? {
                None => Begin::At(offset),
                Some(stopped) => Begin::Stop(stopped),
            }),
            None => self.first(consumer, context, latest, partition),
        }
    }

    /// Where a partition begins that the log does not know.
    fn first(
        &self,
        consumer: &BaseConsumer<Client>,
        context: &SourceContext,
        latest: &Latest,
        partition: &Partition,
    ) -> KafkaResult<Begin> {
        if matches!(self.start, Start::Latest) {
            match latest.place(partition) {
                Place::At(offset) => return Ok(Begin::At(offset)),
                Place::Later => return Ok(Begin::Later),
                Place::First => {}
            }
        }
        let (low, high) = consumer.fetch_watermarks(&partition.0, partition.1, ANSWER)?;
        let offset = match &self.start {
            // A partition that appears later holds nothing older than the source.
            Start::Earliest | Start::Latest => low,
            Start::Offsets(offsets) => {
                let wanted = offsets.get(&partition.1).copied().unwrap_or(low);
                if !(low..=high).contains(&wanted) {
                    let partition = lane::name(partition);
                    tracing::warn!(
                        source = context.name,
                        partition,
                        wanted,
                        low,
                        high,
                        "the log does not have the offset of START; reading from the nearest"
                    );
                }
                wanted.clamp(low, high)
            }
            Start::Timestamp(millis) => {
                let mut times = TopicPartitionList::new();
                let (topic, number) = (&partition.0, partition.1);
                times.add_partition_offset(topic, number, Offset::Offset(*millis))?;
                let offsets = consumer.offsets_for_times(times, ANSWER)?;
                match offsets.find_partition(topic, number).map(|e| e.offset()) {
                    Some(Offset::Offset(offset)) => offset,
                    _ => high,
                }
            }
        };
        Ok(Begin::At(offset))
    }
}

fn gone(partition: &Partition, offset: i64) -> Stopped {
    let detail = format!(
        "{} is gone; it was read up to offset {offset}",
        lane::name(partition)
    );
    Stopped {
        partition: partition.clone(),
        error: DataError::new("partition-gone", detail)
            .hint("its rows stay; drop the source and create it again when the topic is back"),
        offset,
    }
}

/// Where the partitions that a lane reads end now.
pub(super) fn ends(
    consumer: &BaseConsumer<Client>,
    lane: &Lane,
) -> KafkaResult<BTreeMap<i32, i64>> {
    let mut ends = BTreeMap::new();
    for (partition, _) in lane.reading() {
        let (_, high) = consumer.fetch_watermarks(lane.topic(), partition, ANSWER)?;
        ends.insert(partition, high);
    }
    Ok(ends)
}

/// Why a partition's log has not what follows a position, if so.
fn check(
    consumer: &BaseConsumer<Client>,
    partition: &Partition,
    offset: i64,
) -> KafkaResult<Option<Stopped>> {
    let (low, high) = consumer.fetch_watermarks(&partition.0, partition.1, ANSWER)?;
    let name = lane::name(partition);
    let error = if offset > high {
        let detail = format!("{name} ends at offset {high}; it was read up to {offset} before");
        DataError::new("offset-moved-back", detail)
            .expected(format!("a log that reaches {offset}"))
            .hint(
                "the topic was made again or its log was cut: drop the source and create it again, \
                 its rows come from the new log",
            )
    } else if offset < low {
        let detail = format!(
            "{name} begins at offset {low}; offsets {offset} to {} were deleted unread",
            low - 1
        );
        DataError::new("offset-expired", detail)
            .expected(format!("a log that still has offset {offset}"))
            .hint("raise the topic's retention; drop the source and create it again")
    } else {
        return Ok(None);
    };
    Ok(Some(Stopped {
        partition: partition.clone(),
        error,
        offset,
    }))
}
