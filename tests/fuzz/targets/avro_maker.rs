//! Schemas of Avro and values of them, by choice: the bytes, and what they are to be read as.

use connectors::format::Node;
use serde_json::{Value as Json, json};

use crate::dice::Dice;

/// Names of fields: the columns that [`super::checks::columns`] has, so that rows come of records.
const FIELDS: [&str; 16] = [
    "k", "b", "i", "l", "r", "d", "n", "w", "t", "y", "z", "s", "a", "j", "u", "v",
];
const PLAIN: [&str; 8] = [
    "string", "long", "bytes", "int", "boolean", "double", "float", "null",
];
const LOGICAL: [(&str, &str); 10] = [
    ("int", "date"),
    ("int", "time-millis"),
    ("long", "time-micros"),
    ("long", "timestamp-millis"),
    ("long", "timestamp-micros"),
    ("long", "timestamp-nanos"),
    ("bytes", "decimal"),
    ("bytes", "big-decimal"),
    ("string", "uuid"),
    ("long", "unheard-of"),
];
const CONNECT: [&str; 8] = [
    "io.debezium.time.MicroTimestamp",
    "io.debezium.time.Date",
    "io.debezium.data.Json",
    "io.debezium.data.Bits",
    "io.debezium.data.VariableScaleDecimal",
    "org.apache.kafka.connect.data.Decimal",
    "org.apache.kafka.connect.data.Timestamp",
    "io.debezium.time.NanoDuration",
];

/// Makes schemas and values; remembers the types that have names.
pub struct Maker<'d> {
    dice: &'d mut Dice,
    names: Vec<(String, Json)>,
}

