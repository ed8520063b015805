//! Topics and records of a broker, over Kafka's own protocol ([`super::wire`]).
//!
//! **Idea.** Each call is a request of a few hundred bytes on a connection of its own; waiting for
//! what the broker does later (leaders, deletion) is part of the call.
//!
//! **Limits.** Reading takes what is there, aborted transactions as well, and is meant for thousands
//! of records, not millions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::kafka::Kafka;
use super::records::{self, Pair, Record};
use super::wait_for;
use super::wire::{Connection, In, Out, api, length};

const TOPIC_LIMIT: Duration = Duration::from_secs(120);
const RECORDS_LIMIT: Duration = Duration::from_secs(180);
/// Times that stand for the ends of a partition.
const FIRST: i64 = -2;
const END: i64 = -1;
/// Milliseconds that the broker may take for a request.
const REQUEST_LIMIT: i32 = 20_000;
const TOPIC_EXISTS: i16 = 36;
const TOPIC_UNKNOWN: i16 = 3;
/// A broker that has just started does not know yet what it leads. Nothing was done.
const NOT_LEADER: i16 = 6;

/// One topic, as the broker tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    pub name: String,
    pub partitions: Vec<i32>,
    /// The broker that leads each of them; -1 for none.
    pub leaders: Vec<i32>,
}

/// What a broker tells its clients.
pub struct Metadata {
    /// Addresses by number.
    pub brokers: BTreeMap<i32, String>,
    /// All topics but Kafka's own.
    pub topics: Vec<Topic>,
}

impl Topic {
    /// The broker that leads a partition.
    pub fn leader(&self, partition: i32) -> Option<i32> {
        let at = self
            .partitions
            .iter()
            .position(|known| *known == partition)?;
        Some(self.leaders[at]).filter(|leader| *leader >= 0)
    }
}

