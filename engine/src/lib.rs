//! The ground floor of Headwater: nouns, time, limits, errors, contracts, the runtime that turns
//! an input log into sealed collections, durable state and telemetry.
//!
//! Reading order: [`model`] (what flows), [`contract`] (what others promise us), [`durable`] (what
//! survives), [`letters`] (what was bad), [`runtime`] (how time is made and sealed), [`telemetry`].

pub mod contract;
pub mod durable;
pub mod error;
pub mod letters;
pub mod limits;
pub mod model;
pub mod runtime;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