impl<'d> Maker<'d> {
    pub fn new(dice: &'d mut Dice) -> Maker<'d> {
        Maker {
            dice,
            names: Vec::new(),
        }
    }

    fn define(&mut self, mut schema: Json) -> Json {
        let name = format!("N{}", self.names.len());
        schema["name"] = json!(name);
        self.names.push((name, schema.clone()));
        schema
    }

    /// A record, or an array, a map or a union with records inside.
    pub fn schema(&mut self, depth: usize) -> Json {
        match self.dice.index(if depth == 0 { 6 } else { 14 }) {
            0..3 => json!(PLAIN[self.dice.index(PLAIN.len())]),
            3 => {
                let (primitive, logical) = LOGICAL[self.dice.index(LOGICAL.len())];
                json!({"type": primitive, "logicalType": logical, "precision": 20, "scale": 3})
            }
            4 => {
                let name = CONNECT[self.dice.index(CONNECT.len())];
                let scale = self.dice.between(-3, 40).to_string();
                json!({"type": PLAIN[self.dice.index(4)], "connect.name": name,
                    "connect.parameters": {"scale": scale, "length": "9"}})
            }
            5 => match self.dice.chance(50) {
                true => self.define(json!({"type": "enum", "symbols": ["A", "B", "C"]})),
                false => {
                    let (size, logical) =
                        [(5, "none"), (16, "uuid"), (12, "duration"), (8, "decimal")]
                            [self.dice.index(4)];
                    self.define(json!({"type": "fixed", "size": size, "logicalType": logical}))
                }
            },
            6 => json!({"type": "array", "items": self.schema(depth - 1)}),
            7 => json!({"type": "map", "values": self.schema(depth - 1)}),
            8..10 => self.union(depth),
            _ => self.record(depth),
        }
    }

    fn union(&mut self, depth: usize) -> Json {
        let mut branches = vec![json!("null")];
        let mut kinds = vec!["null".to_owned()];
        for _ in 0..1 + self.dice.index(3) {
            let branch = self.schema(depth - 1);
            let kind = match &branch {
                Json::Array(_) => continue,
                branch => word(branch).to_owned(),
            };
            if !kinds.contains(&kind) {
                kinds.push(kind);
                branches.push(branch);
            }
        }
        if self.dice.chance(30) {
            branches.rotate_left(1);
        }
        Json::from(branches)
    }

    pub fn record(&mut self, depth: usize) -> Json {
        // The name first: what lies inside may name it.
        let at = self.names.len();
        let schema = self.define(json!({"type": "record"}));
        let first = self.dice.index(FIELDS.len());
        let mut fields = Vec::new();
        for place in 0..self.dice.index(6) {
            let name = FIELDS[(first + place) % FIELDS.len()];
            let schema = self.schema(depth.saturating_sub(1));
            fields.push(json!({"name": name, "type": schema}));
        }
        if self.dice.chance(20) {
            fields.push(json!({"name": "inner", "type": ["null", schema["name"]]}));
        }
        self.names[at].1["fields"] = Json::from(fields);
        self.names[at].1.clone()
    }

    /// A reader's schema: fields are dropped, renamed, moved, widened, and come with a default.
    pub fn evolved(&mut self, schema: &Json) -> Json {
        let Json::Object(members) = schema else {
            return match schema.as_str() {
                Some("int") if self.dice.chance(30) => json!("long"),
                Some("string") if self.dice.chance(20) => json!("bytes"),
                Some("bytes") if self.dice.chance(20) => json!("string"),
                Some("long") if self.dice.chance(20) => json!(["null", "double"]),
                _ => schema.clone(),
            };
        };
        let mut members = members.clone();
        for inside in ["items", "values"] {
            if let Some(inner) = members.get(inside).cloned() {
                members[inside] = self.evolved(&inner);
            }
        }
        if let Some(Json::Array(fields)) = members.get("fields").cloned() {
            let mut wanted = Vec::new();
            for mut field in fields {
                if self.dice.chance(15) {
                    continue;
                }
                field["type"] = self.evolved(&field["type"]);
                if self.dice.chance(15) {
                    field["aliases"] = json!([field["name"]]);
                    field["name"] = json!("renamed");
                }
                wanted.push(field);
            }
            if self.dice.chance(40) {
                let (schema, default) = [
                    (json!("long"), json!(7)),
                    (json!(["null", "string"]), Json::Null),
                    (
                        json!({"type": "array", "items": "string"}),
                        json!(["x", "y"]),
                    ),
                    (json!("bytes"), json!("\u{0}ÿ")),
                    (json!("string"), json!("new")),
                    (json!("int"), json!("no int")),
                ][self.dice.index(6)]
                .clone();
                wanted.push(json!({"name": "added", "type": schema, "default": default}));
            }
            if self.dice.chance(20) {
                wanted.reverse();
            }
            members["fields"] = Json::from(wanted);
        }
        Json::Object(members)
    }

    /// A value of a schema: its bytes are put behind `out`. `depth` bounds what contains itself.
    pub fn value(&mut self, schema: &Json, depth: usize, out: &mut Vec<u8>) -> Node<'static> {
        match schema {
            Json::String(name) => match self.names.iter().find(|(known, _)| known == name) {
                Some((_, known)) => {
                    let known = known.clone();
                    self.value(&known, depth, out)
                }
                None => self.primitive(name, "", out),
            },
            Json::Array(branches) => self.branch(branches, depth, out),
            schema => self.complex(schema, depth, out),
        }
    }

