//! One target's copy, user by user: whether it really differs from what it is meant to be.
//!
//! A digest is a hint. Here the newest state and what the target holds are read again, and a difference counts
//! only when the target's consumer had passed that state before the target was read, and it still is the newest after.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_nats::{
    Client,
    jetstream::stream::{DirectGetErrorKind, Stream},
};
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tokio::time::timeout;
use usersync_core::{
    check::{Check, Class, LeftOut},
    event::EventType,
    fields::Members,
    nats::{self, REQUEST_TIMEOUT},
    state::State,
    stored_state, subjects,
    target::TargetConfig,
    user_id::UserId,
};
use usersync_digest::{Cut, Keys, RowHash};
use usersync_targets::{Action, Delivery, Holdings, Outcome, Rule, Standing, Target, Verdict};

use super::{
    repair::Remedy,
    sides::{Seen, Sides},
};

/// How long a worker may be at a state that was stored, in microseconds.
const AT_WORK_US: u64 = 60_000_000;
/// States asked for at once.
const READS: usize = 256;
/// Users one call to the target is about, at most.
const MOST: usize = 256;
/// Calls to the target at once.
const CALLS: usize = 8;
/// How far versions, which follow the clock, may be ahead of it: clocks differ. What is further ahead is damage.
const AHEAD: Duration = Duration::from_secs(24 * 60 * 60);

/// Why nothing is said of a user whose state can't be read.
pub(super) const UNREADABLE: &str =
    "the state can't be read; the check `gateway`, or the user's next event, writes it anew";

/// A target that is looked at.
pub(crate) struct Copy<'a> {
    pub config: &'a Arc<TargetConfig>,
    pub rule: &'a Rule,
    pub driver: &'a dyn Target,
    pub client: &'a Client,
    /// USER_STATE.
    pub states: &'a Stream,
    /// USER_REPAIR.
    pub repairs: Stream<()>,
    /// What it says of all users, where it does.
    pub holdings: Option<&'a dyn Holdings>,
    /// Users who can't be held, found when all states were read last.
    pub refused: Arc<Mutex<LeftOut>>,
}

/// Where a state stands in USER_STATE.
#[derive(Clone, Copy, Default)]
struct Place {
    seq: u64,
    /// When it was stored, in unix microseconds.
    stored_us: u64,
}

/// How far a target's consumer is in USER_STATE.
struct Progress {
    /// Up to here everything was delivered or given up.
    passed: u64,
    /// Up to here workers were handed everything.
    handed_out: u64,
    now_us: u64,
}

impl Progress {
    /// Whether the state at `place` may be on its way. One user who is tried again doesn't make everybody behind one.
    fn is_under_way(&self, place: Place) -> bool {
        let lately = place.stored_us + AT_WORK_US > self.now_us;
        place.seq > self.handed_out || place.seq > self.passed && lately
    }
}

/// What is known of a user before the target is asked.
enum Meant {
    /// The target is to hold this; the state stands there.
    Told(Box<Delivery>, Place),
    /// Nothing is meant to be said.
    Nothing,
    /// It can't be told, for this reason.
    Refused(String),
}

#[async_trait(?Send)]
impl Sides for Copy<'_> {
    fn name(&self) -> &str {
        self.config.name.as_ref()
    }

    fn check(&self) -> &Check {
        &self.config.check
    }

    async fn repairs_are_through(&self) -> anyhow::Result<bool> {
        let info = self.repairs.consumer_info(&self.config.name);
        let info = timeout(REQUEST_TIMEOUT, info).await;
        let info = info.context("asking for the consumer of repairs took too long")?;
        let info = info.context("asking for the consumer of repairs")?;
        Ok(info.num_pending == 0 && info.num_ack_pending == 0)
    }

    fn refused(&self) -> LeftOut {
        let refused = self.refused.lock();
        refused.unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn look(&self, users: &[UserId]) -> anyhow::Result<Vec<Seen>> {
        // Before the states are read: what it has passed by now it has passed for good.
        let progress = self.progress().await?;
        let reading = stream::iter(users).map(|user| self.meant(user));
        let meant: Vec<Meant> = reading.buffered(READS).try_collect().await?;
        let mut seen = vec![Seen::Alike; users.len()];
        let (mut places, mut batch) = (Vec::new(), Vec::new());
        for (place, meant) in meant.into_iter().enumerate() {
            match meant {
                Meant::Told(delivery, stands) => {
                    places.push((place, stands));
                    batch.push(*delivery);
                }
                Meant::Refused(reason) => seen[place] = Seen::Untold(reason),
                Meant::Nothing => {}
            }
        }
        let compared = self.compared(&batch).await?;
        let newer = |standing: &Standing| matches!(standing, Standing::Newer(_));
        let latest = match compared.iter().any(newer) {
            true => self.latest().await?,
            false => 0,
        };
        let mut differing = Vec::new();
        for (((place, stands), delivery), standing) in places.into_iter().zip(&batch).zip(compared)
        {
            // Of whom there is no state, nobody has ever heard.
            seen[place] = self.judge(delivery, standing, stands.seq > 0, latest)?;
            match seen[place] {
                Seen::Drift(..) => differing.push((place, stands)),
                // It has yet to come there.
                Seen::Expired if progress.is_under_way(stands) => seen[place] = Seen::Pending,
                _ => {}
            }
        }
        // A state that came, and was delivered, between the two reads makes an equal target look different.
        let again = stream::iter(&differing)
            .map(|(place, _)| newest(self.states, &users[*place]))
            .buffered(READS);
        let again: Vec<(u64, Option<State>)> = again.try_collect().await?;
        for ((place, stands), (now, _)) in differing.into_iter().zip(again) {
            if progress.is_under_way(stands) || now != stands.seq {
                seen[place] = Seen::Pending;
            }
        }
        Ok(seen)
    }
}

