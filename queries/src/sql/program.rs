//! Row programs: a filter and outputs, compiled once, run over batches of packed rows.
//!
//! ```text
//! [Row] ─unpack─▶ columns + now() ─filter─▶ those that pass ─outputs─▶ columns ─pack─▶ [Row]
//!                      └─ a batch with an error is halved until the bad row stands alone
//! ```
//!
//! Law: the result of a row is what the program gives for that row alone. A batch without an error
//! gives exactly that; a batch with one is split, so one bad row (a division by zero, a bad cast)
//! is that row's [`DataError`] and nobody else's. Cost: n rows with b bad ones take
//! O(b · log n) evaluations more.
//!
//! [`ProgramSpec`] is the serialisable form; compiling it is a pure function.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray,
};
use arrow_schema::SchemaRef;
use datafusion_common::DataFusionError;
use datafusion_common::arrow::compute::{filter_record_batch, prep_null_mask_filter};
use datafusion_physical_expr::PhysicalExpr;
use engine::error::DataError;
use engine::model::{Column, Row, RowCodec, Schema, SqlType, Time};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::ast::parse_expr_text;
use super::expr::{Scope, Typed, batch_schema, message};
use crate::problem::Problem;

/// A program as text: what plans carry between processes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProgramSpec {
    /// The columns that come in.
    pub input: Schema,
    /// Rows pass when this is true (not when it is NULL).
    pub filter: Option<String>,
    /// Names and expressions of the columns that go out.
    pub outputs: Vec<(String, String)>,
    /// Values of `$1`, …
    pub params: Vec<Json>,
}

/// A compiled [`ProgramSpec`]. `Send + Sync`; share it by `Arc`.
#[derive(Debug)]
pub struct RowProgram {
    core: Core,
    outputs: Vec<Arc<dyn PhysicalExpr>>,
    output: RowCodec,
}

/// A compiled condition over packed rows.
#[derive(Debug)]
pub struct FilterProgram {
    core: Core,
}

/// What both programs share: unpacking, time, the filter.
#[derive(Debug)]
struct Core {
    input: RowCodec,
    batch: SchemaRef,
    filter: Option<Arc<dyn PhysicalExpr>>,
}

impl RowProgram {
    /// Compiles. The second part is the schema that comes out; its key is the input's if all key
    /// columns come through as plain columns, else empty.
    ///
    /// # Errors
    /// 400 and 422, with the place in the expression's own text.
    pub fn compile(spec: &ProgramSpec) -> Result<(RowProgram, Schema), Problem> {
        let scope = Scope::new(&spec.input)?;
        let filter = match &spec.filter {
            Some(text) => Some(scope.plan_condition(&parse_expr_text(text)?, &spec.params)?),
            None => None,
        };
        let mut outputs = Vec::with_capacity(spec.outputs.len());
        for (name, text) in &spec.outputs {
            outputs.push((
                name.as_str(),
                scope.plan(&parse_expr_text(text)?, &spec.params)?,
            ));
        }
        RowProgram::of_typed(&scope, filter.as_ref(), &outputs)
    }

    /// Compiles what is planned already.
    pub(super) fn of_typed(
        scope: &Scope,
        filter: Option<&Typed>,
        outputs: &[(&str, Typed)],
    ) -> Result<(RowProgram, Schema), Problem> {
        let schema = output_schema(&scope.schema, outputs);
        let compiled: Result<Vec<_>, Problem> = outputs
            .iter()
            .map(|(_, typed)| scope.compile(&typed.expr))
            .collect();
        let program = RowProgram {
            core: Core::new(scope, filter)?,
            outputs: compiled?,
            output: codec(&schema)?,
        };
        Ok((program, schema))
    }

    /// The schema that goes in.
    pub fn input_schema(&self) -> &Schema {
        self.core.input.schema()
    }

    /// The schema that comes out.
    pub fn schema(&self) -> &Schema {
        self.output.schema()
    }

    /// Runs the program: `Ok(None)` for a row that the filter holds back. One result a row, in
    /// order. `now` is what `now()` means.
    pub fn apply(&self, rows: &[Row], now: Time) -> Vec<Result<Option<Row>, DataError>> {
        let Some(batch) = self.core.batch(rows, now) else {
            return Vec::new();
        };
        let mut out = Vec::with_capacity(rows.len());
        self.halve(&batch, &mut out);
        out
    }

