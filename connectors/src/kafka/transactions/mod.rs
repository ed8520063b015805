//! `TRANSACTION TOPIC`: changes of a source's transaction over several tables become visible together.
//!
//! Debezium (`provide.transaction.metadata`) names in each change its transaction, and writes to a
//! topic of its own, in commit order, how many events of which table each transaction had. Sources
//! that name the same brokers and the same transaction topic are a group: their changes wait until the
//! transaction is whole, and then are staged as one record.
//!
//! ```text
//! source A: consumer, decoder ─ Feed ─┐ (threads of the sources)
//! source B: consumer, decoder ─ Feed ─┼─▶ hub (1 thread a group): Group ─▶ stage_together
//! transaction topic ──── Metadata ────┘      Assembly, Lanes
//!        (1 thread a group)   ▲ wishes: pause, look, ends ▼
//! ```
//!
//! Invariants: see [`assembly`] for what goes on when, [`group`] for what a restart finds. Waiting is
//! bounded in time and bytes; what is given up is counted and said. Partitions that run ahead are
//! paused, never one that the next transaction lacks.
//!
//! Limits: the transaction topic has one partition; topics keep the names that Debezium gives them; a
//! source that joins others later shows what it finds as it comes, until it stands where they do.

pub mod assembly;
mod feed;
pub mod group;
mod hub;
mod metadata;

pub use hub::{Groups, Ticket};
