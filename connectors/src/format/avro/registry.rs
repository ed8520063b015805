//! The schemas of a registry, asked for once each.
//!
//! The idea: whoever reads messages must not wait long, so a request runs on a thread of its own. A
//! schema that is known is there at once; one that is being asked for is waited for briefly
//! ([`PATIENCE`]), and then the caller is told to come again ([`Wait`]).
//!
//! ```text
//!            ┌──────────── asked ─────────────┐ the one request in flight
//! schema(id) ┤ known   ─▶ the schema          │   200 ─▶ known, for ever
//!            ├ refused ─▶ a dead letter       │   404 ─▶ refused, for REFUSED
//!            └ failed  ─▶ Wait, until `again` ┘   else ─▶ failed, twice as long as before
//! ```
//!
//! Invariants: at most one request for an id at a time; a registry that cannot be asked makes
//! nobody's message a dead letter. Limits: [`REGISTRY_SCHEMAS_MAX`] ids; the one that was not used for
//! the longest time is forgotten.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::error::{DataError, WorldError};
use engine::limits::{REGISTRY_RETRY_MS, REGISTRY_SCHEMAS_MAX};

use super::client::{Address, Client, Trouble};
use super::resolve::resolve;
use super::schema::Schema;
use super::wire::SchemaId;
use crate::format::{Failure, Wait};

/// Longest wait of a caller for an answer that is on its way: a stop must be seen within a second.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long an id that the registry does not have is not asked for again.
const REFUSED: Duration = Duration::from_secs(10);

/// A registry and what is known of it. Clones share it.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    url: String,
    client: Client,
    /// The reader's schema.
    reader: Option<Schema>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    slots: HashMap<SchemaId, Slot>,
    /// Counts uses.
    uses: u64,
}

struct Slot {
    found: Found,
    used: u64,
}

enum Found {
    Asked { pause: Duration },
    Known(Arc<Schema>),
    Refused { error: DataError, until: Instant },
    Failed(Failed),
}

struct Failed {
    detail: String,
    again: Instant,
    /// How long this time, to be doubled.
    pause: Duration,
}

impl fmt::Debug for Registry {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&self.shared.url).finish()
    }
}

impl Registry {
    /// A registry; nothing is asked yet. `reader` is the schema that all values are read as.
    pub fn new(address: &Address, reader: Option<Schema>) -> Registry {
        Registry {
            shared: Arc::new(Shared {
                url: address.url.clone(),
                client: Client::new(address),
                reader,
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
        }
    }

    /// The schema of an id, as the reader's schema has it.
    ///
    /// Errors: a dead letter when the registry does not have it or it cannot be read; [`Wait`] when
    /// the registry cannot be asked. Cost: a lock, once the schema is known.
    pub fn schema(&self, id: SchemaId) -> Result<Arc<Schema>, Failure> {
        let shared = &self.shared;
        let deadline = Instant::now() + PATIENCE;
        let mut state = shared.lock();
        loop {
            state.uses += 1;
            let (uses, now) = (state.uses, Instant::now());
            let mut pause = Duration::ZERO;
            if let Some(slot) = state.slots.get_mut(&id) {
                slot.used = uses;
                match &slot.found {
                    Found::Known(schema) => return Ok(Arc::clone(schema)),
                    Found::Refused { error, until } if now < *until => {
                        return Err(Failure::Data(error.clone()));
                    }
                    Found::Failed(failed) if now < failed.again => {
                        let after = failed.again - now;
                        return Err(shared.wait(failed.detail.clone(), after));
                    }
                    Found::Asked { .. } if now >= deadline => {
                        let detail = format!("{id} was asked for; the answer is not there yet");
                        return Err(shared.wait(detail, PATIENCE));
                    }
                    Found::Asked { .. } => {
                        let waited = shared.changed.wait_timeout(state, deadline - now);
                        state = waited.unwrap_or_else(PoisonError::into_inner).0;
                        continue;
                    }
                    Found::Failed(failed) => pause = failed.pause,
                    Found::Refused { .. } => {}
                }
            }
            state.put(id, Found::Asked { pause });
            drop(state);
            Shared::ask(shared, id);
            state = shared.lock();
        }
    }
}

impl State {
    fn put(&mut self, id: SchemaId, found: Found) {
        let is_new = !self.slots.contains_key(&id);
        if is_new && self.slots.len() >= REGISTRY_SCHEMAS_MAX {
            let idle = self.slots.iter();
            let idle = idle.filter(|(_, slot)| !matches!(slot.found, Found::Asked { .. }));
            let oldest = idle.min_by_key(|(_, slot)| slot.used).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.slots.remove(&oldest);
            }
        }
        self.uses += 1;
        let used = self.uses;
        self.slots.insert(id, Slot { found, used });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, detail: String, after: Duration) -> Failure {
        Failure::Wait(Wait {
            error: WorldError::Service {
                service: format!("the schema registry {}", self.url),
                detail,
                is_transient: true,
            },
            after,
        })
    }

    /// Sends the request, on a thread that ends with it.
    fn ask(shared: &Arc<Shared>, id: SchemaId) {
        let own = Arc::clone(shared);
        let body = move || {
            let found = own.found(id);
            own.lock().put(id, found);
            own.changed.notify_all();
        };
        let thread = std::thread::Builder::new().name("schema-registry".to_owned());
        if let Err(error) = thread.spawn(body) {
            let found = shared.failed(id, format!("no thread to ask it: {error}"));
            shared.lock().put(id, found);
        }
    }

    fn found(&self, id: SchemaId) -> Found {
        let refused = |error: DataError| Found::Refused {
            error,
            until: Instant::now() + REFUSED,
        };
        let unusable = |reason: &str| {
            let detail = format!("the {id} cannot be read: {reason}");
            refused(DataError::new("invalid-schema", detail).expected("a schema of Avro 1.12"))
        };
        let texts = match self.client.texts(id) {
            Ok(texts) => texts,
            Err(Trouble::Unknown(message)) => return refused(unknown(id, &message)),
            Err(Trouble::Unusable(reason)) => return unusable(&reason),
            Err(Trouble::World(detail)) => return self.failed(id, detail),
        };
        let writer = match Schema::parse(&texts.schema, &texts.references) {
            Ok(writer) => writer,
            Err(reason) => return unusable(&reason),
        };
        match &self.reader {
            None => Found::Known(Arc::new(writer)),
            Some(reader) => match resolve(&writer, reader) {
                Ok(resolved) => Found::Known(Arc::new(resolved)),
                Err(reason) => {
                    let detail = format!("the {id} cannot be read as the declared one: {reason}");
                    refused(
                        DataError::new("schema-mismatch", detail)
                            .expected("a schema that resolves to the declared one")
                            .hint("give the missing field a default in SCHEMA"),
                    )
                }
            },
        }
    }

    fn failed(&self, id: SchemaId, detail: String) -> Found {
        let (least, most) = REGISTRY_RETRY_MS;
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
        let before = match self.lock().slots.get(&id).map(|slot| &slot.found) {
            Some(Found::Asked { pause }) => *pause,
            _ => Duration::ZERO,
        };
        let pause = (before * 2).clamp(least, most);
        let again = Instant::now() + pause;
        Found::Failed(Failed {
            detail,
            again,
            pause,
        })
    }
}

fn unknown(id: SchemaId, message: &str) -> DataError {
    let detail = format!("the registry does not have the {id}: {message}");
    DataError::new("unknown-schema", detail)
        .expected("an id that the registry of the statement gave")
        .hint(
            "another registry, or ids of another kind: Apicurio's Confluent API counts content ids \
             (use-id=contentId at its converter)",
        )
}
