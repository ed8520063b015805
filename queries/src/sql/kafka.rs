//! `FROM KAFKA (…)` and the clauses behind it.
//!
//! ```text
//! FROM KAFKA (BROKERS '…', TOPIC '…' | TOPIC PATTERN '…' [, START 'earliest' | 'latest'
//!             | START TIMESTAMP '…' | START OFFSETS '0:42, 1:7'] [, GROUP '…']
//!             [, DEAD LETTER TOPIC '…'] [, TRANSACTION TOPIC '…' [, TRANSACTION WAIT '…']] [, SECURITY PROTOCOL '…', …])  (see [`super::security`])
//!      [FORMAT f | KEY FORMAT f VALUE FORMAT f]  (see [`super::format`])  [INCLUDE KEY [AS name], PARTITION, …]
//!      [ENVELOPE APPEND | UPSERT | DEBEZIUM [WITH (UNAVAILABLE VALUE '…', BINARY MODE '…', …)]]
//! ```
//!
//! Included columns are the schema's last, in their order. Without a primary key an APPEND source
//! is keyed by where a message lies: (topic,) partition and offset.

use datafusion_sql::sqlparser::tokenizer::Token;
use engine::model::{Column, Schema, SqlType};

use super::catalog::CatalogView;
use super::cursor::Cursor;
use super::options::{Known, Options};
use super::source::{Columns, required};
use super::{format, security};
use crate::definition::{
    Connector, Envelope, KafkaDef, KafkaStart, MessageFormat, MessagePart, SourceDef,
    TransactionsDef,
};
use crate::problem::{Position, Problem};

/// Debezium's default of `unavailable.value.placeholder`.
pub(super) const UNAVAILABLE_DEFAULT: &str = "__debezium_unavailable_value";

/// What the modes may be; the first is the default.
const BINARY: [&str; 3] = ["bytes", "base64", "hex"];
const DECIMAL: [&str; 2] = ["precise", "string"];
const TIME: [&str; 3] = ["micros", "millis", "nanos"];

/// Shortest and longest TRANSACTION WAIT, and the default, microseconds.
const WAIT: std::ops::RangeInclusive<u64> = 100_000..=600_000_000;
const WAIT_DEFAULT: u64 = 5_000_000;

/// Parts with their words, default names and types.
const PARTS: [(&str, MessagePart, SqlType); 6] = [
    ("KEY", MessagePart::Key, SqlType::Text),
    ("TOPIC", MessagePart::Topic, SqlType::Text),
    ("PARTITION", MessagePart::Partition, SqlType::Int4),
    ("OFFSET", MessagePart::Offset, SqlType::Int8),
    ("TIMESTAMP", MessagePart::Timestamp, SqlType::TimestampTz),
    ("HEADERS", MessagePart::Headers, SqlType::Jsonb),
];

/// The word of a part.
pub(super) fn part_word(part: MessagePart) -> &'static str {
    let found = PARTS.iter().find(|(_, known, _)| *known == part);
    found.map_or("KEY", |(word, ..)| word)
}

/// The clauses behind the option list, each at most once.
#[derive(Default)]
struct Clauses {
    key_format: Option<MessageFormat>,
    value_format: Option<MessageFormat>,
    /// Where one format was given whose schema is the value's alone.
    value_only: Option<Position>,
    envelope: Option<(Envelope, Position)>,
    include: Vec<(MessagePart, Column)>,
}

