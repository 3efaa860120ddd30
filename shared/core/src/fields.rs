//! Which members of a user a target gets, and in what form its document then is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{event::Change, secret::SecretRef, state::State};

/// Members as dotted paths: `email`, `data.phone`.
///
/// Without `include` a target gets everything; `exclude` then takes away. `user_id`, `deleted`
/// and `version` always stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// Only these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Not these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Members made by a CEL expression over `user` and `event`: path → expression.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub compute: BTreeMap<String, String>,
    /// Members that go out in a form that doesn't tell them: path → how.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mask: BTreeMap<String, Mask>,
    /// The key of `mask = hash`, by reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_key: Option<SecretRef>,
    /// Members that go out under another path: path → new path. Done last.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<String, String>,
}

/// How a member is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mask {
    /// `***`.
    Redact,
    /// A keyed SHA-256 (HMAC) in hex: equal values stay equal.
    Hash,
    /// All but the last four characters are `*`.
    Last4,
}

/// What a target is told of a user. `Keep` = it is not told, `Clear` = there is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Members {
    /// The log-in name.
    #[serde(skip_serializing_if = "Change::is_keep")]
    pub username: Change<String>,
    /// The e-mail address.
    #[serde(skip_serializing_if = "Change::is_keep")]
    pub email: Change<String>,
    /// `data.status`, where it is a string.
    #[serde(skip_serializing_if = "Change::is_keep")]
    pub status: Change<String>,
    /// Everything else.
    #[serde(skip_serializing_if = "Change::is_keep")]
    pub data: Change<Value>,
}

impl Fields {
    /// Takes out of `state` what this target may see.
    ///
    /// Of a partial state only the members present are told, and those that are known to be absent.
    pub fn project(&self, state: &mut State) -> Members {
        let partial = state.partial;
        let cleared = std::mem::take(&mut state.cleared);
        let no_status = cleared.contains("data") || state.data.get("status") == Some(&Value::Null);
        let tell = |name, value: Option<String>| match value {
            _ if !self.sees(name) => Change::Keep,
            Some(value) => Change::Set(value),
            None if !partial || cleared.contains(name) => Change::Clear,
            None if name == "status" && no_status => Change::Clear,
            None => Change::Keep,
        };
        Members {
            username: tell("username", state.username.take()),
            email: tell("email", state.email.take()),
            status: tell("status", state.status.take()),
            data: match self.data(std::mem::take(&mut state.data)) {
                Change::Clear if partial && !cleared.contains("data") => Change::Keep,
                data => data,
            },
        }
    }

    fn sees(&self, name: &str) -> bool {
        let named = |paths: &[String]| paths.iter().any(|path| path == name);
        (self.include.is_empty() || named(&self.include)) && !named(&self.exclude)
    }

    fn data(&self, mut data: Value) -> Change<Value> {
        let inside = |paths: &'_ [String]| paths.iter().any(|path| path.starts_with("data."));
        if !self.sees("data") {
            if self.exclude.iter().any(|path| path == "data") || !inside(&self.include) {
                return Change::Keep;
            }
            let whole = std::mem::take(&mut data);
            for path in self
                .include
                .iter()
                .filter_map(|path| path.strip_prefix("data."))
            {
                copy_path(&whole, path, &mut data);
            }
        }
        for path in self
            .exclude
            .iter()
            .filter_map(|path| path.strip_prefix("data."))
        {
            remove_path(&mut data, path);
        }
        if data.is_null() {
            Change::Clear
        } else {
            Change::Set(data)
        }
    }

    /// Whether the target is told `path`, or at least a part of it, when the user has it. `compute`
    /// and `rename` are not looked at.
    pub fn tells(&self, path: &str) -> bool {
        let included = |listed: &String| covers(listed, path) || covers(path, listed);
        (self.include.is_empty() || self.include.iter().any(included))
            && !self.exclude.iter().any(|listed| covers(listed, path))
    }

