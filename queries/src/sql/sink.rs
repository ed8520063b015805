//! `CREATE SINK`: a source or a view, written to a topic as it changes.
//!
//! ```text
//! CREATE SINK name FROM collection
//!   INTO KAFKA (BROKERS '…', TOPIC '…' [, PARTITIONS n] [, REPLICATION n] [, PROGRESS TOPIC '…']
//!               [, SECURITY PROTOCOL '…', …])                          (see [`super::security`])
//!   [FORMAT JSON | FORMAT AVRO (REGISTRY '…' [, USER '…', PASSWORD …])]   (see [`super::format`])
//!   ENVELOPE UPSERT | DEBEZIUM
//! ```
//!
//! Invariant: what is written has a unique key, or deletes would name nothing. Limits: one collection a
//! sink; indexes and caches are not written.

use std::collections::BTreeSet;

use super::ast::ident_sql;
use super::catalog::CatalogView;
use super::cursor::{Cursor, Name};
use super::normal::text;
use super::options::{Known, Options};
use super::source::required;
use super::statement::{known, later, with_article};
use super::{format, security};
use crate::definition::{
    AvroDef, Connector, Definition, KafkaDef, MessageFormat, RegistryDef, SinkDef, SinkEnvelope,
};
use crate::problem::{Position, Problem};

/// What `PROGRESS TOPIC` is without the option.
const PROGRESS_TOPIC_DEFAULT: &str = "headwater-progress";
/// More partitions than any broker takes.
const PARTITIONS_MAX: u64 = 100_000;
/// Copies of a partition: more than any cluster has brokers.
const REPLICATION_MAX: u64 = 1_000;
/// Kafka's own limit for the name of a topic.
const TOPIC_CHARS_MAX: usize = 249;

/// Reads what stands behind the name.
pub(super) fn sink(
    cursor: &mut Cursor<'_>,
    name: &str,
    catalog: &dyn CatalogView,
) -> Result<SinkDef, Problem> {
    cursor.expect("FROM")?;
    let from = from(cursor, catalog)?;
    cursor.expect("INTO")?;
    for word in ["POSTGRES", "FILES", "HTTP", "S3"] {
        if cursor.is(word) {
            let what = format!("INTO {word}");
            return Err(later(cursor, &what, "sinks of this version are INTO KAFKA"));
        }
    }
    cursor.expect("KAFKA")?;
    let at = cursor.position();
    let mut def = options(cursor, from, catalog)?;
    refuse_taken(&def, name, catalog).map_err(|problem| problem.at(at.line, at.column))?;
    let (mut has_format, mut envelope) = (false, None);
    loop {
        let at = cursor.position();
        let twice = |what: &str| {
            Problem::syntax(format!("{what} is given twice"))
                .at(at.line, at.column)
                .expected("each clause at most once")
        };
        if cursor.eat("FORMAT") {
            if std::mem::replace(&mut has_format, true) {
                return Err(twice("the format"));
            }
            def.registry = registry(cursor, at, catalog)?;
        } else if cursor.eat("ENVELOPE") {
            let found = self::envelope(cursor)?;
            if envelope.replace(found).is_some() {
                return Err(twice("ENVELOPE"));
            }
        } else {
            break;
        }
    }
    match envelope {
        Some(envelope) => Ok(SinkDef { envelope, ..def }),
        None if cursor.is_done() => Err(cursor
            .unexpected(&["ENVELOPE UPSERT", "ENVELOPE DEBEZIUM"])
            .hint("UPSERT writes rows under their keys, DEBEZIUM the row before and after")),
        None => Err(cursor.unexpected(&["FORMAT", "ENVELOPE"])),
    }
}

/// The collection, which must have a key.
fn from(cursor: &mut Cursor<'_>, catalog: &dyn CatalogView) -> Result<String, Problem> {
    let Name { value: name, at } = cursor.name("a source's or a view's name")?;
    let object = known(catalog, &name, at, "a source or a view")?;
    let schema = match &object.definition {
        Definition::Source(source) => &source.schema,
        Definition::View(view) => &view.schema,
        other => {
            let found = with_article(other.kind());
            let detail = format!("\"{name}\" is {found}, not a source or a view");
            return Err(Problem::invalid(detail)
                .at(at.line, at.column)
                .expected("a collection with rows and a key"));
        }
    };
    if schema.key.is_empty() {
        let detail = format!("\"{name}\" has no key, and a sink writes rows under their keys");
        return Err(Problem::invalid(detail)
            .at(at.line, at.column)
            .expected("a collection with a key"));
    }
    Ok(name)
}

