//! A backend that answers from a script: names decide what happens, every call is written down.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::error::{DataError, DeadLetter};
use queries::api::*;
use queries::problem::Problem;
use serde_json::{Map, Value as Json, json};

pub const NOW: u64 = 1_795_223_758_693_000;

#[derive(Default)]
pub struct Fake {
    pub is_ready: AtomicBool,
    /// Searches whose future is alive.
    pub searching: AtomicUsize,
    pub pushes: Mutex<Vec<PushRequest>>,
    pub documents: Mutex<Vec<DocumentRequest>>,
    pub searches: Mutex<Vec<SearchRequest>>,
    pub embeddings: Mutex<Vec<EmbeddingsRequest>>,
}

/// Counts a future that lives; dropping it, for whatever reason, takes it off again.
struct Alive<'a>(&'a AtomicUsize);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub fn hit() -> Hit {
    Hit {
        chunk: "c_9f".into(),
        document: document_ref(),
        ordinal: 3,
        range: (120, 480),
        heading: vec!["Setup".into()],
        text: Some("Reset it so.".into()),
        attributes: Map::new(),
        score: 0.83,
        scores: LegScores {
            vector: Some(0.81),
            keyword: Some(12.3),
        },
    }
}

fn document_ref() -> DocumentRef {
    DocumentRef {
        source: "tickets".into(),
        key: json!("T-1"),
        version: 17,
    }
}

fn sql_reply(rows: usize) -> SqlReply {
    SqlReply {
        columns: vec![ReplyColumn {
            name: "n".into(),
            type_name: "bigint".into(),
        }],
        rows: (0..rows).map(|n| vec![json!(n)]).collect(),
        as_of: Some(NOW),
        tag: "SELECT".into(),
        notices: vec![],
    }
}

fn missing(name: &str) -> Problem {
    Problem::not_found(format!("\"{name}\" does not exist"))
}

impl Backend for Fake {
    async fn sql(&self, sql: String, params: Vec<Json>) -> (Vec<SqlReply>, Option<Problem>) {
        let mut replies = Vec::new();
        for statement in sql.split(';').map(str::trim).filter(|s| !s.is_empty()) {
            match statement.split_once(' ') {
                Some(("ROWS", n)) => replies.push(sql_reply(n.parse().unwrap())),
                Some(("SELECT", _)) => replies.push(sql_reply(params.len().max(1))),
                _ => {
                    let problem = Problem::syntax(format!("unexpected {statement}")).at(1, 1);
                    return (replies, Some(problem.expected("SELECT")));
                }
            }
        }
        (replies, None)
    }

    async fn search(&self, request: SearchRequest) -> Reply<SearchReply> {
        self.searching.fetch_add(1, Ordering::SeqCst);
        let _alive = Alive(&self.searching);
        let index = request.index.clone();
        self.searches.lock().unwrap().push(request);
        match &*index {
            "slow" => tokio::time::sleep(Duration::from_secs(3_600)).await,
            "broken" => panic!("a defect"),
            "late" => {
                let problem = Problem::new(504, "at-least-timeout", "not reached in 2000 ms");
                return Err(problem.with("reached", NOW));
            }
            "busy" => {
                let problem = Problem::new(503, "not-ready", "index \"busy\" is loading");
                return Err(problem.with("retry_after_s", 7));
            }
            "support" => {}
            other => return Err(missing(other)),
        }
        Ok(SearchReply {
            as_of: NOW,
            token: "k_1".into(),
            index,
            index_version: 3,
            hits: vec![hit()],
            pending: 0,
            is_degraded: false,
            degraded: vec![],
            timing_ms: [("total".to_owned(), json!(2.9))].into_iter().collect(),
            explain: None,
        })
    }

