//! A registry over HTTP: asked once, waited for while it fails, believed when it says no.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use connectors::envelope::{Decoded, Decoder, Envelope, Options, RawRecord};
use connectors::format::avro::{Address, Registry, Schema, SchemaId, Schemas};
use connectors::format::{Failure, Format};
use engine::error::DataError;
use engine::model::SqlType;
use serde_json::{Value as Json, json};

use crate::envelope::schema;

type Handler = dyn Fn(&str) -> (u16, String) + Send + Sync;

/// A server of one test: answers by a function, remembers what it was asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> Server {
        Server::on(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    fn on(
        listener: TcpListener,
        answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static,
    ) -> Server {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, log): (Arc<Handler>, _) = (Arc::new(answer), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                std::thread::spawn(move || serve(&stream, &*answer, &log));
            }
        });
        Server { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn registry(&self, path: &str) -> Registry {
        registry(&format!("{}{path}", self.url), None)
    }
}

fn registry(url: &str, login: Option<(&str, &str)>) -> Registry {
    let login = login.map(|(user, password)| (user.to_owned(), password.to_owned()));
    let url = url.to_owned();
    Registry::new(&Address { url, login }, None)
}

fn serve(stream: &TcpStream, answer: &Handler, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut line, mut login) = (String::new(), String::new(), String::new());
    if reader.read_line(&mut first).is_err() {
        return;
    }
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        if let Some(value) = line.to_lowercase().strip_prefix("authorization: ") {
            login = format!(" {}", &line[line.len() - value.len()..].trim());
        }
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap().push(format!("{path}{login}"));
    let (status, body) = answer(&path);
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    let _ = stream.write_all((head + &body).as_bytes());
}

fn has(schema: &Json) -> (u16, String) {
    (200, json!({"schema": schema.to_string()}).to_string())
}

fn unknown() -> (u16, String) {
    let body = json!({"error_code": 40_403, "message": "Schema not found"});
    (404, body.to_string())
}

fn int_record() -> Json {
    json!({"type": "record", "name": "R", "fields": [{"name": "id", "type": "int"}]})
}

/// Asks until there is an answer; how long it was told to wait each time.
fn patient(registry: &Registry, id: SchemaId) -> (Result<Arc<Schema>, DataError>, Vec<Duration>) {
    let (mut waits, begun) = (Vec::new(), Instant::now());
    loop {
        let asked = Instant::now();
        match registry.schema(id) {
            Ok(schema) => return (Ok(schema), waits),
            Err(Failure::Data(error)) => return (Err(error), waits),
            Err(Failure::Wait(wait)) => {
                assert!(
                    asked.elapsed() < Duration::from_secs(8),
                    "a stop would be late"
                );
                assert!(
                    begun.elapsed() < Duration::from_secs(90),
                    "{:?}",
                    wait.error
                );
                waits.push(wait.after);
                std::thread::sleep(wait.after);
            }
        }
    }
}

/// A source of `(id BIGINT)` with the schemas of a registry.
fn decoder(registry: Registry) -> Decoder {
    let columns = schema(&[("id", SqlType::Int8)], &[]);
    let options = Options {
        value_format: Format::Avro(Schemas::Registry(registry)),
        ..Options::default()
    };
    Decoder::new(columns, Envelope::Append, options)
}

fn decode(decoder: &mut Decoder, value: &[u8], headers: &[(&str, Option<&[u8]>)]) -> Decoded {
    let record = RawRecord {
        key: None,
        value: Some(value),
        headers,
        topic: "t",
        partition: 0,
        offset: 0,
        timestamp: None,
    };
    decoder.decode(&record).expect("nothing to wait for")
}

fn letter(decoded: &Decoded) -> (String, String) {
    let [letter] = &decoded.letters[..] else {
        panic!("{decoded:?}")
    };
    (letter.code.clone(), letter.detail.clone())
}

#[test]
fn a_schema_is_asked_for_once() {
    let server = Server::start(|_| has(&int_record()));
    let registry = registry(&format!("{}/base/", server.url), Some(("me", "s3cret")));
    assert!(!format!("{registry:?}").contains("s3cret"));
    let mut one = decoder(registry.clone());
    let mut two = decoder(registry);
    for n in 0..100u8 {
        for decoder in [&mut one, &mut two] {
            let decoded = decode(decoder, &[0, 0, 0, 0, 7, n * 2 % 128], &[]);
            assert_eq!((decoded.changes.len(), decoded.letters.len()), (1, 0));
        }
    }
    assert_eq!(server.asked(), ["/base/schemas/ids/7 Basic bWU6czNjcmV0"]);
}

