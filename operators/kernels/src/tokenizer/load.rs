//! Reads a `tokenizer.json` as Hugging Face writes it, or a plain `vocab.txt`.
//!
//! The idea: whatever shapes ids is read and must be known; anything else is refused with the place
//! in the file, what was found and what is expected. A wrong id is worse than no id.
//!
//! Read: `normalizer` (`BertNormalizer`), `pre_tokenizer` (`BertPreTokenizer`), `model`
//! (`WordPiece`), `added_tokens`, `post_processor` (`TemplateProcessing`, `BertProcessing`, none).
//! `truncation` and `padding` are reported and not applied: a caller gives its own maximum.
//! `decoder` does not matter.
//!
//! Limits: ids below 2²⁴; an id belongs to one token; ids of added tokens are those that the
//! `tokenizers` crate would give them.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::added::AddedToken;
use super::slots::{Slot, bert, slots};
use super::unicode::Rules;

/// Ids are below: far more than any vocabulary has, and little enough to hold a table of.
pub(super) const IDS_MAX: u64 = 1 << 24;

/// Why a tokenizer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// The file is not JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// A field is not what is supported.
    #[error("{at} is {found}, expected {expected}")]
    Field {
        /// Its path in the file.
        at: String,
        /// What is there.
        found: String,
        /// What could be read.
        expected: String,
    },
    /// The tokens do not fit together.
    #[error("{0}")]
    Tokens(String),
}

/// Words of an error of the second kind.
pub(super) fn field(
    at: impl Into<String>,
    found: impl Into<String>,
    expected: &str,
) -> TokenizerError {
    TokenizerError::Field {
        at: at.into(),
        found: found.into(),
        expected: expected.to_owned(),
    }
}

/// What a file says.
#[derive(Debug)]
pub(super) struct File {
    pub rules: Rules,
    pub tokens: Vec<(String, u32)>,
    pub prefix: String,
    pub unknown: u32,
    pub word_chars_max: usize,
    pub added: Vec<AddedToken>,
    pub single: Vec<Slot>,
    pub pair: Vec<Slot>,
    pub truncation: Option<usize>,
    pub is_padded: bool,
}

impl File {
    /// Reads a `tokenizer.json`.
    pub(super) fn json(bytes: &[u8]) -> Result<File, TokenizerError> {
        let file: Value =
            serde_json::from_slice(bytes).map_err(|e| TokenizerError::Json(e.to_string()))?;
        let Value::Object(file) = file else {
            return Err(field("the file", name(Some(&file)), "an object"));
        };
        match file.get("version") {
            None => {}
            Some(Value::String(version)) if version == "1.0" => {}
            other => return Err(field("version", name(other), "'1.0'")),
        }
        let model = typed(&file, "model", &["WordPiece"], true)?;
        let normalizer = typed(&file, "normalizer", &["BertNormalizer"], false)?;
        typed(&file, "pre_tokenizer", &["BertPreTokenizer"], false)?;
        let rules = rules(normalizer)?;
        let tokens = vocabulary(model)?;
        let ids: HashMap<&str, u32> = tokens.iter().map(|(t, id)| (&t[..], *id)).collect();
        let unknown = string(model, "model", "unk_token")?;
        let added = added_tokens(file.get("added_tokens"), &ids, &rules)?;
        let (single, pair) = slots(&file)?;
        let truncation = file.get("truncation").and_then(|t| t.get("max_length"));
        Ok(File {
            rules,
            prefix: string(model, "model", "continuing_subword_prefix")?.to_owned(),
            unknown: known(&ids, unknown, "model.unk_token")?,
            word_chars_max: number(model, "model", "max_input_chars_per_word", u64::MAX)? as usize,
            added,
            single,
            pair,
            truncation: truncation.and_then(Value::as_u64).map(|max| max as usize),
            is_padded: file
                .get("padding")
                .is_some_and(|padding| !padding.is_null()),
            tokens,
        })
    }

