//! Models behind a server: every fault of it through a running pipeline, and nothing lost.
//!
//! Law: whatever the server did on the way, when it is good again every document is found by its
//! vector, and every text was embedded once. What a person or a text must repair is told.

use std::time::{Duration, Instant};

use engine::testing::{Act, EmbeddingServer};
use queries::api::{Backend, EmbeddingsReply, EmbeddingsRequest, SearchRequest};
use queries::problem::Problem;
use serde_json::{Value as Json, json};

use crate::rig::{Rig, eventually, request, shown, together, upsert};

/// A pipeline with one remote model; `options` behind the address.
fn pipeline(server: &EmbeddingServer, options: &str) -> String {
    format!(
        "CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
         CREATE MODEL far FROM 'openai:words' WITH (URL = '{}', DIMENSIONS = 64{options});
         CREATE INDEX found ON docs USING HYBRID (body) EMBED WITH far
             WITH (EMBED DEADLINE = '50 milliseconds');",
        server.url()
    )
}

fn push(rig: &Rig, texts: &[String]) {
    let lines: Vec<String> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| upsert(&format!("d{n}"), &json!({ "body": text })))
        .collect();
    let lines: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    let reply = rig.push_request(request("docs", &lines)).expect("taken");
    assert_eq!(reply.accepted, texts.len() as u64);
}

fn texts(count: usize) -> Vec<String> {
    let text = |n: usize| format!("alpha{n} beta{n} gamma{n} delta{n}");
    (0..count).map(text).collect()
}

/// Keys that a question finds by its vector, best first; why the model could not be asked otherwise.
fn nearest(rig: &Rig, question: &str) -> Result<Vec<Json>, String> {
    let request = SearchRequest {
        index: "found".to_owned(),
        query: Some(question.to_owned()),
        k: Some(1),
        ..SearchRequest::default()
    };
    let reply = rig.search(request).expect("a good question");
    let why = reply.degraded.iter().find(|why| why.contains("encoder"));
    match why {
        Some(why) => Err(why.clone()),
        None => Ok(reply
            .hits
            .iter()
            .map(|hit| hit.document.key.clone())
            .collect()),
    }
}

/// Waits until the index has so many documents, so many of them without all their vectors.
fn wait_indexed(rig: &Rig, documents: usize, pending: usize) {
    let wanted = vec![vec![json!(documents), json!(pending)]];
    let sizes = "SELECT documents, pending FROM headwater.indexes";
    eventually("documents and vectors are there", || {
        rig.rows(sizes) == wanted
    });
}

/// Everything is found by vectors, each text was embedded once.
fn nothing_is_lost(rig: &Rig, server: &EmbeddingServer, texts: &[String]) {
    wait_indexed(rig, texts.len(), 0);
    rig.wait_ready();
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(
            server.embedder().count_of(text),
            1,
            "{text} is embedded once"
        );
        let own = Ok(vec![json!(format!("d{n}"))]);
        eventually(text, || nearest(rig, text) == own);
    }
}

#[test]
fn nothing_is_lost_to_any_fault_of_the_server() {
    let _beside = together();
    let faults = [
        Act::refuse(401, "bad key"),
        Act::refuse(404, "no such model"),
        Act::refuse(429, "slow down"),
        Act::refuse(500, "boom"),
        Act::refuse(400, "nothing is good enough"),
        Act::Hang(Duration::from_secs(1)),
        Act::Trickle(Duration::from_millis(20)),
        Act::Close,
        Act::BreakOff,
        Act::Say("<html>".to_owned()),
        Act::TooFew,
        Act::Longer,
        Act::NotANumber,
    ];
    for fault in faults {
        println!("{fault:?}");
        let server = EmbeddingServer::start(64);
        server.always(fault.clone());
        let rig = Rig::start(&pipeline(
            &server,
            ", TIMEOUT = '200 milliseconds', BATCH = 8",
        ));
        let texts = texts(20);
        push(&rig, &texts);
        eventually("it is failing", || {
            let reasons = rig.reasons();
            reasons.iter().any(|why| why.contains("\"far\" is failing"))
        });
        eventually("keywords answer meanwhile", || {
            rig.find("found", "gamma7") == ["d7"]
        });
        let why = nearest(&rig, "beta3").expect_err("no vector of the question");
        assert!(why.contains("model far: "), "{why}");
        assert_eq!(rig.letters("docs"), [], "no text is blamed");
        server.always(Act::Serve);
        nothing_is_lost(&rig, &server, &texts);
    }
}

