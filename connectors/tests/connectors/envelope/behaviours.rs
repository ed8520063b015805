//! The behaviours of real Debezium topics that a naive consumer gets wrong, one test each. The
//! messages have the shapes that Debezium 3.3.1 on PostgreSQL 15 was seen to send.

use connectors::arroyo::{SignalMessage, Watermark};
use connectors::envelope::table::{Delivery, Output};
use connectors::envelope::{BinaryMode, Cell, Envelope, Marker, Options, Order};
use engine::model::SqlType;
use serde_json::{Value as Json, json};

use super::{Message, Topic, event, schema, snapshot, streamed, tickets};

const UNAVAILABLE: &str = "__debezium_unavailable_value";

fn row(id: i64, title: &str, body: &str) -> Json {
    json!({"id": id, "title": title, "body": body})
}

/// A delete's `before` under the default REPLICA IDENTITY: the key, and nothing or zeros.
fn key_only(id: i64) -> Json {
    json!({"id": id, "title": "", "body": null})
}

fn payload_with_schema(payload: Json) -> Json {
    let field = |name: &str, kind: &str| json!({"type": kind, "optional": true, "field": name});
    json!({
        "schema": {"type": "struct", "optional": false, "name": "app.public.tickets.Value",
            "fields": [field("id", "int64"), field("title", "string"), field("body", "string")]},
        "payload": payload,
    })
}

#[test]
fn b01_an_unwrapped_delete_is_a_null_in_any_spelling() {
    let key = json!({"id": 1});
    let nulls = [
        None,
        Some("null".to_owned()),
        Some(json!({"schema": null, "payload": null}).to_string()),
        Some(payload_with_schema(Json::Null).to_string()),
    ];
    for null in nulls {
        let mut topic = Topic::debezium(tickets());
        topic.send(&Message::new(key.clone(), row(1, "a", "b")));
        topic.send(&Message::new(
            json!({"id": 2}),
            payload_with_schema(row(2, "c", "d")),
        ));
        assert_eq!(topic.json(), json!([[1, "a", "b"], [2, "c", "d"]]));
        let mut delete = Message::tombstone(key.clone());
        delete.value = null;
        topic.send(&delete);
        assert_eq!(topic.json(), json!([[2, "c", "d"]]));
    }
    // delete.tombstone.handling.mode=rewrite-with-tombstone
    let mut topic = Topic::debezium(tickets());
    let rewritten = |row: Json, deleted: &str| {
        let mut value = row;
        value["__deleted"] = json!(deleted);
        Message::new(key.clone(), value)
    };
    topic.send(&rewritten(row(1, "a", "b"), "false"));
    assert_eq!(topic.json(), json!([[1, "a", "b"]]));
    topic.send(&rewritten(key_only(1), "true"));
    topic.send(&Message::tombstone(key.clone()));
    assert_eq!(topic.json(), json!([]));
}

#[test]
fn b02_an_identity_that_is_not_the_key_is_refused() {
    let mut topic = Topic::debezium(tickets());
    topic.send(&event(
        "c",
        Json::Null,
        row(0, "zero", "z"),
        streamed(1, 10),
    ));
    topic.send(&event(
        "c",
        Json::Null,
        row(7, "seven", "s"),
        streamed(2, 20),
    ));
    // DELETE of row 7 with an index on title as identity: the key is invented.
    let invented = json!({"id": 0, "title": "seven", "body": ""});
    let delete = event("d", invented.clone(), Json::Null, streamed(3, 30));
    assert_eq!(
        topic.refuse(&delete),
        "identity-is-not-key: a delete does not name its row: the table's REPLICA IDENTITY is not \
         its key (id)"
    );
    // Its tombstone would delete the true row 0.
    topic.send_to(0, &Message::tombstone(json!({"id": 0})));
    assert_eq!(topic.json(), json!([[0, "zero", "z"], [7, "seven", "s"]]));
    // An update of the identity column: `before` has another key than `after`.
    let update = event("u", invented, row(7, "7", "s"), streamed(4, 40));
    let decoded = topic.decode(0, &update);
    assert_eq!(decoded.markers, [Marker::IdentityIsNotKey]);
    assert_eq!(decoded.changes.len(), 1);
    // Keys that are no defaults prove that they are logged: the identity was repaired.
    topic.send(&event("d", key_only(7), Json::Null, streamed(5, 50)));
    topic.send(&event("d", key_only(0), Json::Null, streamed(6, 60)));
    assert_eq!(topic.json(), json!([]));
}

