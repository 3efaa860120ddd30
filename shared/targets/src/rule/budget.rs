//! What one evaluation may cost: steps, counted while it runs.
//!
//! An expression is small, and what it does isn't: macros repeat their bodies, `replace` and `join` make long texts of
//! short ones, a pattern is compiled. So whatever repeats or grows is charged before it is done (ADR 48): values of the
//! user as they are read, loops by the size of their bodies, variables of macros by what they hold.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use cel::{
    DeclarationError, Env, ExecutionError,
    common::{
        ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue},
        types::{
            CelBool, CelBytes, CelInt, CelList, CelMap, CelOptional, CelString, DYN_TYPE, INT_TYPE,
            LIST_TYPE, STRING_TYPE,
        },
        value::{CowVal, Val},
    },
};
use regex::{Regex, RegexBuilder};

/// The most steps of one evaluation. One is an operation, a value, or 64 bytes of text; some 50 ns.
pub(super) const MOST: usize = 100_000;
/// The longest text that a function may make, in bytes.
const LONGEST_TEXT: usize = 256 * 1024;
/// The largest compiled pattern, in bytes.
const LARGEST_PATTERN: usize = 256 * 1024;
/// The steps of compiling one.
const COMPILING: usize = 10_000;
/// How many compiled patterns a thread keeps.
const PATTERNS: usize = 64;

/// Before a macro runs: its list, and the steps of its body.
const LOOP: &str = "@loop";
/// Before a macro goes on: errors of `all` and `exists` wait for the end of the list.
const LIVE: &str = "@live";
/// A macro's variable where it is read.
const READ: &str = "@read";
/// What stands in for the library's own functions.
const REPLACE: &str = "@replace";
const JOIN: &str = "@join";
const SPLIT: &str = "@split";
const MATCHES: &str = "@matches";

thread_local! {
    /// An evaluation stays on its thread, and functions of CEL have no other way to something that is shared.
    static SPENT: Cell<usize> = const { Cell::new(0) };
    static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default();
}

/// Begins an evaluation.
pub(super) fn begin() {
    SPENT.set(0);
}

/// Takes `steps` from the evaluation of this thread.
pub(super) fn spend(steps: usize) {
    SPENT.set(SPENT.get().saturating_add(steps));
}

/// Whether the evaluation of this thread has had more than it may.
pub(super) fn is_spent() -> bool {
    SPENT.get() > MOST
}

/// The steps of so many bytes of text.
pub(super) fn of_text(bytes: usize) -> usize {
    1 + bytes / 64
}

/// The pattern of `matches`.
///
/// # Errors
/// When it is no pattern, or too large a one.
pub(super) fn pattern(source: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(source)
        .size_limit(LARGEST_PATTERN)
        .dfa_size_limit(LARGEST_PATTERN)
        .build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => {
            format!("the pattern of `matches` needs more than {LARGEST_PATTERN} bytes; make it shorter, or its repetitions smaller")
        }
        _ => "the pattern of `matches` can't be read".to_owned(),
    })
}

/// Adds what `charge` puts into expressions.
pub(super) fn declare(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_overload(LOOP, "@loop", vec![DYN_TYPE, INT_TYPE], enter_loop)?;
    env.add_overload(LIVE, "@live", vec![DYN_TYPE], live)?;
    env.add_overload(READ, "@read", vec![DYN_TYPE], read)?;
    let text = || STRING_TYPE;
    let id = "@replace(string,string)";
    env.add_member_overload(REPLACE, id, text(), vec![text(), text()], replace)?;
    let id = "@replace(string,string,int)";
    let arguments = vec![text(), text(), INT_TYPE];
    env.add_member_overload(REPLACE, id, text(), arguments, replace)?;
    env.add_member_overload(SPLIT, "@split(string)", text(), vec![text()], split)?;
    let id = "@split(string,int)";
    env.add_member_overload(SPLIT, id, text(), vec![text(), INT_TYPE], split)?;
    env.add_member_overload(JOIN, "@join()", LIST_TYPE, vec![], join)?;
    env.add_member_overload(JOIN, "@join(string)", LIST_TYPE, vec![text()], join)?;
    env.add_member_overload(MATCHES, "@matches", text(), vec![text()], matches)?;
    env.add_overload(MATCHES, "@matches(,)", vec![text(), text()], matches)
}