impl Copy<'_> {
    /// How everybody of `batch` stands at the target, in the same order.
    async fn compared(&self, batch: &[Delivery]) -> anyhow::Result<Vec<Standing>> {
        let size = self.driver.limits().batch.clamp(1, MOST);
        let mut chunks = batch.chunks(size);
        let Some(first) = chunks.next() else {
            return Ok(Vec::new());
        };
        let Some(mut standings) = self.driver.compare(first).await else {
            return self.listed(batch).await;
        };
        let mut calls =
            stream::iter(chunks.map(|chunk| self.driver.compare(chunk))).buffered(CALLS);
        while let Some(compared) = calls.next().await {
            standings.extend(compared.context("this target's users can't be read back")?);
        }
        Ok(standings)
    }

    /// How users stand at a target that can't be asked for one, but lists the hashes of some: whether they are there, and
    /// whether they are as told, not in which version.
    async fn listed(&self, batch: &[Delivery]) -> anyhow::Result<Vec<Standing>> {
        let holdings = self.holdings;
        let holdings = holdings.context("this target's users can't be read back")?;
        // As fine as it gets: a bucket holds one user, as a rule.
        let cut = Cut {
            keys: Keys::Hashes,
            shift: 0,
        };
        let ids: Vec<String> = batch.iter().map(|told| told.user_id.to_string()).collect();
        let buckets: BTreeSet<u64> = ids.iter().filter_map(|id| cut.bucket(id)).collect();
        let buckets: Vec<_> = buckets
            .into_iter()
            .map(|bucket| bucket..bucket + 1)
            .collect();
        let listed = holdings.side().list(&cut, &buckets).await?.items;
        let held: HashMap<&str, RowHash> = listed
            .iter()
            .map(|entry| (&*entry.id, entry.hash))
            .collect();
        let standing = |(told, id): (&Delivery, &String)| match (
            holdings.expected(told),
            held.get(id.as_str()),
        ) {
            (None, None) => Standing::Same,
            (None, Some(_)) => Standing::Extra,
            (Some(_), None) => Standing::Missing,
            (Some(told), Some(held)) if told == *held => Standing::Same,
            (Some(_), Some(_)) => Standing::Different("its hash".into()),
        };
        Ok(batch.iter().zip(&ids).map(standing).collect())
    }

    async fn progress(&self) -> anyhow::Result<Progress> {
        let info = self.states.consumer_info(&self.config.name);
        let info = timeout(REQUEST_TIMEOUT, info).await;
        let info = info.context("asking for the consumer took too long")?;
        let info = info.with_context(|| format!("asking for the consumer {}", self.config.name))?;
        let now = jiff::Timestamp::now().as_microsecond();
        Ok(Progress {
            passed: info.ack_floor.stream_sequence,
            handed_out: info.delivered.stream_sequence,
            now_us: u64::try_from(now).unwrap_or_default(),
        })
    }

    /// The highest version that can be, by the clock of NATS.
    async fn latest(&self) -> anyhow::Result<u64> {
        let now = nats::server_time(self.client).await?;
        let now = u64::try_from(now.as_microsecond()).unwrap_or_default();
        Ok(now + u64::try_from(AHEAD.as_micros()).unwrap_or_default())
    }

    async fn meant(&self, user: &UserId) -> anyhow::Result<Meant> {
        let (seq, state) = newest(self.states, user).await?;
        if seq == 0 {
            // Nobody has ever heard of this user: nothing is meant to be there.
            let nobody = Box::new(nobody(self.config, user));
            return Ok(Meant::Told(nobody, Place::default()));
        }
        let stored_us = state.as_ref().map_or(0, |state| state.event.stored_us);
        Ok(match state.map(|state| self.rule.apply(state)) {
            Some(Verdict::Send(delivery)) => {
                Meant::Told(Box::new(delivery), Place { seq, stored_us })
            }
            // The target keeps what it has.
            Some(Verdict::Skip { .. }) => Meant::Nothing,
            // A dead letter says so.
            Some(Verdict::Refused(failure)) => Meant::Refused(failure.to_string()),
            None => Meant::Refused(UNREADABLE.to_owned()),
        })
    }

    /// `latest` is the highest version that can be: any above is damage.
    fn judge(
        &self,
        delivery: &Delivery,
        standing: Standing,
        known: bool,
        latest: u64,
    ) -> anyhow::Result<Seen> {
        let drift = |class| {
            let remedy = if known { Remedy::Deliver } else { Remedy::Bury };
            Seen::Drift(class, remedy)
        };
        Ok(match standing {
            // Nothing the target sees has changed since, so it wasn't called.
            Standing::Same | Standing::Behind => Seen::Alike,
            Standing::Missing if self.holdings.is_some_and(Holdings::forgets) => Seen::Expired,
            Standing::Missing => drift(Class::Missing),
            Standing::Extra => drift(Class::Orphan),
            // There is no version to compare with of somebody nobody has heard of.
            Standing::Older | Standing::Newer(_) | Standing::Different(_)
                if delivery.action == Action::Delete =>
            {
                drift(Class::Orphan)
            }
            Standing::Older => drift(Class::Stale),
            // It has what no state says, in a version that no state has.
            Standing::Newer(held) if held > latest => {
                let remedy = match self.driver.forgets_versions() {
                    true => Remedy::Overwrite(held),
                    false => Remedy::Impossible,
                };
                Seen::Drift(Class::Different, remedy)
            }
            Standing::Newer(held) => Seen::Drift(Class::Different, Remedy::Renew(held)),
            Standing::Different(_) => drift(Class::Different),
            // The newest state can't be delivered, so what is there is none of it. Who is to be gone isn't there.
            Standing::Refused(_) if delivery.action == Action::Upsert => {
                Seen::Drift(Class::Different, Remedy::Impossible)
            }
            Standing::Refused(_) => Seen::Alike,
            Standing::Unknown(Outcome::Permanent(failure)) => Seen::Unshown(failure.to_string()),
            Standing::Unknown(
                Outcome::Transient(failure)
                | Outcome::Fault(failure)
                | Outcome::Down(failure)
                | Outcome::Gone(failure),
            ) => anyhow::bail!("the target can't say how a user stands: {failure}"),
            Standing::Unknown(Outcome::Conflict(conflict)) => {
                anyhow::bail!(
                    "the target can't say how a user stands: {}",
                    conflict.failure
                )
            }
            Standing::Unknown(Outcome::Delivered { .. } | Outcome::AlreadyNewer) => Seen::Alike,
        })
    }
}

