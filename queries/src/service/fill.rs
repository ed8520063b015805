//! The late path: vectors that rows did not wait for (a new index's first fill, an encoder that was
//! away, a restart) are found by asking the shards, and requested. They enter as facts.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use engine::model::{ContentHash, VectorFact};
use engine::runtime::AskTime;
use operators::embed::Priority;

use super::Inner;
use super::asking::PATIENCE;
use crate::render::{Answer, IndexSpec, ModelKind, Question};

/// Missing chunks asked for at a time, each worker.
const FILL_CHUNKS: usize = 2_048;
/// Between rounds.
const FILL_PAUSE: Duration = Duration::from_millis(500);

impl Inner {
    /// Asks for missing vectors until none is missing.
    pub(super) fn fill(self: &Arc<Self>, index: &Arc<IndexSpec>) {
        if index.model.is_none() {
            return;
        }
        let inner = Arc::downgrade(self);
        let index = Arc::clone(index);
        self.runtime.spawn(async move {
            loop {
                match fill_round(&inner, &index).await {
                    Some(0) | None => return,
                    Some(_) => tokio::time::sleep(FILL_PAUSE).await,
                }
            }
        });
    }
}

/// One round; how many were missing, or `None` when there is nobody to ask.
async fn fill_round(inner: &Weak<Inner>, index: &Arc<IndexSpec>) -> Option<usize> {
    let inner = inner.upgrade()?;
    let id = index.object.id;
    let question = Question::Missing {
        index: id,
        limit: FILL_CHUNKS,
    };
    let asked = inner
        .ask(vec![id], AskTime::Newest, PATIENCE, question)
        .await;
    let Ok((_, Answer::Missing(missing))) = asked else {
        return None;
    };
    let model = index.model.as_ref()?;
    let mut texts: HashMap<ContentHash, Arc<str>> = HashMap::new();
    for chunk in &missing {
        match inner.vectors.find(model.id(), chunk.content) {
            // Stored, and its fact was lost with an unlogged tick: bind it again.
            Some(at) => inner.engine.vector_stored(VectorFact {
                model: model.id(),
                content: chunk.content,
                at,
            }),
            None => {
                texts
                    .entry(chunk.content)
                    .or_insert_with(|| chunk.text.as_str().into());
            }
        }
    }
    if let ModelKind::Encoder(encoder) = model {
        let announcer = inner.engine.announcer();
        super::prepare::request(
            &inner.embed,
            encoder.id(),
            texts,
            Priority::Bulk,
            &announcer,
        );
        Some(missing.len())
    } else {
        // A column's vector comes with its row.
        None
    }
}
