//! `CREATE INDEX name ON relation USING method (column)` and its clauses, in any order, each once:
//! `CHUNK BY`, `EMBED WITH`, `INCLUDE`, `KEY`, `WITH`.

use datafusion_sql::sqlparser::tokenizer::Token;
use engine::limits::EMBED_DEADLINE_MS;
use engine::model::{Schema, SqlType};

use super::catalog::{CatalogView, SEARCH_COLUMNS, relation_schema};
use super::cursor::{Cursor, Name, nearest};
use super::options::{Known, Options};
use super::statement::{choices, known, later, with_article};
use super::types::whole;
use crate::definition::{ChunkStrategy, Chunking, Definition, Fusion, IndexDef, ModelDef};
use crate::problem::{Position, Problem};

/// Longest chunk without `max_tokens`.
pub(super) const MAX_TOKENS_DEFAULT: u32 = 256;
/// A chunk must hold the special tokens and a few words.
const MAX_TOKENS_MIN: u64 = 16;
/// Longer than any encoder's window that is worth a chunk.
const MAX_TOKENS_MAX: u64 = 8_192;
/// Time travel without `RETAIN`.
pub(super) const RETAIN_DEFAULT_MICROS: u64 = 60_000_000;
const DAY_MICROS: u64 = 86_400_000_000;
/// Weight of the vector leg without `WEIGHT` (API §3).
pub(super) const WEIGHT_DEFAULT: f64 = 2.0 / 3.0;
/// What `ANALYZER` and `QUANTIZATION` are without the option.
pub(super) const ANALYZER_DEFAULT: &str = "english";
pub(super) const QUANTIZATION_DEFAULT: &str = "bf16";

const ANALYZERS: [&str; 19] = [
    "simple",
    "english",
    "arabic",
    "danish",
    "dutch",
    "finnish",
    "french",
    "german",
    "greek",
    "hungarian",
    "italian",
    "norwegian",
    "portuguese",
    "romanian",
    "russian",
    "spanish",
    "swedish",
    "tamil",
    "turkish",
];

const OPTIONS: Known = Known {
    what: "CREATE INDEX",
    names: &[
        "ANALYZER",
        "QUANTIZATION",
        "RETAIN",
        "EMBED DEADLINE",
        "FUSION",
        "WEIGHT",
    ],
    later: &["SHARDS", "REPLICAS"],
};

/// The clauses as they came.
#[derive(Default)]
struct Clauses {
    chunking: Option<(Chunking, Position)>,
    model: Option<Name>,
    include: Option<Vec<Name>>,
    key: Option<Vec<Name>>,
    options: Option<Options>,
}

/// Plans what stands behind the index's name.
pub(super) fn index(
    cursor: &mut Cursor<'_>,
    catalog: &dyn CatalogView,
) -> Result<IndexDef, Problem> {
    cursor.expect("ON")?;
    let on = cursor.name("a source's or view's name")?;
    cursor.expect("USING")?;
    let (vector, keyword) = method(cursor)?;
    let mut columns = cursor.names("the indexed column")?;
    let clauses = clauses(cursor)?;
    let schema = relation(catalog, &on)?;
    let column = columns.remove(0);
    if let Some(second) = columns.first() {
        let detail = "an index of several columns is not supported by this version";
        return Err(at(Problem::not_supported(detail), second.at)
            .hint("concatenate them in a view: a || ' ' || b AS body"));
    }
    let column_type = text_or_vector(&schema, &column, vector, keyword)?;
    let model = model(&clauses, vector, column_type, &column, catalog)?;
    let include = include(&clauses, &schema)?;
    check_key(&clauses, &schema, &on)?;
    let chunking = chunking(&clauses, vector && !keyword, column_type)?;
    let options = clauses.options.unwrap_or_default();
    leg_options(&options, vector, keyword)?;
    let analyzer = options
        .choice("ANALYZER", &ANALYZERS)?
        .unwrap_or(ANALYZER_DEFAULT);
    let quantization = match options.choice("QUANTIZATION", &["bf16", "f32", "i8"])? {
        Some("i8") => {
            let place = options.position("QUANTIZATION").unwrap_or(column.at);
            let detail = "QUANTIZATION 'i8' is not supported by this version";
            return Err(at(Problem::not_supported(detail), place).expected("'bf16' or 'f32'"));
        }
        other => other.unwrap_or(QUANTIZATION_DEFAULT),
    };
    let retain_micros = options
        .duration("RETAIN", 0..=3_650 * DAY_MICROS, "of at most 3650 days")?
        .unwrap_or(RETAIN_DEFAULT_MICROS);
    let deadline = options.duration("EMBED DEADLINE", 0..=DAY_MICROS, "of at most 1 day")?;
    Ok(IndexDef {
        source: base_source(catalog, &on.value),
        on: on.value,
        vector,
        keyword,
        column: column.value,
        chunking,
        model,
        include,
        analyzer: analyzer.to_owned(),
        quantization: quantization.to_owned(),
        retain_micros,
        embed_deadline_ms: deadline.map_or(EMBED_DEADLINE_MS, |micros| micros / 1_000),
        fusion: fusion(&options)?,
    })
}

