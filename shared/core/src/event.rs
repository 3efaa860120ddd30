//! What a service publishes about a user: parsing, validation and its JSON form.
//!
//! Knows nothing of the state an event leads to; see [`crate::state`].

use std::{borrow::Cow, fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    json,
    number::{self, Beyond},
    outbox::Outbox,
    user_id::UserId,
};

/// The four things that can happen to a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum EventType {
    /// Replaces the user, and revives a deleted one.
    #[serde(rename = "user.created")]
    Created,
    /// Merges into the user (RFC 7396).
    #[serde(rename = "user.updated")]
    Updated,
    /// Leaves a tombstone without personal data.
    #[serde(rename = "user.deleted")]
    Deleted,
    /// Merges like `Updated`; its own type so that targets can tell.
    #[serde(rename = "user.status_changed")]
    StatusChanged,
}

impl EventType {
    /// Every type, in the order of the documentation.
    pub const ALL: [Self; 4] = [
        Self::Created,
        Self::Updated,
        Self::Deleted,
        Self::StatusChanged,
    ];

    /// The full name, which is also the NATS subject: `user.created`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "user.created",
            Self::Updated => "user.updated",
            Self::Deleted => "user.deleted",
            Self::StatusChanged => "user.status_changed",
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EventType {
    type Err = InvalidEvent;

    fn from_str(text: &str) -> Result<Self, InvalidEvent> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| InvalidEvent::new("/type", UNKNOWN_TYPE))
    }
}

const UNKNOWN_TYPE: &str =
    "must be one of user.created, user.updated, user.deleted, user.status_changed";

/// What an event says of one member of the user (RFC 7396: absent, null or a value).
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Change<T> {
    /// The member is absent: leave it as it is.
    #[default]
    Keep,
    /// The member is null: remove it.
    Clear,
    /// The member has a value: set it, or merge an object.
    Set(T),
}

impl<T> Change<T> {
    /// Whether the member is absent; serialising skips it then.
    pub fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }
}

impl<T: Serialize> Serialize for Change<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Keep | Self::Clear => serializer.serialize_unit(),
            Self::Set(value) => value.serialize(serializer),
        }
    }
}

/// A valid event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Idempotency key, unique per thing that happened: 1 to 128 printable ASCII characters.
    pub id: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// To whom.
    pub user_id: UserId,
    /// The log-in name.
    #[serde(skip_serializing_if = "Change::is_keep")]
    pub username: Change<String>,
    /// The e-mail address.
    #[serde(skip_serializing_if = "Change::is_keep")]
    pub email: Change<String>,
    /// Anything else of the user. A `status` given beside it is kept as `data.status`.
    #[serde(skip_serializing_if = "Change::is_keep")]
    pub data: Change<Value>,
    /// When it happened, says the publisher. Never decides the order.
    pub timestamp: Timestamp,
    /// The service that published it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Of a `Deleted`: the user is erased, so targets that would only disable them delete them too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub erase: bool,
    /// Of an event that a relay made of a row: where it stands among the notes of its source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox: Option<Outbox>,
}

/// Why a document is no valid event, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", shown(pointer))]
pub struct InvalidEvent {
    /// JSON Pointer (RFC 6901) to the offending member; empty for the whole document.
    pub pointer: Cow<'static, str>,
    /// What is wrong and what is expected; never quotes the value.
    pub reason: Cow<'static, str>,
}

/// A pointer for logs, which hold no data of users: names of members may be some from the third on, or where they are no
/// names.
fn shown(pointer: &str) -> String {
    let is_name = |part: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        (1..=64).contains(&part.len()) && part.bytes().all(fits)
    };
    let mut parts = pointer.split('/').skip(1);
    let known: Vec<&str> = parts
        .by_ref()
        .take(2)
        .take_while(|part| is_name(part))
        .collect();
    let shown: String = known.iter().map(|part| format!("/{part}")).collect();
    match (
        shown.as_str(),
        pointer.split('/').skip(1).count() > known.len(),
    ) {
        ("", false) => String::new(),
        (_, false) => format!("{shown}: "),
        (_, true) => format!("{shown}/…: "),
    }
}

impl InvalidEvent {
    /// An error at `pointer`.
    pub fn new(
        pointer: impl Into<Cow<'static, str>>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            pointer: pointer.into(),
            reason: reason.into(),
        }
    }
}

