//! What follows from an ending: acknowledge, try again later, or dead-letter. Decided here and nowhere else.

use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use jiff::Timestamp;
use tokio::time::Instant;
use usersync_core::{
    dead_letter::{Class, DeadLetter, Same},
    retry::Retry,
    user_id::UserId,
};
use usersync_targets::{Failure, Outcome, Skip};

use crate::{hand_back, others, parcel::unix_us, results::Line, route::Route, task::Item};

/// When a message comes again whose dead letter could not be stored or cleared: the deliveries the
/// server grants for that must last longer than a cluster takes to find a leader.
const UNSTORED: Duration = Duration::from_secs(30);

/// When a message comes again whose state only a newer worker can read.
pub(crate) const UPGRADE: Duration = Duration::from_secs(5);

/// How the work on one user ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The target was called, or could not be.
    Outcome(Outcome),
    /// A newer state is on its way, or the target has it.
    Superseded,
    /// Nothing the target sees has changed since it was told last, at this consumer sequence.
    Unchanged { since: u64 },
    /// The target isn't meant to hear of this.
    Skipped(Skip),
    /// A newer version of usersync has written the state: it waits for a worker that understands it.
    Newer(Failure),
}

/// What is to be done with a message.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict<'a> {
    /// The target has it: acknowledge.
    Acknowledge,
    /// Hand it out again after this long.
    Retry(Duration, &'a Failure),
    /// Keep it as a dead letter, then terminate it.
    DeadLetter(Class, &'a Failure),
}

/// Does with every message of `item` what its ending asks for; answers after how long it comes again,
/// if it does.
pub(crate) async fn settle(
    route: &Route,
    item: &Item,
    version: u64,
    ending: &Ending,
    took: Duration,
) -> Option<Duration> {
    let count = item.messages().count();
    if count > 1 {
        route.meters.coalesced.increment(count as u64 - 1);
    }
    let (counter, name) = match ending {
        Ending::Superseded => {
            if item.newest().is_some() {
                route.meters.superseded.increment(1);
            }
            acknowledge(item.messages(), AckKind::Ack).await;
            return None;
        }
        Ending::Unchanged { .. } => (&route.meters.unchanged, "unchanged"),
        Ending::Skipped(why) => (&route.meters.out_of_scope, why.as_str()),
        Ending::Outcome(Outcome::Delivered { .. }) => (&route.meters.delivered, "delivered"),
        Ending::Outcome(Outcome::AlreadyNewer) => (&route.meters.already_newer, "already_newer"),
        Ending::Newer(failure) => return Box::pin(put_off(route, item, failure)).await,
        // Rare, and large: on the heap it doesn't weigh on every success.
        Ending::Outcome(outcome) => {
            return Box::pin(failed(route, item, version, outcome, took)).await;
        }
    };
    counter.increment(1);
    route.recent().succeeded(Instant::now());
    log(route, item, version, name, took, None).await;
    route.failures().ended(&item.user_id);
    if let Err(error) = route.letters.clear(&item.user_id, version).await {
        let error = format!("{error:#}");
        tracing::warn!(target = %route.config.name, user.id = %item.user_id, error, "can't clear the dead letter; delivering again");
        acknowledge(item.messages(), AckKind::Nak(Some(UNSTORED))).await;
        return Some(UNSTORED);
    }
    if let Ending::Outcome(_) = ending {
        let waiting = route.letters.made_room(&item.user_id);
        if !waiting.is_empty() && Box::pin(deliver_again(route, &waiting)).await.is_err() {
            acknowledge(item.messages(), AckKind::Nak(Some(UNSTORED))).await;
            return Some(UNSTORED);
        }
    }
    acknowledge(item.messages(), AckKind::Ack).await;
    None
}

/// Lets what `item` is about wait for a newer worker, however long that takes: before the server has handed out a message as
/// often as it may, a repair takes its place, which starts anew.
async fn put_off(route: &Route, item: &Item, failure: &Failure) -> Option<Duration> {
    let (target, retry, attempts) = (&route.config.name, &route.config.retry, item.attempts());
    if route.saw_newer(failure) {
        tracing::error!(%target, user.id = %item.user_id, error = %failure, "users wait for a newer worker");
    }
    route
        .failures()
        .failed(&item.user_id, 0, attempts, failure, UPGRADE);
    let kind = match attempts > retry.max_deliver {
        true if hand_back::ask(route, &item.user_id).await.is_ok() => AckKind::Ack,
        true => AckKind::Nak(Some(UNSTORED)),
        false => AckKind::Nak(Some(UPGRADE)),
    };
    acknowledge(item.messages(), kind).await;
    Some(UPGRADE)
}

/// Asks for `users` to be delivered again, for whom they waited may have made room.
///
/// # Errors
/// When NATS doesn't take it.
pub(crate) async fn deliver_again(route: &Route, users: &[UserId]) -> Result<(), ()> {
    for user in users {
        if let Err(error) = hand_back::ask(route, user).await {
            tracing::warn!(target = %route.config.name, user.id = %user, %error, "can't ask for a user to be delivered again");
            return Err(());
        }
    }
    Ok(())
}

async fn failed(
    route: &Route,
    item: &Item,
    version: u64,
    outcome: &Outcome,
    took: Duration,
) -> Option<Duration> {
    let (target, retry) = (&route.config.name, &route.config.retry);
    let attempts = item.attempts();
    if let Some(class) = class_of(outcome) {
        route.recent().failed(class, Instant::now());
    }
    match decide(outcome, attempts, retry, fastrand::f64() * 2.0 - 1.0) {
        Verdict::Acknowledge => {
            acknowledge(item.messages(), AckKind::Ack).await;
            None
        }
        Verdict::Retry(delay, failure) => {
            route.meters.retried.increment(1);
            let code = failure.code.as_deref();
            log(route, item, version, "retry", took, code).await;
            route
                .failures()
                .failed(&item.user_id, version, attempts, failure, delay);
            if let Outcome::Conflict(conflict) = outcome {
                route.letters.waits(&item.user_id, &conflict.holders);
            }
            tracing::warn!(%target, user.id = %item.user_id, attempts, delay_ms = delay.as_millis(), reason = %failure, "delivery failed; trying again");
            acknowledge(item.messages(), AckKind::Nak(Some(delay))).await;
            Some(delay)
        }
        Verdict::DeadLetter(class, failure) => {
            log(route, item, version, "dead", took, failure.code.as_deref()).await;
            let holders = match outcome {
                Outcome::Conflict(conflict) => conflict.holders.as_slice(),
                _ => &[],
            };
            give_up(route, item, version, class, failure, holders).await
        }
    }
}

/// Keeps what failed as a dead letter; answers after how long it comes again, if that can't be done. For what `holders` have
/// the user can't be delivered.
async fn give_up(
    route: &Route,
    item: &Item,
    version: u64,
    class: Class,
    failure: &Failure,
    holders: &[(UserId, u64)],
) -> Option<Duration> {
    let (target, attempts) = (&route.config.name, item.attempts());
    let first = route
        .failures()
        .failed(&item.user_id, version, attempts, failure, Duration::ZERO);
    let letter = DeadLetter {
        target: target.clone(),
        user_id: item.user_id.clone(),
        version,
        attempts,
        class,
        reason: failure.reason.to_string(),
        code: failure.code.as_deref().map(str::to_owned),
        first_failure: Some(first),
        last_failure: Some(Timestamp::now()),
        waits_for: holders.iter().map(|(user, _)| user.clone()).collect(),
    };
    if let Err(error) = letter.store(&route.jetstream, Same::Replace).await {
        tracing::error!(%target, user.id = %item.user_id, error = format!("{error:#}"), "can't store the dead letter; trying again");
        acknowledge(item.messages(), AckKind::Nak(Some(UNSTORED))).await;
        return Some(UNSTORED);
    }
    route.letters.stored(&letter);
    route.failures().ended(&item.user_id);
    route.meters.dead_lettered.increment(1);
    tracing::error!(%target, user.id = %item.user_id, attempts, class = class.as_str(), reason = %failure, "dead-lettered");
    // Who changed meanwhile was delivered before anybody knew that somebody waits for it.
    if class == Class::Permanent && others::has_changed(route, holders).await {
        let user = std::slice::from_ref(&item.user_id);
        deliver_again(route, user).await.ok();
    }
    acknowledge(item.messages(), AckKind::Term).await;
    None
}

async fn log(
    route: &Route,
    item: &Item,
    version: u64,
    outcome: &'static str,
    took: Duration,
    code: Option<&str>,
) {
    if !route.config.results {
        return;
    }
    let full = route.results.add(&Line {
        user_id: &item.user_id,
        version,
        outcome,
        attempts: item.attempts(),
        ms: (took.as_secs_f64() * 100_000.0).round() / 100.0,
        code,
        at_us: unix_us(),
    });
    if full {
        // One in some hundreds: on the heap it doesn't weigh on the others.
        Box::pin(route.results.publish()).await;
    }
}

async fn acknowledge(messages: impl Iterator<Item = &Message>, kind: AckKind) {
    for message in messages {
        if let Err(error) = message.ack_with(kind).await {
            // Not lost: the server hands it out again.
            tracing::warn!(%error, "can't acknowledge; the message will come again");
        }
    }
}

/// What kind of failure it is, `None` for a success.
pub(crate) fn class_of(outcome: &Outcome) -> Option<Class> {
    match outcome {
        Outcome::Delivered { .. } | Outcome::AlreadyNewer => None,
        Outcome::Conflict(conflict) if conflict.lasting => Some(Class::Permanent),
        Outcome::Conflict(_) => Some(Class::Transient),
        Outcome::Permanent(_) => Some(Class::Permanent),
        Outcome::Transient(_) => Some(Class::Transient),
        Outcome::Fault(_) | Outcome::Down(_) | Outcome::Gone(_) => Some(Class::TargetFault),
    }
}

/// Decides on one message. `attempts` counts this one; `jitter` is −1 to 1.
pub(crate) fn decide<'a>(
    outcome: &'a Outcome,
    attempts: u32,
    retry: &Retry,
    jitter: f64,
) -> Verdict<'a> {
    let (class, failure) = match outcome {
        Outcome::Delivered { .. } | Outcome::AlreadyNewer => return Verdict::Acknowledge,
        Outcome::Permanent(failure) => return Verdict::DeadLetter(Class::Permanent, failure),
        Outcome::Conflict(conflict) if conflict.lasting => {
            return Verdict::DeadLetter(Class::Permanent, &conflict.failure);
        }
        Outcome::Conflict(conflict) => (Class::Transient, &conflict.failure),
        Outcome::Transient(failure) => (Class::Transient, failure),
        Outcome::Fault(failure) | Outcome::Down(failure) | Outcome::Gone(failure) => {
            (Class::TargetFault, failure)
        }
    };
    if attempts >= retry.max_deliver {
        return Verdict::DeadLetter(class, failure);
    }
    let delay = backoff(attempts, retry, jitter).max(failure.retry_after.unwrap_or_default());
    Verdict::Retry(delay, failure)
}

