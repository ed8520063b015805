//! Requests and replies of the one front door, and the trait behind which it stands.
//!
//! `serve` turns wire formats into these values and back; it knows nothing else of the engine. The
//! meaning of each field is the public interface's (`docs/api.md`); names here equal the wire's.

use std::future::Future;
use std::sync::Arc;

use engine::error::DeadLetter;
use engine::model::Time;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::problem::Problem;

/// Every call answers or has a problem.
pub type Reply<T> = Result<T, Problem>;

/// Which version of the state a read wants.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum AsOf {
    /// Engine time, microseconds.
    Time(Time),
    /// RFC 3339.
    Text(String),
}

/// A reader's own write, or a position of a source; inclusive.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum AtLeast {
    /// A `Headwater-Token`.
    Token(String),
    /// `{"source":"tickets","offsets":{"0":812}}` or `{"source":"grants","lsn":"0/16B3748"}`
    Position(Map<String, Json>),
}

/// `POST /v1/search`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// The index.
    pub index: String,
    /// The question.
    pub query: Option<String>,
    /// The question's vector.
    pub vector: Option<Vec<f32>>,
    /// Several questions, fused by their best score.
    #[serde(default)]
    pub queries: Vec<String>,
    /// Results wanted (10).
    pub k: Option<usize>,
    /// `hybrid`, `vector`, `keyword`
    pub mode: Option<String>,
    /// SQL predicate over included columns.
    #[serde(rename = "where")]
    pub filter: Option<String>,
    /// Parameters of the predicate.
    #[serde(default)]
    pub params: Vec<Json>,
    /// Time travel.
    pub as_of: Option<AsOf>,
    /// Read your own write.
    pub at_least: Option<AtLeast>,
    /// 2000
    pub timeout_ms: Option<u64>,
    /// Exact scan.
    #[serde(default)]
    pub exact: bool,
    /// Least score.
    pub min_score: Option<f64>,
    /// At most so many chunks of one document.
    pub per_document: Option<usize>,
    /// Columns of `attributes` (and `text`) to return; all by default.
    pub select: Option<Vec<String>>,
    /// Adds the plan to the reply.
    #[serde(default)]
    pub explain: bool,
}

/// A document at a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentRef {
    /// The source.
    pub source: String,
    /// The key in its column's JSON form.
    pub key: Json,
    /// The version.
    pub version: u64,
}

/// Raw scores of a hit's legs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LegScores {
    /// Cosine in [−1, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vector: Option<f64>,
    /// BM25.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyword: Option<f64>,
}

/// One ranked chunk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// `c_…`
    pub chunk: String,
    /// Whose chunk it is.
    pub document: DocumentRef,
    /// Its place among the document's chunks, from 0.
    pub ordinal: u32,
    /// Bytes of the column, half open.
    pub range: (u32, u32),
    /// Heading path.
    pub heading: Vec<String>,
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Included columns.
    pub attributes: Map<String, Json>,
    /// Fused score, or the one leg's raw score.
    pub score: f64,
    /// Raw scores.
    pub scores: LegScores,
}

/// Reply to a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchReply {
    /// The time that it is true for.
    pub as_of: Time,
    /// Read-your-reads token.
    pub token: String,
    /// The index.
    pub index: String,
    /// Its definition's version.
    pub index_version: u32,
    /// Best first.
    pub hits: Vec<Hit>,
    /// Documents whose newest version waits for its embedding.
    pub pending: u64,
    /// Whether a leg could not answer.
    pub is_degraded: bool,
    /// Why.
    pub degraded: Vec<String>,
    /// `wait`, `embed`, `search`, `total`, milliseconds.
    pub timing_ms: Map<String, Json>,
    /// The plan, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explain: Option<String>,
}

/// A column of a SQL reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyColumn {
    /// Name.
    pub name: String,
    /// PostgreSQL's name of the type.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// Reply of one statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SqlReply {
    /// Columns; empty for a command.
    pub columns: Vec<ReplyColumn>,
    /// Rows in column order.
    pub rows: Vec<Vec<Json>>,
    /// The time that it is true for; absent for commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Time>,
    /// `SELECT`, `CREATE SOURCE`, …
    pub tag: String,
    /// Notices: `index "x" already exists, skipping`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notices: Vec<String>,
}

/// One line of a push body, already JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct PushLine {
    /// Number of the line (or of the array's element), from 1.
    pub line: u64,
    /// The line as it came, for the dead letter.
    pub raw: Vec<u8>,
}

