//! One Kafka Connect worker (standalone) with Debezium's PostgreSQL connector and the Avro converter.
//!
//! **Idea.** Connectors are made, watched and moved over Connect's REST interface. A standalone
//! worker is up soonest; it forgets its connectors when it ends, so this remembers them and makes
//! them again. Offsets are in a file that survives `kill`: as far as it was flushed, so a killed
//! worker delivers again what came after.
//!
//! **Limits.** PostgreSQL never goes back behind what a slot has confirmed. A connector that shall
//! read an older part again needs a slot that was not confirmed up to there:
//! [`debezium`] leaves confirming to Debezium, [`keep_log`] switches it off.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::install;
use super::java;
use super::kafka::Kafka;
use super::postgres::Postgres;
use super::process::Process;
use super::registry::Registry;
use super::{Place, Run, free_port, http, wait_for};

const JSON_CONVERTER: &str = "org.apache.kafka.connect.json.JsonConverter";
const START_LIMIT: Duration = Duration::from_secs(300);
const RUNNING_LIMIT: Duration = Duration::from_secs(180);

/// A running worker.
pub struct Connect {
    /// `http://127.0.0.1:port`
    pub url: String,
    place: Place,
    process: Process,
    connectors: Mutex<BTreeMap<String, Json>>,
}

impl Connect {
    /// Starts a worker without connectors.
    ///
    /// # Panics
    /// When it cannot be had or does not come up.
    pub fn start(run: &Run, kafka: &Kafka) -> Connect {
        Connect::start_with(run, &kafka.bootstrap, &[])
    }

    /// The same with a bootstrap address of choice (a proxy's) and more worker settings.
    ///
    /// # Panics
    /// When it cannot be had or does not come up.
    pub fn start_with(run: &Run, bootstrap: &str, settings: &[(&str, &str)]) -> Connect {
        let (place, port) = (run.place("connect"), free_port());
        let url = format!("http://127.0.0.1:{port}");
        let mut text = format!(
            "bootstrap.servers={bootstrap}\nlisteners={url}\n\
             key.converter={JSON_CONVERTER}\nvalue.converter={JSON_CONVERTER}\n\
             offset.storage.file.filename={}\noffset.flush.interval.ms=1000\n\
             plugin.path={}\nplugin.discovery=service_load\n",
            place.data.join("offsets").display(),
            install::plugins().display(),
        );
        for (key, value) in settings {
            text += &format!("{key}={value}\n");
        }
        std::fs::write(place.data.join("worker.properties"), text).expect("writable");
        Connect {
            process: launch(&place, &url),
            url,
            place,
            connectors: Mutex::new(BTreeMap::new()),
        }
    }

    /// Makes a connector.
    ///
    /// # Panics
    /// When Connect refuses it.
    pub fn create_connector(&self, name: &str, config: &Json) {
        let mut all = self.connectors.lock().expect("no panic inside");
        all.insert(name.to_owned(), config.clone());
        drop(all);
        let body = json!({"name": name, "config": config});
        self.ask("POST", "/connectors", Some(&body));
    }

    /// Removes a connector; its offsets stay.
    ///
    /// # Panics
    /// When Connect refuses.
    pub fn delete_connector(&self, name: &str) {
        self.connectors
            .lock()
            .expect("no panic inside")
            .remove(name);
        self.ask("DELETE", &format!("/connectors/{name}"), None);
    }

    /// Waits until a connector and its task run. For Debezium, that it streams is told by
    /// [`Postgres::wait_slot_active`].
    ///
    /// # Panics
    /// With its error, when it fails.
    pub fn wait_running(&self, name: &str) {
        self.wait_state(name, "RUNNING");
    }

    /// What Connect says about a connector.
    ///
    /// # Panics
    /// When there is none.
    pub fn status(&self, name: &str) -> Json {
        self.ask("GET", &format!("/connectors/{name}/status"), None)
    }

