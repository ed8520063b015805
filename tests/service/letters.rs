//! Dead letters: counted, bounded, resolved by good records, replayed, the same after a restart.

use std::collections::BTreeMap;
use std::path::Path;

use engine::limits;
use queries::api::{DeadLetterReply, ReplayIds, ReplayReply, ReplayRequest};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use crate::rig::{Rig, eventually, request, shown, together};

const NUMBERS: &str = "CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, n BIGINT);";
const WORDS: &str = "CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, n TEXT);";

fn line(key: &str, n: &Json) -> String {
    json!({"op": "upsert", "key": key, "value": {"n": n}}).to_string()
}

fn push(rig: &Rig, lines: &[String]) {
    let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
    rig.push_raw("docs", &lines).expect("taken apart");
}

fn ids(letters: &[DeadLetterReply]) -> Vec<String> {
    letters.iter().map(|letter| letter.id.clone()).collect()
}

fn replay_ids(rig: &Rig, ids: &[String]) -> ReplayReply {
    let request = ReplayRequest {
        ids: Some(ReplayIds::Some(ids.to_vec())),
        ..ReplayRequest::default()
    };
    rig.replay(request).expect("ids of letters")
}

/// (replayed, still bad, refused, gone)
fn counts(reply: &ReplayReply) -> (u64, u64, u64, u64) {
    let (refused, gone) = (reply.refused_total, reply.gone);
    (reply.replayed, reply.still_bad, refused, gone)
}

#[test]
fn what_is_bad_again_is_one_letter_with_a_count() {
    let _room = together();
    let rig = Rig::start(NUMBERS);
    for word in ["one", "two", "three"] {
        push(&rig, &[line("a", &json!(word))]);
    }
    push(&rig, &["{".to_owned()]);
    push(&rig, &["{".to_owned(), line("b", &json!("x"))]);
    // Requests of the rig have one id: the same place, where there is no key.
    let letters = rig.letters("docs");
    let shape = |letter: &DeadLetterReply| {
        let key = letter.letter.key.as_ref().map(ToString::to_string);
        (key, letter.letter.error.code.clone(), letter.count)
    };
    let found: Vec<_> = letters.iter().map(shape).collect();
    let expected = [
        (Some("\"a\"".to_owned()), "wrong-type".to_owned(), 3),
        (None, "invalid-json".to_owned(), 2),
        (Some("\"b\"".to_owned()), "wrong-type".to_owned(), 1),
    ];
    assert_eq!(found, expected);
    let newest = String::from_utf8(letters[0].letter.payload.clone()).expect("text");
    assert!(newest.contains("three"), "{newest}");
    assert!(letters[0].first_seen < letters[0].last_seen);
    let rows = rig.rows(
        "SELECT id, source, position, code, column, detail, key, count, bytes, payload, first_seen, \
         last_seen, at FROM headwater.dead_letters WHERE count = 3",
    );
    let [row] = &rows[..] else { panic!("{rows:?}") };
    let expected = [
        json!(letters[0].id),
        json!("docs"),
        json!("request r_1 line 1"),
        json!("wrong-type"),
        json!("n"),
        json!("column \"n\": expected bigint, found \"three\""),
        json!("a"),
        json!(3),
        json!(newest.len()),
        json!(newest),
    ];
    assert_eq!(row[..10], expected);
    assert!(
        row[10].as_str() < row[11].as_str() && row[11] == row[12],
        "{row:?}"
    );
    let causes = rig.rows(
        "SELECT code, seen, kept, dropped, resolved FROM headwater.dead_letter_causes ORDER BY code",
    );
    let expected = [
        [
            json!("invalid-json"),
            json!(2),
            json!(1),
            json!(0),
            json!(0),
        ],
        [json!("wrong-type"), json!(4), json!(2), json!(0), json!(0)],
    ];
    assert_eq!(causes, expected);
}