/// A push.
#[derive(Debug, Clone, Default)]
pub struct PushRequest {
    /// The source.
    pub source: String,
    /// Its lines; empty lines left out.
    pub lines: Vec<PushLine>,
    /// Any bad line refuses all.
    pub atomic: bool,
    /// Wait until every index shows it; up to this long.
    pub wait_visible_ms: Option<u64>,
    /// `Idempotency-Key`
    pub idempotency_key: Option<String>,
    /// For positions of dead letters.
    pub request_id: String,
}

/// A line that was not taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RejectedLine {
    /// Which one.
    pub line: u64,
    /// Why.
    pub error: Problem,
}

/// Reply to a push.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PushReply {
    /// Lines taken.
    pub accepted: u64,
    /// Lines not above the live version.
    pub ignored: u64,
    /// The first 100 lines refused.
    pub rejected: Vec<RejectedLine>,
    /// How many were refused.
    pub rejected_total: u64,
    /// For `at_least`.
    pub token: String,
    /// With `wait=visible`: whether every index shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visible: Option<bool>,
    /// The stored reply of an equal earlier request.
    #[serde(skip)]
    pub replayed: bool,
}

/// `GET /v1/documents/…`
#[derive(Debug, Clone)]
pub struct DocumentRequest {
    /// The source.
    pub source: String,
    /// The key, in its column's JSON form or as plain text for a text key.
    pub key: Json,
    /// Time travel.
    pub as_of: Option<AsOf>,
    /// All versions within retention.
    pub history: bool,
}

/// A document's live version (`document`), or its versions (`history`), with chunks by index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentReply {
    /// The time that it is true for.
    pub as_of: Time,
    /// `{"source","key","version","row","indexes":{name:{"chunks":[…]}}}` or `{"history":[…]}`
    #[serde(flatten)]
    pub body: Map<String, Json>,
}

/// `POST /v1/caches/{cache}/lookup`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookupRequest {
    /// The question.
    pub question: String,
    /// Part of the entry's scope.
    #[serde(default)]
    pub parameters: Map<String, Json>,
}

/// A citation of a cached answer, at its version now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Citation {
    /// `c_…`
    pub chunk: String,
    /// At its version.
    pub document: DocumentRef,
}

/// Reply to a look-up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LookupReply {
    /// An entry answers.
    Hit {
        /// true
        hit: bool,
        /// `e_…`
        entry: String,
        /// As it was stored.
        answer: Json,
        /// Re-versioned at `as_of`.
        citations: Vec<Citation>,
        /// The time that it is true for.
        as_of: Time,
        /// Cosine of the questions.
        similarity: f64,
        /// When it was stored, engine time.
        stored_at: Time,
    },
    /// Nothing answers; a lease to store under.
    Miss {
        /// false
        hit: bool,
        /// For `store`.
        lease: String,
        /// The time of the hits.
        as_of: Time,
        /// Retrieval for the question.
        hits: Vec<Hit>,
        /// An entry that was near and refused, with the reason.
        #[serde(skip_serializing_if = "Option::is_none")]
        near_miss: Option<Json>,
    },
}

/// `POST /v1/caches/{cache}/store`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreRequest {
    /// From the look-up.
    pub lease: String,
    /// Any JSON, at most 1 MiB.
    pub answer: Json,
    /// Chunk ids out of the lease's hits.
    #[serde(default)]
    pub citations: Vec<String>,
}

/// Reply to a store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreReply {
    /// `e_…`
    pub entry: String,
    /// From this time on.
    pub as_of: Time,
}

/// Which dead letters are wanted.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterRequest {
    /// Of this source (or view).
    pub source: Option<String>,
    /// Of this cause.
    pub code: Option<String>,
    /// The one of this id.
    pub id: Option<String>,
    /// At most so many.
    pub limit: usize,
    /// After this [`DeadLetterReply::cursor`].
    pub cursor: Option<u64>,
}

/// A dead letter with its history.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetterReply {
    /// `d_…`, the same over restarts.
    pub id: String,
    /// Its place in the order of last arrival; pages by it.
    pub cursor: u64,
    /// When it came first, wall clock in microseconds since the epoch.
    pub first_seen: Time,
    /// When it came last.
    pub last_seen: Time,
    /// How often it came.
    pub count: u64,
    /// What was bad.
    pub letter: Arc<DeadLetter>,
}

/// `POST /v1/dead_letters/replay`: at least one of the three.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Of this source.
    pub source: Option<String>,
    /// Of this cause.
    pub code: Option<String>,
    /// These; `"all"` is every one that the other two let through.
    pub ids: Option<ReplayIds>,
}

