//! Writing states, many at once, each only where the one it was made from is still the newest.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use async_nats::jetstream::{
    self,
    context::{PublishAckFuture, PublishErrorKind},
    message::PublishMessage,
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use usersync_core::{event::Event, load, member::Member, state::State, subjects};

use super::Contest;

/// States under way at once.
const UNDER_WAY: usize = 2_000;

/// A state that was sent: whose, whether they are new, and what became of it.
type Sent = (Contest, bool, Result<(), PublishErrorKind>);

/// Writes states.
pub(super) struct Publisher {
    jetstream: jetstream::Context,
    under_way: FuturesUnordered<BoxFuture<'static, Sent>>,
    lost: Vec<Contest>,
    pace: Option<Pace>,
    /// States written for users who had none.
    pub created: u64,
    /// For others.
    pub changed: u64,
    /// Larger than a message may be.
    pub too_large: u64,
}

impl Publisher {
    pub(super) fn new(jetstream: jetstream::Context, rate: Option<NonZeroU32>) -> Self {
        Self {
            jetstream,
            under_way: FuturesUnordered::new(),
            lost: Vec::new(),
            pace: rate.map(Pace::new),
            created: 0,
            changed: 0,
            too_large: 0,
        }
    }

    /// Writes what `row` makes of `state`, whose sequence is `seq`; false when it is equal.
    pub(super) async fn publish(
        &mut self,
        user: Contest,
        row: Event,
        state: Option<State>,
        seq: u64,
        members: &[Member],
    ) -> anyhow::Result<bool> {
        let fresh = state.as_ref().is_none_or(|state| state.deleted);
        let now_us = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
        let Some(state) = load::merge(state, &row, members, now_us) else {
            return Ok(false);
        };
        if let Some(pace) = &mut self.pace {
            pace.wait().await;
        }
        while self.under_way.len() >= UNDER_WAY {
            self.confirm_one().await;
        }
        let payload = serde_json::to_vec(&state).context("a state as JSON")?;
        let message = PublishMessage::build()
            .payload(payload.into())
            .expected_last_subject_sequence(seq);
        let sent = self
            .jetstream
            .send_publish(subjects::state(&user.user_id), message)
            .await;
        match sent {
            Ok(ack) => self.under_way.push(confirmed(ack, user, fresh).boxed()),
            Err(error) => self.settle((user, fresh, Err(error.kind()))),
        }
        // What is there already costs nothing to take.
        while let Some(Some(sent)) = self.under_way.next().now_or_never() {
            self.settle(sent);
        }
        Ok(true)
    }

    /// Waits until everything sent has its answer.
    pub(super) async fn drain(&mut self) {
        while !self.under_way.is_empty() {
            self.confirm_one().await;
        }
    }

    /// Those whose state was not written, and is to be looked at again.
    pub(super) fn lost(&mut self) -> impl Iterator<Item = Contest> {
        std::mem::take(&mut self.lost).into_iter()
    }

    async fn confirm_one(&mut self) {
        if let Some(sent) = self.under_way.next().await {
            self.settle(sent);
        }
    }

    fn settle(&mut self, (mut user, fresh, result): Sent) {
        match result {
            Ok(()) if fresh => self.created += 1,
            Ok(()) => self.changed += 1,
            Err(PublishErrorKind::MaxPayloadExceeded) => self.too_large += 1,
            Err(kind) => {
                // Someone else was first, or nobody knows whether it is stored: looking again tells.
                user.lost += u32::from(kind != PublishErrorKind::WrongLastSequence);
                self.lost.push(user);
            }
        }
    }
}

async fn confirmed(ack: PublishAckFuture, user: Contest, fresh: bool) -> Sent {
    let result = ack.await.map(drop).map_err(|error| error.kind());
    (user, fresh, result)
}

/// So many per second, evenly.
struct Pace {
    each: Duration,
    next: Instant,
}

impl Pace {
    fn new(rate: NonZeroU32) -> Self {
        Self {
            each: Duration::from_secs(1) / rate.get(),
            next: Instant::now(),
        }
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        // What was missed while others were slow isn't caught up with.
        self.next = self.next.max(now - Duration::from_millis(100)) + self.each;
        if let Some(early) = self.next.checked_duration_since(now)
            && early > Duration::from_millis(2)
        {
            tokio::time::sleep(early).await;
        }
    }
}
