//! Connections and secrets of sources, read at the moment they are used.
//!
//! Invariants: a secret's value is in no catalog, log or message; a secret that cannot be read is a
//! failure of the world that names where it was looked for.

use std::collections::BTreeMap;

use engine::contract::Source;
use engine::error::WorldError;
use engine::model::Schema;

use super::Inner;
use crate::api::Reply;
use crate::definition::{
    ConnectionDef, Connector, Definition, ModelDef, PasswordDef, SecretDef, SinkDef, SourceDef,
};
use crate::problem::Problem;
use crate::sql::DatabaseTable;

/// What the reader of a source needs beside its definition. Never shown: it has secrets.
#[derive(Clone, Default)]
pub struct Access {
    /// The connection that the source names.
    pub connection: Option<Connection>,
    /// Values of the other secrets that it names, by name.
    pub secrets: BTreeMap<String, String>,
}

impl Access {
    /// The value of a secret.
    ///
    /// Errors: it is none of this source's.
    pub fn secret(&self, name: &str) -> Result<&str, WorldError> {
        let found = self.secrets.get(name);
        found
            .map(|value| &**value)
            .ok_or_else(|| missing("secret", name))
    }
}

/// The way to a model's key, walked anew for each call: a new key needs no restart.
#[derive(Clone)]
pub struct ModelKey {
    place: SecretDef,
}

impl ModelKey {
    pub(super) fn new(place: &SecretDef) -> ModelKey {
        ModelKey {
            place: place.clone(),
        }
    }

    /// Where it is, for people: `the environment variable OPENAI_API_KEY`.
    pub fn place(&self) -> String {
        match &self.place {
            SecretDef::Env(variable) => format!("the environment variable {variable}"),
            SecretDef::File(path) => format!("the file {path}"),
        }
    }

    /// The key.
    ///
    /// Errors: the variable is not set, or the file cannot be read.
    pub fn read(&self) -> Result<String, WorldError> {
        read_secret(&self.place)
    }
}

/// What connecting needs.
#[derive(Clone)]
pub struct Connection {
    /// Its name.
    pub name: String,
    /// What was declared.
    pub definition: ConnectionDef,
    /// The password; empty without a secret.
    pub password: String,
}

impl Connection {
    /// Reads the secret, if there is one.
    ///
    /// Errors: the variable is not set, or the file cannot be read.
    pub fn new(
        name: &str,
        definition: &ConnectionDef,
        secret: Option<&SecretDef>,
    ) -> Result<Connection, WorldError> {
        let password = match secret {
            Some(secret) => read_secret(secret)?,
            None => String::new(),
        };
        Ok(Connection {
            name: name.to_owned(),
            definition: definition.clone(),
            password,
        })
    }
}

/// An object that is named and not there.
fn missing(what: &str, name: &str) -> WorldError {
    WorldError::Service {
        service: format!("{what} \"{name}\""),
        detail: format!("there is no such {what}"),
        is_transient: false,
    }
}

fn read_secret(secret: &SecretDef) -> Result<String, WorldError> {
    match secret {
        SecretDef::Env(variable) => {
            let value = std::env::var(variable).map_err(|_| WorldError::Service {
                service: "secret".to_owned(),
                detail: format!("the environment variable {variable} is not set in the server"),
                is_transient: false,
            })?;
            Ok(without_line_end(&value))
        }
        SecretDef::File(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| WorldError::io("cannot read the secret", path.as_ref(), error))?;
            Ok(without_line_end(&text))
        }
    }
}

/// Files and variables often end in a line's end that is no part of the secret.
fn without_line_end(text: &str) -> String {
    text.trim_end_matches(['\n', '\r']).to_owned()
}

impl Inner {
    /// Makes the reader of a source, with the connection and the secrets that it names.
    pub(super) fn connect(
        &self,
        source: &SourceDef,
        name: &str,
    ) -> Result<Option<Box<dyn Source>>, WorldError> {
        (self.connect)(source, name, &self.access(source)?)
    }

    /// What a source names, with the values of its secrets.
    pub(super) fn access(&self, source: &SourceDef) -> Result<Access, WorldError> {
        let mut access = Access::default();
        match &source.connector {
            Connector::Postgres(postgres) => {
                access.connection = Some(self.connection(&postgres.connection)?);
            }
            Connector::Kafka(kafka) => {
                for name in kafka.secrets() {
                    let value = read_secret(&self.secret(name)?)?;
                    access.secrets.insert(name.to_owned(), value);
                }
            }
            _ => {}
        }
        Ok(access)
    }

    /// The values of the secrets that a sink names.
    pub(super) fn sink_access(&self, sink: &SinkDef) -> Result<Access, WorldError> {
        let mut access = Access::default();
        for name in sink.secrets() {
            let value = read_secret(&self.secret(name)?)?;
            access.secrets.insert(name.to_owned(), value);
        }
        Ok(access)
    }

    /// Whether a model's key can be read: told to who declares it, not only at the first call.
    pub(super) fn check_key(&self, definition: &Definition) -> Reply<()> {
        let Definition::Model(ModelDef::Remote(remote)) = definition else {
            return Ok(());
        };
        let read = match &remote.key {
            None => return Ok(()),
            Some(PasswordDef::Env(variable)) => read_secret(&SecretDef::Env(variable.clone())),
            Some(PasswordDef::File(path)) => read_secret(&SecretDef::File(path.clone())),
            Some(PasswordDef::Secret(name)) => self.secret(name).and_then(|s| read_secret(&s)),
        };
        read.map(drop)
            .map_err(|error| Problem::invalid(format!("the model's key: {error}")))
    }

    fn definition(&self, name: &str) -> Option<Definition> {
        let declared = self.pipeline.by_name(name)?;
        Some(declared.object().definition.clone())
    }

    fn secret(&self, name: &str) -> Result<SecretDef, WorldError> {
        match self.definition(name) {
            Some(Definition::Secret(secret)) => Ok(secret),
            _ => Err(missing("secret", name)),
        }
    }

    fn connection(&self, name: &str) -> Result<Connection, WorldError> {
        let Some(Definition::Connection(connection)) = self.definition(name) else {
            return Err(missing("connection", name));
        };
        let secret = connection.password.as_deref();
        let secret = secret.map(|secret| self.secret(secret)).transpose()?;
        Connection::new(name, &connection, secret.as_ref())
    }

    /// The columns of a table: those of the source that reads it already, else as the database has
    /// them.
    pub(super) fn describe_table(&self, sought: &DatabaseTable<'_>) -> Result<Schema, String> {
        let table = sought.table;
        let declared = self.pipeline.by_name(sought.source);
        if let Some(Definition::Source(source)) =
            declared.map(|declared| declared.object().definition.clone())
            && source.connector == Connector::Postgres(table.clone())
        {
            return Ok(source.schema);
        }
        let connection = Connection::new(&table.connection, sought.connection, sought.secret);
        let schema = connection.and_then(|connection| (self.describe)(&connection, &table.table));
        schema.map_err(|error| error.to_string())
    }
}
