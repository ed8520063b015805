//! Where the crates meet: connectors and models are given to the service.
//!
//! Public for tests and benches, which run the engine in their own process and must not wire it
//! another way.

use std::path::Path;
use std::sync::Arc;

use connectors::envelope::{self, BinaryMode, DecimalMode, Metadata, TimePrecision};
use connectors::format::Format;
use connectors::format::avro::{Address, Registry, Schema as AvroSchema, Schemas};
use connectors::format::csv::Csv;
use connectors::kafka::{KafkaOptions, KafkaSource, Start};
use engine::contract::{Embedder, Source};
use engine::durable::LocalStore;
use engine::error::WorldError;
use engine::model::{Column, Schema};
use engine::runtime::SystemClock;
use engine::telemetry;
use queries::api::PushLine;
use queries::definition::{
    AvroDef, Connector, Envelope, KafkaDef, KafkaStart, MessageFormat, MessagePart, ModelDef,
    PasswordDef, SourceDef,
};
use queries::service::{DecodedPush, Wiring};

use crate::app::RunOptions;

/// Everything a server runs with.
pub(crate) fn wiring(options: &RunOptions) -> Result<Wiring, WorldError> {
    let store = Arc::new(LocalStore::open(&options.data)?);
    let telemetry = Arc::new(telemetry::install());
    let models = options.models.clone();
    Ok(Wiring {
        store,
        workers: options.workers,
        communication: None,
        clock: Arc::new(SystemClock),
        load_model: Arc::new(move |name, model| load_model(name, model, models.as_deref())),
        connect: Arc::new(connect),
        decode_push: Arc::new(decode_push),
        metrics: Arc::new(move || telemetry.render()),
        builder_threads: 1,
        embed: operators::embed::EmbedConfig::default(),
    })
}

/// Loads a model's encoder from `models` (default: the user's data folder), fetching it when it is
/// nowhere on this machine.
pub fn load_model(
    name: &str,
    model: &ModelDef,
    models: Option<&Path>,
) -> Result<Arc<dyn Embedder>, WorldError> {
    let ModelDef::Pretrained {
        location,
        device,
        precision,
    } = model
    else {
        return Err(WorldError::Service {
            service: format!("model \"{name}\""),
            detail: "vectors arrive in a column: there is no encoder".to_owned(),
            is_transient: false,
        });
    };
    operators::embed::load_in(models, location, device, precision, &|progress| {
        tracing::info!(
            what = progress.what,
            done_bytes = progress.done_bytes,
            total_bytes = progress.total_bytes,
            "fetching the model"
        );
    })
}

/// Makes the reader of a source; pushes have none.
pub fn connect(source: &SourceDef, _name: &str) -> Result<Option<Box<dyn Source>>, WorldError> {
    Ok(match &source.connector {
        Connector::Push => None,
        Connector::Files { path, pattern } => Some(connectors::files(path, pattern)?),
        Connector::Generate {
            rows,
            rate,
            seed,
            dimensions,
        } => Some(connectors::generate(*rows, *rate, *seed, *dimensions)),
        Connector::Kafka(kafka) => Some(Box::new(self::kafka(&source.schema, kafka)?)),
    })
}

