//! The normalised statement of a definition: every clause and option written out, in one order.
//!
//! Law: planning the statement gives the definition again. It is what `SHOW CREATE` prints, and
//! since defaults are written out, a stored object does not change when a default does.

use engine::model::Schema;

use super::ast::ident_sql;
use super::connection::mode_word;
use super::format;
use super::interval::format_micros;
use super::kafka::part_word;
use super::security;
use crate::definition::{
    CacheDef, ChunkStrategy, Chunking, ConnectionDef, Connector, Definition, Envelope, Fusion,
    IndexDef, KafkaDef, KafkaStart, SecretDef, SlotLost,
};

/// The statement that makes an object again.
pub fn statement_of(name: &str, definition: &Definition) -> String {
    let name = ident_sql(name);
    match definition {
        Definition::Source(source) => match &source.connector {
            Connector::Push => {
                format!(
                    "CREATE SOURCE {name} FROM PUSH ({})",
                    columns(&source.schema)
                )
            }
            Connector::Files(files) => format!(
                "CREATE SOURCE {name} FROM FILES (PATH = {}, PATTERN = {}, EXTRACT = '{}')",
                text(&files.path),
                text(&files.pattern),
                if files.extract { "auto" } else { "none" }
            ),
            Connector::Generate {
                rows,
                rate,
                seed,
                dimensions,
            } => {
                let dimensions = dimensions.map(|n| format!(", DIMENSIONS = {n}"));
                format!(
                    "CREATE SOURCE {name} FROM GENERATE (ROWS = {rows}, RATE = {rate}, \
                     SEED = {seed}{})",
                    dimensions.unwrap_or_default()
                )
            }
            Connector::Kafka(def) => kafka(&name, &source.schema, def),
            Connector::Postgres(def) => format!(
                "CREATE SOURCE {name} ({}) FROM POSTGRES (CONNECTION = {}, TABLE = {})",
                columns(&source.schema),
                ident_sql(&def.connection),
                text(&def.table)
            ),
            Connector::Git(def) => super::git::normal(&name, def),
        },
        Definition::Model(model) => super::model::statement(&name, model),
        Definition::View(view) => format!("CREATE VIEW {name} AS {}", view.query),
        Definition::Index(definition) => index(&name, definition),
        Definition::Cache(definition) => cache(&name, definition),
        Definition::Secret(SecretDef::Env(variable)) => {
            format!("CREATE SECRET {name} AS ENV {}", text(variable))
        }
        Definition::Secret(SecretDef::File(path)) => {
            format!("CREATE SECRET {name} AS FILE {}", text(path))
        }
        Definition::Connection(definition) => connection(&name, definition),
        Definition::Sink(definition) => super::sink::statement(&name, definition),
    }
}

fn connection(name: &str, def: &ConnectionDef) -> String {
    let mut options = vec![
        format!("HOST = {}", text(&def.host)),
        format!("PORT = {}", def.port),
        format!("USER = {}", text(&def.user)),
    ];
    if let Some(secret) = &def.password {
        options.push(format!("PASSWORD = SECRET {}", ident_sql(secret)));
    }
    options.push(format!("DATABASE = {}", text(&def.database)));
    options.push(format!("SSLMODE = '{}'", mode_word(def.ssl_mode)));
    if let Some(file) = &def.ssl_root_cert {
        options.push(format!("SSLROOTCERT = {}", text(file)));
    }
    // Named, they would be somebody else's.
    if !def.is_own {
        options.push(format!("SLOT = {}", text(&def.slot)));
        options.push(format!("PUBLICATION = {}", text(&def.publication)));
    }
    options.push(match def.slot_lost {
        SlotLost::Stop => "SLOT LOST = 'stop'".to_owned(),
        SlotLost::Copy => "SLOT LOST = 'copy'".to_owned(),
    });
    format!(
        "CREATE CONNECTION {name} TO POSTGRES ({})",
        options.join(", ")
    )
}

fn kafka(name: &str, schema: &Schema, def: &KafkaDef) -> String {
    let declared = schema.columns.len() - def.include.len();
    let (own, included) = schema.columns.split_at(declared);
    let is_keyed = schema.key.iter().all(|at| *at < declared);
    let own = Schema {
        columns: own.to_vec(),
        key: if is_keyed {
            schema.key.clone()
        } else {
            Vec::new()
        },
    };
    let topic = if def.is_pattern {
        "TOPIC PATTERN"
    } else {
        "TOPIC"
    };
    let start = match &def.start {
        KafkaStart::Earliest => "START = 'earliest'".to_owned(),
        KafkaStart::Latest => "START = 'latest'".to_owned(),
        KafkaStart::Timestamp(millis) => {
            let time = jiff::Timestamp::from_millisecond(*millis).unwrap_or_default();
            format!("START TIMESTAMP = {}", text(&time.to_string()))
        }
        KafkaStart::Offsets(offsets) => {
            let pairs: Vec<String> = offsets.iter().map(|(p, o)| format!("{p}:{o}")).collect();
            format!("START OFFSETS = {}", text(&pairs.join(", ")))
        }
    };
    let group = def
        .group
        .as_deref()
        .map(|group| format!(", GROUP = {}", text(group)));
    let letters = def
        .dead_letter_topic
        .as_deref()
        .map(|topic| format!(", DEAD LETTER TOPIC = {}", text(topic)));
    let transactions = def.transactions.as_ref().map(|def| {
        let wait = format_micros(def.wait_micros);
        let (topic, wait) = (text(&def.topic), text(&wait));
        format!(", TRANSACTION TOPIC = {topic}, TRANSACTION WAIT = {wait}")
    });
    let parts = def.include.iter().zip(included);
    let parts: Vec<String> = parts
        .map(|(part, column)| format!("{} AS {}", part_word(*part), ident_sql(&column.name)))
        .collect();
    let include = match parts.is_empty() {
        true => String::new(),
        false => format!(" INCLUDE {}", parts.join(", ")),
    };
    let envelope = match &def.envelope {
        Envelope::Append => "APPEND".to_owned(),
        Envelope::Upsert => "UPSERT".to_owned(),
        Envelope::Debezium {
            unavailable,
            binary,
            decimal,
            time,
        } => format!(
            "DEBEZIUM WITH (UNAVAILABLE VALUE = {}, BINARY MODE = {}, DECIMAL MODE = {}, \
             TIME PRECISION = {})",
            text(unavailable),
            text(binary),
            text(decimal),
            text(time)
        ),
    };
    format!(
        "CREATE SOURCE {name} ({}) FROM KAFKA (BROKERS = {}, {topic} = {}, {start}{}{}{}{}) \
         KEY FORMAT {} VALUE FORMAT {}{include} ENVELOPE {envelope}",
        columns(&own),
        text(&def.brokers),
        text(&def.topic),
        group.unwrap_or_default(),
        letters.unwrap_or_default(),
        transactions.unwrap_or_default(),
        security::statement(&def.security),
        format::statement(&def.key_format),
        format::statement(&def.value_format),
    )
}

