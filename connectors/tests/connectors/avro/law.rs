//! Random schemas and values: what the reference implementation writes we read the same; damaged
//! bytes are refused or read as it reads them, and never panic.

use std::collections::HashMap;

use apache_avro::types::Value;
use apache_avro::{Days, Decimal, Duration, Millis, Months, Uuid};
use connectors::format::Node;
use connectors::format::avro::{self, Schema};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

struct Maker {
    rng: ChaCha8Rng,
    names: HashMap<String, Json>,
}

const PLAIN: [&str; 8] = [
    "null", "boolean", "int", "long", "float", "double", "bytes", "string",
];
const LOGICAL: [(&str, &str); 12] = [
    ("int", "date"),
    ("int", "time-millis"),
    ("long", "time-micros"),
    ("long", "timestamp-millis"),
    ("long", "timestamp-micros"),
    ("long", "timestamp-nanos"),
    ("long", "local-timestamp-millis"),
    ("long", "local-timestamp-micros"),
    ("long", "local-timestamp-nanos"),
    ("bytes", "decimal"),
    ("string", "uuid"),
    ("int", "unheard-of"),
];

impl Maker {
    fn name(&mut self) -> String {
        format!("N{}", self.names.len())
    }

    /// A schema; records may name the records that they lie in.
    fn schema(&mut self, depth: usize) -> Json {
        match self.rng.random_range(0..if depth == 0 { 8 } else { 13 }) {
            0..4 => json!(PLAIN[self.rng.random_range(0..PLAIN.len())]),
            4..6 => {
                let (primitive, logical) = LOGICAL[self.rng.random_range(0..LOGICAL.len())];
                json!({"type": primitive, "logicalType": logical, "precision": 20, "scale": 3,
                       "connect.name": "io.debezium.time.MicroTimestamp"})
            }
            6 => {
                let name = self.name();
                let schema = json!({"type": "enum", "name": name, "symbols": ["A", "B", "C"]});
                self.names.insert(name, schema.clone());
                schema
            }
            7 => {
                let name = self.name();
                let (size, logical) = [(5, "none"), (16, "uuid"), (12, "duration"), (8, "decimal")]
                    [self.rng.random_range(0..4)];
                let schema = json!({"type": "fixed", "name": name, "size": size,
                    "logicalType": logical, "precision": 18, "scale": 2});
                self.names.insert(name, schema.clone());
                schema
            }
            8 => json!({"type": "array", "items": self.schema(depth - 1)}),
            9 => json!({"type": "map", "values": self.schema(depth - 1)}),
            10 => self.union(depth),
            _ => self.record(depth),
        }
    }

    fn union(&mut self, depth: usize) -> Json {
        let mut branches = vec![json!("null")];
        let mut kinds = vec!["null".to_owned()];
        for _ in 0..self.rng.random_range(1..4) {
            let branch = self.schema(depth - 1);
            let kind = match &branch {
                Json::String(name) => name.clone(),
                Json::Object(_) => branch["type"].as_str().unwrap().to_owned(),
                _ => continue,
            };
            if !kinds.contains(&kind) {
                kinds.push(kind);
                branches.push(branch);
            }
        }
        if self.rng.random_bool(0.3) {
            branches.rotate_left(1);
        }
        Json::from(branches)
    }

    fn record(&mut self, depth: usize) -> Json {
        let name = self.name();
        self.names.insert(name.clone(), Json::Null);
        let mut fields = Vec::new();
        for at in 0..self.rng.random_range(0..5) {
            let schema = self.schema(depth - 1);
            fields.push(json!({"name": format!("f{at}"), "type": schema}));
        }
        if self.rng.random_bool(0.3) {
            fields.push(json!({"name": "inner", "type": ["null", name]}));
        }
        let schema = json!({"type": "record", "name": name, "fields": fields});
        self.names.insert(name, schema.clone());
        schema
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.rng.random_range(0..=most)];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    fn value(&mut self, schema: &Json, depth: usize) -> Value {
        let object = match schema {
            Json::String(name) => match self.names.get(name).cloned() {
                Some(known) => return self.value(&known, depth),
                None => return self.primitive(name, ""),
            },
            Json::Array(branches) => {
                let branch = match depth {
                    0 => branches.iter().position(|b| b == "null").unwrap(),
                    _ => self.rng.random_range(0..branches.len()),
                };
                let value = self.value(&branches[branch], depth.saturating_sub(1));
                return Value::Union(branch as u32, Box::new(value));
            }
            object => object,
        };
        let logical = object["logicalType"].as_str().unwrap_or_default();
        let count = if depth == 0 {
            0
        } else {
            self.rng.random_range(0..4)
        };
        let depth = depth.saturating_sub(1);
        match object["type"].as_str().unwrap() {
            "record" => {
                let fields = object["fields"].as_array().unwrap();
                let field = |field: &Json| {
                    let name = field["name"].as_str().unwrap().to_owned();
                    (name, self.value(&field["type"], depth))
                };
                Value::Record(fields.iter().map(field).collect())
            }
            "enum" => {
                let at = self.rng.random_range(0..3);
                Value::Enum(at, ["A", "B", "C"][at as usize].to_owned())
            }
            "fixed" => match logical {
                "uuid" => Value::Uuid(Uuid::from_u128(self.rng.random())),
                "duration" => Value::Duration(Duration::new(
                    Months::new(self.rng.random()),
                    Days::new(self.rng.random()),
                    Millis::new(self.rng.random()),
                )),
                "decimal" => Value::Decimal(Decimal::from(self.rng.random::<i64>().to_be_bytes())),
                _ => Value::Fixed(5, self.rng.random::<[u8; 5]>().to_vec()),
            },
            "array" => {
                let items = (0..count).map(|_| self.value(&object["items"], depth));
                Value::Array(items.collect())
            }
            "map" => {
                let entries =
                    (0..count).map(|at| (format!("k{at}"), self.value(&object["values"], depth)));
                Value::Map(entries.collect())
            }
            primitive => self.primitive(primitive, logical),
        }
    }

