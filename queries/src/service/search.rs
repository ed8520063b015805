//! One question: check it, embed it, ask the shards, show the hits (API §3).

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::limits;
use engine::model::{Time, Value};
use operators::index::{Fusion as ShardFusion, Mode, Ranked, ShardQuestion, unit};
use serde_json::{Map, Value as Json};
use tokio::sync::oneshot;

use super::Inner;
use crate::api::{DocumentRef, Hit, LegScores, Reply, SearchReply, SearchRequest};
use crate::definition::Fusion;
use crate::problem::Problem;
use crate::render::{
    Answer, Declared, IndexSpec, ModelKind, Question, SearchAnswer, SearchQuestion,
};

/// `timeout_ms` when nothing is said.
const TIMEOUT_MS: u64 = 2_000;

/// A question made ready, with what could not be done.
pub(super) struct Prepared {
    pub(super) question: ShardQuestion,
    pub(super) degraded: Vec<String>,
    pub(super) embed_ms: f64,
}

impl Inner {
    /// The index of a name.
    pub(super) fn index(&self, name: &str) -> Reply<Arc<IndexSpec>> {
        match self.pipeline.by_name(name) {
            Some(Declared::Index(index)) => Ok(index),
            Some(other) => Err(Problem::not_found(format!(
                "\"{name}\" is a {}, not an index",
                other.object().definition.kind()
            ))),
            None => Err(Problem::not_found(format!("there is no index \"{name}\""))
                .hint("SHOW INDEXES lists them")),
        }
    }

    /// Answers a search.
    pub(super) async fn search_index(&self, request: SearchRequest) -> Reply<SearchReply> {
        let started = Instant::now();
        let index = self.index(&request.index)?;
        let k = checked_k(request.k)?;
        let timeout = Duration::from_millis(request.timeout_ms.unwrap_or(TIMEOUT_MS));
        if let Some(predicate) = &request.filter {
            index.filter(predicate, &request.params)?;
        }
        let texts = questions(&request)?;
        let (as_of, at_least) = (request.as_of.as_ref(), request.at_least.as_ref());
        let at = self.ask_time(as_of, at_least, timeout).await?;
        let timeout = timeout.saturating_sub(started.elapsed());
        let mut answers: Vec<(Time, SearchAnswer, ShardQuestion)> = Vec::new();
        let (mut degraded, mut embed_ms, mut at) = (Vec::new(), 0.0, at);
        let mut search_ms = 0.0;
        for text in texts {
            let vector = request.vector.as_deref();
            let prepared = self
                .prepare_question(&index, text, vector, &request, k)
                .await?;
            degraded.extend(prepared.degraded);
            embed_ms += prepared.embed_ms;
            let search = SearchQuestion {
                index: index.object.id,
                question: prepared.question.clone(),
                filter: request.filter.clone().map(|text| {
                    (
                        text,
                        serde_json::to_string(&request.params).expect("JSON values"),
                    )
                }),
            };
            let asked = Instant::now();
            let id = index.object.id;
            let answered = self
                .ask(vec![id], at.clone(), timeout, Question::Search(search))
                .await?;
            let (read_at, Answer::Search(answer)) = answered else {
                unreachable!("a search is answered by a search");
            };
            search_ms += ms(asked);
            // All questions of a request read at one time.
            at = engine::runtime::AskTime::At(read_at);
            answers.push((read_at, answer, prepared.question));
        }
        let wait_ms = (ms(started) - embed_ms - search_ms).max(0.0);
        let mut timing = Map::new();
        for (name, value) in [
            ("wait", wait_ms),
            ("embed", embed_ms),
            ("search", search_ms),
            ("total", ms(started)),
        ] {
            timing.insert(
                name.to_owned(),
                Json::from((value * 1000.0).round() / 1000.0),
            );
        }
        metrics::histogram!("headwater_question_seconds", "kind" => "search")
            .record(started.elapsed().as_secs_f64());
        Ok(self.search_reply(&index, &request, answers, degraded, k, timing))
    }

    fn search_reply(
        &self,
        index: &IndexSpec,
        request: &SearchRequest,
        answers: Vec<(Time, SearchAnswer, ShardQuestion)>,
        mut degraded: Vec<String>,
        k: usize,
        timing_ms: Map<String, Json>,
    ) -> SearchReply {
        let as_of = answers.first().map_or(0, |(at, ..)| *at);
        let pending = answers.first().map_or(0, |(_, answer, _)| answer.pending);
        if pending > 0 && index.model.is_some() && request.mode.as_deref() != Some("keyword") {
            degraded.push(format!("{pending} documents wait for their embedding"));
        }
        let encoder = index.model.as_ref().and_then(ModelKind::encoder);
        degraded.extend(encoder.and_then(|encoder| encoder.degraded()));
        let explain = request.explain.then(|| explain(index, request, &answers));
        let hits = best_of(answers, k);
        degraded.sort();
        degraded.dedup();
        SearchReply {
            as_of,
            token: format!("t1.{as_of}"),
            index: index.object.name.clone(),
            index_version: index.object.id.0,
            hits: hits
                .iter()
                .map(|hit| show(index, hit, request.select.as_deref()))
                .collect(),
            pending,
            is_degraded: !degraded.is_empty(),
            degraded,
            timing_ms,
            explain,
        }
    }

