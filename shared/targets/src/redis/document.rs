//! The document of one user: made from a delivery, or from the one that is there.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use usersync_core::{event::Change, fields::Members, user_id::UserId};

use crate::Delivery;

/// `version` must stay first: the script reads it from the head.
#[derive(Serialize)]
struct Document<'a> {
    version: u64,
    user_id: &'a UserId,
    #[serde(flatten)]
    members: &'a Members,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    timestamp: Timestamp,
    source: Option<&'a str>,
}

/// The JSON to store for a user who is to be there.
pub(super) fn written(delivery: &Delivery) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Document {
        version: delivery.version,
        user_id: &delivery.user_id,
        members: &delivery.members,
        partial: delivery.partial,
        timestamp: delivery.timestamp,
        source: delivery.source.as_deref(),
    })
}

/// The version of a stored document, 0 where it has none, and the document with what `delivery` tells
/// set in it; `None` where what is stored is no document.
pub(super) fn changed(held: &[u8], delivery: &Delivery) -> Option<(u64, Vec<u8>)> {
    let Ok(Value::Object(mut document)) = serde_json::from_slice(held) else {
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
