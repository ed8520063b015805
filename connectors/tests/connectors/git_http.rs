//! `FROM GIT` over HTTP, beside git's own server (`git http-backend`).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use connectors::git::GitOptions;
use engine::testing::{Recorded, ScriptedSink, SourceRun, source_laws};

use crate::git::{options, source, tree};
use crate::repo::{Repo, command, random_history};

/// A variable that is set wherever tests run, to stand for a token.
const TOKEN_ENV: &str = "CARGO_MANIFEST_DIR";

/// A server of the repository `/repo.git`.
struct Server {
    url: String,
    state: Arc<State>,
}

struct State {
    repository: PathBuf,
    /// What `Authorization` must be, if anything.
    wanted: Option<String>,
    is_down: AtomicBool,
    requests: AtomicU64,
}

impl Server {
    fn start(repository: &Path, wanted: Option<String>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            repository: repository.to_owned(),
            wanted,
            is_down: AtomicBool::new(false),
            requests: AtomicU64::new(0),
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

fn over(url: &str, mirrors: &Path) -> GitOptions {
    GitOptions {
        mirrors: Some(mirrors.to_owned()),
        ..options(url)
    }
}

/// What ends a source.
fn ends(options: GitOptions) -> String {
    let context = engine::contract::SourceContext {
        name: "test".to_owned(),
        sink: ScriptedSink::open(),
        resume: Arc::new(Recorded::default()),
        stop: Arc::default(),
    };
    let ended = source(options).run(context);
    ended.expect_err("it cannot heal").to_string()
}

#[test]
fn it_keeps_the_laws_of_sources() {
    let repo = Repo::new();
    repo.import(&random_history(11, 60).stream);
    let first = repo.line("main").swap_remove(0);
    let server = Server::start(&repo.path(), None);
    let mirrors = tempfile::tempdir().expect("a folder");
    let make = || {
        source(GitOptions {
            from: Some(first.clone()),
            ..over(&server.url, mirrors.path())
        })
    };
    let rows = source_laws(&make, Duration::from_millis(1_200));
    assert_eq!(rows.len(), repo.tree("main", ".md").len());
}

#[test]
fn a_url_is_followed_through_failures_and_a_mirror_that_is_deleted() {
    let repo = Repo::new();
    let first = repo.commit("one", &[("a.md", Some(b"a"))]);
    let server = Server::start(&repo.path(), None);
    let mirrors = tempfile::tempdir().expect("a folder");
    let sink = ScriptedSink::open();
    let made = source(over(&server.url, mirrors.path()));
    let run = SourceRun::start(made, &sink, Recorded::default());
    let expect = |commit: &str| {
        let expected = repo.tree(commit, ".md");
        assert!(sink.wait(|recorded| tree(recorded) == expected), "{commit}");
    };
    expect(&first);
    let second = repo.commit("two", &[("b.md", Some(b"b")), ("a.md", None)]);
    expect(&second);

    server.state.is_down.store(true, Ordering::SeqCst);
    let third = repo.commit("three", &[("c.md", Some(b"c"))]);
    std::thread::sleep(Duration::from_millis(300));
    server.state.is_down.store(false, Ordering::SeqCst);
    expect(&third);

    let mirror = std::fs::read_dir(mirrors.path())
        .expect("a folder")
        .flatten()
        .next();
    std::fs::remove_dir_all(mirror.expect("a mirror").path()).expect("removed");
    let fourth = repo.commit("four", &[("d.md", Some(b"d"))]);
    expect(&fourth);

    // Rewritten, and then gone.
    repo.set("main", &second);
    let fifth = repo.commit("five", &[("e.md", Some(b"e"))]);
    expect(&fifth);
    repo.git(&["update-ref", "-d", "refs/heads/main"]);
    let asked = server.state.requests.load(Ordering::SeqCst);
    while server.state.requests.load(Ordering::SeqCst) < asked + 4 {
        std::thread::sleep(Duration::from_millis(20));
    }
    expect(&fifth);
    run.stop();
}

#[test]
fn a_token_is_sent_and_a_redirect_is_followed() {
    let repo = Repo::new();
    let first = repo.commit("one", &[("a.md", Some(b"a"))]);
    let token = std::env::var(TOKEN_ENV).expect("set by cargo");
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("ada:{token}"));
    let server = Server::start(&repo.path(), Some(format!("Basic {pair}")));
    let mirrors = tempfile::tempdir().expect("a folder");
    let url = server.url.replace("http://", "http://ada@");
    let options = GitOptions {
        token_env: Some(TOKEN_ENV.to_owned()),
        ..over(&url, mirrors.path())
    };
    let sink = ScriptedSink::open();
    let run = SourceRun::start(source(options), &sink, Recorded::default());
    let expected = repo.tree(&first, ".md");
    assert!(sink.wait(|recorded| tree(recorded) == expected));
    run.stop();

    let open = Server::start(&repo.path(), None);
    let moved = open.url.replace("/repo.git", "/moved/repo.git");
    let sink = ScriptedSink::open();
    let run = SourceRun::start(
        source(over(&moved, mirrors.path())),
        &sink,
        Recorded::default(),
    );
    assert!(sink.wait(|recorded| tree(recorded) == expected));
    run.stop();

    assert_eq!(
        ends(over(&server.url, mirrors.path())),
        format!(
            "git '{}': HTTP 401 Unauthorized; expected TOKEN ENV with a token that may read the \
             repository",
            server.url
        )
    );
    let nowhere = open.url.replace("/repo.git", "/other.git");
    assert_eq!(
        ends(over(&nowhere, mirrors.path())),
        format!(
            "git '{nowhere}': HTTP 404 Not Found; expected a repository there; a private one needs \
             TOKEN ENV"
        )
    );
    let unset = GitOptions {
        token_env: Some("HEADWATER_NO_SUCH_VARIABLE".to_owned()),
        ..over(&server.url, mirrors.path())
    };
    let error = ends(unset);
    assert!(
        error.ends_with(
            "TOKEN ENV: the server's environment has no variable HEADWATER_NO_SUCH_VARIABLE"
        ),
        "{error}"
    );
}
