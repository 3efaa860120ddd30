//! The backstop for dead letters: what ran out of deliveries while no worker could say so.
//!
//! The server tells by an advisory, which names stream, consumer and sequence and nothing else. One that
//! comes late may be about what has been delivered since: it asks for a delivery, and stores no letter.

use std::time::Duration;

use async_nats::jetstream::{
    self, AckKind, Message,
    message::StreamMessage,
    stream::{LastRawMessageError, LastRawMessageErrorKind, Stream},
};
use metrics::counter;
use serde::Deserialize;
use usersync_core::{
    dead_letter::{Class, DeadLetter, Same},
    pull::Pull,
    stored_state, streams,
    subjects::{self, BACKSTOP, USER_ADVISORY, USER_DEAD, USER_REPAIR, USER_STATE},
    target::TargetName,
    user_id::UserId,
};

use crate::control::Control;

/// What such a dead letter says.
const REASON: &str = "ran out of deliveries; the worker died or never answered";
const EXPIRES: Duration = Duration::from_secs(10);
/// Advisories asked for at once.
const BATCH: usize = 64;
/// An advisory older than this is late, for its consumer was made again, say.
const LATE: Duration = Duration::from_secs(60);
/// How long to wait after an error.
const AGAIN: Duration = Duration::from_secs(1);

/// `io.nats.jetstream.advisory.v1.max_deliver`.
#[derive(Debug, Deserialize)]
struct RanOut {
    stream: String,
    consumer: String,
    stream_seq: u64,
    deliveries: u32,
}

/// Takes advisories for ever.
pub(super) async fn run(control: &Control) {
    loop {
        if let Err(error) = take(control).await {
            let error = format!("{error:#}");
            tracing::debug!(error, consumer = BACKSTOP, "opening the consumer again");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn take(control: &Control) -> anyhow::Result<()> {
    let jetstream = &control.jetstream;
    // Made again when somebody has removed it.
    jetstream
        .create_consumer_on_stream(streams::backstop_consumer(), USER_ADVISORY)
        .await?;
    let mut pull = Pull::open(jetstream, USER_ADVISORY, BACKSTOP, EXPIRES).await?;
    loop {
        if pull.outstanding() == 0 {
            pull.ask(BATCH, None).await?;
        }
        let Some(message) = pull.next().await? else {
            continue;
        };
        let answer = match handle(control, &message).await {
            Ok(()) => AckKind::Ack,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(
                    error,
                    "can't look after a message that ran out of deliveries; trying again"
                );
                AckKind::Nak(Some(AGAIN))
            }
        };
        message
            .ack_with(answer)
            .await
            .map_err(anyhow::Error::from_boxed)?;
    }
}

/// Stores the dead letter that is missing, if it is.
async fn handle(control: &Control, message: &Message) -> anyhow::Result<()> {
    let jetstream = &control.jetstream;
    let Ok(ran_out) = serde_json::from_slice::<RanOut>(&message.payload) else {
        return Ok(());
    };
    let Ok(target) = ran_out.consumer.parse::<TargetName>() else {
        return Ok(());
    };
    // Not every consumer is a target's.
    let registry = control.registry().await?;
    if registry.stored(target.as_ref()).await?.is_none() {
        return Ok(());
    }
    let stream = match ran_out.stream.as_str() {
        known @ (USER_STATE | USER_REPAIR) => jetstream.get_stream_no_info(known).await?,
        _ => return Ok(()),
    };
    // Replaced by something newer, which has deliveries of its own; or done meanwhile.
    let Some(stuck) = found(stream.get_raw_message(ran_out.stream_seq).await)? else {
        return Ok(());
    };
    if ran_out.stream == USER_STATE {
        let user_id = subjects::user_of_state(&stuck.subject);
        return match user_id {
            Some(user_id) if is_late(message) => {
                deliver_again(jetstream, &target, &user_id, &stuck).await
            }
            Some(user_id) => store(jetstream, &target, user_id, &stuck, ran_out.deliveries).await,
            None => Ok(()),
        };
    }
    if let Some((target, user_id)) = subjects::of_repair(&stuck.subject) {
        let states = jetstream.get_stream_no_info(USER_STATE).await?;
        if let Some(state) = newest(&states, &user_id).await? {
            let newer = state.time > stuck.time;
            if !(newer && is_done(&states, &target, state.sequence).await) {
                store(jetstream, &target, user_id, &state, ran_out.deliveries).await?;
            }
        }
    }
    // Nobody will be given it again, and a work queue would keep it for days.
    stream.delete_message(ran_out.stream_seq).await?;
    Ok(())
}

/// Whether what an advisory tells of may have been dealt with already.
fn is_late(advisory: &Message) -> bool {
    advisory.info().is_ok_and(|info| {
        let nanos = info.published.unix_timestamp_nanos();
        let stored = jiff::Timestamp::from_nanosecond(nanos).unwrap_or_default();
        let age = jiff::Timestamp::now().duration_since(stored).unsigned_abs();
        info.delivered > 1 || age > LATE
    })
}

/// Asks for a delivery, unless a letter says that it was given up: that does no harm to a user who is
/// delivered, and who isn't is dead-lettered if it fails again.
async fn deliver_again(
    jetstream: &jetstream::Context,
    target: &TargetName,
    user_id: &UserId,
    state: &StreamMessage,
) -> anyhow::Result<()> {
    let letters = jetstream.get_stream_no_info(USER_DEAD).await?;
    let subject = subjects::dead_letter(target, user_id);
    let letter = found(letters.get_last_raw_message_by_subject(&subject).await)?;
    let version = stored_state::read(user_id, &state.payload).map_or(0, |state| state.version);
    if letter
        .and_then(|letter| DeadLetter::read(&letter))
        .is_some_and(|letter| letter.version >= version)
    {
        return Ok(());
    }
    let subject = subjects::repair(target, user_id);
    jetstream.publish(subject, "".into()).await?.await?;
    Ok(())
}

/// Whether the target is known to be done with everything up to `sequence` of USER_STATE.
async fn is_done(states: &Stream<()>, target: &TargetName, sequence: u64) -> bool {
    let info = states.consumer_info(target.as_ref()).await;
    info.is_ok_and(|info| info.ack_floor.stream_sequence >= sequence)
}

async fn store(
    jetstream: &jetstream::Context,
    target: &TargetName,
    user_id: UserId,
    state: &StreamMessage,
    attempts: u32,
) -> anyhow::Result<()> {
    let version = stored_state::read(&user_id, &state.payload).map_or(0, |state| state.version);
    let letter = DeadLetter {
        target: target.clone(),
        user_id,
        version,
        attempts,
        class: Class::Transient,
        reason: REASON.to_owned(),
        code: None,
        first_failure: None,
        last_failure: Some(jiff::Timestamp::now()),
        waits_for: Vec::new(),
    };
    if letter.store(jetstream, Same::Keep).await? {
        counter!("usersync_backstop_dead_letters_total", "target" => target.to_string())
            .increment(1);
        tracing::error!(%target, user.id = %letter.user_id, attempts, "dead-lettered: {REASON}");
    }
    Ok(())
}

async fn newest(states: &Stream<()>, user_id: &UserId) -> anyhow::Result<Option<StreamMessage>> {
    let subject = subjects::state(user_id);
    found(states.get_last_raw_message_by_subject(&subject).await)
}

fn found(
    answer: Result<StreamMessage, LastRawMessageError>,
) -> anyhow::Result<Option<StreamMessage>> {
    match answer {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
