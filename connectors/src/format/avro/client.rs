//! Schemas over HTTP: the Confluent API, and of Apicurio's own what a `globalId` needs.
//!
//! ```text
//! GET {base}/schemas/ids/7            ─▶ {"schema":"…","references":[{"subject","version"}]}
//! GET {base}/schemas/guids/…
//! GET {base}/subjects/S/versions/1    ─▶ {"schema":"…","references":[…]}        (a reference)
//! POST {base}/subjects/S/versions      ─▶ {"id":7}                               (a sink's schema)
//! GET …/apis/registry/v2/ids/globalIds/7?dereference=true ─▶ the schema itself  (Apicurio)
//! ```
//!
//! Invariant: only a registry that says in its own words that it does not know a schema is believed;
//! a page that is not there, a refused password or a proxy's error is a failing world.
//! Limits: [`REFERENCES_MAX`], AVRO_SCHEMA_BYTES_MAX for an answer, 10 s for a request.

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::limits::AVRO_SCHEMA_BYTES_MAX;
use serde_json::Value as Json;
use ureq::tls::{RootCerts, TlsConfig};

use super::wire::SchemaId;

/// Schemas that one schema may name, directly or not.
const REFERENCES_MAX: usize = 256;
const ACCEPT: &str = "application/vnd.schemaregistry.v1+json, application/json";
const CONNECT: Duration = Duration::from_secs(3);
const REQUEST: Duration = Duration::from_secs(10);

/// Where a registry is, and as whom it is asked.
#[derive(Clone)]
pub struct Address {
    /// The base of its Confluent API: `http://host:8081`, `http://host/apis/ccompat/v7`.
    pub url: String,
    /// User and password.
    pub login: Option<(String, String)>,
}

/// A schema's text, and those that it names, each behind those that it names itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Texts {
    pub(super) schema: String,
    pub(super) references: Vec<String>,
}

/// Why there are no texts.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The registry does not have such a schema.
    Unknown(String),
    /// It has, and it cannot be read.
    Unusable(String),
    /// It cannot be asked now.
    World(String),
}

/// Asks one registry.
pub(super) struct Client {
    base: String,
    authorization: Option<String>,
    agent: ureq::Agent,
}