fn options(
    cursor: &mut Cursor<'_>,
    from: String,
    catalog: &dyn CatalogView,
) -> Result<SinkDef, Problem> {
    const KNOWN: Known = Known {
        what: "INTO KAFKA",
        names: &[
            "BROKERS",
            "TOPIC",
            "PARTITIONS",
            "REPLICATION",
            "PROGRESS TOPIC",
            security::NAMES[0],
            security::NAMES[1],
            security::NAMES[2],
            security::NAMES[3],
            security::NAMES[4],
            security::NAMES[5],
            security::NAMES[6],
        ],
        later: &["CONNECTION", "KEY", "HEADERS", "COMPRESSION"],
    };
    let at = cursor.position();
    let options = Options::parse(cursor, &KNOWN)?;
    for name in ["BROKERS", "TOPIC"] {
        required(&options, name, KNOWN.what, at)?;
    }
    options.refuse_empty("BROKERS")?;
    let brokers = options.text("BROKERS")?.unwrap_or_default();
    let topic = topic(&options, "TOPIC")?.unwrap_or_default();
    let progress = topic_or(&options, "PROGRESS TOPIC", PROGRESS_TOPIC_DEFAULT)?;
    if topic == progress {
        let at = options.position("TOPIC").unwrap_or(at);
        return Err(Problem::invalid("TOPIC and PROGRESS TOPIC are one topic")
            .at(at.line, at.column)
            .expected("two topics"));
    }
    let number = |name: &str, most: u64| -> Result<Option<u32>, Problem> {
        let number = options.integer(name, 1..=most)?;
        Ok(number.and_then(|number| u32::try_from(number).ok()))
    };
    Ok(SinkDef {
        from,
        brokers,
        topic,
        partitions: number("PARTITIONS", PARTITIONS_MAX)?,
        replication: number("REPLICATION", REPLICATION_MAX)?,
        progress_topic: progress,
        security: security::read(&options, catalog)?,
        registry: None,
        envelope: SinkEnvelope::Upsert,
    })
}

/// Refuses a topic that another sink writes, and one that the sink's own rows come from: those would come
/// back as changes for ever.
fn refuse_taken(def: &SinkDef, name: &str, catalog: &dyn CatalogView) -> Result<(), Problem> {
    for other in catalog.names().iter().filter(|other| *other != name) {
        let Some(Definition::Sink(sink)) = catalog.object(other).map(|found| found.definition)
        else {
            continue;
        };
        if sink.topic == def.topic && is_one_cluster(&sink.brokers, &def.brokers) {
            let detail = format!("topic '{}' is written by sink \"{other}\"", def.topic);
            return Err(Problem::invalid(detail)
                .expected("a topic of its own")
                .hint("rows of two sinks under one key would overwrite each other"));
        }
    }
    let mut from = def.from.clone();
    while let Some(object) = catalog.object(&from) {
        match object.definition {
            Definition::View(view) => from = view.from,
            Definition::Source(source) => {
                let Connector::Kafka(kafka) = &source.connector else {
                    return Ok(());
                };
                if !reads(kafka, &def.topic) || !is_one_cluster(&kafka.brokers, &def.brokers) {
                    return Ok(());
                }
                let detail = format!("topic '{}' is read by source \"{from}\"", def.topic);
                return Err(Problem::invalid(detail)
                    .expected("a topic that the rows of the sink do not come from")
                    .hint("what the sink writes would come back as changes, for ever"));
            }
            _ => return Ok(()),
        }
    }
    Ok(())
}

fn reads(kafka: &KafkaDef, topic: &str) -> bool {
    if !kafka.is_pattern {
        return kafka.topic == topic;
    }
    // A pattern that is none is refused where the source is made.
    regex::Regex::new(&format!("^(?:{})$", kafka.topic)).is_ok_and(|regex| regex.is_match(topic))
}

