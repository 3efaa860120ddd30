//! What several test programs need: a delivery like any other, and what becomes of it.

use anyhow::{Context as _, Result};
use usersync_core::{
    event::{Change, EventType},
    fields::Members,
};
use usersync_targets::{Action, Delivery, Outcome, Target};

/// A new user, of whom there is no more than a name.
pub(crate) fn user(id: u64, name: &str) -> Delivery {
    Delivery {
        task_id: format!("test:{id}:1"),
        user_id: id.into(),
        version: 1,
        action: Action::Upsert,
        partial: false,
        event_type: EventType::Created,
        timestamp: jiff::Timestamp::UNIX_EPOCH,
        source: None,
        members: Members {
            username: Change::Set(name.to_owned()),
            ..Members::default()
        },
        trace: None,
    }
}

pub(crate) async fn deliver(target: &dyn Target, delivery: Delivery) -> Result<Outcome> {
    let outcomes = target.deliver(&[delivery]).await;
    outcomes.into_iter().next().context("no outcome")
}
