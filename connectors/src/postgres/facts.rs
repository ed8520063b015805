//! What the catalog says of a table, and whether a source can be true to it.
//!
//! Invariants: a table that could not be published without breaking its own writers (no replica
//! identity: PostgreSQL then refuses the *application's* updates) is refused; so is a key that does
//! not name rows as the log does. Limits: columns are found by their names.

use engine::model::{Column, Schema, SqlType};

use super::session::{Failure, Session, literal, quoted, text};
use super::value::element_of;

/// A table's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// Its schema.
    pub schema: String,
    /// Its own name.
    pub name: String,
}

impl TableName {
    /// Reads `schema.name`, or `name` in the schema `public`; quotes are not needed.
    pub fn parse(text: &str) -> TableName {
        let (schema, name) = text.split_once('.').unwrap_or(("public", text));
        let bare = |part: &str| part.trim_matches('"').to_owned();
        TableName {
            schema: bare(schema),
            name: bare(name),
        }
    }

    pub(super) fn sql(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A column of a table, as the catalog has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TableColumn {
    pub(super) name: String,
    pub(super) type_id: u32,
    pub(super) modifier: i32,
    /// Type with its modifier, of a domain the type below it.
    type_name: String,
    is_not_null: bool,
    /// Computed by the table: never sent.
    is_generated: bool,
    /// Rank in the primary key.
    in_key: Option<usize>,
    /// Whether old rows in the log have it.
    is_identity: bool,
}

/// What the catalog says of a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TableFacts {
    /// Object id: another table of the same name has another one.
    pub(super) id: u32,
    pub(super) columns: Vec<TableColumn>,
    /// Whether its rows are its partitions'.
    pub(super) is_partitioned: bool,
    /// `d`, `n`, `f`, `i`
    identity: String,
    /// The planner's guess of its rows.
    pub(super) rows: i64,
}

/// Asks the catalog about a table.
pub(super) async fn of(session: &mut Session, table: &TableName) -> Result<TableFacts, Failure> {
    let (schema, name) = (literal(&table.schema), literal(&table.name));
    let found = session
        .rows(&format!(
            "SELECT c.oid, c.relkind, c.relreplident, c.reltuples::bigint, c.relpersistence
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = {schema} AND c.relname = {name}"
        ))
        .await?;
    let lasting = |detail: String| Failure::Lasting(detail);
    let texts: Vec<String> = match found.into_iter().next() {
        Some(row) => row.into_iter().map(Option::unwrap_or_default).collect(),
        None => {
            return Err(lasting(format!(
                "there is no table {table}, or the role may not see it"
            )));
        }
    };
    let [oid, kind, identity, rows, persistence] = &texts[..] else {
        return Err(lasting("pg_class answers in an unknown form".to_owned()));
    };
    if !matches!(&**kind, "r" | "p") || persistence != "p" {
        return Err(lasting(format!(
            "{table} is no permanent table: views, foreign, temporary and unlogged tables are not \
             in the log"
        )));
    }
    let (full, literal_identity) = (identity == "f", literal(identity));
    let columns = session
        .rows(&format!(
            "SELECT a.attname, a.atttypid, a.atttypmod,
                    format_type(coalesce(nullif(t.typbasetype, 0), t.oid),
                                CASE WHEN t.typbasetype = 0 THEN a.atttypmod ELSE t.typtypmod END),
                    a.attnotnull, a.attgenerated <> '',
                    array_position(i.indkey::int2[], a.attnum),
                    {full} OR EXISTS (SELECT FROM pg_index x WHERE x.indrelid = a.attrelid
                        AND CASE {literal_identity} WHEN 'i' THEN x.indisreplident ELSE x.indisprimary END
                        AND x.indisvalid AND x.indimmediate
                        AND a.attnum = ANY (x.indkey::int2[]))
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
                  AND i.indisvalid AND i.indimmediate
             WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
        ))
        .await?;
    let columns = columns.into_iter().filter_map(|row| {
        let text = |at| text(&row, at);
        Some(TableColumn {
            name: text(0)?.to_owned(),
            type_id: text(1)?.parse().ok()?,
            modifier: text(2)?.parse().ok()?,
            type_name: text(3)?.to_owned(),
            is_not_null: text(4)? == "t",
            is_generated: text(5)? == "t",
            in_key: text(6).and_then(|at| at.parse().ok()),
            is_identity: text(7)? == "t",
        })
    });
    Ok(TableFacts {
        id: oid.parse().unwrap_or_default(),
        is_partitioned: kind == "p",
        columns: columns.collect(),
        identity: identity.clone(),
        rows: rows.parse().unwrap_or(-1),
    })
}

impl TableFacts {
    /// Whether the source can be true to the table; `is_first`: before its first copy, when a column
    /// that is not there is an error of the statement and not a change of the table.
    pub(super) fn check(
        &self,
        table: &TableName,
        declared: &Schema,
        is_first: bool,
    ) -> Result<(), Failure> {
        let has_key = self.columns.iter().any(|column| column.in_key.is_some());
        let is_refused = match &*self.identity {
            "n" => true,
            "d" => !has_key,
            _ => false,
        };
        if is_refused {
            return Err(Failure::Lasting(format!(
                "{table} has no replica identity: once published, PostgreSQL would refuse the \
                 application's own UPDATE and DELETE; give it a primary key, or \
                 ALTER TABLE {table} REPLICA IDENTITY FULL"
            )));
        }
        for (at, column) in declared.columns.iter().enumerate() {
            let name = &column.name;
            let is_key = declared.key.contains(&at);
            let detail = match self.column(name) {
                None if is_first || is_key || !column.nullable => {
                    format!("{table} has no column \"{name}\"")
                }
                Some(found) if found.is_generated => format!(
                    "column \"{name}\" of {table} is generated: PostgreSQL does not send it; \
                     compute it in a view"
                ),
                Some(found) if is_key && !found.is_identity => not_identity(table, name),
                _ => continue,
            };
            return Err(Failure::Lasting(detail));
        }
        if self.identity != "f" {
            let identity = self.columns.iter().filter(|column| column.is_identity);
            let names = identity.map(|column| column.name.as_str());
            check_key(table, declared, names)?;
        }
        Ok(())
    }