/// base × factor^(attempts − 1), at most cap, ± 20 %.
fn backoff(attempts: u32, retry: &Retry, jitter: f64) -> Duration {
    let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
    let seconds =
        (retry.base.as_secs_f64() * retry.factor.powi(exponent)).min(retry.cap.as_secs_f64());
    Duration::from_secs_f64(seconds * (1.0 + 0.2 * jitter.clamp(-1.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transient(retry_after: Option<Duration>) -> Outcome {
        Outcome::Transient(Failure {
            retry_after,
            ..Failure::new("busy")
        })
    }

    #[test]
    fn success_of_any_kind_is_acknowledged() {
        for outcome in [Outcome::Delivered { guarded: false }, Outcome::AlreadyNewer] {
            assert_eq!(
                decide(&outcome, 99, &Retry::default(), 0.0),
                Verdict::Acknowledge
            );
        }
    }

    #[test]
    fn the_defaults_give_eight_attempts_over_about_an_hour() {
        let retry = Retry::default();
        let mut total = Duration::ZERO;
        for attempt in 1..8 {
            let outcome = transient(None);
            let Verdict::Retry(delay, _) = decide(&outcome, attempt, &retry, 0.0) else {
                panic!("attempt {attempt} gave up");
            };
            total += delay;
        }
        assert!((3_000..4_500).contains(&total.as_secs()), "{total:?}");
        assert!(matches!(
            decide(&transient(None), 8, &retry, 0.0),
            Verdict::DeadLetter(Class::Transient, _)
        ));
    }

    #[test]
    fn a_permanent_failure_is_dead_lettered_at_once() {
        let outcome = Outcome::Permanent(Failure::new("no such route"));
        assert!(matches!(
            decide(&outcome, 1, &Retry::default(), 0.0),
            Verdict::DeadLetter(Class::Permanent, _)
        ));
    }

    #[test]
    fn retry_after_lengthens_a_delay_and_jitter_stays_within_a_fifth() {
        let retry = Retry::default();
        let delay = |wait, jitter| match decide(&transient(wait), 1, &retry, jitter) {
            Verdict::Retry(delay, _) => delay.as_millis(),
            other => panic!("{other:?}"),
        };
        assert_eq!(delay(Some(Duration::from_secs(30)), 0.0), 30_000);
        assert_eq!(delay(Some(Duration::ZERO), 0.0), 1_000);
        assert_eq!((delay(None, -1.0), delay(None, 1.0)), (800, 1_200));
    }
}
