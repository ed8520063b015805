//! The transactional producer of one sink.
//!
//! Kafka names a producer by its `transactional.id`; whoever begins under a name ends what was begun
//! under it before: a transaction that was left open is aborted, one that was being committed is
//! committed, and a former process that still lives is refused from then on. So whatever happened,
//! after [`Writer::begin`] what a reader of committed messages sees is final.
//!
//! Invariants: a record is sent in a transaction; a transaction whose end is not known is never tried
//! again here: its writer is given up, and the next one's beginning decides. Limits: one thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::contract::{SinkContext, SinkPhase, SinkStatus};
use engine::limits::{SINK_RECORD_BYTES_MAX, SINK_TRANSACTION_MS};
use rdkafka::Message as _;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use super::{SinkOptions, Trouble};
use crate::kafka::hint;

/// Bytes that wait in the client.
const QUEUE_BYTES: usize = 2 * SINK_RECORD_BYTES_MAX;
/// After so long without an answer people are told.
const SLOW: Duration = Duration::from_secs(3);
/// One wait of a call that may be repeated: a stop must be seen soon.
const STEP: Duration = Duration::from_secs(1);
/// Time for the brokers to answer at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause while the client's queue is full.
const FULL: Duration = Duration::from_millis(2);

/// Receives what librdkafka tells.
struct Deliveries {
    sink: String,
    failed: Arc<Mutex<Option<Refused>>>,
}

/// A record that a broker did not take.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    key: String,
    bytes: usize,
    code: RDKafkaErrorCode,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!(sink = self.sink, ?level, fac, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let sink = &*self.sink;
        match hint(&error) {
            Some(hint) => tracing::warn!(sink, %error, reason, hint, "Kafka"),
            None => tracing::debug!(sink, %error, reason, "Kafka"),
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        let Err((KafkaError::MessageProduction(code), message)) = result else {
            return;
        };
        // What goes with an aborted transaction is no cause of it.
        let is_purged = matches!(
            code,
            RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight
        );
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_purged && failed.is_none() {
            let key = message.key().unwrap_or_default();
            *failed = Some(Refused {
                key: shown(key),
                bytes: key.len() + message.payload_len(),
                code: *code,
            });
        }
    }
}

/// What ended a transaction of some age from outside. The brokers end one that is open for too long in the
/// same way as another producer under its name does.
fn ended(code: RDKafkaErrorCode, age: Duration) -> Option<String> {
    let is_fenced = matches!(
        code,
        RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch
            | RDKafkaErrorCode::TransactionCoordinatorFenced
    );
    let limit = Duration::from_millis(SINK_TRANSACTION_MS);
    // Their clock began a little later and looks every ten seconds; ours is not theirs.
    if age + Duration::from_secs(5) >= limit {
        let limit = limit.as_secs();
        return Some(format!(
            "one transaction took longer than {limit} s ({code}): the brokers are too slow for what is \
             to be written at once"
        ));
    }
    is_fenced.then(|| {
        format!(
            "another producer began under the sink's transactional id ({code}): does another server run \
             on a copy of this data folder?"
        )
    })
}

fn tell_slow(sink: &str, status: &SinkStatus, error: &str) {
    tracing::warn!(sink, error, "the brokers are slow; waiting");
    status.set(|state| {
        state.phase = SinkPhase::Retrying;
        state.error = Some(format!("the brokers are slow: {error}"));
    });
}

/// A key for people.
fn shown(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) => engine::model::shorten(text),
        Err(_) => format!("{} bytes of Avro", key.len()),
    }
}

/// See the module.
pub(super) struct Writer {
    producer: ThreadedProducer<Deliveries>,
    failed: Arc<Mutex<Option<Refused>>>,
    topic: String,
    sink: String,
    status: Arc<SinkStatus>,
    /// Since when a transaction is open.
    opened: Option<Instant>,
}