/// Reads what stands behind `FROM KAFKA`; `columns` stood before it.
pub(super) fn kafka(
    cursor: &mut Cursor<'_>,
    columns: Option<Columns>,
    name_at: Position,
    catalog: &dyn CatalogView,
) -> Result<SourceDef, Problem> {
    let at = cursor.position();
    let Some(columns) = columns else {
        return Err(
            Problem::invalid("a source FROM KAFKA needs its columns declared")
                .at(name_at.line, name_at.column)
                .expected("CREATE SOURCE name (column TYPE, …) FROM KAFKA (…)")
                .hint("a message's members become the columns of the same name"),
        );
    };
    let mut def = options(cursor, at, catalog)?;
    let clauses = clauses(cursor, catalog)?;
    def.key_format = clauses.key_format.unwrap_or(MessageFormat::Json);
    def.value_format = clauses.value_format.unwrap_or(MessageFormat::Json);
    let envelope_at = clauses.envelope.as_ref().map_or(at, |(_, at)| *at);
    def.envelope = clauses
        .envelope
        .map_or(Envelope::Append, |(envelope, _)| envelope);
    if let (Some(at), false) = (clauses.value_only, def.envelope == Envelope::Append) {
        return Err(Problem::invalid(
            "SCHEMA is the value's, and this envelope needs the key, too",
        )
        .at(at.line, at.column)
        .expected("KEY FORMAT AVRO (SCHEMA '…') VALUE FORMAT AVRO (SCHEMA '…')"));
    }
    let schema = schema(columns, clauses.include, &mut def, envelope_at)?;
    check_formats(&def, &schema, envelope_at)?;
    Ok(SourceDef {
        schema,
        connector: Connector::Kafka(Box::new(def)),
    })
}

fn options(
    cursor: &mut Cursor<'_>,
    at: Position,
    catalog: &dyn CatalogView,
) -> Result<KafkaDef, Problem> {
    const KNOWN: Known = Known {
        what: "FROM KAFKA",
        names: &[
            "BROKERS",
            "TOPIC",
            "TOPIC PATTERN",
            "START",
            "START TIMESTAMP",
            "START OFFSETS",
            "GROUP",
            "DEAD LETTER TOPIC",
            "TRANSACTION TOPIC",
            "TRANSACTION WAIT",
            security::NAMES[0],
            security::NAMES[1],
            security::NAMES[2],
            security::NAMES[3],
            security::NAMES[4],
            security::NAMES[5],
            security::NAMES[6],
        ],
        later: &["CONNECTION"],
    };
    let options = Options::parse(cursor, &KNOWN)?;
    required(&options, "BROKERS", KNOWN.what, at)?;
    let brokers = options.text("BROKERS")?.unwrap_or_default();
    let (topic, pattern) = (options.text("TOPIC")?, options.text("TOPIC PATTERN")?);
    let is_pattern = pattern.is_some();
    let topic = match (topic, pattern) {
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => {
            required(&options, "TOPIC", KNOWN.what, at)?;
            String::new()
        }
        (Some(_), Some(_)) => {
            let at = options.position("TOPIC PATTERN").unwrap_or(at);
            return Err(
                Problem::syntax("TOPIC and TOPIC PATTERN exclude each other")
                    .at(at.line, at.column)
                    .expected("one of them"),
            );
        }
    };
    let letters = options.text("DEAD LETTER TOPIC")?;
    let transactions = options.text("TRANSACTION TOPIC")?;
    for name in ["BROKERS", "TOPIC", "DEAD LETTER TOPIC", "TRANSACTION TOPIC"] {
        options.refuse_empty(name)?;
    }
    let transactions = self::transactions(&options, transactions, &topic)?;
    Ok(KafkaDef {
        brokers,
        topic,
        is_pattern,
        start: start(&options)?,
        group: options.text("GROUP")?,
        dead_letter_topic: letters,
        transactions,
        security: security::read(&options, catalog)?,
        key_format: MessageFormat::Json,
        value_format: MessageFormat::Json,
        envelope: Envelope::Append,
        include: Vec::new(),
    })
}

