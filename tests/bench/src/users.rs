//! The users of a benchmark: events and states of [`BYTES`] bytes, made the same way for ours and the limit.

use anyhow::{Context, Result};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use usersync_core::{
    event::EventType,
    state::{Cause, State},
    user_id::UserId,
};

/// The size of every event and state, in bytes of JSON.
pub(crate) const BYTES: usize = 300;
/// The member of `data` that carries the publish time of a timed event, in unix microseconds.
pub(crate) const SENT_US: &str = "sent_us";

/// Now, in unix microseconds.
pub(crate) fn unix_us() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default()
}

/// A `user.updated` of `user` that changes something. `id` is left out where the gateway is to give one.
///
/// # Errors
/// When the members don't fit into [`BYTES`].
pub(crate) fn event(user: u64, id: Option<&str>) -> Result<Bytes> {
    let mut event = json!({
        "type": "user.updated",
        "user_id": user,
        "username": format!("user{user}"),
        "email": format!("user{user}@example.com"),
        "data": {SENT_US: unix_us(), "note": ""},
        "timestamp": "2026-01-31T12:00:00Z",
        "source": "bench",
    });
    if let Some(id) = id {
        event["id"] = id.into();
    }
    padded(event)
}

/// A `user.updated` of `user` that says when it was sent.
///
/// # Errors
/// When the members don't fit into [`BYTES`].
pub(crate) fn timed_event(user: u64, sent_us: u64) -> Result<Bytes> {
    padded(json!({
        "type": "user.updated",
        "user_id": user,
        "username": format!("user{user}"),
        "data": {SENT_US: sent_us, "note": ""},
        "timestamp": "2026-01-31T12:00:00Z",
        "source": "bench",
    }))
}

/// The state of `user`, as intake would have stored it before any event of the benchmark.
///
/// # Errors
/// When the members don't fit into [`BYTES`].
pub(crate) fn state(user: u64) -> Result<Bytes> {
    let now = Timestamp::now();
    let cause = Cause {
        id: user.to_string(),
        kind: EventType::Created,
        source: None,
        timestamp: Timestamp::from_second(now.as_second()).unwrap_or(now),
        stored_us: unix_us(),
    };
    let state = State {
        username: Some(format!("user{user}")),
        email: Some(format!("user{user}@example.com")),
        data: json!({"note": ""}),
        partial: false,
        version: unix_us(),
        ..State::unknown(UserId::from(user), cause)
    };
    padded(serde_json::to_value(state).context("a state as JSON")?)
}

/// The state of `user` that says when it was stored.
///
/// # Errors
/// When the members don't fit into [`BYTES`].
pub(crate) fn timed_state(user: u64, sent_us: u64) -> Result<Bytes> {
    let mut state: Value = serde_json::from_slice(&state(user)?)?;
    state["email"] = Value::Null;
    state["data"] = json!({SENT_US: sent_us, "note": ""});
    padded(state)
}

/// The document with `data.note` made as long as it takes.
fn padded(mut document: Value) -> Result<Bytes> {
    let length = document.to_string().len();
    let missing = BYTES
        .checked_sub(length)
        .with_context(|| format!("a document of {length} bytes is larger than {BYTES}"))?;
    document["data"]["note"] = "x".repeat(missing).into();
    Ok(Bytes::from(document.to_string()))
}

#[cfg(test)]
mod tests {
    use usersync_core::event::{Envelope, Event};

    use super::*;

    #[test]
    fn every_document_has_the_size_and_the_form_that_ours_reads() {
        for user in [0, 1_999_999] {
            let event = event(user, Some("bench-2-199999")).unwrap();
            assert_eq!(event.len(), BYTES);
            Event::parse(&event, Envelope::default()).unwrap();
            let timed = timed_event(user, unix_us()).unwrap();
            assert_eq!(timed.len(), BYTES);
            for state in [state(user), timed_state(user, unix_us())] {
                let state = state.unwrap();
                assert_eq!(state.len(), BYTES);
                serde_json::from_slice::<State>(&state).unwrap();
            }
        }
    }
}
