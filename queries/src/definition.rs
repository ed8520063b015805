//! Declared objects, as plain serialisable values: what the catalog stores and what rendering is a
//! pure function of (PROTOCOLS §8.2).

use engine::model::{ObjectId, Schema};
use serde::{Deserialize, Serialize};

/// A declared object with its identity and the statement that made it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Never reused.
    pub id: ObjectId,
    /// Folded name; one namespace for all kinds.
    pub name: String,
    /// The statement, normalised: `SHOW CREATE` prints it and reconciliation compares it.
    pub statement: String,
    /// What it is.
    pub definition: Definition,
}

/// What can be declared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Definition {
    /// `CREATE SOURCE`
    Source(SourceDef),
    /// `CREATE MODEL`
    Model(ModelDef),
    /// `CREATE VIEW`
    View(ViewDef),
    /// `CREATE INDEX`
    Index(IndexDef),
    /// `CREATE CACHE`
    Cache(CacheDef),
    /// `CREATE SECRET`
    Secret(SecretDef),
    /// `CREATE CONNECTION`
    Connection(ConnectionDef),
    /// `CREATE SINK`
    Sink(Box<SinkDef>),
}

impl Definition {
    /// `source`, `model`, `view`, `index`, `cache`, `secret`, `connection` or `sink`.
    pub fn kind(&self) -> &'static str {
        match self {
            Definition::Source(_) => "source",
            Definition::Model(_) => "model",
            Definition::View(_) => "view",
            Definition::Index(_) => "index",
            Definition::Cache(_) => "cache",
            Definition::Secret(_) => "secret",
            Definition::Connection(_) => "connection",
            Definition::Sink(_) => "sink",
        }
    }

    /// The kind in a sentence: `a source`, `an index`.
    pub fn kind_with_article(&self) -> String {
        let kind = self.kind();
        let article = if kind.starts_with('i') { "an" } else { "a" };
        format!("{article} {kind}")
    }

    /// Whether it has rows that workers keep.
    pub fn is_collection(&self) -> bool {
        !matches!(
            self,
            Definition::Model(_)
                | Definition::Secret(_)
                | Definition::Connection(_)
                | Definition::Sink(_)
        )
    }

    /// Names of the objects that this one reads.
    pub fn depends_on(&self) -> Vec<&str> {
        match self {
            Definition::Source(source) => match &source.connector {
                Connector::Postgres(postgres) => vec![&postgres.connection],
                Connector::Kafka(kafka) => kafka.secrets(),
                _ => Vec::new(),
            },
            Definition::Model(ModelDef::Remote(remote)) => remote.secret().into_iter().collect(),
            Definition::Model(_) | Definition::Secret(_) => Vec::new(),
            Definition::Connection(connection) => {
                connection.password.as_deref().into_iter().collect()
            }
            Definition::View(view) => vec![&view.from],
            Definition::Index(index) => {
                let model = index.model.as_deref();
                std::iter::once(&*index.on).chain(model).collect()
            }
            Definition::Cache(cache) => vec![&cache.index],
            Definition::Sink(sink) => {
                let secrets = sink.secrets().into_iter();
                std::iter::once(&*sink.from).chain(secrets).collect()
            }
        }
    }
}

/// `CREATE SOURCE … FROM …`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceDef {
    /// Columns and key.
    pub schema: Schema,
    /// Where rows come from.
    pub connector: Connector,
}

/// What `FROM FILES (…)` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FilesDef {
    /// Folder, as written.
    pub path: String,
    /// Glob, relative to the folder.
    pub pattern: String,
    /// Whether texts are taken out of documents and archives.
    pub extract: bool,
}

/// Where the rows of a source come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Connector {
    /// `FROM FILES (PATH '…', PATTERN '…')`
    Files(FilesDef),
    /// `FROM PUSH (columns)`
    Push,
    /// `FROM GENERATE (…)`: rows and vectors from a seed.
    Generate {
        /// How many rows.
        rows: u64,
        /// Rows a second; 0 as fast as they are taken.
        rate: u64,
        /// The seed.
        seed: u64,
        /// Length of the vector column, if there is one.
        dimensions: Option<u32>,
    },
    /// `FROM KAFKA (…) FORMAT … ENVELOPE …`
    Kafka(Box<KafkaDef>),
    /// `FROM POSTGRES (CONNECTION name, TABLE '…')`
    Postgres(PostgresDef),
    /// `FROM GIT (…)`
    Git(Box<GitDef>),
}

/// A table that is read from its database's own log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PostgresDef {
    /// The connection's name.
    pub connection: String,
    /// `schema.table`, or `table` in the schema `public`.
    pub table: String,
}

