//! The queue of checks: every request is done by one of the schedulers, and goes on elsewhere when that one dies.

use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    check::{Checked, Request},
    feed::{Feed, Source},
    streams::ACK_WAIT,
    subjects::{self, CHECKER, USER_CHECK},
};

use crate::{
    check::{self, End, Journal, Progress},
    claim::Claim,
    reports::{self, For},
    scheduler::Scheduler,
};

/// Checks under way at once in one scheduler, without those that take long.
const SLOTS: usize = 2;
/// After how long a check is one of those: it mostly waits for its target, and must not keep others waiting.
const LONG: Duration = Duration::from_secs(10);
/// All checks under way at once in one scheduler, at most.
const MOST: usize = 16;
/// When a request comes again whose target is being checked already, or that could not be begun.
const AGAIN: Duration = Duration::from_secs(5);
/// How often a check says that it goes on, and how far it is.
const RENEW: Duration = Duration::from_secs(5);

/// Takes checks until `shutdown`; those under way are left where they are then.
pub(crate) async fn run(scheduler: &Scheduler, shutdown: CancellationToken) {
    let mut feed = Feed::new(Source {
        jetstream: scheduler.jetstream.clone(),
        stream: USER_CHECK,
        consumer: CHECKER.to_owned(),
        health: scheduler.health.clone(),
    });
    let mut checks = FuturesUnordered::new();
    let mut slots = Slots::default();
    loop {
        let (room, again) = slots.room(Instant::now());
        tokio::select! {
            () = shutdown.cancelled() => break,
            message = feed.next(room) => {
                let begun = slots.begin(Instant::now());
                let attending = attend(scheduler, message, shutdown.clone());
                checks.push(async move {
                    attending.await;
                    begun
                });
            }
            Some(begun) = checks.next() => slots.end(begun),
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
        }
    }
    for message in feed.close().await {
        answer(&message, AckKind::Nak(None)).await;
    }
    while checks.next().await.is_some() {}
}

/// When each check under way was begun.
#[derive(Default)]
struct Slots(Vec<Instant>);

impl Slots {
    /// How many more may begin; and when that may be more by itself.
    fn room(&self, now: Instant) -> (usize, Option<Instant>) {
        let Self(begun) = self;
        let short = begun.iter().filter(|begun| **begun + LONG > now);
        let room = SLOTS.saturating_sub(short.clone().count());
        let again = short.min().map(|begun| *begun + LONG);
        (room.min(MOST.saturating_sub(begun.len())), again)
    }

    fn begin(&mut self, now: Instant) -> Instant {
        self.0.push(now);
        now
    }

    fn end(&mut self, begun: Instant) {
        if let Some(at) = self.0.iter().position(|other| *other == begun) {
            self.0.swap_remove(at);
        }
    }
}

/// Does one check, and answers its request.
async fn attend(scheduler: &Scheduler, message: Message, shutdown: CancellationToken) {
    let kind = match serve(scheduler, &message, shutdown).await {
        Ok(kind) => kind,
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(subject = %message.subject, error, "can't do a check now; it comes again");
            AckKind::Nak(Some(AGAIN))
        }
    };
    answer(&message, kind).await;
}

async fn serve(
    scheduler: &Scheduler,
    message: &Message,
    shutdown: CancellationToken,
) -> anyhow::Result<AckKind> {
    let Some(target) = subjects::target_of_check(&message.subject) else {
        return Ok(AckKind::Term);
    };
    let request = match Request::read(&message.payload) {
        Ok(request) => request,
        Err(problem) => {
            tracing::error!(target, problem, "no request for a check; dropped");
            return Ok(AckKind::Term);
        }
    };
    let known = match target.parse() {
        Ok(Checked::Target(name)) => scheduler.registry.entry(&name).await?.is_some(),
        known => known.is_ok(),
    };
    if !known {
        // A replica that lags may not know yet of a target that was just put.
        if message.info().is_ok_and(|info| info.delivered == 1) {
            return Ok(AckKind::Nak(Some(AGAIN)));
        }
        tracing::error!(
            target,
            "there is no such target; the request for a check is dropped"
        );
        return Ok(AckKind::Term);
    }
    let claim = Claim::take(&scheduler.jetstream, target, &scheduler.id, &request).await?;
    let Some(mut claim) = claim else {
        return Ok(AckKind::Nak(Some(AGAIN)));
    };
    let (journal, entries) = Journal::new(claim.progress().clone());
    let work = check::run(scheduler, target, &request, journal, shutdown);
    let kept = async |now: &Progress| {
        answer(message, AckKind::Progress).await;
        reports::show(scheduler, &request, now).await;
    };
    let end = claim
        .during(work, entries, RENEW.min(ACK_WAIT / 3), kept)
        .await?;
    match end {
        End::Done(report) => {
            reports::publish(scheduler, &request, &report, For::Everybody).await?;
            claim.end().await?;
            Ok(AckKind::Ack)
        }
        End::Interrupted(progress) => {
            claim.leave(*progress).await?;
            Ok(AckKind::Nak(None))
        }
    }
}

async fn answer(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::warn!(%error, "can't answer a request for a check; it comes again after ack_wait");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_that_take_long_keep_no_others_waiting_and_are_bounded_too() {
        let began = Instant::now();
        let mut slots = Slots::default();
        let mut now = began;
        for long in (0..MOST).step_by(2) {
            assert_eq!(slots.room(now).0, 2, "{long}");
            slots.begin(now);
            let last = slots.begin(now);
            assert_eq!(slots.room(now), (0, Some(now + LONG)));
            slots.end(last);
            assert_eq!(slots.room(now).0, 1);
            slots.begin(now);
            now += LONG;
        }
        assert_eq!(slots.room(now), (0, None), "as many as there may be");
        slots.end(began);
        assert_eq!(slots.room(now).0, 1);
    }
}
