//! What stands around a model: prompts in front of its texts, and the first components of its vectors.
//!
//! ```text
//! text ─▶ prompt + text ─▶ model ─▶ first n components ─▶ length 1
//! ```
//!
//! Some models are trained with a word in front of what they read (e5: `query: ` and `passage: `) and
//! are poor without. Some put what matters most into the first components of their vectors (Matryoshka
//! representation learning), so that a shorter vector is their beginning.
//!
//! Invariants: prompts and length are part of the model's identity; a model with neither keeps its
//! own. Limits: prompts are put in front as they are; there is no prompt behind a text.

use std::path::Path;
use std::sync::Arc;

use engine::contract::{CallLimits, EmbedError, EmbedFault, Embedder, TokenSpans};
use engine::error::WorldError;
use engine::model::ModelId;
use serde::Deserialize;

use crate::index::unit;

/// What stands in front of texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompts {
    /// In front of questions.
    pub query: String,
    /// In front of documents' texts.
    pub document: String,
}

/// What a declaration says of prompts and length; `None`: as the model has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// Components of a vector.
    pub dimensions: Option<usize>,
    /// In front of questions.
    pub query_prompt: Option<String>,
    /// In front of documents' texts.
    pub document_prompt: Option<String>,
}

impl Shape {
    /// The declaration's prompts, or else the model's own.
    pub fn prompts(&self, own: Prompts) -> Prompts {
        Prompts {
            query: self.query_prompt.clone().unwrap_or(own.query),
            document: self.document_prompt.clone().unwrap_or(own.document),
        }
    }
}

/// Models that want prompts and whose files do not say so, by the beginning of their names.
const FAMILIES: [(&str, &str, &str); 5] = [
    ("intfloat/e5-", "query: ", "passage: "),
    ("intfloat/multilingual-e5-small", "query: ", "passage: "),
    ("intfloat/multilingual-e5-base", "query: ", "passage: "),
    ("BAAI/bge-small-en", BGE, ""),
    ("BAAI/bge-base-en", BGE, ""),
];
const BGE: &str = "Represent this sentence for searching relevant passages: ";

/// The prompts of a model's own files, or else of its family.
///
/// Errors: the file cannot be understood, or names a prompt that it does not have.
pub(super) fn prompts_of(name: &str, folder: &Path) -> Result<Prompts, String> {
    #[derive(Default, Deserialize)]
    struct File {
        #[serde(default)]
        prompts: std::collections::BTreeMap<String, Option<String>>,
        default_prompt_name: Option<String>,
    }
    let file = match std::fs::read(folder.join("config_sentence_transformers.json")) {
        Ok(bytes) => serde_json::from_slice::<File>(&bytes).map_err(|e| e.to_string())?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => File::default(),
        Err(e) => return Err(e.to_string()),
    };
    let named = |name: &str| file.prompts.get(name).cloned().flatten();
    let default = match &file.default_prompt_name {
        None => None,
        Some(default) => Some(named(default).ok_or_else(|| {
            format!("default_prompt_name is '{default}', which is not among its prompts")
        })?),
    };
    let query = named("query").or_else(|| default.clone());
    let document = named("document").or_else(|| named("passage")).or(default);
    let is_silent = query.as_ref().is_none_or(String::is_empty)
        && document.as_ref().is_none_or(String::is_empty);
    let family = FAMILIES.iter().find(|(start, ..)| name.starts_with(start));
    Ok(match family {
        Some((_, query, document)) if is_silent => Prompts {
            query: (*query).to_owned(),
            document: (*document).to_owned(),
        },
        _ => Prompts {
            query: query.unwrap_or_default(),
            document: document.unwrap_or_default(),
        },
    })
}

/// Puts prompts and a length around a model; with neither it is the model itself.
///
/// Errors: the model's vectors are shorter.
pub fn shaped(
    inner: Arc<dyn Embedder>,
    prompts: Prompts,
    dimensions: Option<usize>,
) -> Result<Arc<dyn Embedder>, WorldError> {
    let has = inner.dimensions();
    let dimensions = dimensions.filter(|wanted| *wanted != has);
    if let Some(wanted) = dimensions.filter(|wanted| *wanted > has) {
        return Err(WorldError::Service {
            service: format!("model '{}'", inner.name()),
            detail: format!(
                "its vectors have {has} dimensions, DIMENSIONS = {wanted} are more; \
                 expected at most {has}"
            ),
            is_transient: false,
        });
    }
    if prompts == Prompts::default() && dimensions.is_none() {
        return Ok(inner);
    }
    let prompt_tokens = inner.token_spans(&prompts.document).starts.len();
    Ok(Arc::new(Shaped {
        id: shaped_id(inner.id(), &prompts, dimensions),
        dimensions: dimensions.unwrap_or(has),
        prompt_tokens,
        inner,
        prompts,
    }))
}

fn shaped_id(inner: ModelId, prompts: &Prompts, dimensions: Option<usize>) -> ModelId {
    let length = dimensions.map_or_else(|| "all".to_owned(), |n| n.to_string());
    let parts = [
        b"shaped".as_slice(),
        &inner.0,
        prompts.query.as_bytes(),
        prompts.document.as_bytes(),
        length.as_bytes(),
    ];
    hashed_id(&parts)
}

/// The identity that parts make, each told from the next.
pub(super) fn hashed_id(parts: &[&[u8]]) -> ModelId {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    ModelId(id)
}

/// See the module.
struct Shaped {
    id: ModelId,
    inner: Arc<dyn Embedder>,
    prompts: Prompts,
    dimensions: usize,
    /// Tokens of the documents' prompt.
    prompt_tokens: usize,
}

