//! The schema `headwater`: what the engine knows of itself, as rows.

use engine::model::{ObjectId, Value};
use engine::runtime::AskTime;
use operators::index::ShardSizes;

use super::Inner;
use super::asking::PATIENCE;
use crate::api::Reply;
use crate::definition::{Connector, Definition};
use crate::problem::Problem;
use crate::render::{Answer, Declared, Question};

pub(super) fn text(text: impl AsRef<str>) -> Value {
    Value::Text(text.as_ref().into())
}

pub(super) fn int(n: impl TryInto<i64>) -> Value {
    Value::Int(n.try_into().unwrap_or(i64::MAX))
}

impl Inner {
    /// The rows of a system collection, in its schema's order.
    pub(super) async fn system_rows(&self, name: &str) -> Reply<Vec<Vec<Value>>> {
        self.noted().await;
        match name {
            "sources" => Ok(self.source_rows()),
            "progress" => self.progress_rows().await,
            "indexes" => self.index_rows().await,
            "shards" => self.shard_rows().await,
            "caches" => self.cache_rows().await,
            "sinks" => Ok(self.sink_rows()),
            "retractions" => Ok(self.retraction_rows()),
            "dead_letters" => Ok(self.letter_rows()),
            "dead_letter_causes" => Ok(self.cause_rows()),
            "dataflows" | "operators" => Err(Problem::not_supported(format!(
                "headwater.{name} is not collected yet"
            ))
            .hint("activation times are in /metrics: headwater_activation_seconds")),
            other => Err(Problem::not_found(format!(
                "there is no collection headwater.{other}"
            ))),
        }
    }

    fn source_rows(&self) -> Vec<Vec<Value>> {
        let all = self.declared();
        let running = self.sources.lock().expect("no panic while held");
        let rows = all.iter().filter_map(|declared| {
            let object = declared.object();
            let Definition::Source(source) = &object.definition else {
                return None;
            };
            let (rows, staged) = self.engine.source_sizes(object.id);
            let (connector, is_push) = match &source.connector {
                Connector::Files(_) => ("files", false),
                Connector::Push => ("push", true),
                Connector::Generate { .. } => ("generate", false),
                Connector::Kafka(_) => ("kafka", false),
                Connector::Postgres(_) => ("postgres", false),
                Connector::Git(_) => ("git", false),
            };
            let (status, error) = match running.get(&object.id) {
                Some(source) => source.status(),
                None if is_push => ("running", None),
                None => ("stopped", None),
            };
            Some(vec![
                text(&object.name),
                text(connector),
                text(status),
                int(rows),
                Value::Null,
                int(staged),
                int(self.engine.dead_letters().count(&object.name)),
                error.map_or(Value::Null, text),
                text(&object.statement),
            ])
        });
        rows.collect()
    }

    /// Pending documents and shard sizes of an index.
    pub(super) async fn shard_sizes(&self, id: ObjectId) -> Reply<Vec<(u64, ShardSizes)>> {
        let question = Question::Sizes { index: id };
        let (_, answer) = self
            .ask(vec![id], AskTime::Newest, PATIENCE, question)
            .await?;
        match answer {
            Answer::Sizes(sizes) => Ok(sizes),
            _ => unreachable!("sizes are answered by sizes"),
        }
    }

    /// What is there of a running source that it has not read; `None` when it does not know.
    fn behind(&self, source: ObjectId) -> Option<u64> {
        let running = self.sources.lock().expect("no panic while held");
        running.get(&source)?.behind()
    }

