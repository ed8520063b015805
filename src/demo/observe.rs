//! How the demo sees: polls of public calls, with a time limit and the last thing seen in the error.

use std::time::{Duration, Instant};

use anyhow::bail;
use queries::api::SearchReply;
use queries::problem::Problem;
use serde_json::{Value as Json, json};

use super::{CACHE, INDEX, SOURCE};
use crate::client::{Client, encode};

/// Between two polls.
const POLL: Duration = Duration::from_millis(10);

/// Polls until `look` sees what it waits for (`Ok(Ok(_))`); on time-out the error tells what it saw
/// instead. An error of `look` itself ends the wait.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<Result<T, String>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look()? {
            Ok(seen) => return Ok(seen),
            Err(instead) if Instant::now() > deadline => {
                bail!(
                    "{what} was not seen within {} s; the last look saw: {instead}",
                    limit.as_secs()
                );
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// A document of the demo's source, `None` if it is not live. The key is sent in its JSON form.
pub fn document(client: &Client, key: &str) -> anyhow::Result<Option<Json>> {
    let key = encode(&Json::from(key).to_string());
    none_if_missing(client.get(&format!("/v1/documents/{SOURCE}?key={key}")))
}

/// Chunks of a document in the demo's index.
pub fn chunks(document: &Json) -> usize {
    document["indexes"][INDEX]["chunks"]
        .as_array()
        .map_or(0, Vec::len)
}

/// A cache entry, live or lately retracted; `None` if it is not known any more.
pub fn entry(client: &Client, entry: &str) -> anyhow::Result<Option<Json>> {
    none_if_missing(client.get(&format!("/v1/caches/{CACHE}/entries/{}", encode(entry))))
}

fn none_if_missing(reply: anyhow::Result<Json>) -> anyhow::Result<Option<Json>> {
    match reply {
        Ok(json) => Ok(Some(json)),
        Err(error) => match error.downcast_ref::<Problem>() {
            Some(problem) if matches!(problem.status, 404 | 410) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Why an entry was retracted: its `cause`, wherever the reply has it.
pub fn cause(entry: &Json) -> Option<&str> {
    match entry {
        Json::Object(members) => match members.get("cause").and_then(Json::as_str) {
            Some(cause) => Some(cause),
            None => members.values().find_map(cause),
        },
        Json::Array(items) => items.iter().find_map(cause),
        _ => None,
    }
}

/// A search of the demo's index.
pub fn search(
    client: &Client,
    question: &str,
    mode: &str,
    k: usize,
) -> anyhow::Result<SearchReply> {
    let body = json!({ "index": INDEX, "query": question, "mode": mode, "k": k });
    client.post("/v1/search", &body)
}

/// Texts embedded so far, those of questions left out.
pub fn texts_embedded(client: &Client) -> anyhow::Result<u64> {
    let (_, text) = client.get_text("/metrics")?;
    match embed_counter(&text) {
        Some(texts) => Ok(texts),
        None => bail!("/metrics has no headwater_embed_texts_total"),
    }
}

fn embed_counter(metrics: &str) -> Option<u64> {
    let samples = metrics.lines().filter(|line| {
        let rest = line.strip_prefix("headwater_embed_texts_total");
        rest.is_some_and(|rest| rest.starts_with([' ', '{']) && !is_of_questions(rest))
    });
    let values = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() as u64)
}

fn is_of_questions(labels: &str) -> bool {
    ["\"question\"", "\"questions\"", "\"query\""]
        .iter()
        .any(|label| labels.contains(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_leaves_questions_out() {
        let text = "# TYPE headwater_embed_texts_total counter\n\
                    headwater_embed_texts_total{kind=\"document\"} 7\n\
                    headwater_embed_texts_total{kind=\"question\"} 100\n\
                    headwater_embed_texts_total_more 5\n";
        assert_eq!(embed_counter(text), Some(7));
        assert_eq!(embed_counter("headwater_embed_texts_total 9"), Some(9));
        assert_eq!(embed_counter("other 1"), None);
    }

    #[test]
    fn a_cause_is_found_wherever_it_is() {
        assert_eq!(
            cause(&json!({ "entry": "e_1", "retracted": { "cause": "changed" } })),
            Some("changed")
        );
        assert_eq!(cause(&json!({ "cause": null, "state": "live" })), None);
    }

    #[test]
    fn waiting_ends_with_what_was_seen_instead() {
        let mut looks = 0;
        let seen = wait_for("three", Duration::from_secs(5), || {
            looks += 1;
            Ok(if looks == 3 {
                Ok(looks)
            } else {
                Err(looks.to_string())
            })
        });
        assert_eq!(seen.unwrap(), 3);
        let missed: anyhow::Result<()> = wait_for("it", Duration::ZERO, || Ok(Err("mist".into())));
        assert_eq!(
            missed.unwrap_err().to_string(),
            "it was not seen within 0 s; the last look saw: mist"
        );
    }
}