    /// A column by its name.
    pub(super) fn column(&self, name: &str) -> Option<&TableColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The columns of a source that declares none. The error says why a person must.
    pub(super) fn schema(&self, table: &TableName) -> Result<Schema, String> {
        let sent = self.columns.iter().filter(|column| !column.is_generated);
        let mut schema = Schema::default();
        let mut key: Vec<(usize, usize)> = Vec::new();
        for column in sent {
            let at = schema.columns.len();
            key.extend(column.in_key.map(|rank| (rank, at)));
            schema.columns.push(Column {
                name: column.name.clone(),
                sql_type: sql_type(&column.type_name, column.type_id),
                nullable: !column.is_not_null,
            });
        }
        key.sort_unstable();
        schema.key = key.into_iter().map(|(_, at)| at).collect();
        match schema.key.is_empty() {
            true => Err(format!(
                "{table} has no primary key: declare the columns, with PRIMARY KEY at those that \
                 are its replica identity"
            )),
            false => Ok(schema),
        }
    }
}

/// Whether the declared key is the whole identity: of a part of it, rows would fall together.
pub(super) fn check_key<'a>(
    table: &TableName,
    declared: &Schema,
    identity: impl Iterator<Item = &'a str>,
) -> Result<(), Failure> {
    let mut key = declared.key.iter().map(|at| &declared.columns[*at].name);
    let missing = identity.filter(|name| !key.clone().any(|key| key == name));
    let missing: Vec<&str> = missing.collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::Lasting(format!(
            "the key of the source ({}) is only a part of the replica identity of {table}, which also \
             has {}: different rows would be one; declare the whole primary key",
            key.by_ref().cloned().collect::<Vec<_>>().join(", "),
            missing.join(", ")
        ))),
    }
}

/// Why a key column that is not in the replica identity makes a source impossible.
pub(super) fn not_identity(table: &TableName, column: &str) -> String {
    format!(
        "key column \"{column}\" of {table} is not in its replica identity: deletes and changes of \
         the key would not name their row; ALTER TABLE {table} REPLICA IDENTITY DEFAULT or FULL, \
         or declare the identity's columns as the source's primary key"
    )
}

/// The column type that keeps a type's values whole; text where none does.
fn sql_type(name: &str, type_id: u32) -> SqlType {
    let (base, arguments) = match name.split_once('(') {
        Some((base, rest)) => (base, rest.split(')').next().unwrap_or("")),
        None => (name, ""),
    };
    let mut numbers = arguments.split(',').map(|text| text.trim().parse::<i32>());
    let mut number = || numbers.next().and_then(Result::ok);
    // `timestamp(3) with time zone` has its argument in the middle.
    let with_zone = name.ends_with("with time zone");
    match base.trim_end() {
        "boolean" => SqlType::Boolean,
        "smallint" | "integer" => SqlType::Int4,
        "bigint" | "oid" => SqlType::Int8,
        "real" => SqlType::Float4,
        "double precision" => SqlType::Float8,
        "numeric" => match (number(), number()) {
            (Some(precision @ 1..=38), Some(scale)) if (0..=precision).contains(&scale) => {
                SqlType::Numeric(precision as u8, scale as i8)
            }
            // Digits without a bound have no column type but text.
            _ => SqlType::Text,
        },
        "bytea" => SqlType::Bytea,
        base if base.starts_with("timestamp") => match with_zone {
            true => SqlType::TimestampTz,
            false => SqlType::Timestamp,
        },
        "date" => SqlType::Date,
        "json" | "jsonb" => SqlType::Jsonb,
        "uuid" => SqlType::Uuid,
        "vector" | "public.vector" => match number() {
            Some(n) => SqlType::Vector(n.cast_unsigned()),
            None => SqlType::Text,
        },
        _ if element_of(type_id).is_some() => SqlType::Jsonb,
        _ => SqlType::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_keep_their_values_whole() {
        let cases = [
            ("boolean", SqlType::Boolean),
            ("smallint", SqlType::Int4),
            ("numeric(10,2)", SqlType::Numeric(10, 2)),
            ("numeric(5,-2)", SqlType::Text),
            ("numeric", SqlType::Text),
            ("numeric(60,2)", SqlType::Text),
            ("timestamp with time zone", SqlType::TimestampTz),
            ("timestamp(3) with time zone", SqlType::TimestampTz),
            ("timestamp without time zone", SqlType::Timestamp),
            ("time without time zone", SqlType::Text),
            ("character varying(20)", SqlType::Text),
            ("vector(384)", SqlType::Vector(384)),
            ("interval", SqlType::Text),
        ];
        for (name, expected) in cases {
            assert_eq!(sql_type(name, 0), expected, "{name}");
        }
        assert_eq!(sql_type("text[]", 1009), SqlType::Jsonb);
    }

    #[test]
    fn names_are_read_with_and_without_a_schema() {
        let table = TableName::parse("sales.\"Orders\"");
        assert_eq!(table.sql(), "\"sales\".\"Orders\"");
        assert_eq!(TableName::parse("docs").to_string(), "public.docs");
    }
}