    async fn progress_rows(&self) -> Reply<Vec<Vec<Value>>> {
        let published = self.engine.published();
        let mut rows = Vec::new();
        for declared in self.declared() {
            let object = declared.object();
            let Some(readable) = published.collections.get(&object.id) else {
                continue;
            };
            let (mut count, mut bytes, mut pending) = (Value::Null, Value::Null, Value::Null);
            let mut behind = Value::Null;
            match &declared {
                Declared::Source { .. } => {
                    count = int(self.engine.source_sizes(object.id).0);
                    behind = self.behind(object.id).map_or(Value::Null, int);
                }
                Declared::Index(_) => {
                    let sizes = self.shard_sizes(object.id).await?;
                    count = int(sizes.iter().map(|(_, s)| s.chunks_live).sum::<u64>());
                    bytes = int(sizes.iter().map(|(_, s)| s.bytes).sum::<u64>());
                    pending = int(sizes.iter().map(|(p, _)| p).sum::<u64>());
                }
                _ => {}
            }
            let now = self.engine.clock().now_micros();
            let lag = now.saturating_sub(readable.upper) as f64 / 1000.0;
            rows.push(vec![
                text(&object.name),
                text(object.definition.kind()),
                int(readable.since),
                int(readable.upper),
                Value::Float(lag),
                count,
                bytes,
                pending,
                behind,
            ]);
        }
        Ok(rows)
    }

    async fn index_rows(&self) -> Reply<Vec<Vec<Value>>> {
        let mut rows = Vec::new();
        for declared in self.declared() {
            let Declared::Index(index) = declared else {
                continue;
            };
            let sizes = self.shard_sizes(index.object.id).await?;
            let sum = |of: &dyn Fn(&ShardSizes) -> u64| {
                int(sizes.iter().map(|(_, size)| of(size)).sum::<u64>())
            };
            let method = match (index.definition.vector, index.definition.keyword) {
                (true, true) => "hybrid",
                (true, false) => "vector",
                (false, _) => "keyword",
            };
            rows.push(vec![
                text(&index.object.name),
                text(&index.definition.on),
                text(method),
                index.definition.model.as_ref().map_or(Value::Null, text),
                int(index.object.id.0),
                sum(&|size| size.documents),
                sum(&|size| size.chunks_live),
                int(sizes.iter().map(|(pending, _)| pending).sum::<u64>()),
                sum(&|size| size.bytes),
                text(&index.object.statement),
            ]);
        }
        Ok(rows)
    }

    async fn shard_rows(&self) -> Reply<Vec<Vec<Value>>> {
        let published = self.engine.published();
        let mut rows = Vec::new();
        for declared in self.declared() {
            let Declared::Index(index) = declared else {
                continue;
            };
            let upper = published
                .collections
                .get(&index.object.id)
                .map_or(0, |r| r.upper);
            let sizes = self.shard_sizes(index.object.id).await?;
            for (worker, (_, size)) in sizes.iter().enumerate() {
                rows.push(vec![
                    text(&index.object.name),
                    int(worker),
                    int(size.chunks_live),
                    int(size.chunks_dead),
                    int(size.head),
                    int(size.generations),
                    int(size.bytes),
                    int(upper.saturating_sub(1)),
                ]);
            }
        }
        Ok(rows)
    }

    async fn cache_rows(&self) -> Reply<Vec<Vec<Value>>> {
        let retractions = self.retractions();
        let mut rows = Vec::new();
        for declared in self.declared() {
            let Declared::Cache {
                object, definition, ..
            } = declared
            else {
                continue;
            };
            let question = Question::Entries { cache: object.id };
            let (_, answer) = self
                .ask(vec![object.id], AskTime::Newest, PATIENCE, question)
                .await?;
            let Answer::Entries(entries) = answer else {
                unreachable!("entries are answered by entries");
            };
            rows.push(vec![
                text(&object.name),
                text(&definition.index),
                int(entries.len()),
                int(entries.iter().filter(|entry| !entry.is_live).count()),
                Value::Null,
                Value::Null,
                int(retractions
                    .iter()
                    .filter(|(id, ..)| *id == object.id)
                    .count()),
                int(definition.capacity),
                text(&object.statement),
            ]);
        }
        Ok(rows)
    }

    fn retraction_rows(&self) -> Vec<Vec<Value>> {
        let rows = self
            .retractions()
            .into_iter()
            .filter_map(|(id, entry, at, death)| {
                let declared = self.pipeline.get(id)?;
                let by = death.by.first();
                Some(vec![
                    text(&declared.object().name),
                    text(entry.to_string()),
                    text(death.cause.as_str()),
                    Value::Timestamp(at as i64),
                    by.map_or(Value::Null, |document| text(document.key.as_str())),
                    by.map_or(Value::Null, |document| int(document.version)),
                    Value::Null,
                ])
            });
        rows.collect()
    }
}
