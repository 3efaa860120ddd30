//! Who else delivers to a target without a guard: the KV bucket `user_workers`.
//!
//! A worker renews the key `<target>.<worker>` every two seconds and removes it when it stops. One whose key stays as it was
//! for [`VANISHED`] has vanished: a call that it began may still land, after what others have delivered since (ADR 42).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_nats::jetstream::{self, kv};
use futures_util::{FutureExt, StreamExt, future::try_join_all};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::Health,
    follow::{self, Change},
    nats::REQUEST_TIMEOUT,
    presence::{Presence, RENEWED, VANISHED},
    subjects,
    target::TargetName,
};

/// How long to wait before trying the bucket again.
const AGAIN: Duration = Duration::from_millis(500);
/// The same where NATS refuses it.
const REFUSED: Duration = Duration::from_secs(10 * 60);
/// How long a courier waits for its key.
const ANNOUNCED: Duration = Duration::from_secs(1);
/// How long taking the keys down may take.
const LEAVING: Duration = Duration::from_secs(1);

/// This worker among the others.
#[derive(Clone, Debug)]
pub(crate) struct Crew(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    worker: String,
    /// The targets without a guard that this worker serves.
    served: Mutex<BTreeMap<TargetName, Presence>>,
    /// Those it serves no more, and left in doubt: their keys stay until they are forgotten.
    lapsed: Mutex<BTreeSet<TargetName>>,
    /// How many workers of a target have vanished so far.
    vanished: Mutex<HashMap<TargetName, watch::Sender<u64>>>,
    /// One more is served.
    more: Notify,
    /// The targets whose key is there.
    announced: watch::Sender<BTreeSet<TargetName>>,
}

/// What is known of others, and of our own keys.
#[derive(Default)]
struct Known {
    /// When the key of each other worker was renewed last, as seen from here, and how often it had given up calls.
    others: HashMap<(TargetName, String), (Instant, u64)>,
    /// Our keys in the bucket.
    posted: BTreeSet<TargetName>,
}

impl Crew {
    pub(crate) fn new(worker: String) -> Self {
        Self(Arc::new(Shared {
            worker,
            served: Mutex::default(),
            lapsed: Mutex::default(),
            vanished: Mutex::default(),
            more: Notify::new(),
            announced: watch::Sender::default(),
        }))
    }

    /// Waits until others can know that this worker serves `target`, and no longer than [`ANNOUNCED`]: whoever vanished before
    /// would not be missed.
    pub(crate) async fn announce(&self, target: &TargetName) {
        self.serves(target, false);
        self.0.more.notify_one();
        let mut announced = self.0.announced.subscribe();
        let announced = announced.wait_for(|targets| targets.contains(target));
        if timeout(ANNOUNCED, announced).await.is_err() {
            let bucket = subjects::WORKERS_BUCKET;
            tracing::warn!(%target, bucket, "can't announce this worker; serving the target all the same");
        }
    }

    /// This worker delivers to a target that has no guard, as far as is known; some deliveries may be `unproven`.
    pub(crate) fn serves(&self, target: &TargetName, unproven: bool) {
        self.lapsed().remove(target);
        let mut served = self.served();
        served.entry(target.clone()).or_default().unproven = unproven;
    }

    /// It doesn't any more, and nothing it has sent may still land; or the target has a guard.
    pub(crate) fn leaves(&self, target: &TargetName) {
        self.served().remove(target);
    }

    /// It doesn't any more, and something may still land: its key isn't renewed, so that others miss it.
    pub(crate) fn lapses(&self, target: &TargetName) {
        if self.served().remove(target).is_some() {
            self.lapsed().insert(target.clone());
        }
    }

    /// Calls of this worker are no longer waited for: all workers, and this one, take it for one that has vanished.
    pub(crate) fn gives_up(&self, target: &TargetName) {
        if let Some(presence) = self.served().get_mut(target) {
            presence.given_up += 1;
        }
        self.has_vanished(target);
    }

    /// Tells how many workers of a target have vanished, each time that it is one more.
    pub(crate) fn vanished(&self, target: &TargetName) -> watch::Receiver<u64> {
        self.count_of(target).subscribe()
    }

    /// A worker of `target` has vanished.
    fn has_vanished(&self, target: &TargetName) {
        self.count_of(target).send_modify(|count| *count += 1);
    }

