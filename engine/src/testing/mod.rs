//! Test doubles and law suites for every crate above the ground floor (feature `testing`).

mod memory_store;
mod store_laws;

pub use memory_store::{Faults, MemoryStore};
pub use store_laws::store_laws;