/// Has `expr` charge for what it repeats and makes. `variables` are those of the macros around.
pub(super) fn charge(expr: &mut IdedExpr, variables: &mut Vec<String>) {
    match &mut expr.expr {
        Expr::Ident(name) if variables.contains(name) => {
            let variable = std::mem::take(expr);
            expr.id = variable.id;
            expr.expr = call(READ, vec![variable]);
        }
        Expr::Select(select) => charge(&mut select.operand, variables),
        Expr::Call(call) => {
            if let Some(ours) = stand_in(&call.func_name) {
                call.func_name = ours.to_owned();
            }
            for argument in call.target.as_deref_mut().into_iter().chain(&mut call.args) {
                charge(argument, variables);
            }
        }
        Expr::List(list) => {
            for element in &mut list.elements {
                charge(element, variables);
            }
        }
        Expr::Map(map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    charge(&mut entry.key, variables);
                    charge(&mut entry.value, variables);
                }
            }
        }
        Expr::Comprehension(it) => {
            let steps = i64::try_from(size_of(&it.loop_step)).unwrap_or(i64::MAX);
            charge(&mut it.iter_range, variables);
            charge(&mut it.accu_init, variables);
            let range = std::mem::take(&mut it.iter_range);
            let steps = IdedExpr {
                id: range.id,
                expr: Expr::Literal(LiteralValue::Int(CelInt::from(steps))),
            };
            it.iter_range.id = range.id;
            it.iter_range.expr = call(LOOP, vec![range, steps]);
            let outer = variables.len();
            variables.push(it.iter_var.clone());
            variables.extend(it.iter_var2.clone());
            charge(&mut it.loop_cond, variables);
            // One that is always true is of `map` and `filter`, whose errors end them.
            if !matches!(it.loop_cond.expr, Expr::Literal(_)) {
                let condition = std::mem::take(&mut it.loop_cond);
                it.loop_cond.id = condition.id;
                it.loop_cond.expr = call(LIVE, vec![condition]);
            }
            charge(&mut it.loop_step, variables);
            charge(&mut it.result, variables);
            variables.truncate(outer);
        }
        Expr::Ident(_) | Expr::Struct(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}

fn call(name: &str, args: Vec<IdedExpr>) -> Expr {
    Expr::Call(CallExpr {
        func_name: name.to_owned(),
        target: None,
        args,
    })
}

fn stand_in(function: &str) -> Option<&'static str> {
    match function {
        "replace" => Some(REPLACE),
        "join" => Some(JOIN),
        "split" => Some(SPLIT),
        "matches" => Some(MATCHES),
        _ => None,
    }
}

/// The steps of evaluating `expr` once, without those of macros in it: they charge for their own.
fn size_of(expr: &IdedExpr) -> usize {
    let sum = |parts: &mut dyn Iterator<Item = &IdedExpr>| parts.map(size_of).sum::<usize>();
    1 + match &expr.expr {
        Expr::Select(select) => size_of(&select.operand),
        Expr::Call(call) => sum(&mut call.target.as_deref().into_iter().chain(&call.args)),
        Expr::List(list) => sum(&mut list.elements.iter()),
        Expr::Map(map) => {
            let entries = map.entries.iter().map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => size_of(&entry.key) + size_of(&entry.value),
                EntryExpr::StructField(_) => 0,
            });
            entries.sum()
        }
        Expr::Literal(LiteralValue::String(text)) => text.inner().len() / 64,
        Expr::Literal(LiteralValue::Bytes(bytes)) => bytes.inner().len() / 64,
        _ => 0,
    }
}

/// The steps of going through all of `value`.
fn whole(value: &dyn Val) -> usize {
    if let Some(text) = value.downcast_ref::<CelString>() {
        of_text(text.inner().len())
    } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        of_text(bytes.inner().len())
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        1 + list
            .inner()
            .iter()
            .map(|one| whole(one.as_ref()))
            .sum::<usize>()
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        let entries = map.inner().iter();
        1 + entries
            .map(|(key, one)| whole(key.inner()) + whole(one.as_ref()))
            .sum::<usize>()
    } else if let Some(optional) = value.downcast_ref::<CelOptional>() {
        1 + optional.inner().map_or(0, whole)
    } else {
        1
    }
}

/// An error of `function`, which is what it is called in expressions.
fn failed(function: &str) -> ExecutionError {
    ExecutionError::FunctionError {
        function: function.to_owned(),
        message: String::new(),
    }
}

/// Takes `steps`, or ends the evaluation.
fn take(steps: usize, function: &str) -> Result<(), ExecutionError> {
    spend(steps);
    alive(function)
}

fn alive(function: &str) -> Result<(), ExecutionError> {
    match is_spent() {
        true => Err(failed(function)),
        false => Ok(()),
    }
}

fn text<'a>(args: &'a [CowVal<'_, '_>], place: usize) -> Option<&'a str> {
    let text = args.get(place)?.as_ref().downcast_ref::<CelString>()?;
    Some(text.inner())
}

