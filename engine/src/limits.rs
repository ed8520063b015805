//! Every bound in the system, with its reason. Errors name the limit that was hit; `docs/limits.md`
//! lists them for users.

/// Rows bound to one tick. A tick must seal in milliseconds; a backlog becomes many ticks.
pub const TICK_ROWS_MAX: usize = 1024;
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
/// One text column: larger texts are dead letters.
pub const TEXT_BYTES_MAX: usize = 8 << 20;
/// One line of a push body.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// One request body.
pub const BODY_BYTES_MAX: usize = 64 << 20;
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
/// Dead letters kept per source; the oldest go first, counted by a metric.
pub const DEAD_LETTERS_MAX: usize = 10_000;
/// Rows of one SQL reply that is not streamed.
pub const SQL_ROWS_MAX: usize = 100_000;
/// Dimensions of a vector.
pub const DIMENSIONS_MAX: u32 = 8_192;
/// One activation of an operator, microseconds: searches must not wait behind maintenance.
pub const ACTIVATION_MICROS_MAX: u64 = 2_000;
/// Default wait of a row for its vectors before it is bound without them, milliseconds.
pub const EMBED_DEADLINE_MS: u64 = 2_000;

// A tick must fit the budget of unsealed work, or nothing would ever be bound.
const _: () = assert!(TICK_BYTES_MAX * 4 <= UNSEALED_BYTES_MAX);
const _: () = assert!(LINE_BYTES_MAX > TEXT_BYTES_MAX && BODY_BYTES_MAX > LINE_BYTES_MAX);
