//! What a check may change: it asks for deliveries, and writes states through the same rules as everybody.

use anyhow::Context as _;
use async_nats::jetstream::{
    self,
    context::{PublishAckFuture, PublishErrorKind},
    message::PublishMessage,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tokio::time::timeout;
use usersync_core::{
    event::EventType,
    nats::REQUEST_TIMEOUT,
    state::{Cause, State},
    subjects,
    target::TargetName,
    user_id::UserId,
};

use super::copy::newest;

/// PubAcks awaited at once.
const WINDOW: usize = 256;
/// Who changed a state, where it was the check.
const SOURCE: &str = "usersync-scheduler";

/// Asks for the newest states of `users` to be delivered to `target`.
///
/// # Errors
/// When one could not be asked for.
pub(crate) async fn deliver(
    jetstream: &jetstream::Context,
    target: &TargetName,
    users: &[UserId],
) -> anyhow::Result<()> {
    let asking = stream::iter(users).map(async |user| {
        let subject = subjects::repair(target, user);
        stored(jetstream.publish(subject, bytes::Bytes::new()).await?).await
    });
    let mut asking = asking.buffer_unordered(WINDOW);
    while asking.try_next().await?.is_some() {}
    Ok(())
}

/// Gives a user's state a version above every one a target can have, so that it is delivered once more and taken.
///
/// # Errors
/// When NATS can't be asked. A state that has changed meanwhile has such a version anyway.
pub(crate) async fn renew(
    jetstream: &jetstream::Context,
    states: &jetstream::stream::Stream,
    user: &UserId,
) -> anyhow::Result<()> {
    let Some((mut state, seq)) = newest(states, user).await? else {
        return Ok(());
    };
    state.version = now_us().max(state.version + 1);
    write(jetstream, &state, seq).await
}

/// Buries somebody who is held by a target, and whom nobody has ever heard of: every target deletes them.
///
/// # Errors
/// When NATS can't be asked. Somebody who was heard of meanwhile isn't buried.
pub(crate) async fn bury(jetstream: &jetstream::Context, user: &UserId) -> anyhow::Result<()> {
    let now = now_us();
    let tombstone = State {
        user_id: user.clone(),
        username: None,
        email: None,
        status: None,
        data: serde_json::Value::Null,
        deleted: true,
        partial: false,
        version: now,
        event_seq: 0,
        event: Cause {
            id: format!("orphan:{user}:{now}"),
            kind: EventType::Deleted,
            source: Some(SOURCE.to_owned()),
            timestamp: Timestamp::now(),
            stored_us: now,
        },
        recent: Vec::new(),
    };
    write(jetstream, &tombstone, 0).await
}

/// Stores a state, provided that the one at `expected` still is the newest.
async fn write(jetstream: &jetstream::Context, state: &State, expected: u64) -> anyhow::Result<()> {
    let message = PublishMessage::build()
        .payload(serde_json::to_vec(state)?.into())
        .expected_last_subject_sequence(expected);
    let sent = jetstream.send_publish(subjects::state(&state.user_id), message);
    let written = timeout(REQUEST_TIMEOUT, async { sent.await?.await }).await;
    match written.context("storing a state took too long")? {
        Err(error) if error.kind() != PublishErrorKind::WrongLastSequence => {
            Err(error).context("storing a state")
        }
        // Somebody was faster; the next check looks again.
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn stored(ack: PublishAckFuture) -> anyhow::Result<()> {
    let stored = timeout(REQUEST_TIMEOUT, ack.into_future()).await;
    stored
        .context("asking for a delivery took too long")?
        .context("asking for a delivery")?;
    Ok(())
}

fn now_us() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default()
}
