//! One delivery: the newest state of one user, or as much of it as this target is told.

use axum::http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value};
use usersync_core::{
    event::{Change, EventType},
    user_id::UserId,
};

use crate::problem::{Fault, Problem};

/// The largest version: what every JSON reader and a BIGINT can hold.
const MAX_VERSION: u64 = (1 << 53) - 1;
/// A target's name, the longest token of an id, and a version.
const MAX_TASK_ID_CHARS: usize = 512;
/// The most users in one call.
const MAX_ITEMS: usize = 1_000;

/// What a target is asked to store.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// `<target>:<user_id>:<version>`, the same on every redelivery; the id as subjects have it ([`UserId::token`]).
    pub task_id: String,
    /// The last event merged into this state: a hint, several events may be merged in it.
    pub event_type: Option<EventType>,
    /// Whose state this is.
    pub user_id: UserId,
    /// The log-in name; `Keep` when this target isn't told.
    pub username: Change<String>,
    /// The e-mail address; `Keep` when this target isn't told.
    pub email: Change<String>,
    /// Everything else; `Keep` when this target isn't told.
    pub data: Change<Value>,
    /// The user is gone.
    pub deleted: bool,
    /// The user is no longer meant to be active here: set what is told, which is the status, where the
    /// user is there. Where not, only remember the version, as for a deleted one.
    pub disable: bool,
    /// Nobody created this user yet, so only the members present are known: write those alone.
    pub partial: bool,
    /// Strictly increases per user. The only thing to order deliveries by.
    pub version: u64,
    /// When the last event happened, says its publisher. Never order by it.
    pub timestamp: Option<Timestamp>,
    /// Who published the last event.
    pub source: Option<String>,
}

impl Delivery {
    /// Parses one user of a call.
    pub(crate) fn parse(document: Value) -> Result<Self, Problem> {
        let Value::Object(mut members) = document else {
            return Err(fault("", "must be a JSON object"));
        };
        let task_id = match members.remove("task_id") {
            Some(Value::String(id))
                if !id.is_empty() && id.chars().count() <= MAX_TASK_ID_CHARS =>
            {
                id
            }
            _ => return Err(fault("/task_id", "must be a string of 1 to 512 characters")),
        };
        let user_id = members.get("user_id").unwrap_or(&Value::Null);
        let user_id =
            UserId::try_from(user_id).map_err(|error| fault("/user_id", error.to_string()))?;
        let version = match members.get("version").and_then(Value::as_u64) {
            Some(version) if (1..=MAX_VERSION).contains(&version) => version,
            _ => {
                return Err(fault(
                    "/version",
                    "must be an integer from 1 to 9007199254740991",
                ));
            }
        };
        let timestamp = match take_text(&mut members, "timestamp")? {
            Change::Set(text) => Some(
                text.parse()
                    .map_err(|_| fault("/timestamp", "must be an RFC 3339 time"))?,
            ),
            Change::Keep | Change::Clear => None,
        };
        let deleted = take_flag(&mut members, "deleted")?;
        let disable = match set(take_text(&mut members, "action")?).as_deref() {
            None | Some("upsert" | "delete") => false,
            Some("disable") => true,
            Some(_) => return Err(fault("/action", "must be upsert, delete or disable")),
        };
        let partial = take_flag(&mut members, "partial")?;
        let mut delivery = Self {
            task_id,
            // A hint: a type this version doesn't know yet is no reason to refuse the state.
            event_type: set(take_text(&mut members, "event_type")?)
                .and_then(|text| text.parse().ok()),
            user_id,
            username: take_text(&mut members, "username")?,
            email: take_text(&mut members, "email")?,
            data: match members.remove("data") {
                None => Change::Keep,
                Some(Value::Null) => Change::Clear,
                Some(value) => Change::Set(value),
            },
            deleted,
            disable,
            partial,
            version,
            timestamp,
            source: set(take_text(&mut members, "source")?),
        };
        if partial {
            delivery.forget_unknown();
        }
        Ok(delivery)
    }

    /// In a partial state null says "nobody knows", not "there is none".
    fn forget_unknown(&mut self) {
        fn keep<T>(member: &mut Change<T>) {
            if matches!(member, Change::Clear) {
                *member = Change::Keep;
            }
        }
        keep(&mut self.username);
        keep(&mut self.email);
        keep(&mut self.data);
    }
}

