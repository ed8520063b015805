//! Where the crates meet: connectors and models are given to the service.
//!
//! Public for tests and benches, which run the engine in their own process and must not wire it
//! another way.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use connectors::envelope::{self, BinaryMode, DecimalMode, Metadata, TimePrecision};
use connectors::files::{Extractor, FilesSource};
use connectors::format::Format;
use connectors::format::avro::{Address, Registry, Schema as AvroSchema, Schemas};
use connectors::format::csv::Csv;
use connectors::git::{GitOptions, GitSource};
use connectors::kafka::transactions::Groups;
use connectors::kafka::{
    KafkaOptions, KafkaSource, Login, Mechanism, Security, Start, TransactionTopic,
};
use connectors::postgres::{Connections, PostgresOptions, TableName, TlsMode};
use connectors::sink::{Envelope as SinkKind, KafkaSink, SinkOptions};
use engine::contract::{Embedder, Sink, Source};
use engine::durable::{LocalStore, VectorOptions};
use engine::error::{DeadLetter, WorldError};
use engine::letters::Redecoded;
use engine::model::{Column, RowCodec, Schema};
use engine::runtime::SystemClock;
use engine::telemetry;
use operators::embed::remote::{Encoding, KeySource};
use operators::embed::{EmbedConfig, Prompts, RemoteEmbedder, RemoteOptions};
use queries::api::PushLine;
use queries::definition::{
    AvroDef, Connector, Envelope, FilesDef, GitDef, KafkaDef, KafkaSecurity, KafkaStart,
    MessageFormat, MessagePart, ModelDef, PasswordDef, RegistryDef, RemoteModelDef, SaslMechanism,
    SinkDef, SinkEnvelope, SlotLost, SourceDef, SslMode,
};
use queries::service::{Access, Connect, Connection, DecodedPush, ModelKey, Rejected, Wiring};
use queries::sql::DatabaseTable;

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
        load_model: Arc::new(move |name, model, key| {
            load_model(name, model, key, models.as_deref())
        }),
        connect: connector_with(Some(&options.data), extractor(), options.workers),
        connect_sink: Arc::new(connect_sink),
        describe: Arc::new(describe),
        decode_push: Arc::new(decode_push),
        redecode: Arc::new(move |source, access, letter| {
            redecode_with(source, access, letter, extractor())
        }),
        metrics: Arc::new(move || telemetry.render()),
        builder_threads: 1,
        vectors: VectorOptions::default(),
        embed: EmbedConfig {
            document_threads: options.embed_threads,
            ..EmbedConfig::default()
        },
    })
}

/// Loads a model's encoder from `models` (default: the user's data folder), fetching it when it is
/// nowhere on this machine; of a remote one only the way is prepared.
pub fn load_model(
    name: &str,
    model: &ModelDef,
    key: Option<ModelKey>,
    models: Option<&Path>,
) -> Result<Arc<dyn Embedder>, WorldError> {
    match model {
        ModelDef::Pretrained {
            location,
            device,
            precision,
            shape,
        } => {
            let shape = operators::embed::Shape {
                dimensions: shape.dimensions.map(|n| n as usize),
                query_prompt: shape.query_prompt.clone(),
                document_prompt: shape.document_prompt.clone(),
            };
            operators::embed::load_in(models, location, device, precision, &shape, &|progress| {
                tracing::info!(
                    what = progress.what,
                    done_bytes = progress.done_bytes,
                    total_bytes = progress.total_bytes,
                    "fetching the model"
                );
            })
        }
        ModelDef::Remote(def) => {
            let options = remote(name, def, key);
            Ok(Arc::new(RemoteEmbedder::new(options, models)?))
        }
        ModelDef::Column { .. } => Err(WorldError::Service {
            service: format!("model \"{name}\""),
            detail: "vectors arrive in a column: there is no encoder".to_owned(),
            is_transient: false,
        }),
    }
}