/// `TRANSACTION TOPIC` with its wait.
fn transactions(
    options: &Options,
    topic: Option<String>,
    own: &str,
) -> Result<Option<TransactionsDef>, Problem> {
    let expected = "from 100 milliseconds to 10 minutes";
    let wait = options.duration("TRANSACTION WAIT", WAIT, expected)?;
    if let Some(topic) = topic {
        if topic == own {
            let at = options.position("TRANSACTION TOPIC").unwrap_or_default();
            return Err(Problem::invalid(format!(
                "TRANSACTION TOPIC '{topic}' is the topic that the source reads"
            ))
            .at(at.line, at.column)
            .expected("the connector's topic of transaction metadata, 'prefix.transaction'"));
        }
        let wait_micros = wait.unwrap_or(WAIT_DEFAULT);
        return Ok(Some(TransactionsDef { topic, wait_micros }));
    }
    match options.position("TRANSACTION WAIT") {
        None => Ok(None),
        Some(at) => Err(Problem::invalid(
            "TRANSACTION WAIT is without effect here: there is nothing to wait for",
        )
        .at(at.line, at.column)
        .expected("TRANSACTION TOPIC 'prefix.transaction' beside it")),
    }
}

fn start(options: &Options) -> Result<KafkaStart, Problem> {
    let given: Vec<&str> = ["START", "START TIMESTAMP", "START OFFSETS"]
        .into_iter()
        .filter(|name| options.position(name).is_some())
        .collect();
    if let [first, second, ..] = given[..] {
        let at = options.position(second).unwrap_or_default();
        return Err(
            Problem::syntax(format!("{first} and {second} exclude each other"))
                .at(at.line, at.column)
                .expected("one of them"),
        );
    }
    if let Some(text) = options.text("START TIMESTAMP")? {
        let at = options.position("START TIMESTAMP").unwrap_or_default();
        let time: jiff::Timestamp = text.parse().map_err(|_| {
            Problem::invalid(format!("'{text}' is no time"))
                .at(at.line, at.column)
                .expected("RFC 3339, like '2026-11-21T10:00:00Z'")
        })?;
        return Ok(KafkaStart::Timestamp(time.as_millisecond()));
    }
    if let Some(text) = options.text("START OFFSETS")? {
        let at = options.position("START OFFSETS").unwrap_or_default();
        let one = |part: &str| -> Option<(i32, i64)> {
            let (partition, offset) = part.split_once(':')?;
            let partition: i32 = partition.trim().parse().ok()?;
            let offset: i64 = offset.trim().parse().ok()?;
            (partition >= 0 && offset >= 0).then_some((partition, offset))
        };
        let mut offsets: Vec<(i32, i64)> = Vec::new();
        for part in text.split(',') {
            let known = |partition| offsets.iter().any(|(other, _)| *other == partition);
            match one(part).filter(|(partition, _)| !known(*partition)) {
                Some(pair) => offsets.push(pair),
                None => {
                    return Err(Problem::invalid(format!(
                        "'{}' is no new partition with its offset",
                        part.trim()
                    ))
                    .at(at.line, at.column)
                    .expected("partition:offset, …, like '0:42, 1:7'"));
                }
            }
        }
        offsets.sort_unstable();
        return Ok(KafkaStart::Offsets(offsets));
    }
    let word = options.choice("START", &["earliest", "latest"])?;
    Ok(match word {
        Some("latest") => KafkaStart::Latest,
        _ => KafkaStart::Earliest,
    })
}

