//! What the database kinds share: what a table needs, and what a delivery tells a column.

use std::borrow::Cow;

use serde_json::Value;
use usersync_core::{
    event::Change,
    fields::Fields,
    target::{Removal, Table, TargetConfig},
};

use crate::{ConfigError, Delivery};

/// The table of `config`, or the one by default.
///
/// # Errors
/// When users are to be disabled and no column says so, or a method is set, which only HTTP has.
pub(crate) fn table(config: &TargetConfig) -> Result<Table, ConfigError> {
    if let Some(found) = &config.method {
        return Err(ConfigError::Method {
            found: found.clone(),
            expected: "none for a database",
        });
    }
    let table = config.table.clone().unwrap_or_default();
    let disables = [config.on_delete, config.on_out_of_scope].contains(&Removal::Disable);
    if disables
        && !table
            .columns
            .values()
            .any(|path| shows_status(config, path))
    {
        return Err(ConfigError::NoStatus);
    }
    Ok(table)
}

/// Whether users are ever deleted there, so that every column must be able to be empty.
pub(crate) fn deletes(config: &TargetConfig) -> bool {
    let out_of_scope = config.filter.is_some() && config.on_out_of_scope == Removal::Delete;
    config.on_delete == Removal::Delete || out_of_scope
}

/// Whether the target is ever told anything at `path`.
pub(crate) fn is_told(fields: &Fields, path: &str) -> bool {
    let covers = |outer: &str, inner: &str| {
        let rest = inner.strip_prefix(outer);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let touches = |made: &String| covers(made, path) || covers(path, made);
    let moved_away = fields.rename.keys().any(|from| covers(from, path));
    fields.rename.values().any(touches)
        || (!moved_away && (fields.tells(path) || fields.compute.keys().any(touches)))
}

/// Whether a column at `path` would show that a user is disabled.
fn shows_status(config: &TargetConfig, path: &str) -> bool {
    let renamed = ["status", "data.status"]
        .iter()
        .filter_map(|from| config.fields.rename.get(*from));
    matches!(path, "status" | "data.status" | "data") || renamed.into_iter().any(|to| to == path)
}

/// What `delivery` tells of the member at `path`.
///
/// A member that a whole user doesn't have is cleared; of a partial one it isn't known.
pub(crate) fn told<'a>(delivery: &'a Delivery, path: &str) -> Change<Cow<'a, Value>> {
    let members = &delivery.members;
    let text = |change: &'a Change<String>| match change {
        Change::Keep => Change::Keep,
        Change::Clear => Change::Clear,
        Change::Set(text) => Change::Set(Cow::Owned(Value::from(text.as_str()))),
    };
    match path {
        "username" => return text(&members.username),
        "email" => return text(&members.email),
        "status" => return text(&members.status),
        _ => {}
    }
    let data = match &members.data {
        Change::Keep => return Change::Keep,
        Change::Clear => return Change::Clear,
        Change::Set(data) => data,
    };
    let mut value = data;
    for name in path.split('.').skip(1) {
        // What isn't an object, null among them, has no members, and that is known.
        let Value::Object(members) = value else {
            return Change::Clear;
        };
        value = match members.get(name) {
            Some(member) => member,
            None if delivery.partial => return Change::Keep,
            None => return Change::Clear,
        };
    }
    match value {
        Value::Null => Change::Clear,
        value => Change::Set(Cow::Borrowed(value)),
    }
}
