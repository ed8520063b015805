//! Every metric of Headwater, declared once: name, kind, unit, meaning.
//!
//! ```text
//!  declare!{…} ─▶ one constant a metric ─▶ metrics::counter!(telemetry::TICKS.name).increment(1)
//!             └─▶ METRICS (the table) ───▶ describe_all(), docs, dashboards' test
//!  install()  ─▶ Telemetry ─▶ render(): Prometheus text for /metrics
//! ```
//!
//! Names begin with `headwater_`; counters end in `_total`, others in their unit. Label values are
//! bounded sets (declared names, routes, causes), never keys or texts.
//!
//! Invariants: `engine` code names metrics through the constants only, so that a metric without
//! unit and help cannot exist. Recording is a few nanoseconds while nothing is installed.
//!
//! Limits: process figures are read from `/proc/self` and are absent elsewhere.

use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// A present value.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One declared metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// `headwater_…`
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What is counted.
    pub unit: Unit,
    /// The labels it is recorded with.
    pub labels: &'static [&'static str],
    /// One sentence for people.
    pub help: &'static str,
}

macro_rules! declare {
    ($($constant:ident $kind:ident $unit:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric {
                name: concat!("headwater_", $name),
                kind: Kind::$kind,
                unit: Unit::$unit,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// All metrics, in the order of this file.
        pub const METRICS: &[Metric] = &[$($constant),*];
    };
}

declare! {
    // The input log and the embedding store.
    LOG_BYTES Counter Bytes "log_bytes_total" [] "Bytes written to the input log, compaction excluded.";
    LOG_RECORDS Counter Count "log_records_total" [] "Records made durable in the input log.";
    LOG_SYNC_SECONDS Histogram Seconds "log_sync_seconds" [] "Time of one sync of the input log (one per group commit).";
    LOG_FAILURES Counter Count "log_failures_total" [] "Attempts to write the input log that failed.";
    LOG_COMPACTIONS Counter Count "log_compactions_total" [] "Compactions of the input log.";
    VECTORS_STORED Counter Count "vectors_stored_total" [] "Vectors put into the embedding store.";
    VECTORS_COLLECTED Counter Count "vectors_collected_total" [] "Vectors forgotten because nothing had needed them for a while.";
    VECTORS_COLLECTED_BYTES Counter Bytes "vectors_collected_bytes_total" [] "Bytes of the embedding store that were given back to the disk.";
    VECTOR_READS Counter Count "vector_reads_total" [] "Vectors read from disk because memory no longer had them.";

    VECTORS_OPENED Gauge Count "vectors_opened" [] "Vectors found in the embedding store at the start.";

    // Time.
    TICKS Counter Count "ticks_total" [] "Ticks that bound rows or vectors (heartbeats are not counted).";
    TICK_SEAL_SECONDS Histogram Seconds "tick_seal_seconds" [] "From making a tick until it is applied everywhere.";
    SEALED_LAG_SECONDS Gauge Seconds "sealed_lag_seconds" ["collection"] "Wall clock minus the newest sealed time.";
    STAGED_BYTES Gauge Bytes "staged_bytes" ["source"] "Rows accepted and not yet bound to a time.";
    UNSEALED_TICKS Gauge Count "unsealed_ticks" [] "Ticks given to the workers and not yet sealed.";
    READ_HOLDS Gauge Count "read_holds" [] "Times held by unfinished questions.";
    ACTIVATION_SECONDS Histogram Seconds "activation_seconds" [] "One activation of an index's operator; searches wait behind it.";
    STEP_SECONDS Histogram Seconds "worker_step_seconds" [] "One step of a worker: all operators that were active.";
    PREPARE_SECONDS Histogram Seconds "prepare_seconds" [] "One batch prepared: view programs, chunks, hashes.";

    // Rows.
    ROWS_IN Counter Count "rows_in_total" ["source"] "Rows accepted.";
    ROWS_REJECTED Counter Count "rows_rejected_total" ["source"] "Rows refused with an error to the sender.";
    ROWS_IGNORED Counter Count "rows_ignored_total" ["source"] "Rows without effect: older than what is there.";
    SOURCE_RETRYING Gauge Count "source_retrying" ["source"] "1 while a source cannot read all of its world and tries again; SHOW SOURCES says why.";
    ROWS_PARKED Gauge Count "rows_parked" ["source"] "Rows that wait for values which their source did not send (TOAST).";
    DEAD_LETTERS Counter Count "dead_letters_total" ["source", "code"] "Bad records that became dead letters.";
    DEAD_LETTERS_DROPPED Counter Count "dead_letters_dropped_total" ["source", "code"] "Dead letters whose payload was forgotten because there are too many; they stay counted.";
    DEAD_LETTERS_RESOLVED Counter Count "dead_letters_resolved_total" ["source", "code"] "Dead letters that a good record of their key, or a replay, ended.";
    DEAD_LETTERS_BYTES Gauge Bytes "dead_letters_bytes" [] "Memory of the dead letters that are kept.";
    DEAD_LETTER_TOPIC Counter Count "dead_letter_topic_total" ["source", "outcome"] "Dead letters for a source's DEAD LETTER TOPIC: delivered, failed, or skipped because too many waited.";

    // Kafka.
    KAFKA_LAG Gauge Count "kafka_lag_messages" ["source", "partition"] "Messages of a partition that are written and not read yet.";
    KAFKA_STOPPED Counter Count "kafka_partitions_stopped_total" ["source"] "Partitions given up because their log no longer has what follows; their dead letters say why.";

    SCHEMA_WAITS Counter Count "schema_waits_total" ["source"] "Times a partition began to wait because a schema registry could not give its next message's schema; it is tried again.";
    // Sinks.
    SINK_LAG Gauge Seconds "sink_lag_seconds" ["sink"] "Newest sealed time of a sink's collection minus the time through which the sink has written it; since its start for one that has written nothing, 0 for one that was dropped.";
    SINK_RECORDS Counter Count "sink_records_total" ["sink"] "Records of committed transactions of a sink, progress excluded.";
    SINK_BYTES Counter Bytes "sink_bytes_total" ["sink"] "Keys and values of committed transactions of a sink.";
    SINK_TRANSACTIONS Counter Count "sink_transactions_total" ["sink"] "Transactions that a sink committed.";
    SINK_ERRORS Counter Count "sink_errors_total" ["sink"] "Times a sink had to begin again: brokers away, a transaction aborted, a record refused.";
    SINK_COMMIT_SECONDS Histogram Seconds "sink_commit_seconds" ["sink"] "From the begin of a sink's transaction to its commit.";
    // PostgreSQL.
    POSTGRES_LAG_BYTES Gauge Bytes "postgres_lag_bytes" ["connection"] "Log of a database that is written and not read yet.";
    POSTGRES_STREAMED_BYTES Gauge Bytes "postgres_streamed_bytes" ["connection", "place"] "Transactions of a database that are not committed yet, kept in memory or in files.";
    POSTGRES_STREAMED Counter Count "postgres_streamed_total" ["connection", "outcome"] "Transactions that a database sent before they ended: committed or rolled back.";
    SNAPSHOT_ROWS Gauge Count "snapshot_rows" ["source"] "Rows read by the copy of a table that runs, or ran last.";
    TRANSACTIONS_SPLIT Counter Count "transactions_split_total" ["connection"] "Transactions that became visible in parts: too large for one time, or of a Kafka transaction topic (which the label names then) and not told or not there in time.";
    TRANSACTIONS_HELD Gauge Bytes "transactions_held_bytes" ["connection"] "Events of a transaction topic's sources that wait until their transactions are whole.";
    // Git.
    GIT_COMMITS Counter Count "git_commits_total" ["source"] "Commits applied, those without a file of the source included.";
    GIT_COMMITS_SPLIT Counter Count "git_commits_split_total" ["source"] "Commits over TRANSACTION_BYTES_MAX, which became visible in parts.";
    GIT_LAG Gauge Count "git_lag_commits" ["source"] "Commits of the branch that are known and not applied yet.";
    FILES_WATCHED Gauge Count "files_watched" ["source"] "1 while the operating system tells of changes in PATH, 0 while only scans find them.";
    FILES_OVERFLOWS Counter Count "files_overflows_total" ["source"] "Times that notifications of changes were lost, and the folder was scanned instead.";
    GIT_SNAPSHOT_LEFT Gauge Count "git_snapshot_files_left" ["source"] "Files of the first tree that are not taken yet.";

    // Questions.
    QUESTION_SECONDS Histogram Seconds "question_seconds" ["kind"] "From a question's arrival to its reply; its count is the number of questions.";
    SEARCH_SECONDS Histogram Seconds "search_seconds" [] "Search in one worker's shard, without the model.";

    // Embedding.
    EMBED_BATCH_SECONDS Histogram Seconds "embed_batch_seconds" ["model"] "One batch through a model.";
    EMBED_QUEUE Gauge Count "embed_queue_texts" ["model"] "Texts that wait for a model.";
    EMBED_BATCHES Counter Count "embed_batches_total" ["model"] "Batches through a model: ok, transient, permanent (a person must act), refused (because of a text).";
    EMBED_TEXTS Counter Count "embed_texts_total" ["model"] "Texts through a model.";
    EMBED_TOKENS Counter Count "embed_tokens_total" ["model"] "Tokens through a model, padding excluded; about, four bytes a token, where nobody had counted.";
    EMBED_CUT Counter Count "embed_texts_cut_total" ["model"] "Texts longer than a model's window: their vectors say nothing of the rest.";
    EMBED_MEMO_HITS Counter Count "embed_memo_hits_total" ["model"] "Texts whose vector was stored already.";
    EMBED_REFUSED Counter Count "embed_refused_total" ["model"] "Texts that a model refused for good: their dead letters say why.";
    EMBED_OVERFLOW Counter Count "embed_queue_overflow_total" ["model"] "Texts that found no room in a model's queue and are asked for again later.";
    EMBED_BREAKER_OPEN Gauge Count "embed_breaker_open" ["model"] "1 while a failing model is left alone.";
    EMBED_DEVICES Gauge Count "embed_devices" ["model"] "GPUs that work, of a model that runs on some.";
    EMBED_DEVICE_FAULTS Counter Count "embed_device_faults_total" ["model"] "Times that a GPU lost its context, its memory or an answer.";
    EMBED_DEVICE_CPU Counter Count "embed_device_cpu_texts_total" ["model"] "Texts that the CPU embedded in a GPU's place.";
    EMBED_QUESTION_HITS Counter Count "embed_question_cache_hits_total" ["model"] "Questions whose vector was remembered.";
    EMBED_QUESTION_MISSES Counter Count "embed_question_cache_misses_total" ["model"] "Questions that had to be embedded.";

    // Indexes.
    PENDING_DOCUMENTS Gauge Count "pending_documents" ["index"] "Documents whose newest version waits for its embedding.";
    INDEX_CHUNKS_LIVE Gauge Count "index_chunks_live" ["index"] "Chunks that a question can find.";
    INDEX_CHUNKS_DEAD Gauge Count "index_chunks_dead" ["index"] "Chunks kept for older times or until the next rebuild.";
    INDEX_CHUNKS_HEAD Gauge Count "index_chunks_head" ["index"] "Vectors in the scanned head, not yet in a graph.";
    INDEX_GENERATIONS Gauge Count "index_generations" ["index"] "Graph generations.";
    INDEX_BYTES Gauge Bytes "index_bytes" ["index"] "Memory of an index.";

    // The answer cache.
    CACHE_HITS Counter Count "cache_hits_total" ["cache"] "Look-ups answered.";
    CACHE_MISSES Counter Count "cache_misses_total" ["cache"] "Look-ups without an answer.";
    CACHE_NEAR_MISSES Counter Count "cache_near_misses_total" ["cache"] "Similar questions refused by the second gate.";
    CACHE_STORES Counter Count "cache_stores_total" ["outcome"] "Answers stored, or refused because they were no longer true.";
    CACHE_RETRACTIONS Counter Count "cache_retractions_total" ["cause"] "Answers retracted.";

    // The front door and the process.
    HTTP_REQUESTS Counter Count "http_requests_total" ["route", "status"] "Requests by route and status.";
    HTTP_SECONDS Histogram Seconds "http_request_seconds" ["route"] "Requests, streamed replies until their first byte.";
    PROCESS_RESIDENT_BYTES Gauge Bytes "process_resident_bytes" [] "Resident memory.";
    PROCESS_CPU_SECONDS Gauge Seconds "process_cpu_seconds" [] "Processor time used, user and system, since the start.";
}

/// Buckets of durations, in seconds: from a fast activation to a slow model.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Tells the installed recorder the unit and meaning of every metric.
pub fn describe_all() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.unit, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram => {
                metrics::describe_histogram!(metric.name, metric.unit, metric.help);
            }
        }
    }
}

