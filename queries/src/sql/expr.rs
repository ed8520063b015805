//! Expressions: names, types, functions and coercions by DataFusion's planner, over the columns of
//! one relation.
//!
//! ```text
//! tokens ─parser─▶ ast ─SqlToRel─▶ logical ─parameters, now()─▶ coerced ─simplified─▶ physical
//! ```
//!
//! `now()` is read from a hidden last column, so that one compiled program serves every time.
//! When an expression cannot be planned, its parts are tried from the inside out, and the error
//! points at the smallest part that fails.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use arrow_schema::{DataType, Field, FieldRef, Schema as ArrowSchema, TimeUnit};
use datafusion_common::config::ConfigOptions;
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_common::{
    Column as DfColumn, DFSchema, DataFusionError, ScalarValue, TableReference,
};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::planner::{ContextProvider, ExprPlanner, TypePlanner};
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::{
    AggregateUDF, Expr, ExprSchemable, HigherOrderUDF, ScalarUDF, TableSource, Volatility,
    WindowUDF,
};
use datafusion_optimizer::simplify_expressions::ExprSimplifier;
use datafusion_physical_expr::expressions::BinaryExpr;
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion_sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion_sql::sqlparser::ast::{self, Visit, Visitor};
use engine::model::{Schema, SqlType};
use serde_json::Value as Json;

use super::ast::start_of;
use super::cursor::nearest;
use super::types::{from_arrow, plan_cast_type};
use crate::problem::Problem;

/// The hidden column that carries `now()`.
pub(super) const NOW: &str = "now()";

fn now_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))
}

/// An expression over a scope, coerced and simplified.
#[derive(Debug, Clone)]
pub(super) struct Typed {
    pub expr: Expr,
    pub sql_type: SqlType,
    /// Names of the columns that it reads, `now()` left out.
    pub columns: Vec<String>,
    pub uses_now: bool,
    /// A volatile function's name.
    pub volatile: Option<String>,
}

/// The columns that expressions may name.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    pub schema: Schema,
    df: DFSchema,
}

impl Scope {
    /// The columns of a relation, and the hidden one.
    pub fn new(schema: &Schema) -> Result<Scope, Problem> {
        let arrow = batch_schema(schema);
        let df = DFSchema::try_from(arrow).map_err(|error| {
            Problem::invalid(format!("these columns do not make a relation: {error}"))
        })?;
        Ok(Scope {
            schema: schema.clone(),
            df,
        })
    }

    /// Plans an expression; parameters become literals.
    pub fn plan(&self, expr: &ast::Expr, params: &[Json]) -> Result<Typed, Problem> {
        reject_queries(expr)?;
        self.try_plan(expr, params)
            .map_err(|error| self.locate(expr, params, error))
    }

    /// Plans a condition.
    pub fn plan_condition(&self, expr: &ast::Expr, params: &[Json]) -> Result<Typed, Problem> {
        let mut typed = self.plan(expr, params)?;
        // A bare NULL has no type of its own; it lets nothing pass.
        if matches!(&typed.expr, Expr::Literal(value, _) if value.is_null()) {
            typed.expr = Expr::Literal(ScalarValue::Boolean(None), None);
            typed.sql_type = SqlType::Boolean;
        }
        if typed.sql_type == SqlType::Boolean {
            return Ok(typed);
        }
        let problem = Problem::invalid(format!("WHERE cannot be of type {}", typed.sql_type))
            .expected("a condition (boolean)");
        Err(placed(problem, expr))
    }

    /// Compiles for batches of [`batch_schema`]. Integers that leave their type are an error, as in
    /// PostgreSQL: by default they would wrap in silence.
    pub fn compile(&self, expr: &Expr) -> Result<Arc<dyn PhysicalExpr>, Problem> {
        let props = ExecutionProps::new();
        let checked = |node: Arc<dyn PhysicalExpr>| match node.downcast_ref::<BinaryExpr>() {
            Some(binary) => {
                let binary = binary.clone().with_fail_on_overflow(true);
                Ok(Transformed::yes(Arc::new(binary) as Arc<dyn PhysicalExpr>))
            }
            None => Ok(Transformed::no(node)),
        };
        create_physical_expr(expr, &self.df, &props, &PhysicalPlanningContext::default())
            .and_then(|compiled| compiled.transform_up(checked))
            .map(|compiled| compiled.data)
            .map_err(|error| Problem::invalid(message(&error)))
    }

