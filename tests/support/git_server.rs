//! git's own server (`git http-backend`) behind a small HTTP server, which can be down, ask for a
//! login, and redirect.

#![allow(dead_code)] // each test uses its part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::repo::command;

/// A server of the repository `/repo.git`.
pub struct Server {
    /// `http://127.0.0.1:port/repo.git`
    pub url: String,
    state: Arc<State>,
}

struct State {
    repository: PathBuf,
    /// What `Authorization` must be, if anything.
    wanted: Option<String>,
    is_down: AtomicBool,
    requests: AtomicU64,
    /// Those with an `Authorization`.
    authorized: AtomicU64,
}

impl Server {
    /// Serves a bare repository; `wanted` is what `Authorization` must be, if anything.
    pub fn start(repository: &Path, wanted: Option<String>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            repository: repository.to_owned(),
            wanted,
            is_down: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            authorized: AtomicU64::new(0),
        });
        let serving = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&serving);
                std::thread::spawn(move || {
                    // A client that goes away is its own business.
                    let _ = serve(&state, stream);
                });
            }
        });
        Server {
            url: format!("http://{address}/repo.git"),
            state,
        }
    }

    /// Answers 503, or no longer does.
    pub fn set_down(&self, is_down: bool) {
        self.state.is_down.store(is_down, Ordering::SeqCst);
    }

    /// Requests that came with an `Authorization`.
    pub fn authorized(&self) -> u64 {
        self.state.authorized.load(Ordering::SeqCst)
    }

    /// A URL of this server that redirects to another one.
    pub fn redirect_to(&self, other: &Server) -> String {
        let port = other.url.trim_end_matches("/repo.git").rsplit(':').next();
        let to = format!("/to/{}/repo.git", port.expect("a port"));
        self.url.replace("/repo.git", &to)
    }

    /// Waits until it was asked so many times more.
    pub fn wait_asked(&self, times: u64) {
        let asked = || self.state.requests.load(Ordering::SeqCst);
        let until = asked() + times;
        while asked() < until {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// One request, one answer, the end.
fn serve(state: &State, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let mut header = std::collections::HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => header.insert(name.to_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let length = header
        .get("content-length")
        .and_then(|text| text.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    state.requests.fetch_add(1, Ordering::SeqCst);
    let is_authorized = header.contains_key("authorization");
    state
        .authorized
        .fetch_add(is_authorized.into(), Ordering::SeqCst);
    if state.is_down.load(Ordering::SeqCst) {
        return answer(&mut stream, "503 Service Unavailable", "", b"");
    }
    if state.wanted.as_ref() != header.get("authorization") && state.wanted.is_some() {
        return answer(&mut stream, "401 Unauthorized", "", b"");
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if let Some(rest) = path.strip_prefix("/moved") {
        let location = format!("Location: {rest}?{query}\r\n");
        return answer(&mut stream, "301 Moved Permanently", &location, b"");
    }
    if let Some((port, rest)) = path.strip_prefix("/to/").and_then(|to| to.split_once('/')) {
        let location = format!("Location: http://127.0.0.1:{port}/{rest}?{query}\r\n");
        return answer(&mut stream, "302 Found", &location, b"");
    }
    let Some(inside) = path.strip_prefix("/repo.git") else {
        return answer(&mut stream, "404 Not Found", "", b"");
    };
    let mut child = command(&state.repository)
        .arg("http-backend")
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_PROJECT_ROOT", &state.repository)
        .env("PATH_INFO", inside)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", method)
        .env("CONTENT_LENGTH", body.len().to_string())
        .env(
            "CONTENT_TYPE",
            header.get("content-type").cloned().unwrap_or_default(),
        )
        .env(
            "GIT_PROTOCOL",
            header.get("git-protocol").cloned().unwrap_or_default(),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().expect("piped").write_all(&body)?;
    let out = child.wait_with_output()?.stdout;
    let end = out
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap_or(0);
    let head = String::from_utf8_lossy(&out[..end]).into_owned();
    answer(
        &mut stream,
        "200 OK",
        &format!("{head}\r\n"),
        &out[end + 4..],
    )
}

fn answer(stream: &mut TcpStream, status: &str, head: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}