    /// What is wrong, one sentence per problem, naming the key. Expressions and the secret aren't looked at.
    pub fn problems(&self) -> Vec<String> {
        let lists = [("include", &self.include), ("exclude", &self.exclude)];
        let listed = lists
            .iter()
            .flat_map(|(key, paths)| paths.iter().map(move |path| (*key, path)));
        let tables = self.compute.keys().map(|path| ("compute", path));
        let tables = tables.chain(self.mask.keys().map(|path| ("mask", path)));
        let renamed = self.rename.iter().flat_map(|(from, to)| [from, to]);
        let paths = listed
            .chain(tables)
            .chain(renamed.map(|path| ("rename", path)));
        let mut problems: Vec<String> = paths
            .filter(|(_, path)| !is_member(path))
            .map(|(key, path)| format!("fields.{key}: `{path}` is no member of a user; expected username, email, status, data or data.<path>"))
            .collect();
        let hashed = self.mask.values().any(|mask| *mask == Mask::Hash);
        if hashed && self.mask_key.is_none() {
            problems.push("fields.mask_key: expected a reference such as env:MASK_KEY, for `hash` needs a key".to_owned());
        }
        problems.extend(self.rename_problems());
        problems
    }

    /// Renames that can't work, whatever the user.
    fn rename_problems(&self) -> impl Iterator<Item = String> {
        let pairs = |(index, to): (usize, &'_ String)| {
            let later = self.rename.values().skip(index + 1);
            later
                .filter(|other| covers(to, other) || covers(other, to))
                .map(|other| match other == to {
                    true => format!("fields.rename: two members become `{to}`"),
                    false => format!(
                        "fields.rename: `{to}` and `{other}` can't both be written, one is inside the other"
                    ),
                })
                .collect::<Vec<_>>()
        };
        let clashes: Vec<String> = self.rename.values().enumerate().flat_map(pairs).collect();
        let untold = self
            .rename
            .keys()
            .filter(|from| !self.tells(from) && !self.compute.keys().any(|made| covers(made, from)))
            .map(|from| {
                format!("fields.rename: `{from}` is not among the fields this target is told")
            });
        clashes.into_iter().chain(untold)
    }
}

