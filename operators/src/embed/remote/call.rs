//! One request to an embedding server: sent, read within its bounds, and its failure told.

use std::time::Duration;

use engine::limits::EMBED_RETRY_AFTER_MS_MAX;
use serde::Deserialize;
use ureq::http::{HeaderMap, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};

use super::{KeySource, RemoteOptions};
use crate::embed::download::redact;

/// Characters of a server's own words that a message repeats.
const WORDS_MAX: usize = 300;
/// Bytes of a refusal that are read.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;

/// Why a request gave no vectors.
#[derive(Debug, PartialEq)]
pub(super) enum Failure {
    /// Try again, not before this long.
    World(String, Option<Duration>),
    /// A person must act.
    Model(String),
    /// One of the texts may be the cause, or something that all requests have.
    Suspect(String),
}

/// The way to a server.
pub(super) struct Endpoint {
    agent: ureq::Agent,
    url: String,
    model: String,
    key: Option<(String, KeySource)>,
    timeout: Duration,
}

impl Endpoint {
    pub(super) fn new(options: &RemoteOptions) -> Endpoint {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier);
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(options.timeout.min(Duration::from_secs(10))))
            // The whole of it, the last byte of the reply included: a trickle ends.
            .timeout_global(Some(options.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .tls_config(tls.build())
            .user_agent(concat!("headwater/", env!("CARGO_PKG_VERSION")))
            .build();
        Endpoint {
            agent: config.into(),
            url: format!("{}/embeddings", options.url.trim_end_matches('/')),
            model: options.model.clone(),
            key: options.key.clone(),
            timeout: options.timeout,
        }
    }

    /// Where requests go, for messages.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Sends a request; the whole reply of a success, at most `bytes_max`.
    pub(super) fn post(&self, body: &[u8], bytes_max: u64) -> Result<Vec<u8>, Failure> {
        let key = match &self.key {
            None => None,
            Some((_, read)) => Some(
                read()
                    .map_err(|error| Failure::Model(format!("its key cannot be read: {error}")))?,
            ),
        };
        let mut request = self.agent.post(&self.url);
        request = request.header("Content-Type", "application/json");
        if let Some(key) = &key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut answer = request.send(body).map_err(|error| self.unreached(&error))?;
        let status = answer.status();
        let limit = match status.is_success() {
            true => bytes_max,
            false => REFUSAL_BYTES_MAX,
        };
        let read = answer.body_mut().with_config().limit(limit).read_to_vec();
        if status.is_success() {
            return read.map_err(|error| match error {
                ureq::Error::BodyExceedsLimit(_) => Failure::World(
                    format!("{} returned more than {limit} bytes", self.url),
                    None,
                ),
                error => self.unreached(&error),
            });
        }
        // What it says beside its status is a help, not a need.
        let said = words(&read.unwrap_or_default(), key.as_deref());
        Err(self.refused(status, answer.headers(), &said))
    }

    /// No reply, or not the whole of it.
    fn unreached(&self, error: &ureq::Error) -> Failure {
        let url = redact(&self.url);
        Failure::World(
            match error {
                ureq::Error::Timeout(_) => {
                    let seconds = self.timeout.as_secs_f64();
                    format!("{url} gave no whole reply within {seconds} s (TIMEOUT)")
                }
                ureq::Error::HostNotFound => format!("{url}: there is no such host"),
                ureq::Error::Io(error) => format!("{url} cannot be reached: {error}"),
                error => format!("{url}: {error}"),
            },
            None,
        )
    }

    fn refused(&self, status: StatusCode, headers: &HeaderMap, said: &str) -> Failure {
        let (url, reason) = (&self.url, status.canonical_reason().unwrap_or_default());
        let answers = format!("{url} answers {} {reason}", status.as_u16());
        let answers = answers.trim_end();
        let with_words = match said {
            "" => answers.to_owned(),
            said => format!("{answers}: {said}"),
        };
        match status.as_u16() {
            // What it says may repeat the key.
            401 | 403 => Failure::Model(match &self.key {
                Some((place, _)) => {
                    format!("{answers}; expected a key that it takes; hint: see {place}")
                }
                None => format!(
                    "{answers}; expected no key, and the server wants one; \
                     hint: KEY SECRET name, after CREATE SECRET name AS ENV 'VARIABLE'"
                ),
            }),
            404 => Failure::Model(format!(
                "{with_words}; expected an API with the model '{}'; hint: URL is its base, \
                 like 'http://host/v1'",
                self.model
            )),
            400 | 413 | 422 => Failure::Suspect(with_words),
            408 | 425 | 429 | 500..=599 => {
                let wait = retry_after(headers);
                let until = wait.map(|wait| format!(" (Retry-After: {} s)", wait.as_secs()));
                let detail = format!("{answers}{}", until.unwrap_or_default());
                let detail = match said {
                    "" => detail,
                    said => format!("{detail}: {said}"),
                };
                Failure::World(detail, wait)
            }
            _ => Failure::Model(format!("{with_words}; expected 200")),
        }
    }
}

/// `Retry-After` in seconds; a date is not understood, and then the back-off decides.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.trim();
    let seconds: f64 = seconds
        .parse()
        .ok()
        .filter(|s: &f64| s.is_finite() && *s >= 0.0)?;
    let longest = Duration::from_millis(EMBED_RETRY_AFTER_MS_MAX);
    Some(Duration::try_from_secs_f64(seconds).map_or(longest, |wait| wait.min(longest)))
}

/// What a server says in a refusal, in one short line without the key.
fn words(body: &[u8], key: Option<&str>) -> String {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Error { error: Message },
        Message { message: String },
        Detail { detail: String },
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Message {
        Object { message: String },
        Text(String),
    }
    let said = match serde_json::from_slice(body) {
        Ok(Said::Error {
            error: Message::Object { message } | Message::Text(message),
        }) => message,
        Ok(Said::Message { message }) => message,
        Ok(Said::Detail { detail }) => detail,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let said = match key.filter(|key| !key.is_empty()) {
        Some(key) => said.replace(key, "***"),
        None => said,
    };
    let mut line: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(WORDS_MAX) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_one_line_without_the_key() {
        let key = Some("sk-secret");
        for (body, expected) in [
            (
                r#"{"error":{"message":"too\n long sk-secret","type":"x"}}"#,
                "too long ***",
            ),
            (
                r#"{"error":"no model","error_type":"validation"}"#,
                "no model",
            ),
            (r#"{"object":"error","message":"m"}"#, "m"),
            (r#"{"detail":"d"}"#, "d"),
            ("  <html>\n <p>sk-secret", "<html> <p>***"),
            ("", ""),
        ] {
            assert_eq!(words(body.as_bytes(), key), expected, "{body}");
        }
        assert_eq!(
            words("é".repeat(9_999).as_bytes(), None).chars().count(),
            301
        );
    }

    #[test]
    fn retry_after_is_seconds_within_bounds() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(
            of("1e300"),
            Some(Duration::from_millis(EMBED_RETRY_AFTER_MS_MAX))
        );
        assert_eq!(of("-1"), None);
        assert_eq!(of("Wed, 21 Oct 2015 07:28:00 GMT"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
