//! One user on the way to one target: what the target may see of the newest state.

use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use usersync_core::{
    event::{Change, EventType},
    fields::Members,
    trace::TraceContext,
    user_id::UserId,
};

/// What a target is to do about a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Hold the members told.
    Upsert,
    /// Hold the user no longer, and remember the version so that nothing older revives them.
    Delete,
    /// Where the user is there: set the status told, and nothing else. `members` has only the status.
    Disable,
}

/// What a target is to hold of one user.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delivery {
    /// `<target>:<user_id>:<version>`: the same on every redelivery, so an idempotency key. The id is its token.
    pub task_id: String,
    /// Who.
    pub user_id: UserId,
    /// Of the state; older ones must never replace newer ones.
    pub version: u64,
    /// What the target is to do.
    pub action: Action,
    /// Nobody created the user: write only the members told.
    pub partial: bool,
    /// The last event merged: a hint, for states are coalesced.
    pub event_type: EventType,
    /// When that event happened.
    pub timestamp: Timestamp,
    /// Who published it.
    pub source: Option<String>,
    /// The members this target is told.
    pub members: Members,
    /// Where in a trace the delivery happens.
    #[serde(skip)]
    pub trace: Option<TraceContext>,
}

impl Delivery {
    /// A number that stands for what the target would hold: equal for deliveries that differ in version,
    /// event and time only, different for others. It means nothing in another process.
    pub fn content_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.action.hash(&mut hasher);
        self.partial.hash(&mut hasher);
        let members = &self.members;
        for member in [&members.username, &members.email, &members.status] {
            match member {
                Change::Keep => 0_u8.hash(&mut hasher),
                Change::Clear => 1_u8.hash(&mut hasher),
                Change::Set(text) => (2_u8, text).hash(&mut hasher),
            }
        }
        match &members.data {
            Change::Keep => 0_u8.hash(&mut hasher),
            Change::Clear => 1_u8.hash(&mut hasher),
            Change::Set(data) => {
                2_u8.hash(&mut hasher);
                hash(data, &mut hasher);
            }
        }
        hasher.finish()
    }
}

/// Takes in `value` with its type and its length, so that different values never look alike.
fn hash(value: &Value, hasher: &mut DefaultHasher) {
    match value {
        Value::Null => 0_u8.hash(hasher),
        Value::Bool(flag) => (1_u8, flag).hash(hasher),
        Value::Number(number) => (2_u8, number).hash(hasher),
        Value::String(text) => (3_u8, text).hash(hasher),
        Value::Array(values) => {
            (4_u8, values.len()).hash(hasher);
            values.iter().for_each(|value| hash(value, hasher));
        }
        Value::Object(members) => {
            (5_u8, members.len()).hash(hasher);
            for (name, member) in members {
                name.hash(hasher);
                hash(member, hasher);
            }
        }
    }
}
