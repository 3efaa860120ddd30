//! One user on the way to one target: what the target may see of the newest state.

use jiff::Timestamp;
use serde::Serialize;
use usersync_core::{
    event::EventType, fields::Members, state::State, target::TargetConfig, user_id::UserId,
};

/// What a target is to do about a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// `<target>:<user_id>:<version>`: the same on every redelivery, so an idempotency key.
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
    /// W3C trace context, passed through.
    pub traceparent: Option<String>,
}

impl Delivery {
    /// What `target` is to hold of `state`.
    pub fn new(target: &TargetConfig, mut state: State, traceparent: Option<String>) -> Self {
        let members = target.fields.project(&mut state);
        Self {
            task_id: format!("{}:{}:{}", target.name, state.user_id, state.version),
            user_id: state.user_id,
            version: state.version,
            action: if state.deleted {
                Action::Delete
            } else {
                Action::Upsert
            },
            partial: state.partial,
            event_type: state.event.kind,
            timestamp: state.event.timestamp,
            source: state.event.source,
            members,
            traceparent,
        }
    }
}
