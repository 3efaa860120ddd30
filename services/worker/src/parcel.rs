//! One batch on its way: find the newest state of each user, deliver, settle every message or hold it.

use std::{future::Future, sync::Arc, time::Duration};

use async_nats::jetstream::AckKind;
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::time::Instant;
use usersync_core::{streams::DELIVERY_WAIT, user_id::UserId};
use usersync_targets::{Delivery, Outcome, Verdict};
use usersync_traces::{Span, SpanKind};

use crate::{
    breaker::Ruling,
    freshness::Unproven,
    newest::{self, Newest},
    others::Neighbours,
    route::Route,
    settle::{self, Ending},
    task::{Item, Task},
};

/// How long telling the server of progress may take.
const PROGRESS: Duration = Duration::from_millis(250);

/// What is left to do when a batch has come to its end.
#[derive(Default)]
pub(crate) struct Carried {
    /// Whose lanes are free again.
    pub users: Vec<UserId>,
    /// What is kept until the target is back.
    pub held: Vec<Item>,
    /// What may not be what the target has.
    pub unproven: Vec<Unproven>,
    /// Whose messages a target without a guard has taken.
    pub unguarded: Vec<UserId>,
    /// What has no message that comes again, and is to be tried again then.
    pub later: Vec<Later>,
    /// How long the call took, and whether it failed; `None` when there was none.
    pub call: Option<(Duration, bool)>,
    /// How many tasks of it were there because a delivery was in doubt.
    pub doubts: usize,
}

/// A recheck that is to be made later: it failed, or a call may land until then.
#[derive(Debug)]
pub(crate) struct Later {
    pub at: Instant,
    pub user_id: UserId,
    pub version: u64,
    pub tries: u32,
}

/// One user who is called about.
struct Called {
    item: Item,
    delivery: Delivery,
    content: u64,
    stored_us: u64,
    span: Span,
}

/// Carries one batch to the end: every message of it is acknowledged, put off, dead-lettered or held.
pub(crate) async fn carry(route: Arc<Route>, items: Vec<Item>) -> Carried {
    let mut carried = Carried::default();
    let (called, ended) = prepare(&route, items).await;
    let mut endings: Vec<_> = ended
        .into_iter()
        .map(|(item, version, ending)| (item, version, ending, Duration::ZERO))
        .collect();
    if called.is_empty() {
        conclude(&route, &mut carried, endings).await;
        return carried;
    }
    let (called, batch): (Vec<_>, Vec<_>) = called.into_iter().map(Called::split).unzip();
    let started = Instant::now();
    let damaged = called.iter().filter_map(|(item, ..)| {
        let version = item.damaged_version()?;
        Some((item.user_id.clone(), version))
    });
    let damaged: Vec<(UserId, u64)> = damaged.collect();
    let delivering = async {
        forget(&route, &damaged).await;
        deliver(&route, &batch).await
    };
    let waiting = called.iter().map(|(item, ..)| item);
    let waiting = waiting.chain(endings.iter().map(|(item, ..)| item));
    let outcomes = with_progress(&waiting.collect::<Vec<_>>(), delivering).await;
    let took = started.elapsed();
    let now_us = unix_us();

    let users = called.iter().map(|(item, ..)| &item.user_id);
    let rulings: Vec<Ruling> = {
        let mut breaker = route.breaker();
        breaker.called(users.zip(&outcomes), Instant::now());
        outcomes
            .iter()
            .map(|outcome| breaker.ruling(outcome))
            .collect()
    };
    let failed = |outcome: &Outcome| {
        matches!(
            outcome,
            Outcome::Transient(_) | Outcome::Fault(_) | Outcome::Down(_)
        )
    };
    carried.call = Some((took, outcomes.iter().all(failed)));
    route.meters.call_seconds.record(took);
    let results = called.into_iter().zip(batch).zip(outcomes).zip(rulings);
    for ((((item, content, stored_us, span), delivery), outcome), ruling) in results {
        end(span, &outcome);
        note(&route, &item, &delivery, content, &outcome);
        let is_first = item.doubts() == 0 && item.messages().next().is_some();
        if may_still_land(&outcome) && route.lacks_guard() && is_first {
            carried.later.push(Later {
                at: Instant::now() + route.config.timeout,
                user_id: item.user_id.clone(),
                version: 0,
                tries: 0,
            });
        }
        if ruling == Ruling::Hold {
            route.meters.held.increment(1);
            if let Some(class) = settle::class_of(&outcome) {
                route.recent().failed(class, Instant::now());
            }
            carried.held.push(item);
            continue;
        }
        if let Outcome::Delivered { guarded } = outcome {
            route.set_guarded(guarded);
            if item.only_live() && item.is_new_version() && route.is_change(stored_us) {
                let micros = now_us.saturating_sub(stored_us);
                let latency = Duration::from_micros(micros);
                route.meters.sync_seconds.record(latency);
            }
            if !guarded {
                // One that is rechecked was remembered with its message.
                if item.messages().next().is_some() {
                    carried.unguarded.push(item.user_id.clone());
                }
                carried.unproven.push(Unproven {
                    user_id: item.user_id.clone(),
                    version: delivery.version,
                    since: item.since(),
                });
            }
        }
        endings.push((item, delivery.version, Ending::Outcome(outcome), took));
    }
    conclude(&route, &mut carried, endings).await;
    carried
}