/// Whether `inner` is `outer` or lies in it.
fn covers(outer: &str, inner: &str) -> bool {
    let rest = inner.strip_prefix(outer);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether `path` names a member of a user.
fn is_member(path: &str) -> bool {
    let inside = |rest: &str| rest.split('.').all(|name| !name.is_empty());
    matches!(path, "username" | "email" | "status" | "data")
        || path.strip_prefix("data.").is_some_and(inside)
}

fn copy_path(from: &Value, path: &str, into: &mut Value) {
    let (name, rest) = path
        .split_once('.')
        .map_or((path, None), |(name, rest)| (name, Some(rest)));
    let Some(value) = from.get(name) else { return };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let Value::Object(members) = into else { return };
    match rest {
        None => {
            members.insert(name.to_owned(), value.clone());
        }
        Some(rest) => copy_path(value, rest, members.entry(name).or_insert(Value::Null)),
    }
}

fn remove_path(from: &mut Value, path: &str) {
    let Value::Object(members) = from else { return };
    match path.split_once('.') {
        None => {
            members.remove(path);
        }
        Some((name, rest)) => {
            if let Some(inner) = members.get_mut(name) {
                remove_path(inner, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Envelope, Event, EventType};
    use serde_json::json;

    fn state(kind: EventType, mut document: Value) -> State {
        document["user_id"] = json!(1);
        let envelope = Envelope {
            kind: Some(kind),
            id: Some("e".into()),
            timestamp: Some(jiff::Timestamp::UNIX_EPOCH),
        };
        State::of_one(&Event::from_value(document, envelope).unwrap(), 1, 1)
    }

    /// What is told, as JSON: absent when the target isn't told.
    fn told(fields: Value, mut state: State) -> Value {
        let fields: Fields = serde_json::from_value(fields).unwrap();
        serde_json::to_value(fields.project(&mut state)).unwrap()
    }

    #[test]
    fn fields_choose_what_a_target_is_told() {
        let user = json!({
            "username": "ann", "email": "a@x",
            "data": {"phone": "1", "secret": {"hash": "h", "salt": "s"}, "status": "active"},
        });
        let rows = [
            (
                json!({}),
                json!({"username": "ann", "email": "a@x", "status": "active", "data": user["data"]}),
            ),
            (
                json!({"include": ["email", "data.secret.hash"]}),
                json!({"email": "a@x", "data": {"secret": {"hash": "h"}}}),
            ),
            (
                json!({"exclude": ["email", "data.secret.hash", "data.nothing.there"]}),
                json!({"username": "ann", "status": "active",
                       "data": {"phone": "1", "secret": {"salt": "s"}, "status": "active"}}),
            ),
            (
                json!({"include": ["username", "data"], "exclude": ["data"]}),
                json!({"username": "ann"}),
            ),
            (json!({"include": ["username"]}), json!({"username": "ann"})),
        ];
        for (fields, expected) in rows {
            assert_eq!(
                told(fields.clone(), state(EventType::Created, user.clone())),
                expected,
                "{fields}"
            );
        }
    }

    #[test]
    fn a_partial_user_tells_only_what_is_known() {
        let whole = told(
            json!({}),
            state(EventType::Created, json!({"email": "a@x"})),
        );
        assert_eq!(
            whole,
            json!({"username": null, "email": "a@x", "status": null, "data": null})
        );
        let partial = told(
            json!({}),
            state(EventType::Updated, json!({"email": "a@x"})),
        );
        assert_eq!(partial, json!({"email": "a@x"}));
        let cleared = json!({"email": null, "data": {"phone": null, "a": 1, "status": null}});
        let partial = told(json!({}), state(EventType::Updated, cleared));
        assert_eq!(
            partial,
            json!({"email": null, "status": null, "data": {"phone": null, "a": 1, "status": null}})
        );
        let partial = told(json!({}), state(EventType::Updated, json!({"data": null})));
        assert_eq!(partial, json!({"status": null, "data": null}));
    }

    #[test]
    fn every_problem_names_its_key() {
        let rows = [
            (
                json!({"include": ["phone"]}),
                "fields.include: `phone` is no",
            ),
            (
                json!({"exclude": ["data."]}),
                "fields.exclude: `data.` is no",
            ),
            (
                json!({"compute": {"user_id": "1"}}),
                "fields.compute: `user_id` is no",
            ),
            (
                json!({"mask": {"data..a": "redact"}}),
                "fields.mask: `data..a` is no",
            ),
            (
                json!({"mask": {"email": "hash"}}),
                "fields.mask_key: expected",
            ),
            (
                json!({"rename": {"email": "mail"}}),
                "fields.rename: `mail` is no",
            ),
            (
                json!({"rename": {"email": "data.a", "username": "data.a"}}),
                "fields.rename: two members become `data.a`",
            ),
            (
                json!({"rename": {"email": "data.a", "username": "data.a.b"}}),
                "one is inside the other",
            ),
            (
                json!({"exclude": ["data.a"], "rename": {"data.a.b": "email"}}),
                "fields.rename: `data.a.b` is not among",
            ),
        ];
        for (fields, expected) in rows {
            let parsed: Fields = serde_json::from_value(fields.clone()).unwrap();
            let problems = parsed.problems();
            assert!(
                problems.len() == 1 && problems[0].contains(expected),
                "{fields}: {problems:?}"
            );
        }
        let fine = json!({"include": ["email", "data.a"], "compute": {"data.b": "1"},
            "mask": {"email": "redact"}, "rename": {"email": "data.mail", "data.b": "username", "data.a.c": "data.c"}});
        let fine: Fields = serde_json::from_value(fine).unwrap();
        assert_eq!(fine.problems(), Vec::<String>::new());
    }
}