    /// Vector and terms of a question, as far as the index has the legs.
    pub(super) async fn prepare_question(
        &self,
        index: &IndexSpec,
        text: Option<&str>,
        vector: Option<&[f32]>,
        request: &SearchRequest,
        k: usize,
    ) -> Reply<Prepared> {
        let mode = mode(index, request.mode.as_deref())?;
        let (wants_vector, wants_keyword) = (
            mode != Mode::Keyword && index.definition.vector,
            mode != Mode::Vector && index.definition.keyword,
        );
        let started = Instant::now();
        let mut degraded = Vec::new();
        let vector = match (wants_vector, vector, text) {
            (false, ..) => None,
            (true, Some(vector), _) => Some(checked_vector(index, vector)?),
            (true, None, Some(text)) => match self.embed_question(index, text).await? {
                Ok(vector) => Some(vector),
                Err(why) if wants_keyword => {
                    degraded.push(why);
                    None
                }
                Err(why) => {
                    return Err(
                        Problem::new(503, "encoder-unavailable", why).with("retry_after_s", 1)
                    );
                }
            },
            (true, None, None) => None,
        };
        let embed_ms = ms(started);
        let terms = match (wants_keyword, text) {
            (true, Some(text)) => Some(Arc::from(index.analyzer.question(text))),
            _ => None,
        };
        if vector.is_none() && terms.is_none() {
            return Err(Problem::invalid(format!(
                "index \"{}\" cannot answer this question: a {} search needs {}",
                index.object.name,
                request.mode.as_deref().unwrap_or(default_mode(index)),
                if wants_keyword {
                    "a text in \"query\""
                } else {
                    "a \"query\" or a \"vector\""
                },
            )));
        }
        let question = ShardQuestion {
            vector,
            terms,
            k,
            mode,
            fusion: fusion(index),
            is_exact: request.exact,
            per_document: request.per_document,
            min_score: request.min_score,
        };
        Ok(Prepared {
            question,
            degraded,
            embed_ms,
        })
    }

