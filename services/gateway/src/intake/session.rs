//! A session: the time in which this gateway, and no other, is handed the events, in stream order
//! and without a gap.
//!
//! The consumer is pinned (ADR-42 of NATS): the server hands messages to one client. A session
//! begins by resetting the consumer to its ack floor and ends as soon as anything is out of
//! order, so whoever takes over sees every event that isn't merged yet, in order. We pull by
//! hand, because a session needs an inbox of its own and the pin carried from one to the next.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::{
    Client, StatusCode, Subscriber,
    jetstream::{self, Message, stream::Stream},
};
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use usersync_core::subjects::{INTAKE, INTAKE_GROUP, USER_EVENTS};

/// Messages asked for at once; asked again when half of them are in.
const BATCH: usize = 2_000;
/// How long a pull lasts. Each renews the pin, so it is well below the pin's timeout (3 s).
const EXPIRES: Duration = Duration::from_secs(1);
/// Sign of life from the server while there is nothing to hand out.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// After this long without a pull the pin may be gone: the process was stopped, or too slow.
const STALL: Duration = Duration::from_millis(2_500);
/// How often a standby looks whether a dead gateway's messages must be freed.
const LOOK: Duration = Duration::from_secs(1);

/// The pinned consumer of raw events.
#[derive(Clone)]
pub(super) struct Pinned {
    pub client: Client,
    pub jetstream: jetstream::Context,
    pub events: Stream<()>,
}

/// One session; see the module.
pub(super) struct Session {
    pinned: Pinned,
    pin: String,
    inbox: String,
    messages: Subscriber,
    consumer_seq: u64,
    stream_seq: u64,
    outstanding: usize,
    last_pull: Instant,
    connects: u64,
}

/// An event in its place.
pub(super) struct InOrder {
    pub message: Message,
    pub seq: u64,
    pub stored_us: u64,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("another gateway was chosen")]
    Pin,
    #[error("an event came out of order")]
    Gap,
    #[error("the server went silent")]
    Silent,
    #[error("the connection was lost")]
    Reconnected,
    #[error("this process was stopped or too slow")]
    Stalled,
    #[error("the server answered {0}")]
    Status(StatusCode),
}

impl Lost {
    /// Whether this gateway may still be the chosen one.
    pub(super) fn may_keep_pin(&self) -> bool {
        matches!(self, Self::Gap | Self::Silent | Self::Reconnected)
    }
}

impl Pinned {
    /// Waits until the server chooses this gateway; returns the pin.
    pub(super) async fn stand_by(&self) -> anyhow::Result<String> {
        let inbox = self.client.new_inbox();
        let mut messages = self.client.subscribe(inbox.clone()).await?;
        let (mut pulled, mut looked) = (None::<Instant>, Instant::now());
        loop {
            if pulled.is_none_or(|at| at.elapsed() > EXPIRES) {
                self.pull(&inbox, None, 1).await?;
                pulled = Some(Instant::now());
            }
            match tokio::time::timeout(EXPIRES / 5, messages.next()).await {
                Ok(None) => anyhow::bail!("the subscription was closed"),
                Ok(Some(message))
                    if message.status.is_none_or(|status| status == StatusCode::OK) =>
                {
                    messages.unsubscribe().await?;
                    return pin_of(&message)
                        .context("the consumer isn't pinned; was it made by hand?");
                }
                Ok(Some(_)) | Err(_) => {}
            }
            if looked.elapsed() > LOOK {
                looked = Instant::now();
                self.free_the_dead().await?;
            }
        }
    }

    /// What a dead gateway had in flight isn't handed out before ack_wait, and until then nobody
    /// may be chosen: with nobody pinned, the consumer starts again at its ack floor at once.
    async fn free_the_dead(&self) -> anyhow::Result<()> {
        let info = self.events.consumer_info(INTAKE).await?;
        let pinned = info
            .priority_groups
            .iter()
            .any(|group| group.pinned_client_id.is_some());
        if !pinned && info.num_ack_pending > 0 {
            self.events.reset_consumer(INTAKE, None).await?;
        }
        Ok(())
    }

    /// Starts a session under `pin`; `None` when another gateway was chosen meanwhile.
    pub(super) async fn start(&self, pin: String) -> anyhow::Result<Option<Session>> {
        if !self.holds(&pin).await? {
            return Ok(None);
        }
        let reset = self.events.reset_consumer(INTAKE, None).await?;
        let inbox = self.client.new_inbox();
        let messages = self.client.subscribe(inbox.clone()).await?;
        let mut session = Session {
            pinned: self.clone(),
            pin,
            inbox,
            messages,
            consumer_seq: 0,
            stream_seq: reset.reset_seq.saturating_sub(1),
            outstanding: 0,
            last_pull: Instant::now(),
            connects: self.connects(),
        };
        session.refill().await?;
        Ok(Some(session))
    }

