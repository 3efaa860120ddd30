//! Whether NATS takes writes: a server can answer every question and store nothing, for a full or broken disk, for limits, or
//! without the others of its cluster.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Health,
    nats::REQUEST_TIMEOUT,
    subjects::{CHECKS_BUCKET, GATEWAY_TARGET, WORKERS_BUCKET},
};

/// How often.
const EVERY: Duration = Duration::from_secs(5);

/// The part of readiness.
const PART: &str = "store";
/// How long it isn't tried where NATS refuses it.
const REFUSED: Duration = Duration::from_secs(10 * 60);
/// How many writes in a row have to fail.
const FAILURES: u32 = 2;

/// What is tried.
#[derive(Debug)]
pub struct Store {
    bucket: &'static str,
    /// That of a key of our own in it.
    subject: String,
    /// Writes that failed, in a row.
    failures: u32,
    /// Until when it isn't tried, for NATS refuses it.
    resting: Option<Instant>,
}

impl Store {
    /// That of the gateway with this name in NATS.
    pub fn of_gateway(name: &str) -> Self {
        Self::at(WORKERS_BUCKET, &format!("{GATEWAY_TARGET}.{name}"))
    }

    /// That of the worker with this name.
    pub fn of_worker(name: &str) -> Self {
        Self::at(WORKERS_BUCKET, &format!("=store.{name}"))
    }

    /// That of schedulers: one for all, which stays.
    pub fn of_schedulers() -> Self {
        Self::at(CHECKS_BUCKET, "=store")
    }

    fn at(bucket: &'static str, key: &str) -> Self {
        Self {
            bucket,
            subject: format!("$KV.{bucket}.{key}"),
            failures: 0,
            resting: None,
        }
    }

    /// Looks every few seconds until `shutdown`.
    pub async fn watch(
        mut self,
        jetstream: jetstream::Context,
        health: Health,
        shutdown: CancellationToken,
    ) {
        let looking = async {
            loop {
                self.look(&jetstream, &health).await;
                tokio::time::sleep(EVERY).await;
            }
        };
        shutdown.run_until_cancelled(looking).await;
    }

    /// Writes, and says in `health` what comes of it.
    pub async fn look(&mut self, jetstream: &jetstream::Context, health: &Health) {
        if self.resting.is_some_and(|until| Instant::now() < until) {
            return;
        }
        match self.write(jetstream).await {
            Ok(()) => {
                if std::mem::take(&mut self.failures) >= FAILURES {
                    tracing::info!("NATS takes writes again");
                }
                health.up(PART);
            }
            // That says nothing of the store, and asking again and again would count against this gateway's readiness.
            Err(_) if health.refusal(self.bucket).is_some() => {
                let bucket = self.bucket;
                tracing::warn!(
                    bucket,
                    "whether NATS takes writes can't be told: nats.conf is older, and doesn't let this login write to the bucket"
                );
                self.resting = Some(Instant::now() + REFUSED);
                health.gone(PART);
            }
            Err(error) => {
                let error = format!("{error:#}");
                self.failures += 1;
                if self.failures == FAILURES {
                    tracing::error!(error, "NATS takes no writes");
                }
                if self.failures >= FAILURES {
                    health.down(PART, format!("NATS takes no writes: {error}"));
                }
            }
        }
    }

    async fn write(&self, jetstream: &jetstream::Context) -> anyhow::Result<()> {
        let subject = self.subject.clone();
        let writing = async { anyhow::Ok(jetstream.publish(subject, "{}".into()).await?.await?) };
        let written = timeout(REQUEST_TIMEOUT, writing).await;
        written.context("no answer in time")??;
        Ok(())
    }
}
