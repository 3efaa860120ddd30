//! A session: the time in which this gateway, and no other, is handed the events, in stream order
//! and without a gap.
//!
//! The consumer is pinned (ADR-42 of NATS): the server hands messages to one client. A session
//! begins by resetting the consumer to its ack floor and ends as soon as anything is out of
//! order, so whoever takes over sees every event that isn't merged yet, in order. We pull by
//! hand, because a session needs an inbox of its own and the pin carried from one to the next.

use std::time::{Duration, Instant};

use super::refusal::is_malformed;
use anyhow::Context as _;
use async_nats::jetstream::{self, Message, stream::Stream};
use usersync_core::{
    epoch::Epoch,
    pull::{Member, Pull, Stopped},
    subjects::{INTAKE, INTAKE_GROUP, USER_EVENTS},
};

/// Messages asked for at once; asked again when half of them are in.
const BATCH: usize = 2_000;
/// How long a pull lasts. Each renews the pin, so it is well below the pin's timeout (3 s).
const EXPIRES: Duration = Duration::from_secs(1);
/// After this long without a pull the pin may be gone: the process was stopped, or too slow.
const STALL: Duration = Duration::from_millis(2_500);
/// How often a standby looks whether a dead gateway's messages must be freed.
const LOOK: Duration = Duration::from_secs(1);

/// The pinned consumer of raw events.
#[derive(Clone)]
pub(super) struct Pinned {
    pub jetstream: jetstream::Context,
    pub events: Stream<()>,
}

/// One session; see the module.
pub(super) struct Session {
    pinned: Pinned,
    pin: String,
    pull: Pull,
    consumer_seq: u64,
    stream_seq: u64,
    last_pull: Instant,
}

/// An event in its place.
pub(super) struct InOrder {
    pub message: Message,
    pub seq: u64,
    pub stored_us: u64,
}

/// Why a session ended.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("USER_STATE isn't what it was")]
    States,
    #[error("USER_EVENTS isn't what it was")]
    Events,
    #[error("the duplicate window of USER_EVENTS is {0:?} now")]
    Window(Duration),
    #[error("a state is of the later epoch {0}")]
    Outdated(Epoch),
    #[error("another gateway was chosen")]
    Pin,
    #[error("an event came out of order")]
    Gap,
    #[error("this process was stopped or too slow")]
    Stalled,
    #[error("{0}")]
    Stopped(#[from] Stopped),
}

impl Lost {
    /// Whether this gateway may still be the chosen one.
    pub(super) fn may_keep_pin(&self) -> bool {
        matches!(
            self,
            Self::Gap
                | Self::States
                | Self::Events
                | Self::Window(_)
                | Self::Outdated(_)
                | Self::Stopped(Stopped::Silent | Stopped::Reconnected)
        )
    }
}

impl Pinned {
    /// Waits until the server chooses this gateway; returns the pin.
    pub(super) async fn stand_by(&self) -> anyhow::Result<String> {
        let mut pull = self.open().await?;
        let mut looked = Instant::now();
        loop {
            if pull.outstanding() == 0 {
                pull.ask(
                    1,
                    Some(Member {
                        group: INTAKE_GROUP,
                        pin: None,
                    }),
                )
                .await?;
            }
            match pull.next().await {
                Ok(Some(message)) => {
                    return pin_of(&message)
                        .context("the consumer isn't pinned; was it made by hand?");
                }
                // A heartbeat at the latest.
                Ok(None) => {}
                Err(stopped) => return Err(stopped.into()),
            }
            if looked.elapsed() > LOOK {
                looked = Instant::now();
                self.free_the_dead().await?;
            }
        }
    }

    async fn open(&self) -> anyhow::Result<Pull> {
        Pull::open(&self.jetstream, USER_EVENTS, INTAKE, EXPIRES).await
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
        let mut session = Session {
            pinned: self.clone(),
            pin,
            pull: self.open().await?,
            consumer_seq: 0,
            stream_seq: reset.reset_seq.saturating_sub(1),
            last_pull: Instant::now(),
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
                return Err(Stopped::Silent.into());
            }
            let message = self.pull.next().await.map_err(|stopped| match stopped {
                Stopped::Refused(status, _) if status.as_u16() == 423 => Lost::Pin,
                stopped => stopped.into(),
            })?;
            if self.last_pull.elapsed() > STALL {
                return Err(Lost::Stalled);
            }
            if let Some(message) = message {
                return self.in_order(message);
            }
        }
    }

    /// Lets the message pass if it is the one that must come next.
    fn in_order(&mut self, message: Message) -> Result<InOrder, Lost> {
        // Among malformed headers that of the server can be lost. What comes to our inbox was asked for under our pin.
        let unreadable = message.headers.as_ref().is_some_and(is_malformed);
        if !unreadable && pin_of(&message).as_deref() != Some(self.pin.as_str()) {
            return Err(Lost::Pin);
        }
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
        if self.pull.outstanding() <= BATCH / 2 {
            self.last_pull = Instant::now();
            let member = Member {
                group: INTAKE_GROUP,
                pin: Some(&self.pin),
            };
            self.pull.ask(BATCH, Some(member)).await?;
        }
        Ok(())
    }

    /// Hands over at once instead of after the pin's timeout. Call it when all is acknowledged.
    pub(super) async fn release(self) -> anyhow::Result<()> {
        // What comes now stays unacknowledged: the reset below frees it.
        self.pull.close().await;
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
fn pin_of(message: &Message) -> Option<String> {
    let headers = message.headers.as_ref()?;
    headers
        .get_last("Nats-Pin-Id")
        .map(|pin| pin.as_str().to_owned())
}