#[test]
fn b03_unsent_values_come_from_the_live_row() {
    let columns = [
        ("id", SqlType::Int8),
        ("n", SqlType::Int4),
        ("body", SqlType::Text),
        ("doc", SqlType::Jsonb),
        ("tags", SqlType::Jsonb),
        ("raw", SqlType::Bytea),
    ];
    let base64 = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==";
    let hex = "5f5f646562657a69756d5f756e617661696c61626c655f76616c7565";
    for (mode, raw, raw_unsent) in [
        (BinaryMode::Bytes, "aGVsbG8=", base64),
        (BinaryMode::Hex, "68656c6c6f", hex),
    ] {
        let options = Options {
            binary: mode,
            ..Options::default()
        };
        let schema = schema(&columns, &["id"]);
        let mut topic = Topic::new(schema, Envelope::Debezium, options, 1);
        let full = json!({"id": 1, "n": 1, "body": "long", "doc": "{\"a\": 1}", "tags": ["x"], "raw": raw});
        topic.send(&event("c", Json::Null, full, streamed(1, 10)));
        let unsent = json!({"id": 1, "n": 2, "body": UNAVAILABLE, "doc": UNAVAILABLE,
            "tags": [UNAVAILABLE], "raw": raw_unsent});
        topic.send(&event("u", Json::Null, unsent.clone(), streamed(2, 20)));
        let expected = json!([[1, 2, "long", {"a": 1}, ["x"], "aGVsbG8="]]);
        assert_eq!(topic.json(), expected, "{mode:?}");
        // int[] and bigint[]: the placeholder's bytes one by one; hstore: a map of it to itself.
        let codes: Vec<u8> = UNAVAILABLE.bytes().collect();
        for tags in [
            json!(codes),
            json!({UNAVAILABLE: UNAVAILABLE}),
            json!(UNAVAILABLE),
        ] {
            let mut unsent = unsent.clone();
            unsent["tags"] = tags;
            let decoded = topic.decode(0, &event("u", Json::Null, unsent, streamed(3, 30)));
            let row = decoded.changes[0].row.as_ref().unwrap();
            assert_eq!(row.cells[4], Cell::Unavailable);
        }
    }
}

#[test]
fn b03_a_key_change_takes_the_old_row() {
    // Both orders of arrival; the old row itself may also come between.
    let insert = event("c", Json::Null, row(1, "a", "long"), streamed(1, 10));
    let update = event("u", Json::Null, row(1, "b", UNAVAILABLE), streamed(2, 20));
    let delete = event("d", key_only(1), Json::Null, streamed(3, 30))
        .header("__debezium.newkey", json!({"id": 2}));
    let tombstone = Message::tombstone(json!({"id": 1}));
    let create = event("c", Json::Null, row(2, "b", UNAVAILABLE), streamed(3, 30))
        .header("__debezium.oldkey", json!({"id": 1}));
    let old = [insert, update, delete, tombstone];
    for place in 0..=old.len() {
        let mut topic = Topic::new(tickets(), Envelope::Debezium, Options::default(), 2);
        for (at, message) in old.iter().enumerate() {
            if at == place {
                topic.send_to(1, &create);
                assert_eq!(topic.table.parked_rows(), usize::from(place <= 2));
            }
            assert_eq!(topic.send_to(0, message).letters, []);
        }
        if place == old.len() {
            topic.send_to(1, &create);
        }
        assert_eq!(topic.json(), json!([[2, "b", "long"]]), "create at {place}");
        assert_eq!(topic.table.parked_rows(), 0);
    }
}

