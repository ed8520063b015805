//! Statements against a running engine: reconciling a file, declaring, dropping, showing, asking.

use serde_json::{Value as Json, json};

use crate::rig::{Reconciled, Rig, eventually, shown, together};

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT, lang TEXT, stars BIGINT);
CREATE VIEW english AS SELECT id, body, stars FROM docs WHERE lang = 'en';
CREATE MODEL hashed FROM 'hashed';
CREATE INDEX found ON docs USING HYBRID (body) EMBED WITH hashed INCLUDE (lang, stars)
    WITH (RETAIN = '1 hour');
CREATE CACHE answers ON found WITH (K = 3);
";

fn names(rig: &Rig) -> Vec<String> {
    let rows = rig.rows("SHOW ALL");
    let mut names: Vec<String> = rows
        .iter()
        .filter_map(|row| Some(row[0].as_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

fn fill(rig: &Rig) {
    for (n, (key, lang)) in [("a", "en"), ("b", "de"), ("c", "en"), ("d", "fr")]
        .into_iter()
        .enumerate()
    {
        let value = json!({"body": format!("shared words and own{key}"), "lang": lang, "stars": n});
        rig.upsert("docs", key, &value);
    }
}

fn done(created: &[&str], dropped: &[&str], warnings: &[&str]) -> Reconciled {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Reconciled {
        created: owned(created),
        dropped: owned(dropped),
        warnings: owned(warnings),
    }
}

#[test]
fn a_file_is_reconciled_with_what_is_declared() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    fill(&rig);
    // Equal, also when written otherwise: nothing happens.
    assert_eq!(
        rig.reconcile(PIPELINE, false, false),
        Ok(Reconciled::default())
    );
    let otherwise = PIPELINE.replace("WHERE lang = 'en'", "where LANG='en'");
    assert_eq!(
        rig.reconcile(&otherwise, true, true),
        Ok(Reconciled::default())
    );
    // Changed: the difference, and nothing happens.
    let changed = PIPELINE.replace("lang = 'en'", "lang = 'de'");
    let problems = rig.reconcile(&changed, false, false).expect_err("changed");
    assert_eq!(problems.len(), 1);
    assert_eq!(
        shown(&problems[0]),
        "409 definition-changed: view \"english\" is not what the file says; expected: stored: … \
         'en'; hint: in the file: … 'de'; --replace makes it again"
    );
    assert_eq!(problems[0].position.map(|at| at.line), Some(3));
    assert_eq!(
        rig.rows("SELECT id FROM english ORDER BY id"),
        [["a"], ["c"]]
    );
    // Replaced: the view is made again, over the rows that are there.
    assert_eq!(
        rig.reconcile(&changed, true, false),
        Ok(done(&["english"], &["english"], &[]))
    );
    assert_eq!(rig.rows("SELECT id FROM english"), [["b"]]);
    // Absent: kept with a warning, or pruned with what reads it.
    let short = PIPELINE.split("CREATE MODEL").next().expect("a first part");
    let short = short.replace("lang = 'en'", "lang = 'de'");
    let kept = rig.reconcile(&short, false, false).expect("only a warning");
    let mut warnings = kept.warnings.clone();
    warnings.sort();
    assert_eq!(
        warnings,
        [
            "cache \"answers\" is not in the file and is kept; --prune drops it",
            "index \"found\" is not in the file and is kept; --prune drops it",
            "model \"hashed\" is not in the file and is kept; --prune drops it",
        ]
    );
    assert_eq!(names(&rig).len(), 5);
    let pruned = rig.reconcile(&short, false, true).expect("pruned");
    assert_eq!(pruned, done(&[], &["answers", "found", "hashed"], &[]));
    assert_eq!(names(&rig), ["docs", "english"]);
    // And back: the index is filled from the rows that were there all along.
    let back = rig
        .reconcile(&changed, false, false)
        .expect("declared again");
    assert_eq!(back, done(&["hashed", "found", "answers"], &[], &[]));
    eventually("filled", || rig.find("found", "shared").len() == 4);
    rig.wait_ready();
    // A wrong file: every mistake at once, and nothing happens.
    let wrong = "CREATE VIEW v AS SELECT nothing FROM docs;\nSELECT 1;\nCREATE CACHE c ON lost;";
    let problems = rig
        .reconcile(wrong, true, true)
        .expect_err("three mistakes");
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert_eq!(names(&rig).len(), 5);
}

#[test]
fn a_replaced_source_is_made_again_with_its_readers() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    fill(&rig);
    let changed = PIPELINE.replace("stars BIGINT)", "stars BIGINT, note TEXT)");
    let replaced = rig.reconcile(&changed, true, false).expect("replaced");
    assert_eq!(replaced.created, ["docs", "english", "found", "answers"]);
    assert!(
        rig.rows("SELECT id FROM docs").is_empty(),
        "a new source is empty"
    );
    assert!(rig.find("found", "shared").is_empty());
    rig.upsert(
        "docs",
        "n",
        &json!({"body": "a note", "lang": "en", "note": "x"}),
    );
    assert_eq!(rig.rows("SELECT id FROM english"), [["n"]]);
    assert_eq!(rig.find("found", "note"), ["n"]);
}

#[test]
fn objects_are_declared_replaced_and_dropped() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    fill(&rig);
    let view = "VIEW french AS SELECT id, body FROM docs WHERE lang = 'fr'";
    let created = rig.sql(&format!("CREATE {view}")).expect("new");
    assert_eq!((&*created.tag, created.notices.len()), ("CREATE VIEW", 0));
    let again = rig.sql(&format!("CREATE {view}")).expect_err("it exists");
    assert_eq!(
        (again.status, &*again.code),
        (409, "already-exists"),
        "{}",
        shown(&again)
    );
    let kept = format!("CREATE {}", view.replace("VIEW", "VIEW IF NOT EXISTS"));
    let kept = rig.sql(&kept).expect("kept");
    assert_eq!(kept.notices, ["view \"french\" already exists, skipping"]);
    let replaced = "CREATE OR REPLACE VIEW french AS SELECT id, body FROM docs WHERE lang = 'de'";
    assert_eq!(rig.rows("SELECT id FROM french"), [["d"]]);
    rig.sql(replaced).expect("replaced");
    assert_eq!(rig.rows("SELECT id FROM french"), [["b"]]);
    // What others read is not replaced or dropped under them.
    let text = "CREATE OR REPLACE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY)";
    let refused = rig.sql(text).expect_err("it has readers");
    assert_eq!(
        (refused.status, &*refused.code),
        (409, "has-dependents"),
        "{}",
        shown(&refused)
    );
    let refused = rig.sql("DROP INDEX found").expect_err("the cache reads it");
    assert_eq!(
        shown(&refused),
        "409 has-dependents: \"found\" cannot be dropped: \"answers\" reads it; hint: add \
         CASCADE to drop them too"
    );
    rig.sql("DROP INDEX found CASCADE")
        .expect("dropped with the cache");
    assert_eq!(names(&rig), ["docs", "english", "french", "hashed"]);
    let gone = rig
        .sql("DROP INDEX IF EXISTS found")
        .expect("nothing to do");
    assert_eq!(gone.notices, ["index \"found\" does not exist, skipping"]);
    let wrong = rig.sql("DROP VIEW docs").expect_err("a source");
    assert_eq!(
        shown(&wrong),
        "422 invalid-request: \"docs\" is a source, not a view; hint: write DROP SOURCE docs"
    );
    // What remains goes on.
    rig.upsert("docs", "e", &json!({"body": "more", "lang": "de"}));
    assert_eq!(
        rig.rows("SELECT id FROM french ORDER BY id"),
        [["b"], ["e"]]
    );
    rig.sql("DROP SOURCE docs CASCADE")
        .expect("dropped with the views");
    assert_eq!(names(&rig), ["hashed"]);
}

