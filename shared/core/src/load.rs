//! A row of a main database and the state of its user: whether they say the same, and the state that
//! does. Pure, like [`crate::state::apply`].
//!
//! The row comes as the `user.created` it would be, so it is valid. Only mapped members are looked at
//! and changed; all others are somebody else's.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Map, Value};

use crate::{
    event::{Change, Event, EventType},
    member::Member,
    state::{Cause, FORMAT, State},
};

/// The state that has the mapped `members` of `row`; `None` when `state` has them already.
///
/// Whoever is deleted or unknown there is new; a partial state is whole from then on. `event_seq` stays:
/// the row contains no event of USER_EVENTS.
pub fn merge(state: Option<State>, row: &Event, members: &[Member], now_us: u64) -> Option<State> {
    let known = state.as_ref().is_some_and(|state| !state.deleted);
    let whole = known && state.as_ref().is_some_and(|state| !state.partial);
    let mut next = state.unwrap_or_else(|| State::nobody(row));
    if next.deleted {
        (next.username, next.email, next.data) = (None, None, Value::Null);
    }
    next.become_whole();
    let changed = own(
        row,
        members,
        &mut next.username,
        &mut next.email,
        &mut next.data,
    );
    if whole && !changed {
        return None;
    }
    let status = next.data.get(STATUS).and_then(Value::as_str);
    Some(State {
        format: FORMAT,
        status: status.map(str::to_owned),
        deleted: false,
        erased: false,
        version: now_us.max(next.version + 1),
        event: Cause {
            id: row.id.clone(),
            kind: match known {
                true => EventType::Updated,
                false => EventType::Created,
            },
            source: row.source.clone(),
            timestamp: row.timestamp,
            stored_us: now_us,
        },
        ..next
    })
}

/// Replaces the mapped `members` by what `row` says of them, which may be nothing; all others stay. Whether that
/// changed anything.
pub(crate) fn own(
    row: &Event,
    members: &[Member],
    username: &mut Option<String>,
    email: &mut Option<String>,
    data: &mut Value,
) -> bool {
    let told = Seen::of_row(row);
    let mut changed = false;
    for member in members {
        let value = told.get(member);
        changed |= match member {
            Member::Username => replace(username, value),
            Member::Email => replace(email, value),
            Member::Status => put(data, &[STATUS.to_owned()], value),
            Member::Data(names) => put(data, names, value.map(without_nulls)),
        };
    }
    changed
}

/// A number for what the mapped `members` of a row are; that of an equal state is the same ([`digest_of_state`]).
pub fn digest_of_row(row: &Event, members: &[Member]) -> u64 {
    digest(&Seen::of_row(row), members)
}

/// A number for what the mapped `members` of a state are; that of an equal row is the same ([`digest_of_row`]).
pub fn digest_of_state(state: &State, members: &[Member]) -> u64 {
    let seen = Seen {
        username: state.username.as_deref(),
        email: state.email.as_deref(),
        data: &state.data,
    };
    digest(&seen, members)
}

fn digest(seen: &Seen<'_>, members: &[Member]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for member in members {
        match seen.find(member) {
            Found::Nothing => hash(&Value::Null, &mut hasher),
            Found::Text(text) => hash_text(text, &mut hasher),
            Found::Value(value) => hash(value, &mut hasher),
        }
    }
    hasher.finish()
}

/// Absent and null are the same in a state, so nulls in objects don't count.
fn hash(value: &Value, hasher: &mut DefaultHasher) {
    match value {
        Value::Null => 0u8.hash(hasher),
        Value::Bool(flag) => (1u8, flag).hash(hasher),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => (2u8, number).hash(hasher),
            (_, Some(number), _) => (3u8, number).hash(hasher),
            (.., number) => (4u8, number.unwrap_or_default().to_bits()).hash(hasher),
        },
        Value::String(text) => hash_text(text, hasher),
        Value::Array(items) => {
            (6u8, items.len()).hash(hasher);
            items.iter().for_each(|item| hash(item, hasher));
        }
        Value::Object(members) => {
            7u8.hash(hasher);
            for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
                (8u8, name).hash(hasher);
                hash(value, hasher);
            }
            9u8.hash(hasher);
        }
    }
}

