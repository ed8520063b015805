//! The embedding queue under scripted slowness and failure.
//!
//! Law: every waiter is called exactly once; every text that can be embedded is, once, however
//! many asked, whatever failed on the way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use engine::contract::{CallLimits, EmbedError, EmbedFault, Embedder, VectorMemo};
use engine::model::{ContentHash, VectorRef};
use engine::testing::{HashedEmbedder, MemoryMemo};
use operators::embed::{EmbedConfig, EmbedService, Priority};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const MS: Duration = Duration::from_millis(1);

fn quick() -> EmbedConfig {
    EmbedConfig {
        backoff: MS,
        backoff_max: 8 * MS,
        ..EmbedConfig::default()
    }
}

fn item(text: &str) -> (ContentHash, Arc<str>, u32) {
    (
        ContentHash::of(text.as_bytes()),
        Arc::from(text),
        text.split_whitespace().count() as u32 + 2,
    )
}

fn within(limit: Duration, what: &str, mut is_true: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !is_true() {
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(MS);
    }
}

type Results = Arc<Mutex<HashMap<ContentHash, Vec<Result<VectorRef, EmbedError>>>>>;

fn collect(
    into: &Results,
) -> Box<dyn Fn(ContentHash, Result<VectorRef, EmbedError>) + Send + Sync> {
    let into = into.clone();
    Box::new(move |hash, result| into.lock().unwrap().entry(hash).or_default().push(result))
}

#[test]
fn nothing_is_lost_and_nothing_is_embedded_twice() {
    for seed in 0..12_u64 {
        println!("seed {seed}");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let embedder = Arc::new(HashedEmbedder::new("scripted", 16));
        let memo = Arc::new(MemoryMemo::default());
        let config = EmbedConfig {
            document_threads: rng.random_range(1..4),
            batch_tokens_min: rng.random_range(1..200),
            ..quick()
        };
        let service = EmbedService::new(config, memo.clone());
        service.register(embedder.clone());
        embedder.poison("text 3");
        let (results, mut asked) = (Results::default(), HashMap::<String, usize>::new());
        let questions = Arc::new(AtomicUsize::new(0));
        let mut questions_asked = 0;
        for _ in 0..rng.random_range(20..60) {
            match rng.random_range(0..10) {
                0 => embedder.script((0..rng.random_range(1..5)).map(|_| Some(EmbedFault::WORLD))),
                1 => memo.fail_puts(rng.random_range(1..4)),
                2 => embedder.set_delay(MS * rng.random_range(0..3)),
                3 | 4 => {
                    let (count, text) = (
                        questions.clone(),
                        format!("question {}", rng.random_range(0..9)),
                    );
                    questions_asked += 1;
                    let done = Box::new(move |_| {
                        count.fetch_add(1, Ordering::SeqCst);
                    });
                    service.embed_question(embedder.id(), &text, done);
                }
                _ => {
                    let texts: Vec<String> = (0..rng.random_range(1..8))
                        .map(|_| format!("text {}", rng.random_range(0..60)))
                        .collect();
                    texts
                        .iter()
                        .for_each(|text| *asked.entry(text.clone()).or_default() += 1);
                    let priority = if rng.random() {
                        Priority::Push
                    } else {
                        Priority::Bulk
                    };
                    let items = texts.iter().map(|text| item(text)).collect();
                    service.request(embedder.id(), items, priority, collect(&results));
                }
            }
        }
        embedder.set_delay(Duration::ZERO);
        within(20 * Duration::from_secs(1), "all are answered", || {
            service.pending(embedder.id()) == 0
                && questions.load(Ordering::SeqCst) == questions_asked
                && results
                    .lock()
                    .unwrap()
                    .values()
                    .map(Vec::len)
                    .sum::<usize>()
                    == asked.values().sum::<usize>()
        });
        let results = results.lock().unwrap();
        for (text, count) in &asked {
            let got = &results[&item(text).0];
            assert_eq!(got.len(), *count, "{text} was asked {count} times");
            if text == "text 3" {
                assert!(
                    got.iter()
                        .all(|r| r.as_ref().is_err_and(|e| !e.is_transient()))
                );
                continue;
            }
            let at = *got[0].as_ref().unwrap();
            assert!(got.iter().all(|r| *r == Ok(at)), "one vector for all");
            assert_eq!(embedder.count_of(text), 1, "{text} is embedded once");
            assert_eq!(
                memo.vector(at).unwrap(),
                embedder.embed(&[text]).unwrap()[0]
            );
        }
    }
}

#[test]
fn a_slow_encoder_blocks_no_caller_and_no_other_model() {
    let (slow, fast) = (
        HashedEmbedder::new("slow", 8),
        HashedEmbedder::new("fast", 8),
    );
    slow.set_delay(Duration::from_secs(1));
    let (slow, fast) = (Arc::new(slow), Arc::new(fast));
    let service = EmbedService::new(quick(), Arc::new(MemoryMemo::default()));
    service.register(slow.clone());
    service.register(fast.clone());
    let results = Results::default();
    for i in 0..100 {
        service.request(
            slow.id(),
            vec![item(&format!("t{i}"))],
            Priority::Bulk,
            collect(&results),
        );
    }
    let (send, receive) = mpsc::channel();
    service.embed_question(
        fast.id(),
        "a question",
        Box::new(move |r| send.send(r).unwrap()),
    );
    assert!(receive.recv_timeout(900 * MS).unwrap().is_ok());
    assert_eq!(service.pending(slow.id()), 100);
    within(Duration::from_secs(120), "the slow ones arrive", || {
        service.pending(slow.id()) == 0
    });
    assert_eq!(slow.total(), 100);
    assert!(slow.batches() <= 3, "{} batches", slow.batches());
}