    fn try_plan(&self, expr: &ast::Expr, params: &[Json]) -> Result<Typed, DataFusionError> {
        let context = context();
        let options = ParserOptions::new().with_map_string_types_to_utf8view(false);
        let planner = SqlToRel::new_with_options(context, options);
        let expr = planner.sql_to_expr(expr.clone(), &self.df, &mut PlannerContext::new())?;
        let mut facts = Facts {
            params,
            uses_now: false,
            volatile: None,
        };
        let expr = expr.transform_up(|node| facts.replace(node))?.data;
        let schema = Arc::new(self.df.clone());
        let simplifier = ExprSimplifier::new(
            SimplifyContext::builder()
                .with_schema(Arc::clone(&schema))
                .build(),
        );
        let expr = simplifier.coerce(expr, &schema)?;
        let expr = simplifier.simplify(expr)?;
        let expr = simplifier.coerce(expr, &schema)?;
        let mut columns: Vec<String> = expr
            .column_refs()
            .into_iter()
            .filter(|column| column.name != NOW)
            .map(|column| column.name.clone())
            .collect();
        columns.sort_unstable();
        let (sql_type, expr) = self.output(expr)?;
        Ok(Typed {
            expr,
            sql_type,
            columns,
            uses_now: facts.uses_now,
            volatile: facts.volatile,
        })
    }

    /// The type that comes out, with a cast where Arrow has more types than we do.
    fn output(&self, expr: Expr) -> Result<(SqlType, Expr), DataFusionError> {
        if let Expr::Column(column) = unaliased(&expr)
            && let Some(at) = self.schema.position(&column.name)
        {
            return Ok((self.schema.columns[at].sql_type, expr));
        }
        let data_type = expr.get_type(&self.df)?;
        let sql_type = from_arrow(&data_type).ok_or_else(|| {
            DataFusionError::Plan(format!("a value of type {data_type} has no place in a row"))
        })?;
        let target = sql_type.arrow();
        let expr = if data_type == target {
            expr
        } else {
            expr.cast_to(&target, &self.df)?
        };
        Ok((sql_type, expr))
    }

    /// The error of the smallest part that fails.
    fn locate(&self, expr: &ast::Expr, params: &[Json], error: DataFusionError) -> Problem {
        struct Parts<'s> {
            scope: &'s Scope,
            params: &'s [Json],
        }
        impl Visitor for Parts<'_> {
            type Break = Box<(ast::Expr, DataFusionError)>;
            fn post_visit_expr(&mut self, part: &ast::Expr) -> ControlFlow<Self::Break> {
                match self.scope.try_plan(part, self.params) {
                    Err(error) if start_of(part).is_some() => {
                        ControlFlow::Break(Box::new((part.clone(), error)))
                    }
                    _ => ControlFlow::Continue(()),
                }
            }
        }
        match expr.visit(&mut Parts {
            scope: self,
            params,
        }) {
            ControlFlow::Break(found) => placed(self.problem(&found.0, &found.1), &found.0),
            ControlFlow::Continue(()) => placed(self.problem(expr, &error), expr),
        }
    }

    fn problem(&self, part: &ast::Expr, error: &DataFusionError) -> Problem {
        match part {
            ast::Expr::Identifier(ident) => {
                let name = super::ast::folded(ident);
                let names: Vec<&str> = self
                    .schema
                    .columns
                    .iter()
                    .map(|column| &*column.name)
                    .collect();
                let problem = Problem::invalid(format!("there is no column \"{name}\" here"));
                let problem = if names.is_empty() {
                    problem.hint("a text is written in single quotes: 'like this'")
                } else {
                    problem.expected(format!("one of the columns {}", names.join(", ")))
                };
                match nearest(&name, names) {
                    Some(near) => problem.hint(format!("did you mean \"{near}\"?")),
                    None => problem,
                }
            }
            ast::Expr::Function(function) => self.function_problem(function, error),
            _ => Problem::invalid(message(error)),
        }
    }

    fn function_problem(&self, function: &ast::Function, error: &DataFusionError) -> Problem {
        let name = function.name.to_string().to_lowercase();
        if AGGREGATES.contains(&&*name) || function.over.is_some() {
            return Problem::not_supported(format!(
                "{name}() is not supported by this version: it needs more than one row"
            ))
            .hint("select the rows and aggregate them in the client");
        }
        if context().functions.contains_key(&*name) {
            return Problem::invalid(message(error));
        }
        let problem = Problem::invalid(format!("there is no function {name}()"));
        match nearest(&name, context().functions.keys().map(|name| &**name)) {
            Some(near) => problem.hint(format!("did you mean {near}()?")),
            None => problem,
        }
    }
}

