//! Bad input of every kind: each has its exact message, and the pipeline goes on.

use std::path::Path;
use std::time::Duration;

use engine::contract::Store;
use engine::limits;
use engine::testing::Faults;
use queries::api::{AsOf, Backend, LookupReply, PushRequest, SearchRequest, StoreRequest};
use queries::problem::Problem;
use serde_json::json;

use crate::rig::{Rig, eventually, request, shown, together, upsert};

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT, stars BIGINT);
CREATE MODEL hashed FROM 'hashed';
CREATE INDEX found ON docs USING HYBRID (body) EMBED WITH hashed;
";

/// A good push becomes visible: whatever came before did no harm.
fn goes_on(rig: &Rig, word: &str) {
    let key = format!("good-{word}");
    rig.upsert("docs", &key, &json!({"body": format!("the word {word}")}));
    assert_eq!(rig.find("found", word), [key]);
}

#[test]
fn bad_lines_are_refused_one_by_one_and_listed() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    let lines: [(&[u8], &str); 11] = [
        (
            br#"{"op":"upsert","key":"b","value":{"body":"cut"#,
            "422 invalid-json: the line is not valid JSON at column 45: EOF while parsing a \
             string; expected: UTF-8 JSON",
        ),
        (
            b"not JSON at all",
            "422 invalid-json: the line is not valid JSON at column 2: expected ident; \
             expected: UTF-8 JSON",
        ),
        (
            br#"["op"]"#,
            r#"422 wrong-type: the line is not a JSON object; expected: {"op":"upsert","key":…,"value":{…}}"#,
        ),
        (
            br#"{"op":"upsert","key":"b","value":{"stars":"many"}}"#,
            r#"422 wrong-type: column "stars": expected bigint, found "many"; expected: bigint"#,
        ),
        (
            br#"{"op":"upsert","key":"c","value":{"body":7}}"#,
            r#"422 wrong-type: column "body": expected text, found 7; expected: text"#,
        ),
        (
            br#"{"op":"upsert","key":"b","value":{"body":"x","colour":"red"}}"#,
            r#"422 unknown-field: "value" has an unknown field "colour"; expected: id, body, stars"#,
        ),
        (
            br#"{"op":"upsert","key":"c","value":{"body":"x"},"when":1}"#,
            r#"422 unknown-field: unknown field "when"; expected: op, key, value, version"#,
        ),
        (
            br#"{"op":"insert","key":"b","value":{"body":"x"}}"#,
            r#"422 bad-op: "op" is "insert"; expected: "upsert" or "delete""#,
        ),
        (
            br#"{"op":"upsert","value":{"body":"x"}}"#,
            r#"422 missing-key: the line has no "key"; expected: the bare value of "id""#,
        ),
        (
            br#"{"op":"upsert","key":"b"}"#,
            r#"422 missing-value: an upsert has no "value"; expected: an object with the columns"#,
        ),
        (
            b"{\"op\":\"upsert\",\"key\":\"\xFF\"}",
            "422 invalid-utf8: the line is not UTF-8 at byte 22; expected: UTF-8",
        ),
    ];
    let good = upsert("fine", &json!({"body": "among thieves"}));
    let mut sent: Vec<&[u8]> = lines.iter().map(|(line, _)| *line).collect();
    sent.push(good.as_bytes());
    let reply = rig.push_raw("docs", &sent).expect("the good line is taken");
    assert_eq!((reply.accepted, reply.rejected_total), (1, 11));
    let found: Vec<String> = reply.rejected.iter().map(|r| shown(&r.error)).collect();
    let expected: Vec<&str> = lines.iter().map(|(_, message)| *message).collect();
    assert_eq!(found, expected);
    assert_eq!(rig.find("found", "thieves"), ["fine"]);
    // The same are dead letters, with their bytes and their place.
    let letters = rig.letters("docs");
    assert_eq!(letters.len(), 11);
    for (letter, (number, (line, _))) in letters.iter().zip((1..).zip(&lines)) {
        assert_eq!(letter.letter.position, format!("request r_1 line {number}"));
        assert_eq!(letter.letter.payload, *line);
    }
    let listed = rig.rows("SELECT code FROM headwater.dead_letters WHERE source = 'docs'");
    assert_eq!(listed.len(), 11);
    // All or nothing, when that is asked for.
    let atomic = PushRequest {
        atomic: true,
        ..request(
            "docs",
            &[upsert("no", &json!({"body": "x"})).as_bytes(), b"?"],
        )
    };
    let problem = rig.push_request(atomic).expect_err("one line is bad");
    assert_eq!(
        shown(&problem),
        "422 rejected-lines: nothing was taken: 1 lines are bad"
    );
    assert!(rig.rows("SELECT id FROM docs WHERE id = 'no'").is_empty());
    goes_on(&rig, "lines");
}

