//! How each gateway stands with each outbox: the KV bucket `user_relays`, which all gateways read to raise alerts.
//!
//! A gateway that stands by can't tell whether another relays; the bucket can. What isn't renewed is soon forgotten.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::jetstream;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    time::{Interval, MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    nats::REQUEST_TIMEOUT,
    subjects::{self, RELAYS_BUCKET},
};
use usersync_source::{Lag, SourceName};

/// How often it is renewed.
const EVERY: Duration = Duration::from_secs(5);

/// What a gateway does with an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It publishes what is in it.
    Relaying,
    /// Another one does.
    Standby,
    /// It can't.
    Down,
}

/// How a gateway stands with an outbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Notice {
    /// What it does.
    pub state: State,
    /// For how long the oldest row had been waiting, in seconds, when it looked last.
    pub oldest_seconds: f64,
    /// Rows that make no event.
    pub failed: u64,
    /// When it looked last.
    pub looked: Timestamp,
    /// Why changes aren't noted there, if so; or why it can't relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
    /// When its database was put back to an earlier time, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put_back: Option<Timestamp>,
}

impl Notice {
    /// For how long the oldest row may have been waiting by now: a relay that can't look any more doesn't say so.
    pub(crate) fn waiting(&self, now: Timestamp) -> Duration {
        let unseen = now.duration_since(self.looked);
        Duration::from_secs_f64(self.oldest_seconds)
            + Duration::try_from(unseen).unwrap_or_default()
    }
}

/// This gateway's notices.
#[derive(Clone)]
pub(super) struct Board {
    gateway: String,
    notices: Arc<Mutex<BTreeMap<String, Notice>>>,
    /// A state is another one, and told of at once.
    changed: Arc<Notify>,
}

impl Board {
    pub(super) fn new() -> Self {
        // The last, random part is enough to tell gateways apart.
        let id = uuid::Uuid::now_v7().simple().to_string();
        Self {
            gateway: id[id.len() - 12..].to_owned(),
            notices: Arc::default(),
            changed: Arc::default(),
        }
    }

    /// Another gateway relays the outbox, and knows how it is.
    pub(super) fn standby(&self, source: &SourceName) {
        self.unseen(source, State::Standby, None);
    }

    /// This gateway can't relay the outbox: what it has seen last is all that is known, if nobody else can.
    pub(super) fn down(&self, source: &SourceName, why: &str) {
        let broken = Some(why.to_owned());
        let last = self.lock().get(source.as_ref()).cloned();
        match last {
            Some(last) => self.put(
                source,
                Notice {
                    state: State::Down,
                    broken,
                    ..last
                },
            ),
            None => self.unseen(source, State::Down, broken),
        }
    }

    /// It does, and this is how far it is behind, why changes aren't noted, if so, and when the database was put back.
    pub(super) fn relaying(
        &self,
        source: &SourceName,
        lag: Lag,
        broken: Option<String>,
        put_back: Option<Timestamp>,
    ) {
        self.show(source, State::Relaying, lag, broken, put_back);
    }

    /// It hasn't looked.
    fn unseen(&self, source: &SourceName, state: State, broken: Option<String>) {
        let notice = Notice {
            state,
            oldest_seconds: 0.0,
            failed: 0,
            looked: Timestamp::UNIX_EPOCH,
            broken,
            put_back: None,
        };
        self.put(source, notice);
    }

    fn show(
        &self,
        source: &SourceName,
        state: State,
        lag: Lag,
        broken: Option<String>,
        put_back: Option<Timestamp>,
    ) {
        let notice = Notice {
            state,
            oldest_seconds: lag.oldest.as_secs_f64(),
            failed: lag.failed,
            looked: Timestamp::now(),
            broken,
            put_back,
        };
        self.put(source, notice);
    }

    fn put(&self, source: &SourceName, notice: Notice) {
        let state = notice.state;
        let before = self.lock().insert(source.to_string(), notice);
        if before.is_none_or(|before| before.state != state) {
            self.changed.notify_one();
        }
    }

    /// Whether another gateway has said lately that it relays the outbox.
    ///
    /// # Errors
    /// When NATS can't be asked.
    pub(super) async fn is_relayed(
        &self,
        jetstream: &jetstream::Context,
        source: &SourceName,
    ) -> anyhow::Result<bool> {
        let asking = async {
            let bucket = jetstream.get_key_value(RELAYS_BUCKET).await?;
            let ours = subjects::relay(source.as_ref(), &self.gateway);
            let of_source = subjects::relay(source.as_ref(), "");
            let mut keys = bucket.keys().await?;
            while let Some(key) = keys.try_next().await? {
                if key == ours || !key.starts_with(&of_source) {
                    continue;
                }
                let notice = bucket.get(&key).await?;
                let notice = notice.and_then(|told| serde_json::from_slice::<Notice>(&told).ok());
                if notice.is_some_and(|notice| notice.state == State::Relaying) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        timeout(REQUEST_TIMEOUT, asking).await?
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Notice>> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the bucket equal to it until `shutdown`, then takes the notices down.
    pub(super) async fn run(self, jetstream: jetstream::Context, shutdown: CancellationToken) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let next = async |every: &mut Interval| {
            tokio::select! {
                _ = every.tick() => {}
                () = self.changed.notified() => {}
            }
        };
        while shutdown
            .run_until_cancelled(next(&mut every))
            .await
            .is_some()
        {
            self.write(&jetstream, true).await;
        }
        self.write(&jetstream, false).await;
    }

    async fn write(&self, jetstream: &jetstream::Context, there: bool) {
        let notices = self.lock().clone();
        let written = async {
            let bucket = jetstream.get_key_value(RELAYS_BUCKET).await?;
            for (source, notice) in notices {
                let key = subjects::relay(&source, &self.gateway);
                match there {
                    true => drop(bucket.put(key, serde_json::to_vec(&notice)?.into()).await?),
                    false => bucket.delete(key).await?,
                }
            }
            anyhow::Ok(())
        };
        // It is written again soon, or forgotten.
        if let Ok(Err(error)) = timeout(REQUEST_TIMEOUT, written).await {
            let error = format!("{error:#}");
            tracing::debug!(
                error,
                bucket = RELAYS_BUCKET,
                "can't show how outboxes stand"
            );
        }
    }
}