/// What an event may leave out, because its transport already says it.
#[derive(Clone, Debug, Default)]
pub struct Envelope {
    /// The type the subject names; the document must agree with it.
    pub kind: Option<EventType>,
    /// The id to use when the document has none.
    pub id: Option<String>,
    /// The time to use when the document has none; without it, `timestamp` must be there.
    pub timestamp: Option<Timestamp>,
}

/// The largest event taken, in bytes of JSON.
pub const MAX_EVENT_BYTES: usize = 256 * 1024;
/// The deepest nesting of arrays and objects taken, the event itself included.
pub const MAX_EVENT_DEPTH: usize = 32;
/// The most members of one object.
pub const MAX_EVENT_MEMBERS: usize = 1_000;
/// The most items of one array.
pub const MAX_EVENT_ITEMS: usize = 10_000;
const MAX_ID_CHARS: usize = 128;
const MAX_NAME_CHARS: usize = 320;

impl Event {
    /// Parses the payload of one message.
    ///
    /// # Errors
    /// [`InvalidEvent`] when the payload is too large, no JSON object, or breaks the contract.
    pub fn parse(payload: &[u8], envelope: Envelope) -> Result<Self, InvalidEvent> {
        Self::from_value(read(payload, Beyond::All)?, envelope)
    }

    /// The same of a document that a database has written.
    ///
    /// # Errors
    /// As [`Event::parse`].
    pub fn of_row(document: &[u8], envelope: Envelope) -> Result<Self, InvalidEvent> {
        Self::from_value(read(document, Beyond::AllButDoubles)?, envelope)
    }

    /// The same of a message of USER_EVENTS, which may be a relay's: its `outbox` is still to be vouched for.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_relayed(payload: &[u8], envelope: Envelope) -> Result<Self, InvalidEvent> {
        let mut value = read(payload, Beyond::All)?;
        let outbox = match &mut value {
            Value::Object(members) => Outbox::take(members)?,
            _ => None,
        };
        let mut event = Self::from_value(value, envelope)?;
        event.outbox = outbox;
        Ok(event)
    }

    /// Takes one parsed document.
    ///
    /// # Errors
    /// [`InvalidEvent`] when the document is no object or breaks the contract.
    pub fn from_value(value: Value, envelope: Envelope) -> Result<Self, InvalidEvent> {
        within_limits(&value, 0)?;
        let Value::Object(mut members) = value else {
            return Err(InvalidEvent::new("", "an event must be a JSON object"));
        };
        if members.contains_key("outbox") {
            let reason =
                "is said by usersync-gateway only, of the rows that it relays; leave it out";
            return Err(InvalidEvent::new("/outbox", reason));
        }
        let user_id = match members.get("user_id") {
            None => return Err(InvalidEvent::new("/user_id", "is required")),
            Some(value) => UserId::try_from(value)
                .map_err(|error| InvalidEvent::new("/user_id", error.to_string()))?,
        };
        let kind = take_type(&mut members, envelope.kind)?;
        let id = match take_text(&mut members, "id", MAX_ID_CHARS)? {
            Change::Set(id) if !is_id(&id) => {
                return Err(InvalidEvent::new(
                    "/id",
                    "must be 1 to 128 printable ASCII characters without spaces",
                ));
            }
            Change::Set(id) => id,
            Change::Keep | Change::Clear => match envelope.id {
                Some(id) if is_id(&id) => id,
                _ => {
                    return Err(InvalidEvent::new(
                        "/id",
                        "is required: 1 to 128 printable ASCII characters without spaces",
                    ));
                }
            },
        };
        let timestamp = match take_text(&mut members, "timestamp", 64)? {
            Change::Set(text) => text.parse().map_err(|_| {
                InvalidEvent::new(
                    "/timestamp",
                    "must be an RFC 3339 time with an offset, such as 2026-01-31T12:00:00Z, before 9999-12-30T22:00:00Z",
                )
            })?,
            Change::Keep | Change::Clear => envelope
                .timestamp
                .ok_or_else(|| InvalidEvent::new("/timestamp", "is required: an RFC 3339 time"))?,
        };
        let source = match take_text(&mut members, "source", MAX_ID_CHARS)? {
            Change::Set(source) => Some(source),
            Change::Keep | Change::Clear => None,
        };
        let erase = kind == EventType::Deleted && take_flag(&mut members, "erase")?;
        Ok(Self {
            id,
            kind,
            user_id,
            username: take_text(&mut members, "username", MAX_NAME_CHARS)?,
            email: take_text(&mut members, "email", MAX_NAME_CHARS)?,
            data: take_data(&mut members)?,
            timestamp,
            source,
            erase,
            outbox: None,
        })
    }
}

