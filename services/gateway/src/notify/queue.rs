//! What one channel has to tell: alerts are gathered, told in one notice, and acknowledged once somebody has it.
//!
//! While a notice waits or is tried again the consumer hands out the alerts that come meanwhile, as many as one notice
//! may hold; the others stay in the stream. This gateway is asked for more all the time, for that is what keeps the pin.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::{self, AckKind, Message};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Fuse, FusedFuture as _},
};
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    alert::Alert,
    pull::{Member, Pull},
    streams::{self, ACK_WAIT, NOTICE},
    subjects::{NOTIFY_GROUP, USER_ALERT},
};
use usersync_targets::Failure;

use super::{
    channel::{Answer, Channel},
    meters::Meters,
    notice::{Item, Notice},
    throttle::Throttle,
};

/// For how long alerts that come one after the other become one notice.
const GATHER: Duration = Duration::from_secs(1);
/// After a failure; twice as long after each further one, up to the longest.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How long a pull lasts. Each renews the pin, so it is well below the pin's timeout (3 s).
const EXPIRES: Duration = Duration::from_secs(1);
/// How long to wait before pulling again after an error.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a message under way may still take when the gateway stops.
const LAST: Duration = Duration::from_secs(3);

/// The alerts of one channel.
pub(super) struct Queue<'a> {
    channel: &'a Channel,
    jetstream: jetstream::Context,
    meters: Meters,
    throttle: Throttle,
    /// What is held and not acknowledged, by its place in the stream.
    held: BTreeMap<u64, Held>,
    /// The notice that is tried, and its alerts' places.
    trying: Option<Trying>,
    /// When the next message may be sent at the earliest, where there is something to say.
    due: Instant,
}

/// An alert in hand.
struct Held {
    message: Message,
    item: Item,
    told: Timestamp,
    /// Whether it was handed out before, maybe to a gateway that has told it and died.
    again: bool,
}

struct Trying {
    notice: Notice,
    places: Vec<u64>,
    failures: u32,
}

impl<'a> Queue<'a> {
    pub(super) fn new(channel: &'a Channel, jetstream: jetstream::Context, meters: Meters) -> Self {
        Self {
            channel,
            jetstream,
            meters,
            throttle: Throttle::new(channel.scope.per_minute),
            held: BTreeMap::new(),
            trying: None,
            due: Instant::now(),
        }
    }

    /// Tells until `shutdown`.
    pub(super) async fn run(mut self, shutdown: &CancellationToken) {
        while !shutdown.is_cancelled() {
            if let Err(error) = self.session(shutdown).await {
                let (error, channel) = (format!("{error:#}"), self.channel.name());
                tracing::debug!(error, channel, "opening the consumer again");
            }
            shutdown.run_until_cancelled(sleep(AGAIN)).await;
        }
    }

    /// Pulls and tells until something is wrong with the connection, or until `shutdown`; then nothing is held.
    async fn session(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let durable = self.channel.durable();
        // Made again when somebody has removed it.
        streams::ensure_notify_consumer(&self.jetstream, durable).await?;
        let mut pull = Pull::open(&self.jetstream, USER_ALERT, durable, EXPIRES).await?;
        let channel = self.channel;
        let mut sending: Fuse<BoxFuture<'_, Answer>> = Fuse::terminated();
        let mut alive = interval(ACK_WAIT / 3);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pin = None;
        let ended = loop {
            let member = Member {
                group: NOTIFY_GROUP,
                pin: pin.as_deref(),
            };
            if pull.outstanding() == 0
                && let Err(error) = pull.ask(NOTICE, Some(member)).await
            {
                break Err(error);
            }
            tokio::select! {
                () = shutdown.cancelled() => break Ok(()),
                _ = alive.tick() => self.answer_all(AckKind::Progress).await,
                answer = &mut sending, if !sending.is_terminated() => self.settle(answer).await,
                next = pull.next() => match next {
                    Ok(Some(message)) => {
                        pin = pin_of(&message).or(pin);
                        self.take(message).await;
                    }
                    Ok(None) => {}
                    Err(stopped) => break Err(stopped.into()),
                },
                () = sleep_until(self.due), if sending.is_terminated() && !self.held.is_empty() => {
                    let notice = self.begin().await;
                    sending = async move { channel.send(&notice).await }.boxed().fuse();
                }
            }
        };
        if !sending.is_terminated()
            && let Ok(answer) = timeout(LAST, sending).await
        {
            self.settle(answer).await;
        }
        self.answer_all(AckKind::Nak(None)).await;
        self.held.clear();
        self.trying = None;
        for message in pull.close().await {
            answer(&message, AckKind::Nak(None)).await;
        }
        ended
    }

