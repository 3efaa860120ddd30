//! One batch on its way: find the newest state of each user, deliver, settle every message.

use std::{future::Future, sync::Arc, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        self, AckKind, Message,
        stream::{DirectGetErrorKind, Stream},
    },
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::time::Instant;
use usersync_core::{
    state::State, streams::ACK_WAIT, subjects, target::TargetConfig, user_id::UserId,
};
use usersync_targets::{Delivery, Failure, Outcome, Target};

use crate::{
    dead_letter,
    freshness::Unproven,
    meters::Meters,
    settle::{self, Verdict},
};

/// What one courier's parcels share.
pub(crate) struct Route {
    /// The target.
    pub config: TargetConfig,
    /// How to reach it.
    pub driver: Box<dyn Target>,
    /// The JetStream connection.
    pub jetstream: jetstream::Context,
    /// USER_STATE, for direct gets.
    pub states: Stream,
    /// What is counted.
    pub meters: Meters,
}

/// Why a user is to be delivered.
#[derive(Debug)]
pub(crate) enum Task {
    /// A new state arrived: the message holds it.
    Live(Message),
    /// Someone asked for the newest state to be delivered.
    Repair(Message),
    /// Another worker may have delivered out of order: deliver the newest state if it is newer than this.
    Recheck(u64),
}

impl Task {
    pub(crate) fn message(&self) -> Option<&Message> {
        match self {
            Self::Live(message) | Self::Repair(message) => Some(message),
            Self::Recheck(_) => None,
        }
    }
}

/// One user of a batch, with everything queued for them.
pub(crate) struct Item {
    pub user_id: UserId,
    pub tasks: Vec<Task>,
}

impl Item {
    /// The messages with a state.
    fn live(&self) -> impl Iterator<Item = &Message> {
        self.tasks.iter().filter_map(|task| match task {
            Task::Live(message) => Some(message),
            Task::Repair(_) | Task::Recheck(_) => None,
        })
    }

    /// The consumer sequence received when what is delivered was the newest; 0 when unknown.
    fn since(&self) -> u64 {
        let seq = |message: &Message| message.info().map_or(0, |info| info.consumer_sequence);
        self.live().map(seq).max().unwrap_or(0)
    }

    /// The lowest version to be rechecked, `None` when anything else is to be done.
    fn only_recheck(&self) -> Option<u64> {
        let versions = self.tasks.iter().map(|task| match task {
            Task::Recheck(version) => Some(*version),
            Task::Live(_) | Task::Repair(_) => None,
        });
        versions.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// A recheck has no message that comes again, so one that may succeed later is unproven again.
    fn failed_recheck(&self, outcome: &Outcome) -> Option<Unproven> {
        let version = self.only_recheck()?;
        let later = matches!(outcome, Outcome::Transient(_) | Outcome::Fault(_));
        later.then(|| Unproven {
            user_id: self.user_id.clone(),
            version,
            since: 0,
        })
    }
}

/// What is left to do when a batch has been settled.
#[derive(Default)]
pub(crate) struct Carried {
    /// Whose lanes are free again.
    pub users: Vec<UserId>,
    /// What a target without a guard took.
    pub unproven: Vec<Unproven>,
}

/// What is known of a user before delivery.
enum Newest {
    State(Box<State>, Option<String>),
    /// There is nothing to deliver.
    Nothing,
    /// The newest state can't be had now, or not at all.
    Failed(Outcome),
}

/// Carries one batch to the end: every message of it is acknowledged, put off or dead-lettered.
pub(crate) async fn carry(route: Arc<Route>, items: Vec<Item>) -> Carried {
    let newest = newest(&route, &items).await;
    let mut batch = Vec::with_capacity(items.len());
    let mut stored_us = Vec::with_capacity(items.len());
    let mut outcomes = Vec::with_capacity(items.len());
    for found in newest {
        outcomes.push(match found {
            Newest::State(state, traceparent) => {
                stored_us.push(state.event.stored_us);
                batch.push(Delivery::new(&route.config, *state, traceparent));
                None
            }
            Newest::Nothing => Some(Outcome::AlreadyNewer),
            Newest::Failed(outcome) => Some(outcome),
        });
    }
    let started = Instant::now();
    let delivered = match batch.is_empty() {
        true => Vec::new(),
        false => with_progress(&items, route.driver.deliver(&batch)).await,
    };
    let elapsed = started.elapsed();
    let now_us = unix_us();

    let mut carried = Carried::default();
    let mut deliveries = batch.into_iter().zip(delivered).zip(stored_us);
    for (item, known) in items.into_iter().zip(outcomes) {
        match known {
            Some(outcome) => {
                settle(&route, &item, 0, &outcome).await;
                carried.unproven.extend(item.failed_recheck(&outcome));
            }
            None => {
                let Some(((delivery, outcome), stored_us)) = deliveries.next() else {
                    continue;
                };
                route.meters.call_seconds.record(elapsed);
                match &outcome {
                    Outcome::Delivered { guarded } => {
                        route.meters.delivered.increment(1);
                        if matches!(item.tasks.as_slice(), [Task::Live(_)]) {
                            let micros = now_us.saturating_sub(stored_us);
                            route
                                .meters
                                .sync_seconds
                                .record(Duration::from_micros(micros));
                        }
                        if !guarded {
                            carried.unproven.push(Unproven {
                                user_id: item.user_id.clone(),
                                version: delivery.version,
                                since: item.since(),
                            });
                        }
                    }
                    Outcome::AlreadyNewer => route.meters.already_newer.increment(1),
                    Outcome::Transient(_)
                    | Outcome::Permanent(_)
                    | Outcome::Fault(_)
                    | Outcome::Gone(_) => {}
                }
                settle(&route, &item, delivery.version, &outcome).await;
                carried.unproven.extend(item.failed_recheck(&outcome));
            }
        }
        carried.users.push(item.user_id);
    }
    carried
}

/// The newest state of every item: from its message, or asked for where there is none.
async fn newest(route: &Route, items: &[Item]) -> Vec<Newest> {
    let mut newest = Vec::with_capacity(items.len());
    let mut asked = FuturesUnordered::new();
    for (index, item) in items.iter().enumerate() {
        match newest_message(item) {
            Some(message) => newest.push(read(message)),
            None => {
                newest.push(Newest::Nothing);
                asked.push(async move { (index, ask(route, item).await) });
            }
        }
    }
    while let Some((index, answer)) = asked.next().await {
        newest[index] = answer;
    }
    newest
}

/// The message with the newest state, `None` when the state must be asked for.
fn newest_message(item: &Item) -> Option<&Message> {
    match item.tasks.as_slice() {
        [Task::Live(only)] => Some(only),
        _ => item
            .live()
            .max_by_key(|message| message.info().map_or(0, |info| info.stream_sequence)),
    }
}

fn read(message: &Message) -> Newest {
    parse(&message.payload, message.headers.as_ref())
}

/// Reads the newest state by direct get.
async fn ask(route: &Route, item: &Item) -> Newest {
    let subject = subjects::state(&item.user_id);
    match route.states.direct_get_last_for_subject(subject).await {
        Ok(message) => match parse(&message.payload, Some(&message.headers)) {
            Newest::State(state, _) if item.only_recheck() >= Some(state.version) => {
                Newest::Nothing
            }
            found => found,
        },
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Newest::Nothing,
        Err(error) => {
            let reason = format!("can't read the newest state: {error}");
            Newest::Failed(Outcome::Transient(Failure::new(reason)))
        }
    }
}

fn parse(payload: &[u8], headers: Option<&HeaderMap>) -> Newest {
    match serde_json::from_slice(payload) {
        Ok(state) => {
            let traceparent = headers.and_then(|headers| headers.get("traceparent"));
            Newest::State(
                Box::new(state),
                traceparent.map(|value| value.as_str().to_owned()),
            )
        }
        Err(error) => {
            let place = format!("line {} column {}", error.line(), error.column());
            let reason = format!("what USER_STATE holds is no state: {place}");
            Newest::Failed(Outcome::Permanent(Failure::new(reason)))
        }
    }
}

/// Awaits `work`, telling the server in time that its messages are still being worked on.
async fn with_progress<T>(items: &[Item], work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(ACK_WAIT / 3, &mut work).await {
            Ok(done) => return done,
            Err(_) => progress(items.iter().flat_map(|item| &item.tasks)).await,
        }
    }
}

