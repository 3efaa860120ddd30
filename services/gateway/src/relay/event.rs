//! A row of an outbox, or of its users, as an event. Pure.

use async_nats::{HeaderMap, Subject, header::NATS_MESSAGE_ID};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};
use usersync_core::{
    event::{Envelope, Event, EventType, MAX_EVENT_BYTES, check_integers, not_json},
    json,
    member::Member,
    number::Beyond,
    outbox::Outbox,
};
use usersync_source::{About, Kind, OutboxRow, Payload, SourceName};

use super::{
    key::Key,
    plan::{Step, What},
};

/// An event on its way.
#[derive(Debug)]
pub(super) struct Ready {
    pub kind: EventType,
    /// The `Nats-Msg-Id`: the same whenever the row is published, and nobody else's, whatever id a payload names.
    pub message_id: String,
    pub body: Bytes,
}

impl Ready {
    /// As it is published.
    pub(super) fn message(&self) -> (Subject, HeaderMap, Bytes) {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, self.message_id.as_str());
        (self.kind.as_str().into(), headers, self.body.clone())
    }
}

/// Whose events are made, of which outbox.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub source: SourceName,
    /// Which outbox it is; none of an older version.
    pub about: Option<About>,
    /// Its key; none of an older version.
    pub key: Option<Key>,
    /// The members that rows own.
    pub owned: Vec<Member>,
}

impl Origin {
    /// The id of a row: its event's, unless a payload names another, and always the `Nats-Msg-Id`, so that nobody can have
    /// used it before. An older version has given another one to what it has written.
    pub(super) fn id(&self, row: i64) -> String {
        let source = &self.source;
        match (&self.about, &self.key) {
            (Some(about), Some(key)) if row >= about.first => {
                format!("{source}:{}:{row}:{}", key.name(), key.of_note(row))
            }
            _ => format!("{source}:{row}"),
        }
    }

    /// The row of an event's id, which nobody else can have given it.
    pub(super) fn row(&self, id: &str) -> Option<i64> {
        let rest = id.strip_prefix(self.source.as_ref())?.strip_prefix(':')?;
        let (Some(about), Some(key)) = (&self.about, &self.key) else {
            return rest.parse().ok();
        };
        let Some(rest) = rest.strip_prefix(key.name()) else {
            return rest.parse().ok().filter(|row| *row < about.first);
        };
        let (row, proof) = rest.strip_prefix(':')?.split_once(':')?;
        row.parse().ok().filter(|row| key.proves_note(*row, proof))
    }

    /// The event of a step, or why there can't be one.
    pub(super) fn event(&self, step: &Step, id_kind: Kind) -> Result<Event, String> {
        let row = &step.row;
        let (kind, members) = match &step.what {
            What::Payload => payload(row)?,
            What::Gone => (EventType::Deleted, gone(&row.user, id_kind)),
            What::Row { kind, document } => (*kind, parse(document)?),
        };
        let envelope = Envelope {
            kind: Some(kind),
            id: Some(self.id(row.id)),
            timestamp: Timestamp::from_microsecond(row.created_us).ok(),
        };
        let mut event =
            Event::from_value(members, envelope).map_err(|invalid| invalid.to_string())?;
        event.source = Some(self.source.to_string());
        if let (Some(key), false) = (&self.key, step.what == What::Payload) {
            event.outbox = Some(Outbox {
                epoch: key.name().to_owned(),
                note: row.id,
                proof: key.of_user(row.id, &event.user_id),
                owned: self.owned.clone(),
                newer: Vec::new(),
            });
        }
        Ok(event)
    }
}

/// An event as it is sent, or why it can't be.
pub(super) fn written(event: &Event, message_id: String) -> Result<Ready, String> {
    let body = serde_json::to_vec(event).map_err(|error| error.to_string())?;
    if body.len() > MAX_EVENT_BYTES {
        return Err(format!(
            "the event has {} bytes; at most {MAX_EVENT_BYTES} are taken",
            body.len()
        ));
    }
    Ok(Ready {
        kind: event.kind,
        message_id,
        body: body.into(),
    })
}

fn parse(text: &[u8]) -> Result<Value, String> {
    let text = json::unmarked(text);
    let value = json::value(text).map_err(|error| not_json(&error).to_string())?;
    let checked = check_integers(text, &value, Beyond::AllButDoubles);
    checked.map_err(|invalid| invalid.to_string())?;
    Ok(value)
}

/// What a row with a payload says.
fn payload(row: &OutboxRow) -> Result<(EventType, Value), String> {
    let kind = row.event.parse();
    let kind: EventType = kind.map_err(|_| "its event is none of the four types".to_owned())?;
    let Some(Payload::Text(payload)) = &row.payload else {
        return Err(format!(
            "its payload is longer than {MAX_EVENT_BYTES} bytes"
        ));
    };
    let mut members = parse(payload)?;
    if let Some(previous) = &row.previous
        && let Ok(previous) = json::value(previous)
    {
        mark_removed(&previous, &mut members);
    }
    Ok((kind, members))
}