#[test]
fn what_is_too_large_names_its_limit() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    let text = upsert(
        "t",
        &json!({"body": "a".repeat(limits::TEXT_BYTES_MAX + 1)}),
    );
    let line = format!("{}{{}}", " ".repeat(limits::LINE_BYTES_MAX - 1));
    let key = upsert(&"k".repeat(limits::KEY_BYTES_MAX), &json!({"body": "x"}));
    let lines: Vec<&[u8]> = [&text, &line, &key].map(|line| line.as_bytes()).to_vec();
    let reply = rig.push_raw("docs", &lines).expect("taken apart");
    let found: Vec<String> = reply.rejected.iter().map(|r| shown(&r.error)).collect();
    let expected = [
        "422 text-too-large: column \"body\": the text has 8388609 bytes; the limit \
         TEXT_BYTES_MAX is 8388608; hint: cut the text into several documents",
        "422 line-too-large: the line has 16777217 bytes; the limit LINE_BYTES_MAX is 16777216",
        "422 key-too-large: the key has 4098 bytes; the limit KEY_BYTES_MAX is 4096",
    ];
    goes_on(&rig, "large");
    assert_eq!(rig.letters("docs").len(), 3);
    let most = rig
        .letters("docs")
        .iter()
        .map(|l| l.letter.payload.len())
        .max();
    assert!(
        most <= Some(limits::DEAD_LETTER_PAYLOAD_BYTES_MAX),
        "{most:?}"
    );
    assert_eq!(found, expected);
}

#[test]
fn wrong_targets_of_a_push_are_named() {
    let _room = together();
    let rig = Rig::start(&format!(
        "{PIPELINE} CREATE SOURCE made FROM GENERATE (ROWS 1);"
    ));
    let good = upsert("a", &json!({"body": "x"}));
    let refused = |source: &str| {
        let pushed = rig.push_raw(source, &[good.as_bytes()]);
        shown(&pushed.expect_err("not a push source"))
    };
    assert_eq!(
        refused("nowhere"),
        "404 not-found: there is no source \"nowhere\"; hint: CREATE SOURCE … FROM PUSH (…) \
         declares one"
    );
    assert_eq!(
        refused("found"),
        "404 not-found: \"found\" is an index, not a source"
    );
    assert_eq!(
        refused("made"),
        "422 invalid-request: source \"made\" is not a push source; expected: a source declared \
         FROM PUSH"
    );
    goes_on(&rig, "target");
}