    /// The committed offsets of a connector, for [`Connect::restart_from_older_offsets`]; waits for
    /// the first ones. They follow what was delivered by up to a second.
    ///
    /// # Panics
    /// When there is no such connector, or it commits none.
    pub fn offsets(&self, name: &str) -> Json {
        let path = format!("/connectors/{name}/offsets");
        wait_for(&format!("offsets of {name}"), RUNNING_LIMIT, || {
            let found = self.ask("GET", &path, None);
            let is_there = found["offsets"]
                .as_array()
                .is_some_and(|all| !all.is_empty());
            is_there.then_some(found)
        })
    }

    /// Stops a connector, puts it back to offsets that [`Connect::offsets`] gave before, and lets it
    /// go on: what came after them is delivered again.
    ///
    /// # Panics
    /// When Connect refuses, or the connector fails.
    pub fn restart_from_older_offsets(&self, name: &str, older: &Json) {
        self.pause(name);
        self.ask("PATCH", &format!("/connectors/{name}/offsets"), Some(older));
        self.resume(name);
    }

    /// Stops a connector, forgets its offsets and lets it go on: it takes its snapshot again.
    ///
    /// # Panics
    /// When Connect refuses, or the connector fails.
    pub fn restart_from_scratch(&self, name: &str) {
        self.pause(name);
        self.ask("DELETE", &format!("/connectors/{name}/offsets"), None);
        self.resume(name);
    }

    /// Stops a connector; it keeps its place.
    ///
    /// # Panics
    /// When Connect refuses.
    pub fn pause(&self, name: &str) {
        self.ask("PUT", &format!("/connectors/{name}/stop"), None);
        self.wait_state(name, "STOPPED");
    }

    /// Lets a stopped connector go on.
    ///
    /// # Panics
    /// When Connect refuses, or the connector fails.
    pub fn resume(&self, name: &str) {
        self.ask("PUT", &format!("/connectors/{name}/resume"), None);
        self.wait_running(name);
    }

    /// Restarts a connector and its task, as one does after a failure.
    ///
    /// # Panics
    /// When Connect refuses, or the connector fails.
    pub fn restart_connector(&self, name: &str) {
        let path = format!("/connectors/{name}/restart?includeTasks=true");
        self.ask("POST", &path, None);
        self.wait_running(name);
    }

    /// Ends the worker at once (SIGKILL).
    ///
    /// # Panics
    /// When its files cannot be read or written.
    pub fn kill(&mut self) {
        let offsets = self.place.data.join("offsets");
        let before = std::fs::read(&offsets).unwrap_or_default();
        self.process.kill();
        // A standalone worker writes them in place, and takes a torn file for none: its connectors would take
        // their snapshots again. (Workers that share their offsets keep them in a topic.)
        let after = std::fs::read(&offsets).unwrap_or_default();
        if after.len() < before.len() {
            std::fs::write(&offsets, before).expect("writable");
        }
    }

    /// Starts the worker again (after an orderly end, if it runs), with its connectors.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.process.stop("TERM");
        self.process = launch(&self.place, &self.url);
        let all = self.connectors.lock().expect("no panic inside").clone();
        for (name, config) in &all {
            self.create_connector(name, config);
        }
        for name in all.keys() {
            self.wait_running(name);
        }
    }

    /// The process, for pauses and figures.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn wait_state(&self, name: &str, wanted: &str) {
        let path = format!("{}/connectors/{name}/status", self.url);
        wait_for(&format!("connector {name} {wanted}"), RUNNING_LIMIT, || {
            // A connector that was made just now may have no status yet.
            let (200, status) = http("GET", &path, None).ok()? else {
                return None;
            };
            let tasks = status["tasks"].as_array().cloned().unwrap_or_default();
            let parts = || tasks.iter().chain([&status["connector"]]);
            if let Some(failed) = parts().find(|part| part["state"] == "FAILED") {
                let trace = failed["trace"].as_str().unwrap_or_default();
                panic!(
                    "connector {name} failed: {trace}\nlog: {}",
                    self.place.log.display()
                );
            }
            let is_there = tasks.is_empty() == (wanted == "STOPPED");
            (is_there && parts().all(|part| part["state"] == wanted)).then_some(())
        });
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Json>) -> Json {
        let url = format!("{}{path}", self.url);
        // 409: Connect is moving connectors about, and says to ask again.
        wait_for(&format!("{method} {url}"), RUNNING_LIMIT, || {
            match http(method, &url, body) {
                Ok((200..=299, reply)) => Some(reply),
                Ok((409, _)) => None,
                Ok((status, reply)) => panic!("{method} {url}: {status} {reply}"),
                Err(error) => panic!("{error}\nlog: {}", self.place.log.display()),
            }
        })
    }
}