const AGGREGATES: [&str; 16] = [
    "count",
    "sum",
    "min",
    "max",
    "avg",
    "array_agg",
    "string_agg",
    "bool_and",
    "bool_or",
    "every",
    "stddev",
    "variance",
    "row_number",
    "rank",
    "lag",
    "lead",
];

fn placed(problem: Problem, expr: &ast::Expr) -> Problem {
    match start_of(expr) {
        Some(at) if problem.position.is_none() => problem.at(at.line, at.column),
        _ => problem,
    }
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// A relation's columns as Arrow, all nullable (what is NOT NULL was checked where it entered),
/// with the hidden time last.
pub(super) fn batch_schema(schema: &Schema) -> ArrowSchema {
    let mut fields: Vec<Field> = schema
        .columns
        .iter()
        .map(|column| column.field().with_nullable(true))
        .collect();
    fields.push(Field::new(NOW, now_type(), false));
    ArrowSchema::new(fields)
}

/// Subqueries are refused before planning, with their place.
fn reject_queries(expr: &ast::Expr) -> Result<(), Problem> {
    struct Queries;
    impl Visitor for Queries {
        type Break = Box<Problem>;
        fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<Self::Break> {
            let problem = Problem::not_supported("a subquery is not supported by this version")
                .expected("columns, literals, functions and operators");
            ControlFlow::Break(Box::new(match start_of(query) {
                Some(at) => problem.at(at.line, at.column),
                None => problem,
            }))
        }
    }
    match expr.visit(&mut Queries) {
        ControlFlow::Break(problem) => Err(*problem),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// What is learnt while parameters and `now()` are replaced.
struct Facts<'p> {
    params: &'p [Json],
    uses_now: bool,
    volatile: Option<String>,
}

impl Facts<'_> {
    fn replace(&mut self, node: Expr) -> Result<Transformed<Expr>, DataFusionError> {
        match node {
            Expr::Placeholder(placeholder) => {
                let value = parameter(&placeholder.id, self.params)?;
                Ok(Transformed::yes(Expr::Literal(value, None)))
            }
            Expr::ScalarFunction(function) => {
                let now = || Expr::Column(DfColumn::new_unqualified(NOW));
                match function.func.name() {
                    "now" => {
                        self.uses_now = true;
                        Ok(Transformed::yes(now()))
                    }
                    "current_date" => {
                        self.uses_now = true;
                        let cast = datafusion_expr::cast(now(), DataType::Date32);
                        Ok(Transformed::yes(cast))
                    }
                    name => {
                        let volatility = function.func.signature().volatility;
                        if volatility == Volatility::Volatile {
                            self.volatile = Some(name.to_owned());
                        }
                        Ok(Transformed::no(Expr::ScalarFunction(function)))
                    }
                }
            }
            Expr::AggregateFunction(_) | Expr::WindowFunction(_) => Err(DataFusionError::Plan(
                "aggregates are not supported by this version".to_owned(),
            )),
            other => Ok(Transformed::no(other)),
        }
    }
}

/// The literal of `$n`.
fn parameter(id: &str, params: &[Json]) -> Result<ScalarValue, DataFusionError> {
    let number: usize = id.trim_start_matches('$').parse().unwrap_or(0);
    let Some(json) = number.checked_sub(1).and_then(|at| params.get(at)) else {
        return Err(DataFusionError::Plan(format!(
            "there is no parameter {id}: {} given",
            params.len()
        )));
    };
    Ok(match json {
        Json::Null => ScalarValue::Null,
        Json::Bool(value) => ScalarValue::Boolean(Some(*value)),
        Json::Number(number) => match number.as_i64() {
            Some(value) => ScalarValue::Int64(Some(value)),
            None => ScalarValue::Float64(number.as_f64()),
        },
        Json::String(text) => ScalarValue::Utf8(Some(text.clone())),
        other => ScalarValue::Utf8(Some(other.to_string())),
    })
}

/// A library's message as one line of ours.
pub(super) fn message(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let text = [
        "Error during planning: ",
        "This feature is not implemented: ",
        "Schema error: ",
        "Arrow error: ",
        "Execution error: ",
        "Optimizer rule",
        "SQL error: ",
    ]
    .iter()
    .fold(&*text, |text, prefix| {
        text.strip_prefix(prefix).unwrap_or(text)
    });
    let line = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("not possible");
    super::token::lower_first(line.trim().trim_end_matches('.'))
}

/// Whether an expression reads nothing but literals.
pub(super) fn is_constant(typed: &Typed) -> bool {
    let mut constant = typed.columns.is_empty() && !typed.uses_now && typed.volatile.is_none();
    let _ = typed.expr.apply(|node| {
        constant &= !matches!(node, Expr::Column(_));
        Ok(TreeNodeRecursion::Continue)
    });
    constant
}

/// Functions, planners and options: made once.
struct Context {
    functions: HashMap<String, Arc<ScalarUDF>>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    types: Arc<dyn TypePlanner>,
    options: ConfigOptions,
}

fn context() -> &'static Context {
    static CONTEXT: OnceLock<Context> = OnceLock::new();
    CONTEXT.get_or_init(|| {
        let mut functions = HashMap::new();
        for function in datafusion_functions::all_default_functions() {
            for alias in function.aliases() {
                functions.insert(alias.clone(), Arc::clone(&function));
            }
            functions.insert(function.name().to_owned(), function);
        }
        // They look at the process or the wall clock, or show Arrow's types.
        for hidden in [
            "current_time",
            "arrow_typeof",
            "arrow_cast",
            "arrow_metadata",
            "version",
        ] {
            functions.remove(hidden);
        }
        let mut options = ConfigOptions::new();
        options.sql_parser.map_string_types_to_utf8view = false;
        Context {
            functions,
            planners: vec![
                Arc::new(datafusion_functions::core::planner::CoreFunctionPlanner::default()),
                Arc::new(datafusion_functions::unicode::planner::UnicodeFunctionPlanner),
                Arc::new(datafusion_functions::datetime::planner::DatetimeFunctionPlanner),
            ],
            types: Arc::new(CastTypes),
            options,
        }
    })
}

