//! The newest state of one user, and how an event changes it.
//!
//! Pure: no NATS, no clock. The rules are those of docs/ARCHITECTURE.md, "Order is stream order".

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    epoch::{Epoch, Epochs, Standing},
    event::{Change, Event, EventType},
    event_key::EventKey,
    json,
    load::{self, without_nulls},
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
    /// Of a partial state: the members `username`, `email` and `data` that are known not to be there, as a null in an event
    /// says. Those in `data` are null there.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub cleared: BTreeSet<String>,
    /// Rises with every change of the user: max(previous + 1, unix microseconds).
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
    /// Nothing can come after its version or its sequence.
    #[error("its version, event_seq or epoch is none that a clock or a stream can have")]
    Beyond,
    /// Its `user_id` isn't that of its subject.
    #[error("its user_id isn't that of its subject")]
    OfAnother,
    /// A newer program wrote it.
    #[error(
        "it is written in format {0}, but this program reads up to {FORMAT}: upgrade it (docs/UPGRADING.md)"
    )]
    Newer(u32),
}

/// The highest version: the year 3000 in unix microseconds. A clock may be wrong, but a version after it has to fit a
/// column of any target.
const MOST_VERSION: u64 = 32_503_680_000_000_000;
/// The highest sequence of an event: no stream counts so far.
const MOST_SEQ: u64 = 1 << 53;

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
            Ok(state) if state.is_beyond() => Err(Unreadable::Beyond),
            Ok(state) => Ok(state),
            Err(error) => match json::read::<Versioned>(payload) {
                Ok(newer) if newer.format > FORMAT => Err(Unreadable::Newer(newer.format)),
                _ => Err(Unreadable::NoState(error)),
            },
        }
    }

    /// Whether nothing could come after it.
    fn is_beyond(&self) -> bool {
        let epoch = self.epoch.as_ref();
        self.version > MOST_VERSION
            || self.event_seq > MOST_SEQ
            || epoch.is_some_and(|epoch| !epoch.is_likely())
    }

    /// What v0.1.0 remembers of events becomes what we do. It named no sources: they are taken to be of the source of
    /// the last one, so that an event of another source is never taken for known.
    fn remember_as_now(&mut self, window: Duration) {
        for id in std::mem::take(&mut self.recent) {
            let key = EventKey::new(self.event.source.as_deref(), &id);
            self.seen
                .remember_former(&key, self.event.stored_us, window);
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
    /// By the stream: its `Nats-Msg-Id` is all that names it, or is made of its source and id.
    ByStream,
    /// By the state alone: its body names an id, and the same event may come under any `Nats-Msg-Id`, or none.
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
    /// The state is to be stored: it has a new version, or remembers the event.
    Changed {
        /// Events of the duplicate window that it had to forget, for there were too many ([`crate::seen::MOST_SEEN`]).
        forgotten: usize,
    },
    /// The event says what the state says already: there is nothing to store.
    Unchanged,
    /// The state already contains the event.
    Known,
    /// The user is deleted, and only `user.created` revives.
    AfterDelete {
        /// The state is to be stored all the same, for it remembers the event; as [`Applied::Changed`] has it.
        forgotten: Option<usize>,
    },
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
    }
    let (mut next, mut changed) = match state.take() {
        None => (State::nobody(event), true),
        Some(base) => (base, false),
    };
    let noted = next.note(event);
    if !stays_deleted {
        changed |= next.merge(event);
    }
    // What changes nothing is stored only where nothing else could tell that it comes again, when it may change something:
    // a row's note, for a late copy of an earlier one could revive, and an id that the stream doesn't compare.
    if !changed && !noted && at.repeated != Repeated::ByState {
        *state = Some(next);
        return match stays_deleted {
            true => Applied::AfterDelete { forgotten: None },
            false => Applied::Unchanged,
        };
    }
    next.format = FORMAT;
    // What only remembers the event is told to nobody, so targets keep the version that they have.
    if changed {
        next.version = now_us.max(next.version + 1);
    }
    next.remember_as_now(history.window);
    let forgotten = key.map_or(0, |key| {
        next.seen.remember(&key, at.stored_us, history.window)
    });
    next.epoch = Some(history.epochs.of(at.seq).clone());
    next.event_seq = at.seq;
    if changed {
        next.event = Cause::of(event, at.stored_us);
    }
    *state = Some(next);
    match stays_deleted {
        true => Applied::AfterDelete {
            forgotten: Some(forgotten),
        },
        false => Applied::Changed { forgotten },
    }
}

