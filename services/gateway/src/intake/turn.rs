//! A turn: every event queued for one user, merged into one new state.
//!
//! Optimistic concurrency makes it safe beside anyone else who writes states: a state is stored
//! only where the one it was made from is still the newest; else it is read and made again.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    self, Message,
    context::PublishErrorKind,
    message::PublishMessage,
    stream::{DirectGetErrorKind, LastRawMessageErrorKind, Stream},
};
use bytes::Bytes;
use jiff::Timestamp;
use metrics::{Counter, Histogram};
use usersync_core::{
    admin::Health,
    event::{Event, InvalidEvent},
    pull::{Stopped, connects},
    state::{self, Applied, Position, State, Unreadable},
    stored_state,
    subjects::{self, USER_EVENTS, header},
    trace::TraceContext,
    user_id::UserId,
};
use usersync_traces::{Span, Traces};

use super::{
    known::{Known, Stored},
    refusal,
    session::Lost,
    survey::Ground,
};

/// The largest state, in bytes of JSON: with its headers it must fit into one message.
const MAX_STATE_BYTES: usize = 512 * 1024;
/// Bytes by which a state grows with an event, as a rule.
const GROWTH: usize = 192;
/// How long to wait when the server can't store or answer.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long before a state is looked at again that only a newer program can read.
const UPGRADE: Duration = Duration::from_secs(5);
/// The part of this gateway that waits for that.
pub(super) const NEWER: &str = "states";

/// What all turns share.
pub(super) struct Desk {
    pub jetstream: jetstream::Context,
    pub states: Stream<()>,
    /// The newest states as last seen by us. May be outdated: storing then fails and tells, and
    /// what stores nothing asks the leader.
    pub known: Known,
    pub traces: Traces,
    pub meters: Meters,
    pub health: Health,
}

/// What intake counts.
pub(super) struct Meters {
    pub changed: Counter,
    pub unchanged: Counter,
    pub known: Counter,
    pub after_delete: Counter,
    pub refused: Counter,
    /// Events that a state had to forget within the duplicate window.
    pub forgotten: Counter,
    /// From the event's being stored to its state's being stored.
    pub seconds: Histogram,
}

/// A valid event in its place.
pub(super) struct Arrival {
    pub event: Event,
    pub at: Position,
    pub message: Message,
    pub span: Span,
}

/// Where the state a turn starts from was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Kept at hand since we stored it.
    Cache,
    /// Any replica, which may lag.
    Replica,
    /// The stream's leader.
    Leader,
}

/// What a merge came to.
enum Merged {
    /// All is stored and acknowledged.
    Done,
    /// The state would have so many bytes; nothing is stored.
    TooLarge(usize),
    /// The session is lost; nothing is stored.
    Lost,
}

/// Merges `arrivals` and stores the result; returns when all of them are acknowledged, or the session is lost.
pub(super) async fn take(
    desk: Arc<Desk>,
    ground: Arc<Ground>,
    user_id: UserId,
    mut arrivals: Vec<Arrival>,
) -> UserId {
    if let Merged::TooLarge(too_large) = merge(&desk, &ground, &user_id, &mut arrivals).await {
        if arrivals.len() == 1 {
            arrivals[0].span.fail("refused");
            let reason = format!(
                "the user would have {too_large} bytes; at most {MAX_STATE_BYTES} are kept"
            );
            refuse(
                &desk,
                &arrivals[0].message,
                arrivals[0].at.seq,
                &InvalidEvent::new("", reason),
            )
            .await;
        } else {
            // One of several made the state too large: find out which.
            for arrival in arrivals.drain(..) {
                let alone = vec![arrival];
                Box::pin(take(desk.clone(), ground.clone(), user_id.clone(), alone)).await;
            }
        }
    }
    user_id
}

