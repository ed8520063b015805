//! Every bound in the system, with its reason. Errors name the limit that was hit; `docs/limits.md`
//! lists them for users.

/// Rows bound to one tick. A tick must seal in milliseconds; a backlog becomes many ticks, and the fewer
/// they are, the less often its rows are merged.
pub const TICK_ROWS_MAX: usize = 8_192;
/// Those of them that go into an index: each takes some ten times as long.
pub const TICK_INDEXED_ROWS_MAX: usize = 1_024;
/// Bytes bound to one tick (soft for one row).
pub const TICK_BYTES_MAX: usize = 4 << 20;
/// Tokens of new text bound to one tick.
pub const TICK_TOKENS_MAX: usize = 1 << 20;
/// Ticks broadcast and not yet sealed; timely has no back-pressure of its own.
pub const UNSEALED_TICKS_MAX: usize = 64;
/// Bytes broadcast and not yet sealed.
pub const UNSEALED_BYTES_MAX: usize = 64 << 20;
/// Bytes staged by one source and not yet bound; beyond, the connector is paused.
pub const STAGED_BYTES_MAX: usize = 32 << 20;
/// Bytes that wait to be written to the input log; beyond, readers of sources pause.
pub const LOG_QUEUED_BYTES_MAX: usize = 64 << 20;
/// Rows of one transaction of a database (events of it, from Kafka), or of one git commit, that are visible at once, and in memory
/// until they are; a larger one becomes visible in parts, counted.
pub const TRANSACTION_BYTES_MAX: usize = 1 << 30;
/// Those of them in one record of the input log; a larger transaction is logged in pieces.
pub const TRANSACTION_PIECE_BYTES_MAX: usize = 16 << 20;
/// The same, by number: paths of a git commit may have no text.
pub const TRANSACTION_PIECE_ROWS_MAX: usize = 65_536;
/// Events of Kafka that wait for the rest of their transactions, about twice their messages; beyond, the
/// transaction that waits becomes visible in parts, counted.
pub const TRANSACTION_EVENTS_BYTES_MAX: usize = 64 << 20;
/// Transactions of a database connection that come before they commit, in memory; what is more goes to
/// files.
pub const STREAMED_BYTES_MAX: usize = 32 << 20;
/// Those files together; beyond, the database keeps such transactions until they commit.
pub const STREAMED_FILE_BYTES_MAX: u64 = 4 << 30;
/// One text column: larger texts are dead letters.
pub const TEXT_BYTES_MAX: usize = 8 << 20;
/// One file whose text is taken out (HTML, DOCX, PDF), or one archive: in memory whole meanwhile.
pub const DOCUMENT_BYTES_MAX: usize = 64 << 20;
/// Time to take out the text of one file, milliseconds: its source stands meanwhile.
pub const EXTRACT_MS_MAX: u64 = 30_000;
/// Memory of the process that takes out the text of one PDF.
pub const EXTRACT_BYTES_MAX: u64 = 1 << 30;
/// Time that one archive may hold its source, milliseconds; what follows is left out.
pub const ARCHIVE_MS_MAX: u64 = 300_000;
/// Members of one archive; what follows is left out.
pub const ARCHIVE_MEMBERS_MAX: usize = 65_536;
/// What one archive may unpack to; what follows is left out.
pub const ARCHIVE_BYTES_MAX: u64 = 512 << 20;
/// What one archive may unpack to as a multiple of its own bytes, beyond 16 MiB: text is packed to a
/// tenth, an archive that is made to fill disks to a thousandth.
pub const ARCHIVE_RATIO_MAX: u64 = 100;
/// One line of a push body.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// Lines of one push body: each is held apart.
pub const PUSH_LINES_MAX: usize = 262_144;
/// Rows of a change topic that wait for values which Debezium did not send; beyond, they are dead
/// letters. A row waits for the other half of a key change, or for a snapshot to read it.
pub const ENVELOPE_PARKED_ROWS_MAX: usize = 10_000;
/// Keys of a change topic that are remembered for a truncate in a partition that is behind.
pub const ENVELOPE_RECENT_ROWS_MAX: usize = 8_192;
/// Keys of a change topic whose snapshot began again, remembered until it is through.
pub const ENVELOPE_SNAPSHOT_KEYS_MAX: usize = 65_536;
/// One Avro schema, as text, with those that it names.
pub const AVRO_SCHEMA_BYTES_MAX: usize = 1 << 20;
/// Schemas of a registry that a source remembers; beyond, the one not used for the longest time is
/// asked for again when it comes.
pub const REGISTRY_SCHEMAS_MAX: usize = 1_024;
/// First and longest pause between two requests to a schema registry that fails, milliseconds.
pub const REGISTRY_RETRY_MS: (u64, u64) = (100, 10_000);
/// One request body.
pub const BODY_BYTES_MAX: usize = 64 << 20;
/// What all bodies that are being unpacked take together, MiB: some kilobytes of each may have come.
pub const UNPACK_MIB_MAX: usize = 1_024;
/// A question.
pub const QUESTION_CHARS_MAX: usize = 32_768;
/// Results of one search.
pub const K_MAX: usize = 1_000;
/// Questions of one request.
pub const QUERIES_MAX: usize = 16;
/// A document key, as JSON text.
pub const KEY_BYTES_MAX: usize = 4_096;
/// An answer in the cache.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// A lease of a cache look-up, seconds.
pub const LEASE_SECONDS: u64 = 300;
/// Changed chunks that a cache remembers for leases read in the past; a lease that is older is
/// refused. With vectors of 384 dimensions about 130 MB at most, shared by all caches of an index.
pub const CACHE_RING_CHANGES_MAX: usize = 65_536;
/// Arrived chunks × watched questions that one tick tests; beyond, entries are suspended and
/// checked again later, so that a bulk load never slows ticks. About 50 ms at 384 dimensions.
pub const CACHE_TICK_WORK_MAX: usize = 1_000_000;
/// Payload kept with a dead letter.
pub const DEAD_LETTER_PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Dead letters kept of a source's cause; the oldest go first, counted by a metric.
pub const DEAD_LETTERS_MAX: usize = 10_000;
/// Dead letters of all sources together, bytes; the oldest of the cause that has the most go first.
pub const DEAD_LETTERS_BYTES_MAX: usize = 128 << 20;
/// Letters that one replay takes; `ids` of a request may name as many.
pub const REPLAY_LETTERS_MAX: usize = 10_000;
/// Messages that wait for a topic of dead letters; beyond, they are counted and stay in the
/// collection only.
pub const DEAD_LETTER_TOPIC_MESSAGES_MAX: usize = 10_000;
/// Changes of one page that a sink asks a worker for, bytes (soft for one key).
pub const SINK_PAGE_BYTES_MAX: usize = 1 << 20;
/// Changes that a sink holds in memory while it decides what one transaction covers; a longer stretch of
/// time is taken in parts. One time is never split: what a time has more goes out by page.
pub const SINK_TRANSACTION_BYTES_MAX: usize = 32 << 20;
/// Time in which a sink's transaction must be committed, milliseconds; the broker aborts it then.
pub const SINK_TRANSACTION_MS: u64 = 300_000;
/// One record of a sink, as the client takes it; the topic's max.message.bytes is lower nearly always.
pub const SINK_RECORD_BYTES_MAX: usize = 32 << 20;
/// Starts of a data folder that its sinks remember.
pub const SINK_RUNS_MAX: usize = 1_000;
/// First and longest pause of a sink whose brokers are away or refuse, milliseconds.
pub const SINK_RETRY_MS: (u64, u64) = (200, 10_000);
/// Rows of one SQL reply that is not streamed.
pub const SQL_ROWS_MAX: usize = 100_000;
/// Rows of one page of a list (`limit`); the next page follows by its cursor.
pub const PAGE_ROWS_MAX: usize = 1_000;
/// Wait that a request may ask for (`timeout_ms`), milliseconds.
pub const WAIT_MS_MAX: u64 = 60_000;
/// Wait of a search for its `at_least` when it names none, milliseconds.
pub const SEARCH_WAIT_MS: u64 = 2_000;
/// Wait of a push for `wait=visible` when it names none, milliseconds.
pub const VISIBLE_WAIT_MS: u64 = 10_000;
/// Time in which a request's body must have arrived, milliseconds.
pub const BODY_WAIT_MS: u64 = 60_000;
/// Requests in progress at once; more are told to come back (429).
pub const REQUESTS_MAX: usize = 4_096;
/// Open event streams; more are told to come back (429).
pub const STREAMS_MAX: usize = 1_024;
/// Time between a signal to stop and the end of requests that still run, milliseconds.
pub const DRAIN_MS: u64 = 10_000;
/// Characters of an `Idempotency-Key`.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// Dimensions of a vector.
pub const DIMENSIONS_MAX: u32 = 8_192;
/// One activation of an operator, microseconds: searches must not wait behind maintenance.
pub const ACTIVATION_MICROS_MAX: u64 = 2_000;
/// Default wait of a row for its vectors before it is bound without them, milliseconds.
pub const EMBED_DEADLINE_MS: u64 = 2_000;
/// Tokens of one call of an encoder: at least this many are taken when they wait. A question waits
/// for the batch in progress, 512 tokens are about 60 ms of one core.
pub const EMBED_BATCH_TOKENS_MIN: usize = 512;
/// Tokens of one call of an encoder, at most, however fast it is.
pub const EMBED_BATCH_TOKENS_MAX: usize = 16_384;
/// Aimed length of one call of an encoder, milliseconds: what a question may wait for.
pub const EMBED_BATCH_MS: u64 = 40;
/// Batches of questions in a row before waiting documents get one.
pub const EMBED_QUESTION_BATCHES_MAX: u32 = 8;
/// Failures of an encoder in a row that open its breaker.
pub const EMBED_BREAKER_FAILURES: u32 = 3;
/// First wait after a failure of an encoder, milliseconds; doubles up to the maximum.
pub const EMBED_BACKOFF_MS: u64 = 100;
/// Longest wait between two tries of a failing encoder, milliseconds.
pub const EMBED_BACKOFF_MS_MAX: u64 = 10_000;
/// Documents that wait get at least one in so many tokens, however many questions come.
pub const EMBED_DOCUMENT_SHARE: usize = 4;
/// Texts of documents that wait for one model, bytes; more are turned away and asked for again when
/// there is room. Their documents are live without their vectors meanwhile.
pub const EMBED_QUEUE_BYTES_MAX: usize = 64 << 20;
/// Longest wait that an embedding server may ask for by `Retry-After`, milliseconds.
pub const EMBED_RETRY_AFTER_MS_MAX: u64 = 600_000;
/// Texts that one model refused and that are remembered, so that they are not offered again at once.
pub const EMBED_REFUSED_MAX: usize = 16_384;
/// First and longest wait before a refused text is offered again, milliseconds; doubles.
pub const EMBED_REFUSED_RETRY_MS: (u64, u64) = (60_000, 3_600_000);
/// Texts of one call of `/v1/embeddings`.
pub const EMBEDDING_INPUTS_MAX: usize = 2_048;
/// Tokens of one call of `/v1/embeddings`, as the model counts them.
pub const EMBEDDING_TOKENS_MAX: usize = 300_000;
/// Calls of `/v1/embeddings` with at most so many texts are answered as soon as questions; longer
/// lists take turns with documents.
pub const EMBEDDING_INPUTS_URGENT: usize = 8;
/// Time in which a call of `/v1/embeddings` is answered, milliseconds.
pub const EMBEDDING_WAIT_MS: u64 = 60_000;
/// Vectors of questions remembered per model (1.5 KiB each at 384 dimensions).
pub const QUESTION_CACHE_ENTRIES_MAX: usize = 4_096;