/// What is left of a user who is gone.
fn gone(user: &str, id_kind: Kind) -> Value {
    let number = || match id_kind {
        Kind::Integer => serde_json::from_str::<Number>(user).ok(),
        _ => None,
    };
    let user_id = number().map_or_else(|| Value::from(user), Value::Number);
    Value::Object(Map::from_iter([("user_id".to_owned(), user_id)]))
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

    fn origin() -> Origin {
        Origin {
            source: "main".parse().unwrap(),
            about: Some(About {
                epoch: "e1".to_owned(),
                first: 5,
                approved: 0,
                format: 2,
            }),
            key: Some(Key::from("e1".to_owned())),
            owned: vec!["email".parse().unwrap(), "data.phone".parse().unwrap()],
        }
    }

    fn row(event: &str, payload: Option<Value>) -> OutboxRow {
        OutboxRow {
            id: 7,
            user: "42".to_owned(),
            event: event.to_owned(),
            payload: payload.map(|payload| Payload::Text(payload.to_string().into_bytes())),
            previous: None,
            created_us: 1_500_000,
            tx: None,
        }
    }

    fn made(row: OutboxRow, what: What) -> Result<Value, String> {
        let step = Step {
            blamed: row.id,
            row,
            others: Vec::new(),
            what,
        };
        let event = origin().event(&step, Kind::Integer)?;
        let ready = written(&event, origin().id(step.row.id))?;
        assert_eq!(origin().row(&ready.message_id), Some(step.row.id));
        Ok(serde_json::from_slice(&ready.body).unwrap())
    }

    #[test]
    fn the_event_of_a_row_says_what_its_source_owns_and_where_it_stands() {
        let document = json!({"user_id": 42, "email": null, "data": {"phone": "1"}});
        let what = What::Row {
            kind: EventType::Updated,
            document: document.to_string().into_bytes(),
        };
        let key = Key::from("e1".to_owned());
        let proof = key.of_user(7, &42.into());
        let expected = json!({
            "id": origin().id(7), "type": "user.updated", "user_id": 42, "email": null, "source": "main",
            "data": {"phone": "1"}, "timestamp": "1970-01-01T00:00:01.5Z",
            "outbox": {"epoch": key.name(), "note": 7, "proof": proof, "owned": ["email", "data.phone"]},
        });
        assert_eq!(made(row("U", None), what).unwrap(), expected);
        let gone = made(row("D", None), What::Gone).unwrap();
        assert_eq!(
            (&gone["type"], &gone["user_id"], &gone["outbox"]["note"]),
            (&json!("user.deleted"), &json!(42), &json!(7))
        );
    }

    #[test]
    fn a_payload_is_published_as_it_stands() {
        let payload =
            json!({"user_id": 42, "email": null, "status": "active", "data": {"phone": "1"}});
        let event = made(row("user.updated", Some(payload)), What::Payload).unwrap();
        let expected = json!({
            "id": origin().id(7), "type": "user.updated", "user_id": 42, "email": null, "source": "main",
            "data": {"phone": "1", "status": "active"}, "timestamp": "1970-01-01T00:00:01.5Z",
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn an_id_in_a_payload_is_the_events_and_no_message_id() {
        let payload = json!({"user_id": 42, "id": "1", "source": "other"});
        let event = made(row("user.updated", Some(payload)), What::Payload).unwrap();
        assert_eq!(
            (&event["id"], &event["source"]),
            (&json!("1"), &json!("main"))
        );
    }

    #[test]
    fn the_id_of_a_row_tells_its_outbox_except_what_an_older_version_has_written() {
        let origin = origin();
        assert_eq!(origin.id(4), "main:4");
        let (own, proof) = (origin.id(7), origin.key.as_ref().unwrap().of_note(7));
        let other = own.replace(":7:", ":8:");
        let rows = [
            (own.as_str(), Some(7)),
            ("main:4", Some(4)),
            // Somebody who has seen one id makes another.
            (other.as_str(), None),
            ("main:7", None),
            (&format!("main:e1:7:{proof}"), None),
            ("other:4", None),
            ("mainly", None),
        ];
        for (id, row) in rows {
            assert_eq!(origin.row(id), row, "{id}");
        }
    }

    #[test]
    fn what_left_a_payload_is_cleared_however_deep() {
        let now = json!({"user_id": 1, "data": {"a": 1, "b": {"d": 4}, "e": [1]}});
        let previous =
            json!({"user_id": 1, "data": {"a": 0, "b": {"c": 3, "d": 4}, "e": {"f": 1}, "g": 1}});
        let mut row = row("user.updated", Some(now));
        row.previous = Some(previous.to_string().into_bytes());
        let data = made(row, What::Payload).unwrap()["data"].clone();
        assert_eq!(
            data,
            json!({"a": 1, "b": {"c": null, "d": 4}, "e": [1], "g": null})
        );
    }

    #[test]
    fn what_can_never_be_an_event_says_why_without_its_values() {
        let long = "secret".repeat(50_000);
        let mut too_large = row("user.created", None);
        too_large.payload = Some(Payload::TooLarge);
        let rows = [
            (
                row("user.renamed", Some(json!({}))),
                "none of the four types",
            ),
            (too_large, "payload is longer than"),
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
            let reason = made(row, What::Payload).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
            assert!(!reason.contains("secret"), "{reason}");
        }
        let mut negative = row("D", None);
        negative.user = "-5".to_owned();
        let reason = made(negative, What::Gone).unwrap_err();
        assert!(reason.contains("/user_id: must be"), "{reason}");
    }
}