#[test]
fn b03_the_old_key_in_any_converter_s_form() {
    let schema = json!({"type": "struct", "fields": [{"type": "int64", "field": "id"}]});
    let forms = [
        json!({"id": 1}).to_string(),
        json!({"schema": schema, "payload": {"id": 1}}).to_string(),
        "Struct{id=1}".to_owned(),
    ];
    let create = event("c", Json::Null, row(2, "b", UNAVAILABLE), streamed(3, 30));
    for form in forms {
        let mut topic = Topic::debezium(tickets());
        topic.send(&event(
            "c",
            Json::Null,
            row(1, "a", "long"),
            streamed(1, 10),
        ));
        let delete = event("d", key_only(1), Json::Null, streamed(3, 30));
        topic.send(&delete.header("__debezium.newkey", json!({"id": 2})));
        let mut create = create.clone();
        create
            .headers
            .push(("__debezium.oldkey".to_owned(), form.clone()));
        topic.send(&create);
        assert_eq!(topic.json(), json!([[2, "b", "long"]]), "{form}");
    }
    // A header that cannot be read: nothing is guessed, and nothing else is lost.
    let mut topic = Topic::debezium(tickets());
    let mut create = create;
    create
        .headers
        .push(("__debezium.oldkey".to_owned(), "?".to_owned()));
    assert!(
        topic
            .refuse(&create)
            .starts_with("unavailable-value: row 2: ")
    );
}

#[test]
fn b03_a_row_that_moves_twice_while_it_waits() {
    let at = |id: i64, from: i64, lsn: u64| {
        event(
            "c",
            Json::Null,
            row(id, "b", UNAVAILABLE),
            streamed(lsn - 1, lsn),
        )
        .header("__debezium.oldkey", json!({"id": from}))
    };
    let gone = |id: i64, to: i64, lsn: u64| {
        event("d", key_only(id), Json::Null, streamed(lsn - 1, lsn))
            .header("__debezium.newkey", json!({"id": to}))
    };
    let mut topic = Topic::new(tickets(), Envelope::Debezium, Options::default(), 3);
    topic.send_to(1, &at(2, 1, 30));
    topic.send_to(1, &gone(2, 3, 40));
    topic.send_to(2, &at(3, 2, 40));
    topic.send_to(
        2,
        &event("u", Json::Null, row(3, "c", UNAVAILABLE), streamed(49, 50)),
    );
    assert_eq!(topic.table.parked_rows(), 1);
    assert_eq!(topic.json(), json!([]));
    topic.send_to(
        0,
        &event("c", Json::Null, row(1, "a", "long"), streamed(1, 10)),
    );
    topic.send_to(0, &gone(1, 2, 30));
    assert_eq!(topic.json(), json!([[3, "c", "long"]]));
    assert_eq!(topic.table.parked_rows(), 0);
}

#[test]
fn b03_a_row_that_was_never_seen_waits_for_a_snapshot() {
    let mut topic = Topic::debezium(tickets());
    topic.send(&event(
        "u",
        Json::Null,
        row(1, "b", UNAVAILABLE),
        streamed(2, 20),
    ));
    topic.send(&event(
        "u",
        Json::Null,
        row(1, "c", UNAVAILABLE),
        streamed(3, 30),
    ));
    assert_eq!(topic.json(), json!([]));
    assert_eq!(
        topic.table.unresolved()[0].detail,
        "row 1: a value was not sent and the row that has it is not known"
    );
    let mut source = snapshot("incremental", 0);
    source["lsn"] = Json::Null;
    source["txId"] = Json::Null;
    topic.send(&event("r", Json::Null, row(1, "c", "long"), source));
    assert_eq!(topic.json(), json!([[1, "c", "long"]]));
    assert_eq!(topic.table.parked_rows(), 0);
}

