//! A bare copy of one branch of a URL, and the fetch that keeps it.
//!
//! Idea: the mirror is a cache. It lies in a folder of its own below the data folder, is made when
//! it is missing, made again when it cannot be opened, and may be deleted at any time: everything
//! that matters is in the input log.
//!
//! ```text
//! fetch ─▶ a thread of its own ─▶ gix: http (ureq) | ssh (the ssh program) | git ─▶ packs, the ref
//!   └─ waits, and looks whether to stop; a fetch that is left behind ends by its own time limits
//! ```
//!
//! Invariants: nothing asks a terminal (ssh runs in batch mode, no credential helper is called);
//! only the branch and its history are fetched; a branch that the server lacks is `None`, whatever
//! the mirror still has.
//!
//! Limits: the whole history of the branch; each fetch that brings something adds a pack, and a
//! mirror of more than [`PACKS_MAX`] is fetched anew. A server that refuses at first is an error
//! for a person, later one that passes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use engine::contract::SourceContext;
use engine::model::ContentHash;
use gix::progress::Discard;
use gix::remote::{Direction, fetch::Tags};
use gix::url::Scheme;
use gix::{ObjectId, Repository, Url};
use gix_transport::Protocol;
use gix_transport::client::blocking_io::{Transport, connect, ssh};
use walkdir::WalkDir;

use super::http::{self, Login};
use super::{Trouble, words};

/// Packs above which a mirror is fetched anew.
const PACKS_MAX: usize = 256;
/// Time between two looks whether to stop while a fetch runs.
const LOOK: Duration = Duration::from_millis(20);
/// How ssh is run where `GIT_SSH_COMMAND` says nothing else: it must fail, not ask.
const SSH: &str = "ssh -oBatchMode=yes -oConnectTimeout=20 -oServerAliveInterval=20";
/// What is said where a person would be asked for a password.
const REFUSED: &str = "permission denied; ssh must be let in by a key, without a question";
/// Hosts of this machine: a token may go to them without TLS.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// A URL, without secrets.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    url: Url,
    user: Option<String>,
    token_env: Option<String>,
}

impl Remote {
    /// Errors, as a sentence: a URL that cannot be fetched from.
    pub(super) fn new(mut url: Url, token_env: Option<String>) -> Result<Remote, String> {
        if url.password().is_some() {
            return Err(
                "REPOSITORY has a password in it, which SHOW CREATE would show; \
                 name an environment variable with TOKEN ENV"
                    .to_owned(),
            );
        }
        let is_http = matches!(url.scheme, Scheme::Http | Scheme::Https);
        if !is_http && !matches!(url.scheme, Scheme::Ssh | Scheme::Git) {
            return Err(format!(
                "REPOSITORY has the unknown scheme '{}'; expected a path, https, http, ssh or git",
                url.scheme
            ));
        }
        let user = is_http.then(|| url.set_user(None)).flatten();
        if token_env.is_some() {
            let is_safe = match &url.scheme {
                Scheme::Https => true,
                Scheme::Http => url.host().is_some_and(|host| LOOPBACK.contains(&host)),
                _ => false,
            };
            if !is_safe {
                return Err(
                    "TOKEN ENV is for https: the token would be sent in clear text, or not at all"
                        .to_owned(),
                );
            }
        }
        Ok(Remote {
            url,
            user,
            token_env,
        })
    }

    fn login(&self) -> Result<Option<Login>, Trouble> {
        let Some(name) = &self.token_env else {
            return Ok(None);
        };
        match std::env::var(name) {
            Ok(token) if !token.is_empty() => Ok(Some(Login {
                // What the usual servers take beside a token.
                user: self.user.clone().unwrap_or_else(|| "git".to_owned()),
                token,
            })),
            _ => Err(Trouble::Person(format!(
                "TOKEN ENV: the server's environment has no variable {name}"
            ))),
        }
    }
}

/// What a fetch found.
#[derive(Debug)]
pub(super) struct Fetched {
    /// What the branch names now, if it exists.
    pub(super) head: Option<ObjectId>,
    /// Whether objects came.
    pub(super) is_new: bool,
}

/// A bare repository that follows a URL.
#[derive(Debug)]
pub(super) struct Mirror {
    folder: PathBuf,
    remote: Remote,
    reference: String,
    /// Whether a fetch succeeded since the start.
    was_reached: bool,
    /// Whether what an earlier process left half done was swept away.
    is_swept: bool,
}

