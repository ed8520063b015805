//! An embedding server in OpenAI's shape whose faults are scripted.
//!
//! ```text
//! POST /v1/embeddings ─▶ next act of the script, else serve ─▶ 200 with vectors, or the fault
//! ```
//!
//! Vectors are those of a [`HashedEmbedder`]; every embedded text is counted, so that "each once" can
//! be checked. One thread a connection; connections are kept open as real servers do.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::HashedEmbedder;
use crate::contract::Embedder;
use crate::model::floats_to_base64;

/// What the server does with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Embeds.
    Serve,
    /// Refuses, with headers and a body.
    Refuse(u16, Vec<(String, String)>, String),
    /// Answers 200 with something else.
    Say(String),
    /// Says nothing for so long, then closes.
    Hang(Duration),
    /// Answers a byte at a time with a pause between.
    Trickle(Duration),
    /// Closes without a word.
    Close,
    /// Breaks off in the middle of its answer.
    BreakOff,
    /// Leaves out the last vector.
    TooFew,
    /// Vectors longer by one.
    Longer,
    /// The first component of every vector is no number.
    NotANumber,
}

impl Act {
    /// A refusal in OpenAI's shape.
    pub fn refuse(status: u16, message: &str) -> Act {
        let body = json!({"error": {"message": message, "type": "t", "param": null, "code": null}});
        Act::Refuse(status, Vec::new(), body.to_string())
    }
}

#[derive(Default)]
struct State {
    script: VecDeque<Act>,
    always: Option<Act>,
    poisoned: Vec<String>,
    requests: Vec<Json>,
    keys: Vec<Option<String>>,
}

/// See the module. Dropping it leaves its thread to the process's end.
pub struct EmbeddingServer {
    port: u16,
    embedder: Arc<HashedEmbedder>,
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EmbeddingServer {
    /// Starts on a free port of this machine.
    pub fn start(dimensions: usize) -> EmbeddingServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let server = EmbeddingServer {
            port,
            embedder: Arc::new(HashedEmbedder::new("remote", dimensions)),
            state: Arc::default(),
        };
        let (state, embedder) = (server.state.clone(), server.embedder.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, embedder) = (state.clone(), embedder.clone());
                // A client that goes away ends its connection, nothing else.
                std::thread::spawn(move || drop(converse(stream, &state, &embedder)));
            }
        });
        server
    }

    /// The base of its API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// Appends acts for requests to come.
    pub fn script(&self, acts: impl IntoIterator<Item = Act>) {
        lock(&self.state).script.extend(acts);
    }

    /// What it does with every request when the script is over; `Act::Serve` to be good again.
    pub fn always(&self, act: Act) {
        lock(&self.state).always = Some(act);
    }

    /// Refuses (400) every request with this text in it.
    pub fn poison(&self, text: &str) {
        lock(&self.state).poisoned.push(text.to_owned());
    }

    /// The bodies of all requests so far.
    pub fn requests(&self) -> Vec<Json> {
        lock(&self.state).requests.clone()
    }

    /// The `Authorization` of all requests so far.
    pub fn keys(&self) -> Vec<Option<String>> {
        lock(&self.state).keys.clone()
    }

    /// What embeds, and counts.
    pub fn embedder(&self) -> &HashedEmbedder {
        &self.embedder
    }
}

/// Answers requests of one connection until it ends.
fn converse(
    stream: TcpStream,
    state: &Mutex<State>,
    embedder: &HashedEmbedder,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    loop {
        let (mut length, mut key, mut first) = (0, None, String::new());
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            match &*name.to_ascii_lowercase() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "authorization" => key = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let request: Json = serde_json::from_slice(&body).unwrap_or(Json::Null);
        let act = next_act(state, &request, key, &first);
        if !perform(act, &request, embedder, &mut out)? {
            return Ok(());
        }
    }
}

fn inputs(request: &Json) -> Vec<&str> {
    let input = request["input"].as_array();
    let texts = input.into_iter().flatten();
    texts.filter_map(Json::as_str).collect()
}

fn next_act(state: &Mutex<State>, request: &Json, key: Option<String>, first: &str) -> Act {
    let mut state = lock(state);
    state.requests.push(request.clone());
    state.keys.push(key);
    if !first.starts_with("POST /v1/embeddings ") {
        return Act::refuse(404, "no such path");
    }
    let always = state.always.clone().unwrap_or(Act::Serve);
    let act = state.script.pop_front().unwrap_or(always);
    let texts = inputs(request);
    let is_poisoned = state.poisoned.iter().any(|bad| texts.contains(&&**bad));
    if act == Act::Serve && is_poisoned {
        return Act::refuse(400, "the input is too long");
    }
    act
}

/// Whether the connection goes on.
fn perform(
    act: Act,
    request: &Json,
    embedder: &HashedEmbedder,
    out: &mut TcpStream,
) -> std::io::Result<bool> {
    let head = |status: u16, headers: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
        )
    };
    let wrong = |change: &dyn Fn(&mut Vec<Vec<Option<f32>>>)| {
        let mut vectors = vectors(request, embedder);
        change(&mut vectors);
        head(200, "", &reply(request, &vectors))
    };
    let text = match act {
        Act::Serve => {
            embedder.embed(&inputs(request)).ok();
            wrong(&|_| {})
        }
        Act::Refuse(status, headers, body) => {
            let lines = headers
                .iter()
                .map(|(name, value)| format!("{name}: {value}\r\n"));
            head(status, &lines.collect::<String>(), &body)
        }
        Act::Say(body) => head(200, "", &body),
        Act::Hang(wait) => {
            std::thread::sleep(wait);
            return Ok(false);
        }
        Act::Trickle(pause) => {
            for byte in wrong(&|_| {}).bytes() {
                out.write_all(&[byte])?;
                std::thread::sleep(pause);
            }
            return Ok(true);
        }
        Act::Close => return Ok(false),
        Act::BreakOff => {
            let whole = wrong(&|_| {});
            out.write_all(&whole.as_bytes()[..whole.len() / 2])?;
            return Ok(false);
        }
        Act::TooFew => wrong(&|vectors| drop(vectors.pop())),
        Act::Longer => wrong(&|vectors| vectors.iter_mut().for_each(|v| v.push(Some(0.5)))),
        Act::NotANumber => wrong(&|vectors| vectors.iter_mut().for_each(|v| v[0] = None)),
    };
    out.write_all(text.as_bytes())?;
    Ok(true)
}

/// Vectors of a request, twice as long as a unit: who wants units must see to it. Not counted.
fn vectors(request: &Json, embedder: &HashedEmbedder) -> Vec<Vec<Option<f32>>> {
    let texts = inputs(request);
    let vectors = texts.iter().map(|text| embedder.vector(text));
    vectors
        .map(|vector| vector.into_iter().map(|x| Some(2.0 * x)).collect())
        .collect()
}

/// In OpenAI's shape, last text first: the order is the index's.
fn reply(request: &Json, vectors: &[Vec<Option<f32>>]) -> String {
    let is_base64 = request["encoding_format"] == "base64";
    let data = vectors.iter().enumerate().rev().map(|(index, vector)| {
        let embedding = match is_base64 {
            true => {
                let floats: Vec<f32> = vector.iter().map(|x| x.unwrap_or(f32::NAN)).collect();
                json!(floats_to_base64(&floats))
            }
            false => json!(vector),
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let data: Vec<Json> = data.collect();
    json!({
        "object": "list",
        "data": data,
        "model": request["model"],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    })
    .to_string()
}
