//! The program itself with a URL: the mirror in its data folder, `kill -9`, what it tells people.

use serde_json::{Value as Json, json};

use crate::git_server::Server;
use crate::program::Program;
use crate::repo::{Repo, Tree};

fn rows(tree: &Tree) -> Vec<Vec<Json>> {
    tree.iter()
        .map(|(path, blob)| vec![json!(path), json!(blob)])
        .collect()
}

const LIVE: &str = "SELECT path, blob FROM manual ORDER BY path";

#[test]
fn a_url_is_mirrored_killed_and_followed_on() {
    let repo = Repo::new();
    let one = repo.commit("one", &[("a.md", Some(b"alpha")), ("b.md", Some(b"beta"))]);
    let server = Server::start(&repo.path(), None);
    let pipeline = format!(
        "CREATE SOURCE manual FROM GIT (REPOSITORY '{}', BRANCH 'main', PATTERN '**/*.md',
             INTERVAL '100 milliseconds');
         CREATE INDEX found ON manual USING KEYWORD (text) INCLUDE (commit, author, committed_at);",
        server.url
    );
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let mut program = Program::over(folder, &pipeline);
    program.wait_rows(LIVE, &rows(&repo.tree(&one, ".md")));

    let changes = [
        ("a.md", None),
        ("c.md", Some(&b"alpha"[..])),
        ("d.md", Some(b"\xff")),
    ];
    let two = repo.commit("two", &changes);
    let expected: Tree = repo
        .tree(&two, ".md")
        .into_iter()
        .filter(|(path, _)| path != "d.md")
        .collect();
    program.wait_rows(LIVE, &rows(&expected));
    assert_eq!(
        program.letters("manual"),
        [[
            format!("commit {two} d.md"),
            "invalid-utf8".to_owned(),
            "file 'd.md' is not UTF-8 at byte 0".to_owned(),
        ]]
    );
    let found = "SELECT document, commit, author FROM search(found, 'alpha', k => 5)";
    program.wait_rows(
        found,
        &[vec![
            json!("c.md"),
            json!(two),
            json!("Ada <ada@example.org>"),
        ]],
    );

    program.kill();
    let three = repo.commit("three", &[("d.md", None), ("e.md", Some(b"epsilon"))]);
    program.restart();
    program.wait_rows(LIVE, &rows(&repo.tree(&three, ".md")));

    // The mirror is a cache.
    program.kill();
    std::fs::remove_dir_all(data.join("git")).expect("there are mirrors");
    let four = repo.commit("four", &[("b.md", Some(b"beta 2"))]);
    program.restart();
    program.wait_rows(LIVE, &rows(&repo.tree(&four, ".md")));
    let sources = "SELECT connector, status, rows FROM headwater.sources";
    program.wait_rows(sources, &[vec![json!("git"), json!("running"), json!(3)]]);
    let (_, Json::String(metrics)) = program.get("/metrics") else {
        panic!("metrics are text")
    };
    for line in [
        "headwater_git_commits_total{source=\"manual\"} 1",
        "headwater_git_lag_commits{source=\"manual\"} 0",
    ] {
        assert!(metrics.contains(line), "no line {line:?} in\n{metrics}");
    }
}

#[test]
fn what_cannot_be_read_is_said_in_the_statement_or_by_readiness() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().to_str().expect("UTF-8");
    let program = Program::start("");
    let create = |repository: &str, more: &str| {
        let sql = format!(
            "CREATE SOURCE manual FROM GIT (REPOSITORY '{repository}', BRANCH 'main'{more})"
        );
        program.post("/v1/sql", &json!({"sql": sql}))
    };
    let (status, problem) = create("https://me:secret@host/r.git", "");
    assert_eq!(status, 422, "{problem}");
    assert_eq!(
        problem["detail"],
        "git 'https://***@host/r.git': REPOSITORY has a password in it, which SHOW CREATE would \
         show; name an environment variable with TOKEN ENV"
    );
    let (status, reply) = create(empty, ", INTERVAL '50 milliseconds'");
    assert_eq!(status, 200, "{reply}");
    let failed = [vec![json!("failed")]];
    program.wait_rows("SELECT status FROM headwater.sources", &failed);
    let (status, ready) = program.get("/ready");
    assert_eq!(status, 503);
    let reasons = ready.to_string();
    assert!(reasons.contains("is not a git repository"), "{reasons}");
}

#[test]
fn the_statement_and_the_connector_agree_on_the_columns() {
    let sql = "CREATE SOURCE manual FROM GIT (REPOSITORY '/r', BRANCH 'main')";
    let planned = queries::sql::plan_text(sql, &queries::sql::EmptyCatalog).remove(0);
    let Ok(queries::sql::Planned::Create(create)) = planned else {
        panic!("a good statement")
    };
    let queries::definition::Definition::Source(source) = create.definition else {
        panic!("a source")
    };
    assert_eq!(source.schema, connectors::git::schema());
}
