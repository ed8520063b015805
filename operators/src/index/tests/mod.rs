//! The laws of the shard, against a naive model.
