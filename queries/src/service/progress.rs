//! Readiness, progress and gauges.

use std::sync::Arc;

use std::sync::atomic::Ordering;

use operators::index::ShardSizes;
use serde_json::{Map, Value as Json, json};

use super::Inner;
use crate::api::{Readiness, Reply};
use crate::definition::Object;
use crate::render::{Declared, ModelKind};
use crate::sql::system_schema;

impl Inner {
    /// Whether everything is served, and what is on the way.
    pub(super) fn ready(&self) -> Readiness {
        let mut reasons = Vec::new();
        if !self.is_ready.load(Ordering::Acquire) {
            reasons.push("the input log is being replayed".to_owned());
        }
        let published = self.engine.published();
        for declared in self.declared() {
            let object = declared.object();
            match (&declared, published.collections.get(&object.id)) {
                (Declared::Model { .. } | Declared::Plain { .. } | Declared::Sink { .. }, _) => {}
                (_, Some(readable)) if readable.upper > readable.since => {}
                _ => reasons.push(format!(
                    "{} \"{}\" is not sealed yet",
                    object.definition.kind(),
                    object.name
                )),
            }
            if let Declared::Model {
                model: ModelKind::Encoder(encoder),
                ..
            } = &declared
            {
                let pending = self.embed.pending(encoder.id());
                if pending > 0 {
                    reasons.push(format!(
                        "model \"{}\": {pending} texts wait for their embedding",
                        object.name
                    ));
                }
                if self.embed.is_open(encoder.id()) {
                    let why = self.embed.trouble(encoder.id());
                    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                    reasons.push(format!(
                        "model \"{}\" is failing; texts wait and are tried again{why}",
                        object.name
                    ));
                }
            }
        }
        for (id, source) in self.sources.lock().expect("no panic while held").iter() {
            if let (Some(failure), Some(declared)) = (source.failure(), self.pipeline.get(*id)) {
                let name = &declared.object().name;
                reasons.push(format!("source \"{name}\" stopped: {failure}"));
            }
        }
        for (id, sink) in self.sinks.lock().expect("no panic while held").iter() {
            if let (Some(failure), Some(declared)) = (sink.failure(), self.pipeline.get(*id)) {
                let name = &declared.object().name;
                reasons.push(format!("sink \"{name}\" stopped: {failure}"));
            }
        }
        if let Some(failure) = self.engine.log().failure() {
            reasons.push(format!(
                "the input log cannot be written: {}",
                failure.error
            ));
        }
        Readiness {
            ready: reasons.is_empty(),
            reasons,
        }
    }

    /// `/v1/progress`
    pub(super) async fn progress_json(&self) -> Reply<Json> {
        let schema = system_schema("progress").expect("a system collection");
        let rows = self.system_rows("progress").await?;
        let shown = rows.iter().map(|row| {
            let pairs = schema.columns.iter().zip(row);
            let object: Map<String, Json> = pairs
                .map(|(c, value)| (c.name.clone(), value.to_json(c.sql_type)))
                .collect();
            Json::Object(object)
        });
        let published = self.engine.published();
        Ok(json!({
            "as_of": published.last,
            "collections": shown.collect::<Vec<_>>(),
            "ready": self.ready(),
        }))
    }

    /// `/v1/pipeline`
    pub(super) fn pipeline_json(&self) -> Json {
        let all = self.declared();
        let shown = all.iter().map(Declared::object).map(|object: &Object| {
            json!({
                "name": object.name,
                "kind": object.definition.kind(),
                "statement": object.statement,
                "depends_on": object.definition.depends_on(),
                "definition": object.definition,
            })
        });
        json!({ "objects": shown.collect::<Vec<_>>() })
    }

    /// Gauges that nobody else keeps.
    pub(super) fn refresh_gauges(&self) {
        let published = self.engine.published();
        let now = self.engine.clock().now_micros();
        for declared in self.declared() {
            let object = declared.object();
            if let Some(readable) = published.collections.get(&object.id) {
                let lag = now.saturating_sub(readable.upper) as f64 / 1e6;
                metrics::gauge!("headwater_sealed_lag_seconds", "collection" => object.name.clone())
                    .set(lag);
            }
            if let Declared::Source { .. } = declared {
                let (_, staged) = self.engine.source_sizes(object.id);
                metrics::gauge!("headwater_staged_bytes", "source" => object.name.clone())
                    .set(staged as f64);
            }
        }
    }

    /// Gauges of the shards: a question each, so less often than the others.
    pub(super) async fn refresh_index_gauges(self: &Arc<Self>) {
        for declared in self.declared() {
            let Declared::Index(index) = declared else {
                continue;
            };
            let Ok(sizes) = self.shard_sizes(index.object.id).await else {
                continue;
            };
            let name = &index.object.name;
            let pending: u64 = sizes.iter().map(|(pending, _)| pending).sum();
            self.fill_if_stuck(&index, pending);
            let sum = |of: &dyn Fn(&ShardSizes) -> u64| {
                sizes.iter().map(|(_, size)| of(size)).sum::<u64>() as f64
            };
            metrics::gauge!("headwater_pending_documents", "index" => name.clone())
                .set(pending as f64);
            metrics::gauge!("headwater_index_chunks_live", "index" => name.clone())
                .set(sum(&|size| size.chunks_live));
            metrics::gauge!("headwater_index_chunks_dead", "index" => name.clone())
                .set(sum(&|size| size.chunks_dead));
            metrics::gauge!("headwater_index_chunks_head", "index" => name.clone())
                .set(sum(&|size| size.head));
            metrics::gauge!("headwater_index_generations", "index" => name.clone())
                .set(sum(&|size| size.generations));
            metrics::gauge!("headwater_index_bytes", "index" => name.clone())
                .set(sum(&|size| size.bytes));
        }
    }
}