fn at(problem: Problem, place: Position) -> Problem {
    problem.at(place.line, place.column)
}

/// `VECTOR`, `KEYWORD` or `HYBRID`, as `(vector, keyword)`.
fn method(cursor: &mut Cursor<'_>) -> Result<(bool, bool), Problem> {
    for (word, legs) in [
        ("HYBRID", (true, true)),
        ("VECTOR", (true, false)),
        ("KEYWORD", (false, true)),
    ] {
        if cursor.eat(word) {
            return Ok(legs);
        }
    }
    Err(cursor.unexpected(&["HYBRID", "VECTOR", "KEYWORD"]))
}

fn clauses(cursor: &mut Cursor<'_>) -> Result<Clauses, Problem> {
    let mut clauses = Clauses::default();
    while !cursor.is_done() {
        let place = cursor.position();
        let twice = |clause: &str, given: bool| match given {
            true => Err(
                at(Problem::syntax(format!("{clause} is given twice")), place)
                    .expected("each clause at most once"),
            ),
            false => Ok(()),
        };
        if cursor.eat_all(&["CHUNK", "BY"]) {
            twice("CHUNK BY", clauses.chunking.is_some())?;
            let place = cursor.position();
            clauses.chunking = Some((chunk_by(cursor)?, place));
        } else if cursor.eat_all(&["EMBED", "WITH"]) {
            twice("EMBED WITH", clauses.model.is_some())?;
            clauses.model = Some(cursor.name("a model's name")?);
        } else if cursor.eat("INCLUDE") {
            twice("INCLUDE", clauses.include.is_some())?;
            clauses.include = Some(cursor.names("a column's name")?);
        } else if cursor.eat("KEY") {
            twice("KEY", clauses.key.is_some())?;
            clauses.key = Some(cursor.names("a column's name")?);
        } else if cursor.eat("WITH") {
            twice("WITH", clauses.options.is_some())?;
            clauses.options = Some(Options::parse(cursor, &OPTIONS)?);
        } else if cursor.is("TENANT") {
            return Err(later(
                cursor,
                "TENANT BY",
                "INCLUDE the column and filter on it",
            ));
        } else if cursor.is("WHERE") {
            return Err(later(cursor, "WHERE in an index", "index a view"));
        } else {
            return Err(cursor.unexpected(&["CHUNK BY", "EMBED WITH", "INCLUDE", "KEY", "WITH"]));
        }
    }
    Ok(clauses)
}

