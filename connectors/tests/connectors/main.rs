//! The connectors against the laws of sources, naive oracles, and the exact words of their errors.

mod avro;
mod csv;
mod envelope;
mod files;
mod generate;
mod push;
