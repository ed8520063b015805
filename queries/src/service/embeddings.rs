//! Vectors of texts for callers: the declared models as an embedding server.
//!
//! ```text
//! text ─┬─ stored already for a document ─▶ its vector
//!       └─ the model's queue: a few texts before documents, long lists in turns with them
//! ```
//!
//! Invariants: nothing of a call is stored; a call fails as a whole, with the first text's reason.

use std::sync::Arc;
use std::time::Duration;

use engine::contract::{EmbedError, EmbedFault, Embedder};
use engine::limits::{EMBEDDING_INPUTS_URGENT, EMBEDDING_TOKENS_MAX, EMBEDDING_WAIT_MS};
use engine::model::ContentHash;
use operators::embed::{TextKind, Urgency, truncated};
use tokio::sync::oneshot;

use super::Inner;
use crate::api::{EmbeddingsReply, EmbeddingsRequest, Reply};
use crate::definition::{Definition, ModelDef};
use crate::problem::Problem;
use crate::render::{Declared, ModelKind};

impl Inner {
    /// The vectors of a call's texts.
    pub(super) async fn embed_texts(&self, request: EmbeddingsRequest) -> Reply<EmbeddingsReply> {
        let (name, encoder) = self.model_named(&request.model)?;
        let width = encoder.dimensions();
        let wanted = request.dimensions.unwrap_or(width);
        if wanted > width {
            let detail = format!("dimensions = {wanted}: the vectors of \"{name}\" have {width}");
            return Err(Problem::invalid(detail)
                .expected(format!("at most {width}"))
                .with("param", "dimensions"));
        }
        let (counts, request) = counted(&encoder, request).await?;
        let longest = encoder.max_tokens();
        let tokens: usize = counts.iter().map(|count| *count.min(&longest)).sum();
        if tokens > EMBEDDING_TOKENS_MAX {
            let detail = format!("input has {tokens} tokens");
            return Err(Problem::new(422, "limit-exceeded", detail)
                .expected(format!(
                    "at most {EMBEDDING_TOKENS_MAX} (EMBEDDING_TOKENS_MAX)"
                ))
                .with("param", "input"));
        }
        let vectors = self.vectors_of(&encoder, &request).await?;
        let vectors = vectors.into_iter().map(|vector| match wanted < width {
            true => truncated(&vector, wanted).map(Arc::from).ok_or_else(|| {
                Problem::invalid(format!("the first {wanted} components are all zero"))
            }),
            false => Ok(vector),
        });
        let counts = counts.iter().enumerate();
        let truncated = counts.filter(|(_, count)| **count > longest);
        Ok(EmbeddingsReply {
            model: request.model,
            vectors: vectors.collect::<Reply<_>>()?,
            tokens: tokens as u64,
            truncated: truncated.map(|(at, _)| at).collect(),
        })
    }

    async fn vectors_of(
        &self,
        encoder: &Arc<dyn Embedder>,
        request: &EmbeddingsRequest,
    ) -> Reply<Vec<Arc<[f32]>>> {
        let (kind, id) = match request.is_question {
            true => (TextKind::Question, encoder.id()),
            false => (TextKind::Passage, encoder.id()),
        };
        let urgency = match request.input.len() <= EMBEDDING_INPUTS_URGENT {
            true => Urgency::Now,
            false => Urgency::InTurn,
        };
        let mut waiting = Vec::with_capacity(request.input.len());
        for text in &request.input {
            let (send, receive) = oneshot::channel();
            let stored = match kind {
                TextKind::Passage => self.vectors.find(id, ContentHash::of(text.as_bytes())),
                TextKind::Question => None,
            };
            match stored.and_then(|at| self.vectors.get(at)) {
                Some(vector) => drop(send.send(Ok(vector))),
                None => {
                    // Nobody waits any more when the caller went away.
                    let done = Box::new(move |result| drop(send.send(result)));
                    self.embed.embed_text(id, text, kind, urgency, done);
                }
            }
            waiting.push(receive);
        }
        let all = async {
            let mut vectors = Vec::with_capacity(waiting.len());
            for (at, receive) in waiting.into_iter().enumerate() {
                match receive.await {
                    Ok(Ok(vector)) => vectors.push(vector),
                    Ok(Err(error)) => return Err(refusal(at, &error)),
                    Err(_) => return Err(away("the encoder is stopping")),
                }
            }
            Ok(vectors)
        };
        let patience = Duration::from_millis(EMBEDDING_WAIT_MS);
        tokio::time::timeout(patience, all)
            .await
            .unwrap_or_else(|_| {
                Err(away(format!(
                    "no answer of the encoder within {EMBEDDING_WAIT_MS} ms (EMBEDDING_WAIT_MS)"
                )))
            })
    }

    /// A model by its declared name, or by the name of what it was declared from if that is one's only.
    fn model_named(&self, name: &str) -> Reply<(String, Arc<dyn Embedder>)> {
        let all = self.declared();
        let models = all.iter().filter_map(|declared| match declared {
            Declared::Model { object, model } => Some((object, model)),
            _ => None,
        });
        let models: Vec<_> = models.collect();
        let folded = name.to_lowercase();
        let by_name = models
            .iter()
            .rev()
            .find(|(object, _)| object.name == name || object.name == folded);
        let mut by_origin = models
            .iter()
            .filter(|(object, _)| match &object.definition {
                Definition::Model(ModelDef::Pretrained { location, .. }) => location == name,
                Definition::Model(ModelDef::Remote(remote)) => remote.model == name,
                _ => false,
            });
        let only = by_origin.next().filter(|_| by_origin.next().is_none());
        let Some((object, model)) = by_name.or(only) else {
            return Err(Problem::not_found(format!("there is no model \"{name}\""))
                .expected("the name of a declared model")
                .hint("SHOW MODELS lists them; CREATE MODEL declares one")
                .with("param", "model"));
        };
        match model {
            ModelKind::Encoder(encoder) => Ok((object.name.clone(), Arc::clone(encoder))),
            ModelKind::Column { .. } => Err(Problem::invalid(format!(
                "model \"{}\" is one of bare vectors: it has no encoder",
                object.name
            ))
            .expected("a model of texts")
            .with("param", "model")),
        }
    }
}

/// Tokens of each text as the model sees them uncut, counted off the asynchronous threads.
async fn counted(
    encoder: &Arc<dyn Embedder>,
    request: EmbeddingsRequest,
) -> Reply<(Vec<usize>, EmbeddingsRequest)> {
    let encoder = Arc::clone(encoder);
    let counting = tokio::task::spawn_blocking(move || {
        let around = encoder.special_tokens();
        let texts = request.input.iter();
        let counts = texts.map(|text| encoder.token_spans(text).starts.len() + around);
        (counts.collect(), request)
    });
    counting
        .await
        .map_err(|error| Problem::internal(error.to_string()))
}

fn away(detail: impl Into<String>) -> Problem {
    Problem::new(503, "encoder-unavailable", detail)
}

fn refusal(at: usize, error: &EmbedError) -> Problem {
    match error.fault {
        EmbedFault::Text => {
            Problem::invalid(format!("input[{at}]: {error}")).with("param", "input")
        }
        EmbedFault::World {
            retry_after: Some(wait),
        } => away(error.to_string()).with("retry_after_s", wait.as_secs().max(1)),
        _ => away(error.to_string()),
    }
}
