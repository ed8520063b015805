//! Envelopes: recorded behaviours, types, exact errors, and the law on generated histories.
//!
//! A [`Topic`] feeds one table's messages to a decoder and a table, and keeps the rows.

mod behaviours;
mod errors;
mod formats;
pub mod history;
mod law;
mod other_producers;
mod shapes;
pub mod topic;
mod types;

pub use topic::{Message, Rows, Topic, event, schema, snapshot, streamed, tickets};
