//! `GET /v1/documents/…`: the live version, its chunks by index, its versions within retention.

use engine::model::{Key, RowCodec, Time};
use engine::runtime::AskTime;
use serde_json::{Map, Value as Json, json};

use super::Inner;
use super::asking::PATIENCE;
use crate::api::{DocumentReply, DocumentRequest, Reply};
use crate::problem::Problem;
use crate::render::{Answer, Declared, DocumentAnswer, Question};

impl Inner {
    /// A document.
    pub(super) async fn read_document(&self, request: DocumentRequest) -> Reply<DocumentReply> {
        let Some(Declared::Source { object, codec }) = self.pipeline.by_name(&request.source)
        else {
            return Err(Problem::not_found(format!(
                "there is no source \"{}\"",
                request.source
            )));
        };
        let key = Key::from_json(&request.key);
        let readers = self.pipeline.readers(object.id);
        let mut over = vec![object.id];
        over.extend(readers.iter().map(|(index, _)| index.object.id));
        let at = self
            .ask_time(request.as_of.as_ref(), None, PATIENCE)
            .await?;
        // One time for all: hold it over everything that is read.
        let rows = Question::Rows {
            collection: object.id,
            key: Some(key.clone()),
        };
        let (at, answer) = self.ask(over, at, PATIENCE, rows).await?;
        let Answer::Rows(rows) = answer else {
            unreachable!("rows are answered by rows")
        };
        let mut body = Map::new();
        body.insert("source".to_owned(), Json::from(request.source.clone()));
        body.insert("key".to_owned(), key.to_json());
        if request.history {
            return Err(Problem::not_supported("history=true is not supported yet")
                .hint("read single versions by as_of"));
        }
        let Some((_, version)) = rows.into_iter().next() else {
            return Err(Problem::not_found(format!(
                "source \"{}\" has no document {key} at {at}",
                request.source
            )));
        };
        body.insert("version".to_owned(), Json::from(version.version));
        body.insert("row".to_owned(), row_json(&codec, &version.row));
        let mut indexes = Map::new();
        for (index, _) in &readers {
            let question = Question::Document {
                index: index.object.id,
                key: key.clone(),
            };
            let id = vec![index.object.id];
            let (_, answer) = self.ask(id, AskTime::At(at), PATIENCE, question).await?;
            let Answer::Documents(documents) = answer else {
                unreachable!("documents are answered by documents");
            };
            let chunks: Vec<Json> = documents.iter().flat_map(chunks_json).collect();
            indexes.insert(index.object.name.clone(), json!({ "chunks": chunks }));
        }
        body.insert("indexes".to_owned(), Json::Object(indexes));
        Ok(DocumentReply { as_of: at, body })
    }

    /// All live documents of an index.
    pub(super) async fn index_documents(
        &self,
        id: engine::model::ObjectId,
        at: AskTime,
    ) -> Reply<(Time, Vec<DocumentAnswer>)> {
        let question = Question::Documents { index: id };
        let (at, answer) = self.ask(vec![id], at, PATIENCE, question).await?;
        match answer {
            Answer::Documents(documents) => Ok((at, documents)),
            _ => unreachable!("documents are answered by documents"),
        }
    }
}

/// A packed row as a JSON object.
pub(super) fn row_json(codec: &RowCodec, row: &engine::model::Row) -> Json {
    let values = codec.unpack(row);
    let columns = codec.schema().columns.iter().zip(&values);
    Json::Object(
        columns
            .map(|(column, value)| (column.name.clone(), value.to_json(column.sql_type)))
            .collect(),
    )
}

fn chunks_json(document: &DocumentAnswer) -> Vec<Json> {
    let view = &document.view;
    let shown = view.chunks.iter().map(|chunk| {
        let piece = &view.state.chunks[chunk.ordinal as usize].piece;
        json!({
            "chunk": chunk.chunk.to_string(),
            "ordinal": chunk.ordinal,
            "range": piece.range,
            "heading": piece.heading.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "content_hash": piece.content.to_string(),
            "has_vector": chunk.has_vector,
        })
    });
    shown.collect()
}