    /// Renews the keys until `shutdown`, then takes them down.
    pub(crate) async fn run(
        self,
        jetstream: jetstream::Context,
        health: Health,
        shutdown: CancellationToken,
    ) {
        let mut known = Known::default();
        let keep = async {
            loop {
                let kept = self.keep(&jetstream, &mut known).await;
                let refused = health.refusal(subjects::WORKERS_BUCKET);
                if let Err(error) = kept {
                    let error = format!("{error:#}");
                    tracing::debug!(error, bucket = subjects::WORKERS_BUCKET, "trying again");
                }
                if let Some(refused) = &refused {
                    tracing::warn!(
                        refused,
                        "this login can't tell others of this worker: nats.conf is older"
                    );
                }
                // What is refused isn't asked for all the time: it counts against this worker's readiness.
                let rest = refused.map_or(AGAIN, |_| REFUSED);
                tokio::time::sleep(rest).await;
                // Nobody was heard meanwhile.
                let now = Instant::now();
                known
                    .others
                    .values_mut()
                    .for_each(|(heard, _)| *heard = now);
            }
        };
        shutdown.run_until_cancelled(keep).await;
        let gone = self.gone(&mut known);
        let take_down = async {
            let bucket = jetstream.get_key_value(subjects::WORKERS_BUCKET).await?;
            for target in gone {
                bucket.delete(self.key(&target)).await?;
            }
            anyhow::Ok(())
        };
        // What stays looks like a worker that has vanished: then users are delivered once more.
        timeout(LEAVING, take_down).await.ok();
    }

    async fn keep(&self, jetstream: &jetstream::Context, known: &mut Known) -> anyhow::Result<()> {
        let bucket = jetstream.get_key_value(subjects::WORKERS_BUCKET).await?;
        let mut watch = follow::bucket(jetstream, &bucket, None).await?;
        let mut renew = tokio::time::interval(RENEWED);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                change = watch.next() => {
                    self.hear(change.context("the watch ended")??, known);
                    continue;
                }
                _ = renew.tick() => {}
                () = self.0.more.notified() => {}
            }
            // Everything that has come, before anybody is missed.
            while let Some(change) = watch.next().now_or_never() {
                self.hear(change.context("the watch ended")??, known);
            }
            self.miss(known);
            self.post(&bucket, known).await?;
        }
    }

    /// Takes note of another worker's key.
    fn hear(&self, change: Change, known: &mut Known) {
        let Some((target, worker)) = change.key.split_once('.') else {
            return;
        };
        let Ok(target) = target.parse::<TargetName>() else {
            return;
        };
        // A gateway's key says nothing of a target.
        if worker == self.0.worker || target.as_ref() == subjects::GATEWAY_TARGET {
            return;
        }
        let other = (target.clone(), worker.to_owned());
        let Some(value) = change.value else {
            known.others.remove(&other);
            return;
        };
        let Presence { given_up, .. } = serde_json::from_slice(&value).unwrap_or_default();
        let before = known.others.insert(other, (Instant::now(), given_up));
        if before.is_some_and(|(_, before)| before < given_up) {
            self.has_vanished(&target);
        }
    }

    /// Tells of those who weren't heard for too long.
    fn miss(&self, known: &mut Known) {
        let now = Instant::now();
        let missed =
            |_: &_, (heard, _): &mut (Instant, u64)| now.duration_since(*heard) >= VANISHED;
        for ((target, worker), _) in known.others.extract_if(missed) {
            tracing::warn!(%target, worker, "a worker has vanished: what was delivered lately is delivered again");
            self.has_vanished(&target);
        }
    }

    /// Renews our keys; removes those of targets that aren't served any more.
    async fn post(&self, bucket: &kv::Store, known: &mut Known) -> anyhow::Result<()> {
        let served = self.served().clone();
        for target in self.gone(known) {
            timeout(REQUEST_TIMEOUT, bucket.delete(self.key(&target))).await??;
            known.posted.remove(&target);
        }
        let put = async |(target, presence): (TargetName, Presence)| {
            let value = serde_json::to_vec(&presence)?;
            bucket.put(self.key(&target), value.into()).await?;
            anyhow::Ok(target)
        };
        let putting = try_join_all(served.into_iter().map(put));
        let posted = timeout(REQUEST_TIMEOUT, putting).await??;
        known.posted.extend(posted);
        self.0.announced.send_replace(known.posted.clone());
        Ok(())
    }

    /// Targets that we have a key of and don't serve, but for those whose keys are to lapse.
    fn gone(&self, known: &mut Known) -> Vec<TargetName> {
        let (served, lapsed) = (self.served(), self.lapsed());
        known.posted.retain(|target| !lapsed.contains(target));
        let posted = known.posted.iter();
        posted
            .filter(|target| !served.contains_key(*target))
            .cloned()
            .collect()
    }

    fn lapsed(&self) -> MutexGuard<'_, BTreeSet<TargetName>> {
        self.0.lapsed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, target: &TargetName) -> String {
        subjects::worker(target, &self.0.worker)
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<TargetName, Presence>> {
        self.0.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_of(&self, target: &TargetName) -> watch::Sender<u64> {
        let mut counts = self
            .0
            .vanished
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(target.clone());
        count.or_insert_with(|| watch::Sender::new(0)).clone()
    }
}