/// `strategy(name => value, …)` or just the strategy.
fn chunk_by(cursor: &mut Cursor<'_>) -> Result<Chunking, Problem> {
    const STRATEGIES: [(&str, ChunkStrategy); 4] = [
        ("markdown", ChunkStrategy::Markdown),
        ("recursive", ChunkStrategy::Recursive),
        ("fixed", ChunkStrategy::Fixed),
        ("none", ChunkStrategy::None),
    ];
    let Some((name, strategy)) = STRATEGIES.iter().find(|(name, _)| cursor.eat(name)) else {
        return Err(cursor.unexpected(&STRATEGIES.map(|(name, _)| name)));
    };
    let mut chunking = Chunking {
        strategy: *strategy,
        max_tokens: MAX_TOKENS_DEFAULT,
        overlap: 0,
        heading_prefix: false,
    };
    if !cursor.is_token(&Token::LParen) {
        return Ok(chunking);
    }
    let known: &[&str] = match strategy {
        ChunkStrategy::Markdown => &["max_tokens", "headings"],
        ChunkStrategy::Recursive | ChunkStrategy::Fixed => &["max_tokens", "overlap"],
        ChunkStrategy::None => &[],
    };
    let mut inner = cursor.group("(")?;
    let mut seen: Vec<String> = Vec::new();
    while !inner.is_done() {
        let option = inner.name("an option's name")?;
        if !known.contains(&&*option.value) {
            let detail = format!("{name} has no option {}", option.value);
            let problem = at(Problem::invalid(detail), option.at);
            let problem = match known.is_empty() {
                true => problem.expected("no options"),
                false => problem.expected(choices(known)),
            };
            return Err(match nearest(&option.value, known.iter().copied()) {
                Some(near) => problem.hint(format!("did you mean {near}?")),
                None => problem,
            });
        }
        if seen.contains(&option.value) {
            return Err(at(
                Problem::syntax(format!("{} is given twice", option.value)),
                option.at,
            ));
        }
        if !inner.eat_token(&Token::RArrow) && !inner.eat_token(&Token::Eq) {
            return Err(inner.unexpected(&["\"=>\""]));
        }
        chunk_option(&mut inner, &option.value, &mut chunking)?;
        seen.push(option.value);
        if !inner.eat_token(&Token::Comma) {
            inner.finish(&["\",\"", "\")\""])?;
        } else if inner.is_done() {
            return Err(inner.unexpected(&["an option's name"]));
        }
    }
    if chunking.overlap >= chunking.max_tokens {
        let place = cursor.position();
        let detail = format!(
            "overlap {} leaves no room in chunks of {} tokens",
            chunking.overlap, chunking.max_tokens
        );
        return Err(at(Problem::invalid(detail), place).expected("overlap below max_tokens"));
    }
    Ok(chunking)
}

fn chunk_option(
    inner: &mut Cursor<'_>,
    option: &str,
    chunking: &mut Chunking,
) -> Result<(), Problem> {
    let place = inner.position();
    if option == "headings" {
        let value = match inner.is("prefix") || inner.is("metadata") {
            true => inner.name("'metadata' or 'prefix'")?.value,
            false => inner.string("'metadata' or 'prefix'")?,
        };
        chunking.heading_prefix = match &*value {
            "prefix" => true,
            "metadata" => false,
            _ => {
                let problem = Problem::invalid(format!("headings cannot be '{value}'"));
                return Err(at(problem, place).expected("'metadata' or 'prefix'"));
            }
        };
        return Ok(());
    }
    let (least, most) = match option {
        "max_tokens" => (MAX_TOKENS_MIN, MAX_TOKENS_MAX),
        _ => (0, MAX_TOKENS_MAX - 1),
    };
    let number = whole(inner, &format!("a whole number from {least} to {most}"))?;
    if !(least..=most).contains(&number) {
        let problem = Problem::invalid(format!("{option} cannot be {number}"));
        return Err(at(problem, place).expected(format!("a whole number from {least} to {most}")));
    }
    let number = u32::try_from(number).expect("at most MAX_TOKENS_MAX");
    if option == "max_tokens" {
        chunking.max_tokens = number
    } else {
        chunking.overlap = number
    }
    Ok(())
}

fn relation(catalog: &dyn CatalogView, on: &Name) -> Result<Schema, Problem> {
    let object = known(catalog, &on.value, on.at, "a source or a view")?;
    let kind = object.definition.kind();
    match relation_schema(catalog, &on.value).filter(|_| matches!(kind, "source" | "view")) {
        Some(schema) => Ok(schema),
        None => Err(at(
            Problem::invalid(format!("\"{}\" is {}", on.value, with_article(kind))),
            on.at,
        )
        .expected("a source or a view")),
    }
}