#[test]
fn a_later_good_record_of_the_key_resolves_it() {
    let _room = together();
    let rig = Rig::start(NUMBERS);
    let (bad, good) = (json!("bad"), json!(7));
    push(
        &rig,
        &[
            line("a", &bad),
            line("b", &bad),
            line("c", &bad),
            line("d", &bad),
        ],
    );
    assert_eq!(rig.letters("docs").len(), 4);
    push(&rig, &[line("a", &good)]);
    rig.delete("docs", "b");
    // Within a request the order of the lines counts.
    push(&rig, &[line("c", &bad), line("c", &good)]);
    push(&rig, &[line("d", &good), line("d", &bad)]);
    let left = rig.letters("docs");
    assert_eq!(left.len(), 1, "{left:?}");
    let key = left[0].letter.key.as_ref().map(ToString::to_string);
    // That of before ended; this one is new.
    assert_eq!((key.as_deref(), left[0].count), (Some("\"d\""), 1));
    let causes = "SELECT seen, kept, resolved FROM headwater.dead_letter_causes";
    assert_eq!(rig.rows(causes), [[json!(6), json!(1), json!(5)]]);
    // The same after a restart, ids included.
    let again = Rig::over(rig.store.after_crash(1));
    assert_eq!(ids(&again.letters("docs")), ids(&left));
    let counted = "SELECT kept FROM headwater.dead_letter_causes";
    assert_eq!(again.rows(counted), [[json!(1)]]);
    push(&again, &[line("d", &good)]);
    assert!(again.letters("docs").is_empty());
}

#[test]
fn a_wider_column_makes_old_letters_good_once() {
    let _room = together();
    let rig = Rig::start(NUMBERS);
    push(
        &rig,
        &[line("a", &json!("word")), line("b", &json!("text"))],
    );
    let letters = rig.letters("docs");
    assert_eq!(counts(&rig.replay_all("docs")), (0, 2, 0, 0));
    assert_eq!(
        ids(&rig.letters("docs")),
        ids(&letters),
        "a replay of bad data changes nothing"
    );
    rig.reconcile(WORDS, true, false).expect("replaced");
    assert_eq!(
        ids(&rig.letters("docs")),
        ids(&letters),
        "they outlive a replacement"
    );
    // A newer good row comes first: its letter is gone, and nothing overwrites the row.
    push(&rig, &[line("b", &json!("newer"))]);
    assert_eq!(counts(&replay_ids(&rig, &ids(&letters))), (1, 0, 0, 1));
    let rows = "SELECT id, n FROM docs ORDER BY id";
    let expected = [["a", "word"], ["b", "newer"]].map(|row| row.map(Json::from));
    eventually("the replayed row", || rig.rows(rows) == expected);
    assert_eq!(counts(&replay_ids(&rig, &ids(&letters))), (0, 0, 0, 2));
    assert_eq!(counts(&rig.replay_all("docs")), (0, 0, 0, 0));
    push(&rig, &[line("a", &json!("newest"))]);
    assert_eq!(counts(&replay_ids(&rig, &ids(&letters))), (0, 0, 0, 2));
    let again = Rig::over(rig.store.after_crash(1));
    again.wait_ready();
    assert!(again.letters("docs").is_empty());
    let expected = [["a", "newest"], ["b", "newer"]].map(|row| row.map(Json::from));
    assert_eq!(again.rows(rows), expected);
}

#[test]
fn letters_of_one_key_are_replayed_in_their_order() {
    let _room = together();
    let both = |rig: &Rig| {
        let null = json!({"op": "upsert", "key": "k", "value": {"n": null}}).to_string();
        push(rig, &[line("k", &json!("older")), null]);
        rig.letters("docs")
    };
    let strict = "CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, n BIGINT NOT NULL);";
    let rows = "SELECT id, n FROM docs";
    let newer = [[json!("k"), Json::Null]];
    // All at once: the newer one wins.
    let rig = Rig::start(strict);
    assert_eq!(both(&rig).len(), 2);
    rig.reconcile(WORDS, true, false).expect("replaced");
    assert_eq!(counts(&rig.replay_all("docs")), (2, 0, 0, 0));
    eventually("the newer row", || rig.rows(rows) == newer);
    // The newer one alone: the older one is past.
    let rig = Rig::start(strict);
    let letters = both(&rig);
    rig.reconcile(WORDS, true, false).expect("replaced");
    assert_eq!(
        counts(&replay_ids(&rig, &[letters[1].id.clone()])),
        (1, 0, 0, 0)
    );
    assert!(rig.letters("docs").is_empty());
    // The older one alone: the newer one stays, also after a restart.
    let rig = Rig::start(strict);
    let letters = both(&rig);
    rig.reconcile(WORDS, true, false).expect("replaced");
    assert_eq!(
        counts(&replay_ids(&rig, &[letters[0].id.clone()])),
        (1, 0, 0, 0)
    );
    assert_eq!(ids(&rig.letters("docs")), [letters[1].id.clone()]);
    let again = Rig::over(rig.store.after_crash(1));
    assert_eq!(ids(&again.letters("docs")), [letters[1].id.clone()]);
    assert_eq!(counts(&again.replay_all("docs")), (1, 0, 0, 0));
    eventually("the newer row", || again.rows(rows) == newer);
}