    /// Holds an alert, unless nobody wants to hear of it.
    async fn take(&mut self, message: Message) {
        let (channel, name) = (self.channel, self.channel.name());
        let read = read(&message);
        let (place, told, again, alert) = match read {
            Ok(read) => read,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, channel = name, "an alert can't be read: not told");
                return answer(&message, AckKind::Ack).await;
            }
        };
        if alert.is_update() || !channel.scope.has(&alert) {
            return answer(&message, AckKind::Ack).await;
        }
        if self.held.is_empty() {
            self.wait(GATHER);
        }
        let item = Item::from(&alert);
        let held = Held {
            message,
            item,
            told,
            again,
        };
        self.held.insert(place, held);
    }

    /// The notice to be sent now: the one that has failed, else what is held. What was handed out before is told apart
    /// from what is new, so that a notice that is repeated has the id it had.
    async fn begin(&mut self) -> Notice {
        self.throttle.count(Instant::now());
        if let Some(trying) = &self.trying {
            return trying.notice.clone();
        }
        let repeated = self.held.values().any(|held| held.again);
        let of = self.held.iter().filter(|(_, held)| held.again == repeated);
        let of: Vec<_> = of.take(NOTICE).collect();
        let places = of.iter().map(|(place, _)| **place).collect();
        let newest = of.iter().map(|(_, held)| held.told).max();
        let items = of.iter().map(|(_, held)| held.item.clone()).collect();
        let notice = Notice::of(items, newest.unwrap_or_default());
        self.trying = Some(Trying {
            notice: notice.clone(),
            places,
            failures: 0,
        });
        // Should this gateway die, they are handed out at the same time.
        self.answer_all(AckKind::Progress).await;
        notice
    }

    /// Draws the conclusions.
    async fn settle(&mut self, answered: Answer) {
        let Some(mut trying) = self.trying.take() else {
            return;
        };
        let (channel, alerts) = (self.channel.name(), trying.places.len());
        match answered {
            Answer::NotNow(failure) => {
                trying.failures += 1;
                let wait = pause(trying.failures, &failure);
                self.meters.failed.increment(1);
                let (error, wait_s) = (failure.to_string(), wait.as_secs());
                tracing::warn!(
                    channel,
                    alerts,
                    error,
                    wait_s,
                    "people can't be told of alerts; trying again"
                );
                self.trying = Some(trying);
                self.wait(wait);
                return;
            }
            Answer::Never(failure) => {
                self.meters.refused.increment(1);
                let error = failure.to_string();
                tracing::error!(channel, alerts, error, "alerts are refused: not told");
            }
            Answer::Taken => {
                self.meters.sent.increment(1);
                tracing::info!(channel, alerts, "told of alerts");
            }
        }
        for place in trying.places {
            if let Some(held) = self.held.remove(&place) {
                answer(&held.message, AckKind::Ack).await;
            }
        }
        self.wait(GATHER);
    }

    /// Sends nothing for as long, nor before the throttle allows it.
    fn wait(&mut self, pause: Duration) {
        let now = Instant::now();
        self.due = self.throttle.free_at(now).max(now + pause);
    }

    async fn answer_all(&self, kind: AckKind) {
        for held in self.held.values() {
            answer(&held.message, kind).await;
        }
    }
}

/// How long to wait after so many failures in a row.
fn pause(failures: u32, failure: &Failure) -> Duration {
    let doubled = RETRY.saturating_mul(1 << (failures - 1).min(16));
    doubled
        .min(LONGEST_RETRY)
        .max(failure.retry_after.unwrap_or_default())
}

/// Its place in the stream, when it was told, whether it was handed out before, and what it says.
fn read(message: &Message) -> anyhow::Result<(u64, Timestamp, bool, Alert)> {
    let info = message.info().map_err(anyhow::Error::from_boxed)?;
    let told = Timestamp::from_nanosecond(info.published.unix_timestamp_nanos())?;
    let alert = serde_json::from_slice(&message.payload).context("it is of another version")?;
    Ok((info.stream_sequence, told, info.delivered > 1, alert))
}

/// An answer that is lost makes the server hand it out again.
async fn answer(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::debug!(%error, "an alert is handed out again");
    }
}

/// The server's own header comes last.
fn pin_of(message: &Message) -> Option<String> {
    let headers = message.headers.as_ref()?;
    let pin = headers.get_last("Nats-Pin-Id")?;
    Some(pin.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_more_and_more_seldom_and_when_it_was_asked_for() {
        let plain = Failure::new("503");
        let pauses = [1, 2, 3, 7, 8, 90].map(|failures| pause(failures, &plain).as_secs());
        assert_eq!(pauses, [1, 2, 4, 60, 60, 60]);
        let asked = Failure {
            retry_after: Some(Duration::from_secs(300)),
            ..plain
        };
        assert_eq!(pause(1, &asked).as_secs(), 300);
    }
}