/// A string literal.
pub(super) fn text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn columns(schema: &Schema) -> String {
    let mut parts: Vec<String> = schema
        .columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let constraint = match (schema.key == [at], column.nullable) {
                (true, _) => " PRIMARY KEY",
                (false, false) if !schema.key.contains(&at) => " NOT NULL",
                _ => "",
            };
            let sql_type = column.sql_type.to_string().to_uppercase();
            format!("{} {sql_type}{constraint}", ident_sql(&column.name))
        })
        .collect();
    if schema.key.len() > 1 {
        let key: Vec<String> = schema
            .key
            .iter()
            .map(|at| ident_sql(&schema.columns[*at].name))
            .collect();
        parts.push(format!("PRIMARY KEY ({})", key.join(", ")));
    }
    parts.join(", ")
}

/// `markdown(max_tokens => 256)`: canonical, so that it may be hashed into chunk ids.
pub(super) fn chunking(chunking: &Chunking) -> String {
    let Chunking {
        strategy,
        max_tokens,
        overlap,
        heading_prefix,
    } = chunking;
    match strategy {
        ChunkStrategy::None => "none".to_owned(),
        ChunkStrategy::Markdown if *heading_prefix => {
            format!("markdown(max_tokens => {max_tokens}, headings => 'prefix')")
        }
        ChunkStrategy::Markdown => format!("markdown(max_tokens => {max_tokens})"),
        ChunkStrategy::Recursive | ChunkStrategy::Fixed => {
            let name = if *strategy == ChunkStrategy::Fixed {
                "fixed"
            } else {
                "recursive"
            };
            match overlap {
                0 => format!("{name}(max_tokens => {max_tokens})"),
                _ => format!("{name}(max_tokens => {max_tokens}, overlap => {overlap})"),
            }
        }
    }
}

/// `HYBRID`, `VECTOR` or `KEYWORD`.
pub(super) fn method(index: &IndexDef) -> &'static str {
    match (index.vector, index.keyword) {
        (true, true) => "HYBRID",
        (true, false) => "VECTOR",
        _ => "KEYWORD",
    }
}

fn index(name: &str, index: &IndexDef) -> String {
    let mut out = format!(
        "CREATE INDEX {name} ON {} USING {} ({}) CHUNK BY {}",
        ident_sql(&index.on),
        method(index),
        ident_sql(&index.column),
        chunking(&index.chunking)
    );
    if let Some(model) = &index.model {
        out += &format!(" EMBED WITH {}", ident_sql(model));
    }
    if !index.include.is_empty() {
        let names: Vec<String> = index.include.iter().map(|name| ident_sql(name)).collect();
        out += &format!(" INCLUDE ({})", names.join(", "));
    }
    let mut options = Vec::new();
    if index.keyword {
        options.push(format!("ANALYZER = {}", text(&index.analyzer)));
    }
    if index.vector {
        options.push(format!("QUANTIZATION = {}", text(&index.quantization)));
    }
    options.push(format!("RETAIN = '{}'", format_micros(index.retain_micros)));
    if index.vector {
        let deadline = format_micros(index.embed_deadline_ms.saturating_mul(1_000));
        options.push(format!("EMBED DEADLINE = '{deadline}'"));
    }
    if index.vector && index.keyword {
        match index.fusion {
            Fusion::Convex { weight } => {
                options.push(format!("FUSION = 'convex', WEIGHT = {weight}"));
            }
            Fusion::Rrf => options.push("FUSION = 'rrf'".to_owned()),
        }
    }
    out + &format!(" WITH ({})", options.join(", "))
}

fn cache(name: &str, cache: &CacheDef) -> String {
    format!(
        "CREATE CACHE {name} ON {} WITH (K = {}, SIMILARITY = {}, TTL = '{}', CAPACITY = {}, \
         RETRIEVAL = '{}')",
        ident_sql(&cache.index),
        cache.k,
        cache.similarity,
        format_micros(cache.ttl_micros),
        cache.capacity,
        if cache.exact { "exact" } else { "index" }
    )
}
