//! The subjects of a registry, for those who write: a sink's schemas get their ids here.
//!
//! Invariant: registering a schema that the subject has already gives the same id. Blocks, at most as
//! long as a request may take; a sink asks once a start.

use engine::error::WorldError;

use super::client::{Address, Client, Trouble};

/// A registry to write to.
pub struct Subjects {
    url: String,
    client: Client,
}

impl Subjects {
    /// A registry; nothing is asked yet.
    pub fn new(address: &Address) -> Subjects {
        Subjects {
            url: address.url.clone(),
            client: Client::new(address),
        }
    }

    /// Registers a schema under a subject, or finds it there: its id.
    ///
    /// Errors: a registry that cannot be asked, or refuses; all may be over when asked again.
    pub fn register(&self, subject: &str, schema: &str) -> Result<u32, WorldError> {
        self.client.register(subject, schema).map_err(|trouble| {
            let (Trouble::Unknown(detail) | Trouble::Unusable(detail) | Trouble::World(detail)) =
                trouble;
            WorldError::Service {
                service: format!("the schema registry {}", self.url),
                detail,
                is_transient: true,
            }
        })
    }
}
