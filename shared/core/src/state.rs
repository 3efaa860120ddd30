//! The newest state of one user, and how an event changes it.
//!
//! Pure: no NATS, no clock. The rules are those of docs/ARCHITECTURE.md, "Order is stream order".

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    epoch::{Epoch, Epochs, Standing},
    event::{Change, Event, EventType},
    event_key::EventKey,
    json, load,
    member::Member,
    outbox::Notes,
    seen::Seen,
    user_id::UserId,
};

/// The format of the states that this program writes. Raise it where an older program would misread a state, or lose
/// what matters by leaving out members it doesn't know.
pub const FORMAT: u32 = 2;
/// That of v0.1.0, which named none.
const FIRST_FORMAT: u32 = 1;

/// What `user.state.<user_id>` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct State {
    /// The format it is written in.
    #[serde(default = "first_format")]
    pub format: u32,
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
    /// Which epoch of USER_EVENTS `event_seq` counts in; absent = the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub epoch: Option<Epoch>,
    /// The USER_EVENTS sequence up to which this user's events are contained.
    pub event_seq: u64,
    /// The event merged last.
    pub event: Cause,
    /// The events merged within the duplicate window: minutes since 1970, and 16 characters for each event.
    #[serde(skip_serializing_if = "Seen::is_empty", default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub seen: Seen,
    /// The ids of the last few events merged, as v0.1.0 kept them; read, never written.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub recent: Vec<String>,
    /// By source, the newest note of its outbox that is contained: what says less is a late copy.
    #[serde(skip_serializing_if = "Notes::is_empty", default)]
    pub notes: Notes,
}

const fn first_format() -> u32 {
    FIRST_FORMAT
}

/// Why a message of USER_STATE can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is no state.
    #[error("line {} column {}", .0.line(), .0.column())]
    NoState(serde_json::Error),
    /// Its `user_id` isn't that of its subject.
    #[error("its user_id isn't that of its subject")]
    OfAnother,
    /// A newer program wrote it.
    #[error(
        "it is written in format {0}, but this program reads up to {FORMAT}: upgrade it (docs/UPGRADING.md)"
    )]
    Newer(u32),
}

/// The one member that every format has.
#[derive(Deserialize)]
struct Versioned {
    #[serde(default = "first_format")]
    format: u32,
}

impl State {
    /// What a message of USER_STATE says.
    ///
    /// # Errors
    /// When it is no state, or one that only a newer program understands.
    pub fn read(payload: &[u8]) -> Result<Self, Unreadable> {
        match json::read::<Self>(payload) {
            Ok(state) if state.format > FORMAT => Err(Unreadable::Newer(state.format)),
            Ok(state) => Ok(state),
            Err(error) => match json::read::<Versioned>(payload) {
                Ok(newer) if newer.format > FORMAT => Err(Unreadable::Newer(newer.format)),
                _ => Err(Unreadable::NoState(error)),
            },
        }
    }

    /// What v0.1.0 remembers of events becomes what we do. It named no sources: they are taken to be of the source of
    /// the last one, so that an event of another source is never taken for known.
    fn remember_as_now(&mut self, window: Duration) {
        for id in std::mem::take(&mut self.recent) {
            let key = EventKey::new(self.event.source.as_deref(), &id);
            self.seen.remember(&key, self.event.stored_us, window);
        }
    }

    fn knows(&self, event: &Event, key: &EventKey) -> bool {
        let before = self.event.source == event.source && self.recent.contains(&event.id);
        before || self.seen.contains(key)
    }
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
    /// How a repetition of it would be noticed.
    pub repeated: Repeated,
}

/// How a repetition of an event would be noticed within the duplicate window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeated {
    /// It can't be repeated: nobody has named an id, so it has that of its sequence.
    Never,
    /// It came with a `Nats-Msg-Id`, which the stream knows.
    ByStream,
    /// By the state alone: only the event itself names an id.
    ByState,
}

