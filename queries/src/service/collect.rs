//! Vectors that nothing needs any more are forgotten, and their place on the disk is given back.
//!
//! Idea: mark and sweep. Every shard names the texts that can still be read of it, page by page, beside
//! its other work; the store marks them, and forgets what nobody needed for a while.
//!
//! ```text
//! every 10 minutes:  shards ── a page of texts ──▶ mark ── … ──▶ all marked? ──▶ collect
//!                                                                  └─ no: nothing is forgotten
//! between:           compaction of the log leaves out facts of vectors that are not wanted
//! ```
//!
//! Invariants: a vector of a chunk that can be read at any time within retention is marked in every
//! round; what was put or found since two rounds ago stays, so that rows on their way, indexes
//! that are being filled again, and documents that come back soon find theirs.
//!
//! Limits: place is given back a file (64 MiB) at a time, when more than half of it is garbage.

use std::sync::Arc;

use engine::durable::Collected;
use engine::model::{ModelId, ObjectId};
use engine::runtime::AskTime;
use engine::telemetry;

use super::asking::PATIENCE;
use super::{Inner, Service};
use crate::render::{Answer, Declared, ModelKind, Question};

/// Seconds between two rounds: far longer than a staged row waits for its tick.
pub(super) const COLLECT_EVERY: u32 = 600;
/// Texts of a page, each worker: some tenths of a millisecond of its time.
const PAGE: usize = 8_192;

impl Service {
    /// One round, which otherwise comes every ten minutes. What is forgotten was not needed for two whole
    /// rounds.
    pub async fn collect_vectors(&self) -> Collected {
        self.inner.collect_vectors().await
    }
}

impl Inner {
    /// Marks what is needed and forgets what was not for a while; nothing when not all shards answer.
    pub(super) async fn collect_vectors(self: &Arc<Self>) -> Collected {
        let mut indexes = Vec::new();
        for declared in self.declared() {
            let index = match declared {
                Declared::Index(index) => index,
                // Vectors of a column come with their rows and cannot be computed again.
                Declared::Model {
                    model: ModelKind::Column { id, .. },
                    ..
                } => {
                    self.vectors.mark_all(id);
                    continue;
                }
                _ => continue,
            };
            let Some(model) = &index.model else { continue };
            indexes.push(Arc::clone(&index));
            if !self.mark(index.object.id, model.id()).await {
                tracing::debug!(
                    index = index.object.name,
                    "no answer; no vectors are collected"
                );
                return Collected::default();
            }
        }
        let announce = |facts| self.engine.vectors_forgotten(facts);
        match self.vectors.collect(&announce) {
            Ok(collected) => {
                metrics::counter!(telemetry::VECTORS_COLLECTED.name).increment(collected.vectors);
                metrics::counter!(telemetry::VECTORS_COLLECTED_BYTES.name)
                    .increment(collected.bytes);
                // Should one have been needed after all, by a row that waited longer than three rounds.
                if collected.vectors > 0 {
                    indexes.iter().for_each(|index| self.fill(index));
                }
                collected
            }
            Err(error) => {
                tracing::error!(%error, "vectors could not be collected; trying again later");
                Collected::default()
            }
        }
    }

    /// Whether all shards of an index said which texts they have.
    async fn mark(&self, index: ObjectId, model: ModelId) -> bool {
        let mut from = 0;
        loop {
            let question = Question::Contents {
                index,
                from,
                limit: PAGE,
            };
            let asked = self
                .ask(vec![index], AskTime::Newest, PATIENCE, question)
                .await;
            let Ok((_, Answer::Contents(contents, next))) = asked else {
                return false;
            };
            self.vectors.mark(model, &contents);
            match next {
                Some(next) => from = next,
                None => return true,
            }
        }
    }
}