    async fn push(&self, request: PushRequest) -> Reply<PushReply> {
        if request.source == "nope" {
            return Err(missing("nope"));
        }
        let mut rejected = Vec::new();
        for line in &request.lines {
            if let Some(code) = fault(&line.raw) {
                rejected.push(RejectedLine {
                    line: line.line,
                    error: Problem::new(422, code, "a bad line"),
                });
            }
        }
        if request.atomic && !rejected.is_empty() {
            let errors = rejected.into_iter().map(|line| line.error).collect();
            return Err(Problem {
                errors,
                ..Problem::invalid("a line is bad; nothing was taken")
            });
        }
        let total = rejected.len() as u64;
        let reply = PushReply {
            accepted: request.lines.len() as u64 - total,
            ignored: 0,
            rejected,
            rejected_total: total,
            token: "w_1".into(),
            visible: request.wait_visible_ms.map(|wait_ms| wait_ms > 0),
            replayed: request.idempotency_key.as_deref() == Some("again"),
        };
        self.pushes.lock().unwrap().push(request);
        Ok(reply)
    }

    async fn document(&self, request: DocumentRequest) -> Reply<DocumentReply> {
        self.documents.lock().unwrap().push(request.clone());
        if request.source == "nope" {
            return Err(missing("nope"));
        }
        let body = match request.history {
            true => json!({ "history": [{ "version": 1 }] }),
            false => json!({ "source": request.source, "key": request.key, "version": 1,
                             "row": { "body": "text" }, "indexes": { "support": { "chunks": [] } } }),
        };
        Ok(DocumentReply {
            as_of: NOW,
            body: body.as_object().cloned().unwrap(),
        })
    }

    async fn lookup(&self, cache: String, request: LookupRequest) -> Reply<LookupReply> {
        match (&*cache, &*request.question) {
            ("answers", "known") => Ok(LookupReply::Hit {
                hit: true,
                entry: "e_1".into(),
                answer: json!({ "text": "so" }),
                citations: vec![Citation {
                    chunk: "c_9f".into(),
                    document: document_ref(),
                }],
                as_of: NOW,
                similarity: 1.0,
                stored_at: NOW - 5,
            }),
            ("answers", _) => Ok(LookupReply::Miss {
                hit: false,
                lease: "l_1".into(),
                as_of: NOW,
                hits: vec![hit()],
                near_miss: Some(
                    json!({ "similarity": 0.96, "refused": "numbers differ: 2FA/3FA" }),
                ),
            }),
            (other, _) => Err(missing(other)),
        }
    }

    async fn store(&self, _: String, request: StoreRequest) -> Reply<StoreReply> {
        match &*request.lease {
            "l_1" => Ok(StoreReply {
                entry: "e_1".into(),
                as_of: NOW,
            }),
            "l_old" => Err(Problem::new(410, "lease-expired", "the lease expired")),
            _ => Err(
                Problem::new(409, "lease-conflict", "what the lease saw has changed")
                    .with("cause", "changed")
                    .with("documents", json!([document_ref()])),
            ),
        }
    }

    async fn entry(&self, _: String, entry: String) -> Reply<Json> {
        match &*entry {
            "e_1" => Ok(json!({ "entry": entry, "state": "live", "as_of": NOW })),
            other => Err(missing(other)),
        }
    }

    async fn forget(&self, _: String, entry: String) -> Reply<Json> {
        Ok(json!({ "entry": entry, "cause": "manual", "as_of": NOW }))
    }

    /// Cache `answers` has three events; `fails` breaks after its first; `quiet` waits.
    async fn cache_events(
        &self,
        cache: String,
        after: Option<String>,
        wait_ms: u64,
    ) -> Reply<Vec<(String, String, Json)>> {
        let event = |n: u64| {
            (
                format!("{NOW}/{n}"),
                "stored".to_owned(),
                json!({ "entry": n }),
            )
        };
        let seen = after
            .and_then(|id| id.rsplit('/').next()?.parse::<u64>().ok())
            .unwrap_or(0);
        match &*cache {
            "answers" if seen < 3 => Ok(vec![event(seen + 1)]),
            "answers" | "quiet" => {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                Ok(vec![])
            }
            "fails" if seen < 1 => Ok(vec![event(1)]),
            "fails" => Err(Problem::internal("the disk is gone")),
            other => Err(missing(other)),
        }
    }