#[test]
fn wrong_questions_are_refused_with_what_would_be_right() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    rig.upsert("docs", "a", &json!({"body": "an answer"}));
    let ask = |change: &dyn Fn(&mut SearchRequest)| -> Problem {
        let mut request = SearchRequest {
            index: "found".to_owned(),
            query: Some("answer".to_owned()),
            ..SearchRequest::default()
        };
        change(&mut request);
        rig.search(request).expect_err("a wrong question")
    };
    let wrong = |change: &dyn Fn(&mut SearchRequest)| shown(&ask(change));
    assert_eq!(
        wrong(&|r| r.index = "lost".to_owned()),
        "404 not-found: there is no index \"lost\"; hint: SHOW INDEXES lists them"
    );
    assert_eq!(
        wrong(&|r| r.k = Some(0)),
        "422 invalid-request: k is 0: a search returns at least one result; \
         expected: 1 ≤ k ≤ 1000"
    );
    assert_eq!(
        wrong(&|r| r.k = Some(1_001)),
        "422 invalid-request: k is 1001; the limit K_MAX is 1000; expected: 1 ≤ k ≤ 1000"
    );
    assert_eq!(
        wrong(&|r| r.query = Some("é".repeat(100_000))),
        "413 question-too-long: the question has 100000 characters; the limit \
         QUESTION_CHARS_MAX is 32768"
    );
    assert_eq!(
        wrong(&|r| r.query = Some(" \n".to_owned())),
        "422 invalid-request: the question is blank"
    );
    assert_eq!(
        wrong(&|r| r.query = None),
        "422 invalid-request: there is no question; expected: \"query\": a text, \"vector\": an \
         array of numbers, or both"
    );
    assert_eq!(
        wrong(&|r| r.mode = Some("fuzzy".to_owned())),
        "422 invalid-request: mode \"fuzzy\" is unknown; expected: hybrid, vector or keyword"
    );
    assert_eq!(
        wrong(&|r| r.vector = Some(vec![1.0; 3])),
        "422 invalid-request: the vector has 3 dimensions, index \"found\" has 64"
    );
    assert_eq!(
        wrong(&|r| r.as_of = Some(AsOf::Text("yesterday".to_owned()))),
        "422 invalid-request: as_of: \"yesterday\" is not a time; expected: microseconds since \
         the epoch, or RFC 3339"
    );
    for at in [5, 9_000_000_000_000_000] {
        let problem = ask(&|r| r.as_of = Some(AsOf::Time(at)));
        let range = problem.expected.clone().expect("the readable range");
        assert!(range.contains(" ≤ as_of < "), "{range}");
        assert_eq!(
            shown(&problem),
            format!(
                "422 as-of-out-of-range: as_of {at} is outside the readable range {range}; \
                 expected: {range}; hint: RETAIN of the index decides how far back one can read"
            )
        );
    }
    // The same in SQL, with places.
    let sql = |text: &str| {
        let problem = rig.sql(text).expect_err("a wrong statement");
        let at = problem.position.expect("a place");
        format!("{}:{} {}", at.line, at.column, shown(&problem))
    };
    assert_eq!(
        sql("SELECT text FROM search(lost, 'x')"),
        "1:25 404 not-found: there is no \"lost\"; expected: an index"
    );
    assert_eq!(
        sql("SELECT text FROM search(found, 'x', k => 0)"),
        "1:37 422 invalid-request: k cannot be 0; expected: a whole number from 1 to 1000"
    );
    let long = format!("SELECT text FROM search(found, '{}')", "q".repeat(100_000));
    assert_eq!(
        sql(&long),
        "1:32 413 question-too-long: the question has 100000 characters; the limit \
         QUESTION_CHARS_MAX is 32768"
    );
    goes_on(&rig, "question");
}

/// Writes a file that is not fresh any more when this returns.
fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("writable");
}

#[test]
fn bad_files_are_dead_letters_and_the_others_stay() {
    let _room = together();
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("notes");
    std::fs::create_dir(&root).expect("a folder");
    write(&root.join("fine.md"), b"a fine note");
    write(&root.join("turns.md"), b"good before it turns");
    let rig = Rig::start(&format!(
        "CREATE SOURCE notes FROM FILES (PATH '{}', PATTERN '**/*.md');
         CREATE INDEX read ON notes USING KEYWORD (text);",
        root.display()
    ));
    eventually("the first files", || {
        rig.find("read", "fine turns").len() == 2
    });
    let message = |code: &str| {
        let letters = rig.letters("notes");
        let letter = letters.iter().rev().find(|l| l.letter.error.code == code);
        letter.map(|l| {
            let error = &l.letter.error;
            let hint = error.hint.as_deref().unwrap_or_default();
            format!("{} | {hint}", error.detail)
        })
    };
    let told = |code: &str, expected: &str| {
        eventually(code, || message(code).is_some());
        assert_eq!(message(code).as_deref(), Some(expected));
    };
    // Invalid UTF-8: what was good there is no longer what the file says.
    write(&root.join("turns.md"), b"good \xF0\x28");
    told(
        "invalid-utf8",
        "file 'turns.md' is not UTF-8 at byte 5 | convert it, or leave it out by PATTERN",
    );
    eventually("the row's end", || {
        rig.find("read", "turns good").is_empty()
    });
    write(&root.join("turns.md"), b"good again");
    eventually("good again", || rig.find("read", "good") == ["turns.md"]);
    // Too large.
    write(
        &root.join("huge.md"),
        &vec![b'x'; limits::TEXT_BYTES_MAX + 1],
    );
    told(
        "text-too-large",
        "file 'huge.md' has 8388609 bytes; the limit TEXT_BYTES_MAX is 8388608 | split it, or \
         leave it out by PATTERN",
    );
    // The folder vanishes: nothing is deleted. It comes back, changed.
    let away = folder.path().join("away");
    std::fs::rename(&root, &away).expect("renamed");
    told(
        "path-missing",
        &format!(
            "PATH '{}' cannot be read: it does not exist | its rows stay; they are compared \
             again when it is back",
            root.display()
        ),
    );
    let state = "SELECT status, error FROM headwater.sources WHERE name = 'notes'";
    assert_eq!(
        rig.rows(state),
        [["retrying", "PATH cannot be read: it does not exist"]]
    );
    assert_eq!(rig.find("read", "fine"), ["fine.md"]);
    write(&away.join("new.md"), b"new when the folder returns");
    std::fs::remove_file(away.join("turns.md")).expect("removed");
    std::fs::rename(&away, &root).expect("renamed");
    eventually("the new file", || rig.find("read", "returns") == ["new.md"]);
    eventually("the removed one", || rig.find("read", "good").is_empty());
    assert_eq!(rig.find("read", "fine"), ["fine.md"]);
    assert_eq!(rig.rows(state), [[json!("running"), json!(null)]]);
}

