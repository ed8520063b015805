//! Single requests, for tests that are not about their rate.

use serde_json::Value as Json;

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into()
}

/// A request with a JSON body: status and reply.
pub fn post(server: &str, path: &str, body: &Json) -> (u16, Json) {
    let reply = agent()
        .post(format!("{server}{path}"))
        .header("content-type", "application/json")
        .send(body.to_string());
    let mut reply = reply.unwrap_or_else(|error| panic!("{path}: {error}"));
    let text = reply.body_mut().read_to_string().expect("text");
    let json = serde_json::from_str(&text).unwrap_or(Json::String(text));
    (reply.status().as_u16(), json)
}

/// What a path answers: status and text.
pub fn get(server: &str, path: &str) -> (u16, String) {
    let reply = agent().get(format!("{server}{path}")).call();
    let mut reply = reply.unwrap_or_else(|error| panic!("{path}: {error}"));
    let text = reply.body_mut().read_to_string().expect("text");
    (reply.status().as_u16(), text)
}

/// The sum of a metric over its labels; lines that begin so.
pub fn metric(server: &str, begins: &str) -> f64 {
    let (_, text) = get(server, "/metrics");
    let lines = text.lines().filter(|line| line.starts_with(begins));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .fold(0.0, |sum, value| sum + value)
}
