//! Replies in OpenAI's shape: `{"data":[{"index":0,"embedding":[…] or "base64"}]}`, checked.

use engine::contract::EmbedFault;
use engine::model::floats_of_base64;
use serde::Deserialize;

use super::call::Failure;

/// A number as JSON writes it with all its digits, and its comma.
const NUMBER_BYTES: u64 = 28;
/// What stands around a vector, and around all.
const AROUND_BYTES: u64 = 4_096;

/// The longest reply that is read.
pub(super) fn bytes_max(texts: usize, dimensions: usize) -> u64 {
    // A server with vectors twice as long is told so, not cut off.
    let vector = 2 * dimensions as u64 * NUMBER_BYTES + AROUND_BYTES;
    texts as u64 * vector + (1 << 20)
}

#[derive(Deserialize)]
struct Reply {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    index: Option<usize>,
    embedding: Numbers,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers {
    /// JSON has no NaN: some servers write null.
    Floats(Vec<Option<f32>>),
    Base64(String),
}

/// What is wrong with a reply, and whose fault it is.
#[derive(Debug, PartialEq)]
pub(super) struct Garbled {
    detail: String,
    fault: EmbedFault,
}

impl Garbled {
    fn of(fault: EmbedFault, detail: String) -> Garbled {
        Garbled { detail, fault }
    }

    /// With the server's address in front.
    pub(super) fn failure(self, url: &str) -> Failure {
        let detail = format!("{url} {}", self.detail);
        match self.fault {
            EmbedFault::World { retry_after } => Failure::World(detail, retry_after),
            EmbedFault::Model => Failure::Model(detail),
            EmbedFault::Text => Failure::Suspect(detail),
        }
    }
}

/// The vectors of a reply in the order of the texts, as they came: finite, of the expected length.
pub(super) fn vectors(
    body: &[u8],
    texts: usize,
    dimensions: usize,
) -> Result<Vec<Vec<f32>>, Garbled> {
    let reply: Reply = serde_json::from_slice(body).map_err(|error| not_json(body, &error))?;
    let found = reply.data.len();
    if found != texts {
        let detail = format!("returned {found} vectors for {texts} texts");
        return Err(Garbled::of(EmbedFault::WORLD, detail));
    }
    let mut slots: Vec<Option<Vec<f32>>> = vec![None; texts];
    for (place, one) in reply.data.into_iter().enumerate() {
        let index = one.index.unwrap_or(place);
        let vector = numbers(one.embedding)?;
        if vector.len() != dimensions {
            let detail = format!(
                "returned vectors of {found} numbers; expected DIMENSIONS = {dimensions}; \
                 hint: declare another model with DIMENSIONS = {found}, or have the server answer \
                 {dimensions}",
                found = vector.len(),
            );
            return Err(Garbled::of(EmbedFault::Model, detail));
        }
        if let Some(at) = vector.iter().position(|x| !x.is_finite()) {
            let detail = format!("returned a vector whose component {at} is not a finite number");
            return Err(Garbled::of(EmbedFault::Text, detail));
        }
        match slots.get_mut(index) {
            Some(slot @ None) => *slot = Some(vector),
            _ => {
                let detail = format!("returned index {index} twice or beyond its {texts} texts");
                return Err(Garbled::of(EmbedFault::WORLD, detail));
            }
        }
    }
    // As many as texts, and none twice: all are there.
    Ok(slots.into_iter().flatten().collect())
}

fn not_json(body: &[u8], error: &serde_json::Error) -> Garbled {
    let has_nan = [b"NaN".as_slice(), b"Infinity"]
        .iter()
        .any(|word| body.windows(word.len()).any(|window| window == *word));
    if has_nan {
        let detail = "returned a vector with NaN or Infinity, which are no JSON".to_owned();
        return Garbled::of(EmbedFault::Text, detail);
    }
    // The error's own words may repeat the body, whatever that is.
    let (line, column) = (error.line(), error.column());
    let detail = format!("returned something else than embeddings (line {line}, column {column})");
    Garbled::of(EmbedFault::WORLD, detail)
}

fn numbers(numbers: Numbers) -> Result<Vec<f32>, Garbled> {
    match numbers {
        Numbers::Floats(floats) => Ok(floats.into_iter().map(|x| x.unwrap_or(f32::NAN)).collect()),
        Numbers::Base64(text) => floats_of_base64(&text).ok_or_else(|| {
            let detail = "returned a vector that is no base64 of 32-bit floats".to_owned();
            Garbled::of(EmbedFault::WORLD, detail)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str, texts: usize) -> Result<Vec<Vec<f32>>, String> {
        vectors(body.as_bytes(), texts, 2).map_err(|garbled| garbled.detail)
    }

    #[test]
    fn vectors_stand_where_their_index_says() {
        let body = r#"{"object":"list","data":[
            {"object":"embedding","index":1,"embedding":[3,4]},
            {"object":"embedding","index":0,"embedding":"AACAPwAAAEA="}],"model":"m","usage":{}}"#;
        assert_eq!(parse(body, 2).unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
        let silent = r#"{"data":[{"embedding":[1,2]},{"embedding":[3,4]}]}"#;
        assert_eq!(parse(silent, 2).unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
    }

    #[test]
    fn garbage_is_told_word_for_word() {
        let one =
            |embedding: &str| format!(r#"{{"data":[{{"index":0,"embedding":{embedding}}}]}}"#);
        let cases = [
            (
                "<html>".to_owned(),
                "returned something else than embeddings (line 1, column 1)",
            ),
            (
                r#"{"data":[]}"#.to_owned(),
                "returned 0 vectors for 1 texts",
            ),
            (
                one("[1]"),
                "returned vectors of 1 numbers; expected DIMENSIONS = 2; hint: declare another model with DIMENSIONS = 1, or have the server answer 2",
            ),
            (
                one("[1,null]"),
                "returned a vector whose component 1 is not a finite number",
            ),
            (
                one("[1,NaN]"),
                "returned a vector with NaN or Infinity, which are no JSON",
            ),
            (
                one("\"AAAA\""),
                "returned a vector that is no base64 of 32-bit floats",
            ),
            (
                one("\"?\""),
                "returned a vector that is no base64 of 32-bit floats",
            ),
            (
                one("[1,2]").replace(":0", ":7"),
                "returned index 7 twice or beyond its 1 texts",
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(parse(&body, 1).unwrap_err(), expected, "{body}");
        }
        let twice = r#"{"data":[{"index":0,"embedding":[1,2]},{"index":0,"embedding":[1,2]}]}"#;
        assert_eq!(
            parse(twice, 2).unwrap_err(),
            "returned index 0 twice or beyond its 2 texts"
        );
    }
}