/// `CREATE SECRET`: where a value is. The value is read when it is needed and never stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SecretDef {
    /// An environment variable of the server.
    Env(String),
    /// A file on the server's machine; one line break at its end is not part of the value.
    File(String),
}

/// `CREATE CONNECTION … TO POSTGRES (…)`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectionDef {
    /// Host names, comma-separated, each with `:port` where it is another one; the first primary is
    /// taken.
    pub host: String,
    /// The port of hosts that name none.
    pub port: u16,
    /// The role.
    pub user: String,
    /// The name of the secret that is its password.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// Whether the connection is encrypted and the server checked.
    pub ssl_mode: SslMode,
    /// Authorities to trust, a PEM file; the operating system's without.
    pub ssl_root_cert: Option<String>,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// Whether slot and publication are ours: made, and dropped with the last source.
    pub is_own: bool,
    /// What happens when the slot is gone, or its log.
    pub slot_lost: SlotLost,
}

/// `SSLMODE`, with libpq's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted where the server offers it.
    Prefer,
    /// Encrypted; the server is not checked.
    Require,
    /// Encrypted; a known authority signed the server's certificate.
    VerifyCa,
    /// And it is this host's.
    VerifyFull,
}

/// `SLOT LOST`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotLost {
    /// The sources stop and say what to do.
    Stop,
    /// The tables are copied again.
    Copy,
}

/// What is read from a git repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GitDef {
    /// A path or a URL, as written.
    pub repository: String,
    /// A branch, or a full reference name.
    pub branch: String,
    /// Glob over paths in the repository.
    pub pattern: String,
    /// Glob over paths that are left out.
    pub exclude: Option<String>,
    /// The commit whose tree is taken first, lower-case hexadecimal digits; without it the head's.
    pub from_commit: Option<String>,
    /// Time between two looks at the branch, microseconds; without it the connector's own.
    pub interval_micros: Option<u64>,
    /// The environment variable that holds the token for https.
    pub token_env: Option<String>,
}

/// What is read from Kafka, and how its messages become rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KafkaDef {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// The topic's name; with `is_pattern` a regular expression that whole names match.
    pub topic: String,
    /// Whether topics are found by pattern, new ones included.
    pub is_pattern: bool,
    /// Where a partition begins that the input log does not know yet.
    pub start: KafkaStart,
    /// Consumer group to which positions are committed for monitoring tools; nothing reads them.
    pub group: Option<String>,
    /// Topic to which dead letters are produced, beside the collection.
    pub dead_letter_topic: Option<String>,
    /// Where Debezium tells which change belongs to which transaction.
    pub transactions: Option<TransactionsDef>,
    /// How the brokers are spoken to.
    pub security: KafkaSecurity,
    /// How a message's key is written.
    pub key_format: MessageFormat,
    /// How a message's value is written.
    pub value_format: MessageFormat,
    /// What a message means.
    pub envelope: Envelope,
    /// The last columns of the schema: what of the message they carry, in their order.
    pub include: Vec<MessagePart>,
}

impl KafkaDef {
    /// Names of the secrets that reading needs, each once.
    pub fn secrets(&self) -> Vec<&str> {
        let login = self.security.login.iter().map(|login| &*login.password);
        let formats = [&self.key_format, &self.value_format].into_iter();
        let registries = formats.filter_map(|format| match format {
            MessageFormat::Avro(avro) => match avro.registry.as_ref()?.password.as_ref()? {
                PasswordDef::Secret(name) => Some(&**name),
                PasswordDef::Env(_) | PasswordDef::File(_) => None,
            },
            _ => None,
        });
        let mut names: Vec<&str> = login.chain(registries).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// `TRANSACTION TOPIC` and `TRANSACTION WAIT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionsDef {
    /// The topic's name.
    pub topic: String,
    /// Longest wait for what belongs to a transaction, microseconds.
    pub wait_micros: u64,
}

/// `CREATE SINK … FROM … INTO KAFKA (…) FORMAT … ENVELOPE …`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkDef {
    /// The source or view that is written.
    pub from: String,
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// The topic's name.
    pub topic: String,
    /// Partitions of the topic when it is made; the brokers' default without.
    pub partitions: Option<u32>,
    /// Copies of each partition when topics are made; the brokers' default without.
    pub replication: Option<u32>,
    /// The topic that has the progress of sinks.
    pub progress_topic: String,
    /// How the brokers are spoken to.
    pub security: KafkaSecurity,
    /// Avro with schemas in this registry; JSON without.
    pub registry: Option<RegistryDef>,
    /// What a change becomes.
    pub envelope: SinkEnvelope,
}

/// What a change of a row becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkEnvelope {
    /// The row under its key; null when it is deleted.
    Upsert,
    /// Debezium's change event, with the row before and after.
    Debezium,
}