#[test]
fn b03_null_bytes_in_base64_mode_may_be_unsent() {
    let columns = [
        ("id", SqlType::Int8),
        ("n", SqlType::Int4),
        ("raw", SqlType::Bytea),
    ];
    let options = Options {
        binary: BinaryMode::Base64,
        ..Options::default()
    };
    let mut topic = Topic::new(schema(&columns, &["id"]), Envelope::Debezium, options, 1);
    let row = |id: i64, n: i64, raw: Json| json!({"id": id, "n": n, "raw": raw});
    topic.send(&event(
        "c",
        Json::Null,
        row(1, 1, Json::Null),
        streamed(1, 10),
    ));
    topic.send(&event(
        "u",
        Json::Null,
        row(1, 2, Json::Null),
        streamed(2, 20),
    ));
    assert_eq!(topic.json(), json!([[1, 2, null]]), "NULL either way");
    topic.send(&event(
        "c",
        Json::Null,
        row(2, 1, json!("aGVsbG8=")),
        streamed(3, 30),
    ));
    let update = event("u", Json::Null, row(2, 2, Json::Null), streamed(4, 40));
    assert_eq!(
        topic.refuse(&update),
        "ambiguous-null: row 2: bytes became NULL or were not sent; with \
         binary.handling.mode=base64 both arrive as null"
    );
    assert_eq!(topic.json(), json!([[1, 2, null], [2, 1, "aGVsbG8="]]));
}

#[test]
fn b04_an_lsn_is_neither_identity_nor_order() {
    // A key change and its reverse half share an LSN; COPY gives all rows one.
    let mut topic = Topic::debezium(tickets());
    for id in 1..=3 {
        topic.send(&event(
            "c",
            Json::Null,
            row(id, "copied", ""),
            streamed(1, 10),
        ));
    }
    topic.send(&event("d", key_only(1), Json::Null, streamed(2, 20)));
    topic.send(&event(
        "c",
        Json::Null,
        row(4, "moved", ""),
        streamed(2, 20),
    ));
    // A transaction with lower LSNs that committed later.
    topic.send(&event("u", Json::Null, row(2, "late", ""), streamed(3, 15)));
    let expected = json!([[2, "late", ""], [3, "copied", ""], [4, "moved", ""]]);
    assert_eq!(topic.json(), expected);
    // `sequence[0]` is null until the first commit.
    let mut source = streamed(0, 5);
    source["sequence"] = json!("[null,\"5\"]");
    let decoded = topic.decode(0, &event("u", Json::Null, row(2, "x", ""), source));
    let position = decoded.changes[0].order.log().unwrap();
    assert_eq!((position.commit, position.lsn), (0, 5));
    // Incremental snapshots have no LSN and no transaction.
    let mut source = snapshot("incremental", 0);
    source["lsn"] = Json::Null;
    source["txId"] = Json::Null;
    let decoded = topic.decode(0, &event("r", Json::Null, row(2, "x", ""), source));
    assert_eq!(decoded.changes[0].order, Order::Incremental);
    assert_eq!(decoded.changes[0].transaction, None);
}

#[test]
fn b05_a_transaction_is_named_by_what_stands_before_the_colon() {
    let mut topic = Topic::debezium(tickets());
    let begin = json!({"status": "BEGIN", "id": "571:53195829", "ts_ms": 1, "event_count": null, "data_collections": null});
    let end = json!({"status": "END", "id": "571:53195832", "ts_ms": 1, "event_count": 3,
        "data_collections": [{"data_collection": "public.tickets", "event_count": 2},
                             {"data_collection": "public.grants", "event_count": 1}]});
    let key = json!({"id": "571:53195829"});
    assert_eq!(
        topic.decode(0, &Message::new(key.clone(), begin)).markers,
        [Marker::TransactionBegin { id: "571".into() }]
    );
    let mut change = event("c", Json::Null, row(1, "a", ""), streamed(1, 10));
    let mut value: Json = serde_json::from_str(change.value.as_ref().unwrap()).unwrap();
    value["transaction"] =
        json!({"id": "571:53195830", "total_order": 2, "data_collection_order": 1});
    change.value = Some(value.to_string());
    let decoded = topic.decode(0, &change);
    assert_eq!(decoded.changes[0].transaction.as_deref(), Some("571"));
    assert_eq!(decoded.changes[0].order.log().unwrap().index, 2);
    assert_eq!(
        topic.decode(0, &Message::new(key, end)).markers,
        [Marker::TransactionEnd {
            id: "571".into(),
            events: 3,
            tables: vec![("public.tickets".into(), 2), ("public.grants".into(), 1)],
        }]
    );
}