/// The sequence of a user's newest state, 0 when there is none, and the state unless it can't be read.
pub(crate) async fn newest(states: &Stream, user: &UserId) -> anyhow::Result<(u64, Option<State>)> {
    let found = states.direct_get_last_for_subject(subjects::state(user));
    let found = timeout(REQUEST_TIMEOUT, found).await;
    match found.context("asking for a state took too long")? {
        Ok(message) => {
            let state = stored_state::unless_newer(user, &message.payload)?;
            Ok((message.sequence, state))
        }
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok((0, None)),
        Err(error) => Err(error).context("asking for a state"),
    }
}

/// What a target is told of somebody who isn't: that there is nobody, whatever version it has.
fn nobody(config: &TargetConfig, user: &UserId) -> Delivery {
    Delivery {
        task_id: subjects::task(&config.name, user, 0),
        user_id: user.clone(),
        version: (1 << 53) - 1,
        action: Action::Delete,
        partial: false,
        event_type: EventType::Deleted,
        timestamp: Timestamp::UNIX_EPOCH,
        source: None,
        members: Members::default(),
        trace: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_is_tried_again_does_not_make_everybody_behind_pending() {
        let progress = Progress {
            passed: 10,
            handed_out: 20,
            now_us: 10 * AT_WORK_US,
        };
        let before = progress.now_us - AT_WORK_US;
        for (seq, stored_us, under_way) in [
            (10, progress.now_us, false),
            (11, progress.now_us, true),
            (11, before, false),
            (20, before, false),
            (21, before, true),
        ] {
            let place = Place { seq, stored_us };
            assert_eq!(progress.is_under_way(place), under_way, "{seq} {stored_us}");
        }
    }
}
