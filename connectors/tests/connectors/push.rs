//! Push lines: the exact words of every error, canonical keys, the last line of a key.

use std::collections::BTreeMap;

use connectors::push::{decode, decode_line, decode_lines};
use engine::limits::{KEY_BYTES_MAX, LINE_BYTES_MAX, TEXT_BYTES_MAX};
use engine::model::{Column, Schema, SqlType};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn schema(columns: &[(&str, SqlType, bool)], key: &[usize]) -> Schema {
    let column = |(name, sql_type, nullable): &(&str, SqlType, bool)| Column {
        nullable: *nullable,
        ..Column::new(name, *sql_type)
    };
    Schema {
        columns: columns.iter().map(column).collect(),
        key: key.to_vec(),
    }
}

/// `(id text PRIMARY KEY, title text, count bigint NOT NULL)`
fn tickets() -> Schema {
    let columns = [
        ("id", SqlType::Text, false),
        ("title", SqlType::Text, true),
        ("count", SqlType::Int8, false),
    ];
    schema(&columns, &[0])
}

/// `PRIMARY KEY (tenant, id)`, declared in another order than the columns.
fn composite() -> Schema {
    let columns = [
        ("id", SqlType::Int8, false),
        ("body", SqlType::Text, true),
        ("tenant", SqlType::Text, false),
    ];
    schema(&columns, &[2, 0])
}