impl Client {
    pub(super) fn new(address: &Address) -> Client {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(REQUEST))
            .http_status_as_error(false)
            .tls_config(
                TlsConfig::builder()
                    .root_certs(RootCerts::PlatformVerifier)
                    .build(),
            )
            .user_agent(concat!("headwater/", env!("CARGO_PKG_VERSION")))
            .build();
        let login = address.login.as_ref();
        Client {
            base: address.url.trim_end_matches('/').to_owned(),
            authorization: login.map(|(user, password)| {
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }),
            agent: config.into(),
        }
    }

    /// The texts of a schema.
    pub(super) fn texts(&self, id: SchemaId) -> Result<Texts, Trouble> {
        let path = match id {
            SchemaId::Number(id) => format!("/schemas/ids/{id}"),
            SchemaId::Content(id) => format!("/schemas/ids/{id}"),
            SchemaId::Guid(guid) => format!("/schemas/guids/{}", super::special::uuid(&guid)),
            SchemaId::Global(id) => return self.by_global_id(id),
        };
        let found = self.json(&format!("{}{path}", self.base))?;
        if let Some(kind) = found.get("schemaType").and_then(Json::as_str)
            && kind != "AVRO"
        {
            return Err(Trouble::Unusable(format!("it is {kind}, not AVRO")));
        }
        let mut references = Vec::new();
        self.references(&found, &mut references, &mut HashSet::new())?;
        Ok(Texts {
            schema: schema_of(&found)?,
            references,
        })
    }

    /// Apicurio's own API, beside the Confluent one.
    fn by_global_id(&self, id: u64) -> Result<Texts, Trouble> {
        let Some((root, _)) = self.base.split_once("/apis/ccompat/") else {
            return Err(Trouble::World(format!(
                "messages name Apicurio's globalId {id}, and {} is not the address of Apicurio's \
                 Confluent API (…/apis/ccompat/v7)",
                self.base
            )));
        };
        let url = format!("{root}/apis/registry/v2/ids/globalIds/{id}?dereference=true");
        Ok(Texts {
            schema: self.get(&url)?,
            references: Vec::new(),
        })
    }

    /// Collects what a schema names, innermost first.
    fn references(
        &self,
        schema: &Json,
        out: &mut Vec<String>,
        seen: &mut HashSet<(String, String)>,
    ) -> Result<(), Trouble> {
        let all = schema.get("references").and_then(Json::as_array);
        for reference in all.into_iter().flatten() {
            let subject = reference.get("subject").and_then(Json::as_str);
            let version = reference.get("version").map(Json::to_string);
            let (Some(subject), Some(version)) = (subject, version) else {
                return Err(Trouble::World(format!("a reference is {reference}")));
            };
            if !seen.insert((subject.to_owned(), version.clone())) {
                continue;
            }
            if seen.len() > REFERENCES_MAX {
                let detail = format!("it names more than {REFERENCES_MAX} schemas");
                return Err(Trouble::Unusable(detail));
            }
            let subject = encoded(subject);
            let url = format!("{}/subjects/{subject}/versions/{version}", self.base);
            let found = self.json(&url)?;
            self.references(&found, out, seen)?;
            out.push(schema_of(&found)?);
        }
        Ok(())
    }

    /// Registers a schema under a subject, or finds it there; its id.
    pub(super) fn register(&self, subject: &str, schema: &str) -> Result<u32, Trouble> {
        let url = format!("{}/subjects/{}/versions", self.base, encoded(subject));
        let failed = |error: ureq::Error| Trouble::World(format!("POST {url}: {error}"));
        let mut request = self
            .agent
            .post(&url)
            .header("Accept", ACCEPT)
            .header("Content-Type", "application/vnd.schemaregistry.v1+json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let body = serde_json::json!({ "schema": schema }).to_string();
        let mut answer = request.send(body).map_err(failed)?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().map_err(failed)?;
        let json: Json = serde_json::from_str(&text).unwrap_or_default();
        let id = json.get("id").and_then(Json::as_u64);
        match (status, id.and_then(|id| u32::try_from(id).ok())) {
            (200 | 201, Some(id)) => Ok(id),
            (401 | 403, _) => Err(Trouble::World(format!(
                "POST {url}: HTTP {status}: the registry wants another USER or PASSWORD"
            ))),
            (409, _) => Err(Trouble::World(format!(
                "POST {url}: HTTP 409: the schema is not compatible with the subject's: {}; delete the \
                 subject, change its compatibility, or write to another TOPIC",
                message(&text)
            ))),
            _ => Err(Trouble::World(format!(
                "POST {url}: HTTP {status}: {}",
                message(&text)
            ))),
        }
    }

    fn json(&self, url: &str) -> Result<Json, Trouble> {
        let text = self.get(url)?;
        serde_json::from_str(&text)
            .map_err(|_| Trouble::World(format!("GET {url}: the answer is not JSON")))
    }

    fn get(&self, url: &str) -> Result<String, Trouble> {
        let failed = |error: ureq::Error| Trouble::World(format!("GET {url}: {error}"));
        let mut request = self.agent.get(url).header("Accept", ACCEPT);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut answer = request.call().map_err(failed)?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config();
        let body = body.limit(4 * AVRO_SCHEMA_BYTES_MAX as u64);
        let text = body.read_to_string().map_err(failed)?;
        match status {
            200 => Ok(text),
            404 if says_unknown(&text) => Err(Trouble::Unknown(message(&text))),
            401 | 403 => Err(Trouble::World(format!(
                "GET {url}: HTTP {status}: the registry wants another USER or PASSWORD"
            ))),
            404 => Err(Trouble::World(format!(
                "GET {url}: HTTP 404: the address is not the base of a Confluent API"
            ))),
            status => Err(Trouble::World(format!("GET {url}: HTTP {status}"))),
        }
    }
}

fn schema_of(found: &Json) -> Result<String, Trouble> {
    let schema = found.get("schema").and_then(Json::as_str);
    let schema = schema.map(str::to_owned);
    schema.ok_or_else(|| Trouble::World("the answer has no \"schema\"".to_owned()))
}

/// Whether a 404 is about the schema: Confluent's codes 40401 to 40403, or Apicurio's own name.
fn says_unknown(text: &str) -> bool {
    let Ok(json) = serde_json::from_str::<Json>(text) else {
        return false;
    };
    let code = json.get("error_code").and_then(Json::as_u64);
    let name = json.get("name").and_then(Json::as_str);
    matches!(code, Some(40_401..=40_403))
        || matches!(
            name,
            Some("ArtifactNotFoundException" | "VersionNotFoundException")
        )
}

fn message(text: &str) -> String {
    let json: Json = serde_json::from_str(text).unwrap_or_default();
    let message = json.get("message").and_then(Json::as_str);
    message.unwrap_or("not found").to_owned()
}

/// A subject as one segment of a path.
fn encoded(subject: &str) -> String {
    let mut out = String::with_capacity(subject.len());
    for byte in subject.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
