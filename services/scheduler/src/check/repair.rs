//! What a check may change: it asks for deliveries, and writes states through the same rules as everybody.

use std::collections::BTreeSet;

use anyhow::Context as _;
use async_nats::jetstream::{self, context::PublishErrorKind, message::PublishMessage};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::timeout;
use usersync_core::{
    event::EventType,
    nats::REQUEST_TIMEOUT,
    repair::Repair,
    state::{Cause, FORMAT, State},
    subjects,
    user_id::UserId,
};

use super::copy::newest;
use crate::scheduler::Scheduler;

/// Who changed a state, where it was the check.
const SOURCE: &str = "usersync-scheduler";

/// What makes a copy what it is meant to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Remedy {
    /// The newest state is delivered once more.
    Deliver,
    /// So it is, in a version above the one that the target has, so that it is taken.
    Renew(u64),
    /// So it is once more, after the target has forgotten this version, which can't be.
    Overwrite(u64),
    /// Nothing: the target holds a version that can't be, and takes none below it.
    Impossible,
    /// Whoever nobody has ever heard of is deleted everywhere.
    Bury,
    /// This state, provided that the one with this sequence still is the newest.
    Write(Box<State>, u64),
}

impl Remedy {
    /// Whether others do it, so that it may come to nothing.
    pub(crate) fn is_asked_for(&self) -> bool {
        !matches!(self, Self::Write(..))
    }

    /// Does it for `user` of `name`; false when something newer came, so that it is to be looked at again.
    ///
    /// # Errors
    /// When NATS can't be asked.
    pub(crate) async fn apply(
        &self,
        scheduler: &Scheduler,
        name: &str,
        user: &UserId,
    ) -> anyhow::Result<bool> {
        let jetstream = &scheduler.jetstream;
        match self {
            Self::Deliver => ask(jetstream, name, user, Bytes::new()).await,
            Self::Overwrite(held) => {
                let repair = Repair {
                    damaged_version: Some(*held),
                };
                let body = serde_json::to_vec(&repair)?.into();
                ask(jetstream, name, user, body).await
            }
            Self::Impossible => Ok(true),
            Self::Renew(held) => match newest(&scheduler.states, user).await? {
                (seq, Some(mut state)) => {
                    state.version = now_us().max(state.version + 1).max(held + 1);
                    // Who was told the same before isn't called for a new version alone.
                    Ok(write(jetstream, &state, seq).await?
                        && ask(jetstream, name, user, Bytes::new()).await?)
                }
                (_, None) => Ok(false),
            },
            Self::Bury => write(jetstream, &tombstone(user, None, now_us()), 0).await,
            Self::Write(state, seq) => write(jetstream, state, *seq).await,
        }
    }
}

/// What says that an orphan is gone, after the state there is, if there is one. No event of USER_EVENTS is in it.
pub(crate) fn tombstone(user: &UserId, before: Option<&State>, now: u64) -> State {
    let cause = Cause {
        id: format!("orphan:{}:{now}", user.token()),
        kind: EventType::Deleted,
        source: Some(SOURCE.to_owned()),
        timestamp: Timestamp::now(),
        stored_us: now,
    };
    let nobody = || State::unknown(user.clone(), cause.clone());
    let before = before.cloned().unwrap_or_else(nobody);
    State {
        format: FORMAT,
        username: None,
        email: None,
        status: None,
        data: serde_json::Value::Null,
        deleted: true,
        erased: false,
        partial: false,
        cleared: BTreeSet::new(),
        version: now.max(before.version + 1),
        event: cause,
        ..before
    }
}

/// Asks for a delivery to `name`.
async fn ask(
    jetstream: &jetstream::Context,
    name: &str,
    user: &UserId,
    body: Bytes,
) -> anyhow::Result<bool> {
    let name = name.parse().context("only targets are delivered to")?;
    let sent = jetstream.publish(subjects::repair(&name, user), body);
    let stored = timeout(REQUEST_TIMEOUT, async { sent.await?.await }).await;
    stored
        .context("asking for a delivery took too long")?
        .context("asking for a delivery")?;
    Ok(true)
}

/// Stores a state, provided that the one at `expected` still is the newest; says whether it did.
async fn write(
    jetstream: &jetstream::Context,
    state: &State,
    expected: u64,
) -> anyhow::Result<bool> {
    let message = PublishMessage::build()
        .payload(serde_json::to_vec(state)?.into())
        .expected_last_subject_sequence(expected);
    let sent = jetstream.send_publish(subjects::state(&state.user_id), message);
    let written = timeout(REQUEST_TIMEOUT, async { sent.await?.await }).await;
    match written.context("storing a state took too long")? {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
        Err(error) => Err(error).context("storing a state"),
    }
}

pub(crate) fn now_us() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use usersync_core::event_key::EventKey;

    use super::*;

    #[test]
    fn a_tombstone_follows_the_state_it_replaces_and_keeps_nothing_personal() {
        let user = UserId::from(7);
        let mut before = tombstone(&user, None, 1_000);
        before.deleted = false;
        before.username = Some("ann".to_owned());
        before.event_seq = 41;
        let key = EventKey::new(None, "e");
        before.seen.remember(&key, 1_000, Duration::MAX);
        let gone = tombstone(&user, Some(&before), 500);
        assert!(gone.deleted && gone.version == 1_001 && gone.event_seq == 41);
        assert_eq!((gone.username, gone.seen), (None, before.seen));
    }
}
