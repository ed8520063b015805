//! Statements against the running engine.

use serde_json::json;

use super::rig::{PIPELINE, Rig, eventually};

#[test]
fn a_pipeline_file_is_reconciled() {
    let rig = Rig::start();
    let run = |text: &str, replace, prune| {
        rig.runtime
            .block_on(rig.service.reconcile(text, replace, prune))
    };
    let same = run(PIPELINE, false, false).expect("equal");
    assert_eq!((same.created.len(), same.dropped.len()), (0, 0));
    let changed = PIPELINE.replace("K = 3", "K = 4");
    let refused = run(&changed, false, false).expect_err("changed");
    assert_eq!(
        (refused[0].status, &*refused[0].code),
        (409, "definition-changed")
    );
    let replaced = run(&changed, true, false).expect("replaced");
    assert_eq!(
        (replaced.dropped, replaced.created),
        (vec!["answers".to_owned()], vec!["answers".to_owned()])
    );
    let less = changed
        .lines()
        .filter(|line| !line.contains("CACHE"))
        .collect::<Vec<_>>()
        .join("\n");
    let kept = run(&less, false, false).expect("kept");
    assert_eq!(kept.warnings.len(), 1);
    let pruned = run(&less, false, true).expect("pruned");
    assert_eq!(pruned.dropped, ["answers"]);
    rig.goes_on("after");
}

#[test]
fn select_filters_projects_limits_and_travels_in_time() {
    let rig = Rig::start();
    for n in 0..6 {
        let line =
            format!(r#"{{"op":"upsert","key":"k{n}","value":{{"body":"text {n}","n":{n}}}}}"#);
        rig.push(&[&line], true).expect("taken");
    }
    let reply = rig.sql("SELECT id, n * 2 AS twice FROM docs WHERE n >= 2 ORDER BY n DESC LIMIT 2");
    assert_eq!(
        reply[0].rows,
        [[json!("k5"), json!(10)], [json!("k4"), json!(8)]]
    );
    let at = reply[0].as_of.expect("a read");
    rig.push(&[r#"{"op":"delete","key":"k5"}"#], true)
        .expect("taken");
    assert_eq!(rig.rows("SELECT id FROM docs").len(), 5);
    assert_eq!(
        rig.rows(&format!("SELECT id FROM docs AS OF {at}")).len(),
        6
    );
    let hits = rig.rows("SELECT document, n FROM search(found, 'text', k => 2) WHERE n < 2");
    assert_eq!(hits.len(), 2, "the filter is applied before k");
    assert!(
        hits.iter()
            .all(|row| row[1].as_i64().is_some_and(|n| n < 2))
    );
    assert_eq!(rig.rows("SELECT 1 + 1 AS two"), [[2]]);
}

#[test]
fn a_bad_row_of_a_view_is_a_dead_letter_until_it_is_good() {
    let rig = Rig::start();
    rig.sql("CREATE VIEW inverse AS SELECT id, 100 / n AS inverse FROM docs");
    let push = |n: i64| {
        let line = format!(r#"{{"op":"upsert","key":"a","value":{{"body":"x","n":{n}}}}}"#);
        rig.push(&[&line], true).expect("taken");
    };
    push(4);
    assert_eq!(rig.rows("SELECT inverse FROM inverse"), [[25]]);
    push(0);
    eventually("the bad row is a dead letter", || {
        rig.letters("inverse").len() == 1
    });
    assert!(rig.rows("SELECT inverse FROM inverse").is_empty());
    push(5);
    eventually("the good row takes it back", || {
        rig.letters("inverse").is_empty()
    });
    assert_eq!(rig.rows("SELECT inverse FROM inverse"), [[20]]);
}

#[test]
fn declarations_say_what_stands_in_their_way() {
    let rig = Rig::start();
    let exists = rig.sql_problem("CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY)");
    assert_eq!((exists.status, &*exists.code), (409, "already-exists"));
    let notices = rig.sql("CREATE SOURCE IF NOT EXISTS docs FROM PUSH (id TEXT PRIMARY KEY)");
    assert_eq!(notices[0].notices.len(), 1);
    let used = rig.sql_problem("DROP SOURCE docs");
    assert_eq!(used.status, 409, "{used}");
    rig.sql("DROP SOURCE docs CASCADE");
    assert!(rig.rows("SHOW INDEXES").is_empty());
    assert!(rig.rows("SHOW SOURCES").is_empty());
    rig.declare(PIPELINE);
    rig.goes_on("after");
}
