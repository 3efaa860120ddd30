//! CloudEvents 1.0 in JSON form, turned into the plain form of an event.

use serde_json::{Map, Value};
use usersync_core::event::InvalidEvent;

/// Whether `document` is a CloudEvent; only those have this attribute.
pub(super) fn is_cloud_event(document: &Value) -> bool {
    document.get("specversion").is_some()
}

/// Moves the attributes to where an event has them: `time` is `timestamp`, `subject` may hold
/// the user id, and `data` holds what else an event has (`user_id`, `username`, `email`, `data`).
pub(super) fn into_event(document: Value) -> Result<Value, InvalidEvent> {
    let Value::Object(mut attributes) = document else {
        return Ok(document);
    };
    if attributes.get("specversion").and_then(Value::as_str) != Some("1.0") {
        return Err(InvalidEvent::new("/specversion", "must be \"1.0\""));
    }
    if attributes.contains_key("data_base64") {
        return Err(InvalidEvent::new(
            "/data_base64",
            "is not taken; send JSON in data",
        ));
    }
    let mut event = match attributes.remove("data") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(members)) => members,
        Some(_) => {
            return Err(InvalidEvent::new(
                "/data",
                "must be an object with user_id, username, email and data",
            ));
        }
    };
    for (attribute, member) in [
        ("id", "id"),
        ("type", "type"),
        ("source", "source"),
        ("time", "timestamp"),
    ] {
        if let Some(value) = attributes.remove(attribute) {
            event.insert(member.to_owned(), value);
        } else if attribute != "time" {
            return Err(InvalidEvent::new(
                format!("/{attribute}"),
                "is required in a CloudEvent",
            ));
        }
    }
    if let Some(subject) = attributes.remove("subject") {
        event.entry("user_id").or_insert(subject);
    }
    Ok(Value::Object(event))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn attributes_move_to_where_an_event_has_them() {
        let event = into_event(json!({
            "specversion": "1.0", "id": "e1", "type": "user.created", "source": "/basic", "subject": "42",
            "time": "2026-01-31T12:00:00Z", "datacontenttype": "application/json",
            "data": {"username": "ann", "data": {"phone": "1"}},
        }));
        let expected = json!({
            "id": "e1", "type": "user.created", "source": "/basic", "user_id": "42",
            "timestamp": "2026-01-31T12:00:00Z", "username": "ann", "data": {"phone": "1"},
        });
        assert_eq!(event, Ok(expected));
    }

    #[test]
    fn what_is_missing_is_pointed_at() {
        let whole = json!({"specversion": "1.0", "id": "e", "type": "user.created", "source": "s", "data": {}});
        for name in ["id", "type", "source"] {
            let mut document = whole.clone();
            document.as_object_mut().unwrap().remove(name);
            assert_eq!(
                into_event(document).unwrap_err().pointer,
                format!("/{name}")
            );
        }
        let mut other = whole;
        other["specversion"] = json!("0.3");
        assert_eq!(into_event(other).unwrap_err().pointer, "/specversion");
    }
}
