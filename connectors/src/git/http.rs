//! git's smart HTTP over ureq: rustls, the operating system's certificates, `HTTPS_PROXY`.
//!
//! Idea: gix brings the protocol and asks for two calls. A GET is made at once. A POST is made when
//! its answer is first read: by then its body, a few kilobytes of wants and haves, is written whole.
//!
//! ```text
//! gix ─ get ──▶ agent ──▶ headers, body
//!     ─ post ─▶ body is written … headers are read ─▶ agent ──▶ headers, body
//! ```
//!
//! Invariants: the token goes to the place that the URL names and nowhere else, not after a redirect
//! to another host, never over a connection without TLS that leaves the machine; no header comes from
//! configuration; each wait ends.
//!
//! Limits: a request's body lies in memory; the "dumb" protocol is not spoken.

use std::any::Any;
use std::io::{self, BufReader, Cursor, Read, Write};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gix::Url;
use gix_transport::Protocol;
use gix_transport::client::blocking_io::http::{
    GetResponse, Http, PostBodyDataKind, PostResponse, Transport,
};
use ureq::http::{Request, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, BodyReader};

/// Longest wait for a name and for a connection.
const CONNECT: Duration = Duration::from_secs(20);
/// Longest wait for an answer to begin, and for its next bytes: servers say something while they
/// count objects.
const ANSWER: Duration = Duration::from_secs(120);

/// Redirects that are followed one after another.
const REDIRECTS_MAX: usize = 5;

/// Who asks.
#[derive(Clone)]
pub(super) struct Login {
    /// The name beside the token.
    pub(super) user: String,
    /// The token or password.
    pub(super) token: String,
}

/// A transport to `url`, which has no user and no password. `status` gets the last HTTP status that
/// was no success.
pub(super) fn transport(
    url: Url,
    login: Option<Login>,
    status: Arc<AtomicU16>,
) -> Transport<Client> {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier);
    let config = Agent::config_builder()
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(ANSWER))
        .timeout_per_read(Some(ANSWER))
        .http_status_as_error(false)
        // Redirects are followed here: what is one place is for this file to say.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .tls_config(tls.build())
        .build();
    let authorization = login.map(|Login { user, token }| {
        let pair = STANDARD.encode(format!("{user}:{token}"));
        format!("Basic {pair}")
    });
    let client = Client {
        agent: config.into(),
        home: place(&url.to_bstring().to_string()).to_owned(),
        authorization,
        redirected: None,
        status,
    };
    Transport::new_http(client, url, Protocol::V2, false)
}

/// `https://host:port` of a URL.
fn place(url: &str) -> &str {
    let from = url.find("://").map_or(0, |at| at + 3);
    let end = url[from..].find('/').map_or(url.len(), |at| from + at);
    &url[..end]
}

/// Makes gix's requests.
pub(super) struct Client {
    agent: Agent,
    /// Where the token may go.
    home: String,
    authorization: Option<String>,
    /// The base that a redirect led to.
    redirected: Option<String>,
    status: Arc<AtomicU16>,
}

impl Client {
    fn request(
        &self,
        method: &str,
        url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> gix::Result<Request<Vec<u8>>> {
        let mut request = Request::builder().method(method).uri(url);
        for header in headers {
            if let Some((name, value)) = header.as_ref().split_once(':') {
                request = request.header(name.trim(), value.trim());
            }
        }
        if let Some(authorization) = &self.authorization
            && place(url) == self.home
        {
            request = request.header("Authorization", authorization);
        }
        request.body(Vec::new()).map_err(gix::Error::from_error)
    }

    /// Notes the base that redirects led to, so that what follows goes there at once.
    fn note_redirect(&mut self, url: &str, base: &str, landed: &str) -> gix::Result<()> {
        if landed == url {
            return Ok(());
        }
        let tail = url.strip_prefix(base).unwrap_or_default();
        let Some(base) = landed.strip_suffix(tail) else {
            return Err(other(format!(
                "the server redirects to {landed}, which is no repository"
            )));
        };
        self.redirected = Some(base.to_owned());
        Ok(())
    }
}

/// Where an answer redirects to, if it does. Errors: from TLS to none, or to no URL.
fn redirect(url: &str, answer: &Response<Body>) -> gix::Result<Option<String>> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = answer.headers().get("location");
    let location = location.and_then(|location| location.to_str().ok());
    let to = match location {
        Some(location) if location.starts_with('/') => format!("{}{location}", place(url)),
        Some(location) => location.to_owned(),
        None => String::new(),
    };
    let is_kept = to.starts_with("https://");
    let is_plain = to.starts_with("http://") && url.starts_with("http://");
    match is_kept || is_plain {
        true => Ok(Some(to)),
        false => Err(other(format!(
            "{} redirects to '{to}', which is not followed",
            place(url)
        ))),
    }
}

fn other(detail: String) -> gix::Error {
    gix::Error::from_error(io::Error::other(detail))
}