/// Tells the server that `tasks` are still being worked on.
pub(crate) async fn progress(tasks: impl Iterator<Item = &Task>) {
    for message in tasks.filter_map(Task::message) {
        if let Err(error) = message.ack_with(AckKind::Progress).await {
            tracing::warn!(%error, "can't report progress; the message may be delivered twice");
        }
    }
}

/// Does with every message of `item` what its outcome asks for.
async fn settle(route: &Route, item: &Item, version: u64, outcome: &Outcome) {
    let messages: Vec<&Message> = item.tasks.iter().filter_map(Task::message).collect();
    route
        .meters
        .coalesced
        .increment(messages.len().saturating_sub(1) as u64);
    let attempts = match outcome {
        // Only failures count attempts; success needs no look at the message. A newer state starts
        // anew, whatever an older one that waits beside it has used up.
        Outcome::Delivered { .. } | Outcome::AlreadyNewer => 1,
        _ => messages
            .iter()
            .map(|message| delivered(message))
            .min()
            .unwrap_or(1),
    };
    let target = &route.config.name;
    match settle::decide(
        outcome,
        attempts,
        &route.config.retry,
        fastrand::f64() * 2.0 - 1.0,
    ) {
        Verdict::Acknowledge => acknowledge(&messages, AckKind::Ack).await,
        Verdict::Retry(delay, failure) => {
            route.meters.retried.increment(1);
            tracing::warn!(%target, user.id = %item.user_id, attempts, delay_ms = delay.as_millis(), reason = %failure, "delivery failed; trying again");
            acknowledge(&messages, AckKind::Nak(Some(delay))).await;
        }
        Verdict::DeadLetter(class, failure) => {
            let task = (&item.user_id, version);
            match dead_letter::store(&route.jetstream, target, task, attempts, class, failure).await
            {
                Ok(()) => {
                    route.meters.dead_lettered.increment(1);
                    tracing::error!(%target, user.id = %item.user_id, attempts, class = class.as_str(), reason = %failure, "dead-lettered");
                    acknowledge(&messages, AckKind::Term).await;
                }
                Err(error) => {
                    tracing::error!(%target, user.id = %item.user_id, error = format!("{error:#}"), "can't store the dead letter; trying again");
                    acknowledge(&messages, AckKind::Nak(Some(route.config.retry.base))).await;
                }
            }
        }
    }
}

async fn acknowledge(messages: &[&Message], kind: AckKind) {
    for message in messages {
        if let Err(error) = message.ack_with(kind).await {
            // Not lost: the server hands it out again.
            tracing::warn!(%error, "can't acknowledge; the message will come again");
        }
    }
}

fn delivered(message: &Message) -> u32 {
    message
        .info()
        .map_or(1, |info| u32::try_from(info.delivered).unwrap_or(u32::MAX))
}

fn unix_us() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default()
}
