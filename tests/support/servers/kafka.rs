//! One Apache Kafka broker (KRaft: broker and controller in one process).
//!
//! **Idea.** Topics and records are in [`super::topics`]. An empty, formatted
//! log folder is made once per machine and copied for every test: formatting costs a Java start.
//! A second listener is advertised at a [`Proxy`], so a client that was given
//! [`Kafka::proxied`] can be cut off from the broker while everybody else goes on. A third one, with
//! TLS and passwords, is there on request.
//!
//! **Invariants.** Ports and data stay over `kill`, `stop` and `restart`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::install;
use super::java;
use super::process::Process;
use super::proxy::Proxy;
use super::system;
use super::tls::Certificate;
use super::topics::metadata;
use super::{PASSWORD, Place, Run, USER, free_port};

const START_LIMIT: Duration = Duration::from_secs(240);

/// Small and quick; a killed broker may come back when its old session has run out.
pub const SETTINGS: &str = "\
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
controlled.shutdown.enable=false
inter.broker.listener.name=PLAINTEXT
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
num.partitions=1
";

/// A running broker.
pub struct Kafka {
    /// `127.0.0.1:port`
    pub bootstrap: String,
    /// The way through [`Kafka::proxied`].
    pub proxy: Proxy,
    /// The listener with TLS and passwords.
    pub secure: Option<Secure>,
    controller: u16,
    place: Place,
    process: Process,
}

/// How to come in by TLS with a password (`SASL_SSL`; `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`) as
/// [`super::USER`] with [`super::PASSWORD`].
pub struct Secure {
    /// `localhost:port`
    pub bootstrap: String,
    /// The authority to trust, in PEM.
    pub authority: PathBuf,
}

impl Kafka {
    /// Starts an empty broker.
    ///
    /// # Panics
    /// When it cannot be had or does not come up.
    pub fn start(run: &Run) -> Kafka {
        Kafka::start_with(run, &[])
    }

    /// The same with more lines of `server.properties`, which win over ours.
    ///
    /// # Panics
    /// When it cannot be had or does not come up.
    pub fn start_with(run: &Run, settings: &[(&str, &str)]) -> Kafka {
        Kafka::begin(run, None, settings)
    }

    /// The same as [`Kafka::start`] with [`Kafka::secure`].
    ///
    /// # Panics
    /// When it cannot be had or does not come up.
    pub fn start_secure(run: &Run) -> Kafka {
        Kafka::begin(run, Some(Certificate::make(run)), &[])
    }

    fn begin(run: &Run, tls: Option<Certificate>, settings: &[(&str, &str)]) -> Kafka {
        let place = run.place("kafka");
        let behind = free_port();
        let proxy = Proxy::to(behind);
        let ports = Ports {
            plain: free_port(),
            controller: free_port(),
            behind,
            proxy: proxy.port,
            secure: free_port(),
        };
        let logs = place.data.join("logs");
        copy_flat(&formatted(), &logs);
        let mut text = properties(&logs, &ports, settings);
        let secure = tls.map(|tls| {
            text += &secure_properties(&place, &ports, &tls);
            Secure {
                bootstrap: format!("localhost:{}", ports.secure),
                authority: tls.authority,
            }
        });
        std::fs::write(place.data.join("server.properties"), text).expect("writable");
        let bootstrap = format!("127.0.0.1:{}", ports.plain);
        Kafka {
            process: launch(&place, &bootstrap),
            bootstrap,
            proxy,
            secure,
            controller: ports.controller,
            place,
        }
    }

    /// The bootstrap address through the proxy.
    pub fn proxied(&self) -> String {
        self.proxy.address()
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Ends it in an orderly way.
    pub fn stop(&mut self) {
        self.process.stop("TERM");
    }

    /// Starts it again (after an orderly end, if it runs): the same data, the same port.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.process.stop("TERM");
        self.process = launch(&self.place, &self.bootstrap);
    }

    /// The port that a further broker registers at.
    pub fn controller(&self) -> u16 {
        self.controller
    }

