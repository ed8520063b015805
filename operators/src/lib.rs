//! Operators: what turns documents to answers.

pub mod embed;
