//! A whole engine on a virtual clock, a store in memory and a scripted encoder.

use std::sync::Arc;
use std::time::Duration;

use engine::contract::{Embedder, Store};
use engine::durable::VectorOptions;
use engine::runtime::CommunicationConfig;
use engine::testing::{HashedEmbedder, MemoryStore, VirtualClock};
use operators::embed::EmbedConfig;
use queries::api::{Backend, PushLine, PushRequest};
use queries::service::{Service, Wiring};

/// Length of the encoder's vectors: small, so that near-ties happen.
pub const DIMENSIONS: usize = 16;

/// What every script declares.
pub const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT, lang TEXT);
CREATE VIEW kept AS SELECT id, body, lang FROM docs WHERE lang <> 'xx';
CREATE MODEL hashed FROM 'hashed';
CREATE INDEX found ON kept USING HYBRID (body) CHUNK BY recursive(max_tokens => 16)
    EMBED WITH hashed INCLUDE (lang) WITH (QUANTIZATION = 'f32', RETAIN = '1 day');
CREATE CACHE answers ON found WITH (K = 3, RETRIEVAL = 'exact', TTL = '10 minutes');
";

/// After pauses of so long vectors are collected.
const COLLECT_MICROS: u64 = 1_000_000;

/// A running engine.
pub struct Rig {
    pub service: Service,
    pub clock: VirtualClock,
    pub store: Arc<MemoryStore>,
    pub encoder: Arc<HashedEmbedder>,
    pub runtime: tokio::runtime::Runtime,
    workers: usize,
    follower: Option<Follower>,
}

impl Rig {
    /// An engine with the pipeline declared.
    pub fn start(workers: usize) -> Rig {
        Rig::start_with(workers, false)
    }

    /// The same over two processes on loopback, one worker each.
    pub fn start_cluster() -> Rig {
        Rig::start_with(1, true)
    }

