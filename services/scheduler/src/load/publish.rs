//! Writing states, many at once, each only where the one it was made from is still the newest.

use std::{
    collections::VecDeque,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use async_nats::{Client, HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE};
use jiff::Timestamp;
use usersync_core::{
    batch::{Batches, Mode, NotSent, Outcome},
    event::Event,
    load,
    member::Member,
    state::State,
    subjects,
};

use super::Contest;

/// After so long without a state everything sent is to have its answer: the server forgets a batch after 10 s.
pub(super) const IDLE: Duration = Duration::from_secs(2);

/// Writes states.
pub(super) struct Publisher {
    batches: Batches,
    /// Whose states were sent and have no answer yet, and whether they are new.
    under_way: VecDeque<(Contest, bool)>,
    sent: Instant,
    lost: Vec<Contest>,
    /// Why some were, at last.
    pub trouble: Option<String>,
    pace: Option<Pace>,
    /// States written for users who had none.
    pub created: u64,
    /// For others.
    pub changed: u64,
    /// Larger than a message may be.
    pub too_large: u64,
}

impl Publisher {
    pub(super) async fn new(client: Client, rate: Option<NonZeroU32>) -> anyhow::Result<Self> {
        Ok(Self {
            batches: Batches::new(client, Mode::EachForItself).await?,
            under_way: VecDeque::new(),
            sent: Instant::now(),
            lost: Vec::new(),
            trouble: None,
            pace: rate.map(Pace::new),
            created: 0,
            changed: 0,
            too_large: 0,
        })
    }

    /// Writes what `row` makes of `state`, whose sequence is `seq`; false when it is equal.
    pub(super) async fn publish(
        &mut self,
        mut user: Contest,
        row: Event,
        state: Option<State>,
        seq: u64,
        members: &[Member],
    ) -> anyhow::Result<bool> {
        let fresh = state.as_ref().is_none_or(|state| state.deleted);
        let now = Timestamp::now();
        let now_us = u64::try_from(now.as_microsecond()).unwrap_or_default();
        let Some(state) = load::merge(state, &row, members, now_us) else {
            return Ok(false);
        };
        if let Some(pace) = &mut self.pace {
            pace.wait().await;
        }
        let payload = serde_json::to_vec(&state).context("a state as JSON")?;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, seq.to_string());
        let subject = subjects::state(&user.user_id).into();
        match self.batches.add(subject, headers, payload.into()).await {
            Ok(()) => self.under_way.push_back((user, fresh)),
            Err(NotSent::TooLarge) => self.too_large += 1,
            Err(NotSent::Ended) => {
                user.lost += 1;
                self.lost.push(user);
                self.batches.commit().await;
            }
        }
        self.sent = Instant::now();
        self.settle();
        Ok(true)
    }

    /// Waits until everything sent has its answer.
    pub(super) async fn drain(&mut self) {
        self.batches.commit().await;
        self.settle();
    }

    /// Whether something is under way and nothing was sent for a while.
    pub(super) fn is_idle(&self) -> bool {
        !self.under_way.is_empty() && self.sent.elapsed() > IDLE
    }

    /// Those whose state was not written, and is to be looked at again.
    pub(super) fn lost(&mut self) -> impl Iterator<Item = Contest> {
        std::mem::take(&mut self.lost).into_iter()
    }

    fn settle(&mut self) {
        for outcome in self.batches.outcomes() {
            let Some((mut user, fresh)) = self.under_way.pop_front() else {
                break;
            };
            match outcome {
                Outcome::Stored if fresh => self.created += 1,
                Outcome::Stored => self.changed += 1,
                // Someone else was first, or nobody knows whether it is stored: looking again tells.
                Outcome::Outdated => self.lost.push(user),
                Outcome::TooLarge => self.too_large += 1,
                Outcome::Doubtful => {
                    user.lost += 1;
                    self.lost.push(user);
                }
            }
        }
        self.trouble = self.batches.trouble().or(self.trouble.take());
    }
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