fn truncate(commit: u64, lsn: u64) -> Message {
    let mut message = event("t", Json::Null, Json::Null, streamed(commit, lsn));
    message.key = None;
    message
}

#[test]
fn b06_a_truncate_in_another_partition_takes_only_older_rows() {
    let mut topic = Topic::new(tickets(), Envelope::Debezium, Options::default(), 2);
    topic.send_to(
        0,
        &event("c", Json::Null, row(1, "old", ""), streamed(1, 10)),
    );
    topic.send_to(
        0,
        &event("c", Json::Null, row(2, "new", ""), streamed(3, 30)),
    );
    let applied = topic.send_to(1, &truncate(2, 20));
    assert_eq!(applied.letters, []);
    assert!(
        matches!(&applied.outputs[..], [Output::Truncate { survivors }] if survivors.len() == 1)
    );
    assert_eq!(topic.json(), json!([[2, "new", ""]]));
    // An older row that comes later, in a third partition, is gone already.
    topic.table.set_partitions(3);
    assert_eq!(
        topic
            .send_to(
                2,
                &event("c", Json::Null, row(3, "old", ""), streamed(1, 12))
            )
            .dropped,
        1
    );
    // One that stands before it has no effect, but has not come yet.
    assert_eq!(topic.delivery(2, &truncate(1, 15)), Delivery::Overtaken);
    assert_eq!(topic.delivery(2, &truncate(2, 20)), Delivery::Again);
    assert_eq!(topic.delivery(2, &truncate(3, 25)), Delivery::First);
    // Delivered again, to any partition, it deletes nothing.
    for partition in 0..3 {
        topic.send_to(partition, &truncate(2, 20));
    }
    assert_eq!(topic.json(), json!([[2, "new", ""]]));
}

/// A connector that is killed loses of each partition what it had not sent: a truncate, and not what stands
/// behind it in another. Sent again it comes through that one.
#[test]
fn b06_a_truncate_that_was_lost_comes_behind_what_was_written_later() {
    let mut topic = Topic::new(tickets(), Envelope::Debezium, Options::default(), 2);
    let create = |id, body, place| event("c", Json::Null, row(id, body, ""), place);
    topic.send_to(0, &create(1, "old", streamed(1, 10)));
    topic.send_to(1, &create(2, "new", streamed(3, 30)));
    assert_eq!(topic.delivery(1, &truncate(2, 20)), Delivery::First);
    assert_eq!(topic.send_to(1, &truncate(2, 20)).letters, []);
    assert_eq!(topic.json(), json!([[2, "new", ""]]));
    assert_eq!(topic.delivery(0, &truncate(2, 20)), Delivery::Again);
    topic.send_to(0, &create(1, "again", streamed(4, 40)));
    // When all partitions have come further nobody knows any more what it leaves.
    assert_eq!(topic.delivery(1, &truncate(3, 25)), Delivery::Again);
    let late = topic.send_to(1, &truncate(3, 25));
    assert_eq!(
        (late.dropped, &*late.letters[0].code),
        (1, "truncate-too-late")
    );
    // What was taken is told from that.
    for place in [(2, 20), (2, 15)] {
        let applied = topic.send_to(0, &truncate(place.0, place.1));
        assert_eq!((applied.dropped, &*applied.letters), (1, &[][..]));
    }
    assert_eq!(topic.json(), json!([[1, "again", ""], [2, "new", ""]]));
}