/// The position of a column, or an error that lists the columns.
fn column_of(schema: &Schema, name: &Name) -> Result<usize, Problem> {
    schema.position(&name.value).ok_or_else(|| {
        let names: Vec<&str> = schema.columns.iter().map(|column| &*column.name).collect();
        let problem = at(
            Problem::invalid(format!(
                "there is no column \"{}\" in this relation",
                name.value
            )),
            name.at,
        )
        .expected(format!("one of {}", names.join(", ")));
        match nearest(&name.value, names) {
            Some(near) => problem.hint(format!("did you mean \"{near}\"?")),
            None => problem,
        }
    })
}

fn text_or_vector(
    schema: &Schema,
    column: &Name,
    vector: bool,
    keyword: bool,
) -> Result<SqlType, Problem> {
    let sql_type = schema.columns[column_of(schema, column)?].sql_type;
    match sql_type {
        SqlType::Text => Ok(sql_type),
        SqlType::Vector(_) if vector && !keyword => Ok(sql_type),
        SqlType::Vector(_) => Err(at(
            Problem::invalid(format!(
                "column \"{}\" is a vector: it has no words",
                column.value
            )),
            column.at,
        )
        .expected("USING VECTOR")),
        other => Err(at(
            Problem::invalid(format!("column \"{}\" is of type {other}", column.value)),
            column.at,
        )
        .expected(if keyword {
            "a TEXT column"
        } else {
            "a TEXT or VECTOR(n) column"
        })
        .hint("cast it in a view: CAST(… AS TEXT)")),
    }
}

fn model(
    clauses: &Clauses,
    vector: bool,
    column_type: SqlType,
    column: &Name,
    catalog: &dyn CatalogView,
) -> Result<Option<String>, Problem> {
    let name = match (&clauses.model, vector) {
        (None, false) => return Ok(None),
        (Some(name), false) => {
            return Err(
                at(Problem::invalid("a KEYWORD index has no vectors"), name.at)
                    .expected("no EMBED WITH")
                    .hint("write USING HYBRID"),
            );
        }
        (None, true) => {
            return Err(at(
                Problem::invalid("an index with a vector leg needs a model"),
                column.at,
            )
            .expected("EMBED WITH model")
            .hint("CREATE MODEL minilm FROM 'sentence-transformers/all-MiniLM-L6-v2'"));
        }
        (Some(name), true) => name,
    };
    let object = known(catalog, &name.value, name.at, "a model")?;
    let Definition::Model(model) = object.definition else {
        let kind = with_article(object.definition.kind());
        return Err(at(
            Problem::invalid(format!("\"{}\" is {kind}", name.value)),
            name.at,
        )
        .expected("a model"));
    };
    let wrong = |detail: String| Err(at(Problem::invalid(detail), name.at));
    match (model, column_type) {
        (ModelDef::Column { dimensions }, SqlType::Vector(n)) if dimensions != n => wrong(format!(
            "model \"{}\" has {dimensions} dimensions, column \"{}\" {n}",
            name.value, column.value
        )),
        (ModelDef::Column { .. }, SqlType::Text) => {
            wrong(format!("model \"{}\" cannot read texts", name.value))
                .map_err(|problem| problem.expected("a model of texts, or a VECTOR(n) column"))
        }
        (ModelDef::Pretrained { .. } | ModelDef::Remote(_), SqlType::Vector(_)) => {
            wrong(format!("column \"{}\" has vectors already", column.value))
                .map_err(|problem| problem.expected("a model FROM COLUMN WITH (DIMENSIONS n)"))
        }
        _ => Ok(Some(name.value.clone())),
    }
}

fn include(clauses: &Clauses, schema: &Schema) -> Result<Vec<String>, Problem> {
    let mut out: Vec<String> = Vec::new();
    for name in clauses.include.iter().flatten() {
        let column = column_of(schema, name)?;
        if SEARCH_COLUMNS.contains(&&*name.value) {
            let detail = format!("an included column cannot be called \"{}\"", name.value);
            return Err(at(Problem::invalid(detail), name.at)
                .expected(format!("a name other than {}", choices(&SEARCH_COLUMNS)))
                .hint(format!(
                    "rename it in a view: {0} AS {0}_of_row",
                    name.value
                )));
        }
        if out.contains(&name.value) {
            let detail = format!("\"{}\" is included twice", name.value);
            return Err(at(Problem::invalid(detail), name.at));
        }
        if let SqlType::Vector(_) = schema.columns[column].sql_type {
            let detail = "a vector cannot be included";
            return Err(at(Problem::invalid(detail), name.at));
        }
        out.push(name.value.clone());
    }
    Ok(out)
}

