//! The top floor: what one may ask, and how a declaration becomes a dataflow.
//!
//! Reading order: [`definition`] (declared objects), [`api`] (requests and replies of the one front
//! door), [`sql`] (text to definitions and plans).

pub mod api;
pub mod definition;
pub mod problem;
pub mod sql;