fn read(payload: &[u8], beyond: Beyond) -> Result<Value, InvalidEvent> {
    if payload.len() > MAX_EVENT_BYTES {
        let reason = format!(
            "the event has {} bytes; at most {MAX_EVENT_BYTES} are taken",
            payload.len()
        );
        return Err(InvalidEvent::new("", reason));
    }
    let payload = json::unmarked(payload);
    let value = json::value(payload).map_err(|error| not_json(&error))?;
    check_integers(payload, &value, beyond)?;
    Ok(value)
}

/// Refuses a document with an integer that can't be held: `value`, what was read of it, has another number there.
///
/// # Errors
/// [`InvalidEvent`] that points to it.
pub fn check_integers(text: &[u8], value: &Value, beyond: Beyond) -> Result<(), InvalidEvent> {
    match number::find(text, value, beyond) {
        // Of that one more is to be said.
        Some(pointer) if pointer != "/user_id" => Err(InvalidEvent::new(
            pointer,
            "must be from -9223372036854775808 to 18446744073709551615; send larger integers as strings",
        )),
        Some(_) | None => Ok(()),
    }
}

/// Why a text is no JSON we take. serde_json's own words may quote the text, so only the place is passed on.
pub fn not_json(error: &serde_json::Error) -> InvalidEvent {
    if error.to_string().starts_with("recursion limit exceeded") {
        return too_deep();
    }
    let what = match error.to_string().starts_with("number out of range") {
        true => "has a number beyond what a double holds",
        false => "is not JSON",
    };
    let (line, column) = (error.line(), error.column());
    InvalidEvent::new("", format!("{what}: line {line} column {column}"))
}

fn too_deep() -> InvalidEvent {
    let reason = format!("arrays and objects are nested deeper than {MAX_EVENT_DEPTH} levels");
    InvalidEvent::new("", reason)
}

/// Refuses what nests too deep or is too wide. `level` is how deep `value` itself lies.
fn within_limits(value: &Value, level: usize) -> Result<(), InvalidEvent> {
    match value {
        Value::Array(_) | Value::Object(_) if level == MAX_EVENT_DEPTH => Err(too_deep()),
        Value::Array(items) if items.len() > MAX_EVENT_ITEMS => Err(InvalidEvent::new(
            "",
            format!("an array has more than {MAX_EVENT_ITEMS} items"),
        )),
        Value::Object(members) if members.len() > MAX_EVENT_MEMBERS => Err(InvalidEvent::new(
            "",
            format!("an object has more than {MAX_EVENT_MEMBERS} members"),
        )),
        Value::Array(items) => items
            .iter()
            .try_for_each(|item| within_limits(item, level + 1)),
        Value::Object(members) => {
            members
                .iter()
                .try_for_each(|(name, item)| match name.starts_with(json::RESERVED) {
                    true => Err(InvalidEvent::new(
                        "",
                        format!(
                            "no member may have a name that begins with {}",
                            json::RESERVED
                        ),
                    )),
                    false => within_limits(item, level + 1),
                })
        }
        _ => Ok(()),
    }
}

/// Whether `text` can be an event's id: 1 to 128 printable ASCII characters without spaces.
pub fn is_id(text: &str) -> bool {
    (1..=MAX_ID_CHARS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn take_type(
    members: &mut Map<String, Value>,
    subject: Option<EventType>,
) -> Result<EventType, InvalidEvent> {
    let stated = match members.remove("type") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.parse::<EventType>()?),
        Some(_) => return Err(InvalidEvent::new("/type", UNKNOWN_TYPE)),
    };
    match (stated, subject) {
        (Some(stated), Some(subject)) if stated != subject => Err(InvalidEvent::new(
            "/type",
            format!("is {stated}, but the subject says {subject}"),
        )),
        (Some(kind), _) | (None, Some(kind)) => Ok(kind),
        (None, None) => Err(InvalidEvent::new("/type", UNKNOWN_TYPE)),
    }
}

fn take_text(
    members: &mut Map<String, Value>,
    name: &'static str,
    most: usize,
) -> Result<Change<String>, InvalidEvent> {
    match members.remove(name) {
        None => Ok(Change::Keep),
        Some(Value::Null) => Ok(Change::Clear),
        Some(Value::String(text)) if text.chars().count() <= most => Ok(Change::Set(text)),
        Some(_) => Err(InvalidEvent::new(
            format!("/{name}"),
            format!("must be a string of at most {most} characters"),
        )),
    }
}

