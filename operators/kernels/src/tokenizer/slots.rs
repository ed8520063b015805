//! What is put around texts: `[CLS] A [SEP]`, `[CLS] A [SEP] B [SEP]`.
//!
//! The idea: `BertProcessing` is a `TemplateProcessing` with a known template, so there are templates only:
//! a list of special tokens and places for texts, each with its kind of segment.
//!
//! Invariants: a single sequence has one text, all of kind 0; a pair has each text once.
//! Limits: other post-processors are refused.

use serde_json::{Map, Value};

use super::load::{IDS_MAX, TokenizerError, field, name, number, string, typed};

/// A part of the sequence that a model sees, with its kind of segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Slot {
    Special(Vec<u32>, u32),
    First(u32),
    Second(u32),
}

impl Slot {
    /// The ids that it writes itself.
    pub(super) fn ids(&self) -> &[u32] {
        match self {
            Slot::Special(ids, _) => ids,
            Slot::First(_) | Slot::Second(_) => &[],
        }
    }
}

/// `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`.
pub(super) fn bert(start: u32, end: u32) -> (Vec<Slot>, Vec<Slot>) {
    let special = |id, kind| Slot::Special(vec![id], kind);
    let single = vec![special(start, 0), Slot::First(0), special(end, 0)];
    let mut pair = single.clone();
    pair.extend([Slot::Second(1), special(end, 1)]);
    (single, pair)
}

pub(super) fn slots(file: &Map<String, Value>) -> Result<(Vec<Slot>, Vec<Slot>), TokenizerError> {
    let at = "post_processor";
    if file.get(at).is_none_or(Value::is_null) {
        return Ok((vec![Slot::First(0)], vec![Slot::First(0), Slot::Second(1)]));
    }
    let section = typed(file, at, &["TemplateProcessing", "BertProcessing"], false)?;
    if section.get("type").and_then(Value::as_str) == Some("BertProcessing") {
        let id = |key: &str| {
            let value = section.get(key);
            let id = value.and_then(|v| v.get(1)).and_then(Value::as_u64);
            let id = id.filter(|&id| id < IDS_MAX).map(|id| id as u32);
            id.ok_or_else(|| field(format!("{at}.{key}"), name(value), "a token and its id"))
        };
        return Ok(bert(id("cls")?, id("sep")?));
    }
    let single = template(section, "single")?;
    let pair = template(section, "pair")?;
    let count = |slots: &[Slot], is: fn(&Slot) -> bool| slots.iter().filter(|s| is(s)).count();
    let counts = |slots: &[Slot]| {
        let first = count(slots, |slot| matches!(slot, Slot::First(_)));
        (first, count(slots, |slot| matches!(slot, Slot::Second(_))))
    };
    let is_plain = |slot: &Slot| matches!(slot, Slot::Special(_, 0) | Slot::First(0));
    if counts(&single) != (1, 0) || !single.iter().all(is_plain) {
        let expected = "one sequence A among special tokens, all with type_id 0";
        return Err(field("post_processor.single", "another template", expected));
    }
    if counts(&pair) != (1, 1) {
        let expected = "one sequence A and one sequence B";
        return Err(field("post_processor.pair", "another template", expected));
    }
    Ok((single, pair))
}

fn template(section: &Map<String, Value>, key: &str) -> Result<Vec<Slot>, TokenizerError> {
    let at = format!("post_processor.{key}");
    let Some(Value::Array(pieces)) = section.get(key) else {
        return Err(field(at, name(section.get(key)), "a list"));
    };
    let slot = |(i, piece): (usize, &Value)| {
        let at = format!("{at}[{i}]");
        let expected = "a SpecialToken or a Sequence";
        let inner = piece.as_object().filter(|piece| piece.len() == 1);
        let Some((kind, Value::Object(inner))) = inner.and_then(|piece| piece.iter().next()) else {
            return Err(field(at, name(Some(piece)), expected));
        };
        let id = string(inner, &at, "id")?;
        let type_id = number(inner, &at, "type_id", u64::from(u32::MAX))? as u32;
        match (&kind[..], id) {
            ("Sequence", "A") => Ok(Slot::First(type_id)),
            ("Sequence", "B") => Ok(Slot::Second(type_id)),
            ("SpecialToken", id) => Ok(Slot::Special(special_ids(section, id)?, type_id)),
            _ => Err(field(at, format!("{kind} '{id}'"), expected)),
        }
    };
    pieces.iter().enumerate().map(slot).collect()
}

/// The ids of a template's special token.
fn special_ids(section: &Map<String, Value>, id: &str) -> Result<Vec<u32>, TokenizerError> {
    let found = section.get("special_tokens").and_then(|all| all.get(id));
    let ids = found
        .and_then(|token| token.get("ids"))
        .and_then(Value::as_array);
    let number = |id: &Value| Some(id.as_u64().filter(|&id| id < IDS_MAX)? as u32);
    let ids: Option<Vec<u32>> = ids.and_then(|ids| ids.iter().map(number).collect());
    ids.ok_or_else(|| {
        let at = format!("post_processor.special_tokens.{id}");
        field(at, name(found), "an object with ids")
    })
}