impl Shaped {
    /// The beginnings of vectors, each of length 1 again.
    fn cut(&self, vectors: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, EmbedError> {
        let cut = vectors.into_iter().map(|vector| {
            if vector.len() <= self.dimensions {
                return Ok(vector);
            }
            truncated(&vector, self.dimensions).ok_or_else(|| EmbedError {
                model: self.inner.name().to_owned(),
                detail: format!("the first {} components are all zero", self.dimensions),
                fault: EmbedFault::Text,
            })
        });
        cut.collect()
    }
}

/// The first `dimensions` components of a vector, at length 1; `None` when they are all zero.
pub fn truncated(vector: &[f32], dimensions: usize) -> Option<Vec<f32>> {
    direction(&vector[..dimensions.min(vector.len())])
}

/// A vector at length 1; `None` for one that has no direction.
pub(super) fn direction(vector: &[f32]) -> Option<Vec<f32>> {
    unit(vector).filter(|unit| unit.iter().any(|x| *x != 0.0))
}

fn prefixed(prompt: &str, texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| format!("{prompt}{text}")).collect()
}

fn slices(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

impl Embedder for Shaped {
    fn id(&self) -> ModelId {
        self.id
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn max_tokens(&self) -> usize {
        self.inner.max_tokens()
    }

    fn special_tokens(&self) -> usize {
        self.inner.special_tokens() + self.prompt_tokens
    }

    fn token_spans(&self, text: &str) -> TokenSpans {
        self.inner.token_spans(text)
    }

    fn call_limits(&self) -> CallLimits {
        self.inner.call_limits()
    }

    fn degraded(&self) -> Option<String> {
        self.inner.degraded()
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if self.prompts.document.is_empty() {
            return self.cut(self.inner.embed(texts)?);
        }
        let texts = prefixed(&self.prompts.document, texts);
        self.cut(self.inner.embed(&slices(&texts))?)
    }

    fn embed_questions(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if self.prompts.query.is_empty() {
            return self.cut(self.inner.embed_questions(texts)?);
        }
        let texts = prefixed(&self.prompts.query, texts);
        self.cut(self.inner.embed_questions(&slices(&texts))?)
    }
}

#[cfg(test)]
mod tests {
    use engine::testing::{HashedEmbedder, embedder_laws};

    use super::*;

    fn model() -> Arc<dyn Embedder> {
        Arc::new(HashedEmbedder::new("hashed", 64))
    }

    fn e5() -> Prompts {
        Prompts {
            query: "query: ".to_owned(),
            document: "passage: ".to_owned(),
        }
    }

    #[test]
    fn a_shaped_model_keeps_the_laws() {
        embedder_laws(&*shaped(model(), e5(), None).unwrap());
        embedder_laws(&*shaped(model(), Prompts::default(), Some(16)).unwrap());
        embedder_laws(&*shaped(model(), e5(), Some(1)).unwrap());
    }

    #[test]
    fn prompts_stand_in_front_and_vectors_are_beginnings() {
        let shaped = shaped(model(), e5(), Some(16)).unwrap();
        let document = shaped.embed(&["a text"]).unwrap().remove(0);
        let question = shaped.embed_questions(&["a text"]).unwrap().remove(0);
        let whole = model()
            .embed(&["passage: a text", "query: a text"])
            .unwrap();
        assert_eq!(document, truncated(&whole[0], 16).unwrap());
        assert_eq!(question, truncated(&whole[1], 16).unwrap());
        assert_ne!(document, question);
        assert_eq!(shaped.special_tokens(), model().special_tokens() + 1);
    }

    #[test]
    fn each_part_is_of_the_identity_and_nothing_is_the_model_itself() {
        let of = |prompts, dimensions| shaped(model(), prompts, dimensions).unwrap().id();
        let none = Prompts::default;
        assert_eq!(of(none(), None), model().id());
        assert_eq!(of(none(), Some(64)), model().id());
        let query = Prompts {
            document: String::new(),
            ..e5()
        };
        let document = Prompts {
            query: String::new(),
            document: "query: ".to_owned(),
        };
        let ids = [
            of(none(), None),
            of(none(), Some(16)),
            of(none(), Some(32)),
            of(e5(), None),
            of(e5(), Some(16)),
            of(query, None),
            of(document, None),
        ];
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }

    #[test]
    fn more_dimensions_than_there_are_is_an_error() {
        let error = shaped(model(), Prompts::default(), Some(65)).err().unwrap();
        assert_eq!(
            error.to_string(),
            "model 'hashed': its vectors have 64 dimensions, DIMENSIONS = 65 are more; expected at most 64"
        );
    }

    #[test]
    fn prompts_come_from_the_files_then_from_the_family() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| prompts_of(name, folder.path());
        assert_eq!(of("org/model"), Ok(Prompts::default()));
        assert_eq!(of("intfloat/e5-small-v2"), Ok(e5()));
        assert_eq!(of("BAAI/bge-small-en-v1.5").unwrap().query, BGE);
        let file = folder.path().join("config_sentence_transformers.json");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write(r#"{"prompts":{},"default_prompt_name":null}"#);
        assert_eq!(of("intfloat/e5-small-v2"), Ok(e5()));
        write(r#"{"prompts":{"query":"Q: ","passage":"P: "}}"#);
        let own = Prompts {
            query: "Q: ".to_owned(),
            document: "P: ".to_owned(),
        };
        assert_eq!(of("intfloat/e5-small-v2"), Ok(own));
        write(r#"{"prompts":{"query":"Q: ","sts":"S: "},"default_prompt_name":"sts"}"#);
        assert_eq!(of("org/model").unwrap().document, "S: ");
        write(r#"{"prompts":{},"default_prompt_name":"sts"}"#);
        assert_eq!(
            of("org/model").unwrap_err(),
            "default_prompt_name is 'sts', which is not among its prompts"
        );
    }
}
