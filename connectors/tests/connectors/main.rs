//! The connectors against the laws of sources, naive oracles, and the exact words of their errors.

mod files;
mod generate;
mod push;
