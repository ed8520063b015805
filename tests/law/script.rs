//! Random scripts, and the comparison with the naive model.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use engine::contract::EmbedFault;
use queries::api::{
    AsOf, Backend, LookupReply, LookupRequest, SearchReply, SearchRequest, StoreRequest,
};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::naive::{Naive, Timeline};
use super::rig::Rig;

/// One step.
#[derive(Debug, Clone)]
enum Step {
    Push {
        lines: Vec<String>,
        wait: bool,
    },
    Search {
        question: String,
        exact: bool,
        filter: bool,
    },
    Lookup {
        question: String,
        store: bool,
    },
    SlowEncoder {
        micros: u64,
    },
    FailEncoder {
        calls: usize,
    },
    Pause {
        micros: u64,
    },
    Crash {
        seed: u64,
    },
}

/// A reproducible list of steps.
pub struct Script {
    pub seed: u64,
    steps: Vec<Step>,
}

/// What a run compared.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub ticks: usize,
    pub rows: usize,
    pub searches: usize,
    pub entries: usize,
    pub hits: usize,
    pub stores: usize,
    pub crashes: usize,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.ticks += other.ticks;
        self.rows += other.rows;
        self.searches += other.searches;
        self.entries += other.entries;
        self.hits += other.hits;
        self.stores += other.stores;
        self.crashes += other.crashes;
    }
}

const WORDS: [&str; 24] = [
    "reset", "password", "factor", "outage", "region", "billing", "invoice", "export", "import",
    "token", "key", "rotate", "login", "email", "webhook", "retry", "queue", "index", "vector",
    "chunk", "cache", "answer", "limit", "quota",
];

fn sentence(rng: &mut ChaCha8Rng, words: usize) -> String {
    let words: Vec<&str> = (0..words)
        .map(|_| *WORDS.choose(rng).expect("not empty"))
        .collect();
    words.join(" ")
}

fn body(rng: &mut ChaCha8Rng) -> String {
    let paragraphs = rng.random_range(1..=4);
    let paragraphs: Vec<String> = (0..paragraphs)
        .map(|_| {
            let n = rng.random_range(3..=12);
            sentence(rng, n)
        })
        .collect();
    paragraphs.join("\n\n")
}

impl Script {
    /// The first `steps` steps of a seed's script.
    pub fn random(seed: u64, steps: usize) -> Script {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bodies: Vec<String> = Vec::new();
        let steps = (0..steps)
            .map(|_| random_step(&mut rng, &mut bodies))
            .collect();
        Script { seed, steps }
    }

    /// How many steps it has.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Those of its steps that have these numbers.
    pub fn only(&self, numbers: &[usize]) -> Script {
        let steps = numbers.iter().map(|number| self.steps[*number].clone());
        Script {
            seed: self.seed,
            steps: steps.collect(),
        }
    }
}

impl std::fmt::Display for Script {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.steps
            .iter()
            .try_for_each(|step| writeln!(out, "  {step:?}"))
    }
}

fn random_step(rng: &mut ChaCha8Rng, bodies: &mut Vec<String>) -> Step {
    match rng.random_range(0..100) {
        0..50 => {
            let count = rng.random_range(1..=3);
            let lines = (0..count).map(|_| random_line(rng, bodies)).collect();
            Step::Push {
                lines,
                wait: rng.random_bool(0.2),
            }
        }
        50..65 => Step::Search {
            question: {
                let n = rng.random_range(1..=3);
                sentence(rng, n)
            },
            exact: rng.random_bool(0.7),
            filter: rng.random_bool(0.3),
        },
        65..85 => Step::Lookup {
            question: {
                let n = rng.random_range(1..=2);
                sentence(rng, n)
            },
            store: rng.random_bool(0.8),
        },
        85..89 => Step::SlowEncoder {
            micros: *[0, 0, 500, 3_000].choose(rng).expect("not empty"),
        },
        89..92 => Step::FailEncoder {
            calls: rng.random_range(1..=2),
        },
        // About one a script: each is a replay of all that came before.
        92 if rng.random_ratio(1, 3) => Step::Crash { seed: rng.random() },
        _ => Step::Pause {
            micros: *[1, 1_000, 3_000_000, 120_000_000]
                .choose(rng)
                .expect("not empty"),
        },
    }
}

