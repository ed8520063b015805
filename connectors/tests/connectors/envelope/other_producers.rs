//! Schema-carrying PostgreSQL events, other connectors of Debezium, and Arroyo: the same decoder.

use connectors::envelope::{ChangeKind, Envelope, Options};
use engine::model::SqlType;
use serde_json::{Value as Json, json};

use super::{Message, Topic, event, schema, tickets};

#[test]
fn a_schema_carrying_event_of_postgresql() {
    let columns = [
        ("id", SqlType::Int8),
        ("price", SqlType::Numeric(10, 2)),
        ("at", SqlType::Timestamp),
    ];
    let mut topic = Topic::debezium(schema(&columns, &["id"]));
    let image = |name: &str| {
        json!({"type": "struct", "optional": true, "field": name, "name": "app.public.t.Value",
        "fields": [
            {"type": "int64", "optional": false, "field": "id"},
            {"type": "bytes", "optional": true, "name": "org.apache.kafka.connect.data.Decimal", "version": 1,
             "parameters": {"scale": "2", "connect.decimal.precision": "10"}, "field": "price"},
            {"type": "int64", "optional": true, "name": "io.debezium.time.MicroTimestamp", "version": 1, "field": "at"}]})
    };
    let schema = json!({"type": "struct", "optional": false, "name": "app.public.t.Envelope", "version": 2,
        "fields": [image("before"), image("after"),
            {"type": "string", "optional": false, "field": "op"}]});
    let value = json!({"schema": schema, "payload": {"before": null,
        "after": {"id": 1, "price": "MDk=", "at": 1_795_255_200_000_000_i64},
        "source": super::streamed(1, 10), "op": "c"}});
    let key = json!({"schema": {"type": "struct", "optional": false, "name": "app.public.t.Key",
        "fields": [{"type": "int64", "optional": false, "field": "id"}]}, "payload": {"id": 1}});
    let message = Message::new(key.clone(), value);
    topic.send(&message);
    assert_eq!(
        topic.json(),
        json!([[1, "123.45", "2026-11-21T10:00:00.000000"]])
    );
    // The tombstone of a lone key, wrapped.
    topic.send(&Message::new(key, json!({"schema": null, "payload": null})));
    assert_eq!(topic.json(), json!([]));
}

#[test]
fn mysql() {
    let mut topic = Topic::debezium(tickets());
    let source = |snapshot: &str, pos: u64| {
        json!({"version": "3.3.1.Final", "connector": "mysql", "name": "app",
        "snapshot": snapshot, "db": "app", "table": "tickets", "server_id": 223344, "gtid": null,
        "file": "binlog.000003", "pos": pos, "row": 0, "thread": 7, "query": null})
    };
    let row = |title: &str| json!({"id": 1, "title": title, "body": "b"});
    topic.send(&event("r", Json::Null, row("read"), source("first", 100)));
    topic.send(&event(
        "u",
        row("read"),
        row("changed"),
        source("false", 200),
    ));
    let change = topic.decode(
        0,
        &event("u", row("changed"), row("again"), source("false", 300)),
    );
    let position = change.changes[0]
        .order
        .log()
        .expect("a place in the binlog");
    assert_eq!((position.commit, position.lsn), (3, 3 << 40 | 300));
    assert_eq!(topic.json(), json!([[1, "changed", "b"]]));
    // A key change: `before` images are whole.
    topic.send(
        &event("d", row("changed"), Json::Null, source("false", 400))
            .header("__debezium.newkey", json!({"id": 2})),
    );
    topic.send(&Message::tombstone(json!({"id": 1})));
    topic.send(
        &event(
            "c",
            Json::Null,
            json!({"id": 2, "title": "changed", "body": "b"}),
            source("false", 400),
        )
        .header("__debezium.oldkey", json!({"id": 1})),
    );
    assert_eq!(topic.json(), json!([[2, "changed", "b"]]));
}

#[test]
fn a_second_snapshot_of_mysql_over_several_partitions_deletes_nothing() {
    let mut topic = Topic::new(tickets(), Envelope::Debezium, Options::default(), 2);
    let read = |id: i64, snapshot: &str| {
        let source = json!({"version": "3.3.1.Final", "connector": "mysql", "name": "app",
            "snapshot": snapshot, "db": "app", "table": "tickets", "server_id": 1, "gtid": null,
            "file": "binlog.000003", "pos": 100, "row": 0});
        let row = json!({"id": id, "title": "read", "body": "b"});
        event("r", Json::Null, row, source)
    };
    topic.send_to(0, &read(1, "first"));
    topic.send_to(1, &read(2, "true"));
    // The second run: what the other partition has of it arrives before its first.
    topic.send_to(1, &read(2, "true"));
    topic.send_to(1, &read(4, "last"));
    let again = topic.send_to(0, &read(3, "first"));
    assert_eq!(again.letters[0].code, "snapshot-order-unknown");
    let live: Vec<_> = topic.rows.0.keys().cloned().collect();
    assert_eq!(topic.table.sweep(&live), []);
    assert_eq!(live.len(), 4);
}