/// A Debezium connector in its defaults, with fast polls: topics are `PREFIX.SCHEMA.TABLE`, the slot
/// is `PREFIX`, events are JSON without schemas.
pub fn debezium(postgres: &Postgres, prefix: &str, tables: &str) -> Json {
    json!({
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "database.hostname": postgres.host,
        "database.port": postgres.port.to_string(),
        "database.user": postgres.user,
        "database.password": postgres.password,
        "database.dbname": postgres.database,
        "plugin.name": "pgoutput",
        "slot.name": prefix,
        "publication.name": prefix,
        "publication.autocreate.mode": "filtered",
        "topic.prefix": prefix,
        "table.include.list": tables,
        "poll.interval.ms": "20",
        "retriable.restart.connector.wait.ms": "500",
        // Without its class, a converter's settings would be passed over.
        "key.converter": JSON_CONVERTER,
        "value.converter": JSON_CONVERTER,
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
    })
}

/// Settings on top of a connector's.
pub fn with(mut config: Json, more: &Json) -> Json {
    let all = config.as_object_mut().expect("a connector's settings");
    all.extend(more.as_object().expect("settings").clone());
    config
}

/// Events as JSON that carries its schema.
pub fn with_schemas() -> Json {
    json!({"key.converter.schemas.enable": "true", "value.converter.schemas.enable": "true"})
}

/// A NULL stays a NULL. By default Kafka's JSON converter writes the column's DEFAULT in its place.
pub fn keep_nulls() -> Json {
    json!({
        "key.converter.replace.null.with.default": "false",
        "value.converter.replace.null.with.default": "false",
    })
}

/// Debezium does not confirm what it has read: the slot keeps the log, and any older offset can be
/// gone back to.
pub fn keep_log() -> Json {
    json!({"flush.lsn.source": "false"})
}

/// Events in Avro, in Confluent's wire format, with their schemas in a registry.
pub fn avro(registry: &Registry) -> Json {
    let mut out = json!({"schema.name.adjustment.mode": "avro"});
    for side in ["key", "value"] {
        let mut set = |name: &str, value: &str| {
            out[format!("{side}.converter{name}")] = Json::from(value);
        };
        set("", "io.apicurio.registry.utils.converter.AvroConverter");
        set(".apicurio.registry.url", &registry.apicurio_url());
        set(".apicurio.registry.auto-register", "true");
        set(".apicurio.registry.find-latest", "true");
        set(".apicurio.registry.as-confluent", "true");
        set(".apicurio.registry.headers.enabled", "false");
        // The Confluent API of the registry counts contents, and not versions of artifacts.
        set(".apicurio.registry.use-id", "contentId");
    }
    out
}

/// Events in Avro as Apicurio's converter writes them by default: the schema's id is in a header, and
/// is one that only Apicurio's own API knows.
pub fn avro_headers(registry: &Registry) -> Json {
    let mut out = avro(registry);
    for side in ["key", "value"] {
        let mut set = |name: &str, value: &str| {
            out[format!("{side}.converter.apicurio.registry.{name}")] = Json::from(value);
        };
        set("as-confluent", "false");
        set("headers.enabled", "true");
        set("use-id", "globalId");
    }
    out
}

fn launch(place: &Place, url: &str) -> Process {
    let classpath = install::kafka_classpath();
    let main = "org.apache.kafka.connect.cli.ConnectStandalone";
    let arguments = ["-cp", &classpath, main, "worker.properties"];
    let connectors = format!("{url}/connectors");
    java::launch(
        "Kafka Connect",
        place,
        "512m",
        &arguments,
        START_LIMIT,
        || matches!(http("GET", &connectors, None), Ok((200, _))),
    )
}
