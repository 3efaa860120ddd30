//! The document of one user: made from a delivery, or from the one that is there.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use usersync_core::{
    event::Change,
    fields::Members,
    json,
    user_id::{Ids, JsonId, UserId},
};
use usersync_digest::{Row, canonical};

use crate::Delivery;

/// `version` must stay first: the script reads it from the head.
#[derive(Serialize)]
struct Document<'a> {
    version: u64,
    user_id: JsonId<'a>,
    #[serde(flatten)]
    members: &'a Members,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    timestamp: Timestamp,
    source: Option<&'a str>,
}

/// The JSON to store for a user who is to be there.
pub(super) fn written(delivery: &Delivery, ids: Ids) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Document {
        version: delivery.version,
        user_id: ids.of(&delivery.user_id),
        members: &delivery.members,
        partial: delivery.partial,
        timestamp: delivery.timestamp,
        source: delivery.source.as_deref(),
    })
}

/// The version of a stored document, 0 where it has none, and the document with what `delivery` tells
/// set in it; `None` where what is stored is no document.
pub(super) fn changed(held: &[u8], delivery: &Delivery) -> Option<(u64, Vec<u8>)> {
    let Ok(Value::Object(mut document)) = json::value(held) else {
        return None;
    };
    let version = document.remove("version");
    let version = version.and_then(|version| version.as_u64()).unwrap_or(0);
    let members = &delivery.members;
    for (name, member) in [
        ("username", &members.username),
        ("email", &members.email),
        ("status", &members.status),
    ] {
        if let Change::Set(text) = member {
            document.insert(name.to_owned(), Value::from(text.as_str()));
        }
    }
    if let Change::Set(data) = &members.data {
        merge(document.entry("data").or_insert(Value::Null), data);
    }
    let mut text = format!("{{\"version\":{}", delivery.version).into_bytes();
    // Without its brace, which comes first already.
    let rest = serde_json::to_vec(&document).ok()?;
    if document.is_empty() {
        text.push(b'}');
    } else {
        text.push(b',');
        text.extend_from_slice(rest.get(1..)?);
    }
    Some((version, text))
}

/// Members that say when and by whom, not what the user is.
const ABOUT: [&str; 3] = ["version", "timestamp", "source"];
/// Where the user's members end in a document of [`written`]: `,"timestamp":"…","source":…}`.
const TIMESTAMP: &[u8] = b",\"timestamp\":\"";
/// How far from the end that is looked for: far enough for any ordinary source.
const TAIL: usize = 320;

/// Adds what a document tells of the user `id` to a row: all but [`ABOUT`] and the id itself, which may be a number or a
/// string, in the form that [`written`] has.
///
/// A document as we write it needs no parsing for that, which is what most of a scan would cost.
pub(super) fn hashed(document: &[u8], id: &str, row: &mut Row) {
    match told(document, id) {
        Some(told) => row.field(Some(told)),
        None => row.field(Some(&rewritten(document, id))),
    }
}

/// The members of a document that is as [`written`] makes it, as they are.
fn told<'a>(document: &'a [u8], id: &str) -> Option<&'a [u8]> {
    let rest = document.strip_prefix(b"{\"version\":")?;
    let members = rest.iter().position(|byte| *byte == b',')? + 1;
    let rest = rest[members..].strip_prefix(b"\"user_id\":")?;
    let number = |rest: &'a [u8]| rest.strip_prefix(id.as_bytes());
    let string = |rest: &'a [u8]| {
        // One that is written with escapes is parsed.
        let rest = rest.strip_prefix(b"\"")?.strip_prefix(id.as_bytes())?;
        let plain = !id.contains(['"', '\\']);
        rest.strip_prefix(b"\"").filter(|_| plain)
    };
    let is_number = id.parse::<u64>().is_ok();
    let rest = number(rest)
        .filter(|_| is_number)
        .or_else(|| string(rest))?;
    let rest = rest.strip_prefix(b",")?;
    let from = rest.len().saturating_sub(TAIL);
    let mut places = rest[from..].windows(TIMESTAMP.len());
    let end = from + places.rposition(|place| place == TIMESTAMP)?;
    let tail = &rest[end + TIMESTAMP.len()..];
    let timestamp = tail.iter().position(|byte| *byte == b'"')?;
    let source = tail[timestamp + 1..].strip_prefix(b",\"source\":")?;
    let ours = source == b"null}"
        || source
            .strip_prefix(b"\"")
            .and_then(|source| source.strip_suffix(b"\"}"))
            .is_some_and(|source| !source.contains(&b'"'));
    ours.then_some(&rest[..end])
}

