//! A source's reader and its group: messages there, wishes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use engine::contract::SourceContext;
use engine::error::WorldError;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::BorrowedMessage;

use super::assembly::Place;
use super::group::{Board, Held, Wishes};
use super::hub::Command;
use crate::envelope::Decoder;
use crate::format::Wait;
use crate::kafka::client::{Client, Next};
use crate::kafka::outlet::{Outlet, Turns};
use crate::kafka::{Ended, Partition, Record, record};

/// Bytes on their way to the group, of one source.
const ON_THE_WAY: usize = 8 << 20;
/// Time between two looks whether there is room.
const LOOK: Duration = Duration::from_millis(1);
/// Longest wait for an answer of the brokers.
const ANSWER: Duration = Duration::from_millis(500);
/// The group lets go of a source within.
const LEAVE: Duration = Duration::from_millis(700);

/// Bytes of a source that the group has not taken yet.
pub(super) type OnTheWay = Arc<AtomicUsize>;

/// See the module.
pub(crate) struct Feed {
    number: u64,
    context: SourceContext,
    topic: String,
    decoder: Decoder,
    commands: Sender<Command>,
    board: Board,
    lag: Next,
    /// What comes next of each partition that is read.
    next: BTreeMap<i32, i64>,
    batch: Vec<Held>,
    on_the_way: OnTheWay,
    paused: BTreeSet<i32>,
    /// The transaction topic, and where it ended when the first partition began.
    transactions: String,
    ends: Option<i64>,
    looks: BTreeMap<i32, Look>,
    /// Partitions that were read to their ends once.
    reached: BTreeSet<i32>,
    has_left: bool,
}

/// A question of the group about a partition that is not answered yet.
struct Look {
    /// The group's time of it.
    at: u64,
    /// Where the partition ended then.
    high: i64,
    /// It is fetched anew, so that its end is told.
    is_fetched: bool,
}

impl Feed {
    pub(super) fn new(
        number: u64,
        context: SourceContext,
        (topic, transactions): (&str, &str),
        decoder: Decoder,
        commands: Sender<Command>,
        board: Board,
        lag: Next,
    ) -> Feed {
        Feed {
            number,
            context,
            topic: topic.to_owned(),
            decoder,
            commands,
            board,
            lag,
            next: BTreeMap::new(),
            batch: Vec::new(),
            on_the_way: OnTheWay::default(),
            paused: BTreeSet::new(),
            transactions: transactions.to_owned(),
            ends: None,
            looks: BTreeMap::new(),
            reached: BTreeSet::new(),
            has_left: false,
        }
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, detail: String) -> Ended {
        Ended::Failed(WorldError::Service {
            service: format!("source \"{}\"", self.context.name),
            detail,
            is_transient: false,
        })
    }

    fn send(&self, command: Command) -> Result<(), Ended> {
        // A group that could not take the source may be gone.
        if let Some(detail) = self.wishes().failure.clone() {
            return Err(self.failed(detail));
        }
        let sent = self.commands.send(command);
        sent.map_err(|_| {
            self.failed(
                "the thread of its transactions ended by a defect; the log has the panic"
                    .to_owned(),
            )
        })
    }

    /// Gives the batch to the group, when there is room.
    fn flush(&mut self) -> Result<(), Ended> {
        if self.batch.is_empty() {
            return Ok(());
        }
        while self.on_the_way.load(Ordering::Relaxed) > ON_THE_WAY {
            if self.context.is_stopping() {
                return Err(Ended::Closed);
            }
            std::thread::sleep(LOOK);
        }
        let messages = std::mem::take(&mut self.batch);
        let bytes = messages.iter().map(|held| held.record.bytes()).sum();
        self.on_the_way.fetch_add(bytes, Ordering::Relaxed);
        self.send(Command::Taken {
            number: self.number,
            messages,
            bytes,
            on_the_way: Arc::clone(&self.on_the_way),
        })
    }

    fn place(&self, partition: i32) -> Place {
        Place {
            member: self.number,
            partition,
        }
    }

    /// Notes of which partitions the group wants to know that all has arrived, and where they end.
    fn look(&mut self, consumer: &BaseConsumer<Client>) -> Result<(), Ended> {
        let (partitions, at) = {
            let mut wishes = self.wishes();
            (std::mem::take(&mut wishes.look_at), wishes.asked_at)
        };
        for partition in partitions {
            if self.looks.contains_key(&partition) || self.paused.contains(&partition) {
                continue;
            }
            // A broker that does not answer says nothing of the partition's end.
            if let Ok((_, high)) = consumer.fetch_watermarks(&self.topic, partition, ANSWER) {
                let look = Look {
                    at,
                    high,
                    is_fetched: false,
                };
                self.looks.insert(partition, look);
            }
        }
        self.answer()
    }

    /// Answers what can be: messages that were taken were given to the group before.
    fn answer(&mut self) -> Result<(), Ended> {
        let next = &self.next;
        let is_dry = |partition: &i32, look: &mut Look| {
            next.get(partition).is_some_and(|next| *next >= look.high)
        };
        let dry: Vec<(i32, Look)> = self.looks.extract_if(.., is_dry).collect();
        for (partition, Look { at, .. }) in dry {
            let place = self.place(partition);
            self.send(Command::Dry { place, at })?;
        }
        Ok(())
    }