fn random_line(rng: &mut ChaCha8Rng, bodies: &mut Vec<String>) -> String {
    let key = format!("d{}", rng.random_range(0..12));
    if rng.random_bool(0.2) {
        return json!({"op": "delete", "key": key}).to_string();
    }
    let text = match rng.random_range(0..10) {
        // An edit of some earlier text: a paragraph more, or the same again.
        0..3 if !bodies.is_empty() => {
            let old = bodies.choose(rng).expect("not empty").clone();
            let more = sentence(rng, 5);
            if rng.random_bool(0.5) {
                format!("{more}\n\n{old}")
            } else {
                old
            }
        }
        _ => body(rng),
    };
    bodies.push(text.clone());
    let lang = *["en", "de", "xx"].choose(rng).expect("not empty");
    json!({"op": "upsert", "key": key, "value": {"body": text, "lang": lang}}).to_string()
}

/// Runs a script on an engine that is there, and compares everything that was seen with the model.
pub fn run_on(script: &Script, mut rig: Rig) -> Result<Tally, String> {
    let mut seen = Seen::default();
    for (number, step) in script.steps.iter().enumerate() {
        seen.step(&mut rig, step)
            .map_err(|error| format!("step {number} {step:?}: {error}"))?;
    }
    // Everything that waits is embedded in the end, once.
    rig.encoder.set_delay(Duration::ZERO);
    rig.pause(5_000_000)?;
    rig.settle()?;
    seen.compare(&rig, script.seed)
}

/// What was answered while the script ran.
#[derive(Default)]
struct Seen {
    searches: Vec<(SearchRequest, SearchReply)>,
    hits: Vec<(String, u64, Vec<String>)>,
    stores: usize,
    crashes: usize,
    /// Live entries that were compared before a crash, and through which time.
    entries: (usize, u64),
    /// What was acknowledged, by key: the last line of each.
    acknowledged: BTreeMap<String, serde_json::Value>,
}

impl Seen {
    fn step(&mut self, rig: &mut Rig, step: &Step) -> Result<(), String> {
        match step {
            Step::Push { lines, wait } => {
                rig.push(lines, *wait)?;
                for line in lines {
                    let line: serde_json::Value =
                        serde_json::from_str(line).expect("scripts push JSON");
                    let key = line["key"].as_str().expect("a key").to_owned();
                    self.acknowledged.insert(key, line["value"].clone());
                }
                Ok(())
            }
            Step::Crash { seed } => self.crash(rig, *seed),
            Step::SlowEncoder { micros } => {
                rig.encoder.set_delay(Duration::from_micros(*micros));
                Ok(())
            }
            Step::FailEncoder { calls } => {
                rig.encoder
                    .script((0..*calls).map(|_| Some(EmbedFault::WORLD)));
                Ok(())
            }
            Step::Pause { micros } => rig.pause(*micros),
            Step::Search {
                question,
                exact,
                filter,
            } => {
                let request = SearchRequest {
                    index: "found".to_owned(),
                    query: Some(question.clone()),
                    k: Some(5),
                    exact: *exact,
                    filter: filter.then(|| "lang = 'de'".to_owned()),
                    ..SearchRequest::default()
                };
                let reply = rig.runtime.block_on(rig.service.search(request.clone()));
                let reply = reply.map_err(|problem| problem.to_string())?;
                self.searches.push((request, reply));
                Ok(())
            }
            Step::Lookup { question, store } => self.lookup(rig, question, *store),
        }
    }

