//! Golden files of the language: every statement of `docs/language.md`, supported or refused, with
//! its exact plan or message.
//!
//! A file of `tests/language/` is a list of cases separated by a line `====`; a case is a text, a
//! line `----`, and what comes of it: for each statement its plan (as `EXPLAIN` prints it) or its
//! problem as `code at line:column: detail; expected: …; hint: …`. Every case sees the catalog of
//! [`PRELUDE`]. `REWRITE=1 cargo test -p headwater-queries --test language` writes the files anew;
//! the difference is then read and committed.

use engine::model::ObjectId;
use queries::definition::Object;
use queries::problem::Problem;
use queries::sql::{EmptyCatalog, Planned, explain, plan_text, plan_text_with};

/// What the cases may name.
const PRELUDE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT, lang TEXT, updated_at TIMESTAMPTZ, stars BIGINT);
CREATE SOURCE v FROM PUSH (id TEXT PRIMARY KEY, body TEXT, grp BIGINT, embedding VECTOR(3));
CREATE SOURCE pairs FROM PUSH (a BIGINT, b TEXT, body TEXT, meta JSONB, PRIMARY KEY (a, b));
CREATE MODEL minilm FROM 'sentence-transformers/all-MiniLM-L6-v2';
CREATE MODEL vecs FROM COLUMN WITH (DIMENSIONS = 3);
CREATE VIEW german AS SELECT id, body, updated_at FROM docs WHERE lang = 'de';
CREATE INDEX by_text ON docs USING HYBRID (body) EMBED WITH minilm INCLUDE (lang, updated_at, stars);
CREATE INDEX by_word ON german USING KEYWORD (body);
CREATE INDEX by_vec ON v USING VECTOR (embedding) CHUNK BY none EMBED WITH vecs INCLUDE (grp);
CREATE CACHE answers ON by_text;
";

fn prelude() -> Vec<Object> {
    let mut out = Vec::new();
    for planned in plan_text(PRELUDE, &EmptyCatalog) {
        let Planned::Create(create) = planned.unwrap() else {
            panic!("only CREATE")
        };
        out.push(Object {
            id: ObjectId(u32::try_from(out.len()).unwrap()),
            name: create.name,
            statement: create.statement,
            definition: create.definition,
        });
    }
    out
}

fn shown(problem: &Problem) -> String {
    let mut out = problem.code.clone();
    if let Some(at) = problem.position {
        out += &format!(" at {}:{}", at.line, at.column);
    }
    out += &format!(": {}", problem.detail);
    for (what, text) in [("expected", &problem.expected), ("hint", &problem.hint)] {
        if let Some(text) = text {
            out += &format!("\n    {what}: {text}");
        }
    }
    out
}

fn result(planned: &Result<Planned, Problem>) -> String {
    match planned {
        Err(problem) => shown(problem),
        Ok(plan @ Planned::Select(_)) => explain(plan),
        Ok(Planned::Create(create)) => explain(&Planned::Create(create.clone())),
        Ok(Planned::Explain(explained)) => format!("EXPLAIN\n{}", explained.text),
        Ok(other) => format!("{other:?}"),
    }
}

#[test]
fn every_statement_has_its_plan_or_its_message() {
    let catalog = prelude();
    let params = [
        serde_json::json!("de"),
        serde_json::json!([0.5, 1.0, 2.0]),
        serde_json::json!(7),
    ];
    let rewrite = std::env::var_os("REWRITE").is_some();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/language");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "slt"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut failures = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut cases = Vec::new();
        for case in text.split("\n====\n") {
            let (input, expected) = case.split_once("\n----").unwrap_or((case, ""));
            let input = input.trim_matches('\n');
            if input.is_empty() {
                continue;
            }
            let planned = plan_text_with(input, &catalog, &params);
            let lines: Vec<String> = planned.iter().map(result).collect();
            let found = lines.join("\n");
            if found.trim() != expected.trim() {
                failures.push(format!("{}\n{input}\n---- found\n{found}", path.display()));
            }
            cases.push(format!("{input}\n----\n{found}"));
        }
        if rewrite {
            std::fs::write(&path, cases.join("\n====\n") + "\n").unwrap();
        }
    }
    assert!(rewrite || failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Sources with every option of their formats.
const FORMATS: &str = r#"
CREATE SOURCE a (id BIGINT PRIMARY KEY, s TEXT) FROM KAFKA (BROKERS 'b:9092', TOPIC 't')
    FORMAT AVRO (REGISTRY 'http://r', USER 'it''s', PASSWORD ENV 'P', SCHEMA '{"type":"string"}') ENVELOPE DEBEZIUM;
CREATE SOURCE b (id BIGINT PRIMARY KEY, s TEXT) FROM KAFKA (BROKERS 'b:9092', TOPIC 't')
    KEY FORMAT AVRO (SCHEMA '"long"') VALUE FORMAT AVRO (REGISTRY 'http://r', USER 'u', PASSWORD FILE '/p') ENVELOPE UPSERT;
CREATE SOURCE c (id BIGINT, s TEXT) FROM KAFKA (BROKERS 'b:9092', TOPIC 't') FORMAT AVRO (SCHEMA '"long"');
CREATE SOURCE d (id BIGINT PRIMARY KEY, s TEXT) FROM KAFKA (BROKERS 'b:9092', TOPIC 't')
    FORMAT CSV (DELIMITER '\t', NULL '''', HEADER 's	id') ENVELOPE UPSERT;
CREATE SOURCE e (id BIGINT, s TEXT) FROM KAFKA (BROKERS 'b:9092', TOPIC 't') FORMAT CSV;
"#;

/// Law: the normalised statement of a definition plans to the same definition.
#[test]
fn a_normalised_statement_is_a_fixed_point() {
    let all = format!("{PRELUDE}{FORMATS}");
    for (at, planned) in plan_text(&all, &EmptyCatalog).into_iter().enumerate() {
        let Planned::Create(create) = planned.unwrap() else {
            panic!("only CREATE")
        };
        let catalog: Vec<Object> = prelude().into_iter().take(at).collect();
        let again = plan_text(&create.statement, &catalog)
            .pop()
            .unwrap()
            .unwrap();
        let Planned::Create(again) = again else {
            panic!("only CREATE")
        };
        assert_eq!(again.definition, create.definition, "{}", create.statement);
        assert_eq!(again.statement, create.statement);
    }
}

/// Plans are plain values: they survive a trip to another process.
#[test]
fn plans_are_serialisable() {
    let text = "SELECT chunk, score * 2 AS s FROM search(by_text, 'q', k => 3) WHERE lang = $1 \
                ORDER BY s DESC LIMIT 2 AS OF AT LEAST offset('docs', 0, 812)";
    let plan = plan_text_with(text, &prelude(), &[serde_json::json!("de")])
        .pop()
        .unwrap()
        .unwrap();
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Planned>(&json).unwrap(), plan);
}
