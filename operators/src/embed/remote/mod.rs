//! A model behind an HTTP server with OpenAI's embeddings call.
//!
//! ```text
//! texts ─▶ prompt, cut ─▶ pace (requests a minute) ─▶ POST …/embeddings ─▶ checked vectors ─▶ length 1
//!                                                       │ refused, garbled
//!                                                       └─▶ one known text: is it these texts, or all?
//! ```
//!
//! The [lane](super::service) in front brings batches, back-off with jitter and the circuit breaker;
//! here a call either gives all its vectors or says whose fault it was:
//! - *the world's* (no connection, no whole reply in time, 408, 425, 429, 5xx, a garbled reply): tried again;
//! - *the declaration's* (401, 403, 404, another length than declared): a person must act, texts wait;
//! - *a text's* (400, 413, 422, a vector with NaN), which is only believed while the server embeds a
//!   known text: a server that refuses everything must not make dead letters of everything.
//!
//! Invariants: a reply is read within one deadline and one bound of bytes; vectors are finite, of the
//! declared length and at length 1, one a text by its `index`; the key is read anew for each call, and
//! is in no message, log or identity; redirects are not followed, they would carry it elsewhere.
//!
//! Limits: a server's vectors may differ in their last bits from call to call, or with what shares a
//! batch: the first vector of a text that is stored is the one that counts. Identity is what was
//! declared: a server that serves another model under the same name is not noticed.

mod call;
mod count;
mod pace;
mod reply;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::contract::{CallLimits, EmbedError, EmbedFault, Embedder, TokenSpans};
use engine::error::WorldError;
use engine::model::ModelId;
use serde::Serialize;

use self::call::{Endpoint, Failure};
use self::pace::Pace;
use super::cut::Cuts;
use super::service::TextKind;
use super::shape::{Prompts, direction, hashed_id};
use super::tokenizer::TextTokenizer;
use super::weights;

/// Gives the key, read where it lies each time, so that a new one is used without a restart.
pub type KeySource = Arc<dyn Fn() -> Result<String, WorldError> + Send + Sync>;

/// How a reply writes vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As arrays of numbers: every server knows it.
    Float,
    /// As base64 of little-endian 32-bit floats: a quarter of the bytes.
    Base64,
}

/// What a remote model is declared as.
#[derive(Clone)]
pub struct RemoteOptions {
    /// The declared name, for messages.
    pub name: String,
    /// The model's name at the server.
    pub model: String,
    /// The base of the API: `https://api.openai.com/v1`. Without a login in it.
    pub url: String,
    /// Where the key is, for messages (`secret "openai_key"`), and the way to it.
    pub key: Option<(String, KeySource)>,
    /// Components of a vector.
    pub dimensions: usize,
    /// Whether the request says so.
    pub sends_dimensions: bool,
    /// The longest text, in tokens.
    pub max_tokens: usize,
    /// Texts of one request.
    pub batch_texts: usize,
    /// Tokens of one request.
    pub batch_tokens: usize,
    /// Requests under way at once.
    pub calls: usize,
    /// Requests a minute; `None`: as many as go.
    pub requests_per_minute: Option<u32>,
    /// From the request to the end of its reply.
    pub timeout: Duration,
    /// How replies write vectors.
    pub encoding: Encoding,
    /// In front of texts.
    pub prompts: Prompts,
    /// A `tokenizer.json`, a folder with one, or a model's name; without it tokens are estimated.
    pub tokenizer: Option<String>,
}

/// A text that every model embeds.
const KNOWN_TEXT: &str = "a";
/// How long a server that embedded something is believed to be sound.
const SOUND: Duration = Duration::from_secs(10);
/// Special tokens assumed where no tokenizer tells.
const SPECIAL_TOKENS: usize = 2;

/// See the module.
pub struct RemoteEmbedder {
    options: RemoteOptions,
    id: ModelId,
    endpoint: Endpoint,
    pace: Option<Pace>,
    tokenizer: Option<TextTokenizer>,
    /// Tokens of the documents' prompt.
    prompt_tokens: usize,
    cuts: Cuts,
    /// When the server last embedded something.
    sound_at: Mutex<Option<Instant>>,
}