    /// Runs the program over one row without columns: a query without `FROM`.
    pub fn apply_to_nothing(&self, now: Time) -> Result<Option<Row>, DataError> {
        let batch = self.core.batch_of(Vec::new(), 1, now);
        let mut out = Vec::with_capacity(1);
        self.halve(&batch, &mut out);
        out.pop().expect("one row in, one result out")
    }

    fn halve(&self, batch: &RecordBatch, out: &mut Vec<Result<Option<Row>, DataError>>) {
        match self.run(batch) {
            Ok(rows) => out.extend(rows.into_iter().map(Ok)),
            Err(error) if batch.num_rows() == 1 => out.push(Err(data_error(&error))),
            Err(_) => {
                let middle = batch.num_rows() / 2;
                self.halve(&batch.slice(0, middle), out);
                self.halve(&batch.slice(middle, batch.num_rows() - middle), out);
            }
        }
    }

    fn run(&self, batch: &RecordBatch) -> Result<Vec<Option<Row>>, DataFusionError> {
        let rows = batch.num_rows();
        let Some(mask) = self.core.mask(batch)? else {
            return Ok(self.project(batch)?.into_iter().map(Some).collect());
        };
        let passing = filter_record_batch(batch, &mask)?;
        let mut packed = match passing.num_rows() {
            0 => Vec::new(),
            _ => self.project(&passing)?,
        }
        .into_iter();
        Ok((0..rows)
            .map(|row| if mask.value(row) { packed.next() } else { None })
            .collect())
    }

    fn project(&self, batch: &RecordBatch) -> Result<Vec<Row>, DataFusionError> {
        let arrays: Result<Vec<ArrayRef>, DataFusionError> = self
            .outputs
            .iter()
            .map(|output| output.evaluate(batch)?.into_array(batch.num_rows()))
            .collect();
        Ok(self.output.pack_arrays(&arrays?))
    }
}

impl FilterProgram {
    /// Evaluates the condition: NULL and errors are false. One result a row, in order.
    pub fn matches(&self, rows: &[&Row], now: Time) -> Vec<bool> {
        let Some(batch) = self.core.batch(rows.iter().copied(), now) else {
            return Vec::new();
        };
        let mut out = Vec::with_capacity(rows.len());
        // An error is false here; `try_matches` is for those who want to know.
        let _ = self.halve(&batch, &mut out, &mut |_| Ok(false));
        out
    }

    /// Evaluates the condition; the first row with an error ends it.
    pub fn try_matches(&self, rows: &[&Row], now: Time) -> Result<Vec<bool>, DataError> {
        let Some(batch) = self.core.batch(rows.iter().copied(), now) else {
            return Ok(Vec::new());
        };
        let mut out = Vec::with_capacity(rows.len());
        self.halve(&batch, &mut out, &mut Err)?;
        Ok(out)
    }

    fn halve(
        &self,
        batch: &RecordBatch,
        out: &mut Vec<bool>,
        on_error: &mut impl FnMut(DataError) -> Result<bool, DataError>,
    ) -> Result<(), DataError> {
        match self.core.mask(batch) {
            Ok(Some(mask)) => out.extend(mask.values().iter()),
            Ok(None) => out.resize(out.len() + batch.num_rows(), true),
            Err(error) if batch.num_rows() == 1 => out.push(on_error(data_error(&error))?),
            Err(_) => {
                let middle = batch.num_rows() / 2;
                self.halve(&batch.slice(0, middle), out, on_error)?;
                self.halve(
                    &batch.slice(middle, batch.num_rows() - middle),
                    out,
                    on_error,
                )?;
            }
        }
        Ok(())
    }
}

/// Compiles a request's `where` over an index's included columns (see
/// [`include_schema`](super::include_schema)).
///
/// # Errors
/// 400 and 422 with the place in the predicate; also for volatile functions.
pub fn filter_program(
    predicate: &str,
    params: &[Json],
    include: &Schema,
) -> Result<FilterProgram, Problem> {
    let mut expr = parse_expr_text(predicate)?;
    super::ast::canonical(&mut expr, &[])?;
    let scope = Scope::new(include)?;
    let typed = scope.plan_condition(&expr, params)?;
    if let Some(name) = &typed.volatile {
        return Err(
            Problem::invalid(format!("{name}() changes from call to call"))
                .expected("a condition that depends on included columns only"),
        );
    }
    Ok(FilterProgram {
        core: Core::new(&scope, Some(&typed))?,
    })
}