/// What is known of USER_EVENTS.
#[derive(Clone, Debug)]
pub struct History {
    /// What its sequences count in.
    pub epochs: Epochs,
    /// Its duplicate window.
    pub window: Duration,
}

/// What applying an event came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The state changed and has a new version.
    Changed {
        /// Events of the duplicate window that it had to forget, for there were too many ([`crate::seen::MOST_SEEN`]).
        forgotten: usize,
    },
    /// The event says what the state says already: there is nothing to store.
    Unchanged,
    /// The state already contains the event.
    Known,
    /// The user is deleted, and only `user.created` revives.
    AfterDelete,
    /// The state is of a later epoch than `history` knows of: read that again, and the events too.
    Outdated,
}

/// Applies `event` to `state`, `None` being a user nobody has heard of.
///
/// `now_us` is the clock in unix microseconds, for the version.
pub fn apply(
    state: &mut Option<State>,
    event: &Event,
    at: Position,
    history: &History,
    now_us: u64,
) -> Applied {
    let key = (at.repeated != Repeated::Never).then(|| event.key());
    let mut stays_deleted = false;
    if let Some(known) = state {
        let epoch = known.epoch.as_ref();
        match history.epochs.standing(epoch, known.event_seq, at.seq) {
            Standing::Unknown => return Applied::Outdated,
            Standing::Contained => return Applied::Known,
            Standing::After => {}
        }
        if key.is_some_and(|key| known.knows(event, &key)) {
            return Applied::Known;
        }
        let source = event.source.as_deref().unwrap_or_default();
        let outbox = event.outbox.as_ref();
        if outbox.is_some_and(|outbox| outbox.is_contained_in(&known.notes, source)) {
            return Applied::Known;
        }
        let erases = event.erase && !known.erased;
        stays_deleted = known.deleted && event.kind != EventType::Created && !erases;
        // The note of a row is kept all the same: a late copy of an earlier one could revive.
        if stays_deleted && outbox.is_none() {
            return Applied::AfterDelete;
        }
    }
    let (mut next, mut changed) = match state.take() {
        None => (State::nobody(event), true),
        Some(base) => (base, false),
    };
    changed |= next.note(event);
    if !stays_deleted {
        changed |= next.merge(event);
    }
    if !changed && at.repeated != Repeated::ByState {
        *state = Some(next);
        return Applied::Unchanged;
    }
    next.format = FORMAT;
    next.version = now_us.max(next.version + 1);
    next.remember_as_now(history.window);
    let forgotten = key.map_or(0, |key| {
        next.seen.remember(&key, at.stored_us, history.window)
    });
    next.epoch = Some(history.epochs.of(at.seq).clone());
    next.event_seq = at.seq;
    if !stays_deleted {
        next.event = Cause::of(event, at.stored_us);
    }
    *state = Some(next);
    Applied::Changed { forgotten }
}

impl Cause {
    fn of(event: &Event, stored_us: u64) -> Self {
        Self {
            id: event.id.clone(),
            kind: event.kind,
            source: event.source.clone(),
            timestamp: event.timestamp,
            stored_us,
        }
    }
}

impl State {
    /// The state of a user of whom `event` is the only word, stored as the `seq`th of USER_EVENTS.
    pub fn of_one(event: &Event, seq: u64, now_us: u64) -> Self {
        let mut state = Self::nobody(event);
        state.merge(event);
        state.version = now_us;
        state.event_seq = seq;
        state.event.stored_us = now_us;
        state
    }

    /// The user of whom `event` is the first word.
    pub(crate) fn nobody(event: &Event) -> Self {
        Self::unknown(event.user_id.clone(), Cause::of(event, 0))
    }

    /// A user of whom nothing is known: `version` and `event_seq` are 0.
    pub fn unknown(user_id: UserId, event: Cause) -> Self {
        Self {
            format: FORMAT,
            user_id,
            username: None,
            email: None,
            status: None,
            data: Value::Null,
            deleted: false,
            erased: false,
            partial: true,
            version: 0,
            epoch: None,
            event_seq: 0,
            event,
            seen: Seen::default(),
            recent: Vec::new(),
            notes: Notes::new(),
        }
    }