#[test]
fn what_cannot_be_made_right_is_refused_with_its_reason() {
    let _room = together();
    let rig = Rig::start(&format!(
        "{NUMBERS} CREATE VIEW part AS SELECT id, 60 / n AS part FROM docs;"
    ));
    let large = line(
        "large",
        &json!("x".repeat(limits::DEAD_LETTER_PAYLOAD_BYTES_MAX)),
    );
    push(&rig, &[large.clone(), line("zero", &json!(0))]);
    eventually("the view's letter", || rig.letters("part").len() == 1);
    let reason = |reply: ReplayReply| {
        assert_eq!(counts(&reply), (0, 0, 1, 0));
        reply.refused[0].reason.clone()
    };
    assert_eq!(
        reason(rig.replay_all("docs")),
        format!("only 65536 of its {} bytes are kept", large.len())
    );
    assert_eq!(
        reason(rig.replay_all("part")),
        "it is a row that a view cannot compute: it goes when the row is good"
    );
    let refused = |request: ReplayRequest| shown(&rig.replay(request).expect_err("refused"));
    assert_eq!(
        refused(ReplayRequest::default()),
        "422 invalid-request: nothing says which dead letters are replayed; expected: \"ids\": […] \
         or \"all\", \"source\" or \"code\""
    );
    let some = |ids: Vec<String>| ReplayRequest {
        ids: Some(ReplayIds::Some(ids)),
        ..ReplayRequest::default()
    };
    assert_eq!(
        refused(some(vec!["7".to_owned()])),
        "422 invalid-request: \"7\" is no id of a dead letter; expected: an id of GET \
         /v1/dead_letters: d_ and twelve digits"
    );
    assert_eq!(
        refused(some(vec!["d_000000000000".to_owned(); 10_001])),
        "422 limit-exceeded: 10001 ids are given; expected: at most 10000 (REPLAY_LETTERS_MAX)"
    );
    assert_eq!(
        refused(ReplayRequest {
            source: Some("lost".to_owned()),
            ..ReplayRequest::default()
        }),
        "404 not-found: there is no source \"lost\""
    );
    // What a view could not compute goes with the view, what a source could not read with the source.
    rig.sql("DROP VIEW part").expect("dropped");
    assert!(
        rig.rows("SELECT id FROM headwater.dead_letters WHERE source = 'part'")
            .is_empty()
    );
    rig.sql("DROP SOURCE docs").expect("dropped");
    assert!(rig.rows("SELECT id FROM headwater.dead_letters").is_empty());
    // Another source of that name has nothing of them, also after a restart.
    rig.sql(NUMBERS).expect("declared");
    let rig = Rig::over(rig.store.after_crash(1));
    assert_eq!(
        rig.rows("SELECT dead_letters FROM headwater.sources"),
        [[json!(0)]]
    );
}

