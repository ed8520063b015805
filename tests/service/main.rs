//! The whole engine behind its own interface: bad input, a slow encoder, restarts, statements.
//!
//! Everything runs in process: the real service, the real connectors, a store in memory that can
//! be told to fail, and an encoder without weights that can be told to be slow.

mod bad_input;
mod demo;
mod extract;
mod holds;
mod letters;
mod pipeline;
mod remote;
mod restart;
mod rig;
mod sink;
mod slow_encoder;
mod transactions;
mod vectors;
