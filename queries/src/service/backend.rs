//! The service as the front door's backend.

use std::sync::Arc;

use serde_json::Value as Json;

use super::Service;
use crate::api::{
    Backend, DeadLetterReply, DeadLetterRequest, DocumentReply, DocumentRequest, EmbeddingsReply,
    EmbeddingsRequest, LookupReply, LookupRequest, PushReply, PushRequest, Readiness, ReplayReply,
    ReplayRequest, Reply, SearchReply, SearchRequest, SqlReply, StoreReply, StoreRequest,
};
use crate::problem::Problem;

impl Backend for Service {
    async fn sql(&self, sql: String, params: Vec<Json>) -> (Vec<SqlReply>, Option<Problem>) {
        self.inner.run_sql(&sql, &params).await
    }

    async fn search(&self, request: SearchRequest) -> Reply<SearchReply> {
        self.inner.search_index(request).await
    }

    async fn push(&self, request: PushRequest) -> Reply<PushReply> {
        self.inner.push_rows(request).await
    }

    async fn document(&self, request: DocumentRequest) -> Reply<DocumentReply> {
        self.inner.read_document(request).await
    }

    async fn lookup(&self, cache: String, request: LookupRequest) -> Reply<LookupReply> {
        self.inner.cache_lookup(&cache, request).await
    }

    async fn store(&self, cache: String, request: StoreRequest) -> Reply<StoreReply> {
        let inner = Arc::clone(&self.inner);
        self.inner
            .to_its_end(async move { inner.cache_store(&cache, request).await })
            .await
    }

    async fn entry(&self, cache: String, entry: String) -> Reply<Json> {
        self.inner.cache_entry(&cache, &entry).await
    }

    async fn forget(&self, cache: String, entry: String) -> Reply<Json> {
        self.inner.cache_forget(&cache, &entry).await
    }

    async fn cache_events(
        &self,
        cache: String,
        after: Option<String>,
        wait_ms: u64,
    ) -> Reply<Vec<(String, String, Json)>> {
        self.inner
            .cache_event_list(&cache, after.as_deref(), wait_ms)
            .await
    }

    async fn dead_letters(&self, request: DeadLetterRequest) -> Reply<Vec<DeadLetterReply>> {
        self.inner.noted().await;
        self.inner.letters(&request)
    }

    async fn replay(&self, request: ReplayRequest) -> Reply<ReplayReply> {
        // A replay that has begun goes on even when its caller goes away.
        let inner = Arc::clone(&self.inner);
        let replayed = tokio::task::spawn_blocking(move || inner.replay_letters(&request)).await;
        replayed.map_err(|error| Problem::internal(error.to_string()))?
    }

    async fn embeddings(&self, request: EmbeddingsRequest) -> Reply<EmbeddingsReply> {
        self.inner.embed_texts(request).await
    }

    async fn pipeline(&self) -> Reply<Json> {
        Ok(self.inner.pipeline_json())
    }

    async fn progress(&self) -> Reply<Json> {
        self.inner.progress_json().await
    }

    fn readiness(&self) -> Readiness {
        self.inner.ready()
    }

    fn metrics(&self) -> String {
        (self.inner.metrics)()
    }
}