    /// A crash; before it, what it takes away is compared: a cache comes back empty.
    fn crash(&mut self, rig: &mut Rig, seed: u64) -> Result<(), String> {
        let progress = "SELECT upper FROM headwater.progress WHERE collection = 'answers'";
        // Right after another crash nothing may be sealed yet.
        let until = Instant::now() + Duration::from_secs(120);
        let upper = loop {
            let rows = sql(rig, progress.to_owned())?;
            match rows.first().and_then(|row| row[0].as_u64()) {
                Some(upper) => break upper,
                None if Instant::now() > until => return Err("the cache has no progress".into()),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let timeline = Timeline::read(rig);
        let fresh = self.entries.1 + 1..upper;
        let times = timeline.times().into_iter();
        for at in times.filter(|at| fresh.contains(at)) {
            self.entries.0 += compare_entries(rig, &Naive::at(&timeline, at), at)?;
            self.entries.1 = at;
        }
        rig.crash(seed);
        self.crashes += 1;
        Ok(())
    }

    fn lookup(&mut self, rig: &Rig, question: &str, store: bool) -> Result<(), String> {
        let request = LookupRequest {
            question: question.to_owned(),
            ..LookupRequest::default()
        };
        let reply = rig
            .runtime
            .block_on(rig.service.lookup("answers".to_owned(), request));
        match reply {
            Ok(LookupReply::Hit {
                as_of,
                citations,
                answer,
                ..
            }) => {
                let cited = citations
                    .into_iter()
                    .map(|citation| citation.chunk)
                    .collect();
                let asked = answer.as_str().unwrap_or_default().to_owned();
                self.hits.push((asked, as_of, cited));
                Ok(())
            }
            Ok(LookupReply::Miss { lease, hits, .. }) if store => {
                let request = StoreRequest {
                    lease,
                    answer: json!(question),
                    citations: hits.into_iter().map(|hit| hit.chunk).collect(),
                };
                let stored = rig
                    .runtime
                    .block_on(rig.service.store("answers".to_owned(), request));
                match stored {
                    Ok(_) => self.stores += 1,
                    Err(problem) if problem.status == 409 => {}
                    Err(problem) => return Err(format!("store: {problem}")),
                }
                Ok(())
            }
            Ok(LookupReply::Miss { .. }) => Ok(()),
            // The encoder was told to fail: then nobody can look up by meaning.
            Err(problem) if problem.status == 503 => Ok(()),
            Err(problem) => Err(format!("look-up: {problem}")),
        }
    }

    fn compare(&self, rig: &Rig, seed: u64) -> Result<Tally, String> {
        let timeline = Timeline::read(rig);
        let mut tally = Tally {
            hits: self.hits.len(),
            stores: self.stores,
            crashes: self.crashes,
            entries: self.entries.0,
            ..Tally::default()
        };
        self.compare_acknowledged(&Naive::at(&timeline, u64::MAX))?;
        for (request, reply) in &self.searches {
            let naive = Naive::at(&timeline, reply.as_of);
            compare_search(&naive, request, reply)?;
            tally.searches += 1;
        }
        for (question, at, cited) in &self.hits {
            let expected = Naive::at(&timeline, *at).retrieval_set(question, 3);
            let cited: BTreeSet<String> = cited.iter().cloned().collect();
            if cited != expected {
                return Err(format!(
                    "STALE: a hit for {question:?} at {at} has {cited:?}, recomputed {expected:?}"
                ));
            }
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
        for at in timeline.times() {
            tally.ticks += 1;
            let naive = Naive::at(&timeline, at);
            tally.rows += compare_rows(rig, &naive, at)?;
            if at > self.entries.1 {
                tally.entries += compare_entries(rig, &naive, at)?;
            }
            let words = rng.random_range(1..=3);
            let request = SearchRequest {
                index: "found".to_owned(),
                query: Some(sentence(&mut rng, words)),
                k: Some(4),
                exact: true,
                as_of: Some(AsOf::Time(at)),
                ..SearchRequest::default()
            };
            let reply = rig.runtime.block_on(rig.service.search(request.clone()));
            let reply = reply.map_err(|problem| format!("search at {at}: {problem}"))?;
            compare_search(&naive, &request, &reply)?;
            tally.searches += 1;
        }
        Ok(tally)
    }

    /// The log has every push that was acknowledged, whatever crashed since: its rows are the last lines.
    fn compare_acknowledged(&self, naive: &Naive) -> Result<(), String> {
        let live = self
            .acknowledged
            .iter()
            .filter(|(_, value)| !value.is_null());
        let rows: BTreeSet<String> = live
            .map(|(key, value)| json!([key, value["body"], value["lang"]]).to_string())
            .collect();
        match rows == naive.rows() {
            true => Ok(()),
            false => Err(format!(
                "acknowledged {rows:?}, in the log {:?}",
                naive.rows()
            )),
        }
    }
}

/// Scores closer than this may come in either order.
const EPSILON: f64 = 1e-5;

fn compare_search(
    naive: &Naive,
    request: &SearchRequest,
    reply: &SearchReply,
) -> Result<(), String> {
    let question = request.query.as_deref().expect("scripts ask by text");
    if reply.degraded.iter().any(|why| why.contains("encoder")) {
        return Ok(());
    }
    let language = request.filter.as_ref().map(|_| "de");
    let expected = naive.search(question, language);
    let k = request.k.expect("scripts set k");
    let context = || format!("at {} for {question:?} filter {language:?}", reply.as_of);
    if reply.pending != naive.pending() {
        return Err(format!(
            "{}: pending {} ≠ {}",
            context(),
            reply.pending,
            naive.pending()
        ));
    }
    for hit in &reply.hits {
        let Some((_, score)) = expected.iter().find(|(chunk, _)| *chunk == hit.chunk) else {
            return Err(format!("{}: {} is not visible", context(), hit.chunk));
        };
        if (score - hit.score).abs() > EPSILON {
            return Err(format!(
                "{}: {} scores {} ≠ {score}",
                context(),
                hit.chunk,
                hit.score
            ));
        }
    }
    if !request.exact {
        return Ok(());
    }
    if reply.hits.len() != k.min(expected.len()) {
        return Err(format!(
            "{}: {} hits of {}",
            context(),
            reply.hits.len(),
            expected.len()
        ));
    }
    for (hit, (chunk, score)) in reply.hits.iter().zip(&expected) {
        if hit.chunk != *chunk && (hit.score - score).abs() > EPSILON {
            return Err(format!("{}: {} instead of {chunk}", context(), hit.chunk));
        }
    }
    Ok(())
}

fn sql(rig: &Rig, text: String) -> Result<Vec<Vec<serde_json::Value>>, String> {
    let (mut replies, problem) = rig
        .runtime
        .block_on(rig.service.sql(text.clone(), Vec::new()));
    match problem {
        Some(problem) => Err(format!("{text}: {problem}")),
        None => Ok(replies.pop().map(|reply| reply.rows).unwrap_or_default()),
    }
}

fn compare_rows(rig: &Rig, naive: &Naive, at: u64) -> Result<usize, String> {
    let rows = sql(rig, format!("SELECT id, body, lang FROM docs AS OF {at}"))?;
    let rows: BTreeSet<String> = rows.iter().map(|row| json!(row).to_string()).collect();
    let expected = naive.rows();
    if rows != expected {
        return Err(format!("rows at {at}: {rows:?} ≠ {expected:?}"));
    }
    let kept = sql(rig, format!("SELECT id FROM kept AS OF {at}"))?;
    if kept.len() != naive.kept() {
        return Err(format!(
            "view at {at}: {} rows ≠ {}",
            kept.len(),
            naive.kept()
        ));
    }
    Ok(rows.len())
}

/// Every entry that is live at a time has the set that a recomputation at that time gives.
fn compare_entries(rig: &Rig, naive: &Naive, at: u64) -> Result<usize, String> {
    let text = format!("SELECT question, citations, suspended FROM answers AS OF {at}");
    let rows = sql(rig, text)?;
    let mut count = 0;
    for row in rows.iter().filter(|row| row[2] == json!(false)) {
        let question = row[0].as_str().unwrap_or_default();
        let cited = row[1].as_array().into_iter().flatten();
        let cited: BTreeSet<String> = cited
            .filter_map(|c| Some(c["chunk"].as_str()?.to_owned()))
            .collect();
        let expected = naive.retrieval_set(question, 3);
        if cited != expected && !naive.is_near_tie(question, 3, EPSILON) {
            return Err(format!(
                "STALE entry for {question:?} at {at}: {cited:?}, recomputed {expected:?}"
            ));
        }
        count += 1;
    }
    Ok(count)
}