/// Whether a document is what [`written`] makes of `delivery`, whatever order and spelling of numbers it is in.
pub(super) fn is_written(held: Value, delivery: &Delivery, ids: Ids) -> bool {
    let id = delivery.user_id.to_string();
    let written = written(delivery, ids).and_then(|text| json::value(&text));
    let canonical_of = |document| match document {
        Value::Object(members) => canonical(&Value::Object(told_members(members, &id))),
        other => canonical(&other),
    };
    written.is_ok_and(|written| canonical_of(held) == canonical_of(written))
}

/// Members without those that say when and by whom, and without the id, where it is this user's.
fn told_members(mut members: Map<String, Value>, id: &str) -> Map<String, Value> {
    for name in ABOUT {
        members.remove(name);
    }
    // Another user's id is a difference.
    let held = members.get("user_id").map(UserId::try_from);
    if matches!(held, Some(Ok(held)) if held.to_string() == id) {
        members.remove("user_id");
    }
    members
}

/// The members of any other document, as [`written`] would have made them; what is no document is as it is.
fn rewritten(document: &[u8], id: &str) -> Vec<u8> {
    let Ok(Value::Object(members)) = json::value(document) else {
        return document.to_vec();
    };
    let mut members = told_members(members, id);
    let mut text = String::new();
    let mut write = |name: &str, value: &Value| {
        if !text.is_empty() {
            text.push(',');
        }
        text += &format!("{}:{value}", Value::from(name));
    };
    for name in ["user_id", "username", "email", "status", "data"] {
        if let Some(value) = members.remove(name) {
            write(name, &value);
        }
    }
    members.iter().for_each(|(name, value)| write(name, value));
    text.into_bytes()
}

/// Sets every member of `told`, at any depth.
fn merge(held: &mut Value, told: &Value) {
    let Value::Object(told) = told else {
        *held = told.clone();
        return;
    };
    if !held.is_object() {
        *held = Value::Object(Map::new());
    }
    let Value::Object(held) = held else { return };
    for (name, told) in told {
        merge(held.entry(name).or_insert(Value::Null), told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(document: &str) -> String {
        let mut row = Row::default();
        hashed(document.as_bytes(), "42", &mut row);
        String::from_utf8(row.octets().to_vec()).unwrap()
    }

    #[test]
    fn version_time_and_source_do_not_count_and_nothing_else_is_left_out() {
        let data = r#"{"a":1,"timestamp":"x","source":null}"#;
        let members = format!(r#""user_id":42,"username":"ann","email":null,"data":{data}"#);
        let told = members.strip_prefix("\"user_id\":42,").unwrap();
        let expected = format!("{}:{told}", told.len());
        let documents = [
            format!(r#"{{"version":5,{members},"timestamp":"2026-01-01T00:00:00Z","source":"s"}}"#),
            format!(
                r#"{{"version":61,{members},"timestamp":"2026-02-01T00:00:00Z","source":null}}"#
            ),
            format!(r#"{{"version":5,{members},"timestamp":"","source":"a \"quoted\" one"}}"#),
            format!(
                r#"{{"version":5,"user_id":"42",{told},"timestamp":"2026-01-01T00:00:00Z","source":"s"}}"#
            ),
            // Written by others.
            format!(r#"{{"timestamp":"","source":"s",{members},"version":5}}"#),
            format!(
                r#"{{ "version": 5, "data": {data}, "email": null, "username": "ann", "user_id": 42}}"#
            ),
        ];
        for document in documents {
            let found = hash(&document);
            // Members are ordered by name where they were parsed.
            let sorted = found.replace(r#"{"a":1,"source":null,"timestamp":"x"}"#, data);
            assert_eq!(sorted, expected, "{document}");
        }
        let more = format!(
            r#"{{"version":5,{members},"timestamp":"2026-01-01T00:00:00Z","source":"s","role":"admin"}}"#
        );
        assert!(hash(&more).contains("admin"));
        for other in ["43", "420", "\"43\"", "042", "\"042\"", "null"] {
            let other = format!(
                r#"{{"version":5,"user_id":{other},{told},"timestamp":"2026-01-01T00:00:00Z","source":"s"}}"#
            );
            assert_ne!(hash(&other), expected, "{other}");
        }
        assert_eq!(hash("no document"), "11:no document");
    }
}