    fn primitive(&mut self, name: &str, logical: &str) -> Value {
        let shift = self.rng.random_range(0..64);
        let long = self.rng.random::<i64>() >> shift;
        let int = (long >> 32) as i32;
        match (name, logical) {
            (_, "date") => Value::Date(int),
            (_, "time-millis") => Value::TimeMillis(int),
            (_, "time-micros") => Value::TimeMicros(long),
            (_, "timestamp-millis") => Value::TimestampMillis(long),
            (_, "timestamp-micros") => Value::TimestampMicros(long),
            (_, "timestamp-nanos") => Value::TimestampNanos(long),
            (_, "local-timestamp-millis") => Value::LocalTimestampMillis(long),
            (_, "local-timestamp-micros") => Value::LocalTimestampMicros(long),
            (_, "local-timestamp-nanos") => Value::LocalTimestampNanos(long),
            (_, "decimal") => Value::Decimal(Decimal::from(long.to_be_bytes())),
            (_, "uuid") => Value::Uuid(Uuid::from_u128(self.rng.random())),
            ("null", _) => Value::Null,
            ("boolean", _) => Value::Boolean(long & 1 == 1),
            ("int", _) => Value::Int(int),
            ("long", _) => Value::Long(long),
            ("float", _) => Value::Float(int as f32 / 1024.0),
            ("double", _) => Value::Double(long as f64 / 1024.0),
            ("bytes", _) => Value::Bytes(self.bytes(40)),
            (_, _) => {
                let text: String = (0..self.rng.random_range(0..20))
                    .map(|_| ['a', '"', 'é', '→', '\u{1f600}'][self.rng.random_range(0..5)])
                    .collect();
                Value::String(text)
            }
        }
    }

    /// What a value is to us.
    fn node(&self, value: &Value, schema: &Json) -> Node<'static> {
        let text = |text: String| Node::Text(text.into());
        match (value, schema) {
            (value, Json::String(name)) if self.names.contains_key(name) => {
                self.node(value, &self.names[name])
            }
            (Value::Union(at, value), Json::Array(branches)) => {
                let node = self.node(value, &branches[*at as usize]);
                let others = branches.iter().filter(|branch| **branch != "null").count();
                let before = &branches[..*at as usize];
                let place = before.iter().filter(|branch| **branch != "null").count();
                match branches[*at as usize] == "null" || others < 2 {
                    true => node,
                    false => Node::Branch(place, Box::new(node)),
                }
            }
            (Value::Null, _) => Node::Null,
            (Value::Boolean(value), _) => Node::Bool(*value),
            (Value::Int(n) | Value::Date(n) | Value::TimeMillis(n), _) => Node::Int((*n).into()),
            (
                Value::Long(n)
                | Value::TimeMicros(n)
                | Value::TimestampMillis(n)
                | Value::TimestampMicros(n)
                | Value::TimestampNanos(n)
                | Value::LocalTimestampMillis(n)
                | Value::LocalTimestampMicros(n)
                | Value::LocalTimestampNanos(n),
                _,
            ) => Node::Int(*n),
            (Value::Float(x), _) => Node::Float(x.to_string().parse().unwrap()),
            (Value::Double(x), _) => Node::Float(*x),
            (Value::Bytes(bytes) | Value::Fixed(_, bytes), _) => Node::Bytes(bytes.clone().into()),
            (Value::Decimal(decimal), _) => {
                Node::Bytes(<Vec<u8>>::try_from(decimal).unwrap().into())
            }
            (Value::String(value) | Value::Enum(_, value), _) => text(value.clone()),
            (Value::Uuid(uuid), _) => text(uuid.to_string()),
            (Value::Duration(duration), _) => {
                let (months, days): (u32, u32) = (duration.months().into(), duration.days().into());
                let millis: u32 = duration.millis().into();
                let seconds = f64::from(millis % 60_000) / 1_000.0;
                text(format!(
                    "P{}Y{}M{days}DT{}H{}M{seconds}S",
                    months / 12,
                    months % 12,
                    millis / 3_600_000,
                    millis / 60_000 % 60
                ))
            }
            (Value::Array(items), schema) => {
                let items = items.iter().map(|item| self.node(item, &schema["items"]));
                Node::Array(items.collect())
            }
            (Value::Map(entries), schema) => {
                let entries = entries.iter();
                let entries = entries.map(|(name, value)| {
                    (name.clone().into(), self.node(value, &schema["values"]))
                });
                Node::Object(entries.collect())
            }
            (Value::Record(values), schema) => {
                let fields = schema["fields"].as_array().unwrap();
                let members = std::iter::zip(values, fields).map(|((name, value), field)| {
                    (name.clone().into(), self.node(value, &field["type"]))
                });
                Node::Object(members.collect())
            }
            (value, schema) => panic!("{value:?} by {schema}"),
        }
    }
}