    fn branch(&mut self, branches: &[Json], depth: usize, out: &mut Vec<u8>) -> Node<'static> {
        let is_null = |branch: &Json| word(branch) == "null";
        let at = match depth {
            0 => branches.iter().position(is_null).unwrap_or(0),
            _ => self.dice.index(branches.len()),
        };
        long(at as i64, out);
        let node = self.value(&branches[at], depth.saturating_sub(1), out);
        let count = |branches: &[Json]| branches.iter().filter(|b| !is_null(b)).count();
        match is_null(&branches[at]) || count(branches) < 2 {
            true => node,
            false => Node::Branch(count(&branches[..at]), Box::new(node)),
        }
    }

    fn complex(&mut self, schema: &Json, depth: usize, out: &mut Vec<u8>) -> Node<'static> {
        let logical = schema["logicalType"].as_str().unwrap_or_default();
        let inside = depth.saturating_sub(1);
        let count = match depth {
            0 => 0,
            _ => self.dice.index(4),
        };
        match schema["type"].as_str().unwrap_or_default() {
            "record" => {
                let fields = schema["fields"].as_array().map(Vec::as_slice);
                let members = fields.unwrap_or_default().iter().map(|field| {
                    let name = field["name"].as_str().unwrap_or_default().to_owned();
                    (name.into(), self.value(&field["type"], inside, out))
                });
                Node::Object(members.collect())
            }
            "enum" => {
                let symbol = self.dice.index(3);
                long(symbol as i64, out);
                Node::Text(["A", "B", "C"][symbol].into())
            }
            "fixed" => {
                let size = schema["size"].as_u64().unwrap_or_default();
                let bytes: Vec<u8> = (0..size).map(|_| self.dice.below(256) as u8).collect();
                out.extend(&bytes);
                match (logical, size) {
                    ("uuid", 16) => Node::Text(uuid(&bytes).into()),
                    ("duration", 12) => Node::Text(duration(&bytes).into()),
                    _ => Node::Bytes(bytes.into()),
                }
            }
            "array" => {
                self.block(count, out);
                let items = (0..count).map(|_| self.value(&schema["items"], inside, out));
                let items = items.collect();
                if count > 0 {
                    long(0, out);
                }
                Node::Array(items)
            }
            "map" => {
                self.block(count, out);
                let entries = (0..count).map(|at| {
                    let name = format!("k{at}");
                    sized(name.as_bytes(), out);
                    (name.into(), self.value(&schema["values"], inside, out))
                });
                let entries = entries.collect();
                if count > 0 {
                    long(0, out);
                }
                Node::Object(entries)
            }
            primitive => self.primitive(primitive, logical, out),
        }
    }

    /// The head of a block, with its length in bytes or without (readers that skip may use it).
    fn block(&mut self, count: usize, out: &mut Vec<u8>) {
        match count > 0 && self.dice.chance(30) {
            true => {
                long(-(count as i64), out);
                long(1, out);
            }
            false => long(count as i64, out),
        }
    }

    fn primitive(&mut self, name: &str, logical: &str, out: &mut Vec<u8>) -> Node<'static> {
        match name {
            "boolean" => {
                let value = self.dice.chance(50);
                out.push(u8::from(value));
                Node::Bool(value)
            }
            "int" => {
                let value = self.dice.number() as i32;
                long(value.into(), out);
                Node::Int(value.into())
            }
            "long" => {
                let value = self.dice.number() as i64 >> self.dice.index(64);
                long(value, out);
                Node::Int(value)
            }
            "float" => {
                let value = self.dice.between(-9, 9) as f32 / 8.0;
                out.extend(value.to_le_bytes());
                Node::Float(value.into())
            }
            "double" => {
                let value = self.dice.between(-9_999, 9_999) as f64 / 8.0;
                out.extend(value.to_le_bytes());
                Node::Float(value)
            }
            "bytes" if logical == "big-decimal" => {
                let (bytes, scale) = (self.dice.bytes(9), self.dice.between(-5, 30));
                let mut inner = Vec::new();
                sized(&bytes, &mut inner);
                long(scale, &mut inner);
                sized(&inner, out);
                Node::Object(vec![
                    ("scale".into(), Node::Int(scale)),
                    ("value".into(), Node::Bytes(bytes.into())),
                ])
            }
            "bytes" => {
                let bytes = self.dice.bytes(20);
                sized(&bytes, out);
                Node::Bytes(bytes.into())
            }
            "string" => {
                let text = ["", "a", "2026-11-21", "{\"a\":1}", "é→", "12.50", "true"];
                let text = text[self.dice.index(text.len())];
                sized(text.as_bytes(), out);
                Node::Text(text.into())
            }
            _ => Node::Null,
        }
    }
}

/// The type's own word: a primitive's or a name, `record`, `array`, …
fn word(schema: &Json) -> &str {
    let own = schema.as_str().or_else(|| schema["type"].as_str());
    own.unwrap_or_default()
}

/// Zig-zag, seven bits a byte.
fn long(value: i64, out: &mut Vec<u8>) {
    let mut left = (value << 1 ^ value >> 63) as u64;
    while left > 0x7f {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn sized(bytes: &[u8], out: &mut Vec<u8>) {
    long(bytes.len() as i64, out);
    out.extend(bytes);
}

fn uuid(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

fn duration(bytes: &[u8]) -> String {
    let part = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let (months, days, millis) = (part(0), part(4), part(8));
    let seconds = f64::from(millis % 60_000) / 1_000.0;
    let (years, months) = (months / 12, months % 12);
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    format!("P{years}Y{months}M{days}DT{hours}H{minutes}M{seconds}S")
}