impl Mirror {
    /// The mirror of a source, below `mirrors`. Nothing is made yet.
    pub(super) fn new(
        name: &str,
        remote: Remote,
        reference: &str,
        mirrors: Option<&Path>,
    ) -> Result<Mirror, String> {
        let Some(mirrors) = mirrors else {
            return Err("there is no folder for the mirror of a URL".to_owned());
        };
        // A source of the same name may have had another URL before.
        let identity = format!("{name}\n{}", remote.url.to_bstring());
        let hash = ContentHash::of(identity.as_bytes()).0;
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Mirror {
            folder: mirrors.join(format!("{hash}.git")),
            remote,
            reference: reference.to_owned(),
            was_reached: false,
            is_swept: false,
        })
    }

    /// Where it lies.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fetches the branch. Waits as long as that takes, or until stopping.
    pub(super) fn fetch(&mut self, context: &SourceContext) -> Result<Fetched, Trouble> {
        let login = self.remote.login()?;
        if !std::mem::replace(&mut self.is_swept, true) {
            sweep(&self.folder);
        }
        let status = Arc::new(AtomicU16::new(0));
        let interrupt = Arc::new(AtomicBool::new(false));
        let fetch = Fetch {
            folder: self.folder.clone(),
            remote: self.remote.clone(),
            reference: self.reference.clone(),
            login,
            status: Arc::clone(&status),
            interrupt: Arc::clone(&interrupt),
        };
        let (send, receive) = sync_channel(1);
        let thread = std::thread::Builder::new().name("git-fetch".to_owned());
        thread
            .spawn(move || {
                // Nobody waits any more after a stop.
                let _ = send.send(fetch.run());
            })
            .map_err(|error| Trouble::World(format!("no thread for a fetch: {error}")))?;
        let fetched = loop {
            match receive.recv_timeout(LOOK) {
                Ok(fetched) => break fetched,
                Err(RecvTimeoutError::Timeout) if context.is_stopping() => {
                    interrupt.store(true, Ordering::Relaxed);
                    return Err(Trouble::Closed);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Trouble::World("the fetch hit a defect".to_owned()));
                }
            }
        };
        match fetched {
            Ok(fetched) => {
                self.was_reached = true;
                Ok(fetched)
            }
            Err(error) => Err(self.refused(&error, status.load(Ordering::Relaxed))),
        }
    }

    /// The trouble with a server, by the HTTP status that it gave, if it gave one.
    fn refused(&self, error: &gix::Error, status: u16) -> Trouble {
        let detail = words(error);
        let token = "expected TOKEN ENV with a token that may read the repository";
        let said = match status {
            401 => format!("HTTP 401 Unauthorized; {token}"),
            403 => format!("HTTP 403 Forbidden; {token}"),
            404 => "HTTP 404 Not Found; expected a repository there; a private one needs TOKEN ENV"
                .to_owned(),
            _ => return Trouble::World(detail),
        };
        match self.was_reached {
            true => Trouble::World(detail),
            false => Trouble::Person(said),
        }
    }
}

/// Takes away what a killed process left: locks and half-written packs. The data folder is locked,
/// so nobody else writes here.
fn sweep(folder: &Path) {
    for entry in WalkDir::new(folder).into_iter().flatten() {
        let name = entry.file_name().to_string_lossy();
        let is_left = name.ends_with(".lock") || name.starts_with(".tmp");
        if is_left && entry.file_type().is_file() {
            // What cannot be removed shows as trouble of the fetch.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// One fetch, on a thread of its own.
struct Fetch {
    folder: PathBuf,
    remote: Remote,
    reference: String,
    login: Option<Login>,
    status: Arc<AtomicU16>,
    interrupt: Arc<AtomicBool>,
}

impl Fetch {
    fn run(self) -> gix::Result<Fetched> {
        let repository = self.repository()?;
        let spec = format!("+{0}:{0}", self.reference);
        let remote = repository
            .remote_at_without_url_rewrite(self.remote.url.clone())?
            .with_fetch_tags(Tags::None)
            .with_refspecs([spec.as_str()], Direction::Fetch)?;
        if matches!(self.remote.url.scheme, Scheme::Http | Scheme::Https) {
            let status = Arc::clone(&self.status);
            let url = self.remote.url.clone();
            let transport = http::transport(url, self.login.clone(), status);
            return self.receive(&remote, transport);
        }
        // A command of the user's is looked at by gix; ours is known.
        let own = std::env::var_os("GIT_SSH_COMMAND");
        let options = connect::Options {
            version: Protocol::V2,
            ssh: ssh::connect::Options {
                kind: own.is_none().then_some(ssh::ProgramKind::Ssh),
                command: Some(own.unwrap_or_else(|| SSH.into())),
                disallow_shell: false,
            },
            trace: false,
        };
        let transport = connect::connect(self.remote.url.clone(), options)?;
        self.receive(&remote, transport)
    }

    fn receive(&self, remote: &gix::Remote<'_>, transport: impl Transport) -> gix::Result<Fetched> {
        let prepared = remote
            .to_connection_with_transport(transport)
            // Without this gix would call helpers, and ask the terminal.
            .with_credentials(|_| Err(gix::Error::from_error(std::io::Error::other(REFUSED))))
            .prepare_fetch(Discard, gix::remote::ref_map::Options::default())?;
        let mut mappings = prepared.ref_map().mappings.iter();
        let head = mappings.find_map(|mapping| Some(mapping.remote.peeled_id()?.to_owned()));
        if head.is_none() {
            return Ok(Fetched {
                head,
                is_new: false,
            });
        }
        let received = prepared.receive(Discard, &self.interrupt)?;
        let is_new = matches!(received.status, gix::remote::fetch::Status::Change { .. });
        Ok(Fetched { head, is_new })
    }

    /// The mirror, made when it is missing, broken, or in too many pieces.
    fn repository(&self) -> gix::Result<Repository> {
        let options = gix::open::Options::isolated().open_path_as_is(true);
        if self.folder.join("HEAD").exists() && packs(&self.folder) <= PACKS_MAX {
            match gix::open_opts(&self.folder, options.clone()) {
                Ok(repository) => return Ok(repository),
                Err(error) => tracing::warn!(
                    error = words(&error),
                    "the mirror cannot be opened; made anew"
                ),
            }
        }
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder).map_err(gix::Error::from_error)?;
        }
        std::fs::create_dir_all(&self.folder).map_err(gix::Error::from_error)?;
        let made = gix::ThreadSafeRepository::init_opts(
            &self.folder,
            gix::create::Kind::Bare,
            gix::create::Options::default(),
            options,
        );
        Ok(made?.to_thread_local())
    }
}

fn packs(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder.join("objects/pack"));
    let names = entries.into_iter().flatten().flatten();
    names
        .filter(|entry| entry.path().extension().is_some_and(|ext| ext == "pack"))
        .count()
}