    /// A BERT tokenizer from its list of tokens, one a line.
    pub(super) fn vocabulary(lines: &str, lowercase: bool) -> Result<File, TokenizerError> {
        // As `tokenizers` reads it: white space at the ends of lines does not count, and of equal
        // lines the last one has the token.
        let ids: HashMap<&str, u32> = lines.lines().map(str::trim_end).zip(0..).collect();
        let special = |token: &str| known(&ids, token, "a BERT tokenizer");
        let (start, end) = (special("[CLS]")?, special("[SEP]")?);
        let names = ["[UNK]", "[SEP]", "[CLS]", "[PAD]", "[MASK]"];
        let added = names.iter().filter_map(|&name| {
            Some(AddedToken {
                content: name.to_owned(),
                id: *ids.get(name)?,
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: false,
            })
        });
        let (single, pair) = bert(start, end);
        Ok(File {
            rules: Rules {
                clean_text: true,
                handle_chinese_chars: true,
                strip_accents: lowercase,
                lowercase,
            },
            prefix: "##".to_owned(),
            unknown: special("[UNK]")?,
            word_chars_max: 100,
            added: added.collect(),
            single,
            pair,
            truncation: None,
            is_padded: false,
            tokens: ids
                .iter()
                .map(|(&token, &id)| (token.to_owned(), id))
                .collect(),
        })
    }
}

/// A value in words.
pub(super) fn name(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "missing".to_owned(),
        Some(Value::String(text)) => format!("'{text:.40}'"),
        Some(Value::Array(_)) => "a list".to_owned(),
        Some(Value::Object(_)) => "an object".to_owned(),
        Some(plain) => plain.to_string(),
    }
}

/// A section whose `type` is one of those that are supported. Files of the first days have no type
/// in their model.
pub(super) fn typed<'a>(
    file: &'a Map<String, Value>,
    section: &str,
    types: &[&str],
    may_lack: bool,
) -> Result<&'a Map<String, Value>, TokenizerError> {
    let expected = types.join("' or '");
    let expected = format!("'{expected}'");
    let Some(Value::Object(found)) = file.get(section) else {
        return Err(field(section, name(file.get(section)), &expected));
    };
    match found.get("type") {
        None if may_lack => Ok(found),
        Some(Value::String(kind)) if types.contains(&&kind[..]) => Ok(found),
        other => Err(field(format!("{section}.type"), name(other), &expected)),
    }
}

pub(super) fn string<'a>(
    object: &'a Map<String, Value>,
    at: &str,
    key: &str,
) -> Result<&'a str, TokenizerError> {
    let value = object.get(key);
    let text = value.and_then(Value::as_str);
    text.ok_or_else(|| field(format!("{at}.{key}"), name(value), "a string"))
}

fn flag(object: &Map<String, Value>, at: &str, key: &str) -> Result<bool, TokenizerError> {
    let value = object.get(key);
    let flag = value.and_then(Value::as_bool);
    flag.ok_or_else(|| field(format!("{at}.{key}"), name(value), "true or false"))
}

pub(super) fn number(
    object: &Map<String, Value>,
    at: &str,
    key: &str,
    below: u64,
) -> Result<u64, TokenizerError> {
    let value = object.get(key);
    let number = value.and_then(Value::as_u64).filter(|&n| n < below);
    number.ok_or_else(|| {
        let expected = format!("a whole number below {below}");
        field(format!("{at}.{key}"), name(value), &expected)
    })
}

/// The id of a token that must be there.
fn known(ids: &HashMap<&str, u32>, token: &str, who: &str) -> Result<u32, TokenizerError> {
    ids.get(token).copied().ok_or_else(|| {
        TokenizerError::Tokens(format!(
            "the vocabulary has no '{token}', which {who} needs"
        ))
    })
}

