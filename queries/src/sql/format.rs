//! `FORMAT …` of a source: how the bytes of a message are written.
//!
//! ```text
//! JSON | TEXT | BYTES
//! AVRO (REGISTRY 'http://…' [, USER '…' [, PASSWORD SECRET s | PASSWORD ENV '…' | PASSWORD FILE '…']] [, SCHEMA '{…}'])
//! AVRO (SCHEMA '{…}')
//! CSV [(DELIMITER ',', NULL '', HEADER 'a,b,c')]
//! ```
//!
//! Invariant: no password is in a statement, so none is stored, shown or logged.

use datafusion_sql::sqlparser::tokenizer::Token;

use super::catalog::CatalogView;
use super::cursor::Cursor;
use super::normal::text;
use super::options::{Known, Options};
use super::security;
use super::source::required;
use super::statement::later;
use crate::definition::{AvroDef, CsvDef, MessageFormat, RegistryDef};
use crate::problem::{Position, Problem};

const WORDS: [&str; 5] = ["JSON", "TEXT", "BYTES", "AVRO", "CSV"];

/// The word of a format.
pub(super) fn word(format: &MessageFormat) -> &'static str {
    match format {
        MessageFormat::Json => "JSON",
        MessageFormat::Text => "TEXT",
        MessageFormat::Bytes => "BYTES",
        MessageFormat::Avro(_) => "AVRO",
        MessageFormat::Csv(_) => "CSV",
    }
}

/// Reads what stands behind `FORMAT`.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    catalog: &dyn CatalogView,
) -> Result<MessageFormat, Problem> {
    let at = cursor.position();
    let found = WORDS.into_iter().find(|word| cursor.eat(word));
    Ok(match found {
        Some("JSON") => MessageFormat::Json,
        Some("TEXT") => MessageFormat::Text,
        Some("BYTES") => MessageFormat::Bytes,
        Some("AVRO") => MessageFormat::Avro(Box::new(avro(cursor, at, catalog)?)),
        Some(_) => MessageFormat::Csv(Box::new(csv(cursor)?)),
        None if cursor.is("PROTOBUF") => {
            let hint = "formats of this version are JSON, AVRO, CSV, TEXT and BYTES";
            return Err(later(cursor, "FORMAT PROTOBUF", hint));
        }
        None => return Err(cursor.unexpected(&WORDS)),
    })
}

/// The key's format where one is given for key and value: a schema or a header is the value's alone.
/// `None`: nothing is known of the key.
pub(super) fn key_of(format: &MessageFormat) -> Option<MessageFormat> {
    match format {
        MessageFormat::Avro(avro) => {
            let registry = avro.registry.clone()?;
            Some(MessageFormat::Avro(Box::new(AvroDef {
                registry: Some(registry),
                schema: None,
            })))
        }
        MessageFormat::Csv(csv) => Some(MessageFormat::Csv(Box::new(CsvDef {
            header: None,
            ..(**csv).clone()
        }))),
        format => Some(format.clone()),
    }
}

/// The format with every option written out.
pub(super) fn statement(format: &MessageFormat) -> String {
    let mut options = Vec::new();
    match format {
        MessageFormat::Json | MessageFormat::Text | MessageFormat::Bytes => {
            return word(format).to_owned();
        }
        MessageFormat::Avro(avro) => {
            if let Some(registry) = &avro.registry {
                options.push(("REGISTRY", text(&registry.url)));
                let user = registry.user.iter();
                options.extend(user.map(|user| ("USER", text(user))));
                let names = ["PASSWORD", "PASSWORD ENV", "PASSWORD FILE"];
                let password = registry.password.iter();
                options.extend(password.map(|password| security::written(password, names)));
            }
            options.extend(avro.schema.iter().map(|json| ("SCHEMA", text(json))));
        }
        MessageFormat::Csv(csv) => {
            options.push(("DELIMITER", text(&csv.delimiter.to_string())));
            options.push(("NULL", text(&csv.null)));
            options.extend(csv.header.iter().map(|line| ("HEADER", text(line))));
        }
    }
    let options: Vec<String> = options
        .iter()
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    format!("{} ({})", word(format), options.join(", "))
}

