//! The embedding store under a pipeline that rewrites its documents: what nothing needs is forgotten, what
//! something needs never is, and a restart finds it.

use std::time::Duration;

use engine::testing::HashedEmbedder;
use queries::api::{PushRequest, SearchRequest};
use serde_json::json;

use crate::rig::{Rig, eventually, request, together, upsert};

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
CREATE MODEL hashed FROM 'hashed';
CREATE INDEX found ON docs USING HYBRID (body) CHUNK BY none EMBED WITH hashed
    WITH (QUANTIZATION = 'f32', RETAIN = '0 seconds');
CREATE INDEX kept ON docs USING VECTOR (body) CHUNK BY none EMBED WITH hashed
    WITH (QUANTIZATION = 'f32', RETAIN = '1 hour');
";

const DOCUMENTS: usize = 40;
const EDITS: usize = 6;

fn body(document: usize, edit: usize) -> String {
    format!(
        "document {document} in its edit number{edit} about topic{}",
        document % 7
    )
}

fn write(rig: &Rig, edit: usize, documents: impl Iterator<Item = usize>) {
    for document in documents {
        let body = json!({ "body": body(document, edit) });
        rig.upsert("docs", &document.to_string(), &body);
    }
    rig.wait_ready();
    eventually("all is embedded", || {
        let rows = rig.rows("SELECT pending FROM headwater.indexes");
        rows.iter().all(|row| row[0] == json!(0))
    });
}

fn collect(rig: &Rig, rounds: usize) -> u64 {
    let round = || rig.runtime.block_on(rig.service.collect_vectors()).vectors;
    (0..rounds).map(|_| round()).sum()
}

fn times(encoder: &HashedEmbedder, edit: usize) -> u64 {
    encoder.count_of(&body(1, edit))
}

fn hits(rig: &Rig) -> Vec<(String, f64)> {
    let reply = rig.search(SearchRequest {
        index: "found".to_owned(),
        query: Some("topic3 number5".to_owned()),
        k: Some(20),
        exact: true,
        ..SearchRequest::default()
    });
    let hits = reply.expect("a question").hits;
    let named = hits
        .iter()
        .map(|hit| (hit.text.clone().unwrap_or_default(), hit.score));
    named.collect()
}

#[test]
fn versions_that_can_be_read_keep_their_vectors() {
    let _machine = together();
    let rig = Rig::start(PIPELINE);
    for edit in 0..EDITS {
        write(&rig, edit, 0..DOCUMENTS);
    }
    assert_eq!(collect(&rig, 8), 0, "the second index remembers an hour");
}

#[test]
fn what_nothing_needs_is_forgotten_and_the_rest_survives_a_restart() {
    let _machine = together();
    let rig = Rig::start(PIPELINE);
    for edit in 0..EDITS {
        write(&rig, edit, 0..DOCUMENTS);
    }
    rig.sql("DROP INDEX kept").expect("it is there");
    let before = hits(&rig);
    // The shards give back what nobody reads in their own time.
    let mut forgotten = 0;
    eventually("old edits are forgotten", || {
        forgotten += collect(&rig, 1);
        forgotten >= (DOCUMENTS * (EDITS - 2)) as u64
    });
    assert!(forgotten <= (DOCUMENTS * (EDITS - 1)) as u64, "{forgotten}");
    assert_eq!(hits(&rig), before);
    // What was forgotten is embedded again when it comes back, what was not is not.
    write(&rig, 0, 1..2);
    assert_eq!(times(&rig.encoder, 0), 2);
    write(&rig, EDITS - 1, 1..2);
    assert_eq!(times(&rig.encoder, EDITS - 1), 1);
    assert_eq!(hits(&rig), before);

    let store = rig.store.clone();
    drop(rig);
    let rig = Rig::over(store);
    rig.wait_ready();
    assert_eq!(hits(&rig), before);
    assert_eq!(rig.encoder.total(), 1, "the question, and no text again");
    collect(&rig, 5);
    assert_eq!(hits(&rig), before);
    write(&rig, 0, 2..3);
    assert_eq!(rig.encoder.count_of(&body(2, 0)), 1);
    write(&rig, EDITS - 1, 2..3);
    assert_eq!(rig.encoder.count_of(&body(2, EDITS - 1)), 0);
    assert_eq!(hits(&rig), before);
}