#[test]
fn schemas_that_name_others() {
    let server = Server::start(|path| {
        let refers = |subject: &str| json!([{"name": "x", "subject": subject, "version": 2}]);
        let (schema, references) = match path {
            "/schemas/ids/1" => (
                json!({"type": "record", "name": "A", "fields": [
                    {"name": "id", "type": "x.B"}, {"name": "again", "type": "x.C"}]}),
                json!([{"name": "x.B", "subject": "x/B", "version": 1},
                       {"name": "x.C", "subject": "x.C", "version": 2}]),
            ),
            "/subjects/x%2FB/versions/1" => (
                json!({"type": "record", "name": "B", "namespace": "x",
                       "fields": [{"name": "c", "type": "C"}]}),
                refers("x.C"),
            ),
            "/subjects/x.C/versions/2" => (
                json!({"type": "enum", "name": "C", "namespace": "x", "symbols": ["P", "Q"]}),
                json!([]),
            ),
            _ => return unknown(),
        };
        let body = json!({"schema": schema.to_string(), "references": references});
        (200, body.to_string())
    });
    let found = patient(&server.registry(""), SchemaId::Number(1))
        .0
        .unwrap();
    let found = connectors::format::avro::decode(&found, &[2, 0], "value").unwrap();
    assert_eq!(
        found.node.to_json(),
        json!({"id": {"c": "Q"}, "again": "P"})
    );
    assert_eq!(server.asked().len(), 3, "{:?}", server.asked());
}

#[test]
fn an_id_that_the_registry_does_not_have_is_a_dead_letter() {
    let server = Server::start(|_| unknown());
    let mut decoder = decoder(server.registry(""));
    for _ in 0..50 {
        let decoded = decode(&mut decoder, &[0, 0, 0, 1, 0, 2], &[]);
        assert_eq!(
            letter(&decoded),
            (
                "unknown-schema".to_owned(),
                "the registry does not have the schema 256: Schema not found".to_owned()
            )
        );
    }
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn what_is_no_answer_about_the_schema_is_waited_for() {
    for (status, body, expected) in [
        (
            404,
            "<html>no such page</html>",
            "the address is not the base of a Confluent API",
        ),
        (
            404,
            r#"{"error_code":0,"message":"no path"}"#,
            "the address is not the base",
        ),
        (401, "{}", "the registry wants another USER or PASSWORD"),
        (500, r#"{"error_code":50001}"#, "HTTP 500"),
        (200, "<html>a proxy's page</html>", "the answer is not JSON"),
        (200, "{}", "the answer has no \"schema\""),
    ] {
        let server = Server::start(move |_| (status, body.to_owned()));
        let registry = server.registry("");
        let Err(Failure::Wait(wait)) = registry.schema(SchemaId::Number(3)) else {
            panic!("{status} {body}")
        };
        let text = wait.error.to_string();
        assert!(
            text.contains(expected) && text.contains(&server.url),
            "{text}"
        );
        assert!(wait.error.is_transient());
    }
}

#[test]
fn a_registry_that_fails_is_asked_again_less_and_less_often() {
    let fails = Mutex::new(3);
    let server = Server::start(move |_| {
        let mut fails = fails.lock().unwrap();
        if *fails == 0 {
            return has(&int_record());
        }
        *fails -= 1;
        (503, "{}".to_owned())
    });
    let (found, waits) = patient(&server.registry(""), SchemaId::Number(1));
    assert!(found.is_ok());
    assert_eq!(server.asked().len(), 4);
    let millis: Vec<u128> = waits.iter().map(|wait| wait.as_millis()).collect();
    let is_about = |at: usize, pause: u128| millis[at] <= pause && millis[at] + 60 > pause;
    assert!(
        millis.len() == 3 && is_about(0, 100) && is_about(1, 200) && is_about(2, 400),
        "{millis:?}"
    );
}

#[test]
fn a_registry_that_is_down_is_found_when_it_comes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    drop(listener);
    let registry = registry(&format!("http://{at}"), None);
    let asking = {
        let registry = registry.clone();
        std::thread::spawn(move || patient(&registry, SchemaId::Number(1)))
    };
    std::thread::sleep(Duration::from_millis(350));
    let _server = Server::on(TcpListener::bind(at).unwrap(), |_| has(&int_record()));
    let (found, waits) = asking.join().unwrap();
    assert!(found.is_ok() && !waits.is_empty());
}

#[test]
fn nobody_waits_long_and_one_request_is_enough() {
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_millis(700));
        has(&int_record())
    });
    let registry = server.registry("");
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let registry = registry.clone();
            std::thread::spawn(move || patient(&registry, SchemaId::Number(1)))
        })
        .collect();
    for asker in askers {
        let (found, waits) = asker.join().unwrap();
        assert!(found.is_ok() && !waits.is_empty());
    }
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn schemas_that_cannot_be_read_are_dead_letters() {
    let server = Server::start(|path| match path {
        "/schemas/ids/1" => (
            200,
            json!({"schemaType": "PROTOBUF", "schema": "x"}).to_string(),
        ),
        "/schemas/ids/2" => has(&json!({"type": "nothing"})),
        _ => has(&json!({"type": "record", "name": "R", "fields": [{"name": "x", "type": "int"}]})),
    });
    let reader = Schema::parse(&int_record().to_string(), &[]).unwrap();
    let url = server.url.clone();
    let registry = Registry::new(&Address { url, login: None }, Some(reader));
    for (id, code, detail) in [
        (
            1,
            "invalid-schema",
            "the schema 1 cannot be read: it is PROTOBUF, not AVRO",
        ),
        (
            2,
            "invalid-schema",
            "the schema 2 cannot be read: the type \"nothing\" is not defined",
        ),
        (
            3,
            "schema-mismatch",
            "the schema 3 cannot be read as the declared one: the field \"id\" of R is not \
             written and has no default",
        ),
    ] {
        let error = patient(&registry, SchemaId::Number(id)).0.unwrap_err();
        assert_eq!((&*error.code, &*error.detail), (code, detail));
    }
}