/// [`Called`] without its delivery.
type Call = (Item, u64, u64, Span);

impl Called {
    fn split(self) -> (Call, Delivery) {
        (
            (self.item, self.content, self.stored_us, self.span),
            self.delivery,
        )
    }
}

/// Finds out what the target is to be told of whom, and what has ended without a call.
async fn prepare(route: &Route, items: Vec<Item>) -> (Vec<Called>, Vec<(Item, u64, Ending)>) {
    let newest = newest::of(route, &items).await;
    let mut called = Vec::with_capacity(items.len());
    let mut ended = Vec::new();
    for (item, newest) in items.into_iter().zip(newest) {
        let (state, trace) = match newest {
            Newest::State(state, trace) => (*state, trace),
            Newest::Nothing => {
                ended.push((item, 0, Ending::Superseded));
                continue;
            }
            Newest::Failed(outcome) => {
                ended.push((item, 0, Ending::Outcome(outcome)));
                continue;
            }
            Newest::Newer(failure) => {
                ended.push((item, 0, Ending::Newer(failure)));
                continue;
            }
        };
        let (version, stored_us) = (state.version, state.event.stored_us);
        let mut delivery = match route.rule.apply(state) {
            Verdict::Send(delivery) => delivery,
            Verdict::Skip { why } => {
                ended.push((item, version, Ending::Skipped(why)));
                continue;
            }
            Verdict::Refused(failure) => {
                let refused = Ending::Outcome(Outcome::Permanent(failure));
                ended.push((item, version, refused));
                continue;
            }
        };
        let mut unchanged = route.unchanged();
        let content = match unchanged.is_enabled() {
            true => delivery.content_hash(),
            false => 0,
        };
        let since = match item.only_live() {
            true => unchanged.since(&item.user_id, content, route.alone_since()),
            false => None,
        };
        if let Some(since) = since {
            ended.push((item, version, Ending::Unchanged { since }));
            continue;
        }
        // Until the call has succeeded nobody knows what the target holds.
        unchanged.forget(&item.user_id);
        drop(unchanged);
        let mut span = route.traces.span(SpanKind::Client, "deliver", trace);
        if span.is_recorded() {
            span.set("usersync.target", route.config.name.to_string());
            span.set("usersync.version", saturating(version));
            span.set("usersync.attempt", i64::from(item.attempts()));
        }
        delivery.trace = span.context();
        called.push(Called {
            item,
            delivery,
            content,
            stored_us,
            span,
        });
    }
    (called, ended)
}

/// Has the target forget versions that can't be, so that it takes what is delivered.
async fn forget(route: &Route, damaged: &[(UserId, u64)]) {
    for (user_id, version) in damaged {
        let forgotten = route.driver.forget_version(user_id, *version).await;
        if let Err(failure) = forgotten {
            // The next check finds the user again.
            tracing::warn!(target = %route.config.name, user.id = %user_id, error = %failure, "can't forget a version");
        }
    }
}

