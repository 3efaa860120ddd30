//! The notice board of breakers: the KV bucket `user_breakers`, which people read and reset.
//!
//! A breaker that isn't closed has the key `<target>.<worker>`. Deleting that key resets this breaker;
//! the value `reset` at the key `<target>` resets it in every worker.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_nats::jetstream::{self, kv};
use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Serialize;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    follow::{self, Change},
    nats::REQUEST_TIMEOUT,
    registry::BREAKER_AGE,
    subjects,
    target::TargetName,
};

use crate::breaker::State;

/// How long to wait before trying the bucket again.
const AGAIN: Duration = Duration::from_millis(500);
/// What an operator puts at a target's key.
const RESET: &[u8] = b"reset";

/// This worker's part of the board.
#[derive(Clone, Debug)]
pub(crate) struct Board(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    worker: String,
    notices: Mutex<HashMap<TargetName, Notice>>,
    /// The revision of the entry by which each target is served.
    revisions: Mutex<HashMap<TargetName, u64>>,
    resets: Mutex<HashMap<TargetName, Arc<Notify>>>,
    changed: Notify,
}

/// What is to be seen of one target's breaker.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Notice {
    state: State,
    since: Timestamp,
    reason: String,
    worker: String,
    /// Of the entry by which the target was served when it came to this.
    revision: u64,
}

impl Board {
    pub(crate) fn new(worker: String) -> Self {
        Self(Arc::new(Shared {
            worker,
            notices: Mutex::default(),
            revisions: Mutex::default(),
            resets: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// Told by which revision of its entry a target is served.
    pub(crate) fn serves(&self, target: &TargetName, revision: u64) {
        self.revisions().insert(target.clone(), revision);
    }

    /// Shows how a target's breaker stands.
    pub(crate) fn show(&self, target: &TargetName, state: State, reason: &str) {
        let revision = self.revisions().get(target).copied().unwrap_or(0);
        let mut notices = self.notices();
        if state == State::Closed {
            notices.remove(target);
        } else {
            let since = notices
                .get(target)
                .map_or_else(Timestamp::now, |notice| notice.since);
            let before = notices.get(target).filter(|notice| notice.state == state);
            let revision = before.map_or(revision, |notice| notice.revision);
            let notice = Notice {
                state,
                since,
                reason: reason.to_owned(),
                worker: self.0.worker.clone(),
                revision,
            };
            notices.insert(target.clone(), notice);
        }
        drop(notices);
        self.0.changed.notify_one();
    }

    /// Told when somebody resets a target's breaker.
    pub(crate) fn resets(&self, target: &TargetName) -> Arc<Notify> {
        let mut resets = self.0.resets.lock().unwrap_or_else(PoisonError::into_inner);
        resets.entry(target.clone()).or_default().clone()
    }

    /// Keeps the bucket equal to the board until `shutdown`, then takes the notices down.
    pub(crate) async fn run(self, jetstream: jetstream::Context, shutdown: CancellationToken) {
        let mut posted = HashMap::new();
        let keep = async {
            loop {
                if let Err(error) = self.keep(&jetstream, &mut posted).await {
                    tracing::debug!(
                        error = format!("{error:#}"),
                        bucket = subjects::BREAKERS_BUCKET,
                        "trying again"
                    );
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        shutdown.run_until_cancelled(keep).await;
        if posted.is_empty() {
            return;
        }
        let take_down = async {
            let bucket = jetstream.get_key_value(subjects::BREAKERS_BUCKET).await?;
            for target in posted.keys() {
                let key = subjects::breaker(target, &self.0.worker);
                bucket.delete(key).await?;
            }
            anyhow::Ok(())
        };
        // What stays is forgotten by itself.
        timeout(Duration::from_secs(1), take_down).await.ok();
    }

    async fn keep(
        &self,
        jetstream: &jetstream::Context,
        posted: &mut HashMap<TargetName, Notice>,
    ) -> anyhow::Result<()> {
        let bucket = jetstream.get_key_value(subjects::BREAKERS_BUCKET).await?;
        let mut watch = follow::bucket(jetstream, &bucket, None).await?;
        let mut renew = tokio::time::interval(BREAKER_AGE / 4);
        loop {
            self.post(&bucket, posted).await?;
            tokio::select! {
                () = self.0.changed.notified() => {}
                // Also finds out whether the bucket is still there.
                _ = renew.tick() => posted.retain(|target, notice| self.notices().get(target) != Some(notice)),
                change = watch.next() => self.read(&change.context("the watch ended")??, posted),
            }
        }
    }

    /// Writes what differs.
    async fn post(
        &self,
        bucket: &kv::Store,
        posted: &mut HashMap<TargetName, Notice>,
    ) -> anyhow::Result<()> {
        let wanted = self.notices().clone();
        for (target, notice) in &wanted {
            if posted.get(target) != Some(notice) {
                let key = subjects::breaker(target, &self.0.worker);
                let value = serde_json::to_vec(notice)?;
                timeout(REQUEST_TIMEOUT, bucket.put(key, value.into())).await??;
                posted.insert(target.clone(), notice.clone());
            }
        }
        let gone: Vec<_> = posted
            .keys()
            .filter(|target| !wanted.contains_key(*target))
            .cloned()
            .collect();
        for target in gone {
            // First, for the deletion is seen too and must not be taken for an operator's.
            posted.remove(&target);
            let key = subjects::breaker(&target, &self.0.worker);
            timeout(REQUEST_TIMEOUT, bucket.delete(key)).await??;
        }
        Ok(())
    }

    /// Looks whether a change of the bucket resets something here.
    fn read(&self, change: &Change, posted: &mut HashMap<TargetName, Notice>) {
        let (target, worker) = match change.key.split_once('.') {
            Some((target, worker)) => (target, Some(worker)),
            None => (&*change.key, None),
        };
        let Ok(target) = target.parse::<TargetName>() else {
            return;
        };
        let reset = match worker {
            None => change
                .value
                .as_deref()
                .is_some_and(|value| value.trim_ascii() == RESET),
            Some(worker) => {
                let ours = change.value.is_none()
                    && worker == self.0.worker
                    && posted.contains_key(&target);
                if ours {
                    // It isn't there any more: if nothing comes of the reset it is posted again.
                    posted.remove(&target);
                }
                ours
            }
        };
        if reset {
            tracing::info!(%target, "somebody resets the breaker");
            self.resets(&target).notify_one();
        }
    }

    fn revisions(&self) -> MutexGuard<'_, HashMap<TargetName, u64>> {
        self.0
            .revisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn notices(&self) -> MutexGuard<'_, HashMap<TargetName, Notice>> {
        self.0
            .notices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
