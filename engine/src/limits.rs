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
/// Payload kept with a dead letter.
pub const DEAD_LETTER_PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Dead letters kept per source; the oldest go first, counted by a metric.
pub const DEAD_LETTERS_MAX: usize = 10_000;
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

// A tick must fit the budget of unsealed work, or nothing would ever be bound.
const _: () = assert!(TICK_BYTES_MAX * 4 <= UNSEALED_BYTES_MAX);
const _: () = assert!(LINE_BYTES_MAX > TEXT_BYTES_MAX && BODY_BYTES_MAX > LINE_BYTES_MAX);
