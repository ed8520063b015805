//! The connectors against the laws of sources, naive oracles, and the exact words of their errors.

mod avro;
mod csv;
mod envelope;
mod files;
mod generate;
mod git;
mod git_http;
#[path = "../../../tests/support/git_server.rs"]
mod git_server;
mod push;
#[path = "../../../tests/support/git.rs"]
mod repo;
mod sink;
