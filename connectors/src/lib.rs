//! Connectors: readers of the outside world (being merged).

/// Decoding of pushes.
pub mod push {
    use engine::error::DataError;
    use engine::model::{Key, Row, Schema};

    /// A decoded body.
    #[derive(Debug, Default)]
    pub struct Decoded {
        /// Changes.
        pub changes: Vec<(Key, Option<Row>, Option<u64>)>,
        /// Good lines.
        pub accepted: u64,
        /// Bad lines.
        pub rejected: Vec<(u64, DataError)>,
    }

    /// Decodes lines.
    pub fn decode<'a>(_schema: &Schema, _lines: impl Iterator<Item = (u64, &'a [u8])>) -> Decoded {
        Decoded::default()
    }
}

use engine::contract::Source;
use engine::error::WorldError;

/// A folder of files.
pub fn files(_path: &str, _pattern: &str) -> Result<Box<dyn Source>, WorldError> {
    Err(WorldError::Service { service: "files".into(), detail: "being merged".into(), is_transient: false })
}

/// Rows from a seed.
pub fn generate(_rows: u64, _rate: u64, _seed: u64, _dimensions: Option<u32>) -> Box<dyn Source> {
    unreachable!("being merged")
}