#[test]
fn a_key_that_could_not_be_read_is_only_replayed_while_its_row_is_new() {
    let _room = together();
    let rig = Rig::start("CREATE SOURCE docs FROM PUSH (id BIGINT PRIMARY KEY, n TEXT);");
    push(
        &rig,
        &[line("a", &json!("of a")), line("b", &json!("of b"))],
    );
    assert!(
        rig.letters("docs")
            .iter()
            .all(|letter| letter.letter.key.is_none())
    );
    rig.reconcile(WORDS, true, false).expect("replaced");
    push(&rig, &[line("b", &json!("newer or older?"))]);
    let reply = rig.replay_all("docs");
    assert_eq!(counts(&reply), (1, 0, 1, 0));
    assert_eq!(
        reply.refused[0].reason,
        "its key, which could not be read before, has been written: nobody knows whether \"b\" is \
         newer"
    );
    let rows = "SELECT id, n FROM docs ORDER BY id";
    let expected = [["a", "of a"], ["b", "newer or older?"]].map(|row| row.map(Json::from));
    eventually("the row of a", || rig.rows(rows) == expected);
}

#[test]
fn a_flood_keeps_the_newest_and_counts_the_others() {
    let _room = together();
    let rig = Rig::start(NUMBERS);
    let lines: Vec<String> = (0..12_000)
        .map(|n| line(&format!("k{n}"), &json!("x")))
        .collect();
    let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
    rig.push_request(request("docs", &lines))
        .expect("taken apart");
    let causes = "SELECT seen, kept, dropped FROM headwater.dead_letter_causes";
    let expected = [[json!(12_000), json!(10_000), json!(2_000)]];
    assert_eq!(rig.rows(causes), expected);
    assert_eq!(
        rig.rows("SELECT dead_letters FROM headwater.sources"),
        [[json!(10_000)]]
    );
    let oldest = rig.letters("docs").swap_remove(0).letter;
    assert_eq!(oldest.position, "request r_1 line 2001");
    assert_eq!(Rig::over(rig.store.after_crash(1)).rows(causes), expected);
}

/// A file that turns good without a change of size or time: only a replay looks again.
#[test]
fn a_file_is_read_again_and_goes_as_files_go() {
    let _room = together();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.md");
    let write = |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).expect("writable");
    write(&path, b"caf\xE9 au lait");
    let rig = Rig::start(&format!(
        "CREATE SOURCE notes FROM FILES (PATH '{}', PATTERN '*.md');",
        folder.path().display()
    ));
    eventually("the letter", || rig.letters("notes").len() == 1);
    assert_eq!(counts(&rig.replay_all("notes")), (0, 1, 0, 0));
    let time = std::fs::metadata(&path)
        .and_then(|found| found.modified())
        .expect("a time");
    let file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("ours");
    std::io::Write::write_all(&mut &file, b"cafe au lait").expect("writable");
    file.set_modified(time).expect("ours");
    drop(file);
    let text = "SELECT path, text FROM notes";
    eventually("the replay", || {
        rig.replay_all("notes").replayed == 1 || rig.letters("notes").is_empty()
    });
    eventually("the row", || {
        rig.rows(text) == [["a.md", "cafe au lait"].map(Json::from)]
    });
    assert!(rig.letters("notes").is_empty());
    std::fs::remove_file(&path).expect("ours");
    eventually("the row's end", || rig.rows(text).is_empty());
    // A bad file that goes takes its letter along.
    write(&path, b"\xFF");
    eventually("the letter", || rig.letters("notes").len() == 1);
    std::fs::remove_file(&path).expect("ours");
    eventually("the letter's end", || rig.letters("notes").is_empty());
}

