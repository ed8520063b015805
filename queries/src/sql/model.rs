//! `CREATE MODEL`: what turns a text to a vector.
//!
//! ```text
//! FROM 'name or folder' [WITH (DEVICE …, PRECISION …, DIMENSIONS n, QUERY PROMPT '…', DOCUMENT PROMPT '…')]
//! FROM 'openai:name' [WITH (URL '…', KEY SECRET s | KEY ENV '…' | KEY FILE '…', DIMENSIONS n, …)]
//! FROM COLUMN WITH (DIMENSIONS n)
//! ```
//!
//! Invariant: a key is a place, never a value; an address has no login in it.

use engine::limits::{DIMENSIONS_MAX, EMBED_BATCH_TOKENS_MAX};

use super::catalog::CatalogView;
use super::cursor::Cursor;
use super::interval::format_micros;
use super::normal::text;
use super::options::{Known, Options};
use super::security::{check_url, password, written};
use super::source::required;
use crate::definition::{ModelDef, RemoteModelDef, ShapeDef};
use crate::problem::{Position, Problem};

/// What stands before the name of a model behind OpenAI's API.
const OPENAI: &str = "openai:";
/// OpenAI's own address, and its models with their lengths.
const OPENAI_URL: &str = "https://api.openai.com/v1";
const OPENAI_MODELS: [(&str, u32); 3] = [
    ("text-embedding-3-small", 1_536),
    ("text-embedding-3-large", 3_072),
    ("text-embedding-ada-002", 1_536),
];
/// Longest text of OpenAI's models, and what other servers are assumed to take.
const OPENAI_TOKENS: u64 = 8_191;
const TOKENS_DEFAULT: u64 = 512;
/// Texts of one request without `BATCH`: what every server takes.
const BATCH_DEFAULT: u64 = 32;
const CONCURRENCY_DEFAULT: u64 = 4;
const SECOND: u64 = 1_000_000;
/// The ways to say where the key is.
const KEY: [&str; 3] = ["KEY", "KEY ENV", "KEY FILE"];

/// Reads what stands behind `CREATE MODEL name`.
pub(super) fn model(
    cursor: &mut Cursor<'_>,
    catalog: &dyn CatalogView,
) -> Result<ModelDef, Problem> {
    cursor.expect("FROM")?;
    if cursor.eat("COLUMN") {
        return column(cursor);
    }
    let at = cursor.position();
    let location = cursor.string("a model's name or folder in single quotes, or COLUMN")?;
    if location.is_empty() {
        return Err(Problem::invalid("the model's name is empty").at(at.line, at.column));
    }
    match location.strip_prefix(OPENAI) {
        Some("") => Err(Problem::invalid(
            "openai: does not say which model the server is asked for",
        )
        .at(at.line, at.column)
        .expected("'openai:text-embedding-3-small', or another name behind openai:")),
        Some(model) => remote(cursor, model.to_owned(), at, catalog),
        None => pretrained(cursor, location),
    }
}

fn column(cursor: &mut Cursor<'_>) -> Result<ModelDef, Problem> {
    const KNOWN: Known = Known {
        what: "FROM COLUMN",
        names: &["DIMENSIONS"],
        later: &["METRIC"],
    };
    let at = cursor.position();
    cursor.expect("WITH")?;
    let options = Options::parse(cursor, &KNOWN)?;
    required(&options, "DIMENSIONS", "FROM COLUMN", at)?;
    let dimensions = dimensions(&options)?.unwrap_or(1);
    Ok(ModelDef::Column { dimensions })
}

