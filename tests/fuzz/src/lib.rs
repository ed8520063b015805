//! What is fuzzed ([`targets`]) and what makes its histories: code of the connectors' tests, as a
//! library that can be built with coverage counters.

#[allow(dead_code)] // each user has its part
#[path = "../../support/dice.rs"]
pub mod dice;
#[allow(dead_code)]
mod envelope;
#[path = "../targets/mod.rs"]
pub mod targets;