/// The kernel refuses to read a process's memory at address 0 to everybody, root included.
#[test]
#[cfg(target_os = "linux")]
fn an_unreadable_file_is_a_dead_letter_even_for_root() {
    let _room = together();
    let rig = Rig::start(
        "CREATE SOURCE bad FROM FILES (PATH '/proc/self/mem', PATTERN 'mem');
         CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
         CREATE INDEX found ON docs USING KEYWORD (body);",
    );
    eventually("the letter", || !rig.letters("bad").is_empty());
    let letter = rig.letters("bad").swap_remove(0).letter;
    assert_eq!(
        (
            &*letter.position,
            &*letter.error.code,
            &*letter.error.detail
        ),
        (
            "mem",
            "unreadable-file",
            "file 'mem' cannot be read: Input/output error (os error 5)"
        )
    );
    assert_eq!(
        letter.error.hint.as_deref(),
        Some("its last good version stays; reading is tried again")
    );
    // Tried again and again, told once.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(rig.letters("bad").len(), 1);
    goes_on(&rig, "unreadable");
}

#[test]
#[cfg(unix)]
fn a_file_without_permission_keeps_its_last_good_version() {
    use std::os::unix::fs::PermissionsExt;
    let _room = together();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("secret.md");
    write(&path, b"readable once");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).expect("ours");
    if std::fs::read(&path).is_ok() {
        eprintln!("skipped: this user reads everything (root); see the test on /proc/self/mem");
        return;
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("ours");
    let rig = Rig::start(&format!(
        "CREATE SOURCE notes FROM FILES (PATH '{}', PATTERN '*.md');
         CREATE INDEX read ON notes USING KEYWORD (text);",
        folder.path().display()
    ));
    eventually("the file", || rig.find("read", "readable") == ["secret.md"]);
    write(&path, b"changed, and closed");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).expect("ours");
    eventually("the letter", || !rig.letters("notes").is_empty());
    assert_eq!(
        rig.letters("notes")[0].letter.error.detail,
        "file 'secret.md' cannot be read: permission denied"
    );
    assert_eq!(rig.find("read", "readable"), ["secret.md"]);
}

#[test]
fn a_full_disk_refuses_pushes_and_loses_nothing() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    for i in 0..10 {
        rig.upsert(
            "docs",
            &format!("k{i}"),
            &json!({"body": format!("granite {i}")}),
        );
    }
    let names = rig.store.list().expect("a list");
    let sizes = names
        .iter()
        .map(|name| rig.store.size(name).expect("readable"));
    let bytes: u64 = sizes.flatten().sum();
    let capacity_bytes = Some(usize::try_from(bytes).expect("a small store"));
    rig.store.set_faults(Faults {
        capacity_bytes,
        ..Faults::default()
    });
    let big = upsert("refused", &json!({"body": "words ".repeat(2_000)}));
    let problem = rig
        .push_raw("docs", &[big.as_bytes()])
        .expect_err("no room");
    // The push's group may hold an earlier tick with vectors, which are written first.
    let is_written = |name: &&String| name.starts_with("log-") || name.starts_with("vectors-");
    let expected = |name: &String| {
        format!(
            "503 not-durable: the changes are not acknowledged: cannot write {name}: no storage \
             space; hint: free space or repair the data folder's disk; then repeat the request"
        )
    };
    let said = shown(&problem);
    let mut written = names.iter().filter(is_written);
    assert!(written.any(|name| expected(name) == said), "{said}");
    assert_eq!(problem.extra["retry_after_s"], json!(5));
    // What is there can be asked for, and readiness says what is wrong.
    assert_eq!(rig.find("found", "granite").len(), 10);
    let reasons = rig.reasons();
    let expected = |name: &String| {
        format!("the input log cannot be written: cannot write {name}: no storage space")
    };
    let mut written = names.iter().filter(is_written);
    assert!(
        written.any(|name| reasons.contains(&expected(name))),
        "{reasons:?}"
    );
    let refused = rig.push_raw("docs", &[upsert("r2", &json!({"body": "x"})).as_bytes()]);
    assert_eq!(refused.expect_err("still no room").code, "not-durable");
    // Space returns: the request is repeated, and everything acknowledged is there.
    rig.store.set_faults(Faults::default());
    eventually("the log writes again", || {
        rig.push_raw("docs", &[big.as_bytes()]).is_ok()
    });
    goes_on(&rig, "space");
    assert_eq!(rig.find("found", "granite").len(), 10);
    rig.wait_ready();
    // A machine that loses its power now has them, too.
    let after = Rig::over(rig.store.after_crash(7));
    after.wait_ready();
    assert_eq!(
        after.rows("SELECT id FROM docs WHERE id LIKE 'k%'").len(),
        10
    );
    let refused = after.rows("SELECT id FROM docs WHERE id = 'refused'");
    assert_eq!(refused.len(), 1, "repeated and acknowledged: there once");
}