/// Where a session writes: to the brokers, in tests to memory.
pub(super) trait Output {
    /// Opens a transaction.
    fn open(&mut self) -> Result<(), Trouble>;
    /// Sends a record in the open transaction. Waits while there is no room for it.
    fn send(&self, outgoing: &Outgoing<'_>, is_stopping: &dyn Fn() -> bool) -> Result<(), Trouble>;
    /// Commits the open transaction, once everything of it is delivered. After an error it is not known
    /// whether it is committed.
    fn commit(&mut self, is_stopping: &dyn Fn() -> bool) -> Result<(), Trouble>;
    /// Ends an open transaction as if it had never been, so that readers need not wait for it. The next
    /// writer would do it, too.
    fn abandon(&mut self);
}

/// One record on its way.
pub(super) struct Outgoing<'a> {
    pub(super) topic: &'a str,
    /// `None`: by the key, as Java's clients do it.
    pub(super) partition: Option<i32>,
    pub(super) key: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
    /// Milliseconds since the epoch.
    pub(super) timestamp: i64,
    /// `headwater.time`: the change's time, which every record of it has.
    pub(super) time: Option<u64>,
}

impl Writer {
    /// A producer that is the only one under its name.
    pub(super) fn begin(
        options: &SinkOptions,
        context: &SinkContext,
        batch_bytes: usize,
        is_stopping: &dyn Fn() -> bool,
    ) -> Result<Writer, Trouble> {
        let sink = &*context.name;
        let id = format!("headwater-{}-{sink}", context.pipeline);
        let failed: Arc<Mutex<Option<Refused>>> = Arc::default();
        let deliveries = Deliveries {
            sink: sink.to_owned(),
            failed: Arc::clone(&failed),
        };
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &options.brokers)
            .set("client.id", format!("headwater-sink-{sink}"))
            .set("transactional.id", id)
            .set("transaction.timeout.ms", SINK_TRANSACTION_MS.to_string())
            // Java's default, so that the same key is in the same partition whoever writes it.
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "5")
            .set("message.max.bytes", SINK_RECORD_BYTES_MAX.to_string())
            .set("batch.size", batch_bytes.to_string())
            .set(
                "queue.buffering.max.kbytes",
                (QUEUE_BYTES >> 10).to_string(),
            )
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(RDKafkaLogLevel::Warning);
        options.security.configure(&mut config);
        let producer: ThreadedProducer<Deliveries> = config
            .create_with_context(deliveries)
            .map_err(|error| Trouble::Person(options.refused(&error.to_string())))?;
        let writer = Writer {
            producer,
            failed,
            topic: options.topic.clone(),
            sink: sink.to_owned(),
            status: Arc::clone(&context.status),
            opened: None,
        };
        writer.repeat(PATIENCE, is_stopping, |step| {
            writer.producer.init_transactions(step)
        })?;
        Ok(writer)
    }

    /// Calls until it is through, or failed, or the time is over.
    fn repeat(
        &self,
        limit: Duration,
        is_stopping: &dyn Fn() -> bool,
        call: impl Fn(Duration) -> Result<(), KafkaError>,
    ) -> Result<(), Trouble> {
        let (begun, mut is_told) = (Instant::now(), false);
        loop {
            match call(STEP) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error))
                    if error.is_retriable() && begun.elapsed() < limit =>
                {
                    if is_stopping() {
                        return Err(Trouble::Stop);
                    }
                    if let Some(refused) = self.refused() {
                        return Err(self.told(&refused));
                    }
                    if begun.elapsed() > SLOW && !std::mem::replace(&mut is_told, true) {
                        self.tell_slow(&error.to_string());
                    }
                }
                Err(error) => return Err(self.trouble(&error)),
            }
        }
    }

    /// Says what is waited for, in the log and in the sink's state.
    fn tell_slow(&self, error: &str) {
        tell_slow(&self.sink, &self.status, error);
    }

    /// The same for those who have the writer to write.
    pub(super) fn teller(&self) -> impl Fn(&str) + use<> {
        let (sink, status) = (self.sink.clone(), Arc::clone(&self.status));
        move |what: &str| tell_slow(&sink, &status, what)
    }

    fn refused(&self) -> Option<Refused> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.clone()
    }

    /// An error, or what led to it.
    fn trouble(&self, error: &KafkaError) -> Trouble {
        if let Some(refused) = self.refused() {
            return self.told(&refused);
        }
        // What ended a producer for good is told in its place: the call that met it says less.
        let fatal = self.producer.client().fatal_error();
        let code = fatal.as_ref().map(|(code, _)| *code).or(match error {
            KafkaError::Transaction(error) => Some(error.code()),
            error => error.rdkafka_error_code(),
        });
        let age = self.opened.map(|at| at.elapsed()).unwrap_or_default();
        if let Some(detail) = code.and_then(|code| ended(code, age)) {
            return Trouble::World(detail);
        }
        let hint = hint(error).map(|hint| format!("; {hint}"));
        let hint = hint.unwrap_or_default();
        let fatal = fatal.map(|(_, text)| format!(": {text}"));
        let fatal = fatal.unwrap_or_default();
        Trouble::World(format!("{error}{fatal}{hint}"))
    }

    fn told(&self, refused: &Refused) -> Trouble {
        let Refused { key, bytes, code } = refused;
        let topic = &self.topic;
        match code {
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize => {
                Trouble::World(format!(
                    "the record of key {key} has {bytes} bytes, more than topic \"{topic}\" takes; \
                     raise its max.message.bytes, and the sink goes on (the client's limit is \
                     {SINK_RECORD_BYTES_MAX}); or drop the sink and write a view without large columns"
                ))
            }
            RDKafkaErrorCode::MessageTimedOut => {
                let seconds = self.opened.map_or(0, |at| at.elapsed().as_secs());
                Trouble::World(format!(
                    "the brokers took no records of topic \"{topic}\" for {seconds} s"
                ))
            }
            code => {
                let age = self.opened.map(|at| at.elapsed()).unwrap_or_default();
                let of_key = || format!("the record of key {key} was not taken: {code}");
                Trouble::World(ended(*code, age).unwrap_or_else(of_key))
            }
        }
    }
}

