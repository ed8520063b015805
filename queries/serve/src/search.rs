//! `POST /v1/search`, and the bounds of every question.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use engine::limits::{DIMENSIONS_MAX, K_MAX, QUERIES_MAX, QUESTION_CHARS_MAX, WAIT_MS_MAX};
use queries::api::{Backend, SearchRequest};
use queries::problem::Problem;

use crate::reply::{self, Outcome};
use crate::routes::Front;
use crate::{body, params::Params};

pub(crate) async fn search<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    request: Request,
) -> Outcome {
    Params::of(request.uri())?.finish()?;
    let search: SearchRequest = body::read_json(request).await?;
    check(&search)?;
    let found = front.backend.search(search).await?;
    Ok(reply::json_as_of(StatusCode::OK, &found, found.as_of))
}

/// What can be refused without knowing the index.
fn check(search: &SearchRequest) -> Result<(), Problem> {
    if search.index.is_empty() {
        return Err(Problem::invalid("index is empty").expected("the name of an index"));
    }
    if search.query.is_none() && search.vector.is_none() && search.queries.is_empty() {
        return Err(Problem::invalid("the search has no question")
            .expected("query, vector, both, or queries"));
    }
    if search.query.is_some() && !search.queries.is_empty() {
        return Err(Problem::invalid("query and queries exclude each other")
            .hint("put all questions into queries"));
    }
    let most = format!("at most {QUERIES_MAX} (QUERIES_MAX)");
    if search.queries.len() > QUERIES_MAX {
        return Err(over("queries", search.queries.len(), most));
    }
    search
        .query
        .iter()
        .chain(&search.queries)
        .try_for_each(|text| question(text))?;
    range("k", search.k, K_MAX, "K_MAX")?;
    range("per_document", search.per_document, K_MAX, "K_MAX")?;
    if let Some(mode) = search.mode.as_deref().filter(|mode| !MODES.contains(mode)) {
        let detail = format!("mode \"{mode}\" is unknown");
        return Err(Problem::invalid(detail).expected("hybrid, vector or keyword"));
    }
    if let Some(wait) = search.timeout_ms.filter(|wait| *wait > WAIT_MS_MAX) {
        return Err(over(
            "timeout_ms",
            wait,
            format!("at most {WAIT_MS_MAX} (WAIT_MS_MAX)"),
        ));
    }
    search.vector.as_deref().map_or(Ok(()), vector)
}

const MODES: [&str; 3] = ["hybrid", "vector", "keyword"];

/// A question is neither blank nor longer than [`QUESTION_CHARS_MAX`]; caches ask the same.
pub(crate) fn question(text: &str) -> Result<(), Problem> {
    if text.trim().is_empty() {
        return Err(Problem::invalid("the question is blank"));
    }
    // Bytes bound characters from above, so most questions are not counted.
    if text.len() > QUESTION_CHARS_MAX {
        let found = text.chars().count();
        if found > QUESTION_CHARS_MAX {
            let detail = format!("the question has {found} characters");
            let most = format!("at most {QUESTION_CHARS_MAX} (QUESTION_CHARS_MAX)");
            return Err(Problem::new(422, "limit-exceeded", detail).expected(most));
        }
    }
    Ok(())
}

fn vector(vector: &[f32]) -> Result<(), Problem> {
    let most = DIMENSIONS_MAX as usize;
    if vector.is_empty() || vector.len() > most {
        let detail = format!("the vector has {} dimensions", vector.len());
        return Err(Problem::invalid(detail).expected(format!("1 to {most} (DIMENSIONS_MAX)")));
    }
    match vector.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Problem::invalid(format!(
            "component {at} of the vector is not finite"
        ))),
        None => Ok(()),
    }
}

fn range(name: &str, value: Option<usize>, most: usize, limit: &str) -> Result<(), Problem> {
    let expected = format!("from 1 to {most} ({limit})");
    match value {
        Some(0) => Err(Problem::invalid(format!("{name} = 0 is out of range")).expected(expected)),
        Some(found) if found > most => Err(over(name, found, expected)),
        _ => Ok(()),
    }
}

fn over(name: &str, found: impl std::fmt::Display, expected: String) -> Problem {
    let detail = format!("{name} = {found} is out of range");
    Problem::new(422, "limit-exceeded", detail).expected(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> SearchRequest {
        SearchRequest {
            index: "docs".into(),
            query: Some("why?".into()),
            ..Default::default()
        }
    }

    fn refused(request: SearchRequest) -> (u16, String, String, String) {
        let problem = check(&request).unwrap_err();
        let expected = problem.expected.unwrap_or_default();
        (problem.status, problem.code, problem.detail, expected)
    }

    #[test]
    fn bounds_are_named_word_for_word() {
        let (status, code, detail, expected) = refused(SearchRequest {
            k: Some(0),
            ..asked()
        });
        assert_eq!((status, &*code), (422, "invalid-request"));
        assert_eq!(detail, "k = 0 is out of range");
        assert_eq!(expected, "from 1 to 1000 (K_MAX)");
        let (status, code, detail, _) = refused(SearchRequest {
            k: Some(1001),
            ..asked()
        });
        assert_eq!((status, &*code), (422, "limit-exceeded"));
        assert_eq!(detail, "k = 1001 is out of range");
        let long = Some("é".repeat(100_000));
        let (status, code, detail, expected) = refused(SearchRequest {
            query: long,
            ..asked()
        });
        assert_eq!((status, &*code), (422, "limit-exceeded"));
        assert_eq!(detail, "the question has 100000 characters");
        assert_eq!(expected, "at most 32768 (QUESTION_CHARS_MAX)");
        let many = SearchRequest {
            query: None,
            queries: vec!["q".into(); 17],
            ..asked()
        };
        assert_eq!(refused(many).2, "queries = 17 is out of range");
    }

    #[test]
    fn wrong_questions_are_refused_and_good_ones_pass() {
        assert!(check(&asked()).is_ok());
        assert!(
            check(&SearchRequest {
                k: Some(1000),
                mode: Some("vector".into()),
                ..asked()
            })
            .is_ok()
        );
        assert!(
            check(&SearchRequest {
                query: Some("é".repeat(32_768)),
                ..asked()
            })
            .is_ok()
        );
        assert_eq!(
            refused(SearchRequest {
                query: Some(" ".into()),
                ..asked()
            })
            .2,
            "the question is blank"
        );
        assert_eq!(
            refused(SearchRequest {
                mode: Some("magic".into()),
                ..asked()
            })
            .3,
            "hybrid, vector or keyword"
        );
        assert_eq!(
            refused(SearchRequest {
                vector: Some(vec![0.5, f32::INFINITY]),
                ..asked()
            })
            .2,
            "component 1 of the vector is not finite"
        );
        assert_eq!(
            refused(SearchRequest {
                index: "docs".into(),
                ..Default::default()
            })
            .2,
            "the search has no question"
        );
    }
}