    /// `minilm` gives `[0.5, i]`; `away` does not answer.
    async fn embeddings(&self, request: EmbeddingsRequest) -> Reply<EmbeddingsReply> {
        self.embeddings.lock().unwrap().push(request.clone());
        match &*request.model {
            "minilm" => {}
            "away" => {
                let problem = Problem::new(503, "encoder-unavailable", "model away: it is away");
                return Err(problem.with("retry_after_s", 7));
            }
            other => {
                let problem = Problem::not_found(format!("there is no model \"{other}\""));
                return Err(problem
                    .hint("SHOW MODELS lists them")
                    .with("param", "model"));
            }
        }
        let vectors = (0..request.input.len()).map(|i| Arc::from([0.5, i as f32]));
        Ok(EmbeddingsReply {
            model: request.model,
            vectors: vectors.collect(),
            tokens: 7,
            truncated: request
                .input
                .iter()
                .position(|text| text == "long")
                .into_iter()
                .collect(),
        })
    }

    async fn dead_letters(&self, request: DeadLetterRequest) -> Reply<Vec<DeadLetterReply>> {
        let from = request.cursor.unwrap_or(0) + 1;
        let source = request.source.unwrap_or("tickets".into());
        let letters = (from..=5).map(|number| {
            let error = DataError::new("invalid-json", "bad").expected("JSON");
            let payload: &[u8] = if number == 2 { &[0xFF, 0x00] } else { b"{" };
            let position = format!("request r_1 line {number}");
            DeadLetterReply {
                id: format!("d_{number:012x}"),
                cursor: number,
                first_seen: NOW - 7,
                last_seen: NOW,
                count: number,
                letter: Arc::new(DeadLetter::new(&*source, position, error, payload)),
            }
        });
        let letters =
            letters.filter(|letter| request.id.as_ref().is_none_or(|id| *id == letter.id));
        Ok(letters.take(request.limit).collect())
    }

    async fn replay(&self, request: ReplayRequest) -> Reply<ReplayReply> {
        let refused = RefusedLetter {
            id: "d_000000000003".to_owned(),
            reason: "only 65536 of its 70000 bytes are kept".to_owned(),
        };
        match request.ids {
            None if request.source.is_none() && request.code.is_none() => Err(Problem::invalid(
                "nothing says which dead letters are replayed",
            )),
            _ => Ok(ReplayReply {
                replayed: 2,
                still_bad: 1,
                gone: 0,
                refused: vec![refused],
                refused_total: 1,
            }),
        }
    }

    async fn pipeline(&self) -> Reply<Json> {
        Ok(json!({ "objects": [{ "name": "tickets", "kind": "source" }] }))
    }

    async fn progress(&self) -> Reply<Json> {
        Ok(json!({ "collections": [{ "name": "tickets", "since": 1, "upper": NOW }] }))
    }

    fn readiness(&self) -> Readiness {
        let ready = self.is_ready.load(Ordering::SeqCst);
        let reasons = match ready {
            true => vec![],
            false => vec!["index \"support\": 8 of 10 documents wait for their embedding".into()],
        };
        Readiness { ready, reasons }
    }

    fn metrics(&self) -> String {
        "# TYPE headwater_ticks_total counter\nheadwater_ticks_total 7\n".into()
    }
}

/// What is wrong with a line, if anything: just enough to see each line arrive as it was sent.
fn fault(raw: &[u8]) -> Option<&'static str> {
    if raw.len() > engine::limits::LINE_BYTES_MAX {
        return Some("line-too-large");
    }
    let Ok(text) = std::str::from_utf8(raw) else {
        return Some("invalid-utf8");
    };
    let parsed = serde_json::from_str::<serde_json::Value>(text);
    parsed.is_err().then_some("invalid-json")
}
