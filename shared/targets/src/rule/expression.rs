//! A CEL expression over `user` and `event`: checked once, then evaluated per user.
//!
//! CEL has no loops but its macros, no clock and no input but the user. What keeps an evaluation short:
//! an expression has at most 4 KiB, nested at most 24 deep, with at most 4 macros that run over lists;
//! one inside of another runs over the outer one's variable only; whatever repeats or grows is charged
//! to a budget (`budget`); a user has at most 256 KiB; regular expressions take linear time.

use std::sync::Arc;

use cel::{
    Context, Env, ExecutionError,
    common::{
        ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo},
        types::{CelBool, CelNull, CelOptional},
        value::Val,
    },
    extensions,
};
use serde_json::Value;
use usersync_core::state::State;

use super::{
    budget::{self, MOST},
    document::{Document, EVENT, USER},
};

/// The longest expression, in bytes.
const LONGEST: usize = 4 * 1024;
/// The deepest nesting.
const DEEPEST: usize = 24;
/// Stack for parsing, in bytes; used for what is refused only.
const PARSER_STACK: usize = 64 * 1024 * 1024;
/// How many macros may run over lists.
const MACROS: usize = 4;
/// How many problems of one expression are told.
const TOLD: usize = 3;
/// The largest result, in bytes of its names and texts and 8 for any other value: that of an event.
const LARGEST: usize = 256 * 1024;

/// Names that are types or namespaces of functions.
const TYPES: [&str; 14] = [
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "optional_type",
    "optional",
    "google",
    "dyn",
];

/// What every expression may use: the standard library, optional values and the strings extension.
#[derive(Clone)]
pub(super) struct Language(Arc<Env>);

/// A checked expression.
pub(super) struct Expression {
    source: String,
    root: IdedExpr,
    language: Language,
    /// Whether `event` is read.
    pub(super) reads_event: bool,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.source.fmt(f)
    }
}

impl Language {
    /// # Errors
    /// When the library's own parts don't fit together.
    pub(super) fn new() -> Result<Self, String> {
        let mut env = Env::stdlib();
        let added = env.add_extension(extensions::strings);
        let added = added.and_then(|_| budget::declare(&mut env));
        added.map_err(|error| format!("CEL: {error}"))?;
        Ok(Self(Arc::new(env)))
    }

    /// Checks `source`.
    ///
    /// # Errors
    /// What is wrong, each with its line and column where it has one.
    pub(super) fn compile(&self, source: &str) -> Result<Expression, Vec<String>> {
        if source.len() > LONGEST {
            return Err(vec![format!("expected at most {LONGEST} bytes of CEL")]);
        }
        // The parser recurses before it counts: what 4 KiB can nest needs more stack than threads have.
        std::thread::scope(|scope| {
            let parser = std::thread::Builder::new().stack_size(PARSER_STACK);
            let parsed = parser.spawn_scoped(scope, || self.parse(source));
            let parsed =
                parsed.map_err(|error| vec![format!("can't start the parser: {error}")])?;
            let parsed = parsed.join();
            parsed.unwrap_or_else(|_| Err(vec!["the parser can't read it".to_owned()]))
        })
    }

    fn parse(&self, source: &str) -> Result<Expression, Vec<String>> {
        let parser = self.0.parser().max_recursion_depth(DEEPEST as u16);
        let parsed = parser.parse_with_source_info(source);
        let (mut root, places) = parsed.map_err(|errors| {
            // Those after the first follow from it.
            let first = errors.errors.first();
            let first = first.map(|error| match error.msg.contains("Recursion limit") {
                true => format!("nested more than {DEEPEST} deep"),
                false => {
                    let (line, column) = error.pos;
                    format!("line {line} column {column}: {}", error.msg)
                }
            });
            vec![first.unwrap_or_else(|| "no CEL".to_owned())]
        })?;
        let mut check = Check {
            language: self,
            places: &places,
            variables: Vec::new(),
            macros: 0,
            reads_event: false,
            problems: Vec::new(),
        };
        check.expression(&root, 0);
        let Check {
            mut problems,
            reads_event,
            ..
        } = check;
        if !problems.is_empty() {
            problems.truncate(TOLD);
            return Err(problems);
        }
        budget::charge(&mut root, &mut Vec::new());
        Ok(Expression {
            source: source.to_owned(),
            root,
            language: self.clone(),
            reads_event,
        })
    }

