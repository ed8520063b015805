//! A broker that asks for TLS and a password. Only with `--features kafka-tls`, which builds
//! librdkafka with an OpenSSL: `docs/operations.md` has the command.

use serde_json::{Value as Json, json};

use crate::alone;
use crate::program::Program;
use crate::servers::kafka::{Kafka, Secure};
use crate::servers::{PASSWORD, Run, USER};

const ALL: &str = "SELECT id, age FROM";

/// A source of the topic `users` through the listener with TLS and passwords.
fn source(name: &str, secure: &Secure, mechanism: &str, secret: &str, more: &str) -> String {
    format!(
        "CREATE SOURCE {name} (id TEXT PRIMARY KEY, age INTEGER) FROM KAFKA (BROKERS '{}', \
         TOPIC 'users', SECURITY PROTOCOL 'sasl_ssl', SASL MECHANISM '{mechanism}', \
         SASL USERNAME '{USER}', SASL PASSWORD SECRET {secret}{more}) \
         KEY FORMAT TEXT VALUE FORMAT JSON ENVELOPE UPSERT;\n",
        secure.bootstrap
    )
}

fn put(kafka: &Kafka, key: &str, age: &Json) {
    let value = json!({ "age": age }).to_string();
    let record = (Some(key.as_bytes()), Some(value.as_bytes()));
    kafka.produce("users", 0, &[record]);
}

/// Log lines of a source that have all of these.
fn told(program: &Program, source: &str, words: &[&str]) -> bool {
    let log = program.log();
    log.lines()
        .filter(|line| line.contains(&format!("\"{source}\"")))
        .any(|line| words.iter().all(|word| line.contains(word)))
}

#[test]
fn passwords_over_tls_are_read_with_and_what_is_wrong_is_said() {
    let _alone = alone();
    let run = Run::new("kafka-tls");
    let kafka = Kafka::start_secure(&run);
    let secure = kafka.secure.as_ref().expect("started with it");
    kafka.create_topic("users", 1, &[]);
    kafka.create_topic("users.dead", 1, &[]);
    let files = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, text).expect("writable");
        path.display().to_string()
    };
    let wrong = file("wrong", "not the password\n");
    let authority = format!(", SSL CA LOCATION '{}'", secure.authority.display());
    let letters = format!("{authority}, DEAD LETTER TOPIC 'users.dead'");
    let pipeline = format!(
        "CREATE SECRET pw AS FILE '{}';\nCREATE SECRET later AS FILE '{wrong}';\n",
        file("right", &format!("{PASSWORD}\n"))
    ) + &source("by_512", secure, "SCRAM-SHA-512", "pw", &letters)
        + &source("by_256", secure, "SCRAM-SHA-256", "pw", &authority)
        + &source("by_plain", secure, "PLAIN", "pw", &authority)
        + &source("refused", secure, "SCRAM-SHA-512", "later", &authority)
        + &source("doubting", secure, "SCRAM-SHA-512", "pw", "");
    put(&kafka, "a", &json!(1));
    put(&kafka, "bad", &json!("old"));
    let mut program = Program::start(&pipeline);
    let mut expected = vec![vec![json!("a"), json!(1)]];
    for name in ["by_512", "by_256", "by_plain"] {
        program.wait_rows(&format!("{ALL} {name} ORDER BY id"), &expected);
    }
    // The producer of dead letters comes in the same way.
    let letter = &kafka.wait_records("users.dead", 1)[0];
    assert_eq!(letter.key_text(), "bad");

    // librdkafka's words, and ours.
    program.wait("the wrong password is named", |program| {
        let words = ["invalid credentials", "SASL PASSWORD"];
        told(program, "refused", &words)
    });
    program.wait("the unknown authority is named", |program| {
        let words = ["certificate verify failed", "SSL CA LOCATION"];
        told(program, "doubting", &words)
    });
    for name in ["refused", "doubting"] {
        program.wait_rows(&format!("{ALL} {name}"), &[]);
    }

    // A secret is read again at the next start.
    file("wrong", PASSWORD);
    program.kill();
    put(&kafka, "b", &json!(2));
    program.restart();
    expected.push(vec![json!("b"), json!(2)]);
    for name in ["by_512", "by_256", "by_plain", "refused"] {
        program.wait_rows(&format!("{ALL} {name} ORDER BY id"), &expected);
    }
    keeps_its_secrets(&program);
}

/// The statement has the secret's name, and what is read by it holds it.
fn keeps_its_secrets(program: &Program) {
    let ask = |sql: &str| program.post("/v1/sql", &json!({ "sql": sql }));
    let (status, shown) = ask("SHOW CREATE SOURCE by_512");
    let shown = shown.to_string();
    assert_eq!(status, 200, "{shown}");
    assert!(shown.contains("SASL PASSWORD = SECRET pw"), "{shown}");
    assert!(!shown.contains(&format!("'{PASSWORD}'")), "{shown}");
    let (status, refused) = ask("DROP SECRET pw");
    assert_eq!((status, &refused["code"]), (409, &json!("has-dependents")));
}