fn avro(
    cursor: &mut Cursor<'_>,
    at: Position,
    catalog: &dyn CatalogView,
) -> Result<AvroDef, Problem> {
    const KNOWN: Known = Known {
        what: "FORMAT AVRO",
        names: &[
            "REGISTRY",
            "USER",
            "PASSWORD",
            "PASSWORD ENV",
            "PASSWORD FILE",
            "SCHEMA",
        ],
        later: &[],
    };
    if !cursor.is_token(&Token::LParen) {
        return Err(
            Problem::syntax("FORMAT AVRO does not say where its schemas are")
                .at(at.line, at.column)
                .expected("AVRO (REGISTRY 'http://…') or AVRO (SCHEMA '{…}')"),
        );
    }
    let options = Options::parse(cursor, &KNOWN)?;
    let wrong = |name: &str, problem: Problem| {
        let at = options.position(name).unwrap_or(at);
        problem.at(at.line, at.column)
    };
    let schema = options.text("SCHEMA")?;
    if let Some(schema) = &schema
        && let Err(error) = serde_json::from_str::<serde_json::Value>(schema)
    {
        let problem = Problem::invalid(format!("SCHEMA is not JSON: {error}"));
        return Err(wrong("SCHEMA", problem.expected("a schema of Avro")));
    }
    if schema.is_none() {
        required(&options, "REGISTRY", "FORMAT AVRO without SCHEMA", at)?;
    }
    let user = options.text("USER")?;
    let password = security::password(
        &options,
        ["PASSWORD", "PASSWORD ENV", "PASSWORD FILE"],
        catalog,
    )?;
    let registry = options.text("REGISTRY")?;
    let with_user = password.as_ref().map(|(name, _)| *name);
    for (name, needs, is_there) in [
        (
            user.as_ref().map(|_| "USER"),
            "REGISTRY",
            registry.is_some(),
        ),
        (with_user, "USER", user.is_some()),
    ] {
        if let (Some(name), false) = (name, is_there) {
            let problem = Problem::invalid(format!("option {name} needs the option {needs}"));
            return Err(wrong(name, problem.expected(needs)));
        }
    }
    let registry = registry.map(|url| {
        check_url(&url).map_err(|problem| wrong("REGISTRY", problem))?;
        Ok(RegistryDef {
            url,
            user,
            password: password.map(|(_, password)| password),
        })
    });
    Ok(AvroDef {
        registry: registry.transpose()?,
        schema,
    })
}

/// An address without a login in it: statements are stored and shown.
fn check_url(url: &str) -> Result<(), Problem> {
    security::check_url(
        "REGISTRY",
        url,
        "the base of a Confluent API, like 'http://localhost:8081'",
        "write USER '…', PASSWORD ENV '…'",
    )
}

fn csv(cursor: &mut Cursor<'_>) -> Result<CsvDef, Problem> {
    const KNOWN: Known = Known {
        what: "FORMAT CSV",
        names: &["DELIMITER", "NULL", "HEADER"],
        later: &["QUOTE", "ESCAPE", "ENCODING"],
    };
    let options = match cursor.is_token(&Token::LParen) {
        true => Options::parse(cursor, &KNOWN)?,
        false => Options::default(),
    };
    let delimiter = match options.text("DELIMITER")? {
        None => ',',
        Some(given) => delimiter(&given).ok_or_else(|| {
            let at = options.position("DELIMITER").unwrap_or_default();
            Problem::invalid(format!("option DELIMITER cannot be '{given}'"))
                .at(at.line, at.column)
                .expected("one ASCII character, no quote and no line break; a tab is '\\t'")
        })?,
    };
    Ok(CsvDef {
        delimiter,
        null: options.text("NULL")?.unwrap_or_default(),
        header: options.text("HEADER")?,
    })
}

fn delimiter(given: &str) -> Option<char> {
    let given = if given == "\\t" { "\t" } else { given };
    let mut chars = given.chars();
    let only = chars.next().filter(|_| chars.next().is_none())?;
    let is_possible = only.is_ascii() && !matches!(only, '"' | '\n' | '\r');
    is_possible.then_some(only)
}
