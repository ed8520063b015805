//! A second broker, for changes of leader.
//!
//! **Idea.** It joins the controller of a [`Kafka`]. A topic made with
//! [`Kafka::create_topic_on`] says which broker leads each partition; when this one is killed, the
//! other one takes over after two seconds, and leadership comes back by itself only if asked for.
//!
//! **Limits.** Killing the first broker stops the controller as well: no leader changes then. This
//! one has no listener behind a proxy.

use std::path::Path;
use std::time::Duration;

use super::kafka::{Kafka, SETTINGS, formatted, launch};
use super::process::Process;
use super::topics::metadata;
use super::{Place, Run, free_port, wait_for};

const JOIN_LIMIT: Duration = Duration::from_secs(180);

/// A running second broker, number 2.
pub struct Broker {
    /// `127.0.0.1:port`
    pub bootstrap: String,
    first: String,
    place: Place,
    process: Process,
}

impl Broker {
    /// Starts it and waits until it has joined.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn join(run: &Run, kafka: &Kafka) -> Broker {
        let place = run.place("kafka-broker");
        let bootstrap = format!("127.0.0.1:{}", free_port());
        let logs = place.data.join("logs");
        let text = format!(
            "process.roles=broker\nnode.id=2\n\
             controller.quorum.voters=1@127.0.0.1:{}\ncontroller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://{bootstrap}\nadvertised.listeners=PLAINTEXT://{bootstrap}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
             log.dirs={}\n{SETTINGS}",
            kafka.controller(),
            logs.display(),
        );
        std::fs::write(place.data.join("server.properties"), text).expect("writable");
        let meta = format!(
            "version=1\nnode.id=2\ndirectory.id=AAAAAAAAQACAAAAAAAAAAg\n{}\n",
            cluster_id(&formatted())
        );
        let written = std::fs::create_dir(&logs)
            .and_then(|()| std::fs::write(logs.join("meta.properties"), meta));
        written.unwrap_or_else(|error| panic!("{}: {error}", logs.display()));
        let broker = Broker {
            process: launch(&place, &bootstrap),
            bootstrap,
            first: kafka.bootstrap.clone(),
            place,
        };
        broker.wait_joined();
        broker
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again (after an orderly end, if it runs): the same data, the same port.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.process.stop("TERM");
        self.process = launch(&self.place, &self.bootstrap);
        self.wait_joined();
    }

    fn wait_joined(&self) {
        wait_for("the second broker", JOIN_LIMIT, || {
            let found = metadata(&self.first).ok()?;
            found.brokers.contains_key(&2).then_some(())
        });
    }
}

/// The line of a formatted folder that names its cluster.
fn cluster_id(formatted: &Path) -> String {
    let meta = std::fs::read_to_string(formatted.join("meta.properties"));
    let meta = meta.unwrap_or_else(|error| panic!("{}: {error}", formatted.display()));
    let line = meta.lines().find(|line| line.starts_with("cluster.id="));
    line.expect("made by Kafka").to_owned()
}
