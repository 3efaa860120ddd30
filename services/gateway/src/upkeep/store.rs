//! Whether NATS takes writes: a server can answer every question and store nothing, for a full or broken disk, for limits, or
//! without the others of its cluster.

use anyhow::Context as _;
use async_nats::jetstream;
use tokio::time::timeout;
use usersync_core::{
    admin::Health,
    nats::REQUEST_TIMEOUT,
    subjects::{GATEWAY_TARGET, WORKERS_BUCKET},
};

/// The part of readiness.
const PART: &str = "store";
/// How many writes in a row have to fail.
const FAILURES: u32 = 2;

/// What is tried.
pub(super) struct Store {
    /// That of a key of our own.
    subject: String,
    /// Writes that failed, in a row.
    failures: u32,
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
        }
    }

    /// Writes, and says in `health` what comes of it.
    pub(super) async fn look(&mut self, jetstream: &jetstream::Context, health: &Health) {
        match self.write(jetstream).await {
            Ok(()) => {
                if std::mem::take(&mut self.failures) >= FAILURES {
                    tracing::info!("NATS takes writes again");
                }
                health.up(PART);
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
