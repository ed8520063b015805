//! Running a planned `SELECT`: from a relation's rows to the reply's.
//!
//! Filter, outputs, order, offset, limit, JSON, in this order. A pure function of the plan; the rows
//! may come from one worker or be gathered from all.

use std::cmp::Ordering;

use engine::error::DataError;
use engine::limits::SQL_ROWS_MAX;
use engine::model::{Row, RowCodec, Time, Value};
use serde_json::Value as Json;

use super::plan::{From, SelectPlan, SortKey};
use super::program::RowProgram;
use super::select::row_problem;
use crate::problem::Problem;

/// A compiled [`SelectPlan`].
#[derive(Debug)]
pub struct SelectProgram {
    program: RowProgram,
    order_by: Vec<SortKey>,
    limit: Option<u64>,
    offset: u64,
    visible: usize,
    without_from: bool,
}

impl SelectPlan {
    /// Compiles the program; a pure function of the plan.
    pub fn compile(&self) -> Result<SelectProgram, Problem> {
        let (program, _) = RowProgram::compile(&self.program)?;
        Ok(SelectProgram {
            program,
            order_by: self.order_by.clone(),
            limit: self.limit,
            offset: self.offset,
            visible: self.columns.len(),
            without_from: self.from == From::Values,
        })
    }

    /// Whether rows may be cut off as soon as `offset + limit` of them passed.
    pub fn is_unordered(&self) -> bool {
        self.order_by.is_empty()
    }
}

impl SelectProgram {
    /// The row program alone, for running it on the workers.
    pub fn program(&self) -> &RowProgram {
        &self.program
    }

    /// From the relation's rows to the reply's: filter, outputs, order, offset, limit, JSON.
    /// Without `FROM`, `rows` is not looked at.
    ///
    /// # Errors
    /// The first row's error (`division-by-zero`, …) is the question's; so is a reply of more than
    /// [`SQL_ROWS_MAX`] rows.
    pub fn rows(&self, rows: &[Row], now: Time) -> Result<Vec<Vec<Json>>, Problem> {
        let results = match self.without_from {
            true => vec![self.program.apply_to_nothing(now)],
            false => self.program.apply(rows, now),
        };
        let passed: Result<Vec<Option<Row>>, DataError> = results.into_iter().collect();
        let passed: Vec<Row> = passed
            .map_err(|error| row_problem(&error))?
            .into_iter()
            .flatten()
            .collect();
        self.finish(&passed)
    }

    /// From the program's outputs (gathered from all workers) to the reply's rows.
    pub fn finish(&self, outputs: &[Row]) -> Result<Vec<Vec<Json>>, Problem> {
        let schema = self.program.schema();
        let codec = RowCodec::new(schema.clone()).expect("compiled before");
        let mut rows: Vec<Vec<Value>> = outputs.iter().map(|row| codec.unpack(row)).collect();
        if !self.order_by.is_empty() {
            rows.sort_by(|a, b| self.compare(a, b));
        }
        let skip = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let take = self
            .limit
            .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let left = rows.len().saturating_sub(skip).min(take);
        if left > SQL_ROWS_MAX {
            return Err(Problem::new(
                413,
                "too-many-rows",
                format!("the reply would have {left} rows; the limit is {SQL_ROWS_MAX}"),
            )
            .hint("add LIMIT and OFFSET, or a narrower WHERE"));
        }
        let json = |row: Vec<Value>| {
            let columns = schema.columns.iter().take(self.visible);
            columns
                .zip(&row)
                .map(|(column, value)| value.to_json(column.sql_type))
                .collect()
        };
        Ok(rows.into_iter().skip(skip).take(take).map(json).collect())
    }

    fn compare(&self, a: &[Value], b: &[Value]) -> Ordering {
        for key in &self.order_by {
            let (a, b) = (&a[key.output], &b[key.output]);
            let order = match (a, b) {
                (Value::Null, Value::Null) => Ordering::Equal,
                (Value::Null, _) if key.nulls_first => Ordering::Less,
                (Value::Null, _) => Ordering::Greater,
                (_, Value::Null) if key.nulls_first => Ordering::Greater,
                (_, Value::Null) => Ordering::Less,
                _ if key.descending => value_order(b, a),
                _ => value_order(a, b),
            };
            if order.is_ne() {
                return order;
            }
        }
        Ordering::Equal
    }
}

/// The order of two values of one type; texts by bytes, NaN above all numbers (PostgreSQL).
fn value_order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Int(a), Value::Int(b)) | (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
        (Value::Float(a), Value::Float(b)) => a
            .partial_cmp(b)
            .unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())),
        (Value::Numeric(a, _), Value::Numeric(b, _)) => a.cmp(b),
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Date(a), Value::Date(b)) => a.cmp(b),
        _ => Ordering::Equal,
    }
}
