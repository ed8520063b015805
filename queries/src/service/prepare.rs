//! Preparing a batch: view programs, chunks, hashes, vectors (PROTOCOLS §4.1), off the workers.

use std::collections::HashMap;
use std::sync::Arc;

use engine::contract::EmbedFault;
use engine::durable::EmbeddingStore;
use engine::model::{ContentHash, ModelId, Row, VectorFact, VectorRef};
use engine::runtime::{Announcer, Prepared, Preparer, StagedBatch, Want};
use operators::embed::{EmbedService, Priority};
use tracing::field::Empty;

use crate::render::{IndexSpec, IndexedValue, ModelKind, Pipeline};
use crate::sql::RowProgram;

/// Prepares batches for all indexes that read their source.
pub(super) struct PipelinePreparer {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) embed: Arc<EmbedService>,
    pub(super) vectors: Arc<EmbeddingStore>,
    pub(super) announcer: Announcer,
}

/// A batch that no index reads has nothing to wait for; a day bounds what a statement may ask.
const DEADLINE_MS_MAX: u64 = 86_400_000;

/// Texts to embed, by content.
type Texts = HashMap<ContentHash, Arc<str>>;

impl Preparer for PipelinePreparer {
    fn prepare(&self, batch: &StagedBatch) -> Prepared {
        let started = std::time::Instant::now();
        let span = tracing::debug_span!(
            "prepare",
            source = Empty,
            lane = &*batch.lane,
            rows = batch.changes.len(),
            tokens = Empty,
        );
        if !span.is_disabled()
            && let Some(source) = self.pipeline.get(batch.source)
        {
            span.record("source", &*source.object().name);
        }
        let _entered = span.enter();
        let mut prepared = Prepared {
            deadline_ms: u64::MAX,
            ..Prepared::default()
        };
        for (index, programs) in self.pipeline.readers(batch.source) {
            prepared.is_indexed = true;
            prepared.deadline_ms = prepared.deadline_ms.min(index.definition.embed_deadline_ms);
            self.prepare_index(batch, &index, &programs, &mut prepared);
        }
        prepared.deadline_ms = prepared.deadline_ms.min(DEADLINE_MS_MAX);
        span.record("tokens", prepared.tokens);
        metrics::histogram!("headwater_prepare_seconds").record(started.elapsed().as_secs_f64());
        prepared
    }

    fn is_open(&self, model: &ModelId) -> bool {
        self.embed.is_open(*model)
    }

    fn has_vector(&self, at: VectorRef) -> bool {
        self.vectors.owner(at).is_some()
    }

    fn vector(&self, at: VectorRef) -> Option<Arc<[f32]>> {
        self.vectors.get(at)
    }
}

impl PipelinePreparer {
    fn prepare_index(
        &self,
        batch: &StagedBatch,
        index: &Arc<IndexSpec>,
        programs: &[Arc<RowProgram>],
        prepared: &mut Prepared,
    ) {
        let mut rows: Vec<Row> = batch
            .changes
            .iter()
            .filter_map(|change| change.row.clone())
            .collect();
        for program in programs {
            // Bad rows are reported where they are rendered; here they have nothing to embed.
            let results = program.apply(&rows, 0).into_iter();
            rows = results.filter_map(|result| result.ok().flatten()).collect();
        }
        let mut texts = Texts::new();
        for row in &rows {
            let (value, _) = index.read(row);
            let pieces = index.pieces(&value);
            prepared.tokens += pieces.len() * index.definition.chunking.max_tokens as usize / 2;
            let Some(model) = &index.model else { continue };
            for piece in pieces.iter() {
                let content = piece.content;
                let at = self.vectors.find(model.id(), content);
                let at = at.or_else(|| self.store_column_vector(model, content, &value));
                prepared.wants.push(Want {
                    model: model.id(),
                    content,
                    at,
                });
                if at.is_none()
                    && let IndexedValue::Text(text) = &value
                {
                    texts
                        .entry(content)
                        .or_insert_with(|| index.embedded_text(text, piece).into());
                }
            }
        }
        if let Some(ModelKind::Encoder(encoder)) = &index.model {
            let priority = if batch.is_push {
                Priority::Push
            } else {
                Priority::Bulk
            };
            request(&self.embed, encoder.id(), texts, priority, &self.announcer);
        }
    }

    /// The vector of a column goes to the store as it is.
    fn store_column_vector(
        &self,
        model: &ModelKind,
        content: ContentHash,
        value: &IndexedValue,
    ) -> Option<VectorRef> {
        let (ModelKind::Column { id, .. }, IndexedValue::Vector(vector)) = (model, value) else {
            return None;
        };
        Some(self.vectors.put(*id, content, vector))
    }
}

/// Asks for vectors; each is announced when it is stored.
fn request(
    embed: &Arc<EmbedService>,
    model: ModelId,
    texts: Texts,
    priority: Priority,
    announcer: &Announcer,
) {
    if texts.is_empty() {
        return;
    }
    let announcer = announcer.clone();
    let items = texts
        .into_iter()
        .map(|(content, text)| (content, text, 0))
        .collect();
    embed.request(
        model,
        items,
        priority,
        Box::new(move |content, result| match result {
            Ok(at) => announcer.vector_stored(VectorFact { model, content, at }),
            // The late path asks again; of a refused text it makes a dead letter.
            Err(error) => {
                if error.fault == EmbedFault::Text {
                    announcer.vector_refused(model, content);
                }
                tracing::debug!(%error, %content, "a text is not embedded; its chunk stays pending");
            }
        }),
    );
}
