//! The Kafka source without the engine: its batches go to a sink that only looks at positions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use connectors::envelope::{Envelope, Options};
use connectors::format::Format;
use connectors::kafka::{KafkaOptions, KafkaSource, Start};
use engine::contract::{LaneSink, Part, Resume, SinkClosed, Source, SourceBatch, SourceContext};
use engine::model::{Column, ContentHash, Key, ObjectId, Row, Schema, SqlType};
use serde_json::Value as Json;

use super::messages::{Shape, Topic};

/// Reads a topic to its end.
pub fn read(brokers: &str, topic: &Topic) {
    let envelope = match topic.shape {
        Shape::Small => Envelope::Upsert,
        Shape::Debezium => Envelope::Debezium,
    };
    let options = KafkaOptions {
        brokers: brokers.to_owned(),
        topic: topic.name.clone(),
        is_pattern: false,
        start: Start::Earliest,
        group: None,
        dead_letter_topic: None,
        transactions: None,
        security: Default::default(),
        readers: 1,
    };
    let decoding = Options {
        key_format: match topic.shape {
            Shape::Small => Format::Text,
            Shape::Debezium => Format::Json,
        },
        ..Options::default()
    };
    let schema = schema(topic.shape);
    let source = KafkaSource::new(options, schema, envelope, decoding).expect("plain options");
    let sink = Arc::new(Positions {
        messages: topic.messages,
        stop: Arc::default(),
        reached: Mutex::default(),
    });
    let context = SourceContext {
        name: "rows".to_owned(),
        stop: Arc::clone(&sink.stop),
        dropped: Arc::default(),
        waits: Arc::default(),
        resume: Arc::new(Nothing),
        sink,
    };
    Box::new(source)
        .run(context)
        .expect("a broker that answers");
}

fn columns(shape: Shape) -> &'static [(&'static str, SqlType)] {
    match shape {
        Shape::Small => &[
            ("id", SqlType::Text),
            ("kind", SqlType::Text),
            ("n", SqlType::Int8),
            ("body", SqlType::Text),
        ],
        Shape::Debezium => &[
            ("id", SqlType::Int8),
            ("tenant", SqlType::Text),
            ("title", SqlType::Text),
            ("body", SqlType::Text),
        ],
    }
}

fn schema(shape: Shape) -> Schema {
    let column = |(at, (name, kind)): (usize, &(&str, SqlType))| Column {
        nullable: at > 0,
        ..Column::new(name, *kind)
    };
    Schema {
        columns: columns(shape).iter().enumerate().map(column).collect(),
        key: vec![0],
    }
}

/// Takes batches, forgets the rows, and stops the source when all messages were taken.
struct Positions {
    messages: u64,
    stop: Arc<AtomicBool>,
    /// The marks of every partition.
    reached: Mutex<BTreeMap<String, u64>>,
}

impl LaneSink for Positions {
    fn stage(&self, batch: SourceBatch) -> Result<(), SinkClosed> {
        assert!(batch.dead_letters.is_empty(), "{:?}", batch.dead_letters);
        let position = batch.position.unwrap_or_default();
        let mut reached = self.reached.lock().expect("no panic while held");
        let marks = position["marks"].as_object().into_iter().flatten();
        reached.extend(marks.map(|(name, next)| (name.clone(), next.as_u64().unwrap_or(0))));
        let is_done = reached.values().sum::<u64>() >= self.messages;
        self.stop.fetch_or(is_done, Ordering::Relaxed);
        Ok(())
    }

    fn stage_together(&self, parts: Vec<Part>, _is_open: bool) -> Result<(), Vec<Part>> {
        for part in parts {
            self.stage(part.batch).expect("never closed");
        }
        Ok(())
    }

    fn reached(&self, _lane: &str, _position: &Json) {}

    fn source(&self) -> ObjectId {
        ObjectId(1)
    }

    fn sync(&self) -> Result<(), SinkClosed> {
        Ok(())
    }
}

/// A source that runs for the first time.
struct Nothing;

impl Resume for Nothing {
    fn position(&self, _lane: &str) -> Option<Json> {
        None
    }

    fn live(&self) -> Vec<(Key, ContentHash)> {
        Vec::new()
    }

    fn row(&self, _key: &Key) -> Option<Row> {
        None
    }

    fn lanes(&self) -> Vec<String> {
        Vec::new()
    }
}