fn hash_text(text: &str, hasher: &mut DefaultHasher) {
    (5u8, text).hash(hasher);
}

const STATUS: &str = "status";

/// What a row or a state says of a user.
struct Seen<'a> {
    username: Option<&'a str>,
    email: Option<&'a str>,
    data: &'a Value,
}

impl<'a> Seen<'a> {
    fn of_row(row: &'a Event) -> Self {
        let text = |change: &'a Change<String>| match change {
            Change::Set(text) => Some(text.as_str()),
            Change::Keep | Change::Clear => None,
        };
        Self {
            username: text(&row.username),
            email: text(&row.email),
            data: match &row.data {
                Change::Set(data) => data,
                Change::Keep | Change::Clear => &Value::Null,
            },
        }
    }

    fn find(&self, member: &Member) -> Found<'a> {
        let text = |text: Option<&'a str>| text.map_or(Found::Nothing, Found::Text);
        let found = match member {
            Member::Username => return text(self.username),
            Member::Email => return text(self.email),
            Member::Status => self.data.get(STATUS),
            Member::Data(names) => {
                let mut names = names.iter();
                names.try_fold(self.data, |value, name| value.get(name))
            }
        };
        let found = found.filter(|value| !value.is_null());
        found.map_or(Found::Nothing, Found::Value)
    }

    /// `None` when there is nothing.
    fn get(&self, member: &Member) -> Option<Value> {
        match self.find(member) {
            Found::Nothing => None,
            Found::Text(text) => Some(text.into()),
            Found::Value(value) => Some(value.clone()),
        }
    }
}