impl Applied {
    /// Where the state is to be stored: how many events of the duplicate window it had to forget.
    pub const fn stored(self) -> Option<usize> {
        match self {
            Self::Changed { forgotten } => Some(forgotten),
            Self::AfterDelete { forgotten } => forgotten,
            Self::Unchanged | Self::Known | Self::Outdated => None,
        }
    }
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
            cleared: BTreeSet::new(),
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
        changed |= self.become_whole();
        changed |= replace(&mut self.deleted, deleted);
        changed |= replace(&mut self.erased, event.erase);
        changed
    }

    /// A row says what its source owns; the rest is somebody else's, and nobody's of whom was deleted.
    fn own(&mut self, event: &Event, owned: &[Member]) -> bool {
        if self.deleted {
            (self.username, self.email, self.data) = (None, None, Value::Null);
        }
        let was_partial = self.become_whole();
        let mut changed = load::own(
            event,
            owned,
            &mut self.username,
            &mut self.email,
            &mut self.data,
        );
        changed |= was_partial;
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
            partial: self.partial,
        };
        let mut changed = user.merge(event);
        (self.username, self.email, self.data) = (user.username, user.email, user.data);
        if self.partial {
            changed |= self.note_cleared("username", &event.username);
            changed |= self.note_cleared("email", &event.email);
            changed |= self.note_cleared("data", &event.data);
        }
        changed
    }

    /// Notes that a member of a partial state is known not to be there, or is there again; whether that is new.
    fn note_cleared<T>(&mut self, name: &str, change: &Change<T>) -> bool {
        match change {
            Change::Keep => false,
            Change::Clear => self.cleared.insert(name.to_owned()),
            Change::Set(_) => self.cleared.remove(name),
        }
    }

    /// All there is is known from now on; whether that is new.
    pub(crate) fn become_whole(&mut self) -> bool {
        if self.partial {
            self.cleared.clear();
            self.data = without_nulls(self.data.take());
        }
        replace(&mut self.partial, false)
    }
}

/// The part of a state that events merge into.
#[derive(Default)]
struct User {
    username: Option<String>,
    email: Option<String>,
    data: Value,
    /// Whether nulls are kept: they say what is known not to be there.
    partial: bool,
}

impl User {
    /// Merges what `event` says; whether anything is another now.
    fn merge(&mut self, event: &Event) -> bool {
        let username = merge_member(&mut self.username, &event.username);
        let email = merge_member(&mut self.email, &event.email);
        let data = match &event.data {
            Change::Keep => false,
            Change::Clear => replace(&mut self.data, Value::Null),
            Change::Set(patch) => merge(&mut self.data, patch, self.partial),
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

/// JSON Merge Patch, RFC 7396 section 2, which may keep nulls; whether it changed anything.
fn merge(target: &mut Value, patch: &Value, keep_nulls: bool) -> bool {
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
            (true, Some(Value::Null)) if keep_nulls => false,
            (true, _) if keep_nulls => {
                members.insert(name.clone(), Value::Null);
                true
            }
            (true, None) => false,
            (true, Some(_)) => members.remove(name).is_some(),
            (false, Some(member)) => merge(member, value, keep_nulls),
            (false, None) => {
                let mut member = Value::Null;
                merge(&mut member, value, keep_nulls);
                members.insert(name.clone(), member);
                true
            }
        };
    }
    changed
}

#[cfg(test)]
mod tests;
