//! An Apicurio schema registry, which also speaks the Confluent API.
//!
//! **Idea.** Its built-in database is told to live in a file and to write at once, so a registry
//! that was killed comes back with its schemas and their numbers.
//!
//! **Limits.** Two converters that register at the same moment block each other in that database, and
//! one of them fails: let connectors begin, and meet new schemas, one after the other.

use std::time::Duration;

use super::install;
use super::java;
use super::process::Process;
use super::{Place, Run, free_port, http};

const START_LIMIT: Duration = Duration::from_secs(240);

/// A running registry.
pub struct Registry {
    /// `http://127.0.0.1:port`
    pub url: String,
    port: u16,
    place: Place,
    process: Process,
}

impl Registry {
    /// Starts an empty registry.
    ///
    /// # Panics
    /// When it cannot be had or does not come up.
    pub fn start(run: &Run) -> Registry {
        let (place, port) = (run.place("registry"), free_port());
        Registry {
            url: format!("http://127.0.0.1:{port}"),
            process: launch(&place, port),
            port,
            place,
        }
    }

    /// Base of the Confluent API.
    pub fn confluent_url(&self) -> String {
        format!("{}/apis/ccompat/v7", self.url)
    }

    /// Base of Apicurio's own API, which its converter wants.
    pub fn apicurio_url(&self) -> String {
        format!("{}/apis/registry/v2", self.url)
    }

    /// The names that schemas are registered under.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn subjects(&self) -> Vec<String> {
        let url = format!("{}/subjects", self.confluent_url());
        let (_, body) = http("GET", &url, None).unwrap_or_else(|error| panic!("{error}"));
        let names = body.as_array().into_iter().flatten();
        names
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect()
    }

    /// The text of schema number `id`.
    ///
    /// # Errors
    /// What the registry says.
    pub fn schema(&self, id: u32) -> Result<String, String> {
        let url = format!("{}/schemas/ids/{id}", self.confluent_url());
        let (status, body) = http("GET", &url, None)?;
        let schema = body["schema"].as_str().map(str::to_owned);
        schema.ok_or_else(|| format!("{url}: {status} {body}"))
    }

    /// Registers a schema and gives its number.
    ///
    /// # Panics
    /// When the registry refuses it.
    pub fn register(&self, subject: &str, schema: &str) -> u32 {
        let url = format!("{}/subjects/{subject}/versions", self.confluent_url());
        let body = serde_json::json!({"schema": schema});
        let (status, reply) =
            http("POST", &url, Some(&body)).unwrap_or_else(|error| panic!("{error}"));
        let id = reply["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        id.unwrap_or_else(|| panic!("{url}: {status} {reply}"))
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Ends it and starts it again at the same port, with its schemas.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.process.stop("TERM");
        self.process = launch(&self.place, self.port);
    }

    /// The process, for pauses and figures.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn launch(place: &Place, port: u16) -> Process {
    let jar = install::registry();
    let database = place.data.join("registry");
    let jar = jar.display().to_string();
    let port_setting = format!("-Dquarkus.http.port={port}");
    let database = format!(
        "-Dquarkus.datasource.jdbc.url=jdbc:h2:file:{};WRITE_DELAY=0",
        database.display()
    );
    let host = "-Dquarkus.http.host=127.0.0.1";
    let arguments = [&port_setting, host, &database, "-jar", &jar];
    let subjects = format!("http://127.0.0.1:{port}/apis/ccompat/v7/subjects");
    let is_ready = || matches!(http("GET", &subjects, None), Ok((200, _)));
    java::launch(
        "the schema registry",
        place,
        "256m",
        &arguments,
        START_LIMIT,
        is_ready,
    )
}