fn clauses(cursor: &mut Cursor<'_>, catalog: &dyn CatalogView) -> Result<Clauses, Problem> {
    let mut clauses = Clauses::default();
    loop {
        let at = cursor.position();
        let twice = |what: &str| {
            Problem::syntax(format!("{what} is given twice"))
                .at(at.line, at.column)
                .expected("each clause at most once")
        };
        if cursor.eat("FORMAT") {
            if clauses.key_format.is_some() || clauses.value_format.is_some() {
                return Err(twice("the format"));
            }
            let format = format::read(cursor, catalog)?;
            let key = format::key_of(&format);
            clauses.value_only = key.is_none().then_some(at);
            clauses.key_format = Some(key.unwrap_or(MessageFormat::Json));
            clauses.value_format = Some(format);
        } else if cursor.eat_all(&["KEY", "FORMAT"]) {
            let format = format::read(cursor, catalog)?;
            if clauses.key_format.replace(format).is_some() {
                return Err(twice("the key's format"));
            }
        } else if cursor.eat_all(&["VALUE", "FORMAT"]) {
            let format = format::read(cursor, catalog)?;
            if clauses.value_format.replace(format).is_some() {
                return Err(twice("the value's format"));
            }
        } else if cursor.eat("INCLUDE") {
            if !clauses.include.is_empty() {
                return Err(twice("INCLUDE"));
            }
            clauses.include = include(cursor)?;
        } else if cursor.eat("ENVELOPE") {
            let envelope = envelope(cursor)?;
            if clauses.envelope.replace((envelope, at)).is_some() {
                return Err(twice("ENVELOPE"));
            }
        } else if cursor.eat("WITH") {
            with(cursor, &mut clauses, at)?;
        } else {
            return Ok(clauses);
        }
    }
}

fn envelope(cursor: &mut Cursor<'_>) -> Result<Envelope, Problem> {
    if cursor.eat("APPEND") || cursor.eat("NONE") {
        Ok(Envelope::Append)
    } else if cursor.eat("UPSERT") {
        Ok(Envelope::Upsert)
    } else if cursor.eat("DEBEZIUM") {
        Ok(Envelope::Debezium {
            unavailable: UNAVAILABLE_DEFAULT.to_owned(),
            binary: BINARY[0].to_owned(),
            decimal: DECIMAL[0].to_owned(),
            time: TIME[0].to_owned(),
        })
    } else {
        Err(cursor.unexpected(&["APPEND", "UPSERT", "DEBEZIUM"]))
    }
}

fn with(cursor: &mut Cursor<'_>, clauses: &mut Clauses, at: Position) -> Result<(), Problem> {
    const KNOWN: Known = Known {
        what: "a source FROM KAFKA",
        names: &[
            "UNAVAILABLE VALUE",
            "BINARY MODE",
            "DECIMAL MODE",
            "TIME PRECISION",
        ],
        later: &[],
    };
    let options = Options::parse(cursor, &KNOWN)?;
    let Some((
        Envelope::Debezium {
            unavailable,
            binary,
            decimal,
            time,
        },
        _,
    )) = &mut clauses.envelope
    else {
        return Err(
            Problem::invalid("these options belong to ENVELOPE DEBEZIUM")
                .at(at.line, at.column)
                .hint("write ENVELOPE DEBEZIUM before WITH"),
        );
    };
    if let Some(text) = options.text("UNAVAILABLE VALUE")? {
        *unavailable = text;
    }
    for (name, choices, into) in [
        ("BINARY MODE", &BINARY[..], binary),
        ("DECIMAL MODE", &DECIMAL, decimal),
        ("TIME PRECISION", &TIME, time),
    ] {
        if let Some(choice) = options.choice(name, choices)? {
            choice.clone_into(into);
        }
    }
    Ok(())
}

fn include(cursor: &mut Cursor<'_>) -> Result<Vec<(MessagePart, Column)>, Problem> {
    let mut included = Vec::new();
    loop {
        let at = cursor.position();
        let found = PARTS.iter().find(|(word, ..)| cursor.is(word));
        let Some((word, part, sql_type)) = found else {
            let words: Vec<&str> = PARTS.iter().map(|(word, ..)| *word).collect();
            return Err(cursor.unexpected(&words));
        };
        cursor.next();
        if included.iter().any(|(other, _)| other == part) {
            return Err(Problem::syntax(format!("{word} is included twice")).at(at.line, at.column));
        }
        let name = match cursor.eat("AS") {
            true => cursor.name("a column's name")?.value,
            false => word.to_lowercase(),
        };
        included.push((*part, Column::new(&name, *sql_type)));
        if !cursor.eat_token(&Token::Comma) {
            return Ok(included);
        }
    }
}

