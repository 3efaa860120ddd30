//! One target's copy, user by user: whether it really differs from what it is meant to be.
//!
//! A digest is a hint. Here the newest state and what the target holds are read again, and a difference counts
//! only when the target's consumer had passed that state before the target was read.

use std::sync::Arc;

use anyhow::Context as _;
use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tokio::time::timeout;
use usersync_core::{
    check::Class, event::EventType, fields::Members, nats::REQUEST_TIMEOUT, state::State, subjects,
    target::TargetConfig, user_id::UserId,
};
use usersync_targets::{Action, Delivery, Outcome, Rule, Standing, Target, Verdict};

/// States asked for at once.
const READS: usize = 256;
/// Users one call to the target is about, at most.
const MOST: usize = 256;
/// Calls to the target at once.
const CALLS: usize = 8;

/// How a user's copy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// As it is meant to be, or nothing is meant to be said of it.
    Alike,
    /// Not so.
    Drift(Class),
    /// The target holds a newer version than the states do.
    Ahead,
    /// The newest state is still on its way there.
    Pending,
}

/// A target that is looked at.
pub(crate) struct Copy<'a> {
    pub config: &'a Arc<TargetConfig>,
    pub rule: &'a Rule,
    pub driver: &'a dyn Target,
    /// USER_STATE.
    pub states: &'a Stream,
    /// Whether users disappear there by themselves.
    pub forgets: bool,
}

/// What is known of a user before the target is asked.
enum Meant {
    /// The target is to hold this; the state stands at this sequence.
    Told(Box<Delivery>, u64),
    /// Nothing is meant to be said.
    Nothing,
}

impl Copy<'_> {
    /// Looks at everybody again.
    ///
    /// # Errors
    /// When NATS or the target can't be asked, or it can't say how a user stands.
    pub(crate) async fn look(&self, users: &[UserId]) -> anyhow::Result<Vec<Seen>> {
        // Before the states are read: what it has passed by now it has passed for good.
        let passed = self.passed().await?;
        let reading = stream::iter(users).map(|user| self.meant(user));
        let meant: Vec<Meant> = reading.buffered(READS).try_collect().await?;
        let mut seen = vec![Seen::Alike; users.len()];
        let mut told = Vec::new();
        for (place, meant) in meant.into_iter().enumerate() {
            if let Meant::Told(delivery, seq) = meant {
                told.push((place, seq, *delivery));
            }
        }
        let size = self.driver.limits().batch.clamp(1, MOST);
        let calls = told.chunks(size).map(|chunk| async move {
            let batch: Vec<Delivery> = chunk
                .iter()
                .map(|(.., delivery)| delivery.clone())
                .collect();
            let compared = self.driver.compare(&batch).await;
            let compared = compared.context("this target's users can't be read back")?;
            anyhow::Ok(chunk.iter().zip(compared))
        });
        let mut calls = stream::iter(calls).buffer_unordered(CALLS);
        while let Some(compared) = calls.try_next().await? {
            for ((place, seq, delivery), standing) in compared {
                seen[*place] = match self.judge(delivery, standing)? {
                    Seen::Drift(_) | Seen::Ahead if *seq > passed => Seen::Pending,
                    judged => judged,
                };
            }
        }
        Ok(seen)
    }

    /// The sequence in USER_STATE up to which everything has been delivered or given up.
    async fn passed(&self) -> anyhow::Result<u64> {
        let info = self.states.consumer_info(&self.config.name);
        let info = timeout(REQUEST_TIMEOUT, info).await;
        let info = info.context("asking for the consumer took too long")?;
        let consumer = || format!("asking for the consumer {}", self.config.name);
        Ok(info.with_context(consumer)?.ack_floor.stream_sequence)
    }

    async fn meant(&self, user: &UserId) -> anyhow::Result<Meant> {
        let Some((state, seq)) = newest(self.states, user).await? else {
            // Nobody has ever heard of this user: nothing is meant to be there.
            return Ok(Meant::Told(Box::new(nobody(self.config, user)), 0));
        };
        Ok(match self.rule.apply(state, None) {
            Verdict::Send(delivery) => Meant::Told(Box::new(delivery), seq),
            // The target keeps what it has; or it is refused, and a dead letter says so.
            Verdict::Skip { .. } | Verdict::Refused(_) => Meant::Nothing,
        })
    }

    fn judge(&self, delivery: &Delivery, standing: Standing) -> anyhow::Result<Seen> {
        Ok(match standing {
            Standing::Same => Seen::Alike,
            Standing::Missing if self.forgets => Seen::Alike,
            Standing::Missing => Seen::Drift(Class::Missing),
            Standing::Extra => Seen::Drift(Class::Orphan),
            // There is no version to compare with of somebody nobody has heard of.
            Standing::Older | Standing::Newer | Standing::Different(_)
                if delivery.action == Action::Delete =>
            {
                Seen::Drift(Class::Orphan)
            }
            Standing::Older => Seen::Drift(Class::Stale),
            Standing::Newer => Seen::Ahead,
            Standing::Different(_) => Seen::Drift(Class::Different),
            Standing::Unknown(Outcome::Permanent(_)) => Seen::Alike,
            Standing::Unknown(
                Outcome::Transient(failure) | Outcome::Fault(failure) | Outcome::Gone(failure),
            ) => anyhow::bail!("the target can't say how a user stands: {failure}"),
            Standing::Unknown(Outcome::Delivered { .. } | Outcome::AlreadyNewer) => Seen::Alike,
        })
    }
}

/// The newest state of a user, and its sequence in USER_STATE.
pub(crate) async fn newest(states: &Stream, user: &UserId) -> anyhow::Result<Option<(State, u64)>> {
    let found = states.direct_get_last_for_subject(subjects::state(user));
    let found = timeout(REQUEST_TIMEOUT, found).await;
    match found.context("asking for a state took too long")? {
        Ok(message) => {
            let state = serde_json::from_slice(&message.payload);
            let state = state.map_err(|_| anyhow::anyhow!("what USER_STATE holds is no state"))?;
            Ok(Some((state, message.sequence)))
        }
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("asking for a state"),
    }
}

/// What a target is told of somebody who isn't: that there is nobody, whatever version it has.
fn nobody(config: &TargetConfig, user: &UserId) -> Delivery {
    Delivery {
        task_id: format!("{}:{user}:0", config.name),
        user_id: user.clone(),
        version: (1 << 53) - 1,
        action: Action::Delete,
        partial: false,
        event_type: EventType::Deleted,
        timestamp: Timestamp::UNIX_EPOCH,
        source: None,
        members: Members::default(),
        traceparent: None,
    }
}