#[test]
fn objects_show_and_describe_themselves() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    fill(&rig);
    rig.wait_ready();
    let only = |text: &str| -> Vec<Json> {
        let rows = rig.rows(text);
        rows.into_iter().map(|mut row| row.swap_remove(0)).collect()
    };
    assert_eq!(only("SHOW SOURCES"), ["docs"]);
    assert_eq!(only("SHOW MODELS"), ["hashed"]);
    assert_eq!(only("SHOW VIEWS"), ["english"]);
    assert_eq!(only("SHOW INDEXES"), ["found"]);
    assert_eq!(only("SHOW CACHES"), ["answers"]);
    let mut progress = only("SHOW PROGRESS");
    progress.sort_by_key(Json::to_string);
    assert_eq!(progress, ["answers", "docs", "english", "found"]);
    let create = rig.rows("SHOW CREATE VIEW english");
    assert_eq!(
        create,
        [[
            "english",
            "CREATE VIEW english AS SELECT id, body, stars FROM docs WHERE lang = 'en'"
        ]]
    );
    assert_eq!(
        rig.rows("DESCRIBE docs"),
        [
            [json!("id"), json!("text"), json!(false), json!(true)],
            [json!("body"), json!("text"), json!(true), json!(false)],
            [json!("lang"), json!("text"), json!(true), json!(false)],
            [json!("stars"), json!("bigint"), json!(true), json!(false)],
        ]
    );
    let sizes = rig.rows("SELECT documents, chunks, pending FROM headwater.indexes");
    assert_eq!(sizes, [[4, 4, 0]]);
    let unknown = rig.sql("DESCRIBE doks").expect_err("a typo");
    assert_eq!(
        shown(&unknown),
        "404 not-found: there is no \"doks\"; expected: an object's name; hint: did you mean docs?"
    );
}