/// Declared columns, then included ones, and the key.
fn schema(
    columns: Columns,
    mut include: Vec<(MessagePart, Column)>,
    def: &mut KafkaDef,
    envelope_at: Position,
) -> Result<Schema, Problem> {
    let Columns { mut schema, at } = columns;
    let is_keyed = !schema.key.is_empty();
    let mut place = vec![MessagePart::Partition, MessagePart::Offset];
    if def.is_pattern {
        place.insert(0, MessagePart::Topic);
    }
    if !is_keyed {
        if def.envelope != Envelope::Append {
            return Err(Problem::invalid(
                "this envelope changes rows: the source needs a primary key",
            )
            .at(envelope_at.line, envelope_at.column)
            .expected("PRIMARY KEY at a column, or PRIMARY KEY (a, b)"));
        }
        for part in &place {
            if !include.iter().any(|(other, _)| other == part) {
                let (word, _, sql_type) = PARTS
                    .iter()
                    .find(|(_, known, _)| known == part)
                    .expect("all parts are listed");
                include.push((*part, Column::new(&word.to_lowercase(), *sql_type)));
            }
        }
    }
    for (part, column) in include {
        if schema.position(&column.name).is_some() {
            return Err(
                Problem::invalid(format!("column \"{}\" is there already", column.name))
                    .at(at.line, at.column)
                    .hint(format!("INCLUDE {} AS another_name", part_word(part))),
            );
        }
        let is_place = place.contains(&part);
        if !is_keyed && is_place {
            schema.key.push(schema.columns.len());
        }
        schema.columns.push(Column {
            nullable: !is_place,
            ..column
        });
        def.include.push(part);
    }
    schema.key.sort_unstable();
    Ok(schema)
}

/// A format of one value needs exactly one column to put it in.
fn check_formats(def: &KafkaDef, schema: &Schema, at: Position) -> Result<(), Problem> {
    let is_debezium = matches!(def.envelope, Envelope::Debezium { .. });
    let is_one = |format: &_| matches!(format, MessageFormat::Text | MessageFormat::Bytes);
    let is_nested = |format: &_| matches!(format, MessageFormat::Json | MessageFormat::Avro(_));
    if is_debezium && !(is_nested(&def.key_format) && is_nested(&def.value_format)) {
        return Err(Problem::invalid("change events have members")
            .at(at.line, at.column)
            .expected("FORMAT JSON or FORMAT AVRO with ENVELOPE DEBEZIUM"));
    }
    if !is_debezium && def.transactions.is_some() {
        return Err(
            Problem::invalid("TRANSACTION TOPIC belongs to ENVELOPE DEBEZIUM")
                .at(at.line, at.column)
                .hint("its topic has what Debezium writes with provide.transaction.metadata=true"),
        );
    }
    if is_debezium && def.is_pattern {
        return Err(Problem::not_supported(
            "TOPIC PATTERN with ENVELOPE DEBEZIUM is not supported by this version",
        )
        .at(at.line, at.column)
        .hint("rows of several tables are not told apart: give each table a source of its own"));
    }
    let declared = schema.columns.len() - def.include.len();
    let keys = schema.key.iter().filter(|at| **at < declared).count();
    let values = declared - keys;
    if is_one(&def.value_format) && values != 1 {
        return Err(Problem::invalid(format!(
            "FORMAT {} is one value, and {values} columns could take it",
            format::word(&def.value_format)
        ))
        .at(at.line, at.column)
        .expected("exactly one column beside the key"));
    }
    if def.envelope == Envelope::Upsert && is_one(&def.key_format) && keys != 1 {
        return Err(Problem::invalid(format!(
            "KEY FORMAT {} is one value, and the key has {keys} columns",
            format::word(&def.key_format)
        ))
        .at(at.line, at.column)
        .expected("a primary key of one column"));
    }
    Ok(())
}
