//! CSV against the `csv` crate, and what columns make of its fields.

use connectors::envelope::{Decoder, Envelope, Options, RawRecord};
use connectors::format::csv::Csv;
use connectors::format::{Format, Node};
use engine::model::SqlType;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};
use std::sync::Arc;

use crate::envelope::schema;

const COLUMNS: [(&str, SqlType); 10] = [
    ("id", SqlType::Int8),
    ("title", SqlType::Text),
    ("price", SqlType::Numeric(10, 2)),
    ("ratio", SqlType::Float8),
    ("is_open", SqlType::Boolean),
    ("day", SqlType::Date),
    ("at", SqlType::TimestampTz),
    ("raw", SqlType::Bytea),
    ("more", SqlType::Jsonb),
    ("ref", SqlType::Uuid),
];

/// Rows, and letters as `code: detail`.
fn decode(csv: Csv, records: &[&str]) -> (Vec<Json>, Vec<String>) {
    let schema = schema(&COLUMNS, &["id"]);
    let options = Options {
        value_format: Format::Csv(Arc::new(csv)),
        ..Options::default()
    };
    let mut decoder = Decoder::new(schema.clone(), Envelope::Append, options);
    let (mut rows, mut letters) = (Vec::new(), Vec::new());
    for record in records {
        let decoded = decoder.decode(&RawRecord {
            key: None,
            value: Some(record.as_bytes()),
            headers: &[],
            topic: "t",
            partition: 0,
            offset: 0,
            timestamp: None,
        });
        let decoded = decoded.expect("nothing to wait for");
        for change in decoded.changes {
            let values = change.row.unwrap().complete().unwrap();
            let row = std::iter::zip(&schema.columns, values);
            rows.push(
                row.map(|(column, value)| value.to_json(column.sql_type))
                    .collect(),
            );
        }
        letters.extend(
            decoded
                .letters
                .iter()
                .map(|letter| format!("{}: {}", letter.code, letter.detail)),
        );
    }
    (rows, letters)
}

fn names() -> Vec<String> {
    COLUMNS.iter().map(|(name, _)| (*name).to_owned()).collect()
}

#[test]
fn fields_are_read_by_their_columns() {
    let full = "7,\"Reset, \"\"please\"\"\",12.5,-1e3,t,2026-11-21,2026-11-21T10:00:00Z,\\x6869,\
                \"{\"\"a\"\":[1]}\",F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6\r\n";
    let empty = "8,,,,,,,,,";
    let quoted = "9,\"\",,NaN,no,,,aGk=,,";
    let (rows, letters) = decode(Csv::new(b',', "", names()), &[full, empty, quoted]);
    assert_eq!(letters, [""; 0]);
    let n = Json::Null;
    assert_eq!(
        rows,
        [
            json!([
                7,
                "Reset, \"please\"",
                "12.50",
                -1000.0,
                true,
                "2026-11-21",
                "2026-11-21T10:00:00.000000Z",
                "aGk=",
                {"a": [1]},
                "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
            ]),
            json!([8, n, n, n, n, n, n, n, n, n]),
            json!([9, "", n, "NaN", false, n, n, "aGk=", n, n]),
        ]
    );
}

#[test]
fn names_in_another_order_another_delimiter_and_null() {
    let header = Csv::header(b';', "title; id ;unknown;day").unwrap();
    let csv = Csv::new(b';', "\\N", header);
    let (rows, letters) = decode(csv, &["a,b;1;x;\\N", "\"\\N\";2;;2026-11-21", ";3;;\\N"]);
    assert_eq!(letters, [""; 0]);
    let short: Vec<Json> = rows
        .iter()
        .map(|row| json!([row[0], row[1], row[5]]))
        .collect();
    assert_eq!(
        short,
        [
            json!([1, "a,b", null]),
            json!([2, "\\N", "2026-11-21"]),
            json!([3, "", null])
        ]
    );
    assert_eq!(
        Csv::header(b',', "a,b,a"),
        Err("\"a\" is no new name".to_owned())
    );
    assert_eq!(
        Csv::header(b',', "a,,b"),
        Err("\"\" is no new name".to_owned())
    );
}

#[test]
fn what_is_refused_and_why() {
    let nine = ",".repeat(9);
    let cases = [
        (
            "1,a".to_owned(),
            "invalid-csv: the value has 2 fields for 10 columns: column \"price\" has none",
        ),
        (
            format!("1,{nine},"),
            "invalid-csv: the value has 12 fields for 10 columns: field 11 has no column",
        ),
        (
            String::new(),
            "invalid-csv: the value has 1 field for 10 columns: column \"title\" has none",
        ),
        (
            format!("x{nine}"),
            "wrong-type: column \"id\": expected bigint, found \"x\"",
        ),
        (
            format!("1,\"a{nine}"),
            "invalid-csv: the value is not a CSV record at byte 2: a quote is not closed",
        ),
        (
            format!("1,\"a\"b{nine}"),
            "invalid-csv: the value is not a CSV record at byte 5: text behind a closing quote",
        ),
        (
            format!("1{nine}\n2{nine}"),
            "invalid-csv: the value is not a CSV record at byte 10: a second line",
        ),
        (
            "1,,1.234,,,,,,,".to_owned(),
            "out-of-range: column \"price\": 1.234 does not fit numeric(10,2)",
        ),
        (
            "1,,,,maybe,,,,,".to_owned(),
            "wrong-type: column \"is_open\": expected boolean, found \"maybe\"",
        ),
        (
            "1,,,,,,,\\xzz,,".to_owned(),
            "wrong-type: column \"raw\": expected bytea, found \"\\\\xzz\"",
        ),
    ];
    for (record, expected) in cases {
        let (rows, letters) = decode(Csv::new(b',', "", names()), &[&record]);
        assert_eq!(
            (rows.len(), &letters[..]),
            (0, &[expected.to_owned()][..]),
            "{record}"
        );
    }
}

/// 100,000 random records: where we read one, the crate reads the same fields.
#[test]
fn records_are_split_as_the_csv_crate_splits_them() {
    let mut rng = ChaCha8Rng::seed_from_u64(20_261_121);
    let alphabet = ["a", "é", ",", ",", "\"", "\"\"", "\"x\"", "\n", "\r\n", " "];
    let mut same = 0;
    for _ in 0..100_000 {
        let record: String = (0..rng.random_range(1..12))
            .map(|_| alphabet[rng.random_range(0..alphabet.len())])
            .collect();
        let mut reader = csv::ReaderBuilder::new();
        let reader = reader.has_headers(false).flexible(true);
        let mut theirs = reader.from_reader(record.as_bytes());
        let theirs: Vec<csv::StringRecord> = theirs.records().map(Result::unwrap).collect();
        let [theirs] = &theirs[..] else { continue };
        let names = (0..theirs.len()).map(|at| format!("c{at}")).collect();
        let ours = Csv::new(b',', "\u{0}", names);
        let Ok(ours) = ours.read(record.as_bytes(), "value") else {
            continue;
        };
        let Node::Object(members) = &ours.node else {
            panic!()
        };
        let fields: Vec<&str> = members
            .iter()
            .filter_map(|(_, node)| node.as_str())
            .collect();
        // The crate passes over empty lines before a record; a message that begins with one is not
        // a record to us.
        assert_eq!(fields, theirs.iter().collect::<Vec<_>>(), "{record:?}");
        same += 1;
    }
    assert!(same > 20_000, "{same}");
}