fn kafka(schema: &Schema, kafka: &KafkaDef) -> Result<KafkaSource, WorldError> {
    let start = match &kafka.start {
        KafkaStart::Earliest => Start::Earliest,
        KafkaStart::Latest => Start::Latest,
        KafkaStart::Timestamp(millis) => Start::Timestamp(*millis),
        KafkaStart::Offsets(offsets) => Start::Offsets(offsets.iter().copied().collect()),
    };
    let options = KafkaOptions {
        brokers: kafka.brokers.clone(),
        topic: kafka.topic.clone(),
        is_pattern: kafka.is_pattern,
        start,
        group: kafka.group.clone(),
    };
    // Included columns are the last of the schema.
    let first = schema.columns.len() - kafka.include.len();
    let metadata = kafka.include.iter().enumerate().map(|(at, part)| {
        let part = match part {
            MessagePart::Key => Metadata::Key,
            MessagePart::Topic => Metadata::Topic,
            MessagePart::Partition => Metadata::Partition,
            MessagePart::Offset => Metadata::Offset,
            MessagePart::Timestamp => Metadata::Timestamp,
            MessagePart::Headers => Metadata::Headers,
        };
        (first + at, part)
    });
    let all: Vec<&Column> = schema.columns.iter().collect();
    let keys: Vec<&Column> = schema.key.iter().map(|at| &schema.columns[*at]).collect();
    let mut decoding = envelope::Options {
        key_format: format(&kafka.key_format, &keys)?,
        value_format: format(&kafka.value_format, &all[..first])?,
        metadata: metadata.collect(),
        ..envelope::Options::default()
    };
    let envelope = match &kafka.envelope {
        Envelope::Append => envelope::Envelope::Append,
        Envelope::Upsert => envelope::Envelope::Upsert,
        Envelope::Debezium {
            unavailable,
            binary,
            decimal,
            time,
        } => {
            decoding.placeholder.clone_from(unavailable);
            decoding.binary = match &**binary {
                "base64" => BinaryMode::Base64,
                "hex" => BinaryMode::Hex,
                _ => BinaryMode::Bytes,
            };
            decoding.decimal = Some(match &**decimal {
                "string" => DecimalMode::String,
                _ => DecimalMode::Precise,
            });
            decoding.time = match &**time {
                "millis" => TimePrecision::Millis,
                "nanos" => TimePrecision::Nanos,
                _ => TimePrecision::Micros,
            };
            envelope::Envelope::Debezium
        }
    };
    KafkaSource::new(options, schema.clone(), envelope, decoding)
}

/// Makes a format whose records, where they have no names, are of these columns.
fn format(format: &MessageFormat, columns: &[&Column]) -> Result<Format, WorldError> {
    Ok(match format {
        MessageFormat::Json => Format::Json,
        MessageFormat::Text => Format::Text,
        MessageFormat::Bytes => Format::Bytes,
        MessageFormat::Avro(def) => Format::Avro(avro(def)?),
        MessageFormat::Csv(def) => {
            let delimiter = u8::try_from(def.delimiter).unwrap_or(b',');
            let names = match &def.header {
                Some(line) => Csv::header(delimiter, line).map_err(|r| refused("HEADER", &r))?,
                None => columns.iter().map(|column| column.name.clone()).collect(),
            };
            Format::Csv(Arc::new(Csv::new(delimiter, &def.null, names)))
        }
    })
}

fn avro(def: &AvroDef) -> Result<Schemas, WorldError> {
    let schema = def
        .schema
        .as_deref()
        .map(|text| AvroSchema::parse(text, &[]));
    let schema = schema
        .transpose()
        .map_err(|reason| refused("SCHEMA", &reason))?;
    let Some(registry) = &def.registry else {
        let schema = schema.ok_or_else(|| refused("SCHEMA", "there is none"))?;
        return Ok(Schemas::Inline(Arc::new(schema)));
    };
    let password = registry.password.as_ref().map(password).transpose()?;
    let login = registry.user.clone();
    let address = Address {
        url: registry.url.clone(),
        login: login.map(|user| (user, password.unwrap_or_default())),
    };
    Ok(Schemas::Registry(Registry::new(&address, schema)))
}

fn password(def: &PasswordDef) -> Result<String, WorldError> {
    match def {
        PasswordDef::Env(name) => std::env::var(name)
            .map_err(|_| refused("PASSWORD ENV", &format!("the variable {name} is not set"))),
        PasswordDef::File(path) => match std::fs::read_to_string(path) {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => Err(WorldError::io("cannot read", Path::new(path), error)),
        },
    }
}

/// What a person must correct in the statement, or around the server.
fn refused(option: &str, reason: &str) -> WorldError {
    WorldError::Service {
        service: format!("option {option}"),
        detail: reason.to_owned(),
        is_transient: false,
    }
}

/// Decodes the lines of a push.
pub fn decode_push(schema: &Schema, lines: &[PushLine]) -> DecodedPush {
    let decoded =
        connectors::push::decode(schema, lines.iter().map(|line| (line.line, &*line.raw)));
    DecodedPush {
        changes: decoded.changes,
        accepted: decoded.accepted,
        rejected: decoded.rejected,
    }
}