    /// Keeps the note of a row's event, so that a late copy of an earlier one is known; whether it is one.
    fn note(&mut self, event: &Event) -> bool {
        let Some(outbox) = &event.outbox else {
            return false;
        };
        let source = event.source.clone().unwrap_or_default();
        self.notes.insert(source, outbox.remembered());
        true
    }

    /// Takes in what `event` says of the user; whether anything is another now.
    fn merge(&mut self, event: &Event) -> bool {
        let changed = match (event.kind, &event.outbox) {
            (EventType::Deleted, _) | (EventType::Created, None) => self.replace(event),
            (_, Some(outbox)) => self.own(event, &outbox.owned),
            (EventType::Updated | EventType::StatusChanged, None) => self.patch(event),
        };
        let status = self.data.get("status").and_then(Value::as_str);
        if self.status.as_deref() != status {
            self.status = status.map(str::to_owned);
        }
        changed
    }

    /// The event is all there is to know.
    fn replace(&mut self, event: &Event) -> bool {
        let deleted = event.kind == EventType::Deleted;
        let mut said = User::default();
        if !deleted {
            said.merge(event);
        }
        let mut changed = replace(&mut self.username, said.username);
        changed |= replace(&mut self.email, said.email);
        changed |= replace(&mut self.data, said.data);
        changed |= replace(&mut self.partial, false);
        changed |= replace(&mut self.deleted, deleted);
        changed |= replace(&mut self.erased, event.erase);
        changed
    }

    /// A row says what its source owns; the rest is somebody else's, and nobody's of whom was deleted.
    fn own(&mut self, event: &Event, owned: &[Member]) -> bool {
        if self.deleted {
            (self.username, self.email, self.data) = (None, None, Value::Null);
        }
        let mut changed = load::own(
            event,
            owned,
            &mut self.username,
            &mut self.email,
            &mut self.data,
        );
        changed |= replace(&mut self.partial, false);
        changed |= replace(&mut self.deleted, false);
        changed |= replace(&mut self.erased, false);
        changed
    }

    /// The event says what has changed (RFC 7396).
    fn patch(&mut self, event: &Event) -> bool {
        let mut user = User {
            username: self.username.take(),
            email: self.email.take(),
            data: self.data.take(),
        };
        let changed = user.merge(event);
        (self.username, self.email, self.data) = (user.username, user.email, user.data);
        changed
    }
}

/// The part of a state that events merge into.
#[derive(Default)]
struct User {
    username: Option<String>,
    email: Option<String>,
    data: Value,
}

impl User {
    /// Merges what `event` says; whether anything is another now.
    fn merge(&mut self, event: &Event) -> bool {
        let username = merge_member(&mut self.username, &event.username);
        let email = merge_member(&mut self.email, &event.email);
        let data = match &event.data {
            Change::Keep => false,
            Change::Clear => replace(&mut self.data, Value::Null),
            Change::Set(patch) => merge(&mut self.data, patch),
        };
        username || email || data
    }
}

/// Whether `place` holds another value now.
fn replace<T: PartialEq>(place: &mut T, value: T) -> bool {
    let changed = *place != value;
    *place = value;
    changed
}

fn merge_member(member: &mut Option<String>, change: &Change<String>) -> bool {
    match change {
        Change::Keep => false,
        Change::Clear => member.take().is_some(),
        Change::Set(value) if member.as_ref() == Some(value) => false,
        Change::Set(value) => {
            *member = Some(value.clone());
            true
        }
    }
}

