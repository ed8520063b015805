//! `CREATE SECRET`, `CREATE CONNECTION`, and `FROM POSTGRES`, which reads through a connection.
//!
//! ```text
//! CREATE SECRET name AS ENV 'NAME' | FILE 'path'
//! CREATE CONNECTION name TO POSTGRES (HOST '…', USER '…', DATABASE '…' [, PORT n] [, PASSWORD SECRET s]
//!        [, SSLMODE 'prefer'] [, SSLROOTCERT '…'] [, SLOT '…'] [, PUBLICATION '…'] [, SLOT LOST 'stop'])
//! CREATE SOURCE name [(columns)] FROM POSTGRES (CONNECTION name, TABLE 'schema.table')
//! ```
//!
//! A secret is a place, never a value: the catalog, `SHOW CREATE` and messages name it. Columns that
//! a source does not declare are asked for, once ([`super::CatalogView::describe`]).

use engine::model::{ContentHash, Schema};

use super::catalog::{CatalogView, DatabaseTable};
use super::cursor::{Cursor, Name};
use super::options::{Known, Options};
use super::security;
use super::source::{Columns, keyed, required};
use super::statement::{known, with_article};
use crate::definition::{
    ConnectionDef, Connector, Definition, PostgresDef, SecretDef, SlotLost, SourceDef, SslMode,
};
use crate::problem::{Position, Problem};

/// PostgreSQL's own port.
const PORT: u64 = 5432;
/// Longest name that PostgreSQL keeps whole.
const NAME_BYTES_MAX: usize = 63;
const MODES: [(&str, SslMode); 5] = [
    ("prefer", SslMode::Prefer),
    ("disable", SslMode::Disable),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

/// The word of a mode.
pub(super) fn mode_word(mode: SslMode) -> &'static str {
    let found = MODES.iter().find(|(_, known)| *known == mode);
    found.map_or("prefer", |(word, _)| word)
}

/// Reads what stands behind `CREATE SECRET name`.
pub(super) fn secret(cursor: &mut Cursor<'_>) -> Result<SecretDef, Problem> {
    cursor.expect("AS")?;
    let is_env = cursor.eat("ENV");
    if !is_env && !cursor.eat("FILE") {
        return Err(cursor
            .unexpected(&["ENV '…'", "FILE '…'"])
            .hint("a secret names where its value is; the value itself is never stored"));
    }
    let at = cursor.position();
    let place = cursor.string(match is_env {
        true => "the variable's name in single quotes",
        false => "the file's path in single quotes",
    })?;
    if place.is_empty() {
        return Err(Problem::invalid("the secret's place is empty").at(at.line, at.column));
    }
    Ok(match is_env {
        true => SecretDef::Env(place),
        false => SecretDef::File(place),
    })
}

/// Reads what stands behind `CREATE CONNECTION name`.
pub(super) fn connection(
    cursor: &mut Cursor<'_>,
    name: &str,
    catalog: &dyn CatalogView,
) -> Result<ConnectionDef, Problem> {
    const KNOWN: Known = Known {
        what: "TO POSTGRES",
        names: &[
            "HOST",
            "PORT",
            "USER",
            "PASSWORD",
            "DATABASE",
            "SSLMODE",
            "SSLROOTCERT",
            "SLOT",
            "PUBLICATION",
            "SLOT LOST",
        ],
        later: &["SSLCERT", "SSLKEY"],
    };
    cursor.expect("TO")?;
    let at = cursor.position();
    cursor.expect("POSTGRES")?;
    let options = Options::parse(cursor, &KNOWN)?;
    for option in ["HOST", "USER", "DATABASE"] {
        required(&options, option, KNOWN.what, at)?;
        options.refuse_empty(option)?;
    }
    let password = security::secret(&options, "PASSWORD", catalog)?;
    let words: Vec<&'static str> = MODES.iter().map(|(word, _)| *word).collect();
    let mode = options.choice("SSLMODE", &words)?.unwrap_or("prefer");
    let mode = MODES.iter().find(|(word, _)| *word == mode);
    let lost = options.choice("SLOT LOST", &["stop", "copy"])?;
    let port = options.integer("PORT", 1..=65_535)?.unwrap_or(PORT);
    Ok(ConnectionDef {
        host: options.text("HOST")?.unwrap_or_default(),
        port: u16::try_from(port).expect("at most 65535"),
        user: options.text("USER")?.unwrap_or_default(),
        password,
        database: options.text("DATABASE")?.unwrap_or_default(),
        ssl_mode: mode.map_or(SslMode::Prefer, |(_, mode)| *mode),
        ssl_root_cert: options.text("SSLROOTCERT")?,
        is_own: options.position("SLOT").is_none() && options.position("PUBLICATION").is_none(),
        slot: given_name(&options, "SLOT", name)?,
        publication: given_name(&options, "PUBLICATION", name)?,
        slot_lost: match lost {
            Some("copy") => SlotLost::Copy,
            _ => SlotLost::Stop,
        },
    })
}