/// Renders what was recorded.
#[derive(Clone)]
pub struct Telemetry {
    handle: PrometheusHandle,
}

fn builder() -> PrometheusBuilder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS_BUCKETS)
        .expect("the buckets are not empty")
}

/// Installs the recorder of this process, once: a later call gets the same one.
///
/// # Panics
/// When another library installed a recorder of its own.
pub fn install() -> Telemetry {
    static INSTALLED: std::sync::OnceLock<Telemetry> = std::sync::OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let recorder = builder().build_recorder();
            let handle = recorder.handle();
            assert!(
                metrics::set_global_recorder(recorder).is_ok(),
                "another recorder is installed"
            );
            describe_all();
            Telemetry { handle }
        })
        .clone()
}

impl Telemetry {
    /// Prometheus text, with the process' own figures as of now. Also drains the histograms: call
    /// it, or [`Telemetry::upkeep`], every few seconds.
    pub fn render(&self) -> String {
        record_process();
        self.handle.run_upkeep();
        self.handle.render()
    }

    /// Folds recorded samples into their buckets, so that memory stays small while nobody scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Resident bytes and processor seconds of this process, where `/proc` tells them.
pub fn process_figures() -> Option<(u64, f64)> {
    const PAGE_BYTES: u64 = 4096; // x86-64 and most others; a wrong guess scales one gauge
    const TICKS_A_SECOND: f64 = 100.0; // USER_HZ, fixed by Linux for every reader of /proc
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold spaces: count fields behind it. 14 = utime, 15 = stime.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((pages * PAGE_BYTES, (user + system) / TICKS_A_SECOND))
}

fn record_process() {
    if let Some((resident_bytes, cpu_seconds)) = process_figures() {
        metrics::gauge!(PROCESS_RESIDENT_BYTES.name).set(resident_bytes as f64);
        metrics::gauge!(PROCESS_CPU_SECONDS.name).set(cpu_seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_prefix_a_unit_and_a_meaning() {
        let mut names = std::collections::HashSet::new();
        for metric in METRICS {
            let name = metric.name;
            assert!(names.insert(name), "{name} is declared twice");
            assert!(name.starts_with("headwater_"), "{name}");
            assert!(
                metric.help.ends_with('.') && metric.help.len() > 10,
                "{name}: {}",
                metric.help
            );
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{name}"
            );
            let stem = name.trim_end_matches("_total");
            match metric.unit {
                Unit::Seconds => assert!(stem.ends_with("_seconds"), "{name}"),
                Unit::Bytes => assert!(stem.ends_with("_bytes"), "{name}"),
                Unit::Count => assert!(!stem.ends_with("_seconds") && !stem.ends_with("_bytes")),
                other => panic!("{name} has the unexpected unit {other:?}"),
            }
            if metric.kind == Kind::Histogram {
                assert!(
                    metric.unit == Unit::Seconds,
                    "{name}: no buckets for its unit"
                );
            }
        }
    }

    #[test]
    fn text_has_help_type_buckets_and_process_figures() {
        let recorder = builder().build_recorder();
        let telemetry = Telemetry {
            handle: recorder.handle(),
        };
        let text = metrics::with_local_recorder(&recorder, || {
            describe_all();
            metrics::counter!(ROWS_IN.name, "source" => "docs").increment(3);
            metrics::histogram!(LOG_SYNC_SECONDS.name).record(0.003);
            telemetry.render()
        });
        for line in [
            "# HELP headwater_rows_in_total Rows accepted.",
            "# TYPE headwater_rows_in_total counter",
            "headwater_rows_in_total{source=\"docs\"} 3",
            "headwater_log_sync_seconds_bucket{le=\"0.005\"} 1",
            "# TYPE headwater_process_resident_bytes gauge",
        ] {
            assert!(text.contains(line), "no line {line:?} in\n{text}");
        }
        let (resident_bytes, cpu_seconds) = process_figures().unwrap();
        assert!(resident_bytes > 1 << 20 && cpu_seconds >= 0.0);
    }
}