/// JSON Merge Patch, RFC 7396 section 2; whether it changed anything.
fn merge(target: &mut Value, patch: &Value) -> bool {
    let Value::Object(patch) = patch else {
        let changed = target != patch;
        if changed {
            *target = patch.clone();
        }
        return changed;
    };
    let mut changed = false;
    if !target.is_object() {
        *target = Value::Object(Map::new());
        changed = true;
    }
    let Value::Object(members) = target else {
        return changed;
    };
    for (name, value) in patch {
        changed |= match (value.is_null(), members.get_mut(name)) {
            (true, None) => false,
            (true, Some(_)) => members.remove(name).is_some(),
            (false, Some(member)) => merge(member, value),
            (false, None) => {
                let mut member = Value::Null;
                merge(&mut member, value);
                members.insert(name.clone(), member);
                true
            }
        };
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::Envelope, member::Member, outbox::Outbox};
    use serde_json::json;

    const MINUTE_US: u64 = 60_000_000;

    fn history() -> History {
        History {
            epochs: Epochs::beginning_with("1-first".parse().unwrap()),
            window: Duration::from_secs(600),
        }
    }

    fn at(seq: u64) -> Position {
        Position {
            seq,
            stored_us: 5,
            repeated: Repeated::ByStream,
        }
    }

    const CHANGED: Applied = Applied::Changed { forgotten: 0 };

    /// Applies events given as (type, members) at sequences 1, 2, 3…
    fn fold(events: &[(EventType, Value)]) -> (Option<State>, Vec<Applied>) {
        let (mut state, history) = (None, history());
        let mut results = Vec::new();
        for (index, (kind, members)) in events.iter().enumerate() {
            let seq = index as u64 + 1;
            let event = event(*kind, members.clone(), seq);
            results.push(apply(&mut state, &event, at(seq), &history, 1_000));
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
        use Applied::AfterDelete;
        assert_eq!(
            results,
            [CHANGED, CHANGED, AfterDelete, AfterDelete, CHANGED]
        );
        assert_eq!(state.unwrap().username.as_deref(), Some("bob"));
    }

    #[test]
    fn an_erasure_is_a_deletion_that_counts_once_more() {
        let erase = || (Deleted, json!({"erase": true, "username": "ann"}));
        let (state, results) =
            fold(&[(Created, json!({})), (Deleted, json!({})), erase(), erase()]);
        assert_eq!(results, [CHANGED, CHANGED, CHANGED, Applied::AfterDelete]);
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

    /// Applies one event of a source with an id of its own, stored at the minute `seq`.
    fn say(state: &mut Option<State>, source: &str, id: &str, seq: u64, data: Value) -> Applied {
        let members = json!({"id": id, "source": source, "data": data});
        let at = Position {
            stored_us: seq * MINUTE_US,
            ..at(seq)
        };
        apply(state, &event(Updated, members, seq), at, &history(), 1_000)
    }

    #[test]
    fn contained_events_are_skipped_by_sequence_and_by_source_and_id() {
        let mut state = None;
        assert_eq!(say(&mut state, "/crm", "1", 7, json!({"k": 1})), CHANGED);
        assert_eq!(say(&mut state, "/shop", "1", 8, json!({"k": 2})), CHANGED);
        let before = state.clone();
        assert_eq!(
            say(&mut state, "/crm", "2", 8, json!({"k": 3})),
            Applied::Known
        );
        assert_eq!(
            say(&mut state, "/crm", "1", 9, json!({"k": 1})),
            Applied::Known
        );
        assert_eq!(state, before);
        assert_eq!(say(&mut state, "/crm", "2", 9, json!({"k": 3})), CHANGED);
    }

    #[test]
    fn a_repetition_within_the_window_never_brings_an_old_value_back() {
        let mut state = None;
        for seq in 1..=8 {
            say(
                &mut state,
                "s",
                &format!("evt-{seq}"),
                seq,
                json!({"k": seq}),
            );
        }
        for seq in 1..=8 {
            let again = say(&mut state, "s", &format!("evt-{seq}"), 9, json!({"k": seq}));
            assert_eq!(again, Applied::Known, "{seq}");
        }
        assert_eq!(state.unwrap().data["k"], 8);
    }

    #[test]
    fn what_changes_nothing_is_stored_only_to_remember_its_id() {
        let mut state = None;
        say(&mut state, "s", "a", 1, json!({"k": 1, "o": {"i": [1]}}));
        let before = state.clone();
        for (id, patch) in [
            ("b", json!({"k": 1, "gone": null})),
            ("c", json!({"o": {"i": [1]}})),
        ] {
            assert_eq!(say(&mut state, "s", id, 2, patch), Applied::Unchanged);
        }
        let created = event(Created, json!({"data": {"k": 1, "o": {"i": [1]}}}), 3);
        // A partial state becomes whole.
        assert_eq!(
            apply(&mut state.clone(), &created, at(3), &history(), 1_000),
            CHANGED
        );
        assert_eq!(state, before);
        // Its id is in the body only: the stream stores a repetition.
        let members = json!({"id": "d", "source": "s", "data": {"k": 1}});
        let at = Position {
            repeated: Repeated::ByState,
            ..at(4)
        };
        let told = apply(
            &mut state,
            &event(Updated, members, 4),
            at,
            &history(),
            1_000,
        );
        assert_eq!(told, CHANGED);
        assert_eq!(
            say(&mut state, "s", "d", 5, json!({"k": 2})),
            Applied::Known
        );
    }

    #[test]
    fn events_beyond_the_most_that_are_remembered_are_counted() {
        let (mut state, history) = (None, history());
        let mut forgotten = 0;
        for seq in 1..=300 {
            let event = event(
                Updated,
                json!({"id": format!("e-{seq}"), "data": {"k": seq}}),
                seq,
            );
            match apply(&mut state, &event, at(seq), &history, 1_000) {
                Applied::Changed { forgotten: some } => forgotten += some,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((forgotten, state.unwrap().seen.len()), (44, 256));
    }

    #[test]
    fn events_of_a_new_epoch_come_after_all_others() {
        let (mut state, old) = (None, history());
        let members = |id: &str, k: u64| json!({"id": id, "data": {"k": k}});
        apply(
            &mut state,
            &event(Created, members("a", 1), 900),
            at(900),
            &old,
            1_000,
        );
        let new = History {
            epochs: Epochs::beginning_with(Epoch::begin(2)),
            ..old.clone()
        };
        let second = event(Updated, members("b", 2), 1);
        assert_eq!(apply(&mut state, &second, at(1), &new, 1_000), CHANGED);
        let state_after = state.clone().unwrap();
        assert_eq!(
            (state_after.event_seq, &state_after.data["k"]),
            (1, &json!(2))
        );
        assert_eq!(state_after.epoch.as_ref(), Some(new.epochs.current()));
        // A gateway that was paused since before doesn't know of it.
        let late = event(Updated, members("c", 3), 901);
        assert_eq!(
            apply(&mut state, &late, at(901), &old, 1_000),
            Applied::Outdated
        );
        assert_eq!(state.unwrap(), state_after);
    }

    #[test]
    fn a_state_of_the_first_version_is_read_and_its_ids_count() {
        let old = json!({"user_id": 42, "username": "ann", "deleted": false, "version": 900, "event_seq": 5,
            "event": {"id": "b", "type": "user.updated", "source": "s", "timestamp": "1970-01-01T00:00:00Z", "stored_us": 5},
            "recent": ["a", "b"]});
        let mut state = Some(State::read(old.to_string().as_bytes()).unwrap());
        assert_eq!(state.as_ref().unwrap().format, 1);
        assert_eq!(
            say(&mut state, "s", "z", 5, json!({"k": 1})),
            Applied::Known
        );
        assert_eq!(
            say(&mut state, "s", "a", 6, json!({"k": 1})),
            Applied::Known
        );
        assert_eq!(say(&mut state, "other", "a", 6, json!({"k": 1})), CHANGED);
        assert_eq!(
            say(&mut state, "s", "b", 7, json!({"k": 2})),
            Applied::Known
        );
        let state = state.unwrap();
        assert_eq!(
            (state.format, state.recent.len(), state.username.as_deref()),
            (2, 0, Some("ann"))
        );
    }

    #[test]
    fn a_state_of_a_newer_format_is_refused_by_name() {
        for text in [
            r#"{"format": 3}"#,
            r#"{"format": 3, "user_id": {"odd": 1}}"#,
        ] {
            let refused = State::read(text.as_bytes()).unwrap_err();
            assert!(matches!(refused, Unreadable::Newer(3)), "{refused}");
        }
        let broken = State::read(br#"{"user_id": 1}"#).unwrap_err();
        assert!(matches!(broken, Unreadable::NoState(_)), "{broken}");
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

    fn hear(state: &mut Option<State>, seq: u64, event: &Event) -> Applied {
        apply(state, event, at(seq), &history(), 1_000)
    }

    #[test]
    fn a_row_replaces_what_its_source_owns_and_keeps_the_rest() {
        let mut state = None;
        let ann = json!({"username": "ann", "data": {"a": {"x": 1, "y": 2}}});
        hear(&mut state, 1, &row(Updated, 1, ann));
        assert!(!state.as_ref().unwrap().partial, "a row is all there is");
        let plan = json!({"email": "a@x", "data": {"plan": "gold"}});
        hear(&mut state, 2, &event(Updated, plan, 2));
        // An object isn't merged, and what is null or absent is gone.
        let row_2 = row(
            Created,
            2,
            json!({"username": null, "data": {"a": {"y": 2}}}),
        );
        hear(&mut state, 3, &row_2);
        let now = state.clone().unwrap();
        assert_eq!((now.username, now.email.as_deref()), (None, Some("a@x")));
        assert_eq!(now.data, json!({"a": {"y": 2}, "plan": "gold"}));
        hear(&mut state, 4, &row(Updated, 3, json!({})));
        assert_eq!(state.unwrap().data, json!({"plan": "gold"}));
    }

    #[test]
    fn a_late_copy_of_a_row_changes_nothing() {
        let mut state = None;
        hear(&mut state, 1, &row(Created, 7, json!({"username": "new"})));
        let before = state.clone();
        for (seq, note) in [(2, 7), (3, 6)] {
            let late = row(Created, note, json!({"username": "old"}));
            assert_eq!(hear(&mut state, seq, &late), Applied::Known);
        }
        assert_eq!(state, before);
        let gone = hear(&mut state, 4, &row(Deleted, 8, json!({})));
        assert_eq!(gone, CHANGED);
        let late = row(Created, 7, json!({"username": "old"}));
        assert_eq!(hear(&mut state, 5, &late), Applied::Known);
        assert!(state.as_ref().unwrap().deleted, "nor does it revive");
        // Nor what came between two deletions of which the second one says nothing new.
        hear(&mut state, 6, &row(Deleted, 12, json!({})));
        let late = row(Created, 10, json!({"username": "old"}));
        assert_eq!(hear(&mut state, 7, &late), Applied::Known);
    }

    #[test]
    fn a_row_that_is_there_again_revives_and_an_updated_one_never() {
        let mut state = None;
        let whole = json!({"username": "ann", "email": "a@x", "data": {"plan": "gold"}});
        hear(&mut state, 1, &event(Created, whole, 1));
        hear(&mut state, 2, &event(Deleted, json!({"erase": true}), 2));
        let update = row(Updated, 1, json!({"username": "ann"}));
        assert_eq!(hear(&mut state, 3, &update), CHANGED);
        let known = state.clone().unwrap();
        assert!(known.deleted && known.erased && known.notes["crm"].note == 1);
        let again = row(Created, 2, json!({"username": "bob"}));
        assert_eq!(hear(&mut state, 4, &again), CHANGED);
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