/// Which letters a replay takes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum ReplayIds {
    /// These.
    Some(Vec<String>),
    /// `"all"`
    All(All),
}

/// The word `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum All {
    /// `all`
    #[serde(rename = "all")]
    All,
}

/// A dead letter that was not replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedLetter {
    /// Which one.
    pub id: String,
    /// Why, for people.
    pub reason: String,
}

/// Reply to a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayReply {
    /// Letters that were good: their rows are in the log, and they are gone.
    pub replayed: u64,
    /// Letters that are bad as before.
    pub still_bad: u64,
    /// Ids that name no letter (any more).
    pub gone: u64,
    /// The first 100 that cannot be replayed.
    pub refused: Vec<RefusedLetter>,
    /// How many cannot.
    pub refused_total: u64,
}

/// `POST /v1/embeddings`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EmbeddingsRequest {
    /// A declared model's name, or the name of what it was declared from.
    pub model: String,
    /// The texts, none empty.
    pub input: Vec<String>,
    /// The first so many components, at length 1; all without.
    pub dimensions: Option<usize>,
    /// Whether they are questions: some models embed those behind another prompt.
    pub is_question: bool,
}

/// Reply to it.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingsReply {
    /// As it was asked for.
    pub model: String,
    /// One a text, in order.
    pub vectors: Vec<Arc<[f32]>>,
    /// Tokens that the model saw.
    pub tokens: u64,
    /// Places of the texts that were longer than the model's window: their ends were not seen.
    pub truncated: Vec<usize>,
}

/// Readiness with reasons.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether every collection is served.
    pub ready: bool,
    /// What is still on the way: `index "docs": 812 of 10000 documents wait for their embedding`.
    pub reasons: Vec<String>,
}

/// The engine behind the front door. Every call is cancel-safe: dropping the future of a read
/// releases its holds.
pub trait Backend: Send + Sync + 'static {
    /// One or more statements; one reply each up to the first failure.
    fn sql(
        &self,
        sql: String,
        params: Vec<Json>,
    ) -> impl Future<Output = (Vec<SqlReply>, Option<Problem>)> + Send;
    /// One question.
    fn search(&self, request: SearchRequest) -> impl Future<Output = Reply<SearchReply>> + Send;
    /// Changes into a push source.
    fn push(&self, request: PushRequest) -> impl Future<Output = Reply<PushReply>> + Send;
    /// A document.
    fn document(
        &self,
        request: DocumentRequest,
    ) -> impl Future<Output = Reply<DocumentReply>> + Send;
    /// Cache look-up.
    fn lookup(
        &self,
        cache: String,
        request: LookupRequest,
    ) -> impl Future<Output = Reply<LookupReply>> + Send;
    /// Cache store.
    fn store(
        &self,
        cache: String,
        request: StoreRequest,
    ) -> impl Future<Output = Reply<StoreReply>> + Send;
    /// A live or lately retracted entry.
    fn entry(&self, cache: String, entry: String) -> impl Future<Output = Reply<Json>> + Send;
    /// Manual retraction.
    fn forget(&self, cache: String, entry: String) -> impl Future<Output = Reply<Json>> + Send;
    /// Cache events after a position: `(id "T/n", event name, data)`; waits up to `wait_ms` for the
    /// first.
    fn cache_events(
        &self,
        cache: String,
        after: Option<String>,
        wait_ms: u64,
    ) -> impl Future<Output = Reply<Vec<(String, String, Json)>>> + Send;
    /// Vectors of texts.
    fn embeddings(
        &self,
        request: EmbeddingsRequest,
    ) -> impl Future<Output = Reply<EmbeddingsReply>> + Send;
    /// Dead letters after a cursor, oldest first.
    fn dead_letters(
        &self,
        request: DeadLetterRequest,
    ) -> impl Future<Output = Reply<Vec<DeadLetterReply>>> + Send;
    /// Decodes dead letters again and takes what is good now.
    fn replay(&self, request: ReplayRequest) -> impl Future<Output = Reply<ReplayReply>> + Send;
    /// Declared objects, secrets redacted.
    fn pipeline(&self) -> impl Future<Output = Reply<Json>> + Send;
    /// Each collection's since, upper, lag, rows, bytes, pending.
    fn progress(&self) -> impl Future<Output = Reply<Json>> + Send;
    /// Readiness with reasons.
    fn readiness(&self) -> Readiness;
    /// Prometheus text.
    fn metrics(&self) -> String;
}