fn rules(normalizer: &Map<String, Value>) -> Result<Rules, TokenizerError> {
    let at = "normalizer";
    let lowercase = flag(normalizer, at, "lowercase")?;
    let strip_accents = match normalizer.get("strip_accents") {
        None | Some(Value::Null) => lowercase,
        _ => flag(normalizer, at, "strip_accents")?,
    };
    Ok(Rules {
        clean_text: flag(normalizer, at, "clean_text")?,
        handle_chinese_chars: flag(normalizer, at, "handle_chinese_chars")?,
        strip_accents,
        lowercase,
    })
}

fn vocabulary(model: &Map<String, Value>) -> Result<Vec<(String, u32)>, TokenizerError> {
    let Some(Value::Object(entries)) = model.get("vocab") else {
        return Err(field(
            "model.vocab",
            name(model.get("vocab")),
            "an object of tokens and ids",
        ));
    };
    let mut tokens = Vec::with_capacity(entries.len());
    let mut owners: HashMap<u64, &str> = HashMap::with_capacity(entries.len());
    for (token, _) in entries {
        let id = number(entries, "model.vocab", token, IDS_MAX)?;
        if let Some(other) = owners.insert(id, token) {
            return Err(TokenizerError::Tokens(format!(
                "the tokens '{other}' and '{token}' have the same id {id}"
            )));
        }
        tokens.push((token.clone(), id as u32));
    }
    Ok(tokens)
}

fn added_tokens(
    section: Option<&Value>,
    ids: &HashMap<&str, u32>,
    rules: &Rules,
) -> Result<Vec<AddedToken>, TokenizerError> {
    let entries = match section {
        None => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        other => return Err(field("added_tokens", name(other), "a list")),
    };
    let mut added: Vec<AddedToken> = Vec::new();
    let mut free = ids.len() as u32;
    for (i, entry) in entries.iter().enumerate() {
        let at = format!("added_tokens[{i}]");
        let Value::Object(entry) = entry else {
            return Err(field(at, name(Some(entry)), "an object"));
        };
        let content = string(entry, &at, "content")?.to_owned();
        let found = number(entry, &at, "id", IDS_MAX)? as u32;
        flag(entry, &at, "special")?;
        let mut token = AddedToken {
            content,
            id: found,
            single_word: flag(entry, &at, "single_word")?,
            lstrip: flag(entry, &at, "lstrip")?,
            rstrip: flag(entry, &at, "rstrip")?,
            normalized: flag(entry, &at, "normalized")?,
        };
        if token.content.is_empty() {
            continue;
        }
        let same = added.iter().position(|old| old.content == token.content);
        let expected = match (same, ids.get(&token.content[..])) {
            (Some(same), _) => added[same].id,
            (None, Some(&id)) => id,
            (None, None) => {
                free += 1;
                free - 1
            }
        };
        if found != expected {
            let at = format!("{at}.id ('{}')", token.content);
            return Err(field(at, found.to_string(), &expected.to_string()));
        }
        token.id = expected;
        match same {
            Some(same) => added[same] = token,
            None => added.push(token),
        }
    }
    normalized(&mut added, rules)?;
    Ok(added)
}

/// Tokens that are looked for in normalized text are spelled so.
fn normalized(added: &mut [AddedToken], rules: &Rules) -> Result<(), TokenizerError> {
    let mut spellings = HashSet::new();
    for token in added {
        if token.normalized {
            let raw: Vec<_> = token.content.chars().map(|c| (c, (0, 0))).collect();
            let mut out = Vec::new();
            rules.normalize(&raw, &mut out);
            let content: String = out.iter().map(|&(c, _)| c).collect();
            if content.is_empty() || !spellings.insert(content.clone()) {
                return Err(TokenizerError::Tokens(format!(
                    "the added token '{}' is '{content}' when it is normalized, which is empty or another one's spelling",
                    token.content
                )));
            }
            token.content = content;
        }
    }
    Ok(())
}