fn pretrained(cursor: &mut Cursor<'_>, location: String) -> Result<ModelDef, Problem> {
    const KNOWN: Known = Known {
        what: "CREATE MODEL",
        names: &[
            "DEVICE",
            "PRECISION",
            "DIMENSIONS",
            "QUERY PROMPT",
            "DOCUMENT PROMPT",
        ],
        later: &["POOLING", "REVISION"],
    };
    let options = match cursor.eat("WITH") {
        true => Options::parse(cursor, &KNOWN)?,
        false => Options::default(),
    };
    let device = device(&options)?;
    let precision = options.choice("PRECISION", &["full", "f32", "bf16", "int8"])?;
    Ok(ModelDef::Pretrained {
        location,
        device,
        precision: precision.unwrap_or("full").to_owned(),
        shape: ShapeDef {
            dimensions: dimensions(&options)?,
            query_prompt: options.text("QUERY PROMPT")?,
            document_prompt: options.text("DOCUMENT PROMPT")?,
        },
    })
}

/// `auto`, `cpu` or `cuda:N`.
fn device(options: &Options) -> Result<String, Problem> {
    let text = options.text("DEVICE").ok().flatten().unwrap_or_default();
    let number = match &*text.to_ascii_lowercase() {
        "cuda" => Some(0),
        lower => lower
            .strip_prefix("cuda:")
            .and_then(|number| number.parse::<u16>().ok()),
    };
    if let Some(number) = number {
        return Ok(format!("cuda:{number}"));
    }
    let choice = options.choice("DEVICE", &["auto", "cpu", "cuda:0"])?;
    Ok(choice.unwrap_or("auto").to_owned())
}

fn remote(
    cursor: &mut Cursor<'_>,
    model: String,
    at: Position,
    catalog: &dyn CatalogView,
) -> Result<ModelDef, Problem> {
    const KNOWN: Known = Known {
        what: "CREATE MODEL … FROM 'openai:…'",
        names: &[
            "URL",
            "KEY",
            "KEY ENV",
            "KEY FILE",
            "DIMENSIONS",
            "SEND DIMENSIONS",
            "MAX TOKENS",
            "BATCH",
            "BATCH TOKENS",
            "CONCURRENCY",
            "REQUESTS PER MINUTE",
            "TIMEOUT",
            "ENCODING",
            "TOKENIZER",
            "QUERY PROMPT",
            "DOCUMENT PROMPT",
        ],
        later: &["TOKENS PER MINUTE", "HEADERS"],
    };
    let options = match cursor.eat("WITH") {
        true => Options::parse(cursor, &KNOWN)?,
        false => Options::default(),
    };
    let url = options.text("URL")?;
    if let Some(url) = &url {
        check_url(
            "URL",
            url,
            "the base of an API like OpenAI's, for example 'http://localhost:8080/v1'",
            "write KEY SECRET name",
        )
        .map_err(|problem| {
            let at = options.position("URL").unwrap_or(at);
            problem.at(at.line, at.column)
        })?;
    }
    options.refuse_empty("TOKENIZER")?;
    let own = OPENAI_MODELS.iter().find(|(name, _)| *name == model);
    if own.is_none() {
        let what = format!("the model '{model}', whose length is not known here,");
        required(&options, "DIMENSIONS", &what, at)?;
    }
    let sends = options.choice("SEND DIMENSIONS", &["auto", "on", "off"])?;
    let tokens_default = match own {
        Some(_) => OPENAI_TOKENS,
        None => TOKENS_DEFAULT,
    };
    let small = |name, range, default: u64| {
        let number = options.integer(name, range)?.unwrap_or(default);
        Ok::<u32, Problem>(u32::try_from(number).unwrap_or(u32::MAX))
    };
    let per_minute = options.integer("REQUESTS PER MINUTE", 1..=1_000_000)?;
    let timeout = options.duration(
        "TIMEOUT",
        SECOND / 10..=600 * SECOND,
        "from 100 milliseconds to 10 minutes",
    )?;
    let prompt = |name| Ok::<String, Problem>(options.text(name)?.unwrap_or_default());
    Ok(ModelDef::Remote(Box::new(RemoteModelDef {
        url: url.unwrap_or_else(|| OPENAI_URL.to_owned()),
        key: password(&options, KEY, catalog)?.map(|(_, key)| key),
        dimensions: dimensions(&options)?
            .or(own.map(|(_, length)| *length))
            .unwrap_or(1),
        sends_dimensions: match sends.unwrap_or("auto") {
            "on" => true,
            "off" => false,
            _ => model.starts_with("text-embedding-3-") && options.position("DIMENSIONS").is_some(),
        },
        max_tokens: small("MAX TOKENS", 16..=131_072, tokens_default)?,
        batch: small("BATCH", 1..=2_048, BATCH_DEFAULT)?,
        batch_tokens: small(
            "BATCH TOKENS",
            16..=1_000_000,
            EMBED_BATCH_TOKENS_MAX as u64,
        )?,
        concurrency: small("CONCURRENCY", 1..=64, CONCURRENCY_DEFAULT)?,
        requests_per_minute: per_minute.and_then(|n| u32::try_from(n).ok()),
        timeout_micros: timeout.unwrap_or(30 * SECOND),
        is_base64: options.choice("ENCODING", &["float", "base64"])? == Some("base64"),
        tokenizer: options.text("TOKENIZER")?,
        query_prompt: prompt("QUERY PROMPT")?,
        document_prompt: prompt("DOCUMENT PROMPT")?,
        model,
    })))
}