/// A declared key must be the derived one: there is no other uniqueness to check against yet.
fn check_key(clauses: &Clauses, schema: &Schema, on: &Name) -> Result<(), Problem> {
    let derived: Vec<&str> = schema
        .key
        .iter()
        .map(|at| &*schema.columns[*at].name)
        .collect();
    if derived.is_empty() {
        let detail = format!("the rows of \"{}\" have no unique key", on.value);
        return Err(at(Problem::invalid(detail), on.at)
            .expected("a relation whose key columns come through"));
    }
    let Some(declared) = &clauses.key else {
        return Ok(());
    };
    let mut positions = Vec::new();
    for name in declared {
        positions.push(column_of(schema, name)?);
    }
    positions.sort_unstable();
    if positions == schema.key {
        return Ok(());
    }
    let detail = "a KEY other than the relation's own is not supported by this version";
    Err(at(Problem::not_supported(detail), declared[0].at)
        .expected(format!("KEY ({})", derived.join(", "))))
}

fn chunking(
    clauses: &Clauses,
    only_vector: bool,
    column_type: SqlType,
) -> Result<Chunking, Problem> {
    let default = Chunking {
        strategy: if only_vector {
            ChunkStrategy::None
        } else {
            ChunkStrategy::Recursive
        },
        max_tokens: MAX_TOKENS_DEFAULT,
        overlap: 0,
        heading_prefix: false,
    };
    match &clauses.chunking {
        None => Ok(default),
        Some((chunking, place))
            if matches!(column_type, SqlType::Vector(_))
                && chunking.strategy != ChunkStrategy::None =>
        {
            Err(at(
                Problem::invalid("a vector cannot be cut into chunks"),
                *place,
            )
            .expected("CHUNK BY none"))
        }
        Some((chunking, _)) => Ok(chunking.clone()),
    }
}

/// An option of a leg that the index does not have is an error, not ignored.
fn leg_options(options: &Options, vector: bool, keyword: bool) -> Result<(), Problem> {
    let rules = [
        ("ANALYZER", keyword, "KEYWORD or HYBRID"),
        ("QUANTIZATION", vector, "VECTOR or HYBRID"),
        ("EMBED DEADLINE", vector, "VECTOR or HYBRID"),
        ("FUSION", vector && keyword, "HYBRID"),
        ("WEIGHT", vector && keyword, "HYBRID"),
    ];
    for (name, fits, methods) in rules {
        if let Some(place) = options.position(name).filter(|_| !fits) {
            let detail = format!("option {name} has no meaning for this index");
            return Err(at(Problem::invalid(detail), place).expected(format!("USING {methods}")));
        }
    }
    Ok(())
}

fn fusion(options: &Options) -> Result<Fusion, Problem> {
    let fusion = options.choice("FUSION", &["convex", "rrf"])?;
    let weight = options.float("WEIGHT", "a number from 0 to 1", |x| {
        (0.0..=1.0).contains(&x)
    })?;
    match (fusion, weight) {
        (Some("rrf"), Some(_)) => {
            let place = options.position("WEIGHT").expect("given");
            Err(at(
                Problem::invalid("option WEIGHT has no meaning for FUSION 'rrf'"),
                place,
            )
            .expected("FUSION 'convex'"))
        }
        (Some("rrf"), None) => Ok(Fusion::Rrf),
        (_, weight) => Ok(Fusion::Convex {
            weight: weight.unwrap_or(WEIGHT_DEFAULT),
        }),
    }
}

/// The base source when the key comes from exactly one: views read one relation each.
fn base_source(catalog: &dyn CatalogView, on: &str) -> String {
    let mut name = on.to_owned();
    while let Some(Definition::View(view)) = catalog.object(&name).map(|object| object.definition) {
        name = view.from;
    }
    name
}