    /// The process, for pauses and figures.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

struct Ports {
    plain: u16,
    controller: u16,
    /// The proxy's target.
    behind: u16,
    proxy: u16,
    secure: u16,
}

fn properties(logs: &Path, ports: &Ports, settings: &[(&str, &str)]) -> String {
    let host = "127.0.0.1";
    let mut text = format!(
        "process.roles=broker,controller\nnode.id=1\n\
         controller.quorum.voters=1@{host}:{controller}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,\
         PROXIED:PLAINTEXT,SECURE:SASL_SSL\n{}log.dirs={}\n",
        listeners(ports, "", ""),
        logs.display(),
        controller = ports.controller,
    );
    text += SETTINGS;
    // The last line of a name wins.
    for (key, value) in settings {
        text += &format!("{key}={value}\n");
    }
    text
}

/// Where it listens, and what it tells its clients.
fn listeners(ports: &Ports, more: &str, more_told: &str) -> String {
    let host = "127.0.0.1";
    let Ports {
        plain,
        controller,
        behind,
        proxy,
        ..
    } = ports;
    format!(
        "listeners=PLAINTEXT://{host}:{plain},PROXIED://{host}:{behind},\
         CONTROLLER://{host}:{controller}{more}\n\
         advertised.listeners=PLAINTEXT://{host}:{plain},PROXIED://{host}:{proxy}{more_told}\n"
    )
}

/// The lines that add the listener with TLS and passwords; the key store is a file beside them.
fn secure_properties(place: &Place, ports: &Ports, tls: &Certificate) -> String {
    let store = place.data.join("keystore.pem");
    let part = |path: &Path| std::fs::read_to_string(path).expect("made just now");
    let both = part(&tls.key) + &part(&tls.certificate);
    std::fs::write(&store, both).expect("writable");
    let port = ports.secure;
    let listeners = listeners(
        ports,
        &format!(",SECURE://127.0.0.1:{port}"),
        &format!(",SECURE://localhost:{port}"),
    );
    let name = "listener.name.secure";
    let module = "org.apache.kafka.common.security";
    let scram = format!("sasl.jaas.config={module}.scram.ScramLoginModule required;");
    format!(
        "{listeners}{name}.ssl.keystore.type=PEM\n{name}.ssl.keystore.location={}\n\
         {name}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
         {name}.scram-sha-256.{scram}\n{name}.scram-sha-512.{scram}\n\
         {name}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required \
         user_{USER}=\"{PASSWORD}\";\n",
        store.display()
    )
}

/// An empty log folder that knows the user, made once per machine.
///
/// # Panics
/// When it cannot be made.
pub fn formatted() -> PathBuf {
    let (java, classpath) = (system::java(), install::kafka_classpath());
    install::made("kafka-formatted-4.1.0", |folder| {
        let logs = folder.join("logs");
        let file = folder.join("server.properties");
        // The folder keeps nothing of these.
        let ports = Ports {
            plain: 9092,
            controller: 9093,
            behind: 9094,
            proxy: 9095,
            secure: 9096,
        };
        std::fs::write(&file, properties(&logs, &ports, &[])).map_err(|error| error.to_string())?;
        let mut command = std::process::Command::new(&java);
        command
            .args(["-cp", &classpath])
            .args(["kafka.tools.StorageTool", "format"])
            .args(["-t", "AAAAAAAAQACAAAAAAAAAAQ", "-c"])
            .arg(&file);
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let user = format!("{mechanism}=[name={USER},password={PASSWORD}]");
            command.args(["--add-scram", &user]);
        }
        system::run("formatting Kafka's log folder", &mut command)?;
        Ok(logs)
    })
}

/// Starts a broker with the settings in its place.
///
/// # Panics
/// When it does not come up.
pub fn launch(place: &Place, bootstrap: &str) -> Process {
    let classpath = install::kafka_classpath();
    let arguments = ["-cp", &classpath, "kafka.Kafka", "server.properties"];
    java::launch("Kafka", place, "512m", &arguments, START_LIMIT, || {
        metadata(bootstrap).is_ok()
    })
}

fn copy_flat(from: &Path, to: &Path) {
    let copied = std::fs::create_dir(to).and_then(|()| {
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    });
    copied.unwrap_or_else(|error| panic!("{}: {error}", to.display()));
}