#[test]
fn ids_in_headers() {
    let server = Server::start(|path| match path {
        "/apis/registry/v2/ids/globalIds/9?dereference=true" => (200, int_record().to_string()),
        "/apis/ccompat/v7/schemas/ids/8"
        | "/apis/ccompat/v7/schemas/ids/6"
        | "/apis/ccompat/v7/schemas/guids/00010203-0405-0607-0809-0a0b0c0d0e0f" => {
            has(&int_record())
        }
        _ => unknown(),
    });
    let mut decoder = decoder(server.registry("/apis/ccompat/v7"));
    let guid: Vec<u8> = std::iter::once(1).chain(0..16).collect();
    let long = |id: u64| id.to_be_bytes();
    for (name, id) in [
        ("apicurio.value.globalId", &long(9)[..]),
        ("apicurio.value.contentId", &long(8)),
        ("__value_schema_id", &guid),
        ("__value_schema_id", &[0, 0, 0, 0, 6]),
    ] {
        let headers = [
            ("apicurio.key.globalId", Some(&long(77)[..])),
            (name, Some(id)),
            ("apicurio.value.encoding", Some(b"BINARY")),
        ];
        // A bare value, also one that begins with the byte 0.
        for value in [[14], [0]] {
            let decoded = decode(&mut decoder, &value, &headers);
            assert_eq!(
                (decoded.changes.len(), &decoded.letters[..]),
                (1, &[][..]),
                "{name}"
            );
        }
    }
    assert_eq!(server.asked().len(), 4);
    let bad = decode(&mut decoder, &[14], &[("__value_schema_id", Some(&[2, 0]))]);
    assert_eq!(
        letter(&bad).1,
        "the header __value_schema_id has 2 bytes that are no schema id"
    );
}

#[test]
fn messages_that_name_no_schema() {
    let server = Server::start(|_| has(&int_record()));
    let mut decoder = decoder(server.registry(""));
    for (value, detail) in [
        (
            &b"\x0e"[..],
            "the value begins with the byte 0x0e, and no header names its schema",
        ),
        (b"", "the value is empty, and no header names its schema"),
        (
            b"\0\0\0",
            "the value has 3 bytes, and no header names its schema",
        ),
        (
            b"\0\0\0\0\0\0\0\0\x05\x0e",
            "the value names the schema 0, which no registry has",
        ),
    ] {
        let decoded = decode(&mut decoder, value, &[]);
        assert_eq!(
            letter(&decoded),
            ("no-schema-id".to_owned(), detail.to_owned())
        );
        let hint = decoded.letters[0].hint.clone().unwrap();
        assert!(hint.contains("as-confluent=true"), "{hint}");
    }
    let hint = decode(&mut decoder, b"\x0e", &[]).letters[0].hint.clone();
    assert!(hint.unwrap().contains("headers.enabled=false"));
    assert_eq!(server.asked(), [""; 0]);
}

/// A damaged id must not make memory grow: what was not used for long is forgotten.
#[test]
fn remembered_schemas_are_bounded() {
    let server = Server::start(|_| has(&int_record()));
    let registry = server.registry("");
    let most = u32::try_from(engine::limits::REGISTRY_SCHEMAS_MAX).unwrap();
    for id in 1..=most {
        assert!(patient(&registry, SchemaId::Number(id)).0.is_ok());
    }
    assert!(patient(&registry, SchemaId::Number(1)).0.is_ok());
    assert_eq!(server.asked().len(), most as usize);
    // One more: the second is the oldest, because the first was used just now.
    assert!(patient(&registry, SchemaId::Number(most + 1)).0.is_ok());
    assert!(patient(&registry, SchemaId::Number(1)).0.is_ok());
    assert_eq!(server.asked().len(), most as usize + 1);
    assert!(patient(&registry, SchemaId::Number(2)).0.is_ok());
    assert_eq!(server.asked().len(), most as usize + 2);
}