/// The answer, unless its status is an error.
fn send(
    agent: &Agent,
    request: Request<Vec<u8>>,
    status: &AtomicU16,
) -> io::Result<Response<Body>> {
    let place = place(&request.uri().to_string()).to_owned();
    let is_get = request.method() == "GET";
    let answer = match is_get {
        // A GET has no body, not an empty one.
        true => agent.run(request.map(|_| ())),
        false => agent.run(request),
    };
    let answer = answer.map_err(|error| io::Error::other(format!("{place}: {error}")))?;
    let code = answer.status();
    let is_good = code.is_success() || is_get && code.is_redirection();
    if !is_good {
        status.store(code.as_u16(), Ordering::Relaxed);
        return Err(io::Error::other(format!("{place}: HTTP {code}")));
    }
    Ok(answer)
}

impl Http for Client {
    type Headers = BufReader<Headers>;
    type ResponseBody = BufReader<Content>;
    type PostBody = PostBody;

    fn get(
        &mut self,
        url: &str,
        base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> gix::Result<GetResponse<Self::Headers, Self::ResponseBody>> {
        let headers = headers.into_iter();
        let headers: Vec<String> = headers.map(|line| line.as_ref().to_owned()).collect();
        let mut at = url.to_owned();
        let mut redirects = 0;
        let answer = loop {
            let request = self.request("GET", &at, &headers)?;
            let answer = send(&self.agent, request, &self.status);
            let answer = answer.map_err(gix::Error::from_error)?;
            match redirect(&at, &answer)? {
                None => break answer,
                Some(to) if redirects < REDIRECTS_MAX => at = to,
                Some(_) => return Err(other(format!("{} redirects again and again", place(&at)))),
            }
            redirects += 1;
        };
        self.note_redirect(url, base_url, &at)?;
        let exchange = Arc::new(Mutex::new(Exchange::Answered(Answer::of(answer))));
        Ok(GetResponse {
            headers: BufReader::new(Headers(Arc::clone(&exchange))),
            body: BufReader::new(Content(exchange)),
        })
    }

    fn post(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        _body: PostBodyDataKind,
    ) -> gix::Result<PostResponse<Self::Headers, Self::ResponseBody, Self::PostBody>> {
        let exchange = Arc::new(Mutex::new(Exchange::Written(Box::new(Pending {
            agent: self.agent.clone(),
            request: self.request("POST", url, headers)?,
            status: Arc::clone(&self.status),
        }))));
        Ok(PostResponse {
            post_body: PostBody(Arc::clone(&exchange)),
            headers: BufReader::new(Headers(Arc::clone(&exchange))),
            body: BufReader::new(Content(exchange)),
        })
    }

    fn configure(&mut self, _config: &dyn Any) -> gix::Result {
        Ok(())
    }

    fn redirected_base_url(&self) -> Option<String> {
        self.redirected.clone()
    }
}

/// A request on its way to its answer.
enum Exchange {
    /// Its body is being written.
    Written(Box<Pending>),
    Answered(Answer),
    /// It failed, and that was told.
    Failed,
}

struct Pending {
    agent: Agent,
    request: Request<Vec<u8>>,
    status: Arc<AtomicU16>,
}

struct Answer {
    headers: Cursor<Vec<u8>>,
    body: BodyReader<'static>,
}

impl Answer {
    fn of(answer: Response<Body>) -> Answer {
        let mut headers = Vec::new();
        for (name, value) in answer.headers() {
            headers.extend_from_slice(name.as_str().as_bytes());
            headers.push(b':');
            headers.extend_from_slice(value.as_bytes());
            headers.push(b'\n');
        }
        Answer {
            headers: Cursor::new(headers),
            body: answer.into_body().into_reader(),
        }
    }
}

type Shared = Arc<Mutex<Exchange>>;

/// Runs on the answer, which is asked for first if need be.
fn answered<T>(shared: &Shared, run: impl FnOnce(&mut Answer) -> io::Result<T>) -> io::Result<T> {
    let mut exchange = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*exchange, Exchange::Written(_)) {
        let Exchange::Written(pending) = std::mem::replace(&mut *exchange, Exchange::Failed) else {
            unreachable!("looked at above");
        };
        let answer = send(&pending.agent, pending.request, &pending.status)?;
        *exchange = Exchange::Answered(Answer::of(answer));
    }
    match &mut *exchange {
        Exchange::Answered(answer) => run(answer),
        _ => Err(io::Error::other("the request failed")),
    }
}

/// The lines of an answer's head.
pub(super) struct Headers(Shared);

impl Read for Headers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        answered(&self.0, |answer| answer.headers.read(buffer))
    }
}

/// An answer's body.
pub(super) struct Content(Shared);

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        answered(&self.0, |answer| answer.body.read(buffer))
    }
}

/// A request's body.
pub(super) struct PostBody(Shared);

impl Write for PostBody {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut exchange = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *exchange {
            Exchange::Written(pending) => pending.request.body_mut().write(bytes),
            _ => Err(io::Error::other("the request was sent already")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