/// The body of a request.
#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: Encoding,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
}

impl RemoteEmbedder {
    /// Prepares the way to a model; nothing is sent. `models` is the model folder, for a tokenizer
    /// given by name.
    ///
    /// Errors: the tokenizer is not there or cannot be read.
    pub fn new(
        options: RemoteOptions,
        models: Option<&std::path::Path>,
    ) -> Result<RemoteEmbedder, WorldError> {
        let tokenizer = options.tokenizer.as_deref();
        let tokenizer = tokenizer.map(|at| read_tokenizer(&options, at, models));
        let (tokenizer, hash) = tokenizer.transpose()?.unzip();
        let mut embedder = RemoteEmbedder {
            id: identity(&options, hash.as_ref().map_or(b"", |hash| hash.as_bytes())),
            endpoint: Endpoint::new(&options),
            pace: options.requests_per_minute.map(Pace::new),
            tokenizer,
            prompt_tokens: 0,
            cuts: Cuts::new(&options.name),
            sound_at: Mutex::default(),
            options,
        };
        let prompt = embedder.token_spans(&embedder.options.prompts.document);
        embedder.prompt_tokens = prompt.starts.len();
        Ok(embedder)
    }

    fn error(&self, detail: String, fault: EmbedFault) -> EmbedError {
        EmbedError {
            model: self.options.name.clone(),
            detail,
            fault,
        }
    }

    fn embed_as(&self, kind: TextKind, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let is_question = kind == TextKind::Question;
        let prompt = match kind {
            TextKind::Question => &*self.options.prompts.query,
            TextKind::Passage => &*self.options.prompts.document,
        };
        let input = texts.iter().map(|text| {
            let text = self.cut(text, prompt);
            // Some servers refuse an empty text, and every text has a vector.
            if prompt.is_empty() && text.is_empty() {
                " ".to_owned()
            } else {
                format!("{prompt}{text}")
            }
        });
        let input: Vec<String> = input.collect();
        let failure = match self.exchange(&input, is_question) {
            Ok(vectors) => return Ok(vectors),
            Err(failure) => failure,
        };
        Err(match failure {
            Failure::World(detail, retry_after) => {
                self.error(detail, EmbedFault::World { retry_after })
            }
            Failure::Model(detail) => self.error(detail, EmbedFault::Model),
            Failure::Suspect(detail) => match self.is_sound(is_question) {
                Ok(()) => self.error(detail, EmbedFault::Text),
                Err(error) => error,
            },
        })
    }

    /// One request.
    fn exchange(&self, input: &[String], is_question: bool) -> Result<Vec<Vec<f32>>, Failure> {
        let options = &self.options;
        if let Some(pace) = &self.pace {
            pace.take(is_question);
        }
        let dimensions = options.sends_dimensions.then_some(options.dimensions);
        let request = Request {
            model: &options.model,
            input,
            encoding_format: options.encoding,
            dimensions,
        };
        let body = serde_json::to_vec(&request).expect("a request is plain strings");
        let bytes = self
            .endpoint
            .post(&body, reply::bytes_max(input.len(), options.dimensions))?;
        let vectors = reply::vectors(&bytes, input.len(), options.dimensions)
            .map_err(|garbled| garbled.failure(self.endpoint.url()))?;
        let units: Option<Vec<Vec<f32>>> = vectors.iter().map(|vector| direction(vector)).collect();
        let Some(units) = units else {
            let detail = format!(
                "{} returned a vector without a direction: all zero, or too large",
                self.endpoint.url()
            );
            return Err(Failure::Suspect(detail));
        };
        *self.lock() = Some(Instant::now());
        Ok(units)
    }