/// Documents and archives: the letter says why, and a good version ends it.
#[test]
fn a_document_that_turns_good_ends_its_letter() {
    // `good as gold`, packed by gzip.
    const GOOD: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x4b\xcf\xcf\x4f\x51\x48\x2c\x56\x48\xcf\xcf\x49\xe1\x02\x00\xfe\x7b\x50\x91\x0d\x00\x00\x00";
    let _room = together();
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).expect("writable");
    };
    write("a.html", b"<meta charset=klingon><h1>Heading</h1>");
    write("b.pdf", b"%PDF-1.7, as it says");
    write("c.md.gz", b"no gzip");
    let rig = Rig::start(&format!(
        "CREATE SOURCE notes FROM FILES (PATH '{}');",
        folder.path().display()
    ));
    let codes = || {
        let letters = rig.letters("notes").into_iter();
        let mut codes: Vec<(String, String)> = letters
            .map(|kept| {
                (
                    kept.letter.position.to_string(),
                    kept.letter.error.code.to_string(),
                )
            })
            .collect();
        codes.sort();
        codes
    };
    let said = [
        ("a.html", "unknown-encoding"),
        ("b.pdf", "broken-document"),
        ("c.md.gz", "broken-document"),
    ];
    let said = said.map(|(name, code)| (name.to_owned(), code.to_owned()));
    eventually("the letters", || codes() == said);
    assert_eq!(
        counts(&rig.replay_all("notes")),
        (0, 2, 1, 0),
        "an archive is read again by itself"
    );
    write("a.html", b"<meta charset=utf-8><h1>Heading</h1>");
    write("c.md.gz", GOOD);
    eventually("the letters' end", || codes() == said[1..2]);
    eventually("the rows", || {
        rig.rows("SELECT path, text FROM notes ORDER BY path")
            == [
                ["a.html", "# Heading\n"],
                ["c.md.gz!/c.md", "good as gold\n"],
            ]
            .map(|row| row.map(Json::from))
    });
    // An archive that breaks takes its rows with it, and is told of once.
    write("c.md.gz", &GOOD[..GOOD.len() - 9]);
    eventually("the letter", || codes().len() == 2);
    eventually("the rows' end", || {
        rig.rows("SELECT path FROM notes") == [["a.html"].map(Json::from)]
    });
}

/// Rows and letters of a random history equal those of a naive program at every step.
#[test]
fn random_histories_equal_a_naive_program() {
    let _room = together();
    for seed in 0..6 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut rig = Rig::start(NUMBERS);
        let mut is_words = false;
        let mut rows: BTreeMap<String, Json> = BTreeMap::new();
        // Of each key the newest bad value, oldest first.
        let mut letters: Vec<(String, Json)> = Vec::new();
        for step in 0..60 {
            let key = format!("k{}", rng.random_range(0..4));
            match rng.random_range(0..12) {
                0..8 => {
                    let n =
                        [json!(step), json!(format!("w{step}"))][rng.random_range(0..2)].clone();
                    push(&rig, &[line(&key, &n)]);
                    letters.retain(|(other, _)| *other != key);
                    match n.is_string() == is_words {
                        true => drop(rows.insert(key, n)),
                        false => letters.push((key, n)),
                    }
                }
                8 => {
                    rig.delete("docs", &key);
                    letters.retain(|(other, _)| *other != key);
                    rows.remove(&key);
                }
                9 => {
                    is_words = !is_words;
                    let pipeline = if is_words { WORDS } else { NUMBERS };
                    rig.reconcile(pipeline, true, false).expect("replaced");
                    rows.clear();
                }
                10 => {
                    let reply = rig.replay_all("docs");
                    let is_good = |(_, n): &(String, Json)| n.is_string() == is_words;
                    let good = letters.iter().filter(|letter| is_good(letter)).count() as u64;
                    let bad = letters.len() as u64 - good;
                    assert_eq!(
                        counts(&reply),
                        (good, bad, 0, 0),
                        "seed {seed}, step {step}"
                    );
                    for (key, n) in letters.extract_if(.., |letter| is_good(letter)) {
                        rows.insert(key, n);
                    }
                }
                _ => {
                    let store = rig.store.after_crash(seed);
                    drop(rig);
                    rig = Rig::over(store);
                }
            }
            let wanted: Vec<Vec<Json>> = rows
                .iter()
                .map(|(key, n)| vec![json!(key), n.clone()])
                .collect();
            let what = format!("seed {seed}, step {step}: {wanted:?}");
            eventually(&what, || {
                rig.rows("SELECT id, n FROM docs ORDER BY id") == wanted
            });
            let found: Vec<(String, Json)> = rig
                .letters("docs")
                .iter()
                .map(|letter| {
                    let line: Json = serde_json::from_slice(&letter.letter.payload).expect("JSON");
                    let key = line["key"].as_str().unwrap_or_default().to_owned();
                    (key, line["value"]["n"].clone())
                })
                .collect();
            assert_eq!(found, letters, "seed {seed}, step {step}");
        }
    }
}