impl Output for Writer {
    fn open(&mut self) -> Result<(), Trouble> {
        let opened = self.producer.begin_transaction();
        opened.map_err(|error| self.trouble(&error))?;
        self.opened = Some(Instant::now());
        Ok(())
    }

    fn send(&self, outgoing: &Outgoing<'_>, is_stopping: &dyn Fn() -> bool) -> Result<(), Trouble> {
        let mut record = BaseRecord::<[u8], [u8]>::to(outgoing.topic)
            .key(outgoing.key)
            .timestamp(outgoing.timestamp);
        record.partition = outgoing.partition;
        record.payload = outgoing.value;
        if let Some(time) = outgoing.time {
            let time = time.to_string();
            record = record.headers(OwnedHeaders::new().insert(Header {
                key: "headwater.time",
                value: Some(&time),
            }));
        }
        let (begun, mut is_told) = (Instant::now(), false);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), same)) => {
                    record = same;
                    if is_stopping() {
                        return Err(Trouble::Stop);
                    }
                    if let Some(refused) = self.refused() {
                        return Err(self.told(&refused));
                    }
                    if begun.elapsed() > SLOW && !std::mem::replace(&mut is_told, true) {
                        self.tell_slow("they take records slower than there are new ones");
                    }
                    std::thread::sleep(FULL);
                }
                // The transaction is over already, by what happened to it.
                Err((
                    error @ KafkaError::MessageProduction(
                        RDKafkaErrorCode::State | RDKafkaErrorCode::Fatal,
                    ),
                    _,
                )) => return Err(self.trouble(&error)),
                Err((KafkaError::MessageProduction(code), _)) => {
                    return Err(self.told(&Refused {
                        key: shown(outgoing.key),
                        bytes: outgoing.key.len() + outgoing.value.map_or(0, <[u8]>::len),
                        code,
                    }));
                }
                Err((error, _)) => return Err(self.trouble(&error)),
            }
        }
    }

    fn commit(&mut self, is_stopping: &dyn Fn() -> bool) -> Result<(), Trouble> {
        let limit = Duration::from_millis(SINK_TRANSACTION_MS);
        self.repeat(limit, is_stopping, |step| {
            self.producer.commit_transaction(step)
        })?;
        self.opened = None;
        Ok(())
    }

    fn abandon(&mut self) {
        if self.opened.take().is_some() {
            let _ = self.producer.abort_transaction(STEP);
        }
    }
}
