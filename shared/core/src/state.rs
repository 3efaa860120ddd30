//! The newest state of one user, and how an event changes it.
//!
//! Pure: no NATS, no clock. The rules are those of docs/ARCHITECTURE.md, "Order is stream order".

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    event::{Change, Event, EventType},
    user_id::UserId,
};

/// How many event ids a state remembers to recognise a repeated event.
const RECENT_IDS: usize = 5;

/// What `user.state.<user_id>` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct State {
    /// Whose state this is.
    pub user_id: UserId,
    /// The log-in name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub username: Option<String>,
    /// The e-mail address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub email: Option<String>,
    /// `data.status`, where it is a string: kept here too, for those who map columns.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<String>,
    /// Everything else of the user; null when there is nothing.
    #[serde(skip_serializing_if = "Value::is_null", default)]
    pub data: Value,
    /// A tombstone: the user is gone, and so is all personal data.
    pub deleted: bool,
    /// Of a tombstone: the user was erased, so targets that would only disable them delete them too.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub erased: bool,
    /// No `user.created` was ever seen: only the members present are known.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub partial: bool,
    /// Strictly increases per user: max(previous + 1, unix microseconds).
    pub version: u64,
    /// The USER_EVENTS sequence up to which this user's events are contained.
    pub event_seq: u64,
    /// The event merged last.
    pub event: Cause,
    /// The ids of the last few events merged, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub recent: Vec<String>,
}

/// The event that made a state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Cause {
    /// Its id.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// Who published it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<String>,
    /// When it happened, says the publisher.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// When USER_EVENTS stored it, in unix microseconds: where end-to-end latency starts.
    pub stored_us: u64,
}

/// Where an event stands in USER_EVENTS.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// Its stream sequence.
    pub seq: u64,
    /// When the stream stored it, in unix microseconds.
    pub stored_us: u64,
}

/// What applying an event came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The state changed and has a new version.
    Changed,
    /// The state already contains the event.
    Known,
    /// The user is deleted, and only `user.created` revives.
    AfterDelete,
}

/// Applies `event` to `state`, `None` being a user nobody has heard of.
///
/// `now_us` is the clock in unix microseconds, for the version.
pub fn apply(state: &mut Option<State>, event: &Event, at: Position, now_us: u64) -> Applied {
    if let Some(known) = state {
        if at.seq <= known.event_seq || known.recent.contains(&event.id) {
            return Applied::Known;
        }
        let erases = event.erase && !known.erased;
        if known.deleted && event.kind != EventType::Created && !erases {
            return Applied::AfterDelete;
        }
    }
    let base = state.take();
    let version = base
        .as_ref()
        .map_or(now_us, |base| now_us.max(base.version + 1));
    let (mut user, partial) = match (event.kind, base) {
        (EventType::Created | EventType::Deleted, base) => (User::nobody(base), false),
        (_, None) => (User::default(), true),
        (_, Some(base)) => {
            let partial = base.partial;
            (User::of(base), partial)
        }
    };
    let deleted = event.kind == EventType::Deleted;
    if !deleted {
        merge_member(&mut user.username, &event.username);
        merge_member(&mut user.email, &event.email);
        match &event.data {
            Change::Keep => {}
            Change::Clear => user.data = Value::Null,
            Change::Set(patch) => merge(&mut user.data, patch),
        }
    }
    // An id taken from the stream sequence needs no remembering: `event_seq` covers it.
    if event.id.parse() != Ok(at.seq) {
        if user.recent.len() == RECENT_IDS {
            user.recent.remove(0);
        }
        user.recent.push(event.id.clone());
    }
    *state = Some(State {
        user_id: event.user_id.clone(),
        username: user.username,
        email: user.email,
        status: user
            .data
            .get("status")
            .and_then(Value::as_str)
            .map(str::to_owned),
        data: user.data,
        deleted,
        erased: event.erase,
        partial,
        version,
        event_seq: at.seq,
        event: Cause {
            id: event.id.clone(),
            kind: event.kind,
            source: event.source.clone(),
            timestamp: event.timestamp,
            stored_us: at.stored_us,
        },
        recent: user.recent,
    });
    Applied::Changed
}

/// The part of a state that events merge into.
#[derive(Default)]
struct User {
    username: Option<String>,
    email: Option<String>,
    data: Value,
    recent: Vec<String>,
}

impl User {
    fn of(base: State) -> Self {
        Self {
            username: base.username,
            email: base.email,
            data: base.data,
            recent: base.recent,
        }
    }

    fn nobody(base: Option<State>) -> Self {
        Self {
            recent: base.map(|base| base.recent).unwrap_or_default(),
            ..Self::default()
        }
    }
}

fn merge_member(member: &mut Option<String>, change: &Change<String>) {
    match change {
        Change::Keep => {}
        Change::Clear => *member = None,
        Change::Set(value) => *member = Some(value.clone()),
    }
}

