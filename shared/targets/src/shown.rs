//! Whether a document that a target shows is what the target was told.

use serde_json::{Map, Value};
use unicode_normalization::UnicodeNormalization as _;
use usersync_core::{event::Change, fields::Members};

use crate::{Action, Delivery, Standing};

/// The members a kind tells a target, beside `data`.
pub(crate) const HTTP: [&str; 2] = ["username", "email"];
/// See [`HTTP`].
pub(crate) const DOCUMENT: [&str; 3] = ["username", "email", "status"];

/// Members as a document: what there is.
pub(crate) fn document(members: &Members, texts: &[&str]) -> Map<String, Value> {
    let mut document = Map::new();
    for (name, text) in [
        ("username", &members.username),
        ("email", &members.email),
        ("status", &members.status),
    ] {
        if let (Change::Set(text), true) = (text, texts.contains(&name)) {
            document.insert(name.to_owned(), Value::from(text.as_str()));
        }
    }
    if let Change::Set(data) = &members.data {
        document.insert("data".to_owned(), data.clone());
    }
    document
}

/// Compares what was told, and nothing else, with `document`. A newer version there is fine.
pub(crate) fn compare(document: &Value, delivery: &Delivery, texts: &[&str]) -> Standing {
    let version = document.get("version").and_then(Value::as_u64);
    if let Some(newer) = version.filter(|version| *version > delivery.version) {
        return Standing::Newer(newer);
    }
    let older = version.is_some_and(|version| version < delivery.version);
    content(document, delivery, texts).aged(older)
}

/// The same, whatever the versions.
fn content(document: &Value, delivery: &Delivery, texts: &[&str]) -> Standing {
    let deleted = document.get("deleted") == Some(&Value::Bool(true));
    match delivery.action {
        Action::Delete | Action::Disable if deleted => return Standing::Same,
        Action::Delete => return Standing::Extra,
        Action::Upsert if deleted => return Standing::Missing,
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
            Change::Set(text) => held.as_str().is_some_and(|held| is_text(held, text)),
        };
        if texts.contains(&name) && !same {
            return Standing::Different(name.into());
        }
    }
    let held = document.get("data").unwrap_or(&Value::Null);
    let difference = match &members.data {
        Change::Keep => None,
        Change::Clear => (!is_empty(held)).then(|| "data".to_owned()),
        Change::Set(told) => difference(told, held, "data"),
    };
    difference.map_or(Standing::Same, |path| Standing::Different(path.into()))
}

/// Whether two texts are one: Unicode writes some in several ways, and services may choose another.
fn is_text(held: &str, told: &str) -> bool {
    held == told || (!(held.is_ascii() && told.is_ascii()) && held.nfc().eq(told.nfc()))
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
        (Value::String(told), Value::String(held)) => is_text(held, told),
        (told, held) => told == held || (is_empty(told) && is_empty(held)),
    };
    (!same).then(|| path.to_owned())
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}
