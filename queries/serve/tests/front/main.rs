//! The front door over real sockets, with a backend that answers from a script.
//!
//! Reading order: `http` (a client of forty lines), `fake` (the backend), `schema` (a validator),
//! then the laws: every error is a problem, the description is true, streams end, nothing is lost.

mod calls;
mod described;
mod embeddings;
mod errors;
mod fake;
mod http;
mod schema;
mod streams;
