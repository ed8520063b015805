//! `INTO KAFKA`: a collection, written to a topic with exactly-once effect.
//!
//! ```text
//!  ChangeFeed ─▶ changes of (R, Q] ─▶ encode ─▶ one transaction: records + progress Q ─▶ topic
//!                                     json │ avro              └▶ headwater-progress
//!  start: begin under the sink's name (ends what was left open) ─▶ read the progress ─▶ go on behind it
//! ```
//!
//! # What is guaranteed
//!
//! A consumer of *committed* messages sees every change of a key at a time once, the changes of a key in
//! their order, and of each time all or nothing. It holds over `kill -9` of the server, restarts of
//! brokers and lost connections, at any point: what was committed is known by the brokers alone, in a
//! record of the same transaction, and what happened after it is still known to the collection, because
//! the sink holds its history there (`engine::contract::sink`), in memory, in the log and during a
//! replay. Changes that cancel each other within one time are none.
//!
//! Where it cannot hold, the sink stops and says so, and never guesses: the progress is gone from its
//! topic, or it was not written by this data folder (a copy), or the sink's own topic is gone, or the
//! collection no longer has the history.
//!
//! Limits: one transaction covers the first snapshot, however large: it must be committed in
//! SINK_TRANSACTION_MS. A sink that cannot write keeps its collection's history since its progress; its
//! own buffers are bounded. A consumer that does not set `isolation.level=read_committed` sees aborted
//! attempts, too.

pub mod avro;
pub mod encode;
mod progress;
mod session;
mod topics;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::contract::{Sink, SinkContext, SinkPhase};
use engine::error::WorldError;
use engine::limits::SINK_RETRY_MS;
use engine::model::RowCodec;
use engine::telemetry;

use crate::format::avro::{Address, Subjects};
use crate::kafka::Security;
use avro::{Avro, SchemaTexts};
use encode::Encoder;
use session::Memory;

/// Time between two lines about the same trouble.
const TELL: Duration = Duration::from_secs(10);

/// What a change becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    /// The row under its key, null when it is deleted.
    Upsert,
    /// Debezium's event, and a null behind a delete.
    Debezium,
}

/// Where a sink writes, and how.
#[derive(Clone)]
pub struct SinkOptions {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// Partitions of the topic when it is made.
    pub partitions: Option<i32>,
    /// Copies of each partition when topics are made.
    pub replication: Option<i32>,
    /// The topic of progress.
    pub progress_topic: String,
    /// How the brokers are spoken to.
    pub security: Security,
    /// Avro with the schemas in this registry; JSON without.
    pub registry: Option<Address>,
    /// What a change becomes.
    pub envelope: Envelope,
}

impl SinkOptions {
    fn refused(&self, detail: &str) -> WorldError {
        WorldError::Service {
            service: format!("Kafka at {}", self.brokers),
            detail: detail.to_owned(),
            is_transient: false,
        }
    }
}

/// Why a session ended.
enum Trouble {
    /// The sink was told to stop.
    Stop,
    /// Something outside failed; it is tried again.
    World(String),
    /// A person must do something.
    Person(WorldError),
}

impl fmt::Display for Trouble {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Stop => out.write_str("there was no time left"),
            Trouble::World(detail) => out.write_str(detail),
            Trouble::Person(error) => error.fmt(out),
        }
    }
}

/// A sink INTO KAFKA.
pub struct KafkaSink {
    options: SinkOptions,
    codec: Arc<RowCodec>,
    schemas: Option<SchemaTexts>,
}

impl KafkaSink {
    /// A sink of rows; nothing is connected yet.
    ///
    /// Errors: TLS that this program does not have, files that cannot be read, columns that Avro cannot
    /// tell apart.
    pub fn new(options: SinkOptions, codec: Arc<RowCodec>) -> Result<KafkaSink, WorldError> {
        options.security.check()?;
        let schemas = match options.registry {
            None => None,
            Some(_) => {
                let (envelope, topic) = (options.envelope, &*options.topic);
                Some(avro::schemas(codec.schema(), envelope, topic)?)
            }
        };
        Ok(KafkaSink {
            options,
            codec,
            schemas,
        })
    }

    /// The encoder, with its schemas registered.
    fn encoder(&self, context: &SinkContext) -> Result<Encoder, Trouble> {
        let codec = Arc::clone(&self.codec);
        let envelope = self.options.envelope;
        let encoder = Encoder::json(codec, envelope, &context.name, &context.collection);
        let (Some(address), Some(texts)) = (&self.options.registry, &self.schemas) else {
            return Ok(encoder);
        };
        let subjects = Subjects::new(address);
        let topic = &self.options.topic;
        let register = |what: &str, schema: &str| {
            let registered = subjects.register(&format!("{topic}-{what}"), schema);
            registered.map_err(|error| Trouble::World(error.to_string()))
        };
        Ok(encoder.with_avro(Avro {
            key: register("key", &texts.key)?,
            value: register("value", &texts.value)?,
        }))
    }

    /// The last word of a sink that ends while its brokers are out of reach.
    fn leave(&self, context: &SinkContext, memory: &Memory) {
        let has_written = context.noted.is_some() || context.status.get().progress.is_some();
        if context.is_dropped() && has_written && !memory.said_farewell {
            let (sink, topic) = (&*context.name, &*self.options.progress_topic);
            tracing::warn!(
                sink,
                topic,
                "the progress of the dropped sink stays: no broker answers"
            );
        }
    }

    /// One attempt.
    fn attempt(
        &self,
        context: &SinkContext,
        encoder: &mut Option<Encoder>,
        memory: &mut Memory,
    ) -> Result<(), Trouble> {
        if encoder.is_none() {
            *encoder = Some(self.encoder(context)?);
        }
        match encoder {
            Some(encoder) => session::run(self, context, encoder, memory),
            None => Ok(()),
        }
    }

    /// Attempts with pauses between them, until told to stop.
    fn work(&self, context: &SinkContext, memory: &mut Memory) -> Result<(), WorldError> {
        let (least, most) = SINK_RETRY_MS;
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
        let (mut encoder, mut pause) = (None, least);
        let mut told: Option<(String, Instant)> = None;
        loop {
            let trouble = match self.attempt(context, &mut encoder, memory) {
                Ok(()) | Err(Trouble::Stop) => return Ok(()),
                Err(Trouble::Person(error)) => return Err(error),
                Err(trouble) => trouble,
            };
            if context.is_stopping() {
                return Ok(());
            }
            let sink = &*context.name;
            let detail = trouble.to_string();
            metrics::counter!(telemetry::SINK_ERRORS.name, "sink" => sink.to_owned()).increment(1);
            let is_new = told
                .as_ref()
                .is_none_or(|(before, at)| *before != detail || at.elapsed() >= TELL);
            if is_new {
                tracing::warn!(sink, error = detail, "the sink cannot write; trying again");
                told = Some((detail.clone(), Instant::now()));
            }
            context.status.set(|state| {
                state.phase = SinkPhase::Retrying;
                state.error = Some(detail);
            });
            if std::mem::take(&mut memory.had_success) {
                pause = least;
            }
            let until = Instant::now() + pause;
            while Instant::now() < until {
                if context.is_stopping() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            pause = (pause * 2).min(most);
        }
    }
}

impl Sink for KafkaSink {
    fn run(self: Box<Self>, context: SinkContext) -> Result<(), WorldError> {
        let mut memory = Memory::default();
        self.work(&context, &mut memory)?;
        self.leave(&context, &memory);
        Ok(())
    }
}