#[test]
fn the_breaker_opens_questions_fail_at_once_and_documents_arrive_later() {
    let embedder = Arc::new(HashedEmbedder::new("down", 8));
    embedder.script(vec![Some(EmbedFault::WORLD); 6]);
    let service = EmbedService::new(
        EmbedConfig {
            backoff: 20 * MS,
            backoff_max: 60 * MS,
            ..quick()
        },
        Arc::new(MemoryMemo::default()),
    );
    service.register(embedder.clone());
    let results = Results::default();
    service.request(
        embedder.id(),
        vec![item("a b"), item("c")],
        Priority::Push,
        collect(&results),
    );
    within(Duration::from_secs(120), "the breaker opens", || {
        service.is_open(embedder.id())
    });
    let (send, receive) = mpsc::channel();
    service.embed_question(embedder.id(), "q", Box::new(move |r| send.send(r).unwrap()));
    let answer = receive.recv_timeout(Duration::from_secs(120)).unwrap();
    // Refused at once, or it was the probe itself: an error either way; who waits is answered later.
    assert!(answer.is_err_and(|e| e.is_transient()));
    within(Duration::from_secs(120), "documents arrive", || {
        service.pending(embedder.id()) == 0
    });
    assert!(!service.is_open(embedder.id()));
    assert!(
        results
            .lock()
            .unwrap()
            .values()
            .all(|r| r.len() == 1 && r[0].is_ok())
    );
    assert_eq!(embedder.total(), 2);
}

#[test]
fn questions_go_first_but_documents_keep_a_share() {
    // One call at a time: with several, documents do not wait for questions at all.
    let limits = CallLimits {
        calls: Some(1),
        ..CallLimits::LOCAL
    };
    let embedder = Arc::new(HashedEmbedder::new("busy", 8).with_call_limits(limits));
    embedder.set_delay(5 * MS);
    let config = EmbedConfig {
        batch_tokens_min: 1,
        batch_time: Duration::ZERO,
        ..quick()
    };
    let service = EmbedService::new(config, Arc::new(MemoryMemo::default()));
    service.register(embedder.clone());
    let results = Results::default();
    let items = (0..4).map(|i| item(&format!("document {i}"))).collect();
    let order = Arc::new(Mutex::new(Vec::new()));
    // The first batch keeps the thread busy while the rest queues up.
    for i in 0..40 {
        let order = order.clone();
        let done = Box::new(move |_| order.lock().unwrap().push(format!("q{i}")));
        service.embed_question(embedder.id(), &format!("question {i}"), done);
    }
    let (inner, noted) = (collect(&results), order.clone());
    let done = Box::new(move |hash, result| {
        noted.lock().unwrap().push("d".to_owned());
        inner(hash, result);
    });
    service.request(embedder.id(), items, Priority::Bulk, done);
    within(Duration::from_secs(60), "all done", || {
        order.lock().unwrap().len() == 44
    });
    let order = order.lock().unwrap();
    let first = order.iter().position(|name| name == "d").unwrap();
    let last = order.iter().rposition(|name| name == "d").unwrap();
    assert!((1..=9).contains(&first), "{order:?}");
    // Each document has as many tokens as a question.
    assert!(
        (12..=20).contains(&last),
        "a document after every three questions: {order:?}"
    );
}

#[test]
fn the_memo_is_asked_before_the_encoder_and_questions_are_remembered() {
    let embedder = Arc::new(HashedEmbedder::new("memo", 8));
    let memo = Arc::new(MemoryMemo::default());
    let known = memo.put(embedder.id(), item("known").0, &[1.0; 8]).unwrap();
    let service = EmbedService::new(quick(), memo);
    service.register(embedder.clone());
    let results = Results::default();
    service.request(
        embedder.id(),
        vec![item("known")],
        Priority::Push,
        collect(&results),
    );
    assert_eq!(
        results.lock().unwrap()[&item("known").0],
        [Ok(known)],
        "at once"
    );
    for _ in 0..3 {
        let (send, receive) = mpsc::channel();
        service.embed_question(
            embedder.id(),
            "same",
            Box::new(move |r| send.send(r).unwrap()),
        );
        assert!(
            receive
                .recv_timeout(Duration::from_secs(120))
                .unwrap()
                .is_ok()
        );
    }
    assert_eq!(embedder.total(), 1);
}

#[test]
fn stopping_and_unregistering_fail_what_waits() {
    let embedder = Arc::new(HashedEmbedder::new("gone", 8));
    embedder.set_delay(Duration::from_secs(20));
    let memo = Arc::new(MemoryMemo::default());
    let service = EmbedService::new(quick(), memo.clone());
    let results = Results::default();
    service.request(
        embedder.id(),
        vec![item("x")],
        Priority::Push,
        collect(&results),
    );
    assert!(
        results.lock().unwrap()[&item("x").0][0]
            .as_ref()
            .is_err_and(|e| !e.is_transient())
    );
    service.register(embedder.clone());
    service.request(
        embedder.id(),
        vec![item("y")],
        Priority::Push,
        collect(&results),
    );
    std::thread::sleep(20 * MS);
    let started = Instant::now();
    service.stop();
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "it does not wait for the batch"
    );
    assert!(
        results.lock().unwrap()[&item("y").0][0]
            .as_ref()
            .is_err_and(|e| e.is_transient())
    );
    std::thread::sleep(250 * MS);
    assert!(
        memo.is_empty(),
        "a batch that ends after the stop is dropped"
    );
    assert!(service.is_open(embedder.id()));
}
