//! What events make of a user, read from docs/EVENTS.md and written a second time: nothing here is the product's code.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

/// A user as every copy should hold them; `None` in the place of a member = it isn't known, or not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Person {
    pub(crate) username: Option<String>,
    pub(crate) email: Option<String>,
    pub(crate) data: Map<String, Value>,
    pub(crate) deleted: bool,
}

/// One user, and the events that were merged.
#[derive(Default)]
struct Known {
    person: Person,
    seen: HashSet<(Option<String>, String)>,
}

/// Everybody, by id.
#[derive(Default)]
pub(crate) struct People(BTreeMap<u64, Known>);

impl People {
    /// Takes in the next event of the stream. What is no event says nothing of anybody.
    pub(crate) fn take(&mut self, subject: &str, message_id: Option<&str>, payload: &[u8]) {
        let Ok(Value::Object(event)) = serde_json::from_slice(payload) else {
            return;
        };
        let Some(user) = event.get("user_id").and_then(Value::as_u64) else {
            return;
        };
        let known = self.0.entry(user).or_default();
        // Source and id make an event the same one.
        let text = |name: &str| event.get(name).and_then(Value::as_str).map(str::to_owned);
        let id = text("id").or_else(|| message_id.map(str::to_owned));
        if id.is_some_and(|id| !known.seen.insert((text("source"), id))) {
            return;
        }
        let person = &mut known.person;
        let created = subject == "user.created";
        if subject == "user.deleted" {
            *person = Person {
                deleted: true,
                ..Person::default()
            };
            return;
        }
        if person.deleted && !created {
            return;
        }
        if created {
            *person = Person::default();
        }
        for (name, member) in [
            ("username", &mut person.username),
            ("email", &mut person.email),
        ] {
            match event.get(name) {
                None => {}
                Some(Value::String(text)) => *member = Some(text.clone()),
                Some(_) => *member = None,
            }
        }
        match event.get("data") {
            Some(Value::Object(patch)) => merge(&mut person.data, patch),
            Some(Value::Null) => person.data.clear(),
            _ => {}
        }
    }

    pub(crate) fn get(&self, user: u64) -> Option<&Person> {
        self.0.get(&user).map(|known| &known.person)
    }
}

/// RFC 7396: null removes, objects are merged, the rest replaces.
fn merge(data: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, value) in patch {
        match (data.get_mut(name), value) {
            (_, Value::Null) => _ = data.remove(name),
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, Value::Object(new)) => {
                let mut fresh = Map::new();
                merge(&mut fresh, new);
                data.insert(name.clone(), Value::Object(fresh));
            }
            (_, value) => _ = data.insert(name.clone(), value.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn after(events: &[(&str, Value)]) -> Person {
        let mut people = People::default();
        for (subject, event) in events {
            people.take(subject, None, event.to_string().as_bytes());
        }
        people.get(1).cloned().unwrap_or_default()
    }

    #[test]
    fn events_merge_as_the_page_says() {
        let said = after(&[
            ("user.updated", json!({"user_id": 1, "data": {"lost": 1}})),
            (
                "user.created",
                json!({"user_id": 1, "username": "ann", "data": {"n": 1, "a": {"b": 1, "c": 1}}}),
            ),
            (
                "user.updated",
                json!({"id": "x", "user_id": 1, "email": "a@x", "data": {"n": 2, "a": {"b": null}}}),
            ),
            (
                "user.updated",
                json!({"id": "y", "user_id": 1, "username": null, "data": {"n": 3}}),
            ),
            (
                "user.updated",
                json!({"id": "x", "user_id": 1, "email": "old", "data": {"n": 2}}),
            ),
            ("user.updated", json!({"user_id": "nobody"})),
        ]);
        assert_eq!(
            (said.username.as_deref(), said.email.as_deref()),
            (None, Some("a@x"))
        );
        assert_eq!(Value::Object(said.data), json!({"n": 3, "a": {"c": 1}}));
        let gone = after(&[
            ("user.created", json!({"user_id": 1, "username": "ann"})),
            ("user.deleted", json!({"user_id": 1})),
            ("user.updated", json!({"user_id": 1, "username": "late"})),
        ]);
        assert_eq!(
            gone,
            Person {
                deleted: true,
                ..Person::default()
            }
        );
    }
}