fn remote(name: &str, def: &RemoteModelDef, key: Option<ModelKey>) -> RemoteOptions {
    let place = def.secret().map(|secret| format!("secret \"{secret}\", "));
    RemoteOptions {
        name: name.to_owned(),
        model: def.model.clone(),
        url: def.url.clone(),
        key: key.map(|key| {
            let place = format!("{}{}", place.unwrap_or_default(), key.place());
            let read: KeySource = Arc::new(move || key.read());
            (place, read)
        }),
        dimensions: def.dimensions as usize,
        sends_dimensions: def.sends_dimensions,
        max_tokens: def.max_tokens as usize,
        batch_texts: def.batch as usize,
        batch_tokens: def.batch_tokens as usize,
        calls: def.concurrency as usize,
        requests_per_minute: def.requests_per_minute,
        timeout: Duration::from_micros(def.timeout_micros),
        encoding: match def.is_base64 {
            true => Encoding::Base64,
            false => Encoding::Float,
        },
        prompts: Prompts {
            query: def.query_prompt.clone(),
            document: def.document_prompt.clone(),
        },
        tokenizer: def.tokenizer.clone(),
    }
}

/// This program once more, for what must not harm this process.
fn extractor() -> Extractor {
    // On Linux the file may have been replaced meanwhile; this name stays the running one's.
    let own = Path::new("/proc/self/exe");
    match own.exists() {
        true => Extractor::program(own.to_owned()),
        false => {
            std::env::current_exe().map_or_else(|_| Extractor::in_process(), Extractor::program)
        }
    }
}

/// As [`connector_with`], for tests: documents are read in this process.
pub fn connector(data: Option<&Path>, readers: usize) -> Arc<Connect> {
    connector_with(data, Extractor::in_process(), readers)
}

/// Makes readers of sources. Those that it makes for one PostgreSQL connection share a slot, those for
/// one Kafka transaction topic wait for each other's events. Below the data folder (without one: in
/// temporary folders) are mirrors of git repositories behind URLs, and what PostgreSQL sends before its
/// commit; both may be deleted while nothing runs. A Kafka source reads on `readers` threads, at most.
pub fn connector_with(data: Option<&Path>, extractor: Extractor, readers: usize) -> Arc<Connect> {
    let (databases, groups) = (Connections::default(), Groups::default());
    let machine = Machine {
        mirrors: data.map(|data| data.join("git")),
        open: data.map_or_else(std::env::temp_dir, |data| data.join("open")),
        readers,
    };
    Arc::new(move |source, name, access| {
        let shared = (&databases, &groups, &extractor);
        connect(shared, &machine, source, name, access)
    })
}

/// What sources may have of this machine.
struct Machine {
    /// Mirrors of git repositories behind URLs.
    mirrors: Option<PathBuf>,
    /// Transactions of databases that are not committed.
    open: PathBuf,
    /// Threads that read one Kafka source, at most.
    readers: usize,
}

/// Makes the reader of a source; pushes have none.
fn connect(
    (databases, groups, extractor): (&Connections, &Groups, &Extractor),
    machine: &Machine,
    source: &SourceDef,
    name: &str,
    access: &Access,
) -> Result<Option<Box<dyn Source>>, WorldError> {
    Ok(match &source.connector {
        Connector::Push => None,
        Connector::Files(files) => Some(Box::new(
            self::files(files)?.extracted_by(extractor.clone()),
        )),
        Connector::Generate {
            rows,
            rate,
            seed,
            dimensions,
        } => Some(connectors::generate(*rows, *rate, *seed, *dimensions)),
        Connector::Kafka(kafka) => {
            let kafka = self::kafka(&source.schema, kafka, access, machine.readers)?;
            Some(Box::new(kafka.grouped(groups)))
        }
        Connector::Git(git) => Some(Box::new(self::git(name, git, machine.mirrors.as_deref())?)),
        Connector::Postgres(postgres) => {
            let connection = access
                .connection
                .as_ref()
                .ok_or_else(|| WorldError::Service {
                    service: format!("connection \"{}\"", postgres.connection),
                    detail: "it was not given".to_owned(),
                    is_transient: false,
                })?;
            let table = TableName::parse(&postgres.table);
            let schema = source.schema.clone();
            Some(Box::new(databases.source(
                database(connection, &machine.open)?,
                table,
                schema,
            )))
        }
    })
}

