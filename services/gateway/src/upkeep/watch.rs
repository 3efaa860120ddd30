//! Looks at everything every few seconds, for metrics, alerts and this gateway's health, and sees to what is missing.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{MissedTickBehavior, timeout};
use usersync_core::{admin::Health, alert::Runbook, nats::REQUEST_TIMEOUT, store::Store};

use super::{
    alerts::{self, Alerts},
    deleted::Deleted,
    gauges::Gauges,
    refill,
};
use crate::control::{Control, look::Look};

/// How often.
const EVERY: Duration = Duration::from_secs(5);
/// How many looks in a row have to fail until this gateway isn't ready.
const FAILURES: u32 = 3;
/// The part of readiness that says so.
const PART: &str = "look";

/// What is looked at, and with what.
pub(super) struct Watch {
    store: Store,
    deleted: Deleted,
    gauges: Gauges,
    alerts: Alerts,
    runbook: Runbook,
    /// Looks that failed, in a row.
    failures: u32,
}

impl Watch {
    pub(super) fn new(deleted: Deleted, settings: alerts::Settings, runbook: Runbook) -> Self {
        // The last, random part is enough to tell gateways apart.
        let id = uuid::Uuid::now_v7().simple().to_string();
        Self {
            store: Store::of_gateway(&id[id.len() - 12..]),
            deleted,
            gauges: Gauges::new(),
            alerts: Alerts::new(settings, runbook.clone()),
            runbook,
            failures: 0,
        }
    }

    /// Looks for ever.
    pub(super) async fn run(mut self, control: &Control, health: &Health) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.store.look(&control.jetstream, health).await;
            let looked = timeout(4 * REQUEST_TIMEOUT, self.look(control, health)).await;
            match looked.context("it took too long").flatten() {
                Ok(()) => {
                    self.failures = 0;
                    health.gone(PART);
                }
                Err(error) => self.failed(&error, health),
            }
        }
    }

    /// Gauges and alerts stay as they are: who relies on them has to know.
    fn failed(&mut self, error: &anyhow::Error, health: &Health) {
        let error = format!("{error:#}");
        self.failures += 1;
        if self.failures >= FAILURES {
            let blind = "gauges and alerts are as they were";
            health.down(PART, format!("NATS can't be looked at: {error}; {blind}"));
        }
        if self.failures == FAILURES {
            tracing::error!(error, "NATS can't be looked at");
        } else {
            tracing::warn!(error, "a look at NATS failed");
        }
    }

    /// What goes wrong on the way keeps nothing else from being looked at.
    async fn look(&mut self, control: &Control, health: &Health) -> anyhow::Result<()> {
        let made = self.deleted.make_again(control).await;
        match made.as_deref() {
            Ok([]) => health.up("streams"),
            Ok(missing) => {
                let missing = missing.join(", ");
                health.down(
                    "streams",
                    format!("missing: {missing}; start this gateway again to have them made, or restore them"),
                );
            }
            Err(_) => {}
        }
        let look = match Look::at(control).await {
            Ok(look) => look,
            // What is missing may be why.
            Err(problem) => {
                made?;
                anyhow::bail!("{}", problem.detail);
            }
        };
        let of_targets = self.deleted.make_targets_again(control, &look).await;
        let refilled = refill::refill(control, &look, &self.runbook).await;
        let account = control.jetstream.query_account().await?;
        let limit = self.alerts.storage_limit(&account);
        self.gauges.set(&look, &account, limit);
        self.alerts.tell(control, &look, &account).await?;
        made?;
        of_targets?;
        refilled
    }
}