    /// Whether a call of this name can mean anything, whatever its arguments.
    fn knows(&self, call: &CallExpr) -> bool {
        // Operators have no names that could be mistyped.
        if !call
            .func_name
            .starts_with(|first: char| first.is_ascii_alphabetic())
        {
            return true;
        }
        let target = call.target.as_ref().map(|target| match &target.expr {
            Expr::Ident(name) if name == "optional" => target.clone(),
            _ => Box::new(IdedExpr {
                id: 0,
                expr: Expr::Literal(LiteralValue::Null),
            }),
        });
        let bare = IdedExpr {
            id: 0,
            expr: Expr::Call(CallExpr {
                func_name: call.func_name.clone(),
                target,
                args: Vec::new(),
            }),
        };
        let context = Context::with_env(self.0.clone());
        let unknown = matches!(
            cel::Value::resolve(&bare, &context),
            Err(ExecutionError::UndeclaredReference(_))
        );
        !unknown
    }
}

/// What is found while looking through an expression.
struct Check<'e> {
    language: &'e Language,
    places: &'e SourceInfo,
    /// The variables of the macros around.
    variables: Vec<&'e str>,
    macros: usize,
    reads_event: bool,
    problems: Vec<String>,
}

impl<'e> Check<'e> {
    fn expression(&mut self, expr: &'e IdedExpr, depth: usize) {
        // Of `1 + 1 + 1` each operator is a level too, which the parser doesn't count.
        if depth > DEEPEST {
            if self.problems.is_empty() {
                self.problem(expr, format!("nested more than {DEEPEST} deep"));
            }
            return;
        }
        let depth = depth + 1;
        match &expr.expr {
            Expr::Ident(name) => self.name(expr, name),
            Expr::Select(select) => {
                if let Expr::Ident(variable) = &select.operand.expr {
                    self.member(expr, variable, &select.field);
                }
                self.expression(&select.operand, depth);
            }
            Expr::Call(call) => {
                if !self.language.knows(call) {
                    self.problem(expr, format!("`{}` is no function", call.func_name));
                }
                self.pattern(expr, call);
                for argument in call.target.as_deref().into_iter().chain(&call.args) {
                    self.expression(argument, depth);
                }
            }
            Expr::List(list) => {
                for element in &list.elements {
                    self.expression(element, depth);
                }
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.expression(&entry.key, depth);
                        self.expression(&entry.value, depth);
                    }
                }
            }
            Expr::Comprehension(comprehension) => self.comprehension(expr, comprehension, depth),
            Expr::Struct(made) => {
                let name = made.type_name.clone();
                self.problem(expr, format!("`{name}` can't be made here"));
            }
            Expr::Literal(_) => {}
            Expr::Unspecified => self.problem(expr, "expected an expression".to_owned()),
        }
    }

    /// A pattern that is spelled out can be told to be no good at once.
    fn pattern(&mut self, expr: &IdedExpr, call: &CallExpr) {
        if call.func_name != "matches" {
            return;
        }
        let pattern = call.args.last().map(|pattern| &pattern.expr);
        let fit = match pattern {
            Some(Expr::Literal(LiteralValue::String(source))) => {
                budget::pattern(source.inner()).map(drop)
            }
            _ => Ok(()),
        };
        if let Err(problem) = fit {
            self.problem(expr, problem);
        }
    }

    fn comprehension(&mut self, expr: &'e IdedExpr, it: &'e ComprehensionExpr, depth: usize) {
        self.macros += 1;
        if self.macros == MACROS + 1 {
            self.problem(
                expr,
                format!("expected at most {MACROS} macros such as all, exists, map, filter"),
            );
        }
        if !self.variables.is_empty() && self.names_the_user(&it.iter_range) {
            let inner = "inside of a macro, another one may only run over the outer one's variable";
            self.problem(expr, inner.to_owned());
        }
        self.expression(&it.iter_range, depth);
        self.expression(&it.accu_init, depth);
        let outer = self.variables.len();
        self.variables.push(&it.accu_var);
        self.variables.push(&it.iter_var);
        self.variables.extend(it.iter_var2.as_deref());
        self.expression(&it.loop_cond, depth);
        self.expression(&it.loop_step, depth);
        self.expression(&it.result, depth);
        self.variables.truncate(outer);
    }

    fn name(&mut self, expr: &IdedExpr, name: &str) {
        if self.variables.contains(&name) || TYPES.contains(&name) {
            return;
        }
        match name {
            "user" => {}
            "event" => self.reads_event = true,
            _ => self.problem(expr, format!("`{name}` is unknown; expected user or event")),
        }
    }

    fn member(&mut self, expr: &IdedExpr, variable: &str, field: &str) {
        let members: &[&str] = match variable {
            _ if self.variables.contains(&variable) => return,
            "user" => &USER,
            "event" => &EVENT,
            _ => return,
        };
        if !members.contains(&field) {
            let members = members.join(", ");
            self.problem(
                expr,
                format!("`{variable}` has no member `{field}`; expected one of {members}"),
            );
        }
    }

    /// Whether `user` or `event` is named in `expr`.
    fn names_the_user(&self, expr: &IdedExpr) -> bool {
        let references = expr.references();
        ["user", "event"]
            .into_iter()
            .any(|name| !self.variables.contains(&name) && references.has_variable(name))
    }

    fn problem(&mut self, expr: &IdedExpr, what: String) {
        let place = self.places.offset_for(expr.id).map(|(start, _)| {
            let before = self.places.source.chars().take(start as usize);
            let (mut line, mut column) = (1, 1);
            for letter in before {
                (line, column) = match letter {
                    '\n' => (line + 1, 1),
                    _ => (line, column + 1),
                };
            }
            format!("line {line} column {column}: ")
        });
        self.problems
            .push(format!("{}{what}", place.unwrap_or_default()));
    }
}