#[test]
fn a_truncate_of_another_mysql_server_leaves_what_was_written_after_it() {
    let mut topic = Topic::new(tickets(), Envelope::Debezium, Options::default(), 2);
    let source = |server: u64, count: u64, place: (u64, u64), ts_ms: u64| {
        json!({"version": "3.3.1.Final", "connector": "mysql", "name": "app", "snapshot": "false",
            "db": "app", "table": "tickets", "server_id": server, "gtid": format!("u-{server}:{count}"),
            "file": format!("binlog.{:06}", place.0), "pos": place.1, "row": 0, "ts_ms": ts_ms})
    };
    let row = |id: i64, source: Json| {
        let row = json!({"id": id, "title": "a", "body": "b"});
        event("c", Json::Null, row, source)
    };
    topic.send_to(0, &row(1, source(1, 7, (40, 100), 1_000)));
    topic.send_to(1, &row(2, source(1, 8, (40, 200), 2_000)));
    // A failover to a server whose files are further on; row 3 runs ahead of the truncate.
    topic.send_to(1, &row(3, source(2, 2, (90, 300), 4_000)));
    let mut truncate = event("t", Json::Null, Json::Null, source(2, 1, (90, 200), 3_000));
    truncate.key = None;
    let applied = topic.send_to(0, &truncate);
    // Row 2 is of another log: the clocks say that it is older, and a letter that it is only they.
    assert_eq!(topic.json(), json!([[3, "a", "b"]]));
    assert_eq!(applied.letters[0].code, "truncate-order-unknown");
    assert_eq!(topic.send_to(1, &truncate).dropped, 1);
    // Of the first server, late in its partition: lower places say nothing.
    topic.send_to(1, &row(4, source(1, 9, (41, 10), 5_000)));
    assert_eq!(topic.json(), json!([[3, "a", "b"], [4, "a", "b"]]));
}

#[test]
fn sql_server() {
    let mut topic = Topic::debezium(tickets());
    let source = json!({"version": "3.3.1.Final", "connector": "sqlserver", "name": "app", "snapshot": "false",
        "db": "app", "schema": "dbo", "table": "tickets", "change_lsn": "00000027:00000758:0003",
        "commit_lsn": "00000027:00000758:0005", "event_serial_no": 1});
    let row = json!({"id": 1, "title": "a", "body": "b"});
    let decoded = topic.decode(0, &event("c", Json::Null, row.clone(), source.clone()));
    let position = decoded.changes[0].order.log().expect("a place in the log");
    assert_eq!((decoded.letters.len(), position.index), (0, 1));
    topic.send(&event("c", Json::Null, row.clone(), source.clone()));
    topic.send(&event("d", row, Json::Null, source));
    assert_eq!(topic.json(), json!([]));
}

#[test]
fn mongodb_documents_are_text() {
    // Documents as text: see the shapes. Unwrapped by its ExtractNewDocumentState they are rows, with `_id` as their key.
    let columns = [
        ("_id", SqlType::Text),
        ("title", SqlType::Text),
        ("tags", SqlType::Jsonb),
    ];
    let mut topic = Topic::debezium(schema(&columns, &["_id"]));
    let key = json!({"_id": "64b7f0c2a1"});
    let value = json!({"_id": "64b7f0c2a1", "title": "a", "tags": ["x", "y"]});
    topic.send(&Message::new(key.clone(), value));
    assert_eq!(topic.json(), json!([["64b7f0c2a1", "a", ["x", "y"]]]));
    topic.send(&Message::tombstone(key));
    assert_eq!(topic.json(), json!([]));
}

#[test]
fn arroyo() {
    let mut topic = Topic::debezium(tickets());
    let row = |id: i64, title: &str| json!({"id": id, "title": title, "body": "b"});
    let message = |before: Json, after: Json, op: &str| Message {
        value: Some(json!({"before": before, "after": after, "op": op}).to_string()),
        ..Message::default()
    };
    topic.send(&message(Json::Null, row(1, "a"), "c"));
    topic.send(&message(row(1, "a"), row(1, "b"), "u"));
    assert_eq!(topic.json(), json!([[1, "b", "b"]]));
    let decoded = topic.decode(0, &message(row(1, "b"), row(2, "b"), "u"));
    let kinds: Vec<ChangeKind> = decoded.changes.iter().map(|change| change.kind).collect();
    assert_eq!(kinds, [ChangeKind::Delete, ChangeKind::Update]);
    topic.send(&message(row(1, "b"), row(2, "c"), "u"));
    assert_eq!(topic.json(), json!([[2, "c", "b"]]));
    topic.send(&message(row(2, "c"), Json::Null, "d"));
    assert_eq!(topic.json(), json!([]));
}

#[test]
fn unwrapped_rows_with_their_positions() {
    let mut topic = Topic::debezium(tickets());
    let row = |op: &str, title: &str, commit: u64, lsn: u64| {
        let value = json!({"id": 1, "title": title, "body": "b", "__op": op, "__deleted": "false",
            "__lsn": lsn, "__source_sequence": format!("[\"{commit}\",\"{lsn}\"]"), "__transaction_id": "7:9"});
        Message::new(json!({"id": 1}), value)
    };
    topic.send(&row("c", "a", 1, 10));
    topic.send(&row("u", "b", 2, 20));
    assert_eq!(topic.send(&row("c", "a", 1, 10)).dropped, 1);
    assert_eq!(topic.json(), json!([[1, "b", "b"]]));
    let decoded = topic.decode(0, &row("u", "c", 3, 30));
    assert_eq!(decoded.changes[0].transaction.as_deref(), Some("7"));
}

#[test]
fn unwrapped_key_changes_meet() {
    let row = |id: i64, body: &str| {
        let value = json!({"id": id, "title": "a", "body": body, "__op": "c", "__lsn": 20,
            "__source_sequence": "[\"10\",\"20\"]"});
        Message::new(json!({"id": id}), value)
    };
    let delete = Message::tombstone(json!({"id": 1})).header("__debezium.newkey", json!({"id": 2}));
    let create =
        row(2, "__debezium_unavailable_value").header("__debezium.oldkey", json!({"id": 1}));
    for order in [[&delete, &create], [&create, &delete]] {
        let mut topic = Topic::debezium(tickets());
        topic.send(&row(1, "long"));
        for message in order {
            topic.send(message);
        }
        assert_eq!(topic.json(), json!([[2, "a", "long"]]));
    }
}