fn key_of(sql_type: SqlType, key: &str) -> Result<String, String> {
    let schema = schema(&[("k", sql_type, false)], &[0]);
    let line = format!(r#"{{"op":"upsert","key":{key}}}"#);
    let decoded = decode_line(&schema, line.as_bytes());
    decoded
        .map(|change| change.key.as_str().to_owned())
        .map_err(|error| error.error.detail)
}

/// A naive reading of random lines: the last good line of each key is what counts.
#[test]
fn the_last_line_of_a_key_wins() {
    let seed = 20_261_121;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for round in 0..200 {
        let mut oracle = BTreeMap::new();
        let mut lines = Vec::new();
        let (mut good, mut bad) = (0, Vec::new());
        for number in 1..=rng.random_range(0..20u64) {
            let key = format!("\"k{}\"", rng.random_range(0..4));
            let count = rng.random_range(0..100);
            let line = match rng.random_range(0..4) {
                0 => {
                    bad.push(number);
                    format!(r#"{{"op":"upsert","key":{key},"value":{{"count":"{count}"}}}}"#)
                }
                1 => {
                    oracle.insert(key.clone(), (number, false));
                    format!(r#"{{"op":"delete","key":{key}}}"#)
                }
                _ => {
                    oracle.insert(key.clone(), (number, true));
                    format!(r#"{{"op":"upsert","key":{key},"value":{{"count":{count}}}}}"#)
                }
            };
            good += u64::from(bad.last() != Some(&number));
            lines.push((number, line));
        }
        let numbered = || {
            lines
                .iter()
                .map(|(number, line)| (*number, line.as_bytes()))
        };
        let batch = decode_lines(&tickets(), numbered());
        let found: BTreeMap<_, _> = batch
            .changes
            .iter()
            .map(|(number, change)| {
                let key = change.key.as_str().to_owned();
                (key, (*number, change.values.is_some()))
            })
            .collect();
        assert_eq!(found, oracle, "seed {seed}, round {round}");
        assert_eq!(found.len(), batch.changes.len(), "one change a key");
        let rejected: Vec<u64> = batch.rejected.iter().map(|(number, _)| *number).collect();
        assert_eq!(rejected, bad, "seed {seed}, round {round}");
        let decoded = decode(&tickets(), numbered());
        assert_eq!(decoded.accepted, good, "superseded lines are accepted");
        assert_eq!(decoded.changes.len(), oracle.len());
    }
}

#[test]
fn damaged_lines_never_panic() {
    let seed = 20_261_121;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let line = r#"{"op":"upsert","key":{"tenant":"ü","id":7},"value":{"body":"x"},"version":3}"#;
    for _ in 0..5_000 {
        let mut bytes = line.as_bytes().to_vec();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random(),
                1 => bytes.truncate(at + 1),
                _ => bytes.insert(at, b"{}[]\",:0-"[rng.random_range(0..9)]),
            }
        }
        let decoded = decode(&composite(), [(1, &*bytes)]);
        let lines = decoded.accepted + decoded.rejected.len() as u64;
        assert_eq!(lines, 1, "seed {seed}: {}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn errors_say_what_and_where() {
    // (line, code, detail, expected)
    let cases = [
        (
            r#"{"op":"upsert""#,
            "invalid-json",
            "the line is not valid JSON at column 14: EOF while parsing an object",
            "UTF-8 JSON",
        ),
        (
            r#"{"op" "upsert"}"#,
            "invalid-json",
            "the line is not valid JSON at column 7: expected `:`",
            "UTF-8 JSON",
        ),
        (
            "[1]",
            "wrong-type",
            "the line is not a JSON object",
            r#"{"op":"upsert","key":…,"value":{…}}"#,
        ),
        (
            r#"{"op":"insert","key":"a"}"#,
            "bad-op",
            r#""op" is "insert""#,
            r#""upsert" or "delete""#,
        ),
        (
            r#"{"key":"a"}"#,
            "bad-op",
            r#""op" is nothing"#,
            r#""upsert" or "delete""#,
        ),
        (
            r#"{"op":7,"key":"a"}"#,
            "bad-op",
            r#""op" is 7"#,
            r#""upsert" or "delete""#,
        ),
        (
            r#"{"op":"upsert","key":"a","vlaue":{}}"#,
            "unknown-field",
            r#"unknown field "vlaue""#,
            "op, key, value, version",
        ),
        (
            r#"{"op":"upsert","key":"a","value":{"count":1,"x":2}}"#,
            "unknown-field",
            r#""value" has an unknown field "x""#,
            "id, title, count",
        ),
        (
            r#"{"op":"upsert","key":"a","value":{"count":"x"}}"#,
            "wrong-type",
            r#"column "count": expected bigint, found "x""#,
            "bigint",
        ),
        (
            r#"{"op":"upsert","key":1,"value":{"count":1}}"#,
            "wrong-type",
            r#"column "id": expected text, found 1"#,
            "text",
        ),
        (
            r#"{"op":"upsert","value":{"count":1}}"#,
            "missing-key",
            r#"the line has no "key""#,
            r#"the bare value of "id""#,
        ),
        (
            r#"{"op":"delete","key":null}"#,
            "missing-key",
            r#"the line has no "key""#,
            r#"the bare value of "id""#,
        ),
        (
            r#"{"op":"upsert","key":"a"}"#,
            "missing-value",
            r#"an upsert has no "value""#,
            "an object with the columns",
        ),
        (
            r#"{"op":"upsert","key":"a","value":3}"#,
            "wrong-type",
            r#""value" is 3"#,
            "an object with the columns",
        ),
        (
            r#"{"op":"delete","key":"a","value":{}}"#,
            "unexpected-value",
            r#"a delete has a "value""#,
            "",
        ),
        (
            r#"{"op":"upsert","key":"a","value":{"id":"b","count":1}}"#,
            "contradicting-key",
            r#"column "id": "key" says "a", "value" says "b""#,
            "",
        ),
        (
            r#"{"op":"upsert","key":"a","value":{"title":"t"}}"#,
            "null-value",
            r#"column "count": NULL in a NOT NULL column"#,
            "bigint",
        ),
        (
            r#"{"op":"upsert","key":"a","value":{"count":null}}"#,
            "null-value",
            r#"column "count": NULL in a NOT NULL column"#,
            "bigint",
        ),
        (
            r#"{"op":"delete","key":"a","version":-1}"#,
            "wrong-type",
            r#""version" is -1"#,
            "an integer from 0 to 18446744073709551615",
        ),
        (
            r#"{"op":"delete","key":"a","version":1.5}"#,
            "wrong-type",
            r#""version" is 1.5"#,
            "an integer from 0 to 18446744073709551615",
        ),
        (
            r#"{"op":"delete","key":"a","version":"7"}"#,
            "wrong-type",
            r#""version" is "7""#,
            "an integer from 0 to 18446744073709551615",
        ),
    ];
    for (line, code, detail, expected) in cases {
        let error = decode_line(&tickets(), line.as_bytes()).expect_err(line);
        assert_eq!(
            (&*error.error.code, &*error.error.detail),
            (code, detail),
            "{line}"
        );
        assert_eq!(
            error.error.expected.as_deref().unwrap_or(""),
            expected,
            "{line}"
        );
    }
    let line = r#"{"op":"delete","key":"a","version":18446744073709551615}"#;
    let change = decode_line(&tickets(), line.as_bytes()).expect("the largest version");
    assert_eq!(change.version, Some(u64::MAX));
}

#[test]
fn limits_are_named() {
    let details = |line: &[u8]| {
        let error = decode_line(&tickets(), line).expect_err("too large");
        (error.error.code, error.error.detail)
    };
    let upsert = |key: usize, title: usize| {
        let (key, title) = ("k".repeat(key), "t".repeat(title));
        format!(r#"{{"op":"upsert","key":"{key}","value":{{"title":"{title}","count":1}}}}"#)
    };
    let pair = |code: &str, detail: &str| (code.to_owned(), detail.to_owned());
    // The key's quotation marks count.
    let fits = upsert(KEY_BYTES_MAX - 2, TEXT_BYTES_MAX);
    assert!(decode_line(&tickets(), fits.as_bytes()).is_ok());
    assert_eq!(
        details(upsert(KEY_BYTES_MAX - 1, 1).as_bytes()),
        pair(
            "key-too-large",
            "the key has 4097 bytes; the limit KEY_BYTES_MAX is 4096"
        )
    );
    assert_eq!(
        details(upsert(1, TEXT_BYTES_MAX + 1).as_bytes()),
        pair(
            "text-too-large",
            "column \"title\": the text has 8388609 bytes; the limit TEXT_BYTES_MAX is 8388608"
        )
    );
    assert_eq!(
        details(&vec![b' '; LINE_BYTES_MAX + 1]),
        pair(
            "line-too-large",
            "the line has 16777217 bytes; the limit LINE_BYTES_MAX is 16777216"
        )
    );
    assert_eq!(
        details(b"{\"op\":\xff}"),
        pair("invalid-utf8", "the line is not UTF-8 at byte 6")
    );
    assert_eq!(
        details(b"\xff"),
        pair("invalid-utf8", "the line is not UTF-8 at byte 0")
    );
}

#[test]
fn composite_keys_are_canonical() {
    for line in [
        r#"{"op":"upsert","key":{"id":7,"tenant":"a"},"value":{"body":"x"}}"#,
        r#"{"value":{"body":"x","id":7},"key":{"tenant" : "a", "id" : 7},"op":"upsert"}"#,
    ] {
        let change = decode_line(&composite(), line.as_bytes()).expect(line);
        assert_eq!(change.key.as_str(), r#"{"tenant":"a","id":7}"#);
    }
    let expected = Some("an object with tenant, id".to_owned());
    for (key, code, detail) in [
        ("3", "wrong-type", r#""key" is 3"#),
        (r#"{"tenant":"a"}"#, "missing-key", r#""key" has no "id""#),
        (
            r#"{"tenant":"a","id":null}"#,
            "missing-key",
            r#""key" has no "id""#,
        ),
        (
            r#"{"tenant":"a","id":1,"x":2}"#,
            "unknown-field",
            r#""key" has an unknown field "x""#,
        ),
    ] {
        let line = format!(r#"{{"op":"delete","key":{key}}}"#);
        let error = decode_line(&composite(), line.as_bytes()).expect_err(key);
        assert_eq!((&*error.error.code, &*error.error.detail), (code, detail));
        assert_eq!(error.error.expected, expected, "{key}");
    }
}

/// A letter is a few sentences, whatever a line has for a name.
#[test]
fn names_of_unknown_fields_are_shortened() {
    let long = "x".repeat(100_000);
    let shown = format!("\"{}…\"", "x".repeat(80));
    for line in [
        format!(r#"{{"op":"delete","key":{{"tenant":"a","id":1}},"{long}":1}}"#),
        format!(r#"{{"op":"delete","key":{{"tenant":"a","id":1,"{long}":1}}}}"#),
        format!(r#"{{"op":"upsert","key":{{"tenant":"a","id":1}},"value":{{"{long}":1}}}}"#),
    ] {
        let refused = decode_line(&composite(), line.as_bytes()).unwrap_err();
        assert_eq!(refused.error.code, "unknown-field");
        assert!(refused.error.detail.ends_with(&shown), "{}", refused.error);
    }
}

#[test]
fn equal_keys_are_one_key() {
    let one = |sql_type, key: &str| key_of(sql_type, key).expect(key);
    for key in ["1", "1.0", "1e0"] {
        assert_eq!(one(SqlType::Float8, key), "1.0");
    }
    assert_eq!(one(SqlType::Float8, "-0.0"), "0.0");
    for key in ["1", "1.0", "\"1.00\""] {
        assert_eq!(one(SqlType::Numeric(10, 2), key), "\"1.00\"");
    }
    for key in [
        "\"550E8400-E29B-41D4-A716-446655440000\"",
        "\"550e8400e29b41d4a716446655440000\"",
    ] {
        let canonical = "\"550e8400-e29b-41d4-a716-446655440000\"";
        assert_eq!(one(SqlType::Uuid, key), canonical);
    }
    assert_eq!(one(SqlType::Int8, "1"), "1");
    assert_eq!(
        key_of(SqlType::Int8, "1.0").expect_err("not an integer"),
        "column \"k\": expected bigint, found 1.0"
    );
    assert_eq!(
        key_of(SqlType::Float8, "\"NaN\"").expect_err("NaN"),
        "column \"k\": NaN cannot be a key: it equals nothing"
    );
    assert_eq!(one(SqlType::Float8, "\"-Infinity\""), "\"-Infinity\"");
}
