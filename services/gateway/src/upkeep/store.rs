//! Whether NATS takes writes: a server can answer every question and store nothing, for a full or broken disk, for limits, or
//! without the others of its cluster.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use tokio::time::{Instant, timeout};
use usersync_core::{
    admin::Health,
    nats::REQUEST_TIMEOUT,
    subjects::{GATEWAY_TARGET, WORKERS_BUCKET},
};

/// The part of readiness.
const PART: &str = "store";
/// How long it isn't tried where NATS refuses it.
const REFUSED: Duration = Duration::from_secs(10 * 60);
/// How many writes in a row have to fail.
const FAILURES: u32 = 2;

/// What is tried.
pub(super) struct Store {
    /// That of a key of our own.
    subject: String,
    /// Writes that failed, in a row.
    failures: u32,
    /// Until when it isn't tried, for NATS refuses it.
    resting: Option<Instant>,
}

impl Store {
    pub(super) fn new() -> Self {
        let gateway = uuid::Uuid::now_v7().simple().to_string();
        Self {
            subject: format!(
                "$KV.{WORKERS_BUCKET}.{GATEWAY_TARGET}.{}",
                &gateway[gateway.len() - 12..]
            ),
            failures: 0,
            resting: None,
        }
    }

    /// Writes, and says in `health` what comes of it.
    pub(super) async fn look(&mut self, jetstream: &jetstream::Context, health: &Health) {
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
            Err(_) if health.refusal(WORKERS_BUCKET).is_some() => {
                tracing::warn!(
                    "whether NATS takes writes can't be told: nats.conf is older, and lets no gateway write to user_workers"
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