/// Stores a refused event, for as long as it takes, and acknowledges it.
pub(super) async fn refuse(desk: &Desk, message: &Message, seq: u64, invalid: &InvalidEvent) {
    while let Err(error) = refusal::store(&desk.jetstream, message, seq, invalid).await {
        tracing::warn!(event.seq = seq, %error, "can't store a refused event; trying again");
        tokio::time::sleep(PATIENCE).await;
    }
    desk.meters.refused.increment(1);
    tracing::warn!(event.seq = seq, reason = %invalid, "refused an event; kept as a dead letter");
    acknowledge(message).await;
}

/// What storing a merged state came to.
enum Kept {
    /// It is the newest now.
    Yes,
    /// What it was made from wasn't the newest, or nobody can tell: ask the leader, and merge again.
    Again,
    /// It never will be.
    Never(Merged),
}

async fn merge(desk: &Desk, ground: &Ground, user_id: &UserId, arrivals: &mut [Arrival]) -> Merged {
    let mut origin = Origin::Cache;
    // Whether only a newer gateway can read the state.
    let mut waits = false;
    loop {
        let base = base(desk, user_id, &mut origin).await;
        // What was read, or is known, may be gone by now: the next session looks.
        if connects(&desk.jetstream) != ground.connects {
            ground.lose(Lost::Stopped(Stopped::Reconnected));
            return Merged::Lost;
        }
        let Ok(mut state) = parsed(desk, user_id, &base).await else {
            (origin, waits) = (Origin::Leader, true);
            continue;
        };
        if std::mem::take(&mut waits) {
            desk.health.gone(NEWER);
        }
        if let (Some(state), Some(last)) = (&mut state, arrivals.last()) {
            tokio::select! {
                () = mend_seq(desk, ground, state, last.at.seq) => {}
                _ = ground.lost() => return Merged::Lost,
            }
        }
        let now_us = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
        let before = state.as_ref().map(|state| state.version);
        let apply = |arrival: &Arrival| {
            let history = &ground.history;
            state::apply(&mut state, &arrival.event, arrival.at, history, now_us)
        };
        let applied: Vec<Applied> = arrivals.iter().map(apply).collect();
        let changed = applied.iter().any(|applied| applied.stored().is_some());
        // What is at hand, or on a replica that lags, may be outdated. Storing tells; where nothing is to be stored, drop
        // nothing on its word alone. That a state contains an event stays true.
        let doubtful = applied.iter().any(|applied| *applied != Applied::Known);
        if origin != Origin::Leader && doubtful && !changed {
            origin = Origin::Leader;
            continue;
        }
        if applied.contains(&Applied::Outdated) {
            let epoch = state.and_then(|state| state.epoch);
            ground.lose(epoch.map_or(Lost::Events, Lost::Outdated));
            return Merged::Lost;
        }
        match state.filter(|_| changed) {
            Some(state) => {
                let next = Next {
                    is_new_version: before != Some(state.version),
                    state: &state,
                };
                match keep(desk, ground, arrivals, &next, &base, origin).await {
                    Kept::Yes => {}
                    Kept::Again => {
                        desk.known.remove(user_id);
                        origin = Origin::Leader;
                        continue;
                    }
                    Kept::Never(merged) => return merged,
                }
            }
            None if origin != Origin::Cache && !base.payload.is_empty() => {
                desk.known.insert(user_id.clone(), base);
            }
            None => {}
        }
        for (arrival, applied) in arrivals.iter_mut().zip(applied) {
            acknowledge(&arrival.message).await;
            count(desk, ground, arrival, applied, now_us);
        }
        return Merged::Done;
    }
}