    fn start_with(workers: usize, is_cluster: bool) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let clock = VirtualClock::new(1_800_000_000_000_000);
        let store = Arc::new(MemoryStore::new());
        let encoder = Arc::new(HashedEmbedder::new("hashed", DIMENSIONS));
        let wiring = wiring(workers, &clock, &store, &encoder);
        let (service, follower) = launch(wiring, is_cluster, &runtime);
        let reconciled = runtime.block_on(service.reconcile(PIPELINE, false, false));
        reconciled.expect("the pipeline is right");
        Rig {
            service,
            clock,
            store,
            encoder,
            runtime,
            workers,
            follower,
        }
    }

    /// The machine loses its power and comes back: what was not synced may be gone or torn.
    pub fn crash(&mut self, seed: u64) {
        let survived = Arc::new(self.store.after_crash(seed));
        self.stop();
        let is_cluster = self.follower.is_some();
        let wiring = wiring(self.workers, &self.clock, &survived, &self.encoder);
        (self.service, self.follower) = launch(wiring, is_cluster, &self.runtime);
        self.store = survived;
    }

    fn stop(&mut self) {
        self.service.stop();
        if let Some(Follower(child)) = &mut self.follower {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Pushes lines, waiting until all indexes show them when asked to.
    pub fn push(&self, lines: &[String], wait: bool) -> Result<(), String> {
        let lines = lines.iter().enumerate().map(|(i, line)| PushLine {
            line: i as u64 + 1,
            raw: line.clone().into_bytes(),
        });
        let request = PushRequest {
            source: "docs".to_owned(),
            lines: lines.collect(),
            wait_visible_ms: wait.then_some(20_000),
            ..PushRequest::default()
        };
        let reply = self.runtime.block_on(self.service.push(request));
        let reply = reply.map_err(|problem| problem.to_string())?;
        match reply.visible {
            Some(false) => Err("a push did not become visible".to_owned()),
            _ => Ok(()),
        }
    }

    /// Waits until all that was pushed is visible, its vectors included.
    pub fn settle(&self) -> Result<(), String> {
        let nothing = serde_json::json!({"op": "delete", "key": "none"});
        self.push(&[nothing.to_string()], true)
    }

    /// Lets the engine come to rest, moving the clock.
    pub fn pause(&self, micros: u64) -> Result<(), String> {
        self.clock.advance(micros);
        std::thread::sleep(Duration::from_millis(1));
        // What nothing needs goes; whatever can be asked must not miss it. Rounds are farther apart than
        // a row waits for its tick, so none waits during one.
        if self.follower.is_none() && micros >= COLLECT_MICROS {
            self.settle()?;
            self.runtime.block_on(self.service.collect_vectors());
        }
        Ok(())
    }
}

/// A second process: this test's own binary, told to follow.
pub struct Follower(std::process::Child);

/// Tells a follower the addresses of both processes.
const FOLLOW: &str = "HEADWATER_LAW_FOLLOW";

impl Follower {
    fn spawn(addresses: &[String]) -> Follower {
        let binary = std::env::current_exe().expect("a test runs from a file");
        let child = std::process::Command::new(binary)
            .args(["follower_of_the_law", "--ignored", "--exact"])
            .env(FOLLOW, addresses.join(","))
            .stdout(std::process::Stdio::null())
            .spawn();
        Follower(child.expect("the binary runs"))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An engine on what a store holds; with a second process when it is one of two.
fn launch(
    wiring: Wiring,
    is_cluster: bool,
    runtime: &tokio::runtime::Runtime,
) -> (Service, Option<Follower>) {
    let mut wiring = wiring;
    let follower = is_cluster.then(|| {
        let addresses = free_addresses();
        let follower = Follower::spawn(&addresses);
        wiring.communication = Some(cluster(0, addresses));
        follower
    });
    let service = Service::start(wiring, runtime.handle().clone()).expect("a sound store");
    (service, follower)
}

fn wiring(
    workers: usize,
    clock: &VirtualClock,
    store: &Arc<MemoryStore>,
    encoder: &Arc<HashedEmbedder>,
) -> Wiring {
    let model = Arc::clone(encoder);
    Wiring {
        store: Arc::clone(store) as Arc<dyn Store>,
        workers,
        communication: None,
        clock: Arc::new(clock.clone()),
        load_model: Arc::new(move |_, _, _| Ok(Arc::clone(&model) as Arc<dyn Embedder>)),
        connect: Arc::new(|_, _, _| Ok(None)),
        connect_sink: Arc::new(headwater::wiring::connect_sink),
        describe: Arc::new(|_, _| unreachable!("no script reads a database")),
        decode_push: Arc::new(headwater::wiring::decode_push),
        redecode: Arc::new(headwater::wiring::redecode),
        metrics: Arc::new(String::new),
        builder_threads: 1,
        // Small files, so that a script fills some and collections rewrite them.
        vectors: VectorOptions {
            segment_bytes: 2_048,
            memory_bytes: 4_096,
        },
        // Failures are scripted by the hundred: back-off in real time would only slow them.
        embed: EmbedConfig {
            backoff: Duration::from_millis(1),
            backoff_max: Duration::from_millis(4),
            ..EmbedConfig::default()
        },
    }
}

fn cluster(process: usize, addresses: Vec<String>) -> CommunicationConfig {
    CommunicationConfig::Cluster {
        threads: 1,
        process,
        addresses,
        report: false,
        zerocopy: false,
    }
}

fn free_addresses() -> Vec<String> {
    let bind = || std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listeners = [bind(), bind()];
    let address = |l: &std::net::TcpListener| l.local_addr().expect("bound").to_string();
    listeners.iter().map(address).collect()
}

/// The following process, when this is one.
pub fn follow() {
    let Ok(addresses) = std::env::var(FOLLOW) else {
        return;
    };
    let addresses = addresses.split(',').map(str::to_owned).collect();
    let encoder: Arc<dyn Embedder> = Arc::new(HashedEmbedder::new("hashed", DIMENSIONS));
    let load = Box::new(
        move |_: &str,
              _: &queries::definition::ModelDef,
              _: Option<&queries::definition::SecretDef>| Ok(Arc::clone(&encoder)),
    );
    let builder = operators::index::BuilderHandle::threads(1).expect("a thread");
    queries::render::follow(cluster(1, addresses), 1, load, builder)
        .expect("the leader stops first");
}