impl SinkDef {
    /// Names of the secrets that writing needs, each once.
    pub fn secrets(&self) -> Vec<&str> {
        let login = self.security.login.iter().map(|login| &*login.password);
        let registry = self.registry.iter();
        let registry = registry.filter_map(|registry| match &registry.password {
            Some(PasswordDef::Secret(name)) => Some(&**name),
            _ => None,
        });
        let mut names: Vec<&str> = login.chain(registry).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// `SECURITY PROTOCOL` and what belongs to it: TLS or not, with a login or without.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KafkaSecurity {
    /// Whether the connection is encrypted and the broker checked.
    pub has_tls: bool,
    /// As whom the brokers are spoken to.
    pub login: Option<SaslDef>,
    /// Authorities to trust, a PEM file; the operating system's without.
    pub authorities: Option<String>,
    /// The client's own certificate and its key, PEM files.
    pub certificate: Option<(String, String)>,
}

/// A login by SASL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaslDef {
    /// How the password is shown.
    pub mechanism: SaslMechanism,
    /// Who.
    pub username: String,
    /// The name of the secret that is the password.
    pub password: String,
}

/// `SASL MECHANISM`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SaslMechanism {
    /// The password itself.
    Plain,
    /// Challenge and response, SHA-256.
    ScramSha256,
    /// Challenge and response, SHA-512.
    ScramSha512,
}

/// Where a new partition is read from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum KafkaStart {
    /// The oldest message that is kept.
    Earliest,
    /// What is written from now on.
    Latest,
    /// The first message of this time or later, milliseconds since the epoch.
    Timestamp(i64),
    /// These offsets by partition; others from the earliest.
    Offsets(Vec<(i32, i64)>),
}

/// How bytes of a message are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageFormat {
    /// JSON, Kafka Connect's `{"schema":…,"payload":…}` included.
    Json,
    /// UTF-8 text: one column.
    Text,
    /// Bytes: one column.
    Bytes,
    /// Avro.
    Avro(Box<AvroDef>),
    /// One record of CSV.
    Csv(Box<CsvDef>),
}

/// Where the schemas of Avro messages come from: a registry, the statement, or both, and then the
/// statement's is what the registry's are read as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AvroDef {
    /// A registry with Confluent's API.
    pub registry: Option<RegistryDef>,
    /// A schema as JSON.
    pub schema: Option<String>,
}

/// A schema registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryDef {
    /// The base of its Confluent API.
    pub url: String,
    /// As whom it is asked.
    pub user: Option<String>,
    /// Where the password is; never the password.
    pub password: Option<PasswordDef>,
}

/// Where a password is read from, when it is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PasswordDef {
    /// A declared secret.
    Secret(String),
    /// A variable of the server's environment.
    Env(String),
    /// A file on the server; a line break at its end does not count.
    File(String),
}

/// How records of CSV are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsvDef {
    /// What stands between two fields: one ASCII character.
    pub delimiter: char,
    /// What an unquoted field is that is NULL.
    pub null: String,
    /// The names of the fields in their order; `None`: the declared columns.
    pub header: Option<String>,
}

/// What a message does to the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Envelope {
    /// Each message is a row.
    Append,
    /// The key names the row, a null value deletes it.
    Upsert,
    /// Debezium's change events, also unwrapped ones.
    Debezium {
        /// What stands for a value that the database did not send.
        unavailable: String,
        /// What bytes are where the message has no schema: `bytes`, `base64`, `hex`.
        binary: String,
        /// What a string in a NUMERIC column is there: `precise`, `string`.
        decimal: String,
        /// The unit of a bare number in a time column there: `millis`, `micros`, `nanos`.
        time: String,
    },
}

/// A part of a message that becomes a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessagePart {
    /// The key, as text.
    Key,
    /// The topic's name.
    Topic,
    /// The partition's number.
    Partition,
    /// The offset in its partition.
    Offset,
    /// The message's time.
    Timestamp,
    /// The headers in order: a list of `{"key":…,"value":…}`.
    Headers,
}

/// `CREATE MODEL`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ModelDef {
    /// `FROM 'sentence-transformers/all-MiniLM-L6-v2' WITH (DEVICE = …, PRECISION = …)`
    Pretrained {
        /// Hub name or folder.
        location: String,
        /// `auto` or `cpu` in this version.
        device: String,
        /// `full` in this version.
        precision: String,
        /// What the statement says of prompts and length.
        shape: ShapeDef,
    },
    /// `FROM COLUMN WITH (DIMENSIONS = n)`: vectors arrive in a column.
    Column {
        /// Length of a vector.
        dimensions: u32,
    },
    /// `FROM 'openai:name' WITH (URL = …, …)`: a model behind a server with OpenAI's API.
    Remote(Box<RemoteModelDef>),
}