fn dimensions(options: &Options) -> Result<Option<u32>, Problem> {
    let dimensions = options.integer("DIMENSIONS", 1..=u64::from(DIMENSIONS_MAX))?;
    Ok(dimensions.and_then(|n| u32::try_from(n).ok()))
}

/// The statement that declares a model, with its options written out; `name` as SQL writes it.
pub(super) fn statement(name: &str, model: &ModelDef) -> String {
    let (from, options) = match model {
        ModelDef::Column { dimensions } => (
            "COLUMN".to_owned(),
            vec![("DIMENSIONS", dimensions.to_string())],
        ),
        ModelDef::Pretrained {
            location,
            device,
            precision,
            shape,
        } => {
            let mut options = vec![("DEVICE", text(device)), ("PRECISION", text(precision))];
            let dimensions = shape.dimensions.iter();
            options.extend(dimensions.map(|n| ("DIMENSIONS", n.to_string())));
            let query = shape.query_prompt.iter();
            options.extend(query.map(|prompt| ("QUERY PROMPT", text(prompt))));
            let document = shape.document_prompt.iter();
            options.extend(document.map(|prompt| ("DOCUMENT PROMPT", text(prompt))));
            (text(location), options)
        }
        ModelDef::Remote(remote) => (
            text(&format!("{OPENAI}{}", remote.model)),
            remote_options(remote),
        ),
    };
    let options: Vec<String> = options
        .iter()
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    format!(
        "CREATE MODEL {name} FROM {from} WITH ({})",
        options.join(", ")
    )
}

fn remote_options(def: &RemoteModelDef) -> Vec<(&'static str, String)> {
    let word = |is: bool, yes: &str, no: &str| text(if is { yes } else { no });
    let mut options = vec![("URL", text(&def.url))];
    options.extend(def.key.iter().map(|key| written(key, KEY)));
    options.extend([
        ("DIMENSIONS", def.dimensions.to_string()),
        ("SEND DIMENSIONS", word(def.sends_dimensions, "on", "off")),
        ("MAX TOKENS", def.max_tokens.to_string()),
        ("BATCH", def.batch.to_string()),
        ("BATCH TOKENS", def.batch_tokens.to_string()),
        ("CONCURRENCY", def.concurrency.to_string()),
    ]);
    let per_minute = def.requests_per_minute.iter();
    options.extend(per_minute.map(|n| ("REQUESTS PER MINUTE", n.to_string())));
    options.extend([
        ("TIMEOUT", text(&format_micros(def.timeout_micros))),
        ("ENCODING", word(def.is_base64, "base64", "float")),
    ]);
    let tokenizer = def.tokenizer.iter();
    options.extend(tokenizer.map(|at| ("TOKENIZER", text(at))));
    for (name, prompt) in [
        ("QUERY PROMPT", &def.query_prompt),
        ("DOCUMENT PROMPT", &def.document_prompt),
    ] {
        if !prompt.is_empty() {
            options.push((name, text(prompt)));
        }
    }
    options
}
