//! A row of an outbox as an event. Pure.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use usersync_core::{
    event::{Envelope, Event, EventType, MAX_EVENT_BYTES, check_integers, not_json},
    number::Beyond,
};
use usersync_source::{OutboxRow, SourceName};

/// An event on its way.
#[derive(Debug)]
pub(super) struct Ready {
    pub kind: EventType,
    /// The same whenever the row is published: what makes it count once.
    pub id: String,
    pub body: Bytes,
}

/// The event of `row`, or why there can't be one.
pub(super) fn of(source: &SourceName, row: &OutboxRow) -> Result<Ready, String> {
    let kind: EventType = row
        .event
        .parse()
        .map_err(|_| "its event is none of the four types".to_owned())?;
    let Some(payload) = &row.payload else {
        return Err(format!(
            "its payload is missing: the database could not write the row as JSON, or it is longer than {MAX_EVENT_BYTES} bytes"
        ));
    };
    let parse = |text: &[u8]| serde_json::from_slice::<Value>(text);
    let mut members = parse(payload).map_err(|error| not_json(&error).to_string())?;
    check_integers(payload, &members, Beyond::AllButDoubles)
        .map_err(|invalid| invalid.to_string())?;
    if let Some(previous) = &row.previous
        && let Ok(previous) = parse(previous)
    {
        mark_removed(&previous, &mut members);
    }
    let id = format!("{source}:{}", row.id);
    let envelope = Envelope {
        kind: Some(kind),
        id: Some(id.clone()),
        timestamp: Timestamp::from_microsecond(row.created_us).ok(),
    };
    let mut event = Event::from_value(members, envelope).map_err(|invalid| invalid.to_string())?;
    event.source = Some(source.to_string());
    let body = serde_json::to_vec(&event).map_err(|error| error.to_string())?;
    if body.len() > MAX_EVENT_BYTES {
        return Err(format!(
            "the event has {} bytes; at most {MAX_EVENT_BYTES} are taken",
            body.len()
        ));
    }
    Ok(Ready {
        kind,
        id,
        body: body.into(),
    })
}

/// Members that were there and aren't become null: an event that leaves them out would leave them be
/// (RFC 7396).
fn mark_removed(previous: &Value, now: &mut Value) {
    let (Value::Object(previous), Value::Object(now)) = (previous, now) else {
        return;
    };
    for (name, before) in previous {
        match now.get_mut(name) {
            Some(after) => mark_removed(before, after),
            None => {
                now.insert(name.clone(), Value::Null);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(event: &str, payload: Option<Value>) -> OutboxRow {
        OutboxRow {
            id: 7,
            event: event.to_owned(),
            payload: payload.map(|payload| payload.to_string().into_bytes()),
            previous: None,
            created_us: 1_500_000,
        }
    }

    fn made(row: &OutboxRow) -> Result<Value, String> {
        let ready = of(&"main".parse().unwrap(), row)?;
        Ok(serde_json::from_slice(&ready.body).unwrap())
    }

    #[test]
    fn an_event_says_where_it_is_from_and_always_has_the_same_id() {
        let payload =
            json!({"user_id": 42, "email": null, "status": "active", "data": {"phone": "1"}});
        let event = made(&row("user.updated", Some(payload))).unwrap();
        let expected = json!({
            "id": "main:7", "type": "user.updated", "user_id": 42, "email": null, "source": "main",
            "data": {"phone": "1", "status": "active"}, "timestamp": "1970-01-01T00:00:01.5Z",
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn what_left_a_document_is_cleared_however_deep() {
        let now = json!({"user_id": 1, "data": {"a": 1, "b": {"d": 4}, "e": [1]}});
        let previous =
            json!({"user_id": 1, "data": {"a": 0, "b": {"c": 3, "d": 4}, "e": {"f": 1}, "g": 1}});
        let mut row = row("user.updated", Some(now));
        row.previous = Some(previous.to_string().into_bytes());
        let data = made(&row).unwrap()["data"].clone();
        assert_eq!(
            data,
            json!({"a": 1, "b": {"c": null, "d": 4}, "e": [1], "g": null})
        );
    }

    #[test]
    fn what_can_never_be_an_event_says_why_without_its_values() {
        let long = "secret".repeat(50_000);
        let rows = [
            (
                row("user.renamed", Some(json!({}))),
                "none of the four types",
            ),
            (row("user.created", None), "payload is missing"),
            (
                row("user.created", Some(json!({"email": "secret"}))),
                "/user_id: is required",
            ),
            (
                row("user.created", Some(json!({"user_id": "secret x"}))),
                "/user_id: must be",
            ),
            (
                row(
                    "user.created",
                    Some(json!({"user_id": 1, "data": {"x": long}})),
                ),
                "at most 262144",
            ),
        ];
        for (row, expected) in rows {
            let reason = made(&row).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
            assert!(!reason.contains("secret"), "{reason}");
        }
    }
}