impl ModelDef {
    /// Whether it turns texts to vectors.
    pub fn reads_texts(&self) -> bool {
        !matches!(self, ModelDef::Column { .. })
    }
}

/// What stands around a model; `None`: as the model has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeDef {
    /// Components of a vector, fewer than the model's own.
    pub dimensions: Option<u32>,
    /// What stands in front of questions.
    pub query_prompt: Option<String>,
    /// What stands in front of documents' texts.
    pub document_prompt: Option<String>,
}

/// `CREATE MODEL … FROM 'openai:name' WITH (…)`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteModelDef {
    /// The model's name at the server.
    pub model: String,
    /// The base of the API.
    pub url: String,
    /// Where the key is; never the key.
    pub key: Option<PasswordDef>,
    /// Components of a vector.
    pub dimensions: u32,
    /// Whether requests ask for that length.
    pub sends_dimensions: bool,
    /// The longest text, in tokens.
    pub max_tokens: u32,
    /// Texts of one request.
    pub batch: u32,
    /// Tokens of one request.
    pub batch_tokens: u32,
    /// Requests under way at once.
    pub concurrency: u32,
    /// Requests a minute; as many as go without.
    pub requests_per_minute: Option<u32>,
    /// Longest wait for a whole reply, microseconds.
    pub timeout_micros: u64,
    /// Whether replies write vectors as base64.
    pub is_base64: bool,
    /// A `tokenizer.json`, a folder with one, or a model's name.
    pub tokenizer: Option<String>,
    /// What stands in front of questions.
    pub query_prompt: String,
    /// What stands in front of documents' texts.
    pub document_prompt: String,
}

impl RemoteModelDef {
    /// The name of the secret that is its key.
    pub fn secret(&self) -> Option<&str> {
        match &self.key {
            Some(PasswordDef::Secret(name)) => Some(name),
            _ => None,
        }
    }
}

/// `CREATE VIEW … AS SELECT …` over one relation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewDef {
    /// The relation that it reads.
    pub from: String,
    /// The query's text, planned again from here wherever it is rendered.
    pub query: String,
    /// The columns that come out, and the key among them.
    pub schema: Schema,
}

/// `CREATE INDEX`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexDef {
    /// The indexed relation.
    pub on: String,
    /// The base source when the key comes from exactly one; else `on`. For `document.source`.
    pub source: String,
    /// Whether it has a vector leg.
    pub vector: bool,
    /// Whether it has a keyword leg.
    pub keyword: bool,
    /// The indexed column.
    pub column: String,
    /// How texts are cut.
    pub chunking: Chunking,
    /// The model of the vector leg.
    pub model: Option<String>,
    /// Columns that filters and replies may name.
    pub include: Vec<String>,
    /// `simple`, `english`, `german`, …
    pub analyzer: String,
    /// `bf16` or `f32`
    pub quantization: String,
    /// Time travel, microseconds.
    pub retain_micros: u64,
    /// How long rows wait for vectors before binding, milliseconds.
    pub embed_deadline_ms: u64,
    /// How legs are fused.
    pub fusion: Fusion,
}

/// How the two legs become one score (API §3).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Fusion {
    /// weight · (1 + cos)/2 + (1 − weight) · bm25 / its upper bound
    Convex {
        /// Weight of the vector leg, in [0, 1].
        weight: f64,
    },
    /// Σ 1/(60 + rank in its leg)
    Rrf,
}

/// `CHUNK BY …`
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Chunking {
    /// How to cut.
    pub strategy: ChunkStrategy,
    /// Longest chunk in model tokens, special tokens included.
    pub max_tokens: u32,
    /// Tokens repeated from the chunk before (`fixed` and `recursive`).
    pub overlap: u32,
    /// Whether the heading path is put before the text that is embedded.
    pub heading_prefix: bool,
}

/// Ways to cut a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChunkStrategy {
    /// Along headings, blocks, sentences.
    Markdown,
    /// Along paragraphs, lines, sentences, words.
    Recursive,
    /// Every `max_tokens` tokens.
    Fixed,
    /// One chunk a row.
    None,
}

/// `CREATE CACHE`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheDef {
    /// The index whose answers it keeps.
    pub index: String,
    /// Size of the retrieval list.
    pub k: usize,
    /// Least cosine of a similarity hit.
    pub similarity: f64,
    /// Life of an entry, microseconds.
    pub ttl_micros: u64,
    /// Most live entries.
    pub capacity: usize,
    /// `RETRIEVAL = 'exact'`
    pub exact: bool,
}