/// Asks a database for the columns of a table. Blocks; may be called from an asynchronous task.
pub fn describe(connection: &Connection, table: &str) -> Result<Schema, WorldError> {
    let options = database(connection, &std::env::temp_dir())?;
    let table = TableName::parse(table);
    // It has a runtime of its own, which a task's thread cannot enter.
    let asked = std::thread::spawn(move || connectors::postgres::describe(&options, &table));
    asked.join().unwrap_or_else(|_| {
        Err(WorldError::Service {
            service: "PostgreSQL".to_owned(),
            detail: "asking for the columns ended by a defect; the log has the panic".to_owned(),
            is_transient: false,
        })
    })
}

/// `folder`: where transactions lie that are not committed.
fn database(connection: &Connection, folder: &Path) -> Result<PostgresOptions, WorldError> {
    let definition = &connection.definition;
    let host = |text: &str| {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (text, definition.port),
        };
        Some((host.trim().to_owned(), port))
    };
    let hosts: Option<Vec<(String, u16)>> = definition.host.split(',').map(host).collect();
    let hosts = hosts.ok_or_else(|| WorldError::Service {
        service: format!("connection \"{}\"", connection.name),
        detail: format!("HOST '{}' is no list of host or host:port", definition.host),
        is_transient: false,
    })?;
    Ok(PostgresOptions {
        name: connection.name.clone(),
        hosts,
        database: definition.database.clone(),
        user: definition.user.clone(),
        password: connection.password.clone(),
        tls: match definition.ssl_mode {
            SslMode::Disable => TlsMode::Disable,
            SslMode::Prefer => TlsMode::Prefer,
            SslMode::Require => TlsMode::Require,
            SslMode::VerifyCa => TlsMode::VerifyCa,
            SslMode::VerifyFull => TlsMode::VerifyFull,
        },
        authorities: definition.ssl_root_cert.as_ref().map(Into::into),
        slot: definition.slot.clone(),
        publication: definition.publication.clone(),
        is_own: definition.is_own,
        copies_again: definition.slot_lost == SlotLost::Copy,
        folder: folder.to_owned(),
    })
}

fn git(name: &str, git: &GitDef, mirrors: Option<&Path>) -> Result<GitSource, WorldError> {
    let options = GitOptions {
        repository: git.repository.clone(),
        branch: git.branch.clone(),
        pattern: git.pattern.clone(),
        exclude: git.exclude.clone(),
        from: git.from_commit.clone(),
        interval: git.interval_micros.map(Duration::from_micros),
        token_env: git.token_env.clone(),
        mirrors: mirrors.map(Path::to_owned),
    };
    GitSource::new(name, options)
}