fn take_flag(members: &mut Map<String, Value>, name: &'static str) -> Result<bool, InvalidEvent> {
    match members.remove(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(_) => Err(InvalidEvent::new(
            format!("/{name}"),
            "must be true or false",
        )),
    }
}

/// Takes `data`, with a `status` beside it moved to `data.status`, its one place.
fn take_data(members: &mut Map<String, Value>) -> Result<Change<Value>, InvalidEvent> {
    let data = members.remove("data");
    let Some(status) = members.remove("status") else {
        return Ok(match data {
            None => Change::Keep,
            Some(Value::Null) => Change::Clear,
            Some(value) => Change::Set(value),
        });
    };
    if !status.is_string() && !status.is_null() {
        return Err(InvalidEvent::new("/status", "must be a string"));
    }
    match data {
        None => Ok(Change::Set(Value::Object(Map::from_iter([(
            "status".to_owned(),
            status,
        )])))),
        Some(Value::Object(mut object)) => {
            object.insert("status".to_owned(), status);
            Ok(Change::Set(Value::Object(object)))
        }
        Some(_) => Err(InvalidEvent::new(
            "/data",
            "must be an object when status is given beside it",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn envelope() -> Envelope {
        Envelope {
            kind: Some(EventType::Created),
            id: Some("7".into()),
            timestamp: Some(Timestamp::UNIX_EPOCH),
        }
    }

    fn parse(value: Value) -> Result<Event, InvalidEvent> {
        Event::parse(value.to_string().as_bytes(), envelope())
    }

    #[test]
    fn nats_publishers_may_leave_out_what_the_message_says() {
        let event = parse(json!({"user_id": 42, "username": "ann"})).unwrap();
        assert_eq!((event.id.as_str(), event.kind), ("7", EventType::Created));
        assert_eq!(event.timestamp, Timestamp::UNIX_EPOCH);
        assert_eq!(event.email, Change::Keep);
    }

    #[test]
    fn a_byte_order_mark_is_overlooked() {
        let text = format!(
            "\u{feff}{}",
            json!({"user_id": 42, "data": {"n": 9_007_199_254_740_993_u64}})
        );
        assert_eq!(
            Event::parse(text.as_bytes(), envelope()).unwrap().user_id,
            42.into()
        );
        let beyond = "\u{feff}{\"user_id\": 42, \"data\": {\"n\": 18446744073709551616}}";
        let refused = Event::parse(beyond.as_bytes(), envelope()).unwrap_err();
        assert_eq!(refused.pointer, "/data/n");
    }

    #[test]
    fn status_lives_in_data() {
        let event = parse(json!({"user_id": 1, "status": "locked", "data": {"a": 1}})).unwrap();
        assert_eq!(event.data, Change::Set(json!({"a": 1, "status": "locked"})));
    }

    #[test]
    fn only_a_deletion_erases() {
        let of = |kind, erase: Value| {
            let envelope = Envelope {
                kind: Some(kind),
                ..envelope()
            };
            Event::from_value(json!({"user_id": 1, "erase": erase}), envelope)
        };
        assert!(of(EventType::Deleted, json!(true)).unwrap().erase);
        assert!(!of(EventType::Deleted, json!(null)).unwrap().erase);
        assert!(!of(EventType::Created, json!("yes")).unwrap().erase);
        let error = of(EventType::Deleted, json!("yes")).unwrap_err();
        assert_eq!(error.pointer, "/erase");
    }

    #[test]
    fn an_event_survives_its_own_json() {
        let event = parse(json!({
            "id": "e1", "user_id": "u-1", "email": null, "data": {"x": [1, 2.5, "ü"]},
            "timestamp": "2026-01-31T12:00:00+01:00", "source": "s",
        }))
        .unwrap();
        let again = Event::parse(&serde_json::to_vec(&event).unwrap(), Envelope::default());
        assert_eq!(again, Ok(event));
    }

    #[test]
    fn every_refusal_points_at_the_member() {
        let nested = (0..40).fold(json!(1), |inner, _| json!([inner]));
        let long = "x".repeat(400);
        let cases = [
            ("", json!([])),
            ("", json!({"user_id": 1, "data": nested})),
            ("/user_id", json!({})),
            ("/user_id", json!({"user_id": "a b"})),
            ("/user_id", json!({"user_id": "a".repeat(129)})),
            ("/user_id", json!({"user_id": -1})),
            ("/type", json!({"user_id": 1, "type": "user.exploded"})),
            ("/type", json!({"user_id": 1, "type": "user.deleted"})),
            ("/type", json!({"user_id": 1, "type": 3})),
            ("/id", json!({"user_id": 1, "id": "has space"})),
            ("/id", json!({"user_id": 1, "id": 3})),
            ("/email", json!({"user_id": 1, "email": 3})),
            ("/username", json!({"user_id": 1, "username": long})),
            (
                "/timestamp",
                json!({"user_id": 1, "timestamp": "yesterday"}),
            ),
            ("/status", json!({"user_id": 1, "status": 1})),
            ("/data", json!({"user_id": 1, "status": "a", "data": 1})),
            (
                "/outbox",
                json!({"user_id": 1, "outbox": {"epoch": "a", "note": 1, "owned": []}}),
            ),
        ];
        for (pointer, value) in cases {
            let error = parse(value.clone()).expect_err(&value.to_string());
            assert_eq!(error.pointer, pointer, "{value}");
        }
    }

    #[test]
    fn numbers_stay_what_they_are_or_are_refused() {
        let taken = |number: &str| {
            let event = format!(r#"{{"user_id": 1, "data": {{"n": [{number}]}}}}"#);
            let event = Event::parse(event.as_bytes(), envelope())?;
            Ok(serde_json::to_value(&event).unwrap()["data"]["n"][0].to_string())
        };
        for (number, written) in [
            ("-0.0", "-0.0"),
            ("1e300", "1e+300"),
            ("5e-324", "5e-324"),
            ("9007199254740993", "9007199254740993"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("0.1", "0.1"),
        ] {
            assert_eq!(taken(number).as_deref(), Ok(written), "{number}");
        }
        for number in ["18446744073709551616", "-9223372036854775809"] {
            let error: InvalidEvent = taken(number).unwrap_err();
            assert_eq!(error.pointer, "/data/n/0", "{number}");
        }
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..1_000 {
            // Xorshift: any bits will do.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let double = f64::from_bits(random);
            if double.is_finite() {
                let written = taken(&json!(double).to_string()).unwrap();
                let again: f64 = written.parse().unwrap();
                assert_eq!(again.to_bits(), double.to_bits(), "{double:e} {written}");
            }
        }
    }

    #[test]
    fn what_nests_too_deep_or_is_too_wide_is_refused_and_all_else_taken() {
        let nested = |levels| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        let array = |items| json!(vec![0; items]);
        let object = |members| {
            (0..members)
                .map(|at: usize| (at.to_string(), json!(0)))
                .collect()
        };
        // The event itself is one level.
        for (most, less) in [
            (nested(MAX_EVENT_DEPTH), nested(MAX_EVENT_DEPTH - 1)),
            (array(MAX_EVENT_ITEMS + 1), array(MAX_EVENT_ITEMS)),
            (object(MAX_EVENT_MEMBERS + 1), object(MAX_EVENT_MEMBERS)),
        ] {
            assert!(parse(json!({"user_id": 1, "data": less})).is_ok());
            let error = parse(json!({"user_id": 1, "data": most})).unwrap_err();
            assert!(error.reason.contains("than"), "{error}");
        }
    }

    #[test]
    fn bad_json_is_refused_without_quoting_it() {
        let error = Event::parse(b"{\"email\":\"secret@example.com", envelope()).unwrap_err();
        assert!(
            error.to_string().starts_with("is not JSON: line 1"),
            "{error}"
        );
        assert!(!error.to_string().contains("secret"));
        let large = vec![b' '; MAX_EVENT_BYTES + 1];
        assert!(
            Event::parse(&large, envelope())
                .unwrap_err()
                .reason
                .contains("at most")
        );
    }

    #[test]
    fn an_error_shows_no_names_that_may_be_data() {
        for (pointer, shown) in [
            ("", "wrong"),
            ("/user_id", "/user_id: wrong"),
            ("/data/plan", "/data/plan: wrong"),
            ("/data/emails/ann@private.example", "/data/emails/…: wrong"),
            ("/data/ann@private.example", "/data/…: wrong"),
            ("/data/emails/ann/0", "/data/emails/…: wrong"),
            ("/ann~1bob", "/…: wrong"),
            ("/", "/…: wrong"),
        ] {
            let invalid = InvalidEvent::new(pointer, "wrong");
            assert_eq!(invalid.to_string(), shown, "{pointer}");
        }
    }
}