/// Vectors that came after the rows they belong to: an index that is made later is told of neither again.
#[test]
fn an_index_made_later_finds_vectors_that_were_late() {
    let _machine = together();
    let rig = Rig::start(PIPELINE);
    rig.encoder.set_delay(Duration::from_millis(300));
    write(&rig, 0, 0..DOCUMENTS);
    let made = rig.encoder.total();
    rig.sql("DROP INDEX found").expect("it is there");
    let statement = PIPELINE
        .split(';')
        .find(|part| part.contains("INDEX found"));
    let statement = statement.expect("it is declared").trim();
    rig.sql(statement).expect("the same again");
    eventually("every chunk has its vector", || {
        rig.rows("SELECT pending FROM headwater.indexes WHERE name = 'found'") == [[json!(0)]]
    });
    assert!(!hits(&rig).is_empty());
    assert_eq!(
        rig.encoder.total(),
        made + 1,
        "the question, and no text again"
    );
}

/// Rows that were prepared for the indexes of their time, and wait, when another is made: nobody else would
/// ask for its vectors.
#[test]
fn an_index_made_while_rows_wait_gets_their_vectors() {
    let _machine = together();
    let rig = Rig::start(PIPELINE);
    rig.encoder.set_delay(Duration::from_millis(300));
    let line = upsert("1", &json!({ "body": body(1, 0).repeat(100) }));
    let pushed = rig.push_request(PushRequest {
        wait_visible_ms: None,
        ..request("docs", &[line.as_bytes()])
    });
    pushed.expect("a good push");
    rig.sql(
        "CREATE INDEX pieces ON docs USING HYBRID (body) CHUNK BY fixed(max_tokens => 32)
         EMBED WITH hashed",
    )
    .expect("a good index");
    eventually("every chunk, with its vector", || {
        let rows = rig.rows("SELECT pending, chunks FROM headwater.indexes WHERE name = 'pieces'");
        rows[0][0] == json!(0) && rows[0][1].as_u64() > Some(20)
    });
}

/// Rows whose vectors are a column's bring them along, also to an index that is made later.
#[test]
fn an_index_made_over_rows_with_vectors_has_them() {
    const ROWS: u64 = 3_000;
    let _machine = together();
    let rig = Rig::start(
        "CREATE SOURCE rows FROM PUSH (id TEXT PRIMARY KEY, embedding VECTOR(4));
         CREATE VIEW some AS SELECT id, embedding FROM rows WHERE id <> '7';
         CREATE MODEL vecs FROM COLUMN WITH (DIMENSIONS = 4);",
    );
    let lines = (0..ROWS).map(|id| {
        let angle = id as f64 / ROWS as f64;
        upsert(
            &id.to_string(),
            &json!({ "embedding": [angle.cos(), angle.sin(), 0.0, 0.5] }),
        )
    });
    let lines: Vec<String> = lines.collect();
    let lines: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    rig.push_request(request("rows", &lines)).expect("taken");
    rig.wait_ready();
    for (name, on) in [("built", "rows"), ("viewed", "some")] {
        let sql = format!(
            "CREATE INDEX {name} ON {on} USING VECTOR (embedding) CHUNK BY none EMBED WITH vecs"
        );
        rig.sql(&sql).expect("a good index");
    }
    eventually("each row has its vector", || {
        let rows = rig.rows("SELECT pending, chunks FROM headwater.indexes ORDER BY name");
        rows == [vec![json!(0), json!(ROWS)], vec![json!(0), json!(ROWS - 1)]]
    });
}

#[test]
fn a_document_that_comes_back_soon_finds_its_vector() {
    let _machine = together();
    let rig = Rig::start(PIPELINE);
    rig.sql("DROP INDEX kept").expect("it is there");
    write(&rig, 0, 0..DOCUMENTS);
    (0..DOCUMENTS).for_each(|document| rig.delete("docs", &document.to_string()));
    assert_eq!(collect(&rig, 2), 0);
    write(&rig, 0, 0..DOCUMENTS);
    assert_eq!(times(&rig.encoder, 0), 1);
}
