//! A client of a running server: the public HTTP interface and nothing else.
//!
//! Errors: a problem that the server sent is that [`Problem`] inside the `anyhow::Error`; a server
//! that cannot be reached names its address and the command that would start one.

use std::time::Duration;

use anyhow::{Context, anyhow};
use queries::problem::Problem;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use ureq::http::Response;
use ureq::{Agent, Body};

/// Where `headwater run` listens by default.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7654";

/// Replies over this are refused; a page of rows is far smaller.
const REPLY_BYTES_MAX: u64 = 512 << 20;

/// Talks to one server, keeping its connections.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    base: String,
}

impl Client {
    /// A client of the server at `url` (`http://host:port`).
    pub fn new(url: &str) -> Client {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(Duration::from_secs(120)));
        if is_loopback(url) {
            // A proxy of the environment is for the world, and knows another "localhost".
            config = config.proxy(None);
        }
        Client {
            agent: config.build().into(),
            base: url.trim_end_matches('/').to_owned(),
        }
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// `GET path` as JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Json> {
        json(self.sent(self.agent.get(format!("{}{path}", self.base)).call())?)
    }

    /// `GET path` as text, whatever its status.
    pub fn get_text(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let mut response = self.sent(self.agent.get(format!("{}{path}", self.base)).call())?;
        Ok((response.status().as_u16(), text(&mut response)?))
    }

    /// `POST path` with JSON, answered by JSON.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &Json) -> anyhow::Result<T> {
        let request = self.agent.post(format!("{}{path}", self.base));
        let request = request.header("content-type", "application/json");
        let value = json(self.sent(request.send(body.to_string()))?)?;
        serde_json::from_value(value).context("the server's reply has an unknown shape")
    }

    fn sent(&self, sent: Result<Response<Body>, ureq::Error>) -> anyhow::Result<Response<Body>> {
        sent.map_err(|error| {
            let hint = "start one by `headwater run`, or name another by --url";
            anyhow!("no server answers at {}: {error}\nhint: {hint}", self.base)
        })
    }
}

/// Puts text into a path or a query, every byte that is not unreserved as `%XX`.
pub fn encode(text: &str) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encoded = text.bytes().map(|byte| match byte {
        byte if unreserved(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    encoded.collect()
}

fn text(response: &mut Response<Body>) -> anyhow::Result<String> {
    let body = response.body_mut().with_config().limit(REPLY_BYTES_MAX);
    body.read_to_string()
        .context("the server's reply broke off")
}

fn json(mut response: Response<Body>) -> anyhow::Result<Json> {
    let status = response.status();
    let text = text(&mut response)?;
    if status.is_success() {
        return serde_json::from_str(&text).context("the server's reply is not JSON");
    }
    match serde_json::from_str::<Problem>(&text) {
        Ok(problem) => Err(problem.into()),
        // Something between us and the server, most likely.
        Err(_) => Err(anyhow!(
            "the server answered {status} without a problem: {}",
            head(&text)
        )),
    }
}

fn head(text: &str) -> String {
    text.chars().take(200).collect()
}

fn is_loopback(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    host.starts_with("127.") || host.starts_with("localhost") || host.starts_with("[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_part_of_a_path() {
        assert_eq!(encode("a b/ü.md"), "a%20b%2F%C3%BC.md");
        assert_eq!(encode("T-1_x.~"), "T-1_x.~");
    }

    #[test]
    fn loopback_needs_no_proxy() {
        for url in [
            "http://127.0.0.1:7654",
            "http://localhost:1/x",
            "http://[::1]:7654",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        assert!(!is_loopback("http://search.corp:7654"));
    }
}
