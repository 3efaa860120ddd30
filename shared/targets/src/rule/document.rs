//! A state as CEL sees it: `user` and `event`, made of what an expression asks for and of nothing else.

use std::collections::HashMap;

use cel::{
    common::{
        types::{
            CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString,
            CelTimestamp, CelUInt,
        },
        value::{CowVal, Val},
    },
    context::VariableResolver,
};
use chrono::DateTime;
use jiff::Timestamp;
use serde_json::Value;
use usersync_core::state::State;

use super::budget;

/// The members of `user`.
pub(super) const USER: [&str; 7] = [
    "user_id", "username", "email", "status", "data", "deleted", "partial",
];
/// The members of `event`.
pub(super) const EVENT: [&str; 4] = ["id", "type", "source", "timestamp"];

/// What the names in an expression stand for.
#[derive(Debug)]
pub(super) struct Document<'s> {
    state: &'s State,
}

impl VariableResolver for Document<'_> {
    /// CEL asks for `user.data.plan` first, then for `user.data`, then for `user`: so a path that is
    /// there costs no more than its own value.
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        if budget::is_spent() {
            return None;
        }
        let (variable, path) = match name.split_once('.') {
            Some((variable, path)) => (variable, Some(path)),
            None => (name, None),
        };
        let value = match (variable, path) {
            ("user", Some(path)) => self.user(path)?,
            ("user", None) => self.whole(&USER, Self::user),
            ("event", Some(path)) => self.event(path)?,
            ("event", None) => self.whole(&EVENT, Self::event),
            _ => return None,
        };
        Some(CowVal::Owned(value))
    }
}

impl<'s> Document<'s> {
    pub(super) fn new(state: &'s State) -> Self {
        Self { state }
    }

    fn whole(
        &self,
        names: &[&'static str],
        member: impl Fn(&Self, &str) -> Option<Box<dyn Val + 's>>,
    ) -> Box<dyn Val + 's> {
        let members = names.iter().filter_map(|name| {
            let value = member(self, name)?;
            Some((CelMapKey::from(*name), value))
        });
        Box::new(CelMap::from(members.collect::<HashMap<_, _>>()))
    }

    /// A member of the user, as a path. Null is a member the user hasn't; of a partial user such a
    /// member isn't known, so there is none.
    fn user(&self, path: &str) -> Option<Box<dyn Val + 's>> {
        let state = self.state;
        let known = |member: &'s Option<String>| match member {
            Some(value) => Some(text(value)),
            None if state.partial => None,
            None => Some(Box::new(CelNull) as Box<dyn Val + 's>),
        };
        match path {
            "user_id" => Some(Box::new(CelString::from(state.user_id.to_string()))),
            "username" => known(&state.username),
            "email" => known(&state.email),
            "status" => known(&state.status),
            "deleted" => Some(Box::new(CelBool::from(state.deleted))),
            "partial" => Some(Box::new(CelBool::from(state.partial))),
            // Without data `has(user.data.plan)` is false, not an error.
            "data" if state.data.is_null() => Some(Box::new(CelMap::from(HashMap::new()))),
            "data" => Some(self.value(&state.data)),
            _ => {
                let mut names = path.strip_prefix("data.")?.split('.');
                let found = names.try_fold(&state.data, |found, name| found.get(name));
                found.map(|found| self.value(found))
            }
        }
    }

    /// JSON as CEL has it: whole numbers are `int` (above 2^63 `uint`), others `double`.
    fn value(&self, json: &'s Value) -> Box<dyn Val + 's> {
        budget::spend(1);
        match json {
            Value::Null => Box::new(CelNull),
            Value::Bool(value) => Box::new(CelBool::from(*value)),
            Value::Number(number) => {
                if let Some(number) = number.as_i64() {
                    Box::new(CelInt::from(number))
                } else if let Some(number) = number.as_u64() {
                    Box::new(CelUInt::from(number))
                } else {
                    Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN)))
                }
            }
            Value::String(value) => {
                budget::spend(value.len() / 64);
                text(value)
            }
            Value::Array(values) => {
                let values: Vec<_> = values.iter().map(|value| self.value(value)).collect();
                Box::new(CelList::from(values))
            }
            Value::Object(members) => {
                let members = members
                    .iter()
                    .map(|(name, member)| (CelMapKey::from(name.as_str()), self.value(member)));
                Box::new(CelMap::from(members.collect::<HashMap<_, _>>()))
            }
        }
    }

    fn event(&self, member: &str) -> Option<Box<dyn Val + 's>> {
        let event = &self.state.event;
        match member {
            "id" => Some(text(&event.id)),
            "type" => Some(text(event.kind.as_str())),
            "source" => Some(match &event.source {
                Some(source) => text(source),
                None => Box::new(CelNull),
            }),
            "timestamp" => Some(timestamp(event.timestamp)),
            _ => None,
        }
    }
}

fn text<'s>(text: &'s str) -> Box<dyn Val + 's> {
    Box::new(CelString::from(text))
}

fn timestamp<'s>(time: Timestamp) -> Box<dyn Val + 's> {
    let nanoseconds = time.subsec_nanosecond().unsigned_abs();
    // The two differ in sign only before 1970, where chrono counts the fraction upwards.
    let time = match time.subsec_nanosecond() < 0 {
        true => DateTime::from_timestamp(time.as_second() - 1, 1_000_000_000 - nanoseconds),
        false => DateTime::from_timestamp(time.as_second(), nanoseconds),
    };
    match time {
        Some(time) => Box::new(CelTimestamp::from(time.fixed_offset())),
        None => Box::new(CelNull),
    }
}