/// Types of casts and typed literals: ours, in microseconds.
#[derive(Debug)]
struct CastTypes;

impl TypePlanner for CastTypes {
    fn plan_type_field(
        &self,
        sql_type: &ast::DataType,
    ) -> Result<Option<FieldRef>, DataFusionError> {
        let data_type = plan_cast_type(sql_type).map_err(DataFusionError::Plan)?;
        Ok(Some(Arc::new(Field::new("", data_type, true))))
    }
}

impl ContextProvider for Context {
    fn get_table_source(
        &self,
        name: TableReference,
    ) -> Result<Arc<dyn TableSource>, DataFusionError> {
        Err(DataFusionError::Plan(format!(
            "there is no table {name} inside an expression"
        )))
    }
    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }
    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::clone(&self.types))
    }
    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.functions.get(name).cloned()
    }
    fn get_higher_order_meta(&self, _name: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }
    fn get_aggregate_meta(&self, _name: &str) -> Option<Arc<AggregateUDF>> {
        None
    }
    fn get_window_meta(&self, _name: &str) -> Option<Arc<WindowUDF>> {
        None
    }
    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }
    fn options(&self) -> &ConfigOptions {
        &self.options
    }
    fn udf_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.functions.keys().cloned().collect();
        names.sort_unstable();
        names
    }
    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn udaf_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}