impl Expression {
    /// Whether it is true of `state`.
    ///
    /// # Errors
    /// Why it is neither true nor false, without any value of the user.
    pub(super) fn holds(&self, state: &State) -> Result<bool, String> {
        self.evaluate(state, |value| {
            let answer = value.downcast_ref::<CelBool>();
            answer.map(|answer| *answer.inner()).ok_or_else(|| {
                let found = value.get_type().name();
                format!("expected true or false, found a value of type {found}")
            })
        })
    }

    /// What it makes of `state`, as JSON.
    ///
    /// # Errors
    /// Why it makes nothing, without any value of the user.
    pub(super) fn value(&self, state: &State) -> Result<Value, String> {
        self.evaluate(state, |value| {
            if value.downcast_ref::<CelNull>().is_some() {
                return Ok(Value::Null);
            }
            if value.downcast_ref::<CelOptional>().is_some() {
                return Err("the result is optional; end it with .orValue(…)".to_owned());
            }
            let made = cel::Value::try_from(value).map_err(|error| self.reason(&error))?;
            let made = made
                .json()
                .map_err(|_| "the result can't be written as JSON".to_owned())?;
            match size(&made) <= LARGEST {
                true => Ok(made),
                false => Err(format!("the result has more than {LARGEST} bytes")),
            }
        })
    }

    fn evaluate<T>(
        &self,
        state: &State,
        read: impl FnOnce(&dyn Val) -> Result<T, String>,
    ) -> Result<T, String> {
        budget::begin();
        let document = Document::new(state);
        let mut context = Context::with_env(self.language.0.clone());
        context.set_variable_resolver(&document);
        let result = match cel::Value::resolve_val(&self.root, &context) {
            Ok(value) => read(value.as_ref()),
            Err(_) if budget::is_spent() => Err(format!("it takes more than {MOST} steps")),
            Err(error) => Err(self.reason(&error)),
        };
        result.map_err(|reason| match state.partial {
            true => format!("{reason} (nobody created the user: only some members are known)"),
            false => reason,
        })
    }

    /// An error in words. Its own text may hold values of the user; this has only types, names of
    /// functions, and names of members that the expression itself spells out.
    fn reason(&self, error: &ExecutionError) -> String {
        match error {
            ExecutionError::NoSuchKey(key) if self.source.contains(key.as_str()) => {
                format!("there is no member `{key}`")
            }
            ExecutionError::NoSuchKey(_) => "a member is missing".to_owned(),
            ExecutionError::NoSuchOverload(call) => {
                let types = call.argument_types().join(", ");
                let function = call.function();
                let function = function.strip_prefix('@').unwrap_or(function);
                format!("`{function}` can't be used on ({types})")
            }
            ExecutionError::UndeclaredReference(name) => format!("`{name}` is unknown"),
            ExecutionError::UnexpectedType { want, .. } => format!("a value is no {want}"),
            ExecutionError::FunctionError { function, .. } => format!("`{function}` failed"),
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                "division by zero".to_owned()
            }
            ExecutionError::Overflow(..) => "a number is out of range".to_owned(),
            ExecutionError::IndexOutOfBounds(_) => "an index is out of bounds".to_owned(),
            ExecutionError::ValuesNotComparable(..) => "two values can't be compared".to_owned(),
            ExecutionError::DuplicateKey(_) => "a key occurs twice".to_owned(),
            _ => "it can't be evaluated".to_owned(),
        }
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(size).sum::<usize>() + 8,
        Value::Object(members) => members
            .iter()
            .map(|(name, member)| name.len() + size(member))
            .sum(),
        _ => 8,
    }
}