/// The state to start from, from where `origin` says or, where nothing is at hand, from any replica.
async fn base(desk: &Desk, user_id: &UserId, origin: &mut Origin) -> Stored {
    if *origin == Origin::Cache {
        if let Some(stored) = desk.known.get(user_id) {
            return stored;
        }
        *origin = Origin::Replica;
    }
    loop {
        match read(desk, user_id, *origin).await {
            Ok(stored) => return stored,
            Err(error) => {
                tracing::warn!(user.id = %user_id, error = format!("{error:#}"), "can't read a state; trying again");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

/// What it says, `None` where there is none.
///
/// # Errors
/// When only a newer program can read it: it is to be read again.
async fn parsed(desk: &Desk, user_id: &UserId, base: &Stored) -> Result<Option<State>, Unreadable> {
    if base.payload.is_empty() {
        return Ok(None);
    }
    match stored_state::read(user_id, &base.payload) {
        Ok(state) => Ok(Some(state)),
        Err(newer @ Unreadable::Newer(_)) => {
            tracing::error!(user.id = %user_id, error = %newer, "can't merge into a state; trying again");
            desk.known.remove(user_id);
            let reason = format!("events wait: can't merge into a state: {newer}");
            desk.health.waiting(NEWER, reason);
            tokio::time::sleep(UPGRADE).await;
            Err(newer)
        }
        Err(broken @ (Unreadable::NoState(_) | Unreadable::Beyond | Unreadable::OfAnother)) => {
            // Only a foreign writer can have stored it; a user.created puts it right.
            tracing::error!(user.id = %user_id, error = %broken, "USER_STATE holds something that is no state; starting anew");
            Ok(None)
        }
    }
}

/// Gives a state that says it contains events which don't exist yet the sequence before those that came up to `last`:
/// they would be taken for known until the stream is that far.
async fn mend_seq(desk: &Desk, ground: &Ground, state: &mut State, last: u64) {
    let current = ground.history.epochs.current();
    let is_ahead = |reached: u64| state.event_seq > last.max(reached);
    let epoch = state.epoch.as_ref();
    let is_current = epoch.map_or(current.ordinal() == 1, |epoch| epoch == current);
    if !is_current || !is_ahead(ground.reached()) {
        return;
    }
    let reached = loop {
        match desk.jetstream.get_stream(USER_EVENTS).await {
            Ok(events) => break events.cached_info().state.last_sequence,
            Err(error) => {
                tracing::warn!(%error, "can't look at USER_EVENTS; trying again");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    };
    ground.reach(reached);
    if is_ahead(reached) {
        tracing::error!(
            user.id = %state.user_id, event_seq = state.event_seq, last_sequence = reached,
            "a state says that it contains events which aren't there yet; what comes now counts as newer"
        );
        // Other turns of this user are over, so nothing of it after these events is contained.
        state.event_seq = 0;
    }
}

/// A state to be stored.
struct Next<'a> {
    state: &'a State,
    /// Else it only remembers an event.
    is_new_version: bool,
}

/// Stores `next`, which was made from `base`.
async fn keep(
    desk: &Desk,
    ground: &Ground,
    arrivals: &[Arrival],
    next: &Next<'_>,
    base: &Stored,
    origin: Origin,
) -> Kept {
    let Next {
        state,
        is_new_version,
    } = *next;
    let user_id = &state.user_id;
    // What is stored is kept at hand, so its room is what it needs: a vector that grows by itself has up to twice that.
    let mut payload = Vec::with_capacity(base.payload.len() + GROWTH);
    let written = serde_json::to_writer(&mut payload, state).map(|()| payload);
    let payload = match written {
        Ok(payload) if payload.len() > MAX_STATE_BYTES => {
            return match origin {
                Origin::Leader => Kept::Never(Merged::TooLarge(payload.len())),
                Origin::Cache | Origin::Replica => Kept::Again,
            };
        }
        Ok(payload) => Bytes::from(payload),
        Err(error) => {
            tracing::error!(user.id = %user_id, %error, "can't write a state as JSON");
            return Kept::Never(Merged::TooLarge(0));
        }
    };
    let is_new = base.payload.is_empty();
    if is_new {
        match ground.intact.check().await {
            Ok(true) => {}
            Ok(false) => {
                ground.lose(Lost::States);
                return Kept::Never(Merged::Lost);
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "can't look at USER_STATE; trying again");
                tokio::time::sleep(PATIENCE).await;
                return Kept::Again;
            }
        }
    }
    let mut message = PublishMessage::build()
        .payload(payload.clone())
        .expected_last_subject_sequence(base.seq);
    if !is_new_version {
        message = message.header(header::UNCHANGED, "true");
    }
    match store(desk, user_id, arrivals, message).await {
        Ok(seq) => {
            ground.intact.stored(seq, is_new);
            desk.known.insert(user_id.clone(), Stored { seq, payload });
            Kept::Yes
        }
        Err(PublishErrorKind::WrongLastSequence) => Kept::Again,
        Err(kind) => {
            tracing::warn!(user.id = %user_id, error = %kind, "can't store a state; trying again");
            tokio::time::sleep(PATIENCE).await;
            Kept::Again
        }
    }
}

/// Counts what an event came to.
fn count(desk: &Desk, ground: &Ground, arrival: &mut Arrival, applied: Applied, now_us: u64) {
    arrival.span.set("usersync.result", result(applied));
    let forgotten = applied.stored().unwrap_or_default();
    if forgotten > 0 {
        desk.meters.forgotten.increment(forgotten as u64);
        ground.crowd();
    }
    match applied {
        Applied::Changed { .. } => {
            desk.meters.changed.increment(1);
            let micros = now_us.saturating_sub(arrival.at.stored_us);
            desk.meters.seconds.record(Duration::from_micros(micros));
        }
        Applied::Unchanged => desk.meters.unchanged.increment(1),
        Applied::Known => desk.meters.known.increment(1),
        Applied::AfterDelete { .. } => desk.meters.after_delete.increment(1),
        // Ends the session instead.
        Applied::Outdated => {}
    }
}

/// What is said of an event in its span.
fn result(applied: Applied) -> &'static str {
    match applied {
        Applied::Changed { .. } => "changed",
        Applied::Unchanged => "unchanged",
        Applied::Known => "known",
        Applied::AfterDelete { .. } => "after_delete",
        Applied::Outdated => "outdated",
    }
}

/// Reads the newest state: from any replica, or surely from the leader.
async fn read(desk: &Desk, user_id: &UserId, origin: Origin) -> anyhow::Result<Stored> {
    let subject = subjects::state(user_id);
    let none = Stored {
        seq: 0,
        payload: Bytes::new(),
    };
    if origin == Origin::Leader {
        return match desk.states.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Ok(Stored {
                seq: message.sequence,
                payload: message.payload,
            }),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(none),
            Err(error) => Err(error.into()),
        };
    }
    match desk.states.direct_get_last_for_subject(subject).await {
        Ok(message) => Ok(Stored {
            seq: message.sequence,
            payload: message.payload,
        }),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(none),
        Err(error) => Err(error.into()),
    }
}

/// Stores a state if the one that it names is still the newest; returns its sequence.
async fn store(
    desk: &Desk,
    user_id: &UserId,
    arrivals: &[Arrival],
    mut message: PublishMessage,
) -> Result<u64, PublishErrorKind> {
    // The newest event's trace goes on; the others end here.
    let trace = arrivals
        .iter()
        .rev()
        .find_map(|arrival| arrival.span.context());
    for (name, text) in trace.iter().flat_map(TraceContext::headers) {
        message = message.header(name, text);
    }
    let sent = desk
        .jetstream
        .send_publish(subjects::state(user_id), message)
        .await;
    let ack = sent.map_err(|error| error.kind())?.await;
    Ok(ack.map_err(|error| error.kind())?.sequence)
}

async fn acknowledge(message: &Message) {
    if let Err(error) = message.ack().await {
        // Not lost: the event comes again and is known then.
        tracing::warn!(%error, "can't acknowledge an event; it will come again");
    }
}