/// How long a delete guards its version against late, older changes of the key, seconds.
pub const TOMBSTONE_SECONDS: u64 = 86_400;
/// How long the reply to a request with an idempotency key is remembered, seconds.
pub const IDEMPOTENCY_SECONDS: u64 = 86_400;
/// A segment of the input log or of the embedding store is closed beyond this size: the unit that
/// compaction reads, rewrites and deletes.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// One record of the input log. Far above any body or transaction, far below the frame's u32.
pub const RECORD_BYTES_MAX: usize = 1 << 30;
/// Bytes written to the input log between two syncs (soft for one record): bounds how long the
/// first record of a group waits for the last.
pub const GROUP_COMMIT_BYTES_MAX: usize = 8 << 20;
/// One record of a compacted base (soft for one row).
pub const BASE_RECORD_BYTES_MAX: usize = 1 << 20;
/// First and longest pause between two attempts to write while the log fails, milliseconds.
pub const LOG_RETRY_MS: (u64, u64) = (20, 1_000);
/// Vectors that the embedding store keeps in memory, bytes; others are read from their file.
pub const VECTOR_MEMORY_BYTES: usize = 512 << 20;
/// Candidates of each leg of a search, at least (API §3).
pub const CANDIDATES_MIN: usize = 64;
/// Candidates of each leg for each hit that is asked for (API §3).
pub const CANDIDATES_PER_K: usize = 8;
/// Vectors of a shard that are scanned before a graph is built over them: a quarter of a
/// millisecond of scanning at 384 dimensions.
pub const HEAD_VECTORS_MAX: usize = 8_192;
/// Vectors of one graph; bounds the time of a rebuild (a minute or two of one core).
pub const GENERATION_VECTORS_MAX: usize = 262_144;
/// Graphs of a shard above which small ones are merged even under load: each costs a question a
/// walk.
pub const GENERATIONS_MAX: usize = 8;
/// Rows that a search filter is asked about at once.
pub const FILTER_BATCH_ROWS: usize = 1_024;

// A tick must fit the budget of unsealed work, or nothing would ever be bound.
const _: () = assert!(TICK_BYTES_MAX * 4 <= UNSEALED_BYTES_MAX);
const _: () = assert!(LINE_BYTES_MAX > TEXT_BYTES_MAX && BODY_BYTES_MAX > LINE_BYTES_MAX);
const _: () = assert!(RECORD_BYTES_MAX > BODY_BYTES_MAX && GROUP_COMMIT_BYTES_MAX > TICK_BYTES_MAX);
const _: () = assert!(TRANSACTION_PIECE_BYTES_MAX + TEXT_BYTES_MAX < RECORD_BYTES_MAX);
const _: () = assert!(DEAD_LETTERS_BYTES_MAX > 64 * DEAD_LETTER_PAYLOAD_BYTES_MAX);
// A frame says in 32 bits how much of its file was durable: a full segment, a group, one record.
const _: () =
    assert!(SEGMENT_BYTES + (GROUP_COMMIT_BYTES_MAX + RECORD_BYTES_MAX) as u64 <= u32::MAX as u64);