/// What one call holds.
pub(crate) enum Posted {
    One(Value),
    Several(Vec<Value>),
}

impl Posted {
    /// Reads the body of a call.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Problem> {
        match serde_json::from_slice(body) {
            Ok(Value::Array(items)) if items.len() > MAX_ITEMS => {
                let detail = format!("at most {MAX_ITEMS} users fit into one call");
                Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
            }
            Ok(Value::Array(items)) => Ok(Self::Several(items)),
            Ok(document) => Ok(Self::One(document)),
            // serde_json's own text may quote the body, so only the place is passed on.
            Err(error) => {
                let (line, column) = (error.line(), error.column());
                let place = format!("the body is not JSON: line {line} column {column}");
                Err(Problem::new(StatusCode::BAD_REQUEST, place))
            }
        }
    }
}

fn fault(pointer: &str, detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::invalid(vec![Fault::new(pointer, detail)])
}

fn set<T>(change: Change<T>) -> Option<T> {
    match change {
        Change::Set(value) => Some(value),
        Change::Keep | Change::Clear => None,
    }
}

fn take_text(members: &mut Map<String, Value>, name: &str) -> Result<Change<String>, Problem> {
    match members.remove(name) {
        None => Ok(Change::Keep),
        Some(Value::Null) => Ok(Change::Clear),
        Some(Value::String(text)) => Ok(Change::Set(text)),
        Some(_) => Err(fault(&format!("/{name}"), "must be a string or null")),
    }
}

fn take_flag(members: &mut Map<String, Value>, name: &str) -> Result<bool, Problem> {
    match members.remove(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(_) => Err(fault(&format!("/{name}"), "must be true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(extra: Value) -> Result<Delivery, Problem> {
        let mut body = json!({"task_id": "t:42:7", "user_id": 42, "version": 7});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        Delivery::parse(body)
    }

    #[test]
    fn absent_null_and_a_value_are_three_things() {
        let delivery =
            parse(json!({"username": null, "data": {"a": 1}, "event_type": "user.renamed"}))
                .unwrap();
        assert_eq!(delivery.username, Change::Clear);
        assert_eq!(delivery.email, Change::Keep);
        assert_eq!(delivery.data, Change::Set(json!({"a": 1})));
        assert_eq!(
            (delivery.event_type, delivery.deleted, delivery.source),
            (None, false, None)
        );
    }

    #[test]
    fn an_array_holds_a_thousand_users_and_not_one_more() {
        let array = |count: usize| Posted::read(json!(vec![0; count]).to_string().as_bytes());
        assert!(matches!(array(1_000), Ok(Posted::Several(items)) if items.len() == 1_000));
        let refused = array(1_001).err().unwrap();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn null_in_a_partial_state_clears_nothing() {
        let delivery = parse(json!({"partial": true, "username": null, "email": "a@x"})).unwrap();
        assert_eq!(delivery.username, Change::Keep);
        assert_eq!(delivery.email, Change::Set("a@x".into()));
    }

    #[test]
    fn every_refusal_points_at_the_member() {
        let cases = [
            ("/task_id", json!({"task_id": ""})),
            ("/task_id", json!({"task_id": 7})),
            ("/user_id", json!({"user_id": "a b"})),
            ("/user_id", json!({"user_id": null})),
            ("/version", json!({"version": 0})),
            ("/version", json!({"version": 9007199254740992u64})),
            ("/version", json!({"version": "7"})),
            ("/username", json!({"username": 1})),
            ("/email", json!({"email": []})),
            ("/deleted", json!({"deleted": "yes"})),
            ("/action", json!({"action": "purge"})),
            ("/action", json!({"action": true})),
            ("/partial", json!({"partial": 1})),
            ("/timestamp", json!({"timestamp": "yesterday"})),
        ];
        for (pointer, extra) in cases {
            let problem = parse(extra.clone()).expect_err(&extra.to_string());
            let pointers: Vec<_> = problem
                .faults()
                .iter()
                .map(|fault| &fault.pointer)
                .collect();
            assert_eq!(pointers, [&format!("#{pointer}")], "{extra}");
        }
    }
}