/// Delivers, and reads back what the target is to be trusted with only then.
async fn deliver(route: &Route, batch: &[Delivery]) -> Vec<Outcome> {
    let others = Neighbours::new(route);
    let mut outcomes = route.driver.deliver_among(batch, &others).await;
    let written = others.were_written();
    if !written.is_empty() {
        Box::pin(moved(route, &written)).await;
    }
    if route.config.verify
        && outcomes
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Delivered { .. }))
        && let Some(verified) = route.driver.verify(batch).await
    {
        for (outcome, verified) in outcomes.iter_mut().zip(verified) {
            if let (
                Outcome::Delivered { .. },
                Outcome::Transient(_) | Outcome::Fault(_) | Outcome::Down(_),
            ) = (&*outcome, &verified)
            {
                *outcome = verified;
            }
        }
    }
    let retry = &route.config.retry;
    outcomes
        .into_iter()
        .map(|outcome| usersync_targets::reclassify(outcome, retry))
        .collect()
}

/// The rows of `users` were written for the sake of others: what they were told last is no longer known, and who has a dead
/// letter is held as they should be.
async fn moved(route: &Route, users: &[UserId]) {
    {
        let mut unchanged = route.unchanged();
        users.iter().for_each(|user| unchanged.forget(user));
    }
    let dead = route.letters.dead(users);
    settle::deliver_again(route, &dead).await.ok();
}

/// How long to wait before a user is rechecked again.
fn patience(route: &Route, ending: &Ending, delay: Duration) -> Duration {
    match ending {
        Ending::Outcome(outcome) if may_still_land(outcome) && route.lacks_guard() => {
            delay.max(route.config.timeout)
        }
        _ => delay,
    }
}

/// Whether the target may do what it was told after all, although nobody waits for that any more: there was no answer, or
/// somebody in front of it gave up.
fn may_still_land(outcome: &Outcome) -> bool {
    let Outcome::Transient(failure) = outcome else {
        return false;
    };
    matches!(failure.code.as_deref(), None | Some("408" | "502" | "504"))
}

/// Ends the span of a delivery with what came of it.
fn end(mut span: Span, outcome: &Outcome) {
    match settle::class_of(outcome) {
        Some(class) => span.fail(class.as_str()),
        None if *outcome == Outcome::AlreadyNewer => span.set("usersync.result", "already_newer"),
        None => span.set("usersync.result", "delivered"),
    }
}

fn saturating(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Remembers what the target has now been told.
fn note(route: &Route, item: &Item, delivery: &Delivery, content: u64, outcome: &Outcome) {
    if let Outcome::Delivered { .. } = outcome {
        let since = if item.only_live() { item.since() } else { 0 };
        route.unchanged().told(&delivery.user_id, content, since);
    }
}

/// Settles every user's messages, all at once, and frees their lanes.
async fn conclude(
    route: &Route,
    carried: &mut Carried,
    endings: Vec<(Item, u64, Ending, Duration)>,
) {
    let settle = async |(item, version, ending, took): (Item, u64, Ending, Duration)| {
        let again = settle::settle(route, &item, version, &ending, took).await;
        (item, ending, again)
    };
    for (item, ending, again) in join_all(endings.into_iter().map(settle)).await {
        let user_id = item.user_id.clone();
        carried.doubts += item.doubts();
        match (ending, again, item.only_recheck()) {
            // Another worker may have told the target something else meanwhile.
            (Ending::Unchanged { since }, ..) => carried.unproven.push(Unproven {
                user_id,
                version: 0,
                since,
            }),
            (ending, Some(delay), Some(version)) => carried.later.push(Later {
                // What this call does late must not come after the next one.
                at: Instant::now() + patience(route, &ending, delay),
                user_id,
                version,
                tries: item.attempts(),
            }),
            _ => {}
        }
        carried.users.push(item.user_id);
    }
}

/// Awaits `work`, telling the server in time that its messages are still being worked on.
async fn with_progress<T>(waiting: &[&Item], work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(DELIVERY_WAIT / 3, &mut work).await {
            Ok(done) => return done,
            Err(_) => {
                // Bounded, because the work isn't looked at meanwhile and NATS may be away.
                let tasks = waiting.iter().flat_map(|item| &item.tasks);
                tokio::time::timeout(PROGRESS, progress(tasks)).await.ok();
            }
        }
    }
}

/// Tells the server that `tasks` are still being worked on.
pub(crate) async fn progress(tasks: impl Iterator<Item = &Task>) {
    for arrived in tasks.filter_map(Task::arrived) {
        if let Err(error) = arrived.message.ack_with(AckKind::Progress).await {
            tracing::warn!(%error, "can't report progress; the message may be delivered twice");
        }
    }
}

pub(crate) fn unix_us() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default()
}