    async fn holds(&self, pin: &str) -> anyhow::Result<bool> {
        let info = self.events.consumer_info(INTAKE).await?;
        Ok(info
            .priority_groups
            .iter()
            .any(|group| group.pinned_client_id.as_deref() == Some(pin)))
    }

    async fn pull(&self, inbox: &str, pin: Option<&str>, batch: usize) -> anyhow::Result<()> {
        let mut request = json!({
            "batch": batch,
            "expires": EXPIRES.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
            "group": INTAKE_GROUP,
        });
        if let Some(pin) = pin {
            request["id"] = pin.into();
        }
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{USER_EVENTS}.{INTAKE}");
        self.client
            .publish_with_reply(subject, inbox.to_owned(), request.to_string().into())
            .await?;
        Ok(())
    }

    fn connects(&self) -> u64 {
        self.client
            .statistics()
            .connects
            .load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Session {
    /// The pin, to go on with when this session is lost but the place may not be.
    pub(super) fn into_pin(self) -> String {
        self.pin
    }

    /// The next event in stream order. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<InOrder, Lost> {
        loop {
            if self.refill().await.is_err() {
                return Err(Lost::Silent);
            }
            let message = match self.messages.next().now_or_never() {
                Some(ready) => ready,
                None => match tokio::time::timeout(EXPIRES + HEARTBEAT, self.messages.next()).await
                {
                    Ok(message) => message,
                    Err(_) => return Err(Lost::Silent),
                },
            };
            let message = message.ok_or(Lost::Silent)?;
            if self.connects != self.pinned.connects() {
                return Err(Lost::Reconnected);
            }
            if self.last_pull.elapsed() > STALL {
                return Err(Lost::Stalled);
            }
            match message.status.unwrap_or(StatusCode::OK) {
                StatusCode::OK => return self.in_order(message),
                StatusCode::IDLE_HEARTBEAT => {}
                StatusCode::TIMEOUT => {
                    let unused = message
                        .headers
                        .as_ref()
                        .and_then(|headers| headers.get("Nats-Pending-Messages"));
                    let unused = unused
                        .and_then(|count| count.as_str().parse().ok())
                        .unwrap_or(BATCH);
                    self.outstanding = self.outstanding.saturating_sub(unused);
                }
                status if status.as_u16() == 423 => return Err(Lost::Pin),
                status => return Err(Lost::Status(status)),
            }
        }
    }

    /// Lets the message pass if it is the one that must come next.
    fn in_order(&mut self, message: async_nats::Message) -> Result<InOrder, Lost> {
        self.outstanding = self.outstanding.saturating_sub(1);
        if pin_of(&message).as_deref() != Some(self.pin.as_str()) {
            return Err(Lost::Pin);
        }
        let message = Message {
            message,
            context: self.pinned.jetstream.clone(),
        };
        let info = message.info().map_err(|_| Lost::Gap)?;
        let expected = info.consumer_sequence == self.consumer_seq + 1
            && info.stream_sequence > self.stream_seq
            && info.delivered == 1;
        if !expected {
            return Err(Lost::Gap);
        }
        let stored_us =
            u64::try_from(info.published.unix_timestamp_nanos() / 1_000).unwrap_or_default();
        let seq = info.stream_sequence;
        self.consumer_seq += 1;
        self.stream_seq = seq;
        Ok(InOrder {
            message,
            seq,
            stored_us,
        })
    }

    async fn refill(&mut self) -> anyhow::Result<()> {
        if self.outstanding <= BATCH / 2 {
            self.outstanding += BATCH;
            self.last_pull = Instant::now();
            self.pinned
                .pull(&self.inbox, Some(&self.pin), BATCH)
                .await?;
        }
        Ok(())
    }

    /// Hands over at once instead of after the pin's timeout. Call it when all is acknowledged.
    pub(super) async fn release(mut self) -> anyhow::Result<()> {
        self.messages.unsubscribe().await?;
        self.pinned.client.flush().await?;
        if self.pinned.holds(&self.pin).await? {
            // What was handed out and not merged is free again, so that a standby is chosen now.
            self.pinned.events.reset_consumer(INTAKE, None).await?;
            self.pinned
                .events
                .unpin_consumer(INTAKE, INTAKE_GROUP)
                .await?;
        }
        Ok(())
    }
}

/// The server's own header comes last, should a publisher have set one too.
fn pin_of(message: &async_nats::Message) -> Option<String> {
    let headers = message.headers.as_ref()?;
    headers
        .get_last("Nats-Pin-Id")
        .map(|pin| pin.as_str().to_owned())
}
