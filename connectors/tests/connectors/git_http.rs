//! `FROM GIT` over HTTP, beside git's own server (`git http-backend`).

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use connectors::git::GitOptions;
use engine::testing::{Recorded, ScriptedSink, SourceRun, source_laws};

use crate::git::{ends, options, source, tree};
use crate::git_server::Server;
use crate::repo::{Repo, random_history};

/// A variable that is set wherever tests run, to stand for a token.
const TOKEN_ENV: &str = "CARGO_MANIFEST_DIR";

fn over(url: &str, mirrors: &Path) -> GitOptions {
    GitOptions {
        mirrors: Some(mirrors.to_owned()),
        ..options(url)
    }
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

    server.set_down(true);
    let third = repo.commit("three", &[("c.md", Some(b"c"))]);
    server.wait_asked(2);
    server.set_down(false);
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
    server.wait_asked(4);
    expect(&fifth);
    run.stop();
}

#[test]
fn a_token_does_not_follow_a_redirect_to_another_place() {
    let repo = Repo::new();
    let first = repo.commit("one", &[("a.md", Some(b"a"))]);
    let (here, there) = (
        Server::start(&repo.path(), None),
        Server::start(&repo.path(), None),
    );
    let mirrors = tempfile::tempdir().expect("a folder");
    let options = GitOptions {
        token_env: Some(TOKEN_ENV.to_owned()),
        ..over(&here.redirect_to(&there), mirrors.path())
    };
    let sink = ScriptedSink::open();
    let run = SourceRun::start(source(options), &sink, Recorded::default());
    let expected = repo.tree(&first, ".md");
    assert!(sink.wait(|recorded| tree(recorded) == expected));
    run.stop();
    assert!(here.authorized() > 0, "the token goes where the URL says");
    assert_eq!(there.authorized(), 0, "and nowhere else");
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