#[test]
fn b07_a_snapshot_that_starts_again_leaves_ghosts_to_sweep() {
    let mut topic = Topic::debezium(tickets());
    let read = |phase: &str, id: i64, lsn: u64| {
        event("r", Json::Null, row(id, "read", ""), snapshot(phase, lsn))
    };
    let started = |is_restart| Output::SnapshotStarted { is_restart };
    let first = topic.send(&read("first", 1, 100));
    assert_eq!(first.outputs[0], started(false));
    topic.send(&read("true", 2, 100));
    // The connector dies; row 1 is deleted; the snapshot starts again.
    let again = topic.send(&read("first", 2, 200));
    assert_eq!(again.outputs[0], started(true));
    topic.send(&event(
        "c",
        Json::Null,
        row(4, "streamed", ""),
        streamed(1, 210),
    ));
    let last = topic.send(&read("last", 3, 200));
    assert_eq!(last.outputs.last(), Some(&Output::SnapshotEnded));
    let live: Vec<_> = topic.rows.0.keys().cloned().collect();
    let ghosts = topic.table.sweep(&live);
    assert_eq!(ghosts.len(), 1);
    assert_eq!(ghosts[0].as_str(), "1");
    assert_eq!(topic.table.sweep(&live), [], "once");
}

#[test]
fn b07_rows_of_partitions_that_are_ahead_are_no_ghosts() {
    let mut topic = Topic::new(tickets(), Envelope::Debezium, Options::default(), 2);
    let read =
        |id: i64, lsn: u64| event("r", Json::Null, row(id, "read", ""), snapshot("true", lsn));
    topic.send_to(0, &read(1, 100));
    topic.send_to(0, &read(2, 100));
    // Written after the second run, read before it.
    topic.send_to(
        1,
        &event("c", Json::Null, row(9, "streamed", ""), streamed(0, 210)),
    );
    topic.send_to(0, &read(2, 200));
    let live: Vec<_> = topic.rows.0.keys().cloned().collect();
    let ghosts = topic.table.sweep(&live);
    assert_eq!(
        ghosts.iter().map(|key| key.as_str()).collect::<Vec<_>>(),
        ["1"]
    );
}

#[test]
fn b08_what_is_delivered_again_changes_nothing() {
    let mut topic = Topic::debezium(tickets());
    let history = [
        event("c", Json::Null, row(1, "a", "x"), streamed(1, 10)),
        event("u", Json::Null, row(1, "b", "y"), streamed(2, 20)),
        event("d", key_only(1), Json::Null, streamed(3, 30)),
        Message::tombstone(json!({"id": 1})),
        event("c", Json::Null, row(1, "c", "z"), streamed(4, 40)),
    ];
    for message in &history {
        topic.send(message);
    }
    let before = topic.json();
    for message in &history {
        assert_eq!(topic.send(message).outputs, [], "no change at any moment");
        assert_eq!(topic.json(), before);
    }
    topic.send(&event("u", Json::Null, row(1, "d", "z"), streamed(5, 50)));
    assert_eq!(topic.json(), json!([[1, "d", "z"]]));
}

#[test]
fn b08_a_log_that_began_again_is_not_taken_for_a_delivery() {
    let mut topic = Topic::debezium(tickets());
    topic.send(&event(
        "c",
        Json::Null,
        row(1, "a", ""),
        streamed(900, 1_000),
    ));
    // Restored from a dump: a new slot, a new snapshot, lower positions.
    topic.send(&event(
        "r",
        Json::Null,
        row(1, "restored", ""),
        snapshot("first", 50),
    ));
    topic.send(&event(
        "u",
        Json::Null,
        row(1, "changed", ""),
        streamed(55, 60),
    ));
    assert_eq!(topic.json(), json!([[1, "changed", ""]]));
}

#[test]
fn b08_a_lone_tombstone_deletes() {
    // The delete was compacted away; then the connector sends from an older position.
    let mut topic = Topic::debezium(tickets());
    topic.send(&event("c", Json::Null, row(1, "a", ""), streamed(1, 10)));
    topic.send(&event("c", Json::Null, row(2, "b", ""), streamed(2, 20)));
    topic.send(&Message::tombstone(json!({"id": 1})));
    assert_eq!(topic.json(), json!([[2, "b", ""]]));
    topic.send(&event("c", Json::Null, row(1, "a", ""), streamed(1, 10)));
    topic.send(&event("c", Json::Null, row(2, "b", ""), streamed(2, 20)));
    assert_eq!(topic.json(), json!([[1, "a", ""], [2, "b", ""]]));
}