fn kafka(
    schema: &Schema,
    kafka: &KafkaDef,
    access: &Access,
    readers: usize,
) -> Result<KafkaSource, WorldError> {
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
        dead_letter_topic: kafka.dead_letter_topic.clone(),
        transactions: kafka.transactions.as_ref().map(|def| TransactionTopic {
            topic: def.topic.clone(),
            wait: Duration::from_micros(def.wait_micros),
        }),
        security: security(&kafka.security, access)?,
        readers,
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
        key_format: format(&kafka.key_format, &keys, access)?,
        value_format: format(&kafka.value_format, &all[..first], access)?,
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

/// Makes the writer of a sink.
pub fn connect_sink(
    sink: &SinkDef,
    _name: &str,
    codec: &Arc<RowCodec>,
    access: &Access,
) -> Result<Box<dyn Sink>, WorldError> {
    let count = |count: Option<u32>| count.map(|count| i32::try_from(count).unwrap_or(i32::MAX));
    let registry = sink.registry.as_ref();
    let options = SinkOptions {
        brokers: sink.brokers.clone(),
        topic: sink.topic.clone(),
        partitions: count(sink.partitions),
        replication: count(sink.replication),
        progress_topic: sink.progress_topic.clone(),
        security: security(&sink.security, access)?,
        registry: registry.map(|def| address(def, access)).transpose()?,
        envelope: match sink.envelope {
            SinkEnvelope::Upsert => SinkKind::Upsert,
            SinkEnvelope::Debezium => SinkKind::Debezium,
        },
    };
    Ok(Box::new(KafkaSink::new(options, Arc::clone(codec))?))
}

fn security(def: &KafkaSecurity, access: &Access) -> Result<Security, WorldError> {
    let login = def.login.as_ref().map(|login| {
        Ok(Login {
            mechanism: match login.mechanism {
                SaslMechanism::Plain => Mechanism::Plain,
                SaslMechanism::ScramSha256 => Mechanism::ScramSha256,
                SaslMechanism::ScramSha512 => Mechanism::ScramSha512,
            },
            username: login.username.clone(),
            password: access.secret(&login.password)?.to_owned(),
        })
    });
    let certificate = def.certificate.as_ref();
    Ok(Security {
        has_tls: def.has_tls,
        login: login.transpose()?,
        authorities: def.authorities.as_ref().map(Into::into),
        certificate: certificate.map(|(certificate, key)| (certificate.into(), key.into())),
    })
}

/// Makes a format whose records, where they have no names, are of these columns.
fn format(
    format: &MessageFormat,
    columns: &[&Column],
    access: &Access,
) -> Result<Format, WorldError> {
    Ok(match format {
        MessageFormat::Json => Format::Json,
        MessageFormat::Text => Format::Text,
        MessageFormat::Bytes => Format::Bytes,
        MessageFormat::Avro(def) => Format::Avro(avro(def, access)?),
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

fn avro(def: &AvroDef, access: &Access) -> Result<Schemas, WorldError> {
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
    let address = address(registry, access)?;
    Ok(Schemas::Registry(Registry::new(&address, schema)))
}

fn address(registry: &RegistryDef, access: &Access) -> Result<Address, WorldError> {
    let password = registry.password.as_ref();
    let password = password
        .map(|def| self::password(def, access))
        .transpose()?;
    let login = registry.user.clone();
    Ok(Address {
        url: registry.url.clone(),
        login: login.map(|user| (user, password.unwrap_or_default())),
    })
}

fn password(def: &PasswordDef, access: &Access) -> Result<String, WorldError> {
    match def {
        PasswordDef::Secret(name) => access.secret(name).map(str::to_owned),
        PasswordDef::Env(name) => std::env::var(name)
            .map_err(|_| refused("PASSWORD ENV", &format!("the variable {name} is not set"))),
        PasswordDef::File(path) => match std::fs::read_to_string(path) {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => Err(WorldError::io("cannot read", Path::new(path), error)),
        },
    }
}

fn files(def: &FilesDef) -> Result<FilesSource, WorldError> {
    Ok(FilesSource::new(&def.path, &def.pattern)?.extracting(def.extract))
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
    let rejected = decoded.rejected.into_iter();
    let rejected = rejected.map(|(line, refused, after)| Rejected {
        line,
        error: refused.error,
        key: refused.key,
        after,
    });
    DecodedPush {
        changes: decoded.changes,
        accepted: decoded.accepted,
        rejected: rejected.collect(),
    }
}

/// Decodes the payload of a dead letter again, as its source decodes now.
pub fn redecode(source: &SourceDef, access: &Access, letter: &DeadLetter) -> Redecoded {
    redecode_with(source, access, letter, Extractor::in_process())
}

fn redecode_with(
    source: &SourceDef,
    access: &Access,
    letter: &DeadLetter,
    extractor: Extractor,
) -> Redecoded {
    let failed = |error: WorldError| Redecoded::Refused(error.to_string());
    match &source.connector {
        Connector::Push => connectors::push::redecode(&source.schema, letter),
        Connector::Files(files) => match self::files(files) {
            Ok(files) => connectors::files::reread(&files.extracted_by(extractor), letter),
            Err(error) => failed(error),
        },
        Connector::Kafka(kafka) => match self::kafka(&source.schema, kafka, access, 1) {
            Ok(reader) => reader.redecode(letter),
            Err(error) => failed(error),
        },
        Connector::Generate { .. } => {
            Redecoded::Refused("a generated row is not decoded".to_owned())
        }
        Connector::Git(_) => Redecoded::Refused(
            "a file of a commit is not read again: correct it in a later commit".to_owned(),
        ),
        Connector::Postgres(_) => Redecoded::Refused(
            "a row of a database is read in the order of its log: UPDATE it there, or declare the \
             column wider and create the source again"
                .to_owned(),
        ),
    }
}

/// The columns of a table that nothing is declared of yet: for `check`.
pub(crate) fn describe_undeclared(sought: &DatabaseTable<'_>) -> Result<Schema, String> {
    let connection = Connection::new(&sought.table.connection, sought.connection, sought.secret);
    let schema = connection.and_then(|connection| describe(&connection, &sought.table.table));
    schema.map_err(|error| error.to_string())
}