/// Whether two lists of brokers name one in common.
fn is_one_cluster(a: &str, b: &str) -> bool {
    let hosts = |list: &str| -> BTreeSet<String> {
        let hosts = list.split(',').map(|host| host.trim().to_lowercase());
        hosts.collect()
    };
    !hosts(a).is_disjoint(&hosts(b))
}

fn topic_or(options: &Options, name: &str, default: &str) -> Result<String, Problem> {
    Ok(topic(options, name)?.unwrap_or_else(|| default.to_owned()))
}

/// The name of a topic, by Kafka's own rule.
fn topic(options: &Options, name: &str) -> Result<Option<String>, Problem> {
    let Some(topic) = options.text(name)? else {
        return Ok(None);
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_name =
        !topic.is_empty() && topic.len() <= TOPIC_CHARS_MAX && topic.chars().all(is_plain);
    if is_name && topic != "." && topic != ".." {
        return Ok(Some(topic));
    }
    let at = options.position(name).unwrap_or_default();
    Err(
        Problem::invalid(format!("option {name} cannot be '{topic}'"))
            .at(at.line, at.column)
            .expected("1 to 249 of the characters a–z, A–Z, 0–9, '.', '_' and '-'"),
    )
}

/// The registry of Avro, or nothing for JSON.
fn registry(
    cursor: &mut Cursor<'_>,
    at: Position,
    catalog: &dyn CatalogView,
) -> Result<Option<RegistryDef>, Problem> {
    match format::read(cursor, catalog)? {
        MessageFormat::Json => Ok(None),
        MessageFormat::Avro(avro) => match *avro {
            AvroDef {
                registry: Some(registry),
                schema: None,
            } => Ok(Some(registry)),
            _ => Err(Problem::invalid("a sink's schema is made from its columns")
                .at(at.line, at.column)
                .expected("FORMAT AVRO (REGISTRY '…') without SCHEMA")),
        },
        other => Err(Problem::not_supported(format!(
            "FORMAT {} of a sink is not supported by this version",
            format::word(&other)
        ))
        .at(at.line, at.column)
        .expected("FORMAT JSON or FORMAT AVRO (REGISTRY '…')")),
    }
}

fn envelope(cursor: &mut Cursor<'_>) -> Result<SinkEnvelope, Problem> {
    if cursor.eat("UPSERT") {
        Ok(SinkEnvelope::Upsert)
    } else if cursor.eat("DEBEZIUM") {
        Ok(SinkEnvelope::Debezium)
    } else if cursor.is("APPEND") {
        let hint = "APPEND has no deletes: DEBEZIUM tells every change, UPSERT the newest row";
        Err(later(cursor, "ENVELOPE APPEND of a sink", hint))
    } else {
        Err(cursor.unexpected(&["UPSERT", "DEBEZIUM"]))
    }
}

/// The statement that makes it again.
pub(super) fn statement(name: &str, def: &SinkDef) -> String {
    let number = |name: &str, number: Option<u32>| {
        let number = number.map(|number| format!(", {name} = {number}"));
        number.unwrap_or_default()
    };
    let format = match &def.registry {
        None => MessageFormat::Json,
        Some(registry) => MessageFormat::Avro(Box::new(AvroDef {
            registry: Some(registry.clone()),
            schema: None,
        })),
    };
    let envelope = match def.envelope {
        SinkEnvelope::Upsert => "UPSERT",
        SinkEnvelope::Debezium => "DEBEZIUM",
    };
    format!(
        "CREATE SINK {name} FROM {} INTO KAFKA (BROKERS = {}, TOPIC = {}{}{}, PROGRESS TOPIC = {}{}) \
         FORMAT {} ENVELOPE {envelope}",
        ident_sql(&def.from),
        text(&def.brokers),
        text(&def.topic),
        number("PARTITIONS", def.partitions),
        number("REPLICATION", def.replication),
        text(&def.progress_topic),
        security::statement(&def.security),
        format::statement(&format),
    )
}