/// Maps have no order.
fn sorted(node: Node<'_>) -> Node<'_> {
    match node {
        Node::Object(mut members) => {
            members.sort_by(|(a, _), (b, _)| a.cmp(b));
            let members = members.into_iter().map(|(name, node)| (name, sorted(node)));
            Node::Object(members.collect())
        }
        Node::Array(items) => Node::Array(items.into_iter().map(sorted).collect()),
        Node::Branch(place, node) => Node::Branch(place, Box::new(sorted(*node))),
        node => node,
    }
}

/// 500 schemas, 2,000 values, 120,000 damaged ones.
#[test]
fn values_are_read_as_the_reference_implementation_writes_them() {
    let seed = std::env::var("HEADWATER_SEED").ok();
    let seed = seed.map_or(20_261_121, |seed| seed.parse().unwrap());
    println!("HEADWATER_SEED={seed}");
    apache_avro::util::max_allocation_bytes(1 << 20);
    let (mut damaged, mut read) = (0, 0);
    for round in 0..500 {
        let mut maker = Maker {
            rng: ChaCha8Rng::seed_from_u64(seed + round),
            names: HashMap::new(),
        };
        let schema = maker.record(4);
        let text = schema.to_string();
        let theirs = apache_avro::Schema::parse_str(&text).unwrap();
        let ours = Schema::parse(&text, &[]).unwrap();
        let reader = apache_avro::reader::datum::GenericDatumReader::builder(&theirs);
        let reader = reader.build().unwrap();
        for _ in 0..4 {
            let value = maker.value(&schema, 6);
            let expected = maker.node(&value, &schema);
            let bytes = super::encode_by(&theirs, value);
            let found = avro::decode(&ours, &bytes, "value").unwrap();
            assert_eq!(sorted(found.node), sorted(expected), "{text}");
            for _ in 0..60 {
                let bytes = maker.damage(&bytes);
                damaged += 1;
                let Ok(found) = avro::decode(&ours, &bytes, "value") else {
                    continue;
                };
                read += 1;
                match reader.read_value(&mut &bytes[..]) {
                    Ok(value) => {
                        let expected = maker.node(&value, &schema).to_json();
                        // It writes a uuid's letters small; we leave the text as it came.
                        let same = |json: &Json| json.to_string().to_lowercase();
                        let found = found.node.to_json();
                        assert_eq!(same(&found), same(&expected), "{bytes:?} by {text}");
                    }
                    // A text of a uuid is ours as it came; the column judges it.
                    Err(error) => assert!(text.contains("uuid"), "{error}: {bytes:?} by {text}"),
                }
            }
        }
    }
    println!("{damaged} damaged, {read} of them still values");
    assert!(damaged >= 100_000 && read > 1_000);
}

impl Maker {
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        if bytes.is_empty() || self.rng.random_bool(0.2) {
            return self.bytes(60);
        }
        let mut bytes = bytes.to_vec();
        for _ in 0..self.rng.random_range(1..4) {
            let at = self.rng.random_range(0..bytes.len());
            match self.rng.random_range(0..4) {
                0 => bytes[at] = self.rng.random(),
                1 => bytes[at] ^= 1 << self.rng.random_range(0..8),
                2 => bytes.insert(at, self.rng.random()),
                _ if bytes.len() > 1 => bytes.truncate(at.max(1)),
                _ => {}
            }
        }
        bytes
    }
}
