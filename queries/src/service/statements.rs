//! `/v1/sql`: plan a text, then carry its statements out one after another.

use std::sync::Arc;

use engine::limits;
use engine::model::{Column, Key, Row, RowCodec, Schema, SqlType, Time, Value};
use engine::runtime::AskTime;
use serde_json::{Value as Json, json};

use super::Inner;
use super::asking::PATIENCE;
use crate::api::{Hit, Reply, ReplyColumn, SqlReply};
use crate::definition::Object;
use crate::problem::Problem;
use crate::render::{Answer, Declared, Question};
use crate::sql::{
    Action, CatalogView, Create, DatabaseTable, Describe, DropPlan, From, Planned, SelectPlan,
    ShowKind, Undeclared, plan_text, plan_text_with, reconcile, relation_schema, system_schema,
};

/// What reconciling a pipeline file did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Created, in order.
    pub created: Vec<String>,
    /// Dropped, in order.
    pub dropped: Vec<String>,
    /// Warnings for people.
    pub warnings: Vec<String>,
}

impl super::Service {
    /// Brings the declared objects to what a pipeline file says (API §1).
    pub async fn reconcile(
        &self,
        text: &str,
        replace: bool,
        prune: bool,
    ) -> Result<Reconciled, Vec<Problem>> {
        let mut creates = Vec::new();
        let mut problems = Vec::new();
        let catalog = Undeclared(|sought: &DatabaseTable<'_>| self.inner.describe_table(sought));
        for planned in plan_text(text, &catalog) {
            match planned {
                Ok(Planned::Create(create)) => creates.push(create),
                Ok(other) => problems.push(
                    Problem::not_supported(format!(
                        "a pipeline file declares; {} does not belong in it",
                        other.tag()
                    ))
                    .hint("use `headwater sql` for questions"),
                ),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let _declaring = self.inner.declaring.lock().await;
        let existing: Vec<Object> = self
            .inner
            .declared()
            .iter()
            .map(|declared| declared.object().clone())
            .collect();
        let mut done = Reconciled::default();
        let mut actions = reconcile(&existing, &creates, replace, prune)?
            .into_iter()
            .peekable();
        while let Some(action) = actions.next() {
            match action {
                Action::Keep { .. } => {}
                Action::KeepAbsent { warning, .. } => done.warnings.push(warning),
                Action::Drop { name } => {
                    // Together: what each must clear away outside may take its time.
                    let mut names = vec![name];
                    while let Some(Action::Drop { name }) =
                        actions.next_if(|next| matches!(next, Action::Drop { .. }))
                    {
                        names.push(name);
                    }
                    self.inner
                        .drop_objects(&names)
                        .await
                        .map_err(|problem| vec![problem])?;
                    done.dropped.extend(names);
                }
                Action::Create(create) => {
                    self.inner
                        .create(&create)
                        .await
                        .map_err(|problem| vec![problem])?;
                    done.created.push(create.name);
                }
            }
        }
        self.inner.forget_letters();
        Ok(done)
    }
}

impl Inner {
    /// Statements up to the first failure.
    pub(super) async fn run_sql(
        self: &Arc<Self>,
        text: &str,
        params: &[Json],
    ) -> (Vec<SqlReply>, Option<Problem>) {
        let mut replies = Vec::new();
        let planned = plan_text_with(text, &**self, params);
        let failed = planned.iter().filter_map(|planned| planned.as_ref().err());
        let failed: Vec<Problem> = failed.cloned().collect();
        for (number, planned) in planned.into_iter().enumerate() {
            let outcome = match planned {
                Ok(planned) => self.run_planned(planned).await,
                Err(problem) => Err(problem),
            };
            match outcome {
                Ok(reply) => replies.push(reply),
                Err(mut problem) => {
                    problem.statement.get_or_insert(number);
                    if failed.len() > 1 {
                        problem.errors = failed;
                    }
                    return (replies, Some(problem));
                }
            }
        }
        (replies, None)
    }

    async fn run_planned(self: &Arc<Self>, planned: Planned) -> Reply<SqlReply> {
        let tag = planned.tag();
        match planned {
            Planned::Create(create) => {
                let inner = Arc::clone(self);
                self.to_its_end(async move { inner.run_create(&create, tag).await })
                    .await
            }
            Planned::Drop(plan) => {
                let inner = Arc::clone(self);
                self.to_its_end(async move { inner.run_drop(&plan, tag).await })
                    .await
            }
            Planned::Show(kind) => self.run_show(&kind, tag).await,
            Planned::Describe(describe) => Ok(describe_reply(&describe, tag)),
            Planned::Select(plan) => self.run_select(&plan, tag).await,
            Planned::Explain(explain) => {
                let lines = explain.text.lines().map(|line| vec![Json::from(line)]);
                Ok(table(tag, &[("plan", "text")], lines.collect()))
            }
        }
    }

    async fn run_create(self: &Arc<Self>, create: &Create, tag: String) -> Reply<SqlReply> {
        let _declaring = self.declaring.lock().await;
        let mut reply = command(tag);
        if let Some(existing) = self.object(&create.name) {
            if create.if_not_exists {
                let kind = existing.definition.kind();
                let notice = format!("{kind} \"{}\" already exists, skipping", create.name);
                reply.notices.push(notice);
                return Ok(reply);
            }
            if !create.or_replace {
                return Err(Problem::new(
                    409,
                    "already-exists",
                    format!("\"{}\" already exists", create.name),
                )
                .at(create.position.line, create.position.column)
                .hint("CREATE OR REPLACE replaces it; CREATE … IF NOT EXISTS keeps it"));
            }
            if existing.statement == create.statement {
                return Ok(reply);
            }
            let mut names = crate::sql::dependents(&**self, &create.name);
            if !names.is_empty() {
                return Err(Problem::new(
                    409,
                    "has-dependents",
                    format!("\"{}\" is read by {}", create.name, names.join(", ")),
                )
                .hint("DROP … CASCADE drops them, too"));
            }
            names.push(create.name.clone());
            self.drop_objects(&names).await?;
        }
        self.create(create).await?;
        Ok(reply)
    }

    async fn run_drop(self: &Arc<Self>, plan: &DropPlan, tag: String) -> Reply<SqlReply> {
        let _declaring = self.declaring.lock().await;
        let mut reply = command(tag);
        if plan.objects.is_empty() {
            reply.notices.push(format!(
                "{} \"{}\" does not exist, skipping",
                plan.kind, plan.name
            ));
        }
        self.drop_objects(&plan.objects).await?;
        self.forget_letters();
        Ok(reply)
    }

    async fn run_show(&self, kind: &ShowKind, tag: String) -> Reply<SqlReply> {
        let system = match kind {
            ShowKind::Sources => "sources",
            ShowKind::Indexes => "indexes",
            ShowKind::Caches => "caches",
            ShowKind::Sinks => "sinks",
            ShowKind::Progress => "progress",
            ShowKind::Models
            | ShowKind::Views
            | ShowKind::Secrets
            | ShowKind::Connections
            | ShowKind::All => {
                let wanted = match kind {
                    ShowKind::Models => Some("model"),
                    ShowKind::Views => Some("view"),
                    ShowKind::Secrets => Some("secret"),
                    ShowKind::Connections => Some("connection"),
                    _ => None,
                };
                let all = self.declared();
                let rows = all
                    .iter()
                    .map(Declared::object)
                    .filter(|object| wanted.is_none_or(|kind| object.definition.kind() == kind));
                let rows = rows.map(|object| {
                    vec![
                        Json::from(object.name.clone()),
                        Json::from(object.definition.kind()),
                        Json::from(object.statement.clone()),
                    ]
                });
                let columns = [("name", "text"), ("kind", "text"), ("statement", "text")];
                return Ok(table(tag, &columns, rows.collect()));
            }
            ShowKind::Create { name, statement } => {
                let row = vec![Json::from(name.clone()), Json::from(statement.clone())];
                return Ok(table(
                    tag,
                    &[("name", "text"), ("statement", "text")],
                    vec![row],
                ));
            }
        };
        let schema = system_schema(system).expect("one of the system collections");
        let rows = self.system_rows(system).await?;
        let columns = schema.columns.iter();
        let shown = rows.iter().map(|row| {
            let pairs = row.iter().zip(&schema.columns);
            pairs
                .map(|(value, column)| value.to_json(column.sql_type))
                .collect()
        });
        Ok(SqlReply {
            rows: shown.collect(),
            columns: columns
                .map(|c| ReplyColumn {
                    name: c.name.clone(),
                    type_name: c.sql_type.to_string(),
                })
                .collect(),
            as_of: None,
            tag,
            notices: Vec::new(),
        })
    }

    async fn run_select(self: &Arc<Self>, plan: &SelectPlan, tag: String) -> Reply<SqlReply> {
        let program = plan.compile()?;
        let as_of = plan.as_of.as_ref().and_then(|clause| clause.as_of());
        let at_least = plan.as_of.as_ref().and_then(|clause| clause.at_least());
        let at = self
            .ask_time(as_of.as_ref(), at_least.as_ref(), PATIENCE)
            .await?;
        let input = &plan.program.input;
        let (as_of, rows) = match &plan.from {
            From::Values => (self.engine.published().last, Vec::new()),
            From::Collection { name, key, .. } => {
                self.collection_rows(name, key.clone(), at, input).await?
            }
            From::System { name } => {
                let rows = self.system_rows(name).await?;
                (self.engine.published().last, pack(input, rows))
            }
            From::Search(call) => {
                let mut request = call.request();
                request.as_of = as_of;
                request.at_least = at_least;
                let reply = self.search_index(request).await?;
                let rows = reply.hits.iter().map(|hit| hit_row(input, hit)).collect();
                (reply.as_of, pack(input, rows))
            }
        };
        let rows = program.rows(&rows, as_of)?;
        if rows.len() > limits::SQL_ROWS_MAX {
            return Err(Problem::new(
                413,
                "too-many-rows",
                format!(
                    "{} rows; the limit SQL_ROWS_MAX is {}",
                    rows.len(),
                    limits::SQL_ROWS_MAX
                ),
            )
            .hint("add a WHERE or a LIMIT"));
        }
        Ok(SqlReply {
            columns: plan.columns.clone(),
            rows,
            as_of: Some(as_of),
            tag,
            notices: Vec::new(),
        })
    }

    /// Rows of a declared collection, packed for its schema; of a source or a view the one of `key`.
    async fn collection_rows(
        &self,
        name: &str,
        key: Option<Key>,
        at: AskTime,
        input: &Schema,
    ) -> Reply<(Time, Vec<Row>)> {
        let declared = self
            .pipeline
            .by_name(name)
            .ok_or_else(|| Problem::not_found(format!("there is no collection \"{name}\"")))?;
        match declared {
            Declared::Source { object, .. } | Declared::View { object, .. } => {
                let question = Question::Rows {
                    collection: object.id,
                    key,
                };
                let (at, answer) = self.ask(vec![object.id], at, PATIENCE, question).await?;
                let Answer::Rows(mut rows) = answer else {
                    unreachable!("rows are answered by rows");
                };
                rows.sort_by(|a, b| a.0.cmp(&b.0));
                Ok((
                    at,
                    rows.into_iter().map(|(_, version)| version.row).collect(),
                ))
            }
            Declared::Index(index) => {
                let (at, mut documents) = self.index_documents(index.object.id, at).await?;
                documents.sort_by(|a, b| a.key.cmp(&b.key));
                let mut rows = Vec::new();
                for document in &documents {
                    let view = &document.view;
                    let attributes = index.attributes(&view.state.attributes);
                    for chunk in &view.chunks {
                        let piece = &view.state.chunks[chunk.ordinal as usize].piece;
                        let mut row = vec![
                            Value::Text(chunk.chunk.to_string().into()),
                            key_value(&document.key, &input.columns[1]),
                            Value::Int(view.state.version as i64),
                            Value::Int(i64::from(chunk.ordinal)),
                            Value::Text(view.state.text_of(piece).into()),
                        ];
                        row.extend(attributes.iter().cloned());
                        rows.push(row);
                    }
                }
                Ok((at, pack(input, rows)))
            }
            Declared::Cache {
                object,
                definition,
                index,
            } => {
                let (at, entries) = self.cache_entries(object.id, at).await?;
                let source = &index.definition.source;
                let rows = entries.into_iter().map(|entry| {
                    let citations: Vec<Json> = entry
                        .citations
                        .iter()
                        .map(|(chunk, key, version)| {
                            json!({"chunk": chunk.to_string(), "document":
                                {"source": source, "key": key.to_json(), "version": version}})
                        })
                        .collect();
                    vec![
                        Value::Text(entry.entry.to_string().into()),
                        Value::Text(entry.question.text.as_str().into()),
                        Value::Text(entry.answer.clone()),
                        Value::Text(Json::from(citations).to_string().into()),
                        Value::Text(entry.question.parameters.as_str().into()),
                        Value::Timestamp(entry.stored_at as i64),
                        Value::Timestamp((entry.stored_at + definition.ttl_micros) as i64),
                        Value::Int(0),
                        Value::Bool(!entry.is_live),
                    ]
                });
                Ok((at, pack(input, rows.collect())))
            }
            Declared::Model { .. } | Declared::Plain { .. } | Declared::Sink { .. } => Err(
                Problem::invalid(format!("\"{name}\" is no collection: it has no rows")),
            ),
        }
    }

    /// The schema of a relation, for pushes and documents.
    pub(super) fn schema_of(&self, name: &str) -> Option<Schema> {
        relation_schema(self, name)
    }
}

fn command(tag: String) -> SqlReply {
    SqlReply {
        columns: Vec::new(),
        rows: Vec::new(),
        as_of: None,
        tag,
        notices: Vec::new(),
    }
}

fn table(tag: String, columns: &[(&str, &str)], rows: Vec<Vec<Json>>) -> SqlReply {
    let columns = columns.iter().map(|(name, type_name)| ReplyColumn {
        name: (*name).to_owned(),
        type_name: (*type_name).to_owned(),
    });
    SqlReply {
        columns: columns.collect(),
        rows,
        ..command(tag)
    }
}

fn describe_reply(describe: &Describe, tag: String) -> SqlReply {
    let rows = describe
        .columns
        .iter()
        .map(|(name, sql_type, nullable, is_key)| {
            vec![
                Json::from(name.clone()),
                Json::from(sql_type.clone()),
                Json::from(*nullable),
                Json::from(*is_key),
            ]
        });
    let columns = [
        ("column", "text"),
        ("type", "text"),
        ("nullable", "boolean"),
        ("key", "boolean"),
    ];
    table(tag, &columns, rows.collect())
}

/// Packs values for a schema.
fn pack(schema: &Schema, rows: Vec<Vec<Value>>) -> Vec<Row> {
    let codec = RowCodec::new(schema.clone()).expect("system and search columns are packable");
    rows.iter().map(|row| codec.pack(row)).collect()
}

/// A document key as a value of the `document` column.
fn key_value(key: &Key, column: &Column) -> Value {
    let json = key.to_json();
    match column.sql_type {
        SqlType::Jsonb => Value::Text(json.to_string().into()),
        _ => Value::from_json(&json, column).unwrap_or(Value::Null),
    }
}

fn hit_row(schema: &Schema, hit: &Hit) -> Vec<Value> {
    let key = Key::from_json(&hit.document.key);
    let mut row = vec![
        Value::Text(hit.chunk.as_str().into()),
        key_value(&key, &schema.columns[1]),
        Value::Int(hit.document.version as i64),
        Value::Int(i64::from(hit.ordinal)),
        Value::Text(hit.text.as_deref().unwrap_or_default().into()),
        Value::Float(hit.score),
    ];
    for column in &schema.columns[row.len()..] {
        let json = hit.attributes.get(&column.name).unwrap_or(&Json::Null);
        row.push(Value::from_json(json, column).unwrap_or(Value::Null));
    }
    row
}