/// What is said of one member.
enum Found<'a> {
    Nothing,
    Text(&'a str),
    Value(&'a Value),
}

/// Whether it is another now.
fn replace(member: &mut Option<String>, value: Option<Value>) -> bool {
    let value = value.and_then(|value| value.as_str().map(str::to_owned));
    let changed = *member != value;
    *member = value;
    changed
}

/// Puts `value` at a path, or takes away what is there; whether that changed anything.
fn put(data: &mut Value, names: &[String], value: Option<Value>) -> bool {
    let [name, rest @ ..] = names else {
        let value = value.unwrap_or_default();
        // Without anything in it, it is as good as absent.
        let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
        let changed = *data != value && !(empty(data) && empty(&value));
        if changed {
            *data = value;
        }
        return changed;
    };
    let (Some(value), rest) = (value, rest) else {
        let Value::Object(members) = data else {
            return false;
        };
        return match members.get_mut(name) {
            None => false,
            Some(_) if rest.is_empty() => members.remove(name).is_some(),
            Some(inner) => put(inner, rest, None),
        };
    };
    if !data.is_object() {
        *data = Value::Object(Map::new());
    }
    let Value::Object(members) = data else {
        return false;
    };
    match members.get_mut(name) {
        Some(inner) if rest.is_empty() && *inner == value => false,
        Some(inner) if rest.is_empty() => {
            *inner = value;
            true
        }
        Some(inner) => put(inner, rest, Some(value)),
        None => {
            let mut inner = Value::Null;
            match rest.is_empty() {
                true => inner = value,
                false => _ = put(&mut inner, rest, Some(value)),
            }
            members.insert(name.clone(), inner);
            true
        }
    }
}

/// As merging would leave it: an object's nulls say that there is nothing (RFC 7396).
pub(crate) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                members
                    .map(|(name, value)| (name, without_nulls(value)))
                    .collect(),
            )
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Envelope;
    use jiff::Timestamp;
    use serde_json::json;

    fn event(kind: EventType, mut document: Value) -> Event {
        document["user_id"] = json!(1);
        let envelope = Envelope {
            kind: Some(kind),
            id: Some("e".to_owned()),
            timestamp: Some(Timestamp::UNIX_EPOCH),
        };
        Event::from_value(document, envelope).unwrap()
    }

    fn state(kind: EventType, document: Value) -> State {
        let event = event(kind, document);
        let mut state = State::of_one(&event, 9, 1_000);
        state
            .seen
            .remember(&event.key(), 1_000, std::time::Duration::MAX);
        state
    }

    fn members() -> Vec<Member> {
        let members = [
            "username",
            "email",
            "status",
            "data.phone",
            "data.name.nick",
            "data.prefs",
        ];
        members.map(|member| member.parse().unwrap()).into()
    }

    /// The state after the row, and whether digests agree with what `merge` says.
    fn merged(state: Option<State>, row: Value) -> Option<State> {
        let row = event(EventType::Created, row);
        let members = members();
        let result = merge(state.clone(), &row, &members, 2_000);
        if let Some(state) = state.filter(|state| !state.deleted && !state.partial) {
            let same = digest_of_state(&state, &members) == digest_of_row(&row, &members);
            assert_eq!(same, result.is_none(), "{state:?}");
        }
        if let Some(result) = &result {
            assert_eq!(
                digest_of_state(result, &members),
                digest_of_row(&row, &members)
            );
            assert_eq!(
                merge(Some(result.clone()), &row, &members, 3_000),
                None,
                "once is enough"
            );
        }
        result
    }

    use EventType::{Created, Deleted, Updated};

    #[test]
    fn what_an_event_made_of_a_row_is_equal_to_the_row() {
        let rows = [
            json!({"username": "ann", "email": null, "status": null, "data": {"phone": null, "name": {"nick": null}, "prefs": null}}),
            json!({"username": "ann", "status": "active", "data": {"phone": "1", "name": {"nick": "a"}, "prefs": {"a": null, "b": [null, 1.5]}}}),
            json!({"data": {"prefs": {}}}),
        ];
        for row in rows {
            assert_eq!(
                merged(Some(state(Created, row.clone())), row.clone()),
                None,
                "{row}"
            );
        }
    }

    #[test]
    fn only_mapped_members_change_and_the_events_contained_stay() {
        let before = state(
            Created,
            json!({"username": "ann", "email": "a@x", "data": {"phone": "1", "city": "Ulm", "name": {"nick": "a", "first": "A"}, "prefs": {"a": 1, "b": 2}}}),
        );
        let row = json!({"username": "Ann", "email": null, "status": "active", "data": {"name": {"nick": null}, "prefs": {"a": 1}}});
        let after = merged(Some(before), row).unwrap();
        assert_eq!(
            (after.username.as_deref(), after.email.as_deref()),
            (Some("Ann"), None)
        );
        assert_eq!(after.status.as_deref(), Some("active"));
        let data =
            json!({"city": "Ulm", "name": {"first": "A"}, "prefs": {"a": 1}, "status": "active"});
        assert_eq!(after.data, data);
        assert_eq!(
            (after.version, after.event_seq, after.event.kind),
            (2_000, 9, Updated)
        );
        assert_eq!(after.seen.len(), 1);
    }

    #[test]
    fn the_version_rises_above_the_one_before() {
        let mut before = state(Created, json!({"username": "ann"}));
        before.version = 5_000;
        assert_eq!(
            merged(Some(before), json!({"username": "bob"}))
                .unwrap()
                .version,
            5_001
        );
    }

    #[test]
    fn the_unknown_the_deleted_and_the_partial_become_whole() {
        let row = json!({"username": "ann", "data": {"phone": "1"}});
        let fresh = merged(None, row.clone()).unwrap();
        assert_eq!(
            (fresh.event_seq, fresh.event.kind, fresh.version),
            (0, Created, 2_000)
        );
        assert!(fresh.seen.is_empty() && !fresh.partial);
        let deleted = state(Deleted, json!({}));
        let back = merged(Some(deleted), row.clone()).unwrap();
        assert_eq!(
            (back.deleted, back.event_seq, back.event.kind),
            (false, 9, Created)
        );
        let partial = state(Updated, row.clone());
        let whole = merged(Some(partial), row).unwrap();
        assert!(!whole.partial);
        assert_eq!(whole.event.kind, Updated);
    }

    #[test]
    fn a_whole_document_may_be_mapped() {
        let members = ["data".parse().unwrap()];
        let before = state(Created, json!({"data": {"a": 1, "b": {"c": 2}}}));
        let row = event(Created, json!({"data": {"b": {"d": null}}}));
        let after = merge(Some(before), &row, &members, 1).unwrap();
        assert_eq!(after.data, json!({"b": {}}));
        let nothing = state(Created, json!({}));
        assert_eq!(
            merge(
                Some(nothing),
                &event(Created, json!({"data": {}})),
                &members,
                1
            ),
            None
        );
    }
}
