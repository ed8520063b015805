//! Law.