    fn tell_ends(&mut self, consumer: &BaseConsumer<Client>) -> Result<(), Ended> {
        if !std::mem::take(&mut self.wishes().wants_ends) {
            return Ok(());
        }
        let mut ends = BTreeMap::new();
        for partition in self.next.keys() {
            match consumer.fetch_watermarks(&self.topic, *partition, ANSWER) {
                Ok((_, high)) => ends.insert(*partition, high),
                // The group asks again.
                Err(error) => {
                    tracing::warn!(source = self.context.name, %error, "asking for the ends");
                    return Ok(());
                }
            };
        }
        let number = self.number;
        self.send(Command::SweepAt { number, ends })
    }
}

impl Outlet for Feed {
    fn begin(
        &mut self,
        partition: &Partition,
        offset: i64,
        consumer: &BaseConsumer<Client>,
    ) -> Result<(), Ended> {
        // In this order: what was told before is below the partition's end.
        if self.ends.is_none() {
            let ends = consumer.fetch_watermarks(&self.transactions, 0, ANSWER);
            self.ends = ends.ok().map(|(_, high)| high);
        }
        let high = consumer.fetch_watermarks(&self.topic, partition.1, ANSWER);
        self.next.insert(partition.1, offset);
        self.send(Command::Begin {
            place: self.place(partition.1),
            offset,
            high: high.ok().map(|(_, high)| high),
            ends: self.ends,
        })
    }

    fn reached_end(&mut self, partition: i32) -> Result<(), Ended> {
        self.flush()?;
        let place = self.place(partition);
        if self.next.contains_key(&partition) && self.reached.insert(partition) {
            self.send(Command::Reached(place))?;
        }
        let is_fetched = |look: &&mut Look| look.is_fetched;
        if let Some(Look { at, .. }) = self.looks.get_mut(&partition).filter(is_fetched) {
            let at = *at;
            self.looks.remove(&partition);
            self.send(Command::Dry { place, at })?;
        }
        Ok(())
    }

    fn to_fetch_anew(&mut self) -> Vec<Partition> {
        let looks = self.looks.iter_mut().filter(|(_, look)| !look.is_fetched);
        let anew = looks.map(|(partition, look)| {
            look.is_fetched = true;
            (self.topic.clone(), *partition)
        });
        anew.collect()
    }

    fn give_up(&mut self, partition: &Partition) -> Result<(), Ended> {
        self.flush()?;
        self.next.remove(&partition.1);
        self.looks.remove(&partition.1);
        self.send(Command::GiveUp(self.place(partition.1)))
    }

    fn next(&self, partition: &Partition) -> Option<i64> {
        self.next.get(&partition.1).copied()
    }

    fn found_all(&mut self) -> Result<(), Ended> {
        self.send(Command::Ready(self.number))
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<(), Wait> {
        let next = self.next.get_mut(&message.partition());
        // What was queued before a partition was paused comes again.
        let is_paused = self.paused.contains(&message.partition());
        let Some(next) = next.filter(|next| !is_paused && message.offset() >= **next) else {
            return Ok(());
        };
        let decoder = &mut self.decoder;
        let held = record::with_raw(message, |raw| {
            Ok(Held {
                decoded: decoder.decode(raw)?,
                record: Record::of(raw),
            })
        })?;
        *next = message.offset() + 1;
        self.batch.push(held);
        Ok(())
    }

    fn has_work(&self) -> bool {
        let wishes = self.wishes();
        wishes.wants_ends || !wishes.look_at.is_empty() || wishes.failure.is_some()
    }

    fn stage(&mut self, consumer: &BaseConsumer<Client>) -> Result<(), Ended> {
        self.flush()?;
        let failure = self.wishes().failure.clone();
        if let Some(detail) = failure {
            return Err(self.failed(detail));
        }
        self.look(consumer)?;
        self.tell_ends(consumer)?;
        let mut lag = self.lag.lock().unwrap_or_else(PoisonError::into_inner);
        for ((topic, partition), next) in self.logged() {
            lag.insert((topic, partition), next);
        }
        Ok(())
    }

    fn turns(&mut self) -> Turns {
        let wanted = self.wishes().paused.clone();
        let named = |partition: &i32| (self.topic.clone(), *partition);
        let pause = wanted.difference(&self.paused).map(named).collect();
        let resume = self.paused.difference(&wanted).map(named).collect();
        self.paused = wanted;
        (pause, resume)
    }

    fn is_paused(&self, partition: &Partition) -> bool {
        self.paused.contains(&partition.1)
    }

    fn logged(&self) -> Vec<(Partition, i64)> {
        let staged = self.wishes().staged.clone();
        let staged = staged.into_iter();
        staged
            .map(|(partition, next)| ((self.topic.clone(), partition), next))
            .collect()
    }

    fn finish(&mut self) {
        self.leave();
    }
}

impl Feed {
    fn leave(&mut self) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        let (left, leaves) = channel();
        let number = self.number;
        if self.commands.send(Command::Leave { number, left }).is_ok() {
            let _ = leaves.recv_timeout(LEAVE);
        }
    }
}

impl Drop for Feed {
    /// A source that could not begin must not be waited for.
    fn drop(&mut self) {
        self.leave();
    }
}
