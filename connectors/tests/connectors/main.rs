//! The connectors against the laws of sources, naive oracles, and the exact words of their errors.

mod archives;
mod avro;
mod csv;
#[path = "../../../tests/support/dice.rs"]
pub mod dice;
mod documents;
mod envelope;
mod files;
mod fuzz;
mod generate;
mod git;
mod git_http;
#[path = "../../../tests/support/git_server.rs"]
mod git_server;
mod push;
#[path = "../../../tests/support/git.rs"]
mod repo;
mod sink;
mod streamed;
mod transactions;