/// The name of something in the database; without the option one of our own, by the connection's.
fn given_name(options: &Options, option: &str, connection: &str) -> Result<String, Problem> {
    let Some(text) = options.text(option)? else {
        return Ok(own_name(connection));
    };
    // The characters of a replication slot's name; a publication may have others, quoted.
    let is_slot_name = !text.starts_with(|first: char| first.is_ascii_digit())
        && text
            .chars()
            .all(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '_'));
    let fits = !text.is_empty() && text.len() <= NAME_BYTES_MAX;
    if fits && (is_slot_name || option != "SLOT") {
        return Ok(text);
    }
    let at = options.position(option).unwrap_or_default();
    let expected = match option {
        "SLOT" => "lower case letters, digits and underscores, at most 63",
        _ => "1 to 63 bytes",
    };
    Err(
        Problem::invalid(format!("'{text}' is no name for {option}"))
            .at(at.line, at.column)
            .expected(expected),
    )
}

/// A name that no other connection comes to, of the characters of a slot's name.
fn own_name(connection: &str) -> String {
    let letters = connection.chars().map(|letter| match letter {
        'a'..='z' | '0'..='9' | '_' => letter,
        _ => '_',
    });
    let name: String = "headwater_".chars().chain(letters).collect();
    if name.ends_with(connection) && name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let [a, b, c, d, ..] = ContentHash::of(connection.as_bytes()).0;
    let hash = format!("_{:08x}", u32::from_be_bytes([a, b, c, d]));
    let kept = name.chars().take(NAME_BYTES_MAX - hash.len());
    kept.chain(hash.chars()).collect()
}

/// Reads what stands behind `FROM POSTGRES`; `columns` stood before it.
pub(super) fn postgres(
    cursor: &mut Cursor<'_>,
    columns: Option<Columns>,
    name: &Name,
    catalog: &dyn CatalogView,
) -> Result<SourceDef, Problem> {
    const KNOWN: Known = Known {
        what: "FROM POSTGRES",
        names: &["CONNECTION", "TABLE"],
        later: &["TABLES", "SCHEMA"],
    };
    let at = cursor.position();
    let options = Options::parse(cursor, &KNOWN)?;
    for option in KNOWN.names {
        required(&options, option, KNOWN.what, at)?;
    }
    let (connection, connection_at) = options.name("CONNECTION")?.unwrap_or_default();
    let object = known(
        catalog,
        &connection,
        connection_at,
        "the name of a connection",
    )?;
    let Definition::Connection(to) = &object.definition else {
        let found = with_article(object.definition.kind());
        return Err(
            Problem::invalid(format!("\"{connection}\" is {found}, not a connection"))
                .at(connection_at.line, connection_at.column)
                .expected("the name of a connection"),
        );
    };
    let table = options.text("TABLE")?.unwrap_or_default();
    let table_at = options.position("TABLE").unwrap_or(at);
    if table.is_empty() || table.matches('.').count() > 1 {
        return Err(Problem::invalid(format!("'{table}' is no table's name"))
            .at(table_at.line, table_at.column)
            .expected("'schema.table', or 'table' in the schema public"));
    }
    let def = PostgresDef {
        connection: connection.clone(),
        table,
    };
    let schema = match columns {
        Some(Columns { schema, .. }) => {
            keyed(&schema, name.at)?;
            schema
        }
        None => describe(&name.value, &def, to, table_at, catalog)?,
    };
    Ok(SourceDef {
        schema,
        connector: Connector::Postgres(def),
    })
}

/// The columns that the table has; those that the source has already, when it is declared again.
fn describe(
    name: &str,
    def: &PostgresDef,
    to: &ConnectionDef,
    at: Position,
    catalog: &dyn CatalogView,
) -> Result<Schema, Problem> {
    let secret = to.password.as_deref().and_then(|name| catalog.object(name));
    let secret = match secret.as_ref().map(|secret| &secret.definition) {
        Some(Definition::Secret(secret)) => Some(secret),
        _ => None,
    };
    let described = catalog.describe(&DatabaseTable {
        source: name,
        table: def,
        connection: to,
        secret,
    });
    described.map_err(|error| {
        Problem::new(503, "unavailable", error)
            .at(at.line, at.column)
            .hint("or declare the columns: CREATE SOURCE name (column TYPE, …) FROM POSTGRES (…)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_have_slots_of_their_own() {
        assert_eq!(own_name("pg"), "headwater_pg");
        let others = ["a_b", "a-b", "A_b", "ä_b"].map(own_name);
        let distinct: std::collections::BTreeSet<&String> = others.iter().collect();
        assert_eq!(distinct.len(), 4, "{others:?}");
        let long = own_name(&"x".repeat(70));
        assert_eq!(long.len(), NAME_BYTES_MAX);
        assert_ne!(long, own_name(&"x".repeat(71)));
    }
}