impl Kafka {
    /// Creates a topic and waits until every partition has its leader.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        let mut body = Out::default();
        body.i32(1).text(name).i32(partitions).i16(1).i32(0);
        self.create(name, body, configs);
        self.wait_topic(name, usize::try_from(partitions).unwrap_or_default());
    }

    /// The same with the brokers of each partition, its leader first.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn create_topic_on(&self, name: &str, brokers: &[&[i32]], configs: &[(&str, &str)]) {
        let mut body = Out::default();
        body.i32(1).text(name).i32(-1).i16(-1);
        body.i32(length(brokers.len()));
        for (partition, brokers) in (0..).zip(brokers) {
            body.i32(partition).i32(length(brokers.len()));
            for &broker in *brokers {
                body.i32(broker);
            }
        }
        self.create(name, body, configs);
        self.wait_topic(name, brokers.len());
    }

    fn create(&self, name: &str, mut body: Out, configs: &[(&str, &str)]) {
        body.i32(length(configs.len()));
        for (key, value) in configs {
            body.text(key).text(value);
        }
        body.i32(REQUEST_LIMIT).i8(0);
        let done = self
            .call(api::CREATE_TOPICS, 4, &body)
            .and_then(|mut answer| {
                answer.i32()?;
                answer.list(|topic| Ok((topic.text()?, topic.i16()?, topic.text()?)))
            });
        for (_, error, message) in ok(&format!("topic {name}"), done) {
            // A retry after a broken connection finds its own work done.
            let is_there = error == 0 || error == TOPIC_EXISTS;
            assert!(is_there, "{name}: {error} {message}");
        }
    }

    /// Deletes a topic and waits until it is gone.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn delete_topic(&self, name: &str) {
        let mut body = Out::default();
        body.i32(1).text(name).i32(REQUEST_LIMIT);
        let done = self
            .call(api::DELETE_TOPICS, 3, &body)
            .and_then(|mut answer| {
                answer.i32()?;
                answer.list(|topic| Ok((topic.text()?, topic.i16()?)))
            });
        for (_, error) in ok(&format!("topic {name}"), done) {
            assert!(error == 0 || error == TOPIC_UNKNOWN, "{name}: {error}");
        }
        wait_for(&format!("topic {name} gone"), TOPIC_LIMIT, || {
            self.topics()
                .iter()
                .all(|topic| topic.name != name)
                .then_some(())
        });
    }

    /// Gives a topic more partitions.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn set_partitions(&self, name: &str, count: i32) {
        let mut body = Out::default();
        body.i32(1).text(name).i32(count).i32(-1);
        body.i32(REQUEST_LIMIT).i8(0);
        let done = self
            .call(api::CREATE_PARTITIONS, 1, &body)
            .and_then(|mut answer| {
                answer.i32()?;
                answer.list(|topic| Ok((topic.text()?, topic.i16()?, topic.text()?)))
            });
        for (_, error, message) in ok(&format!("topic {name}"), done) {
            assert!(error == 0, "{name}: {error} {message}");
        }
        self.wait_topic(name, usize::try_from(count).unwrap_or_default());
    }

    /// Sets an option of a topic.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn set_config(&self, name: &str, option: &str, value: &str) {
        let (topic, set) = (2, 0);
        let mut body = Out::default();
        body.i32(1).i8(topic).text(name).i32(1);
        body.text(option).i8(set).text(value).i8(0);
        let done = self
            .call(api::INCREMENTAL_ALTER_CONFIGS, 0, &body)
            .and_then(|mut answer| {
                answer.i32()?;
                answer.list(|one| Ok((one.i16()?, one.text()?, one.i8()?, one.text()?)))
            });
        for (error, message, ..) in ok(&format!("topic {name}"), done) {
            assert!(error == 0, "{name}: {error} {message}");
        }
    }

    /// Deletes the records of a partition before an offset, as retention would.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn delete_records(&self, name: &str, partition: i32, before: i64) {
        let mut body = Out::default();
        body.i32(1).text(name).i32(1).i32(partition).i64(before);
        body.i32(REQUEST_LIMIT);
        let done = self
            .lead(name, partition, api::DELETE_RECORDS, 1, &body)
            .and_then(|mut answer| {
                answer.i32()?;
                answer.list(|topic| {
                    topic.text()?;
                    topic.list(|part| Ok((part.i32()?, part.i64()?, part.i16()?)))
                })
            });
        for (part, _, error) in ok(&format!("records of {name}"), done).concat() {
            assert!(error == 0, "{name}/{part}: {error}");
        }
    }

    /// All topics but Kafka's own.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub fn topics(&self) -> Vec<Topic> {
        ok("topics", metadata(&self.bootstrap)).topics
    }

    /// Appends records (key, value) to one partition and gives the first one's offset.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn produce(&self, topic: &str, partition: i32, records: &[Pair]) -> i64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_millis());
        let batch = records::encode(records, i64::try_from(now).unwrap_or_default());
        let mut body = Out::default();
        body.i16(-1).i16(-1).i32(REQUEST_LIMIT);
        body.i32(1).text(topic).i32(1).i32(partition).bytes(&batch);
        let produced = || {
            let mut answer = self.lead(topic, partition, api::PRODUCE, 3, &body)?;
            answer.list(|topic| {
                topic.text()?;
                topic.list(|part| Ok((part.i32()?, part.i16()?, part.i64()?, part.i64()?)))
            })
        };
        let (_, error, offset, _) = when_led(|| {
            let parts = ok(topic, produced());
            (parts[0][0].1, parts[0][0])
        });
        assert!(error == 0, "{topic}/{partition}: error {error}");
        offset
    }

    /// First and end offset of a partition.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub fn offsets(&self, topic: &str, partition: i32) -> (i64, i64) {
        let at = |when| {
            ok(
                &format!("{topic}/{partition}"),
                self.offset(topic, partition, when),
            )
        };
        (at(FIRST), at(END))
    }

    /// Every record that a topic holds now, by partition and offset.
    ///
    /// # Panics
    /// When there is no such topic.
    pub fn records(&self, topic: &str) -> Vec<Record> {
        ok("reading", self.try_records(topic))
    }

    /// Every record that a topic holds now, by partition and offset.
    ///
    /// # Errors
    /// When there is no such topic, or the broker does not answer.
    pub fn try_records(&self, topic: &str) -> Result<Vec<Record>, String> {
        let topics = metadata(&self.bootstrap)?.topics;
        let known = topics.iter().find(|known| known.name == topic);
        let known = known.ok_or_else(|| {
            let names: Vec<&str> = topics.iter().map(|known| known.name.as_str()).collect();
            format!("no topic {topic}; there are {names:?}")
        })?;
        let mut out = Vec::new();
        for &partition in &known.partitions {
            let mut at = self.offset(topic, partition, FIRST)?;
            let end = self.offset(topic, partition, END)?;
            while at < end {
                let part = self.fetch(topic, partition, at)?;
                // Control records have offsets, too: an empty answer ends the partition.
                let Some(last) = part.last() else { break };
                at = last.offset + 1;
                out.extend(part);
            }
        }
        Ok(out)
    }

    /// Waits until a topic holds at least `count` records and gives them.
    ///
    /// # Panics
    /// After a minute, with what there is.
    pub fn wait_records(&self, topic: &str, count: usize) -> Vec<Record> {
        let deadline = Instant::now() + RECORDS_LIMIT;
        loop {
            let found = self.try_records(topic);
            match found {
                Ok(records) if records.len() >= count => return records,
                _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(30)),
                Ok(records) => panic!("{} of {count} records in {topic}", records.len()),
                Err(error) => panic!("{count} records in {topic}: {error}"),
            }
        }
    }

    fn fetch(&self, topic: &str, partition: i32, at: i64) -> Result<Vec<Record>, String> {
        let (_, bytes) = self.fetch_raw(topic, partition, at, false)?;
        // A batch is sent whole: it may begin before the offset that was asked for.
        let read = records::decode(partition, bytes)?;
        Ok(read
            .into_iter()
            .filter(|record| record.offset >= at)
            .collect())
    }

    /// The first offset that a partition has.
    pub(super) fn first_offset(&self, topic: &str, partition: i32) -> Result<i64, String> {
        self.offset(topic, partition, FIRST)
    }

    /// Transactions that were aborted (producer, first offset), and batches as they lie in the log.
    pub(super) fn fetch_raw(
        &self,
        topic: &str,
        partition: i32,
        at: i64,
        is_committed: bool,
    ) -> Result<(Vec<(i64, i64)>, Vec<u8>), String> {
        let mut body = Out::default();
        let bytes = 16 << 20;
        body.i32(-1).i32(100).i32(1).i32(bytes);
        body.i8(i8::from(is_committed));
        body.i32(1).text(topic).i32(1).i32(partition);
        body.i64(at).i32(bytes);
        let mut answer = self.lead(topic, partition, api::FETCH, 4, &body)?;
        answer.i32()?;
        let parts = answer.list(|topic| {
            topic.text()?;
            topic.list(|part| {
                let head = (part.i32()?, part.i16()?);
                part.raw(16)?;
                let aborted = part.list(|aborted| Ok((aborted.i64()?, aborted.i64()?)))?;
                Ok((head, aborted, part.bytes()?))
            })
        })?;
        match parts.into_iter().flatten().next() {
            Some(((_, 0), aborted, bytes)) => Ok((aborted, bytes)),
            Some(((part, error), ..)) => Err(format!("{topic}/{part}: error {error}")),
            None => Err(format!("{topic}/{partition}: no answer")),
        }
    }

    fn wait_topic(&self, name: &str, partitions: usize) {
        wait_for(&format!("topic {name}"), TOPIC_LIMIT, || {
            let topics = self.topics();
            let topic = topics.iter().find(|topic| topic.name == name)?;
            // Known is not yet served: every partition has to answer.
            let is_served = |partition: &i32| self.offset(name, *partition, END).is_ok();
            let is_ready = topic.partitions.len() >= partitions;
            (is_ready && topic.partitions.iter().all(is_served)).then_some(())
        });
    }

    /// The offset at a time, or [`FIRST`] or [`END`].
    fn offset(&self, topic: &str, partition: i32, when: i64) -> Result<i64, String> {
        let mut body = Out::default();
        body.i32(-1).i32(1).text(topic);
        body.i32(1).i32(partition).i64(when);
        let found = when_led(|| {
            let parts = self
                .lead(topic, partition, api::LIST_OFFSETS, 1, &body)
                .and_then(|mut answer| {
                    answer.list(|topic| {
                        topic.text()?;
                        topic.list(|part| Ok((part.i32()?, part.i16()?, part.i64()?, part.i64()?)))
                    })
                });
            let parts = parts.map(|parts| parts.concat());
            let error = parts.as_ref().ok().and_then(|parts| parts.first());
            (error.map_or(0, |part| part.1), parts)
        })?;
        match found[..] {
            [(_, 0, _, offset)] => Ok(offset),
            ref other => Err(format!("error {other:?}")),
        }
    }

    /// Asks the leader of a partition.
    fn lead(
        &self,
        topic: &str,
        partition: i32,
        key: i16,
        version: i16,
        body: &Out,
    ) -> Result<In, String> {
        let known = metadata(&self.bootstrap)?;
        let found = known.topics.iter().find(|known| known.name == topic);
        let leader = found.and_then(|topic| topic.leader(partition));
        let address = leader.and_then(|leader| known.brokers.get(&leader));
        let address = address.ok_or_else(|| format!("{topic}/{partition} has no leader"))?;
        Connection::open(address)?.call(key, version, body)
    }

    fn call(&self, key: i16, version: i16, body: &Out) -> Result<In, String> {
        Connection::open(&self.bootstrap)?.call(key, version, body)
    }
}