    /// The question's vector; `Err` inside when the encoder cannot answer now.
    async fn embed_question(
        &self,
        index: &IndexSpec,
        text: &str,
    ) -> Reply<Result<Arc<[f32]>, String>> {
        let Some(ModelKind::Encoder(encoder)) = &index.model else {
            return Err(Problem::invalid(format!(
                "index \"{}\" is one of bare vectors: it has no encoder for a text",
                index.object.name
            ))
            .expected("\"vector\": an array of numbers"));
        };
        let (send, receive) = oneshot::channel();
        self.embed.embed_question(
            encoder.id(),
            text,
            Box::new(move |result| {
                let _ = send.send(result);
            }),
        );
        let patience = Duration::from_millis(limits::EMBED_DEADLINE_MS);
        Ok(match tokio::time::timeout(patience, receive).await {
            Ok(Ok(Ok(vector))) => unit(&vector)
                .map(Arc::from)
                .ok_or_else(|| "zero vector".into()),
            Ok(Ok(Err(error))) => Err(format!("the encoder is not available: {error}")),
            Ok(Err(_)) => Err("the encoder is not available: it is stopping".to_owned()),
            Err(_) => Err(format!(
                "the encoder is not available: no answer within {} ms",
                limits::EMBED_DEADLINE_MS
            )),
        })
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// The k of a request.
pub(super) fn checked_k(k: Option<usize>) -> Reply<usize> {
    match k.unwrap_or(10) {
        0 => Err(
            Problem::invalid("k is 0: a search returns at least one result")
                .expected(format!("1 ≤ k ≤ {}", limits::K_MAX)),
        ),
        k if k > limits::K_MAX => Err(Problem::invalid(format!(
            "k is {k}; the limit K_MAX is {}",
            limits::K_MAX
        ))
        .expected(format!("1 ≤ k ≤ {}", limits::K_MAX))),
        k => Ok(k),
    }
}

/// Checks a question's length.
pub(super) fn checked_text(text: &str) -> Reply<()> {
    let chars = text.chars().count();
    if chars > limits::QUESTION_CHARS_MAX {
        return Err(Problem::new(
            413,
            "question-too-long",
            format!(
                "the question has {chars} characters; the limit QUESTION_CHARS_MAX is {}",
                limits::QUESTION_CHARS_MAX
            ),
        ));
    }
    if text.trim().is_empty() {
        return Err(Problem::invalid("the question is blank"));
    }
    Ok(())
}

/// The texts of a request; one `None` for a bare vector.
fn questions(request: &SearchRequest) -> Reply<Vec<Option<&str>>> {
    if request.queries.len() > limits::QUERIES_MAX {
        return Err(Problem::invalid(format!(
            "{} queries; the limit QUERIES_MAX is {}",
            request.queries.len(),
            limits::QUERIES_MAX
        )));
    }
    let texts = request
        .query
        .iter()
        .chain(&request.queries)
        .map(String::as_str);
    let texts: Vec<Option<&str>> = texts.map(Some).collect();
    for text in texts.iter().flatten() {
        checked_text(text)?;
    }
    match (texts.is_empty(), &request.vector) {
        (true, None) => Err(Problem::invalid("there is no question")
            .expected("\"query\": a text, \"vector\": an array of numbers, or both")),
        (true, Some(_)) => Ok(vec![None]),
        (false, _) => Ok(texts),
    }
}

fn default_mode(index: &IndexSpec) -> &'static str {
    match (index.definition.vector, index.definition.keyword) {
        (true, true) => "hybrid",
        (true, false) => "vector",
        (false, _) => "keyword",
    }
}

fn mode(index: &IndexSpec, wanted: Option<&str>) -> Reply<Mode> {
    let name = wanted.unwrap_or(default_mode(index));
    let (mode, is_there) = match name {
        "hybrid" => (
            Mode::Hybrid,
            index.definition.vector && index.definition.keyword,
        ),
        "vector" => (Mode::Vector, index.definition.vector),
        "keyword" => (Mode::Keyword, index.definition.keyword),
        other => {
            return Err(Problem::invalid(format!("mode \"{other}\" is unknown"))
                .expected("hybrid, vector or keyword"));
        }
    };
    if is_there {
        Ok(mode)
    } else {
        Err(Problem::invalid(format!(
            "index \"{}\" has no {name} search: it was declared USING {}",
            index.object.name,
            default_mode(index).to_uppercase()
        )))
    }
}

fn fusion(index: &IndexSpec) -> ShardFusion {
    match index.definition.fusion {
        Fusion::Convex { weight } => ShardFusion::Convex { weight },
        Fusion::Rrf => ShardFusion::Rrf,
    }
}

fn checked_vector(index: &IndexSpec, vector: &[f32]) -> Reply<Arc<[f32]>> {
    let dimensions = index.model.as_ref().map_or(0, ModelKind::dimensions);
    if vector.len() != dimensions {
        return Err(Problem::invalid(format!(
            "the vector has {} dimensions, index \"{}\" has {dimensions}",
            vector.len(),
            index.object.name
        )));
    }
    let unit = unit(vector)
        .ok_or_else(|| Problem::invalid("the vector is zero or not finite: it has no direction"))?;
    Ok(unit.into())
}

/// The best k over several questions, each chunk by its best score.
fn best_of(answers: Vec<(Time, SearchAnswer, ShardQuestion)>, k: usize) -> Vec<Ranked> {
    let mut lists = answers.into_iter().map(|(_, answer, _)| answer.merged.hits);
    let Some(first) = lists.next() else {
        return Vec::new();
    };
    let mut all = first;
    for hit in lists.flatten() {
        match all
            .iter_mut()
            .find(|known| known.candidate.chunk == hit.candidate.chunk)
        {
            Some(known) if known.score < hit.score => *known = hit,
            Some(_) => {}
            None => all.push(hit),
        }
    }
    all.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| a.candidate.chunk.cmp(&b.candidate.chunk))
    });
    all.truncate(k);
    all
}

/// A hit as it is shown.
pub(super) fn show(index: &IndexSpec, ranked: &Ranked, select: Option<&[String]>) -> Hit {
    let candidate = &ranked.candidate;
    let state = &candidate.state;
    let piece = &state.chunks[candidate.ordinal as usize].piece;
    let is_selected = |name: &str| select.is_none_or(|names| names.iter().any(|n| n == name));
    let values = index.attributes(&state.attributes);
    let columns = &index.include_schema().columns;
    let attributes = columns
        .iter()
        .zip(&values)
        .filter(|(column, _)| is_selected(&column.name));
    let attributes = attributes
        .map(|(column, value): (_, &Value)| (column.name.clone(), value.to_json(column.sql_type)));
    Hit {
        chunk: candidate.chunk.to_string(),
        document: DocumentRef {
            source: index.definition.source.clone(),
            key: candidate.document.to_json(),
            version: state.version,
        },
        ordinal: candidate.ordinal,
        range: piece.range,
        heading: piece.heading.iter().map(ToString::to_string).collect(),
        text: is_selected("text").then(|| state.text_of(piece).to_owned()),
        attributes: attributes.collect(),
        score: ranked.score,
        scores: LegScores {
            vector: candidate.cosine,
            keyword: index.definition.keyword.then_some(candidate.bm25),
        },
    }
}

fn explain(
    index: &IndexSpec,
    request: &SearchRequest,
    answers: &[(Time, SearchAnswer, ShardQuestion)],
) -> String {
    let mut out = format!("search {}\n", index.object.name);
    for (at, answer, question) in answers {
        let legs = question.legs();
        out.push_str(&format!(
            "  as_of {at}: {} chunks, legs:{}{}, k {}, pool {}{}\n",
            answer.statistics.chunks,
            if legs.vector { " vector" } else { "" },
            if legs.keyword { " keyword" } else { "" },
            question.k,
            question.pool(),
            if question.is_exact { ", exact" } else { "" },
        ));
    }
    if let Some(filter) = &request.filter {
        out.push_str(&format!("  before k: {filter}\n"));
    }
    out
}