/// How often something is to be done; below zero it means always.
fn at_most(args: &[CowVal<'_, '_>], place: usize) -> Option<usize> {
    let Some(most) = args.get(place) else {
        return Some(usize::MAX);
    };
    let most = most.as_ref().downcast_ref::<CelInt>()?;
    Some(usize::try_from(*most.inner()).unwrap_or(usize::MAX))
}

fn enter_loop<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let misuse = || failed(LOOP);
    let steps = args.pop().ok_or_else(misuse)?;
    let steps = steps
        .as_ref()
        .downcast_ref::<CelInt>()
        .map(|steps| *steps.inner());
    let steps = usize::try_from(steps.unwrap_or(0)).unwrap_or(usize::MAX);
    let range = args.pop().ok_or_else(misuse)?;
    let length = range
        .as_ref()
        .as_sizer()
        .map_or(0, |list| *list.size().inner());
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    take(length.saturating_mul(steps), LOOP)?;
    Ok(range)
}

fn live<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    alive(LIVE)?;
    args.pop().ok_or_else(|| failed(LIVE))
}

fn read<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    alive(READ)?;
    let value = args.pop().ok_or_else(|| failed(READ))?;
    take(whole(value.as_ref()), READ)?;
    Ok(value)
}

fn replace<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    const NAME: &str = "replace";
    let (Some(this), Some(from), Some(to)) = (text(&args, 0), text(&args, 1), text(&args, 2))
    else {
        return Err(failed(NAME));
    };
    let most = at_most(&args, 3).ok_or_else(|| failed(NAME))?;
    take(of_text(this.len()), NAME)?;
    let times = this.matches(from).count().min(most);
    let longest = this.len().saturating_add(times.saturating_mul(to.len()));
    make(longest, NAME)?;
    Ok(CowVal::owned(CelString::from(
        this.replacen(from, to, most),
    )))
}

/// At most so many parts, the last of them with what is left; an empty separator is between all characters.
fn split<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    const NAME: &str = "split";
    let (Some(this), Some(separator), Some(most)) =
        (text(&args, 0), text(&args, 1), at_most(&args, 2))
    else {
        return Err(failed(NAME));
    };
    take(of_text(this.len()), NAME)?;
    let ends: Box<dyn Iterator<Item = (usize, usize)>> = match separator {
        "" => Box::new(this.char_indices().skip(1).map(|(at, _)| (at, at))),
        _ => Box::new(
            this.match_indices(separator)
                .map(|(at, found)| (at, at + found.len())),
        ),
    };
    let mut parts: Vec<Box<dyn Val + 'v>> = Vec::new();
    let mut add = |part: &str| {
        parts.push(Box::new(CelString::from(part.to_owned())));
        take(1, NAME)
    };
    let mut begin = 0;
    for (end, next) in ends.take(most.saturating_sub(1)) {
        add(&this[begin..end])?;
        begin = next;
    }
    if most > 0 && !(separator.is_empty() && this.is_empty()) {
        add(&this[begin..])?;
    }
    Ok(CowVal::owned(CelList::from(parts)))
}

fn join<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    const NAME: &str = "join";
    let list = args.first().and_then(|list| list.as_ref().as_iterable());
    let list = list.ok_or_else(|| failed(NAME))?;
    let separator = text(&args, 1).unwrap_or_default();
    let mut items = list.iter();
    let mut parts = Vec::new();
    let mut longest = 0_usize;
    while let Some(item) = items.next() {
        let part = item
            .downcast_ref::<CelString>()
            .ok_or_else(|| failed(NAME))?;
        longest = longest.saturating_add(part.inner().len() + separator.len());
        parts.push(part.inner());
    }
    make(longest, NAME)?;
    let made = parts.join(separator);
    Ok(CowVal::owned(CelString::from(made)))
}

/// Charges for a text of at most so many bytes, or refuses to have it made.
fn make(longest: usize, function: &str) -> Result<(), ExecutionError> {
    match longest <= LONGEST_TEXT {
        true => take(of_text(longest), function),
        false => Err(failed(function)),
    }
}

fn matches<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    const NAME: &str = "matches";
    let (Some(this), Some(source)) = (text(&args, 0), text(&args, 1)) else {
        return Err(failed(NAME));
    };
    take(4 * of_text(this.len()), NAME)?;
    let found = COMPILED.with_borrow_mut(|compiled| {
        if let Some(pattern) = compiled.get(source) {
            return Ok(pattern.is_match(this));
        }
        take(COMPILING, NAME)?;
        let pattern = pattern(source).map_err(|_| failed(NAME))?;
        let found = pattern.is_match(this);
        if compiled.len() >= PATTERNS {
            compiled.clear();
        }
        compiled.insert(source.to_owned(), pattern);
        Ok(found)
    });
    found.map(|found| CowVal::owned(CelBool::from(found)))
}