    /// Whether the server embeds a known text. `Err`: it does not, and why.
    fn is_sound(&self, is_question: bool) -> Result<(), EmbedError> {
        if self.lock().is_some_and(|at| at.elapsed() < SOUND) {
            return Ok(());
        }
        match self.exchange(&[KNOWN_TEXT.to_owned()], is_question) {
            Ok(_) => Ok(()),
            Err(Failure::World(detail, retry_after)) => {
                Err(self.error(detail, EmbedFault::World { retry_after }))
            }
            Err(Failure::Model(detail)) => Err(self.error(detail, EmbedFault::Model)),
            Err(Failure::Suspect(detail)) => {
                let detail = format!("even the text 'a' fails: {detail}");
                Err(self.error(detail, EmbedFault::Model))
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.sound_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The beginning of a text that the model has room for behind a prompt.
    fn cut<'a>(&self, text: &'a str, prompt: &str) -> &'a str {
        let around = self.special_tokens_alone() + self.token_spans(prompt).starts.len();
        let room = self.options.max_tokens.saturating_sub(around).max(1);
        // A token has at least one byte.
        if text.len() <= room {
            return text;
        }
        let spans = self.token_spans(text);
        match spans.ends.get(room - 1) {
            Some(&end) if spans.ends.len() > room => {
                self.cuts.note(self.options.max_tokens);
                &text[..end as usize]
            }
            _ => text,
        }
    }

    fn special_tokens_alone(&self) -> usize {
        let tokenizer = self.tokenizer.as_ref();
        tokenizer.map_or(SPECIAL_TOKENS, TextTokenizer::special_tokens)
    }
}

/// What shapes vectors, as far as it is declared: never the key or the path. Texts are cut at MAX TOKENS,
/// as the tokenizer counts them, so both belong to it.
fn identity(options: &RemoteOptions, tokenizer: &[u8]) -> ModelId {
    let url = &*options.url;
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let server = authority.rsplit('@').next().unwrap_or(authority);
    hashed_id(&[
        b"openai",
        server.to_ascii_lowercase().as_bytes(),
        options.model.as_bytes(),
        options.dimensions.to_string().as_bytes(),
        options.max_tokens.to_string().as_bytes(),
        tokenizer,
        options.prompts.query.as_bytes(),
        options.prompts.document.as_bytes(),
    ])
}

/// The tokenizer, and the hash of its file.
fn read_tokenizer(
    options: &RemoteOptions,
    at: &str,
    models: Option<&std::path::Path>,
) -> Result<(TextTokenizer, blake3::Hash), WorldError> {
    let path = std::path::Path::new(at);
    let file = match (path.is_file(), path.is_dir()) {
        (true, _) => path.to_owned(),
        (_, true) => path.join("tokenizer.json"),
        _ => weights::pull_in(models, at, &|_| {})?
            .path
            .join("tokenizer.json"),
    };
    let bytes = std::fs::read(&file).map_err(|e| WorldError::io("cannot read", &file, e))?;
    let tokenizer = TextTokenizer::parse(&bytes, options.max_tokens);
    let tokenizer = tokenizer.map_err(|detail| WorldError::Corrupt {
        path: file.display().to_string(),
        offset: 0,
        detail,
    })?;
    Ok((tokenizer, blake3::hash(&bytes)))
}

impl Embedder for RemoteEmbedder {
    fn id(&self) -> ModelId {
        self.id
    }

    fn name(&self) -> &str {
        &self.options.name
    }

    fn dimensions(&self) -> usize {
        self.options.dimensions
    }

    fn max_tokens(&self) -> usize {
        self.options.max_tokens
    }

    fn special_tokens(&self) -> usize {
        self.special_tokens_alone() + self.prompt_tokens
    }

    fn token_spans(&self, text: &str) -> TokenSpans {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.spans(text),
            None => count::estimated_spans(text),
        }
    }

    fn call_limits(&self) -> CallLimits {
        CallLimits {
            texts: self.options.batch_texts,
            tokens: Some(self.options.batch_tokens),
            calls: Some(self.options.calls),
        }
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.embed_as(TextKind::Passage, texts)
    }

    fn embed_questions(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.embed_as(TextKind::Question, texts)
    }
}

#[cfg(test)]
mod tests;