/// An answer may cite only what its lease saw: the reply says which citation is foreign, and the lease
/// is still good for a right one.
#[test]
fn a_citation_that_was_not_retrieved_is_refused() {
    let _room = together();
    let rig = Rig::start(
        "CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
         CREATE MODEL hashed FROM 'hashed';
         CREATE INDEX found ON docs USING HYBRID (body) EMBED WITH hashed;
         CREATE CACHE answers ON found WITH (K = 1, RETRIEVAL = 'exact');",
    );
    rig.upsert("docs", "a", &json!({"body": "the red button resets"}));
    rig.upsert("docs", "b", &json!({"body": "something else altogether"}));
    let chunks = |question: &str| match rig.lookup("answers", question) {
        Ok(LookupReply::Miss { lease, hits, .. }) => (lease, hits[0].chunk.clone()),
        other => panic!("{other:?}"),
    };
    let (_, foreign) = chunks("something else altogether");
    let (lease, own) = chunks("the red button");
    assert_ne!(own, foreign);
    let store = |citation: &str| {
        let request = StoreRequest {
            lease: lease.clone(),
            answer: json!("press it"),
            citations: vec![citation.to_owned()],
        };
        rig.runtime
            .block_on(rig.service.store("answers".to_owned(), request))
    };
    let refused = store(&foreign).expect_err("not retrieved");
    assert_eq!(
        shown(&refused),
        format!(
            "422 invalid-request: citation \"{foreign}\" is not among the lease's hits; expected: \
             chunk ids out of the lease's hits; hint: the lease is still open: store again with its \
             own chunks"
        )
    );
    store(&own).expect("retrieved");
    assert!(rig.is_cached("answers", "the red button"));
}

#[test]
fn what_a_source_of_kafka_cannot_have_is_refused_when_it_is_created() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    rig.sql("CREATE SECRET nowhere AS ENV 'HEADWATER_TEST_IS_NOT_SET'")
        .expect("a place only");
    let source = |more: &str| {
        let sql = format!(
            "CREATE SOURCE k (id TEXT PRIMARY KEY) FROM KAFKA (BROKERS 'localhost:1', TOPIC 't'{more}) \
             KEY FORMAT TEXT ENVELOPE UPSERT"
        );
        rig.sql(&sql).map(|_| ()).map_err(|error| shown(&error))
    };
    let login = ", SECURITY PROTOCOL 'sasl_ssl', SASL MECHANISM 'PLAIN', SASL USERNAME 'u', \
                 SASL PASSWORD SECRET nowhere";
    let unset =
        "secret: the environment variable HEADWATER_TEST_IS_NOT_SET is not set in the server";
    let missing = ", SECURITY PROTOCOL 'ssl', SSL CA LOCATION '/no/such/authority.pem'";
    // A program without TLS says how to get one with it; one with it looks at the files.
    let refused = match connectors::kafka::HAS_TLS {
        true => "cannot read /no/such/authority.pem: No such file or directory (os error 2)",
        false => {
            "SECURITY PROTOCOL 'ssl': this program was built without TLS for Kafka; build it with the \
             feature kafka-tls: cargo build --release --features kafka-tls"
        }
    };
    for (more, told) in [(login, unset), (missing, refused)] {
        let problem = source(more).expect_err("refused");
        assert_eq!(problem, format!("422 invalid-request: {told}"));
    }
    goes_on(&rig, "plaintext");
}
