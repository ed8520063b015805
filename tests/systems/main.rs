//! The program beside real systems: Apache Kafka, Kafka Connect with Debezium, a schema registry,
//! PostgreSQL.
//!
//! Nothing here is skipped: a server that cannot be had is a failure that says why
//! ([`servers::install`]). Each test has servers of its own; they run one after another, because a
//! stack is a gigabyte.

#[path = "../../connectors/tests/support/kafka_writer.rs"]
mod kafka_writer;
#[path = "../support/program.rs"]
mod program;
#[path = "../support/server.rs"]
mod server;
#[path = "../support/servers/mod.rs"]
mod servers;

mod avro;
mod debezium;
mod debezium_transactions;
mod kafka;
mod kafka_logs;
#[cfg(feature = "kafka-tls")]
mod kafka_tls;
mod letters;
mod postgres;
mod postgres_edges;
mod postgres_failover;
mod postgres_freshness;
mod postgres_streams;
mod sink;
mod workload;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One stack at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
