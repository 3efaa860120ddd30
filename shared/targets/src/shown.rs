//! `verify`: whether a document that a target shows is what the target was told.

use serde_json::Value;
use usersync_core::event::Change;

use crate::{Action, Delivery, Failure, Outcome};

/// The members a kind tells a target, beside `data`.
pub(crate) const HTTP: [&str; 2] = ["username", "email"];
/// See [`HTTP`].
pub(crate) const DOCUMENT: [&str; 3] = ["username", "email", "status"];

/// Compares what was told, and nothing else, with `document`. A newer version there is fine.
pub(crate) fn compare(document: &Value, delivery: &Delivery, texts: &[&str]) -> Outcome {
    let fine = Outcome::Delivered { guarded: false };
    match document.get("version").and_then(Value::as_u64) {
        Some(version) if version > delivery.version => return Outcome::AlreadyNewer,
        Some(version) if version < delivery.version => return differs("it is an older version"),
        _ => {}
    }
    let deleted = document.get("deleted") == Some(&Value::Bool(true));
    match delivery.action {
        Action::Delete if deleted => return fine,
        Action::Delete => return differs("the user is still there"),
        Action::Disable if deleted => return fine,
        Action::Upsert if deleted => return differs("the user isn't there"),
        Action::Upsert | Action::Disable => {}
    }
    let members = &delivery.members;
    for (name, told) in [
        ("username", &members.username),
        ("email", &members.email),
        ("status", &members.status),
    ] {
        let held = document.get(name).unwrap_or(&Value::Null);
        let same = match told {
            Change::Keep => true,
            Change::Clear => held.is_null(),
            Change::Set(text) => held.as_str() == Some(text),
        };
        if texts.contains(&name) && !same {
            return differs(name);
        }
    }
    let held = document.get("data").unwrap_or(&Value::Null);
    let difference = match &members.data {
        Change::Keep => None,
        Change::Clear => (!is_empty(held)).then(|| "data".to_owned()),
        Change::Set(told) => difference(told, held, "data"),
    };
    difference.map_or(fine, |path| differs(&path))
}

/// The failure of a target that shows something else; `what` is no value.
pub(crate) fn differs(what: &str) -> Outcome {
    let reason = format!("read back after delivery, the user differs: {what}");
    Outcome::Transient(Failure::new(reason))
}

/// Where `held` isn't what was told. Members nobody told of may be there.
fn difference(told: &Value, held: &Value, path: &str) -> Option<String> {
    let same = match (told, held) {
        (Value::Object(told), Value::Object(held)) => {
            return told.iter().find_map(|(name, told)| {
                let held = held.get(name).unwrap_or(&Value::Null);
                difference(told, held, &format!("{path}.{name}"))
            });
        }
        (Value::Array(told), Value::Array(held)) => {
            told.len() == held.len()
                && told
                    .iter()
                    .zip(held)
                    .all(|(told, held)| difference(told, held, path).is_none())
        }
        // 1 and 1.0 are one number to many a database.
        (Value::Number(told), Value::Number(held)) => {
            told == held || (told.is_f64() != held.is_f64() && told.as_f64() == held.as_f64())
        }
        (told, held) => told == held || (is_empty(told) && is_empty(held)),
    };
    (!same).then(|| path.to_owned())
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}