#[test]
fn rows_are_selected() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    fill(&rig);
    assert_eq!(
        rig.rows(
            "SELECT id, stars * 2 AS twice FROM docs WHERE lang <> 'fr' ORDER BY stars DESC LIMIT 2"
        ),
        [[json!("c"), json!(4)], [json!("b"), json!(2)]]
    );
    assert_eq!(
        rig.rows("SELECT upper(lang) FROM docs ORDER BY id OFFSET 3"),
        [["FR"]]
    );
    assert_eq!(rig.rows("SELECT 1 + 1 AS two"), [[2]]);
    // A row that is looked up by its key is the one that a scan finds.
    for relation in ["docs", "english"] {
        for id in ["a", "b", "c", "d", "nobody", "\"quoted\""] {
            for more in ["", " AND length(body) > 3", " AND id = 'a'"] {
                let rows = |key: &str| {
                    rig.rows(&format!(
                        "SELECT id, body FROM {relation} WHERE {key} = '{id}'{more}"
                    ))
                };
                assert_eq!(rows("id"), rows("id || ''"), "{relation} {id} {more}");
            }
        }
    }
    // Time travel: before and after an edit.
    let before = rig
        .sql("SELECT body FROM docs WHERE id = 'a'")
        .expect("a row");
    rig.upsert("docs", "a", &json!({"body": "edited", "lang": "en"}));
    let now = rig.rows("SELECT body FROM docs WHERE id = 'a'");
    assert_eq!(now, [["edited"]]);
    let at = before.as_of.expect("a read has its time");
    let then = rig.rows(&format!("SELECT body FROM docs WHERE id = 'a' AS OF {at}"));
    assert_eq!(then, before.rows);
    let refused = rig
        .sql("SELECT body FROM docs AS OF 5")
        .expect_err("too early");
    assert_eq!(refused.code, "as-of-out-of-range");
    // A division by zero in a question is that question's error.
    let refused = rig
        .sql("SELECT 1 / (stars - stars) FROM docs")
        .expect_err("nothing is divided by zero");
    assert_eq!(
        (refused.status, &*refused.code),
        (422, "division-by-zero"),
        "{}",
        shown(&refused)
    );
}

