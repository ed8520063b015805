//! Where a repository lies: a path, which is read in place, or a URL, which is read from a mirror.
//!
//! Idea: whoever follows a branch asks for its head and for a repository that has it. For a path
//! both cost a few system calls, so it is asked often. For a URL the mirror fetches first.
//!
//! Invariants: what is missing now and may come (a path, a branch, a server) is the world's trouble;
//! what cannot heal by itself (a folder without a repository, a wrong token) is a person's. A handle
//! is opened anew after any trouble, so a repository may be moved, repacked or cloned again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::contract::SourceContext;
use gix::bstr::ByteSlice;
use gix::url::Scheme;
use gix::{ObjectId, Repository};

use super::mirror::{Mirror, Remote};
use super::{GitOptions, Trouble, words};

/// Time between two looks at the branch of a path.
const LOOK: Duration = Duration::from_millis(250);
/// Time between two fetches from a URL.
const FETCH: Duration = Duration::from_secs(30);
/// A folder without a repository may be one that is being cloned, for so long.
const CLONING: Duration = Duration::from_secs(3);
/// Memory for trees and commits that are read again and again.
const OBJECT_CACHE_BYTES: usize = 8 << 20;

/// A repository with its branch.
pub(super) struct Origin {
    place: Place,
    /// `refs/heads/main`
    reference: String,
    interval: Duration,
    repository: Option<Repository>,
    /// Whether it could be read since the start: then what is wrong may heal.
    was_there: bool,
    wrong_since: Option<Instant>,
}

enum Place {
    Path(PathBuf),
    Url(Box<Mirror>),
}

impl Origin {
    /// Errors, as a sentence: what cannot be a repository or a branch.
    pub(super) fn new(name: &str, options: &GitOptions) -> Result<Origin, String> {
        let reference = match options.branch.starts_with("refs/") {
            true => options.branch.clone(),
            false => format!("refs/heads/{}", options.branch),
        };
        gix::refs::FullName::try_from(reference.as_str())
            .map_err(|error| format!("BRANCH '{}' cannot be one: {error}", options.branch))?;
        let url = gix::url::parse(options.repository.as_str()).map_err(|error| {
            format!("REPOSITORY is neither a path nor a URL: {}", words(&error))
        })?;
        let place = match &url.scheme {
            Scheme::File if options.repository.starts_with("file:") => {
                let path = url.path.to_path();
                Place::Path(path.map_err(|error| error.to_string())?.to_owned())
            }
            Scheme::File => Place::Path(PathBuf::from(&options.repository)),
            _ => {
                let remote = Remote::new(url, options.token_env.clone())?;
                let mirrors = options.mirrors.as_deref();
                Place::Url(Box::new(Mirror::new(name, remote, &reference, mirrors)?))
            }
        };
        if matches!(place, Place::Path(_)) && options.token_env.is_some() {
            return Err("TOKEN ENV is for https: a path needs no token".to_owned());
        }
        let usual = match place {
            Place::Path(_) => LOOK,
            Place::Url(_) => FETCH,
        };
        Ok(Origin {
            place,
            reference,
            interval: options.interval.unwrap_or(usual),
            repository: None,
            was_there: false,
            wrong_since: None,
        })
    }

    /// The full name of the branch.
    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    /// Time until the next look.
    pub(super) fn pause(&self) -> Duration {
        self.interval
    }

    /// Opens the repository anew the next time.
    pub(super) fn forget(&mut self) {
        self.repository = None;
    }

    /// The commit that the branch names, `None` when there is no such branch. Fetches from a URL.
    pub(super) fn head(&mut self, context: &SourceContext) -> Result<Option<ObjectId>, Trouble> {
        if let Place::Url(mirror) = &mut self.place {
            let fetched = mirror.fetch(context)?;
            if fetched.is_new {
                // A fetch adds a pack; a handle has room for few that it did not know.
                self.repository = None;
            }
            if fetched.head.is_none() {
                return Ok(None);
            }
        }
        let reference = self.reference.clone();
        let Some(mut found) = self.open()?.try_find_reference(reference.as_str())? else {
            return Ok(None);
        };
        Ok(Some(found.peel_to_id()?.detach()))
    }

    /// The repository, with a handle of the caller's own.
    pub(super) fn repository(&mut self) -> Result<Repository, Trouble> {
        self.open().cloned()
    }

    fn open(&mut self) -> Result<&Repository, Trouble> {
        if self.repository.is_none() {
            let path = match &self.place {
                Place::Path(path) => path.clone(),
                Place::Url(mirror) => mirror.folder().to_owned(),
            };
            let mut repository = self.open_at(&path)?;
            repository.object_cache_size_if_unset(OBJECT_CACHE_BYTES);
            self.repository = Some(repository);
            (self.was_there, self.wrong_since) = (true, None);
        }
        Ok(self.repository.as_ref().expect("opened above"))
    }

    fn open_at(&mut self, path: &Path) -> Result<Repository, Trouble> {
        let shown = path.display();
        if let Err(error) = std::fs::metadata(path) {
            self.wrong_since = None;
            return Err(Trouble::World(format!("'{shown}' cannot be read: {error}")));
        }
        gix::open_opts(path, gix::open::Options::isolated()).map_err(|error| {
            let detail = format!("'{shown}' is not a git repository: {}", words(&error));
            let since = *self.wrong_since.get_or_insert_with(Instant::now);
            match self.was_there || since.elapsed() < CLONING {
                true => Trouble::World(detail),
                false => Trouble::Person(format!(
                    "{detail}; expected the folder that has .git, or a bare repository"
                )),
            }
        })
    }
}

/// The commit that a (short) id names.
pub(super) fn commit(repository: &Repository, id: &str) -> Result<ObjectId, Trouble> {
    let found = repository.rev_parse_single(id);
    let found = found.and_then(|found| Ok(found.object()?.try_into_commit()?.id));
    found.map_err(|_| {
        Trouble::Person(format!(
            "FROM COMMIT '{id}' names no commit of the repository; expected the id of a commit in \
             the history of the branch, whole or as many digits as no other has"
        ))
    })
}