impl Core {
    fn new(scope: &Scope, filter: Option<&Typed>) -> Result<Core, Problem> {
        Ok(Core {
            input: codec(&scope.schema)?,
            batch: Arc::new(batch_schema(&scope.schema)),
            filter: filter.map(|typed| scope.compile(&typed.expr)).transpose()?,
        })
    }

    /// Unpacks rows; `None` when there are none.
    fn batch<'a>(
        &self,
        rows: impl IntoIterator<Item = &'a Row, IntoIter: ExactSizeIterator>,
        now: Time,
    ) -> Option<RecordBatch> {
        let rows = rows.into_iter();
        let count = rows.len();
        if count == 0 {
            return None;
        }
        let columns = match self.input.schema().columns.is_empty() {
            true => Vec::new(),
            false => self
                .input
                .unpack_arrays(rows)
                .expect("rows of this program's schema"),
        };
        Some(self.batch_of(columns, count, now))
    }

    fn batch_of(&self, mut columns: Vec<ArrayRef>, count: usize, now: Time) -> RecordBatch {
        let micros = i64::try_from(now).unwrap_or(i64::MAX);
        let time = TimestampMicrosecondArray::from_value(micros, count).with_timezone("+00:00");
        columns.push(Arc::new(time));
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::clone(&self.batch), columns, &options)
            .expect("columns of the codec's types and length")
    }

    /// Which rows pass, without NULLs; `None` when there is no filter.
    fn mask(&self, batch: &RecordBatch) -> Result<Option<BooleanArray>, DataFusionError> {
        let Some(filter) = &self.filter else {
            return Ok(None);
        };
        let array = filter.evaluate(batch)?.into_array(batch.num_rows())?;
        let mask = array.as_boolean();
        Ok(Some(if mask.null_count() > 0 {
            prep_null_mask_filter(mask)
        } else {
            mask.clone()
        }))
    }
}

fn codec(schema: &Schema) -> Result<RowCodec, Problem> {
    RowCodec::new(schema.clone()).map_err(|error| Problem::invalid(error.to_string()))
}

/// Names and types of the outputs, with the key traced through plain columns.
fn output_schema(input: &Schema, outputs: &[(&str, Typed)]) -> Schema {
    // The input column that an output is, if it is one unchanged.
    let origin = |typed: &Typed| match &typed.expr {
        datafusion_expr::Expr::Column(column) => input.position(&column.name),
        _ => None,
    };
    let columns = outputs
        .iter()
        .map(|(name, typed)| Column {
            name: (*name).to_owned(),
            sql_type: typed.sql_type,
            nullable: origin(typed).is_none_or(|at| input.columns[at].nullable),
        })
        .collect();
    let key: Option<Vec<usize>> = input
        .key
        .iter()
        .map(|key| {
            outputs
                .iter()
                .position(|(_, typed)| origin(typed) == Some(*key))
        })
        .collect();
    Schema {
        columns,
        key: key.unwrap_or_default(),
    }
}

/// An evaluation's error as data.
fn data_error(error: &DataFusionError) -> DataError {
    let text = message(error);
    let folded = text.to_lowercase();
    if folded.contains("divide by zero") {
        DataError::new("division-by-zero", "division by zero")
            .hint("guard it: CASE WHEN b <> 0 THEN a / b END, or a / nullif(b, 0)")
    } else if folded.contains("cast") || folded.contains("parse") || folded.contains("parsing") {
        DataError::new("invalid-cast", text).hint("TRY_CAST gives NULL instead of an error")
    } else if folded.contains("overflow") {
        DataError::new("overflow", text)
    } else {
        DataError::new("expression-error", text)
    }
}

/// A type's place in a program: whether values of it can be ordered.
pub(super) fn is_sortable(sql_type: SqlType) -> bool {
    !matches!(sql_type, SqlType::Jsonb | SqlType::Vector(_))
}
