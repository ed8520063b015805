//! The generator of histories, and the topic that they are read from: the law test's own.

#[path = "../../../connectors/tests/connectors/envelope/history.rs"]
pub mod history;
#[path = "../../../connectors/tests/connectors/envelope/topic.rs"]
pub mod topic;