/// JSON Merge Patch, RFC 7396 section 2.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            members.remove(name);
        } else {
            merge(members.entry(name.as_str()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Envelope;
    use serde_json::json;

    /// Applies events given as (type, members) at sequences 1, 2, 3…
    fn fold(events: &[(EventType, Value)]) -> (Option<State>, Vec<Applied>) {
        let mut state = None;
        let mut results = Vec::new();
        for (index, (kind, members)) in events.iter().enumerate() {
            let seq = index as u64 + 1;
            let event = event(*kind, members.clone(), seq);
            results.push(apply(
                &mut state,
                &event,
                Position { seq, stored_us: 5 },
                1_000,
            ));
        }
        (state, results)
    }

    fn event(kind: EventType, mut members: Value, seq: u64) -> Event {
        members["user_id"] = json!(42);
        let envelope = Envelope {
            kind: Some(kind),
            id: Some(seq.to_string()),
            timestamp: Some(Timestamp::UNIX_EPOCH),
        };
        Event::from_value(members, envelope).unwrap()
    }

    use EventType::{Created, Deleted, StatusChanged, Updated};

    #[test]
    fn rfc_7396_examples() {
        // RFC 7396 appendix A, rows whose target and patch are both possible here.
        let rows = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (
                json!({"a":"b","b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ];
        for (mut target, patch, expected) in rows {
            merge(&mut target, &patch);
            assert_eq!(target, expected);
        }
    }

    #[test]
    fn created_replaces_and_updated_merges() {
        let (state, _) = fold(&[
            (
                Created,
                json!({"username": "ann", "email": "a@x", "data": {"phone": "1", "status": "active"}}),
            ),
            (Updated, json!({"email": null, "data": {"city": "Ulm"}})),
            (StatusChanged, json!({"data": {"status": "locked"}})),
        ]);
        let state = state.unwrap();
        assert_eq!(state.username.as_deref(), Some("ann"));
        assert_eq!(state.email, None);
        assert_eq!(state.status.as_deref(), Some("locked"));
        assert_eq!(
            state.data,
            json!({"phone": "1", "city": "Ulm", "status": "locked"})
        );
        assert_eq!(
            (state.version, state.event_seq, state.partial),
            (1_002, 3, false)
        );

        let (state, _) = fold(&[
            (Created, json!({"email": "a@x"})),
            (Created, json!({"username": "b"})),
        ]);
        assert_eq!(state.unwrap().email, None);
    }

    #[test]
    fn only_created_revives_a_deleted_user() {
        let events = [
            (
                Created,
                json!({"username": "ann", "email": "a@x", "data": {"phone": "1"}}),
            ),
            (Deleted, json!({"username": "ann"})),
            (Updated, json!({"email": "b@x"})),
            (Deleted, json!({})),
            (Created, json!({"username": "bob"})),
        ];
        let (tombstone, _) = fold(&events[..4]);
        let text = serde_json::to_string(&tombstone).unwrap();
        assert!(
            !text.contains("ann") && !text.contains("a@x") && !text.contains("phone"),
            "{text}"
        );
        let (state, results) = fold(&events);
        use Applied::{AfterDelete, Changed};
        assert_eq!(
            results,
            [Changed, Changed, AfterDelete, AfterDelete, Changed]
        );
        assert_eq!(state.unwrap().username.as_deref(), Some("bob"));
    }

    #[test]
    fn an_erasure_is_a_deletion_that_counts_once_more() {
        let erase = || (Deleted, json!({"erase": true, "username": "ann"}));
        let (state, results) =
            fold(&[(Created, json!({})), (Deleted, json!({})), erase(), erase()]);
        use Applied::{AfterDelete, Changed};
        assert_eq!(results, [Changed, Changed, Changed, AfterDelete]);
        let state = state.unwrap();
        assert!(state.deleted && state.erased && state.username.is_none());
        assert_eq!((state.version, state.event_seq), (1_002, 3));
        let (state, _) = fold(&[erase(), (Created, json!({}))]);
        assert!(!state.unwrap().erased);
    }

    #[test]
    fn an_update_for_a_user_nobody_created_is_partial_until_created() {
        let (state, _) = fold(&[
            (Updated, json!({"email": "a@x"})),
            (Updated, json!({"data": {"a": 1}})),
        ]);
        assert!(state.unwrap().partial);
        let (state, _) = fold(&[
            (Updated, json!({"email": "a@x"})),
            (Created, json!({"username": "ann"})),
        ]);
        let state = state.unwrap();
        assert!(!state.partial);
        assert_eq!(state.email, None);
    }

    #[test]
    fn contained_events_are_skipped_by_sequence_and_by_id() {
        let (mut state, _) = fold(&[
            (Created, json!({"id": "first"})),
            (Updated, json!({"id": "second"})),
        ]);
        let before = state.clone();
        let mut again = |id: &str, seq| {
            let repeated = event(Updated, json!({"id": id, "username": "eve"}), seq);
            apply(&mut state, &repeated, Position { seq, stored_us: 5 }, 9_000)
        };
        assert_eq!(again("other", 2), Applied::Known);
        assert_eq!(again("first", 3), Applied::Known);
        assert_eq!(again("third", 3), Applied::Changed);
        assert_ne!(state, before);
    }

    #[test]
    fn a_state_survives_its_own_json() {
        let (state, _) = fold(&[(
            Created,
            json!({"id": "e", "email": "a@x", "data": {"n": 1.5}, "source": "s"}),
        )]);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<Option<State>>(&text).unwrap(), state);
    }
}