#[test]
fn a_search_filters_before_k() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    fill(&rig);
    let search = |rest: &str| {
        rig.rows(&format!(
            "SELECT document FROM search(found, 'shared words', k => 1) {rest}"
        ))
    };
    // Every language is found though only one result is asked for: the filter comes first.
    assert_eq!(search("WHERE lang = 'de'"), [["b"]]);
    assert_eq!(search("WHERE lang = 'fr' AND stars = 3"), [["d"]]);
    assert!(search("WHERE lang = 'it'").is_empty());
    // What is not included filters after k.
    assert!(search("WHERE score > 2").is_empty());
    let plan = rig.rows(
        "EXPLAIN SELECT document FROM search(found, 'shared words', k => 1) \
         WHERE lang = 'de' AND score > 0.1",
    );
    let plan: Vec<&str> = plan.iter().filter_map(|row| row[0].as_str()).collect();
    assert_eq!(
        plan,
        [
            "project document",
            "  filter after k: score > 0.1",
            "    search found k=1 question='shared words'",
            "      filter before k: lang = 'de'",
        ]
    );
}

#[test]
fn what_an_expression_cannot_compute_is_told_in_exact_words() {
    let _room = together();
    let rig =
        Rig::start("CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT, n BIGINT);");
    let cases = [
        (
            "casts",
            "CAST(body AS BIGINT)",
            "invalid-cast",
            "cast error: Cannot cast string 'word' to value of Int64 type",
        ),
        (
            "overflows",
            "abs(n)",
            "overflow",
            "compute error: Int64Array overflow on abs(-9223372036854775808)",
        ),
        (
            "wraps",
            "n * 3",
            "overflow",
            "arithmetic overflow: Overflow happened on: -9223372036854775808 * 3",
        ),
        (
            "fails",
            "substr(body, 1, -5)",
            "expression-error",
            "negative count not allowed: -5",
        ),
    ];
    for (view, expression, ..) in cases {
        rig.sql(&format!(
            "CREATE VIEW {view} AS SELECT id, {expression} AS x FROM docs"
        ))
        .unwrap_or_else(|problem| panic!("{view}: {}", problem.detail));
    }
    rig.upsert("docs", "a", &json!({"body": "word", "n": i64::MIN}));
    for (view, _, code, detail) in cases {
        eventually(view, || rig.letters(view).len() == 1);
        let letter = rig.letters(view).swap_remove(0).letter;
        let told = (&*letter.error.code, &*letter.error.detail);
        assert_eq!(told, (code, detail));
    }
}

#[test]
fn a_views_bad_row_is_a_dead_letter_until_the_row_is_good() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    rig.sql("CREATE VIEW share AS SELECT id, 60 / stars AS share FROM docs")
        .expect("a view");
    rig.upsert("docs", "good", &json!({"body": "x", "stars": 3}));
    rig.upsert("docs", "bad", &json!({"body": "y", "stars": 0}));
    eventually("the letter", || rig.letters("share").len() == 1);
    let letter = rig.letters("share").swap_remove(0).letter;
    assert_eq!(
        (
            &*letter.position,
            &*letter.error.code,
            &*letter.error.detail
        ),
        ("key \"bad\"", "division-by-zero", "division by zero")
    );
    assert_eq!(
        letter.error.hint.as_deref(),
        Some("guard it: CASE WHEN b <> 0 THEN a / b END, or a / nullif(b, 0)")
    );
    assert_eq!(
        rig.rows("SELECT id, share FROM share"),
        [[json!("good"), json!(20)]]
    );
    // Bad in another version: still one letter.
    rig.upsert("docs", "bad", &json!({"body": "y again", "stars": 0}));
    eventually("the other version's letter", || {
        rig.letters("share").len() == 1
    });
    rig.upsert("docs", "bad", &json!({"body": "y", "stars": 6}));
    eventually("the letter's end", || rig.letters("share").is_empty());
    assert_eq!(
        rig.rows("SELECT id, share FROM share ORDER BY id"),
        [[json!("bad"), json!(10)], [json!("good"), json!(20)]]
    );
    // Deleted while it is bad: no letter stays behind.
    rig.upsert("docs", "bad", &json!({"body": "y", "stars": 0}));
    eventually("the letter", || rig.letters("share").len() == 1);
    rig.delete("docs", "bad");
    eventually("the letter's end", || rig.letters("share").is_empty());
}
