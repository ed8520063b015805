//! The laws of the shard, against a naive model.

mod law;
mod model;
mod recall;