#[test]
fn a_random_mix_of_faults_loses_nothing() {
    let _beside = together();
    let server = EmbeddingServer::start(64);
    let good = || vec![Act::Serve, Act::Serve];
    let mut script = Vec::new();
    for n in 0..12 {
        script.extend(match n % 6 {
            0 => vec![Act::refuse(500, "boom"), Act::Close],
            1 => vec![Act::TooFew],
            2 => vec![Act::BreakOff, Act::Hang(Duration::from_millis(300))],
            3 => vec![Act::refuse(429, "slow down")],
            4 => vec![Act::Say("{}".to_owned())],
            _ => good(),
        });
        script.extend(good());
    }
    server.script(script);
    let rig = Rig::start(&pipeline(
        &server,
        ", TIMEOUT = '200 milliseconds', BATCH = 4, CONCURRENCY = 3",
    ));
    let texts = texts(60);
    push(&rig, &texts);
    nothing_is_lost(&rig, &server, &texts);
}

#[test]
fn a_refused_text_is_a_dead_letter_of_its_document_and_its_neighbours_are_found() {
    let _beside = together();
    let server = EmbeddingServer::start(64);
    let mut texts = texts(12);
    texts[5] = "omega text that no server takes".to_owned();
    server.poison(&texts[5]);
    let rig = Rig::start(&pipeline(&server, ""));
    push(&rig, &texts);
    wait_indexed(&rig, 12, 1);
    eventually("its letter is there", || rig.letters("docs").len() == 1);
    let letter = rig.letters("docs").remove(0).letter;
    let key = letter.key.as_ref().map(|key| key.as_str());
    assert_eq!(key, Some("\"d5\""));
    let url = server.url();
    assert_eq!(
        letter.error.detail,
        format!(
            "column body: index \"found\": model far: {url}/embeddings answers 400 Bad Request: the input is too long"
        )
    );
    assert_eq!(letter.error.code, "text-refused");
    assert_eq!(letter.payload, texts[5].as_bytes());
    assert_eq!(rig.find("found", "omega"), ["d5"], "keywords find it");
    assert_eq!(nearest(&rig, &texts[6]), Ok(vec![json!("d6")]));
    let calls = server.requests().len();
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(
        server.requests().len() <= calls + 1,
        "it is not offered again and again"
    );
    let replayed = rig.replay_all("docs");
    assert_eq!(
        replayed.refused[0].reason,
        "the model refused a text of it: it is offered again by itself"
    );
    // The document is changed: its letter goes.
    rig.upsert("docs", "d5", &json!({ "body": "omega that fits" }));
    eventually("the letter is gone", || rig.letters("docs").is_empty());
    wait_indexed(&rig, 12, 0);
}

#[test]
fn the_server_is_asked_to_wait_and_is_left_alone_so_long() {
    let _beside = together();
    let server = EmbeddingServer::start(64);
    let wait = ("Retry-After".to_owned(), "2".to_owned());
    server.always(Act::Refuse(429, vec![wait], String::new()));
    let rig = Rig::start(&pipeline(&server, ""));
    let started = Instant::now();
    push(&rig, &texts(3));
    let why = nearest(&rig, "beta").expect_err("refused");
    assert!(why.contains("(Retry-After: 2 s)"), "{why}");
    // The documents' call may have been on its way beside the question's.
    eventually("it is left alone", || {
        let calls = server.requests().len();
        let why = nearest(&rig, "gamma").expect_err("nobody is asked");
        assert!(why.contains("(Retry-After: 2 s)"), "{why}");
        server.requests().len() == calls
    });
    server.always(Act::Serve);
    nothing_is_lost(&rig, &server, &texts(3));
    assert!(started.elapsed() >= Duration::from_secs(2));
}

#[test]
fn a_key_comes_from_its_secret_and_is_shown_nowhere() {
    let _beside = together();
    let server = EmbeddingServer::start(64);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "sk-first\n").unwrap();
    let secret = format!("CREATE SECRET far_key AS FILE '{}';", file.display());
    let rig = Rig::start(&(secret + &pipeline(&server, ", KEY = SECRET far_key")));
    push(&rig, &texts(1));
    wait_indexed(&rig, 1, 0);
    assert_eq!(server.keys()[0].as_deref(), Some("Bearer sk-first"));
    // Another key is used without a restart.
    std::fs::write(&file, "sk-second").unwrap();
    server.script([Act::refuse(401, "Incorrect API key provided: sk-second")]);
    let why = nearest(&rig, "another question").expect_err("refused");
    let last = server.keys().pop().flatten();
    assert_eq!(last.as_deref(), Some("Bearer sk-second"));
    let place = format!("secret \"far_key\", the file {}", file.display());
    assert!(
        why.ends_with(&format!(
            "answers 401 Unauthorized; expected a key that it takes; hint: see {place}"
        )),
        "{why}"
    );
    let pipeline = rig.runtime.block_on(rig.service.pipeline()).unwrap();
    let told = [
        pipeline.to_string(),
        format!("{:?}", rig.rows("SHOW MODELS")),
        format!("{:?}", rig.rows("SHOW CREATE MODEL far")),
        format!("{:?}", rig.reasons()),
        why.clone(),
    ];
    assert!(told.iter().all(|text| !text.contains("sk-")), "{told:?}");
    assert_eq!(
        rig.rows("SHOW CREATE MODEL far")[0][1],
        json!(format!(
            "CREATE MODEL far FROM 'openai:words' WITH (URL = '{}', KEY = SECRET far_key, \
             DIMENSIONS = 64, SEND DIMENSIONS = 'off', MAX TOKENS = 512, BATCH = 32, \
             BATCH TOKENS = 16384, CONCURRENCY = 4, TIMEOUT = '30 seconds', ENCODING = 'float')",
            server.url()
        ))
    );
    let problem = rig.sql("DROP SECRET far_key").unwrap_err();
    assert!(problem.detail.contains("far"), "{}", shown(&problem));
}

