//! The newest state of one user, and how an event changes it.
//!
//! Pure: no NATS, no clock. The rules are those of docs/ARCHITECTURE.md, "Order is stream order".

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    event::{Change, Event, EventType},
    load,
    outbox::Notes,
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
    /// By source, the newest note of its outbox that is contained: what says less is a late copy.
    #[serde(skip_serializing_if = "Notes::is_empty", default)]
    pub notes: Notes,
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
        let source = event.source.as_deref().unwrap_or_default();
        let outbox = event.outbox.as_ref();
        if outbox.is_some_and(|outbox| outbox.is_contained_in(&known.notes, source)) {
            return Applied::Known;
        }
        let erases = event.erase && !known.erased;
        if known.deleted && event.kind != EventType::Created && !erases {
            let Some(outbox) = &event.outbox else {
                return Applied::AfterDelete;
            };
            // Else a late copy of an earlier note could revive.
            known.notes.insert(source.to_owned(), outbox.remembered());
            known.version = now_us.max(known.version + 1);
            known.event_seq = at.seq;
            return Applied::Changed;
        }
    }
    let base = state.take();
    let version = base
        .as_ref()
        .map_or(now_us, |base| now_us.max(base.version + 1));
    let outbox = event.outbox.as_ref();
    let (mut user, partial) = match (event.kind, base) {
        // A row says what its source owns; the rest is somebody else's.
        (EventType::Created, Some(base)) if outbox.is_some() && !base.deleted => {
            (User::of(base), false)
        }
        (EventType::Created | EventType::Deleted, base) => (User::nobody(base), false),
        (_, None) => (User::default(), outbox.is_none()),
        (_, Some(base)) => {
            let partial = base.partial && outbox.is_none();
            (User::of(base), partial)
        }
    };
    if let Some(outbox) = outbox {
        let source = event.source.clone().unwrap_or_default();
        user.notes.insert(source, outbox.remembered());
    }
    let deleted = event.kind == EventType::Deleted;
    if let (Some(outbox), false) = (outbox, deleted) {
        let owned = &outbox.owned;
        load::own(
            event,
            owned,
            &mut user.username,
            &mut user.email,
            &mut user.data,
        );
    } else if !deleted {
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
        notes: user.notes,
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
    notes: Notes,
}

impl User {
    fn of(base: State) -> Self {
        Self {
            username: base.username,
            email: base.email,
            data: base.data,
            recent: base.recent,
            notes: base.notes,
        }
    }

    fn nobody(base: Option<State>) -> Self {
        let Some(base) = base else {
            return Self::default();
        };
        Self {
            recent: base.recent,
            notes: base.notes,
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
    use crate::{event::Envelope, member::Member, outbox::Outbox};
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

    /// What the relay of `source` says of a row that maps username and data.a.
    fn row(kind: EventType, note: i64, members: Value) -> Event {
        let mut event = event(kind, members, 0);
        event.id = format!("crm:e1:{note}");
        event.source = Some("crm".to_owned());
        event.outbox = Some(Outbox {
            epoch: "e1".to_owned(),
            note,
            owned: vec![Member::Username, Member::Data(vec!["a".to_owned()])],
            newer: Vec::new(),
        });
        event
    }

    fn say(state: &mut Option<State>, seq: u64, event: &Event) -> Applied {
        apply(state, event, Position { seq, stored_us: 5 }, 1_000)
    }

    #[test]
    fn a_row_replaces_what_its_source_owns_and_keeps_the_rest() {
        let mut state = None;
        let ann = json!({"username": "ann", "data": {"a": {"x": 1, "y": 2}}});
        say(&mut state, 1, &row(Updated, 1, ann));
        assert!(!state.as_ref().unwrap().partial, "a row is all there is");
        let plan = json!({"email": "a@x", "data": {"plan": "gold"}});
        say(&mut state, 2, &event(Updated, plan, 2));
        // An object isn't merged, and what is null or absent is gone.
        let row_2 = row(
            Created,
            2,
            json!({"username": null, "data": {"a": {"y": 2}}}),
        );
        say(&mut state, 3, &row_2);
        let now = state.clone().unwrap();
        assert_eq!((now.username, now.email.as_deref()), (None, Some("a@x")));
        assert_eq!(now.data, json!({"a": {"y": 2}, "plan": "gold"}));
        say(&mut state, 4, &row(Updated, 3, json!({})));
        assert_eq!(state.unwrap().data, json!({"plan": "gold"}));
    }

    #[test]
    fn a_late_copy_of_a_row_changes_nothing() {
        let mut state = None;
        say(&mut state, 1, &row(Created, 7, json!({"username": "new"})));
        let before = state.clone();
        for (seq, note) in [(2, 7), (3, 6)] {
            let late = row(Created, note, json!({"username": "old"}));
            assert_eq!(say(&mut state, seq, &late), Applied::Known);
        }
        assert_eq!(state, before);
        let gone = say(&mut state, 4, &row(Deleted, 8, json!({})));
        assert_eq!(gone, Applied::Changed);
        let late = row(Created, 7, json!({"username": "old"}));
        assert_eq!(say(&mut state, 5, &late), Applied::Known);
        assert!(state.as_ref().unwrap().deleted, "nor does it revive");
        // Nor what came between two deletions of which the second one says nothing new.
        say(&mut state, 6, &row(Deleted, 12, json!({})));
        let late = row(Created, 10, json!({"username": "old"}));
        assert_eq!(say(&mut state, 7, &late), Applied::Known);
    }

    #[test]
    fn a_row_that_is_there_again_revives_and_an_updated_one_never() {
        let mut state = None;
        let whole = json!({"username": "ann", "email": "a@x", "data": {"plan": "gold"}});
        say(&mut state, 1, &event(Created, whole, 1));
        say(&mut state, 2, &event(Deleted, json!({"erase": true}), 2));
        let update = row(Updated, 1, json!({"username": "ann"}));
        assert_eq!(say(&mut state, 3, &update), Applied::Changed);
        let known = state.clone().unwrap();
        assert!(known.deleted && known.erased && known.notes["crm"].note == 1);
        let again = row(Created, 2, json!({"username": "bob"}));
        assert_eq!(say(&mut state, 4, &again), Applied::Changed);
        let state = state.unwrap();
        assert_eq!(
            (state.username.as_deref(), state.email, state.data),
            (Some("bob"), None, Value::Null),
            "nothing of the user before"
        );
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