#[test]
fn b09_a_change_of_columns_is_told_once() {
    let mut topic = Topic::debezium(tickets());
    let changed = |undeclared: &[&str], missing: &[&str]| Marker::SchemaChanged {
        undeclared: undeclared.iter().map(|name| (*name).to_owned()).collect(),
        missing: missing.iter().map(|name| (*name).to_owned()).collect(),
    };
    let mut markers = |after: Json| {
        let decoded = topic.decode(0, &event("c", Json::Null, after, streamed(1, 1)));
        assert_eq!(decoded.letters, []);
        decoded.markers
    };
    assert_eq!(markers(row(1, "a", "")), []);
    let added = json!({"id": 2, "title": "a", "body": "", "extra": 1});
    assert_eq!(markers(added.clone()), [changed(&["extra"], &[])]);
    assert_eq!(markers(added), []);
    let renamed = json!({"id": 2, "subject": "a", "body": ""});
    assert_eq!(markers(renamed), [changed(&["subject"], &["title"])]);
}

#[test]
fn b10_a_row_that_moves_to_another_leaf_is_a_delete_and_a_create() {
    // Leaf topics are tables of their own here: each sees its half.
    let (mut left, mut right) = (Topic::debezium(tickets()), Topic::debezium(tickets()));
    left.send(&event("c", Json::Null, row(1, "a", "b"), streamed(1, 10)));
    left.send(&event("d", key_only(1), Json::Null, streamed(2, 20)));
    right.send(&event("c", Json::Null, row(1, "a", "b"), streamed(2, 21)));
    assert_eq!(
        (left.json(), right.json()),
        (json!([]), json!([[1, "a", "b"]]))
    );
    // Without the old key in a header an unsent value cannot be known.
    let moved = event("c", Json::Null, row(2, "a", UNAVAILABLE), streamed(3, 30));
    assert_eq!(
        right.refuse(&moved),
        "unavailable-value: row 2: a value was not sent and the row that has it is not known"
    );
    assert_eq!(right.table.parked_rows(), 1);
}

// The eleventh, values, is in `types.rs`.

#[test]
fn b12_what_carries_no_row_changes_nothing() {
    let mut topic = Topic::debezium(tickets());
    let heartbeat = Message::new(
        json!({"serverName": "app"}),
        json!({"ts_ms": 1_763_719_200_000_u64}),
    );
    let decoded = topic.decode(0, &heartbeat);
    assert!(matches!(
        decoded.markers[..],
        [Marker::Signal(SignalMessage::Watermark(
            Watermark::EventTime(_)
        ))]
    ));
    assert_eq!((decoded.changes.len(), decoded.letters.len()), (0, 0));
    let message = json!({"op": "m", "ts_ms": 1, "source": streamed(1, 10),
        "message": {"prefix": "foo", "content": "Ymfy"}});
    let decoded = topic.decode(0, &Message::new(json!({"prefix": "foo"}), message));
    assert_eq!(
        decoded.markers,
        [Marker::Message {
            prefix: "foo".into()
        }]
    );
    let ddl = json!({"databaseName": "app", "ddl": "ALTER TABLE t ADD c int", "ts_ms": 1, "tableChanges": []});
    let decoded = topic.decode(0, &Message::new(json!({"databaseName": "app"}), ddl));
    assert!(matches!(
        decoded.markers[..],
        [Marker::SchemaHistory { .. }]
    ));
    let change = event("c", Json::Null, row(1, "a", ""), streamed(1, 10))
        .header("__debezium.context.connectorName", json!("app"))
        .header("__debezium.context.taskId", json!("0"));
    assert_eq!(topic.decode(0, &change).changes[0].moved, None);
}
