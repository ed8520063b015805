//! The demo's steps on a server whose encoder is slower than rows wait for it: documents and their chunks
//! are live before their vectors, and the steps must not take that for "indexed".

use std::sync::Arc;
use std::time::Duration;

use headwater::client::Client;
use headwater::demo::sample::{SampleOptions, gather};
use headwater::demo::{pipeline, steps};
use queries::api::{Backend as _, EmbeddingsRequest};

use crate::rig::{Rig, together};

/// Steps after the model was fetched.
const STEPS: usize = 8;

#[test]
fn the_demo_waits_for_a_slow_encoder() {
    let _beside = together();
    let documents = tempfile::tempdir().expect("a folder");
    for name in ["rivers", "lakes", "canals"] {
        // Chunks for more than one call.
        let words = format!("water flows in all {name} ").repeat(250);
        let text = format!("# About {name}\n\n{words}\n");
        std::fs::write(documents.path().join(format!("{name}.md")), text).expect("writable");
    }
    let options = SampleOptions {
        path: Some(documents.path().to_owned()),
        all: false,
    };
    let sample = gather(&options).expect("three documents");
    let statements = pipeline(sample.root(), "hashed");
    let deadline = "WITH (EMBED DEADLINE = '50 milliseconds', ";
    let statements = statements.replacen("WITH (RETAIN", &format!("{deadline}RETAIN"), 1);
    assert!(statements.contains(deadline), "{statements}");

    let rig = Rig::start("");
    rig.encoder.set_delay(Duration::from_millis(300));
    // A rate is known, so that calls take one text each and questions go between them.
    rig.reconcile("CREATE MODEL minilm FROM 'hashed';", false, false)
        .expect("a model");
    let first = EmbeddingsRequest {
        model: "minilm".to_owned(),
        input: vec!["How slow is it?".to_owned()],
        dimensions: None,
        is_question: false,
    };
    let embedded = rig.runtime.block_on(rig.service.embeddings(first));
    embedded.expect("a model that works");
    let listener = rig
        .runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let backend = Arc::new(rig.service.clone());
    let server = rig.runtime.spawn(serve::run(
        listener,
        backend,
        shutdown,
        serve::Options::default(),
    ));

    // As on a slow machine: the server is ready before its source has read the first file.
    let mut is_declared = false;
    let mut progress = |_: &str| {
        if !std::mem::replace(&mut is_declared, true) {
            let declared = rig.reconcile(&statements, false, false);
            declared.expect("the pipeline is right");
        }
    };
    let mut seen = Vec::new();
    let mut report = |step: &steps::Seen| seen.push(step.step);
    let done = steps::run(&Client::new(&url), &sample, &mut report, &mut progress);
    done.unwrap_or_else(|error| panic!("after {seen:?}: {error:#}"));
    assert_eq!(seen.len(), STEPS, "{seen:?}");
    drop(stop);
    let served = rig.runtime.block_on(server).expect("no panic");
    served.expect("it was stopped");
    rig.service.stop();
}