#[test]
fn a_key_that_cannot_be_read_is_told_at_once() {
    let _beside = together();
    let server = EmbeddingServer::start(64);
    let rig = Rig::start("CREATE SECRET gone AS ENV 'HEADWATER_TEST_NO_SUCH_KEY'");
    let options = "KEY SECRET gone, DIMENSIONS 64";
    let problem = rig
        .sql(&format!(
            "CREATE MODEL far FROM 'openai:w' WITH (URL '{}', {options})",
            server.url()
        ))
        .unwrap_err();
    assert_eq!(
        shown(&problem),
        "422 invalid-request: the model's key: secret: the environment variable \
         HEADWATER_TEST_NO_SUCH_KEY is not set in the server"
    );
}

#[test]
fn a_restart_neither_needs_the_server_nor_embeds_again() {
    let _beside = together();
    let server = EmbeddingServer::start(64);
    let rig = Rig::start(&pipeline(&server, ""));
    push(&rig, &texts(5));
    wait_indexed(&rig, 5, 0);
    let store = rig.store.clone();
    rig.service.stop();
    drop(rig);
    server.always(Act::Close);
    let rig = Rig::over(store);
    rig.wait_ready();
    assert_eq!(rig.find("found", "beta3"), ["d3"]);
    server.always(Act::Serve);
    nothing_is_lost(&rig, &server, &texts(5));
}

fn embeddings(rig: &Rig, request: EmbeddingsRequest) -> Result<EmbeddingsReply, Problem> {
    rig.runtime.block_on(rig.service.embeddings(request))
}

fn asked(model: &str, input: &[String]) -> EmbeddingsRequest {
    EmbeddingsRequest {
        model: model.to_owned(),
        input: input.to_vec(),
        ..EmbeddingsRequest::default()
    }
}

#[test]
fn declared_models_are_an_embedding_server() {
    let _beside = together();
    let server = EmbeddingServer::start(64);
    let rig = Rig::start(&pipeline(
        &server,
        ", QUERY PROMPT = 'query: ', DOCUMENT PROMPT = 'passage: ', MAX TOKENS = 16",
    ));
    let list = texts(100);
    push(&rig, &list[..5]);
    wait_indexed(&rig, 5, 0);
    let reply = embeddings(&rig, asked("FAR", &list)).expect("a good call");
    assert_eq!(reply.vectors.len(), 100);
    let embedder = server.embedder();
    for (text, vector) in list.iter().zip(&reply.vectors) {
        let own = embedder.vector(&format!("passage: {text}"));
        let cosine: f32 = own.iter().zip(vector.iter()).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.9999, "{text}");
        let times = embedder.count_of(&format!("passage: {text}"));
        assert_eq!(times, 1, "what the documents have is not embedded again");
    }
    let long = vec!["word ".repeat(50), "why".to_owned()];
    let mut question = asked("words", &long);
    question.is_question = true;
    question.dimensions = Some(8);
    let reply = embeddings(&rig, question).expect("by the name at the server");
    assert_eq!((reply.truncated, reply.vectors[0].len()), (vec![0], 8));
    let norm: f32 = reply.vectors[1].iter().map(|x| x * x).sum();
    assert!((norm - 1.0).abs() < 1e-5);
    assert_eq!(embedder.count_of("query: why"), 1);
    let refused = |request| shown(&embeddings(&rig, request).unwrap_err());
    assert_eq!(
        refused(asked("nope", &long)),
        "404 not-found: there is no model \"nope\"; expected: the name of a declared model; \
         hint: SHOW MODELS lists them; CREATE MODEL declares one"
    );
    let mut longer = asked("far", &long);
    longer.dimensions = Some(65);
    assert_eq!(
        refused(longer),
        "422 invalid-request: dimensions = 65: the vectors of \"far\" have 64; expected: at most 64"
    );
    server.poison("passage: bad");
    let url = server.url();
    assert_eq!(
        refused(asked("far", &["good".to_owned(), "bad".to_owned()])),
        format!(
            "422 invalid-request: input[1]: model far: {url}/embeddings answers 400 Bad Request: the input is too long"
        )
    );
    server.always(Act::refuse(500, "boom"));
    assert_eq!(
        refused(asked("far", &["new".to_owned()])),
        format!(
            "503 encoder-unavailable: model far: {url}/embeddings answers 500 Internal Server Error: boom"
        )
    );
}