/// Asks, and again while the broker does not know that it leads: (error, answer) of each time.
fn when_led<T>(mut ask: impl FnMut() -> (i16, T)) -> T {
    let deadline = Instant::now() + TOPIC_LIMIT;
    loop {
        let (error, answer) = ask();
        if error != NOT_LEADER || Instant::now() > deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What there is; an error until a broker is there to lead.
///
/// # Errors
/// When the broker does not answer.
pub fn metadata(bootstrap: &str) -> Result<Metadata, String> {
    let mut body = Out::default();
    body.i32(-1).i8(0);
    let mut answer = Connection::open(bootstrap)?.call(api::METADATA, 4, &body)?;
    answer.i32()?;
    let brokers = answer.list(|broker| {
        let (id, host, port) = (broker.i32()?, broker.text()?, broker.i32()?);
        broker.text()?;
        Ok((id, format!("{host}:{port}")))
    })?;
    if brokers.is_empty() {
        return Err("no broker yet".to_owned());
    }
    answer.text()?;
    answer.i32()?;
    let topics = answer.list(|topic| {
        topic.i16()?;
        let (name, is_internal) = (topic.text()?, topic.i8()? != 0);
        let mut parts = topic.list(|part| {
            part.i16()?;
            let head = (part.i32()?, part.i32()?);
            part.list(In::i32)?;
            part.list(In::i32)?;
            Ok(head)
        })?;
        parts.sort_unstable();
        let (partitions, leaders) = parts.into_iter().unzip();
        let topic = Topic {
            name,
            partitions,
            leaders,
        };
        Ok((!is_internal).then_some(topic))
    })?;
    Ok(Metadata {
        brokers: brokers.into_iter().collect(),
        topics: topics.into_iter().flatten().collect(),
    })
}

fn ok<T>(what: &str, result: Result<T, String>) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error}"))
}
