//! The top floor: what one may ask, and how a declaration becomes a dataflow.
//!
//! Reading order: [`definition`] (declared objects), [`api`] (requests and replies of the one front
//! door), [`sql`] (text to definitions and plans), [`render`] (definitions to dataflows),
//! [`service`] (the engine behind the front door).

pub mod api;
pub mod definition;
pub mod problem;
pub mod render;
pub mod service;
pub mod sql;
